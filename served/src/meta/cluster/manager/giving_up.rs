//! A server that is lost for good with what it had, and replicas that are to learn anew: both by an operator's word.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use netfs_common::id::{Epoch, GroupId, ServerId, Verifier};
use netfs_common::map::{Chain, Replica};

use super::{CommandError, Manager, Verdict};

/// What giving up a server means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// Groups in which others have everything: nothing is lost.
    pub spared: usize,
    /// Groups of which nobody else has everything.
    pub lost: Vec<GroupId>,
    /// Servers that are away too, and that alone have what the group goes on with of some that are spared: it waits for them.
    pub awaited: BTreeSet<ServerId>,
}

impl Manager {
    /// What giving up a server would mean.
    ///
    /// # Errors
    /// It is not known, or it is there, or its store answers elsewhere.
    pub fn loss(&self, now: Duration, server: ServerId) -> Result<Loss, CommandError> {
        if !self.state.servers.contains_key(&server) {
            return Err(CommandError::NoServer(server));
        }
        if !self.is_foreign(server) && self.verdict(server, now) != Verdict::Dead {
            return Err(CommandError::StillThere(server));
        }
        if let Some(at) = self.elsewhere(server, now) {
            return Err(CommandError::Elsewhere(server, at));
        }
        let mut loss = Loss::default();
        for (group, _, chain) in self.state.groups() {
            if !chain.replicas.iter().any(|r| r.server == server && self.is_gone(r, server, now)) {
                continue;
            }
            let others = chain.replicas.iter().filter(|r| !self.is_gone(r, server, now));
            let others: Vec<_> = others.map(|replica| replica.server).collect();
            if others.is_empty() {
                loss.lost.push(group);
                continue;
            }
            loss.spared += 1;
            if others.iter().all(|other| self.verdict(*other, now) == Verdict::Dead) {
                loss.awaited.extend(others);
            }
        }
        Ok(loss)
    }

    /// A server leaves all chains and will not be waited for. In chains in which it is the last replica another server goes on, with what that has: the
    /// one in `heirs`, or one that is to have the group, or any.
    ///
    /// The others of a chain have everything, dead or not: the chain goes on with them, or waits for them, as before.
    ///
    /// The epoch is raised, so the old life's messages change nothing and what is written from now on has higher versions
    /// than anything that was lost: should the server come back after all, what it has differs and is replaced. The verifier is raised, so
    /// clients send again what they had not flushed. What was flushed to the lost server only is lost.
    pub(super) fn give_up(
        &mut self,
        now: Duration,
        server: ServerId,
        heirs: &BTreeMap<GroupId, ServerId>,
    ) -> Result<(), CommandError> {
        // All or nothing.
        let found = self.heirs(now, server, heirs)?;
        let there = self.present(server, now);
        let is_lost = |r: &Replica| r.server == server && Some(*r) != there;
        for (group, _, chain) in self.state.groups_mut() {
            if !chain.members().any(|member| is_lost(&member)) {
                continue;
            }
            chain.replicas.retain(|replica| !is_lost(replica));
            chain.learner = chain.learner.filter(|learner| !is_lost(learner));
            if let Some(heir) = found.get(&group) {
                chain.replicas = vec![*heir];
                chain.learner = None;
                chain.verifier = Verifier(chain.verifier.0 + 1);
            }
            chain.epoch.0 += 1;
        }
        self.former.forget_server(server);
        Ok(())
    }

    /// What a replica had is lost with a server that is given up, or was lost before: its server has come back with another store, or with a part of
    /// what it had. With that one it may have been given groups already, in place of others that are lost: of these it has what there is.
    fn is_gone(&self, replica: &Replica, given_up: ServerId, now: Duration) -> bool {
        if replica.server == given_up {
            return Some(*replica) != self.present(given_up, now);
        }
        // One that is silent for now has what it had when it was heard last.
        (self.is_foreign(replica.server) || self.lacks(replica.server))
            && self.instance(replica.server) != Some(replica.instance)
    }

    /// Whether a server has come back with another store than it had.
    pub fn is_foreign(&self, server: ServerId) -> bool {
        self.seen.get(&server).is_some_and(|seen| seen.foreign)
    }

