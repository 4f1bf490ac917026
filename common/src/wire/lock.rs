//! Calls about file locks, on the metadata connection.
//!
//! A lock that has to be waited for is not waited for in its own call: it gets a place in the
//! file's queue under a number that the client draws ([`WaitId`]), and one [`LockCall::Await`] of the
//! session brings the news of all of them. So any number of waiting programs takes one call. All of it
//! can be said again over a new connection: a request of the same number keeps its place, and a
//! grant is told until its receipt is acknowledged.

use bincode::{Decode, Encode};

use crate::id::Ino;
use crate::locks::{LockKind, LockMode, LockRange};

/// The most locks in one [`LockCall::Reclaim`], and the most numbers in [`LockCall::Await`] and its
/// answer.
pub const MAX_LOCK_BATCH: usize = 1024;

/// The number of a request that waits, unique in the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct WaitId(pub u64);

/// Whose lock on which file. The session is that of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct LockOn {
    /// The file.
    pub ino: Ino,
    /// What kind of lock.
    pub kind: LockKind,
    /// The owner's number, as the client's kernel gives it.
    pub owner: u64,
}

/// A lock that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct LockHeld {
    /// Whose it is.
    pub on: LockOn,
    /// The bytes.
    pub range: LockRange,
    /// Shared or exclusive.
    pub mode: LockMode,
    /// The process that asked for it, as its client numbers it.
    pub pid: u32,
}

/// A call about locks.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum LockCall {
    /// Asks for a lock: [`LockReply::Granted`], [`LockReply::Conflict`], [`LockReply::Queued`],
    /// [`LockReply::Grace`], `EDEADLK`, `ENOLCK`. What the owner has in the range is replaced when it is
    /// granted; a `flock` of another mode is given up before.
    Set {
        /// The lock.
        lock: LockHeld,
        /// Wait for it, under this number.
        wait: Option<WaitId>,
    },
    /// Gives up what the owner has in a range: [`LockReply::Granted`], `ENOLCK`.
    Clear {
        /// Whose.
        on: LockOn,
        /// Where.
        range: LockRange,
    },
    /// Whether a lock could be had now: [`LockReply::Granted`], [`LockReply::Conflict`],
    /// [`LockReply::Grace`].
    Test {
        /// The lock.
        lock: LockHeld,
    },
    /// A program no longer waits: [`LockReply::Withdrawn`].
    Withdraw {
        /// Its number.
        wait: WaitId,
    },
    /// [`LockReply::Grants`] when there are any, when nothing is waited for, or after a while.
    Await {
        /// Grants that have been received: they are not told again.
        received: Vec<WaitId>,
    },
    /// After a restart of the server: locks that the session has. [`LockReply::Refused`]; `ESTALE`
    /// when the batch is not the next one: then the client begins again with the first.
    Reclaim {
        /// Batches are numbered from 0.
        batch: u32,
        /// The locks.
        locks: Vec<LockHeld>,
        /// There are no more.
        last: bool,
    },
}

/// An answer about locks.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum LockReply {
    /// The owner has it, or could have it.
    Granted,
    /// Somebody has a lock in the way.
    Conflict(LockConflict),
    /// It waits for its turn.
    Queued,
    /// Some clients have not said yet which locks they had before the server was restarted: to be asked
    /// again a little later.
    Grace,
    /// The request no longer waits.
    Withdrawn {
        /// It was waiting up to now, and nothing has come of it.
        waiting: bool,
    },
    /// What was waited for and has been granted.
    Grants(Vec<WaitId>),
    /// The places, in the batch, of locks that could not be had again.
    Refused(Vec<u32>),
}

/// A lock in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LockConflict {
    /// Its kind.
    pub kind: LockKind,
    /// Its range.
    pub range: LockRange,
    /// Shared or exclusive.
    pub mode: LockMode,
    /// The process, as its client numbers it; 0 if it is of another client.
    pub pid: u32,
}
