//! Cuts that the data servers have not completed.
//!
//! Whoever sees a file's new length may write beyond it, and the cut must not take that away. So
//! every answer that shows an inode waits until its cuts are complete; the cut's own answer too.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::wire::meta::Response;
use tokio::sync::Notify;

/// The cuts under way. Their count is bounded by that of the calls under way, and after a restart by
/// that before it.
#[derive(Debug, Default)]
pub(super) struct Trims {
    pending: Mutex<HashMap<Ino, HashSet<u64>>>,
    /// The volume takes no more changes, so no cut will be completed before a restart.
    failed: AtomicBool,
    changed: Notify,
}

impl Trims {
    fn lock(&self) -> MutexGuard<'_, HashMap<Ino, HashSet<u64>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a cut; `false` if it is known already.
    pub(super) fn begin(&self, ino: Ino, id: u64) -> bool {
        self.lock().entry(ino).or_default().insert(id)
    }

    /// Whether a file is being cut.
    pub(super) fn is_pending(&self, ino: Ino) -> bool {
        self.lock().contains_key(&ino)
    }

    /// A cut is complete.
    pub(super) fn done(&self, ino: Ino, id: u64) {
        let mut pending = self.lock();
        if let Some(ids) = pending.get_mut(&ino) {
            ids.remove(&id);
            if ids.is_empty() {
                pending.remove(&ino);
            }
        }
        drop(pending);
        self.changed.notify_waiters();
    }

    /// No cut will be completed any more.
    pub(super) fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    /// Those of the inodes that an answer shows which are being cut.
    pub(super) fn shown_in(&self, response: &Response) -> Vec<Ino> {
        let pending = self.lock();
        if pending.is_empty() {
            return Vec::new();
        }
        match response {
            Response::Entry { attr, .. } => {
                Some(attr.ino).filter(|ino| pending.contains_key(ino)).into_iter().collect()
            }
            Response::Changed { attrs, .. } => {
                attrs.iter().map(|a| a.ino).filter(|ino| pending.contains_key(ino)).collect()
            }
            Response::Listing { entries, .. } => {
                let with_attr = entries.iter().filter(|e| e.attr.is_some());
                with_attr.map(|e| e.ino).filter(|ino| pending.contains_key(ino)).collect()
            }
            Response::Bytes(_)
            | Response::Xattrs(_)
            | Response::StatFs(_)
            | Response::Done
            | Response::Lock(_)
            | Response::Status(_)
            | Response::Inspected(_)
            | Response::InspectedVolume(_)
            | Response::Operated(_)
            | Response::Replayed { .. } => Vec::new(),
        }
    }

    /// Waits until none of these is being cut; `EIO` when that will never be.
    pub(super) async fn wait(&self, inos: &[Ino]) -> Result<(), Errno> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let pending = self.lock();
                if !inos.iter().any(|ino| pending.contains_key(ino)) {
                    return Ok(());
                }
            }
            if self.failed.load(Ordering::Relaxed) {
                return Err(Errno::EIO);
            }
            changed.await;
        }
    }
}
