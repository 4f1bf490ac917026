//! What is kept of the cluster.

use std::collections::BTreeMap;

use bincode::{Decode, Encode};
use netfs_common::class::Class;
use netfs_common::codec::{self, CodecError};
use netfs_common::coding::Coding;
use netfs_common::id::{Epoch, GroupId, InstanceId, ServerId, Verifier};
use netfs_common::map::{
    Chain, ClusterMap, DataServer, MAX_REPLICAS, MapError, Pool, Replica, TierMode,
};

use super::old::{State1, State2};
use super::placement::MAX_WEIGHT;
use super::weight::Share;

/// The version of the encoding. Raised by every change of the types here.
const FORMAT: u32 = 3;
/// The magic at its begin.
const MAGIC: [u8; 8] = *b"NETFSCLU";

/// The identity of a data server's store: a server with another one has none of the data of before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct StoreId(pub [u8; 16]);

/// What a server is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Duty {
    /// It gets its share of the groups.
    In,
    /// What it has goes to others.
    Draining,
}

/// A data server.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ServerState {
    /// `host:port`, as clients and servers reach it.
    pub addrs: Vec<String>,
    /// The store that it answers for; unknown before it has answered.
    pub store: Option<StoreId>,
    /// What fails together with it.
    pub domain: String,
    /// Its share, against those of others. 0 before it has said how large it is.
    pub weight: u32,
    /// So much of what its capacity says the weight is.
    pub share: Share,
    /// What it is for.
    pub duty: Duty,
}

/// The groups of one class of a volume's data.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PoolState {
    /// How many replicas each group is to have.
    pub replicas: u8,
    /// What clients know.
    pub pool: Pool,
}

/// Everything that is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct State {
    /// The version of the map.
    pub version: Epoch,
    /// Servers by their numbers, which are not used again.
    pub servers: BTreeMap<ServerId, ServerState>,
    /// The number of the next server.
    pub next_server: u32,
    /// The number of the next group.
    pub next_group: u32,
    /// So many bytes of capacity are one unit of weight.
    pub weight_bytes: u64,
    /// By volume and class, in the order of their groups.
    pub pools: Vec<PoolState>,
    /// The identity of this metadata, drawn at random, by which data servers know whose chunks they have; zeros before it is drawn.
    pub owner: [u8; 16],
}

