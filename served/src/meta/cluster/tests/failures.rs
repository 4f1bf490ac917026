//! What the manager decides.

use std::time::Duration;

use netfs_common::id::{Epoch, GroupId, InstanceId, ServerId};
use netfs_common::map::{Chain, Replica};

use super::super::{Config, Manager, Report, State, StoreId};

const SECOND: Duration = Duration::from_secs(1);

fn report(number: u8, version: Epoch) -> Report {
    Report {
        instance: InstanceId(number.into()),
        store: StoreId([number; 16]),
        domain: format!("d{number}"),
        capacity: 1 << 40,
        free: 1 << 40,
        full: false,
        work: netfs_common::wire::cluster::Work::default(),
        version,
        revoked: Vec::new(),
        synced: Vec::new(),
        broken: Vec::new(),
        stalled: Vec::new(),
        handed_over: Vec::new(),
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
