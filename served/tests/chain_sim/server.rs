//! A data server: its store, its part in each group, and what carries out what the groups want.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use netfs_common::errno::Errno;
use netfs_common::id::{ChunkId, Epoch, GroupId, InstanceId, ServerId, Version};
use netfs_common::map::{ClusterMap, Replica};
use netfs_common::wire::cluster::Work;
use netfs_served::data::chain::{Action, CallId, Change, Group, Refusal, Step};
use netfs_served::meta::cluster::{Report, StoreId};

use super::model::*;
use super::store::{Entry, Shot, Store};
use super::world::Context;

mod flushing;
mod jobs;
mod teaching;

use jobs::{After, Applying, Caller, FlushJob, Part, Purpose, Waiting};

/// One that has not answered for so long is reported.
const STALLED: Duration = Duration::from_millis(300);
const PATIENCE: u32 = 4;
const PAGE: usize = 2;

pub(crate) struct Server {
    pub(crate) id: ServerId,
    pub(crate) instance: InstanceId,
    pub(crate) store_id: StoreId,
    pub(crate) store: Store,
    /// Its disk has lost what had been flushed, and chains count on what it had.
    pub(crate) lacks: bool,
    /// Sessions that are over.
    pub(crate) fenced: BTreeSet<u64>,
    mutant: Option<Mutant>,
    /// The disk takes its time.
    pub(crate) slow: bool,
    /// Changes cannot be stored, in so many of a thousand cases.
    pub(crate) failing: u64,
    parts: BTreeMap<GroupId, Part>,
    map: Option<Rc<ClusterMap>>,
    lease_until: Duration,
    calls: u64,
    waiting: BTreeMap<CallId, (Caller, GroupId, Waiting)>,
    purposes: BTreeMap<u64, Purpose>,
    applying: BTreeMap<u64, Applying>,
    flushing: BTreeMap<u64, (Vec<Shot>, After)>,
    flushes: BTreeMap<u64, FlushJob>,
    /// The last connection of each node.
    conns: BTreeMap<Node, u64>,
    deletes: BTreeMap<u64, Caller>,
    /// When each server has answered a change the last time.
    progress: BTreeMap<ServerId, Duration>,
    /// Chunks that are being read, in which epoch.
    showing: BTreeMap<CallId, (Caller, GroupId, Epoch, ChunkId)>,
}

/// Groups, as a chain of theirs has them.
type Named<'a> = &'a [(GroupId, Epoch)];

impl Server {
    pub(crate) fn new(id: ServerId, mutant: Option<Mutant>) -> Server {
        Server {
            id,
            instance: InstanceId(1),
            store_id: StoreId([id.0 as u8; 16]),
            store: Store::default(),
            lacks: false,
            fenced: BTreeSet::new(),
            mutant,
            slow: false,
            failing: 0,
            parts: BTreeMap::new(),
            map: None,
            lease_until: Duration::ZERO,
            calls: 0,
            waiting: BTreeMap::new(),
            purposes: BTreeMap::new(),
            applying: BTreeMap::new(),
            flushing: BTreeMap::new(),
            flushes: BTreeMap::new(),
            conns: BTreeMap::new(),
            deletes: BTreeMap::new(),
            progress: BTreeMap::new(),
            showing: BTreeMap::new(),
        }
    }

    /// Another life with the same store.
    pub(crate) fn reborn(&mut self, instance: u64) {
        let mut next = Server::new(self.id, self.mutant);
        next.store = std::mem::take(&mut self.store);
        next.lacks = self.lacks;
        next.fenced = std::mem::take(&mut self.fenced);
        (next.store_id, next.slow, next.failing) = (self.store_id, self.slow, self.failing);
        next.instance = match self.mutant {
            Some(Mutant::KeepsInstance) => self.instance,
            _ => InstanceId(instance),
        };
        *self = next;
    }

    fn me(&self) -> Replica {
        Replica { server: self.id, instance: self.instance }
    }

    pub(crate) fn node(&self) -> Node {
        Node(self.id.0)
    }

    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    pub(crate) fn group(&self, group: GroupId) -> Option<&Group<Deed>> {
        self.parts.get(&group).map(|part| &part.group)
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.parts.values().all(|part| part.group.is_quiet()) && self.applying.is_empty()
    }

