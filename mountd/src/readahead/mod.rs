//! Which bytes of a file will be wanted next. Pure logic: reads in, ranges to fetch out.
//!
//! The kernel reads ahead too, and as root it may do so by megabytes; then what comes here from a sequential read is deep already, and
//! counts towards the window ([`Seen::under_way`]). What it never does: strides, reads backwards, more than
//! 128 KiB for users other than root, and a good start.

mod detector;
mod pace;
#[cfg(test)]
mod tests;

pub use detector::{Advice, Detector, Limits, Outcome, Seen};
pub use pace::Pace;
