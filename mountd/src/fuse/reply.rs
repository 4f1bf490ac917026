//! Answers: what every kind of reply has in common, and those that need a thought.

use std::ffi::OsStr;
use std::time::Duration;

use fuser::{FileHandle, Generation};
use netfs_common::attr::FileKind;
use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::wire::meta::StatFs;

use super::convert;
use crate::vfs::{Entry, Looked, Opened, Telling};

/// Inode numbers are never used again, so every inode is the first of its number. A file handle
/// (`name_to_handle_at`) holds this too: it must not change while the inode lives.
pub(super) const GENERATION: Generation = Generation(0);

/// A reply that can be an error.
pub(super) trait Refuse: Sized {
    /// Answers with an error.
    fn refuse(self, e: Errno);
}

macro_rules! refuse {
    ($($reply:ident),* $(,)?) => {
        $(impl Refuse for fuser::$reply {
            fn refuse(self, e: Errno) {
                self.error(convert::errno(e));
            }
        })*
    };
}

refuse!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyEmpty,
    ReplyEntry,
    ReplyIoctl,
    ReplyLock,
    ReplyLseek,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite,
    ReplyXattr,
);

pub(super) fn empty(reply: fuser::ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.refuse(e),
    }
}

pub(super) fn attr(reply: fuser::ReplyAttr, result: Result<Entry, Errno>) {
    match result {
        Ok(e) => reply.attr(&e.ttl, &convert::attr(&e.attr)),
        Err(e) => reply.refuse(e),
    }
}

pub(super) fn entry(reply: fuser::ReplyEntry, result: Result<Entry, Errno>) {
    match result {
        Ok(e) => reply.entry(&e.ttl, &convert::attr(&e.attr), GENERATION),
        Err(e) => reply.refuse(e),
    }
}

pub(super) fn looked(reply: fuser::ReplyEntry, result: Result<Looked, Errno>) {
    match result {
        Ok(Looked::Found(e)) => entry(reply, Ok(e)),
        Ok(Looked::Absent { ttl }) if ttl > Duration::ZERO => {
            // Inode 0 is a name that the kernel may take as absent for so long.
            reply.entry(&ttl, &convert::bare_attr(Ino(0), FileKind::File), GENERATION);
        }
        Ok(Looked::Absent { .. }) => reply.refuse(Errno::ENOENT),
        Err(e) => reply.refuse(e),
    }
}

/// A name that the kernel may keep, unless it is taken back, which waits for this.
pub(super) fn told(reply: fuser::ReplyEntry, result: Result<(Looked, Option<Telling>), Errno>) {
    match result {
        Ok((found, telling)) => {
            looked(reply, Ok(found));
            drop(telling);
        }
        Err(e) => reply.refuse(e),
    }
}

pub(super) fn opened(reply: fuser::ReplyOpen, result: Result<Opened, Errno>) {
    match result {
        Ok(o) => reply.opened(FileHandle(o.fh), convert::fopen_flags(&o)),
        Err(e) => reply.refuse(e),
    }
}

pub(super) fn created(reply: fuser::ReplyCreate, result: Result<(Entry, Opened), Errno>) {
    match result {
        Ok((e, o)) => reply.created(
            &e.ttl,
            &convert::attr(&e.attr),
            GENERATION,
            FileHandle(o.fh),
            convert::fopen_flags(&o),
        ),
        Err(e) => reply.refuse(e),
    }
}

pub(super) fn data(reply: fuser::ReplyData, result: Result<impl AsRef<[u8]>, Errno>) {
    match result {
        Ok(d) => reply.data(d.as_ref()),
        Err(e) => reply.refuse(e),
    }
}

pub(super) fn written(reply: fuser::ReplyWrite, result: Result<u32, Errno>) {
    match result {
        Ok(n) => reply.written(n),
        Err(e) => reply.refuse(e),
    }
}

pub(super) fn offset(reply: fuser::ReplyLseek, result: Result<i64, Errno>) {
    match result {
        Ok(o) => reply.offset(o),
        Err(e) => reply.refuse(e),
    }
}

/// How an extended attribute is answered to a caller with room for `room` bytes.
#[derive(Debug, PartialEq, Eq)]
enum Fit {
    Length(u32),
    Value,
    Error(Errno),
}

fn sized(len: usize, room: u32) -> Fit {
    match (u32::try_from(len), room) {
        (Err(_), _) => Fit::Error(Errno::E2BIG),
        (Ok(len), 0) => Fit::Length(len),
        (Ok(len), room) if len > room => Fit::Error(Errno::ERANGE),
        _ => Fit::Value,
    }
}

/// A value, or its length to a caller that asked with a size of 0 (`getxattr(2)`).
pub(super) fn xattr(reply: fuser::ReplyXattr, room: u32, result: Result<Vec<u8>, Errno>) {
    match result {
        Ok(value) => match sized(value.len(), room) {
            Fit::Length(len) => reply.size(len),
            Fit::Value => reply.data(&value),
            Fit::Error(e) => reply.refuse(e),
        },
        Err(e) => reply.refuse(e),
    }
}

/// Names as `listxattr(2)` wants them: each with a NUL behind it.
pub(super) fn xattr_list(names: &[Vec<u8>]) -> Vec<u8> {
    let mut list = Vec::with_capacity(names.iter().map(|n| n.len() + 1).sum());
    for name in names {
        list.extend_from_slice(name);
        list.push(0);
    }
    list
}

pub(super) fn statfs(reply: fuser::ReplyStatfs, result: Result<StatFs, Errno>) {
    const NAME_MAX: u32 = netfs_common::name::NAME_MAX as u32;
    let block = u64::from(convert::BLOCK_BYTES);
    match result {
        Ok(s) => {
            let free = s.bytes_free / block;
            reply.statfs(
                s.bytes / block,
                free,
                free,
                s.inodes,
                s.inodes_free,
                convert::BLOCK_BYTES,
                NAME_MAX,
                convert::BLOCK_BYTES,
            );
        }
        Err(e) => reply.refuse(e),
    }
}

/// The name of an entry as fuser takes it.
pub(super) fn os(name: &[u8]) -> &OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_gets_the_length_and_a_small_buffer_erange() {
        assert_eq!(sized(5, 0), Fit::Length(5));
        assert_eq!(sized(5, 4), Fit::Error(Errno::ERANGE));
        assert_eq!(sized(5, 5), Fit::Value);
        assert_eq!(sized(0, 0), Fit::Length(0));
        assert_eq!(sized(0, 9), Fit::Value);
    }

    #[test]
    fn names_of_a_list_end_in_nul() {
        let names = [b"user.a".to_vec(), b"user.b".to_vec()];
        assert_eq!(xattr_list(&names), b"user.a\0user.b\0");
        assert_eq!(xattr_list(&[]), b"");
    }
}
