//! The lease table of one volume: who may keep what, who is called for it, who waits. A plain state
//! machine: the clock comes in, what is to be done comes out of [`Leases::poll`].
//!
//! A request names what it looks at or changes ([`Want`]) before it runs. If nobody's lease and no
//! earlier request stands against it, it runs at once. Otherwise holders are recalled, and it gets
//! a [`Ticket`]; when all have answered, and no ticket before it meets it, it may run. What its
//! answer shows can then be granted to its session.
//!
//! # Why nobody keeps what has become untrue
//!
//! A ticket settles whose answers it needs when it is first asked. Whoever comes to know something
//! of its scope later would not be among them. Nobody does:
//!
//! - A look that meets the scope waits behind the ticket.
//! - Requests that may run all the same (those of a session that holds `Write` and those of a
//!   session that has a ticket there itself) get no grant while it is there: the table gives
//!   nothing of an inode on which another session waits to change something, and not `Write` while
//!   another waits to look.
//! - One that has waited with a ticket before it does get its grant, and is called for the later
//!   ticket in the same moment.
//! - A holder that has something to drop is granted nothing of that inode until it has answered.
//!
//! For this the client must keep nothing of an answer without a grant, even if it still has `Read`
//! from before, and nothing that it asked for before it heard of a recall.
//!
//! # Why nobody waits for ever
//!
//! Tickets hold nothing but their place, and wait only for answers to recalls and for tickets with
//! lower numbers. So the one with the lowest number waits only for answers. To answer, a holder may
//! have to write back what it has changed. These requests name inodes that it holds for writing,
//! and such a request waits for no ticket; nor for a holder, since there is no other. So every
//! recall is answered, or its session ends and everything it has with it. As no ticket is ever
//! overtaken by one that meets it, each becomes the lowest in the end; and only tickets before it
//! add to what it waits for. Whoever has waited has the lease for a moment, however many wait
//! behind: a client that needs it to answer a program gets it with one request. A ticket whose owner does
//! not ask again stays in the way: [`Leases::cancel`] is for those who have gone. In a grace
//! period everything waits until the sessions of before have come or ended.
//!
//! # Bounds
//!
//! Leases are bounded by [`LeaseLimits::per_session`], tickets by the requests that the caller
//! admits, recalls by tickets and holders.

mod grace;
mod holdings;
mod look;
mod queue;
mod recalls;
mod tails;

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use netfs_common::id::{Ino, SessionId};
use netfs_common::wire::lease::{Grant, Lease, MAX_RECALLS, Recall, Scope};

use grace::Grace;
use holdings::{Holding, Holdings};
pub use look::{MAX_BLOCKERS, Unanswered};
use queue::Queue;
use recalls::Recalls;
use tails::Tails;

/// The most leases that are recalled at once because their session has too many.
const MAX_EVICTED: usize = 256;

/// How many such recalls may be unanswered before the session gets nothing new.
const MAX_EVICTIONS: usize = 4;

/// A request that waits. Ascending in the order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// A recall that was sent to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecallId(pub u64);

/// What a request does to an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Access {
    /// It shows something of it. Nobody may have changed that in secret.
    Look,
    /// It changes something. Others keep `Read`, but not what is changed.
    Change,
    /// Others keep nothing.
    Take,
}

/// What a request does to one inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// The inode.
    pub ino: Ino,
    /// What of it. With [`Access::Take`] everything.
    pub scope: Scope,
    /// And how.
    pub access: Access,
}

/// Bounds.
#[derive(Clone, Copy, Debug)]
pub struct LeaseLimits {
    /// How many leases a session may have. Each costs the server about a hundred bytes. A session
    /// at the limit loses those that it was given longest ago.
    pub per_session: usize,
    /// For how long `Write` is left to a session at least, so that two that write in turn get
    /// something done.
    pub min_hold: Duration,
}

impl Default for LeaseLimits {
    fn default() -> LeaseLimits {
        LeaseLimits { per_session: 1 << 20, min_hold: Duration::from_millis(1) }
    }
}

impl LeaseLimits {
    /// How many leases are recalled at once when there are too many.
    fn eviction(&self) -> usize {
        (self.per_session / 64).clamp(1, MAX_EVICTED)
    }

    /// How many a session can have, with those that are being recalled.
    fn most(&self) -> usize {
        self.per_session + MAX_EVICTIONS * self.eviction()
    }
}

