//! Tests of the client core against servers in memory.
