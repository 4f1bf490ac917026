//! What a server has under way.

use super::*;

/// Whom to answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    pub(super) node: Node,
    pub(super) conn: u64,
    pub(super) id: u64,
}

/// A call that waits in a group.
#[derive(Clone, Debug)]
pub(super) enum Waiting {
    Write,
    Forward,
    Read(ChunkId),
    Install(ChunkId, Piece),
    List(Option<ChunkId>),
    Settle,
}

/// What an answer is awaited for.
#[derive(Clone, Debug)]
pub(super) enum Purpose {
    Forward { group: GroupId, to: Replica, step: Box<Step<Deed>>, since: Duration },
    List(Lesson, BTreeMap<ChunkId, Version>),
    Push { of: Lesson, chunk: ChunkId, version: Version, last: bool },
    Seal(Lesson),
    FlushMember(u64, Lesson),
    Delete(u64),
}

/// Something that is being stored.
#[derive(Clone, Debug)]
pub(super) struct Applying {
    pub(super) group: GroupId,
    pub(super) change: Change<Deed>,
    /// The membership in which it was begun.
    pub(super) membership: u64,
}

/// A flush that a client has asked for.
#[derive(Debug)]
pub(super) struct FlushJob {
    pub(super) caller: Caller,
    pub(super) groups: Vec<(GroupId, Epoch)>,
    pub(super) left: usize,
}

/// What is to be answered when what is in memory now has become durable.
#[derive(Debug)]
pub(super) enum After {
    Answer(Caller),
    Member(u64),
}

/// A part in a group.
pub(super) struct Part {
    pub(super) group: Group<Deed>,
    /// Raised whenever everything may be told anew.
    pub(super) membership: u64,
    /// The last change of each chunk that was stored in this membership.
    pub(super) order: BTreeMap<ChunkId, Version>,
    pub(super) synced: Option<(Epoch, Replica)>,
    pub(super) broken: Option<Epoch>,
    pub(super) revoked: Option<Epoch>,
    /// It was asked to order nothing more up to this epoch, and does so none the less.
    pub(super) asked: Option<Epoch>,
}
