//! The folder of a volume: whose it is, which format it has, who uses it.
//!
//! ```text
//! FORMAT       three lines: "netfs metadata", "format N", "volume ID" (hexadecimal)
//! FORMAT.new   the same while the volume is being made
//! NUMBER       which inode numbers a volume that is being made gets, see `server::volumes`
//! LOCK         locked by the process that serves the volume
//! log/         the command log
//! store/       the store
//! ```
//!
//! There is a volume when there is FORMAT. Until then nobody has been served from the folder, so
//! what an interrupted attempt has left is removed by the next one.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::EngineError;
use crate::private;

/// The version of everything in the folder. A later version that reads this one raises it.
pub const FORMAT: u32 = 2;

/// Which inode numbers a volume that is being made gets.
pub const NUMBER: &str = "NUMBER";

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
    if make && !dir.exists() {
        private::create_dir(dir).map_err(|e| EngineError::io(dir, e))?;
    }
    let ours = read_format(dir)?.is_some();
    if !ours {
        let entries = match fs::read_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(EngineError::Missing(dir.to_owned()));
            }
            other => other.map_err(|e| EngineError::io(dir, e))?,
        };
        let half_made = dir.join("FORMAT.new").exists();
        for entry in entries {
            let name = entry.map_err(|e| EngineError::io(dir, e))?.file_name();
            // What a first start that was interrupted leaves.
            let known = name == "LOCK" || name == NUMBER || name == "FORMAT.new";
            if !known && !(half_made && (name == "log" || name == "store")) {
                return Err(EngineError::Foreign(dir.to_owned()));
            }
        }
        if !make {
            return Err(EngineError::Missing(dir.to_owned()));
        }
    }
    // What is in it is in everybody's files.
    for own in [dir.to_owned(), log_dir(dir), store_dir(dir)] {
        if own.exists() {
            private::create_dir(&own).map_err(|e| EngineError::io(&own, e))?;
        }
    }
    let lock = lock(dir)?;
    // Another process may have made the volume before we had the lock.
    Ok((lock, read_format(dir)?))
}

fn lock(dir: &Path) -> Result<DirLock, EngineError> {
    let path = dir.join("LOCK");
    let io = |e| EngineError::io(&path, e);
    let mut options = private::file_options();
    let file = options.create(true).truncate(false).write(true).open(&path).map_err(io)?;
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

/// Begins to make a volume, or begins again. Until [`finish`] the folder holds none.
pub(super) fn begin(dir: &Path, volume: u64) -> Result<(), EngineError> {
    let new = dir.join("FORMAT.new");
    let write = || {
        let mut options = private::file_options();
        let mut file = options.create(true).truncate(true).write(true).open(&new)?;
        writeln!(file, "{TITLE}\nformat {FORMAT}\nvolume {volume:016x}")?;
        file.sync_all()?;
        // From here on log and store are known to be ours, however far they come.
        File::open(dir)?.sync_all()
    };
    write().map_err(|e| EngineError::io(&new, e))?;
    for sub in [log_dir(dir), store_dir(dir)] {
        let make = || {
            if sub.exists() {
                fs::remove_dir_all(&sub)?;
            }
            private::create_dir(&sub)
        };
        make().map_err(|e| EngineError::io(&sub, e))?;
    }
    Ok(())
}

/// The volume is there, and durable.
pub(super) fn finish(dir: &Path) -> Result<(), EngineError> {
    let path = dir.join("FORMAT");
    let publish = || {
        // The names of log and store first.
        File::open(dir)?.sync_all()?;
        fs::rename(dir.join("FORMAT.new"), &path)?;
        File::open(dir)?.sync_all()
    };
    publish().map_err(|e| EngineError::io(&path, e))
}

/// Puts a store that cannot be read out of the way; where it is now.
pub(super) fn set_aside(dir: &Path) -> Result<PathBuf, EngineError> {
    let store = store_dir(dir);
    let free = (1..).map(|n: u32| dir.join(format!("store.damaged-{n}"))).find(|p| !p.exists());
    let aside = free.unwrap_or_else(|| dir.join("store.damaged"));
    let put = || {
        fs::rename(&store, &aside)?;
        private::create_dir(&store)?;
        File::open(dir)?.sync_all()
    };
    put().map_err(|e| EngineError::io(&store, e))?;
    Ok(aside)
}
