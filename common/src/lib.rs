//! What every part of netfs shares.

pub mod net;
pub mod tls;
