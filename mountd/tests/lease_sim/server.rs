//! The metadata server: the real table of leases and the real terms around a namespace of versions.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use netfs_common::id::SessionId;
use netfs_common::wire::lease::{Grant, Lease, Scope};
use netfs_served::meta::leases::{Access, Action, Asked, LeaseLimits, Leases, Ticket, Want};
use netfs_served::meta::sessions::Sessions;

use super::model::*;
use super::oracle::Oracle;

/// What is in the log.
#[derive(Clone, Default)]
struct Stored {
    values: Values,
    replies: BTreeMap<(SessionId, u64), Answer>,
}

struct Pending {
    via: Via,
    number: u64,
    request: Request,
}

pub(crate) struct Server {
    mutant: Option<Mutant>,
    /// Raised with each start.
    pub(crate) instance: u64,
    leases: Leases,
    sessions: Sessions,
    conns: HashMap<SessionId, Via>,
    pending: BTreeMap<Ticket, Pending>,
    stored: Stored,
    /// What a power failure leaves, with the changes in it.
    durable: (Stored, HashSet<u64>),
    /// Sessions are entered and ended durably.
    known: BTreeSet<SessionId>,
    pub(crate) out: Vec<(Via, ToClient)>,
    /// Sessions that were just ended, and what there was then.
    pub(crate) ended: Vec<(SessionId, Values)>,
}

fn tables(mutant: Option<Mutant>) -> (Leases, Sessions) {
    let limits = LeaseLimits { per_session: 4, min_hold: Duration::from_millis(3) };
    let term = if mutant == Some(Mutant::ExpiresEarly) { TERM / 2 } else { TERM };
    (Leases::new(limits), Sessions::new(term))
}

impl Server {
    pub(crate) fn new(mutant: Option<Mutant>) -> Server {
        let (leases, sessions) = tables(mutant);
        Server {
            mutant,
            instance: 1,
            leases,
            sessions,
            conns: HashMap::new(),
            pending: BTreeMap::new(),
            stored: Stored::default(),
            durable: Default::default(),
            known: BTreeSet::new(),
            out: Vec::new(),
            ended: Vec::new(),
        }
    }

    pub(crate) fn values(&self) -> &Values {
        &self.stored.values
    }

    pub(crate) fn knows(&self, session: SessionId) -> bool {
        self.known.contains(&session)
    }

    pub(crate) fn wake_at(&self) -> Option<Duration> {
        self.leases.wake_at()
    }

    pub(crate) fn describe(&self) -> String {
        let waiting = (0..INOS as u64).map(|i| self.leases.waiting(netfs_common::id::Ino(i)));
        let waiting: Vec<_> = waiting.filter(|w| !w.is_empty()).collect();
        format!("grace {} waiting {waiting:?}", self.leases.in_grace())
    }

    /// Starts again. What was not durable is gone if the power was.
    pub(crate) fn restart(&mut self, now: Duration, power: bool, oracle: &mut Oracle) {
        self.instance += 1;
        if power {
            self.stored = self.durable.0.clone();
        } else {
            self.durable = (self.stored.clone(), oracle.all_made());
        }
        (self.leases, self.sessions) = tables(self.mutant);
        self.conns.clear();
        self.pending.clear();
        for session in &self.known {
            self.sessions.seen(*session, now);
        }
        if self.mutant != Some(Mutant::GrantsDuringGrace) {
            self.leases.begin_grace(&self.known.iter().copied().collect::<Vec<_>>());
        }
        oracle.in_grace = self.leases.in_grace();
    }

    /// The changes that a power failure would leave.
    pub(crate) fn durable_changes(&self) -> HashSet<u64> {
        self.durable.1.clone()
    }

