//! A client: the real lease state and the real term around caches, buffers and programs.

use std::collections::BTreeMap;
use std::time::Duration;

use netfs_common::id::{Ino, SessionId};
use netfs_common::wire::lease::{Lease, Recall, Scope};
use netfs_mountd::lease::{Clock, Held};
use netfs_mountd::session::{Look, Term};
use netfs_served::meta::leases::RecallId;

use super::model::*;
use super::oracle::Oracle;
use netfs_common::simulation::Rng;

/// Calls of programs that are under way at once.
const MAX_OPS: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OpKind {
    Read(u8),
    Write,
    Change(ChangeKind),
    Fsync,
}

/// A call of a program.
#[derive(Clone, Debug)]
struct Op {
    id: u64,
    ino: Ino,
    kind: OpKind,
    /// What it must see at least.
    must: [u64; ATOMS],
    sent: bool,
    /// What is durable once it returns.
    syncs: Option<u64>,
}

/// An inode in the client's table.
struct Node {
    held: Held,
    cache: [Option<u64>; ATOMS],
    /// The newest versions that were ever seen.
    seen: [u64; ATOMS],
    /// Written and not sent.
    dirty: Option<u64>,
    flushing: Option<u64>,
    /// Acknowledged by the server's present life.
    acked: Option<u64>,
    /// Changes under way: nothing is buffered beside them.
    busy: usize,
    /// How many of them touch each thing. Others may see it changed before this client hears of
    /// it, so that nothing of it is served meanwhile.
    changing: [usize; ATOMS],
}

impl Node {
    fn is_unsent(&self) -> bool {
        self.dirty.is_some() || self.flushing.is_some()
    }

    /// What may be served without asking, under a lease.
    fn served(&self) -> [Option<u64>; ATOMS] {
        std::array::from_fn(|atom| self.cache[atom].filter(|_| self.changing[atom] == 0))
    }
}

pub(crate) struct Client {
    mutant: Option<Mutant>,
    index: usize,
    pub(crate) session: SessionId,
    pub(crate) conn: u64,
    welcomed: bool,
    new: bool,
    hello_at: Duration,
    /// The session has lapsed.
    hello_soon: bool,
    renewed_at: Duration,
    /// What came before the welcome.
    early: Vec<ToClient>,
    term: Option<Term>,
    instance: u64,
    clock: Clock,
    nodes: Vec<Option<Node>>,
    calls: BTreeMap<u64, Call>,
    next_call: u64,
    recalls: BTreeMap<RecallId, Vec<Recall>>,
    ops: Vec<Op>,
    next_id: u64,
    pub(crate) out: Vec<(Via, ToServer)>,
    pub(crate) rolled_back: bool,
}

impl Client {
    /// `life` tells apart those that follow each other in the same place.
    pub(crate) fn new(mutant: Option<Mutant>, index: usize, life: u64, conn: u64) -> Client {
        Client {
            mutant,
            index,
            session: SessionId(life * 1000 + index as u64 + 1),
            conn,
            welcomed: false,
            new: true,
            hello_at: Duration::ZERO,
            hello_soon: false,
            renewed_at: Duration::ZERO,
            early: Vec::new(),
            term: None,
            instance: 0,
            clock: Clock::default(),
            nodes: (0..INOS).map(|_| None).collect(),
            calls: BTreeMap::new(),
            next_call: 1,
            recalls: BTreeMap::new(),
            ops: Vec::new(),
            next_id: (life * 1000 + index as u64 + 1) << 32,
            out: Vec::new(),
            rolled_back: false,
        }
    }

    /// It relies on its leases.
    pub(crate) fn believes(&self, now: Duration) -> bool {
        let lapsed = self.term.as_ref().is_none_or(|t| t.until(TERM) <= now);
        !lapsed || (self.mutant == Some(Mutant::ServesAfterLapse) && self.term.is_some())
    }

    pub(crate) fn mode(&self, ino: Ino) -> Option<Lease> {
        self.nodes[ino.0 as usize].as_ref()?.held.mode()
    }

    pub(crate) fn cached(&self, ino: Ino) -> [Option<u64>; ATOMS] {
        self.nodes[ino.0 as usize].as_ref().map_or([None; ATOMS], Node::served)
    }

    /// Written and not acknowledged.
    pub(crate) fn dirty(&self) -> Vec<(Ino, u64)> {
        let dirty = |(i, n): (usize, &Option<Node>)| Some((Ino(i as u64), n.as_ref()?.dirty?));
        self.nodes.iter().enumerate().filter_map(dirty).collect()
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.ops.is_empty() && self.calls.is_empty() && self.dirty().is_empty()
    }

