//! The servers of netfs.
pub mod data;
