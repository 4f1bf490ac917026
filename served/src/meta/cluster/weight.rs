//! How large a server's share is: by what it can hold, and less if it is busier than the others.
//!
//! A data server counts the calls that its store has done and the time they took. The difference of two reports is how many calls
//! were at work in it on the average: its *load*, which grows without bound where a server is too slow for what it is asked,
//! be it for its disk, its processor or its neighbours. It is averaged over [`MEMORY`]. What it would be with the whole share, its *demand*, is
//! compared with the mean of all servers.
//!
//! Loads vary all the time, and data that moves is load itself. So shares change only when an operator asks for it; by whole
//! steps of a tenth, two at a time at most; only when most of a step is asked for; and they stay between a half and the whole of what the
//! capacity says. When nobody has much to do nothing is learnt. Who has not more demand than the mean gets the whole, so not
//! all shrink together: that would move data for nothing.

use std::time::Duration;

use bincode::{Decode, Encode};
use netfs_common::id::InstanceId;
use netfs_common::wire::cluster::Work;

use super::placement::MAX_WEIGHT;

/// Over so long loads are averaged.
const MEMORY: Duration = Duration::from_secs(600);
/// A load that was watched for a shorter time counts for nothing.
const WATCHED: Duration = Duration::from_secs(60);
/// With fewer calls at work on the average nobody has much to do.
const IDLE: f64 = 0.05;
/// So much of a step the load must ask for before there is one.
const RELUCTANCE: f64 = 0.75;
/// The most steps at a time.
const MAX_STEPS: f64 = 2.0;

/// The tenths of what its capacity says that a server gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Share(u8);

impl Share {
    /// All of it.
    pub const FULL: Share = Share(10);
    /// The least that load takes it down to.
    pub const LEAST: Share = Share(5);

    /// For people.
    pub fn percent(self) -> u8 {
        self.0.saturating_mul(10)
    }

    /// What the load with this share would be with the whole, if it goes with the share.
    pub fn demand(self, load: f64) -> f64 {
        load * f64::from(Share::FULL.0) / f64::from(self.0.max(1))
    }

    /// The share that comes next for a server with this demand among servers with that mean demand.
    pub fn for_demand(self, demand: f64, mean: f64) -> Share {
        if mean < IDLE {
            return self;
        }
        let (now, full) = (f64::from(self.0), f64::from(Share::FULL.0));
        let ideal = (full * mean / demand.max(f64::MIN_POSITIVE)).min(full);
        if (ideal - now).abs() < RELUCTANCE {
            return self;
        }
        let next = ideal.round().clamp(now - MAX_STEPS, now + MAX_STEPS);
        // Between 5 and 10.
        Share(next.clamp(f64::from(Share::LEAST.0), full) as u8)
    }

    /// So much of a weight.
    pub fn of(self, weight: u32) -> u32 {
        let part = u64::from(weight) * u64::from(self.0) / 10;
        u32::try_from(part).unwrap_or(MAX_WEIGHT).clamp(1, MAX_WEIGHT)
    }
}

/// What was seen of a server's work.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meter {
    last: Option<(Duration, InstanceId, Work)>,
    watched: Duration,
    load: f64,
    /// Calls in a second.
    rate: f64,
}

impl Meter {
    /// A report has come. One of another life begins a new count, and one that comes late says nothing.
    pub fn note(&mut self, at: Duration, instance: InstanceId, work: Work) {
        let Some((before, life, was)) = self.last.replace((at, instance, work)) else { return };
        let (Some(span), Some(busy), Some(calls)) = (
            at.checked_sub(before).filter(|span| !span.is_zero()),
            work.busy_us.checked_sub(was.busy_us),
            work.calls.checked_sub(was.calls),
        ) else {
            return;
        };
        if life != instance {
            return;
        }
        self.watched += span;
        let secs = span.as_secs_f64();
        // At first all counts alike.
        let of_all = secs / self.watched.as_secs_f64();
        let weight = of_all.max(1.0 - (-secs / MEMORY.as_secs_f64()).exp());
        self.load += weight * (busy as f64 / 1e6 / secs - self.load);
        self.rate += weight * (calls as f64 / secs - self.rate);
    }

    /// How many calls were at work on the average, if it was watched for long enough.
    pub fn load(&self) -> Option<f64> {
        (self.watched >= WATCHED).then_some(self.load)
    }

