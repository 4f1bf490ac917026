//! One inode, as the client knows it.

use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use netfs_common::attr::{Attr, Timestamp};
use netfs_common::errno::Errno;
use netfs_common::id::{GroupId, Ino, Verifier};
use tokio::sync::Notify;

use crate::lease::Held;
use crate::session::{lock, since_boot};
use crate::writeback::Extents;

/// An inode.
#[derive(Debug)]
pub struct Node {
    /// Its number.
    pub ino: Ino,
    state: Mutex<State>,
    gates: OnceLock<Box<Gates>>,
}

/// The asynchronous locks of an inode, made when first used.
///
/// Lock order: `io` before `meta` before any state; of two inodes' `io` the one with the smaller
/// number first.
#[derive(Debug, Default)]
pub struct Gates {
    /// Shared by writes, which only put bytes into the buffer; exclusive for what needs the
    /// buffer to stand still: truncation, `fsync`, allocation, copying. Nothing that frees room
    /// in the buffers takes it, so that waiting for room under it would still end; writes wait
    /// before they take it all the same.
    pub io: tokio::sync::RwLock<()>,
    /// Held while a change of this inode's size or times is under way at the server: they must
    /// arrive in order.
    pub meta: tokio::sync::Mutex<()>,
    /// Held by who asks for the write lease, so that one asks for all.
    pub lease: tokio::sync::Mutex<()>,
    /// Held while something is given back, so that it is done in order.
    pub giving: tokio::sync::Mutex<()>,
    /// Told whenever data of the inode has arrived at a server, or failed to.
    pub progress: Notify,
}

/// Where and when bytes were acknowledged that may not be durable yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// In which group.
    pub group: GroupId,
    /// They are durable after a flush of the group that answers with the same one.
    pub verifier: Verifier,
    /// A number that grows with every acknowledgement.
    pub at: u64,
}

/// What is known of an inode and not yet sent.
#[derive(Debug, Default)]
pub struct State {
    /// As the server described it last.
    pub attr: Option<Attr>,
    /// What the server lets this client do without asking.
    pub held: Held,
    /// The write lease is being given back: new writes wait.
    pub giving: bool,
    /// The attributes may be served without asking. Only under a lease.
    pub valid: bool,
    /// Parts of the file that the kernel has locked for reads and writes which wait here for a lease.
    pub pinned: Vec<(u64, u64)>,
    /// Reads that are being answered under a lease.
    pub filling: usize,
    /// The kernel may have pages or attributes that it was given since all were taken back last.
    pub told: bool,
    /// Of a directory: answers on their way that let the kernel keep a name in it.
    pub telling: usize,
    /// A write past the kernel's pages is being taken: reads wait for it.
    pub passing: usize,
    /// Of a directory: others change names in it, until this time since boot; the kernel is given none to keep.
    pub contended: Duration,
    /// Changed a moment ago: until this time since boot the kernel is given no attributes to keep.
    pub unsettled: Duration,
    /// The attributes that the kernel was given last, and since when.
    shown: Option<(Shown, Duration)>,
    /// Of a file: others may have made it longer than the kernel knows.
    pub behind: bool,
    /// Change counter, see [`crate::cache`].
    pub changes: u64,
    /// Of a directory: every name in it is in the cache of names.
    pub complete: bool,
    /// A later access than the server knows of.
    pub atime: Option<Timestamp>,
    /// The target of a symbolic link.
    pub target: Option<Bytes>,
    /// Of a file: the data servers have nothing beyond its length but what this client has sent since; see
    /// [`crate::writeback`].
    pub tail_known: bool,
    /// The version of the latest change that was made through this client.
    pub changed_at: u64,
    /// Failures of background writes, and changes that the server has lost.
    pub failed: FailLog,
    /// Raised when data on its way was given up: what comes back later no longer counts.
    pub era: u64,
    /// Data on its way; most inodes have none.
    pub file: Option<Box<File>>,
}

/// What tells attributes of an inode from those of another moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shown {
    version: u64,
    size: u64,
    mtime: Timestamp,
    ctime: Timestamp,
}

/// What the kernel knows of an inode that is not known here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Left {
    shown: Option<(Shown, Duration)>,
    behind: bool,
}

impl Shown {
    fn of(attr: &Attr) -> Shown {
        let Attr { version, size, mtime, ctime, .. } = *attr;
        Shown { version, size, mtime, ctime }
    }
}

/// After so long the kernel has taken in what it was answered, although whoever has asked had to wait for a processor.
const TAKEN_IN: Duration = Duration::from_millis(10);

