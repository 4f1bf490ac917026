//! Pages that the kernel keeps although others use the volume.
//!
//! A file that is opened while others use the volume is read past the kernel's cache. One that was
//! opened before keeps its pages, and a directory its listing, and the kernel asks nobody before it
//! uses them. So it is noted as of which version they are. Whenever the server shows a later one,
//! they are taken back; before the answer to a `stat`, so that what is read afterwards is at least as
//! new. And as a program need not ask for attributes, the server is asked in the background.
//!
//! To take back pages after each read instead would leave mapped files, such as programs that run,
//! without pages all the time.

use std::sync::{Arc, Weak};
use std::time::Duration;

use netfs_common::attr::{Attr, FileKind};
use netfs_common::errno::Errno;
use netfs_common::id::Ino;

use super::Vfs;
use super::handles::Handle;
use crate::cache::Node;

/// How often the server is asked for the versions of files of which the kernel keeps pages.
const PERIOD: Duration = Duration::from_millis(250);
/// The most inodes asked for in a period; with more, each has its turn later.
const MAX_ASKED: usize = 64;
/// How long an answer to `stat` waits for the kernel to drop pages. The kernel might hold a lock for
/// it that the notification in front needs.
const DROPPING: Duration = Duration::from_millis(100);

impl Vfs {
    /// To be called before the kernel is given something that it may keep: as of which version that
    /// is at least, if that matters.
    pub(super) fn before_pages(&self, handle: &Handle) -> Option<u64> {
        let version = |n: &Node| n.state().attr.as_ref().map_or(1, |a| a.version.max(1));
        (handle.cached && !self.cache.exclusive()).then(|| version(&handle.node))
    }

    /// To be called before the answer.
    pub(super) fn after_pages(&self, handle: &Handle, before: Option<u64>) {
        let Some(before) = before else { return };
        let mut state = handle.node.state();
        let current = state.attr.as_ref().map_or(0, |a| a.version);
        if current > before {
            // The kernel holds the pages until it has got them, and drops them then.
            state.paged = 0;
            drop(state);
            if let Some(kernel) = self.kernel.get() {
                kernel.inval_data(handle.node.ino, 0, 0);
            }
        } else if state.paged == 0 || state.paged > before {
            state.paged = before;
        }
    }

    /// As [`Vfs::known`]; afterwards the kernel has no older pages of a file.
    pub(super) async fn asked(&self, ino: Ino) -> Result<(Arc<Node>, Attr), Errno> {
        let paged = self.cache.table.peek(ino).is_some_and(|n| n.state().paged != 0);
        let (node, attr) = self.known(ino).await?;
        if paged
            && attr.kind == FileKind::File
            && node.state().paged == 0
            && let Some(kernel) = self.kernel.get()
        {
            // If it does take longer, what is read meanwhile is as old as without the question.
            let _ = tokio::time::timeout(DROPPING, kernel.barrier()).await;
        }
        Ok((node, attr))
    }
}

/// Asks for the versions of what the kernel keeps, as long as others use the volume.
pub(super) async fn attend(weak: Weak<Vfs>) {
    let mut last = Ino(0);
    loop {
        tokio::time::sleep(PERIOD).await;
        let Some(vfs) = weak.upgrade() else { return };
        if vfs.is_down() {
            return;
        }
        if vfs.cache.exclusive() || !vfs.session.connected() {
            continue;
        }
        let paged = vfs.handles.paged();
        let later = paged.keys().copied().filter(|i| *i > last);
        let turn: Vec<Ino> = later.chain(paged.keys().copied()).take(MAX_ASKED).collect();
        let asked = turn.len().min(paged.len());
        for ino in turn.into_iter().take(asked) {
            last = ino;
            // A failure is for whoever uses the file next.
            let _ = vfs.known(ino).await;
        }
    }
}
