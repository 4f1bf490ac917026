//! Bytes of files that were fetched before a program asked for them.
//!
//! Only what is read ahead is here, and only until it has been handed out once: from then on the kernel keeps it. Memory is reserved
//! when a fetch begins, so that what is under way counts.
//!
//! Why no byte from here is ever old. An entry may be used while three things are as they were when its fetch began, which is its
//! [`Key`]: the epoch of the caches, the stamp of the inode's last recall, and the file's generation. A lease ends by a recall, which
//! moves the stamp, or with all others, which moves the epoch; so the lease was held without interruption, and nobody else has changed
//! the file since. This client's own changes are kept apart by two rules, both under the lock of the inode's state:
//!
//! - A fetch begins only where the buffers (dirty, flying, kept) have nothing. So the servers have what is to be read there.
//! - Whatever changes a range takes its entries out, those under way too: each `put` into the buffers before the bytes are there, a
//!   cut, a copy at the server after it was made. A fetch whose entry is gone leaves nothing behind.
//!
//! So at the moment when a read takes an entry, it is what the servers have or will answer with. The read may keep it even if the
//! entry goes while it waits: as with bytes that it asked for itself, whatever changes them meanwhile is no older than the read.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use lru::LruCache;
use netfs_common::id::Ino;
use tokio::sync::{Notify, watch};

use crate::session::lock;

/// What an entry costs besides its bytes, with the task that fetches it.
const ENTRY_COST: u64 = 2048;

/// Under which circumstances bytes were fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    pub(super) epoch: u64,
    pub(super) recalled: u64,
    /// Of the file.
    pub generation: u32,
}

#[derive(Debug)]
enum Content {
    Coming(watch::Receiver<Option<Bytes>>, Arc<Notify>),
    Here(Bytes),
}

#[derive(Debug)]
struct Entry {
    ino: Ino,
    start: u64,
    end: u64,
    key: Key,
    /// The handle for which it was fetched.
    owner: u64,
    content: Content,
    /// How much was handed out.
    handed: u64,
}

impl Entry {
    fn weight(&self) -> u64 {
        self.end - self.start + ENTRY_COST
    }
}

#[derive(Debug)]
struct Inner {
    entries: LruCache<u64, Entry>,
    /// By their starts; they do not overlap.
    files: HashMap<Ino, BTreeMap<u64, u64>>,
    /// Per handle: dropped unread, and handed out, since it was asked.
    judged: HashMap<u64, (u64, u64)>,
    last: u64,
    weight: u64,
}

/// What was read ahead, bounded in bytes.
#[derive(Debug)]
pub struct Pages {
    inner: Mutex<Inner>,
    limit: u64,
    /// Entries, to be looked at without the lock.
    count: AtomicU64,
    fetched: AtomicU64,
    used: AtomicU64,
}

/// Bytes under way.
#[derive(Debug)]
pub struct Coming {
    /// Where the part that is wanted begins, and ends.
    pub range: (u64, u64),
    start: u64,
    bytes: watch::Receiver<Option<Bytes>>,
}

impl Coming {
    /// Waits for them. `None`: they could not be fetched.
    pub async fn wait(mut self) -> Option<Bytes> {
        let whole = self.bytes.wait_for(Option::is_some).await.ok()?.clone()?;
        let (from, to) = (self.range.0 - self.start, self.range.1 - self.start);
        let (from, to) = (usize::try_from(from).ok()?, usize::try_from(to).ok()?);
        (to <= whole.len()).then(|| whole.slice(from..to))
    }
}

/// What there is of a read.
#[derive(Debug, Default)]
pub struct Found {
    /// Bytes, with where they begin.
    pub here: Vec<(u64, Bytes)>,
    /// Bytes under way.
    pub coming: Vec<Coming>,
    /// What is to be asked for.
    pub rest: Vec<(u64, u64)>,
}

/// A fetch to be made. Once nobody wants it any more, `unwanted` resolves.
#[derive(Debug)]
pub struct Fetch {
    /// The range.
    pub range: (u64, u64),
    id: u64,
    bytes: watch::Sender<Option<Bytes>>,
    hurry: Arc<Notify>,
}

impl Fetch {
    /// Resolves when a program waits for it.
    pub async fn urgent(&self) {
        self.hurry.notified().await;
    }