    /// Who goes on with each of the groups of which nobody else has everything, those that are named and others.
    ///
    /// # Errors
    /// As of [`Manager::loss`]; or there is nobody.
    pub fn heirs(
        &self,
        now: Duration,
        server: ServerId,
        named: &BTreeMap<GroupId, ServerId>,
    ) -> Result<BTreeMap<GroupId, Replica>, CommandError> {
        let loss = self.loss(now, server)?;
        let heir = |group| self.heir(now, server, group, named.get(&group).copied());
        let of_group = |group| Ok((group, heir(group).ok_or(CommandError::NoHeir(server))?));
        loss.lost.into_iter().map(of_group).collect()
    }

    /// Who goes on with a group in place of its last replica.
    fn heir(
        &self,
        now: Duration,
        lost: ServerId,
        group: GroupId,
        named: Option<ServerId>,
    ) -> Option<Replica> {
        if let Some(named) = named {
            return self.present(named, now);
        }
        let wanted = self.wanted.groups.get(&group).into_iter().flatten();
        let others = wanted.chain(self.state.servers.keys()).filter(|id| **id != lost);
        let (known, foreign): (Vec<_>, Vec<_>) = others.partition(|id| !self.is_foreign(**id));
        // With its new store it is a server like any other as soon as it is given up. The store of one that is still counted on would lose its claim to
        // the group when it is started anew.
        let mut able = known.into_iter().chain([&lost]).chain(foreign);
        able.find_map(|id| self.present(*id, now))
    }

    /// A server that is there, with whatever store.
    fn present(&self, server: ServerId, now: Duration) -> Option<Replica> {
        let there = self.verdict(server, now) != Verdict::Dead;
        let instance = self.instance(server).filter(|_| there)?;
        Some(Replica { server, instance })
    }

    /// A replica is found to have something else than the others: it leaves the chain, and learns what it lacks. It leaves as one that
    /// has stalled does, when it refuses reads.
    pub(super) fn relearn(
        &mut self,
        now: Duration,
        group: GroupId,
        epoch: Epoch,
        server: ServerId,
    ) -> Result<(), CommandError> {
        let known = self.state.groups().find(|(of, ..)| *of == group);
        let replica = known.and_then(|(_, _, chain)| {
            chain.replicas.iter().find(|r| r.server == server && chain.epoch == epoch).copied()
        });
        match replica {
            Some(replica) if self.is_spare(group, replica, now) => {
                self.revoke(group, epoch, replica);
                Ok(())
            }
            _ => Err(CommandError::NotSpare(group, server)),
        }
    }

    /// Notes since when groups have all that they should have, where they should have it.
    pub(super) fn note_settled(&mut self, now: Duration) {
        let mut settled = std::mem::take(&mut self.settled);
        for (group, replicas, chain) in self.state.groups() {
            let wanted = self.wanted.groups.get(&group);
            let whole = chain.replicas.len() >= replicas
                && chain.learner.is_none()
                && !self.revoking.contains_key(&group)
                && chain.replicas.iter().all(|replica| self.is_there(*replica, now))
                && wanted.is_some_and(|ids| ids.iter().all(|id| chain.has(*id)));
            match settled.get(&group) {
                _ if !whole => drop(settled.remove(&group)),
                Some((epoch, _)) if *epoch == chain.epoch => {}
                _ => drop(settled.insert(group, (chain.epoch, now))),
            }
        }
        self.settled = settled;
    }

    /// Groups of which a server may forget what it has: they have had all their replicas, on other servers, for longer than a lost
    /// replica is waited for, and it is not to become one. None, if it is not certain that it is that server, and has what it had.
    pub fn garbage(&self, server: ServerId, now: Duration) -> Vec<(GroupId, Epoch)> {
        if !self.ahead().is_empty() || !self.is_itself(server) {
            return Vec::new();
        }
        let old = |group: &GroupId, chain: &Chain| {
            self.settled.get(group).is_some_and(|(epoch, since)| {
                *epoch == chain.epoch && now.saturating_sub(*since) >= self.config.repair_after
            })
        };
        let groups = self.state.groups();
        let of_others = groups.filter(|(group, _, chain)| !chain.has(server) && old(group, chain));
        of_others.map(|(group, _, chain)| (group, chain.epoch)).collect()
    }
}

