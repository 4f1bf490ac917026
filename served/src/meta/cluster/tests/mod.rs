//! Tests of the manager.

mod failures;
mod outdated;
mod shares;
mod stores;
mod turns;
