//! Commands: what the log holds. The same commands in the same order make the same store.

use bincode::{Decode, Encode};
use netfs_common::attr::Timestamp;
use netfs_common::id::{Ino, OpSeq, SessionId};
use netfs_common::wire::meta::Op;

/// A change, with everything that it depends on beside the store.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Command {
    /// The time of the change.
    pub time: Timestamp,
    /// The change.
    pub action: Action,
}

/// The change itself.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Action {
    /// Makes the volume and its root directory; the first command of every log.
    CreateVolume {
        /// A random number that identifies the volume.
        id: u64,
        /// What never changes afterwards.
        settings: Settings,
    },
    /// Makes a session known, or nothing when it is.
    OpenSession {
        /// The session.
        id: SessionId,
        /// Host and mount point, for people.
        description: String,
        /// The name in the client's certificate: nobody else may go on in the session.
        owner: String,
    },
    /// Ends a session whose client has not been heard of for too long.
    ExpireSession {
        /// The session.
        id: SessionId,
    },
    /// Removes more of what an ended session left; repeated until the session is gone.
    Reap {
        /// The session.
        id: SessionId,
    },
    /// A change that a client asked for.
    Mutate {
        /// The client's session.
        session: SessionId,
        /// Its number in the session.
        seq: OpSeq,
        /// The answers up to this one have arrived.
        answered: OpSeq,
        /// The change.
        op: Op,
    },
    /// The data servers have completed a [`crate::meta::record::Trim`].
    TrimDone {
        /// Its number in the queue.
        id: u64,
        /// By how many bytes the allocated data shrank.
        freed: u64,
    },
    /// The data servers have removed the chunks of these [`crate::meta::record::Deletion`]s.
    ChunksDeleted {
        /// Their numbers in the queue.
        ids: Vec<u64>,
    },
    /// Leaves out numbers of inodes, and generations of every inode. Commands that a crash has taken
    /// from the end of the log may have given some out, and data servers may have chunks under them.
    SkipNumbers {
        /// How many inodes.
        inodes: u32,
    },
    /// Sessions that cannot have these inodes open let go of them.
    Release {
        /// Which session lets go of which inode.
        holds: Vec<(SessionId, Ino)>,
    },
    /// Ends a session; what it has left is removed by [`Action::Reap`] alone, when nobody can be harmed by that.
    CloseSession {
        /// The session.
        id: SessionId,
    },
    /// A change that was made and answered before, and was lost with the end of the log. Numbers that it has given out are given
    /// out again.
    Replay {
        /// The client's session.
        session: SessionId,
        /// Its number in the session.
        seq: OpSeq,
        /// The inode that it was about, with the generation it had afterwards.
        target: Option<(Ino, u32)>,
        /// The change.
        op: Op,
    },
    /// Has the data servers remove chunks that belong to nobody. Nothing is removed of what can still be asked for.
    Sweep {
        /// Contents of inodes that are gone, or that files do not have any more.
        gone: Vec<(Ino, u32)>,
        /// Files of which nobody is writing anything: what there is beyond their end.
        tails: Vec<Ino>,
    },
    /// Leaves out all numbers of inodes below one, and generations of every inode: data servers have, or may have, chunks under
    /// them of which this log knows nothing.
    LeaveOut {
        /// The lowest that may be given out; it may have been already.
        below: Ino,
    },
}

/// What is fixed when a volume is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Settings {
    /// The largest file that is kept in its inode, in bytes.
    pub inline_limit: u32,
    /// Binary logarithm of the chunk size of new files.
    pub chunk_bits: u8,
    /// The most inodes that the volume may have.
    pub max_inodes: u64,
    /// The number of the first inode after the root. Chunks are named by inode alone, so volumes
    /// that share data servers must not share numbers.
    pub first_ino: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            inline_limit: 16384,
            chunk_bits: 22,
            max_inodes: 1 << 40,
            first_ino: Ino::ROOT.0 + 1,
        }
    }
}
