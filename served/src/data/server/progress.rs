//! Whether the next replica gets on with what is passed on to it.
//!
//! A slow disk under deep queues keeps each change for long, and is of use none the less: were its server taken out of its chains for
//! that, they would lose a replica, copy everything to another, and do the same again. So it is to blame when it answers nothing
//! for too long, and not when it answers late. But no change waits for ever: one that is much too old counts as well, whatever else was
//! answered.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use netfs_common::id::ServerId;

use super::replicas::lock;

/// A change may wait for so many times the deadline while others are answered. Clients take a server for hung after two minutes.
const PATIENCE: u32 = 12;

/// When each server has answered a change the last time.
#[derive(Debug, Default)]
pub(super) struct Progress(Mutex<HashMap<ServerId, Instant>>);

impl Progress {
    /// A server has answered a change.
    pub(super) fn note(&self, server: ServerId) {
        lock(&self.0).insert(server, Instant::now());
    }

    /// Lets go of servers that are not there any more.
    pub(super) fn retain(&self, keep: impl Fn(ServerId) -> bool) {
        lock(&self.0).retain(|server, _| keep(*server));
    }

    /// Whether a server is to blame for a change that was passed on to it at `since`.
    pub(super) fn is_stalled(&self, server: ServerId, since: Instant, deadline: Duration) -> bool {
        let answered = lock(&self.0).get(&server).copied();
        judge(since, answered, Instant::now(), deadline)
    }
}

fn judge(since: Instant, answered: Option<Instant>, now: Instant, deadline: Duration) -> bool {
    let idle = answered.map_or(since, |answered| answered.max(since));
    now.saturating_duration_since(idle) > deadline
        || now.saturating_duration_since(since) > deadline * PATIENCE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_is_slow_but_moves_is_not_to_blame_and_no_change_waits_for_ever() {
        let (begin, deadline) = (Instant::now(), Duration::from_secs(5));
        let at = |secs| begin + Duration::from_secs(secs);
        assert!(!judge(begin, None, at(5), deadline));
        assert!(judge(begin, None, at(6), deadline), "it has answered nothing");
        assert!(!judge(begin, Some(at(4)), at(8), deadline), "it moves");
        assert!(judge(begin, Some(at(4)), at(10), deadline), "it has stopped");
        assert!(!judge(at(4), Some(begin), at(8), deadline), "it had nothing to do before");
        assert!(judge(begin, Some(at(60)), at(61), deadline), "this one waits for too long");
    }
}
