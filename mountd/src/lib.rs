//! The client of netfs.
