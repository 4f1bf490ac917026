//! Who goes on with a group of which nobody was there any more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use netfs_common::id::{Epoch, GroupId, ServerId};
use netfs_common::map::{Chain, Replica};

use super::Manager;

/// Groups that are not available, although a server with a replica of them is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// How many.
    pub groups: usize,
    /// Servers that may have everything, and are waited for.
    pub awaited: BTreeSet<ServerId>,
}

/// Servers that were replicas of groups until they were away, and have most of what these have. A server that is full learns nothing else: what it has begun to
/// learn and has no room for would only take the room of what it could learn.
#[derive(Debug, Default)]
pub(super) struct Former(BTreeMap<GroupId, BTreeSet<ServerId>>);

impl Former {
    pub(super) fn has(&self, group: GroupId, server: ServerId) -> bool {
        self.0.get(&group).is_some_and(|servers| servers.contains(&server))
    }

    /// A chain has lost those that are over.
    pub(super) fn note(&mut self, group: GroupId, before: &[Replica], after: &[Replica]) {
        let gone = before.iter().filter(|replica| !after.contains(replica));
        for replica in gone {
            self.0.entry(group).or_default().insert(replica.server);
        }
    }

    /// Groups that have all they should have need nobody back, and those that are not among them may be told to remove what they have.
    pub(super) fn forget(&mut self, settled: &BTreeMap<GroupId, (Epoch, Duration)>) {
        self.0.retain(|group, _| !settled.contains_key(group));
    }
}

impl Manager {
    /// Of the replicas of a chain that are over, the first that is back, with what it had flushed; the others get it from there. One whose disk has lost
    /// some of that lets the others go first, however long they are away: it goes on when all are back, and none has everything.
    pub(super) fn back(&self, chain: &Chain, now: Duration) -> Option<Replica> {
        let back: Vec<_> = chain.replicas.iter().map(|r| self.returned(r.server, now)).collect();
        let sound = back.iter().flatten().find(|replica| !self.lacks(replica.server));
        let first = || back.iter().copied().collect::<Option<Vec<_>>>()?.first().copied();
        sound.copied().or_else(first)
    }

    /// Whether a server's disk has lost something that had been flushed.
    pub(super) fn lacks(&self, server: ServerId) -> bool {
        let report = self.seen.get(&server).and_then(|seen| seen.report.as_ref());
        report.is_some_and(|report| report.lacks)
    }

    /// Groups that wait for others than the servers that are back with a part of what they had, by these.
    pub fn held(&self, now: Duration) -> BTreeMap<ServerId, Held> {
        let mut all: BTreeMap<ServerId, Held> = BTreeMap::new();
        for (_, _, chain) in self.state.groups() {
            if chain.replicas.iter().any(|replica| !self.is_over(*replica, now)) {
                continue;
            }
            let servers = || chain.replicas.iter().map(|replica| replica.server);
            let (back, away): (BTreeSet<_>, BTreeSet<_>) =
                servers().partition(|server| self.returned(*server, now).is_some());
            if self.back(chain, now).is_some() {
                continue;
            }
            for server in back {
                let held = all.entry(server).or_default();
                held.groups += 1;
                held.awaited.extend(&away);
            }
        }
        all
    }
}
