//! A client: it writes its own chunks, one change after the other, and reads all. A chunk may become another client's.

use std::collections::BTreeMap;
use std::rc::Rc;

use netfs_common::id::{Epoch, GroupId, Verifier};
use netfs_common::map::{ClusterMap, Replica};

use super::model::*;
use super::oracle::Begin;
use super::world::Context;

/// Reads under way at a time.
const READS: usize = 2;
/// Changes that are kept because they are not flushed.
const KEPT: usize = 12;

/// A change that is not flushed.
#[derive(Debug)]
struct Kept {
    number: usize,
    deed: Deed,
    /// Under which verifier it was answered, and when.
    answered: Option<(Verifier, u64)>,
}

#[derive(Debug)]
struct Writer {
    index: usize,
    session: u64,
    kept: Vec<Kept>,
    /// The attempt that is under way: its call and epoch, and the number of the change.
    attempt: Option<(u64, Epoch, usize)>,
    /// Waits before the next one.
    rests: bool,
    closed: bool,
    /// The chunk is another client's, or is about to be, which this one does not know: it goes on with what was under way. Whose session
    /// is over is told no map, so it goes by the one of then.
    lost: Option<Rc<ClusterMap>>,
}

impl Writer {
    fn new(index: usize, session: u64) -> Writer {
        let (kept, attempt, rests, closed) = (Vec::new(), None, false, false);
        Writer { index, session, kept, attempt, rests, closed, lost: None }
    }
}

#[derive(Debug)]
enum Purpose {
    Map,
    Write(usize),
    Read(usize, Begin, Replica),
    Flush(u64),
}

pub(crate) struct Client {
    node: Node,
    mutant: Option<Mutant>,
    map: Rc<ClusterMap>,
    /// The highest that was seen.
    verifiers: BTreeMap<GroupId, Verifier>,
    writers: Vec<Writer>,
    purposes: BTreeMap<u64, Purpose>,
    reads: usize,
    flushing: bool,
    asking: bool,
    /// Counts answers and flushes.
    clock: u64,
}

impl Client {
    pub(crate) fn new(
        node: Node,
        own: Vec<usize>,
        mutant: Option<Mutant>,
        map: Rc<ClusterMap>,
    ) -> Client {
        let writer = |index| Writer::new(index, u64::from(node.0) << 32 | index as u64);
        Client {
            node,
            mutant,
            map,
            verifiers: BTreeMap::new(),
            writers: own.into_iter().map(writer).collect(),
            purposes: BTreeMap::new(),
            reads: 0,
            flushing: false,
            asking: false,
            clock: 0,
        }
    }

    pub(crate) fn start(&mut self, ctx: &mut Context<'_>) {
        ctx.out.push(Out::Wake { after: MS, timer: Timer::Tick });
        for at in 0..self.writers.len() {
            self.pause(ctx, at);
        }
    }

    /// Whether all that was begun has ended.
    pub(crate) fn is_idle(&self) -> bool {
        let done = |w: &Writer| {
            w.lost.is_some() || w.attempt.is_none() && w.kept.iter().all(|k| k.answered.is_some())
        };
        self.reads == 0 && !self.flushing && self.writers.iter().all(done)
    }

    pub(crate) fn version(&self) -> Epoch {
        self.map.version
    }

    pub(crate) fn describe(&self) -> String {
        format!("{:#?} {:#?}", self.writers, self.purposes)
    }

    /// Gives up a chunk of its own in which nothing is under way.
    pub(crate) fn close(&mut self, ctx: &mut Context<'_>) -> Option<usize> {
        let idle = |w: &&mut Writer| {
            !w.closed
                && w.lost.is_none()
                && w.attempt.is_none()
                && w.kept.iter().all(|k| k.answered.is_some())
        };
        let writer = self.writers.iter_mut().find(idle)?;
        writer.closed = true;
        writer.kept.clear();
        ctx.oracle.began(writer.index, [0; 2]);
        ctx.oracle.goes(writer.index);
        Some(writer.index)
    }

    /// Loses a chunk of its own, whatever is under way, and with what was not flushed; and the session in which it had it.
    pub(crate) fn lose(&mut self, ctx: &mut Context<'_>) -> Option<(usize, u64)> {
        let open = self.writers.iter_mut().filter(|w| !w.closed && w.lost.is_none());
        let mut open: Vec<_> = open.collect();
        let at = ctx.rng.below(open.len());
        let writer = open.get_mut(at)?;
        writer.lost = Some(self.map.clone());
        Some((writer.index, writer.session))
    }

