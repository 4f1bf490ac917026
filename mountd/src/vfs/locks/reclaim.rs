//! Locks after the server, the session, or a process was lost.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::wire::lock::{LockCall, LockHeld, LockReply, MAX_LOCK_BATCH};
use netfs_common::wire::meta::{Request, Response};
use tracing::{error, info, warn};

use crate::session::Reconnected;
use crate::vfs::Vfs;

/// Between two attempts, and between two looks whether the volume is still mounted.
const PAUSE: Duration = Duration::from_millis(200);
const LOOK: Duration = Duration::from_secs(1);

impl Vfs {
    /// There is a new connection, which no call has used yet.
    pub(in crate::vfs) fn locks_reconnected(&self, what: &Reconnected) {
        if what.lost {
            // Others may have had the locks in between: they cannot be taken up again.
            let lost = self.locks.new_life(true);
            self.locks_lost(&lost);
            self.locks.ready.send_replace(true);
        } else if what.restarted {
            self.locks.ready.send_replace(false);
            self.locks.new_life(false);
            self.locks.reclaim.notify_one();
        }
    }

    /// Locks are gone that programs rely on.
    fn locks_lost(&self, lost: &[LockHeld]) {
        let mut files: BTreeMap<Ino, Vec<u32>> = BTreeMap::new();
        for held in lost {
            let pids = files.entry(held.on.ino).or_default();
            if !pids.contains(&held.pid) {
                pids.push(held.pid);
            }
        }
        for (ino, pids) in files {
            error!(%ino, ?pids, "locks of a file are lost with the session; its next write, fsync or close says so");
            self.cache.table.obtain(ino).state().failed.add(Errno::EIO);
        }
    }

    /// Brings all locks to a server that was restarted.
    async fn reclaim_locks(&self) {
        loop {
            let (life, locks) = self.locks.snapshot();
            match self.reclaim_all(life, &locks).await {
                Ok(lost) => {
                    for held in &lost {
                        self.locks.cleared(&held.on, held.range);
                    }
                    self.locks_lost(&lost);
                    if self.locks.reclaimed(life) {
                        let (locks, lost) = (locks.len(), lost.len());
                        info!(locks, lost, "locks reclaimed from the metadata server");
                        return;
                    }
                }
                Err(_) if self.is_down() => return,
                // Another life of the server has begun.
                Err(Errno::ESTALE) => {}
                Err(e) => warn!(error = %e, "locks could not be reclaimed; trying again"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn reclaim_all(&self, life: u64, locks: &[LockHeld]) -> Result<Vec<LockHeld>, Errno> {
        let mut lost = Vec::new();
        let mut batches: Vec<&[LockHeld]> = locks.chunks(MAX_LOCK_BATCH).collect();
        if batches.is_empty() {
            // Who has none says so: others wait for it.
            batches.push(&[]);
        }
        let count = batches.len();
        for (n, locks) in batches.into_iter().enumerate() {
            let batch = u32::try_from(n).map_err(|_| Errno::ENOLCK)?;
            let last = n + 1 == count;
            let call = LockCall::Reclaim { batch, locks: locks.to_vec(), last };
            let Response::Lock(LockReply::Refused(refused)) =
                self.session.ask(Request::Lock(call)).await.reply?
            else {
                return Err(Errno::EPROTO);
            };
            if self.locks.life() != life {
                return Err(Errno::ESTALE);
            }
            let refused = refused.into_iter().filter_map(|n| locks.get(n as usize));
            lost.extend(refused.copied());
        }
        Ok(lost)
    }
}

/// Reclaims locks whenever that is due, and releases those of processes that have gone unheard.
pub(in crate::vfs) async fn attend(weak: Weak<Vfs>) {
    loop {
        let Some(vfs) = weak.upgrade() else { return };
        if vfs.is_down() {
            return;
        }
        let book = Arc::clone(&vfs.locks);
        drop(vfs);
        let due = tokio::time::timeout(LOOK, book.reclaim.notified()).await.is_ok();
        let Some(vfs) = weak.upgrade() else { return };
        if due {
            vfs.reclaim_locks().await;
        } else if vfs.session.connected() && *vfs.locks.ready.borrow() {
            // In tasks of their own: they may wait for what is done here.
            vfs.bury_owners();
        }
    }
}
