//! What every part of netfs shares.