    pub(crate) fn describe(&self) -> String {
        format!("{:?} ops {:?} calls {:?}", self.session, self.ops, self.calls)
    }

    /// Versions were lost: nobody is held to them.
    pub(crate) fn lower(&mut self, oracle: &Oracle) {
        for op in &mut self.ops {
            let most = oracle.must(op.ino);
            (0..ATOMS).for_each(|a| op.must[a] = op.must[a].min(most[a]));
        }
    }

    /// It gives up what it has not sent, since it dies or its session is over.
    pub(crate) fn give_up(&mut self, values: &Values, oracle: &mut Oracle) {
        for (ino, version) in self.dirty() {
            for atom in atoms(ATTRS | DATA) {
                oracle.given_up(ino, atom, version, values[ino.0 as usize][atom]);
            }
        }
        self.rolled_back = true;
    }

    fn node(&mut self, ino: Ino) -> &mut Node {
        let clock = &self.clock;
        self.nodes[ino.0 as usize].get_or_insert_with(|| Node {
            held: Held::new(clock),
            cache: [None; ATOMS],
            seen: [0; ATOMS],
            dirty: None,
            flushing: None,
            acked: None,
            busy: 0,
            changing: [0; ATOMS],
        })
    }

    fn send(&mut self, message: ToServer) {
        let via = Via { client: self.index, session: self.session, conn: self.conn };
        self.out.push((via, message));
    }

    fn call(&mut self, request: Request, op: Option<u64>) {
        let number = self.next_call;
        self.next_call += 1;
        let ticket = self.clock.ticket();
        if self.welcomed {
            self.send(ToServer::Call(number, request.clone()));
        }
        self.calls.insert(number, Call { request, ticket, op });
    }

    fn hello(&mut self, now: Duration) {
        self.conn += 1;
        self.welcomed = false;
        self.early.clear();
        self.hello_at = now;
        self.send(ToServer::Hello { new: self.new, sent: now });
    }

    /// Looks at the clock before anything else is done.
    fn look(&mut self, now: Duration) {
        if self.mutant == Some(Mutant::ServesAfterLapse) {
            return;
        }
        if self.term.as_mut().is_some_and(|t| t.look(now, TERM) == Look::Lapsed) {
            self.drop_all(false, Node::is_unsent);
            // A session is relied upon again with a new connection.
            self.hello_soon = true;
        }
    }

    fn drop_all(&mut self, forget_versions: bool, keeps: impl Fn(&Node) -> bool) {
        self.clock.drop_all();
        for node in self.nodes.iter_mut().flatten() {
            node.held.dropped(keeps(node));
            node.cache = [None; ATOMS];
            if forget_versions {
                (node.seen, node.acked) = ([0; ATOMS], None);
            }
        }
    }

    pub(crate) fn tick(
        &mut self,
        now: Duration,
        dead: bool,
        busy: bool,
        rng: &mut Rng,
        oracle: &mut Oracle,
    ) {
        self.look(now);
        let silent = self.welcomed && now.saturating_sub(self.renewed_at) > TERM / 2;
        let unanswered = !self.welcomed && now.saturating_sub(self.hello_at) > TERM / 10;
        let lapsed = std::mem::take(&mut self.hello_soon);
        if self.conn == 0 || lapsed || unanswered || silent || (dead && rng.chance(300)) {
            self.hello(now);
            self.renewed_at = now;
        } else if self.welcomed && rng.chance(150) {
            self.send(ToServer::Renew { sent: now });
        }
        for ino in (0..INOS as u64).map(Ino) {
            let write = self.mode(ino) == Some(Lease::Write);
            let flush = !write || rng.chance(100);
            if flush && self.nodes[ino.0 as usize].as_ref().is_some_and(|n| n.dirty.is_some()) {
                self.flush(ino);
            }
        }
        if busy && self.ops.len() < MAX_OPS && rng.chance(450) {
            self.begin(rng, oracle);
        }
        if busy && rng.chance(30) {
            self.evict(Ino(rng.below(INOS) as u64));
        }
        self.give_back();
        self.serve(now, oracle);
    }

