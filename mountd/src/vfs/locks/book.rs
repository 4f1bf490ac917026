//! What this client knows of its locks: enough to give them back at the right `close`, and to reclaim
//! them from a metadata server that was restarted.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use lru::LruCache;
use netfs_common::id::Ino;
use netfs_common::locks::{LockKind, LockMode, LockRange, LockedRanges};
use netfs_common::wire::lock::{LockCall, LockHeld, LockOn, WaitId};
use tokio::sync::{Notify, watch};

use super::WantedLock;
use crate::session::lock;

/// So many files on which `fcntl` locks were seen are remembered; see [`LockBook::needs_flush`].
const MAX_FLUSHED: NonZeroUsize = match NonZeroUsize::new(65_536) {
    Some(n) => n,
    None => NonZeroUsize::MIN,
};

/// Beyond so many notes of a file, those of owners without locks are dropped.
const MAX_NOTES: usize = 256;

/// An owner within a file.
pub(super) type Key = (LockKind, u64);

/// All locks of this client.
#[derive(Debug)]
pub(in crate::vfs) struct LockBook {
    /// A leaf.
    inner: Mutex<Inner>,
    /// The server knows all that it has to know of our locks.
    pub(super) ready: watch::Sender<bool>,
    /// Told when locks are to be reclaimed.
    pub(super) reclaim: Notify,
    /// Told when something waits at the server.
    pub(super) queued: Notify,
    /// Told when something was given back that nobody wanted.
    given_back: Notify,
    next_wait: AtomicU64,
}

#[derive(Debug)]
struct Inner {
    /// Bounded by what the server lets a session lock and wait for.
    files: HashMap<Ino, FileLocks>,
    waits: HashMap<WaitId, Wait>,
    /// Owners who may have, at the server, what nobody here wants any more, and how often.
    unwanted: HashMap<Key, usize>,
    /// A task brings news of what waits.
    awaiting: bool,
    /// There may be a grant that was not taken note of by the task that brings news.
    unheard: bool,
    /// Raised whenever the server may have lost our locks.
    life: u64,
    stamp: u64,
    flushed: LruCache<Ino, ()>,
}

/// A request that waits.
#[derive(Debug)]
struct Wait {
    on: LockOn,
    /// Changed when there is something to do for it.
    news: watch::Sender<u64>,
    /// It was granted, in this life of the server, and nothing was asked for of its owner since.
    granted: Option<u64>,
    asked: bool,
    /// That it was granted counts only if the call that brings it was begun after this stamp: an earlier one may tell what was so before
    /// the request was made again. [`NEVER`] when something else was asked for of its owner, which may have undone a
    /// grant: then it must be made again.
    after: u64,
}

const NEVER: u64 = u64::MAX;

/// While it lives, the server may have locks of an owner that nobody wants.
#[derive(Debug)]
pub(super) struct Unwanted {
    book: Arc<LockBook>,
    key: Key,
}

impl Unwanted {
    pub(super) fn begin(book: &Arc<LockBook>, on: &LockOn) -> Unwanted {
        let key = (on.kind, on.owner);
        *lock(&book.inner).unwanted.entry(key).or_default() += 1;
        Unwanted { book: Arc::clone(book), key }
    }
}

impl Drop for Unwanted {
    fn drop(&mut self) {
        {
            let mut inner = lock(&self.book.inner);
            let count = inner.unwanted.get_mut(&self.key);
            if count.is_none_or(|count| {
                *count = count.saturating_sub(1);
                *count == 0
            }) {
                inner.unwanted.remove(&self.key);
            }
        }
        self.book.given_back.notify_waiters();
    }
}

#[derive(Debug, Default)]
struct FileLocks {
    /// Held during a call that changes locks of the file, so that answers are noted in order.
    gate: Arc<tokio::sync::Mutex<()>>,
    users: usize,
    held: HashMap<Key, Mine>,
    notes: Vec<Note>,
}

#[derive(Debug, Default)]
struct Mine {
    ranges: LockedRanges,
    pid: u32,
    /// Of the last change.
    stamp: u64,
}

