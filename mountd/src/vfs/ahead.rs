//! Reading ahead: what the detector asks for is fetched by tasks, into the cache of pages.
//!
//! Tasks wait for a place, of which there are fewer than reads at once, so that reads which programs wait for always get through. One
//! whose bytes a program waits for already needs no place. A fetch that nobody wants any more ends at once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use netfs_common::errno::Errno;
use netfs_common::id::{ChunkId, Ino};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::handles::Handle;
use super::{Vfs, read};
use crate::cache::{Cache, Fetch, Found, Key, Node};
use crate::readahead::{Detector, Limits, Outcome, Pace, Seen};
use crate::session::{Session, lock};

/// Fetches under way that nobody waits for; half of the reads that the session makes at once.
const PLACES: usize = 16;
/// The largest window of one file: as the kernel's own by default, which it then leaves alone.
const WINDOW: u64 = 8 << 20;
/// So many files may have the largest window at once.
const SHARES: u64 = 4;

/// What is read of an open file.
#[derive(Debug, Default)]
pub(super) struct Watch {
    watched: Mutex<Option<Box<Watched>>>,
    /// Bytes that reads wait for.
    under_way: AtomicU64,
}

/// Of a file that is read from a server.
#[derive(Debug)]
struct Watched {
    detector: Detector,
    /// Marks what was fetched for it.
    owner: u64,
}

/// A read that is under way, as long as it is not dropped.
pub(super) struct Waiting<'a>(&'a AtomicU64, u64);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

impl Watch {
    pub(super) fn begin(&self, bytes: u64) -> Waiting<'_> {
        self.under_way.fetch_add(bytes, Ordering::Relaxed);
        Waiting(&self.under_way, bytes)
    }
}

/// What all open files share.
#[derive(Debug)]
pub(super) struct Ahead {
    places: Arc<Semaphore>,
    pace: Arc<Mutex<Pace>>,
    since: Instant,
    /// The last owner.
    last: AtomicU64,
}

impl Ahead {
    pub(super) fn new() -> Ahead {
        Ahead {
            places: Arc::new(Semaphore::new(PLACES)),
            pace: Arc::default(),
            since: Instant::now(),
            last: AtomicU64::new(0),
        }
    }
}

impl Handle {
    /// Reads of it go through the cache of pages. Those of `O_DIRECT` want what the servers have.
    pub(super) fn ahead(&self) -> Option<&Watch> {
        (self.flags & libc::O_DIRECT == 0).then_some(&self.watch)
    }
}

/// Whether a read found what it wanted.
pub(super) fn outcome(found: &Found) -> Outcome {
    match (found.rest.is_empty(), found.coming.is_empty()) {
        (true, true) => Outcome::InTime,
        (true, false) => Outcome::Late,
        (false, _) => Outcome::Missed,
    }
}

impl Vfs {
    fn new_watched(&self) -> Box<Watched> {
        let window = WINDOW.min(self.cache.pages.limit() / SHARES);
        let owner = self.ahead.last.fetch_add(1, Ordering::Relaxed);
        Box::new(Watched { detector: Detector::new(Limits { window }), owner })
    }

    /// A read has come: begins to fetch what will be wanted next.
    pub(super) fn look_ahead(
        &self,
        node: &Arc<Node>,
        watch: &Watch,
        (offset, end): (u64, u64),
        outcome: Outcome,
    ) {
        let size = node.state().size();
        let bound = lock(&self.ahead.pace).bound();
        let under_way = watch.under_way.load(Ordering::Relaxed);
        let mut watched = lock(&watch.watched);
        let Watched { detector, owner } = &mut **watched.get_or_insert_with(|| self.new_watched());
        let seen = Seen { outcome, under_way, bound, size };
        let advice = detector.read(offset, end - offset, seen);
        if advice.drop {
            self.cache.pages.drop_owned(node.ino, *owner);
            let (wasted, used) = self.cache.pages.judged(*owner);
            detector.judge(wasted, used);
        }
        // Still under the detector's lock: fetches are entered in the order of their advice.
        for range in advice.fetch {
            self.fetch_ahead(node, *owner, range);
        }
    }

    fn fetch_ahead(&self, node: &Arc<Node>, owner: u64, (start, end): (u64, u64)) {
        let (fetches, key, chunk) = {
            let state = node.state();
            let (Some(key), Some(attr)) = (self.cache.page_key(&state), &state.attr) else {
                return;
            };
            let (_, gaps) = read::overlay(&state, start, end.min(attr.size));
            // Each by itself: nothing in between, which is in the buffers.
            let spans = gaps.iter().flat_map(|gap| read::split(&[*gap], attr.chunk_size()));
            let pages = &self.cache.pages;
            let reserve = |span| pages.reserve(node.ino, key, owner, span);
            let fetches: Vec<Fetch> = spans.flat_map(reserve).collect();
            (fetches, key, attr.chunk_size())
        };
        for fetch in fetches {
            let task = Task {
                session: Arc::clone(&self.session),
                cache: Arc::clone(&self.cache),
                places: Arc::clone(&self.ahead.places),
                pace: Arc::clone(&self.ahead.pace),
                since: self.ahead.since,
            };
            self.runtime.spawn(task.run(node.ino, key, chunk, fetch));
        }
    }

    /// An open file is closed.
    pub(super) fn ahead_ends(&self, handle: &Handle) {
        let watched = lock(&handle.watch.watched).take();
        if let Some(watched) = watched {
            self.cache.pages.drop_owned(handle.node.ino, watched.owner);
            // Nobody is made careful by it any more.
            let _ = self.cache.pages.judged(watched.owner);
        }
    }
}

/// A fetch that nobody waits for yet.
struct Task {
    session: Arc<Session>,
    cache: Arc<Cache>,
    places: Arc<Semaphore>,
    pace: Arc<Mutex<Pace>>,
    since: Instant,
}

impl Task {
    async fn run(self, ino: Ino, key: Key, chunk: u64, fetch: Fetch) {
        let bytes = tokio::select! {
            bytes = self.fetch(ino, key, chunk, &fetch) => bytes.ok(),
            () = fetch.unwanted() => None,
        };
        // An error is for the one who needs the bytes: he asks himself.
        self.cache.pages.fetched(fetch, bytes);
    }

    async fn fetch(&self, ino: Ino, key: Key, chunk: u64, fetch: &Fetch) -> Result<Bytes, Errno> {
        let _place = tokio::select! {
            place = self.places.acquire() => Some(place.map_err(|_| Errno::EIO)?),
            () = fetch.urgent() => None,
        };
        let (start, end) = fetch.range;
        let id = ChunkId { ino, generation: key.generation, index: start / chunk };
        let began = self.since.elapsed();
        let bytes = self.session.bulk().read(id, start % chunk, end - start).await?;
        let now: Duration = self.since.elapsed();
        lock(&self.pace).fetched(now, now.saturating_sub(began), bytes.len() as u64);
        Ok(bytes)
    }
}
