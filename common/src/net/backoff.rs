//! How long to wait before trying again.

use std::time::Duration;

/// A policy of exponential backoff with jitter. A pure function: randomness is handed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backoff {
    /// The delay after the first failure, before jitter.
    pub first: Duration,
    /// The longest delay. Less than the pause that users notice when a server comes back.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_millis(50), max: Duration::from_secs(2) }
    }
}

impl Backoff {
    /// The delay after failure number `failures` (the first is 1), where `random` is uniform over its type.
    ///
    /// Half of it is fixed and half is random, so that clients that lost the same server do not come back all
    /// at once, and no delay is ever close to none.
    pub fn delay(&self, failures: u32, random: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        let full = self.first.saturating_mul(1 << doublings).min(self.max);
        let half = full / 2;
        half + half.mul_f64(f64::from(random) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy() -> impl Strategy<Value = Backoff> {
        (1u64..10_000, 1u64..100_000).prop_map(|(first, max)| Backoff {
            first: Duration::from_millis(first),
            max: Duration::from_millis(max),
        })
    }

    proptest! {
        #[test]
        fn delays_are_bounded_and_never_near_zero(
            policy in policy(), failures: u32, random: u32,
        ) {
            let delay = policy.delay(failures, random);
            prop_assert!(delay <= policy.max);
            prop_assert!(delay >= policy.first.min(policy.max) / 2);
        }

        #[test]
        fn more_failures_never_wait_less(policy in policy(), failures in 1u32..40, random: u32) {
            prop_assert!(policy.delay(failures + 1, random) >= policy.delay(failures, random));
        }

        #[test]
        fn patience_is_reached_and_kept(policy in policy(), failures in 32u32.., random: u32) {
            prop_assert!(policy.delay(failures, random) >= policy.max / 2);
        }
    }
}
