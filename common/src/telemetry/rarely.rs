//! Warnings that are worth saying once in a while, not a thousand times a second.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets something pass once per interval, and counts the rest.
///
/// ```
/// use std::time::Duration;
/// use netfs_common::telemetry::Rarely;
///
/// static DISK_SLOW: Rarely = Rarely::every(Duration::from_secs(10));
///
/// if let Some(before) = DISK_SLOW.pass() {
///     tracing::warn!(before, "the disk is slow");
/// }
/// ```
#[derive(Debug)]
pub struct Rarely {
    interval: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    last: Option<Instant>,
    held_back: u64,
}

impl Rarely {
    /// Passes once in `interval`.
    pub const fn every(interval: Duration) -> Self {
        Self { interval, state: Mutex::new(State { last: None, held_back: 0 }) }
    }

    /// `Some` if it is time, with the number of those held back since the last.
    pub fn pass(&self) -> Option<u64> {
        self.pass_at(Instant::now())
    }

    /// [`pass`](Self::pass) at a given time.
    pub fn pass_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let early =
            state.last.is_some_and(|last| now.saturating_duration_since(last) < self.interval);
        if early {
            state.held_back += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.held_back))
    }
}

/// `tracing::warn!` at most once per interval and place; a field `held_back` tells how many were not said.
///
/// ```
/// use std::time::Duration;
///
/// netfs_common::warn_rarely!(Duration::from_secs(10), disk = "sda", "the disk is slow");
/// ```
#[macro_export]
macro_rules! warn_rarely {
    ($interval:expr, $($message:tt)+) => {{
        static PLACE: $crate::telemetry::Rarely = $crate::telemetry::Rarely::every($interval);
        if let Some(held_back) = PLACE.pass() {
            ::tracing::warn!(held_back, $($message)+);
        }
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_passes_per_interval_and_the_rest_are_counted() {
        let rarely = Rarely::every(Duration::from_secs(10));
        let start = Instant::now();
        let at = |s| rarely.pass_at(start + Duration::from_secs(s));
        assert_eq!(at(0), Some(0));
        assert_eq!(at(1), None);
        assert_eq!(at(9), None);
        assert_eq!(at(10), Some(2));
        assert_eq!(at(11), None);
        assert_eq!(at(30), Some(1));
    }
}
