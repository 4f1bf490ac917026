//! File locks of one volume. A plain state machine: it waits for nothing and knows no time.
//!
//! `fcntl` and open-file-description locks of a file share one `Space` and meet each other; `flock`
//! has its own. A request that is in nobody's way is granted at once, also past others that wait, as Linux does it: a
//! process that has a read lock and asks for more of it must not wait for a writer that waits for this very process.
//! Whatever frees bytes looks through the file's queue, in order, and grants what can be granted.
//!
//! A grant is kept for the session until that has acknowledged it, so that it survives a lost
//! connection; so does a place in the queue. What does not survive is a restart. Then [`Locks::begin_grace`] names the
//! sessions that may have had locks, and nothing is granted until each of them has reclaimed its own or has ended.

mod cycle;
mod file;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use netfs_common::errno::Errno;
use netfs_common::id::{Ino, SessionId};
use netfs_common::locks::{LockKind, LockMode, LockRange};
use netfs_common::wire::lock::{LockHeld, LockOn, WaitId};

use file::{File, Waiter};

/// Who has a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    /// The client's session.
    pub session: SessionId,
    /// Two owners of one number and different kinds are different.
    pub kind: LockKind,
    /// The client's number for it.
    pub number: u64,
}

/// The locks that meet each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Space {
    Ranges,
    Whole,
}

/// A space of a file.
type Place = (Ino, Space);

fn place(on: &LockOn) -> Place {
    match on.kind {
        LockKind::Posix | LockKind::Ofd => (on.ino, Space::Ranges),
        LockKind::Flock => (on.ino, Space::Whole),
    }
}

/// Bounds; who is at one gets `ENOLCK`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockLimits {
    /// Ranges that one session has locked.
    pub ranges: usize,
    /// Requests of one session that wait, or are granted and not acknowledged.
    pub waiting: usize,
}

impl Default for LockLimits {
    fn default() -> LockLimits {
        LockLimits { ranges: 65_536, waiting: 4_096 }
    }
}

/// A lock in the way of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocker {
    /// Whose it is.
    pub owner: Owner,
    /// Its range.
    pub range: LockRange,
    /// Its mode.
    pub mode: LockMode,
    /// Its process.
    pub pid: u32,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The owner has it.
    Granted,
    /// Somebody else has a lock in the way.
    Conflict(Blocker),
    /// It has a place in the queue.
    Queued,
    /// Not before every session has reclaimed its locks.
    Grace,
}

#[derive(Debug, Default)]
struct Account {
    /// Ranges that it has.
    ranges: usize,
    /// Where it has any.
    places: HashSet<Place>,
    waiting: BTreeMap<WaitId, Place>,
    /// Not acknowledged.
    granted: BTreeSet<WaitId>,
}

/// All locks of a volume.
#[derive(Debug, Default)]
pub struct Locks {
    limits: LockLimits,
    files: HashMap<Place, File>,
    sessions: HashMap<SessionId, Account>,
    /// What waits for `fcntl` locks, by owner: the edges of the wait-for graph.
    blocked: HashMap<Owner, Vec<(Place, WaitId)>>,
    /// Sessions that have yet to reclaim, and their next batch.
    grace: HashMap<SessionId, u32>,
    woken: BTreeSet<SessionId>,
}

impl Locks {
    /// No locks.
    pub fn new(limits: LockLimits) -> Locks {
        Locks { limits, ..Locks::default() }
    }

    /// Sessions to which something has been granted that waited, since the last look.
    pub fn take_woken(&mut self) -> BTreeSet<SessionId> {
        std::mem::take(&mut self.woken)
    }

