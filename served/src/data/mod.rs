//! The data server: it keeps chunks.

pub mod service;
pub mod store;
