//! Tests of the client core against servers in memory.

mod ahead;
mod budgets;
mod chains;
mod circles;
mod classes;
mod coherence;
mod crowd;
mod data_server;
mod failures;
mod fenced;
mod files;
mod histories;
mod lapsed;
mod leasing;
mod lengths;
mod locks;
mod meta_server;
mod names;
mod orphans;
mod power;
mod silence;
mod takeback;
mod unheard;
mod world;
