//! What was kept of the cluster by earlier programs. It is read once, and stored anew with the next change.

use std::collections::BTreeMap;

use bincode::{Decode, Encode};
use netfs_common::class::Class;
use netfs_common::coding::Coding;
use netfs_common::id::{Epoch, GroupId, ServerId};
use netfs_common::map::{Chain, Pool, TierMode};

use super::state::{Duty, PoolState, ServerState, State, StoreId};
use super::weight::Share;

/// Format 1: volumes had one pool each, nothing was compressed or encrypted, and shares were those of the capacities.
#[derive(Encode, Decode)]
pub(super) struct State1 {
    version: Epoch,
    servers: BTreeMap<ServerId, ServerState1>,
    next_server: u32,
    next_group: u32,
    weight_bytes: u64,
    pools: Vec<PoolState1>,
}

#[derive(Encode, Decode)]
struct ServerState1 {
    addrs: Vec<String>,
    store: Option<StoreId>,
    domain: String,
    weight: u32,
    duty: Duty,
}

#[derive(Encode, Decode)]
struct PoolState1 {
    replicas: u8,
    volume: u64,
    first: GroupId,
    min_replicas: u8,
    chains: Vec<Chain>,
}

/// Format 2: metadata had no identity.
#[derive(Encode, Decode)]
pub(super) struct State2 {
    version: Epoch,
    servers: BTreeMap<ServerId, ServerState>,
    next_server: u32,
    next_group: u32,
    weight_bytes: u64,
    pools: Vec<PoolState>,
}

impl From<State2> for State {
    fn from(old: State2) -> State {
        State {
            version: old.version,
            servers: old.servers,
            next_server: old.next_server,
            next_group: old.next_group,
            weight_bytes: old.weight_bytes,
            pools: old.pools,
            owner: [0; 16],
        }
    }
}

impl From<State1> for State {
    fn from(old: State1) -> State {
        let server = |(id, s): (ServerId, ServerState1)| {
            let ServerState1 { addrs, store, domain, weight, duty } = s;
            (id, ServerState { addrs, store, domain, weight, share: Share::FULL, duty })
        };
        let pool = |PoolState1 { replicas, volume, first, min_replicas, chains }| PoolState {
            replicas,
            pool: Pool {
                volume,
                class: Class::DEFAULT,
                first,
                min_replicas,
                coding: Coding::default(),
                chains,
                tier: TierMode::default(),
            },
        };
        State {
            version: old.version,
            servers: old.servers.into_iter().map(server).collect(),
            next_server: old.next_server,
            next_group: old.next_group,
            weight_bytes: old.weight_bytes,
            pools: old.pools.into_iter().map(pool).collect(),
            owner: [0; 16],
        }
    }
}

#[cfg(test)]
mod tests {
    use netfs_common::codec;
    use netfs_common::id::Verifier;

    use super::*;

    #[test]
    fn what_was_kept_before_metadata_had_an_identity_is_read() {
        let mut state = State::default();
        let id = state.add_server(vec!["h:1".into()]);
        state.add_pool(3, 4, 2, 1);
        state.servers.get_mut(&id).unwrap().share = Share::FULL;
        let old = State2 {
            version: state.version,
            servers: state.servers.clone(),
            next_server: state.next_server,
            next_group: state.next_group,
            weight_bytes: state.weight_bytes,
            pools: state.pools.clone(),
        };
        let body = codec::encode(&old).unwrap();
        let mut bytes = b"NETFSCLU\x02\0\0\0".to_vec();
        bytes.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
        bytes.extend_from_slice(&body);
        assert_eq!(State::decode(&bytes).unwrap(), state);
    }

    #[test]
    fn what_an_earlier_program_has_kept_is_read() {
        let server = ServerState1 {
            addrs: vec!["h:1".into()],
            store: Some(StoreId([7; 16])),
            domain: "d".into(),
            weight: 128,
            duty: Duty::In,
        };
        let chain =
            Chain { epoch: Epoch(4), verifier: Verifier(1), replicas: Vec::new(), learner: None };
        let pool = PoolState1 {
            replicas: 3,
            volume: 5,
            first: GroupId(0),
            min_replicas: 2,
            chains: vec![chain; 4],
        };
        let old = State1 {
            version: Epoch(9),
            servers: [(ServerId(1), server)].into(),
            next_server: 1,
            next_group: 4,
            weight_bytes: 100,
            pools: vec![pool],
        };
        let body = codec::encode(&old).unwrap();
        let mut bytes = b"NETFSCLU\x01\0\0\0".to_vec();
        bytes.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
        bytes.extend_from_slice(&body);
        let state = State::decode(&bytes).unwrap();
        assert_eq!(state, old.into());
        let found = state.pool(5, Class::DEFAULT).unwrap();
        assert_eq!((found.replicas, found.pool.min_replicas, found.pool.chains.len()), (3, 2, 4));
        assert_eq!((state.servers[&ServerId(1)].weight, state.version), (128, Epoch(9)));
        assert_eq!(State::decode(&state.encode().unwrap()).unwrap(), state);
    }
}
