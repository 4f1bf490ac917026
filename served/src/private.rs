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

/// The directory of a server, by whose `marks` it is known: made if it is not there, closed to others if it is
/// the server's or empty. Otherwise it is left as it is.
///
/// # Errors
/// As [`create_dir`].
pub(crate) fn claim(path: &Path, marks: &[&str]) -> io::Result<Claim> {
    if path.is_dir() && !marks.iter().any(|mark| path.join(mark).exists()) {
        for entry in fs::read_dir(path)? {
            let name = entry?.file_name();
            if name != "lost+found" {
                return Ok(Claim::Foreign(name.to_string_lossy().into_owned()));
            }
        }
    }
    create_dir(path).map(|()| Claim::Ours)
}

/// Whose a directory is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// The server's.
    Ours,
    /// Somebody else's, who has this in it.
    Foreign(String),
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
    fn what_belongs_to_others_is_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let theirs = dir.path().join("theirs");
        fs::create_dir(&theirs).unwrap();
        fs::set_permissions(&theirs, Permissions::from_mode(0o755)).unwrap();
        assert_eq!(claim(&theirs, &["mark"]).unwrap(), Claim::Ours, "nobody has anything there");
        fs::set_permissions(&theirs, Permissions::from_mode(0o755)).unwrap();
        fs::write(theirs.join("readme"), "").unwrap();
        fs::set_permissions(theirs.join("readme"), Permissions::from_mode(0o644)).unwrap();
        assert_eq!(claim(&theirs, &["mark"]).unwrap(), Claim::Foreign("readme".into()));
        assert_eq!((mode(&theirs), mode(&theirs.join("readme"))), (0o755, 0o644));
        fs::write(theirs.join("mark"), "").unwrap();
        assert_eq!(claim(&theirs, &["other", "mark"]).unwrap(), Claim::Ours);
        assert_eq!((mode(&theirs), mode(&theirs.join("readme"))), (0o700, 0o600));
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