    fn epoch(&self, group: GroupId) -> Epoch {
        self.parts.get(&group).map_or(Epoch(0), |part| part.group.epoch())
    }

    fn next_call(&mut self) -> CallId {
        self.calls += 1;
        CallId(self.calls)
    }

    fn answer(&self, ctx: &mut Context<'_>, to: Caller, reply: Reply) {
        ctx.out.push(Out::Reply { to: to.node, conn: to.conn, id: to.id, reply });
    }

    fn call(&mut self, ctx: &mut Context<'_>, to: ServerId, call: Call, purpose: Purpose) {
        let id = ctx.next_id();
        self.purposes.insert(id, purpose);
        ctx.out.push(Out::Call { to: Node(to.0), id, call });
    }

    /// A call arrives.
    pub(crate) fn receive(
        &mut self,
        ctx: &mut Context<'_>,
        from: Node,
        conn: u64,
        id: u64,
        call: Call,
    ) {
        let known = self.conns.entry(from).or_insert(conn);
        if *known < conn {
            *known = conn;
            self.withdraw(ctx, from, conn);
        }
        let caller = Caller { node: from, conn, id };
        match call {
            Call::Beat { token, map, revoke, hand_over } => {
                self.beat(ctx, caller, token, &map, (&revoke, &hand_over));
            }
            Call::Write { group, .. }
                if self.is(Mutant::AnswersShort) && self.is_short_by_map(group) =>
            {
                self.answer(ctx, caller, Reply::Refused(Refusal::Busy));
            }
            Call::Write { group, session, .. } if self.fenced.contains(&session) => {
                let refusal = Refusal::Stale(self.epoch(group));
                self.answer(ctx, caller, Reply::Refused(refusal));
            }
            Call::Write { group, epoch, chunk, deed, .. } => {
                let call = self.wait(caller, group, Waiting::Write);
                self.with(ctx, group, |g| g.propose(call, epoch, chunk, deed));
            }
            Call::Forward { group, to, step } => self.forwarded(ctx, caller, group, to, step),
            Call::Read { group, epoch, chunk } => self.read(ctx, caller, group, epoch, chunk),
            Call::Flush(groups) => self.flush(ctx, caller, groups),
            Call::List { of, after } => match self.refuses(of) {
                Some(refusal) => self.answer(ctx, caller, Reply::Refused(refusal)),
                None => {
                    let call = self.wait(caller, of.group, Waiting::List(after));
                    // What was begun in another epoch is stored whatever this one says.
                    self.with(ctx, of.group, |g| g.settle(call));
                }
            },
            Call::Install { of, chunk, piece } => {
                if of.learner != self.me() {
                    let refusal = Refusal::Stale(self.epoch(of.group));
                    return self.answer(ctx, caller, Reply::Refused(refusal));
                }
                let call = self.wait(caller, of.group, Waiting::Install(chunk, piece));
                let epoch = match self.is(Mutant::CopiesOn) {
                    true => self.epoch(of.group),
                    false => of.epoch,
                };
                self.with(ctx, of.group, |g| g.install(call, epoch, chunk));
            }
            Call::FlushGroup(of) => match self.refuses(of) {
                Some(refusal) => self.answer(ctx, caller, Reply::Refused(refusal)),
                None => self.make_durable(ctx, &[of.group], After::Answer(caller)),
            },
            Call::Settle(group) | Call::Fence(group, _) => {
                if let Call::Fence(_, session) = call
                    && !self.is(Mutant::AdmitsFenced)
                {
                    self.fenced.insert(session);
                }
                let call = self.wait(caller, group, Waiting::Settle);
                self.with(ctx, group, |g| g.settle(call));
            }
            Call::Delete(group, chunk) => self.delete(ctx, caller, group, chunk),
            Call::Map => {}
        }
    }

    /// Calls over connections that have been replaced wait no longer.
    fn withdraw(&mut self, ctx: &mut Context<'_>, from: Node, conn: u64) {
        let old: Vec<_> = self
            .waiting
            .iter()
            .filter(|(_, (caller, ..))| caller.node == from && caller.conn < conn)
            .map(|(call, (_, group, _))| (*call, *group))
            .collect();
        for (call, group) in old {
            self.with(ctx, group, |g| g.withdraw(call));
        }
    }

