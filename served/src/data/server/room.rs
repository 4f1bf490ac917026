//! Which groups are to get no more data, because a replica has hardly any room left.
//!
//! A change that one replica cannot store would cost it its place in the chain. So heads refuse data, with `ENOSPC`, before that
//! happens, as long as one of their replicas says that it is nearly full. It says so with every change that it stores. So that
//! it can be heard when there is room again, heads that refuse data make a change that takes none, from time to time: if they let data
//! through to find out, they would use up what is left, group by group.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use netfs_common::id::GroupId;

use super::replicas::lock;

/// After this time it is asked how it is now.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// So long after somebody was nearly full, other groups are asked before they get data: the same server may be in them, and what
/// is left may be less than one change for each.
const CAREFUL: Duration = Duration::from_secs(10);

/// Groups of which a replica after this one is nearly full.
#[derive(Debug, Default)]
pub(super) struct Room(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Since when they are known to be.
    full: HashMap<GroupId, Instant>,
    /// Others, by when they were asked last.
    asked: HashMap<GroupId, Instant>,
    /// When any was last heard to be.
    heard: Option<Instant>,
}

impl Room {
    /// What was said with the answer to a change.
    pub(super) fn note(&self, group: GroupId, full: bool) {
        let mut inner = lock(&self.0);
        let now = Instant::now();
        if full {
            inner.heard = Some(now);
            inner.full.insert(group, now);
        } else if inner.full.remove(&group).is_some() {
            inner.asked.insert(group, now);
        }
    }

    /// Whether it is time to ask how it is now, which the caller then does.
    pub(super) fn asks(&self, group: GroupId) -> bool {
        self.asks_after(group, ASK_AGAIN)
    }

    fn asks_after(&self, group: GroupId, pause: Duration) -> bool {
        let mut inner = lock(&self.0);
        let now = Instant::now();
        if let Some(since) = inner.full.get_mut(&group) {
            let due = since.elapsed() >= pause;
            if due {
                *since = now;
            }
            return due;
        }
        if inner.heard.is_none_or(|heard| heard.elapsed() >= CAREFUL) {
            (inner.heard, inner.asked) = (None, HashMap::new());
            return false;
        }
        let due = inner.asked.get(&group).is_none_or(|asked| asked.elapsed() >= pause);
        if due {
            inner.asked.insert(group, now);
        }
        due
    }

    /// Whether data is to be refused; what is passed back to the replica before.
    pub(super) fn is_out(&self, group: GroupId) -> bool {
        lock(&self.0).full.contains_key(&group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_refused_until_there_is_room_and_only_for_groups_without() {
        let room = Room::default();
        assert!(!room.is_out(GroupId(1)) && !room.asks(GroupId(1)));
        room.note(GroupId(1), true);
        assert!(room.is_out(GroupId(1)) && !room.asks(GroupId(1)));
        assert!(room.asks_after(GroupId(1), Duration::ZERO));
        assert!(room.is_out(GroupId(1)), "to ask is not to let data through");
        assert!(room.asks(GroupId(2)), "its replicas may be the same");
        assert!(!room.asks(GroupId(2)), "it was asked just now");
        assert!(!room.is_out(GroupId(2)));
        room.note(GroupId(1), false);
        assert!(!room.is_out(GroupId(1)));
    }
}
