//! The messages. Encoded by [`crate::codec`], carried by the network layer.
//!
//! A connection begins with [`Hello`]. On a metadata connection frames carry [`meta::Request`]
//! and [`meta::Answer`] one way and [`meta::Push`] and [`meta::PushReply`] the other; on a bulk connection
//! each stream carries a [`data::Request`] with payload and a [`data::Reply`] with payload.

pub mod audit;
pub mod cluster;
pub mod data;
pub mod hello;
pub mod insight;
pub mod lease;
pub mod lock;
pub mod meta;
pub mod operator;

pub use hello::{Claim, Hello, HelloReply, Role};

/// The version of the protocol that this build speaks. Raised by every incompatible change;
/// [`Hello`] carries a range, so that a later build can speak to an earlier one.
pub const PROTOCOL: u32 = 9;
