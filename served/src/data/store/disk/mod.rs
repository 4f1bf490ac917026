//! The file operations that the store needs, and nothing more: a real directory implements them, and so does the
//! tests' model of a disk that loses power.

mod real;
#[cfg(any(test, feature = "fuzzing"))]
#[cfg_attr(not(test), allow(dead_code, reason = "fuzzing cuts no power"))]
pub(super) mod sim;

use std::io::{self, IoSlice, IoSliceMut};
use std::sync::Arc;
use std::time::Duration;

pub(super) use real::{Access, RealDisk};

/// One directory of files.
pub(super) trait Disk: Send + Sync {
    /// Names of all files.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Opens an existing file.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Creates a file; one that exists is emptied.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    fn remove(&self, name: &str) -> io::Result<()>;
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Makes creations, removals and renames durable.
    fn sync_dir(&self) -> io::Result<()>;
    fn space(&self) -> io::Result<Space>;
    /// What the file system can have back of the middle of a file, at the least: a power of two, a page or more. `None`: it has a
    /// use for whole files only.
    fn hole_bytes(&self) -> io::Result<Option<u64>>;

    /// Whether what is freed is discarded at once. Then holes cost much, and others who use the disk notice.
    fn discards(&self) -> io::Result<bool> {
        Ok(false)
    }
    /// Time that has gone by since some moment.
    fn now(&self) -> Duration;
}

/// One open file. All methods may be called from several threads.
pub(super) trait DiskFile: Send + Sync {
    /// Writes some prefix of `data` and says how much.
    fn write_at(&self, data: &[IoSlice<'_>], position: u64) -> io::Result<usize>;
    /// Reads some bytes and says how many; 0 at the end of the file.
    fn read_at(&self, out: &mut [u8], position: u64) -> io::Result<usize>;
    /// As `read_at`, but fails with `WouldBlock` rather than wait for the disk.
    fn read_now(&self, out: &mut [u8], position: u64) -> io::Result<usize> {
        self.read_at(out, position)
    }
    /// Reads some bytes, no more than `most`, behind those that `out` has, and says how many; 0 at the end of the file. With `wait`
    /// as `read_at`, otherwise as `read_now`.
    fn read_onto(
        &self,
        out: &mut Vec<u8>,
        most: usize,
        position: u64,
        wait: bool,
    ) -> io::Result<usize> {
        let start = out.len();
        out.resize(start + most, 0);
        let room = &mut out[start..];
        let done = if wait { self.read_at(room, position) } else { self.read_now(room, position) };
        out.truncate(start + done.as_ref().map_or(0, |done| *done));
        done
    }
    /// Reads into several places, one after the other: at least into the first that has room. With `wait` as `read_at`,
    /// otherwise as `read_now`.
    fn read_vectored_at(
        &self,
        parts: &mut [IoSliceMut<'_>],
        position: u64,
        wait: bool,
    ) -> io::Result<usize> {
        let Some(first) = parts.iter_mut().find(|part| !part.is_empty()) else { return Ok(0) };
        if wait { self.read_at(first, position) } else { self.read_now(first, position) }
    }
    fn len(&self) -> io::Result<u64>;
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Begins to bring a range to the disk, so that a later `sync` has less to wait for. Promises nothing.
    fn start_sync(&self, _from: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
    /// Gives whole pages, which lie before the end, back to the file system. They read as zeros then. It may become durable at once, never,
    /// or in part, and before or after anything else; fails with `Unsupported` where there is no such thing.
    fn punch(&self, from: u64, len: u64) -> io::Result<()>;
    /// How many bytes of a range are no holes. All, where the file system cannot tell.
    fn data_bytes(&self, from: u64, len: u64) -> io::Result<u64>;
    /// Bytes that the file takes on the disk.
    fn allocated(&self) -> io::Result<u64>;
    /// `fdatasync`: the data and the length are on stable storage when it returns.
    fn sync(&self) -> io::Result<()>;
}

/// Room on the file system.
#[derive(Clone, Copy, Debug)]
pub(super) struct Space {
    pub(super) capacity_bytes: u64,
    pub(super) free_bytes: u64,
}

/// Writes all of `data`, however often the file accepts only a part.
pub(super) fn write_all(
    file: &dyn DiskFile,
    mut data: &mut [IoSlice<'_>],
    mut position: u64,
) -> io::Result<()> {
    IoSlice::advance_slices(&mut data, 0);
    while !data.is_empty() {
        match file.write_at(data, position) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(done) => {
                position += done as u64;
                IoSlice::advance_slices(&mut data, done);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Reads until `out` is full or the file ends; says how much was read.
pub(super) fn read_full(file: &dyn DiskFile, out: &mut [u8], position: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < out.len() {
        match file.read_at(&mut out[done..], position + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// Reads until `len` bytes are behind those that `out` had, or the file ends; says how many are. Without `wait` it fails with `WouldBlock`
/// rather than wait for the disk. It spares filling with zeros what is read into.
pub(super) fn read_full_onto(
    file: &dyn DiskFile,
    out: &mut Vec<u8>,
    len: usize,
    position: u64,
    wait: bool,
) -> io::Result<usize> {
    let mut done = 0;
    while done < len {
        match file.read_onto(out, len - done, position + done as u64, wait) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// As [`read_full_onto`], into several places.
pub(super) fn read_vectored_full(
    file: &dyn DiskFile,
    mut parts: &mut [IoSliceMut<'_>],
    position: u64,
    wait: bool,
) -> io::Result<usize> {
    let mut done = 0;
    IoSliceMut::advance_slices(&mut parts, 0);
    while !parts.is_empty() {
        match file.read_vectored_at(parts, position + done as u64, wait) {
            Ok(0) => break,
            Ok(n) => {
                done += n;
                IoSliceMut::advance_slices(&mut parts, n);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// 100 bytes that are their own positions, of which those from 90 on cannot be read. Gives few at a time, and is interrupted often.
    #[derive(Default)]
    struct Halting(AtomicU64);

    impl DiskFile for Halting {
        fn write_at(&self, _: &[IoSlice<'_>], _: u64) -> io::Result<usize> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn read_at(&self, out: &mut [u8], position: u64) -> io::Result<usize> {
            if self.0.fetch_add(1, Ordering::Relaxed).is_multiple_of(3) {
                // What a failed call leaves in the buffer is not read.
                out.fill(0xee);
                return Err(io::ErrorKind::Interrupted.into());
            }
            if position >= 90 {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            let few = out.len().min(4).min(90 - position as usize);
            out.iter_mut().zip(position..).for_each(|(byte, at)| *byte = at as u8);
            Ok(few)
        }

        fn len(&self) -> io::Result<u64> {
            Ok(100)
        }

        fn set_len(&self, _: u64) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn punch(&self, _: u64, _: u64) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn data_bytes(&self, _: u64, len: u64) -> io::Result<u64> {
            Ok(len)
        }

        fn allocated(&self) -> io::Result<u64> {
            self.len()
        }

        fn sync(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn reading_goes_on_until_all_is_there_and_keeps_what_was_read_before_a_failure() {
        let file = Halting::default();
        let mut out = vec![200, 201];
        assert_eq!(read_full_onto(&file, &mut out, 30, 5, true).unwrap(), 30);
        assert_eq!(out, [vec![200, 201], (5..35).collect()].concat());
        let failed = read_full_onto(&file, &mut out, 30, 80, true).unwrap_err();
        assert_eq!(failed.raw_os_error(), Some(libc::EIO));
        assert_eq!(out, [vec![200, 201], (5..35).collect(), (80..90).collect()].concat());
    }
}