    fn begin(&mut self, rng: &mut Rng, oracle: &Oracle) {
        let ino = Ino(rng.below(INOS) as u64);
        let name = 1 + rng.below(ATOMS - 1);
        let kind = match (is_dir(ino), rng.below(20)) {
            (true, 0..8) => OpKind::Read(1 << name),
            (true, 8..11) => OpKind::Read(ALL),
            (true, 11..16) => OpKind::Change(ChangeKind::Create(name)),
            (true, _) => OpKind::Change(ChangeKind::Unlink(name)),
            (false, 0..8) => OpKind::Read([ATTRS, DATA | ATTRS, XATTRS, TAIL][rng.below(4)]),
            (false, 8..15) => OpKind::Write,
            (false, 15) => OpKind::Change(ChangeKind::Replace),
            (false, 16) => OpKind::Change(ChangeKind::Set(ATTRS | DATA)),
            (false, 17) => OpKind::Change(ChangeKind::Set([XATTRS, TAIL][rng.below(2)])),
            (false, _) => OpKind::Fsync,
        };
        let (id, must) = (self.next_id, oracle.must(ino));
        self.next_id += 1;
        self.ops.push(Op { id, ino, kind, must, sent: false, syncs: None });
    }

    /// Lets an inode go from the table, without a word to the server.
    fn evict(&mut self, ino: Ino) {
        let recalled = self.is_recalled(ino);
        let Some(node) = &self.nodes[ino.0 as usize] else { return };
        if !node.is_unsent() && node.busy == 0 && !recalled {
            self.clock.evicted(&node.held);
            self.nodes[ino.0 as usize] = None;
        }
    }

    fn is_recalled(&self, ino: Ino) -> bool {
        self.recalls.values().flatten().any(|r| r.ino == ino)
    }

    fn flush(&mut self, ino: Ino) {
        let id = self.next_id;
        let node = self.node(ino);
        if let Some(version) = node.dirty.filter(|_| node.flushing.is_none()) {
            node.flushing = Some(version);
            self.next_id += 1;
            let change = Change { id, ino, kind: ChangeKind::Flush(version) };
            self.call(Request::Change(change), None);
        }
    }

    /// Does what calls need that can be done now.
    fn serve(&mut self, now: Duration, oracle: &mut Oracle) {
        let ids: Vec<_> = self.ops.iter().filter(|op| !op.sent).map(|op| op.id).collect();
        for id in ids {
            let Some(at) = self.ops.iter().position(|op| op.id == id) else { continue };
            let op = self.ops[at].clone();
            if self.serve_one(now, &op, oracle) {
                self.ops.remove(at);
            }
        }
    }

    fn sent(&mut self, op: &Op, request: Request) {
        self.ops.iter_mut().filter(|o| o.id == op.id).for_each(|o| o.sent = true);
        self.call(request, Some(op.id));
    }

    /// True if the call has returned.
    fn serve_one(&mut self, now: Duration, op: &Op, oracle: &mut Oracle) -> bool {
        let ino = op.ino;
        let mode = self.mode(ino).filter(|_| self.believes(now));
        let recalled = self.is_recalled(ino);
        let node = self.node(ino);
        let unsent = node.is_unsent();
        match op.kind {
            OpKind::Read(mask) => {
                let cache = node.served();
                if mode.is_some() && atoms(mask).all(|a| cache[a].is_some()) {
                    for (atom, version) in atoms(mask).filter_map(|a| Some((a, cache[a]?))) {
                        oracle.read(ino, atom, version, op.must[atom], true);
                    }
                    return true;
                }
                if mode == Some(Lease::Write) || !unsent {
                    let mask = if mode == Some(Lease::Write) && unsent {
                        mask & !(ATTRS | DATA)
                    } else {
                        mask
                    };
                    self.sent(op, Request::Look { ino, mask });
                }
            }
            OpKind::Write if mode == Some(Lease::Write) && node.cache[0].is_some() => {
                if !recalled && node.busy == 0 {
                    let version = oracle.next_version();
                    node.dirty = Some(version);
                    for atom in atoms(ATTRS | DATA) {
                        (node.cache[atom], node.seen[atom]) = (Some(version), version);
                        oracle.wrote(ino, atom, version);
                    }
                    return true;
                }
            }
            OpKind::Write => {
                if !unsent {
                    self.sent(op, Request::Acquire { ino });
                }
            }
            OpKind::Change(kind) if !unsent => {
                let change = Change { id: op.id, ino, kind };
                node.busy += 1;
                atoms(change.touches()).for_each(|atom| node.changing[atom] += 1);
                self.sent(op, Request::Change(change));
            }
            OpKind::Change(_) => self.flush(ino),
            OpKind::Fsync if unsent => self.flush(ino),
            OpKind::Fsync => {
                let Some(acked) = node.acked else { return true };
                self.ops.iter_mut().filter(|o| o.id == op.id).for_each(|o| o.syncs = Some(acked));
                self.sent(op, Request::Sync);
            }
        }
        false
    }

