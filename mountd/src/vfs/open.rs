//! Opening, closing and making durable.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use netfs_common::attr::{SetAttr, SetTime};
use netfs_common::errno::Errno;
use netfs_common::id::Ino;

use super::{Opened, Vfs};
use crate::cache::Node;

/// How often `fsync` begins again because a data server was restarted meanwhile. Each round needs
/// another restart, so that the bound is for a server that never stays up.
const MAX_ROUNDS: usize = 100;

impl Vfs {
    /// Opens a file if that takes no message.
    pub fn try_open(&self, ino: Ino, flags: i32) -> Option<Result<Opened, Errno>> {
        if self.is_down() {
            return Some(Err(Errno::EIO));
        }
        if flags & libc::O_TRUNC != 0 {
            return None;
        }
        let node = self.cache.table.get(ino)?;
        self.served(&node)?;
        Some(Ok(self.opened(ino, flags)))
    }

    /// Opens a file; permissions are the kernel's business.
    ///
    /// # Errors
    /// As `open(2)`.
    pub async fn open(self: &Arc<Self>, ino: Ino, flags: i32) -> Result<Opened, Errno> {
        if let Some(opened) = self.try_open(ino, flags) {
            return opened;
        }
        let this = Arc::clone(self);
        self.run(async move { this.open_now(ino, flags).await }).await
    }

    pub(super) async fn open_now(&self, ino: Ino, flags: i32) -> Result<Opened, Errno> {
        if flags & libc::O_TRUNC != 0 {
            let set = SetAttr { size: Some(0), mtime: Some(SetTime::Now), ..SetAttr::default() };
            self.setattr_now(ino, set).await?;
        } else {
            self.known(ino).await?;
        }
        Ok(self.opened(ino, flags))
    }

    /// A handle of an inode that is there.
    pub(super) fn opened(&self, ino: Ino, flags: i32) -> Opened {
        let node = self.cache.table.obtain(ino);
        // Pages go when the lease does.
        let leased = self.served(&node).is_some();
        let direct = self.past_pages(&node, flags);
        Opened {
            fh: self.handles.add(node, flags, direct),
            keep_cache: leased && self.keeps_pages(),
            direct_io: direct,
            cache_dir: false,
            // A handle that cannot write has nothing to be told of at close, where nobody locks.
            noflush: flags & libc::O_ACCMODE == libc::O_RDONLY && !self.locks.needs_flush(ino),
        }
    }

    /// Whether the kernel keeps no pages of what is read and written through a handle.
    ///
    /// The kernel puts what is written into its pages before it asks for permission, and shows it to others here while
    /// the daemon still waits for the write lease: they would see it before other clients can. And it sends a write in pieces, page by page, which is
    /// nothing for appends. So writers go past the pages while others use the volume, and those that append always.
    ///
    /// Readers do where the kernel may not know the length. It asks for that, but drops the answer when it is told meanwhile that the file has
    /// changed once more, and then reads up to where the file ended before.
    fn past_pages(&self, node: &Node, flags: i32) -> bool {
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        if !self.company.load(Ordering::SeqCst) {
            return writes && flags & libc::O_APPEND != 0;
        }
        writes || self.is_behind(node)
    }

    /// The kernel may not know that others have made the file longer. It does once it has stored what it was answered, or has made the
    /// inode from it.
    fn is_behind(&self, node: &Node) -> bool {
        let mut state = node.state();
        if state.behind
            && state.valid
            && state.settled()
            && let Some(attr) = state.effective()
        {
            state.behind = !state.has_stored(&attr);
        }
        state.behind
    }

    /// A file descriptor is closed: tells of failures known by now. Data that is on its way does
    /// not hold the program up: whoever else looks at the file recalls the lease under which it is here.
    ///
    /// # Errors
    /// The failure of an earlier write.
    pub async fn flush(self: &Arc<Self>, _ino: Ino, fh: u64) -> Result<(), Errno> {
        self.up()?;
        self.handles.get(fh)?.check()
    }

    /// The last file descriptor of a handle is closed. Never waits.
    pub fn release(self: &Arc<Self>, ino: Ino, fh: u64) {
        self.locks_released(ino, fh);
        // An unknown handle was released before.
        if let Some(handle) = self.handles.remove(fh) {
            self.ahead_ends(&handle);
        }
    }

    /// Makes a file durable: its data, its attributes and the names that lead to it.
    ///
    /// # Errors
    /// As `fsync(2)`.
    pub async fn fsync(self: &Arc<Self>, _ino: Ino, fh: u64, _datasync: bool) -> Result<(), Errno> {
        self.up()?;
        let handle = self.handles.get(fh)?;
        let this = Arc::clone(self);
        self.run(async move {
            let _io = handle.node.gates().io.write().await;
            let outcome = this.make_durable(&handle.node).await;
            // Failures of this attempt and of earlier ones, told once.
            handle.check()?;
            outcome
        })
        .await
    }

    /// Sends, reports and makes durable everything of an inode. The caller holds the `io` gate
    /// exclusively.
    pub(super) async fn make_durable(&self, node: &Arc<Node>) -> Result<(), Errno> {
        for _ in 0..MAX_ROUNDS {
            self.writeback.drain(node, true).await?;
            // Together: a size that is durable before the data shows zeros after a crash, never
            // bytes of somebody else. Where an inline copy would go, the report waits itself.
            let (flushed, reported) =
                tokio::join!(self.writeback.flush_node(node), self.writeback.report(node, true));
            flushed?;
            reported?;
            let (again, position) = {
                let state = node.state();
                let again = state.file.as_ref().is_some_and(|f| {
                    let still = [f.kept.is_empty(), f.dirty.is_empty(), f.flying.is_empty()];
                    still.contains(&false) || f.unreported
                });
                (again, state.attr.as_ref().map_or(u64::MAX, |a| a.version))
            };
            if !again {
                return self.session.sync_to(position).await;
            }
            self.up()?;
        }
        Err(Errno::EIO)
    }

    /// Makes a directory durable: its entries and attributes.
    ///
    /// # Errors
    /// As `fsync(2)`.
    pub async fn fsyncdir(self: &Arc<Self>, ino: Ino, fh: u64) -> Result<(), Errno> {
        let handle = self.handles.get(fh)?;
        // What this client did not see happen may be anywhere in the log.
        let known = self.cache.table.get(ino).and_then(|n| self.served(&n)).map(|a| a.version);
        self.patiently(self.session.sync_to(known.unwrap_or(u64::MAX))).await?;
        handle.check()
    }
}
