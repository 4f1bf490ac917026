//! What the simulated nodes talk about: objects, requests, messages, and how they are told apart
//! from broken ones.

use std::time::Duration;

use netfs_common::id::{Ino, SessionId};
use netfs_common::name::Name;
use netfs_common::wire::lease::{Grant, Lease, Names, Recall, Scope};
use netfs_mountd::lease::Ticket;
use netfs_served::meta::leases::{Access, RecallId, Want};

/// Directories have even numbers, files odd ones.
pub(crate) const INOS: usize = 5;
/// Of a file: attributes, contents, extended attributes, more contents. Of a directory: attributes and names.
pub(crate) const ATOMS: usize = 4;
pub(crate) const ALL: u8 = (1 << ATOMS) - 1;
pub(crate) const ATTRS: u8 = 1;
pub(crate) const DATA: u8 = 2;
pub(crate) const XATTRS: u8 = 4;
/// More contents.
pub(crate) const TAIL: u8 = 8;
/// Where contents are divided in two.
const MIDDLE: u64 = 4096;

/// How long a session lives without a sign of life.
pub(crate) const TERM: Duration = Duration::from_millis(900);

/// A version per thing that can be known of an inode. Versions are drawn from one counter in the
/// order in which changes take effect.
pub(crate) type Values = [[u64; ATOMS]; INOS];

pub(crate) fn is_dir(ino: Ino) -> bool {
    ino.0.is_multiple_of(2)
}

/// The things in a set.
pub(crate) fn atoms(mask: u8) -> impl Iterator<Item = usize> {
    (0..ATOMS).filter(move |atom| mask & (1 << atom) != 0)
}

/// A set of things in the terms of the protocol.
pub(crate) fn scope(ino: Ino, mask: u8) -> Scope {
    let attrs = mask & ATTRS != 0;
    if !is_dir(ino) {
        let data = match (mask & DATA != 0, mask & TAIL != 0) {
            (true, true) => Some((0, u64::MAX)),
            (true, false) => Some((0, MIDDLE)),
            (false, true) => Some((MIDDLE, u64::MAX)),
            (false, false) => None,
        };
        return Scope { attrs, data, xattrs: mask & XATTRS != 0, names: Names::None };
    }
    let names: Vec<Name> = atoms(mask & !ATTRS).map(name).collect();
    let names = match names.len() {
        0 => Names::None,
        n if n == ATOMS - 1 => Names::All,
        _ => Names::Some(names),
    };
    Scope { attrs, names, ..Scope::default() }
}

fn name(atom: usize) -> Name {
    Name::new(format!("n{atom}")).unwrap()
}

/// The things that a scope of the protocol is about.
pub(crate) fn mask(ino: Ino, of: &Scope) -> u8 {
    (0..ATOMS).filter(|a| of.meets(&scope(ino, 1 << a))).fold(0, |m, a| m | 1 << a)
}

/// A change.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    /// Unique in a history.
    pub(crate) id: u64,
    pub(crate) ino: Ino,
    pub(crate) kind: ChangeKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChangeKind {
    /// What was written before, in secret: this version of contents and attributes.
    Flush(u64),
    /// These things.
    Set(u8),
    /// All there is, leaving others nothing.
    Replace,
    /// A name comes to be, if it is not there.
    Create(usize),
    /// A name goes, if it is there.
    Unlink(usize),
}

impl Change {
    pub(crate) fn touches(&self) -> u8 {
        match self.kind {
            ChangeKind::Flush(_) => ATTRS | DATA,
            ChangeKind::Set(mask) => mask,
            ChangeKind::Replace => ALL,
            ChangeKind::Create(atom) | ChangeKind::Unlink(atom) => ATTRS | 1 << atom,
        }
    }

    pub(crate) fn wants(&self) -> Vec<Want> {
        let access = match self.kind {
            ChangeKind::Replace => Access::Take,
            _ => Access::Change,
        };
        vec![Want { ino: self.ino, scope: scope(self.ino, self.touches()), access }]
    }
}

/// What a client asks.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    Look { ino: Ino, mask: u8 },
    Acquire { ino: Ino },
    Change(Change),
    Reclaim { leases: Vec<(Ino, Lease)> },
    Sync,
}

/// A version of a thing, as an answer shows it.
pub(crate) type Shown = Vec<(Ino, usize, u64)>;

#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) shown: Shown,
    /// The change was made; otherwise something stood against it, which is shown.
    pub(crate) made: bool,
    pub(crate) grants: Vec<Grant>,
}

#[derive(Clone, Debug)]
pub(crate) enum ToServer {
    Hello {
        new: bool,
        sent: Duration,
    },
    Renew {
        sent: Duration,
    },
    /// The number is the request's own in its session.
    Call(u64, Request),
    Answered(RecallId),
}

#[derive(Clone, Debug)]
pub(crate) enum ToClient {
    Welcome { known: bool, instance: u64, sent: Duration },
    Renewed { sent: Duration },
    Answer(u64, Answer),
    Recall(RecallId, Vec<Recall>),
}

/// Where a message came from, or over which connection it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Via {
    pub(crate) client: usize,
    pub(crate) session: SessionId,
    pub(crate) conn: u64,
}

/// A call under way.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) request: Request,
    pub(crate) ticket: Ticket,
    pub(crate) op: Option<u64>,
}

/// A rule that is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// Requests run without the answers of holders.
    ExecutesWithoutWaiting,
    /// A client relies on its leases without hearing of the server.
    ServesAfterLapse,
    /// Nobody waits for those who had leases before a restart.
    GrantsDuringGrace,
    /// Grants count whatever was recalled meanwhile.
    IgnoresStamps,
    /// What a session sent is applied after its end.
    AppliesExpired,
    /// A change that is sent again is made again.
    ForgetsReplies,
    /// A look does not wait behind a change that meets it, and its answer is kept.
    LooksPassChanges,
    /// What is answered as durable is not.
    SyncsNothing,
    /// A recall is answered before what was written is sent.
    AnswersBeforeFlush,
    /// The server ends sessions before their clients stop relying on them.
    ExpiresEarly,
    /// A client keeps what it is shown without a grant.
    KeepsWithoutGrant,
}
