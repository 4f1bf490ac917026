//! References, background duties, sharing, going down and leaving.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::map::ClusterMap;
use netfs_common::wire::lease::{Grant, Lease, Recall};
use netfs_common::wire::meta::{MAX_BATCH, Op};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{error, warn};

use super::orphans::Lingering;
use super::{Vfs, atime, takeback};
use crate::insight::carried;
use crate::session::{Answer, Reconnected, SessionEvents, lock};

/// How long unused orphans wait to be told together.
const FORGET_DELAY: Duration = Duration::from_millis(100);
/// How many inodes are brought to the servers at once by [`Vfs::syncfs`].
const MAX_SYNCING: usize = 32;

impl Vfs {
    /// The kernel gives references back.
    pub fn forget(self: &Arc<Self>, ino: Ino, nlookup: u64) {
        if self.cache.table.forget(ino, nlookup) {
            self.unused(ino);
        }
    }

    /// The kernel gives references of many inodes back.
    pub fn forget_many(self: &Arc<Self>, all: impl IntoIterator<Item = (Ino, u64)>) {
        for (ino, nlookup) in all {
            self.forget(ino, nlookup);
        }
    }

    /// Inodes have lost their last name for good, by the hand of another client or as the server remembers.
    fn lost_names(self: &Arc<Self>, inos: &[Ino]) {
        for ino in inos {
            if self.cache.table.orphaned_for_good(*ino) {
                self.unused(*ino);
            }
        }
        self.background.notify_one();
    }

    /// An orphan is used by nobody any more: its data need not be sent, and the server may
    /// remove it. What has arrived at data servers is reported first, so that it is removed too.
    pub(super) fn unused(self: &Arc<Self>, ino: Ino) {
        self.cache.drop_content(ino);
        lock(&self.accessed).remove(&ino);
        let Some(node) = self.cache.table.remove(ino) else { return self.give_up(ino) };
        let arrived = self.writeback.edit(&node, |state| {
            state.file.as_mut().is_some_and(|file| {
                file.dirty.clear();
                !file.flying.is_empty() || file.unreported
            })
        });
        if !arrived {
            self.writeback.discard(&node);
            return self.give_up(ino);
        }
        let this = Arc::clone(self);
        self.runtime.spawn(async move {
            // Failures are in the log of the inode, which nobody can read any more.
            let _ = this.writeback.drain(&node, false).await;
            let _ = this.writeback.report(&node, false).await;
            this.writeback.discard(&node);
            this.give_up(ino);
        });
    }

    fn give_up(&self, ino: Ino) {
        let mut forgotten = lock(&self.forgotten);
        forgotten.push(ino);
        let tell = forgotten.len() == 1 || forgotten.len() >= MAX_BATCH;
        drop(forgotten);
        if tell {
            self.background.notify_one();
        }
    }

    pub(super) async fn send_forgotten(&self) {
        loop {
            let inos: Vec<Ino> = {
                let mut forgotten = lock(&self.forgotten);
                let n = forgotten.len().min(MAX_BATCH);
                forgotten.drain(..n).collect()
            };
            if inos.is_empty() {
                return;
            }
            if let Err(e) = self.session.mutate(Op::Forget { inos }, false).await
                && !self.is_down()
            {
                // They go with the session at the latest.
                warn!(error = %e, "unused files could not be given up");
            }
        }
    }

    /// Brings everything to the servers, and makes it durable.
    ///
    /// # Errors
    /// The first failure; the rest is attempted all the same.
    pub async fn syncfs(self: &Arc<Self>) -> Result<(), Errno> {
        let this = Arc::clone(self);
        self.run(async move { this.sync_all().await }).await
    }

    async fn sync_all(self: &Arc<Self>) -> Result<(), Errno> {
        loop {
            let restarts = self.writeback.resends();
            self.sync_once().await?;
            // A data server that was restarted meanwhile gets again what it has lost.
            if self.writeback.resends() == restarts {
                return Ok(());
            }
            self.up()?;
        }
    }

    async fn sync_once(self: &Arc<Self>) -> Result<(), Errno> {
        let mut outcome = Ok(());
        let mut work = JoinSet::new();
        for node in self.writeback.busy() {
            if work.len() >= MAX_SYNCING {
                outcome = outcome.and(joined(work.join_next().await));
            }
            let this = Arc::clone(self);
            work.spawn(carried(async move {
                let _io = node.gates().io.write().await;
                this.writeback.drain(&node, false).await?;
                this.writeback.report(&node, false).await.map(|_| ())
            }));
        }
        while !work.is_empty() {
            outcome = outcome.and(joined(work.join_next().await));
        }
        outcome = outcome.and(self.writeback.flush_all().await);
        outcome = outcome.and(self.send_accessed().await);
        outcome.and(self.session.sync_to(u64::MAX).await)
    }

