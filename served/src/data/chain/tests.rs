//! One replica, event by event.

use netfs_common::id::{ChunkId, Epoch, Ino, InstanceId, ServerId, Verifier, Version};
use netfs_common::map::{Chain, Replica};

use super::{Action, CallId, Change, Group, Refusal, Step};

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
    assert_eq!(turned, [Action::Refuse(CallId(3), Refusal::Stale(Epoch(3)))]);
    assert!(!group.is_head() && !group.has_handed_over());
}

fn chain(epoch: u64, replicas: &[u32]) -> Chain {
    let replicas = replicas.iter().copied().map(replica).collect();
    Chain { epoch: Epoch(epoch), verifier: Verifier(1), replicas, learner: None }
}

fn answered(actions: &[Action<u64>]) -> usize {
    actions.iter().filter(|action| matches!(action, Action::Done(..))).count()
}

#[test]
fn changes_under_way_are_not_acknowledged_by_a_chain_that_has_become_too_short() {
    let v = |seq| Version::new(Epoch(1), seq).unwrap();
    let mut group = Group::new(replica(1));
    assert!(group.set_chain(chain(1, &[1, 2, 3]), 2).is_empty());
    let other = ChunkId { index: 1, ..CHUNK };
    // One that is stored here already, and one that is being stored.
    group.propose(CallId(1), Epoch(1), CHUNK, 1);
    group.propose(CallId(2), Epoch(1), other, 2);
    assert!(group.applied(v(1), Ok(0)).is_empty(), "the others have not answered");
    // Two are enough.
    let two = group.set_chain(chain(2, &[1, 2]), 2);
    assert_eq!((forwarded(&two), two.len()), (2, 2), "{two:?}");
    let one = group.set_chain(chain(3, &[1]), 2);
    let stale = |call| Action::Refuse(CallId(call), Refusal::Stale(Epoch(3)));
    assert_eq!(one, [stale(1), stale(2)]);
    let busy = group.propose(CallId(3), Epoch(3), CHUNK, 3);
    assert_eq!(busy, [Action::Refuse(CallId(3), Refusal::Busy)]);
    // What was noted goes to its end, and reads go on.
    assert!(group.read(CallId(100), Epoch(3), other).is_empty());
    assert_eq!(group.applied(v(2), Ok(0)), [Action::Serve(CallId(100))]);
    assert!(group.is_quiet() && group.is_short());
    // The client repeats it when there is another replica.
    group.set_chain(chain(4, &[1, 4]), 2);
    let again = Version::new(Epoch(4), 1).unwrap();
    assert_eq!(applied(&group.propose(CallId(4), Epoch(4), CHUNK, 1)), [again]);
    group.applied(again, Ok(0));
    assert_eq!(answered(&group.acked(Epoch(4), again)), 1);
}

#[test]
fn what_waits_is_refused_by_a_short_chain_wherever_it_waits() {
    let v = |seq| Version::new(Epoch(1), seq).unwrap();
    let mut group = head();
    let many = 300;
    for call in 0..many {
        group.propose(CallId(call), Epoch(1), CHUNK, call);
    }
    // Raised in the same epoch: by an operator.
    let raised = group.set_chain(chain(1, &[1, 2]), 3);
    let busy = |call| Action::Refuse(CallId(call), Refusal::Busy);
    assert_eq!(raised.len() as u64, many, "what is noted and what has found no room");
    assert!((0..many).all(|call| raised.contains(&busy(call))));
    group.applied(v(1), Ok(0));
    assert_eq!(answered(&group.acked(Epoch(1), v(1))), 0);
    // It is lowered again.
    assert!(group.set_chain(chain(1, &[1, 2]), 2).is_empty());
    let next = group.propose(CallId(many), Epoch(1), ChunkId { index: 1, ..CHUNK }, 0);
    assert_eq!(applied(&next).len(), 1);
}

#[test]
fn a_replica_that_is_not_the_head_answers_the_one_before_whatever_the_minimum_is() {
    let mut group = Group::new(replica(2));
    group.set_chain(chain(1, &[1, 2]), 2);
    let change = Change { id: Version::new(Epoch(1), 1).unwrap(), chunk: CHUNK, deed: 1 };
    let after = Version::NONE;
    let step = Step { epoch: Epoch(1), floor: change.id, after, change: change.clone() };
    assert_eq!(group.forwarded(CallId(1), step), [Action::Apply(change.clone())]);
    // Whoever counts on it is the head.
    assert!(group.set_chain(chain(1, &[1, 2]), 3).is_empty());
    assert_eq!(group.applied(change.id, Ok(0)), [Action::Done(CallId(1), 0)]);
}
