//! For how long the server has run, without the time in which it was stopped: then it heard nobody, and nobody can
//! be blamed for that.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A tick that comes so much too late says that the server was stopped, whatever the term.
const LATE: Duration = Duration::from_secs(3);

/// Counted by whoever ticks.
#[derive(Debug)]
pub(super) struct Uptime {
    millis: AtomicU64,
    most: Duration,
}

impl Uptime {
    /// Not a moment yet. `tick`: the pause between two ticks; `term`: that of the sessions.
    pub(super) fn new(tick: Duration, term: Duration) -> Uptime {
        Uptime { millis: AtomicU64::new(0), most: tick + LATE.min(term / 4) }
    }

    /// A tick, so long after the one before. `true`: so long that the server must have been stopped.
    pub(super) fn tick(&self, since: Duration) -> bool {
        let millis = u64::try_from(since.min(self.most).as_millis()).unwrap_or(u64::MAX);
        self.millis.fetch_add(millis, Ordering::Relaxed);
        since > self.most
    }

    /// Behind by a tick, and by what the server was stopped for; never ahead.
    pub(super) fn get(&self) -> Duration {
        Duration::from_millis(self.millis.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_in_which_the_server_was_stopped_is_not_counted() {
        let ms = Duration::from_millis;
        let uptime = Uptime::new(ms(500), Duration::from_secs(8));
        assert!(!uptime.tick(ms(500)));
        assert!(!uptime.tick(ms(2400)), "a busy machine");
        assert_eq!(uptime.get(), ms(2900));
        assert!(uptime.tick(ms(600_000)));
        assert_eq!(uptime.get(), ms(2900 + 2500));
        let patient = Uptime::new(ms(500), Duration::from_secs(60));
        assert!(!patient.tick(ms(3500)) && patient.tick(ms(3501)));
    }
}
