//! The servers of netfs.

pub mod cluster;
pub mod data;
mod flusher;
pub mod greeting;
pub mod http;
pub mod meta;
pub mod thread;
