//! Whether a directory can be mounted on.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::error::CliError;
use crate::fuse::mountinfo;
use crate::fuse::{Unmount, unmount};

/// How long a mount may take to show that it lives.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);

/// Whether the daemon of a mount is gone. A mount that only takes long is not dead.
pub(super) fn is_dead(target: &Path) -> bool {
    let (tx, rx) = mpsc::channel();
    let path = target.to_path_buf();
    // A thread, because nothing else ends a wait for a mount. A listing, because the kernel may
    // know the attributes.
    let asked = thread::Builder::new().name("netfs-probe".into()).spawn(move || {
        let gone =
            |e: io::Error| matches!(e.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED));
        // Nobody listens when it took too long.
        let _ = tx.send(fs::read_dir(path).is_err_and(gone));
    });
    asked.is_ok() && rx.recv_timeout(SIGN_OF_LIFE).unwrap_or(false)
}

/// Checks a mount point and returns it as an absolute path without symbolic links.
///
/// A dead mount of netfs that is in the way is cleaned up: nothing can be lost with it.
pub(super) fn check(path: &Path) -> Result<PathBuf, CliError> {
    let failed = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => CliError::NoMountPoint(path.to_path_buf()),
        io::ErrorKind::NotADirectory => CliError::NotADirectory(path.to_path_buf()),
        _ => CliError::MountPoint(path.to_path_buf(), e),
    };
    let target = mountinfo::resolve(path).map_err(failed)?;
    // From the table first: to ask a mount that hangs would hang.
    if let Some(m) = mountinfo::at(&target).map_err(CliError::system("/proc/self/mountinfo"))? {
        let dead = m.is_fuse() && is_dead(&target);
        if !dead {
            return Err(CliError::AlreadyMounted { target, source_: m.source });
        }
        let ours = m.kind == "fuse.netfs" && unmount(&target, Unmount::Lazy).is_ok();
        if !ours || mountinfo::at(&target).is_ok_and(|m| m.is_some()) {
            return Err(CliError::Corpse(target));
        }
        complain!("netfs: cleaned up the dead mount of {} on {}", m.source, target.display());
    }
    if !fs::metadata(&target).map_err(failed)?.is_dir() {
        return Err(CliError::NotADirectory(target));
    }
    if fs::read_dir(&target).map_err(failed)?.next().is_some() {
        return Err(CliError::NotEmpty(target));
    }
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_directory_will_do() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(check(dir.path()).unwrap(), dir.path().canonicalize().unwrap());
    }

    #[test]
    fn what_is_wrong_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(check(&dir.path().join("no")), Err(CliError::NoMountPoint(_))));
        assert!(matches!(check(&dir.path().join("no/such")), Err(CliError::NoMountPoint(_))));
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(check(&file), Err(CliError::NotADirectory(_))));
        assert!(matches!(check(&file.join("x")), Err(CliError::NotADirectory(_))));
        assert!(matches!(check(dir.path()), Err(CliError::NotEmpty(_))));
        assert!(matches!(check(Path::new("/proc")), Err(CliError::AlreadyMounted { .. })));
    }
}
