//! Whose clock a change is dated by.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use netfs_common::attr::Timestamp;

/// A client's time is believed up to so much after the server's. Clients correct themselves (`mountd/src/session/clock.rs`).
const MAX_SKEW: Duration = Duration::from_secs(5);
/// And so much before it: what was written while the server could not be reached is dated by when that was.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// A wrong clock is warned of this often at most, in seconds.
const WARN_INTERVAL_SECS: u64 = 60;

/// Dates the changes of one client.
#[derive(Debug)]
pub(super) struct ClientClock {
    since: Instant,
    /// Seconds after `since` from which the next warning is due.
    next_warning: AtomicU64,
}

impl ClientClock {
    pub(super) fn new() -> ClientClock {
        ClientClock { since: Instant::now(), next_warning: AtomicU64::new(0) }
    }

    /// The time of a change that the client dates `claimed`.
    pub(super) fn date(&self, claimed: Timestamp, client: &str) -> Timestamp {
        let now = Timestamp::from(SystemTime::now());
        let (time, skew) = correct(claimed, now);
        if let Some(skew) = skew {
            let elapsed = self.since.elapsed().as_secs();
            if elapsed >= self.next_warning.load(Ordering::Relaxed) {
                self.next_warning.store(elapsed + WARN_INTERVAL_SECS, Ordering::Relaxed);
                tracing::warn!(
                    client,
                    skew_ms = skew,
                    "the client's clock disagrees with the server's, which is used instead"
                );
            }
        }
        time
    }
}

/// The time of a change that was dated before; not one that is still to come.
pub(super) fn not_ahead(time: Timestamp) -> Timestamp {
    time.min(Timestamp::from(SystemTime::now() + MAX_SKEW))
}

/// The time to use, and by how many milliseconds the claimed one is ahead if it cannot be used.
fn correct(claimed: Timestamp, now: Timestamp) -> (Timestamp, Option<i64>) {
    if claimed.nanos >= 1_000_000_000 {
        return (now, Some(0));
    }
    let nanos = |t: Timestamp| i128::from(t.secs) * 1_000_000_000 + i128::from(t.nanos);
    let ahead = nanos(claimed) - nanos(now);
    let earliest = -(MAX_AGE.as_nanos() as i128);
    if (earliest..=MAX_SKEW.as_nanos() as i128).contains(&ahead) {
        return (claimed, None);
    }
    let ms = i64::try_from(ahead / 1_000_000).unwrap_or(i64::MAX);
    (now, Some(ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clock_that_agrees_is_believed() {
        let at = |secs, nanos| Timestamp { secs, nanos };
        let now = at(1000, 500);
        assert_eq!(correct(at(1004, 7), now), (at(1004, 7), None));
        assert_eq!(correct(at(-80_000, 7), now), (at(-80_000, 7), None));
        assert_eq!(correct(at(-90_000, 7), now).0, now);
        assert_eq!(correct(at(1006, 500), now), (now, Some(6000)));
        assert_eq!(correct(at(i64::MIN, 0), now).0, now);
        assert_eq!(correct(at(1000, 1_000_000_000), now).0, now);
    }
}
