//! What is kept of the cluster.

use std::collections::BTreeMap;

use bincode::{Decode, Encode};
use netfs_common::codec::{self, CodecError};
use netfs_common::id::{Epoch, GroupId, InstanceId, ServerId, Verifier};
use netfs_common::map::{
    Chain, ClusterMap, DataServer, MAX_REPLICAS, MapError, Pool, Replica, TierMode,
};

use super::placement::MAX_WEIGHT;

/// The version of the encoding. Raised by every change of the types here.
const FORMAT: u32 = 2;
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
    /// What it is for.
    pub duty: Duty,
}

/// The groups of a volume.
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
    /// By volume.
    pub pools: Vec<PoolState>,
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
        let server =
            ServerState { addrs, store: None, domain: String::new(), weight: 0, duty: Duty::In };
        self.servers.insert(id, server);
        id
    }

    /// The groups of another volume, which no server has yet.
    pub fn add_pool(&mut self, volume: u64, groups: u32, replicas: u8, min_replicas: u8) {
        let chain =
            Chain { epoch: Epoch(0), verifier: Verifier(1), replicas: Vec::new(), learner: None };
        let chains = vec![chain; groups as usize];
        let first = GroupId(self.next_group);
        self.next_group += groups;
        let replicas = replicas.clamp(1, MAX_REPLICAS as u8);
        let pool = Pool { volume, first, min_replicas, chains, tier: TierMode::default() };
        self.pools.push(PoolState { replicas, pool: pool });
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
            1 => codec::decode::<v1::State>(body)?.into(),
            FORMAT => codec::decode(body)?,
            newer => return Err(StateError::Newer(newer)),
        };
        state.map().validate()?;
        Ok(state)
    }
}

/// Format 1, which knew no object store.
mod v1 {
    use super::{BTreeMap, Chain, Decode, Encode, Epoch, GroupId, ServerId, ServerState, TierMode};

    #[derive(Encode, Decode)]
    pub(super) struct State {
        version: Epoch,
        servers: BTreeMap<ServerId, ServerState>,
        next_server: u32,
        next_group: u32,
        weight_bytes: u64,
        pools: Vec<(u8, Pool)>,
    }

    #[derive(Encode, Decode)]
    struct Pool {
        volume: u64,
        first: GroupId,
        min_replicas: u8,
        chains: Vec<Chain>,
    }

    impl From<State> for super::State {
        fn from(old: State) -> super::State {
            let pool = |(replicas, pool): (u8, Pool)| {
                let Pool { volume, first, min_replicas, chains } = pool;
                let tier = TierMode::default();
                let pool = super::Pool { volume, first, min_replicas, chains, tier };
                super::PoolState { replicas, pool }
            };
            super::State {
                version: old.version,
                servers: old.servers,
                next_server: old.next_server,
                next_group: old.next_group,
                weight_bytes: old.weight_bytes,
                pools: old.pools.into_iter().map(pool).collect(),
            }
        }
    }

    #[cfg(test)]
    impl From<super::State> for State {
        fn from(new: super::State) -> State {
            let pool = |super::PoolState { replicas, pool }| {
                let super::Pool { volume, first, min_replicas, chains, .. } = pool;
                (replicas, Pool { volume, first, min_replicas, chains })
            };
            State {
                version: new.version,
                servers: new.servers,
                next_server: new.next_server,
                next_group: new.next_group,
                weight_bytes: new.weight_bytes,
                pools: new.pools.into_iter().map(pool).collect(),
            }
        }
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
        state.pools[0].pool.chains[2].replicas = vec![replica(id, InstanceId(9))];
        let body = codec::encode(&v1::State::from(state.clone())).unwrap();
        let mut old = [&MAGIC[..], &1u32.to_le_bytes(), &[0; 4], &body].concat();
        old[12..16].copy_from_slice(&crc32fast::hash(&body).to_le_bytes());
        assert_eq!(State::decode(&old).unwrap(), state);
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
