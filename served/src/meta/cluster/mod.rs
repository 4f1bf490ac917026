//! The cluster: which data servers there are, and which of them has what.
//!
//! [`State`] is what is kept; [`Manager`] decides, as a plain state machine: it is told what the servers report and what time it
//! is, and changes the state. The shell (`meta/server/cluster/`) stores every change before anybody hears of it.
//!
//! # Why nobody reads what is old
//!
//! A server answers reads while its *lease* runs, and asks for it anew all the time; it counts from before the metadata
//! server heard its request. A silent server is replaced only when its lease is over for certain. One that
//! is to leave a chain while it answers is first told to refuse reads ([`Manager::revocations`]) and leaves when it has said that
//! it does. A server in another life than that of the chain cannot have anything under way any more.
//!
//! # Why nothing is lost
//!
//! A chain is made shorter only while one replica is left that has been in it all the time, so that has everything. When
//! none is, the chain stays as it is until one of them comes back, with what it had flushed: then the group's verifier is raised,
//! and clients send again what they have not flushed. One whose disk has lost some of that is not the one, unless all are back and no other is
//! better; if the others never come an operator gives them up. A learner gets into the chain only by the report of the tail, of the same epoch.

mod manager;
mod old;
mod placement;
mod state;
mod weight;

#[cfg(test)]
mod tests;

pub use manager::{
    Astray, Command, CommandError, Config, Health, Held, Loss, Manager, NotTaken, Report, Verdict,
};
pub use placement::{Candidate, place};
pub use state::{Duty, PoolState, ServerState, State, StateError, StoreId};
pub use weight::{Meter, Share};
