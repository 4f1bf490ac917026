//! What every part of netfs shares: identifiers, attributes, the wire messages and their codec, the network,
//! identities, configuration and telemetry.
//!
//! Nothing in here knows FUSE, and nothing but `net` opens a socket.

pub mod attr;
pub mod class;
pub mod codec;
pub mod coding;
pub mod config;
pub mod errno;
pub mod id;
pub mod locks;
pub mod map;
pub mod name;
pub mod net;
#[cfg(feature = "simulation")]
pub mod simulation;
pub mod telemetry;
pub mod tls;
pub mod wire;
