//! Data on its way to the servers.
//!
//! What programs write is put into the buffers of its inode ([`crate::cache::File`]) and sent
//! from there: a window of 1 MiB as soon as it is full, everything else when it is 0.4 seconds old,
//! when room gets scarce, or when somebody waits for it. Bytes pass through three stages, and
//! reads see them in all three:
//!
//! | stage | leaves it when |
//! | --- | --- |
//! | `dirty`: only here | taken into a batch; no batch overlaps one that is under way, so that writes of one range arrive in order |
//! | `flying`: being sent | the server acknowledges or refuses |
//! | `kept`: acknowledged, maybe not durable | a flush of their group answers with the verifier of the acknowledgement; under a later one they become `dirty` again |
//!
//! The metadata server hears of the outcome ("report") once per pass and inode, not per batch.
//!
//! A client that died may have left bytes at the data servers that it never reported. They lie beyond what the
//! metadata server knows of, so nobody sees them; but the file may grow over them. So before the first bytes go
//! out that lie beyond the known length, or that move a file out of its inode, such a tail is cut (`tail`);
//! not for files that this client has made or got from a client that gave them back in order, and then not again while the lease is
//! held.
//!
//! Nothing is sent without the write lease. Programs' writes come under it; what comes from mappings, and what was buffered when
//! the leases lapsed, waits for it here.
//!
//! When things fail: a lost connection is no event here, calls are repeated below. An error of
//! the server drops the batch, is told once to every open file ([`crate::cache::FailLog`]), and
//! the kernel's pages of the range are taken back. What was not flushed when a
//! chain of data servers had lost its last replica is sent again. A session that ends takes everything unreported with it ([`Writeback::lose`]).

mod drain;
mod durable;
mod extents;
#[cfg(test)]
mod extents_tests;
mod inline;
mod lease;
mod lose;
mod report;
mod send;
mod tail;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use netfs_common::errno::Errno;
use netfs_common::id::{GroupId, Ino};
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use crate::cache::{Cache, Node, SETTLES, State};
use crate::insight::{Wait, waiting};
use crate::session::{Session, lock};
use crate::vfs::KernelCache;
pub use extents::{Batch, Content, Extents, WINDOW, take};

/// The bounds of the buffers.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes that no server has acknowledged; at the limit, writes wait.
    pub dirty: u64,
    /// Acknowledged bytes that are kept in case their server restarts; at a quarter of it the
    /// servers are asked to flush, at the limit writes wait.
    pub kept: u64,
    /// Batches under way at once, of 1 MiB at most each.
    pub flights: usize,
    /// Inodes that are being sent at once for their age.
    pub passes: usize,
    /// For how long written bytes may stay.
    pub age: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            dirty: 64 << 20,
            kept: 64 << 20,
            flights: 16,
            passes: 32,
            age: Duration::from_millis(400),
        }
    }
}

/// The buffers of all inodes together.
pub struct Writeback {
    session: Arc<Session>,
    cache: Arc<Cache>,
    limits: Limits,
    kernel: OnceLock<Arc<dyn KernelCache>>,
    /// Weight of everything dirty or flying.
    pending: AtomicU64,
    /// Weight of everything kept.
    kept: AtomicU64,
    /// Told when `pending` or `kept` has shrunk.
    room: Notify,
    flights: Arc<Semaphore>,
    passes: Arc<Semaphore>,
    /// Inodes with something to send, and when. An inode is in it at most once.
    aged: Mutex<VecDeque<(Instant, Arc<Node>)>>,
    wake: Notify,
    /// Inodes with something kept. Bounded as the weight of what they keep is.
    keepers: Mutex<HashMap<Ino, Arc<Node>>>,
    flush_wanted: Notify,
    /// Groups that are being flushed because it is time. A leaf.
    rounds: Mutex<BTreeSet<GroupId>>,
    /// Counts acknowledgements.
    acks: AtomicU64,
    resends: AtomicU64,
    halted: AtomicBool,
}

impl std::fmt::Debug for Writeback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writeback").field("pending", &self.pending).finish_non_exhaustive()
    }
}

impl Writeback {
    /// Empty buffers, with the tasks that empty them again.
    pub fn new(session: Arc<Session>, cache: Arc<Cache>, limits: Limits) -> Arc<Writeback> {
        let writeback = Arc::new(Writeback {
            session,
            cache,
            kernel: OnceLock::new(),
            pending: AtomicU64::new(0),
            kept: AtomicU64::new(0),
            room: Notify::new(),
            flights: Arc::new(Semaphore::new(limits.flights)),
            passes: Arc::new(Semaphore::new(limits.passes)),
            aged: Mutex::default(),
            wake: Notify::new(),
            keepers: Mutex::default(),
            flush_wanted: Notify::new(),
            rounds: Mutex::default(),
            acks: AtomicU64::new(0),
            resends: AtomicU64::new(0),
            halted: AtomicBool::new(false),
            limits,
        });
        tokio::spawn(attend(Arc::downgrade(&writeback)));
        tokio::spawn(durable::attend(Arc::downgrade(&writeback)));
        writeback
    }

