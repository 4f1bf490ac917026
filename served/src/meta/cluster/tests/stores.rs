//! Directories and addresses that were moved, exchanged or copied.

use std::collections::BTreeMap;
use std::time::Duration;

use netfs_common::id::{Epoch, GroupId, InstanceId, ServerId};
use netfs_common::map::{Chain, TierMode};

use super::super::{Command, CommandError, Config, Duty, Manager, Report, State, StoreId, Verdict};

const STEP: Duration = Duration::from_millis(500);
const SECOND: Duration = Duration::from_secs(1);

/// A process, with a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    life: u64,
    store: u8,
    /// It finds that it lacks something, as soon as it has the map.
    is_old: bool,
}

fn process(life: u64, store: u8) -> Process {
    Process { life, store, is_old: false }
}

struct World {
    manager: Manager,
    now: Duration,
    /// Who answers at which address.
    at: BTreeMap<String, Process>,
    /// What a process was told last: its number, and the version of the map.
    told: BTreeMap<u64, (ServerId, Epoch)>,
}

impl World {
    fn new(servers: u8, replicas: u8) -> World {
        let config = Config { repair_after: SECOND * 30, ..Config::default() };
        let mut manager = Manager::new(State::default(), config, Duration::ZERO);
        let mut at = BTreeMap::new();
        for id in 1..=servers {
            manager.meet(Duration::ZERO, vec![format!("a{id}:1")]);
            at.insert(format!("a{id}:1"), process(u64::from(id) * 100, id));
        }
        let mut world = World { manager, now: Duration::ZERO, at, told: BTreeMap::new() };
        world.pass(SECOND);
        world.manager.ensure_pool(world.now, 0, (16, replicas), TierMode::Cold);
        world.pass(SECOND);
        assert!(world.chains().iter().all(|c| c.replicas.len() == usize::from(replicas)));
        world
    }

    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.now += STEP;
            let ids: Vec<_> = self.manager.state().servers.keys().copied().collect();
            for id in ids {
                self.call(id);
            }
            self.manager.tick(self.now);
        }
    }

    /// What a process says of itself.
    fn report(&self, process: Process) -> Report {
        let told = self.told.get(&process.life);
        Report {
            instance: InstanceId(process.life),
            store: StoreId([process.store; 16]),
            domain: format!("d{}", process.store),
            capacity: 1 << 40,
            free: 1 << 39,
            full: false,
            lacks: process.is_old && told.is_some(),
            locked: Vec::new(),
            work: netfs_common::wire::cluster::Work::default(),
            version: told.map_or(Epoch(0), |(_, version)| *version),
            revoked: Vec::new(),
            synced: Vec::new(),
            broken: Vec::new(),
            stalled: Vec::new(),
            handed_over: Vec::new(),
            followed: Epoch(0),
        }
    }

    /// One sign of life, as the shell asks for it.
    fn call(&mut self, id: ServerId) {
        let Some(known) = self.manager.state().servers.get(&id) else { return };
        let Some(process) = self.at.get(&known.addrs[0]).copied() else { return };
        let instance = InstanceId(process.life);
        let number = self.manager.number(id, instance);
        if let Some((number, _)) = number {
            self.told.insert(process.life, (number, self.manager.state().version));
        }
        let told = self.told.get(&process.life).copied();
        let mut report = self.report(process);
        if number.is_some_and(|(_, is_it)| is_it) {
            report.revoked = self.manager.revocations(id);
        }
        let me = told.map(|(number, _)| number);
        for (group, _, chain) in self.manager.state().groups() {
            let tail = chain.replicas.last();
            let is_tail = tail.is_some_and(|t| Some(t.server) == me && t.instance == instance);
            if let (true, Some(learner)) = (is_tail, chain.learner) {
                report.synced.push((group, chain.epoch, learner));
            }
        }
        match report.version {
            Epoch(0) => self.manager.greeted(id, instance, report.store),
            _ => drop(self.manager.heard(self.now, id, report)),
        }
    }

    /// The life in which a server is heard.
    fn life(&self, id: u32) -> Option<u64> {
        let health = self.manager.health(ServerId(id), self.now);
        health.report.filter(|_| health.verdict == Verdict::Alive).map(|r| r.instance.0)
    }

    fn chains(&self) -> Vec<Chain> {
        self.manager.state().groups().map(|(_, _, chain)| chain.clone()).collect()
    }

    fn add(&mut self, addr: &str) -> Result<bool, CommandError> {
        self.manager.command(self.now, Command::Add(vec![addr.into()]))
    }

    fn addr(&self, id: u32) -> Option<String> {
        self.manager.state().servers.get(&ServerId(id)).map(|server| server.addrs[0].clone())
    }

    fn garbage(&self, id: u32) -> Vec<GroupId> {
        let all = self.manager.garbage(ServerId(id), self.now);
        all.into_iter().map(|(group, _)| group).collect()
    }

    /// The server at this address is started anew, with another directory or at another address.
    fn restart(&mut self, from: &str, to: &str, life: u64) {
        let store = self.at.remove(from).unwrap().store;
        self.at.insert(to.into(), process(life, store));
    }

    fn restart_manager(&mut self) {
        let (state, config) = (self.manager.state().clone(), self.manager.config());
        self.manager = Manager::new(state, config, self.now);
    }

    /// Two servers are started anew, each with the other one's directory.
    fn exchange(&mut self, one: &str, other: &str, life: u64) {
        let (a, b) = (self.at[one], self.at[other]);
        self.at.insert(one.into(), process(life, b.store));
        self.at.insert(other.into(), process(life + 1, a.store));
    }

    /// All groups are there, with servers that are what they should be.
    fn assert_whole(&self) {
        for (id, server) in &self.manager.state().servers {
            let there = self.at[&server.addrs[0]].store;
            assert_eq!(server.store, Some(StoreId([there; 16])), "data server {id}");
            assert_eq!(self.manager.is_astray(*id, self.now), None);
        }
        for chain in self.chains() {
            let lives: Vec<_> = self.at.values().map(|process| process.life).collect();
            assert!(chain.replicas.iter().all(|r| lives.contains(&r.instance.0)), "{chain:?}");
        }
    }
}