#[cfg(test)]
mod tests {
    use netfs_common::id::InstanceId;

    use super::super::{Command, Config, Report, replica};
    use super::*;
    use crate::meta::cluster::{State, StoreId};

    const SECOND: Duration = Duration::from_secs(1);

    fn report(server: u32, life: u64, store: u8) -> Report {
        Report {
            instance: InstanceId(life),
            store: StoreId([store; 16]),
            domain: format!("d{server}"),
            capacity: 1 << 40,
            free: 1 << 39,
            full: false,
            lacks: false,
            locked: Vec::new(),
            work: netfs_common::wire::cluster::Work::default(),
            version: Epoch(0),
            revoked: Vec::new(),
            synced: Vec::new(),
            broken: Vec::new(),
            stalled: Vec::new(),
            handed_over: Vec::new(),
            followed: Epoch(0),
        }
    }

    struct World {
        manager: Manager,
        now: Duration,
        /// Who is heard, in which life and with which store.
        up: BTreeMap<u32, (u64, u8)>,
        /// Those that lack something of what they had.
        lacking: BTreeSet<u32>,
    }

    impl World {
        fn new(servers: u32, replicas: u8) -> World {
            let config = Config { repair_after: SECOND * 30, ..Config::default() };
            let mut manager = Manager::new(State::default(), config, Duration::ZERO);
            for id in 1..=servers {
                manager.meet(Duration::ZERO, vec![format!("s{id}:1")]);
            }
            let up = (1..=servers).map(|id| (id, (u64::from(id) * 100, id as u8))).collect();
            let lacking = BTreeSet::new();
            let mut world = World { manager, now: Duration::ZERO, up, lacking };
            world.pass(SECOND);
            world.manager.ensure_pool(
                world.now,
                0,
                (16, replicas),
                netfs_common::map::TierMode::Cold,
            );
            world.pass(SECOND);
            assert!(world.chains().iter().all(|c| c.replicas.len() == usize::from(replicas)));
            world
        }

        /// Servers that learn are complete at once, and those that are to refuse reads do.
        fn pass(&mut self, time: Duration) {
            let until = self.now + time;
            while self.now < until {
                self.now += SECOND / 2;
                for (id, (life, store)) in self.up.clone() {
                    let mut report = report(id, life, store);
                    report.version = self.manager.state().version;
                    report.lacks = self.lacking.contains(&id);
                    report.revoked = self.manager.revocations(ServerId(id));
                    for (group, _, chain) in self.manager.state().groups() {
                        // A life knows nothing of what those before it have taught.
                        let own = replica(ServerId(id), InstanceId(life));
                        let tail = chain.replicas.last() == Some(&own);
                        if let (true, Some(learner)) = (tail, chain.learner) {
                            report.synced.push((group, chain.epoch, learner));
                        }
                    }
                    self.manager.heard(self.now, ServerId(id), report);
                }
                self.manager.tick(self.now);
            }
        }

        fn chains(&self) -> Vec<Chain> {
            self.manager.state().groups().map(|(_, _, chain)| chain.clone()).collect()
        }

        fn give_up(&mut self, server: u32, heirs: &[(u32, u32)]) -> Result<bool, CommandError> {
            let heirs = heirs.iter().map(|(g, s)| (GroupId(*g), ServerId(*s))).collect();
            self.manager.command(self.now, Command::GiveUp(ServerId(server), heirs))
        }
    }

    /// Another volume, with two replicas.
    fn with_second_volume(mut world: World) -> World {
        world.manager.ensure_pool(world.now, 1, (16, 2), netfs_common::map::TierMode::Cold);
        world.pass(SECOND * 2);
        assert!(world.chains()[16..].iter().all(|c| c.replicas.len() == 2));
        world
    }

