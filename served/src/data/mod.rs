//! What a data server does: it keeps chunks.
pub mod store;