/// Whether a request may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// At once, before anything else happens to the table.
    Go,
    /// When [`Action::Ready`] comes, it is to ask again.
    Wait(Ticket),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// To send this to a session, which says when it has done it ([`Leases::answered`]).
    Recall {
        /// Who is called.
        session: SessionId,
        /// What to answer with.
        id: RecallId,
        /// What it must give back.
        recalls: Vec<Recall>,
    },
    /// To let the request with this ticket ask again.
    Ready(Ticket),
}

/// The leases of a volume.
///
/// Times are durations on one monotonic clock of the caller's choice. Sessions are those that the
/// caller says there are: it calls [`Leases::end`] when one is over. Tickets and recalls that are
/// not known any more are ignored.
#[derive(Debug)]
pub struct Leases {
    limits: LeaseLimits,
    holdings: Holdings,
    recalls: Recalls,
    queue: Queue,
    grace: Grace,
    tails: Tails,
    ready: Vec<Ticket>,
    /// Whose request was told to go last, if it has waited.
    turn: Option<(SessionId, Ticket)>,
}

impl Leases {
    /// No leases yet.
    pub fn new(limits: LeaseLimits) -> Leases {
        Leases {
            limits,
            holdings: Holdings::new(),
            recalls: Recalls::new(),
            queue: Queue::new(),
            grace: Grace::default(),
            tails: Tails::default(),
            ready: Vec::new(),
            turn: None,
        }
    }

    /// A request wants to run, for the first time or again with the ticket that it got. What it
    /// wants may have changed meanwhile. After [`Asked::Go`] the ticket is used up. With a ticket
    /// that is not known, or another session's, it comes last like a new one.
    pub fn ask(
        &mut self,
        now: Duration,
        session: SessionId,
        wants: &[Want],
        ticket: Option<Ticket>,
    ) -> Asked {
        self.turn = None;
        let own = |t: &Ticket| self.queue.get(*t).is_some_and(|w| w.session == session);
        let Some(ticket) = ticket.filter(own) else {
            if self.is_free(session, wants) {
                return Asked::Go;
            }
            let ticket = self.queue.enter(session, wants);
            self.call(now, ticket, wants);
            return Asked::Wait(ticket);
        };
        let fresh = self.queue.widen(ticket, wants);
        if self.queue.get(ticket).is_some_and(|w| w.called) {
            self.call(now, ticket, &fresh);
        }
        if self.may_go(ticket) {
            self.leave(ticket);
            self.turn = Some((session, ticket));
            return Asked::Go;
        }
        if let Some(waiter) = self.queue.get_mut(ticket) {
            waiter.ready = false;
        }
        Asked::Wait(ticket)
    }

    /// Whoever waited with a ticket has gone.
    pub fn cancel(&mut self, _now: Duration, ticket: Ticket) {
        self.leave(ticket);
    }

    /// A session has done what a recall says: what it had changed has been sent and answered, what
    /// has become untrue is dropped.
    pub fn answered(&mut self, _now: Duration, session: SessionId, id: RecallId) {
        if !self.recalls.was_sent(session, id) {
            return;
        }
        for recall in self.recalls.get(id).map(|o| o.recalls.clone()).unwrap_or_default() {
            if self.holdings.lower(session, recall.ino, recall.keep) == Some(Lease::Write) {
                self.tails.insert(recall.ino);
            }
        }
        self.complete(id);
    }

    /// After a request that was told to go: its session is to have a lease for what the answer
    /// shows. Returns what it may be told, which is never less than it has unless that is being
    /// recalled; nothing if it may not be given.
    pub fn grant(
        &mut self,
        now: Duration,
        session: SessionId,
        ino: Ino,
        lease: Lease,
    ) -> Option<Grant> {
        if self.grace.is_on() {
            return None;
        }
        let limit = self.recalls.limit(session, ino)?;
        let had = self.holdings.get(session, ino);
        let behind = self.behind_turn(session, ino);
        let limit = match behind {
            Some(_) => limit,
            None => limit.min(self.queue.limit(session, ino)?),
        };
        if had < Some(lease) {
            let fits = lease <= limit && !self.is_against(session, ino, lease);
            if !fits || (had.is_none() && !self.make_room(now, session, ino)) {
                return None;
            }
        }
        let lease = had.map_or(lease, |had| had.max(lease));
        if !self.holdings.give(session, ino, lease, now) {
            return None;
        }
        let behind = behind.unwrap_or_default();
        for ticket in &behind {
            self.call_back(now, *ticket, session, ino);
        }
        if !behind.is_empty() && lease == Lease::Write {
            // Its other requests wait for nobody now.
            let on = self.queue.on(ino).to_vec();
            self.settle(&on);
        }
        Some(self.tell(ino, lease.min(limit)))
    }

