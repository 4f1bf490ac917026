//! Which sessions have been silent for too long. A plain state machine: the clock comes in.

use std::collections::HashMap;
use std::time::Duration;

use netfs_common::id::SessionId;

/// The sessions of a volume and when each was last heard of.
///
/// Times are durations on one monotonic clock of the caller's choice. Sessions found in the store
/// after a restart are entered by [`Sessions::seen`], so that everybody has a full term to come
/// back.
#[derive(Debug)]
pub struct Sessions {
    term: Duration,
    last_seen: HashMap<SessionId, Duration>,
}

impl Sessions {
    /// No sessions yet; each lives for `term` without a sign of life.
    pub fn new(term: Duration) -> Sessions {
        Sessions { term, last_seen: HashMap::new() }
    }

    /// How long a session lives without a sign of life.
    pub fn term(&self) -> Duration {
        self.term
    }

    /// A session has begun or given a sign of life. Time never runs backwards for it.
    pub fn seen(&mut self, id: SessionId, now: Duration) {
        let last = self.last_seen.entry(id).or_insert(now);
        *last = now.max(*last);
    }

    /// When a session was last heard of.
    pub fn last_seen(&self, id: SessionId) -> Option<Duration> {
        self.last_seen.get(&id).copied()
    }

    /// A session has ended.
    pub fn remove(&mut self, id: SessionId) {
        self.last_seen.remove(&id);
    }

    /// Sessions that have been silent for longer than the term, in order. They stay listed until
    /// they are removed, so that an expiry that fails is tried again.
    pub fn expired(&self, now: Duration) -> Vec<SessionId> {
        let silent = |last: &Duration| now.saturating_sub(*last) > self.term;
        let mut ids: Vec<_> =
            self.last_seen.iter().filter(|(_, last)| silent(last)).map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_expires_only_after_its_term() {
        let secs = Duration::from_secs;
        let (a, b) = (SessionId(1), SessionId(2));
        let mut sessions = Sessions::new(secs(10));
        sessions.seen(a, secs(0));
        sessions.seen(b, secs(5));
        assert_eq!(sessions.expired(secs(10)), []);
        assert_eq!(sessions.expired(secs(11)), [a]);
        sessions.seen(a, secs(11));
        sessions.seen(a, secs(3));
        assert_eq!(sessions.expired(secs(16)), [b]);
        assert_eq!(sessions.expired(secs(16)), [b]);
        sessions.remove(b);
        assert_eq!(sessions.expired(secs(16)), []);
        assert_eq!(sessions.expired(secs(100)), [a]);
    }
}
