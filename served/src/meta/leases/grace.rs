//! The time after a restart in which only those who had leases get them.

use std::collections::HashSet;

use netfs_common::id::SessionId;

/// The sessions that have not come back yet.
#[derive(Debug, Default)]
pub(super) struct Grace {
    absent: HashSet<SessionId>,
}

impl Grace {
    pub(super) fn begin(&mut self, sessions: &[SessionId]) {
        self.absent.extend(sessions);
    }

    pub(super) fn is_on(&self) -> bool {
        !self.absent.is_empty()
    }

    /// Who has not come back yet.
    pub(super) fn absent(&self) -> impl Iterator<Item = SessionId> + '_ {
        self.absent.iter().copied()
    }

    /// Whether a session may still claim what it had.
    pub(super) fn awaits(&self, session: SessionId) -> bool {
        self.absent.contains(&session)
    }

    /// A session has what it had, or will never come. True if it was the last.
    pub(super) fn strike(&mut self, session: SessionId) -> bool {
        self.absent.remove(&session) && self.absent.is_empty()
    }
}
