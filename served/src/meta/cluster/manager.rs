//! Deciding who is there and who has what. See the [module](super) for why that is safe.

mod classes;
mod giving_up;
mod keyless;
mod messages;
mod outdated;
mod returning;
mod stores;
mod turning;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use netfs_common::coding::Coding;
use netfs_common::id::{Epoch, GroupId, InstanceId, ServerId, Verifier};
use netfs_common::map::{Chain, ClusterMap, Replica, TierMode};

pub use giving_up::Loss;
pub use messages::{Command, CommandError, Config, Health, Report, Verdict};
pub use outdated::NotTaken;
pub use returning::Held;
pub use stores::Astray;

use outdated::Ahead;
use returning::Former;
use stores::Stray;
use turning::Turns;

use super::placement::{Candidate, Ring};
use super::state::{Duty, State, StoreId, replica};
use super::weight::Meter;

#[derive(Debug, Default)]
struct Seen {
    at: Option<Duration>,
    report: Option<Report>,
    /// It has failed in a chain, and learns nothing until then.
    shunned: Duration,
    /// It answers with another store than the one that is known.
    foreign: bool,
    /// Since when, if it does.
    foreign_since: Duration,
    /// It answers with the store of another server. Of itself nothing is heard then.
    stray: Option<Stray>,
    /// A life that has said which store it has, and did not go by any map yet.
    greeted: Option<(InstanceId, StoreId)>,
    /// How busy it was lately.
    meter: Meter,
}

/// The state, and what is known of the servers at the moment.
#[derive(Debug)]
pub struct Manager {
    config: Config,
    state: State,
    /// Servers are given time from here on.
    start: Duration,
    seen: BTreeMap<ServerId, Seen>,
    /// Replicas that must refuse reads before they leave.
    revoking: BTreeMap<GroupId, (Epoch, Replica)>,
    wanted: Wanted,
    /// Groups that have all that they should have, where they should have it: since when, in which epoch.
    settled: BTreeMap<GroupId, (Epoch, Duration)>,
    /// The state of the last version.
    told: State,
    /// Groups whose only replica cannot store what it must.
    failing: BTreeMap<GroupId, Failing>,
    turns: Turns,
    ahead: Ahead,
    /// The version at the begin.
    begun: Epoch,
    former: Former,
}

/// A group's only replica cannot go on, and nobody can take its place.
#[derive(Clone, Copy, Debug)]
struct Failing {
    replica: Replica,
    /// How often it was tried again.
    tries: u32,
    /// Before, it is not tried again, and nobody learns from it.
    until: Duration,
}

/// The servers that each group is to have, for certain servers.
#[derive(Debug, Default)]
struct Wanted {
    of: Vec<(ServerId, u32, String)>,
    replicas: Vec<u8>,
    /// Which servers have no key for which volume.
    keyless: BTreeSet<(u64, ServerId)>,
    groups: BTreeMap<GroupId, Vec<ServerId>>,
}

impl Manager {
    /// Begins at a time, with what was kept.
    pub fn new(state: State, config: Config, now: Duration) -> Manager {
        Manager {
            config,
            told: state.clone(),
            begun: state.version,
            state,
            start: now,
            seen: BTreeMap::new(),
            revoking: BTreeMap::new(),
            wanted: Wanted::default(),
            settled: BTreeMap::new(),
            failing: BTreeMap::new(),
            turns: Turns::default(),
            ahead: Ahead::default(),
            former: Former::default(),
        }
    }

    /// What is to be kept.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Settings.
    pub fn config(&self) -> Config {
        self.config
    }

    /// The map of all volumes.
    pub fn map(&self) -> ClusterMap {
        self.state.map()
    }

