//! The metadata server: what decides about chains, and removes chunks.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use netfs_common::id::{ChunkId, Epoch, GroupId, ServerId};
use netfs_common::map::ClusterMap;
use netfs_served::meta::cluster::{Command, Config, Manager, Report, State, Verdict};

use super::model::*;
use super::world::Context;

const TICK: Duration = Duration::from_millis(10);

#[derive(Debug, Default)]
struct Contact {
    token: Option<Duration>,
    call: Option<(u64, Duration)>,
}

/// A chunk is being removed, or goes to another client.
#[derive(Debug)]
struct Removal {
    chunk: ChunkId,
    group: GroupId,
    /// All have to go by this map, or a later one.
    since: Epoch,
    /// How far it has got. `None`: it has not begun.
    step: Option<Step>,
    servers: BTreeSet<ServerId>,
    left: BTreeMap<u64, ServerId>,
    /// This session has it no more, and then this client gets it.
    heir: Option<(u64, usize)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Settle,
    Delete,
}

#[derive(Debug)]
struct Life {
    manager: Manager,
    contacts: BTreeMap<ServerId, Contact>,
    calls: BTreeMap<u64, ServerId>,
    ticked: Duration,
}

/// The node: what it keeps, and what it knows while it runs.
pub(crate) struct Brain {
    config: Config,
    kept: State,
    removals: Vec<Removal>,
    life: Option<Life>,
    mutant: Option<Mutant>,
    /// The map has changed since somebody asked.
    pub(crate) changed: bool,
    /// Chunks that clients have got.
    pub(crate) handed: Vec<(usize, usize)>,
    map: Rc<ClusterMap>,
}

impl Brain {
    pub(crate) fn new(mutant: Option<Mutant>) -> Brain {
        let config =
            Config { deadline: DEADLINE, repair_after: REPAIR_AFTER, learners: 2, calm: MS * 40 };
        let state = State::default();
        let map = Rc::new(state.map());
        let life = None;
        let (removals, handed) = (Vec::new(), Vec::new());
        Brain { config, kept: state, removals, life, mutant, changed: false, handed, map }
    }

    pub(crate) fn start(&mut self, ctx: &mut Context<'_>) {
        for removal in &mut self.removals {
            removal.step = None;
            removal.left.clear();
        }
        let config = match self.mutant {
            Some(Mutant::WaitsForEver) => Config { repair_after: MS * 3_600_000, ..self.config },
            Some(Mutant::ReplacesEarly) => Config { deadline: DEADLINE / 3, ..self.config },
            _ => self.config,
        };
        let manager = Manager::new(self.kept.clone(), config, ctx.now);
        let (contacts, calls) = (BTreeMap::new(), BTreeMap::new());
        self.life = Some(Life { manager, contacts, calls, ticked: ctx.now });
        ctx.out.push(Out::Wake { after: MS, timer: Timer::Tick });
    }

    pub(crate) fn stop(&mut self) {
        self.life = None;
    }

    pub(crate) fn is_up(&self) -> bool {
        self.life.is_some()
    }

    /// Whether a server is taken for dead, if anybody is there to do so.
    pub(crate) fn verdict(&self, id: ServerId, now: Duration) -> Option<Verdict> {
        Some(self.life.as_ref()?.manager.verdict(id, now))
    }

    pub(crate) fn state(&self) -> &State {
        &self.kept
    }

    pub(crate) fn map(&self) -> Rc<ClusterMap> {
        self.map.clone()
    }

    /// Whether no replica is about to come or to leave.
    pub(crate) fn is_steady(&self) -> bool {
        let Some(life) = &self.life else { return false };
        let mut servers = self.kept.servers.keys();
        let at_rest = |id: &ServerId| {
            life.manager.revocations(*id).is_empty() && life.manager.hand_overs(*id).is_empty()
        };
        servers.all(at_rest)
            && self.kept.groups().all(|(_, replicas, chain)| {
                chain.replicas.len() <= replicas && chain.learner.is_none()
            })
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.removals.is_empty()
    }

