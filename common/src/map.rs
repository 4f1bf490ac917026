//! The cluster map: which server holds which chunk. Small, versioned, known to every client.
//!
//! A chunk belongs to a *placement group*, by its name alone; each group has a *chain* of replicas. A volume has its own
//! groups, in a pool for each number of replicas in use, whose count never changes; the chains do, whenever servers come, go or
//! fail.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::class::Class;
use crate::coding::Coding;
use crate::id::{ChunkId, Epoch, GroupId, Ino, InstanceId, ServerId, Verifier};

/// Each volume has so many inode numbers. Chunks are named by inode alone, so no two volumes of a cluster may have a
/// number in common; the first volume has the small ones, which 32-bit programs can bear.
pub const INODE_BITS: u32 = 48;

/// The most replicas of a chunk.
pub const MAX_REPLICAS: usize = 5;

/// The most groups of a volume. A map of so many, with the most replicas, fits into a message.
pub const MAX_GROUPS: u32 = 8192;

/// The number of the volume to which an inode belongs.
pub fn volume_of(ino: Ino) -> u64 {
    ino.0 >> INODE_BITS
}

/// A data server as clients reach it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct DataServer {
    /// Its number in chains.
    pub id: ServerId,
    /// `host:port`, tried in order.
    pub addrs: Vec<String>,
}

/// A replica of a group: one life of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Replica {
    /// The server.
    pub server: ServerId,
    /// In this life only. Another one may have lost what was not flushed.
    pub instance: InstanceId,
}

/// The replicas of one placement group.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Chain {
    /// Raised by every change of the chain.
    pub epoch: Epoch,
    /// Raised whenever something that was answered and not flushed may be lost: by the restart of the last replica.
    pub verifier: Verifier,
    /// Those that have everything, head first. At most [`MAX_REPLICAS`], and one more that is about to leave because another has come in its
    /// place. Empty while no server has been given the group.
    pub replicas: Vec<Replica>,
    /// One that is getting what it lacks. It comes after the tail, and may not be read.
    pub learner: Option<Replica>,
}

impl Chain {
    /// The replica to which changes go.
    pub fn head(&self) -> Option<Replica> {
        self.replicas.first().copied()
    }

    /// The replicas in the order in which changes reach them, the learner last.
    pub fn members(&self) -> impl Iterator<Item = Replica> + '_ {
        self.replicas.iter().chain(&self.learner).copied()
    }

    /// Whether a server has a place in it, in whichever life.
    pub fn has(&self, server: ServerId) -> bool {
        self.members().any(|replica| replica.server == server)
    }
}

/// What of a volume goes to the object store of the data servers, if they have one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TierMode {
    /// Nothing.
    None,
    /// What is not used for a while.
    #[default]
    Cold,
    /// Everything, after a bounded delay: the data servers are a cache before it.
    Primary,
}

/// The groups of one class of a volume's data.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Pool {
    /// The number of the volume.
    pub volume: u64,
    /// Which of its data. Every volume has a pool of the default class; others come when they are asked for, and stay.
    pub class: Class,
    /// The number of its first group; the others follow.
    pub first: GroupId,
    /// Writes wait while fewer replicas than this have everything.
    pub min_replicas: u8,
    /// How its chunks are stored. Clients are not told.
    pub coding: Coding,
    /// The chain of each group. Their count never changes, because it decides where chunks are.
    pub chains: Vec<Chain>,
    /// What of it goes to an object store.
    pub tier: TierMode,
}

/// Which server holds which chunk.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ClusterMap {
    /// Raised by every change.
    pub version: Epoch,
    /// All data servers.
    pub servers: Vec<DataServer>,
    /// The groups of each volume, by class; a client is told those of its own volume only. In the order of their groups.
    pub pools: Vec<Pool>,
}

/// Why a map cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// A pool has no group, groups overlap, or two pools are for the same.
    #[error("the cluster map has a volume without placement groups, or with those of another")]
    Groups,
    /// A chain has more replicas than allowed, or one twice.
    #[error("the cluster map has a chain of placement group {0} that cannot be")]
    Chain(GroupId),
    /// A chain names a server that the map does not have.
    #[error("the cluster map names data server {0}, which it does not describe")]
    UnknownServer(ServerId),
}

