//! Attributes of inodes, as `stat(2)` shows them, and changes to them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bincode::{Decode, Encode};

use crate::id::Ino;

/// A point in time as file systems record it: seconds since 1970, also before it, and nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct Timestamp {
    /// Seconds since the epoch, negative before it.
    pub secs: i64,
    /// Nanoseconds after `secs`, below 1,000,000,000.
    pub nanos: u32,
}

impl Timestamp {
    /// A nanosecond later.
    #[must_use]
    pub fn next(self) -> Timestamp {
        match self.nanos {
            nanos if nanos < 999_999_999 => Timestamp { nanos: nanos + 1, ..self },
            _ => Timestamp { secs: self.secs.saturating_add(1), nanos: 0 },
        }
    }
}

impl From<SystemTime> for Timestamp {
    fn from(t: SystemTime) -> Self {
        match t.duration_since(UNIX_EPOCH) {
            Ok(d) => Timestamp { secs: d.as_secs() as i64, nanos: d.subsec_nanos() },
            Err(e) => {
                let d = e.duration();
                let (secs, nanos) = (d.as_secs() as i64, d.subsec_nanos());
                match nanos {
                    0 => Timestamp { secs: -secs, nanos: 0 },
                    n => Timestamp { secs: -secs - 1, nanos: 1_000_000_000 - n },
                }
            }
        }
    }
}

impl From<Timestamp> for SystemTime {
    fn from(t: Timestamp) -> Self {
        let nanos = Duration::from_nanos(u64::from(t.nanos));
        let whole = Duration::from_secs(t.secs.unsigned_abs());
        let base =
            if t.secs >= 0 { UNIX_EPOCH.checked_add(whole) } else { UNIX_EPOCH.checked_sub(whole) };
        base.and_then(|b| b.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
    }
}

/// The type of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Dir,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Character device.
    Char,
    /// Block device.
    Block,
    /// Socket.
    Socket,
}

/// The attributes of an inode.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Attr {
    /// The inode.
    pub ino: Ino,
    /// Its type, which never changes.
    pub kind: FileKind,
    /// Permission bits with set-id and sticky, `0o7777` at most.
    pub perm: u16,
    /// Names that lead to the inode; 0 for one that lives only while it is open.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device file, as the kernel's 32-bit encoding.
    pub rdev: u32,
    /// Length in bytes; of a directory a figure that grows with its entries.
    pub size: u64,
    /// Bytes that data takes up, holes not counted.
    pub allocated: u64,
    /// Last access, by the rules of `relatime`.
    pub atime: Timestamp,
    /// Last change of contents.
    pub mtime: Timestamp,
    /// Last change of contents or attributes; never runs backwards.
    pub ctime: Timestamp,
    /// Birth.
    pub btime: Timestamp,
    /// Which of the successive contents the data chunks belong to ([`crate::id::ChunkId`]), with their class; of a directory
    /// the class of what is made in it ([`crate::class`]).
    pub generation: u32,
    /// Binary logarithm of the chunk size.
    pub chunk_bits: u8,
    /// The data is in the inode, not in chunks. What lies beyond the inline bytes is a hole.
    pub inline: bool,
    /// The inode has extended attributes, access control lists included.
    pub has_xattrs: bool,
    /// The directory that holds a directory; [`Ino`] 0 for anything else.
    pub parent: Ino,
    /// Position in the log of the last change; of two copies the one with the higher is newer.
    pub version: u64,
}

impl Attr {
    /// The size of a chunk of this file in bytes.
    pub fn chunk_size(&self) -> u64 {
        1 << self.chunk_bits
    }
}

/// What a time is set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum SetTime {
    /// The time of the command.
    Now,
    /// A given time.
    To(Timestamp),
}

/// A change of attributes: what is `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct SetAttr {
    /// New permission bits.
    pub perm: Option<u16>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New length: cuts or extends by a hole.
    pub size: Option<u64>,
    /// New access time.
    pub atime: Option<SetTime>,
    /// New modification time.
    pub mtime: Option<SetTime>,
}
