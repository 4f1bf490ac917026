//! The servers of netfs.

pub mod check;
pub mod cli;
pub mod data;
pub mod embedded;
pub mod flusher;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod greeting;
pub mod health;
pub mod http;
pub mod meta;
mod private;
pub mod thread;
