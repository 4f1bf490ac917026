//! Which groups are to get no more data, because a replica has hardly any room left.
//!
//! A change that one replica cannot store would cost it its place in the chain. So heads refuse data, with `ENOSPC`, before that
//! happens, as long as one of their replicas says that it is nearly full. It says so with every change that it stores.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use netfs_common::id::GroupId;

use super::replicas::lock;

/// After this time one change is let through, to hear how it is now.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Groups of which a replica after this one is nearly full, since when they are known to be.
#[derive(Debug, Default)]
pub(super) struct Room(Mutex<HashMap<GroupId, Instant>>);

impl Room {
    /// What was said with the answer to a change.
    pub(super) fn note(&self, group: GroupId, full: bool) {
        let mut full_groups = lock(&self.0);
        match full {
            true => drop(full_groups.insert(group, Instant::now())),
            false if full_groups.is_empty() => {}
            false => drop(full_groups.remove(&group)),
        }
    }

    /// Whether data is to be refused.
    pub(super) fn is_out(&self, group: GroupId) -> bool {
        let mut full_groups = lock(&self.0);
        match full_groups.get_mut(&group) {
            None => false,
            Some(since) if since.elapsed() < ASK_AGAIN => true,
            Some(since) => {
                *since = Instant::now();
                false
            }
        }
    }

    /// What is passed back to the replica before.
    pub(super) fn is_known_out(&self, group: GroupId) -> bool {
        lock(&self.0).contains_key(&group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_refused_until_there_is_room_and_only_for_groups_without() {
        let room = Room::default();
        assert!(!room.is_out(GroupId(1)));
        room.note(GroupId(1), true);
        assert!(room.is_out(GroupId(1)) && room.is_known_out(GroupId(1)));
        assert!(!room.is_out(GroupId(2)));
        room.note(GroupId(1), false);
        assert!(!room.is_out(GroupId(1)));
    }
}
