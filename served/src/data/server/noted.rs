//! Room in memory for the changes that this server orders as a head.
//!
//! A change stays in memory until all replicas have stored it, whether its client still waits for it or not: it may have been
//! passed on. So what clients send to a group that does not get on would grow without limit. Therefore a change takes room before
//! it is noted, and gives it back with the last copy of it, wherever that is: in the group, at the store, or on its way to the next
//! replica. A call that waits for room is a future, which goes with its payload when the call is withdrawn.
//!
//! Each group has its share, so that one that stalls does not take all. Beyond that one change of each group needs none of what all groups
//! have together: where nothing stalls, writes go on whatever the others have filled.
//!
//! Changes that the replica before passes on take no room here: they have taken it there, and were they made to wait for others, servers that
//! are each other's successors could wait for each other in a circle. What they come to is bounded by what their heads may note.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use netfs_common::id::GroupId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::replicas::lock;

/// Room is counted in pieces of so many bytes.
const PIECE: u64 = 1 << 10;
/// What a change takes besides its payload. Bounds how many there are.
const OVERHEAD: u32 = 4;
/// For one group.
const OF_GROUP: u32 = (16 << 20) / PIECE as u32;
/// For all groups together. What a replica is to store after it has said that it is nearly full is bounded by that too.
const OF_ALL: u32 = (64 << 20) / PIECE as u32;

/// Room for changes.
#[derive(Debug)]
pub(super) struct Noted {
    all: Arc<Semaphore>,
    groups: Mutex<HashMap<GroupId, Share>>,
}

/// What one group has for itself.
#[derive(Clone, Debug)]
struct Share {
    room: Arc<Semaphore>,
    /// Whoever has this needs nothing of what all groups have together.
    one: Arc<Semaphore>,
}

/// Room that is taken. Given back when it is dropped.
#[derive(Debug)]
#[expect(dead_code, reason = "held")]
pub(super) struct Held {
    of_group: OwnedSemaphorePermit,
    of_all: OwnedSemaphorePermit,
}

impl Default for Noted {
    fn default() -> Noted {
        Noted { all: Arc::new(Semaphore::new(OF_ALL as usize)), groups: Mutex::default() }
    }
}

impl Noted {
    /// Waits until a change of so many bytes may be noted. `None`: the server ends. The group is one of the map.
    pub(super) async fn enter(&self, group: GroupId, bytes: u64) -> Option<Arc<Held>> {
        let share = {
            let mut groups = lock(&self.groups);
            let fresh = || Share {
                room: Arc::new(Semaphore::new(OF_GROUP as usize)),
                one: Arc::new(Semaphore::new(1)),
            };
            groups.entry(group).or_insert_with(fresh).clone()
        };
        let pieces = u32::try_from(bytes.div_ceil(PIECE)).unwrap_or(u32::MAX);
        let pieces = pieces.saturating_add(OVERHEAD).min(OF_GROUP);
        let of_group = share.room.acquire_many_owned(pieces).await.ok()?;
        let of_all = tokio::select! {
            biased;
            one = share.one.acquire_owned() => one,
            some = self.all.clone().acquire_many_owned(pieces) => some,
        };
        Some(Arc::new(Held { of_group, of_all: of_all.ok()? }))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// As many changes of a MiB as find room at once.
    async fn fill(noted: &Noted, group: u32) -> Vec<Arc<Held>> {
        let mut held = Vec::new();
        let moment = Duration::from_millis(20);
        while let Ok(some) = tokio::time::timeout(moment, noted.enter(GroupId(group), MIB)).await {
            held.push(some.unwrap());
            assert!(held.len() < 1000, "there is no bound");
        }
        held
    }

    #[tokio::test]
    async fn a_group_that_stalls_fills_its_share_and_what_is_withdrawn_leaves_nothing() {
        let noted = Noted::default();
        let held = fill(&noted, 1).await;
        assert!((10..=16).contains(&held.len()), "{}", held.len());
        assert!(fill(&noted, 1).await.is_empty(), "those that were withdrawn took nothing along");
        let (copy, gone) = (held[0].clone(), held.len());
        drop(held);
        assert_eq!(fill(&noted, 1).await.len(), gone - 1, "one is still on its way");
        drop(copy);
        assert_eq!(fill(&noted, 1).await.len(), gone);
    }

    #[tokio::test]
    async fn all_groups_together_are_bounded_and_each_goes_on_with_one_change() {
        let noted = Noted::default();
        let (mut held, mut singles) = (Vec::new(), 0);
        for group in 0..20 {
            let more = fill(&noted, group).await;
            assert!(!more.is_empty(), "group {group} gets on");
            singles += usize::from(more.len() == 1);
            held.extend(more);
        }
        assert!(singles >= 14, "{singles}");
        assert!(held.len() <= 64 + 20, "{}", held.len());
        // Where others have stalled, one after the other goes through.
        let waiting = noted.enter(GroupId(19), MIB);
        tokio::pin!(waiting);
        assert!(tokio::time::timeout(Duration::from_millis(20), &mut waiting).await.is_err());
        held.pop();
        waiting.await.unwrap();
    }
}