/// Failures, each reported once to every open file (as the kernel's `errseq_t` does).
#[derive(Clone, Copy, Debug, Default)]
pub struct FailLog {
    last: Option<Errno>,
    count: u64,
    reported: bool,
}

impl FailLog {
    /// Notes a failure.
    pub fn add(&mut self, error: Errno) {
        self.last = Some(error);
        self.count += 1;
        self.reported = false;
    }

    /// From where a new handle counts: a failure that nobody was told yet is told to it.
    pub fn start(&self) -> u64 {
        if self.reported { self.count } else { self.count.saturating_sub(1) }
    }

    /// The last failure.
    pub fn last(&self) -> Option<Errno> {
        self.last
    }

    /// How many failures there were.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The last failure if it came after `seen`, which moves on.
    pub fn check(&mut self, seen: &mut u64) -> Result<(), Errno> {
        if *seen >= self.count {
            return Ok(());
        }
        *seen = self.count;
        self.reported = true;
        Err(self.last.unwrap_or(Errno::EIO))
    }
}

/// Data of a file that the servers do not have for certain.
#[derive(Debug, Default)]
pub struct File {
    /// Written by programs, not yet sent.
    pub dirty: Extents,
    /// Being sent.
    pub flying: Extents,
    /// Acknowledged, but not yet known to be durable; sent again if its server loses it.
    pub kept: Extents<Mark>,
    /// A task takes batches out of `dirty`.
    pub pumping: bool,
    /// How much more goes out, by weight, although its window is not full.
    pub force: u64,
    /// In the queue of those to be sent when they are old enough.
    pub queued: bool,
    /// The data was inline at the server and goes to chunks: so many bytes of it must be durable
    /// there before the server may drop the inline copy.
    pub converting: Option<u64>,
    /// Data has arrived at data servers which the metadata server was not told of.
    pub unreported: bool,
    /// The end of that data.
    pub end: u64,
    /// The file is being cut here: whatever comes back from beyond is no longer wanted.
    pub limit: Option<u64>,
    /// By how much it grew the allocated bytes.
    pub allocated: i64,
    /// Time of the last write, as long as the metadata server does not know it.
    pub mtime: Option<Timestamp>,
    /// When contents changed last, likewise; differs from `mtime` once that was set by hand.
    pub ctime: Option<Timestamp>,
    /// Its path, noted for people when the cache of names was about to be dropped.
    pub path: Option<Box<str>>,
}

impl File {
    /// Where the file ends at least.
    pub fn reach(&self) -> u64 {
        self.end.max(self.dirty.end()).max(self.flying.end())
    }

    /// Nothing is to be sent or reported.
    pub fn is_clean(&self) -> bool {
        self.dirty.is_empty() && self.flying.is_empty() && !self.reportable()
    }

    /// Drops what lies beyond a cut that is being made.
    pub fn keep_to_limit(&mut self) {
        if let Some(limit) = self.limit {
            self.dirty.cut(limit);
            self.kept.cut(limit);
        }
    }

    /// The metadata server should be told something.
    pub fn reportable(&self) -> bool {
        self.unreported || self.mtime.is_some()
    }

    /// Memory of what has not been acknowledged.
    pub fn pending_weight(&self) -> u64 {
        self.dirty.weight() + self.flying.weight()
    }
}

impl Node {
    pub(super) fn new(ino: Ino, changes: u64, held: Held) -> Node {
        // The kernel may have pages of one that was evicted here.
        let state = State { changes, held, told: true, ..State::default() };
        Node { ino, state: Mutex::new(state), gates: OnceLock::new() }
    }

    /// The state, locked.
    pub fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The asynchronous locks.
    pub fn gates(&self) -> &Gates {
        self.gates.get_or_init(Box::default)
    }

    /// The attributes as programs shall see them, if they may be served.
    pub fn served(&self) -> Option<Attr> {
        let state = self.state();
        if state.valid { state.effective() } else { None }
    }

    /// The attributes as programs shall see them, as far as known.
    pub fn effective(&self) -> Option<Attr> {
        self.state().effective()
    }
}

impl State {
    /// This client may change the file without asking, and begin to.
    pub fn owned(&self) -> bool {
        self.held.writes() && self.valid
    }

    /// Something would be lost if the session ended now: what is not sent or reported, and what is sent but may not be on stable
    /// storage, since nobody may send it again.
    pub fn has_unsent(&self) -> bool {
        self.file.as_ref().is_some_and(|f| !f.is_clean() || !f.kept.is_empty())
    }

