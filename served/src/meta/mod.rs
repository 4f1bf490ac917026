//! The metadata server of one volume.
//!
//! ```text
//! Command -> engine -> log (the truth)
//!                   -> namespace::apply (deterministic) -> kv (its index)
//! ```
//!
//! A change is a [`command::Command`]. The [`engine`] tries it on an overlay of the store, writes
//! it to the [`log`] and then commits the overlay together with the command's position, so the
//! store always shows a prefix of the log and a restart replays what it lacks. Everything in
//! here is synchronous; clocks, random numbers, sockets and tasks belong to the shell around it.

pub mod acl;
pub mod cluster;
pub mod command;
pub mod engine;
pub mod keys;
pub mod kv;
pub mod leases;
pub mod locks;
pub mod log;
pub mod metrics;
pub mod namespace;
pub mod record;
pub mod replay;
pub mod server;
pub mod sessions;
