//! The volumes of a server, on disk.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use netfs_common::errno::Errno;
use netfs_common::map::INODE_BITS;

use super::volume::now;
use crate::meta::command::Settings;
use crate::meta::engine::{Engine, EngineConfig, EngineError, NUMBER, NewVolume};
use crate::private::{self, Claim};

/// The file with the number of the next volume.
const NEXT_VOLUME: &str = "NEXT_VOLUME";
/// The file in a volume that was left in order.
const CLEAN: &str = "CLEAN";
/// The file in a volume with the life of the machine in which it is served.
const BOOT: &str = "BOOT";
/// Where the kernel says which that is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// The most volumes that a server may ever have had.
const MAX_VOLUMES: u64 = 1 << (64 - INODE_BITS);

/// How often, and after which pause, it is tried to take the lock on the numbers.
const LOCK_TRIES: u32 = 500;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// What is wrong with a volume.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A name that a volume cannot have.
    #[error(
        "\"{0}\" cannot be a volume: names have 1 to 64 letters, digits and - _ . and do not begin with a dot"
    )]
    BadName(String),
    /// There is one already.
    #[error("there is a volume \"{0}\" already")]
    Exists(String),
    /// The directory is somebody else's.
    #[error("{} holds files of others ({found}); metadata needs a directory of its own", dir.display())]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// What is in it.
        found: String,
    },
    /// Another process is making one.
    #[error("{} is in use by another process that is making a volume; try again", .0.display())]
    Busy(PathBuf),
    /// All numbers are used up.
    #[error("no more volumes can be made on this server")]
    TooMany,
    /// The directory.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// The file with the next volume's number.
    #[error("{} holds no number; it must be above that of every volume there has been", .0.display())]
    BadNumber(PathBuf),
    /// The volume itself.
    #[error("volume \"{name}\": {source}")]
    Engine {
        /// Its name.
        name: String,
        /// What is wrong.
        source: EngineError,
    },
    /// The volume's store.
    #[error("volume \"{name}\" cannot be read: {errno}")]
    Unreadable {
        /// Its name.
        name: String,
        /// What is wrong.
        errno: Errno,
    },
    /// The end.
    #[error("volume \"{name}\" could not be flushed: {errno}")]
    Unflushed {
        /// Its name.
        name: String,
        /// What is wrong.
        errno: Errno,
    },
}

impl VolumeError {
    fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> VolumeError {
        let path = path.into();
        move |source| VolumeError::Io { path, source }
    }
}

/// Whether a volume may have this name.
fn check_name(name: &str) -> Result<(), VolumeError> {
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let good = (1..=64).contains(&name.len()) && name.bytes().all(ok) && !name.starts_with('.');
    if good && !name.starts_with(NEXT_VOLUME) {
        Ok(())
    } else {
        Err(VolumeError::BadName(name.into()))
    }
}

/// The names of the volumes in a directory, in order.
///
/// # Errors
/// When it cannot be read.
pub fn list(dir: &Path) -> Result<Vec<String>, VolumeError> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(VolumeError::io(dir))?,
    };
    let mut names = BTreeSet::new();
    for entry in entries {
        let entry = entry.map_err(VolumeError::io(dir))?;
        // A volume that was being made when the server died has no FORMAT yet; it is made again by
        // whoever wants it.
        if let Ok(name) = entry.file_name().into_string()
            && check_name(&name).is_ok()
            && entry.path().join("FORMAT").exists()
        {
            names.insert(name);
        }
    }
    Ok(names.into_iter().collect())
}

/// A volume's name, and what came of opening it.
pub type Opened = (String, Result<Engine, VolumeError>);

/// Opens all volumes in a directory, and makes those in `wanted` that are not there. One that cannot be opened or made
/// does not keep the others down.
///
/// # Errors
/// When the directory cannot be read.
pub fn open_all(
    dir: &Path,
    wanted: &[String],
    encrypted: impl Fn(&str) -> bool,
    config: EngineConfig,
) -> Result<Vec<Opened>, VolumeError> {
    let present = list(dir)?;
    let missing = wanted.iter().filter(|name| !present.contains(name));
    let mut open = Vec::new();
    for name in present.iter() {
        open.push((name.clone(), open_one(dir, name, config).map(|(engine, _)| engine)));
    }
    for name in missing {
        open.push((name.clone(), create(dir, name, encrypted(name), config)));
    }
    Ok(open)
}

