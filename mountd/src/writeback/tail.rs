//! Cutting what a client that died may have left beyond the known end of a file.

use std::sync::Arc;

use netfs_common::errno::Errno;
use netfs_common::wire::meta::Op;
use tracing::error;

use super::Writeback;
use crate::cache::{Node, State};

/// A file is on its way out of its inode, and some of it is at data servers already: bytes of this client, which are not reported
/// until all of it is, and which must not be cut. The tail was known before the first of them was sent.
fn is_moving(state: &State) -> bool {
    state
        .file
        .as_ref()
        .is_some_and(|f| f.converting.is_some() && (f.unreported || !f.flying.is_empty()))
}

impl Writeback {
    /// What is to be sent next may uncover bytes that were never reported.
    pub(super) fn tail_in_doubt(&self, state: &State) -> bool {
        if state.tail_known {
            return false;
        }
        let (Some(attr), Some(file)) = (&state.attr, &state.file) else { return false };
        !file.dirty.is_empty() && (attr.inline || file.dirty.end() > attr.size) && !is_moving(state)
    }

    /// Cuts the tail where that is due. Called by the one task that sends an inode's batches.
    pub(super) async fn settle_tail(&self, node: &Arc<Node>) -> Result<(), Errno> {
        let due = self.tail_in_doubt(&node.state());
        if due { self.cut_tail(node).await } else { Ok(()) }
    }

    /// Has everything removed that data servers hold of a file beyond what was reported, unless it
    /// is known that there is nothing.
    ///
    /// What this client itself has sent is reported first. The caller sees to it that nothing is
    /// sent meanwhile that lies beyond the known end.
    ///
    /// # Errors
    /// Those of the calls.
    pub async fn cut_tail(&self, node: &Arc<Node>) -> Result<(), Errno> {
        loop {
            let progress = node.gates().progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            if node.state().tail_known {
                return Ok(());
            }
            if self.halted() {
                return Err(Errno::EIO);
            }
            if node.state().file.as_ref().is_none_or(|f| f.flying.is_empty()) {
                break;
            }
            progress.await;
        }
        if node.state().file.as_ref().is_some_and(|f| f.unreported) {
            self.report(node, false).await?;
        }
        let _meta = node.gates().meta.lock().await;
        if node.state().tail_known || is_moving(&node.state()) {
            return Ok(());
        }
        let ticket = self.cache.ticket(node);
        let known_in = self.session.incarnation();
        let op = Op::CutTail { ino: node.ino };
        let changed = self.session.mutate_at(op, false, self.session.now(), known_in).await?;
        self.cache.learn_changed(ticket, &changed);
        self.cache.tail_known(ticket, node);
        Ok(())
    }

    /// What cannot be sent is given up, and every open file is told.
    pub(super) fn tail_failed(&self, node: &Node, errno: Errno) {
        self.edit(node, |state| {
            state.failed.add(errno);
            let file = state.file();
            file.dirty.clear();
            (file.pumping, file.force, file.converting) = (false, 0, None);
            if file.flying.is_empty() && !file.unreported {
                (file.mtime, file.ctime) = (None, None);
            }
        });
        if !self.halted() {
            error!(ino = %node.ino, error = %errno, "a write that was accepted has failed");
            if let Some(kernel) = self.kernel() {
                kernel.inval_data(node.ino, 0, 0);
            }
        }
    }
}