    #[test]
    fn a_store_that_is_not_adopted_is_given_nothing_that_its_next_life_had_no_claim_to() {
        let mut world = with_second_volume(World::new(3, 1));
        world.up.insert(2, (250, 99));
        world.pass(SECOND * 60);
        assert!(world.manager.is_foreign(ServerId(2)));
        let own = replica(ServerId(2), InstanceId(250));
        assert!(world.chains().iter().all(|c| c.members().all(|member| member != own)));
        let second = world.chains()[16..].to_vec();
        assert!(second.iter().all(|c| c.replicas.len() == 2), "others have its share");
        // Nor what is lost with others.
        world.up.remove(&1);
        world.pass(SECOND * 60);
        assert_eq!(world.give_up(1, &[]), Ok(true));
        assert!(world.chains().iter().all(|c| c.members().all(|member| member != own)));
        // From when it is given up it is a server like the others, in all its lives.
        assert_eq!(world.give_up(2, &[]), Ok(true));
        world.pass(SECOND * 60);
        assert!(world.chains().iter().any(|c| c.members().any(|member| member == own)));
        world.up.insert(2, (260, 99));
        world.pass(SECOND * 60);
        assert!(!world.manager.is_foreign(ServerId(2)));
        assert!(world.chains().iter().all(|c| !c.members().any(|member| member == own)));
    }

    #[test]
    fn servers_that_all_begin_anew_go_on_with_their_own_groups() {
        let mut world = World::new(2, 1);
        let before = world.chains();
        world.up = [(1, (150, 98)), (2, (250, 99))].into();
        world.pass(SECOND * 60);
        assert_eq!(world.give_up(1, &[]), Ok(true));
        let on_foreign = |c: &Chain| c.has(ServerId(2)) && c.replicas[0].instance.0 == 250;
        assert!(!world.chains().iter().any(on_foreign));
        assert_eq!(world.give_up(2, &[]), Ok(true));
        assert!(before.iter().zip(&world.chains()).all(|(old, new)| new.epoch > old.epoch));
    }

    #[test]
    fn one_that_lacks_something_elsewhere_is_waited_for_while_it_is_silent() {
        let mut world = with_second_volume(World::new(3, 1));
        // It has lost something of the first volume; of the second it has learnt all anew.
        world.up.insert(2, (250, 2));
        world.lacking.insert(2);
        world.pass(SECOND * 60);
        let own = replica(ServerId(2), InstanceId(250));
        let learnt = world.chains()[16..].iter().filter(|c| c.replicas.contains(&own)).count();
        assert!(learnt > 0);
        world.up.remove(&1);
        world.up.remove(&2);
        world.pass(SECOND * 4);
        let both = |c: &Chain| c.replicas.contains(&own) && c.has(ServerId(1));
        let shared = world.chains()[16..].iter().filter(|c| both(c)).count();
        let loss = world.manager.loss(world.now, ServerId(1));
        let loss = loss.or_else(|_| {
            world.pass(SECOND * 60);
            world.manager.loss(world.now, ServerId(1))
        });
        let loss = loss.unwrap();
        assert!(shared > 0 && loss.lost.iter().all(|group| group.0 < 16), "{loss:?}");
        assert!(loss.awaited.contains(&ServerId(2)));
    }

    #[test]
    fn a_server_that_is_there_is_not_given_up() {
        let mut world = World::new(2, 1);
        assert_eq!(world.give_up(1, &[]), Err(CommandError::StillThere(ServerId(1))));
        assert_eq!(world.give_up(7, &[]), Err(CommandError::NoServer(ServerId(7))));
    }