    /// A server has answered. `heard` is when its answer was received.
    pub fn heard(&mut self, heard: Duration, server: ServerId, report: Report) -> bool {
        if !self.state.servers.contains_key(&server) {
            return false;
        }
        self.note_followed(server, report.followed.max(report.version), heard);
        if self.is_frozen(heard) {
            return false;
        }
        let Some(known) = self.state.servers.get(&server) else { return false };
        if known.store != Some(report.store)
            && let Some(owner) = self.with_store(report.store)
        {
            self.astray(heard, server, owner, &report);
            return self.changed();
        }
        let foreign = known.store.is_some_and(|store| store != report.store);
        if known.weight == 0 {
            let weight = self.state.weight_of(report.capacity);
            if let Some(known) = self.state.servers.get_mut(&server) {
                known.weight = known.share.of(weight);
            }
        }
        if let Some(known) = self.state.servers.get_mut(&server) {
            known.domain.clone_from(&report.domain);
            known.store.get_or_insert(report.store);
        }
        for (group, epoch) in &report.revoked {
            self.left(*group, *epoch, server, heard);
        }
        for (group, epoch, learner) in &report.synced {
            self.promote(*group, *epoch, server, *learner);
        }
        for (group, epoch) in &report.broken {
            self.drop_broken(*group, *epoch, replica(server, report.instance), heard);
            self.shun(server, heard);
        }
        for (group, epoch, stalled) in &report.stalled {
            self.revoke(*group, *epoch, *stalled);
            self.shun(stalled.server, heard);
        }
        for (group, epoch) in &report.handed_over {
            self.turn(*group, *epoch, replica(server, report.instance));
        }
        let seen = self.seen.entry(server).or_default();
        seen.meter.note(heard, report.instance, report.work);
        if !seen.foreign {
            seen.foreign_since = heard;
        }
        (seen.at, seen.report, seen.foreign) = (Some(heard), Some(report), foreign);
        seen.stray = None;
        self.plan(heard);
        self.changed()
    }

    /// The server that has one of these addresses has all of them now. If there is none, another one is added.
    pub fn meet(&mut self, now: Duration, addrs: Vec<String>) -> bool {
        let same = |addr: &String| addrs.contains(addr);
        let known = self.state.servers.iter().find(|(_, s)| s.addrs.iter().any(same));
        match known.map(|(id, _)| *id) {
            Some(id) => self.set_addrs(id, addrs),
            None if addrs.is_empty() => {}
            None => drop(self.state.add_server(addrs)),
        }
        self.plan(now);
        self.changed()
    }

    /// As [`Manager::meet`], but if there is one server only, that is the one, wherever it was before.
    pub fn meet_only(&mut self, now: Duration, addrs: Vec<String>) -> bool {
        let mut ids = self.state.servers.keys().copied();
        let (Some(id), None) = (ids.next(), ids.next()) else { return self.meet(now, addrs) };
        self.set_addrs(id, addrs);
        self.changed()
    }

    fn set_addrs(&mut self, id: ServerId, addrs: Vec<String>) {
        if let Some(server) = self.state.servers.get_mut(&id) {
            server.addrs = addrs;
        }
    }

    /// A server that has failed in one chain is not given another at once.
    fn shun(&mut self, server: ServerId, now: Duration) {
        self.seen.entry(server).or_default().shunned = now + self.config.deadline * 2;
    }

    /// Time has passed. Whether the state has changed.
    pub fn tick(&mut self, now: Duration) -> bool {
        self.plan(now);
        self.changed()
    }

    /// This server itself has stood still since `before`: nobody could be heard. Who was dead by then stays so until it is heard: a chain that has come
    /// to an end must not count on it again.
    pub fn everybody_heard(&mut self, before: Duration, now: Duration) {
        let (deadline, gap) = (self.config.deadline, now.saturating_sub(before));
        // Of the silence of the dead the standstill is no part.
        let moved = |at: Duration| match before.saturating_sub(at) >= deadline {
            true => at + gap,
            false => now,
        };
        for seen in self.seen.values_mut() {
            seen.at = seen.at.map(moved);
            // Who else answered meanwhile is not known.
            seen.stray = None;
        }
        self.start = moved(self.start);
        // Nobody knows what was meanwhile.
        self.settled.clear();
        self.turns.forget();
    }

