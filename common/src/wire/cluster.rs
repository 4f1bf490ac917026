//! Calls of servers to data servers: signs of life, and the chains of replicas. Only for servers' certificates.

use bincode::{Decode, Encode};

use crate::id::{ChunkId, Epoch, GroupId, InstanceId, ServerId, Version};
use crate::map::Replica;
use crate::wire::audit::AuditOp;

/// The most chunks in one [`super::data::Reply::Listed`].
pub const MAX_LISTED: u32 = 4096;

/// The most objects in one [`PeerOp::Needed`].
pub const MAX_OBJECTS: usize = 512;

/// What is done to a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Deed {
    /// The payload is stored at this offset.
    Write {
        /// First byte in the chunk.
        offset: u64,
    },
    /// A range becomes a hole.
    Punch {
        /// First byte in the chunk.
        offset: u64,
        /// Number of bytes; `u64::MAX` for all that follows.
        len: u64,
    },
}

/// A change that is passed on along a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Forward {
    /// Nothing below this is passed on again.
    pub floor: Version,
    /// It comes after this one; [`Version::NONE`]: after nothing.
    pub after: Version,
    /// Which change.
    pub id: Version,
    /// The chunk.
    pub chunk: ChunkId,
    /// What is done.
    pub deed: Deed,
}

/// A piece of a chunk that takes the place of a learner's. They come one after the other, each when the one before is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Install {
    /// The chunk.
    pub chunk: ChunkId,
    /// What is there goes before this is stored.
    pub first: bool,
    /// The last piece: the chunk has this version now. [`Version::NONE`]: more comes, or the chunk is to be gone.
    pub version: Version,
    /// Where the payload belongs; there may be none.
    pub offset: u64,
}

/// From the metadata server: it counts on this server, and asks what it does.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Beat {
    /// The server's number.
    pub server: ServerId,
    /// The [`BeatReply::token`] that was received last, in the same life of both.
    pub echo: Option<u64>,
    /// From the time of that token on the server may answer reads for so long, in milliseconds.
    pub lease_ms: u32,
    /// The version of the map; the payload is the map if the server was not known to have it.
    pub version: Epoch,
    /// Reads are to be refused in these groups, up to these epochs.
    pub revoke: Vec<(GroupId, Epoch)>,
    /// In these groups, of which it is the head, it is to order nothing more up to these epochs: another server is to be the head.
    pub hand_over: Vec<(GroupId, Epoch)>,
    /// The answer may be held back for so long if there is nothing to say, in milliseconds.
    pub hold_ms: u32,
    /// A replica that keeps a change for so long is reported as stalled, in milliseconds.
    pub stall_ms: u32,
    /// The identity of the metadata. A server whose data belongs to other metadata does nothing that is said here.
    pub owner: [u8; 16],
}

/// What a data server says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct BeatReply {
    /// The server's clock when it answered, for [`Beat::echo`].
    pub token: u64,
    /// This life of it.
    pub instance: InstanceId,
    /// The identity of its store.
    pub store: [u8; 16],
    /// What fails together with it; any text.
    pub domain: String,
    /// What it can hold, in bytes.
    pub capacity: u64,
    /// What it can still take, in bytes.
    pub free: u64,
    /// Live data, in bytes.
    pub live: u64,
    /// Chunks.
    pub chunks: u64,
    /// It takes no more data.
    pub full: bool,
    /// The version of the map that it goes by; 0: it goes by none.
    pub version: Epoch,
    /// It refuses reads in these groups, up to these epochs.
    pub revoked: Vec<(GroupId, Epoch)>,
    /// Its learners that have everything; said again until the epoch is over.
    pub synced: Vec<(GroupId, Epoch, Replica)>,
    /// Groups in which it could not store what others have.
    pub broken: Vec<(GroupId, Epoch)>,
    /// Replicas after it that have not answered for too long.
    pub stalled: Vec<(GroupId, Epoch, Replica)>,
    /// Groups of which it is the head and orders nothing more, where all that it has ordered is stored by all; said again until
    /// the epoch is over.
    pub handed_over: Vec<(GroupId, Epoch)>,
    /// Chunks that its learners still lack, or nothing while that is found out.
    pub lacking: Vec<(GroupId, Option<u64>)>,
    /// Volumes that are encrypted and for which it has no key: it takes none of their data.
    pub locked: Vec<u64>,
    /// Counters for people, since the start.
    pub counts: Counts,
    /// What its store has done since the start.
    pub work: Work,
    /// What it keeps in an object store; `None`: it has none.
    pub tier: Option<TierReport>,
    /// Its disk has lost some of what had been flushed, and there are chains that count on what it had.
    pub lacks: bool,
    /// The identity of the metadata to which the server's data belongs.
    pub owner: Option<[u8; 16]>,
    /// Some of what its disk has lost was in no other replica: what is left counts, and files may have holes.
    pub incomplete: bool,
    /// The latest version of the map that was followed with this directory, in this life or before. It goes by no older one.
    pub followed: Epoch,
}

