//! The state may be an older copy: an operator has brought it back. Nobody hears of a version of the map before it is stored, so a server that has followed a
//! later one than there is proves it. By such a state, servers that have had everything since are strangers, and others that have nothing
//! left are replicas. So nothing is decided by it as long as such servers answer.
//!
//! They have the later map, and it is taken over: chains and volumes' groups. But only if nothing can be lost by that:
//!
//! - Nothing was decided here since the copy was brought back. What was written by such decisions has replicas that the later map does not know. So nothing may have been decided since
//!   the start, and nobody may go by the very map that there is: it could be from an earlier start.
//! - All servers of that map have been heard: the one that is missing may have followed a still later one, by which it alone has what was written last.
//! - It has the servers that are known here, at the same addresses. One that was added after the copy was made cannot be heard, as nobody knows where it is, and
//!   its number may have been given to another one.
//! - No epoch goes back by it.
//!
//! Otherwise nothing is decided until an operator has them go by the older map after all. What is decided then has versions above the later map's, so that
//! whoever still has that one and comes back does not lead again.
//!
//! The last decisions may be known to nobody any more, as a server writes down some seconds late which map it follows. So versions, epochs and verifiers go on
//! far above: no message, no version of a chunk and no promise to a client that belongs to what is not known is taken for one of later.

use std::collections::BTreeMap;
use std::time::Duration;

use netfs_common::id::{Epoch, ServerId};
use netfs_common::map::{ClusterMap, Pool};

use super::{Manager, Wanted};
use crate::meta::cluster::state::{PoolState, State};

/// So many versions and epochs are left out: far more than there are in the seconds that nobody remembers, and few of the four billion epochs that a version
/// of a chunk can name.
const LEFT_OUT: u64 = 1 << 16;

/// No version or verifier comes near this, and none is taken over that would.
const LAST: u64 = 1 << 48;
/// Nor an epoch: a version of a chunk names it in 32 bits.
const LAST_EPOCH: u64 = 1 << 31;

/// Which maps servers have followed.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// The latest version of each server, and when it has last said so.
    servers: BTreeMap<ServerId, (Epoch, Duration)>,
    /// Since when any of them is later than what there is.
    since: Option<Duration>,
    /// The latest one that a server goes by no more.
    given_up: Epoch,
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
    /// What was decided since the start would be forgotten.
    #[error("something was decided since this metadata server was started, which it does not know")]
    Decided,
    /// What was decided before the start may be forgotten.
    #[error(
        "data server {0} goes by the map that this metadata server has, and may have what was written by it"
    )]
    Followed(ServerId),
    /// Its servers are not those that are known here.
    #[error("by it data server {0} was added, removed or moved since the copy was made")]
    Servers(ServerId),
    /// It lacks a volume, or has other groups of it.
    #[error("it does not have the groups of volume {0}")]
    Volume(u64),
    /// Epochs go back, or are such that none can follow.
    #[error("its epochs cannot be those of later")]
    Epochs,
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
            let before = self.ahead.servers.insert(server, (version, now));
            if let Some((before, _)) = before
                && version <= self.state.version
                && before > self.state.version
            {
                self.ahead.given_up = self.ahead.given_up.max(before);
            }
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
            let given_up = std::mem::take(&mut self.ahead.given_up);
            if given_up > self.state.version {
                self.go_above(given_up);
            }
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
        if self.state.version != self.begun {
            return Err(NotTaken::Decided);
        }
        let addrs = |id| map.servers.iter().find(|server| server.id == id).map(|s| &s.addrs);
        let known = |id| self.state.servers.get(&id).map(|server| &server.addrs);
        let mut all = self.state.servers.keys().copied().chain(map.servers.iter().map(|s| s.id));
        if let Some(other) = all.find(|id| addrs(*id) != known(*id)) {
            return Err(NotTaken::Servers(other));
        }
        let mut servers = self.state.servers.keys();
        if let Some(silent) = servers.find(|id| !self.ahead.servers.contains_key(id)) {
            return Err(NotTaken::Awaited(*silent));
        }
        let is_there = |known: &PoolState| {
            let groups = |pool: &Pool| (pool.volume, pool.class, pool.first, pool.chains.len());
            map.pools.iter().any(|pool| groups(pool) == groups(&known.pool))
        };
        if let Some(gone) = self.state.pools.iter().find(|known| !is_there(known)) {
            return Err(NotTaken::Volume(gone.pool.volume));
        }
        let version = self.state.version;
        let mut followed = self.ahead.servers.iter();
        if let Some((same, _)) = followed.find(|(_, (followed, _))| *followed == version) {
            return Err(NotTaken::Followed(*same));
        }
        if !self.state.may_follow(map) {
            return Err(NotTaken::Epochs);
        }
        self.state = self.state.with_map(map);
        self.go_above(map.version);
        self.wanted = Wanted::default();
        self.revoking.clear();
        self.failing.clear();
        // All are given the time that they have after a start.
        self.start = now;
        self.plan(now);
        self.changed();
        Ok(())
    }

    /// The next version is far above one.
    fn go_above(&mut self, version: Epoch) {
        self.state.version = Epoch(version.0.saturating_add(LEFT_OUT).min(LAST));
        self.told = State { pools: Vec::new(), ..self.state.clone() };
        // So that there is something to tell.
        self.told.servers.clear();
        self.changed();
    }
}

impl State {
    /// Whether versions and epochs of a map can be those of later than this.
    fn may_follow(&self, map: &ClusterMap) -> bool {
        let later = |pool: &Pool, chain: usize| {
            let known = self.pool(pool.volume, pool.class);
            let known = known.and_then(|known| known.pool.chains.get(chain));
            known.is_none_or(|known| {
                known.epoch <= pool.chains[chain].epoch
                    && known.verifier <= pool.chains[chain].verifier
            })
        };
        let sound = |pool: &Pool| {
            let mut chains = pool.chains.iter().enumerate();
            chains.all(|(n, chain)| {
                later(pool, n) && chain.epoch.0 <= LAST_EPOCH && chain.verifier.0 <= LAST
            })
        };
        map.version.0 <= LAST && map.pools.iter().all(sound)
    }

    /// With groups as a later map has them. What a map does not say stays, or is as for what is new.
    fn with_map(&self, map: &ClusterMap) -> State {
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
        let mut state = State { pools: map.pools.iter().map(pool).collect(), ..self.clone() };
        let end = |of: &PoolState| of.pool.first.0 + of.pool.chains.len() as u32;
        let next = state.pools.iter().map(end).max().unwrap_or(0);
        state.next_group = state.next_group.max(next);
        state
    }
}
