//! Who holds what: compact, found by inode, in order of age by session.

use std::collections::HashMap;
use std::time::Duration;

use netfs_common::id::{Ino, SessionId};
use netfs_common::wire::lease::Lease;

/// No slot.
const NONE: u32 = u32::MAX;

/// One lease. There are millions of these: links are numbers of slots, half as long as pointers.
#[derive(Debug)]
struct Slot {
    ino: Ino,
    session: SessionId,
    /// When `Write` was given, in nanoseconds.
    since: u64,
    /// The next holder of the same inode; of a free slot, the next free one.
    other: u32,
    /// Neighbours in the order in which the session was given its leases.
    older: u32,
    newer: u32,
    lease: Lease,
    /// A recall has gone out because the session has too many.
    evicting: bool,
}

/// What one session has.
#[derive(Debug)]
struct Owned {
    oldest: u32,
    newest: u32,
    count: usize,
    evicting: usize,
}

/// A lease and its holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Holding {
    pub(super) ino: Ino,
    pub(super) session: SessionId,
    pub(super) lease: Lease,
    /// When `Write` was given.
    pub(super) since: Duration,
}

/// All leases of a volume.
///
/// The holders of an inode are a chain of slots that begins in `inodes`: one holder, which is
/// nearly always so, costs no memory of its own.
#[derive(Debug)]
pub(super) struct Holdings {
    slots: Vec<Slot>,
    free: u32,
    len: usize,
    inodes: HashMap<Ino, u32>,
    sessions: HashMap<SessionId, Owned>,
}

