//! State that nobody but its owner may look into: it holds what is in everybody's files.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// What group and others may do, of a mode.
const OTHERS: u32 = 0o077;

/// Makes a directory for its owner alone. One that is there is closed to others, with the files in it.
///
/// # Errors
/// As the system says; also when one that is open to others belongs to somebody else.
pub(crate) fn create_dir(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        Err(error) => return Err(error),
    }
    close_to_others(path, &fs::metadata(path)?)?;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let known = match entry.metadata() {
            // Removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        if known.is_file() {
            close_to_others(&entry.path(), &known)?;
        }
    }
    Ok(())
}

fn close_to_others(path: &Path, known: &fs::Metadata) -> io::Result<()> {
    match known.permissions().mode() {
        open if open & OTHERS != 0 => {
            fs::set_permissions(path, Permissions::from_mode(open & 0o7777 & !OTHERS))
        }
        _ => Ok(()),
    }
}

/// For files in such a directory: a file that is made is for its owner alone.
pub(crate) fn file_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn what_is_made_and_what_was_there_is_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (new, old) = (dir.path().join("a/new"), dir.path().join("old"));
        create_dir(&new).unwrap();
        assert_eq!(mode(&new), 0o700);
        file_options().write(true).create(true).truncate(true).open(new.join("f")).unwrap();
        assert_eq!(mode(&new.join("f")), 0o600);

        fs::create_dir(&old).unwrap();
        fs::set_permissions(&old, Permissions::from_mode(0o755)).unwrap();
        fs::write(old.join("f"), "secret").unwrap();
        fs::set_permissions(old.join("f"), Permissions::from_mode(0o644)).unwrap();
        create_dir(&old).unwrap();
        assert_eq!((mode(&old), mode(&old.join("f"))), (0o700, 0o600));
        assert!(create_dir(&old.join("f")).is_err());
    }
}
