//! What a data server does: it keeps chunks.

pub mod chain;
pub mod server;
pub mod store;
pub mod tier;
