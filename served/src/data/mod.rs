//! What a data server does: it keeps chunks.

pub mod chain;
pub mod codec;
pub mod server;
pub mod store;
pub mod tier;
