//! The folder of a volume: whose it is, which format it has, who uses it.
//!
//! ```text
//! FORMAT   three lines: "netfs metadata", "format N", "volume ID" (hexadecimal)
//! LOCK     locked by the process that serves the volume
//! log/     the command log
//! store/   the store
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::EngineError;

/// The version of everything in the folder. A later version that reads this one raises it.
pub const FORMAT: u32 = 2;

const TITLE: &str = "netfs metadata";

/// The lock on a folder; it ends with the process at the latest.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

pub(super) fn log_dir(dir: &Path) -> PathBuf {
    dir.join("log")
}

pub(super) fn store_dir(dir: &Path) -> PathBuf {
    dir.join("store")
}

/// Looks at a folder and locks it: the lock, and the volume's identifier if there is one. A
/// folder that is not ours is left as it is.
pub(super) fn enter(dir: &Path, make: bool) -> Result<(DirLock, Option<u64>), EngineError> {
    if make {
        fs::create_dir_all(dir).map_err(|e| EngineError::io(dir, e))?;
    }
    let ours = read_format(dir)?.is_some();
    if !ours {
        let entries = match fs::read_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(EngineError::Missing(dir.to_owned()));
            }
            other => other.map_err(|e| EngineError::io(dir, e))?,
        };
        for entry in entries {
            let name = entry.map_err(|e| EngineError::io(dir, e))?.file_name();
            // What a first start that was interrupted leaves.
            if name != "LOCK" && name != "FORMAT.new" {
                return Err(EngineError::Foreign(dir.to_owned()));
            }
        }
        if !make {
            return Err(EngineError::Missing(dir.to_owned()));
        }
    }
    let lock = lock(dir)?;
    // Another process may have made the volume before we had the lock.
    Ok((lock, read_format(dir)?))
}

fn lock(dir: &Path) -> Result<DirLock, EngineError> {
    let path = dir.join("LOCK");
    let io = |e| EngineError::io(&path, e);
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(DirLock { _file: file }),
        Err(TryLockError::WouldBlock) => Err(EngineError::InUse(dir.to_owned())),
        Err(TryLockError::Error(e)) => Err(io(e)),
    }
}

/// The volume's identifier, `None` without a file FORMAT.
fn read_format(dir: &Path) -> Result<Option<u64>, EngineError> {
    let path = dir.join("FORMAT");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
            return Err(EngineError::io(dir, e));
        }
        Err(e) => return Err(EngineError::io(&path, e)),
    };
    let bad = |what: &str| EngineError::BadFormat { path: path.clone(), what: what.to_owned() };
    let mut lines = text.lines();
    if lines.next() != Some(TITLE) {
        return Err(bad("not the folder of a metadata server; choose another one"));
    }
    let format = lines.next().and_then(|l| l.strip_prefix("format "));
    let format: u32 =
        format.and_then(|n| n.parse().ok()).ok_or_else(|| bad("the second line is no format"))?;
    if format > FORMAT {
        return Err(EngineError::Newer { path: dir.to_owned(), found: format, known: FORMAT });
    }
    if format != FORMAT {
        return Err(bad(
            "made by a version from before the first release, which this one cannot read",
        ));
    }
    let volume = lines.next().and_then(|l| l.strip_prefix("volume "));
    let volume = volume.and_then(|n| u64::from_str_radix(n, 16).ok());
    volume.map(Some).ok_or_else(|| bad("the third line is no volume"))
}

/// Makes the folder that of a volume: the file FORMAT comes last, so that a folder with it is
/// complete.
pub(super) fn make(dir: &Path, volume: u64) -> Result<(), EngineError> {
    for sub in [log_dir(dir), store_dir(dir)] {
        fs::create_dir(&sub).map_err(|e| EngineError::io(&sub, e))?;
    }
    let (new, path) = (dir.join("FORMAT.new"), dir.join("FORMAT"));
    let write = || {
        let mut file = File::create(&new)?;
        writeln!(file, "{TITLE}\nformat {FORMAT}\nvolume {volume:016x}")?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|e| EngineError::io(&path, e))
}
