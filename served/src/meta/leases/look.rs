//! What people are shown of the table. Nothing in here changes it.

use std::time::Duration;

use netfs_common::id::{Ino, SessionId};
use netfs_common::wire::lease::Lease;

use super::{Leases, Ticket};

/// A recall that has no answer yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unanswered {
    /// Who is asked.
    pub session: SessionId,
    /// What it may keep.
    pub keep: Option<Lease>,
    /// When it was sent; `None`: it is about to be.
    pub sent: Option<Duration>,
}

impl Leases {
    /// For which sessions a ticket waits.
    pub fn blockers(&self, ticket: Ticket) -> Vec<SessionId> {
        let Some(waiter) = self.queue.get(ticket) else { return Vec::new() };
        let called = waiter.needs.iter().filter_map(|id| self.recalls.get(*id));
        let mut blocking: Vec<_> = called.map(|o| o.session).collect();
        for want in &waiter.wants {
            blocking.extend(self.queue.before(Some(ticket), waiter.session, want));
        }
        blocking.sort_unstable();
        blocking.dedup();
        blocking
    }

    /// Recalls of an inode that wait for their answer.
    pub fn unanswered(&self, ino: Ino) -> Vec<Unanswered> {
        let holders = self.holdings.holders(ino);
        holders.flat_map(|h| self.recalls.on(h.session, ino)).collect()
    }

    /// How many recalls of the volume wait for their answer.
    pub fn recalls(&self) -> usize {
        self.recalls.len()
    }

    /// How many requests wait.
    pub fn tickets(&self) -> usize {
        self.queue.len()
    }

    /// How many leases a session has.
    pub fn count(&self, session: SessionId) -> usize {
        self.holdings.count(session).0
    }

    /// How many leases a session may have.
    pub fn per_session(&self) -> usize {
        self.limits.per_session
    }
}
