//! Random histories of a few clients that keep what they are granted, with messages in any order.

use std::collections::HashMap;

use netfs_common::name::Name;
use netfs_common::wire::lease::Names;
use proptest::prelude::*;

use super::*;

const INOS: u64 = 4;
/// Things that can be known of an inode: its attributes and two names.
const ATOMS: usize = 3;
const NOBODY: SessionId = SessionId(0);

/// A part of a scope, by its bits.
fn scope(mask: u8) -> Scope {
    let name = |n: &str| Name::new(n).unwrap();
    let names: Vec<_> =
        [(2, "a"), (4, "b")].iter().filter(|(m, _)| mask & m != 0).map(|(_, n)| name(n)).collect();
    let names = if names.is_empty() { Names::None } else { Names::Some(names) };
    Scope { attrs: mask & 1 != 0, names, ..Scope::default() }
}

fn atoms(s: &Scope) -> Vec<usize> {
    (0..ATOMS).filter(|a| s.meets(&scope(1 << a))).collect()
}

#[derive(Clone, Debug)]
struct Request {
    wants: Vec<Want>,
    ticket: Option<Ticket>,
    ready: bool,
    /// For each want, when it was asked in the client's count of recalls.
    stamps: Vec<u64>,
}

#[derive(Clone, Debug)]
enum Message {
    Answer(Vec<(Ino, usize, u64)>, Vec<(Grant, u64)>),
    Recall(RecallId, Vec<Recall>),
}

#[derive(Debug, Default)]
struct Known {
    mode: Option<Lease>,
    stamp: u64,
    dirty: bool,
    cached: HashMap<usize, u64>,
}

#[derive(Debug, Default)]
struct Client {
    known: HashMap<Ino, Known>,
    requests: Vec<Request>,
    inbox: Vec<Message>,
    answers: Vec<RecallId>,
}

struct World {
    table: Leases,
    now: Duration,
    clients: Vec<Client>,
    /// The truth, and who wrote it.
    truth: HashMap<(Ino, usize), (u64, SessionId)>,
}

fn limits() -> LeaseLimits {
    LeaseLimits { per_session: 3, min_hold: Duration::from_millis(3) }
}

impl World {
    fn new() -> World {
        let clients = (0..3).map(|_| Client::default()).collect();
        let (now, truth) = (Duration::ZERO, HashMap::new());
        World { table: Leases::new(limits()), now, clients, truth }
    }

    fn version(&self, ino: Ino, atom: usize) -> (u64, SessionId) {
        self.truth.get(&(ino, atom)).copied().unwrap_or((0, NOBODY))
    }

    /// Runs a request that was told to go, and sees that nobody else is wronged by it.
    fn run(&mut self, who: usize, request: &Request, write: bool) {
        let session = SessionId(who as u64 + 1);
        let (mut shown, mut grants) = (Vec::new(), Vec::new());
        for (want, stamp) in request.wants.iter().zip(&request.stamps) {
            let take = want.access == Access::Take;
            let touched = if take { (0..ATOMS).collect() } else { atoms(&want.scope) };
            for (_, other) in self.clients.iter().enumerate().filter(|(o, _)| *o != who) {
                let Some(known) = other.known.get(&want.ino) else { continue };
                assert_ne!(known.mode, Some(Lease::Write), "{want:?} beside a writer");
                let stale = touched.iter().any(|a| known.cached.contains_key(a));
                assert!(want.access == Access::Look || !stale, "{want:?} while others know it");
                assert!(!take || known.mode.is_none());
            }
            for atom in touched {
                let entry = self.truth.entry((want.ino, atom)).or_insert((0, NOBODY));
                if want.access != Access::Look {
                    *entry = (entry.0 + 1, session);
                }
                shown.push((want.ino, atom, entry.0));
            }
            let lease = if write { Lease::Write } else { Lease::Read };
            let grant = self.table.grant(self.now, session, want.ino, lease);
            let grant =
                grant.or_else(|| self.table.grant(self.now, session, want.ino, Lease::Read));
            grants.extend(grant.map(|g| (g, *stamp)));
        }
        self.clients[who].inbox.push(Message::Answer(shown, grants));
    }

