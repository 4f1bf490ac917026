//! What the simulated nodes talk about, and how their rules may be broken.

use std::rc::Rc;
use std::time::Duration;

use netfs_common::id::{ChunkId, Epoch, GroupId, Ino, Verifier, Version};
use netfs_common::map::{ClusterMap, Replica};
use netfs_served::data::chain::{CallId, Refusal, Step};
use netfs_served::meta::cluster::Report;

/// A millisecond.
pub(crate) const MS: Duration = Duration::from_millis(1);
/// A server that is silent for so long is replaced.
pub(crate) const DEADLINE: Duration = Duration::from_millis(200);
/// One that is silent for so long is not waited for any more.
pub(crate) const REPAIR_AFTER: Duration = Duration::from_millis(800);
/// What is in a chunk. 0: a hole.
pub(crate) type Cells = [u64; 2];

/// The metadata server, data servers by their numbers, clients from [`CLIENTS`] on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Node(pub(crate) u32);

pub(crate) const MANAGER: Node = Node(0);
pub(crate) const CLIENTS: u32 = 20;

/// What a change does to each cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deed(pub(crate) [Option<u64>; 2]);

impl Deed {
    pub(crate) fn on(self, cells: Cells) -> Cells {
        [self.0[0].unwrap_or(cells[0]), self.0[1].unwrap_or(cells[1])]
    }
}

/// A chunk by its place in the tables of clients and of the oracle.
pub(crate) fn chunk(index: usize) -> ChunkId {
    ChunkId { ino: Ino(5), generation: 0, index: index as u64 }
}

/// A call of the learner's by the tail, with the epoch in which it is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lesson {
    pub(crate) group: GroupId,
    pub(crate) epoch: Epoch,
    pub(crate) learner: Replica,
}

/// A part of a chunk that is copied.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Piece {
    /// There is nothing.
    Gone,
    /// What was there goes, and this is the first cell.
    First(u64),
    /// This is the second, and with it the chunk has this version.
    Last(u64, Version),
}

#[derive(Clone, Debug)]
pub(crate) enum Call {
    Beat {
        token: Option<Duration>,
        map: Rc<ClusterMap>,
        revoke: Vec<(GroupId, Epoch)>,
        hand_over: Vec<(GroupId, Epoch)>,
    },
    Map,
    Write {
        group: GroupId,
        epoch: Epoch,
        chunk: ChunkId,
        deed: Deed,
        /// In which the writer has the right to do so.
        session: u64,
    },
    Read {
        group: GroupId,
        epoch: Epoch,
        chunk: ChunkId,
    },
    Flush(Vec<(GroupId, Epoch)>),
    Forward {
        group: GroupId,
        to: Replica,
        step: Step<Deed>,
    },
    List {
        of: Lesson,
        after: Option<ChunkId>,
    },
    Install {
        of: Lesson,
        chunk: ChunkId,
        piece: Piece,
    },
    FlushGroup(Lesson),
    Settle(GroupId),
    /// Nothing of this session happens in the group any more.
    Fence(GroupId, u64),
    Delete(GroupId, ChunkId),
}

#[derive(Clone, Debug)]
pub(crate) enum Reply {
    Beat { report: Box<Report>, token: Duration },
    Map(Rc<ClusterMap>),
    Written(Verifier),
    Contents(Cells),
    Flushed(Vec<(GroupId, Verifier)>),
    List { page: Vec<(ChunkId, Version)>, more: bool },
    Done,
    Refused(Refusal),
}

/// What a node asks of the world.
#[derive(Debug)]
pub(crate) enum Out {
    Call {
        to: Node,
        id: u64,
        call: Call,
    },
    /// To whom, over which connection, to which call.
    Reply {
        to: Node,
        conn: u64,
        id: u64,
        reply: Reply,
    },
    Wake {
        after: Duration,
        timer: Timer,
    },
    /// Nobody waits for the answer any more.
    GiveUp(u64),
}

/// What a node does later.
#[derive(Clone, Debug)]
pub(crate) enum Timer {
    Tick,
    Writer(usize),
    AnswerBeat { to: Node, conn: u64, id: u64 },
    Apply(u64),
    Show(CallId),
    Flushed(u64),
    Forward(GroupId, Replica, Box<Step<Deed>>, Duration),
    Compare(Lesson),
    FlushMember(u64, Lesson),
}

/// A rule that is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// A replica answers before the next one has.
    AnswersAlone,
    /// A chunk is shown although a change of it is noted.
    ShowsNoted,
    /// A server that has heard of nobody shows what it has.
    IgnoresLease,
    /// A change of another epoch is taken.
    IgnoresEpochs,
    /// A server that restarts believes that it still has its place.
    KeepsInstance,
    /// No difference is found between tail and learner.
    ComparesNothing,
    /// A change does not wait for the one that it comes after.
    IgnoresAfter,
    /// What may still be passed on is forgotten.
    FloorTooHigh,
    /// A server says that it refuses reads, and does not.
    ShowsRevoked,
    /// A learner has everything as soon as it is there.
    SyncedAtOnce,
    /// A learner is not made to flush.
    SealsNothing,
    /// Of a chain only the head flushes.
    FlushesHead,
    /// A client does not send again what may be lost.
    IgnoresVerifier,
    /// A learner gets into a chain by the report of another epoch.
    PromotesLate,
    /// A silent server is replaced while it may answer.
    ReplacesEarly,
    /// A chunk is removed at the tail, and nobody sees to its copy.
    RemovesQuietly,
    /// A server that was alone believes that it still is, although its learner has everything.
    AloneForEver,
    /// A copy goes on in another epoch, in which the chunk is not held.
    CopiesOn,
    /// A chain is turned although its head has changes under way.
    TurnsAtOnce,
    /// A head that has said that it orders nothing more goes on.
    OrdersOn,
    /// A server whose disk has lost what had been flushed does not say so.
    LacksQuietly,
    /// A change that was under way when its chain became shorter than the minimum is acknowledged; new ones are refused.
    AnswersShort,
    /// A chain that is shorter than the minimum flushes.
    FlushesShort,
    /// A session that is over still writes.
    AdmitsFenced,
    /// A session that is over is told where it would have to write now.
    TellsEnded,
    /// Nobody takes the place of a server that stays away.
    WaitsForEver,
}
