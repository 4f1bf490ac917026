//! Leases: what a client may keep, and how it is taken back.
//!
//! A lease is on an inode and held by a session. It lets the client keep what it has been shown under it: a grant comes with an
//! answer and covers what that answer shows (attributes, contents, extended attributes; of a directory the names, absent ones
//! too). A recall says what becomes untrue; the client drops that, in the kernel too, and only then answers.

use bincode::{Decode, Encode};

use crate::id::Ino;
use crate::name::Name;

/// The most recalls in one message.
pub const MAX_RECALLS: usize = 1024;

/// What a session may do with an inode without asking. `Write` includes `Read`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub enum Lease {
    /// Keep what was shown. Any number of sessions may at once.
    Read,
    /// Change contents, size and times before the server hears of it. Nobody else has any lease.
    Write,
}

/// A lease that comes with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Grant {
    /// The inode.
    pub ino: Ino,
    /// What the session has now.
    pub lease: Lease,
    /// Data servers have nothing of the file that was not reported: whoever wrote it last has said so. Only with `Write`.
    pub tail_known: bool,
}

/// Parts of what is known of an inode.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Scope {
    /// Its attributes.
    pub attrs: bool,
    /// Its extended attributes.
    pub xattrs: bool,
    /// A range of its contents, end excluded.
    pub data: Option<(u64, u64)>,
    /// Of a directory: names in it.
    pub names: Names,
}

/// Names of a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub enum Names {
    /// None.
    #[default]
    None,
    /// These. A listing shows all names, so it is among what becomes untrue.
    Some(Vec<Name>),
    /// All.
    All,
}

impl Scope {
    /// Everything.
    pub fn all() -> Scope {
        Scope { attrs: true, xattrs: true, data: Some((0, u64::MAX)), names: Names::All }
    }

    /// Attributes alone.
    pub fn attrs() -> Scope {
        Scope { attrs: true, ..Scope::default() }
    }

    /// One name of a directory, and the directory's attributes, which every change of a name moves.
    pub fn name(name: Name) -> Scope {
        Scope { attrs: true, names: Names::Some(vec![name]), ..Scope::default() }
    }

    /// Whether the two have anything in common.
    pub fn meets(&self, other: &Scope) -> bool {
        let data = match (self.data, other.data) {
            (Some((a, b)), Some((c, d))) => a < d && c < b,
            _ => false,
        };
        let names = match (&self.names, &other.names) {
            (Names::None, _) | (_, Names::None) => false,
            (Names::All, _) | (_, Names::All) => true,
            (Names::Some(a), Names::Some(b)) => a.iter().any(|n| b.contains(n)),
        };
        (self.attrs && other.attrs) || (self.xattrs && other.xattrs) || data || names
    }
}

/// What a session must give back of one inode.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Recall {
    /// The inode.
    pub ino: Ino,
    /// What it may keep of its lease. If less than it has, what it has buffered is sent and reported first.
    pub keep: Option<Lease>,
    /// What becomes untrue; with no lease left, everything does.
    pub stale: Scope,
}