    /// Does what was recalled, as far as what was buffered has been sent.
    fn give_back(&mut self) {
        let reclaiming = |c: &Call| matches!(c.request, Request::Reclaim { .. });
        if !self.welcomed || self.calls.values().any(reclaiming) {
            // The server may have begun anew: its recalls have other numbers then, and what was reclaimed comes first.
            return;
        }
        for (id, recalls) in std::mem::take(&mut self.recalls) {
            let mut left = Vec::new();
            for recall in recalls {
                let node = self.node(recall.ino);
                let unsent = node.is_unsent();
                if unsent && self.mutant != Some(Mutant::AnswersBeforeFlush) {
                    self.flush(recall.ino);
                    left.push(recall);
                    continue;
                }
                let stamp = self.clock.stamp();
                let node = self.node(recall.ino);
                node.held.recalled(stamp, recall.keep);
                let none = node.held.mode().is_none();
                let stale = if none { Scope::all() } else { recall.stale };
                atoms(mask(recall.ino, &stale)).for_each(|atom| node.cache[atom] = None);
            }
            if left.is_empty() {
                self.send(ToServer::Answered(id));
            } else {
                self.recalls.insert(id, left);
            }
        }
    }

    pub(crate) fn receive(
        &mut self,
        now: Duration,
        message: ToClient,
        values: &Values,
        oracle: &mut Oracle,
    ) {
        self.look(now);
        match message {
            ToClient::Welcome { known, instance, sent } => {
                self.welcome(now, known, instance, sent, values, oracle);
            }
            message if !self.welcomed => self.early.push(message),
            ToClient::Renewed { sent } => {
                self.renewed_at = now;
                self.term.iter_mut().for_each(|t| t.answered(sent));
            }
            ToClient::Recall(id, recalls) => {
                self.recalls.entry(id).or_insert(recalls);
            }
            ToClient::Answer(number, answer) => self.answered(now, number, answer, oracle),
        }
        self.give_back();
        self.serve(now, oracle);
    }

    fn welcome(
        &mut self,
        now: Duration,
        known: bool,
        instance: u64,
        sent: Duration,
        values: &Values,
        oracle: &mut Oracle,
    ) {
        if !known {
            self.session_lost(values, oracle);
            return self.hello(now);
        }
        let restarted = self.instance != instance && self.instance != 0;
        let first = self.new;
        (self.welcomed, self.new, self.instance) = (true, false, instance);
        (self.renewed_at, self.hello_at) = (now, sent);
        match &mut self.term {
            Some(term) => term.begin_anew(sent),
            None => self.term = Some(Term::new(sent)),
        }
        if restarted {
            self.restarted();
        } else if first {
            // The server may wait for sessions of before a restart, this one among them.
            self.calls.insert(self.next_call, self.reclaim(Vec::new()));
            self.next_call += 1;
        }
        for (number, call) in self.calls.clone() {
            self.send(ToServer::Call(number, call.request));
        }
        for message in std::mem::take(&mut self.early) {
            self.receive(now, message, values, oracle);
        }
    }

    fn reclaim(&self, leases: Vec<(Ino, Lease)>) -> Call {
        Call { request: Request::Reclaim { leases }, ticket: self.clock.ticket(), op: None }
    }

    /// The server has begun anew: what it has answered may be gone, the leases certainly are.
    fn restarted(&mut self) {
        let inos = || (0..INOS as u64).map(Ino);
        let mut leases: Vec<_> = inos().filter_map(|i| Some((i, self.mode(i)?))).collect();
        for (ino, _) in self.dirty() {
            leases.retain(|(i, _)| *i != ino);
            leases.push((ino, Lease::Write));
        }
        self.drop_all(true, |_| false);
        self.recalls.clear();
        let settled = |c: &Call| matches!(c.request, Request::Sync | Request::Reclaim { .. });
        self.calls.retain(|_, c| !settled(c));
        self.ops.retain(|op| op.kind != OpKind::Fsync);
        let call = self.reclaim(leases);
        self.calls.insert(self.next_call, call);
        self.next_call += 1;
    }