    /// Nothing is known for sure any more.
    pub(super) fn disown(&mut self) {
        self.valid = false;
        self.complete = false;
        self.target = None;
        self.tail_known = false;
    }

    /// The attributes with everything laid over them that the server does not know.
    pub fn effective(&self) -> Option<Attr> {
        let mut attr = self.attr.clone()?;
        if let Some(t) = self.atime {
            attr.atime = attr.atime.max(t);
        }
        let Some(file) = &self.file else { return Some(attr) };
        attr.size = attr.size.max(file.reach());
        if let Some(t) = file.mtime {
            attr.mtime = t;
        }
        if let Some(t) = file.ctime {
            attr.ctime = attr.ctime.max(t);
        }
        // An estimate until the servers have said what the data takes: what is on its way counts
        // as new.
        let pending = file.dirty.data_bytes() + file.flying.data_bytes();
        attr.allocated = attr.allocated.saturating_add_signed(file.allocated);
        attr.allocated = attr.allocated.saturating_add(pending);
        Some(attr)
    }

    /// It has just been changed, here or by another client.
    pub fn unsettle(&mut self, how_long: Duration) {
        self.unsettled = self.unsettled.max(since_boot() + how_long);
    }

    /// What is to be remembered of an inode that the kernel knows when it is forgotten here.
    pub(super) fn leave(&self) -> Left {
        Left { shown: self.shown, behind: self.behind }
    }

    /// It is known here again. `None`: the kernel may know anything.
    pub(super) fn resume(&mut self, left: Option<Left>) {
        let Left { shown, behind } = left.unwrap_or(Left { shown: None, behind: true });
        (self.shown, self.behind) = (shown, behind);
    }

    /// Attributes may be given to the kernel to keep.
    pub fn settled(&self) -> bool {
        self.passing == 0 && self.unsettled <= since_boot()
    }

    /// The kernel was given these attributes, and has had the time to store them.
    pub fn has_stored(&self, attr: &Attr) -> bool {
        let since =
            self.shown.filter(|(shown, _)| *shown == Shown::of(attr)).map(|(_, since)| since);
        since.is_some_and(|since| since_boot().saturating_sub(since) >= TAKEN_IN)
    }

    /// The kernel is being given these attributes.
    pub fn show(&mut self, attr: &Attr) {
        let new = Shown::of(attr);
        if self.shown.is_none_or(|(shown, _)| shown != new) {
            self.shown = Some((new, since_boot()));
        }
    }

    /// An answer may be dropped by the kernel from now on: it has been told that the attributes have changed.
    pub fn not_shown(&mut self) {
        self.shown = None;
    }

    /// The kernel may have attributes or pages: they are about to be taken back, all of them.
    pub fn take_told(&mut self) -> bool {
        self.not_shown();
        std::mem::take(&mut self.told) || self.filling > 0
    }

    /// The time of a change that is made now: after that of the one before it, which may have been made by a client whose clock is a little
    /// ahead.
    pub fn after_last_change(&self, now: Timestamp) -> Timestamp {
        let told = self.attr.as_ref().map(|attr| attr.ctime);
        let own = self.file.as_ref().and_then(|file| file.ctime);
        match told.max(own) {
            Some(last) if last >= now => last.next(),
            _ => now,
        }
    }

    /// The size as programs shall see it.
    pub fn size(&self) -> u64 {
        let sent = self.attr.as_ref().map_or(0, |a| a.size);
        self.file.as_ref().map_or(sent, |f| sent.max(f.reach()))
    }

    /// The data is inline at the server and stays so for now.
    pub fn is_inline(&self) -> bool {
        let converting = self.file.as_ref().is_some_and(|f| f.converting.is_some());
        !converting && self.attr.as_ref().is_some_and(|a| a.inline)
    }

    /// The data on its way, made if there is none.
    pub fn file(&mut self) -> &mut File {
        self.file.get_or_insert_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_once_to_each_handle() {
        let mut log = FailLog::default();
        let (mut a, mut b) = (log.start(), log.start());
        log.add(Errno::ENOSPC);
        assert_eq!(log.check(&mut a), Err(Errno::ENOSPC));
        assert_eq!(log.check(&mut a), Ok(()));
        assert_eq!(log.check(&mut b), Err(Errno::ENOSPC));
        let mut late = log.start();
        assert_eq!(log.check(&mut late), Ok(()), "it was reported before");
        log.add(Errno::EIO);
        let mut first = log.start();
        assert_eq!(log.check(&mut first), Err(Errno::EIO), "nobody knew of it");
    }
}
