//! A directory of the local file system.

use std::ffi::CString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Disk, DiskFile, Space};
use crate::data::store::error::StoreError;
use crate::data::store::format::{LOCK_FILE, STORE_FILE};
use crate::private::{self, Claim};

/// File systems that keep all of what was written together until none of it is in use, and say of a file with a hole nevertheless that it takes less:
/// btrfs, and bcachefs of what has checksums. They have no use for holes.
const FREE_WHOLE_EXTENTS: [u32; 2] = [0x9123_683e, 0xca45_1a4e];

/// The most slices that Linux takes in one call.
const IOV_MAX: usize = 1024;

/// A locked directory; the lock ends with the value.
pub(in crate::data::store) struct RealDisk {
    dir: PathBuf,
    access: Access,
    begun: Instant,
    /// Holds the lock for as long as it is open. `None`: a read-only look at a store that has no lock file.
    _lock: Option<File>,
}

/// What the opener may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::data::store) enum Access {
    /// Look only. Fails while somebody writes.
    Read,
    /// Write; there is one writer. Creates the directory.
    Write,
}

impl RealDisk {
    pub(in crate::data::store) fn open(dir: &Path, access: Access) -> Result<Self, StoreError> {
        let shown = || dir.display().to_string();
        if access == Access::Write {
            // Chunks are the contents of everybody's files.
            let claim = private::claim(dir, &[LOCK_FILE, STORE_FILE]);
            if let Claim::Foreign(found) =
                claim.map_err(StoreError::io("create directory", shown()))?
            {
                return Err(StoreError::NotAStore { dir: dir.to_owned(), found });
            }
        } else if !dir.is_dir() {
            return Err(StoreError::BadFile {
                file: shown(),
                why: "there is no such directory".into(),
            });
        }
        let path = dir.join(LOCK_FILE);
        let opened = match access {
            Access::Write => {
                private::file_options().write(true).create(true).truncate(false).open(&path)
            }
            Access::Read => File::open(&path),
        };
        let lock = match opened {
            Ok(lock) => lock,
            Err(e) if access == Access::Read && e.kind() == io::ErrorKind::NotFound => {
                return Ok(Self {
                    dir: dir.to_owned(),
                    access,
                    begun: Instant::now(),
                    _lock: None,
                });
            }
            Err(e) => return Err(StoreError::io("open", path.display().to_string())(e)),
        };
        let locked = match access {
            Access::Write => lock.try_lock(),
            Access::Read => lock.try_lock_shared(),
        };
        match locked {
            Ok(()) => {
                let begun = Instant::now();
                Ok(Self { dir: dir.to_owned(), access, begun, _lock: Some(lock) })
            }
            Err(TryLockError::WouldBlock) => Err(StoreError::InUse(dir.to_owned())),
            Err(TryLockError::Error(e)) => {
                Err(StoreError::io("lock", path.display().to_string())(e))
            }
        }
    }

