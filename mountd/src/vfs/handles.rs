//! Open files and directories.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use netfs_common::errno::Errno;
use netfs_common::wire::meta::DirEntry;

use super::ahead::Watch;
use crate::cache::{Node, Ticket};
use crate::session::lock;

/// An open file or directory.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) node: Arc<Node>,
    pub(super) flags: i32,
    /// The kernel keeps no pages of what goes through it.
    pub(super) direct: bool,
    /// What is read of it.
    pub(super) watch: Watch,
    /// Up to which failure of the inode this handle has been told.
    seen: Mutex<u64>,
    pub(super) dir: tokio::sync::Mutex<DirState>,
}

/// The part of a listing that was fetched but not yet passed on.
#[derive(Debug, Default)]
pub(super) struct DirState {
    pub(super) page: Option<Page>,
}

/// One answer of the server.
#[derive(Debug)]
pub(super) struct Page {
    /// The cookie that it follows.
    pub(super) after: u64,
    pub(super) entries: Vec<DirEntry>,
    pub(super) end: bool,
    /// From before it was asked for.
    pub(super) ticket: Ticket,
}

impl Handle {
    /// Tells of a failure that this handle was not told of.
    pub(super) fn check(&self) -> Result<(), Errno> {
        let mut seen = lock(&self.seen);
        self.node.state().failed.check(&mut seen)
    }

    /// All failures so far are told by other means.
    pub(super) fn told(&self) {
        // The outcome is the caller's already.
        let _ = self.check();
    }

    /// There is a failure to tell.
    pub(super) fn has_failure(&self) -> bool {
        self.node.state().failed.count() > *lock(&self.seen)
    }
}

/// All open files and directories: as many as programs have, which the kernel bounds.
#[derive(Debug, Default)]
pub(super) struct Handles {
    open: Mutex<HashMap<u64, Arc<Handle>>>,
    last: AtomicU64,
}

impl Handles {
    pub(super) fn add(&self, node: Arc<Node>, flags: i32, direct: bool) -> u64 {
        let seen = Mutex::new(node.state().failed.start());
        let (watch, dir) = (Watch::default(), tokio::sync::Mutex::default());
        let handle = Handle { node, flags, direct, watch, seen, dir };
        let fh = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        lock(&self.open).insert(fh, Arc::new(handle));
        fh
    }

    pub(super) fn get(&self, fh: u64) -> Result<Arc<Handle>, Errno> {
        lock(&self.open).get(&fh).cloned().ok_or(Errno::EBADF)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        lock(&self.open).len()
    }

    pub(super) fn remove(&self, fh: u64) -> Option<Arc<Handle>> {
        lock(&self.open).remove(&fh)
    }
}
