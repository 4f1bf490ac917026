//! What simulators of protocol cores share: numbers that a seed determines, and how thousands of seeds are run.
//!
//! `NETFS_SIM_SEEDS=n` runs so many histories, `NETFS_SIM_SEED=n` one of them, and prints the last `NETFS_SIM_EVENTS=n` events
//! of it if it fails. Part of tests only.

use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

/// How much of a history is printed unless said otherwise.
const LAST_EVENTS: u64 = 400;

/// Numbers that a seed determines: SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
#[derive(Debug)]
pub struct Rng(u64);

impl Rng {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// The next number, any at all.
    #[allow(clippy::should_implement_trait, reason = "it never ends, and is no iterator")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below a bound.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// True in so many of a thousand cases.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.next() % 1000 < per_mille
    }

    /// A time between two.
    pub fn time(&mut self, from: Duration, to: Duration) -> Duration {
        let span = (to.saturating_sub(from).as_micros() as u64).max(1);
        from + Duration::from_micros(self.next() % span)
    }
}

/// The first thing that went wrong, and how it came to that if it was noted.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// What is not as it has to be.
    pub what: String,
    /// The events before, the last one at the end.
    pub history: Vec<String>,
}

/// A simulated world, which a seed determines.
pub trait World: Sized {
    /// A rule that can be broken on purpose, to see whether that is noticed.
    type Mutant: Copy + Debug;

    /// The world of a seed. `noting`: events are kept for the case of a failure.
    fn new(seed: u64, mutant: Option<Self::Mutant>, noting: bool) -> Self;

    /// Lets it run to its end.
    ///
    /// # Errors
    /// The first thing that goes wrong.
    fn run(&mut self) -> Result<(), Failure>;

    /// Events so far.
    fn steps(&self) -> u64;
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Runs the histories of so many seeds, on all processors, or what the environment asks for.
///
/// # Panics
/// With the smallest seed that each processor found something wrong with, and what that is.
pub fn explore<W: World>(seeds: u64) {
    if let Some(seed) = number("NETFS_SIM_SEED") {
        return show::<W>(seed);
    }
    let seeds = number("NETFS_SIM_SEEDS").unwrap_or(seeds);
    let threads = thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let (started, steps) = (Instant::now(), AtomicU64::new(0));
    let share = |thread: u64| {
        (thread..seeds).step_by(threads as usize).find_map(|seed| {
            let mut world = W::new(seed, None, false);
            let result = world.run();
            steps.fetch_add(world.steps(), Ordering::Relaxed);
            result.err().map(|failed| (seed, failed.what))
        })
    };
    let failed = thread::scope(|scope| {
        let shares: Vec<_> = (0..threads).map(|t| scope.spawn(move || share(t))).collect();
        shares.into_iter().filter_map(outcome).min_by_key(|(seed, _)| *seed)
    });
    if let Some((seed, what)) = failed {
        panic!("NETFS_SIM_SEED={seed} shows it: {what}");
    }
    let (steps, secs) = (steps.into_inner(), started.elapsed().as_secs_f64());
    println!("{seeds} histories, {steps} steps, {secs:.1} s");
}

fn outcome<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn show<W: World>(seed: u64) {
    let mut world = W::new(seed, None, true);
    if let Err(Failure { what, history }) = world.run() {
        let events = number("NETFS_SIM_EVENTS").unwrap_or(LAST_EVENTS) as usize;
        let from = history.len().saturating_sub(events);
        panic!("{}\nseed {seed}: {what}", history[from..].join("\n"));
    }
    println!("seed {seed}: {} steps, nothing wrong", world.steps());
}

/// Breaks one rule after the other, and says which of them showed with none of the first so many seeds.
pub fn unnoticed<W: World>(
    mutants: impl IntoIterator<Item = W::Mutant>,
    seeds: impl Fn(W::Mutant) -> u64,
) -> Vec<W::Mutant> {
    let is_noticed = |mutant: &W::Mutant| {
        (0..seeds(*mutant)).any(|seed| match W::new(seed, Some(*mutant), false).run() {
            Ok(()) => false,
            Err(failed) => {
                println!(
                    "{mutant:?}: seed {seed}: {}",
                    failed.what.lines().next().unwrap_or_default()
                );
                true
            }
        })
    };
    mutants.into_iter().filter(|mutant| !is_noticed(mutant)).collect()
}

/// Whether the first seeds lead to the same histories again, with this rule broken.
pub fn is_determined<W: World>(mutant: W::Mutant) -> bool {
    let history = |seed| W::new(seed, Some(mutant), true).run();
    (0..5).all(|seed| history(seed) == history(seed))
}
