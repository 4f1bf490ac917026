//! Values of the file system as fuser wants them, and the reverse.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, FopenFlags, INodeNo, TimeOrNow};
use netfs_common::attr::{Attr, FileKind, SetTime, Timestamp};
use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::name::Name;

use crate::vfs::Opened;

/// The block size that `stat` and `statfs` report: the page, as on ext4.
pub(super) const BLOCK_BYTES: u32 = 4096;

/// The unit of `st_blocks`.
const SECTOR_BYTES: u64 = 512;

/// The permission bits of a mode, with set-id and sticky.
pub(super) fn perm_of(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

pub(super) fn errno(e: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(e.raw())
}

pub(super) fn name(name: &OsStr) -> Result<Name, Errno> {
    Name::new(name.as_bytes())
}

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Dir => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Char => FileType::CharDevice,
        FileKind::Block => FileType::BlockDevice,
        FileKind::Socket => FileType::Socket,
    }
}

/// The type in a mode, `None` for one that is not a type.
pub(super) fn kind_of(mode: u32) -> Option<FileKind> {
    Some(match mode & libc::S_IFMT {
        // mknod(2): a type of zero is a regular file.
        libc::S_IFREG | 0 => FileKind::File,
        libc::S_IFDIR => FileKind::Dir,
        libc::S_IFLNK => FileKind::Symlink,
        libc::S_IFIFO => FileKind::Fifo,
        libc::S_IFCHR => FileKind::Char,
        libc::S_IFBLK => FileKind::Block,
        libc::S_IFSOCK => FileKind::Socket,
        _ => return None,
    })
}

pub(super) fn attr(a: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(a.ino.0),
        size: a.size,
        blocks: a.allocated.div_ceil(SECTOR_BYTES),
        atime: a.atime.into(),
        mtime: a.mtime.into(),
        ctime: a.ctime.into(),
        crtime: a.btime.into(),
        kind: file_type(a.kind),
        perm: a.perm & 0o7777,
        nlink: a.nlink,
        uid: a.uid,
        gid: a.gid,
        rdev: a.rdev,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

/// Attributes of which the kernel uses the number and the type only: of inode 0, which is how a
/// name is said to be absent, and of `.` and `..` in a listing.
pub(super) fn bare_attr(ino: Ino, kind: FileKind) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino.0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: file_type(kind),
        perm: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

pub(super) fn fopen_flags(o: &Opened) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    flags.set(FopenFlags::FOPEN_KEEP_CACHE, o.keep_cache);
    flags.set(FopenFlags::FOPEN_DIRECT_IO, o.direct_io);
    flags.set(FopenFlags::FOPEN_CACHE_DIR, o.cache_dir);
    flags.set(FopenFlags::FOPEN_NOFLUSH, o.noflush);
    flags
}

pub(super) fn set_time(t: TimeOrNow) -> SetTime {
    match t {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(t) => SetTime::To(timestamp_sent(t)),
    }
}

/// The time that the kernel sent.
///
/// fuser 0.18 reads (-2 s, 500 ms), which is 1.5 s before the epoch, as 2.5 s before it. What it
/// was given can be had back: before the epoch it subtracts both parts.
fn timestamp_sent(t: SystemTime) -> Timestamp {
    match t.duration_since(UNIX_EPOCH) {
        Ok(_) => t.into(),
        Err(before) => {
            let d = before.duration();
            let secs = 0i64.checked_sub_unsigned(d.as_secs()).unwrap_or(i64::MIN);
            Timestamp { secs, nanos: d.subsec_nanos() }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn sample() -> Attr {
        Attr {
            ino: Ino(7),
            kind: FileKind::File,
            perm: 0o4755,
            nlink: 2,
            uid: 1,
            gid: 2,
            rdev: 0,
            size: 10_000,
            allocated: 8_193,
            atime: Timestamp { secs: 5, nanos: 6 },
            mtime: Timestamp { secs: -2, nanos: 500_000_000 },
            ctime: Timestamp::default(),
            btime: Timestamp::default(),
            generation: 3,
            chunk_bits: 22,
            inline: false,
            has_xattrs: false,
            parent: Ino(0),
            version: 1,
        }
    }

    #[test]
    fn blocks_are_sectors_rounded_up() {
        assert_eq!(attr(&sample()).blocks, 17);
    }

    #[test]
    fn set_id_bits_reach_the_kernel() {
        assert_eq!(attr(&sample()).perm, 0o4755);
    }

    #[test]
    fn times_before_the_epoch_keep_their_nanoseconds() {
        let t: Timestamp = attr(&sample()).mtime.into();
        assert_eq!(t, sample().mtime);
    }

    #[test]
    fn a_time_before_the_epoch_is_what_the_kernel_sent() {
        // As fuser computes it from (-2, 500_000_000).
        let sent = UNIX_EPOCH - Duration::new(2, 500_000_000);
        assert_eq!(timestamp_sent(sent), Timestamp { secs: -2, nanos: 500_000_000 });
        let whole = UNIX_EPOCH - Duration::new(3, 0);
        assert_eq!(timestamp_sent(whole), Timestamp { secs: -3, nanos: 0 });
    }

    #[test]
    fn every_type_survives_the_way_through_a_mode() {
        for kind in [
            FileKind::File,
            FileKind::Dir,
            FileKind::Symlink,
            FileKind::Fifo,
            FileKind::Char,
            FileKind::Block,
            FileKind::Socket,
        ] {
            let mode = match file_type(kind) {
                FileType::RegularFile => libc::S_IFREG,
                FileType::Directory => libc::S_IFDIR,
                FileType::Symlink => libc::S_IFLNK,
                FileType::NamedPipe => libc::S_IFIFO,
                FileType::CharDevice => libc::S_IFCHR,
                FileType::BlockDevice => libc::S_IFBLK,
                FileType::Socket => libc::S_IFSOCK,
            };
            assert_eq!(kind_of(mode | 0o644), Some(kind));
        }
        assert_eq!(kind_of(0o644), Some(FileKind::File));
        assert_eq!(kind_of(libc::S_IFMT), None);
    }

    #[test]
    fn modes_lose_their_type() {
        assert_eq!(perm_of(libc::S_IFREG | 0o7644), 0o7644);
    }

    #[test]
    fn open_flags_follow_the_answer() {
        let o =
            Opened { fh: 1, keep_cache: true, direct_io: false, cache_dir: false, noflush: true };
        assert_eq!(fopen_flags(&o), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
    }
}
