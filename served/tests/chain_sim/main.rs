//! Seeded histories of chains of replicas, with the code that decides about them as it is: messages are delayed, reordered and
//! lost, servers sleep, die, lose what they had not flushed or everything, and come and go. No read may show what is over, nothing that
//! was flushed may be lost, and when nothing fails any more all replicas must have the same again.
//!
//! `NETFS_SIM_SEEDS=n` runs so many histories, `NETFS_SIM_SEED=n` one of them, and prints it.

#![allow(clippy::unwrap_used)]

mod client;
mod manager;
mod model;
mod net;
mod oracle;
mod rng;
mod server;
mod store;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use model::Mutant;
use world::{Failure, World};

/// Histories of an ordinary run.
const SEEDS: u64 = if cfg!(debug_assertions) { 2_000 } else { 10_000 };
/// A broken rule must show within so many.
const SEEDS_FOR_MUTANT: u64 = 500;
/// Those of which little remains to be seen, because other rules cover for them, within so many.
const SEEDS_FOR_RARE: u64 = 5_000;
const RARE: [Mutant; 5] = [
    Mutant::ShowsRevoked,
    Mutant::IgnoresEpochs,
    Mutant::RemovesQuietly,
    Mutant::AloneForEver,
    Mutant::CopiesOn,
];
/// How much of a history is printed.
const LAST_EVENTS: usize = 400;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn failure(seed: u64, failure: &Failure) -> String {
    let events = number("NETFS_SIM_EVENTS").map_or(LAST_EVENTS, |n| n as usize);
    let from = failure.history.len().saturating_sub(events);
    let history = failure.history[from..].join("\n");
    format!("{history}\nseed {seed}: {}", failure.what)
}

/// The first of some seeds with which something goes wrong.
fn first_failure(seeds: u64, mutant: Option<Mutant>) -> Option<(u64, Failure)> {
    (0..seeds).find_map(|seed| Some((seed, World::new(seed, mutant, false).run().err()?)))
}

#[test]
fn no_read_shows_what_is_over_and_nothing_is_lost() {
    if let Some(seed) = number("NETFS_SIM_SEED") {
        let mut world = World::new(seed, None, true);
        if let Err(failed) = world.run() {
            panic!("{}", failure(seed, &failed));
        }
        println!("seed {seed}: {} steps, nothing wrong", world.steps);
        return;
    }
    let seeds = number("NETFS_SIM_SEEDS").unwrap_or(SEEDS);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let (started, steps) = (Instant::now(), AtomicU64::new(0));
    let failed = std::thread::scope(|scope| {
        let share = |t: u64| {
            let steps = &steps;
            scope.spawn(move || {
                (0..seeds).filter(|seed| seed % threads == t).find_map(|seed| {
                    let mut world = World::new(seed, None, false);
                    let result = world.run();
                    steps.fetch_add(world.steps, Ordering::Relaxed);
                    result.err().map(|failed| (seed, failed.what))
                })
            })
        };
        let threads: Vec<_> = (0..threads).map(share).collect();
        threads.into_iter().filter_map(|t| t.join().unwrap()).min_by_key(|(seed, _)| *seed)
    });
    if let Some((seed, what)) = failed {
        panic!("NETFS_SIM_SEED={seed} shows it: {what}");
    }
    let (steps, secs) = (steps.into_inner(), started.elapsed().as_secs_f64());
    println!("{seeds} histories, {steps} steps, {secs:.1} s");
}

#[test]
fn every_broken_rule_is_noticed() {
    let mutants = [
        Mutant::AnswersAlone,
        Mutant::ShowsNoted,
        Mutant::IgnoresLease,
        Mutant::IgnoresEpochs,
        Mutant::KeepsInstance,
        Mutant::ComparesNothing,
        Mutant::IgnoresAfter,
        Mutant::FloorTooHigh,
        Mutant::ShowsRevoked,
        Mutant::SyncedAtOnce,
        Mutant::SealsNothing,
        Mutant::FlushesHead,
        Mutant::IgnoresVerifier,
        Mutant::PromotesLate,
        Mutant::ReplacesEarly,
        Mutant::RemovesQuietly,
        Mutant::AloneForEver,
        Mutant::CopiesOn,
    ];
    let seeds = |mutant| match RARE.contains(&mutant) {
        true => SEEDS_FOR_RARE,
        false => SEEDS_FOR_MUTANT,
    };
    let missed: Vec<_> = mutants
        .into_iter()
        .filter(|mutant| match first_failure(seeds(*mutant), Some(*mutant)) {
            Some((seed, failed)) => {
                let what = failed.what.lines().next().unwrap_or_default();
                println!("{mutant:?}: seed {seed}: {what}");
                false
            }
            None => true,
        })
        .collect();
    assert!(missed.is_empty(), "{missed:?}");
}

#[test]
fn a_seed_determines_its_history() {
    let history = |seed| {
        let mut world = World::new(seed, Some(Mutant::AnswersAlone), true);
        world.run().err().map(|f| (f.what, f.history))
    };
    assert!((0..5).all(|seed| history(seed) == history(seed)));
}