    /// The tickets of others on an inode, if all came after that of the session's request, which has just been told to go.
    fn behind_turn(&self, session: SessionId, ino: Ino) -> Option<Vec<Ticket>> {
        let (_, turn) = self.turn.filter(|(of, _)| *of == session)?;
        let others = self.queue.on(ino).iter().copied();
        let others = others.filter(|t| self.queue.get(*t).is_some_and(|w| w.session != session));
        let others: Vec<_> = others.collect();
        others.iter().all(|t| *t > turn).then_some(others)
    }

    /// Has a session give back what it was given in its turn, for one that waits behind.
    fn call_back(&mut self, now: Duration, ticket: Ticket, session: SessionId, ino: Ino) {
        let (Some(held), Some(waiter)) =
            (self.holdings.get(session, ino), self.queue.get_mut(ticket))
        else {
            return;
        };
        let wants = waiter.wants.iter().filter(|w| w.ino == ino);
        for (keep, stale) in wants.filter_map(|want| demand(want, held)) {
            let id = self.recalls.join(session, ino, keep, &stale, ticket);
            let id = id.unwrap_or_else(|| {
                let send_at = now.saturating_add(self.limits.min_hold);
                let recalls = vec![Recall { ino, keep, stale }];
                self.recalls.add(session, recalls, Some(ticket), send_at)
            });
            waiter.needs.insert(id);
        }
    }

    /// All that data servers have of a file has been reported: it was just made, its tail was just
    /// cut, or whoever wrote to it without a lease has reported that.
    pub fn wrote_in_order(&mut self, ino: Ino) {
        self.tails.insert(ino);
    }

    /// A session is over, with all it had and waited for.
    pub fn end(&mut self, now: Duration, session: SessionId) {
        for ino in self.holdings.end(session) {
            self.tails.remove(ino);
        }
        for ticket in self.queue.of(session) {
            self.leave(ticket);
        }
        for id in self.recalls.of(session) {
            self.complete(id);
        }
        if self.grace.strike(session) {
            self.end_grace(now);
        }
    }

    /// What is to be done since the last time.
    pub fn poll(&mut self, now: Duration) -> Vec<Action> {
        let due = self.recalls.due(now).into_iter();
        let calls = due.map(|(session, id, recalls)| Action::Recall { session, id, recalls });
        calls.chain(self.ready.drain(..).map(Action::Ready)).collect()
    }

    /// When [`Leases::poll`] has something to do though nothing happens.
    pub fn wake_at(&self) -> Option<Duration> {
        self.recalls.next_due()
    }

    /// What a session was told to give back and has not: to be sent again over a new connection.
    pub fn outstanding(&self, session: SessionId) -> Vec<(RecallId, Vec<Recall>)> {
        self.recalls.sent_to(session)
    }

    /// The server has restarted: until these sessions have come back or ended nobody gets anything
    /// else. Requests run only on what their session has claimed for writing.
    pub fn begin_grace(&mut self, sessions: &[SessionId]) {
        self.grace.begin(sessions);
    }

    /// A session that is waited for claims what it had. Returns what it has now, which is all it
    /// could have had: what it holds for writing it may not have sent. One that is no longer waited
    /// for may not have got the answer: it is told again what it was given then and has still.
    pub fn reclaim(
        &mut self,
        now: Duration,
        session: SessionId,
        leases: &[(Ino, Lease)],
    ) -> Vec<Grant> {
        let mut grants = Vec::new();
        if !self.grace.awaits(session) {
            let has = |(ino, lease): &(Ino, Lease)| {
                let held = self.holdings.get(session, *ino).filter(|held| held >= lease)?;
                Some(self.tell(*ino, held))
            };
            return leases.iter().filter_map(has).collect();
        }
        for (ino, lease) in leases {
            let had = self.holdings.get(session, *ino);
            let room = had.is_some() || self.holdings.count(session).0 < self.limits.most();
            if room
                && !self.is_against(session, *ino, *lease)
                && self.holdings.give(session, *ino, *lease, now)
            {
                let lease = had.map_or(*lease, |had| had.max(*lease));
                grants.push(self.tell(*ino, lease));
            }
        }
        let waiting = self.queue.of(session);
        self.settle(&waiting);
        grants
    }

