//! A copy of a volume's metadata to look at: bringing log and store together writes, and a check must not.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::CheckError;
use crate::meta::engine::EngineError;
use crate::meta::server::volumes::VolumeError;

/// A directory that is removed with the value.
#[derive(Debug)]
pub(super) struct Scratch {
    dir: PathBuf,
}

impl Scratch {
    /// An empty directory in `parent` that nobody else can enter.
    pub(super) fn new(parent: &Path) -> Result<Scratch, CheckError> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let dir = parent.join(format!("netfs-check-{}-{serial}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&dir).map_err(CheckError::copy(&dir))?;
        Ok(Scratch { dir })
    }

    /// A copy of a volume that nobody uses, and nobody can begin to use while it is copied.
    pub(super) fn copy_volume(&self, from: &Path, name: &str) -> Result<PathBuf, CheckError> {
        let _lock = lock(from, name)?;
        let to = self.dir.join(name);
        copy(from, &to)?;
        Ok(to)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("{} is left behind: {error}", self.dir.display());
        }
    }
}

fn lock(volume: &Path, name: &str) -> Result<Option<File>, CheckError> {
    let path = volume.join("LOCK");
    let file = match File::open(&path) {
        // Nobody has ever opened it.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(CheckError::copy(&path))?,
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => {
            let source = EngineError::InUse(volume.to_owned());
            Err(VolumeError::Engine { name: name.into(), source }.into())
        }
        Err(TryLockError::Error(e)) => Err(CheckError::copy(&path)(e)),
    }
}

fn copy(from: &Path, to: &Path) -> Result<(), CheckError> {
    fs::create_dir(to).map_err(CheckError::copy(to))?;
    for entry in fs::read_dir(from).map_err(CheckError::copy(from))? {
        let entry = entry.map_err(CheckError::copy(from))?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        match entry.file_type().map_err(CheckError::copy(&from))? {
            kind if kind.is_dir() => copy(&from, &to)?,
            kind if kind.is_file() => {
                fs::copy(&from, &to).map_err(CheckError::copy(&to))?;
            }
            // Nothing that a server makes.
            _ => {}
        }
    }
    Ok(())
}