fn open_one(dir: &Path, name: &str, config: EngineConfig) -> Result<(Engine, bool), VolumeError> {
    let failed = |source| VolumeError::Engine { name: name.into(), source };
    let (engine, report) = Engine::open(&dir.join(name), config).map_err(failed)?;
    if report.created {
        mark_clean(&dir.join(name))?;
        // Left by one that was interrupted here, it does no harm.
        let _ = fs::remove_file(dir.join(name).join(NUMBER));
        tracing::info!(volume = name, "volume made");
    } else {
        let cut = report.cut.is_some();
        tracing::info!(volume = name, last = %report.last, replayed = report.replayed, cut, "volume opened");
    }
    Ok((engine, report.created))
}

/// Makes a volume. If it is to be encrypted, no contents of files are kept in their inodes, which are not.
///
/// # Errors
/// When there is one of this name, or it cannot be made.
pub fn create(
    dir: &Path,
    name: &str,
    encrypted: bool,
    config: EngineConfig,
) -> Result<Engine, VolumeError> {
    check_name(name)?;
    if dir.join(name).join("FORMAT").exists() {
        return Err(VolumeError::Exists(name.into()));
    }
    let numbers = format!("{NEXT_VOLUME}.lock");
    match private::claim(dir, &[NEXT_VOLUME, &numbers]).map_err(VolumeError::io(dir))? {
        Claim::Ours => {}
        Claim::Foreign(found) => return Err(VolumeError::Foreign { dir: dir.to_owned(), found }),
    }
    let number = number_for(dir, name)?;
    let mut id = [0; 8];
    getrandom::fill(&mut id).map_err(|e| VolumeError::io(dir)(e.into()))?;
    let mut settings = Settings { first_ino: (number << INODE_BITS) + 2, ..Settings::default() };
    if encrypted {
        settings.inline_limit = 0;
    }
    let new = NewVolume { id: u64::from_le_bytes(id), settings, time: now() };
    match open_one(dir, name, EngineConfig { new_volume: Some(new), ..config })? {
        (engine, true) => Ok(engine),
        // Somebody else was faster.
        (_, false) => Err(VolumeError::Exists(name.into())),
    }
}

/// Notes that a volume was left in order: nothing of its log can have been lost.
pub(super) fn mark_clean(dir: &Path) -> Result<(), VolumeError> {
    let path = dir.join(CLEAN);
    let write = || {
        let mut options = private::file_options();
        options.create(true).truncate(true).write(true).open(&path)?.sync_all()?;
        File::open(dir)?.sync_all()
    };
    write().map_err(VolumeError::io(&path))
}

/// Whether a volume was left in order, or is new. The mark is gone for good when this returns.
pub(super) fn take_clean(dir: &Path) -> Result<bool, VolumeError> {
    let path = dir.join(CLEAN);
    match fs::remove_file(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(VolumeError::io(path)(e)),
        Ok(()) => {
            File::open(dir).and_then(|dir| dir.sync_all()).map_err(VolumeError::io(dir))?;
            Ok(true)
        }
    }
}

/// Whether the machine may have failed since a volume was served last: if not, the kernel has all that was ever written to the
/// log, flushed or not.
pub(super) fn machine_failed(dir: &Path) -> Result<bool, VolumeError> {
    let path = dir.join(BOOT);
    match fs::read_to_string(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(e) => Err(VolumeError::io(&path)(e)),
        Ok(before) => Ok(before != boot_id()?),
    }
}

/// Notes the present life of the machine: nothing of an earlier one is missing any more. A note that is itself lost
/// says that the machine has failed.
pub(super) fn note_machine(dir: &Path) -> Result<(), VolumeError> {
    let path = dir.join(BOOT);
    if !machine_failed(dir)? {
        return Ok(());
    }
    let id = boot_id()?;
    let mut options = private::file_options();
    let file = options.create(true).truncate(true).write(true).open(&path);
    file.and_then(|mut file| file.write_all(id.as_bytes())).map_err(VolumeError::io(&path))
}

fn boot_id() -> Result<String, VolumeError> {
    fs::read_to_string(BOOT_ID).map_err(VolumeError::io(BOOT_ID))
}

/// The number of a volume that is to be made: the same for each attempt to make it.
fn number_for(dir: &Path, name: &str) -> Result<u64, VolumeError> {
    let _lock = lock(dir)?;
    let (home, path) = (dir.join(name), dir.join(name).join(NUMBER));
    if let Ok(text) = fs::read_to_string(&path)
        && let Ok(number) = text.trim().parse()
    {
        return Ok(number);
    }
    let number = take_number(dir)?;
    if !home.exists() {
        private::create_dir(&home).map_err(VolumeError::io(&home))?;
    }
    let entries = fs::read_dir(&home).map_err(VolumeError::io(&home))?;
    if entries.count() == 0 {
        let write = || {
            let mut options = private::file_options();
            let mut file = options.create(true).truncate(true).write(true).open(&path)?;
            writeln!(file, "{number}")?;
            file.sync_all()?;
            File::open(&home)?.sync_all()
        };
        write().map_err(VolumeError::io(&path))?;
    }
    Ok(number)
}