    /// Asks for a lock, under a number if it is to be waited for. A repetition of one that waits keeps
    /// its place.
    ///
    /// # Errors
    /// `EINVAL`; `EDEADLK` when it would wait for itself; `ENOLCK` at a limit.
    pub fn set(
        &mut self,
        session: SessionId,
        lock: &LockHeld,
        wait: Option<WaitId>,
    ) -> Result<Outcome, Errno> {
        let (owner, lock) = checked(session, lock)?;
        if !self.grace.is_empty() {
            return Ok(Outcome::Grace);
        }
        let at = place(&lock.on);
        let account = self.sessions.entry(session).or_default();
        if let Some(wait) = wait {
            if account.waiting.contains_key(&wait) {
                return Ok(Outcome::Queued);
            }
            // Unless the owner has changed it since: then it is asked for anew.
            let has = |file: &File| file.covers(owner, lock.range, lock.mode);
            if account.granted.contains(&wait) && self.files.get(&at).is_some_and(has) {
                return Ok(Outcome::Granted);
            }
            account.granted.remove(&wait);
        }
        let file = self.files.entry(at).or_default();
        let growth = file.growth(owner, lock.range, Some(lock.mode));
        let full = account.ranges.saturating_add_signed(growth) > self.limits.ranges && growth > 0;
        let converts = owner.kind == LockKind::Flock && file.has(owner);
        if converts && !file.covers(owner, lock.range, lock.mode) {
            // As Linux does it: the old lock is given up first, and others may come before the new one.
            self.change(at, owner, lock.range, None, 0);
            self.settle(at);
        }
        let blocker = self.files.entry(at).or_default().blocker(owner, lock.range, lock.mode);
        let outcome = match (blocker, wait) {
            _ if full => Err(Errno::ENOLCK),
            (None, _) => {
                self.change(at, owner, lock.range, Some(lock.mode), lock.pid);
                // A write lock that has become a read lock lets readers in.
                self.settle(at);
                Ok(Outcome::Granted)
            }
            (Some(blocker), None) => Ok(Outcome::Conflict(blocker)),
            (Some(_), Some(wait)) => self.enqueue(at, owner, &lock, wait),
        };
        self.tidy(at);
        self.close_account(session);
        outcome
    }

    fn enqueue(
        &mut self,
        at: Place,
        owner: Owner,
        lock: &LockHeld,
        wait: WaitId,
    ) -> Result<Outcome, Errno> {
        if owner.kind == LockKind::Posix && self.would_wait_for_itself(at, owner, lock) {
            return Err(Errno::EDEADLK);
        }
        let account = self.sessions.entry(owner.session).or_default();
        if account.waiting.len() + account.granted.len() >= self.limits.waiting {
            return Err(Errno::ENOLCK);
        }
        account.waiting.insert(wait, at);
        if owner.kind == LockKind::Posix {
            self.blocked.entry(owner).or_default().push((at, wait));
        }
        let LockHeld { range, mode, pid, .. } = *lock;
        let waiter = Waiter { owner, range, mode, pid, wait };
        self.files.entry(at).or_default().queue.push_back(waiter);
        Ok(Outcome::Queued)
    }

    /// Gives up what an owner has in a range.
    ///
    /// # Errors
    /// `EINVAL`; `ENOLCK` when that would make more ranges than a session may have.
    pub fn clear(
        &mut self,
        session: SessionId,
        on: &LockOn,
        range: LockRange,
    ) -> Result<(), Errno> {
        let lock = LockHeld { on: *on, range, mode: LockMode::Read, pid: 0 };
        let (owner, lock) = checked(session, &lock)?;
        let at = place(on);
        let Some(file) = self.files.get(&at) else { return Ok(()) };
        let growth = file.growth(owner, lock.range, None);
        let ranges = self.sessions.get(&session).map_or(0, |a| a.ranges);
        if growth > 0 && ranges.saturating_add_signed(growth) > self.limits.ranges {
            return Err(Errno::ENOLCK);
        }
        self.change(at, owner, lock.range, None, 0);
        self.settle(at);
        self.tidy(at);
        Ok(())
    }

    /// What would be in the way of a lock.
    ///
    /// # Errors
    /// `EINVAL`.
    pub fn test(&self, session: SessionId, lock: &LockHeld) -> Result<Outcome, Errno> {
        let (owner, lock) = checked(session, lock)?;
        let file = self.files.get(&place(&lock.on));
        match file.and_then(|file| file.blocker(owner, lock.range, lock.mode)) {
            Some(blocker) => Ok(Outcome::Conflict(blocker)),
            None if !self.grace.is_empty() => Ok(Outcome::Grace),
            None => Ok(Outcome::Granted),
        }
    }

