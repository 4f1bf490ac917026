//! The state is an older copy, and data servers have followed later maps.

use std::time::Duration;

use netfs_common::class::Class;
use netfs_common::id::{Epoch, InstanceId, ServerId, Verifier};
use netfs_common::map::{Chain, ClusterMap, Replica, TierMode};

use super::super::manager::NotTaken;
use super::super::{Command, CommandError, Config, Manager, Report, State, StoreId};

const SECOND: Duration = Duration::from_secs(1);

fn report(server: u32, life: u64, version: Epoch) -> Report {
    Report {
        instance: InstanceId(life),
        store: StoreId([server as u8; 16]),
        domain: format!("d{server}"),
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
        followed: version,
    }
}

fn replica(server: u32, life: u64) -> Replica {
    Replica { server: ServerId(server), instance: InstanceId(life) }
}

fn chains(manager: &Manager) -> Vec<Chain> {
    manager.state().groups().map(|(_, _, chain)| chain.clone()).collect()
}

/// Hears these servers, in the life of their number, and what they have to tell.
fn hear(manager: &mut Manager, now: Duration, servers: &[u32]) {
    for server in servers {
        let mut report = report(*server, u64::from(*server), manager.state().version);
        for (group, _, chain) in manager.state().groups() {
            if let (Some(learner), Some(tail)) = (chain.learner, chain.replicas.last())
                && tail.server == ServerId(*server)
            {
                report.synced.push((group, chain.epoch, learner));
            }
        }
        manager.heard(now, ServerId(*server), report);
    }
}

/// Two servers that have all groups, as a copy has it; and what came after that: the second one has died, and a class was added. With `more`, a third server too.
fn two_states(more: bool) -> (State, State) {
    let mut manager = Manager::new(State::default(), Config::default(), Duration::ZERO);
    for addr in ["a:1", "b:1"] {
        manager.meet(Duration::ZERO, vec![addr.into()]);
    }
    manager.ensure_pool(Duration::ZERO, 0, (4, 2), TierMode::Cold);
    let mut now = Duration::ZERO;
    let mut pass = |manager: &mut Manager, seconds: u32, servers: &[u32]| {
        for _ in 0..seconds {
            now += SECOND;
            hear(manager, now, servers);
        }
        now
    };
    pass(&mut manager, 5, &[1, 2]);
    assert!(chains(&manager).iter().all(|chain| chain.replicas.len() == 2));
    let copy = manager.state().clone();
    let now = pass(&mut manager, 10, &[1]);
    assert!(chains(&manager).iter().all(|chain| chain.replicas == [replica(1, 1)]));
    if more {
        manager.command(now, Command::Add(vec!["c:1".into()])).unwrap();
    }
    manager.command(now, Command::Class(0, Class::with_replicas(1).unwrap())).unwrap();
    pass(&mut manager, 5, if more { &[1, 3] } else { &[1] });
    (copy, manager.state().clone())
}

#[test]
fn a_later_map_is_taken_over_when_everybody_has_said_which_one_it_has_followed() {
    let (copy, lost) = two_states(false);
    let mut manager = Manager::new(copy.clone(), Config::default(), Duration::ZERO);
    let later = lost.map();
    // All have been started anew. The one that had been away is there first.
    let next = Epoch(copy.version.0 + 1);
    manager.heard(SECOND / 10, ServerId(2), report(2, 20, next));
    assert_eq!(manager.state(), &copy, "the other one may know better");
    assert_eq!(manager.take_over(SECOND / 10, &later), Err(NotTaken::NotLatest));
    manager.note_followed(ServerId(1), later.version, SECOND / 5);
    assert_eq!(manager.leader(SECOND / 5), Some(ServerId(1)));
    let refused = manager.command(SECOND / 5, Command::Rebalance);
    assert_eq!(refused, Err(CommandError::Outdated(ServerId(1), later.version)));
    manager.tick(SECOND * 3);
    assert_eq!(manager.state(), &copy);
    assert_eq!(manager.take_over(SECOND * 3, &copy.map()), Err(NotTaken::NotLatest));
    assert_eq!(manager.take_over(SECOND * 3, &later), Ok(()));
    let state = manager.state().clone();
    assert_eq!(manager.leader(SECOND * 3), None);
    assert!(state.version.0 > later.version.0 + 1000);
    assert_eq!(state.map().validate(), Ok(()));
    assert_eq!((state.next_server, state.next_group), (lost.next_server, lost.next_group));
    assert_eq!(state.servers[&ServerId(1)], copy.servers[&ServerId(1)]);
    assert_eq!(state.pools.len(), 2);
    for ((_, replicas, chain), (_, wanted, known)) in state.groups().zip(lost.groups()) {
        assert_eq!((replicas, &chain.replicas), (wanted, &known.replicas));
        if known.epoch > Epoch(0) {
            assert!(chain.epoch.0 > known.epoch.0 + 1000);
            assert!(chain.verifier > Verifier(known.verifier.0 + 1000));
        }
    }
    // Only who has everything goes on.
    manager.heard(SECOND * 4, ServerId(2), report(2, 20, state.version));
    let before = chains(&manager);
    for ((_, _, known), before) in lost.groups().zip(&before) {
        let alone = known.replicas == [replica(1, 1)];
        assert!(!alone || before.replicas == known.replicas, "{before:?}");
    }
    assert!(before.iter().any(|chain| chain.replicas == [replica(1, 1)]));
    manager.heard(SECOND * 4, ServerId(1), report(1, 10, state.version));
    let of_first: Vec<_> = before.iter().zip(chains(&manager)).collect();
    for (before, after) in of_first {
        // Where another one was a replica too, that is waited for: it may be there still.
        if before.replicas == [replica(1, 1)] {
            assert!(after.replicas.contains(&replica(1, 10)), "{after:?}");
        }
    }
}