    /// A session has claimed all it had.
    pub fn reclaimed(&mut self, now: Duration, session: SessionId) {
        if self.grace.strike(session) {
            self.end_grace(now);
        }
    }

    /// Whether sessions of before a restart are still waited for.
    pub fn in_grace(&self) -> bool {
        self.grace.is_on()
    }

    /// Which sessions of before a restart are still waited for.
    pub fn absent(&self) -> impl Iterator<Item = SessionId> + '_ {
        self.grace.absent()
    }

    /// Who holds an inode.
    pub fn holders(&self, ino: Ino) -> Vec<(SessionId, Lease)> {
        self.holdings.holders(ino).map(|h| (h.session, h.lease)).collect()
    }

    /// How many leases there are.
    pub fn len(&self) -> usize {
        self.holdings.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn has_write(&self, session: SessionId, ino: Ino) -> bool {
        self.holdings.get(session, ino) == Some(Lease::Write)
    }

    /// Whether a lease cannot be given because of those of others.
    fn is_against(&self, session: SessionId, ino: Ino, lease: Lease) -> bool {
        let both_read = |h: &Holding| h.lease == Lease::Read && lease == Lease::Read;
        self.holdings.holders(ino).any(|h| h.session != session && !both_read(&h))
    }

    fn tell(&self, ino: Ino, lease: Lease) -> Grant {
        Grant { ino, lease, tail_known: lease == Lease::Write && self.tails.contains(ino) }
    }

    /// Whether a request may run that has no ticket.
    pub fn is_free(&self, session: SessionId, wants: &[Want]) -> bool {
        wants.iter().all(|want| {
            if self.grace.is_on() {
                return self.has_write(session, want.ino);
            }
            let against = |h: Holding| h.session != session && demand(want, h.lease).is_some();
            !self.holdings.holders(want.ino).any(against) && !self.is_behind(None, session, want)
        })
    }

    /// Whether a request that waits may run.
    fn may_go(&self, ticket: Ticket) -> bool {
        let Some(waiter) = self.queue.get(ticket) else { return false };
        if self.grace.is_on() {
            return waiter.wants.iter().all(|want| self.has_write(waiter.session, want.ino));
        }
        let behind = |want: &Want| self.is_behind(Some(ticket), waiter.session, want);
        waiter.called && waiter.needs.is_empty() && !waiter.wants.iter().any(behind)
    }

    /// Whether a request has to wait for those before it: never for what its session holds for
    /// writing, since it is that which they wait for.
    fn is_behind(&self, ticket: Option<Ticket>, session: SessionId, want: &Want) -> bool {
        !self.queue.on(want.ino).is_empty()
            && !self.has_write(session, want.ino)
            && self.queue.before(ticket, session, want).next().is_some()
    }

    /// Recalls whatever stands against a ticket. In a grace period that has to wait.
    fn call(&mut self, now: Duration, ticket: Ticket, wants: &[Want]) {
        let Some(waiter) = self.queue.get_mut(ticket).filter(|_| !self.grace.is_on()) else {
            return;
        };
        waiter.called = true;
        let mut calls: BTreeMap<SessionId, (Duration, Vec<Recall>)> = BTreeMap::new();
        for want in wants {
            for h in self.holdings.holders(want.ino).filter(|h| h.session != waiter.session) {
                let Some((keep, stale)) = demand(want, h.lease) else { continue };
                if let Some(id) = self.recalls.join(h.session, h.ino, keep, &stale, ticket) {
                    waiter.needs.insert(id);
                    continue;
                }
                let (send_at, recalls) = calls.entry(h.session).or_insert((now, Vec::new()));
                *send_at = (*send_at).max(earliest(&self.limits, &h));
                recalls.push(Recall { ino: h.ino, keep, stale });
            }
        }
        for (holder, (send_at, recalls)) in calls {
            for part in recalls.chunks(MAX_RECALLS) {
                waiter.needs.insert(self.recalls.add(holder, part.to_vec(), Some(ticket), send_at));
            }
        }
        self.settle(&[ticket]);
    }

    /// Sees to it that a session can have one more lease, by recalling old ones if need be.
    fn make_room(&mut self, now: Duration, session: SessionId, ino: Ino) -> bool {
        let (count, evicting) = self.holdings.count(session);
        if count - evicting < self.limits.per_session {
            return true;
        }
        let most = self.limits.eviction();
        if evicting + most > MAX_EVICTIONS * most {
            return false;
        }
        let old = self.holdings.evict(session, most, ino);
        let send_at = old.iter().map(|h| earliest(&self.limits, h)).fold(now, Duration::max);
        let recall = |h: &Holding| Recall { ino: h.ino, keep: None, stale: Scope::all() };
        let recalls: Vec<_> = old.iter().map(recall).collect();
        if recalls.is_empty() {
            return false;
        }
        self.recalls.add(session, recalls, None, send_at);
        true
    }

    /// Nobody has to wait for a recall any more.
    fn complete(&mut self, id: RecallId) {
        let Some(done) = self.recalls.remove(id) else { return };
        for ticket in &done.waiters {
            if let Some(waiter) = self.queue.get_mut(*ticket) {
                waiter.needs.remove(&id);
            }
        }
        self.settle(&done.waiters);
    }

    /// A ticket is used up, or nobody's any more.
    fn leave(&mut self, ticket: Ticket) {
        let Some(waiter) = self.queue.leave(ticket) else { return };
        for id in waiter.needs {
            self.recalls.leave(id, ticket);
        }
        for want in &waiter.wants {
            let behind = self.queue.on(want.ino).to_vec();
            self.settle(&behind);
        }
    }

    /// Tells those of the tickets that may run now, once.
    fn settle(&mut self, tickets: &[Ticket]) {
        for ticket in tickets {
            let told = self.queue.get(*ticket).is_none_or(|w| w.ready);
            if !told && self.may_go(*ticket) {
                self.ready.push(*ticket);
                if let Some(waiter) = self.queue.get_mut(*ticket) {
                    waiter.ready = true;
                }
            }
        }
    }

    fn end_grace(&mut self, now: Duration) {
        for ticket in self.queue.all() {
            let wants = match self.queue.get(ticket) {
                Some(waiter) if !waiter.called => waiter.wants.clone(),
                _ => Vec::new(),
            };
            self.call(now, ticket, &wants);
        }
    }
}

