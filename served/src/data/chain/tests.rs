//! One replica, event by event.

use netfs_common::id::{ChunkId, Epoch, Ino, InstanceId, ServerId, Verifier, Version};
use netfs_common::map::{Chain, Replica};

use super::{Action, CallId, Change, Group};

const CHUNK: ChunkId = ChunkId { ino: Ino(5), generation: 0, index: 0 };

fn replica(number: u32) -> Replica {
    Replica { server: ServerId(number), instance: InstanceId(number.into()) }
}

/// The head of two.
fn head() -> Group<u64> {
    let mut group = Group::new(replica(1));
    let chain = Chain {
        epoch: Epoch(1),
        verifier: Verifier(1),
        replicas: vec![replica(1), replica(2)],
        learner: None,
    };
    assert!(group.set_chain(chain, 1).is_empty());
    group
}

fn applied(actions: &[Action<u64>]) -> Vec<Version> {
    let of = |action: &Action<u64>| match action {
        Action::Apply(Change { id, .. }) => Some(*id),
        _ => None,
    };
    actions.iter().filter_map(of).collect()
}

fn forwarded(actions: &[Action<u64>]) -> usize {
    actions.iter().filter(|action| matches!(action, Action::Forward { .. })).count()
}

fn served(actions: &[Action<u64>]) -> Vec<CallId> {
    let of = |action: &Action<u64>| match action {
        Action::Serve(call) => Some(*call),
        _ => None,
    };
    actions.iter().filter_map(of).collect()
}

#[test]
fn a_read_waits_for_what_came_before_it_only_however_many_changes_follow() {
    let (mut group, v) = (head(), |seq| Version::new(Epoch(1), seq).unwrap());
    let first = group.propose(CallId(1), Epoch(1), CHUNK, 1);
    assert_eq!((applied(&first), forwarded(&first)), (vec![v(1)], 1));
    assert!(group.read(CallId(100), Epoch(1), CHUNK).is_empty());
    for round in 0..5u64 {
        let next = round + 2;
        // There is always another change under way.
        let more = group.propose(CallId(next), Epoch(1), CHUNK, next);
        assert_eq!((applied(&more), forwarded(&more)), (vec![], 1), "it is passed on at once");
        let done = v(next as u32 - 1);
        assert!(served(&group.applied(done, Ok(0))).is_empty(), "the other may lose it");
        let answered = group.acked(Epoch(1), done);
        assert_eq!(served(&answered), [CallId(100 + round)]);
        assert!(applied(&answered).is_empty(), "what is being shown stays as it is");
        // Somebody else wants to see the next one.
        assert!(group.read(CallId(101 + round), Epoch(1), CHUNK).is_empty());
        assert_eq!(applied(&group.withdraw(CallId(100 + round))), [v(next as u32)]);
    }
}

#[test]
fn a_read_that_is_given_up_holds_nothing_up() {
    let (mut group, v) = (head(), |seq| Version::new(Epoch(1), seq).unwrap());
    assert_eq!(served(&group.read(CallId(100), Epoch(1), CHUNK)), [CallId(100)]);
    let other = ChunkId { index: 1, ..CHUNK };
    assert_eq!(applied(&group.propose(CallId(1), Epoch(1), other, 1)), [v(1)]);
    assert!(applied(&group.propose(CallId(2), Epoch(1), CHUNK, 2)).is_empty());
    assert!(group.read(CallId(101), Epoch(1), CHUNK).is_empty());
    assert!(group.withdraw(CallId(101)).is_empty(), "another one is still there");
    assert_eq!(applied(&group.withdraw(CallId(100))), [v(2)]);
    // Reads that are under way when the server has to refuse them go on; what waits is refused.
    assert!(group.read(CallId(102), Epoch(1), CHUNK).is_empty());
    let refused = group.revoke(Epoch(1));
    assert!(matches!(refused[..], [Action::Refuse(CallId(102), _)]), "{refused:?}");
    assert!(!group.may_show());
}

#[test]
fn a_head_that_hands_over_ends_what_it_has_begun_and_begins_nothing() {
    let (mut group, v) = (head(), |epoch, seq| Version::new(Epoch(epoch), seq).unwrap());
    assert_eq!(applied(&group.propose(CallId(1), Epoch(1), CHUNK, 1)), [v(1, 1)]);
    assert!(group.hand_over(Epoch(1)).is_empty() && !group.has_handed_over());
    assert!(group.propose(CallId(2), Epoch(1), CHUNK, 2).is_empty(), "it waits");
    assert!(group.applied(v(1, 1), Ok(0)).is_empty() && !group.has_handed_over());
    let done = group.acked(Epoch(1), v(1, 1));
    assert_eq!(done, [Action::Done(CallId(1), 0), Action::HandedOver]);
    assert!(group.has_handed_over());
    assert!(group.hand_over(Epoch(1)).is_empty(), "it was said");
    // It may stay the head: then it goes on.
    let chain = |epoch, replicas: [u32; 2]| Chain {
        epoch: Epoch(epoch),
        verifier: Verifier(1),
        replicas: replicas.map(replica).to_vec(),
        learner: None,
    };
    assert_eq!(applied(&group.set_chain(chain(2, [1, 2]), 1)), [v(2, 1)]);
    assert!(!group.has_handed_over() && group.hand_over(Epoch(1)).is_empty());
    group.applied(v(2, 1), Ok(0));
    group.acked(Epoch(2), v(2, 1));
    assert_eq!(group.hand_over(Epoch(2)), [Action::HandedOver]);
    assert!(group.propose(CallId(3), Epoch(2), CHUNK, 3).is_empty());
    let turned = group.set_chain(chain(3, [2, 1]), 1);
    assert_eq!(turned, [Action::Refuse(CallId(3), super::Refusal::Stale(Epoch(3)))]);
    assert!(!group.is_head() && !group.has_handed_over());
}