    /// Keeps what has changed, before anybody hears of it.
    fn keep(&mut self, ctx: &mut Context<'_>) {
        let Some(life) = &self.life else { return };
        self.kept = life.manager.state().clone();
        let bytes = self.kept.encode().unwrap();
        if State::decode(&bytes).ok().as_ref() != Some(&self.kept) {
            ctx.oracle.fail("what is kept cannot be read back".to_owned());
        }
        self.map = Rc::new(self.kept.map());
        self.changed = true;
        for (group, _, chain) in self.kept.groups() {
            ctx.oracle.verifier(group, chain.verifier);
            ctx.note(|| {
                let show = |r: &netfs_common::map::Replica| format!("{}/{}", r.server, r.instance);
                let replicas: Vec<_> = chain.replicas.iter().map(show).collect();
                let learner = chain.learner.as_ref().map(show);
                format!(
                    "    map {}: group {group} epoch {} {replicas:?} learner {learner:?} verifier {}",
                    self.kept.version, chain.epoch, chain.verifier
                )
            });
        }
    }

    pub(crate) fn with<T>(
        &mut self,
        ctx: &mut Context<'_>,
        f: impl FnOnce(&mut Manager, Duration) -> T,
    ) -> Option<T> {
        let life = self.life.as_mut()?;
        let before = life.manager.state().version;
        let result = f(&mut life.manager, ctx.now);
        if self.life.as_ref()?.manager.state().version != before {
            self.keep(ctx);
        }
        Some(result)
    }

    pub(crate) fn command(&mut self, ctx: &mut Context<'_>, command: Command) -> bool {
        ctx.note(|| format!("    command {command:?}"));
        self.with(ctx, |m, now| m.command(now, command)).is_some_and(|result| result.is_ok())
    }

    /// A chunk is to be removed for ever.
    pub(crate) fn remove(&mut self, chunk: ChunkId, group: GroupId) {
        self.errand(chunk, group, None);
    }

    /// A chunk is to be another client's when nothing happens any more that was sent in this session.
    pub(crate) fn hand(&mut self, chunk: ChunkId, group: GroupId, session: u64, to: usize) {
        self.errand(chunk, group, Some((session, to)));
    }

    fn errand(&mut self, chunk: ChunkId, group: GroupId, heir: Option<(u64, usize)>) {
        let (servers, left) = (BTreeSet::new(), BTreeMap::new());
        let since = self.kept.version;
        self.removals.push(Removal { chunk, group, since, step: None, servers, left, heir });
    }

    pub(crate) fn wake(&mut self, ctx: &mut Context<'_>) {
        let Some(life) = &mut self.life else { return };
        // Nobody could be heard while this node stood still.
        if ctx.now > life.ticked + TICK * 3 {
            life.manager.everybody_heard(life.ticked, ctx.now);
        }
        life.ticked = ctx.now;
        ctx.out.push(Out::Wake { after: TICK, timer: Timer::Tick });
        self.with(ctx, |m, now| m.tick(now));
        self.beat(ctx);
        for index in 0..self.removals.len() {
            self.go_on(ctx, index);
        }
    }

    fn beat(&mut self, ctx: &mut Context<'_>) {
        let Some(life) = &mut self.life else { return };
        for id in life.manager.state().servers.keys().copied().collect::<Vec<_>>() {
            let contact = life.contacts.entry(id).or_default();
            if let Some((call, since)) = contact.call {
                if ctx.now < since + DEADLINE / 5 {
                    continue;
                }
                life.calls.remove(&call);
                ctx.out.push(Out::GiveUp(call));
            }
            let call = ctx.next_id();
            contact.call = Some((call, ctx.now));
            life.calls.insert(call, id);
            let revoke = life.manager.revocations(id);
            let hand_over = life.manager.hand_overs(id);
            let (token, map) = (contact.token, self.map.clone());
            let beat = Call::Beat { token, map, revoke, hand_over };
            ctx.out.push(Out::Call { to: Node(id.0), id: call, call: beat });
        }
    }

