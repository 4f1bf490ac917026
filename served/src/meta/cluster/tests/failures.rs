//! What the manager decides.

use std::collections::BTreeMap;
use std::time::Duration;

use netfs_common::id::{Epoch, GroupId, InstanceId, ServerId};
use netfs_common::map::{Chain, Replica};

use super::super::{Command, Config, Manager, Report, State, StoreId, Verdict};

pub(super) const SECOND: Duration = Duration::from_secs(1);

pub(super) fn report(number: u8, version: Epoch) -> Report {
    Report {
        instance: InstanceId(number.into()),
        store: StoreId([number; 16]),
        domain: format!("d{number}"),
        capacity: 1 << 40,
        free: 1 << 40,
        full: false,
        lacks: false,
        locked: Vec::new(),
        work: netfs_common::wire::cluster::Work::default(),
        version,
        revoked: Vec::new(),
        synced: Vec::new(),
        broken: Vec::new(),
        stalled: Vec::new(),
        handed_over: Vec::new(),
        followed: Epoch(0),
    }
}

fn chain(manager: &Manager) -> Chain {
    manager.state().groups().next().map(|(_, _, chain)| chain.clone()).unwrap()
}

fn one_server(replicas: u8) -> Manager {
    let mut manager = Manager::new(State::default(), Config::default(), Duration::ZERO);
    manager.meet(Duration::ZERO, vec!["a:1".into()]);
    manager.ensure_pool(Duration::ZERO, 0, (1, replicas), netfs_common::map::TierMode::Cold);
    manager.heard(SECOND, ServerId(1), report(1, Epoch(0)));
    assert_eq!(chain(&manager).replicas.len(), 1);
    manager
}

#[test]
fn the_only_replica_that_cannot_store_is_tried_again_more_and_more_rarely() {
    let mut manager = one_server(1);
    let (mut now, mut tried) = (SECOND, Vec::new());
    while now < SECOND * 900 {
        now += SECOND / 10;
        let before = chain(&manager);
        let broken = vec![(GroupId(0), before.epoch)];
        manager.heard(now, ServerId(1), Report { broken, ..report(1, manager.state().version) });
        let after = chain(&manager);
        assert_eq!(after.replicas, before.replicas, "nobody else has what it has");
        if after.epoch != before.epoch {
            tried.push(now.as_secs());
        }
    }
    assert!((5..=9).contains(&tried.len()), "{tried:?}");
    assert!(tried.windows(3).all(|t| t[2] - t[1] + 1 >= t[1] - t[0]), "{tried:?}");
    assert_eq!(manager.failing(), [(ServerId(1), 1)].into());
    // It goes on for long: that is forgotten.
    for _ in 0..1000 {
        now += SECOND;
        manager.heard(now, ServerId(1), report(1, manager.state().version));
    }
    assert!(manager.failing().is_empty());
}

#[test]
fn nobody_learns_from_a_replica_that_has_just_failed_and_another_takes_its_place_in_the_end() {
    let mut manager = one_server(2);
    let mut now = SECOND * 2;
    manager.meet(now, vec!["b:1".into()]);
    let hear = |manager: &mut Manager, now: Duration, broken, synced| {
        let version = manager.state().version;
        manager.heard(now, ServerId(1), Report { broken, synced, ..report(1, version) });
        manager.heard(now, ServerId(2), report(2, version));
    };
    hear(&mut manager, now, Vec::new(), Vec::new());
    let learner = Replica { server: ServerId(2), instance: InstanceId(2) };
    assert_eq!(chain(&manager).learner, Some(learner));
    let failed = vec![(GroupId(0), chain(&manager).epoch)];
    hear(&mut manager, now, failed, Vec::new());
    assert_eq!(chain(&manager).learner, None, "clients hear what its disk says");
    while chain(&manager).learner.is_none() {
        assert!(now < SECOND * 60, "it is never tried again");
        now += SECOND;
        hear(&mut manager, now, Vec::new(), Vec::new());
    }
    assert!(now >= SECOND * 7, "it was given time");
    let synced = vec![(GroupId(0), chain(&manager).epoch, learner)];
    hear(&mut manager, now, Vec::new(), synced);
    assert_eq!(chain(&manager).replicas.len(), 2);
    let failed = vec![(GroupId(0), chain(&manager).epoch)];
    hear(&mut manager, now, failed, Vec::new());
    assert_eq!(chain(&manager).replicas, [learner], "there is another one now");
    assert!(manager.failing().is_empty());
}

