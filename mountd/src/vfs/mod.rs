//! The semantics of the file system, free of FUSE.

mod types;

use std::sync::Arc;

use bytes::Bytes;
use netfs_common::attr::SetAttr;
use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::name::Name;
use netfs_common::wire::meta::{NewInode, RenameMode, StatFs};
pub use types::{Caller, DirItem, Entry, FOREVER, KernelCache, Looked, Opened, ReadData};

/// A mounted volume.
#[derive(Debug)]
pub struct Vfs {
    runtime: tokio::runtime::Handle,
}

/// Message counters and sizes, for `netfs status`.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Messages sent, by request type.
    pub messages: Vec<(&'static str, u64)>,
    /// Bytes written by programs that no server has yet.
    pub dirty_bytes: u64,
    /// Inodes in the client's table.
    pub inodes: u64,
}

#[allow(missing_docs, clippy::unused_async, unused_variables, clippy::missing_errors_doc)]
impl Vfs {
    pub fn set_kernel(&self, kernel: Arc<dyn KernelCache>) {}
    pub fn runtime(&self) -> tokio::runtime::Handle {
        self.runtime.clone()
    }
    pub fn try_lookup(&self, parent: Ino, name: &Name) -> Option<Result<Looked, Errno>> {
        None
    }
    pub async fn lookup(self: &Arc<Self>, parent: Ino, name: &Name) -> Result<Looked, Errno> {
        Err(Errno::ENOSYS)
    }
    pub fn forget(self: &Arc<Self>, ino: Ino, nlookup: u64) {}
    pub fn referenced(&self, ino: Ino) {}
    pub fn try_getattr(&self, ino: Ino, fh: Option<u64>) -> Option<Result<Entry, Errno>> {
        None
    }
    pub async fn getattr(self: &Arc<Self>, ino: Ino, fh: Option<u64>) -> Result<Entry, Errno> {
        Err(Errno::ENOSYS)
    }
    pub async fn setattr(
        self: &Arc<Self>,
        ino: Ino,
        set: SetAttr,
        fh: Option<u64>,
        caller: Caller,
    ) -> Result<Entry, Errno> {
        Err(Errno::ENOSYS)
    }
    pub async fn readlink(self: &Arc<Self>, ino: Ino) -> Result<Vec<u8>, Errno> {
        Err(Errno::ENOSYS)
    }
    pub async fn make(
        self: &Arc<Self>,
        parent: Ino,
        name: &Name,
        new: NewInode,
        perm: u16,
        umask: u16,
        caller: Caller,
    ) -> Result<Entry, Errno> {
        Err(Errno::ENOSYS)
    }
    pub async fn create(
        self: &Arc<Self>,
        parent: Ino,
        name: &Name,
        perm: u16,
        umask: u16,
        flags: i32,
        caller: Caller,
    ) -> Result<(Entry, Opened), Errno> {
        Err(Errno::ENOSYS)
    }
    pub async fn link(
        self: &Arc<Self>,
        ino: Ino,
        parent: Ino,
        name: &Name,
    ) -> Result<Entry, Errno> {
        Err(Errno::ENOSYS)
    }
    pub async fn unlink(self: &Arc<Self>, parent: Ino, name: &Name) -> Result<(), Errno> {
        Err(Errno::ENOSYS)
    }
    pub async fn rmdir(self: &Arc<Self>, parent: Ino, name: &Name) -> Result<(), Errno> {
        Err(Errno::ENOSYS)
    }
    pub async fn rename(
        self: &Arc<Self>,
        parent: Ino,
        name: &Name,
        new_parent: Ino,
        new_name: &Name,
        mode: RenameMode,
    ) -> Result<(), Errno> {
        Err(Errno::ENOSYS)
    }
    pub fn try_open(&self, ino: Ino, flags: i32) -> Option<Result<Opened, Errno>> {
        None
    }
    pub async fn open(self: &Arc<Self>, ino: Ino, flags: i32) -> Result<Opened, Errno> {
        Err(Errno::ENOSYS)
    }
    pub fn try_read(
        &self,
        ino: Ino,
        fh: u64,
        offset: u64,
        size: u32,
    ) -> Option<Result<ReadData, Errno>> {
        None
    }
    pub async fn read(
        self: &Arc<Self>,
        ino: Ino,
        fh: u64,
        offset: u64,
        size: u32,
    ) -> Result<ReadData, Errno> {
        Err(Errno::ENOSYS)
    }
    /// `data` is taken only when the answer is `Some`.
    pub fn try_write(
        self: &Arc<Self>,
        ino: Ino,
        fh: u64,
        offset: u64,
        data: &Bytes,
        flags: i32,
        write_flags: u32,
    ) -> Option<Result<u32, Errno>> {
        None
    }
    #[allow(clippy::too_many_arguments)]
    pub async fn write(
        self: &Arc<Self>,
        ino: Ino,
        fh: u64,
        offset: u64,
        data: Bytes,
        flags: i32,
        write_flags: u32,
    ) -> Result<u32, Errno> {
        Err(Errno::ENOSYS)
    }
    pub async fn flush(self: &Arc<Self>, ino: Ino, fh: u64) -> Result<(), Errno> {
        Err(Errno::ENOSYS)
    }
    /// Never waits.
    pub fn release(self: &Arc<Self>, ino: Ino, fh: u64) {}
    pub async fn fsync(self: &Arc<Self>, ino: Ino, fh: u64, datasync: bool) -> Result<(), Errno> {
        Err(Errno::ENOSYS)
    }
    pub async fn fsyncdir(self: &Arc<Self>, ino: Ino) -> Result<(), Errno> {
        Err(Errno::ENOSYS)
    }
    pub async fn fallocate(
        self: &Arc<Self>,
        ino: Ino,
        fh: u64,
        offset: u64,
        len: u64,
        mode: i32,
    ) -> Result<(), Errno> {
        Err(Errno::ENOSYS)
    }
    pub async fn lseek(
        self: &Arc<Self>,
        ino: Ino,
        fh: u64,
        offset: i64,
        whence: i32,
    ) -> Result<i64, Errno> {
        Err(Errno::ENOSYS)
    }
    #[allow(clippy::too_many_arguments)]
    pub async fn copy_file_range(
        self: &Arc<Self>,
        ino_in: Ino,
        fh_in: u64,
        off_in: u64,
        ino_out: Ino,
        fh_out: u64,
        off_out: u64,
        len: u64,
    ) -> Result<u64, Errno> {
        Err(Errno::ENOSYS)
    }
    pub fn opendir(&self, ino: Ino, flags: i32) -> Result<Opened, Errno> {
        Err(Errno::ENOSYS)
    }
    pub async fn readdir(
        self: &Arc<Self>,
        ino: Ino,
        fh: u64,
        after: u64,
        max: usize,
        plus: bool,
    ) -> Result<Vec<DirItem>, Errno> {
        Err(Errno::ENOSYS)
    }
    pub fn releasedir(&self, ino: Ino, fh: u64) {}
    pub fn try_getxattr(&self, ino: Ino, name: &[u8]) -> Option<Result<Vec<u8>, Errno>> {
        None
    }
    pub async fn getxattr(self: &Arc<Self>, ino: Ino, name: &[u8]) -> Result<Vec<u8>, Errno> {
        Err(Errno::ENOSYS)
    }
    pub async fn listxattr(self: &Arc<Self>, ino: Ino) -> Result<Vec<Vec<u8>>, Errno> {
        Err(Errno::ENOSYS)
    }
    pub async fn setxattr(
        self: &Arc<Self>,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        flags: i32,
        caller: Caller,
    ) -> Result<(), Errno> {
        Err(Errno::ENOSYS)
    }
    pub async fn removexattr(self: &Arc<Self>, ino: Ino, name: &[u8]) -> Result<(), Errno> {
        Err(Errno::ENOSYS)
    }
    pub async fn statfs(self: &Arc<Self>) -> Result<StatFs, Errno> {
        Err(Errno::ENOSYS)
    }
    pub async fn syncfs(self: &Arc<Self>) -> Result<(), Errno> {
        Err(Errno::ENOSYS)
    }
    pub async fn going_down(self: &Arc<Self>, flush: bool) {}
    pub async fn shutdown(self: &Arc<Self>) {}
    pub fn stats(&self) -> Stats {
        Stats::default()
    }
}
