//! Servers that answer with a store that is not theirs, because directories or addresses were moved, exchanged or copied.
//!
//! A server is its store: it is what chains count on. Where the store of another known server answers, nothing is heard of the server that is looked for
//! there: what is said is not about it, and it is silent until it is found. Who answers is told the number of the server whose store it has, and the
//! map, so that it compares what chains count on with what its directory has seen, and says if it lacks something; it gets no right to answer
//! reads, is asked for nothing, and nothing is removed there.
//!
//! - At an address that has no store of its own yet it may be that server, moved, or a copy of its directory. It gets the number of the
//!   other one when that has been silent for the deadline. It does not if it lacks what chains count on, or if both were seen at a time: then it is a
//!   copy, and is drained, which is stored, so that this stays known. An operator who adds its address again has it take the place all the same.
//!   More cannot be known: a copy that was made in the last life of the server, and was never seen beside it, is taken for it.
//! - At the address of another known server, of which in turn something else answers at its own, the two have been exchanged. So are their addresses. Each
//!   such step brings one server at least to its own store, so cycles come to an end. If the other one answers with that store itself, this one is a
//!   copy; if it is silent nobody knows.

use std::time::Duration;

use netfs_common::id::{Epoch, InstanceId, ServerId};

use super::{CommandError, Manager, Report, Verdict};
use crate::meta::cluster::state::{Duty, StoreId};

/// What answers at the address of a server, with the store of another one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stray {
    /// It has been heard since then, in this life.
    since: Duration,
    at: Duration,
    instance: InstanceId,
    store: StoreId,
    lacks: bool,
    /// The version of the map that it goes by.
    version: Epoch,
}

/// A server at whose address the store of another one answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Astray {
    /// The server whose store it is.
    pub owner: ServerId,
    /// That one answers with it at its own address.
    pub is_there: bool,
    /// The server that is looked for has no store of its own yet.
    pub is_new: bool,
    /// Chains count on something that this store does not have.
    pub lacks: bool,
    /// It does not take the place of the other one by itself.
    pub is_refused: bool,
}

impl Manager {
    /// A server with this store.
    pub(super) fn with_store(&self, store: StoreId) -> Option<ServerId> {
        let mut servers = self.state.servers.iter();
        servers.find(|(_, server)| server.store == Some(store)).map(|(id, _)| *id)
    }

    /// No answer to a sign of life is under way for longer.
    fn lag(&self) -> Duration {
        self.config.deadline / 3
    }

    /// What answers at the address of a server with a store that is not its own, if it still does.
    fn stray(&self, server: ServerId, now: Duration) -> Option<Stray> {
        let stray = self.seen.get(&server)?.stray?;
        (now.saturating_sub(stray.at) < self.lag()).then_some(stray)
    }

    /// At the address of a server another one's store answers.
    pub(super) fn astray(
        &mut self,
        now: Duration,
        server: ServerId,
        owner: ServerId,
        report: &Report,
    ) {
        let Report { instance, store, lacks, version, .. } = *report;
        let seen = self.seen.entry(server).or_default();
        let before = seen.stray.filter(|s| (s.instance, s.store) == (instance, store));
        let since = before.map_or(now, |stray| stray.since);
        let stray = Stray { since, at: now, instance, store, lacks, version };
        seen.stray = Some(stray);
        match self.state.servers.get(&server).is_some_and(|server| server.store.is_some()) {
            true => self.exchange(now, server, owner, stray),
            false => self.settle(now, server, owner, stray),
        }
    }

    /// The store of a known server answers at the address of another one, which has nothing yet.
    fn settle(&mut self, now: Duration, found: ServerId, owner: ServerId, stray: Stray) {
        if self.instance(owner) == Some(stray.instance) {
            self.replace(owner, found);
            return;
        }
        let has_twin = self.has_twin(found, stray);
        let Some(newcomer) = self.state.servers.get_mut(&found) else { return };
        if has_twin {
            newcomer.duty = Duty::Draining;
        }
        let may = newcomer.duty == Duty::In && !stray.lacks;
        // By an older map it would not know whether it lacks something.
        if may && stray.version >= self.state.version && self.verdict(owner, now) == Verdict::Dead {
            self.replace(owner, found);
        }
    }

    /// Whether the same store was heard elsewhere while this one was there, in another life: they are not one.
    fn has_twin(&self, server: ServerId, stray: Stray) -> bool {
        let later = stray.since + self.lag();
        let others = self.seen.iter().filter(|(id, _)| **id != server);
        others.into_iter().any(|(_, seen)| {
            let own = seen.report.as_ref().map(|r| (r.store, r.instance)).zip(seen.at);
            let other = seen.stray.map(|stray| ((stray.store, stray.instance), stray.at));
            let is_twin = |((store, instance), at): ((StoreId, InstanceId), Duration)| {
                store == stray.store && instance != stray.instance && at > later
            };
            own.is_some_and(is_twin) || other.is_some_and(is_twin)
        })
    }

    /// A server is found where a newcomer was looked for.
    fn replace(&mut self, owner: ServerId, found: ServerId) {
        self.seen.remove(&found);
        if let Some(found) = self.state.servers.remove(&found) {
            self.set_addrs(owner, found.addrs);
        }
    }