    fn ask(&mut self, who: usize, wants: Vec<Want>, write: bool) {
        let known = &self.clients[who].known;
        let stamp = |want: &Want| known.get(&want.ino).map_or(0, |k| k.stamp);
        let stamps = wants.iter().map(stamp).collect();
        let request = Request { wants, ticket: None, ready: true, stamps };
        self.clients[who].requests.push(request);
        let last = self.clients[who].requests.len() - 1;
        self.ask_again(who, last, write);
    }

    fn ask_again(&mut self, who: usize, which: usize, write: bool) {
        let session = SessionId(who as u64 + 1);
        let request = self.clients[who].requests[which].clone();
        match self.table.ask(self.now, session, &request.wants, request.ticket) {
            Asked::Go => {
                self.clients[who].requests.remove(which);
                self.run(who, &request, write);
            }
            Asked::Wait(ticket) => {
                let request = &mut self.clients[who].requests[which];
                (request.ticket, request.ready) = (Some(ticket), false);
            }
        }
    }

    fn deliver(&mut self, who: usize, which: usize) {
        let session = SessionId(who as u64 + 1);
        match self.clients[who].inbox.remove(which) {
            Message::Answer(shown, grants) => {
                for (grant, stamp) in grants {
                    let known = self.clients[who].known.entry(grant.ino).or_default();
                    if known.stamp != stamp {
                        continue;
                    }
                    known.mode = known.mode.max(Some(grant.lease));
                    for (ino, atom, version) in shown.iter().filter(|s| s.0 == grant.ino) {
                        let (current, by) = self.version(*ino, *atom);
                        assert!(*version == current || by == session, "believes what was");
                        let known = self.clients[who].known.entry(*ino).or_default();
                        let cached = known.cached.entry(*atom).or_default();
                        *cached = (*cached).max(*version);
                    }
                }
            }
            Message::Recall(id, recalls) => {
                for recall in recalls {
                    self.recalled(who, &recall);
                }
                self.clients[who].answers.push(id);
            }
        }
    }

    fn recalled(&mut self, who: usize, recall: &Recall) {
        let known = self.clients[who].known.entry(recall.ino).or_default();
        known.stamp += 1;
        let written = std::mem::take(&mut known.dirty);
        if written {
            let session = SessionId(who as u64 + 1);
            let want = Want { ino: recall.ino, scope: scope(7), access: Access::Change };
            let request = Request { wants: vec![want], ticket: None, ready: true, stamps: vec![0] };
            let asked = self.table.ask(self.now, session, &request.wants, None);
            assert_eq!(asked, Asked::Go, "nothing keeps a writer from writing back");
            self.run(who, &request, false);
            self.clients[who].inbox.pop();
        }
        let known = self.clients[who].known.entry(recall.ino).or_default();
        known.mode = known.mode.min(recall.keep);
        if known.mode.is_none() {
            known.cached.clear();
        }
        for atom in atoms(&recall.stale) {
            known.cached.remove(&atom);
        }
        if written {
            known.cached.clear();
        }
    }

    fn poll(&mut self) {
        for action in self.table.poll(self.now) {
            match action {
                Action::Recall { session, id, recalls } => {
                    let client = &mut self.clients[session.0 as usize - 1];
                    client.inbox.push(Message::Recall(id, recalls));
                }
                Action::Ready(ticket) => {
                    let all = self.clients.iter_mut().flat_map(|c| &mut c.requests);
                    all.filter(|r| r.ticket == Some(ticket)).for_each(|r| r.ready = true);
                }
            }
        }
    }

    fn restart(&mut self) {
        self.table = Leases::new(limits());
        self.table.begin_grace(&[SessionId(1), SessionId(2), SessionId(3)]);
        for client in &mut self.clients {
            client.inbox.clear();
            client.answers.clear();
            client.requests.iter_mut().for_each(|r| (r.ticket, r.ready) = (None, true));
            client.known.values_mut().for_each(|k| k.stamp += 1);
            client.requests.iter_mut().for_each(|r| r.stamps.fill(u64::MAX));
        }
    }

    fn reclaim(&mut self, who: usize) {
        let session = SessionId(who as u64 + 1);
        let client = &mut self.clients[who];
        let had: Vec<_> = client.known.iter().filter_map(|(i, k)| Some((*i, k.mode?))).collect();
        let grants = self.table.reclaim(self.now, session, &had);
        if self.table.in_grace() && !grants.is_empty() {
            assert_eq!(grants.len(), had.len(), "{had:?} {grants:?}");
        }
        for (ino, _) in had {
            if !self.table.holders(ino).iter().any(|(s, _)| *s == session) {
                self.forget(who, ino);
            }
        }
        self.table.reclaimed(self.now, session);
    }

