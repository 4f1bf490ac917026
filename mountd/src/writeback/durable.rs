//! Making acknowledged data durable, and sending it again where it was lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use netfs_common::errno::Errno;
use netfs_common::id::{GroupId, Verifier};
use tracing::warn;

use super::{Content, Writeback};
use crate::cache::{File, Mark, Node};
use crate::session::lock;

/// How long acknowledged data may stay undurable, although nobody asks.
const PERIOD: Duration = Duration::from_millis(500);

impl Writeback {
    /// Makes durable what was acknowledged in some groups, and lets go of it here.
    ///
    /// # Errors
    /// Those of the call.
    pub async fn flush_groups(&self, groups: BTreeSet<GroupId>) -> Result<(), Errno> {
        if groups.is_empty() {
            return Ok(());
        }
        let upto = self.acks.load(Ordering::SeqCst);
        self.session.bulk().flush(groups, |verifiers| self.flushed(verifiers, upto)).await
    }

    /// What was acknowledged in these groups under these verifiers, up to a number, is durable.
    fn flushed(&self, verifiers: &[(GroupId, Verifier)], upto: u64) {
        let verifiers: BTreeMap<_, _> = verifiers.iter().copied().collect();
        let of = |group: GroupId| verifiers.get(&group).copied();
        let keepers = self.keepers();
        let any_lost = keepers.iter().any(|node| {
            let state = node.state();
            state.file.as_ref().is_some_and(|f| f.kept.tags().any(|m| may_be_lost(m, of)))
        });
        if any_lost {
            self.resend(of);
        }
        for node in keepers {
            self.edit(&node, |state| {
                if let Some(file) = &mut state.file {
                    file.kept.take_out(|m| of(m.group) != Some(m.verifier) || m.at > upto);
                }
            });
        }
        self.prune();
    }

    /// Groups have these verifiers now: what was acknowledged under earlier ones may be lost, and is dirty again.
    pub fn resend(&self, now: impl Fn(GroupId) -> Option<Verifier>) {
        self.resends.fetch_add(1, Ordering::SeqCst);
        for node in self.keepers() {
            let again = self.edit(&node, |state| {
                let Some(file) = &mut state.file else { return false };
                let lost = file.kept.take_out(|m| !may_be_lost(m, &now));
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

    /// How often something was found that may be lost. It moves before anything is asked of the servers by the map that
    /// says so.
    pub fn resends(&self) -> u64 {
        self.resends.load(Ordering::SeqCst)
    }

    /// Makes everything durable that an inode has at data servers.
    ///
    /// # Errors
    /// Those of the calls.
    pub async fn flush_node(&self, node: &Node) -> Result<(), Errno> {
        self.flush_groups(groups(node)).await
    }

    /// Makes everything durable on all data servers.
    ///
    /// # Errors
    /// Those of the calls.
    pub async fn flush_all(&self) -> Result<(), Errno> {
        self.flush_groups(self.kept_groups()).await
    }

    fn kept_groups(&self) -> BTreeSet<GroupId> {
        self.keepers().iter().flat_map(|n| groups(n)).collect()
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

/// The groups in which something of an inode was acknowledged which may not be durable.
fn groups(node: &Node) -> BTreeSet<GroupId> {
    let state = node.state();
    state.file.as_ref().map(|f| f.kept.tags().map(|m| m.group).collect()).unwrap_or_default()
}

/// Verifiers only grow.
fn may_be_lost(mark: &Mark, now: impl Fn(GroupId) -> Option<Verifier>) -> bool {
    now(mark.group).is_some_and(|now| mark.verifier < now)
}

/// Makes content dirty that is older than everything dirty or under way.
pub(super) fn requeue(file: &mut File, start: u64, content: &Content) {
    for (a, b) in file.dirty.gaps(start, start + content.len()) {
        for (x, y) in file.flying.gaps(a, b) {
            file.dirty.insert(x, content.part(x - start, y - start), ());
        }
    }
}

/// Flushes every [`PERIOD`] while something is kept, and at once while it is much. A group whose flush takes longer, because its
/// chain has no server perhaps, does not hold up the others: those are flushed without it, and it is not asked about twice.
pub(super) async fn attend(weak: Weak<Writeback>) {
    let mut began = false;
    loop {
        let Some(writeback) = weak.upgrade() else { return };
        if writeback.halted() {
            return;
        }
        let much = writeback.kept.load(Ordering::SeqCst) > writeback.limits.kept / 4;
        if !(much && began) {
            tokio::select! {
                () = writeback.flush_wanted.notified() => {}
                () = tokio::time::sleep(PERIOD) => {}
            }
        }
        let groups = writeback.begin_round();
        began = !groups.is_empty();
        if !began {
            continue;
        }
        let round = tokio::spawn(Arc::clone(&writeback).round(groups));
        if let Ok(Ok(Err(e))) = tokio::time::timeout(PERIOD * 2, round).await
            && !writeback.halted()
        {
            warn!(error = %e, "a data server cannot make its data durable");
            tokio::time::sleep(PERIOD).await;
        }
    }
}

impl Writeback {
    /// The groups to flush next: those with something kept that are not in a round yet.
    fn begin_round(&self) -> BTreeSet<GroupId> {
        let kept = self.kept_groups();
        let mut rounds = lock(&self.rounds);
        let groups: BTreeSet<_> = kept.difference(&rounds).copied().collect();
        rounds.extend(&groups);
        groups
    }

    async fn round(self: Arc<Self>, groups: BTreeSet<GroupId>) -> Result<(), Errno> {
        let upto = self.acks.load(Ordering::SeqCst);
        let mut rest = groups.clone();
        let flushed = |verifiers: &[(GroupId, Verifier)]| {
            self.flushed(verifiers, upto);
            for (group, _) in verifiers {
                rest.remove(group);
                lock(&self.rounds).remove(group);
            }
        };
        let outcome = self.session.bulk().flush(groups, flushed).await;
        // Those that have failed.
        lock(&self.rounds).retain(|group| !rest.contains(group));
        outcome
    }
}