#[test]
fn a_server_that_may_have_followed_a_still_later_map_is_waited_for() {
    let (copy, lost) = two_states(false);
    let mut manager = Manager::new(copy.clone(), Config::default(), Duration::ZERO);
    let later = lost.map();
    let at = |n: u32| SECOND * n;
    for n in 1..20 {
        manager.note_followed(ServerId(1), later.version, at(n));
        manager.tick(at(n));
        assert_eq!(manager.take_over(at(n), &later), Err(NotTaken::Awaited(ServerId(2))));
    }
    assert_eq!(manager.state(), &copy, "nothing is decided meanwhile");
    let still_later = Epoch(later.version.0 + 1);
    manager.note_followed(ServerId(2), still_later, at(20));
    assert_eq!(manager.leader(at(20)), Some(ServerId(2)));
    assert_eq!(manager.take_over(at(20), &later), Err(NotTaken::NotLatest));
    let mut map = later.clone();
    map.version = still_later;
    assert_eq!(manager.take_over(at(20), &map), Ok(()));
}

/// What becomes of a later map when all have been heard, as `change` leaves it.
fn taken(more: bool, change: impl FnOnce(&mut Manager, &mut ClusterMap)) -> Result<(), NotTaken> {
    taken_from(&[1, 2], more, change)
}

/// The same when these servers have followed it.
fn taken_from(
    servers: &[u32],
    more: bool,
    change: impl FnOnce(&mut Manager, &mut ClusterMap),
) -> Result<(), NotTaken> {
    let (copy, lost) = two_states(more);
    let mut manager = Manager::new(copy, Config::default(), Duration::ZERO);
    let mut later = lost.map();
    change(&mut manager, &mut later);
    for server in servers {
        manager.note_followed(ServerId(*server), later.version, SECOND);
    }
    let before = manager.state().clone();
    let taken = manager.take_over(SECOND, &later);
    if taken.is_err() {
        assert_eq!(manager.state(), &before);
        assert!(manager.is_frozen(SECOND));
    }
    taken
}

#[test]
fn a_later_map_by_which_something_could_be_lost_is_not_taken_over() {
    assert_eq!(taken(false, |_, _| {}), Ok(()));
    assert_eq!(taken(true, |_, _| {}), Err(NotTaken::Servers(ServerId(3))));
    let moved = |_: &mut Manager, map: &mut ClusterMap| map.servers[1].addrs = vec!["d:1".into()];
    assert_eq!(taken(false, moved), Err(NotTaken::Servers(ServerId(2))));
    // A volume that was made at the start.
    let made = |manager: &mut Manager, _: &mut ClusterMap| {
        manager.ensure_pool(Duration::ZERO, 7, (8, 2), TierMode::Primary);
    };
    assert_eq!(taken(false, made), Err(NotTaken::Decided));
    let removed = |_: &mut Manager, map: &mut ClusterMap| {
        map.pools.retain(|pool| pool.class != Class::DEFAULT);
    };
    assert_eq!(taken(false, removed), Err(NotTaken::Volume(0)));
    let back = |_: &mut Manager, map: &mut ClusterMap| map.pools[0].chains[0].epoch = Epoch(0);
    let absurd = |_: &mut Manager, map: &mut ClusterMap| map.version = Epoch(u64::MAX);
    let spent = |_: &mut Manager, map: &mut ClusterMap| {
        map.pools[0].chains[0].epoch = Epoch(u64::from(u32::MAX));
    };
    assert!(matches!(taken(false, back), Err(NotTaken::Epochs | NotTaken::Map(_))));
    let other = |manager: &mut Manager, _: &mut ClusterMap| {
        let version = manager.state().version;
        manager.note_followed(ServerId(2), version, SECOND);
    };
    assert_eq!(taken_from(&[1], false, other), Err(NotTaken::Followed(ServerId(2))));
    assert_eq!(taken(false, absurd), Err(NotTaken::Epochs));
    assert_eq!(taken(false, spent), Err(NotTaken::Epochs));
}

#[test]
fn who_still_has_a_map_that_others_have_given_up_does_not_lead_again() {
    let (copy, lost) = two_states(true);
    let mut manager = Manager::new(copy.clone(), Config::default(), Duration::ZERO);
    let later = lost.version;
    manager.heard(SECOND, ServerId(1), report(1, 1, later));
    assert_eq!(manager.leader(SECOND), Some(ServerId(1)));
    // An operator has taken it from the one that was heard.
    manager.heard(SECOND * 2, ServerId(1), report(1, 2, copy.version));
    manager.heard(SECOND * 2, ServerId(2), report(2, 2, copy.version));
    assert!(manager.state().version > later, "{:?}", manager.state().version);
    manager.note_followed(ServerId(2), later, SECOND * 3);
    assert_eq!(manager.leader(SECOND * 3), None);
}