    pub(crate) fn receive(
        &mut self,
        now: Duration,
        via: Via,
        message: ToServer,
        oracle: &mut Oracle,
    ) {
        let known = self.knows(via.session);
        let current = self.conns.get(&via.session) == Some(&via);
        match message {
            ToServer::Hello { new, sent } => self.hello(now, via, new, sent),
            ToServer::Renew { sent } if known && current => {
                self.sessions.seen(via.session, now);
                self.out.push((via, ToClient::Renewed { sent }));
            }
            ToServer::Call(number, request) => {
                // What carries data has a connection of its own, and may come late.
                let flush = matches!(&request, Request::Change(c) if matches!(c.kind, ChangeKind::Flush(_)));
                if known && (current || flush) {
                    self.run(now, Pending { via, number, request }, None, oracle);
                } else if let Request::Change(change) = request
                    && flush
                    && self.mutant == Some(Mutant::AppliesExpired)
                {
                    self.apply(&change, oracle);
                }
            }
            ToServer::Answered(id) if known && current => {
                self.leases.answered(now, via.session, id);
            }
            ToServer::Renew { .. } | ToServer::Answered(_) => {}
        }
        self.settle(now, oracle);
    }

    /// Time passes.
    pub(crate) fn tick(&mut self, now: Duration, flush: bool, oracle: &mut Oracle) {
        for session in self.sessions.expired(now) {
            self.known.remove(&session);
            self.sessions.remove(session);
            self.conns.remove(&session);
            self.pending.retain(|_, p| p.via.session != session);
            self.leases.end(now, session);
            self.ended.push((session, self.stored.values));
        }
        if flush {
            self.sync(oracle);
        }
        self.settle(now, oracle);
    }

    fn sync(&mut self, oracle: &Oracle) {
        self.durable = (self.stored.clone(), oracle.all_made());
    }

    fn hello(&mut self, now: Duration, via: Via, new: bool, sent: Duration) {
        let before = self.conns.get(&via.session).map_or(0, |v| v.conn);
        if before >= via.conn {
            return;
        }
        if new {
            self.known.insert(via.session);
        }
        let (known, instance) = (self.knows(via.session), self.instance);
        self.out.push((via, ToClient::Welcome { known, instance, sent }));
        if !known {
            return;
        }
        self.sessions.seen(via.session, now);
        self.conns.insert(via.session, via);
        let of = |p: &Pending| p.via.session == via.session;
        let gone: Vec<_> = self.pending.iter().filter(|(_, p)| of(p)).map(|(t, _)| *t).collect();
        for ticket in gone {
            self.pending.remove(&ticket);
            self.leases.cancel(now, ticket);
        }
        for (id, recalls) in self.leases.outstanding(via.session) {
            self.out.push((via, ToClient::Recall(id, recalls)));
        }
    }

    fn settle(&mut self, now: Duration, oracle: &mut Oracle) {
        loop {
            let actions = self.leases.poll(now);
            if actions.is_empty() {
                break;
            }
            for action in actions {
                match action {
                    Action::Recall { session, id, recalls } => {
                        if let Some(via) = self.conns.get(&session) {
                            self.out.push((*via, ToClient::Recall(id, recalls)));
                        }
                    }
                    Action::Ready(ticket) => {
                        if let Some(pending) = self.pending.remove(&ticket) {
                            self.run(now, pending, Some(ticket), oracle);
                        }
                    }
                }
            }
        }
        oracle.in_grace = self.leases.in_grace();
    }

    fn answer(&mut self, to: &Pending, answer: Answer) {
        if let Some(via) = self.conns.get(&to.via.session) {
            self.out.push((*via, ToClient::Answer(to.number, answer)));
        }
    }