    /// Drops everything that is not synced, after syncing it if `flush`; from then on every call
    /// fails with `EIO`.
    pub async fn going_down(self: &Arc<Self>, flush: bool) {
        if flush && let Err(e) = self.syncfs().await {
            warn!(error = %e, "not everything could be written before going down");
        }
        self.end();
    }

    pub(super) fn end(&self) {
        self.down.store(true, Ordering::SeqCst);
        self.session.stop();
        self.writeback.halt();
        self.background.notify_one();
        if let Some(kernel) = self.kernel.get() {
            for ino in self.cache.table.referenced() {
                kernel.inval_data(ino, 0, 0);
            }
        }
    }
}

fn joined(outcome: Option<Result<Result<(), Errno>, tokio::task::JoinError>>) -> Result<(), Errno> {
    match outcome {
        None => Ok(()),
        Some(Ok(outcome)) => outcome,
        Some(Err(_)) => Err(Errno::EIO),
    }
}

impl SessionEvents for Vfs {
    fn reconnected(&self, what: Reconnected) -> Vec<(Ino, Lease)> {
        self.locks_reconnected(&what);
        if what.lost {
            self.writeback.note_paths();
        }
        let mut held = Vec::new();
        if what.restarted {
            self.cache.changes_lost(&what.gone, &what.restored);
        }
        if what.restarted || what.lost {
            let (remnant, buffered) = self.cache.drop_all(true);
            (*lock(&self.remnant), held) = (remnant, buffered);
        }
        if what.lost {
            error!("the session has expired: changes that were not yet sent are lost");
            self.writeback.lose();
            self.cache.table.no_orphans();
            lock(&self.forgotten).clear();
        }
        held
    }

    fn taken_back(self: Arc<Self>) -> Answer<'static, ()> {
        let remnant = std::mem::take(&mut *lock(&self.remnant));
        let Some(kernel) = self.kernel.get().cloned() else { return Box::pin(async {}) };
        // The rest of the term is for the server to be told.
        let third = Duration::from_millis(u64::from(self.session.volume().term_ms) / 3);
        // In a task of its own, which goes on if it takes longer.
        let taking = takeback::take_all(kernel, Arc::clone(&self.cache), remnant, true);
        let taking = self.runtime.spawn(taking);
        Box::pin(async move {
            if tokio::time::timeout(third, taking).await.is_err() {
                warn!("the kernel takes long to drop what it kept before the server was restarted");
            }
        })
    }

    fn fenced(&self) {
        // Its term must be over. If the metadata server still answers, that is a mistake of somebody's, but nothing that it
        // says counts in this session any more.
        self.lapsed();
        self.writeback.lose();
        self.session.refresh();
    }

    fn lapsed(&self) {
        self.writeback.note_paths();
        // Every call asks the server now, and waits for it.
        let remnant = self.cache.lapse();
        if let Some(kernel) = self.kernel.get().cloned() {
            // Names have expired: they were not given for longer than this.
            let taking = takeback::take_all(kernel, Arc::clone(&self.cache), remnant, false);
            self.runtime.spawn(taking);
        }
    }

    fn alive(&self, until: Duration) {
        self.cache.alive(until);
    }

    fn recall(self: Arc<Self>, recalls: Vec<Recall>) -> Answer<'static, ()> {
        Box::pin(async move { self.give_all_back(recalls).await })
    }

    fn orphaned(self: Arc<Self>, inos: &[Ino]) {
        self.lost_names(inos);
    }

    fn company(&self, others: bool) {
        self.company.store(others, Ordering::SeqCst);
    }

    fn reclaimed(&self, grants: &[Grant]) {
        for grant in grants {
            self.cache.reclaimed(*grant);
        }
    }

    fn verifiers_changed(&self, map: &ClusterMap) {
        self.writeback.resend(|group| map.chain(group).map(|chain| chain.verifier));
    }
}

/// Duties that no call waits for.
pub(super) async fn attend(weak: Weak<Vfs>) {
    let mut accessed = Instant::now();
    let mut lingering = Lingering::default();
    loop {
        {
            let Some(vfs) = weak.upgrade() else { return };
            if vfs.is_down() {
                return;
            }
            tokio::select! {
                () = vfs.background.notified() => tokio::time::sleep(FORGET_DELAY).await,
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
        let Some(vfs) = weak.upgrade() else { return };
        if vfs.is_down() {
            return;
        }
        vfs.have_forgotten(&mut lingering).await;
        vfs.send_forgotten().await;
        vfs.watch_space().await;
        let many = lock(&vfs.accessed).len() >= 1000;
        if many || accessed.elapsed() >= atime::PERIOD {
            accessed = Instant::now();
            if let Err(e) = vfs.send_accessed().await
                && !vfs.is_down()
            {
                warn!(error = %e, "access times could not be sent");
            }
        }
    }
}
