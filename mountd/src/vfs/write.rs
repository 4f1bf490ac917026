//! Writing.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use netfs_common::errno::Errno;
use netfs_common::id::Ino;

use super::Vfs;
use super::attrs::MAX_SIZE;
use super::handles::Handle;
use super::recall::Pinned;
use crate::cache::{self, Node};
use crate::insight::{Wait, waiting};
use crate::session::lock;
use crate::writeback::Content;

/// `FUSE_WRITE_CACHE`: the kernel writes back a page of a mapping, not a program.
const WRITE_CACHE: u32 = 1;
/// With less free space than what is buffered and this much, writes go to the server at once, so
/// that the program that fills the volume is told, and not one that has long closed its file.
const SPACE_MARGIN: u64 = 64 << 20;
/// How old figures of the volume may be for that.
const SPACE_AGE: Duration = Duration::from_secs(10);

impl Vfs {
    /// Takes a write into the buffer if nothing stands in the way.
    #[allow(clippy::too_many_arguments)]
    pub fn try_write(
        self: &Arc<Self>,
        _ino: Ino,
        fh: u64,
        offset: u64,
        data: &Bytes,
        flags: i32,
        write_flags: u32,
    ) -> Option<Result<u32, Errno>> {
        let handle = self.handles.get(fh).ok()?;
        let node = &handle.node;
        let ready = !self.is_down()
            && self.cache.live()
            && !through(flags)
            && !handle.has_failure()
            && !data.is_empty()
            && fits(offset, data.len())
            && self.writeback.has_room()
            && self.has_space();
        let may = |node: &Node| {
            let state = node.state();
            state.owned() && !state.giving
        };
        if !ready || !may(node) {
            return None;
        }
        let _io = node.gates().io.try_read().ok()?;
        // Now that nobody can give the lease back.
        if !may(node) {
            return None;
        }
        // Tasks that send are spawned from here.
        let _runtime = self.runtime.enter();
        Some(self.put(&handle, offset, data.clone(), flags, write_flags))
    }

    /// Writes.
    ///
    /// # Errors
    /// As `pwrite(2)`; also failures of earlier writes, once per handle.
    #[allow(clippy::too_many_arguments)]
    pub async fn write(
        self: &Arc<Self>,
        ino: Ino,
        fh: u64,
        offset: u64,
        data: Bytes,
        flags: i32,
        write_flags: u32,
    ) -> Result<u32, Errno> {
        if let Some(done) = self.try_write(ino, fh, offset, &data, flags, write_flags) {
            return done;
        }
        let handle = self.handles.get(fh)?;
        let this = Arc::clone(self);
        self.run(async move {
            handle.check()?;
            if data.is_empty() {
                return Ok(0);
            }
            let node = &handle.node;
            if write_flags & WRITE_CACHE != 0 {
                return this.put_mapped(&handle, offset, data, flags, write_flags).await;
            }
            let pinned = Pinned::new(node, offset, data.len() as u64);
            this.writeback.wait_for_room().await?;
            let space = this.space_for(data.len() as u64).await?;
            if space && !through(flags) {
                loop {
                    this.own(node).await?;
                    let _io = waiting(Wait::Turn, node.gates().io.read()).await;
                    if this.owns(node) {
                        return this.put(&handle, offset, data, flags, write_flags);
                    }
                }
            }
            let io = this.owned(node).await?;
            drop(pinned);
            let written = this.put(&handle, offset, data, flags, write_flags)?;
            let outcome = this.push(node, flags).await;
            drop(io);
            if flags & libc::O_DIRECT != 0 {
                this.drop_pages(node, offset, written).await;
            }
            if outcome.is_err() {
                handle.told();
            }
            outcome.map(|()| written)
        })
        .await
    }

    /// Takes back what somebody may have read into the page cache while a direct write was under
    /// way: the kernel does so only before it, when the program does not wait for it (libaio).
    ///
    /// This is the one place where a request waits for the kernel to be told. It may: no gate is
    /// held, and a direct write holds no page for which the notification could wait.
    async fn drop_pages(&self, node: &Node, offset: u64, len: u32) {
        if let Some(kernel) = self.kernel.get() {
            kernel.inval_data(node.ino, offset, len.into());
            // An error means that there is no kernel any more.
            let _ = kernel.barrier().await;
        }
    }