impl Holdings {
    pub(super) fn new() -> Holdings {
        Holdings {
            slots: Vec::new(),
            free: NONE,
            len: 0,
            inodes: HashMap::new(),
            sessions: HashMap::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// How many leases a session has, and how many of them it has been told to give up for their
    /// number.
    pub(super) fn count(&self, session: SessionId) -> (usize, usize) {
        self.sessions.get(&session).map_or((0, 0), |owned| (owned.count, owned.evicting))
    }

    /// Who holds an inode.
    pub(super) fn holders(&self, ino: Ino) -> impl Iterator<Item = Holding> + '_ {
        let mut at = self.inodes.get(&ino).copied().unwrap_or(NONE);
        std::iter::from_fn(move || {
            let slot = self.slots.get(at as usize)?;
            at = slot.other;
            Some(slot.holding())
        })
    }

    /// What a session holds of an inode.
    pub(super) fn get(&self, session: SessionId, ino: Ino) -> Option<Lease> {
        self.holders(ino).find(|h| h.session == session).map(|h| h.lease)
    }

    /// Gives a session a lease, or more of one, or notes that it was given again. False if there
    /// is no room for one more.
    pub(super) fn give(
        &mut self,
        session: SessionId,
        ino: Ino,
        lease: Lease,
        now: Duration,
    ) -> bool {
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        if let Some(at) = self.find(session, ino) {
            let slot = &mut self.slots[at as usize];
            if lease > slot.lease {
                slot.lease = lease;
                slot.since = now;
            }
            self.unlink(at);
            self.link(at);
            return true;
        }
        let other = self.inodes.get(&ino).copied().unwrap_or(NONE);
        let (older, newer) = (NONE, NONE);
        let slot = Slot { ino, session, since: now, other, older, newer, lease, evicting: false };
        let at = match self.slots.get_mut(self.free as usize) {
            Some(empty) => {
                let at = std::mem::replace(&mut self.free, empty.other);
                *empty = slot;
                at
            }
            None => {
                let Some(at) = u32::try_from(self.slots.len()).ok().filter(|at| *at != NONE) else {
                    return false;
                };
                self.slots.push(slot);
                at
            }
        };
        self.inodes.insert(ino, at);
        self.len += 1;
        let none = Owned { oldest: NONE, newest: NONE, count: 0, evicting: 0 };
        self.sessions.entry(session).or_insert(none).count += 1;
        self.link(at);
        true
    }

    /// Leaves a session no more than this of its lease. Returns what it had if that was more.
    pub(super) fn lower(
        &mut self,
        session: SessionId,
        ino: Ino,
        keep: Option<Lease>,
    ) -> Option<Lease> {
        let at = self.find(session, ino)?;
        let slot = &mut self.slots[at as usize];
        let had = slot.lease;
        match keep {
            Some(keep) if had <= keep => return None,
            Some(keep) => slot.lease = keep,
            None => self.remove(at),
        }
        Some(had)
    }

    /// The leases that a session was given longest ago, `except` one inode's, and apart from those
    /// named by an earlier call. They count as on their way out.
    pub(super) fn evict(&mut self, session: SessionId, most: usize, except: Ino) -> Vec<Holding> {
        let Some(owned) = self.sessions.get_mut(&session) else { return Vec::new() };
        let mut out = Vec::new();
        let mut at = owned.oldest;
        while out.len() < most
            && let Some(slot) = self.slots.get_mut(at as usize)
        {
            at = slot.newer;
            if !slot.evicting && slot.ino != except {
                slot.evicting = true;
                owned.evicting += 1;
                out.push(slot.holding());
            }
        }
        out
    }

    /// Takes everything from a session. Returns the inodes that it held for writing.
    pub(super) fn end(&mut self, session: SessionId) -> Vec<Ino> {
        let mut written = Vec::new();
        while let Some(owned) = self.sessions.get(&session) {
            let at = owned.oldest;
            let slot = &self.slots[at as usize];
            if slot.lease == Lease::Write {
                written.push(slot.ino);
            }
            self.remove(at);
        }
        written
    }

    fn find(&self, session: SessionId, ino: Ino) -> Option<u32> {
        let mut at = *self.inodes.get(&ino)?;
        loop {
            let slot = self.slots.get(at as usize)?;
            if slot.session == session {
                return Some(at);
            }
            at = slot.other;
        }
    }

    /// Takes a slot out of the chain of its inode and the order of its session.
    fn remove(&mut self, at: u32) {
        self.unlink(at);
        let Slot { ino, session, other, evicting, .. } = self.slots[at as usize];
        match self.inodes.get(&ino).copied() {
            Some(first) if first != at => {
                let mut before = first;
                while let Some(slot) = self.slots.get_mut(before as usize) {
                    if slot.other == at {
                        slot.other = other;
                        break;
                    }
                    before = slot.other;
                }
            }
            _ if other != NONE => {
                self.inodes.insert(ino, other);
            }
            _ => {
                self.inodes.remove(&ino);
            }
        }
        if let Some(owned) = self.sessions.get_mut(&session) {
            owned.count -= 1;
            owned.evicting -= usize::from(evicting);
            if owned.count == 0 {
                self.sessions.remove(&session);
            }
        }
        self.slots[at as usize].other = std::mem::replace(&mut self.free, at);
        self.len -= 1;
    }

    /// Makes a slot the newest of its session.
    fn link(&mut self, at: u32) {
        let session = self.slots[at as usize].session;
        let Some(owned) = self.sessions.get_mut(&session) else { return };
        let before = std::mem::replace(&mut owned.newest, at);
        match self.slots.get_mut(before as usize) {
            Some(slot) => slot.newer = at,
            None => owned.oldest = at,
        }
        let slot = &mut self.slots[at as usize];
        (slot.older, slot.newer) = (before, NONE);
    }

    /// Takes a slot out of the order of its session.
    fn unlink(&mut self, at: u32) {
        let Slot { session, older, newer, .. } = self.slots[at as usize];
        let Some(owned) = self.sessions.get_mut(&session) else { return };
        match self.slots.get_mut(older as usize) {
            Some(slot) => slot.newer = newer,
            None => owned.oldest = newer,
        }
        match self.slots.get_mut(newer as usize) {
            Some(slot) => slot.older = older,
            None => owned.newest = older,
        }
    }
}

impl Slot {
    fn holding(&self) -> Holding {
        let since = Duration::from_nanos(self.since);
        Holding { ino: self.ino, session: self.session, lease: self.lease, since }
    }
}

#[cfg(test)]
impl Holdings {
    /// Panics unless all links agree with each other.
    pub(super) fn check(&self) {
        let mut seen = 0;
        for ino in self.inodes.keys() {
            let holders: Vec<_> = self.holders(*ino).collect();
            assert!(!holders.is_empty());
            for (i, h) in holders.iter().enumerate() {
                assert_eq!(h.ino, *ino);
                assert!(holders[..i].iter().all(|o| o.session != h.session), "twice in a chain");
                assert!(h.lease == Lease::Read || holders.len() == 1, "not alone with Write");
            }
            seen += holders.len();
        }
        assert_eq!(seen, self.len);
        let mut owned_by_all = 0;
        for (session, owned) in &self.sessions {
            let (mut at, mut before, mut count, mut evicting) = (owned.oldest, NONE, 0, 0);
            while let Some(slot) = self.slots.get(at as usize) {
                assert_eq!((slot.session, slot.older), (*session, before));
                count += 1;
                evicting += usize::from(slot.evicting);
                (before, at) = (at, slot.newer);
            }
            assert_eq!((count, evicting, before), (owned.count, owned.evicting, owned.newest));
            owned_by_all += count;
        }
        assert_eq!(owned_by_all, self.len);
    }
}