    #[test]
    fn groups_whose_last_replica_is_lost_go_on_with_another_server() {
        let mut world = World::new(3, 1);
        let before = world.chains();
        let of_first = |c: &Chain| c.replicas[0].server == ServerId(1);
        let lost: Vec<usize> = (0..16).filter(|at| of_first(&before[*at])).collect();
        assert!(!lost.is_empty() && lost.len() < 16);
        world.up.remove(&1);
        world.pass(SECOND * 60);
        // It is waited for, however long that takes.
        assert!(lost.iter().all(|at| world.chains()[*at] == before[*at]));
        assert!(world.manager.must_fence(world.now).contains(&ServerId(1)));
        let loss = world.manager.loss(world.now, ServerId(1)).unwrap();
        assert_eq!((loss.spared, loss.lost.len()), (0, lost.len()));
        let named = lost[0] as u32;
        assert_eq!(world.give_up(1, &[(named, 3)]), Ok(true));
        for at in lost {
            let (old, new) = (&before[at], &world.chains()[at]);
            assert!(new.epoch > old.epoch && new.verifier > old.verifier, "{new:?}");
            assert!(matches!(new.replicas.as_slice(), [heir] if heir.server != ServerId(1)));
            assert!(at != named as usize || new.replicas[0].server == ServerId(3));
        }
        // Cuts, removals and fences wait for it no more, and it can be forgotten.
        assert!(!world.manager.must_fence(world.now).contains(&ServerId(1)));
        assert_eq!(world.manager.command(world.now, Command::Remove(ServerId(1))), Ok(true));
    }

    #[test]
    fn what_others_have_too_is_not_lost() {
        let mut world = World::new(3, 2);
        world.up.remove(&1);
        world.up.remove(&2);
        world.pass(SECOND * 60);
        let before = world.chains();
        // Some groups were on both, and wait for them; the others have gone on.
        let both: Vec<_> = (0..16).filter(|at| !before[*at].has(ServerId(3))).collect();
        assert!(!both.is_empty());
        let loss = world.manager.loss(world.now, ServerId(1)).unwrap();
        assert_eq!((loss.spared, loss.lost.len()), (both.len(), 0));
        assert_eq!(world.give_up(1, &[]), Ok(true));
        for at in &both {
            let (old, new) = (&before[*at], &world.chains()[*at]);
            assert_eq!(new.verifier, old.verifier);
            assert!(new.has(ServerId(2)) && !new.has(ServerId(1)), "it is still waited for");
        }
        // The second comes back in another life, with all that it had flushed.
        world.up.insert(2, (201, 2));
        world.pass(SECOND);
        assert!(both.iter().all(|at| world.chains()[*at].replicas[0].server == ServerId(2)));
    }

    #[test]
    fn a_server_that_has_lost_its_disk_is_given_up_and_goes_on_empty() {
        let mut world = World::new(1, 1);
        world.up.insert(1, (101, 9));
        world.pass(SECOND * 60);
        assert!(world.chains().iter().all(|c| c.replicas[0].instance == InstanceId(100)));
        assert_eq!(world.give_up(1, &[]), Ok(true));
        world.pass(SECOND);
        assert!(world.chains().iter().all(|c| c.replicas[0].instance == InstanceId(101)));
        let known = &world.manager.state().servers[&ServerId(1)];
        assert_eq!(known.store, Some(StoreId([9; 16])));
        // Without anybody nothing is given up.
        world.up.clear();
        world.pass(SECOND * 10);
        let before = world.chains();
        assert_eq!(world.give_up(1, &[]), Err(CommandError::NoHeir(ServerId(1))));
        assert_eq!(world.chains(), before);
    }

    #[test]
    fn who_has_come_back_with_another_disk_has_nothing_of_what_it_had() {
        let mut world = World::new(2, 2);
        // The second one stops, and the first one has lost its disk.
        world.up = [(1, (101, 11))].into();
        world.pass(SECOND * 20);
        let loss = world.manager.loss(world.now, ServerId(2)).unwrap();
        assert_eq!((loss.spared, loss.lost.len()), (0, 16), "nobody has anything");

        let mut world = World::new(2, 2);
        world.up.clear();
        world.pass(SECOND * 20);
        let loss = world.manager.loss(world.now, ServerId(2)).unwrap();
        assert_eq!((loss.spared, loss.lost.len()), (16, 0));
        assert_eq!(loss.awaited, [ServerId(1)].into(), "it is off, and has everything");
    }