    fn forget(&mut self, who: usize, ino: Ino) {
        let known = self.clients[who].known.entry(ino).or_default();
        *known = Known { stamp: known.stamp + 1, ..Known::default() };
    }

    fn step(&mut self, op: u32) {
        let bits = |at: u32, n: u32| ((op >> at) % n) as usize;
        let who = bits(0, 3);
        let session = SessionId(who as u64 + 1);
        let ino = Ino(u64::from((op >> 8) % INOS as u32));
        let mask = 1 + bits(12, 7) as u8;
        let write = bits(16, 3) == 0;
        let access = [Access::Look, Access::Look, Access::Change, Access::Change, Access::Take];
        let want = |ino, at| Want { ino, scope: scope(mask), access: access[bits(at, 5)] };
        let client = &self.clients[who];
        match bits(2, 64) {
            0 => {
                self.table.end(self.now, session);
                self.clients[who] = Client::default();
            }
            1 if bits(20, 4) == 0 => self.restart(),
            2 | 3 if !client.requests.is_empty() => {
                let which = bits(20, client.requests.len() as u32);
                let gone = self.clients[who].requests.remove(which);
                gone.ticket.iter().for_each(|t| self.table.cancel(self.now, *t));
            }
            4 => {
                // Nonsense changes nothing.
                self.table.answered(self.now, session, RecallId(u64::from(op)));
                self.table.cancel(self.now, Ticket(u64::from(op)));
                self.table.grant(self.now, SessionId(77), Ino(77), Lease::Read);
                self.table.end(self.now, SessionId(77));
            }
            5 | 6 if self.table.in_grace() => self.reclaim(who),
            7..12 => {
                if let Some(known) = self.clients[who].known.get_mut(&ino) {
                    known.dirty = known.mode == Some(Lease::Write);
                }
            }
            12..28 if client.requests.len() < 4 => {
                let mut wants = vec![want(ino, 20)];
                if bits(24, 2) == 0 {
                    wants.push(want(Ino((ino.0 + 1) % INOS), 25));
                }
                self.ask(who, wants, write);
            }
            28..36 if !client.requests.is_empty() => {
                let which = bits(20, client.requests.len() as u32);
                if client.requests[which].ready || bits(28, 4) == 0 {
                    if bits(24, 4) == 0 {
                        let request = &mut self.clients[who].requests[which];
                        request.wants[0].scope = scope(mask);
                    }
                    self.ask_again(who, which, write);
                }
            }
            36..50 if !client.inbox.is_empty() => {
                self.deliver(who, bits(20, client.inbox.len() as u32));
            }
            50..60 if !client.answers.is_empty() => {
                let which = bits(20, client.answers.len() as u32);
                let id = self.clients[who].answers.remove(which);
                self.table.answered(self.now, session, id);
            }
            _ => {
                self.now += Duration::from_millis(1);
                self.poll();
            }
        }
        self.table.check();
    }

    /// Everybody answers: then nothing is left that waits.
    fn settle(&mut self) {
        for who in 0..self.clients.len() {
            self.reclaim(who);
        }
        for _ in 0..1000 {
            self.now += Duration::from_millis(1);
            self.poll();
            for who in 0..self.clients.len() {
                while !self.clients[who].inbox.is_empty() {
                    self.deliver(who, 0);
                }
                for id in std::mem::take(&mut self.clients[who].answers) {
                    self.table.answered(self.now, SessionId(who as u64 + 1), id);
                }
                if let Some(at) = self.clients[who].requests.iter().position(|r| r.ready) {
                    self.ask_again(who, at, false);
                }
            }
            self.table.check();
        }
        for client in &self.clients {
            assert!(client.requests.is_empty(), "waits for ever: {:?}", client.requests);
        }
        for ino in 0..INOS {
            assert!(self.table.waiting(Ino(ino)).is_empty());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn nobody_keeps_what_has_become_untrue(ops in prop::collection::vec(any::<u32>(), 1..400)) {
        let mut world = World::new();
        for op in ops {
            world.step(op);
        }
        world.settle();
    }
}