    /// The same as it is known, in thousandths, and how long a call took on the average, in microseconds.
    pub fn figures(&self) -> (u32, u32) {
        let took = if self.rate > 0.0 { self.load / self.rate * 1e6 } else { 0.0 };
        // These conversions saturate.
        ((self.load * 1e3).round() as u32, took.round() as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> impl Iterator<Item = Share> {
        (Share::LEAST.0..=Share::FULL.0).map(Share)
    }

    #[test]
    fn a_share_falls_with_the_demand_in_bounded_steps_and_never_out_of_its_bounds() {
        for before in all() {
            let mut last = Share::FULL;
            for demand in 0..4000 {
                let after = before.for_demand(f64::from(demand) / 100.0, 4.0);
                assert!(after <= last, "{before:?} at {demand}");
                assert!((Share::LEAST..=Share::FULL).contains(&after));
                assert!(after.0.abs_diff(before.0) <= 2);
                last = after;
            }
            let full = (before.0 + 2).min(Share::FULL.0);
            assert_eq!(before.for_demand(4.0, 4.0).0, full, "no more than the mean");
            assert_eq!(before.for_demand(f64::INFINITY, 4.0).0, (before.0 - 2).max(5));
            assert_eq!(before.for_demand(0.04, 0.01), before, "nobody has much to do");
        }
    }

    #[test]
    fn noise_changes_nothing() {
        for share in all() {
            for percent in 93..=107 {
                let right = 4.0 * 10.0 / f64::from(share.0);
                let demand = right * f64::from(percent) / 100.0;
                assert_eq!(share.for_demand(demand, 4.0), share, "{percent} %");
            }
        }
    }

    #[test]
    fn a_slow_server_comes_to_rest_at_a_lower_share_and_back_when_it_is_well() {
        // Three servers, one of which takes so much longer for a call; load goes with share and time per call.
        let loads = |shares: &[Share; 3], slow: f64| -> [f64; 3] {
            let sum: f64 = shares.iter().map(|s| f64::from(s.0)).sum();
            std::array::from_fn(|i| {
                9.0 * f64::from(shares[i].0) / sum * if i == 0 { slow } else { 1.0 }
            })
        };
        let turns = |shares: &mut [Share; 3], slow| {
            let mut steps = Vec::new();
            for _ in 0..10 {
                let now = loads(shares, slow);
                let demands: [f64; 3] = std::array::from_fn(|i| shares[i].demand(now[i]));
                let mean = demands.iter().sum::<f64>() / 3.0;
                for (share, demand) in shares.iter_mut().zip(demands) {
                    *share = share.for_demand(demand, mean);
                }
                steps.push(shares.map(Share::percent));
            }
            steps
        };
        let mut shares = [Share::FULL; 3];
        for (slow, rest) in [(2.0, 70), (6.0, 50), (1.0, 100)] {
            let steps = turns(&mut shares, slow);
            println!("a server that takes {slow} times as long: {:?}", &steps[..4]);
            assert_eq!(steps[3], [rest, 100, 100]);
            assert_eq!(steps[3], steps[9], "it rests");
        }
    }

    #[test]
    fn load_is_the_mean_number_of_calls_at_work_and_forgets_slowly() {
        let mut meter = Meter::default();
        let (life, mut work) = (InstanceId(1), Work::default());
        let mut at = Duration::ZERO;
        let mut go = |meter: &mut Meter, secs: u64, load: u64| {
            for _ in 0..secs * 2 {
                meter.note(at, life, work);
                at += Duration::from_millis(500);
                work.busy_us += load * 500_000;
                work.calls += load * 50;
            }
        };
        go(&mut meter, 50, 3);
        assert_eq!(meter.load(), None, "too early to tell");
        go(&mut meter, 100, 3);
        assert!((meter.load().unwrap() - 3.0).abs() < 0.05, "{meter:?}");
        let (load, took) = meter.figures();
        assert!(load.abs_diff(3000) < 50 && took.abs_diff(10_000) < 100, "{load} {took}");
        go(&mut meter, 10, 100);
        let after = meter.load().unwrap();
        assert!((4.0..12.0).contains(&after), "ten seconds of much work: {after}");
        // Another life begins at 0, and an old report comes late: neither counts.
        let mut other = meter;
        other.note(Duration::from_secs(200), InstanceId(2), Work { busy_us: 1 << 60, calls: 1 });
        other.note(Duration::from_secs(100), InstanceId(2), Work::default());
        assert_eq!(other.load(), meter.load());
    }

    #[test]
    fn a_share_of_a_weight_is_never_none_of_it() {
        assert_eq!(Share::FULL.of(128), 128);
        assert_eq!(Share(9).of(128), 115);
        assert_eq!(Share::LEAST.of(1), 1);
        assert_eq!(Share::FULL.of(u32::MAX), MAX_WEIGHT);
    }
}