impl ClusterMap {
    /// Checks what every user of a map relies on.
    ///
    /// # Errors
    /// See [`MapError`].
    pub fn validate(&self) -> Result<(), MapError> {
        let mut next = 0u64;
        for (index, pool) in self.pools.iter().enumerate() {
            let same = |other: &Pool| (other.volume, other.class) == (pool.volume, pool.class);
            if !pool.class.exists() || self.pools[..index].iter().any(same) {
                return Err(MapError::Groups);
            }
            if pool.chains.is_empty() || u64::from(pool.first.0) < next {
                return Err(MapError::Groups);
            }
            next = u64::from(pool.first.0) + pool.chains.len() as u64;
        }
        if next > u64::from(u32::MAX) {
            return Err(MapError::Groups);
        }
        for (group, chain) in self.groups() {
            let members: Vec<_> = chain.members().map(|replica| replica.server).collect();
            let twice = members.iter().enumerate().any(|(i, s)| members[..i].contains(s));
            if twice || chain.replicas.len() > MAX_REPLICAS + 1 {
                return Err(MapError::Chain(group));
            }
            if let Some(id) = members.into_iter().find(|id| self.server(*id).is_none()) {
                return Err(MapError::UnknownServer(id));
            }
        }
        Ok(())
    }

    /// A server.
    pub fn server(&self, id: ServerId) -> Option<&DataServer> {
        self.servers.iter().find(|server| server.id == id)
    }

    /// All groups with their chains, in order.
    pub fn groups(&self) -> impl Iterator<Item = (GroupId, &Chain)> {
        self.pools.iter().flat_map(|pool| {
            let number = move |index: usize| GroupId(pool.first.0 + index as u32);
            pool.chains.iter().enumerate().map(move |(index, chain)| (number(index), chain))
        })
    }

    /// The pool of a group.
    pub fn pool_of(&self, group: GroupId) -> Option<&Pool> {
        let after = self.pools.partition_point(|pool| pool.first <= group);
        let pool = self.pools.get(after.checked_sub(1)?)?;
        ((group.0 - pool.first.0) as usize).lt(&pool.chains.len()).then_some(pool)
    }

    /// The chain of a group.
    pub fn chain(&self, group: GroupId) -> Option<&Chain> {
        let pool = self.pool_of(group)?;
        pool.chains.get((group.0 - pool.first.0) as usize)
    }

    /// The pool of the chunks of a file's contents; `None` if the map does not have the volume, or not yet the class.
    pub fn pool_for(&self, ino: Ino, generation: u32) -> Option<&Pool> {
        let (volume, class) = (volume_of(ino), Class::of(generation));
        self.pools.iter().find(|pool| pool.volume == volume && pool.class == class)
    }

    /// The group of a chunk; `None` if the map does not have its pool. All chunks of a file are spread independently of
    /// each other.
    pub fn group_of(&self, chunk: ChunkId) -> Option<GroupId> {
        let pool = self.pool_for(chunk.ino, chunk.generation)?;
        let mut h = mix(chunk.ino.0);
        h = mix(h ^ u64::from(chunk.generation));
        h = mix(h ^ chunk.index);
        Some(GroupId(pool.first.0 + (h % pool.chains.len() as u64) as u32))
    }

    /// The chain that holds a chunk.
    pub fn chain_of(&self, chunk: ChunkId) -> Option<(GroupId, &Chain)> {
        let group = self.group_of(chunk)?;
        Some((group, self.chain(group)?))
    }

    /// What one volume's clients need to know.
    pub fn of_volume(&self, volume: u64) -> ClusterMap {
        ClusterMap {
            version: self.version,
            servers: self.servers.clone(),
            pools: self
                .pools
                .iter()
                .filter(|pool| pool.volume == volume)
                .map(|pool| Pool { coding: Coding::default(), ..pool.clone() })
                .collect(),
        }
    }
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
/// Generators, 2014): it spreads neighbouring numbers over the whole range.
pub fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(server: u32) -> Replica {
        Replica { server: ServerId(server), instance: InstanceId(u64::from(server)) }
    }

    fn chain(servers: &[u32], learner: Option<u32>) -> Chain {
        Chain {
            epoch: Epoch(1),
            verifier: Verifier(1),
            replicas: servers.iter().map(|s| replica(*s)).collect(),
            learner: learner.map(replica),
        }
    }

