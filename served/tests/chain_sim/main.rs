//! Seeded histories of chains of replicas, with the code that decides about them as it is: messages are delayed, reordered and
//! lost, servers sleep, die, lose what they had not flushed or everything, and come and go. No read may show what is over, nothing that
//! was flushed may be lost, nothing is acknowledged by fewer replicas than the volume asks for, what stays away for long is replaced,
//! and when nothing fails any more all replicas must have the same again.
//!
//! `NETFS_SIM_SEEDS` and `NETFS_SIM_SEED`: see `netfs_common::simulation`.

#![allow(clippy::unwrap_used)]

mod client;
mod manager;
mod model;
mod net;
mod oracle;
mod server;
mod store;
mod world;

use netfs_common::simulation::{self, Failure};

use model::Mutant;
use world::World;

/// Histories of an ordinary run.
const SEEDS: u64 = if cfg!(debug_assertions) { 2_000 } else { 10_000 };
/// A broken rule must show within so many.
const SEEDS_FOR_MUTANT: u64 = 500;
/// Those of which little remains to be seen, because other rules cover for them, within so many.
const SEEDS_FOR_RARE: u64 = 5_000;
const RARE: [Mutant; 7] = [
    Mutant::ShowsRevoked,
    Mutant::IgnoresEpochs,
    Mutant::RemovesQuietly,
    Mutant::AloneForEver,
    Mutant::CopiesOn,
    Mutant::LacksQuietly,
    Mutant::OrdersOn,
];

impl simulation::World for World {
    type Mutant = Mutant;

    fn new(seed: u64, mutant: Option<Mutant>, noting: bool) -> World {
        World::new(seed, mutant, noting)
    }

    fn run(&mut self) -> Result<(), Failure> {
        World::run(self)
    }

    fn steps(&self) -> u64 {
        self.steps
    }
}

#[test]
fn no_read_shows_what_is_over_and_nothing_is_lost() {
    simulation::explore::<World>(SEEDS);
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
        Mutant::TurnsAtOnce,
        Mutant::OrdersOn,
        Mutant::LacksQuietly,
        Mutant::AnswersShort,
        Mutant::FlushesShort,
        Mutant::WaitsForEver,
        Mutant::AdmitsFenced,
        Mutant::TellsEnded,
    ];
    let seeds = |mutant| match RARE.contains(&mutant) {
        true => SEEDS_FOR_RARE,
        false => SEEDS_FOR_MUTANT,
    };
    let missed = simulation::unnoticed::<World>(mutants, seeds);
    assert!(missed.is_empty(), "{missed:?}");
}

#[test]
fn a_seed_determines_its_history() {
    assert!(simulation::is_determined::<World>(Mutant::AnswersAlone));
}