/// Somebody has locked through a handle.
#[derive(Clone, Copy, Debug)]
struct Note {
    fh: u64,
    key: Key,
    /// It is known what kind of lock it was.
    certain: bool,
    /// The process, if its closes of the handle may not be told.
    unheard: Option<u32>,
}

/// A grant that was noted.
#[derive(Clone, Debug)]
pub(super) struct Noted {
    pub(super) before: Vec<(LockRange, LockMode)>,
    stamp: u64,
}

impl LockBook {
    pub(in crate::vfs) fn new() -> LockBook {
        LockBook {
            inner: Mutex::new(Inner {
                files: HashMap::new(),
                waits: HashMap::new(),
                unwanted: HashMap::new(),
                awaiting: false,
                unheard: false,
                life: 0,
                stamp: 0,
                flushed: LruCache::new(MAX_FLUSHED),
            }),
            ready: watch::Sender::new(true),
            reclaim: Notify::new(),
            queued: Notify::new(),
            given_back: Notify::new(),
            next_wait: AtomicU64::new(1),
        }
    }

    /// Waits until the server knows our locks.
    pub(super) async fn ready(&self) {
        // The sender is in `self`.
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }

    /// Waits until the server has nothing of an owner that nobody wants: what is asked next, of whatever file, must not meet what the
    /// owner has given up before, nor close a circle with it.
    pub(super) async fn given_back(&self, on: &LockOn) {
        loop {
            let told = self.given_back.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            if !lock(&self.inner).unwanted.contains_key(&(on.kind, on.owner)) {
                return;
            }
            told.await;
        }
    }

    /// A call is about to be made, under the gate of its file. Grants of before of the same owner, of which no note was taken yet, may
    /// be undone by it.
    pub(super) fn about_to(&self, call: &LockCall) {
        let (on, asks) = match call {
            LockCall::Set { lock, wait } => (lock.on, *wait),
            LockCall::Clear { on, .. } => (*on, None),
            _ => return,
        };
        let mut inner = lock(&self.inner);
        inner.disturb(&on);
        if let Some(wait) = asks.and_then(|wait| inner.waits.get_mut(&wait))
            && !std::mem::replace(&mut wait.asked, true)
        {
            // No news of this number can be older.
            wait.after = 0;
        }
    }

    /// The call of which [`LockBook::about_to`] was told has been answered, and the request waits on.
    pub(super) fn answered(&self, wait: WaitId) {
        let mut inner = lock(&self.inner);
        inner.stamp += 1;
        let stamp = inner.stamp;
        if let Some(wait) = inner.waits.get_mut(&wait)
            && wait.after == NEVER
        {
            wait.after = stamp;
        }
    }

    /// In which life of the server a request was granted, if that was told and counts.
    pub(super) fn told(&self, wait: WaitId) -> Option<u64> {
        lock(&self.inner).waits.get(&wait)?.granted
    }

    pub(super) fn life(&self) -> u64 {
        lock(&self.inner).life
    }

    /// The server may have lost our locks, or has: then what they were.
    pub(super) fn new_life(&self, lost: bool) -> Vec<LockHeld> {
        let mut inner = lock(&self.inner);
        inner.life += 1;
        if !lost {
            return Vec::new();
        }
        let all = inner.all();
        inner.files.values_mut().for_each(|file| file.held.clear());
        inner.tidy_all();
        all
    }

    /// Everything that is held, and in which life of the server.
    pub(super) fn snapshot(&self) -> (u64, Vec<LockHeld>) {
        let inner = lock(&self.inner);
        (inner.life, inner.all())
    }

    /// The server knows our locks, if it is still the same.
    pub(super) fn reclaimed(&self, life: u64) -> bool {
        // Under the mutex, so that a new life cannot begin in between.
        let inner = lock(&self.inner);
        let same = inner.life == life;
        if same {
            self.ready.send_replace(true);
        }
        same
    }

    /// An inode about whose locks something is under way.
    pub(super) fn enter(&self, ino: Ino) -> Arc<tokio::sync::Mutex<()>> {
        let mut inner = lock(&self.inner);
        let file = inner.files.entry(ino).or_default();
        file.users += 1;
        Arc::clone(&file.gate)
    }

