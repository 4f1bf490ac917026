//! Requests that wait, in the order in which they came.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use netfs_common::id::{Ino, SessionId};
use netfs_common::wire::lease::Lease;

use super::recalls::covers;
use super::{Access, RecallId, Ticket, Want};

/// How many wants a ticket remembers beyond those it was last asked with.
const MAX_FORMER_WANTS: usize = 64;

/// A request that waits.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) session: SessionId,
    /// What it keeps others from: what it asks for now, and has asked for.
    pub(super) wants: Vec<Want>,
    /// Answers that it still needs.
    pub(super) needs: BTreeSet<RecallId>,
    /// The holders have been called. In a grace period nobody is.
    pub(super) called: bool,
    /// It has been told to ask again.
    pub(super) ready: bool,
}

/// All requests of a volume that wait.
#[derive(Debug)]
pub(super) struct Queue {
    next: u64,
    waiting: BTreeMap<Ticket, Waiter>,
    /// Ascending.
    places: HashMap<Ino, Vec<Ticket>>,
}

impl Queue {
    pub(super) fn new() -> Queue {
        Queue { next: 1, waiting: BTreeMap::new(), places: HashMap::new() }
    }

    pub(super) fn enter(&mut self, session: SessionId, wants: &[Want]) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        let (needs, wants) = (BTreeSet::new(), wants.to_vec());
        wants.iter().for_each(|want| self.place(want.ino, ticket));
        self.waiting.insert(ticket, Waiter { session, wants, needs, called: false, ready: false });
        ticket
    }

    /// A ticket is asked with again. Returns what it now wants beyond what it wanted before.
    pub(super) fn widen(&mut self, ticket: Ticket, wants: &[Want]) -> Vec<Want> {
        let Some(waiter) = self.waiting.get_mut(&ticket) else { return Vec::new() };
        let known = |want: &Want| waiter.wants.iter().any(|w| includes(w, want));
        let fresh: Vec<_> = wants.iter().filter(|want| !known(want)).cloned().collect();
        if waiter.wants.len() + fresh.len() > wants.len() + MAX_FORMER_WANTS {
            // What it forgets others may have been shown by the time it wants that again.
            let former = std::mem::replace(&mut waiter.wants, wants.to_vec());
            former.iter().for_each(|want| self.unplace(want.ino, ticket));
            wants.iter().for_each(|want| self.place(want.ino, ticket));
            return wants.to_vec();
        }
        waiter.wants.extend(fresh.iter().cloned());
        fresh.iter().for_each(|want| self.place(want.ino, ticket));
        fresh
    }

    pub(super) fn leave(&mut self, ticket: Ticket) -> Option<Waiter> {
        let waiter = self.waiting.remove(&ticket)?;
        waiter.wants.iter().for_each(|want| self.unplace(want.ino, ticket));
        Some(waiter)
    }

    pub(super) fn get(&self, ticket: Ticket) -> Option<&Waiter> {
        self.waiting.get(&ticket)
    }

    pub(super) fn get_mut(&mut self, ticket: Ticket) -> Option<&mut Waiter> {
        self.waiting.get_mut(&ticket)
    }

    /// The tickets on an inode, in order.
    pub(super) fn on(&self, ino: Ino) -> &[Ticket] {
        self.places.get(&ino).map_or(&[], Vec::as_slice)
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn all(&self) -> Vec<Ticket> {
        self.waiting.keys().copied().collect()
    }

    pub(super) fn of(&self, session: SessionId) -> Vec<Ticket> {
        let own = self.waiting.iter().filter(|(_, waiter)| waiter.session == session);
        own.map(|(ticket, _)| *ticket).collect()
    }

    /// Tickets of others on an inode that keep a request from running: those that came before
    /// `ticket`, all without one.
    pub(super) fn before<'a>(
        &'a self,
        ticket: Option<Ticket>,
        session: SessionId,
        want: &'a Want,
    ) -> impl Iterator<Item = SessionId> + 'a {
        let earlier = self.on(want.ino).iter().filter(move |t| ticket.is_none_or(|own| **t < own));
        let others = earlier.filter_map(|t| self.waiting.get(t));
        let others = others.filter(move |w| w.session != session);
        others.filter(|w| w.wants.iter().any(|w| meet(w, want))).map(|w| w.session)
    }

    /// The most that a session may be given of an inode for which others wait. They know who they
    /// wait for, and would run without hearing of a newcomer.
    pub(super) fn limit(&self, session: SessionId, ino: Ino) -> Option<Lease> {
        let mut limit = Lease::Write;
        for waiter in self.on(ino).iter().filter_map(|t| self.waiting.get(t)) {
            if waiter.session != session {
                if waiter.wants.iter().any(|w| w.ino == ino && w.access != Access::Look) {
                    return None;
                }
                limit = Lease::Read;
            }
        }
        Some(limit)
    }

    fn place(&mut self, ino: Ino, ticket: Ticket) {
        let tickets = self.places.entry(ino).or_default();
        if let Err(at) = tickets.binary_search(&ticket) {
            tickets.insert(at, ticket);
        }
    }

    fn unplace(&mut self, ino: Ino, ticket: Ticket) {
        let Some(tickets) = self.places.get_mut(&ino) else { return };
        tickets.retain(|t| *t != ticket);
        if tickets.is_empty() {
            self.places.remove(&ino);
        }
    }
}

/// Whether two requests must run in the order in which they came.
fn meet(a: &Want, b: &Want) -> bool {
    let look = |want: &Want| want.access == Access::Look;
    let take = |want: &Want| want.access == Access::Take;
    a.ino == b.ino && !(look(a) && look(b)) && (take(a) || take(b) || a.scope.meets(&b.scope))
}

/// Whether who may do the first may do the second.
fn includes(all: &Want, part: &Want) -> bool {
    let scope = all.access == Access::Take || covers(&all.scope, &part.scope);
    all.ino == part.ino && all.access >= part.access && scope
}

#[cfg(test)]
impl Queue {
    /// Panics unless the places agree with the tickets.
    pub(super) fn check(&self) {
        for (ino, tickets) in &self.places {
            assert!(!tickets.is_empty() && tickets.is_sorted());
            for t in tickets {
                assert!(self.waiting[t].wants.iter().any(|w| w.ino == *ino));
            }
        }
        for (ticket, waiter) in &self.waiting {
            assert!(waiter.wants.iter().all(|w| self.on(w.ino).contains(ticket)));
        }
    }
}
