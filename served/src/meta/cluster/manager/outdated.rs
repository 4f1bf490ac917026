//! The state may be an older copy: an operator has brought it back. Nobody hears of a version of the map before it is stored, so a server that has followed a
//! later one than there is proves it. By such a state, servers that have had everything since are strangers, and others that have nothing
//! left are replicas. So nothing is decided by it as long as such servers answer.
//!
//! They have the later map, and it is taken over: chains, servers, volumes' groups. Not before all servers have been heard that are known here and
//! are in that map: the one that is missing may have followed a still later one, by which it alone has what was written last. Servers that
//! were added after the copy was made cannot be heard, as nobody knows where they are; they were told every map like the others.
//!
//! The last decisions may be known to nobody any more, as a server writes down some seconds late which map it follows. So versions, epochs and verifiers go on
//! far above: no message, no version of a chunk and no promise to a client that belongs to what is not known is taken for one of later.

use std::collections::BTreeMap;
use std::time::Duration;

use netfs_common::id::{Epoch, GroupId, ServerId};
use netfs_common::map::{ClusterMap, Pool};

use super::{Manager, Wanted};
use crate::meta::cluster::state::{Duty, PoolState, ServerState, State};
use crate::meta::cluster::weight::Share;

/// So many versions and epochs are left out: far more than there are in the seconds that nobody remembers, and few of the four billion epochs that a version
/// of a chunk can name.
const LEFT_OUT: u64 = 1 << 16;

/// Which maps servers have followed.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// The latest version of each server, and when it has last said so.
    servers: BTreeMap<ServerId, (Epoch, Duration)>,
    /// Since when any of them is later than what there is.
    since: Option<Duration>,
}

/// Why a later map is not taken over.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// There is a later one, or none is needed any more.
    #[error("it is not the latest one")]
    NotLatest,
    /// Somebody may know better.
    #[error("data server {0} is waited for, which may have followed a later one")]
    Awaited(ServerId),
    /// It makes no sense.
    #[error("it makes no sense: {0}")]
    Map(#[from] netfs_common::map::MapError),
}

impl Manager {
    /// Servers that have followed a later map than there is, and its version.
    pub fn ahead(&self) -> BTreeMap<ServerId, Epoch> {
        let all = self.ahead.servers.iter();
        all.filter(|(_, (version, _))| *version > self.state.version)
            .map(|(id, (version, _))| (*id, *version))
            .collect()
    }

    /// A server has followed this version of the map.
    pub fn note_followed(&mut self, server: ServerId, version: Epoch, now: Duration) {
        if self.state.servers.contains_key(&server) {
            self.ahead.servers.insert(server, (version, now));
        }
    }

    /// Whether servers that answer go by a later map than there is. When that is over, all have as long to be heard as after a standstill: what they
    /// said meanwhile was not listened to.
    pub fn is_frozen(&mut self, now: Duration) -> bool {
        let deadline = self.config.deadline;
        self.ahead.servers.retain(|_, (_, said)| now.saturating_sub(*said) < deadline);
        if !self.ahead().is_empty() {
            self.ahead.since.get_or_insert(now);
            return true;
        }
        if let Some(since) = self.ahead.since.take() {
            self.everybody_heard(since, now);
        }
        false
    }

    /// Whether those who may have followed a later map had a moment to say so since the start: the first one that is back must not go on with a group that
    /// another one has had alone.
    pub(super) fn has_asked_around(&self, now: Duration) -> bool {
        now.saturating_sub(self.start) >= self.config.patience()
            || self.state.servers.keys().all(|id| self.ahead.servers.contains_key(id))
    }

    /// Who has the latest map that anybody has followed, if it is later than what there is.
    pub fn leader(&mut self, now: Duration) -> Option<ServerId> {
        if !self.is_frozen(now) {
            return None;
        }
        self.ahead().into_iter().max_by_key(|(_, version)| *version).map(|(id, _)| id)
    }

    /// A later map is what everything goes by from now on.
    ///
    /// # Errors
    /// Why it is not.
    pub fn take_over(&mut self, now: Duration, map: &ClusterMap) -> Result<(), NotTaken> {
        map.validate()?;
        if !self.is_frozen(now) || self.ahead().values().max() != Some(&map.version) {
            return Err(NotTaken::NotLatest);
        }
        let known = map.servers.iter().filter(|server| self.state.servers.contains_key(&server.id));
        if let Some(silent) = known.map(|s| s.id).find(|id| !self.ahead.servers.contains_key(id)) {
            return Err(NotTaken::Awaited(silent));
        }
        let version = Epoch(map.version.0.saturating_add(LEFT_OUT));
        self.state = State { version, ..self.state.with_map(map) };
        // So that it is one version later when it is told.
        self.told = State { pools: Vec::new(), ..self.state.clone() };
        self.told.servers.clear();
        self.wanted = Wanted::default();
        self.revoking.clear();
        self.failing.clear();
        // All are given the time that they have after a start.
        self.start = now;
        self.plan(now);
        self.changed();
        Ok(())
    }
}

impl State {
    /// With servers and groups as a later map has them. What a map does not say stays, or is as for what is new.
    fn with_map(&self, map: &ClusterMap) -> State {
        let server = |id: ServerId, addrs: &[String]| {
            // One that is known has been heard where it is known to be.
            let fresh = ServerState {
                addrs: addrs.to_vec(),
                store: None,
                domain: String::new(),
                weight: 0,
                share: Share::FULL,
                duty: Duty::In,
            };
            (id, self.servers.get(&id).cloned().unwrap_or(fresh))
        };
        let pool = |later: &Pool| {
            let known = self.pool(later.volume, later.class);
            let longest = later.chains.iter().map(|chain| chain.replicas.len()).max();
            let longest = longest.unwrap_or(1).max(1) as u8;
            let replicas = later.class.replicas().unwrap_or(longest);
            let mut pool = later.clone();
            for chain in pool.chains.iter_mut().filter(|chain| chain.epoch > Epoch(0)) {
                chain.epoch.0 = chain.epoch.0.saturating_add(LEFT_OUT);
                chain.verifier.0 = chain.verifier.0.saturating_add(LEFT_OUT);
            }
            if let Some(known) = known {
                // As it is set for this start.
                pool.tier = known.pool.tier;
                pool.coding.compression = known.pool.coding.compression;
            }
            PoolState { replicas: known.map_or(replicas, |known| known.replicas), pool }
        };
        let mut state = State {
            servers: map.servers.iter().map(|s| server(s.id, &s.addrs)).collect(),
            pools: map.pools.iter().map(pool).collect(),
            ..self.clone()
        };
        let highest = map.servers.iter().map(|server| server.id.0).max().unwrap_or(0);
        state.next_server = state.next_server.max(highest);
        let end = |of: &PoolState| of.pool.first.0 + of.pool.chains.len() as u32;
        let next = state.pools.iter().map(end).max().unwrap_or(0);
        state.next_group = state.next_group.max(next);
        // Groups of volumes and classes that the later map does not have, made since this start.
        for mut only in self.pools.iter().cloned() {
            if state.pool(only.pool.volume, only.pool.class).is_none() {
                only.pool.first = GroupId(state.next_group);
                only.pool.chains.iter_mut().for_each(|chain| {
                    (chain.epoch, chain.learner) = (Epoch(0), None);
                    chain.replicas.clear();
                });
                state.next_group += only.pool.chains.len() as u32;
                state.pools.push(only);
            }
        }
        state
    }
}
