//! The network layer over loopback, with real certificates.

// The lint's exemption covers test functions, not what they share.
#![allow(clippy::unwrap_used)]

mod bulk;
mod calls;
mod channel;
mod hostile;
mod world;