/// Calls that a data server's store has done. Two of these tell how busy it was in between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Work {
    /// How many: reads, changes, flushes.
    pub calls: u64,
    /// The sum of the time that each took, in microseconds. In a second it grows by as many seconds as calls are at work at a time.
    pub busy_us: u64,
}

/// What a data server says of its object store. Counted since its start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct TierReport {
    /// Why it cannot be reached, if it cannot.
    pub trouble: Option<String>,
    /// Chunks of which something is only there.
    pub away_chunks: u64,
    /// Bytes of them.
    pub away_bytes: u64,
    /// Objects put there.
    pub uploads: u64,
    /// Bytes of them.
    pub uploaded_bytes: u64,
    /// Chunks that came back.
    pub fetches: u64,
    /// Bytes of them.
    pub fetched_bytes: u64,
    /// Objects removed.
    pub removed: u64,
    /// Calls that failed.
    pub errors: u64,
    /// Changed chunks of volumes with their primary copy there that are not there yet as they are.
    pub waiting: u64,
    /// Writes to such volumes wait for them.
    pub late: bool,
    /// Those of them that cannot be put there, although it can be reached: they are damaged, or the volume's key is not at hand. Nobody waits for them.
    pub stuck: u64,
}

/// Counters of a data server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Counts {
    /// Chunks copied to learners.
    pub pushed_chunks: u64,
    /// Bytes of them.
    pub pushed_bytes: u64,
    /// Damaged ranges found.
    pub damaged: u64,
    /// Damaged ranges replaced from another replica.
    pub mended: u64,
}

/// A call of a server.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum PeerOp {
    /// From the metadata server. Answered by [`super::data::Reply::Beat`].
    Beat(Beat),
    /// Along a chain. Answered by [`super::data::Reply::Stored`] when it is stored here and below.
    Forward(Forward),
    /// To a learner. Answered by [`super::data::Reply::Stored`].
    Install(Install),
    /// The chunks of the group with their versions, from one on. Answered by [`super::data::Reply::Listed`].
    List {
        /// The first.
        from: ChunkId,
    },
    /// Part of a chunk, to mend a damaged copy. Answered by [`super::data::Reply::Fetched`] with the payload; without one it is damaged there too,
    /// in that version.
    Fetch {
        /// The chunk.
        chunk: ChunkId,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
    /// Bring everything acknowledged in these groups, in these epochs, to stable storage, here. Answered by
    /// [`super::data::Reply::FlushedHere`].
    FlushGroups(Vec<(GroupId, Epoch)>),
    /// From the metadata server: what the server has, whoever it belongs to.
    Audit(AuditOp),
    /// Like [`PeerOp::Install`], of bytes that are in the chunk's object: without them.
    InstallAway {
        /// The piece.
        install: Install,
        /// Its length.
        len: u64,
        /// The version of the chunk that names the object.
        object: Version,
    },
    /// Which of these objects, chunks in some version, the replica needs; at most [`MAX_OBJECTS`]. Those that it does not need
    /// it will not need after a crash either. Answered by [`super::data::Reply::Listed`].
    Needed {
        /// The objects.
        objects: Vec<(ChunkId, Version)>,
    },
    /// From a metadata server that has an older map: the latest one that was followed with the server's directory. Answered by
    /// [`super::data::Reply::Followed`].
    Followed,
    /// Like [`PeerOp::Install`], of bytes that are lost: without them. Reading them fails there, as it does here.
    InstallBad {
        /// The piece.
        install: Install,
        /// Its length.
        len: u64,
    },
}