/// Held by who takes a number.
fn lock(dir: &Path) -> Result<File, VolumeError> {
    let path = dir.join(format!("{NEXT_VOLUME}.lock"));
    let mut options = private::file_options();
    let file = options.create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(VolumeError::io(&path))?;
    // It is held for a few writes; a server may start at the same moment.
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::Error(e)) => return Err(VolumeError::io(path)(e)),
        }
    }
    Err(VolumeError::Busy(dir.to_owned()))
}

/// The number of a new volume, which no other volume gets, whatever happens. Called under the [`lock`].
fn take_number(dir: &Path) -> Result<u64, VolumeError> {
    let (path, new) = (dir.join(NEXT_VOLUME), dir.join(format!("{NEXT_VOLUME}.new")));
    let number = match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map_err(|_| VolumeError::BadNumber(path.clone()))?,
        // Volumes without the file: it was lost, and with it which numbers have been used.
        Err(e) if e.kind() == io::ErrorKind::NotFound => match list(dir)?.is_empty() {
            true => 0,
            false => return Err(VolumeError::BadNumber(path)),
        },
        Err(e) => return Err(VolumeError::io(path)(e)),
    };
    if number >= MAX_VOLUMES {
        return Err(VolumeError::TooMany);
    }
    let write = || {
        let mut options = private::file_options();
        let mut file = options.create(true).truncate(true).write(true).open(&new)?;
        writeln!(file, "{}", number + 1)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(VolumeError::io(&path))?;
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_volumes_have_an_inode_number_in_common() {
        let dir = tempfile::tempdir().unwrap();
        let config = EngineConfig::default();
        let first = |name| {
            let engine = create(dir.path(), name, false, config).unwrap();
            engine.volume().unwrap().settings.first_ino
        };
        assert_eq!(first("a"), 2);
        assert_eq!(first("b"), (1 << 48) + 2);
        fs::remove_dir_all(dir.path().join("b")).unwrap();
        assert_eq!(first("b"), (2 << 48) + 2);
        assert_eq!(list(dir.path()).unwrap(), ["a", "b"]);
        let again = create(dir.path(), "a", false, config).err().map(|e| e.to_string());
        assert!(again.is_some_and(|e| e.contains("already")));
        fs::remove_file(dir.path().join(NEXT_VOLUME)).unwrap();
        assert!(matches!(create(dir.path(), "c", false, config), Err(VolumeError::BadNumber(_))));
    }

    #[test]
    fn an_interrupted_attempt_to_make_a_volume_is_taken_up_again() {
        let dir = tempfile::tempdir().unwrap();
        let config = EngineConfig::default();
        // The disk is too full for it.
        let full = EngineConfig { reserve_bytes: u64::MAX, ..config };
        let refused =
            open_all(dir.path(), &["v".into()], |_| false, full).unwrap().pop().unwrap().1;
        assert!(refused.err().is_some_and(|e| e.to_string().contains("cannot be made")));
        assert_eq!(list(dir.path()).unwrap(), Vec::<String>::new());
        let engine = create(dir.path(), "v", false, config).unwrap();
        assert_eq!(engine.volume().unwrap().settings.first_ino, 2, "no number is lost");
        drop(engine);
        let again = open_all(dir.path(), &["v".into()], |_| false, config).unwrap();
        assert!(again.len() == 1 && again[0].1.is_ok());
        drop(again);
        // One that is damaged does not keep the others down.
        fs::write(dir.path().join("v/FORMAT"), "not what was here").unwrap();
        let both = open_all(dir.path(), &["w".into()], |_| false, config).unwrap();
        let (v, w) = (&both[0], &both[1]);
        assert!(v.0 == "v" && v.1.is_err() && w.0 == "w" && w.1.is_ok());
    }

    #[test]
    fn two_who_make_volumes_at_once_get_different_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: String| {
            let dir = dir.path();
            move || number_for(dir, &name).unwrap()
        };
        let mut all: Vec<u64> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..16).map(|n| scope.spawn(make(format!("volume-{n}")))).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        all.sort_unstable();
        assert_eq!(all, (0..16).collect::<Vec<_>>());
    }

    #[test]
    fn names_that_are_no_single_folder_are_refused() {
        for name in ["", ".", "..", "a/b", "../x", ".hidden", "ä", "NEXT_VOLUME", &"x".repeat(65)]
        {
            assert!(matches!(check_name(name), Err(VolumeError::BadName(_))), "{name}");
        }
        assert!(check_name("Volume_1.2-3").is_ok());
    }
}
