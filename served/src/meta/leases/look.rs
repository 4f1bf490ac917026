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

#[cfg(test)]
mod tests {
    use netfs_common::wire::lease::Scope;

    use super::super::{Access, Asked, LeaseLimits, Want};
    use super::*;

    #[test]
    fn who_is_waited_for_is_shown_until_it_has_answered() {
        let at = Duration::from_millis;
        let (a, b, ino) = (SessionId(1), SessionId(2), Ino(7));
        let want = |access| [Want { ino, scope: Scope::attrs(), access }];
        let mut table = Leases::new(LeaseLimits { min_hold: at(0), ..LeaseLimits::default() });
        assert_eq!(table.ask(at(1), a, &want(Access::Take), None), Asked::Go);
        table.grant(at(1), a, ino, Lease::Write).unwrap();
        let Asked::Wait(ticket) = table.ask(at(3), b, &want(Access::Look), None) else {
            panic!("it need not wait")
        };
        let asked = |sent| vec![Unanswered { session: a, keep: Some(Lease::Read), sent }];
        assert_eq!((table.blockers(ticket), table.unanswered(ino)), (vec![a], asked(None)));
        assert_eq!((table.tickets(), table.recalls(), table.count(a)), (1, 1, 1));
        let actions = table.poll(at(5));
        assert_eq!(table.unanswered(ino), asked(Some(at(3))));
        let [super::super::Action::Recall { id, .. }] = actions[..] else { panic!("{actions:?}") };
        table.answered(at(9), a, id);
        assert_eq!((table.blockers(ticket), table.unanswered(ino)), (vec![], vec![]));
        assert_eq!(table.ask(at(9), b, &want(Access::Look), Some(ticket)), Asked::Go);
        assert_eq!((table.tickets(), table.blockers(ticket)), (0, vec![]));
    }
}
