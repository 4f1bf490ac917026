//! What the manager decides.

use std::time::Duration;

use netfs_common::class::Class;
use netfs_common::id::{Epoch, InstanceId, ServerId};
use netfs_common::wire::cluster::Work;

use super::super::*;

const SERVERS: [ServerId; 3] = [ServerId(1), ServerId(2), ServerId(3)];

fn manager() -> Manager {
    let mut manager = Manager::new(State::default(), Config::default(), Duration::ZERO);
    for id in SERVERS {
        manager.command(Duration::ZERO, Command::Add(vec![format!("h:{id}")])).unwrap();
    }
    manager.ensure_pool(Duration::ZERO, 0, (64, 1), netfs_common::map::TierMode::Cold);
    manager
}

/// A server has so many calls at work on the average.
fn report(id: ServerId, now: Duration, load: u64) -> Report {
    let micros = u64::try_from(now.as_micros()).unwrap();
    Report {
        instance: InstanceId(u64::from(id.0)),
        store: StoreId([id.0 as u8; 16]),
        domain: String::new(),
        capacity: 1 << 40,
        free: 1 << 40,
        full: false,
        lacks: false,
        locked: Vec::new(),
        work: Work { calls: micros / 100, busy_us: micros * load },
        version: Epoch(0),
        revoked: Vec::new(),
        synced: Vec::new(),
        broken: Vec::new(),
        stalled: Vec::new(),
        handed_over: Vec::new(),
        followed: Epoch(0),
    }
}

/// All servers are heard every second for a while.
fn pass(manager: &mut Manager, from: u64, to: u64, loads: [u64; 3]) {
    for secs in from..to {
        let now = Duration::from_secs(secs);
        for (id, load) in SERVERS.into_iter().zip(loads) {
            manager.heard(now, id, report(id, now, load));
        }
    }
}

fn weights(manager: &Manager) -> Vec<(u32, u8)> {
    manager.state().servers.values().map(|s| (s.weight, s.share.percent())).collect()
}

#[test]
fn load_moves_nothing_before_an_operator_asks_and_then_its_share() {
    let mut manager = manager();
    pass(&mut manager, 0, 600, [1, 1, 6]);
    assert_eq!(weights(&manager), [(128, 100); 3]);
    let wanted = |manager: &Manager| {
        let state = manager.state();
        let servers: Vec<_> = state
            .servers
            .iter()
            .map(|(id, s)| Candidate { id: *id, weight: s.weight, domain: &s.domain })
            .collect();
        place(&servers, state.pools[0].pool.first, 64, 1)
    };
    let before = (wanted(&manager), manager.state().version);
    assert!(manager.state().groups().all(|(_, _, chain)| chain.replicas.len() == 1));
    assert!(manager.state().groups().all(|(_, _, chain)| chain.learner.is_none()));
    let now = Duration::from_secs(600);
    manager.command(now, Command::Rebalance).unwrap();
    assert_eq!(weights(&manager), [(128, 100), (128, 100), (102, 80)]);
    assert!(manager.state().version > before.1);
    let after = wanted(&manager);
    let moved = before.0.iter().zip(&after).filter(|(b, a)| b != a).count();
    let fewer = before.0.iter().filter(|chain| chain[0] == SERVERS[2]).count()
        - after.iter().filter(|chain| chain[0] == SERVERS[2]).count();
    println!("weight 128 -> 102 of 384: {moved} of 64 groups move");
    assert_eq!(moved, fewer, "only what the busy one gives away");
    assert!(manager.busy(SERVERS[2]).0 > 5000, "{:?}", manager.busy(SERVERS[2]));
    // Nobody has much to do: nothing is learnt, and nothing changes.
    pass(&mut manager, 600, 601, [1, 1, 6]);
    let mut idle = Manager::new(manager.state().clone(), Config::default(), now);
    pass(&mut idle, 601, 800, [0, 0, 0]);
    idle.command(Duration::from_secs(800), Command::Rebalance).unwrap();
    assert_eq!(weights(&idle), [(128, 100), (128, 100), (102, 80)]);
}

#[test]
fn a_class_gets_groups_once_and_keeps_its_number() {
    let mut manager = manager();
    pass(&mut manager, 0, 3, [1; 3]);
    let now = Duration::from_secs(3);
    let three = Class::with_replicas(3).unwrap();
    assert_eq!(manager.command(now, Command::Class(7, three)), Err(CommandError::NoVolume));
    assert_eq!(manager.command(now, Command::Class(0, three)), Ok(true));
    assert_eq!(manager.command(now, Command::Class(0, three)), Ok(false));
    let pool = manager.state().pool(0, three).unwrap();
    assert_eq!((pool.pool.chains.len(), pool.pool.first.0, pool.replicas), (64, 64, 3));
    assert!(pool.pool.chains.iter().all(|c| c.replicas.len() == 3), "servers have it at once");
    manager.command(now, Command::Replicas(0, 2, 2)).unwrap();
    let one = Class::with_replicas(1).unwrap();
    manager.command(now, Command::Class(0, one)).unwrap();
    let kept = [Class::DEFAULT, three, one].map(|class| {
        let of = manager.state().pool(0, class).unwrap();
        (of.replicas, of.pool.min_replicas)
    });
    assert_eq!(kept, [(2, 2), (3, 2), (1, 1)]);
    manager.map().validate().unwrap();
}
