//! Calls to a data server. Payload travels beside the message, never through the codec.

use bincode::{Decode, Encode};

use crate::errno::Errno;
use crate::id::{ChunkId, Epoch, GroupId, Ino, InstanceId, SessionId, Verifier, Version};
use crate::wire::audit::AuditReply;
use crate::wire::cluster::{BeatReply, PeerOp};

/// The most payload of one call, in bytes.
pub const MAX_PAYLOAD: u64 = 1 << 20;

/// The most ranges in one [`Reply::Extents`].
pub const MAX_EXTENTS: u32 = 2048;

/// A part of a file's contents, however long. Every data server that is asked answers for the chunks that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Span {
    /// The file.
    pub ino: Ino,
    /// The generation of its contents.
    pub generation: u32,
    /// Log2 of the size of its chunks.
    pub chunk_bits: u8,
    /// First byte in the file.
    pub from: u64,
    /// The byte after the last.
    pub to: u64,
}

/// The most groups in one [`Op::Flush`].
pub const MAX_FLUSHED: usize = 4096;

/// What of the cluster map a call relies on. A server that knows better refuses it with [`Reply::StaleEpoch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum At {
    /// Nothing: the call is about the server itself, or says of each group what it relies on.
    Server,
    /// The chain of one group; that of the chunk that is changed, where there are two.
    Group {
        /// The group.
        group: GroupId,
        /// The epoch of its chain that the caller knows.
        epoch: Epoch,
    },
    /// The whole map: the server answers for the chunks of the groups of which it is the head in this version.
    Map {
        /// The version of the map that the caller knows.
        version: Epoch,
    },
    /// As [`At::Group`], for one replica of the chain: calls of replicas to each other. Whoever else is found where it is looked for
    /// refuses it with [`Reply::Busy`].
    Replica {
        /// The group.
        group: GroupId,
        /// The epoch of its chain that the caller knows.
        epoch: Epoch,
        /// The life of the server that is meant.
        instance: InstanceId,
    },
}

/// A call.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Request {
    /// What it relies on.
    pub at: At,
    /// What to do.
    pub op: Op,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Op {
    /// Store the payload at `offset` of the chunk. Answered by [`Reply::Written`].
    Write {
        /// The chunk.
        chunk: ChunkId,
        /// First byte in the chunk.
        offset: u64,
    },
    /// Answered by [`Reply::Read`] with `len` bytes of payload; holes read as zeros.
    Read {
        /// The chunk.
        chunk: ChunkId,
        /// First byte in the chunk.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
    /// Make a range a hole. Answered by [`Reply::Written`].
    Punch {
        /// The chunk.
        chunk: ChunkId,
        /// First byte in the chunk.
        offset: u64,
        /// Number of bytes; `u64::MAX` for all that follows.
        len: u64,
    },
    /// Remove the chunks of a file's contents from `first.index` on, here. Only for servers. Answered by [`Reply::Deleted`].
    Delete {
        /// The first chunk to go.
        first: ChunkId,
    },
    /// Copy from what this server has of another group, or the same; holes are copied as holes. Answered by
    /// [`Reply::Written`], or by [`Reply::Apart`].
    Copy {
        /// From this chunk.
        source: ChunkId,
        /// First byte there.
        source_offset: u64,
        /// To this chunk.
        target: ChunkId,
        /// First byte there.
        target_offset: u64,
        /// Number of bytes.
        len: u64,
    },
    /// Where a file has data. Answered by [`Reply::Extents`].
    Extents {
        /// Where to look.
        span: Span,
        /// The most ranges wanted; at least 1, and [`MAX_EXTENTS`] if it is more.
        limit: u32,
    },
    /// Bring everything acknowledged so far in these groups to stable storage, at all their replicas; at most
    /// [`MAX_FLUSHED`], and the server is the head of all of them in these epochs. Answered by [`Reply::Flushed`].
    Flush {
        /// The groups, with the epochs that the caller knows.
        groups: Vec<(GroupId, Epoch)>,
    },
    /// Answered by [`Reply::Usage`].
    Usage,
    /// Make a range of a file a hole, and bring that to stable storage. Answered by [`Reply::Punched`]. It may be
    /// repeated, like every change.
    PunchSpan {
        /// The range.
        span: Span,
    },
    /// Nothing of a client's session may happen any more: it is told so from now on, also after a restart. Only for
    /// servers. Answered by [`Reply::Fenced`] when nothing of it is at work.
    Fence {
        /// The session; not 0.
        session: SessionId,
    },
    /// Bring everything acknowledged so far to stable storage, here. Only for servers. Answered by [`Reply::FlushedHere`].
    FlushHere,
    /// What servers do among themselves. Only for servers.
    Peer(PeerOp),
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Reply {
    /// The change is visible to everybody, and durable after a [`Op::Flush`] that answers with the same verifier.
    Written {
        /// Of the group.
        verifier: Verifier,
        /// By how many bytes the allocated data grew (or shrank), in each replica.
        allocated: i64,
    },
    /// The payload follows.
    Read,
    /// Where the data is, as far as the answer goes.
    Extents {
        /// `(start, end)` in the file, within what was asked for, ascending, not touching.
        extents: Vec<(u64, u64)>,
        /// The answer is complete up to here, which is beyond where it begins: ask again from here on.
        upto: u64,
    },
    /// All that was acknowledged in these groups under these verifiers is durable.
    Flushed {
        /// In the order of the question.
        verifiers: Vec<Verifier>,
    },
    /// Space of the server in bytes.
    Usage(Usage),
    /// The epoch is not the one that the server knows, or it has no such part in the group: fetch the map again.
    StaleEpoch(Epoch),
    /// The server cannot do it now: the chain is being mended, or it does not know whether it may. Look at the map, and ask
    /// again, or another replica.
    Busy,
    /// The server does not have the source of a copy: read it and write it.
    Apart,
    /// Nothing was done.
    Failed(Errno),
    /// As [`Reply::Written`], as far as it was done, and durable.
    Punched {
        /// By how many bytes the allocated data grew (or shrank).
        allocated: i64,
        /// It is done up to here: ask again for the rest.
        upto: u64,
    },
    /// Nothing that the session has sent will happen any more.
    Fenced,
    /// The caller's session has been fenced: nothing was done, and nothing will be.
    SessionOver,
    /// The change is done, and durable after an [`Op::FlushHere`] that answers in the same life.
    Deleted {
        /// This life of the server.
        instance: InstanceId,
        /// How many bytes of data went.
        freed: u64,
    },
    /// All that was acknowledged in this life is durable.
    FlushedHere {
        /// This life of the server.
        instance: InstanceId,
    },
    /// What the server says of itself.
    Beat(Box<BeatReply>),
    /// It is stored, here and by all after it in the chain.
    Stored {
        /// One of them has hardly any room left: nothing but punches should come.
        full: bool,
    },
    /// The payload follows; it is that of this version of the chunk.
    Fetched(Version),
    /// Chunks in order, with their versions, and where to go on if there are more.
    Listed {
        /// The chunks.
        chunks: Vec<(ChunkId, Version)>,
        /// The first that is not told; `None`: there are no more.
        next: Option<ChunkId>,
    },
    /// To an audit.
    Audited(AuditReply),
    /// The payload is the cluster map of this version.
    Followed(Epoch),
}

/// Space of a data server in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Usage {
    /// Capacity for data.
    pub capacity: u64,
    /// What can still be written.
    pub free: u64,
    /// Live data.
    pub live: u64,
    /// Chunks held.
    pub chunks: u64,
}
