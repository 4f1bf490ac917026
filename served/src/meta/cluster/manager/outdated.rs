//! The state may be an older copy: an operator has brought it back. Nobody hears of a version of the map before it is stored, so a server that goes by a
//! later one than there is proves it. By such a state, servers that have had everything since are strangers, and others that have nothing
//! left are replicas. So nothing is decided by it as long as such servers answer.

use std::collections::BTreeMap;
use std::time::Duration;

use netfs_common::id::{Epoch, ServerId};

use super::Manager;

/// Who goes by a later map than there is.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// Its version, and when they have last said so.
    servers: BTreeMap<ServerId, (Epoch, Duration)>,
    /// Since when there are any.
    since: Option<Duration>,
}

impl Manager {
    /// Servers that go by a later map than there is, and its version.
    pub fn ahead(&self) -> BTreeMap<ServerId, Epoch> {
        self.ahead.servers.iter().map(|(id, (version, _))| (*id, *version)).collect()
    }

    /// A server goes by this version of the map.
    pub(super) fn note_version(&mut self, server: ServerId, version: Epoch, now: Duration) {
        match version > self.state.version {
            true => drop(self.ahead.servers.insert(server, (version, now))),
            false => drop(self.ahead.servers.remove(&server)),
        }
    }

    /// Whether servers that answer go by a later map than there is. When that is over, all have as long to be heard as after a standstill: what they
    /// said meanwhile was not listened to.
    pub(super) fn is_frozen(&mut self, now: Duration) -> bool {
        let deadline = self.config.deadline;
        self.ahead.servers.retain(|_, (_, said)| now.saturating_sub(*said) < deadline);
        if !self.ahead.servers.is_empty() {
            self.ahead.since.get_or_insert(now);
            return true;
        }
        if let Some(since) = self.ahead.since.take() {
            self.everybody_heard(since, now);
        }
        false
    }
}