    /// Resolves when nobody wants it any more.
    pub async fn unwanted(&self) {
        self.bytes.closed().await;
    }
}

/// How much there is, and what it was good for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Memory, with what is under way.
    pub bytes: u64,
    /// Bytes fetched since the mount.
    pub fetched: u64,
    /// Bytes handed out of it.
    pub used: u64,
}

impl Pages {
    pub(super) fn new(limit: u64) -> Pages {
        let inner = Inner {
            entries: LruCache::unbounded(),
            files: HashMap::new(),
            judged: HashMap::new(),
            last: 0,
            weight: 0,
        };
        Pages {
            inner: Mutex::new(inner),
            limit,
            count: AtomicU64::new(0),
            fetched: AtomicU64::new(0),
            used: AtomicU64::new(0),
        }
    }

    /// The bound.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// How much there is.
    pub fn held(&self) -> Held {
        let bytes = lock(&self.inner).weight;
        let (fetched, used) = (&self.fetched, &self.used);
        Held { bytes, fetched: fetched.load(Ordering::Relaxed), used: used.load(Ordering::Relaxed) }
    }

    fn empty(&self) -> bool {
        self.count.load(Ordering::SeqCst) == 0
    }

    /// Takes what there is of ranges. With `ready` only if all of it is here, and nothing otherwise. The inode's state is locked, and
    /// `key` is what it says.
    pub fn take(&self, ino: Ino, key: Key, wanted: &[(u64, u64)], ready: bool) -> Option<Found> {
        if self.empty() {
            return (!ready).then(|| Found { rest: wanted.to_vec(), ..Found::default() });
        }
        let mut inner = lock(&self.inner);
        if ready && !inner.all_here(ino, key, wanted) {
            return None;
        }
        let mut found = Found::default();
        for &(from, to) in wanted {
            let mut at = from;
            for id in inner.overlapping(ino, from, to) {
                let Some(entry) = inner.entries.get_mut(&id) else { continue };
                if entry.key != key {
                    inner.remove(id);
                    continue;
                }
                let (a, b) = (entry.start.max(at), entry.end.min(to));
                if a > at {
                    found.rest.push((at, a));
                }
                at = b;
                let start = entry.start;
                match &entry.content {
                    Content::Here(bytes) => {
                        let part = bytes.slice((a - start) as usize..(b - start) as usize);
                        found.here.push((a, part));
                    }
                    Content::Coming(bytes, hurry) => {
                        hurry.notify_one();
                        found.coming.push(Coming { range: (a, b), start, bytes: bytes.clone() });
                    }
                }
                entry.handed += b - a;
                let (owner, done) = (entry.owner, entry.handed >= entry.end - entry.start);
                inner.judged.entry(owner).or_default().1 += b - a;
                self.used.fetch_add(b - a, Ordering::Relaxed);
                if done {
                    // The kernel has it now.
                    inner.remove(id);
                }
            }
            if at < to {
                found.rest.push((at, to));
            }
        }
        self.count(&inner);
        Some(found)
    }

    /// Reserves memory for what is not here of a range: the fetches to be made. None where there is no room. The inode's state is
    /// locked, `key` is what it says, and its buffers have nothing of the range.
    pub fn reserve(&self, ino: Ino, key: Key, owner: u64, range: (u64, u64)) -> Vec<Fetch> {
        let mut inner = lock(&self.inner);
        let mut fetches = Vec::new();
        let (mut at, to) = range;
        let mut gaps = Vec::new();
        for id in inner.overlapping(ino, at, to) {
            let Some(entry) = inner.entries.peek(&id) else { continue };
            if entry.key != key {
                inner.remove(id);
                continue;
            }
            if entry.start > at {
                gaps.push((at, entry.start));
            }
            at = at.max(entry.end);
        }
        if at < to {
            gaps.push((at, to));
        }
        for (start, end) in gaps {
            if !inner.make_room(end - start + ENTRY_COST, self.limit) {
                break;
            }
            let (sender, receiver) = watch::channel(None);
            let hurry = Arc::new(Notify::new());
            inner.last += 1;
            let id = inner.last;
            let content = Content::Coming(receiver, Arc::clone(&hurry));
            let entry = Entry { ino, start, end, key, owner, content, handed: 0 };
            inner.weight += entry.weight();
            inner.entries.put(id, entry);
            inner.files.entry(ino).or_default().insert(start, id);
            fetches.push(Fetch { range: (start, end), id, bytes: sender, hurry });
        }
        self.count(&inner);
        fetches
    }