    fn map() -> ClusterMap {
        let server = |id| DataServer { id: ServerId(id), addrs: vec![format!("h:{id}")] };
        let pool = |volume, first, chains| Pool {
            volume,
            class: Class::DEFAULT,
            first,
            min_replicas: 1,
            coding: Coding::default(),
            chains,
            tier: TierMode::Cold,
        };
        ClusterMap {
            version: Epoch(3),
            servers: vec![server(1), server(2), server(3)],
            pools: vec![
                pool(0, GroupId(0), vec![chain(&[1, 2], Some(3)), chain(&[2], None)]),
                pool(7, GroupId(10), vec![chain(&[3], None); 4]),
            ],
        }
    }

    #[test]
    fn groups_are_found_by_number_and_by_chunk_within_the_volume() {
        let map = map();
        assert_eq!(map.validate(), Ok(()));
        assert_eq!(map.chain(GroupId(1)).and_then(Chain::head), Some(replica(2)));
        assert_eq!(map.chain(GroupId(2)), None);
        assert_eq!(map.pool_of(GroupId(13)).map(|pool| pool.volume), Some(7));
        assert_eq!(map.chain(GroupId(14)), None);
        let mut seen = std::collections::BTreeSet::new();
        for index in 0..100 {
            let chunk = ChunkId { ino: Ino(7 << INODE_BITS | 5), generation: 0, index };
            seen.insert(map.group_of(chunk).unwrap().0);
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [10, 11, 12, 13]);
        let foreign = ChunkId { ino: Ino(3 << INODE_BITS), generation: 0, index: 0 };
        assert_eq!(map.chain_of(foreign), None);
        assert_eq!(map.of_volume(7).groups().count(), 4);
    }

    #[test]
    fn the_class_in_a_chunks_name_says_in_which_pool_it_is() {
        let mut map = map();
        let class = Class::with_replicas(3).unwrap();
        let ino = Ino(7 << INODE_BITS | 5);
        let chunk = |generation, index| ChunkId { ino, generation, index };
        assert_eq!(map.group_of(chunk(class.first_generation(), 0)), None, "not made yet");
        let chains = vec![chain(&[1, 2, 3], None); 8];
        let first = GroupId(14);
        map.pools.push(Pool {
            tier: TierMode::Cold,
            volume: 7,
            class,
            first,
            min_replicas: 1,
            coding: Coding::default(),
            chains,
        });
        assert_eq!(map.validate(), Ok(()));
        for index in 0..100 {
            let own = map.group_of(chunk(class.first_generation() | 9, index)).unwrap();
            assert!((14..22).contains(&own.0), "{own}");
            let other = map.group_of(chunk(9, index)).unwrap();
            assert!((10..14).contains(&other.0), "{other}");
        }
        assert_eq!(map.of_volume(7).pools.len(), 2);
        let mut twice = map.clone();
        twice.pools[2].class = Class::DEFAULT;
        assert_eq!(twice.validate(), Err(MapError::Groups));
        map.pools[2].class = Class::of(u32::MAX);
        assert_eq!(map.validate(), Err(MapError::Groups));
    }

    #[test]
    fn a_map_that_nobody_can_use_is_refused() {
        let mut twice = map();
        twice.pools[0].chains[0].learner = Some(replica(2));
        assert_eq!(twice.validate(), Err(MapError::Chain(GroupId(0))));
        let mut unknown = map();
        unknown.servers.pop();
        assert_eq!(unknown.validate(), Err(MapError::UnknownServer(ServerId(3))));
        let mut overlapping = map();
        overlapping.pools[1].first = GroupId(1);
        assert_eq!(overlapping.validate(), Err(MapError::Groups));
        let mut overflowing = map();
        overflowing.pools[1].first = GroupId(u32::MAX - 1);
        assert_eq!(overflowing.validate(), Err(MapError::Groups));
    }

    #[test]
    fn a_chain_may_have_one_replica_more_than_wanted_while_another_leaves() {
        let mut map = map();
        let server = |id| DataServer { id: ServerId(id), addrs: vec![format!("h:{id}")] };
        map.servers = (1..=7).map(server).collect();
        map.pools[0].chains[0] = chain(&[1, 2, 3, 4, 5, 6], None);
        assert_eq!(map.validate(), Ok(()));
        map.pools[0].chains[0] = chain(&[1, 2, 3, 4, 5, 6, 7], None);
        assert_eq!(map.validate(), Err(MapError::Chain(GroupId(0))));
    }
}
