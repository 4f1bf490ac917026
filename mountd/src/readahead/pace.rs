//! What the link carries: bandwidth times delay, measured.

use std::time::Duration;

/// Rates are measured over this time at least.
const SPAN: Duration = Duration::from_millis(20);
/// A rate counts for so long. A delay that is not seen again counts as a little longer after that: not as what is seen instead,
/// which may be long because much is under way.
const MEMORY: Duration = Duration::from_secs(10);
/// The least that is said to be worth having under way.
const LEAST: u64 = 1 << 20;

/// Measures fetches of a mount. Times are those of one clock that never goes back.
#[derive(Debug, Default)]
pub struct Pace {
    begun: Duration,
    bytes: u64,
    /// The highest rate, in bytes a second, and when it was seen.
    rate: (u64, Duration),
    /// The shortest time that a fetch took, and when.
    delay: (Duration, Duration),
}

impl Pace {
    /// A fetch that took so long has brought bytes.
    pub fn fetched(&mut self, now: Duration, took: Duration, bytes: u64) {
        let (least, at) = self.delay;
        if least.is_zero() || took <= least {
            self.delay = (took.max(Duration::from_micros(1)), now);
        } else if now.saturating_sub(at) > MEMORY {
            self.delay = (took.min(least + least / 16), now);
        }
        self.bytes = self.bytes.saturating_add(bytes);
        let span = now.saturating_sub(self.begun);
        if span < SPAN {
            return;
        }
        // Not less than the fetch itself took: after a pause a first fetch shows its own rate.
        let span = span.min(took.max(SPAN));
        let nanos = span.as_nanos().max(1);
        let rate = u128::from(self.bytes) * 1_000_000_000 / nanos;
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        if rate >= self.rate.0 || now.saturating_sub(self.rate.1) > MEMORY {
            self.rate = (rate, now);
        }
        (self.begun, self.bytes) = (now, 0);
    }

    /// So much under way fills the link: twice bandwidth times delay, so that a rate which is low because little is under way lets
    /// more be tried.
    pub fn bound(&self) -> u64 {
        let nanos = self.delay.0.as_nanos();
        let product = u128::from(self.rate.0) * nanos / 1_000_000_000;
        u64::try_from(product * 2).unwrap_or(u64::MAX).max(LEAST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fetches of 1 MiB, as many at once as the bound allows, over a link of so many bytes a second.
    fn settles_at(rate: u64, delay: Duration) -> u64 {
        let (mut pace, mut now) = (Pace::default(), Duration::from_secs(1));
        for _ in 0..200 {
            let n = pace.bound() >> 20;
            let busy = Duration::from_secs_f64((n << 20) as f64 / rate as f64);
            let took = delay.max(busy);
            for i in 0..n {
                let at = now + took.mul_f64((i + 1) as f64 / n as f64);
                pace.fetched(at, took, 1 << 20);
            }
            now += took;
        }
        pace.bound()
    }

    #[test]
    fn the_bound_grows_to_twice_what_the_link_holds() {
        let ms = Duration::from_millis;
        // 100 MB/s and 20 ms: 2 MB.
        assert!((3 << 20..6 << 20).contains(&settles_at(100_000_000, ms(20))));
        assert!((30 << 20..70 << 20).contains(&settles_at(200_000_000, ms(100))));
        assert!(settles_at(100_000_000, ms(1)) < 4 << 20);
    }

    #[test]
    fn nothing_measured_allows_little() {
        assert_eq!(Pace::default().bound(), LEAST);
    }
}
