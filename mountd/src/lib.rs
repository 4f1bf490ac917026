//! The client of netfs.

pub mod cache;
pub mod session;
pub mod vfs;
pub mod writeback;