    /// Names the kernel, whose pages are taken back when their bytes are lost.
    pub fn set_kernel(&self, kernel: Arc<dyn KernelCache>) {
        // Set once at mount; a second kernel does not exist.
        let _ = self.kernel.set(kernel);
    }

    fn kernel(&self) -> Option<&Arc<dyn KernelCache>> {
        self.kernel.get()
    }

    /// Bytes that no server has yet, with what they cost in memory.
    pub fn pending(&self) -> u64 {
        self.pending.load(Ordering::SeqCst)
    }

    fn halted(&self) -> bool {
        self.halted.load(Ordering::SeqCst)
    }

    /// Changes an inode's state and keeps the sums right.
    pub fn edit<R>(&self, node: &Node, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = node.state();
        let before = weights(&state);
        let result = change(&mut state);
        let after = weights(&state);
        let idle = state.file.as_ref().is_some_and(|f| {
            f.is_clean() && f.kept.is_empty() && !f.pumping && !f.queued && f.converting.is_none()
        });
        if idle {
            state.file = None;
        }
        drop(state);
        adjust(&self.pending, before.0, after.0);
        adjust(&self.kept, before.1, after.1);
        if after.0 < before.0 || after.1 < before.1 {
            self.room.notify_waiters();
        }
        result
    }

    /// There is room for a write now.
    pub fn has_room(&self) -> bool {
        self.pending() < self.limits.dirty && self.kept.load(Ordering::SeqCst) < self.limits.kept
    }

    /// Waits until there is room.
    ///
    /// # Errors
    /// `EIO` when the file system has gone down.
    pub async fn wait_for_room(&self) -> Result<(), Errno> {
        loop {
            let freed = self.room.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if self.halted() {
                return Err(Errno::EIO);
            }
            if self.has_room() {
                return Ok(());
            }
            self.wake.notify_one();
            self.flush_wanted.notify_one();
            waiting(Wait::Room, freed).await;
        }
    }

    /// Puts content into the buffer of an inode, whose attributes must be known. The caller holds
    /// the inode's `io` gate. `place` gets the size and says where the content goes.
    pub fn put(
        self: &Arc<Self>,
        node: &Arc<Node>,
        content: Content,
        place: impl FnOnce(u64) -> u64,
    ) -> u64 {
        self.put_if(node, content, |_| true, place).unwrap_or_default()
    }

    /// As [`Writeback::put`], if the state is still such that it may be done. All leases can be dropped at any moment, and what is
    /// put in after that would not be reclaimed with the others.
    pub fn put_if(
        self: &Arc<Self>,
        node: &Arc<Node>,
        content: Content,
        may: impl FnOnce(&State) -> bool,
        place: impl FnOnce(u64) -> u64,
    ) -> Option<u64> {
        let len = content.len();
        let (start, queue, pump, kick) = self.edit(node, |state| {
            if !may(state) {
                return None;
            }
            let start = place(state.size());
            // Before these bytes leave the buffers again nobody may have kept what was there.
            self.cache.pages.drop_range(node.ino, start, start.saturating_add(len));
            let inline = state.is_inline();
            let time = state.after_last_change(self.session.now());
            let file = state.file();
            file.dirty.insert(start, content, ());
            (file.mtime, file.ctime) = (Some(time), Some(time));
            state.unsettle(SETTLES);
            let file = state.file();
            let queue = !std::mem::replace(&mut file.queued, true);
            // Sequential writes fill a window at its end.
            let filled = (start + len).is_multiple_of(WINDOW) || len >= WINDOW;
            let pump = filled && !inline && !std::mem::replace(&mut file.pumping, filled);
            // Too much to stay inline: a pass moves it to chunks.
            Some((start, queue, pump, filled && inline))
        })?;
        if queue {
            self.enqueue(Arc::clone(node), self.limits.age);
        }
        if pump {
            self.spawn_pump(Arc::clone(node));
        }
        if kick {
            self.kick(node);
        }
        if self.pending() > self.limits.dirty / 2 {
            self.wake.notify_one();
        }
        Some(start)
    }