    fn run(
        &mut self,
        now: Duration,
        pending: Pending,
        ticket: Option<Ticket>,
        oracle: &mut Oracle,
    ) {
        let session = pending.via.session;
        let mut answer = Answer { shown: Vec::new(), made: true, grants: Vec::new() };
        let wants = match &pending.request {
            Request::Reclaim { leases } => {
                answer.grants = self.leases.reclaim(now, session, leases);
                self.leases.reclaimed(now, session);
                return self.answer(&pending, answer);
            }
            Request::Sync => {
                if self.mutant != Some(Mutant::SyncsNothing) {
                    self.sync(oracle);
                }
                return self.answer(&pending, answer);
            }
            Request::Look { ino, mask } => {
                vec![Want { ino: *ino, scope: scope(*ino, *mask), access: Access::Look }]
            }
            Request::Acquire { ino } => {
                vec![Want { ino: *ino, scope: Scope::all(), access: Access::Take }]
            }
            Request::Change(change) => {
                let done = self.stored.replies.get(&(session, pending.number)).cloned();
                if let Some(done) = done.filter(|_| self.mutant != Some(Mutant::ForgetsReplies)) {
                    ticket.iter().for_each(|t| self.leases.cancel(now, *t));
                    return self.answer(&pending, done);
                }
                change.wants()
            }
        };
        let mut jumped = false;
        if let Asked::Wait(ticket) = self.leases.ask(now, session, &wants, ticket) {
            if !self.jumps_queue(&wants) {
                self.pending.insert(ticket, pending);
                return;
            }
            self.leases.cancel(now, ticket);
            jumped = true;
        }
        let (ino, mut lease, mut shows) = match &pending.request {
            Request::Look { ino, mask } => (*ino, Lease::Read, *mask),
            Request::Acquire { ino } => (*ino, Lease::Write, ALL),
            Request::Change(change) => {
                answer.made = self.apply(change, oracle);
                (change.ino, Lease::Read, change.touches())
            }
            _ => return,
        };
        if is_dir(ino) {
            lease = Lease::Read;
        }
        if let Request::Change(Change { kind: ChangeKind::Flush(_), .. }) = pending.request {
            shows = ATTRS | DATA;
        }
        answer.shown = self.show(ino, shows);
        if matches!(pending.request, Request::Change(_)) {
            self.stored.replies.insert((session, pending.number), answer.clone());
        }
        let grant = self.leases.grant(now, session, ino, lease);
        let grant = grant.or_else(|| self.leases.grant(now, session, ino, Lease::Read));
        answer.grants.extend(grant);
        if jumped && self.mutant == Some(Mutant::LooksPassChanges) {
            let (lease, tail_known) = (Lease::Read, false);
            answer.grants = vec![Grant { ino, lease, tail_known }];
        }
        self.answer(&pending, answer);
    }

    /// Rules that are broken on purpose.
    fn jumps_queue(&self, wants: &[Want]) -> bool {
        match self.mutant {
            Some(Mutant::ExecutesWithoutWaiting) => !self.leases.in_grace(),
            Some(Mutant::LooksPassChanges) => wants.iter().all(|w| {
                let holders = self.leases.holders(w.ino);
                let write = holders.iter().any(|(_, lease)| *lease == Lease::Write);
                w.access == Access::Look && !write && !self.leases.in_grace()
            }),
            _ => false,
        }
    }

    fn show(&self, ino: netfs_common::id::Ino, mask: u8) -> Shown {
        atoms(mask).map(|atom| (ino, atom, self.stored.values[ino.0 as usize][atom])).collect()
    }

    /// Makes a change; false if something stands against it.
    fn apply(&mut self, change: &Change, oracle: &mut Oracle) -> bool {
        oracle.made(change.id);
        let values = &mut self.stored.values[change.ino.0 as usize];
        let version = match change.kind {
            ChangeKind::Flush(version) => version,
            ChangeKind::Create(atom) | ChangeKind::Unlink(atom) => {
                let create = matches!(change.kind, ChangeKind::Create(_));
                if oracle.is_present(values[atom]) == create {
                    return false;
                }
                let version = oracle.next_version();
                if create {
                    oracle.set_present(version);
                }
                version
            }
            ChangeKind::Set(_) | ChangeKind::Replace => oracle.next_version(),
        };
        for atom in atoms(change.touches()) {
            values[atom] = version;
        }
        true
    }
}