#[test]
fn a_copy_beside_its_original_is_left_alone_whatever_becomes_of_that() {
    let mut world = World::new(3, 1);
    world.at.insert("b:1".into(), process(901, 1));
    world.add("b:1").unwrap();
    world.pass(SECOND * 60);
    assert!((1..=3).all(|id| !world.garbage(id).is_empty()));
    assert_eq!(world.garbage(4), [], "it has a copy of what the first one has");
    let found = world.manager.is_astray(ServerId(4), world.now).unwrap();
    assert!(found.owner == ServerId(1) && found.is_there && found.is_new && found.is_refused);
    // The original is away for a while, and so is what knew of both.
    let before = world.chains();
    let original = world.at.remove("a1:1").unwrap();
    world.pass(SECOND * 10);
    world.restart_manager();
    world.pass(SECOND * 60);
    assert_eq!(world.chains(), before);
    assert_eq!(world.addr(1).unwrap(), "a1:1");
    assert_eq!((world.garbage(1), world.garbage(4)), (vec![], vec![]));
    let lost = world.manager.loss(world.now, ServerId(1));
    assert_eq!(lost, Err(CommandError::Elsewhere(ServerId(1), ServerId(4))));
    world.at.insert("a1:1".into(), Process { life: 102, ..original });
    world.pass(SECOND * 2);
    assert_eq!(world.add("b:1"), Err(CommandError::Twin(ServerId(4), ServerId(1))));
    world.at.remove("b:1");
    world.manager.command(world.now, Command::Remove(ServerId(4))).unwrap();
    world.pass(SECOND * 2);
    world.assert_whole();
}