    /// Has got a chunk that another client has lost. Nobody knows which of the last changes were made, so it begins with all of it.
    pub(crate) fn get(&mut self, ctx: &mut Context<'_>, index: usize) {
        let mut writer = Writer::new(index, ctx.next_id());
        let deed = Deed([Some(ctx.oracle.next(index)); 2]);
        let number = ctx.oracle.began(index, deed.on(ctx.oracle.latest(index)));
        writer.kept.push(Kept { number, deed, answered: None });
        self.writers.push(writer);
        self.write(ctx, self.writers.len() - 1, false);
    }

    fn pause(&mut self, ctx: &mut Context<'_>, at: usize) {
        if !std::mem::replace(&mut self.writers[at].rests, true) {
            let longest = if ctx.rng.chance(100) { MS * 120 } else { MS * 25 };
            let after = ctx.rng.time(MS / 2, longest);
            ctx.out.push(Out::Wake { after, timer: Timer::Writer(at) });
        }
    }

    pub(crate) fn wake(&mut self, ctx: &mut Context<'_>, timer: Timer) {
        match timer {
            Timer::Tick => self.tick(ctx),
            Timer::Writer(at) => {
                self.writers[at].rests = false;
                self.write(ctx, at, true);
            }
            _ => {}
        }
    }

    fn tick(&mut self, ctx: &mut Context<'_>) {
        ctx.out.push(Out::Wake { after: ctx.rng.time(MS * 5, MS * 20), timer: Timer::Tick });
        if !self.asking && ctx.rng.chance(80) {
            self.asking = true;
            self.call(ctx, MANAGER, Call::Map, Purpose::Map);
        }
        if !ctx.busy {
            return;
        }
        while self.reads < READS && ctx.rng.chance(700) {
            self.read(ctx);
        }
        if !self.flushing && ctx.rng.chance(60) && !self.writers.is_empty() {
            let index = self.writers[ctx.rng.below(self.writers.len())].index;
            self.flush(ctx, ctx.group_of(chunk(index)));
        }
    }

    fn call(&mut self, ctx: &mut Context<'_>, to: Node, call: Call, purpose: Purpose) -> u64 {
        let id = ctx.next_id();
        self.purposes.insert(id, purpose);
        ctx.out.push(Out::Call { to, id, call });
        id
    }

    fn read(&mut self, ctx: &mut Context<'_>) {
        let index = ctx.rng.below(ctx.groups.len());
        let group = ctx.group_of(chunk(index));
        let Some(chain) = self.map.chain(group).filter(|c| !c.replicas.is_empty()) else { return };
        let (epoch, replica) = (chain.epoch, chain.replicas[ctx.rng.below(chain.replicas.len())]);
        let begin = ctx.oracle.begin(index);
        self.reads += 1;
        let call = Call::Read { group, epoch, chunk: chunk(index) };
        self.call(ctx, Node(replica.server.0), call, Purpose::Read(index, begin, replica));
    }

    fn flush(&mut self, ctx: &mut Context<'_>, group: GroupId) {
        let Some(chain) = self.map.chain(group) else { return };
        let (Some(head), epoch) = (chain.head(), chain.epoch) else { return };
        let also = self.map.groups().find(|(g, c)| *g != group && c.head() == Some(head));
        let mut groups = vec![(group, epoch)];
        groups.extend(also.map(|(g, c)| (g, c.epoch)));
        self.flushing = true;
        self.clock += 1;
        let purpose = Purpose::Flush(self.clock);
        self.call(ctx, Node(head.server.0), Call::Flush(groups), purpose);
    }

    /// Makes the next attempt; of a new change, if none is left.
    fn write(&mut self, ctx: &mut Context<'_>, at: usize, new: bool) {
        let writer = &mut self.writers[at];
        let lost = writer.lost.clone();
        let is_over = writer.closed || lost.is_some() && !ctx.busy;
        if is_over || writer.attempt.is_some() || writer.rests {
            return;
        }
        let index = writer.index;
        if new
            && ctx.busy
            && lost.is_none()
            && writer.kept.iter().all(|kept| kept.answered.is_some())
            && writer.kept.len() < KEPT
        {
            let value = ctx.oracle.next(index);
            let mut cell = || match ctx.rng.below(8) {
                0 => Some(0),
                1..=3 => None,
                _ => Some(value),
            };
            let deed = Deed([cell(), cell()]);
            let deed = if deed.0 == [None; 2] { Deed([Some(value); 2]) } else { deed };
            let number = ctx.oracle.began(index, deed.on(ctx.oracle.latest(index)));
            writer.kept.push(Kept { number, deed, answered: None });
        }
        let Some(next) = writer.kept.iter().find(|kept| kept.answered.is_none()) else {
            if ctx.busy && lost.is_none() {
                self.pause(ctx, at);
            }
            return;
        };
        let (number, deed, session) = (next.number, next.deed, writer.session);
        let group = ctx.group_of(chunk(index));
        let told = lost.filter(|_| self.mutant != Some(Mutant::TellsEnded));
        let chain = told.as_ref().unwrap_or(&self.map).chain(group).cloned();
        let Some((head, epoch)) = chain.and_then(|chain| Some((chain.head()?, chain.epoch))) else {
            return self.pause(ctx, at);
        };
        let call = Call::Write { group, epoch, chunk: chunk(index), deed, session };
        let id = self.call(ctx, Node(head.server.0), call, Purpose::Write(at));
        self.writers[at].attempt = Some((id, epoch, number));
    }