    /// A fetch has ended: with bytes, or without.
    pub fn fetched(&self, fetch: Fetch, bytes: Option<Bytes>) {
        let mut inner = lock(&self.inner);
        match &bytes {
            Some(bytes) => {
                self.fetched.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                if let Some(entry) = inner.entries.peek_mut(&fetch.id) {
                    entry.content = Content::Here(bytes.clone());
                }
            }
            None => inner.remove(fetch.id),
        }
        self.count(&inner);
        drop(inner);
        if bytes.is_some() {
            // Nobody may be waiting.
            let _ = fetch.bytes.send(bytes);
        }
    }

    /// A range is about to change, or has. The inode's state is locked.
    pub fn drop_range(&self, ino: Ino, from: u64, to: u64) {
        if self.empty() || from >= to {
            return;
        }
        let mut inner = lock(&self.inner);
        for id in inner.overlapping(ino, from, to) {
            inner.remove(id);
        }
        self.count(&inner);
    }

    /// What was fetched for a handle is not wanted any more.
    pub fn drop_owned(&self, ino: Ino, owner: u64) {
        let mut inner = lock(&self.inner);
        for id in inner.overlapping(ino, 0, u64::MAX) {
            if inner.entries.peek(&id).is_some_and(|e| e.owner == owner) {
                inner.remove(id);
            }
        }
        self.count(&inner);
    }

    /// How much of what was fetched for a handle was dropped unread, and how much was read, since the last time.
    pub fn judged(&self, owner: u64) -> (u64, u64) {
        if self.fetched.load(Ordering::Relaxed) == 0 {
            return (0, 0);
        }
        lock(&self.inner).judged.remove(&owner).unwrap_or_default()
    }

    /// Drops everything.
    pub(super) fn clear(&self) {
        let mut inner = lock(&self.inner);
        inner.entries.clear();
        inner.files.clear();
        inner.judged.clear();
        inner.weight = 0;
        self.count(&inner);
    }

    fn count(&self, inner: &Inner) {
        self.count.store(inner.entries.len() as u64, Ordering::SeqCst);
    }
}

impl Inner {
    /// The entries that overlap a range, ascending.
    fn overlapping(&self, ino: Ino, from: u64, to: u64) -> Vec<u64> {
        let Some(file) = self.files.get(&ino) else { return Vec::new() };
        let before = file.range(..from).next_back().map(|(_, id)| *id);
        let before = before.filter(|id| self.entries.peek(id).is_some_and(|e| e.end > from));
        before.into_iter().chain(file.range(from..to).map(|(_, id)| *id)).collect()
    }

    fn all_here(&self, ino: Ino, key: Key, wanted: &[(u64, u64)]) -> bool {
        wanted.iter().all(|&(from, to)| {
            let mut at = from;
            for entry in
                self.overlapping(ino, from, to).iter().filter_map(|id| self.entries.peek(id))
            {
                if entry.start > at
                    || entry.key != key
                    || !matches!(entry.content, Content::Here(_))
                {
                    return false;
                }
                at = entry.end;
            }
            at >= to
        })
    }

    fn remove(&mut self, id: u64) {
        let Some(entry) = self.entries.pop(&id) else { return };
        self.weight -= entry.weight();
        if let Some(file) = self.files.get_mut(&entry.ino) {
            file.remove(&entry.start);
            if file.is_empty() {
                self.files.remove(&entry.ino);
            }
        }
        let unread = (entry.end - entry.start).saturating_sub(entry.handed);
        if unread > 0 {
            self.judged.entry(entry.owner).or_default().0 += unread;
        }
    }

    /// Evicts what was not used for longest. What is under way stays: who asks next goes without.
    fn make_room(&mut self, weight: u64, limit: u64) -> bool {
        while self.weight + weight > limit {
            match self.entries.peek_lru() {
                Some((id, entry)) if matches!(entry.content, Content::Here(_)) => {
                    let id = *id;
                    self.remove(id);
                }
                _ => return false,
            }
        }
        true
    }
}