#[test]
fn an_operator_has_a_copy_take_the_place_of_its_original() {
    let mut world = World::new(2, 1);
    world.at.insert("b:1".into(), process(901, 1));
    world.add("b:1").unwrap();
    world.pass(SECOND * 5);
    assert_eq!(world.manager.state().servers[&ServerId(3)].duty, Duty::Draining);
    world.at.remove("a1:1");
    world.pass(SECOND * 10);
    assert_eq!(world.addr(1).unwrap(), "a1:1");
    world.add("b:1").unwrap();
    assert_eq!((world.addr(1).unwrap(), world.addr(3)), ("b:1".into(), None));
    world.pass(SECOND * 2);
    world.assert_whole();
    // The original comes back, at an address that is named somewhere: now this is the copy.
    world.at.insert("a1:1".into(), process(102, 1));
    world.manager.meet(world.now, vec!["a1:1".into()]);
    world.pass(SECOND * 60);
    assert_eq!(world.garbage(4), []);
    assert_eq!(world.addr(1).unwrap(), "b:1");
}

#[test]
fn two_copies_of_one_that_is_away_are_both_left_alone() {
    let mut world = World::new(2, 1);
    world.at.insert("b:1".into(), process(901, 1));
    world.at.insert("c:1".into(), process(902, 1));
    world.add("b:1").unwrap();
    world.add("c:1").unwrap();
    world.pass(SECOND * 2);
    world.at.remove("a1:1");
    world.pass(SECOND * 20);
    assert_eq!(world.addr(1).unwrap(), "a1:1");
}

#[test]
fn a_server_that_has_moved_keeps_its_number() {
    for restarts in [false, true] {
        let mut world = World::new(3, 2);
        let before = world.chains();
        world.restart("a1:1", "b:1", 101);
        if restarts {
            world.restart_manager();
        }
        world.add("b:1").unwrap();
        world.pass(SECOND * 4);
        assert_eq!(world.addr(1).unwrap(), "a1:1", "it is not known to be gone");
        world.pass(SECOND * 4);
        assert_eq!((world.addr(1).unwrap(), world.addr(4)), ("b:1".into(), None));
        world.pass(SECOND * 4);
        world.assert_whole();
        assert!(
            world.chains().iter().zip(&before).all(|(a, b)| a.replicas.len() == b.replicas.len())
        );
    }
}

#[test]
fn an_older_copy_takes_no_place_by_itself_and_has_to_look_first() {
    let mut world = World::new(2, 1);
    world.at.remove("a1:1");
    world.pass(SECOND * 10);
    world.at.insert("b:1".into(), Process { is_old: true, ..process(901, 1) });
    world.add("b:1").unwrap();
    world.pass(SECOND * 60);
    assert_eq!(world.addr(1).unwrap(), "a1:1");
    assert_eq!(world.told[&901].0, ServerId(1), "else it compares what is another server's");
    assert!(world.manager.is_astray(ServerId(3), world.now).unwrap().lacks);
    assert_eq!(world.garbage(3), []);
    world.add("b:1").unwrap();
    assert_eq!((world.addr(1).unwrap(), world.addr(3)), ("b:1".into(), None));
}

#[test]
fn nothing_is_removed_where_something_is_missing() {
    let mut world = World::new(3, 1);
    world.pass(SECOND * 40);
    assert!(!world.garbage(1).is_empty());
    let first = world.at.get_mut("a1:1").unwrap();
    first.is_old = true;
    world.pass(SECOND);
    assert_eq!(world.garbage(1), []);
    // Nor with a store of which nobody knows.
    world.at.insert("a2:1".into(), process(201, 9));
    world.pass(SECOND);
    assert_eq!(world.garbage(2), []);
}

#[test]
fn servers_with_exchanged_directories_are_found_where_they_are() {
    for (replicas, restarts) in [(1, false), (2, false), (2, true)] {
        let mut world = World::new(3, replicas);
        let before = world.chains();
        world.exchange("a1:1", "a2:1", 901);
        if restarts {
            world.restart("a3:1", "a3:1", 301);
            world.restart_manager();
        }
        world.pass(SECOND * 2);
        assert_eq!(
            (world.addr(1).unwrap(), world.addr(2).unwrap()),
            ("a2:1".into(), "a1:1".into())
        );
        world.pass(SECOND * 10);
        world.assert_whole();
        assert!(
            world.chains().iter().zip(&before).all(|(a, b)| a.replicas.len() == b.replicas.len())
        );
        // And back.
        world.exchange("a1:1", "a2:1", 911);
        world.pass(SECOND * 12);
        world.assert_whole();
        assert_eq!(world.addr(1).unwrap(), "a1:1");
        // It has come to rest.
        let version = world.manager.state().version;
        world.pass(SECOND * 5);
        assert_eq!(world.manager.state().version, version);
    }
}

