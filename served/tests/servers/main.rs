//! Tests of whole servers, in this process or as processes, driven with raw calls. They are one program, since linking it costs as much as any of them would.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod audit;
mod chains;
mod classes;
mod common;
mod damage;
mod data_server;
mod embedded;
mod encryption;
mod full;
mod older;
mod operators;
mod process;
mod redundancy;
mod replay;
mod sessions;
mod tier;
mod tier_chains;
mod tier_owners;
