//! The name of a chunk, and of what it has seen.

/// Names one chunk: which file, which life of that file, and which piece of it.
///
/// Ordered by inode, then generation, then index, so that a file's chunks are neighbours.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ChunkKey {
    /// Inode number.
    pub ino: u64,
    /// Generation of the inode's data.
    pub generation: u32,
    /// Number of the chunk within the file.
    pub index: u64,
}

impl ChunkKey {
    /// The smallest key: where a listing of everything begins.
    pub const MIN: Self = Self { ino: 0, generation: 0, index: 0 };

    pub(super) fn file(&self) -> FileKey {
        FileKey { ino: self.ino, generation: self.generation }
    }
}

impl std::fmt::Display for ChunkKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}/{}", self.ino, self.generation, self.index)
    }
}

/// Names the last change that a chunk has seen. It is given by whoever orders the changes, and compared for equality only.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ChunkVersion(pub u64);

impl ChunkVersion {
    /// Nobody can say what the chunk has seen. Never a proof that two chunks are equal.
    pub const UNKNOWN: Self = Self(0);
}

impl std::fmt::Display for ChunkVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// One generation of one file: what a delete record speaks about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct FileKey {
    pub(super) ino: u64,
    pub(super) generation: u32,
}

impl FileKey {
    pub(super) fn chunk(&self, index: u64) -> ChunkKey {
        ChunkKey { ino: self.ino, generation: self.generation, index }
    }
}
