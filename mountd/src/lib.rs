//! The client of netfs.

pub mod cache;
pub mod cli;
pub mod dial;
pub mod fuse;
pub mod insight;
pub mod lease;
pub mod readahead;
pub mod session;
pub mod vfs;
pub mod writeback;
