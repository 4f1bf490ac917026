//! What every part of netfs shares.

pub mod tls;