#[test]
fn addresses_that_are_exchanged_under_way_cost_nobody_a_place() {
    let mut world = World::new(3, 2);
    let before = world.chains();
    let (a, b) = (world.at["a1:1"], world.at["a2:1"]);
    world.at.insert("a1:1".into(), b);
    world.at.insert("a2:1".into(), a);
    world.pass(SECOND * 2);
    assert_eq!(world.addr(1).unwrap(), "a2:1");
    assert_eq!(world.chains(), before, "a life goes on");
    // Who is cut off meanwhile still has the right to answer reads, until its deadline is over.
    world.at.remove("a2:1");
    world.pass(SECOND * 2);
    assert_eq!(world.chains(), before);
}

#[test]
fn three_directories_in_a_ring_are_found_step_by_step() {
    let mut world = World::new(3, 1);
    let stores = [("a1:1", 2), ("a2:1", 3), ("a3:1", 1)];
    for (addr, store) in stores {
        world.at.insert(addr.into(), process(900 + u64::from(store), store));
    }
    world.pass(SECOND * 5);
    world.assert_whole();
    assert_eq!(world.addr(1).unwrap(), "a3:1");
}

#[test]
fn nothing_is_exchanged_with_a_server_that_is_there_or_merely_silent() {
    // The first one has a copy of the second one's directory.
    let mut world = World::new(3, 1);
    world.at.insert("a1:1".into(), process(901, 2));
    world.pass(SECOND * 60);
    assert_eq!((world.addr(1).unwrap(), world.addr(2).unwrap()), ("a1:1".into(), "a2:1".into()));
    let found = world.manager.is_astray(ServerId(1), world.now).unwrap();
    assert!(found.owner == ServerId(2) && found.is_there && !found.is_new);
    assert_eq!(world.garbage(1), []);
    assert!(world.chains().iter().all(|c| c.members().all(|r| r.instance != InstanceId(901))));
    // The other one is away, and comes back with the directory of the first: then the copy has been seen beside it.
    world.at.remove("a2:1");
    world.pass(SECOND * 60);
    assert_eq!((world.addr(1).unwrap(), world.addr(2).unwrap()), ("a1:1".into(), "a2:1".into()));
    let found = world.manager.is_astray(ServerId(1), world.now).unwrap();
    assert!(found.owner == ServerId(2) && !found.is_there);
    assert_eq!(
        world.manager.loss(world.now, ServerId(2)),
        Err(CommandError::Elsewhere(ServerId(2), ServerId(1)))
    );
}

#[test]
fn what_another_server_refuses_is_not_refused_by_the_one_that_is_looked_for() {
    let mut world = World::new(3, 2);
    let before = world.chains();
    let (group, chain) = (0..)
        .zip(&before)
        .find(|(_, chain)| chain.has(ServerId(1)))
        .map(|(index, chain)| (GroupId(index), chain.clone()))
        .unwrap();
    let relearn = Command::Relearn(group, chain.epoch, ServerId(1));
    world.manager.command(world.now, relearn).unwrap();
    assert_eq!(world.manager.revocations(ServerId(1)), [(group, chain.epoch)]);
    // The second one's store answers there, of the same life.
    let second = world.at["a2:1"];
    world.at.remove("a2:1");
    world.at.insert("a1:1".into(), second);
    world.now += STEP;
    world.call(ServerId(1));
    world.call(ServerId(1));
    assert_eq!(world.manager.number(ServerId(1), InstanceId(200)), Some((ServerId(2), false)));
    assert_eq!(world.chains(), before);
}

