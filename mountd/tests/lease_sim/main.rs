//! Seeded histories of several clients and a server, with the code that decides about leases and
//! terms as it is: messages are delayed, reordered, doubled and lost, nodes sleep and die, clocks
//! drift. After every step nobody may believe what is not so.
//!
//! `NETFS_SIM_SEEDS` and `NETFS_SIM_SEED`: see `netfs_common::simulation`.

#![allow(clippy::unwrap_used)]

mod client;
mod model;
mod oracle;
mod server;
mod world;

use netfs_common::simulation::{self, Failure};

use model::Mutant;
use world::World;

/// Histories of an ordinary run.
const SEEDS: u64 = 10_000;
/// A broken rule must show within so many.
const SEEDS_FOR_MUTANT: u64 = 500;

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
fn nobody_believes_what_is_not_so() {
    simulation::explore::<World>(SEEDS);
}

#[test]
fn every_broken_rule_is_noticed() {
    let mutants = [
        Mutant::ExecutesWithoutWaiting,
        Mutant::ServesAfterLapse,
        Mutant::GrantsDuringGrace,
        Mutant::IgnoresStamps,
        Mutant::AppliesExpired,
        Mutant::ForgetsReplies,
        Mutant::LooksPassChanges,
        Mutant::SyncsNothing,
        Mutant::AnswersBeforeFlush,
        Mutant::ExpiresEarly,
        Mutant::KeepsWithoutGrant,
    ];
    let missed = simulation::unnoticed::<World>(mutants, |_| SEEDS_FOR_MUTANT);
    assert!(missed.is_empty(), "{missed:?}");
}

#[test]
fn a_seed_determines_its_history() {
    assert!(simulation::is_determined::<World>(Mutant::ExecutesWithoutWaiting));
}
