//! Which of the replicas of a group is wrong, when they are not the same at rest.
//!
//! It should never happen. Where it has, something has gone wrong that the protocol does not know of: a segment file has vanished, somebody
//! has deleted chunks by hand. Versions tell which replicas are equal, not which one is right. So:
//!
//! 1. What most replicas show of a chunk counts: a version, or that there is nothing.
//! 2. Else what the head shows, if it has the chunk: all changes began there.
//! 3. Else nobody knows: the head has nothing, and half of the replicas have something. That is what a hole looks like that a replica has
//!    missed, and also data that the head has lost.
//!
//! A replica that shows something else than what counts is to learn. It learns everything from the tail of the others, so that must be right in every
//! chunk. Where no replica can learn without that another error is spread, or nobody knows, it is left to people.

use std::collections::BTreeMap;

use netfs_common::id::{ChunkId, Version};

/// What a replica shows of a chunk. `None`: it has nothing.
pub(super) type State = Option<Version>;

/// Which replica is to learn, by its place in the chain. `states`: of chunks that differ, what each replica shows, head first.
pub(super) fn learner(states: &BTreeMap<ChunkId, Vec<State>>) -> Option<usize> {
    let replicas = states.values().map(Vec::len).min()?;
    let mut wrong = vec![false; replicas];
    for shown in states.values() {
        let right = counts(shown)?;
        for (replica, state) in shown.iter().take(replicas).enumerate() {
            wrong[replica] |= *state != right;
        }
    }
    (0..replicas).rev().find(|at| {
        let teacher = (0..replicas).rev().find(|other| other != at);
        wrong[*at] && teacher.is_some_and(|teacher| !wrong[teacher])
    })
}

/// What counts of a chunk; `None`: nobody knows. A version that is unknown says nothing.
fn counts(shown: &[State]) -> Option<State> {
    let usable = |state: &State| *state != Some(Version::NONE);
    let most = shown.iter().filter(|state| usable(state)).find(|state| {
        let same = shown.iter().filter(|other| other == state).count();
        same * 2 > shown.len()
    });
    let head = shown.first().filter(|state| state.is_some() && usable(state));
    most.or(head).copied()
}

#[cfg(test)]
mod tests {
    use netfs_common::id::Ino;

    use super::*;

    const NOTHING: u64 = u64::MAX;

    fn of(chunks: &[&[u64]]) -> Option<usize> {
        let state = |version: &u64| (*version != NOTHING).then_some(Version(*version));
        let named = chunks.iter().enumerate().map(|(index, shown)| {
            let chunk = ChunkId { ino: Ino(2), generation: 0, index: index as u64 };
            (chunk, shown.iter().map(state).collect())
        });
        learner(&named.collect())
    }

    #[test]
    fn the_one_that_differs_from_most_learns() {
        assert_eq!(of(&[&[5, 5, NOTHING]]), Some(2));
        assert_eq!(of(&[&[5, 4, 5]]), Some(1));
        assert_eq!(of(&[&[NOTHING, 5, 5]]), Some(0));
        assert_eq!(of(&[&[NOTHING, 5, NOTHING]]), Some(1));
        assert_eq!(of(&[&[0, 5, 5]]), Some(0), "an unknown version is none");
    }

    #[test]
    fn of_two_the_head_is_right_unless_it_has_nothing() {
        assert_eq!(of(&[&[5, NOTHING]]), Some(1));
        assert_eq!(of(&[&[5, 6]]), Some(1));
        assert_eq!(of(&[&[NOTHING, 6]]), None);
        assert_eq!(of(&[&[0, 6]]), None);
    }

    #[test]
    fn nobody_learns_what_is_wrong() {
        // Each lacks what the other has.
        assert_eq!(of(&[&[5, 5, NOTHING], &[NOTHING, 5, 5]]), Some(2));
        assert_eq!(of(&[&[5, NOTHING, 5], &[5, 5, NOTHING]]), None);
        assert_eq!(of(&[&[5, NOTHING], &[NOTHING, 5]]), None);
        assert_eq!(of(&[]), None);
    }
}
