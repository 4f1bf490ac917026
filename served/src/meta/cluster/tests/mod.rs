//! Tests of the manager.

mod absent;
mod failures;
mod outdated;
mod shares;
mod stores;
mod turns;