    pub(crate) fn learn(&mut self, ctx: &mut Context<'_>, map: Rc<ClusterMap>) {
        if map.version <= self.map.version {
            return;
        }
        self.map = map.clone();
        for (group, chain) in map.groups() {
            self.saw(ctx, group, chain.verifier);
        }
        for at in 0..self.writers.len() {
            let group = ctx.group_of(chunk(self.writers[at].index));
            let epoch = map.chain(group).map(|chain| chain.epoch);
            let old = self.writers[at].attempt.filter(|(_, of, _)| Some(*of) != epoch);
            if self.writers[at].lost.is_some() && self.mutant != Some(Mutant::TellsEnded) {
                continue;
            }
            if let Some((call, ..)) = old {
                self.purposes.remove(&call);
                self.writers[at].attempt = None;
                ctx.out.push(Out::GiveUp(call));
            }
            if old.is_some() {
                self.write(ctx, at, false);
            }
        }
    }

    /// Something of before may be lost.
    fn saw(&mut self, ctx: &mut Context<'_>, group: GroupId, verifier: Verifier) {
        let known = self.verifiers.entry(group).or_insert(verifier);
        *known = verifier.max(*known);
        let verifier = *known;
        if self.mutant == Some(Mutant::IgnoresVerifier) {
            return;
        }
        for at in 0..self.writers.len() {
            let writer = &mut self.writers[at];
            let old = |kept: &Kept| kept.answered.is_some_and(|(of, _)| of < verifier);
            if ctx.group_of(chunk(writer.index)) == group && writer.kept.iter().any(old) {
                for kept in &mut writer.kept {
                    kept.answered = None;
                }
                self.pause(ctx, at);
            }
        }
    }

    pub(crate) fn replied(&mut self, ctx: &mut Context<'_>, id: u64, reply: Option<Reply>) {
        let Some(purpose) = self.purposes.remove(&id) else { return };
        match (purpose, reply) {
            (Purpose::Map, reply) => {
                self.asking = false;
                if let Some(Reply::Map(map)) = reply {
                    self.learn(ctx, map);
                }
            }
            (Purpose::Write(at), reply) => {
                let attempt = self.writers[at].attempt.take_if(|(call, ..)| *call == id);
                if let (Some((.., number)), Some(Reply::Written(verifier))) = (attempt, reply) {
                    self.written(ctx, at, number, verifier);
                }
                self.pause(ctx, at);
            }
            (Purpose::Read(index, begin, replica), reply) => {
                self.reads -= 1;
                if let Some(Reply::Contents(cells)) = reply {
                    let by = format!("client {} at server {}", self.node.0, replica.server);
                    ctx.oracle.read(index, begin, cells, &by);
                }
            }
            (Purpose::Flush(since), reply) => {
                self.flushing = false;
                let Some(Reply::Flushed(groups)) = reply else { return };
                for (group, verifier) in groups {
                    self.flushed(ctx, group, verifier, since);
                    self.saw(ctx, group, verifier);
                }
            }
        }
    }

    fn written(&mut self, ctx: &mut Context<'_>, at: usize, number: usize, verifier: Verifier) {
        self.clock += 1;
        let now = self.clock;
        let writer = &mut self.writers[at];
        let index = writer.index;
        if let Some(kept) = writer.kept.iter_mut().find(|kept| kept.number == number) {
            kept.answered = Some((verifier, now));
        }
        self.saw(ctx, ctx.group_of(chunk(index)), verifier);
        let kept = &self.writers[at].kept;
        let all = kept.iter().all(|kept| kept.answered.is_some());
        let known = kept.iter().any(|kept| kept.number == number && kept.answered.is_some());
        if known && self.writers[at].lost.is_none() {
            ctx.oracle.answered(index, number, verifier, all);
        }
    }

    /// What was answered before then and under the same verifier is durable.
    fn flushed(&mut self, ctx: &mut Context<'_>, group: GroupId, verifier: Verifier, since: u64) {
        for writer in &mut self.writers {
            if writer.lost.is_some() || ctx.group_of(chunk(writer.index)) != group {
                continue;
            }
            let is =
                |kept: &Kept| kept.answered.is_some_and(|(of, at)| of == verifier && at < since);
            while writer.kept.first().is_some_and(is) {
                let kept = writer.kept.remove(0);
                ctx.oracle.flushed(writer.index, kept.number);
            }
        }
    }
}