    /// As [`LockBook::enter`], if there is anything to know of the inode.
    pub(super) fn enter_known(&self, ino: Ino) -> Option<Arc<tokio::sync::Mutex<()>>> {
        let mut inner = lock(&self.inner);
        let file = inner.files.get_mut(&ino)?;
        file.users += 1;
        Some(Arc::clone(&file.gate))
    }

    pub(super) fn leave(&self, ino: Ino) {
        let mut inner = lock(&self.inner);
        if let Some(file) = inner.files.get_mut(&ino) {
            file.users = file.users.saturating_sub(1);
        }
        inner.tidy(ino);
    }

    /// What kind of lock an owner asks for through a handle, as far as that can be known from earlier ones. The
    /// number of an open file description is never that of a process while it is open.
    pub(super) fn kind_known(
        &self,
        ino: Ino,
        fh: u64,
        owner: u64,
        whole: bool,
    ) -> Option<LockKind> {
        let inner = lock(&self.inner);
        let notes = &inner.files.get(&ino)?.notes;
        let mut mine = notes.iter().filter(|n| n.fh == fh && n.key.1 == owner && n.certain);
        match mine.next()?.key.0 {
            LockKind::Posix => Some(LockKind::Posix),
            LockKind::Ofd | LockKind::Flock => (!whole).then_some(LockKind::Ofd),
        }
    }

    /// Somebody is about to lock through a handle.
    pub(super) fn note(&self, wanted: &WantedLock, unheard: bool) {
        let WantedLock { fh, lock: LockHeld { on, pid, .. }, certain } = *wanted;
        let mut inner = lock(&self.inner);
        if on.kind == LockKind::Posix {
            inner.flushed.put(on.ino, ());
        }
        let file = inner.files.entry(on.ino).or_default();
        let key = (on.kind, on.owner);
        if file.notes.len() >= MAX_NOTES {
            let held = &file.held;
            file.notes.retain(|n| held.contains_key(&n.key));
        }
        let unheard = (unheard && on.kind == LockKind::Posix && pid != 0).then_some(pid);
        match file.notes.iter_mut().find(|n| n.fh == fh && n.key == key) {
            Some(note) => (note.certain, note.unheard) = (certain, unheard),
            None => file.notes.push(Note { fh, key, certain, unheard }),
        }
    }

    /// A close of the file must be told, also of a handle that cannot write: it ends `fcntl` locks. Where there
    /// were none as long as this client remembers, the cost of it is saved; locks that are then taken
    /// through such a handle end with its last descriptor.
    pub(in crate::vfs) fn needs_flush(&self, ino: Ino) -> bool {
        lock(&self.inner).flushed.contains(&ino)
    }

    /// A lock is ours. `None` if the server may have lost it since.
    pub(super) fn granted(&self, life: u64, lock_held: &LockHeld) -> Option<Noted> {
        let LockHeld { on, range, mode, pid } = *lock_held;
        let mut inner = lock(&self.inner);
        if inner.life != life {
            return None;
        }
        // In which order the server has granted them is not known here.
        inner.disturb(&on);
        inner.stamp += 1;
        let stamp = inner.stamp;
        let mine = inner.files.entry(on.ino).or_default().held.entry((on.kind, on.owner));
        let mine = mine.or_default();
        let before = mine.ranges.within(range);
        mine.ranges.set(range, Some(mode));
        (mine.pid, mine.stamp) = (pid, stamp);
        Some(Noted { before, stamp })
    }

    /// A grant shall not have been, unless something has happened since.
    pub(super) fn take_back(&self, lock_held: &LockHeld, noted: &Noted) -> bool {
        let LockHeld { on, range, .. } = *lock_held;
        let mut inner = lock(&self.inner);
        let Some(file) = inner.files.get_mut(&on.ino) else { return false };
        let Some(mine) = file.held.get_mut(&(on.kind, on.owner)) else { return false };
        if mine.stamp != noted.stamp {
            return false;
        }
        mine.ranges.set(range, None);
        noted.before.iter().for_each(|(range, mode)| mine.ranges.set(*range, Some(*mode)));
        if mine.ranges.is_empty() {
            file.held.remove(&(on.kind, on.owner));
        }
        true
    }