    /// Takes what programs have stored in a mapping. It must not wait for a lease: the kernel may write it back because
    /// the lease is being given back. It is sent once there is one.
    async fn put_mapped(
        self: &Arc<Self>,
        handle: &Handle,
        offset: u64,
        data: Bytes,
        flags: i32,
        write_flags: u32,
    ) -> Result<u32, Errno> {
        let node = &handle.node;
        if node.state().attr.is_none() {
            self.known(node.ino).await?;
        }
        self.put(handle, offset, data, flags, write_flags)
    }

    fn put(
        self: &Arc<Self>,
        handle: &Handle,
        offset: u64,
        mut data: Bytes,
        flags: i32,
        write_flags: u32,
    ) -> Result<u32, Errno> {
        let len = data.len();
        cache::touch_inode(handle.node.ino);
        let append = flags & libc::O_APPEND != 0 && write_flags & WRITE_CACHE == 0;
        if append && !fits(handle.node.state().size(), len) {
            return Err(Errno::EFBIG);
        }
        let place = |size: u64| if append { size } else { offset };
        if !fits(offset, len) {
            return Err(Errno::EFBIG);
        }
        if write_flags & WRITE_CACHE != 0 {
            // A mapping never makes a file longer; the kernel may only not have heard of a cut.
            let within = handle.node.state().size().saturating_sub(offset);
            if within == 0 {
                return u32::try_from(len).map_err(|_| Errno::EINVAL);
            }
            data.truncate(usize::try_from(within).unwrap_or(usize::MAX));
        }
        let start = self.writeback.put(&handle.node, Content::Data(data), place);
        if start != offset
            && let Some(kernel) = self.kernel.get()
        {
            // The kernel has guessed the end of the file from an old size, and has put the bytes
            // into a page there.
            kernel.inval_data(handle.node.ino, offset.min(start), 0);
        }
        u32::try_from(len).map_err(|_| Errno::EINVAL)
    }

    /// Sends what an inode has at once, and as far as the flags of a write ask for. The caller
    /// holds the `io` gate exclusively.
    async fn push(&self, node: &Arc<Node>, flags: i32) -> Result<(), Errno> {
        if flags & (libc::O_SYNC | libc::O_DSYNC) != 0 {
            return self.make_durable(node).await;
        }
        self.writeback.drain(node, false).await
    }

    /// By the last figures, the volume has space for what is buffered and more.
    fn has_space(&self) -> bool {
        match *lock(&self.space) {
            // The figures are renewed in the background while there is something buffered.
            Some((_, space)) => {
                let pending = self.writeback.pending().saturating_add(SPACE_MARGIN);
                space.bytes == 0 || space.bytes_free > pending
            }
            None => true,
        }
    }

    /// As [`Vfs::has_space`] with fresh figures where the old ones say no. `ENOSPC` when nothing
    /// is free.
    async fn space_for(&self, len: u64) -> Result<bool, Errno> {
        if self.has_space() {
            return Ok(true);
        }
        let space = self.ask_space().await?;
        if self.has_space() {
            return Ok(true);
        }
        if space.bytes_free < len && space.bytes_free < 4096 {
            return Err(Errno::ENOSPC);
        }
        Ok(false)
    }

    /// Renews the figures of the volume while writes rely on them.
    pub(super) async fn watch_space(&self) {
        let age = lock(&self.space).map(|(at, _)| at.elapsed());
        if self.writeback.pending() > 0 && age.is_none_or(|a| a > SPACE_AGE) {
            // Without an answer the old figures stand.
            let _ = self.ask_space().await;
        }
    }
}

/// The write shall reach the server before it returns.
fn through(flags: i32) -> bool {
    flags & (libc::O_SYNC | libc::O_DSYNC | libc::O_DIRECT) != 0
}

fn fits(offset: u64, len: usize) -> bool {
    offset.checked_add(len as u64).is_some_and(|end| end <= MAX_SIZE)
}
