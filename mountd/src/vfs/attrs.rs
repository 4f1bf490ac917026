//! Attributes, sizes among them, and figures of the volume.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use netfs_common::attr::SetAttr;
use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::wire::meta::{Op, Request, Response, StatFs};
use tokio::time::Instant;

use super::{Caller, Entry, Vfs};
use crate::cache::Node;
use crate::session::{Waits, lock};

/// The largest size of a file, which is the kernel's.
pub(super) const MAX_SIZE: u64 = i64::MAX as u64;
/// How long figures of the volume are good.
const SPACE_TTL: Duration = Duration::from_secs(1);

impl Vfs {
    /// Makes the kernel ask again for the attributes of an inode. Safe while it waits for an answer
    /// about the same inode: attributes are taken back under no lock that a request holds.
    pub async fn attributes_changed(&self, ino: Ino) {
        if let Some(kernel) = self.kernel.get() {
            kernel.inval_attr(ino);
            // An error means that there is no kernel any more.
            let _ = kernel.barrier().await;
        }
    }

    /// The attributes if they are known.
    pub fn try_getattr(&self, ino: Ino, _fh: Option<u64>) -> Option<Result<Entry, Errno>> {
        if self.is_down() {
            return Some(Err(Errno::EIO));
        }
        self.served_entry(&*self.cache.table.get(ino)?).map(Ok)
    }

    /// The attributes.
    ///
    /// # Errors
    /// As `stat(2)`; `ESTALE` when there is no such inode.
    pub async fn getattr(self: &Arc<Self>, ino: Ino, _fh: Option<u64>) -> Result<Entry, Errno> {
        let (node, _) = self.patiently(self.known(ino)).await?;
        self.entry(&node).ok_or(Errno::EIO)
    }

    /// Changes attributes.
    ///
    /// # Errors
    /// As `chmod(2)`, `chown(2)`, `truncate(2)`, `utimensat(2)`.
    pub async fn setattr(
        self: &Arc<Self>,
        ino: Ino,
        set: SetAttr,
        _fh: Option<u64>,
        _caller: Caller,
    ) -> Result<Entry, Errno> {
        let this = Arc::clone(self);
        self.run(async move { this.setattr_now(ino, set).await }).await
    }

    pub(super) async fn setattr_now(&self, ino: Ino, set: SetAttr) -> Result<Entry, Errno> {
        let (node, _) = self.known(ino).await?;
        if set.atime.is_some() {
            // Before any gate: the times that are on their way are waited for.
            self.forget_access(&node).await;
        }
        match set.size {
            Some(size) if size > MAX_SIZE => return Err(Errno::EFBIG),
            Some(size) => {
                let _io = self.owned(&node).await?;
                self.resize(&node, size, set).await?;
            }
            None => self.set_attrs(&node, set).await?,
        }
        self.entry(&node).ok_or(Errno::EIO)
    }

    pub(super) async fn set_attrs(&self, node: &Arc<Node>, set: SetAttr) -> Result<(), Errno> {
        let (perm, mtime, atime) = (set.perm.is_some(), set.mtime.is_some(), set.atime.is_some());
        // Times must not be overtaken by reports of earlier writes and reads.
        let _meta = node.gates().meta.lock().await;
        if perm {
            self.cache.xattrs_moved(node);
        }
        let ticket = self.cache.ticket(node);
        // What others hold is waited for only where this client does not hold all.
        let waits = if self.owns(node) { Waits::ForNobody } else { Waits::ForOthers };
        let op = Op::SetAttr { ino: node.ino, set };
        let changed = self.session.mutate_as(waits, op, false).await?;
        self.cache.learn_changed(ticket, &changed);
        if perm {
            self.cache.xattrs_moved(node);
        }
        if atime {
            lock(&self.accessed).remove(&node.ino);
            node.state().atime = None;
        }
        if mtime {
            self.adopt_times(node);
        }
        Ok(())
    }

    /// Writes that are still to be reported carry the times that were set by hand meanwhile.
    fn adopt_times(&self, node: &Node) {
        self.writeback.edit(node, |state| {
            let Some((mtime, ctime)) = state.attr.as_ref().map(|a| (a.mtime, a.ctime)) else {
                return;
            };
            if let Some(file) = &mut state.file
                && file.mtime.is_some()
            {
                let idle = file.dirty.is_empty() && file.flying.is_empty() && !file.unreported;
                let times = if idle { (None, None) } else { (Some(mtime), Some(ctime)) };
                (file.mtime, file.ctime) = times;
            }
        });
    }

