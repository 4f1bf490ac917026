//! The client's one session with its volume: numbered changes, calls that survive a lost
//! connection, and the connections themselves.
//!
//! A call is sent again whenever its connection is lost, a change under the same number, so that
//! the server applies it once. Nothing in here gives up: who waits for a call decides for how
//! long ([`crate::vfs::Options::soft`]), the call itself goes on, since its outcome matters to
//! the caches. The exceptions are [`Session::stop`] and a session that the server has ended:
//! changes that were under way then may or may not have been applied and fail with `EIO`.

mod clock;
mod counters;
mod data;
mod kept;
mod link;
mod lost;
mod meta;
mod oplog;
mod positions;
mod term;

pub use counters::{Counters, Traffic};
pub use data::{Bulk, Copied, Written};
pub use link::{Answer, DataLink, DialError, Dialer, Dialled, LinkError, MetaLink, PushCall};
pub use lost::LostPositions;
pub(crate) use meta::lock;
pub use meta::{Changed, Reconnected, Restored, Session, SessionConfig, SessionEvents, Waits};
pub use oplog::OpLog;
pub(crate) use term::since_boot;
pub use term::{Look, Term};