    /// Two servers answer with stores that are not theirs, one of them with that of the other: it is looked for at the other's address from now on. What was
    /// heard of them before is true of them still.
    fn exchange(&mut self, now: Duration, server: ServerId, owner: ServerId, stray: Stray) {
        let there = self.verdict(owner, now) == Verdict::Alive;
        let foreign = self.is_foreign(owner) && there;
        let is_copied = self.has_twin(server, stray);
        if is_copied || !(foreign || self.stray(owner, now).is_some()) {
            return;
        }
        let addrs = |id| self.state.servers.get(&id).map(|server| server.addrs.clone());
        let (Some(own), Some(other)) = (addrs(server), addrs(owner)) else { return };
        self.set_addrs(server, other);
        self.set_addrs(owner, own);
        for id in [server, owner] {
            let seen = self.seen.entry(id).or_default();
            seen.stray = None;
            if seen.foreign {
                // That was what the other one has now.
                (seen.report, seen.foreign) = (None, false);
            }
        }
    }

    /// The server whose store a newcomer has.
    pub(super) fn claims(&self, now: Duration, server: ServerId) -> Option<ServerId> {
        self.state.servers.get(&server).filter(|server| server.store.is_none())?;
        self.with_store(self.stray(server, now)?.store)
    }

    /// By an operator's word what was found takes the place of a server that is silent, copy or not.
    pub(super) fn succeed(
        &mut self,
        now: Duration,
        owner: ServerId,
        found: ServerId,
    ) -> Result<(), CommandError> {
        if self.verdict(owner, now) != Verdict::Dead {
            return Err(CommandError::Twin(found, owner));
        }
        self.replace(owner, found);
        Ok(())
    }

    /// The server at whose address a server's store answers, if it is not its own.
    pub(super) fn elsewhere(&self, server: ServerId, now: Duration) -> Option<ServerId> {
        let store = self.state.servers.get(&server)?.store?;
        let mut ids = self.seen.keys().copied();
        ids.find(|id| self.stray(*id, now).is_some_and(|stray| stray.store == store))
    }

    /// At the address of a server another one's store answers.
    pub fn is_astray(&self, server: ServerId, now: Duration) -> Option<Astray> {
        let stray = self.stray(server, now)?;
        let (known, owner) = (self.state.servers.get(&server)?, self.with_store(stray.store)?);
        let is_there = self.verdict(owner, now) == Verdict::Alive
            && self.stray(owner, now).is_none()
            && !self.is_foreign(owner);
        let (is_new, is_refused) = (known.store.is_none(), known.duty == Duty::Draining);
        Some(Astray { owner, is_there, is_new, lacks: stray.lacks, is_refused })
    }

    /// The number of what answers at the address of a server in this life, and whether it is that server. `None`: that is not known yet.
    pub fn number(&self, server: ServerId, instance: InstanceId) -> Option<(ServerId, bool)> {
        let seen = self.seen.get(&server)?;
        match seen.stray {
            Some(stray) if stray.instance == instance => {
                Some((self.with_store(stray.store)?, false))
            }
            None if seen.report.as_ref().is_some_and(|report| report.instance == instance) => {
                Some((server, true))
            }
            // Also where another one with another store was there before.
            _ => {
                let (_, store) = seen.greeted.filter(|(greeted, _)| *greeted == instance)?;
                let owner = self.with_store(store).unwrap_or(server);
                Some((owner, owner == server))
            }
        }
    }

    /// Something answers at the address of a server that goes by no map yet. Whether it has what chains count on it cannot know before, so it is no more
    /// than known who it is.
    pub fn greeted(&mut self, server: ServerId, instance: InstanceId, store: StoreId) {
        if self.state.servers.contains_key(&server) {
            self.seen.entry(server).or_default().greeted = Some((instance, store));
        }
    }

    /// Whether a server was heard last with the store that it is known by, and has all that it had.
    pub(super) fn is_itself(&self, server: ServerId) -> bool {
        let known = self.state.servers.get(&server).and_then(|server| server.store);
        self.seen.get(&server).is_some_and(|seen| {
            let store = seen.report.as_ref().filter(|report| !report.lacks).map(|r| r.store);
            seen.stray.is_none() && !seen.foreign && store.is_some() && store == known
        })
    }

    /// A server that has come with another store has nothing of before, and no chain counts on that any more: from now on
    /// this is its store.
    pub(super) fn adopt(&mut self) {
        let foreign = self.seen.iter().filter(|(_, seen)| seen.foreign);
        let foreign: Vec<_> = foreign
            .filter_map(|(id, seen)| {
                Some((*id, seen.report.as_ref().map(|r| (r.instance, r.store))?))
            })
            .collect();
        for (id, (instance, store)) in foreign {
            let counted_on = self.state.groups().any(|(_, _, chain)| {
                chain.members().any(|r| r.server == id && r.instance != instance)
            });
            if counted_on || self.with_store(store).is_some() {
                continue;
            }
            if let (Some(server), Some(seen)) =
                (self.state.servers.get_mut(&id), self.seen.get_mut(&id))
            {
                (server.store, seen.foreign) = (Some(store), false);
            }
        }
    }
}
