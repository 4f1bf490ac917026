//! Having the kernel forget inodes without a name.
//!
//! It holds its reference for open files, mappings, working directories and `O_PATH` descriptors, and then it is right. But it also holds one for a name in
//! its cache that has expired, for as long as nobody looks it up and memory is not short. After a removal by this client itself it drops that
//! name on its own; after one by another client it must be told, also once more when a file that was open has been closed.

use std::time::Duration;

use netfs_common::attr::FileKind;
use netfs_common::id::Ino;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Vfs;
use crate::cache;

/// Inodes in one message to the kernel.
const MAX_INODES: usize = 512;
/// Messages in one go. With more orphans than that, the next one goes on from there.
const MAX_MESSAGES: usize = 16;
/// For so long the kernel is waited for, which may be dropping many pages.
const PATIENCE: Duration = Duration::from_millis(50);

/// How far the kernel was told of orphans.
#[derive(Debug, Default)]
pub(super) struct Lingering {
    after: Ino,
    /// It has not done what it was told.
    pending: Option<oneshot::Receiver<()>>,
}

impl Vfs {
    /// Has the kernel forget orphans that nobody uses there. Those that are in use stay, and are tried again.
    pub(super) async fn have_forgotten(&self, state: &mut Lingering) {
        let Some(kernel) = self.kernel.get() else { return };
        if let Some(pending) = &mut state.pending
            && matches!(pending.try_recv(), Err(oneshot::error::TryRecvError::Empty))
        {
            return;
        }
        state.pending = None;
        for _ in 0..MAX_MESSAGES {
            let Some((last, orphans)) = self.cache.table.lingering(state.after, MAX_INODES) else {
                state.after = Ino(0);
                return;
            };
            state.after = last;
            if orphans.is_empty() {
                continue;
            }
            let told = kernel.drop_unused(orphans.iter().map(|orphan| orphan.ino).collect());
            for orphan in orphans.iter().filter(|orphan| orphan.again) {
                if told.is_none() || self.may_have_names_below(orphan.ino) {
                    self.remove_expired_name(orphan);
                }
            }
            if let Some(mut told) = told
                && timeout(PATIENCE, &mut told).await.is_err()
            {
                state.pending = Some(told);
                return;
            }
        }
    }

    /// The kernel counts a directory as in use as long as it has names in it, absent ones too.
    fn may_have_names_below(&self, ino: Ino) -> bool {
        let node = self.cache.table.peek(ino);
        node.is_none_or(|n| n.state().attr.as_ref().is_none_or(|a| a.kind == FileKind::Dir))
    }

    /// Takes the name by which the kernel still keeps an orphan, and all names below it, out of its tree. That is not done to a name that somebody has
    /// asked for since it expired: then the kernel has dropped the old one by itself. If somebody asks in the very moment between this look and what
    /// the kernel does about it, the new inode loses its path until it is looked up again, and nothing else.
    fn remove_expired_name(&self, orphan: &cache::Lingering) {
        if let Some((dir, name)) = self.cache.take_expired(orphan.ino)
            && let Some(kernel) = self.kernel.get()
        {
            // When the kernel lets go of the directory: nothing depends on it.
            drop(kernel.remove_name(dir, name));
        }
    }
}
