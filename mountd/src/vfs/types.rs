//! What goes in and out of the [`Vfs`](crate::vfs::Vfs).

use std::ops::Deref;
use std::time::Duration;

use bytes::Bytes;
use netfs_common::attr::{Attr, FileKind};
use netfs_common::id::Ino;
use netfs_common::name::Name;
use tokio::sync::oneshot;

/// How long the kernel keeps what nobody else can change.
pub const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// The process that asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its process.
    pub pid: u32,
}

/// An inode as the kernel shall see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its attributes, with sizes and times that are not yet sent laid over them.
    pub attr: Attr,
    /// For how long the kernel may keep them.
    pub ttl: Duration,
}

/// The answer to a lookup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Looked {
    /// The name leads to an inode.
    Found(Entry),
    /// There is no such name.
    Absent {
        /// For how long that will stay so; zero: unknown.
        ttl: Duration,
    },
}

/// An open file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The handle.
    pub fh: u64,
    /// The kernel keeps the pages that it has from earlier.
    pub keep_cache: bool,
    /// The kernel keeps no pages.
    pub direct_io: bool,
    /// The kernel keeps the listing of the directory.
    pub cache_dir: bool,
    /// Nothing can be due at close, so that no `flush` is needed.
    pub noflush: bool,
}

/// An entry of a listing, `.` and `..` (cookies 1 and 2) included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirItem {
    /// Its place; the server's cookies are 3 and above.
    pub cookie: u64,
    /// Its name.
    pub name: Vec<u8>,
    /// Its inode.
    pub ino: Ino,
    /// The inode's type.
    pub kind: FileKind,
    /// The inode as a lookup would answer; only when asked for, and never for `.` and `..`.
    pub entry: Option<Entry>,
}

/// What was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadData(pub Bytes);

impl Deref for ReadData {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// The kernel's caches, as far as they can be taken back.
///
/// No method blocks: each only puts a message into the queue of the thread that tells the kernel.
pub trait KernelCache: Send + Sync {
    /// Attributes are no longer valid.
    fn inval_attr(&self, ino: Ino);
    /// Attributes and the pages of a range are no longer valid. A `len` of 0 means up to the end.
    fn inval_data(&self, ino: Ino, offset: u64, len: u64);
    /// A name is no longer valid.
    fn inval_entry(&self, parent: Ino, name: &Name);
    /// Resolves when the kernel has been told everything that was queued before.
    fn barrier(&self) -> oneshot::Receiver<()>;
    /// As [`KernelCache::inval_attr`]; resolves when it is done. These do not wait for each other: the kernel may hold a lock.
    fn drop_attr(&self, ino: Ino) -> oneshot::Receiver<()>;
    /// As [`KernelCache::inval_data`]; resolves when it is done.
    fn drop_data(&self, ino: Ino, offset: u64, len: u64) -> oneshot::Receiver<()>;
    /// The same for all pages of many inodes, one after the other.
    fn drop_inodes(&self, inodes: Vec<Ino>) -> oneshot::Receiver<()>;
    /// As [`KernelCache::inval_entry`], for names of one directory; resolves when it is done.
    fn drop_names(&self, parent: Ino, names: Vec<Name>) -> oneshot::Receiver<()>;
    /// Has the kernel forget inodes that nobody uses there, although it has them in its caches. Resolves when it is done. `None`: the kernel cannot do it.
    fn drop_unused(&self, inodes: Vec<Ino>) -> Option<oneshot::Receiver<()>>;
    /// A name that has gone goes from the kernel's tree with all that is below it. Takes the path from working directories there. Resolves when it
    /// is done.
    fn remove_name(&self, parent: Ino, name: Name) -> oneshot::Receiver<()>;
    /// Every name must be looked up again, at once: needs no lock of the kernel. Takes the path from working directories until that is done, and
    /// detaches what is mounted below. `false`: the kernel cannot do it.
    fn drop_all_names(&self) -> bool;
}
