//! The servers of netfs.
