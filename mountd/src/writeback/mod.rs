//! Data on its way to the servers.

mod extents;
#[cfg(test)]
mod extents_tests;

pub use extents::{Batch, Content, Extents, WINDOW, take};