    /// Nobody waits under a number any more. `true` if it was waiting; otherwise it may have been
    /// granted, and the lock stays.
    pub fn withdraw(&mut self, session: SessionId, wait: WaitId) -> bool {
        let Some(account) = self.sessions.get_mut(&session) else { return false };
        account.granted.remove(&wait);
        let Some(at) = account.waiting.remove(&wait) else {
            self.close_account(session);
            return false;
        };
        if let Some(file) = self.files.get_mut(&at)
            && let Some(waiter) = file.leave(session, wait)
        {
            self.unblocked(waiter.owner, wait);
        }
        self.tidy(at);
        self.close_account(session);
        true
    }

    /// Grants that a session has not acknowledged, the first of them.
    pub fn granted(&self, session: SessionId, most: usize) -> Vec<WaitId> {
        let account = self.sessions.get(&session);
        account.map(|a| a.granted.iter().take(most).copied().collect()).unwrap_or_default()
    }

    /// A session knows that it was granted this.
    pub fn received(&mut self, session: SessionId, waits: &[WaitId]) {
        let waits: HashSet<&WaitId> = waits.iter().collect();
        if let Some(account) = self.sessions.get_mut(&session) {
            account.granted.retain(|wait| !waits.contains(wait));
        }
        self.close_account(session);
    }

    /// Whether a session waits for anything.
    pub fn is_waiting(&self, session: SessionId) -> bool {
        self.sessions.get(&session).is_some_and(|a| !a.waiting.is_empty())
    }

    /// A session has ended: all that it has and waits for goes.
    pub fn end_session(&mut self, session: SessionId) {
        self.grace.remove(&session);
        self.woken.remove(&session);
        let Some(account) = self.sessions.remove(&session) else { return };
        let mut touched: BTreeSet<Place> = account.places.into_iter().collect();
        touched.extend(account.waiting.into_values());
        self.blocked.retain(|owner, _| owner.session != session);
        for at in &touched {
            if let Some(file) = self.files.get_mut(at) {
                file.drop_session(session);
            }
        }
        for at in touched {
            self.settle(at);
            self.tidy(at);
        }
    }

    /// The server has been restarted: these sessions may have had locks.
    pub fn begin_grace(&mut self, sessions: impl IntoIterator<Item = SessionId>) {
        self.grace.extend(sessions.into_iter().map(|id| (id, 0)));
    }

    /// Whether locks are yet to be reclaimed.
    pub fn in_grace(&self) -> bool {
        !self.grace.is_empty()
    }

