//! The servers of netfs.

pub mod cluster;
pub mod data;
pub mod greeting;
pub mod thread;