    /// Whether a call to a learner or a member is for somebody else.
    fn refuses(&self, of: Lesson) -> Option<Refusal> {
        let epoch = self.epoch(of.group);
        match () {
            () if of.learner != self.me() => Some(Refusal::Stale(epoch)),
            () if epoch < of.epoch => Some(Refusal::Busy),
            () if epoch > of.epoch => Some(Refusal::Stale(epoch)),
            () => None,
        }
    }

    fn wait(&mut self, caller: Caller, group: GroupId, what: Waiting) -> CallId {
        let call = self.next_call();
        self.waiting.insert(call, (caller, group, what));
        call
    }

    /// Does something to a group, and then what it wants.
    fn with(
        &mut self,
        ctx: &mut Context<'_>,
        group: GroupId,
        f: impl FnOnce(&mut Group<Deed>) -> Vec<Action<Deed>>,
    ) {
        let me = self.me();
        let part = self.parts.entry(group).or_insert_with(|| Part {
            group: Group::new(me),
            membership: 0,
            order: BTreeMap::new(),
            synced: None,
            broken: None,
            revoked: None,
            asked: None,
        });
        let actions = f(&mut part.group);
        for action in actions {
            self.act(ctx, group, action);
        }
    }

    fn act(&mut self, ctx: &mut Context<'_>, group: GroupId, action: Action<Deed>) {
        ctx.note(|| format!("    {} group {group}: {action:?}", self.id));
        let epoch = self.epoch(group);
        let lesson = |learner| Lesson { group, epoch, learner };
        match action {
            Action::Apply(change) => self.apply(ctx, group, change),
            Action::Forward { to, step } => {
                let (epoch, id) = (step.epoch, step.change.id);
                self.forward(ctx, group, to, step, ctx.now);
                if self.is(Mutant::AnswersAlone) {
                    self.with(ctx, group, |g| g.acked(epoch, id));
                }
            }
            Action::Done(call, _) => {
                let verifier = self.verifier(group);
                let Some((caller, _, what)) = self.waiting.remove(&call) else { return };
                let reply = match what {
                    Waiting::Write => {
                        self.acknowledges(ctx, group);
                        Reply::Written(verifier)
                    }
                    _ => Reply::Done,
                };
                self.answer(ctx, caller, reply);
            }
            Action::Refuse(call, refusal) => {
                let Some((caller, ..)) = self.waiting.remove(&call) else { return };
                self.answer(ctx, caller, Reply::Refused(refusal));
            }
            Action::Serve(call) => self.serve(ctx, call),
            Action::Compare(learner) => match self.mutant {
                Some(Mutant::SyncedAtOnce) => self.synced(group, epoch, learner),
                Some(Mutant::ComparesNothing) => {
                    self.with(ctx, group, |g| g.compared(learner, BTreeSet::new()));
                }
                _ => self.list(ctx, lesson(learner), BTreeMap::new()),
            },
            Action::Push(learner, chunk) => self.push(ctx, lesson(learner), chunk),
            Action::Seal(learner) => match self.is(Mutant::SealsNothing) {
                true => self.with(ctx, group, |g| g.sealed(learner, epoch, true)),
                false => {
                    let of = lesson(learner);
                    self.call(ctx, learner.server, Call::FlushGroup(of), Purpose::Seal(of));
                }
            },
            Action::Synced(learner) => self.synced(group, epoch, learner),
            // It is in what it says next.
            Action::HandedOver => {}
            Action::Broken(_) => {
                if let Some(part) = self.parts.get_mut(&group) {
                    part.broken = Some(epoch);
                }
            }
        }
    }

    fn verifier(&self, group: GroupId) -> netfs_common::id::Verifier {
        let chain = self.parts.get(&group).and_then(|part| part.group.chain());
        chain.map(|chain| chain.verifier).unwrap_or_default()
    }

    fn synced(&mut self, group: GroupId, epoch: Epoch, learner: Replica) {
        if let Some(part) = self.parts.get_mut(&group) {
            part.synced = Some((epoch, learner));
        }
    }

