//! A disk that fails when it is told to.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use super::{Disk, LogFile, RealDisk};

/// What is to go wrong.
#[derive(Default)]
pub(crate) struct Faults {
    /// The next append writes so many bytes and fails with this error number.
    pub(crate) append: Mutex<Option<(usize, i32)>>,
    /// Every flush fails.
    pub(crate) sync: AtomicBool,
    /// No file can be cut.
    pub(crate) truncate: AtomicBool,
    /// Bytes free, if not as on the real disk.
    pub(crate) free: Mutex<Option<u64>>,
    /// How many flushes there were.
    pub(crate) syncs: AtomicU64,
}

#[derive(Clone, Default)]
pub(crate) struct BadDisk(pub(crate) Arc<Faults>);

struct BadFile {
    file: Arc<dyn LogFile>,
    faults: Arc<Faults>,
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

impl Disk for BadDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        Ok(Arc::new(BadFile { file: RealDisk.create(path)?, faults: self.0.clone() }))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        RealDisk.read(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        RealDisk.list(dir)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }

    fn cut(&self, path: &Path, len: u64) -> io::Result<()> {
        RealDisk.cut(path, len)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        RealDisk.sync_dir(dir)
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let free = *self.0.free.lock().unwrap();
        free.map_or_else(|| RealDisk.free_bytes(dir), Ok)
    }
}

impl LogFile for BadFile {
    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        match self.faults.append.lock().unwrap().take() {
            Some((part, errno)) => {
                self.file.append(&bytes[..part.min(bytes.len())])?;
                Err(io::Error::from_raw_os_error(errno))
            }
            None => self.file.append(bytes),
        }
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        if self.faults.truncate.load(SeqCst) { Err(eio()) } else { self.file.truncate(len) }
    }

    fn sync(&self) -> io::Result<()> {
        self.faults.syncs.fetch_add(1, SeqCst);
        if self.faults.sync.load(SeqCst) { Err(eio()) } else { self.file.sync() }
    }
}
