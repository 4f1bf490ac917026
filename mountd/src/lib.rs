//! The client of netfs.

pub mod session;
pub mod vfs;
pub mod writeback;
