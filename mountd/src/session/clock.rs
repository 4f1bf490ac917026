//! The clock by which changes are dated.
//!
//! It is the client's own as long as that agrees with the server's. If it does not, the difference is taken from the last greeting, in
//! which the server says what time it has: then files that two clients write have times that can be compared, whoever's clock is wrong.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use netfs_common::attr::Timestamp;

/// The client's clock is believed while it is within this of the server's.
const MAX_SKEW: Duration = Duration::from_secs(2);

/// The clock of a session.
#[derive(Debug, Default)]
pub(super) struct Clock {
    /// What is added to the client's own, in nanoseconds.
    offset: AtomicI64,
}

impl Clock {
    /// The present.
    pub(super) fn now(&self) -> Timestamp {
        let (now, offset) = (SystemTime::now(), self.offset.load(Ordering::Relaxed));
        let by = Duration::from_nanos(offset.unsigned_abs());
        let corrected = if offset < 0 { now.checked_sub(by) } else { now.checked_add(by) };
        corrected.unwrap_or(now).into()
    }

    /// The server has said what time it had between two moments of this client. Returns by how much they disagree, if too much.
    pub(super) fn compare(
        &self,
        sent: SystemTime,
        answered: SystemTime,
        server: Timestamp,
    ) -> Option<Duration> {
        let half = answered.duration_since(sent).unwrap_or_default() / 2;
        let (own, theirs) = (sent + half, SystemTime::from(server));
        let (skew, ahead) = match theirs.duration_since(own) {
            Ok(ahead) => (ahead, true),
            Err(behind) => (behind.duration(), false),
        };
        // Beyond some hundred years it is no clock.
        let nanos = i64::try_from(skew.as_nanos()).unwrap_or(0);
        let wrong = skew > MAX_SKEW + half && nanos != 0;
        let offset = if ahead { nanos } else { -nanos };
        self.offset.store(if wrong { offset } else { 0 }, Ordering::Relaxed);
        wrong.then_some(skew)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clock_that_disagrees_is_corrected() {
        let clock = Clock::default();
        let now = SystemTime::now();
        let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3600));
        let distance = |to: SystemTime| {
            let shown = SystemTime::from(clock.now());
            shown.duration_since(to).unwrap_or_else(|e| e.duration())
        };
        assert_eq!(clock.compare(now, now, (now + second).into()), None);
        assert!(distance(now) < second);
        // The answer took long: the server may have had this time.
        assert_eq!(clock.compare(now, now + 8 * second, (now + 9 * second).into()), None);
        assert_eq!(clock.compare(now, now, (now + hour).into()), Some(hour));
        assert!(distance(now + hour) < second);
        assert_eq!(clock.compare(now, now, (now - hour).into()), Some(hour));
        assert!(distance(now - hour) < second);
        assert_eq!(clock.compare(now, now, now.into()), None);
        assert!(distance(now) < second);
        clock.compare(now, now, Timestamp { secs: i64::MAX, nanos: 0 });
        clock.compare(now, now, Timestamp { secs: i64::MIN, nanos: 0 });
        assert!(distance(now) < hour);
    }
}