    fn beat(
        &mut self,
        ctx: &mut Context<'_>,
        caller: Caller,
        token: Option<Duration>,
        map: &Rc<ClusterMap>,
        (revoke, hand_over): (Named<'_>, Named<'_>),
    ) {
        if let Some(token) = token {
            self.lease_until = self.lease_until.max(token + ctx.lease);
        }
        if self.map.as_ref().is_none_or(|known| known.version < map.version) {
            self.map = Some(map.clone());
            let of_before = |r: &Replica| r.server == self.id && r.instance != self.instance;
            self.lacks &= map.groups().any(|(_, chain)| chain.replicas.iter().any(of_before));
            for (group, chain) in map.groups() {
                let min = match map.pool_of(group) {
                    Some(pool) if !self.is(Mutant::AnswersShort) => pool.min_replicas.into(),
                    _ => 1,
                };
                self.set_chain(ctx, group, chain.clone(), min);
            }
        }
        for (group, epoch) in revoke {
            if !self.is(Mutant::ShowsRevoked) {
                self.with(ctx, *group, |g| g.revoke(*epoch));
            }
            if let Some(part) = self.parts.get_mut(group) {
                part.revoked = part.revoked.max(Some(*epoch));
            }
        }
        for (group, epoch) in hand_over {
            if !self.is(Mutant::OrdersOn) {
                self.with(ctx, *group, |g| g.hand_over(*epoch));
            } else if let Some(part) = self.parts.get_mut(group) {
                part.asked = part.asked.max(Some(*epoch));
            }
        }
        let Caller { node, conn, id } = caller;
        let after = ctx.rng.time(Duration::ZERO, MS * 15);
        ctx.out.push(Out::Wake { after, timer: Timer::AnswerBeat { to: node, conn, id } });
    }

    fn set_chain(
        &mut self,
        ctx: &mut Context<'_>,
        group: GroupId,
        chain: netfs_common::map::Chain,
        min: usize,
    ) {
        let before = self.epoch(group);
        let me = self.me();
        // What this function says of the group must be so before its actions are carried out.
        let fresh = !self.parts.contains_key(&group);
        if fresh {
            self.with(ctx, group, |_| Vec::new());
        }
        if let Some(part) = self.parts.get_mut(&group)
            && chain.epoch > before
        {
            part.broken = None;
            if self.mutant != Some(Mutant::PromotesLate) {
                part.synced = None;
            }
            let complete = |c: &netfs_common::map::Chain| c.replicas.contains(&me);
            let was = part.group.chain().is_some_and(complete);
            let learned = part.group.chain().is_some_and(|c| c.learner == Some(me));
            if !complete(&chain) || !(was || learned) {
                part.membership += 1;
                part.order.clear();
            }
        }
        self.with(ctx, group, |g| g.set_chain(chain, min));
    }

    /// Whether something is about to be said against a server.
    pub(crate) fn is_in_doubt(&self, now: Duration) -> bool {
        let report = self.report(now);
        self.slow || self.failing > 0 || !report.broken.is_empty() || !report.stalled.is_empty()
    }

    /// Whether one has answered nothing for too long, or keeps this change for much too long.
    fn is_stalled(&self, server: ServerId, since: Duration, now: Duration) -> bool {
        let answered = self.progress.get(&server).copied().unwrap_or_default();
        since.max(answered) + STALLED < now || since + STALLED * PATIENCE < now
    }

    fn report(&self, now: Duration) -> Report {
        let parts = || self.parts.iter();
        let mut stalled = BTreeSet::new();
        for purpose in self.purposes.values() {
            if let Purpose::Forward { group, to, step, since } = purpose
                && self.is_stalled(to.server, *since, now)
                && step.epoch == self.epoch(*group)
            {
                stalled.insert((*group, step.epoch, to.server, to.instance));
            }
        }
        let replica =
            |(group, epoch, server, instance)| (group, epoch, Replica { server, instance });
        let stops = |(_, part): &(&GroupId, &Part)| {
            let quiet = part.asked.is_some_and(|asked| asked >= part.group.epoch())
                && part.group.is_head()
                && part.group.is_quiet();
            part.group.has_handed_over() || quiet
        };
        Report {
            instance: self.instance,
            store: self.store_id,
            domain: format!("d{}", self.id.0),
            capacity: 1 << 30,
            free: 1 << 29,
            full: false,
            lacks: self.lacks && !self.is(Mutant::LacksQuietly),
            locked: Vec::new(),
            work: Work::default(),
            version: self.map.as_ref().map_or(Epoch(0), |map| map.version),
            revoked: parts().filter_map(|(g, part)| Some((*g, part.revoked?))).collect(),
            synced: parts().filter_map(|(g, p)| p.synced.map(|(e, r)| (*g, e, r))).collect(),
            broken: parts().filter_map(|(g, part)| Some((*g, part.broken?))).collect(),
            stalled: stalled.into_iter().map(replica).collect(),
            handed_over: parts().filter(stops).map(|(g, p)| (*g, p.group.epoch())).collect(),
            followed: Epoch(0),
        }
    }

