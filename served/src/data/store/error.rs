//! What can go wrong in the store.

use std::io;
use std::path::PathBuf;

use super::key::ChunkKey;

/// Any failure of the segment store. Each prints as one line that says what is wrong.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error("cannot {op} {file}: {source}")]
    Io {
        /// What was tried, as a verb.
        op: &'static str,
        /// The file, relative to the store.
        file: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The bytes on disk are not those that were written.
    #[error("chunk {key} is damaged at bytes {offset}..+{len}: {why}")]
    Corrupt {
        /// The chunk.
        key: ChunkKey,
        /// First byte of the damaged range, in the chunk.
        offset: u64,
        /// Length of the damaged range.
        len: u64,
        /// What was found.
        why: String,
        /// The disk gave the bytes, and the checksum says that they are others; or they were noted as lost. It will not pass. Otherwise
        /// the disk did not give them, or they do not fit the volume's key.
        rotten: bool,
    },
    /// The volume is encrypted, and its key is not at hand.
    #[error(
        "volume number {volume} is encrypted, and this server has no key for it: set data.key_file to the key file that the other servers have"
    )]
    NoKey {
        /// Its number.
        volume: u64,
    },
    /// There are no random numbers to encrypt with.
    #[error("data cannot be encrypted: {0}")]
    NotEncrypted(String),
    /// The bytes are in the bucket, and not here.
    #[error("bytes {offset}..+{len} of chunk {key} are in the object store, and not here")]
    Away {
        /// The chunk.
        key: ChunkKey,
        /// First byte that is away, in the chunk.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
    /// No room for new data. Deleting still works, and makes room.
    #[error("no space: {needed} bytes needed, {free} free beyond the reserve")]
    NoSpace {
        /// Bytes that the operation wanted to append.
        needed: u64,
        /// Bytes that it could have had.
        free: u64,
    },
    /// An earlier storage failure closed the store for writing.
    #[error(
        "the store takes no more writes since a storage failure: {0}; check the disk, then restart the server"
    )]
    Poisoned(String),
    /// Another process has the store open.
    #[error("{0} is in use by another process")]
    InUse(PathBuf),
    /// The directory holds something else.
    #[error(
        "{dir} is not a chunk store: it holds {found:?} and no store file; give an empty or new directory"
    )]
    NotAStore {
        /// The directory.
        dir: PathBuf,
        /// The first foreign name found in it.
        found: String,
    },
    /// Written by a later release.
    #[error(
        "{file} has format version {found}, this program knows versions up to {known}; use a newer program"
    )]
    NewerVersion {
        /// The file.
        file: String,
        /// Its version.
        found: u32,
        /// The latest version understood here.
        known: u32,
    },
    /// A file that belongs to the store's identity is unusable.
    #[error("{file} is unusable: {why}")]
    BadFile {
        /// The file.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// The caller asked for a range outside of a chunk.
    #[error("bytes {offset}..+{len} are outside of a chunk of {max} bytes")]
    OutOfRange {
        /// First byte asked for.
        offset: u64,
        /// Length asked for.
        len: u64,
        /// The configured chunk size.
        max: u64,
    },
    /// The configuration contradicts itself.
    #[error("store configuration: {0}")]
    Config(String),
}

impl StoreError {
    /// Whether bytes are others than were written, and will stay so; not if the disk does not give them.
    pub fn is_rotten(&self) -> bool {
        matches!(self, Self::Corrupt { rotten: true, .. })
    }

    pub(super) fn io(op: &'static str, file: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { op, file: file.into(), source }
    }
}
