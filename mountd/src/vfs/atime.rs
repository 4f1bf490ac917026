//! Access times: moved by the rules of `relatime` unless the mount says otherwise, told to the
//! server in batches.

use std::time::Duration;

use netfs_common::attr::{FileKind, Timestamp};
use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::wire::meta::{MAX_BATCH, Op};

use super::{AccessTimes, Vfs};
use crate::cache::Node;
use crate::session::lock;

/// An access time older than this moves with any read.
const STALE: i64 = 24 * 3600;
/// How many access times may wait before they are sent; at [`MAX_WAITING`] further ones are
/// dropped, which relatime allows to look like an older access.
const BATCH: usize = 1000;
const MAX_WAITING: usize = 64 << 10;
/// How long access times wait.
pub(super) const PERIOD: Duration = Duration::from_secs(5);

impl Vfs {
    /// Whether the kernel may keep pages from one `open` to the next: reads that it answers from
    /// them are not seen here.
    pub(super) fn keeps_pages(&self) -> bool {
        self.options.access_times != AccessTimes::Always
    }

    /// An inode was read.
    pub(super) fn touch(&self, node: &Node, flags: i32) {
        let mode = self.options.access_times;
        if mode == AccessTimes::Never || flags & libc::O_NOATIME != 0 {
            return;
        }
        let time = self.session.now();
        let mut state = node.state();
        let Some(attr) = state.effective() else { return };
        if self.options.nodiratime && attr.kind == FileKind::Dir {
            return;
        }
        if mode == AccessTimes::Relative && !moves(attr.atime, attr.mtime, attr.ctime, time) {
            return;
        }
        state.atime = Some(time);
        drop(state);
        let mut accessed = lock(&self.accessed);
        if accessed.len() < MAX_WAITING {
            accessed.insert(node.ino, time);
        }
        let full = accessed.len() >= BATCH;
        drop(accessed);
        if full {
            self.background.notify_one();
        }
    }

    /// The access time is about to be set by hand: an earlier one must not be told after it. To be called without a gate.
    pub(super) async fn forget_access(&self, node: &Node) {
        lock(&self.accessed).remove(&node.ino);
        node.state().atime = None;
        // Those that are being told have been told then. The server lets them wait for nobody.
        drop(self.access_gate.lock().await);
    }

    /// Tells the server the access times that it does not know.
    ///
    /// # Errors
    /// Those of the call; the times stay here.
    pub(super) async fn send_accessed(&self) -> Result<(), Errno> {
        loop {
            let _gate = self.access_gate.lock().await;
            let times: Vec<(Ino, Timestamp)> = {
                let mut accessed = lock(&self.accessed);
                let some: Vec<Ino> = accessed.keys().copied().take(MAX_BATCH).collect();
                some.into_iter().filter_map(|i| accessed.remove(&i).map(|t| (i, t))).collect()
            };
            if times.is_empty() {
                return Ok(());
            }
            let nodes: Vec<_> =
                times.iter().filter_map(|(i, _)| self.cache.table.peek(*i)).collect();
            let ticket = nodes.first().map(|n| self.cache.ticket(n));
            match self.session.mutate(Op::Accessed { times: times.clone() }, false).await {
                Ok(changed) => {
                    if let Some(ticket) = ticket {
                        // Not as a change: a lost access time is worth no failure.
                        for attr in changed.attrs {
                            self.cache.learn(ticket, attr, None, None);
                        }
                    }
                    for node in nodes {
                        let sent = times.iter().find(|(i, _)| *i == node.ino).map(|(_, t)| *t);
                        let mut state = node.state();
                        // Known to the server now; a server that does not answer with attributes
                        // leaves the time here.
                        if state.atime == sent
                            && state.attr.as_ref().is_some_and(|a| Some(a.atime) >= sent)
                        {
                            state.atime = None;
                        }
                    }
                }
                Err(e) => return Err(e),
            }
        }
    }
}

/// The rule of `relatime`, as in the kernel's `relatime_need_update`.
fn moves(atime: Timestamp, mtime: Timestamp, ctime: Timestamp, time: Timestamp) -> bool {
    atime <= mtime || atime <= ctime || time.secs.saturating_sub(atime.secs) >= STALE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relatime_moves_after_changes_and_once_a_day() {
        let t = |secs| Timestamp { secs, nanos: 0 };
        assert!(moves(t(5), t(5), t(1), t(6)));
        assert!(moves(t(5), t(1), t(9), t(10)));
        assert!(!moves(t(5), t(4), t(4), t(100)));
        assert!(moves(t(5), t(4), t(4), t(5 + STALE)));
    }
}