    fn forwarded(
        &mut self,
        ctx: &mut Context<'_>,
        caller: Caller,
        group: GroupId,
        to: Replica,
        mut step: Step<Deed>,
    ) {
        if to != self.me() {
            let refusal = Refusal::Stale(self.epoch(group));
            return self.answer(ctx, caller, Reply::Refused(refusal));
        }
        match self.mutant {
            Some(Mutant::IgnoresEpochs) => step.epoch = self.epoch(group),
            Some(Mutant::IgnoresAfter) => step.after = Version::NONE,
            Some(Mutant::FloorTooHigh) => step.floor = Version(step.change.id.0 + 1),
            _ => {}
        }
        let call = self.wait(caller, group, Waiting::Forward);
        self.with(ctx, group, |g| g.forwarded(call, step));
    }

    fn forward(
        &mut self,
        ctx: &mut Context<'_>,
        group: GroupId,
        to: Replica,
        step: Step<Deed>,
        since: Duration,
    ) {
        let call = Call::Forward { group, to, step: step.clone() };
        let purpose = Purpose::Forward { group, to, step: Box::new(step), since };
        self.call(ctx, to.server, call, purpose);
    }

    fn may_read(&self, ctx: &Context<'_>, group: GroupId) -> bool {
        self.is(Mutant::IgnoresLease)
            || ctx.now < self.lease_until
            || self.group(group).is_some_and(|group| self.is_alone(group))
    }

    fn is_alone(&self, group: &Group<Deed>) -> bool {
        match self.is(Mutant::AloneForEver) {
            true => group.chain().is_some_and(|chain| chain.replicas == [self.me()]),
            false => group.is_sole(),
        }
    }

    fn read(
        &mut self,
        ctx: &mut Context<'_>,
        caller: Caller,
        group: GroupId,
        epoch: Epoch,
        chunk: ChunkId,
    ) {
        if !self.may_read(ctx, group) {
            return self.answer(ctx, caller, Reply::Refused(Refusal::Busy));
        }
        let call = self.wait(caller, group, Waiting::Read(chunk));
        let me = self.me();
        let shows = self
            .group(group)
            .and_then(Group::chain)
            .is_some_and(|chain| chain.epoch == epoch && chain.replicas.contains(&me));
        if self.is(Mutant::ShowsNoted) && shows {
            return self.serve(ctx, call);
        }
        self.with(ctx, group, |g| g.read(call, epoch, chunk));
    }

    /// A call that has waited goes on.
    fn serve(&mut self, ctx: &mut Context<'_>, call: CallId) {
        let Some((caller, group, what)) = self.waiting.remove(&call) else { return };
        let reply = match what {
            Waiting::Read(chunk) => {
                let shown = (caller, group, self.epoch(group), chunk);
                self.showing.insert(call, shown);
                // It takes its time: changes come meanwhile.
                return match ctx.rng.chance(500) {
                    true => self.show(ctx, call),
                    false => {
                        let after = ctx.rng.time(MS / 10, MS * 10);
                        ctx.out.push(Out::Wake { after, timer: Timer::Show(call) });
                    }
                };
            }
            Waiting::Install(chunk, piece) => {
                self.install(ctx, group, chunk, piece);
                Reply::Done
            }
            Waiting::List(after) => {
                let chunks = self.store.list().filter(|(chunk, _)| ctx.group_of(*chunk) == group);
                let mut left = chunks.filter(|(chunk, _)| after.is_none_or(|after| *chunk > after));
                let page = left.by_ref().take(PAGE).map(|(chunk, e)| (chunk, e.version)).collect();
                Reply::List { page, more: left.next().is_some() }
            }
            Waiting::Settle | Waiting::Write | Waiting::Forward => Reply::Done,
        };
        self.answer(ctx, caller, reply);
    }

