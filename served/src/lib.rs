//! The servers of netfs.

pub mod meta;