    /// Which sessions have yet to reclaim theirs.
    pub fn absent(&self) -> impl Iterator<Item = SessionId> + '_ {
        self.grace.keys().copied()
    }

    /// A session brings the locks that it had. Answers with the places, in the batch, of those that it
    /// cannot have again. A repetition is answered as the first time.
    ///
    /// # Errors
    /// `ESTALE` when the batch is not the next one.
    pub fn reclaim(
        &mut self,
        session: SessionId,
        batch: u32,
        locks: &[LockHeld],
        last: bool,
    ) -> Result<Vec<u32>, Errno> {
        match self.grace.get_mut(&session) {
            // What it has not brought by the end was never brought: others may have had it.
            None => {}
            Some(next) if *next == batch => *next = batch.saturating_add(1),
            Some(next) if next.checked_sub(1) == Some(batch) => {}
            Some(next) => {
                *next = 0;
                return Err(Errno::ESTALE);
            }
        }
        let late = !self.grace.contains_key(&session);
        let mut refused = Vec::new();
        for (n, lock) in (0..).zip(locks) {
            if !self.reclaim_one(session, lock, late) {
                refused.push(n);
            }
        }
        if last {
            self.grace.remove(&session);
        }
        Ok(refused)
    }

    fn reclaim_one(&mut self, session: SessionId, lock: &LockHeld, late: bool) -> bool {
        let Ok((owner, lock)) = checked(session, lock) else { return false };
        let at = place(&lock.on);
        let file = self.files.entry(at).or_default();
        if file.covers(owner, lock.range, lock.mode) {
            return true;
        }
        let growth = file.growth(owner, lock.range, Some(lock.mode));
        let free = file.blocker(owner, lock.range, lock.mode).is_none();
        let ranges = self.sessions.get(&session).map_or(0, |a| a.ranges);
        let fits = ranges.saturating_add_signed(growth) <= self.limits.ranges;
        let good = !late && free && fits;
        if good {
            self.change(at, owner, lock.range, Some(lock.mode), lock.pid);
        }
        self.tidy(at);
        good
    }

    /// Every lock and whose it is, of one file: for people and tests.
    pub fn held(&self, ino: Ino) -> Vec<Blocker> {
        let spaces = [Space::Ranges, Space::Whole];
        let files = spaces.iter().filter_map(|space| self.files.get(&(ino, *space)));
        files.flat_map(File::all).collect()
    }

    /// Every request that waits for a lock of one file, those for `fcntl` and open-file-description locks first: for people.
    pub fn queued(&self, ino: Ino) -> Vec<Blocker> {
        let spaces = [Space::Ranges, Space::Whole];
        let files = spaces.iter().filter_map(|space| self.files.get(&(ino, *space)));
        let waiters = files.flat_map(|file| &file.queue);
        waiters
            .map(|w| Blocker { owner: w.owner, range: w.range, mode: w.mode, pid: w.pid })
            .collect()
    }

    /// Changes what an owner has, and the session's account with it.
    fn change(
        &mut self,
        at: Place,
        owner: Owner,
        range: LockRange,
        mode: Option<LockMode>,
        pid: u32,
    ) {
        let file = self.files.entry(at).or_default();
        let growth = file.change(owner, range, mode, pid);
        let account = self.sessions.entry(owner.session).or_default();
        account.ranges = account.ranges.saturating_add_signed(growth);
        if file.has_session(owner.session) {
            account.places.insert(at);
        } else {
            account.places.remove(&at);
        }
        self.close_account(owner.session);
    }

    /// Grants what can be granted, in the order of arrival.
    fn settle(&mut self, at: Place) {
        loop {
            let Some(file) = self.files.get_mut(&at) else { return };
            let Some(waiter) = file.next_grantable() else { return };
            let Waiter { owner, range, mode, pid, wait } = waiter;
            self.unblocked(owner, wait);
            self.change(at, owner, range, Some(mode), pid);
            let account = self.sessions.entry(owner.session).or_default();
            account.waiting.remove(&wait);
            account.granted.insert(wait);
            self.woken.insert(owner.session);
        }
    }

    fn unblocked(&mut self, owner: Owner, wait: WaitId) {
        if let Some(waits) = self.blocked.get_mut(&owner) {
            waits.retain(|(_, w)| *w != wait);
            if waits.is_empty() {
                self.blocked.remove(&owner);
            }
        }
    }

    /// A file without locks takes no memory.
    fn tidy(&mut self, at: Place) {
        if self.files.get(&at).is_some_and(File::is_empty) {
            self.files.remove(&at);
        }
    }

    fn close_account(&mut self, session: SessionId) {
        let done = |a: &Account| {
            a.places.is_empty() && a.waiting.is_empty() && a.granted.is_empty() && a.ranges == 0
        };
        if self.sessions.get(&session).is_some_and(done) {
            self.sessions.remove(&session);
        }
    }
}

/// Who asks, and for what: `flock` is always about the whole file.
fn checked(session: SessionId, lock: &LockHeld) -> Result<(Owner, LockHeld), Errno> {
    let LockOn { kind, owner: number, .. } = lock.on;
    let range = if kind == LockKind::Flock { LockRange::ALL } else { lock.range };
    if !range.is_valid() {
        return Err(Errno::EINVAL);
    }
    Ok((Owner { session, kind, number }, LockHeld { range, ..*lock }))
}
