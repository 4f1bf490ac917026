//! The values of the store. All are encoded by [`netfs_common::codec`].

use bincode::{Decode, Encode};
use netfs_common::attr::{Attr, FileKind, Timestamp};
use netfs_common::codec;
use netfs_common::errno::Errno;
use netfs_common::id::{Ino, LogIndex, OpSeq};
use netfs_common::name::Name;

use crate::meta::command::Settings;
use crate::meta::kv::{Read, StoreError};

/// The volume: written once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Volume {
    /// A random number that identifies it.
    pub id: u64,
    /// What never changes.
    pub settings: Settings,
}

/// What changes with (almost) every command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct State {
    /// The last command that the store has.
    pub applied: LogIndex,
    /// The number of the next inode.
    pub next_ino: u64,
    /// The number of the next trim or deletion.
    pub next_task: u64,
    /// Inodes, orphans included.
    pub inodes: u64,
    /// The sum of `allocated` of all inodes.
    pub bytes: u64,
    /// Inodes without a name.
    pub orphans: u64,
    /// Sessions that have not ended.
    pub sessions: u64,
    /// How often the end of the log may have been lost.
    pub crashes: u32,
}

/// Positions of the log that were, or may have been, given out and are lost: the latest times, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct LostPositions {
    /// The last position that was kept, and the first one after it that was given out again.
    pub ranges: Vec<(LogIndex, LogIndex)>,
}

/// An inode.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Inode {
    /// Its attributes.
    pub attr: Attr,
    /// Of a directory: the cookie of the next entry.
    pub next_cookie: u64,
    /// Of a directory: how many entries it has.
    pub entries: u64,
    /// The length of the list of extended attributes' names, a NUL after each.
    pub xattr_names: u32,
    /// The sum of the extended attributes' names and values.
    pub xattr_bytes: u32,
    /// Of a file: [`State::crashes`] when its generation was given.
    pub crashes: u32,
}

/// The first cookie of a directory: 1 and 2 are `.` and `..`.
pub const FIRST_COOKIE: u64 = 3;

impl Inode {
    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.attr.kind == FileKind::Dir
    }
}

/// A directory's entry, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Entry {
    /// The inode.
    pub ino: Ino,
    /// The inode's type.
    pub kind: FileKind,
    /// Its place in listings.
    pub cookie: u64,
}

/// A directory's entry, by cookie.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Listed {
    /// The inode.
    pub ino: Ino,
    /// The inode's type.
    pub kind: FileKind,
    /// The name.
    pub name: Name,
}

/// A client's session.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Session {
    /// Host and mount point.
    pub description: String,
    /// The name in the certificate of whoever has opened it.
    pub owner: String,
    /// When it was opened.
    pub opened: Timestamp,
    /// It has ended; what it left is being removed.
    pub ended: bool,
}

/// Which answers of a session are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Window {
    /// The client has all answers up to this one.
    pub answered: OpSeq,
    /// The answers up to this one have been removed.
    pub dropped: OpSeq,
    /// The highest change that was applied.
    pub highest: OpSeq,
}

/// What a change came to, kept for a retry. The attributes that a retry is answered with are
/// those of its own time, which is what the caller needs, and a fraction of the bytes.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Answer {
    /// The target and all inodes that were touched, or why nothing was done.
    pub outcome: Result<(Option<Ino>, Vec<Ino>), Errno>,
}

/// A cut that the data servers have to make before anybody reads the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Trim {
    /// The file.
    pub ino: Ino,
    /// Its generation.
    pub generation: u32,
    /// Binary logarithm of the chunk size.
    pub chunk_bits: u8,
    /// The first byte that goes.
    pub from: u64,
    /// The length that the file had; `from` when only what was never reported goes.
    pub end: u64,
}

/// Chunks that nobody will ask for again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Deletion {
    /// The file.
    pub ino: Ino,
    /// Its generation.
    pub generation: u32,
    /// Binary logarithm of the chunk size.
    pub chunk_bits: u8,
    /// The length that the file had.
    pub end: u64,
}

/// The bytes of a value.
///
/// # Errors
/// When the value is above the codec's limit; every value is bounded far below.
pub fn encode<T: Encode>(value: &T) -> Result<Vec<u8>, StoreError> {
    codec::encode(value).map_err(|e| StoreError::Failed(e.to_string()))
}

/// The value of bytes found at a key.
///
/// # Errors
/// When the bytes are not such a value.
pub fn decode<T: Decode<()>>(key: &[u8], bytes: &[u8]) -> Result<T, StoreError> {
    codec::decode(bytes).map_err(|e| StoreError::damaged(key, e))
}

/// Reads and decodes a value.
///
/// # Errors
/// When the store fails or is damaged.
pub fn load<T: Decode<()>>(store: &dyn Read, key: &[u8]) -> Result<Option<T>, StoreError> {
    store.get(key)?.map(|bytes| decode(key, &bytes)).transpose()
}