    /// A range is no longer ours; what was.
    pub(super) fn cleared(&self, on: &LockOn, range: LockRange) -> Vec<(LockRange, LockMode)> {
        let key = (on.kind, on.owner);
        let mut inner = lock(&self.inner);
        inner.stamp += 1;
        let stamp = inner.stamp;
        let Some(file) = inner.files.get_mut(&on.ino) else { return Vec::new() };
        let Some(mine) = file.held.get_mut(&key) else { return Vec::new() };
        let before = mine.ranges.within(range);
        mine.ranges.set(range, None);
        mine.stamp = stamp;
        if mine.ranges.is_empty() {
            file.held.remove(&key);
        }
        before
    }

    /// What an owner has within a range, and what not.
    pub(super) fn within(
        &self,
        on: &LockOn,
        range: LockRange,
    ) -> (Vec<(LockRange, LockMode)>, Vec<LockRange>) {
        let inner = lock(&self.inner);
        let mine = inner.files.get(&on.ino).and_then(|f| f.held.get(&(on.kind, on.owner)));
        match mine {
            Some(mine) => (mine.ranges.within(range), mine.ranges.gaps(range)),
            None => (Vec::new(), vec![range]),
        }
    }

    /// The kinds of locks that an owner has in a file.
    pub(super) fn kinds(&self, ino: Ino, owner: u64) -> Vec<LockKind> {
        let inner = lock(&self.inner);
        let held = inner.files.get(&ino).into_iter().flat_map(|f| f.held.keys());
        held.filter(|(_, o)| *o == owner).map(|(kind, _)| *kind).collect()
    }

    /// A process closes the file. Whether it has locks there.
    pub(super) fn closed(&self, ino: Ino, owner: u64) -> bool {
        let key = (LockKind::Posix, owner);
        let mut inner = lock(&self.inner);
        let Some(file) = inner.files.get_mut(&ino) else { return false };
        file.notes.retain(|n| n.key != key);
        file.held.contains_key(&key)
    }

    /// The last descriptor of a handle is closed. Whose locks end with it: those of the open file, and those
    /// of processes that have never closed it, which it was, then, too.
    pub(super) fn released(&self, ino: Ino, fh: u64) -> Vec<LockOn> {
        let mut inner = lock(&self.inner);
        let Some(file) = inner.files.get_mut(&ino) else { return Vec::new() };
        let mut ended = Vec::new();
        file.notes.retain(|note| {
            let this = note.fh == fh;
            if this && file.held.contains_key(&note.key) {
                ended.push(LockOn { ino, kind: note.key.0, owner: note.key.1 });
            }
            !this
        });
        inner.tidy(ino);
        ended
    }

    /// Processes that have locks and whose closes may not be told.
    pub(super) fn unheard(&self) -> Vec<(LockOn, u32)> {
        let inner = lock(&self.inner);
        let mut all = Vec::new();
        for (ino, file) in &inner.files {
            for note in file.notes.iter().filter(|n| file.held.contains_key(&n.key)) {
                let on = LockOn { ino: *ino, kind: note.key.0, owner: note.key.1 };
                all.extend(note.unheard.map(|pid| (on, pid)));
            }
        }
        all
    }

    /// A place for a request that waits.
    pub(super) fn begin_wait(&self, on: LockOn) -> (WaitId, watch::Receiver<u64>) {
        let wait = WaitId(self.next_wait.fetch_add(1, Ordering::Relaxed));
        let (news, receiver) = watch::channel(0);
        let new = Wait { on, news, granted: None, asked: false, after: NEVER };
        lock(&self.inner).waits.insert(wait, new);
        (wait, receiver)
    }

    pub(super) fn end_wait(&self, wait: WaitId) {
        lock(&self.inner).waits.remove(&wait);
    }

    /// Whether a task must be started that brings news.
    pub(super) fn begin_awaiting(&self) -> bool {
        !std::mem::replace(&mut lock(&self.inner).awaiting, true)
    }