    /// An operator's command. Whether the state has changed.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn command(&mut self, now: Duration, command: Command) -> Result<bool, CommandError> {
        if self.is_frozen(now)
            && let Some((server, version)) = self.ahead().pop_first()
        {
            return Err(CommandError::Outdated(server, version));
        }
        match command {
            Command::Add(addrs) => self.add(now, addrs)?,
            Command::Drain(id) => self.duty(id, Duty::Draining)?,
            Command::Remove(id) => self.remove(now, id)?,
            Command::Rebalance => self.rebalance(now),
            Command::Replicas(volume, replicas, min) => self.replicas(volume, replicas, min)?,
            Command::GiveUp(server, heirs) => self.give_up(now, server, &heirs)?,
            Command::Relearn(group, epoch, server) => self.relearn(now, group, epoch, server)?,
            Command::Class(volume, class) => match self.state.add_class(volume, class) {
                true => {}
                false => return Err(CommandError::NoVolume),
            },
            Command::ClassReplicas(volume, class, to) => self.class_replicas(volume, class, to)?,
        }
        self.plan(now);
        Ok(self.changed())
    }

    /// Whether anything is otherwise than in the last version; then that is another one.
    fn changed(&mut self) -> bool {
        if self.state == self.told {
            return false;
        }
        self.state.version = Epoch(self.told.version.0 + 1);
        self.told = self.state.clone();
        true
    }

    fn add(&mut self, now: Duration, addrs: Vec<String>) -> Result<(), CommandError> {
        if addrs.is_empty() {
            return Err(CommandError::NoAddress);
        }
        let same = |addr: &String| addrs.contains(addr);
        let found = self.state.servers.iter().find(|(_, s)| s.addrs.iter().any(same));
        if let Some(id) = found.map(|(id, _)| *id)
            && let Some(owner) = self.claims(now, id)
        {
            return self.succeed(now, owner, id);
        }
        let known = self.state.servers.iter_mut().find(|(_, s)| s.addrs.iter().any(same));
        match known {
            Some((_, server)) if server.duty == Duty::Draining => server.duty = Duty::In,
            Some((id, _)) => return Err(CommandError::Exists(*id)),
            None => drop(self.state.add_server(addrs)),
        }
        Ok(())
    }

    fn duty(&mut self, id: ServerId, duty: Duty) -> Result<(), CommandError> {
        let server = self.state.servers.get_mut(&id).ok_or(CommandError::NoServer(id))?;
        server.duty = duty;
        Ok(())
    }

    /// Those that get data and are there are compared; of the others nothing is known.
    fn rebalance(&mut self, now: Duration) {
        let demands: BTreeMap<ServerId, f64> = self
            .seen
            .iter()
            .filter(|(id, _)| self.verdict(**id, now) == Verdict::Alive)
            .filter(|(id, _)| self.state.servers.get(id).is_some_and(|s| s.duty == Duty::In))
            .filter_map(|(id, seen)| {
                let share = self.state.servers.get(id)?.share;
                Some((*id, share.demand(seen.meter.load()?)))
            })
            .collect();
        let mean = demands.values().sum::<f64>() / (demands.len().max(1) as f64);
        for (id, seen) in &self.seen {
            let Some(capacity) = seen.report.as_ref().map(|report| report.capacity) else {
                continue;
            };
            let weight = self.state.weight_of(capacity);
            if let Some(server) = self.state.servers.get_mut(id) {
                if let Some(demand) = demands.get(id) {
                    server.share = server.share.for_demand(*demand, mean);
                }
                server.weight = server.share.of(weight);
            }
        }
    }

    /// How busy a server was lately: calls at work on the average in thousandths, and what one took, in microseconds.
    pub fn busy(&self, server: ServerId) -> (u32, u32) {
        self.seen.get(&server).map_or((0, 0), |seen| seen.meter.figures())
    }

    /// Makes sure that a volume has groups, and that this of it goes to the object store. Whether the state has changed.
    pub fn ensure_pool(
        &mut self,
        now: Duration,
        volume: u64,
        (groups, replicas): (u32, u8),
        tier: TierMode,
    ) -> bool {
        if !self.state.pools.iter().any(|pool| pool.pool.volume == volume) {
            self.state.add_pool(volume, groups, replicas, 1);
        }
        for pool in self.state.pools.iter_mut().filter(|pool| pool.pool.volume == volume) {
            pool.pool.tier = tier;
        }
        self.plan(now);
        self.changed()
    }

    /// How a volume's chunks are stored from now on.
    pub fn set_coding(&mut self, volume: u64, coding: Coding) -> bool {
        for pool in self.state.pools.iter_mut().filter(|pool| pool.pool.volume == volume) {
            pool.pool.coding = coding.clone();
        }
        self.changed()
    }

    /// For how long nothing was heard of a server.
    fn silence(&self, server: ServerId, now: Duration) -> Duration {
        let heard = self.seen.get(&server).and_then(|seen| seen.at);
        now.saturating_sub(heard.unwrap_or(self.start).max(self.start.min(now)))
    }

    /// Whether a server answers.
    pub fn verdict(&self, server: ServerId, now: Duration) -> Verdict {
        let heard = self.seen.get(&server).is_some_and(|seen| seen.at.is_some());
        match self.silence(server, now) {
            silence if silence >= self.config.deadline => Verdict::Dead,
            silence if silence >= self.config.deadline / 3 || !heard => Verdict::Suspect,
            _ => Verdict::Alive,
        }
    }

    /// The life in which a server answers.
    fn instance(&self, server: ServerId) -> Option<InstanceId> {
        Some(self.seen.get(&server)?.report.as_ref()?.instance)
    }

    /// Whether a replica is over: silent for too long, or there in another life.
    fn is_over(&self, replica: Replica, now: Duration) -> bool {
        self.instance(replica.server).is_some_and(|now| now != replica.instance)
            || self.verdict(replica.server, now) == Verdict::Dead
    }

    /// Whether a server can be given a group of a volume to learn. One that is full can be given only what it has mostly.
    fn is_ready(&self, server: ServerId, (group, volume): (GroupId, u64), now: Duration) -> bool {
        self.verdict(server, now) == Verdict::Alive
            && self.has_key(server, volume)
            && self.seen.get(&server).is_some_and(|seen| {
                let full = seen.report.as_ref().is_none_or(|report| report.full);
                // In its next life a store that is not adopted has no claim to what this one has learnt.
                !seen.foreign && seen.shunned <= now && (!full || self.former.has(group, server))
            })
    }

    /// A server with its data that is there in this life.
    fn returned(&self, server: ServerId, now: Duration) -> Option<Replica> {
        let seen = self.seen.get(&server)?;
        let there = !seen.foreign && self.verdict(server, now) != Verdict::Dead;
        there.then_some(replica(server, seen.report.as_ref()?.instance))
    }

    fn chain(&mut self, group: GroupId) -> Option<&mut Chain> {
        let pool = self.state.pools.iter_mut().map(|pool| &mut pool.pool).find(|pool| {
            group >= pool.first && ((group.0 - pool.first.0) as usize) < pool.chains.len()
        })?;
        pool.chains.get_mut((group.0 - pool.first.0) as usize)
    }

    /// The tail says that its learner has everything.
    fn promote(&mut self, group: GroupId, epoch: Epoch, tail: ServerId, learner: Replica) {
        let Some(chain) = self.chain(group) else { return };
        let by_tail = chain.replicas.last().is_some_and(|last| last.server == tail);
        if chain.epoch == epoch && chain.learner == Some(learner) && by_tail {
            chain.replicas.push(learner);
            chain.learner = None;
            chain.epoch.0 += 1;
        }
    }

    /// A replica cannot go on. It answers nobody in this epoch. If nobody else is there with everything it tries again in another one: at
    /// once, without a learner, for then clients get to know what the disk says; and then after longer and longer pauses.
    fn drop_broken(&mut self, group: GroupId, epoch: Epoch, broken: Replica, now: Duration) {
        let spare = self.is_spare(group, broken, now);
        let longest = self.config.repair_after;
        let pause = |tries: u32| (self.config.deadline * (1 << tries.min(16))).min(longest);
        let before = self.failing.get(&group).filter(|failing| failing.replica == broken).copied();
        let next = match before {
            Some(failing) => {
                Failing { tries: failing.tries + 1, until: now + pause(failing.tries), ..failing }
            }
            None => Failing { replica: broken, tries: 1, until: now + pause(0) },
        };
        let Some(chain) = self.chain(group) else { return };
        if chain.epoch != epoch {
            return;
        }
        if spare {
            without(chain, broken);
            self.failing.remove(&group);
        } else if chain.replicas.contains(&broken)
            && before.is_none_or(|failing| failing.until <= now)
        {
            chain.learner = None;
            chain.epoch.0 += 1;
            self.failing.insert(group, next);
        }
    }

    /// Forgets those that have gone on for long, and those that are not there any more.
    fn forget_failing(&mut self, now: Duration) {
        let forgotten = self.config.repair_after;
        let mut failing = std::mem::take(&mut self.failing);
        failing.retain(|group, failing| {
            let there = self.chain(*group).is_some_and(|c| c.replicas.contains(&failing.replica));
            there && now < failing.until + forgotten
        });
        self.failing = failing;
    }

    /// Servers with the only replica of groups, of how many each, that could not store what it had to not long ago.
    pub fn failing(&self) -> BTreeMap<ServerId, usize> {
        let mut all = BTreeMap::new();
        for failing in self.failing.values() {
            *all.entry(failing.replica.server).or_default() += 1;
        }
        all
    }

    /// Whether a group goes on without a replica: it is the learner, or another one is there with everything.
    fn is_spare(&self, group: GroupId, replica: Replica, now: Duration) -> bool {
        let chain = self.state.groups().find(|(of, ..)| *of == group);
        chain.is_some_and(|(_, _, chain)| {
            let others = || chain.replicas.iter().filter(|other| **other != replica);
            chain.learner == Some(replica) || others().any(|other| self.is_there(*other, now))
        })
    }

    /// A replica is to leave while it may answer reads.
    fn revoke(&mut self, group: GroupId, epoch: Epoch, replica: Replica) {
        let Some(chain) = self.chain(group) else { return };
        if chain.epoch != epoch {
            return;
        }
        if chain.learner == Some(replica) {
            // Nobody reads from it.
            without(chain, replica);
        } else if chain.replicas.len() > 1 && chain.replicas.contains(&replica) {
            self.revoking.insert(group, (epoch, replica));
        }
    }

    /// A replica refuses reads now. It leaves if another one is there with everything.
    fn left(&mut self, group: GroupId, epoch: Epoch, server: ServerId, now: Duration) {
        match self.revoking.get(&group).copied() {
            Some((revoked, replica)) if replica.server == server && epoch >= revoked => {
                if !self.is_spare(group, replica, now) {
                    return;
                }
                self.revoking.remove(&group);
                if let Some(chain) = self.chain(group).filter(|chain| chain.epoch == revoked) {
                    without(chain, replica);
                }
            }
            _ => {}
        }
    }

    /// What a server has to refuse, before it leaves these chains.
    pub fn revocations(&self, server: ServerId) -> Vec<(GroupId, Epoch)> {
        let of_it = self.revoking.iter().filter(|(_, (_, replica))| replica.server == server);
        of_it.map(|(group, (epoch, _))| (*group, *epoch)).collect()
    }

    /// Servers that may get data, as far as anybody knows.
    fn candidates(&self, now: Duration) -> Vec<(ServerId, u32, String)> {
        // One that has come without what it had is waited for as one that is away: its own store may come back.
        let lost = |seen: &Seen| {
            seen.foreign && now.saturating_sub(seen.foreign_since) >= self.config.repair_after
        };
        let fit = |id: &ServerId| {
            self.silence(*id, now) < self.config.repair_after
                && !self.seen.get(id).is_some_and(lost)
        };
        let servers = self.state.servers.iter();
        servers
            .filter(|(id, s)| s.duty == Duty::In && s.weight > 0 && fit(id))
            .map(|(id, s)| (*id, s.weight, s.domain.clone()))
            .collect()
    }

    fn refresh_wanted(&mut self, now: Duration) {
        let of = self.candidates(now);
        let replicas: Vec<u8> = self.state.pools.iter().map(|pool| pool.replicas).collect();
        let keyless = self.keyless();
        let before = &self.wanted;
        if (&of, &replicas, &keyless) == (&before.of, &before.replicas, &before.keyless) {
            return;
        }
        let servers: Vec<_> = of
            .iter()
            .map(|(id, weight, domain)| Candidate { id: *id, weight: *weight, domain })
            .collect();
        let ring = Ring::new(&servers);
        let mut groups = BTreeMap::new();
        for of in &self.state.pools {
            let (pool, count) = (&of.pool, usize::from(of.replicas));
            let able = keyless::able(&servers, pool.volume, &keyless);
            let own = (able.len() < servers.len()).then(|| Ring::new(&able));
            let ring = own.as_ref().unwrap_or(&ring);
            let ids = (pool.first.0..).map(GroupId).take(pool.chains.len());
            groups.extend(ids.map(|group| (group, ring.place(group, count))));
        }
        self.wanted = Wanted { of, replicas, keyless, groups };
    }

    /// Whether a replica has been heard of, in the life that the chain names.
    fn is_there(&self, replica: Replica, now: Duration) -> bool {
        self.instance(replica.server) == Some(replica.instance) && !self.is_over(replica, now)
    }

    /// Brings every chain a step nearer to what it should be.
    fn plan(&mut self, now: Duration) {
        if self.is_frozen(now) {
            return;
        }
        self.refresh_wanted(now);
        if !self.failing.is_empty() {
            self.forget_failing(now);
        }
        let revoking = std::mem::take(&mut self.revoking);
        let mut load = Load::default();
        for (_, _, chain) in self.state.groups() {
            // A learner whose tail is away learns nothing, and has time for others.
            if !chain.replicas.last().is_some_and(|tail| self.is_over(*tail, now)) {
                load.note(chain);
            }
        }
        let mut pools = std::mem::take(&mut self.state.pools);
        let mut order = Vec::new();
        for (at, pool) in pools.iter_mut().enumerate() {
            let (first, replicas) = (pool.pool.first.0, usize::from(pool.replicas));
            let least = usize::from(pool.pool.min_replicas);
            for (index, chain) in pool.pool.chains.iter_mut().enumerate() {
                let group = GroupId(first + index as u32);
                let before = chain.replicas.clone();
                self.mend(chain, now);
                self.former.note(group, &before, &chain.replicas);
                order.push((need(chain, replicas, least), at, index));
            }
        }
        // Servers learn some groups at a time: first those in the greatest danger, whatever their volume.
        order.sort_unstable();
        for (_, at, index) in order {
            let pool = &mut pools[at];
            let (group, replicas) =
                (GroupId(pool.pool.first.0 + index as u32), pool.replicas.into());
            let volume = pool.pool.volume;
            let chain = &mut pool.pool.chains[index];
            self.grow((group, volume), chain, replicas, &mut load, now);
            if let Some(leaving) = self.leaving(group, chain, replicas) {
                self.revoking.insert(group, (chain.epoch, leaving));
            } else if let Some(revoked) = revoking.get(&group)
                && revoked.0 == chain.epoch
                && chain.replicas.len() > 1
            {
                self.revoking.insert(group, *revoked);
            }
        }
        self.state.pools = pools;
        self.adopt();
        self.note_settled(now);
        self.former.forget(&self.settled);
        self.plan_turns(now);
    }

    /// Takes out who is over.
    fn mend(&self, chain: &mut Chain, now: Duration) {
        let before = (chain.replicas.clone(), chain.learner);
        if chain.replicas.iter().any(|replica| self.is_there(*replica, now)) {
            chain.replicas.retain(|replica| !self.is_over(*replica, now));
        } else if chain.replicas.iter().all(|replica| self.is_over(*replica, now))
            && self.has_asked_around(now)
        {
            // As long as one may still be there with everything it is waited for.
            if let Some(back) = self.back(chain, now) {
                chain.replicas = vec![back];
                chain.verifier = Verifier(chain.verifier.0 + 1);
            }
        }
        let gone = |learner: &Replica| {
            self.is_over(*learner, now) || chain.replicas.iter().any(|r| r.server == learner.server)
        };
        if chain.learner.as_ref().is_some_and(gone) {
            chain.learner = None;
        }
        if before != (chain.replicas.clone(), chain.learner) {
            chain.epoch.0 += 1;
        }
    }

    /// All servers have answered, or have had time to.
    fn is_settled(&self, now: Duration) -> bool {
        let known = self.state.servers.values();
        known.filter(|s| s.duty == Duty::In).all(|s| s.weight > 0)
            || now.saturating_sub(self.start) >= self.config.patience()
    }

    /// Lets a server learn that is to have the group and has not.
    fn grow(
        &self,
        (group, volume): (GroupId, u64),
        chain: &mut Chain,
        replicas: usize,
        load: &mut Load,
        now: Duration,
    ) {
        let Some(wanted) = self.wanted.groups.get(&group) else { return };
        if chain.replicas.is_empty() && chain.epoch == Epoch(0) {
            // Else the first server that answers after a start would get all, only to give it away again.
            if !self.is_settled(now) {
                return;
            }
            // Nobody has anything yet.
            let ready = wanted.iter().filter(|id| self.is_ready(**id, (group, volume), now));
            chain.replicas = ready.filter_map(|id| self.returned(*id, now)).collect();
            if !chain.replicas.is_empty() {
                chain.epoch = Epoch(1);
            }
            return;
        }
        let Some(tail) = chain.replicas.last().map(|tail| tail.server) else { return };
        if self.failing.get(&group).is_some_and(|failing| now < failing.until) {
            return;
        }
        if chain.learner.is_some() || self.is_over(chain.replicas[chain.replicas.len() - 1], now) {
            return;
        }
        let misplaced = chain.replicas.iter().any(|r| !wanted.contains(&r.server));
        if chain.replicas.len() >= replicas && !misplaced || chain.replicas.len() > replicas {
            return;
        }
        let fit = |id: &ServerId| !chain.has(*id) && self.is_ready(*id, (group, volume), now);
        let lacking = wanted.iter().find(|id| fit(id));
        let Some(instance) = lacking.and_then(|id| self.instance(*id).map(|i| replica(*id, i)))
        else {
            return;
        };
        if load.take(tail, instance.server, self.config.learners) {
            chain.learner = Some(instance);
            chain.epoch.0 += 1;
        }
    }

    /// A replica that is one too many.
    fn leaving(&self, group: GroupId, chain: &Chain, replicas: usize) -> Option<Replica> {
        if chain.replicas.len() <= replicas || chain.learner.is_some() {
            return None;
        }
        let wanted = self.wanted.groups.get(&group)?;
        let unwanted = chain.replicas.iter().rfind(|r| !wanted.contains(&r.server));
        unwanted.or(chain.replicas.last()).copied()
    }

    /// Servers at which nothing of an ended session may happen any more before others get what it had: all, but for those
    /// that are dead and in no chain. Such a one learns everything anew. One that is in a chain though it is dead is there because
    /// nobody else has everything, and will go on with what it had.
    pub fn must_fence(&self, now: Duration) -> BTreeSet<ServerId> {
        let groups = self.state.groups();
        let mut needed: BTreeSet<ServerId> = groups
            .flat_map(|(_, _, chain)| chain.members())
            .map(|replica| replica.server)
            .collect();
        let alive = |id: &ServerId| self.verdict(*id, now) != Verdict::Dead;
        needed.extend(self.state.servers.keys().copied().filter(alive));
        needed
    }

    /// The version of the map that a server goes by.
    pub fn version_at(&self, server: ServerId) -> Option<Epoch> {
        Some(self.seen.get(&server)?.report.as_ref()?.version)
    }

    /// A server, for people.
    pub fn health(&self, server: ServerId, now: Duration) -> Health {
        let seen = self.seen.get(&server);
        Health {
            verdict: self.verdict(server, now),
            silent: seen.and_then(|seen| seen.at).map(|at| now.saturating_sub(at)),
            report: seen.and_then(|seen| seen.report.clone()),
        }
    }
}