    pub(crate) fn replied(&mut self, ctx: &mut Context<'_>, id: u64, reply: Option<Reply>) {
        let Some(life) = &mut self.life else { return };
        if let Some(server) = life.calls.remove(&id) {
            let contact = life.contacts.entry(server).or_default();
            contact.call = None;
            if let Some(Reply::Beat { report, token }) = reply {
                contact.token = Some(token);
                let report = self.bend(server, *report);
                self.with(ctx, |m, now| m.heard(now, server, report));
            }
            return;
        }
        let Some(index) = self.removals.iter().position(|r| r.left.contains_key(&id)) else {
            return;
        };
        let removal = &mut self.removals[index];
        removal.left.remove(&id);
        if !matches!(reply, Some(Reply::Done)) {
            removal.left.clear();
            removal.step = None;
            // Whoever was asked may have left by now.
            if removal.heir.is_some() {
                removal.since = self.kept.version;
            }
        }
        if removal.left.is_empty() && removal.step.is_some() {
            self.go_on(ctx, index);
        }
    }

    fn bend(&self, server: ServerId, mut report: Report) -> Report {
        if self.mutant == Some(Mutant::TurnsAtOnce)
            && let Some(life) = &self.life
        {
            report.handed_over = life.manager.hand_overs(server);
        }
        if self.mutant == Some(Mutant::PromotesLate) {
            let groups: BTreeMap<_, _> =
                self.kept.groups().map(|(group, _, chain)| (group, chain.epoch)).collect();
            for (group, epoch, _) in &mut report.synced {
                *epoch = groups.get(group).copied().unwrap_or(*epoch);
            }
        }
        report
    }

    /// Removes a chunk, a step at a time.
    fn go_on(&mut self, ctx: &mut Context<'_>, index: usize) {
        let (Some(life), Some(removal)) = (&self.life, self.removals.get_mut(index)) else {
            return;
        };
        if !removal.left.is_empty() {
            return;
        }
        let manager = &life.manager;
        let fence = manager.must_fence(ctx.now);
        // Whoever has come meanwhile may have got from one what others have removed.
        let nobody_new = fence.is_subset(&removal.servers);
        let step = match removal.step {
            Some(Step::Settle) if nobody_new && removal.heir.is_none() => Step::Delete,
            Some(_) if nobody_new => {
                let done = self.removals.remove(index);
                match done.heir {
                    Some((_, to)) => self.handed.push((done.chunk.index as usize, to)),
                    None => ctx.deleted(done.chunk),
                }
                return;
            }
            _ => {
                removal.step = None;
                let current =
                    |id: &ServerId| manager.version_at(*id).is_some_and(|at| at >= removal.since);
                if fence.is_empty() || !fence.iter().all(current) {
                    return;
                }
                Step::Settle
            }
        };
        removal.step = Some(step);
        removal.servers = fence;
        for server in removal.servers.clone() {
            let id = ctx.next_id();
            removal.left.insert(id, server);
            let call = match step {
                Step::Settle => match removal.heir {
                    Some((session, _)) => Call::Fence(removal.group, session),
                    None => Call::Settle(removal.group),
                },
                Step::Delete => Call::Delete(removal.group, removal.chunk),
            };
            ctx.out.push(Out::Call { to: Node(server.0), id, call });
        }
    }

    /// What is not as it should be when nothing has failed for a while.
    pub(crate) fn unsettled(&self, now: Duration) -> Option<String> {
        let Some(life) = &self.life else { return Some("no metadata server".to_owned()) };
        let servers = life.manager.state().servers.values();
        let there = servers.filter(|s| s.duty == netfs_served::meta::cluster::Duty::In).count();
        for id in life.manager.state().servers.keys() {
            if life.manager.verdict(*id, now) != Verdict::Alive {
                return Some(format!("server {id} is not heard"));
            }
            if life.manager.version_at(*id) != Some(self.kept.version) {
                return Some(format!("server {id} has an old map"));
            }
        }
        if life.manager.misled() > 0 {
            return Some(format!(
                "{} groups have another head than they should",
                life.manager.misled()
            ));
        }
        for (group, replicas, chain) in self.kept.groups() {
            // One that is drained stays while there is nobody in its place.
            let count = replicas.min(there)..=replicas;
            if !count.contains(&chain.replicas.len()) || chain.learner.is_some() {
                return Some(format!("group {group}: {chain:?}, {replicas} of {there} wanted"));
            }
        }
        None
    }
}