    /// Ends the task that brings news, if nobody wants any.
    pub(super) fn end_awaiting(&self, force: bool) -> bool {
        let mut inner = lock(&self.inner);
        let ends = force || (inner.waits.is_empty() && !std::mem::take(&mut inner.unheard));
        if ends {
            inner.awaiting = false;
        }
        ends
    }

    /// A request that had waited was granted when it asked again: the server still has to be told that this is known.
    pub(super) fn granted_unheard(&self) {
        lock(&self.inner).unheard = true;
    }

    /// A call for news begins: in which life of the server, and when.
    pub(super) fn begin_news(&self) -> (u64, u64) {
        let mut inner = lock(&self.inner);
        inner.stamp += 1;
        (inner.life, inner.stamp)
    }

    /// Tells waiting requests that they were granted, as a call says that has begun then. If that does not count, they ask again.
    pub(super) fn tell_granted(&self, (life, begun): (u64, u64), waits: &[WaitId]) {
        let mut inner = lock(&self.inner);
        for wait in waits {
            let Some(wait) = inner.waits.get_mut(wait) else { continue };
            if wait.after < begun {
                wait.granted = Some(life);
            }
            wait.news.send_modify(|news| *news += 1);
        }
    }

    /// Tells all waiting requests to ask again; whether there are any.
    pub(super) fn tell_again(&self) -> bool {
        let inner = lock(&self.inner);
        inner.waits.values().for_each(|wait| wait.news.send_modify(|news| *news += 1));
        !inner.waits.is_empty()
    }

    /// Files of which anything is known.
    #[cfg(test)]
    pub(in crate::vfs) fn len(&self) -> usize {
        lock(&self.inner).files.len()
    }
}

impl Inner {
    fn all(&self) -> Vec<LockHeld> {
        let mut all = Vec::new();
        for (ino, file) in &self.files {
            for ((kind, owner), mine) in &file.held {
                let on = LockOn { ino: *ino, kind: *kind, owner: *owner };
                let held = |(range, mode)| LockHeld { on, range, mode, pid: mine.pid };
                all.extend(mine.ranges.iter().map(held));
            }
        }
        all
    }

    /// What has been granted to requests of an owner may have changed.
    fn disturb(&mut self, on: &LockOn) {
        for wait in self.waits.values_mut().filter(|wait| wait.on == *on) {
            (wait.granted, wait.after) = (None, NEVER);
        }
    }

    fn tidy(&mut self, ino: Ino) {
        if self.files.get(&ino).is_some_and(FileLocks::is_unused) {
            self.files.remove(&ino);
        }
    }

    fn tidy_all(&mut self) {
        self.files.retain(|_, file| !file.is_unused());
    }
}

impl FileLocks {
    fn is_unused(&self) -> bool {
        self.users == 0 && self.held.is_empty() && self.notes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_counts_only_of_what_was_asked_for_last() {
        let book = LockBook::new();
        let on = LockOn { ino: Ino(7), kind: LockKind::Posix, owner: 1 };
        let (range, mode) = (LockRange { start: 0, end: 9 }, LockMode::Write);
        let (wait, _news) = book.begin_wait(on);
        let set = LockCall::Set { lock: LockHeld { on, range, mode, pid: 1 }, wait: Some(wait) };
        let told = |begun: (u64, u64)| {
            book.tell_granted(begun, &[wait]);
            book.told(wait).is_some()
        };
        let first = book.begin_news();
        book.about_to(&set);
        book.answered(wait);
        assert!(told(first), "the call was under way before anything waited");
        // Another thread of the process gives the same bytes up.
        book.about_to(&LockCall::Clear { on, range });
        assert_eq!(book.told(wait), None);
        assert!(!told(book.begin_news()), "the server still tells what it had granted");
        let late = book.begin_news();
        book.about_to(&set);
        assert!(!told(book.begin_news()), "it may be overtaken by the answer");
        book.answered(wait);
        assert!(!told(late), "it tells what was before");
        assert!(told(book.begin_news()));
        // Somebody else's calls, and those of the owner for another file, change nothing.
        for (ino, owner) in [(7, 2), (8, 1)] {
            let on = LockOn { ino: Ino(ino), owner, ..on };
            book.about_to(&LockCall::Clear { on, range });
        }
        assert!(book.told(wait).is_some());
    }
}