/// Why stored bytes are no state.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The magic or the checksum.
    #[error("it is damaged")]
    Damaged,
    /// Of a later program.
    #[error("it is of format {0}, and this program knows {FORMAT}")]
    Newer(u32),
    /// The contents.
    #[error("it cannot be understood: {0}")]
    Codec(#[from] CodecError),
    /// The contents contradict themselves.
    #[error("it makes no sense: {0}")]
    Map(#[from] MapError),
}

impl State {
    /// The map of all volumes.
    pub fn map(&self) -> ClusterMap {
        let server = |(id, server): (&ServerId, &ServerState)| DataServer {
            id: *id,
            addrs: server.addrs.clone(),
        };
        ClusterMap {
            version: self.version,
            servers: self.servers.iter().map(server).collect(),
            pools: self.pools.iter().map(|pool| pool.pool.clone()).collect(),
        }
    }

    /// All groups with their chains and the number of replicas that they are to have.
    pub fn groups_mut(&mut self) -> impl Iterator<Item = (GroupId, usize, &mut Chain)> {
        self.pools.iter_mut().flat_map(|pool| {
            let (first, replicas) = (pool.pool.first.0, usize::from(pool.replicas));
            let chains = pool.pool.chains.iter_mut().enumerate();
            chains.map(move |(index, chain)| (GroupId(first + index as u32), replicas, chain))
        })
    }

    /// All groups with their chains and the number of replicas that they are to have.
    pub fn groups(&self) -> impl Iterator<Item = (GroupId, usize, &Chain)> {
        self.pools.iter().flat_map(|pool| {
            let (first, replicas) = (pool.pool.first.0, usize::from(pool.replicas));
            let chains = pool.pool.chains.iter().enumerate();
            chains.map(move |(index, chain)| (GroupId(first + index as u32), replicas, chain))
        })
    }

    /// Another server; its number.
    pub fn add_server(&mut self, addrs: Vec<String>) -> ServerId {
        self.next_server += 1;
        let id = ServerId(self.next_server);
        let (domain, share) = (String::new(), Share::FULL);
        let server = ServerState { addrs, store: None, domain, weight: 0, share, duty: Duty::In };
        self.servers.insert(id, server);
        id
    }

    /// The groups of another volume, which no server has yet.
    pub fn add_pool(&mut self, volume: u64, groups: u32, replicas: u8, min_replicas: u8) {
        let (first, chains) = self.new_groups(groups);
        let replicas = replicas.clamp(1, MAX_REPLICAS as u8);
        let (class, coding) = (Class::DEFAULT, Coding::default());
        let pool =
            Pool { volume, class, first, min_replicas, coding, chains, tier: TierMode::default() };
        self.pools.push(PoolState { replicas, pool });
    }

    /// The groups of another class of a volume's data, as many as those of the default class, which no server has yet. In all else
    /// they are like those. Nothing happens if they are there; `false`: there is no such volume.
    pub fn add_class(&mut self, volume: u64, class: Class) -> bool {
        let Some(like) = self.pool(volume, Class::DEFAULT).cloned() else { return false };
        let Some(replicas) = class.replicas() else { return true };
        if self.pool(volume, class).is_some() {
            return true;
        }
        // Both come from counts of this type.
        let (first, chains) = self.new_groups(like.pool.chains.len() as u32);
        let min_replicas = like.pool.min_replicas.min(replicas);
        let pool = Pool { class, first, min_replicas, chains, ..like.pool };
        self.pools.push(PoolState { replicas, pool });
        true
    }

    fn new_groups(&mut self, groups: u32) -> (GroupId, Vec<Chain>) {
        let chain =
            Chain { epoch: Epoch(0), verifier: Verifier(1), replicas: Vec::new(), learner: None };
        let first = GroupId(self.next_group);
        self.next_group += groups;
        (first, vec![chain; groups as usize])
    }

    /// The pool of a class of a volume's data.
    pub fn pool(&self, volume: u64, class: Class) -> Option<&PoolState> {
        self.pools.iter().find(|of| (of.pool.volume, of.pool.class) == (volume, class))
    }

    /// The weight of a server that can hold so much. The first one decides what the unit is.
    pub fn weight_of(&mut self, capacity: u64) -> u32 {
        if self.weight_bytes == 0 {
            self.weight_bytes = (capacity / 128).max(1);
        }
        u32::try_from(capacity / self.weight_bytes).unwrap_or(MAX_WEIGHT).clamp(1, MAX_WEIGHT)
    }

    /// As it is stored: magic, format, length and checksum before the contents.
    ///
    /// # Errors
    /// Those of the codec.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        let body = codec::encode(self)?;
        let mut out = Vec::with_capacity(body.len() + 16);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
        out.extend_from_slice(&body);
        Ok(out)
    }

    /// What was stored.
    ///
    /// # Errors
    /// Why it is no state.
    pub fn decode(bytes: &[u8]) -> Result<State, StateError> {
        let (head, body) = bytes.split_at_checked(16).ok_or(StateError::Damaged)?;
        let number =
            |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        if head[..8] != MAGIC || crc32fast::hash(body) != number(12) {
            return Err(StateError::Damaged);
        }
        let state: State = match number(8) {
            FORMAT => codec::decode(body)?,
            1 => codec::decode::<State1>(body)?.into(),
            2 => codec::decode::<State2>(body)?.into(),
            newer => return Err(StateError::Newer(newer)),
        };
        state.map().validate()?;
        Ok(state)
    }
}

/// A life of a server, as chains name it.
pub(super) fn replica(server: ServerId, instance: InstanceId) -> Replica {
    Replica { server, instance }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_read_back_and_damage_is_noticed() {
        let mut state = State::default();
        let id = state.add_server(vec!["h:1".into()]);
        state.add_pool(0, 4, 3, 1);
        state.add_pool(5, 4, 9, 1);
        assert_eq!(state.pools[1].replicas, 5);
        let three = Class::with_replicas(3).unwrap();
        assert!(state.add_class(5, three) && state.add_class(5, three));
        assert!(state.add_class(5, Class::DEFAULT) && !state.add_class(6, three));
        let found = state.pool(5, three).unwrap();
        assert_eq!((found.replicas, found.pool.first, found.pool.chains.len()), (3, GroupId(8), 4));
        assert_eq!(state.pools.len(), 3);
        assert_eq!(state.map().validate(), Ok(()));
        state.pools[0].pool.chains[2].replicas = vec![replica(id, InstanceId(9))];
        state.pools[1].pool.tier = TierMode::Primary;
        let bytes = state.encode().unwrap();
        assert_eq!(State::decode(&bytes).unwrap(), state);
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            assert!(State::decode(&bad).is_err(), "byte {at}");
            assert!(State::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn the_first_server_decides_what_weights_count() {
        let mut state = State::default();
        assert_eq!(state.weight_of(1 << 40), 128);
        assert_eq!(state.weight_of(2 << 40), 256);
        assert_eq!(state.weight_of(0), 1);
        assert_eq!(state.weight_of(u64::MAX), MAX_WEIGHT);
    }
}
