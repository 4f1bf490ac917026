//! Which groups are to get no more data, because a replica has hardly any room left.
//!
//! A change that one replica cannot store would cost it its place in the chain. So heads refuse data, with `ENOSPC`, before that
//! happens, as long as one of their replicas says that it is nearly full. It says so with every change that it stores. A refusal goes by
//! what was heard just now: before it, and for a while before any data goes to other groups, since the same server may be in them, the
//! replicas are asked by a change that takes no room. Were data let through to find out, it would use up what is left, group by group.
//! Of those who want to know at the same time one asks, and all of them go by the answer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use netfs_common::id::GroupId;

use super::replicas::lock;

/// What was heard counts for so long. Space that becomes free meanwhile is not seen.
const FRESH: Duration = Duration::from_millis(100);
/// So long after somebody was nearly full, other groups are asked before they get data: what is left may be less than one change for each.
const CAREFUL: Duration = Duration::from_secs(10);

/// What was heard of the replicas after this one.
#[derive(Debug, Default)]
pub(super) struct Room(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// By group; only those that were nearly full lately, or were asked.
    said: HashMap<GroupId, Said>,
    /// When any was last heard to be nearly full.
    heard: Option<Instant>,
    /// Held by who asks.
    turns: HashMap<GroupId, Arc<tokio::sync::Mutex<()>>>,
}

/// What the replicas of a group have said last.
#[derive(Clone, Copy, Debug)]
struct Said {
    full: bool,
    at: Instant,
}

impl Inner {
    /// Whether there is any reason to ask.
    fn is_doubtful(&mut self, group: GroupId) -> bool {
        let careful = self.heard.is_some_and(|heard| heard.elapsed() < CAREFUL);
        if !careful {
            self.said.retain(|_, said| said.full);
        }
        careful || self.said.contains_key(&group)
    }

    fn is_fresh(&self, group: GroupId) -> bool {
        self.said.get(&group).is_some_and(|said| said.at.elapsed() < FRESH)
    }
}

impl Room {
    /// What was said with the answer to a change.
    pub(super) fn note(&self, group: GroupId, full: bool) {
        let mut inner = lock(&self.0);
        let at = Instant::now();
        if full {
            inner.heard = Some(at);
        }
        if full || inner.is_doubtful(group) {
            inner.said.insert(group, Said { full, at });
        }
    }

    /// Whether data is to be refused. `ask` has the replicas say how it is now, which is noted.
    pub(super) async fn is_out<E>(
        &self,
        group: GroupId,
        ask: impl Future<Output = Result<(), E>>,
    ) -> Result<bool, E> {
        let turn = {
            let mut inner = lock(&self.0);
            if !inner.is_doubtful(group) {
                return Ok(false);
            }
            inner.turns.entry(group).or_default().clone()
        };
        let _alone = turn.lock().await;
        if !lock(&self.0).is_fresh(group) {
            ask.await?;
        }
        Ok(self.is_full(group))
    }

    /// What was heard last; it is passed back to the replica before.
    pub(super) fn is_full(&self, group: GroupId) -> bool {
        lock(&self.0).said.get(&group).is_some_and(|said| said.full)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const GROUP: GroupId = GroupId(1);

    fn stale(room: &Room) {
        for said in lock(&room.0).said.values_mut() {
            said.at -= FRESH;
        }
    }

    #[tokio::test]
    async fn data_is_refused_until_there_is_room_and_only_for_groups_without() {
        let room = Room::default();
        let unasked = || async { Err("it was asked") };
        assert_eq!(room.is_out(GROUP, unasked()).await, Ok(false));
        room.note(GROUP, true);
        assert_eq!(room.is_out(GROUP, unasked()).await, Ok(true), "that is heard just now");
        let other = GroupId(2);
        assert!(room.is_out(other, unasked()).await.is_err(), "its replicas may be the same");
        let says = async |group, full| {
            room.note(group, full);
            Ok::<_, &str>(())
        };
        assert_eq!(room.is_out(other, says(other, false)).await, Ok(false));
        assert_eq!(room.is_out(other, unasked()).await, Ok(false));
        stale(&room);
        assert!(room.is_out(GROUP, unasked()).await.is_err(), "an old answer refuses nothing");
        assert_eq!(room.is_out(GROUP, says(GROUP, true)).await, Ok(true));
        stale(&room);
        assert_eq!(room.is_out(GROUP, says(GROUP, false)).await, Ok(false));
    }

    #[tokio::test]
    async fn many_at_a_time_ask_once_and_none_goes_by_what_was_before() {
        let room = Room::default();
        room.note(GROUP, true);
        stale(&room);
        let asked = AtomicUsize::new(0);
        let ask = || async {
            asked.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(20)).await;
            room.note(GROUP, false);
            Ok::<_, ()>(())
        };
        let (a, b, c) = tokio::join!(
            room.is_out(GROUP, ask()),
            room.is_out(GROUP, ask()),
            room.is_out(GROUP, ask())
        );
        assert_eq!((a, b, c), (Ok(false), Ok(false), Ok(false)));
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }
}