    /// Data has been copied within the servers up to `end`; it is to be reported.
    pub fn note_copied(&self, node: &Arc<Node>, end: u64, allocated: i64) {
        let queue = self.edit(node, |state| {
            let time = state.after_last_change(self.session.now());
            let file = state.file();
            file.unreported = true;
            file.end = file.end.max(end);
            file.allocated += allocated;
            (file.mtime, file.ctime) = (Some(time), Some(time));
            !std::mem::replace(&mut file.queued, true)
        });
        if queue {
            self.enqueue(Arc::clone(node), self.limits.age);
        }
    }

    fn enqueue(&self, node: Arc<Node>, after: Duration) {
        let mut aged = lock(&self.aged);
        let first = aged.is_empty();
        aged.push_back((Instant::now() + after, node));
        drop(aged);
        if first {
            self.wake.notify_one();
        }
    }

    /// Begins to send what an inode has, without waiting for its age.
    pub fn kick(self: &Arc<Self>, node: &Arc<Node>) {
        if node.state().file.is_some() {
            let (this, node) = (Arc::clone(self), Arc::clone(node));
            tokio::spawn(async move { this.pass(&node).await });
        }
    }

    /// Inodes with anything dirty, under way or unreported.
    pub fn busy(&self) -> Vec<Arc<Node>> {
        // Every such inode is in the queue or in a pass, and both hold on to it in the table.
        let all = self.cache.table.all().into_iter();
        all.filter(|n| n.state().file.as_ref().is_some_and(|f| !f.is_clean())).collect()
    }

    /// Gives up what an inode has; nobody can ask for it any more.
    pub fn discard(&self, node: &Node) {
        self.edit(node, give_up);
        node.gates().progress.notify_waiters();
    }

    /// Drops everything and takes nothing any more.
    pub fn halt(&self) {
        self.halted.store(true, Ordering::SeqCst);
        for node in self.cache.table.all() {
            self.edit(&node, give_up);
            node.gates().progress.notify_waiters();
        }
        lock(&self.keepers).clear();
        lock(&self.aged).clear();
        self.room.notify_waiters();
        self.wake.notify_one();
    }
}

fn give_up(state: &mut State) {
    state.era += 1;
    state.tail_known = false;
    if let Some(file) = &mut state.file {
        file.dirty.clear();
        file.flying.clear();
        file.kept.clear();
        (file.mtime, file.ctime, file.converting) = (None, None, None);
        (file.unreported, file.end, file.allocated, file.force) = (false, 0, 0, 0);
    }
}

fn weights(state: &State) -> (u64, u64) {
    state.file.as_ref().map_or((0, 0), |f| (f.pending_weight(), f.kept.weight()))
}

fn adjust(sum: &AtomicU64, before: u64, after: u64) {
    if after >= before {
        sum.fetch_add(after - before, Ordering::SeqCst);
    } else {
        sum.fetch_sub(before - after, Ordering::SeqCst);
    }
}

/// Sends what is old enough, or anything while room is scarce.
async fn attend(weak: Weak<Writeback>) {
    loop {
        let Some(writeback) = weak.upgrade() else { return };
        if writeback.halted() {
            return;
        }
        let (due, passes) = (writeback.next_due(), Arc::clone(&writeback.passes));
        match due {
            Ok(node) => {
                // A place first, so that no more inodes are taken than are worked on.
                let Ok(place) = passes.acquire_owned().await else { return };
                tokio::spawn(async move {
                    writeback.pass(&node).await;
                    writeback.passed(node);
                    drop(place);
                });
            }
            Err(pause) => {
                // The wake-up call cannot be lost: the notification is kept until it is taken.
                let wake = writeback.wake.notified();
                tokio::select! {
                    () = wake => {}
                    () = tokio::time::sleep(pause) => {}
                }
            }
        }
    }
}

impl Writeback {
    /// The inode whose turn it is, or for how long it is nobody's.
    fn next_due(&self) -> Result<Arc<Node>, Duration> {
        let scarce = self.pending() > self.limits.dirty / 2;
        let mut aged = lock(&self.aged);
        let now = Instant::now();
        match aged.front() {
            Some((due, _)) if scarce || *due <= now => {
                aged.pop_front().map(|(_, node)| node).ok_or(Duration::ZERO)
            }
            Some((due, _)) => Err(*due - now),
            None => Err(Duration::from_secs(60)),
        }
    }

    /// After a pass: in the queue again if there is something again.
    fn passed(&self, node: Arc<Node>) {
        let again = self.edit(&node, |state| {
            state.file.as_mut().is_some_and(|file| {
                file.queued = !file.is_clean();
                file.queued
            })
        });
        if again && !self.halted() {
            self.enqueue(node, self.limits.age);
        }
    }
}