    /// The server has ended the session: all that was not sent is lost, and what becomes of
    /// changes under way is not known.
    fn session_lost(&mut self, values: &Values, oracle: &mut Oracle) {
        self.give_up(values, oracle);
        self.drop_all(true, |_| false);
        self.recalls.clear();
        self.term = None;
        for (_, call) in std::mem::take(&mut self.calls) {
            let again = !matches!(call.request, Request::Change(_));
            for op in self.ops.iter_mut().filter(|o| Some(o.id) == call.op) {
                op.sent = !again;
            }
        }
        self.ops.retain(|op| !op.sent && op.kind != OpKind::Fsync);
        for node in self.nodes.iter_mut().flatten() {
            (node.dirty, node.flushing) = (None, None);
            (node.busy, node.changing) = (0, [0; ATOMS]);
        }
        self.session = SessionId(self.session.0 + 1_000_000);
        (self.new, self.instance) = (true, 0);
    }

    fn answered(&mut self, now: Duration, number: u64, answer: Answer, oracle: &mut Oracle) {
        let Some(call) = self.calls.remove(&number) else { return };
        let ticket = match self.mutant {
            Some(Mutant::IgnoresStamps) => self.clock.ticket(),
            _ => call.ticket,
        };
        if matches!(call.request, Request::Reclaim { .. }) {
            for grant in &answer.grants {
                self.node(grant.ino).held.reclaimed(grant.lease);
            }
        }
        let mut shown: Vec<Ino> = answer.shown.iter().map(|(ino, ..)| *ino).collect();
        shown.dedup();
        for ino in shown {
            let grant = answer.grants.iter().find(|g| g.ino == ino).map(|g| g.lease);
            let anyway = self.mutant == Some(Mutant::KeepsWithoutGrant);
            self.node(ino);
            let Some(node) = &mut self.nodes[ino.0 as usize] else { continue };
            let keeps = node.held.answered(ticket, &self.clock, grant) || anyway;
            for (_, atom, version) in answer.shown.iter().filter(|(i, ..)| *i == ino) {
                if *version >= node.seen[*atom] {
                    node.seen[*atom] = *version;
                    // Otherwise it stays as it is: what is held covers this client's own changes.
                    let served = keeps || node.cache[*atom].is_some();
                    node.cache[*atom] = served.then_some(*version);
                }
            }
        }
        if let Request::Change(change) = &call.request {
            let stamp = self.clock.stamp();
            let node = self.node(change.ino);
            node.held.changed(stamp);
            match change.kind {
                ChangeKind::Flush(version) => {
                    node.flushing = None;
                    node.acked = node.acked.max(Some(version));
                    node.dirty = node.dirty.filter(|dirty| *dirty != version);
                }
                _ => {
                    node.busy -= 1;
                    atoms(change.touches()).for_each(|atom| node.changing[atom] -= 1);
                }
            }
        }
        if let Some(at) = self.ops.iter().position(|op| Some(op.id) == call.op) {
            let op = self.ops[at].clone();
            if self.complete(now, &op, &answer, oracle) {
                self.ops.remove(at);
            } else {
                self.ops[at].sent = false;
            }
        }
    }

    /// True if the call returns with this answer.
    fn complete(&mut self, now: Duration, op: &Op, answer: &Answer, oracle: &mut Oracle) -> bool {
        match op.kind {
            OpKind::Write => false,
            OpKind::Read(mask) => {
                // What it has not asked for it has from its buffer. What it has written itself lies
                // over what the server says, which may not have it yet; but not once the session has
                // lapsed, since then it may be lost.
                if !self.believes(now) && self.node(op.ino).dirty.is_some() {
                    return false;
                }
                for (ino, atom, version) in &answer.shown {
                    let node = self.node(*ino);
                    let written = (ATTRS | DATA) & (1 << atom) != 0;
                    let own = node.dirty.max(node.acked).filter(|_| written).unwrap_or(0);
                    if mask & (1 << atom) != 0 {
                        oracle.read(*ino, *atom, own.max(*version), op.must[*atom], false);
                    }
                }
                true
            }
            OpKind::Change(_) => {
                for (ino, atom, version) in &answer.shown {
                    if answer.made {
                        oracle.wrote(*ino, *atom, *version);
                    } else {
                        oracle.read(*ino, *atom, *version, op.must[*atom], false);
                    }
                }
                true
            }
            OpKind::Fsync => {
                for (atom, version) in atoms(ATTRS | DATA).zip(op.syncs.into_iter().cycle()) {
                    oracle.synced(op.ino, atom, version);
                }
                true
            }
        }
    }
}
