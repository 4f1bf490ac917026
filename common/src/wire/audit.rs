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
    /// Take over what the object store has of a group in this epoch, as far as it is newer than what is here: where it is, not the bytes. The
    /// server must not be one of the group's replicas. What it has taken over is on stable storage when it answers with
    /// [`AuditReply::Seeded`], or with [`AuditReply::NotSeeded`].
    Seed {
        /// The group.
        group: GroupId,
        /// Its epoch.
        epoch: Epoch,
        /// Objects up to this one have been looked at.
        after: Option<(ChunkId, Version)>,
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
    /// So much was taken over.
    Seeded {
        /// How much.
        seeded: Seeded,
        /// The last object that was looked at; `None`: it has been through.
        next: Option<(ChunkId, Version)>,
    },
    /// Nothing was taken over.
    NotSeeded(Unseeded),
}

/// What a server has taken over from its object store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Seeded {
    /// Chunks.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Chunks of which the server has what is as new, or newer.
    pub kept: u64,
    /// Objects that are damaged.
    pub bad: u64,
}

/// Why a server has taken nothing over.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Unseeded {
    /// It has no object store.
    NoStore,
    /// What is wrong.
    Trouble(String),
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
