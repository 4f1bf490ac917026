//! Which of the replicas of a group is wrong, when they are not the same at rest.
//!
//! It should never happen. Where it has, something has gone wrong that the protocol does not know of: a segment file has vanished, somebody
//! has deleted chunks by hand. Versions tell which replicas are equal, not which one is right. So:
//!
//! 1. The version that most replicas show of a chunk counts.
//! 2. Else what the head shows, if it has the chunk: all changes began there.
//! 3. Else nobody knows. That is what a hole looks like that a replica has missed, and also data that all others have lost: however many they are,
//!    that they have nothing never counts. A copy too many does no harm, and the last one is never taken.
//!
//! A replica that shows something else than what counts is to learn. It learns everything from the tail of the others, so that must be right in every
//! chunk. Where no replica can learn without that another error is spread, or nobody knows, it is left to people.

use std::collections::BTreeMap;

use netfs_common::id::{ChunkId, Version};

/// What a replica shows of a chunk. `None`: it has nothing.
pub(super) type State = Option<Version>;

/// Which replica is to learn, and from which one it will, by their places in the chain. `states`: of chunks that differ, what each replica
/// shows, head first.
pub(super) fn learner(states: &BTreeMap<ChunkId, Vec<State>>) -> Option<(usize, usize)> {
    let replicas = states.values().map(Vec::len).min()?;
    let mut wrong = vec![false; replicas];
    for shown in states.values() {
        let right = Some(counts(shown)?);
        for (replica, state) in shown.iter().take(replicas).enumerate() {
            wrong[replica] |= *state != right;
        }
    }
    (0..replicas).rev().filter(|at| wrong[*at]).find_map(|at| {
        let teacher = (0..replicas).rev().find(|other| *other != at)?;
        (!wrong[teacher]).then_some((at, teacher))
    })
}

/// The version that counts of a chunk; `None`: nobody knows. An unknown one says nothing.
fn counts(shown: &[State]) -> Option<Version> {
    let usable = |state: &State| state.filter(|version| *version != Version::NONE);
    let most = shown.iter().filter_map(usable).find(|version| {
        let same = shown.iter().filter(|other| **other == Some(*version)).count();
        same * 2 > shown.len()
    });
    most.or_else(|| shown.first().and_then(usable))
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
        learner(&named.collect()).map(|(learner, _)| learner)
    }

    #[test]
    fn the_one_that_differs_from_most_learns() {
        assert_eq!(of(&[&[5, 5, NOTHING]]), Some(2));
        assert_eq!(of(&[&[5, 4, 5]]), Some(1));
        assert_eq!(of(&[&[NOTHING, 5, 5]]), Some(0));
        assert_eq!(of(&[&[0, 5, 5]]), Some(0), "an unknown version is none");
    }

    #[test]
    fn the_last_copy_is_never_taken_however_many_have_nothing() {
        assert_eq!(of(&[&[NOTHING, 5, NOTHING]]), None);
        assert_eq!(of(&[&[NOTHING, NOTHING, 5]]), None);
        // The tail, from which is learnt, is none that has it.
        assert_eq!(of(&[&[5, NOTHING, NOTHING]]), None);
        assert_eq!(of(&[&[5, NOTHING, NOTHING, 5]]), Some(2));
        assert_eq!(of(&[&[0, NOTHING, NOTHING]]), None);
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
