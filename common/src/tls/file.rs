//! Files of certificates and keys: written whole or not at all, read with their permissions checked.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::TlsError;

/// No certificate or key file is longer; a longer one was named by mistake.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Who may read a file that is written.
#[derive(Clone, Copy)]
pub(super) enum Access {
    /// Certificates.
    Everybody,
    /// Private keys.
    Owner,
}

/// Makes a directory, and its parents, that only its owner can enter. One that exists is left as it is.
pub(super) fn make_dir(path: &Path) -> Result<(), TlsError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| TlsError::Write { path: path.into(), source })
}

/// Refuses if any of the files exists.
pub(super) fn refuse_existing(paths: &[&Path]) -> Result<(), TlsError> {
    for path in paths {
        match fs::symlink_metadata(path) {
            Ok(_) => return Err(TlsError::Exists { path: (*path).into() }),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(source) => return Err(TlsError::Read { path: (*path).into(), source }),
        }
    }
    Ok(())
}

/// Writes a file so that it is never seen half-written, also after a crash.
pub(super) fn write(
    path: &Path,
    content: &str,
    access: Access,
    overwrite: bool,
) -> Result<(), TlsError> {
    let fail = |source| TlsError::Write { path: path.into(), source };
    let temporary = temporary_name(path);
    let result = (|| {
        let mode = match access {
            Access::Everybody => 0o644,
            Access::Owner => 0o600,
        };
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        if overwrite {
            fs::rename(&temporary, path)
        } else {
            // A link, unlike a rename, fails if the name was taken in the meantime.
            fs::hard_link(&temporary, path)
        }
    })();
    if !overwrite || result.is_err() {
        match fs::remove_file(&temporary) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(fail(result.err().unwrap_or(e))),
        }
    }
    match result {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            return Err(TlsError::Exists { path: path.into() });
        }
        Err(e) => return Err(fail(e)),
    }
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(fail)
}

fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    path.with_file_name(name)
}

/// Reads a file whole.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let fail = |source| TlsError::Read { path: path.into(), source };
    let size = fs::metadata(path).map_err(fail)?.len();
    if size > MAX_FILE_BYTES {
        return Err(fail(ErrorKind::FileTooLarge.into()));
    }
    fs::read(path).map_err(fail)
}

/// Reads a private key, and refuses one that others than its owner could have read.
pub(super) fn read_key(path: &Path) -> Result<Vec<u8>, TlsError> {
    let metadata =
        fs::metadata(path).map_err(|source| TlsError::Read { path: path.into(), source })?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(TlsError::OpenKey { path: path.into(), mode });
    }
    read(path)
}
