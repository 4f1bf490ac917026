//! The client of netfs.

pub mod cli;
pub mod fuse;
pub mod vfs;
