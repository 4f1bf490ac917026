//! Heads are given back.

use std::collections::BTreeMap;
use std::time::Duration;

use netfs_common::id::{Epoch, GroupId, InstanceId, ServerId};
use netfs_common::map::{Chain, TierMode};
use netfs_common::wire::cluster::Work;

use super::super::*;

const SECOND: Duration = Duration::from_secs(1);
const GROUPS: u32 = 32;

/// Three servers with three replicas; who learns is complete at once.
struct World {
    manager: Manager,
    now: Duration,
    /// Who is heard, in which life.
    up: BTreeMap<u32, u64>,
    /// Heads stop when they are asked to.
    stop: bool,
}

impl World {
    fn new() -> World {
        let mut manager = Manager::new(State::default(), Config::default(), Duration::ZERO);
        for id in 1..=3 {
            manager.meet(Duration::ZERO, vec![format!("s{id}:1")]);
        }
        let up = (1..=3).map(|id| (id, u64::from(id))).collect();
        let mut world = World { manager, now: Duration::ZERO, up, stop: true };
        world.pass(1);
        world.manager.ensure_pool(world.now, 0, (GROUPS, 3), TierMode::Cold);
        world.pass(1);
        world
    }

    fn hand_overs(&self) -> Vec<(GroupId, Epoch)> {
        (1..=3).flat_map(|id| self.manager.hand_overs(ServerId(id))).collect()
    }

    fn report(&self, id: u32, life: u64) -> Report {
        let (mut synced, mut handed_over) = (Vec::new(), Vec::new());
        for (group, _, chain) in self.manager.state().groups() {
            let tail = chain.replicas.last().is_some_and(|r| r.server == ServerId(id));
            if let (true, Some(learner)) = (tail, chain.learner) {
                synced.push((group, chain.epoch, learner));
            }
        }
        if self.stop {
            handed_over = self.manager.hand_overs(ServerId(id));
        }
        Report {
            instance: InstanceId(life),
            store: StoreId([id as u8; 16]),
            domain: format!("d{id}"),
            capacity: 1 << 40,
            free: 1 << 40,
            full: false,
            work: Work::default(),
            version: self.manager.state().version,
            revoked: self.manager.revocations(ServerId(id)),
            synced,
            broken: Vec::new(),
            stalled: Vec::new(),
            handed_over,
            followed: netfs_common::id::Epoch(0),
            lacks: false,
            locked: Vec::new(),
        }
    }

    fn pass(&mut self, seconds: u32) {
        let until = self.now + SECOND * seconds;
        while self.now < until {
            self.now += SECOND / 10;
            for (id, life) in self.up.clone() {
                let report = self.report(id, life);
                self.manager.heard(self.now, ServerId(id), report);
            }
            self.manager.tick(self.now);
        }
    }

    fn chains(&self) -> Vec<Chain> {
        self.manager.state().groups().map(|(_, _, chain)| chain.clone()).collect()
    }

    fn heads(&self) -> Vec<u32> {
        self.chains().iter().map(|chain| chain.head().unwrap().server.0).collect()
    }

    fn restart(&mut self, id: u32) {
        let life = self.up.remove(&id).unwrap();
        self.pass(6);
        self.up.insert(id, life + 100);
        // As long as it takes until all have learned, and less than it takes to be at rest.
        self.pass(4);
        assert!(self.chains().iter().all(|chain| chain.replicas.len() == 3));
    }
}

#[test]
fn heads_are_as_placement_has_them_when_those_who_were_away_are_back() {
    let mut world = World::new();
    let before = world.heads();
    assert!((1..=3).all(|id| before.iter().filter(|head| **head == id).count() >= 5), "{before:?}");
    world.restart(1);
    world.restart(2);
    assert_eq!(world.heads(), vec![3; GROUPS as usize]);
    world.pass(20);
    assert_eq!(world.heads(), before);
    assert!(world.chains().iter().all(|c| c.replicas.len() == 3 && c.verifier.0 == 1));
    assert_eq!(world.manager.misled(), 0);
}

#[test]
fn a_chain_is_turned_only_when_its_head_has_stopped_and_goes_on_whoever_remembers_why() {
    let mut world = World::new();
    let before = world.heads();
    world.restart(1);
    world.stop = false;
    world.pass(20);
    let asked = world.hand_overs();
    assert_eq!(asked.len(), 8);
    assert_ne!(world.heads(), before);
    let (group, epoch) = asked[0];
    let chain = |world: &World| world.chains()[group.0 as usize].clone();
    let stopped = chain(&world);
    let say = |world: &mut World, life: u64, epoch: Epoch| {
        let head = chain(world).head().unwrap().server;
        let mut report = world.report(head.0, life);
        report.handed_over = vec![(group, epoch)];
        world.manager.heard(world.now, head, report);
    };
    let life = stopped.head().unwrap().instance.0;
    say(&mut world, life, Epoch(epoch.0 - 1));
    assert_eq!(chain(&world), stopped, "that was another epoch");
    // Another manager goes on with the same map, and has asked nobody.
    let again = Manager::new(world.manager.state().clone(), Config::default(), world.now);
    let with_memory = std::mem::replace(&mut world.manager, again);
    world.pass(1);
    say(&mut world, life, epoch);
    let after = chain(&world);
    assert_eq!((after.replicas, after.epoch.0), (stopped.replicas.clone(), epoch.0 + 1));
    world.manager = with_memory;
    say(&mut world, life, epoch);
    let after = chain(&world);
    assert_eq!((after.epoch.0, after.verifier), (epoch.0 + 1, stopped.verifier));
    assert_eq!(after.head().unwrap().server.0, before[group.0 as usize]);
}