/// Two servers with the only group, which are both away for so long that the chain counts on nobody.
fn both_away() -> (Manager, Duration) {
    let mut manager = one_server(2);
    let mut now = SECOND * 2;
    manager.meet(now, vec!["b:1".into()]);
    manager.heard(now, ServerId(2), report(2, Epoch(0)));
    let learner = Replica { server: ServerId(2), instance: InstanceId(2) };
    let synced = vec![(GroupId(0), chain(&manager).epoch, learner)];
    manager.heard(now, ServerId(1), Report { synced, ..report(1, manager.state().version) });
    assert_eq!(chain(&manager).replicas.len(), 2);
    // Both at once: each of them is waited for.
    now += SECOND * 20;
    manager.tick(now);
    assert_eq!(chain(&manager).replicas.len(), 2);
    (manager, now)
}

/// A server is back in another life.
fn back(manager: &mut Manager, now: Duration, number: u8, lacks: bool) {
    let instance = InstanceId(u64::from(number) + 10);
    let version = manager.state().version;
    let server = ServerId(number.into());
    manager.heard(now, server, Report { instance, lacks, ..report(number, version) });
}

#[test]
fn who_was_dead_before_the_metadata_server_stood_still_is_not_counted_on_afterwards() {
    let (mut manager, before) = both_away();
    let whole = chain(&manager);
    let now = before + SECOND * 60;
    manager.everybody_heard(before, now);
    // The second one is back. If the first one were taken for alive, the chain would go on with it alone.
    back(&mut manager, now, 2, true);
    manager.tick(now);
    assert_eq!(
        chain(&manager).replicas,
        whole.replicas,
        "it waits for the first one, with everything"
    );
    back(&mut manager, now, 1, false);
    manager.tick(now);
    assert_eq!(chain(&manager).replicas[0].server, ServerId(1));
    // Who was there when it stood still is not blamed.
    let later = now + SECOND * 60;
    manager.everybody_heard(now, later);
    assert_eq!(manager.verdict(ServerId(1), later), Verdict::Alive);
}

#[test]
fn a_server_whose_disk_has_lost_data_lets_the_others_go_first() {
    let (mut manager, mut now) = both_away();
    let before = chain(&manager);
    back(&mut manager, now, 1, true);
    now += SECOND;
    manager.tick(now);
    assert_eq!(chain(&manager), before, "the other one may have everything");
    let held = manager.held(now);
    let of_first = &held[&ServerId(1)];
    assert_eq!((held.len(), of_first.groups), (1, 1));
    assert_eq!(of_first.awaited, [ServerId(2)].into());
    back(&mut manager, now, 2, false);
    let after = chain(&manager);
    assert_eq!(after.replicas, [Replica { server: ServerId(2), instance: InstanceId(12) }]);
    assert_eq!(after.learner, Some(Replica { server: ServerId(1), instance: InstanceId(11) }));
    assert!(after.verifier > before.verifier);
    assert!(manager.held(now).is_empty());
}

#[test]
fn servers_whose_disks_have_lost_data_go_on_when_nobody_is_left_to_wait_for() {
    // All are back.
    let (mut manager, now) = both_away();
    back(&mut manager, now, 2, true);
    back(&mut manager, now, 1, true);
    assert_eq!(chain(&manager).replicas[0].server, ServerId(1));
    // An operator says that the other one is lost.
    let (mut manager, now) = both_away();
    back(&mut manager, now, 1, true);
    assert_eq!(chain(&manager).replicas.len(), 2);
    assert_eq!(manager.loss(now, ServerId(2)).unwrap().spared, 0, "nobody else has everything");
    manager.command(now, Command::GiveUp(ServerId(2), BTreeMap::new())).unwrap();
    let first = Replica { server: ServerId(1), instance: InstanceId(11) };
    assert_eq!(chain(&manager).replicas, [first]);
    // There never was another one.
    let mut manager = one_server(1);
    back(&mut manager, SECOND * 30, 1, true);
    assert_eq!(chain(&manager).replicas, [first]);
}