    /// What was to be read is read, and shown if that is still right.
    fn show(&mut self, ctx: &mut Context<'_>, call: CallId) {
        let Some((caller, group, epoch, chunk)) = self.showing.remove(&call) else { return };
        let reply = match self.may_read(ctx, group) && self.epoch(group) == epoch {
            true => Reply::Contents(self.store.cells(chunk)),
            false => Reply::Refused(Refusal::Busy),
        };
        self.answer(ctx, caller, reply);
        self.with(ctx, group, |g| g.withdraw(call));
    }

    fn apply(&mut self, ctx: &mut Context<'_>, group: GroupId, change: Change<Deed>) {
        if self.applying.values().any(|other| other.change.chunk == change.chunk) {
            ctx.oracle.fail(format!("{}: two changes of a chunk are stored at once", self.id));
        }
        let membership = self.parts.get(&group).map_or(0, |part| part.membership);
        let id = ctx.next_id();
        self.applying.insert(id, Applying { group, change, membership });
        let after = match self.slow {
            true => ctx.rng.time(MS * 5, MS * 150),
            false => ctx.rng.time(MS / 10, MS * 5),
        };
        ctx.out.push(Out::Wake { after, timer: Timer::Apply(id) });
    }

    fn applied(&mut self, ctx: &mut Context<'_>, id: u64) {
        let Some(Applying { group, change, membership }) = self.applying.remove(&id) else {
            return;
        };
        let Change { id, chunk, deed } = change;
        if self.failing > 0 && ctx.rng.chance(self.failing) {
            return self.with(ctx, group, |g| g.applied(id, Err(Errno::EIO)));
        }
        let before = self.store.get(chunk);
        let cells = self.store.apply(chunk, id, deed);
        let by = format!("server {}", self.id);
        if let Some(part) = self.parts.get_mut(&group).filter(|p| p.membership == membership) {
            let last = part.order.insert(chunk, id);
            if last.is_some_and(|last| last >= id) {
                ctx.oracle.fail(format!("{by}: chunk {}: {id} after {last:?}", chunk.index));
            }
        }
        let known = part_shows(self.parts.get(&group), self.me());
        // What a learner stores may be of a chunk of which it does not know yet that it is incomplete.
        if known {
            ctx.oracle.stored(chunk, id, cells, &by);
        }
        let grown = |cells: Cells| cells.iter().filter(|cell| **cell != 0).count() as i64;
        let grown = grown(cells) - before.map_or(0, |entry| grown(entry.cells));
        self.with(ctx, group, |g| g.applied(id, Ok(grown)));
    }

    /// Makes what is there of some groups durable.
    fn make_durable(&mut self, ctx: &mut Context<'_>, groups: &[GroupId], then: After) {
        let shots = self.store.shoot(|chunk| groups.contains(&ctx.group_of(chunk)));
        let id = ctx.next_id();
        self.flushing.insert(id, (shots, then));
        let longest = if self.slow { MS * 150 } else { MS * 8 };
        let after = ctx.rng.time(MS, longest);
        ctx.out.push(Out::Wake { after, timer: Timer::Flushed(id) });
    }

    /// Some chunks become durable by themselves.
    pub(crate) fn spill(&mut self, ctx: &mut Context<'_>) {
        let some = ctx.rng.next();
        let shots = self.store.shoot(|chunk| some >> (chunk.index % 64) & 1 == 1);
        self.store.keep(shots);
    }

    fn delete(&mut self, ctx: &mut Context<'_>, caller: Caller, group: GroupId, chunk: ChunkId) {
        self.store.remove(chunk);
        let Some(part) = self.parts.get_mut(&group) else {
            return self.answer(ctx, caller, Reply::Done);
        };
        part.order.remove(&chunk);
        if self.is(Mutant::RemovesQuietly) {
            return self.answer(ctx, caller, Reply::Done);
        }
        self.with(ctx, group, |g| g.removed([chunk]));
        match self.group(group).and_then(|group| group.heirs().next()) {
            Some(heir) => {
                let id = ctx.next_id();
                self.deletes.insert(id, caller);
                let call = Call::Delete(group, chunk);
                self.call(ctx, heir.server, call, Purpose::Delete(id));
            }
            None => self.answer(ctx, caller, Reply::Done),
        }
    }

