//! What people are shown of the table. Nothing in here changes it.

use std::time::Duration;

use netfs_common::id::{Ino, SessionId};
use netfs_common::wire::insight::MAX_SHOWN;
use netfs_common::wire::lease::Lease;

use super::{Leases, Ticket};

/// Of the sessions for which a request waits, so many are named.
pub const MAX_BLOCKERS: usize = 8;
/// And so many recalls and requests are looked at for that.
const MAX_LOOKED: usize = 64;

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
    /// For which sessions a ticket waits, some of them at least. It is asked for every request that waits, so what that
    /// takes must not grow with those that do.
    pub fn blockers(&self, ticket: Ticket) -> Vec<SessionId> {
        let Some(waiter) = self.queue.get(ticket) else { return Vec::new() };
        let called = waiter.needs.iter().filter_map(|id| self.recalls.get(*id)).map(|o| o.session);
        let ahead = waiter.wants.iter();
        let ahead = ahead.flat_map(|want| self.queue.before(Some(ticket), waiter.session, want));
        let mut blocking = Vec::new();
        for session in called.chain(ahead).take(MAX_LOOKED) {
            if !blocking.contains(&session) {
                blocking.push(session);
            }
            if blocking.len() >= MAX_BLOCKERS {
                break;
            }
        }
        blocking.sort_unstable();
        blocking
    }

    /// Who waits for an inode, in order, and for which sessions; the first [`MAX_SHOWN`].
    pub fn waiting(&self, ino: Ino) -> Vec<(Ticket, SessionId, Vec<SessionId>)> {
        let entry = |ticket: &Ticket| {
            let waiter = self.queue.get(*ticket)?;
            Some((*ticket, waiter.session, self.blockers(*ticket)))
        };
        self.queue.on(ino).iter().take(MAX_SHOWN).filter_map(entry).collect()
    }

    /// How many wait for an inode.
    pub fn waiting_count(&self, ino: Ino) -> usize {
        self.queue.on(ino).len()
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

    #[test]
    fn what_is_shown_does_not_grow_with_those_who_wait() {
        let at = Duration::from_millis;
        let ino = Ino(7);
        let want = [Want { ino, scope: Scope::all(), access: Access::Take }];
        let mut table = Leases::new(LeaseLimits::default());
        assert_eq!(table.ask(at(1), SessionId(0), &want, None), Asked::Go);
        table.grant(at(1), SessionId(0), ino, Lease::Write).unwrap();
        let mut last = None;
        for session in 1..=500 {
            last = Some(table.ask(at(2), SessionId(session), &want, None));
        }
        let Some(Asked::Wait(last)) = last else { panic!("{last:?}") };
        let named = table.blockers(last);
        assert_eq!((named.len(), named[0]), (MAX_BLOCKERS, SessionId(0)), "the holder first");
        assert_eq!((table.waiting(ino).len(), table.waiting_count(ino)), (MAX_SHOWN, 500));
    }
}
