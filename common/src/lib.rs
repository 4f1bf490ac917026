//! What every part of netfs shares.

pub mod config;
pub mod net;
pub mod telemetry;
pub mod tls;