    /// Cuts or extends a file. The caller holds the `io` gate exclusively.
    ///
    /// What lies beyond the cut leaves the buffers first, and nothing of it may be under way when
    /// the server cuts, or it would come back. What lies before it may be. Until the end of it
    /// nothing from beyond gets into the buffers again, as from a data server that restarts.
    pub(super) async fn resize(
        &self,
        node: &Arc<Node>,
        size: u64,
        set: SetAttr,
    ) -> Result<(), Errno> {
        self.writeback.edit(node, |state| {
            if let Some(file) = &mut state.file {
                file.limit = Some(size);
                file.keep_to_limit();
            }
        });
        let outcome = self.resize_within(node, size, set).await;
        self.writeback.edit(node, |state| {
            // What was read meanwhile may be from before the cut.
            self.cache.pages.drop_range(node.ino, size, u64::MAX);
            if let Some(file) = &mut state.file {
                file.limit = None;
            }
        });
        outcome
    }

    async fn resize_within(&self, node: &Arc<Node>, size: u64, set: SetAttr) -> Result<(), Errno> {
        loop {
            let progress = node.gates().progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            if node.state().file.as_ref().is_none_or(|f| f.flying.end() <= size) {
                break;
            }
            self.up()?;
            progress.await;
        }
        if node.state().file.as_ref().is_some_and(|f| f.converting.is_some()) {
            // The server takes the data for inline, and would cut no chunk.
            self.writeback.drain(node, false).await?;
        }
        if node.state().file.as_ref().is_some_and(|f| f.unreported) {
            // So that the server cuts, and counts, all that there is.
            self.writeback.report(node, false).await?;
        }
        let known = node.state().attr.as_ref().map(|a| (a.inline, a.size));
        if known.is_some_and(|(inline, old)| !inline && size > old) {
            // The file grows over whatever lies beyond its end.
            self.writeback.cut_tail(node).await?;
        }
        let _meta = node.gates().meta.lock().await;
        let atime = set.atime.is_some();
        let content = self.cache.content(node.ino);
        let ticket = self.cache.ticket(node);
        let op = Op::SetAttr { ino: node.ino, set };
        let changed = self.session.mutate_as(Waits::ForNobody, op, false).await?;
        let new = changed.attrs.iter().find(|a| a.ino == node.ino).map(|a| (a.inline, a.version));
        let (inline, version) = new.ok_or(Errno::EPROTO)?;
        match content {
            Some(data) if inline => {
                let data = if (data.len() as u64) > size {
                    Bytes::copy_from_slice(&data[..size as usize])
                } else {
                    data
                };
                self.cache.put_content(node, version, data);
            }
            _ => self.cache.drop_content(node.ino),
        }
        self.writeback.edit(node, |state| {
            if let Some(file) = &mut state.file {
                file.end = file.end.min(size);
                file.converting = file.converting.map(|len| len.min(size));
                if size == 0 {
                    // What was there before is no longer counted, nor to be reported.
                    (file.unreported, file.allocated, file.converting) = (false, 0, None);
                    (file.mtime, file.ctime) = (None, None);
                }
            }
            if atime {
                state.atime = None;
            }
        });
        if atime {
            lock(&self.accessed).remove(&node.ino);
        }
        self.cache.learn_changed(ticket, &changed);
        self.adopt_times(node);
        Ok(())
    }

    /// Figures of the volume.
    ///
    /// # Errors
    /// As `statfs(2)`.
    pub async fn statfs(self: &Arc<Self>) -> Result<StatFs, Errno> {
        if let Some((at, space)) = *lock(&self.space)
            && at.elapsed() < SPACE_TTL
        {
            return Ok(space);
        }
        self.patiently(self.ask_space()).await
    }

    pub(super) async fn ask_space(&self) -> Result<StatFs, Errno> {
        match self.session.ask(Request::StatFs).await.reply? {
            Response::StatFs(space) => {
                *lock(&self.space) = Some((Instant::now(), space));
                Ok(space)
            }
            _ => Err(Errno::EPROTO),
        }
    }
}
