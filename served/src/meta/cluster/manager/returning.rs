//! Who goes on with a group of which nobody was there any more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use netfs_common::id::{Epoch, GroupId, ServerId};
use netfs_common::map::{Chain, Replica};

use super::{CommandError, Duty, Manager, Verdict};

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

    /// A server will not come back with what it had.
    pub(super) fn forget_server(&mut self, server: ServerId) {
        for servers in self.0.values_mut() {
            servers.remove(&server);
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

    /// Groups that a server is in no more, and which lack a replica since. After a start of the metadata server it is not known who was in them: then all
    /// that lack one count for a server that has not been heard.
    pub fn missed(&self, server: ServerId) -> usize {
        let heard = self.is_heard(server);
        let short = self.state.groups().filter(|(group, replicas, chain)| {
            let was_in = !heard || self.former.has(*group, server);
            was_in
                && !chain.replicas.is_empty()
                && chain.replicas.len() < *replicas
                && !chain.has(server)
        });
        short.count()
    }

    fn is_heard(&self, server: ServerId) -> bool {
        self.seen.get(&server).is_some_and(|seen| seen.at.is_some())
    }

    /// A server is to be forgotten.
    pub(super) fn remove(&mut self, now: Duration, id: ServerId) -> Result<(), CommandError> {
        if !self.state.servers.contains_key(&id) {
            return Err(CommandError::NoServer(id));
        }
        let groups = self.state.groups().filter(|(_, _, chain)| chain.has(id)).count();
        if groups > 0 {
            return Err(CommandError::InUse(id, groups));
        }
        let draining = self.state.servers.get(&id).is_some_and(|s| s.duty == Duty::Draining);
        // It has been drained, and brings nothing back.
        let is_done = draining && self.verdict(id, now) == Verdict::Alive;
        let missed = if self.is_heard(id) && !is_done { self.missed(id) } else { 0 };
        if missed > 0 && self.silence(id, now) < self.config.repair_after {
            return Err(CommandError::Awaited(id, missed));
        }
        self.state.servers.remove(&id);
        self.seen.remove(&id);
        Ok(())
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
