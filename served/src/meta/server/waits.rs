//! Which requests wait for leases, since when and for whom; and which have waited lately. For people: nothing is decided by it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use netfs_common::id::{Ino, SessionId};
use netfs_common::wire::insight::Wish;

use crate::meta::leases::{Access, Ticket, Want};

/// So many requests that have waited are remembered.
const MAX_PAST: usize = 1024;
/// So many inodes of each.
const MAX_INOS: usize = 4;

/// A request that waits, or has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) session: SessionId,
    pub(super) wants: Vec<(Ino, Wish)>,
    /// For whom, at the beginning.
    pub(super) on: Vec<SessionId>,
    pub(super) since: Duration,
}

impl Waiting {
    /// What it wants of an inode.
    pub(super) fn wish(&self, ino: Ino) -> Option<Wish> {
        self.wants.iter().find(|(i, _)| *i == ino).map(|(_, wish)| *wish)
    }
}

/// One that has waited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Past {
    pub(super) request: Waiting,
    pub(super) until: Duration,
    /// It was let through.
    pub(super) served: bool,
}

/// Times are on the clock of the leases.
#[derive(Debug, Default)]
pub(super) struct Waits(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// One for each ticket.
    open: HashMap<Ticket, Waiting>,
    /// The latest last.
    past: VecDeque<Past>,
}

impl Waits {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request begins to wait, or waits on: then it had a ticket, which may be another now.
    pub(super) fn enter(
        &self,
        now: Duration,
        had: Option<Ticket>,
        ticket: Ticket,
        session: SessionId,
        wants: &[Want],
        on: Vec<SessionId>,
    ) {
        let mut inner = self.lock();
        let before = had.and_then(|t| inner.open.remove(&t));
        let wants = wants.iter().take(MAX_INOS).map(|w| (w.ino, wish(w.access))).collect();
        let (since, on) = match before {
            Some(before) if on.is_empty() => (before.since, before.on),
            Some(before) => (before.since, on),
            None => (now, on),
        };
        inner.open.insert(ticket, Waiting { session, wants, on, since });
    }

    /// It runs, or nobody waits for it any more. Returns for how long it has waited.
    pub(super) fn leave(&self, now: Duration, ticket: Ticket, served: bool) -> Option<Duration> {
        let mut inner = self.lock();
        let request = inner.open.remove(&ticket)?;
        let waited = now.saturating_sub(request.since);
        if inner.past.len() >= MAX_PAST {
            inner.past.pop_front();
        }
        inner.past.push_back(Past { request, until: now, served });
        Some(waited)
    }

    /// Who waits with a ticket.
    pub(super) fn of(&self, ticket: Ticket) -> Option<Waiting> {
        self.lock().open.get(&ticket).cloned()
    }

    /// Who has waited for an inode lately, the latest first.
    pub(super) fn past(&self, ino: Ino, limit: usize) -> Vec<Past> {
        let inner = self.lock();
        let on_it = inner.past.iter().rev().filter(|p| p.request.wish(ino).is_some());
        on_it.take(limit).cloned().collect()
    }
}

fn wish(access: Access) -> Wish {
    match access {
        Access::Look => Wish::Look,
        Access::Change => Wish::Change,
        Access::Take => Wish::Take,
    }
}

#[cfg(test)]
mod tests {
    use netfs_common::wire::lease::Scope;

    use super::*;

    const A: SessionId = SessionId(1);
    const B: SessionId = SessionId(2);

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn want(ino: u64) -> Vec<Want> {
        vec![Want { ino: Ino(ino), scope: Scope::all(), access: Access::Take }]
    }

    #[test]
    fn a_request_that_asks_again_has_waited_all_the_time() {
        let waits = Waits::default();
        waits.enter(at(5), None, Ticket(1), A, &want(7), vec![B]);
        waits.enter(at(8), Some(Ticket(1)), Ticket(3), A, &want(7), vec![]);
        assert_eq!(waits.of(Ticket(1)), None);
        let found = waits.of(Ticket(3)).unwrap();
        assert_eq!(
            (found.since, found.on.clone(), found.wish(Ino(7))),
            (at(5), vec![B], Some(Wish::Take))
        );
        assert_eq!(waits.leave(at(25), Ticket(3), true), Some(at(20)));
        assert_eq!(waits.leave(at(25), Ticket(3), true), None);
        let past = waits.past(Ino(7), 10);
        assert_eq!((past.len(), past[0].until, past[0].served), (1, at(25), true));
        assert_eq!(waits.past(Ino(8), 10), []);
    }

    #[test]
    fn the_past_is_bounded_and_the_latest_comes_first() {
        let waits = Waits::default();
        for i in 0..MAX_PAST as u64 + 10 {
            waits.enter(at(i), None, Ticket(i), A, &want(7), vec![B]);
            waits.leave(at(i + 1), Ticket(i), false);
        }
        let past = waits.past(Ino(7), usize::MAX);
        assert_eq!(past.len(), MAX_PAST);
        assert_eq!(past[0].request.since, at(MAX_PAST as u64 + 9));
        assert!(waits.lock().open.is_empty());
    }
}
