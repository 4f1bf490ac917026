//! Identifiers. Each is a newtype so that one cannot be passed for another.

use std::fmt;

use bincode::{Decode, Encode};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($int:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
        pub struct $name(pub $int);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:x}", self.0)
            }
        }
    };
}

id!(
    /// The number of an inode within its volume; never reused. The root directory is [`Ino::ROOT`].
    Ino(u64)
);
id!(
    /// One client's session with the metadata server, drawn at random by the client.
    SessionId(u64)
);
id!(
    /// One life of a process: drawn anew at each start. What a server has not flushed in one life may be lost in the next.
    InstanceId(u64)
);
id!(
    /// Counts for a placement group how often something that was answered and not flushed may have been lost. It serves
    /// as write verifier (RFC 8881, section 18.32): what was answered under one is durable after a flush that answers with the same one.
    Verifier(u64)
);
id!(
    /// A placement group: the unit in which chunks are assigned to replicas.
    GroupId(u32)
);
id!(
    /// The version of a group's or map's configuration; a message of an older one is refused.
    Epoch(u64)
);
id!(
    /// The version of a chunk: names the change of its group that was the last one to change it, by [`Version::new`]. The
    /// order of versions is that in which the changes were made. 0: of no chain.
    Version(u64)
);
id!(
    /// The position of a command in a volume's log; the first command has 1.
    LogIndex(u64)
);
id!(
    /// A data server, as the cluster map numbers it.
    ServerId(u32)
);
id!(
    /// The position of a change in its session's operation log; the first one has 1.
    OpSeq(u64)
);

impl Version {
    /// Of no chain.
    pub const NONE: Version = Version(0);

    /// The `seq`th change that a head has ordered in an epoch; the first one has 1. `None` beyond four billion epochs.
    pub fn new(epoch: Epoch, seq: u32) -> Option<Version> {
        let epoch = u32::try_from(epoch.0).ok()?;
        Some(Version(u64::from(epoch) << 32 | u64::from(seq)))
    }
}

impl Ino {
    /// The root directory of every volume.
    pub const ROOT: Ino = Ino(1);
}

/// A chunk of a file's data.
///
/// `generation` tells the contents that a file had before it was emptied from those after it, so
/// that emptying a file is a change of metadata only and old chunks are removed at leisure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct ChunkId {
    /// The file.
    pub ino: Ino,
    /// Which of its successive contents, with their class ([`crate::class`]).
    pub generation: u32,
    /// The chunk's number: its offset in the file divided by the file's chunk size.
    pub index: u64,
}

/// The identity of a cluster, made with its certificate authority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Encode, Decode)]
pub struct ClusterId(pub [u8; 16]);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}
