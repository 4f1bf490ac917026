//! Calls of the metadata server to a data server about what it has, whoever it belongs to.

use bincode::{Decode, Encode};

use crate::id::{ChunkId, Epoch, GroupId, Version};

/// The most groups in one [`AuditOp::Sweep`] or [`AuditReply::Holdings`].
pub const MAX_AUDITED: usize = 1024;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum AuditOp {
    /// All chunks that the server has, from one on, of whichever group. Answered by [`super::data::Reply::Listed`].
    Inventory {
        /// The first.
        from: ChunkId,
        /// The most that are wanted; the server may say fewer.
        limit: u32,
    },
    /// How much it has of each group, from one on. Answered by [`AuditReply::Holdings`].
    Holdings {
        /// The first.
        from: GroupId,
    },
    /// Remove what it has of these groups, as long as they are in these epochs and it has no place in them. Answered by
    /// [`AuditReply::Swept`].
    Sweep {
        /// At most [`MAX_AUDITED`].
        groups: Vec<(GroupId, Epoch)>,
        /// Where to begin.
        from: ChunkId,
    },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum AuditReply {
    /// Groups of which it has anything, in order.
    Holdings {
        /// The groups.
        groups: Vec<Holding>,
        /// The first that is not told; `None`: there are no more.
        next: Option<GroupId>,
    },
    /// So much was removed.
    Swept {
        /// Chunks.
        chunks: u64,
        /// Their bytes.
        bytes: u64,
        /// Where to go on; `None`: it has been through.
        next: Option<ChunkId>,
    },
}

/// What a server has of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Holding {
    /// The group.
    pub group: GroupId,
    /// How many chunks.
    pub chunks: u64,
    /// The version of the one that was changed last.
    pub newest: Version,
}
