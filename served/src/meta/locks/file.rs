//! The locks of one file that meet each other, and who waits for them.

use std::collections::{BTreeMap, VecDeque};

use netfs_common::id::SessionId;
use netfs_common::locks::{LockKind, LockMode, LockRange, LockedRanges};
use netfs_common::wire::lock::WaitId;

use super::{Blocker, Owner};

/// A request that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiter {
    pub(super) owner: Owner,
    pub(super) range: LockRange,
    pub(super) mode: LockMode,
    pub(super) pid: u32,
    pub(super) wait: WaitId,
}

#[derive(Debug, Default)]
struct Mine {
    ranges: LockedRanges,
    /// Of the last request.
    pid: u32,
}

#[derive(Debug, Default)]
pub(super) struct File {
    held: BTreeMap<Owner, Mine>,
    /// In the order of arrival.
    pub(super) queue: VecDeque<Waiter>,
}

impl File {
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty() && self.queue.is_empty()
    }

    pub(super) fn has(&self, owner: Owner) -> bool {
        self.held.contains_key(&owner)
    }

    pub(super) fn has_session(&self, session: SessionId) -> bool {
        let first = Owner { session, kind: LockKind::Posix, number: 0 };
        self.held.range(first..).next().is_some_and(|(owner, _)| owner.session == session)
    }

    pub(super) fn covers(&self, owner: Owner, range: LockRange, mode: LockMode) -> bool {
        self.held.get(&owner).is_some_and(|mine| mine.ranges.covers(range, mode))
    }

    pub(super) fn growth(&self, owner: Owner, range: LockRange, mode: Option<LockMode>) -> isize {
        match self.held.get(&owner) {
            Some(mine) => mine.ranges.growth(range, mode),
            None => mode.is_some().into(),
        }
    }

    /// The first lock of somebody else that is in the way.
    pub(super) fn blocker(
        &self,
        owner: Owner,
        range: LockRange,
        mode: LockMode,
    ) -> Option<Blocker> {
        self.blockers(owner, range, mode).min_by_key(|blocker| blocker.range.start)
    }

    /// One lock of everybody else who has any in the way.
    pub(super) fn blockers(
        &self,
        owner: Owner,
        range: LockRange,
        mode: LockMode,
    ) -> impl Iterator<Item = Blocker> + '_ {
        let others = self.held.iter().filter(move |(other, _)| **other != owner);
        others.filter_map(move |(other, mine)| {
            let (range, mode) = mine.ranges.meeting(range).find(|(_, m)| mode.excludes(*m))?;
            Some(Blocker { owner: *other, range, mode, pid: mine.pid })
        })
    }

    /// Changes what an owner has; by how many ranges it grew.
    pub(super) fn change(
        &mut self,
        owner: Owner,
        range: LockRange,
        mode: Option<LockMode>,
        pid: u32,
    ) -> isize {
        let mine = self.held.entry(owner).or_default();
        let before = mine.ranges.len();
        mine.ranges.set(range, mode);
        if mode.is_some() {
            mine.pid = pid;
        }
        let growth = mine.ranges.len() as isize - before as isize;
        if mine.ranges.is_empty() {
            self.held.remove(&owner);
        }
        growth
    }

    /// Takes the first request out of the queue that nobody is in the way of.
    pub(super) fn next_grantable(&mut self) -> Option<Waiter> {
        let free = |w: &Waiter| self.blockers(w.owner, w.range, w.mode).next().is_none();
        let at = self.queue.iter().position(free)?;
        self.queue.remove(at)
    }

    /// Takes a request out of the queue.
    pub(super) fn leave(&mut self, session: SessionId, wait: WaitId) -> Option<Waiter> {
        let this = |w: &Waiter| w.wait == wait && w.owner.session == session;
        let at = self.queue.iter().position(this)?;
        self.queue.remove(at)
    }

    pub(super) fn waiter(&self, session: SessionId, wait: WaitId) -> Option<&Waiter> {
        self.queue.iter().find(|w| w.wait == wait && w.owner.session == session)
    }

    pub(super) fn drop_session(&mut self, session: SessionId) {
        self.held.retain(|owner, _| owner.session != session);
        self.queue.retain(|waiter| waiter.owner.session != session);
    }

    pub(super) fn all(&self) -> impl Iterator<Item = Blocker> + '_ {
        self.held.iter().flat_map(|(owner, mine)| {
            let blocker = |(range, mode)| Blocker { owner: *owner, range, mode, pid: mine.pid };
            mine.ranges.iter().map(blocker)
        })
    }
}
