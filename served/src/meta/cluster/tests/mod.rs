//! Tests of the manager.

mod failures;
mod shares;
mod stores;
mod turns;