#[test]
fn a_server_is_heard_again_that_comes_after_another_one_was_at_its_address() {
    let mut world = World::new(3, 1);
    let own = world.at["a1:1"];
    world.at.insert("a1:1".into(), process(500, 2));
    world.pass(SECOND * 20);
    assert!(world.manager.is_astray(ServerId(1), world.now).is_some());
    assert_eq!(world.life(1), None);
    world.at.insert("a1:1".into(), process(600, own.store));
    world.pass(SECOND * 2);
    assert_eq!(world.life(1), Some(600));
    assert!(world.manager.is_astray(ServerId(1), world.now).is_none());
    assert!(world.chains().iter().all(|c| c.replicas.len() == 1), "it has come back to its groups");
    let back = |c: &Chain| c.replicas[0].server != ServerId(1) || c.replicas[0].instance.0 == 600;
    assert!(world.chains().iter().all(back));
}

#[test]
fn a_server_that_has_moved_and_is_started_anew_while_it_waits_takes_its_place_all_the_same() {
    let mut world = World::new(3, 1);
    world.add("a9:1").unwrap();
    world.restart("a1:1", "a9:1", 500);
    world.pass(SECOND * 2);
    world.restart("a9:1", "a9:1", 600);
    world.pass(SECOND * 20);
    assert_eq!((world.life(1), world.addr(1).as_deref()), (Some(600), Some("a9:1")));
}

#[test]
fn nothing_is_decided_by_a_state_that_is_older_than_the_map_that_servers_go_by() {
    let mut world = World::new(4, 2);
    let copy = world.manager.state().clone();
    world.manager.command(world.now, Command::Drain(ServerId(1))).unwrap();
    world.pass(SECOND * 60);
    let there = |world: &World| world.chains().iter().filter(|c| c.has(ServerId(1))).count();
    assert_eq!(there(&world), 0);
    assert!(world.manager.state().version > copy.version);
    let config = world.manager.config();
    world.manager = Manager::new(copy.clone(), config, world.now);
    world.pass(SECOND * 600);
    assert!(there(&world) > 0 && world.manager.state() == &copy);
    assert_eq!(world.manager.ahead().len(), 4);
    assert!((1..=4).all(|id| world.garbage(id).is_empty()));
    let refused = world.manager.command(world.now, Command::Rebalance);
    assert!(matches!(refused, Err(CommandError::Outdated(..))), "{refused:?}");
    // In their next lives they go by what there is: they see to it themselves that nothing is swept. Who comes first does not lose to who comes last.
    for id in 1..=4u64 {
        let addr = format!("a{id}:1");
        world.restart(&addr, &addr, 1000 + id);
        world.pass(SECOND * 8);
        assert_eq!(world.manager.ahead().len() as u64, 4 - id);
    }
    assert!((1..=4).all(|id| world.life(id).is_some()));
    let heads =
        |chains: Vec<Chain>| chains.iter().map(|c| c.replicas[0].server).collect::<Vec<_>>();
    let then = copy.groups().map(|(_, _, chain)| chain.clone()).collect();
    assert_eq!(heads(world.chains()), heads(then));
}

#[test]
fn one_that_is_ahead_and_is_gone_for_good_holds_nothing_up() {
    let mut world = World::new(3, 2);
    let copy = world.manager.state().clone();
    world.manager.command(world.now, Command::Drain(ServerId(1))).unwrap();
    world.pass(SECOND * 60);
    world.manager = Manager::new(copy, world.manager.config(), world.now);
    world.at.remove("a1:1");
    for id in 2..=3u64 {
        let addr = format!("a{id}:1");
        world.restart(&addr, &addr, 1000 + id);
    }
    world.manager.heard(world.now, ServerId(1), {
        let mut report = world.report(process(100, 1));
        report.version = Epoch(1 << 20);
        report
    });
    world.pass(SECOND * 2);
    assert_eq!(world.manager.ahead().len(), 1);
    world.pass(SECOND * 60);
    assert!(world.manager.ahead().is_empty());
    assert!(world.chains().iter().all(|c| c.replicas.len() == 2 && !c.has(ServerId(1))));
}