/// What a request demands of another's lease: what that one may keep, and what becomes untrue.
fn demand(want: &Want, held: Lease) -> Option<(Option<Lease>, Scope)> {
    match (want.access, held) {
        (Access::Look, Lease::Read) => None,
        (Access::Look, Lease::Write) => Some((Some(Lease::Read), Scope::default())),
        (Access::Change, _) => Some((Some(Lease::Read), want.scope.clone())),
        (Access::Take, _) => Some((None, Scope::all())),
    }
}

/// When a lease may be recalled.
fn earliest(limits: &LeaseLimits, held: &Holding) -> Duration {
    match held.lease {
        Lease::Read => Duration::ZERO,
        Lease::Write => held.since.saturating_add(limits.min_hold),
    }
}

#[cfg(test)]
impl Leases {
    /// Panics unless everything in here agrees.
    fn check(&self) {
        self.holdings.check();
        self.recalls.check();
        self.queue.check();
        for ticket in self.queue.all() {
            let waiter = self.queue.get(ticket).unwrap();
            for id in &waiter.needs {
                assert!(self.recalls.get(*id).unwrap().waiters.contains(&ticket));
            }
            assert!(waiter.ready || !self.may_go(ticket), "{ticket:?} was not told");
            assert!(waiter.called || self.grace.is_on(), "nobody was called for {ticket:?}");
        }
        for id in self.recalls.ids() {
            let entry = self.recalls.get(id).unwrap();
            for ticket in &entry.waiters {
                assert!(self.queue.get(*ticket).unwrap().needs.contains(&id));
            }
            let (count, evicting) = self.holdings.count(entry.session);
            // A session that was above when the server was restarted has claimed it all.
            assert!(count - evicting <= self.limits.most());
        }
    }
}
