//! The client of netfs.

pub mod fuse;
pub mod vfs;
