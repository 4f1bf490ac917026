//! Writing.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use netfs_common::attr::{Attr, SetAttr};
use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::wire::meta::Op;

use super::Vfs;
use super::attrs::MAX_SIZE;
use super::handles::Handle;
use super::recall::{Passing, Pinned};
use crate::cache::{self, Node};
use crate::insight::{Wait, waiting};
use crate::session::{Waits, lock};
use crate::writeback::Content;

/// `FUSE_WRITE_CACHE`: the kernel writes back a page of a mapping, not a program.
const WRITE_CACHE: u32 = 1;
/// `FUSE_WRITE_KILL_SUIDGID`: the writer must not keep set-id bits. The kernel leaves them to us where
/// it keeps no pages.
const WRITE_KILL_SUIDGID: u32 = 4;
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
            && !handle.direct
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
        self.put(&handle, offset, data.clone(), flags, write_flags).transpose()
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
            let pinned = (!handle.direct).then(|| Pinned::new(node, offset, data.len() as u64));
            this.writeback.wait_for_room().await?;
            let space = this.space_for(data.len() as u64).await?;
            if space && !through(flags) {
                loop {
                    this.own(node).await?;
                    let _io = waiting(Wait::Turn, node.gates().io.read()).await;
                    if this.owns(node) {
                        let passing = this.pass_pages(&handle, write_flags).await?;
                        let put = this.put(&handle, offset, data.clone(), flags, write_flags);
                        if let Some(done) = put.transpose() {
                            this.pass_again(node, passing).await;
                            return done;
                        }
                        // All leases went meanwhile, and nobody is kept from the file.
                    }
                }
            }
            let (io, passing, written) = loop {
                let io = this.owned(node).await?;
                let passing = this.pass_pages(&handle, write_flags).await?;
                let put = this.put(&handle, offset, data.clone(), flags, write_flags)?;
                if let Some(written) = put {
                    break (io, passing, written);
                }
            };
            drop(pinned);
            let outcome = this.push(node, flags).await;
            this.pass_again(node, passing).await;
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

    /// Before a write past the kernel's pages: what others here have read and been told goes, and the kernel is given nothing to keep until the
    /// write is taken; or they would see less than other clients, which see the write as soon as it is here. Also takes from the file what a writer must not inherit, which the kernel leaves to us.
    async fn pass_pages<'a>(
        &self,
        handle: &'a Handle,
        write_flags: u32,
    ) -> Result<Option<Passing<'a>>, Errno> {
        if !handle.direct {
            return Ok(None);
        }
        let node = &handle.node;
        let passing = Passing::new(node);
        let attr = node.state().attr.clone().ok_or(Errno::EIO)?;
        self.kill_privileges(node, &attr, write_flags).await?;
        let told = node.state().take_told();
        if told {
            self.take_pages(node, 0, u64::MAX).await;
        }
        Ok(Some(passing))
    }

    /// The write is taken. A mapping may have read pages meanwhile, with what was before.
    async fn pass_again(&self, node: &Node, passing: Option<Passing<'_>>) {
        let read = passing.is_some() && node.state().take_told();
        if read {
            self.take_pages(node, 0, u64::MAX).await;
        }
    }

    /// Takes from a file what a writer must not inherit, by the kernel's rules: set-id bits, unless
    /// the writer may set them, and capabilities.
    async fn kill_privileges(
        &self,
        node: &Arc<Node>,
        attr: &Attr,
        write_flags: u32,
    ) -> Result<(), Errno> {
        const SET_UID: u16 = libc::S_ISUID as u16;
        const SET_GID: u16 = libc::S_ISGID as u16;
        let mut killed = attr.perm & SET_UID;
        if attr.perm & libc::S_IXGRP as u16 != 0 {
            // Without the right to execute it marks a file for mandatory locking.
            killed |= attr.perm & SET_GID;
        }
        if killed != 0 && write_flags & WRITE_KILL_SUIDGID != 0 {
            let set = SetAttr { perm: Some(attr.perm & !killed), ..SetAttr::default() };
            self.set_attrs(node, set).await?;
        }
        if attr.has_xattrs {
            let name = b"security.capability".to_vec();
            if self.cache.xattr(node.ino, &name) == Some(None) {
                return Ok(());
            }
            let op = Op::RemoveXattr { ino: node.ino, name };
            match self.session.mutate_as(Waits::ForNobody, op, false).await {
                Ok(_) | Err(Errno::ENODATA) => self.cache.xattrs_moved(node),
                Err(e) => return Err(e),
            }
        }
        Ok(())
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
        let len = u32::try_from(data.len()).map_err(|_| Errno::EINVAL)?;
        Ok(self.put(handle, offset, data, flags, write_flags)?.unwrap_or(len))
    }

    /// Puts a write into the buffer; `None` when the lease is gone.
    fn put(
        self: &Arc<Self>,
        handle: &Handle,
        offset: u64,
        mut data: Bytes,
        flags: i32,
        write_flags: u32,
    ) -> Result<Option<u32>, Errno> {
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
                return u32::try_from(len).map(Some).map_err(|_| Errno::EINVAL);
            }
            data.truncate(usize::try_from(within).unwrap_or(usize::MAX));
        }
        // The kernel has it in a page.
        handle.node.state().told |= !handle.direct;
        let mapped = write_flags & WRITE_CACHE != 0;
        let may = |state: &cache::State| mapped || state.owned();
        let put = self.writeback.put_if(&handle.node, Content::Data(data), may, place);
        let Some(start) = put else { return Ok(None) };
        if start != offset
            && let Some(kernel) = self.kernel.get()
        {
            // The kernel has guessed the end of the file from an old size, and has put the bytes
            // into a page there.
            kernel.inval_data(handle.node.ino, offset.min(start), 0);
        }
        u32::try_from(len).map(Some).map_err(|_| Errno::EINVAL)
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
