//! Two names of one inode, seen by one call of the kernel.
//!
//! A `rename` looks up both its names. If another client has moved the first to the second in between, both lead to the same
//! inode, and the kernel takes them for two links to one file: it does nothing and says that it is done (`rename(2)`). Two clients would
//! both believe that they have taken the file. Names that the kernel was given to keep are taken back before they change, and the
//! lookup of such an inode waits for that. Those that it was not given to keep are remembered here until the
//! same thread looks up another: if that leads to the same inode, which has only one name, the kernel is made to begin again.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;
use netfs_common::attr::FileKind;
use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::name::Name;

use crate::vfs::{Looked, Vfs};

/// So many threads at most are remembered.
const MAX_THREADS: usize = 1024;
/// The two lookups of a call follow each other at once.
const SAME_CALL: Duration = Duration::from_millis(50);

/// What a thread was told last.
#[derive(Debug)]
pub(super) struct Told {
    ino: Ino,
    parent: Ino,
    name: Name,
    at: Instant,
}

/// What threads were told that the kernel does not keep.
#[derive(Debug)]
pub(super) struct LastTold(Mutex<LruCache<u32, Told>>);

impl LastTold {
    pub(super) fn new() -> LastTold {
        let capacity = NonZeroUsize::new(MAX_THREADS).unwrap_or(NonZeroUsize::MIN);
        LastTold(Mutex::new(LruCache::new(capacity)))
    }

    /// A thread looks up another name: what it was told just before.
    pub(super) fn before(&self, thread: u32) -> Option<Told> {
        let mut threads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if threads.is_empty() {
            return None;
        }
        threads.pop(&thread).filter(|told| told.at.elapsed() < SAME_CALL)
    }

    /// What a thread is told of a name. `ESTALE`: the kernel is to look up both names again.
    pub(super) fn tell(
        &self,
        vfs: &Arc<Vfs>,
        (thread, before): (u32, Option<Told>),
        (parent, name): (Ino, &Name),
        looked: Looked,
    ) -> Result<Looked, Errno> {
        let Looked::Found(entry) = &looked else { return Ok(looked) };
        let (ino, attr) = (entry.attr.ino, &entry.attr);
        if attr.kind != FileKind::Dir && attr.nlink != 1 {
            return Ok(looked);
        }
        if before.is_some_and(|b| b.ino == ino && (b.parent, &b.name) != (parent, name)) {
            // It was counted when it was found, and is not told.
            vfs.forget(ino, 1);
            return Err(Errno::ESTALE);
        }
        if entry.ttl.is_zero() {
            let told = Told { ino, parent, name: name.clone(), at: Instant::now() };
            self.0.lock().unwrap_or_else(PoisonError::into_inner).put(thread, told);
        }
        Ok(looked)
    }
}
