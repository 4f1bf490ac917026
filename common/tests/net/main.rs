//! The network layer over loopback, with real certificates.

mod bulk;
mod calls;
mod channel;
mod hostile;
mod world;
