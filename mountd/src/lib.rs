//! The client of netfs.

pub mod vfs;
