//! Until when this server may answer reads of groups that others could take over.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The lease. It is given for a time after a moment of this server's own clock, which goes on while the machine sleeps.
#[derive(Debug, Default)]
pub(super) struct Lease {
    /// In nanoseconds of [`now`]; 0: none.
    until: AtomicU64,
}

impl Lease {
    /// The metadata server has heard what this server said at `token`, and counts on it for a while from then on.
    pub(super) fn renew(&self, token: u64, lease: Duration) {
        // What is still to come was not said by this server.
        if token <= now() {
            let lease = u64::try_from(lease.as_nanos()).unwrap_or(u64::MAX);
            self.until.fetch_max(token.saturating_add(lease), Ordering::SeqCst);
        }
    }

    /// Whether it runs.
    pub(super) fn runs(&self) -> bool {
        now() < self.until.load(Ordering::SeqCst)
    }
}

/// `CLOCK_BOOTTIME` in nanoseconds.
pub(super) fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is valid for the call, which writes nothing else.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    debug_assert_eq!(result, 0, "the clock is there since Linux 2.6.39");
    (time.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_counts_from_what_was_said_and_not_from_what_was_heard() {
        let lease = Lease::default();
        assert!(!lease.runs());
        let long_ago = now().saturating_sub(5_000_000_000);
        lease.renew(long_ago, Duration::from_secs(4));
        assert!(!lease.runs());
        lease.renew(now() + 1_000_000_000, Duration::from_secs(9));
        assert!(!lease.runs(), "nobody can have heard that yet");
        lease.renew(now(), Duration::from_secs(4));
        assert!(lease.runs());
        lease.renew(long_ago, Duration::from_secs(4));
        assert!(lease.runs(), "an older one takes nothing away");
    }
}