#[test]
fn groups_of_a_volume_go_to_servers_that_have_its_key() {
    let mut manager = Manager::new(State::default(), Config::default(), Duration::ZERO);
    for id in 1..=3 {
        manager.meet(Duration::ZERO, vec![format!("s{id}:1")]);
    }
    let mut now = Duration::ZERO;
    let mut pass = |manager: &mut Manager, locked: &[u64]| {
        for _ in 0..100 {
            now += SECOND / 2;
            for number in 1..=3u8 {
                let id = ServerId(number.into());
                let mut said = report(number, manager.state().version);
                said.revoked = manager.revocations(id);
                for (group, _, chain) in manager.state().groups() {
                    let tail = chain.replicas.last().map(|tail| tail.server);
                    if let (true, Some(learner)) = (tail == Some(id), chain.learner) {
                        said.synced.push((group, chain.epoch, learner));
                    }
                }
                if number == 3 {
                    said.locked = locked.to_vec();
                }
                manager.heard(now, id, said);
            }
            manager.tick(now);
        }
    };
    let of_third = |manager: &Manager, volume: u64| {
        let pool = manager.state().pools.iter().find(|of| of.pool.volume == volume).unwrap();
        assert!(pool.pool.chains.iter().all(|chain| chain.replicas.len() == 2));
        pool.pool.chains.iter().filter(|chain| chain.has(ServerId(3))).count()
    };
    for volume in [0, 1] {
        let tier = netfs_common::map::TierMode::Cold;
        manager.ensure_pool(Duration::ZERO, volume, (16, 2), tier);
    }
    pass(&mut manager, &[]);
    let share = of_third(&manager, 1);
    assert!(of_third(&manager, 0) > 0 && share > 0);
    // It has no key for one of them: what it has of that goes elsewhere.
    pass(&mut manager, &[0]);
    assert_eq!((of_third(&manager, 0), of_third(&manager, 1)), (0, share));
    pass(&mut manager, &[]);
    assert!(of_third(&manager, 0) > 0);
}

#[test]
fn chains_span_the_domains_that_the_servers_name() {
    let mut manager = Manager::new(State::default(), Config::default(), Duration::ZERO);
    for id in 1..=4 {
        manager.meet(Duration::ZERO, vec![format!("s{id}:1")]);
    }
    let mut now = Duration::ZERO;
    let mut pass = |manager: &mut Manager, domains: [&str; 4]| {
        for _ in 0..200 {
            now += SECOND / 2;
            for (number, domain) in (1..=4u8).zip(domains) {
                let id = ServerId(number.into());
                let mut said = report(number, manager.state().version);
                said.domain = domain.to_owned();
                said.revoked = manager.revocations(id);
                for (group, _, chain) in manager.state().groups() {
                    let tail = chain.replicas.last().map(|tail| tail.server);
                    if let (true, Some(learner)) = (tail == Some(id), chain.learner) {
                        said.synced.push((group, chain.epoch, learner));
                    }
                }
                manager.heard(now, id, said);
            }
            manager.tick(now);
        }
    };
    let span = |manager: &Manager, domains: [&str; 4]| {
        for (group, _, chain) in manager.state().groups() {
            let of = |replica: &Replica| domains[replica.server.0 as usize - 1];
            let names: Vec<_> = chain.replicas.iter().map(of).collect();
            assert!(names.len() == 2 && names[0] != names[1], "{group}: {:?}", chain.replicas);
        }
    };
    let domains = ["one room", "one room", "another", "another"];
    pass(&mut manager, domains);
    let tier = netfs_common::map::TierMode::Cold;
    manager.ensure_pool(Duration::ZERO, 0, (64, 2), tier);
    span(&manager, domains);
    pass(&mut manager, domains);
    span(&manager, domains);
    // Two of them change places.
    let domains = ["one room", "another", "one room", "another"];
    pass(&mut manager, domains);
    span(&manager, domains);
}
