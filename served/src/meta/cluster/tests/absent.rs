//! Servers that are away, and what is done about the groups that they were in.

use std::ops::RangeInclusive;
use std::time::Duration;

use netfs_common::id::{GroupId, ServerId};
use netfs_common::map::{Chain, TierMode};

use super::super::{Command, CommandError, Config, Manager, State};
use super::failures::{SECOND, report};

/// So many servers, all heard, and a volume for each of these numbers of groups and replicas, which all have; and what time it is then.
fn cluster(servers: u8, volumes: &[(u32, u8)]) -> (Manager, Duration) {
    let mut manager = Manager::new(State::default(), Config::default(), Duration::ZERO);
    for id in 1..=servers {
        manager.meet(Duration::ZERO, vec![format!("s{id}:1")]);
    }
    let mut now = SECOND;
    live(&mut manager, now, 1..=servers, false);
    for (volume, size) in (0..).zip(volumes) {
        manager.ensure_pool(now, volume, *size, TierMode::Cold);
    }
    let whole = |(_, replicas, chain): (GroupId, usize, &Chain)| chain.replicas.len() == replicas;
    while !manager.state().groups().all(whole) {
        now += SECOND;
        live(&mut manager, now, 1..=servers, true);
        assert!(now < SECOND * 600);
    }
    (manager, now)
}

/// For so many seconds these answer.
fn pass(
    manager: &mut Manager,
    now: &mut Duration,
    seconds: u32,
    servers: RangeInclusive<u8>,
    teach: bool,
) {
    for _ in 0..seconds {
        *now += SECOND;
        live(manager, *now, servers.clone(), teach);
    }
}

/// These servers answer; `teach`: learners have learnt all they lacked by then.
fn live(manager: &mut Manager, now: Duration, servers: impl Iterator<Item = u8>, teach: bool) {
    for number in servers {
        let id = ServerId(number.into());
        let mut said = report(number, manager.state().version);
        said.revoked = manager.revocations(id);
        for (group, _, chain) in manager.state().groups().filter(|_| teach) {
            let tail = chain.replicas.last().map(|tail| tail.server);
            if let (true, Some(learner)) = (tail == Some(id), chain.learner) {
                said.synced.push((group, chain.epoch, learner));
            }
        }
        manager.heard(now, id, said);
    }
    manager.tick(now);
}

fn learning(manager: &Manager, is_it: impl Fn(&Chain) -> bool) -> usize {
    let groups = manager.state().groups();
    groups.filter(|(_, _, chain)| chain.learner.is_some() && is_it(chain)).count()
}

#[test]
fn who_is_awaited_with_what_it_had_is_not_forgotten() {
    let (mut manager, mut now) = cluster(2, &[(8, 2)]);
    let lost = ServerId(2);
    pass(&mut manager, &mut now, 20, 1..=1, false);
    assert!(manager.state().groups().all(|(_, _, chain)| !chain.has(lost)), "it is in no chain");
    assert_eq!((manager.missed(lost), manager.missed(ServerId(1))), (8, 0));
    let refused = manager.command(now, Command::Remove(lost));
    assert_eq!(refused, Err(CommandError::Awaited(lost, 8)));
    // Somebody says that it is lost.
    manager.command(now, Command::GiveUp(lost, [].into())).unwrap();
    assert_eq!(manager.missed(lost), 0);
    assert_eq!(manager.command(now, Command::Remove(lost)), Ok(true));
}

#[test]
fn who_was_not_needed_any_more_or_is_not_awaited_can_be_forgotten() {
    let (mut manager, mut now) = cluster(3, &[(8, 2)]);
    let lost = ServerId(3);
    let was_in = manager.state().groups().filter(|(_, _, chain)| chain.has(lost)).count();
    pass(&mut manager, &mut now, 20, 1..=2, true);
    assert_eq!(manager.missed(lost), was_in, "its return is awaited");
    pass(&mut manager, &mut now, 400, 1..=2, true);
    assert_eq!(manager.missed(lost), 0, "others have it");
    assert_eq!(manager.command(now, Command::Remove(lost)), Ok(true));
    // There is nobody for it, and the operator has had time to bring it back.
    let (mut manager, mut now) = cluster(2, &[(8, 2)]);
    pass(&mut manager, &mut now, 400, 1..=1, true);
    assert_eq!(manager.missed(ServerId(2)), 8);
    assert_eq!(manager.command(now, Command::Remove(ServerId(2))), Ok(true));
}

#[test]
fn after_a_start_all_that_lack_a_replica_count_for_a_server_that_was_not_heard() {
    let (mut manager, mut now) = cluster(2, &[(8, 2)]);
    pass(&mut manager, &mut now, 20, 1..=1, false);
    let state = manager.state().clone();
    let mut manager = Manager::new(state, Config::default(), Duration::ZERO);
    live(&mut manager, SECOND, 1..=1, false);
    assert_eq!(manager.missed(ServerId(2)), 8);
}

#[test]
fn groups_in_the_greatest_danger_get_their_replicas_first() {
    // The second volume cannot be written to with one replica.
    let (mut manager, mut now) = cluster(5, &[(200, 3), (100, 3)]);
    manager.command(now, Command::Replicas(1, 3, 2)).unwrap();
    // Two of five are lost.
    pass(&mut manager, &mut now, 20, 1..=3, false);
    let urgent = |chain: &Chain| chain.replicas.len() == 1;
    let of_second = |manager: &Manager| {
        manager.state().groups().filter(|(group, _, c)| group.0 >= 200 && urgent(c)).count()
    };
    assert!(of_second(&manager) > 8 && learning(&manager, |_| true) == 0);
    // They are not awaited any more; others get what they had.
    while learning(&manager, |_| true) == 0 {
        pass(&mut manager, &mut now, 1, 1..=3, false);
    }
    let taught: Vec<_> = manager
        .state()
        .groups()
        .filter(|(_, _, chain)| chain.learner.is_some())
        .map(|(group, _, chain)| (group.0 >= 200, chain.replicas.len()))
        .collect();
    // Where a server has room for more, and none of the most urgent has it for a tail, others are next.
    let first = taught.iter().filter(|of| **of == (true, 1)).count();
    assert!(first * 4 >= taught.len() * 3 && taught.iter().all(|of| of.1 == 1), "{taught:?}");
    // All of them become whole in the end.
    pass(&mut manager, &mut now, 1000, 1..=3, true);
    assert!(manager.state().groups().all(|(_, _, chain)| chain.replicas.len() == 3));
}
