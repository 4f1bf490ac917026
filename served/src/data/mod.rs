//! What a data server does: it keeps chunks.

pub mod server;
pub mod store;
