//! What a metadata server tells of leases, for people: who holds what, and who waits for whom.
//!
//! Clients are named by how they describe themselves, never by their sessions' numbers: who knows a number may try to go on in
//! it. Lists are cut at [`MAX_SHOWN`].

use bincode::{Decode, Encode};

use super::lease::Lease;
use crate::attr::Attr;
use crate::id::Ino;
use crate::locks::{LockKind, LockMode, LockRange};
use crate::name::Name;

/// The most entries of each list.
pub const MAX_SHOWN: usize = 64;

/// What is asked about.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum About {
    /// An inode.
    Inode(Ino),
    /// What a name leads to.
    Name {
        /// The directory.
        parent: Ino,
        /// The name.
        name: Name,
    },
    /// The volume as a whole.
    Volume,
}

/// A client, as others may see it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Client {
    /// Its host and mount point, as it says itself. Empty: it has gone since.
    pub description: String,
    /// It is the one that asks.
    pub you: bool,
    /// It has a connection now.
    pub connected: bool,
    /// Since its last sign of life, in milliseconds.
    pub silent_ms: u64,
    /// How many leases it has on the volume.
    pub leases: u64,
}

/// What somebody wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Wish {
    /// To see it as it is now.
    Look,
    /// To change its attributes or names in it.
    Change,
    /// To have it alone: to write to it.
    Take,
}

/// Who has a lease. Clients are places in [`Inspection::clients`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Holder {
    /// Who.
    pub client: u32,
    /// Which.
    pub lease: Lease,
}

/// A request that waits, in the order in which they will run.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Waiter {
    /// Whose it is.
    pub client: u32,
    /// What it wants.
    pub wish: Wish,
    /// For how long, in milliseconds.
    pub waits_ms: u64,
    /// For whom.
    pub on: Vec<u32>,
}

/// A recall that has no answer yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Unanswered {
    /// Who is asked.
    pub client: u32,
    /// What it may keep.
    pub keep: Option<Lease>,
    /// Since it was sent, in milliseconds; `None`: it is about to be.
    pub age_ms: Option<u64>,
}

/// A file lock, or a request for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct FileLock {
    /// Whose it is.
    pub client: u32,
    /// What kind.
    pub kind: LockKind,
    /// Shared or exclusive.
    pub mode: LockMode,
    /// The bytes.
    pub range: LockRange,
    /// The process that asked for it, as its client numbers it.
    pub pid: u32,
}

/// A request that has waited.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PastWait {
    /// Whose it was.
    pub client: u32,
    /// What it wanted.
    pub wish: Wish,
    /// For how long it waited, in microseconds.
    pub waited_us: u64,
    /// How long ago that ended, in milliseconds.
    pub ago_ms: u64,
    /// For whom.
    pub on: Vec<u32>,
    /// It was let through; otherwise nobody waited for it any more.
    pub served: bool,
}

/// An inode, as the server sees it now. Whatever is asked about leases is answered without waiting for any.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Inspection {
    /// Its attributes as far as reported: a holder of [`Lease::Write`] may know more.
    pub attr: Attr,
    /// Everybody who is mentioned.
    pub clients: Vec<Client>,
    /// Who has a lease.
    pub holders: Vec<Holder>,
    /// Who waits.
    pub waiting: Vec<Waiter>,
    /// Who is asked to give something back.
    pub recalls: Vec<Unanswered>,
    /// Who has waited lately, the latest first.
    pub past: Vec<PastWait>,
    /// File locks.
    pub locks: Vec<FileLock>,
    /// Who waits for one, in the order of arrival.
    pub lock_queue: Vec<FileLock>,
    /// The server was restarted, and waits until the clients of before are back.
    pub grace: bool,
    /// Entries that are not shown.
    pub left_out: u64,
}

/// The leases of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct VolumeLeases {
    /// All leases.
    pub leases: u64,
    /// How many one client may have.
    pub per_client: u64,
    /// Requests that wait.
    pub waiting: u64,
    /// Recalls without an answer.
    pub unanswered: u64,
    /// As [`Inspection::grace`].
    pub grace: bool,
    /// The clients, those with the most leases first.
    pub clients: Vec<Client>,
    /// Clients that are not shown.
    pub left_out: u64,
}
