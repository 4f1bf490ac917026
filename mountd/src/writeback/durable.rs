//! Making acknowledged data durable, and sending it again to a server that has lost it.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use netfs_common::errno::Errno;
use netfs_common::id::{InstanceId, ServerId};
use tracing::warn;

use super::{Content, Writeback};
use crate::cache::{File, Node};
use crate::session::lock;

/// How long acknowledged data may stay undurable, although nobody asks.
const PERIOD: Duration = Duration::from_millis(500);

impl Writeback {
    /// Makes durable what a server has acknowledged, and lets go of it here.
    ///
    /// # Errors
    /// Those of the call.
    pub async fn flush_server(&self, server: ServerId) -> Result<(), Errno> {
        let upto = self.acks.load(Ordering::SeqCst);
        let verifier = self.session.bulk().flush(server).await?;
        if self.keeps_of_another_life(server, verifier) {
            self.resend(server, verifier);
        }
        for node in self.keepers() {
            self.edit(&node, |state| {
                if let Some(file) = &mut state.file {
                    file.kept.take_out(|m| m.server != server || m.at > upto);
                }
            });
        }
        self.prune();
        Ok(())
    }

    /// A server is in another life than the one that acknowledged: what that one may have lost is
    /// dirty again.
    pub fn resend(&self, server: ServerId, now: InstanceId) {
        self.resends.fetch_add(1, Ordering::SeqCst);
        for node in self.keepers() {
            let again = self.edit(&node, |state| {
                let Some(file) = &mut state.file else { return false };
                let lost = file.kept.take_out(|m| m.server != server || m.verifier == now);
                for (start, content) in &lost {
                    requeue(file, *start, content);
                }
                file.keep_to_limit();
                !lost.is_empty() && !std::mem::replace(&mut file.queued, true)
            });
            if again {
                self.enqueue(node, Duration::ZERO);
                self.wake.notify_one();
            }
        }
    }

    /// How often servers were found to be in another life. It moves before anything is asked of
    /// the new life.
    pub fn resends(&self) -> u64 {
        self.resends.load(Ordering::SeqCst)
    }

    /// Makes everything durable that an inode has at data servers.
    ///
    /// # Errors
    /// Those of the calls.
    pub async fn flush_node(&self, node: &Node) -> Result<(), Errno> {
        for server in servers(node) {
            self.flush_server(server).await?;
        }
        Ok(())
    }

    /// Makes everything durable on all data servers.
    ///
    /// # Errors
    /// Those of the calls.
    pub async fn flush_all(&self) -> Result<(), Errno> {
        let all: BTreeSet<ServerId> = self.keepers().iter().flat_map(|n| servers(n)).collect();
        for server in all {
            self.flush_server(server).await?;
        }
        Ok(())
    }

    fn keeps_of_another_life(&self, server: ServerId, now: InstanceId) -> bool {
        let other = |n: &Arc<Node>| {
            let state = n.state();
            let kept = state.file.as_ref().map(|f| &f.kept);
            kept.is_some_and(|k| k.tags().any(|m| m.server == server && m.verifier != now))
        };
        self.keepers().iter().any(other)
    }

    fn keepers(&self) -> Vec<Arc<Node>> {
        lock(&self.keepers).values().cloned().collect()
    }

    /// Inodes that keep nothing any more leave the list.
    fn prune(&self) {
        // The states are looked at outside the list's lock; one that keeps something again by
        // then is entered again by whoever adds to it, so that it must be looked at under it too.
        lock(&self.keepers).retain(|_, n| {
            n.state().file.as_ref().is_some_and(|f| !f.kept.is_empty() || !f.flying.is_empty())
        });
    }
}

/// The servers that have acknowledged something of an inode which may not be durable.
pub(super) fn servers(node: &Node) -> BTreeSet<ServerId> {
    let state = node.state();
    state.file.as_ref().map(|f| f.kept.tags().map(|m| m.server).collect()).unwrap_or_default()
}

/// Makes content dirty that is older than everything dirty or under way.
pub(super) fn requeue(file: &mut File, start: u64, content: &Content) {
    for (a, b) in file.dirty.gaps(start, start + content.len()) {
        for (x, y) in file.flying.gaps(a, b) {
            file.dirty.insert(x, content.part(x - start, y - start), ());
        }
    }
}

/// Flushes every [`PERIOD`] while something is kept, and at once while it is much.
pub(super) async fn attend(weak: Weak<Writeback>) {
    loop {
        let Some(writeback) = weak.upgrade() else { return };
        if writeback.halted() {
            return;
        }
        let much = writeback.kept.load(Ordering::SeqCst) > writeback.limits.kept / 4;
        if !much {
            tokio::select! {
                () = writeback.flush_wanted.notified() => {}
                () = tokio::time::sleep(PERIOD) => {}
            }
        }
        if let Err(e) = writeback.flush_all().await
            && !writeback.halted()
        {
            warn!(error = %e, "a data server cannot make its data durable");
            tokio::time::sleep(PERIOD).await;
        }
    }
}