/// How urgently a group needs another replica; the lowest comes first: those that cannot be written to, then those with the fewest.
fn need(chain: &Chain, wanted: usize, least: usize) -> usize {
    match chain.replicas.len() {
        len if len < least => 0,
        len if len < wanted => len,
        _ => usize::MAX,
    }
}

fn without(chain: &mut Chain, replica: Replica) {
    if chain.learner == Some(replica) {
        chain.learner = None;
        chain.epoch.0 += 1;
    } else if chain.replicas.len() > 1 && chain.replicas.contains(&replica) {
        chain.replicas.retain(|r| *r != replica);
        chain.epoch.0 += 1;
    }
}

/// What the servers have to do with learning already.
#[derive(Debug, Default)]
struct Load {
    learning: BTreeMap<ServerId, usize>,
    teaching: BTreeMap<ServerId, usize>,
}

impl Load {
    fn note(&mut self, chain: &Chain) {
        if let (Some(learner), Some(tail)) = (chain.learner, chain.replicas.last()) {
            *self.learning.entry(learner.server).or_default() += 1;
            *self.teaching.entry(tail.server).or_default() += 1;
        }
    }

    fn take(&mut self, tail: ServerId, learner: ServerId, limit: usize) -> bool {
        let learning = self.learning.entry(learner).or_default();
        let teaching = self.teaching.entry(tail).or_default();
        let room = *learning < limit && *teaching < limit;
        if room {
            *learning += 1;
            *teaching += 1;
        }
        room
    }
}