    fn statfs(&self) -> io::Result<libc::statfs> {
        let path = CString::new(self.dir.as_os_str().as_bytes())?;
        // SAFETY: an all-zero statfs is a valid value of this plain C structure.
        let mut out: libc::statfs = unsafe { std::mem::zeroed() };
        // SAFETY: `path` is a terminated string and `out` a structure that the call may fill, both alive during it.
        if unsafe { libc::statfs(path.as_ptr(), &mut out) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(out)
    }

    fn statvfs(&self) -> io::Result<libc::statvfs> {
        let path = CString::new(self.dir.as_os_str().as_bytes())?;
        // SAFETY: an all-zero statvfs is a valid value of this plain C structure.
        let mut out: libc::statvfs = unsafe { std::mem::zeroed() };
        // SAFETY: `path` is a terminated string and `out` a structure that the call may fill, both alive during it.
        if unsafe { libc::statvfs(path.as_ptr(), &mut out) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(out)
    }
}

impl Disk for RealDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        std::fs::read_dir(&self.dir)?
            .map(|e| Ok(e?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let write = self.access == Access::Write;
        let path = self.dir.join(name);
        let mut options = OpenOptions::new();
        options.read(true).write(write);
        // Nobody asks when a segment was read last, and keeping count of it costs each small read some hundredths.
        match options.clone().custom_flags(libc::O_NOATIME).open(&path) {
            // It belongs to somebody else, whose files may be looked at.
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => {
                Ok(Arc::new(RealFile(options.open(&path)?)))
            }
            file => Ok(Arc::new(RealFile(file?))),
        }
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = private::file_options();
        options.read(true).write(true).create(true).truncate(true);
        Ok(Arc::new(RealFile(options.open(self.dir.join(name))?)))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.dir.join(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    fn space(&self) -> io::Result<Space> {
        let out = self.statvfs()?;
        Ok(Space {
            capacity_bytes: out.f_blocks * out.f_frsize,
            free_bytes: out.f_bavail * out.f_frsize,
        })
    }

    fn hole_bytes(&self) -> io::Result<Option<u64>> {
        const LEAST: u64 = 4096;
        let found = self.statfs()?;
        if FREE_WHOLE_EXTENTS.contains(&(found.f_type as u32)) {
            return Ok(None);
        }
        let block = u64::try_from(found.f_bsize).unwrap_or(LEAST);
        Ok(Some(block.max(LEAST).checked_next_power_of_two().unwrap_or(LEAST)))
    }

    fn discards(&self) -> io::Result<bool> {
        let device = std::fs::metadata(&self.dir)?.dev();
        Ok(discards(&std::fs::read_to_string("/proc/self/mountinfo")?, device))
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }
}

/// Whether a device's file system is mounted so that it discards what is freed, by the lines of proc_pid_mountinfo(5).
fn discards(mounts: &str, device: u64) -> bool {
    let device = format!("{}:{}", libc::major(device), libc::minor(device));
    mounts.lines().filter(|line| line.split(' ').nth(2) == Some(&device)).any(|line| {
        let options = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').nth(2));
        options.unwrap_or("").split(',').any(|o| o == "discard" || o.starts_with("discard="))
    })
}

struct RealFile(File);

impl RealFile {
    /// Where data or a hole begins, from a position on and up to `end`. `None`: the file system cannot tell.
    fn seek(&self, at: i64, what: libc::c_int, end: i64) -> io::Result<Option<i64>> {
        // SAFETY: the call has no conditions. Nobody uses the position of the file.
        match unsafe { libc::lseek(self.0.as_raw_fd(), at, what) } {
            found if found >= at => Ok(Some(found.min(end))),
            _ => match io::Error::last_os_error() {
                e if e.raw_os_error() == Some(libc::ENXIO) => Ok(Some(end)),
                e if matches!(
                    e.raw_os_error(),
                    Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS)
                ) =>
                {
                    Ok(None)
                }
                e => Err(e),
            },
        }
    }
}

/// What a system call that reads has returned; one that must not wait was asked not to.
fn read_result(done: isize, wait: bool) -> io::Result<usize> {
    usize::try_from(done).map_err(|_| match io::Error::last_os_error() {
        // Some file systems cannot tell, and kernels do not know it for all of them.
        e if !wait
            && matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL)) =>
        {
            io::ErrorKind::WouldBlock.into()
        }
        e => e,
    })
}

fn last_errno() -> Option<i32> {
    io::Error::last_os_error().raw_os_error()
}

impl DiskFile for RealFile {
    fn write_at(&self, data: &[IoSlice<'_>], position: u64) -> io::Result<usize> {
        let position = i64::try_from(position).map_err(|_| io::ErrorKind::InvalidInput)?;
        let count = data.len().min(IOV_MAX) as libc::c_int;
        // SAFETY: IoSlice is guaranteed to have the layout of iovec, and the first `count` of them are borrowed
        // for the duration of the call.
        let done =
            unsafe { libc::pwritev(self.0.as_raw_fd(), data.as_ptr().cast(), count, position) };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    fn read_at(&self, out: &mut [u8], position: u64) -> io::Result<usize> {
        FileExt::read_at(&self.0, out, position)
    }

    fn read_now(&self, out: &mut [u8], position: u64) -> io::Result<usize> {
        self.read_vectored_at(&mut [IoSliceMut::new(out)], position, false)
    }

    fn read_onto(
        &self,
        out: &mut Vec<u8>,
        most: usize,
        position: u64,
        wait: bool,
    ) -> io::Result<usize> {
        let at = i64::try_from(position).map_err(|_| io::ErrorKind::InvalidInput)?;
        out.reserve(most);
        let room = &mut out.spare_capacity_mut()[..most];
        let fd = self.0.as_raw_fd();
        let done = if wait {
            // SAFETY: `room` may be filled for the duration of the call.
            unsafe { libc::pread(fd, room.as_mut_ptr().cast(), room.len(), at) }
        } else {
            let part = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
            // SAFETY: the one part is `room`, which may be filled for the duration of the call.
            unsafe { libc::preadv2(fd, &part, 1, at, libc::RWF_NOWAIT) }
        };
        let done = read_result(done, wait)?;
        // SAFETY: the call has filled so many bytes of `room`, which begins at the old end and lies within the capacity.
        unsafe { out.set_len(out.len() + done) };
        Ok(done)
    }

    fn read_vectored_at(
        &self,
        parts: &mut [IoSliceMut<'_>],
        position: u64,
        wait: bool,
    ) -> io::Result<usize> {
        let position = i64::try_from(position).map_err(|_| io::ErrorKind::InvalidInput)?;
        let count = parts.len().min(IOV_MAX) as libc::c_int;
        let (fd, flags) = (self.0.as_raw_fd(), if wait { 0 } else { libc::RWF_NOWAIT });
        // SAFETY: IoSliceMut is guaranteed to have the layout of iovec, and the first `count` of them are borrowed
        // for the duration of the call.
        let done = unsafe { libc::preadv2(fd, parts.as_mut_ptr().cast(), count, position, flags) };
        read_result(done, wait)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn start_sync(&self, from: u64, len: u64) -> io::Result<()> {
        let range = |v: u64| i64::try_from(v).map_err(|_| io::ErrorKind::InvalidInput);
        let (fd, from, len) = (self.0.as_raw_fd(), range(from)?, range(len)?);
        // It does not wait, so it takes no error away that the next `sync` has to report.
        // SAFETY: the call has no conditions.
        if unsafe { libc::sync_file_range(fd, from, len, libc::SYNC_FILE_RANGE_WRITE) } == 0 {
            return Ok(());
        }
        match io::Error::last_os_error() {
            // Not every file system can.
            e if matches!(
                e.raw_os_error(),
                Some(libc::EINVAL | libc::ENOSYS | libc::ESPIPE | libc::EOPNOTSUPP)
            ) =>
            {
                Ok(())
            }
            e => Err(e),
        }
    }

    fn punch(&self, from: u64, len: u64) -> io::Result<()> {
        let range = |v: u64| i64::try_from(v).map_err(|_| io::ErrorKind::InvalidInput);
        let (fd, at, count) = (self.0.as_raw_fd(), range(from)?, range(len)?);
        loop {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            // SAFETY: the call has no conditions.
            if unsafe { libc::fallocate(fd, mode, at, count) } == 0 {
                return Ok(());
            }
            match last_errno() {
                Some(libc::EINTR) => {}
                // Where it is forbidden, it is as good as unknown.
                Some(
                    libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV | libc::EINVAL | libc::EPERM,
                ) => {
                    return Err(io::ErrorKind::Unsupported.into());
                }
                _ => return Err(io::Error::last_os_error()),
            }
        }
    }

    fn data_bytes(&self, from: u64, len: u64) -> io::Result<u64> {
        let mut at = i64::try_from(from).map_err(|_| io::ErrorKind::InvalidInput)?;
        let end = i64::try_from(from + len).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut data = 0;
        while at < end {
            let Some(begin) = self.seek(at, libc::SEEK_DATA, end)? else { return Ok(len) };
            if begin >= end {
                break;
            }
            let Some(stop) = self.seek(begin, libc::SEEK_HOLE, end)? else { return Ok(len) };
            data += (stop - begin) as u64;
            // Somebody else may make holes meanwhile; each turn gets on.
            at = stop.max(begin + 1);
        }
        Ok(data)
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.blocks() * 512)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::super::read_full_onto;
    use super::*;

    #[test]
    fn what_is_read_comes_behind_what_there_is_and_no_more_than_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(dir.path(), Access::Write).unwrap();
        let content: Vec<u8> = (0..10_000u32).map(|i| (i * 7 % 251) as u8).collect();
        let file = disk.create("file").unwrap();
        assert_eq!(file.write_at(&[IoSlice::new(&content)], 0).unwrap(), content.len());
        for (len, at, capacity) in
            [(10, 100, 1000), (5000, 6000, 0), (5000, 10_000, 3), (1, 20_000, 9), (0, 5, 0)]
        {
            for wait in [true, false] {
                let mut out = Vec::with_capacity(capacity);
                out.extend_from_slice(b"abc");
                let expected = &content[at.min(10_000)..(at + len).min(10_000)];
                match read_full_onto(file.as_ref(), &mut out, len, at as u64, wait) {
                    Ok(got) => {
                        assert_eq!(got, expected.len());
                        assert_eq!(out, [b"abc", expected].concat());
                    }
                    // Not every file system can tell.
                    Err(e) => {
                        assert!(!wait && e.kind() == io::ErrorKind::WouldBlock, "{e}");
                        assert_eq!(out, b"abc");
                    }
                }
            }
        }
    }

    #[test]
    fn holes_are_counted_where_there_are_any() {
        const PAGE: u64 = 4096;
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(dir.path(), Access::Write).unwrap();
        let file = disk.create("file").unwrap();
        let content = vec![7; 64 * PAGE as usize];
        assert_eq!(file.write_at(&[IoSlice::new(&content)], 0).unwrap(), content.len());
        file.sync().unwrap();
        assert_eq!(file.data_bytes(0, 64 * PAGE).unwrap(), 64 * PAGE);
        let before = file.allocated().unwrap();
        match file.punch(16 * PAGE, 32 * PAGE) {
            Err(e) if e.kind() == io::ErrorKind::Unsupported => return,
            done => done.unwrap(),
        }
        assert_eq!(file.len().unwrap(), 64 * PAGE);
        let mut zeros = vec![1; 32 * PAGE as usize];
        assert_eq!(file.read_at(&mut zeros, 16 * PAGE).unwrap(), zeros.len());
        assert!(zeros.iter().all(|byte| *byte == 0));
        // Not every file system has smaller blocks than that, nor tells.
        if before - file.allocated().unwrap() == 32 * PAGE {
            assert_eq!(file.data_bytes(0, 64 * PAGE).unwrap(), 32 * PAGE);
            assert_eq!(file.data_bytes(8 * PAGE, 16 * PAGE).unwrap(), 8 * PAGE);
            assert_eq!(file.data_bytes(20 * PAGE, 4 * PAGE).unwrap(), 0);
        }
    }

    #[test]
    fn a_mount_that_discards_is_known_by_its_options() {
        let mounts = "29 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard,resuid=65534\n\
            30 29 7:1 / /mnt/discard rw,discard - xfs /dev/loop1 rw,nodiscard,noquota\n\
            31 29 7:2 / /mnt/x rw - f2fs /dev/loop2 rw,discard=async\n\
            32 29 7:3 broken";
        let device = libc::makedev;
        assert!(discards(mounts, device(254, 0)));
        assert!(!discards(mounts, device(7, 1)), "only options of the file system count");
        assert!(discards(mounts, device(7, 2)));
        assert!(!discards(mounts, device(7, 3)) && !discards(mounts, device(7, 4)));
    }
}