    /// An answer, or the loss of the connection.
    pub(crate) fn replied(&mut self, ctx: &mut Context<'_>, id: u64, reply: Option<Reply>) {
        let Some(purpose) = self.purposes.remove(&id) else { return };
        match (purpose, reply) {
            (Purpose::Forward { group, to, step, .. }, Some(Reply::Done)) => {
                self.progress.insert(to.server, ctx.now);
                self.with(ctx, group, |g| g.acked(step.epoch, step.change.id));
            }
            (Purpose::Forward { step, .. }, Some(Reply::Refused(Refusal::Stale(epoch))))
                if epoch > step.epoch => {}
            (Purpose::Forward { group, to, step, since }, _) => {
                if self.epoch(group) == step.epoch {
                    let after = ctx.rng.time(MS, MS * 10);
                    let timer = Timer::Forward(group, to, step, since);
                    ctx.out.push(Out::Wake { after, timer });
                }
            }
            (Purpose::List(of, mut so_far), Some(Reply::List { page, more })) => {
                so_far.extend(page);
                match more {
                    true => self.list(ctx, of, so_far),
                    false => self.compare(ctx, of, &so_far),
                }
            }
            (Purpose::List(of, _), _) => {
                let after = ctx.rng.time(MS, MS * 10);
                ctx.out.push(Out::Wake { after, timer: Timer::Compare(of) });
            }
            (Purpose::Push { of, chunk, version, last }, Some(Reply::Done)) => match last {
                true => self.with(ctx, of.group, |g| g.pushed(of.learner, of.epoch, chunk, true)),
                false => self.push_on(ctx, of, chunk, version),
            },
            (Purpose::Push { of, chunk, .. }, _) => {
                self.with(ctx, of.group, |g| g.pushed(of.learner, of.epoch, chunk, false));
            }
            (Purpose::Seal(of), reply) => {
                let done = matches!(reply, Some(Reply::Done));
                self.with(ctx, of.group, |g| g.sealed(of.learner, of.epoch, done));
            }
            (Purpose::FlushMember(job, _), Some(Reply::Done)) => self.member_flushed(ctx, job),
            (Purpose::FlushMember(job, of), _) => match self.epoch(of.group) == of.epoch {
                true => {
                    let timer = Timer::FlushMember(job, of);
                    ctx.out.push(Out::Wake { after: MS * 8, timer });
                }
                false => self.fail_flush(ctx, job),
            },
            (Purpose::Delete(job), reply) => {
                let Some(caller) = self.deletes.remove(&job) else { return };
                let done = matches!(reply, Some(Reply::Done));
                let refused = Reply::Refused(Refusal::Busy);
                self.answer(ctx, caller, if done { Reply::Done } else { refused });
            }
        }
    }

    pub(crate) fn wake(&mut self, ctx: &mut Context<'_>, timer: Timer) {
        match timer {
            Timer::AnswerBeat { to, conn, id } => {
                let reply = Reply::Beat { report: Box::new(self.report(ctx.now)), token: ctx.now };
                self.answer(ctx, Caller { node: to, conn, id }, reply);
            }
            Timer::Apply(id) => self.applied(ctx, id),
            Timer::Show(call) => self.show(ctx, call),
            Timer::Flushed(id) => {
                let Some((shots, then)) = self.flushing.remove(&id) else { return };
                self.store.keep(shots);
                match then {
                    After::Answer(caller) => self.answer(ctx, caller, Reply::Done),
                    After::Member(job) => self.member_flushed(ctx, job),
                }
            }
            Timer::Forward(group, to, step, since) => {
                if self.epoch(group) == step.epoch {
                    self.forward(ctx, group, to, *step, since);
                }
            }
            Timer::Compare(of) => {
                if self.epoch(of.group) == of.epoch {
                    self.list(ctx, of, BTreeMap::new());
                }
            }
            Timer::FlushMember(job, of) => match self.epoch(of.group) == of.epoch {
                true => {
                    let purpose = Purpose::FlushMember(job, of);
                    self.call(ctx, of.learner.server, Call::FlushGroup(of), purpose);
                }
                false => self.fail_flush(ctx, job),
            },
            Timer::Tick | Timer::Writer(_) => {}
        }
    }
}

/// Whether a server has all of a group.
fn part_shows(part: Option<&Part>, me: Replica) -> bool {
    let chain = part.and_then(|part| part.group.chain());
    chain.is_some_and(|chain| chain.replicas.contains(&me))
}
