//! Telling the metadata server what has arrived at the data servers.

use std::sync::Arc;

use netfs_common::attr::Timestamp;
use netfs_common::errno::Errno;
use netfs_common::id::ChunkId;
use netfs_common::wire::meta::Op;
use tracing::error;

use super::Writeback;
use crate::cache::{Node, State};

/// A report under way.
struct Report {
    op: Op,
    time: Timestamp,
    end: u64,
    allocated: i64,
    mtime: Timestamp,
    shown: u64,
    era: u64,
}

impl Writeback {
    /// Reports what has arrived, durably if `sync`. Says whether there was anything.
    ///
    /// # Errors
    /// Those of the call; they are in the inode's log too.
    pub async fn report(&self, node: &Arc<Node>, sync: bool) -> Result<bool, Errno> {
        let _meta = node.gates().meta.lock().await;
        self.inline_copy_is_durable(node).await?;
        let ticket = self.cache.ticket(node);
        let known_in = self.session.incarnation();
        let Some(report) = self.edit(node, compose) else { return Ok(false) };
        let op = report.op.clone();
        let outcome = self.session.mutate_at(op, sync, report.time, known_in).await;
        let failed = match &outcome {
            Ok(changed) => {
                self.cache.learn_changed(ticket, changed);
                None
            }
            // The inode is gone, or was emptied: nobody can ask for the data.
            Err(Errno::ENOENT) => None,
            Err(Errno::ESTALE) => Some(Errno::EIO),
            Err(e) => Some(*e),
        };
        if let Some(e) = failed
            && !self.halted()
        {
            error!(ino = %node.ino, error = %e, "written data could not be reported");
        }
        let shown = self.edit(node, |state| {
            if state.era == report.era {
                settle(state, &report, failed);
            }
            state.effective().map(|a| a.allocated)
        });
        if !node.state().is_inline() {
            self.cache.drop_content(node.ino);
        }
        if let Some(kernel) = self.kernel()
            && shown.is_some_and(|s| s != report.shown)
        {
            // The kernel may have cached an estimate.
            kernel.inval_attr(node.ino);
        }
        failed.map_or(Ok(true), Err)
    }

    /// Before the server may drop the inline copy of data, the chunk with it must be durable: the
    /// copy may have been.
    async fn inline_copy_is_durable(&self, node: &Arc<Node>) -> Result<(), Errno> {
        loop {
            let group = {
                let state = node.state();
                let Some(attr) = &state.attr else { return Ok(()) };
                let Some(file) = &state.file else { return Ok(()) };
                let Some(len) = file.converting.filter(|l| *l > 0) else { return Ok(()) };
                let covered = |e: u64| e == 0;
                let waiting = file.dirty.within(0, len).len() + file.flying.within(0, len).len();
                if !covered(waiting as u64) {
                    // Not sent yet: there is nothing to report that may go before it.
                    drop(state);
                    return Ok(());
                }
                if file.kept.within(0, len).is_empty() {
                    return Ok(());
                }
                let first = ChunkId { ino: node.ino, generation: attr.generation, index: 0 };
                self.session.bulk().group_of(first).ok_or(Errno::EIO)?
            };
            self.flush_groups([group].into()).await?;
        }
    }
}

fn compose(state: &mut State) -> Option<Report> {
    let shown = state.effective()?.allocated;
    let (era, inline) = (state.era, state.is_inline());
    let attr = state.attr.as_ref()?;
    let (ino, generation, old_mtime, old_ctime) =
        (attr.ino, attr.generation, attr.mtime, attr.ctime);
    let file = state.file.as_mut()?;
    let idle = file.dirty.is_empty() && file.flying.is_empty();
    // While the inline copy is moving, nothing may make the server drop it.
    let moving = file.converting.is_some_and(|len| {
        !file.dirty.within(0, len).is_empty() || !file.flying.within(0, len).is_empty()
    });
    if moving || inline || !(file.unreported || idle && file.mtime.is_some()) {
        return None;
    }
    let mtime = file.mtime.unwrap_or(old_mtime);
    let time = file.ctime.unwrap_or(old_ctime);
    let (end, allocated) = (file.end, file.allocated);
    file.unreported = false;
    let op = Op::WroteChunks { ino, generation, end, allocated, mtime };
    Some(Report { op, time, end, allocated, mtime, shown, era })
}

fn settle(state: &mut State, report: &Report, failed: Option<Errno>) {
    if let Some(e) = failed {
        state.failed.add(e);
        state.tail_known = false;
    }
    let Some(file) = &mut state.file else { return };
    file.allocated -= report.allocated;
    if file.unreported {
        return;
    }
    if file.end == report.end {
        file.end = 0;
    }
    if file.converting.is_some() {
        file.converting = None;
    }
    if file.dirty.is_empty() && file.flying.is_empty() && file.mtime == Some(report.mtime) {
        (file.mtime, file.ctime) = (None, None);
    }
}