    #[test]
    fn when_all_have_lost_their_disks_none_is_given_up_with_what_it_has_got_since() {
        let mut world = World::new(3, 2);
        for id in 1..=3 {
            world.up.insert(id, (u64::from(id) * 100 + 1, id as u8 + 10));
        }
        world.pass(SECOND * 60);
        let is_new = |c: &Chain| c.replicas.iter().all(|r| r.instance.0 % 100 == 1);
        let mut found = BTreeMap::new();
        for id in 1..=3 {
            // Who was heard first with its new store has left the chains in time, and is there.
            let Ok(loss) = world.manager.loss(world.now, ServerId(id)) else { continue };
            let heirs = world.manager.heirs(world.now, ServerId(id), &BTreeMap::new()).unwrap();
            assert!(loss.lost.iter().eq(heirs.keys()));
            for (group, heir) in heirs {
                assert!(found.insert(group, heir).is_none(), "{group} was given to another before");
            }
            assert_eq!(world.give_up(id, &[]), Ok(true));
        }
        assert!(found.len() == 16 && world.chains().iter().all(is_new));
        for (group, heir) in found {
            assert_eq!(world.chains()[group.0 as usize].replicas, [heir]);
        }
        world.pass(SECOND * 60);
        assert!(world.chains().iter().all(is_new));
    }

    #[test]
    fn copies_are_forgotten_when_others_have_had_everything_for_long() {
        let mut world = World::new(3, 2);
        let all: std::collections::BTreeSet<_> = (0..16).map(GroupId).collect();
        let garbage = |world: &World, id: u32| -> Vec<GroupId> {
            let found = world.manager.garbage(ServerId(id), world.now);
            found.into_iter().map(|(group, _)| group).collect()
        };
        assert!(garbage(&world, 3).is_empty(), "not yet");
        world.pass(SECOND * 31);
        for id in 1..=3 {
            let here = |g: &&GroupId| world.chains()[g.0 as usize].has(ServerId(id));
            let expected: Vec<_> = all.iter().filter(|g| !here(g)).copied().collect();
            assert_eq!(garbage(&world, id), expected);
        }
        // One is away: what it has may be needed elsewhere.
        let of_first = garbage(&world, 1);
        world.up.remove(&1);
        world.pass(SECOND * 8);
        for id in 2..=3 {
            let chains = world.chains();
            assert!(garbage(&world, id).iter().all(|g| chains[g.0 as usize].replicas.len() == 2));
        }
        // What the one that is away has is waited for, and then copied; long after that it is of no use to anybody.
        world.pass(SECOND * 20);
        assert_eq!(garbage(&world, 1), of_first);
        world.pass(SECOND * 60);
        assert_eq!(garbage(&world, 1), all.into_iter().collect::<Vec<_>>());
        // It comes back and is to have its share again: what it has of that is kept, although it has no place yet in most of them.
        world.manager.heard(world.now, ServerId(1), report(1, 101, 1));
        let chains = world.chains();
        let has = |g: &usize| chains[*g].has(ServerId(1));
        assert!((0..16).filter(has).count() < 16 - of_first.len(), "some are yet to come");
        assert_eq!(garbage(&world, 1), of_first);
    }

    #[test]
    fn a_replica_that_has_something_else_leaves_and_comes_back_by_learning() {
        let mut world = World::new(3, 3);
        let before = world.chains()[0].clone();
        let odd = before.replicas[1].server;
        let relearn = Command::Relearn(GroupId(0), before.epoch, odd);
        assert!(world.manager.command(world.now, relearn.clone()).is_ok());
        assert_eq!(world.manager.revocations(odd), [(GroupId(0), before.epoch)]);
        world.pass(SECOND * 2);
        let after = world.chains()[0].clone();
        assert_eq!(after.replicas.len(), 3);
        assert_eq!(after.replicas[2].server, odd, "it comes back last");
        assert_eq!(after.verifier, before.verifier);
        // By an old map nothing happens, nor to the only one.
        let late = world.manager.command(world.now, relearn);
        assert_eq!(late, Err(CommandError::NotSpare(GroupId(0), odd)));
        let mut alone = World::new(1, 1);
        let (epoch, server) = (alone.chains()[0].epoch, ServerId(1));
        let refused = alone.manager.command(alone.now, Command::Relearn(GroupId(0), epoch, server));
        assert_eq!(refused, Err(CommandError::NotSpare(GroupId(0), server)));
    }
}
