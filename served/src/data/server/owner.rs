//! Whose data is in the directory.
//!
//! A certificate says which installation a server belongs to, but not that the metadata is that to which the chunks here belong: the directory
//! may be of before the metadata was made anew, or of another cluster with the same certificates. Inodes have the same numbers
//! there, and chunks of one would be taken for those of the other. So metadata has an identity, drawn when it begins, and the first that is heard
//! here is noted beside the segments. Any other is told whose the data is, and nothing that it says is done.
//!
//! The file `owner`: `NETFSOW1`, the identity, and a CRC-32 of that.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use netfs_common::id::ClusterId;

use super::replicas::lock;
use crate::private;

/// The file's name in the store's directory.
const FILE: &str = "owner";
/// The magic at its begin, with the version of its form.
const MAGIC: [u8; 8] = *b"NETFSOW1";

/// Whose data is in a directory, if anybody's.
///
/// # Errors
/// As of [`Owner::open`].
pub(crate) fn owner_of(dir: &Path) -> io::Result<Option<[u8; 16]>> {
    Owner::open(dir).map(|owner| owner.known())
}

/// Makes somebody the owner of a directory.
#[cfg(test)]
pub(crate) fn own(dir: &Path, identity: [u8; 16]) -> io::Result<bool> {
    Owner::open(dir)?.admits(identity)
}

/// The owner of the data.
#[derive(Debug)]
pub(super) struct Owner {
    dir: PathBuf,
    known: Mutex<Option<[u8; 16]>>,
}

impl Owner {
    /// Reads who it is, if anybody.
    ///
    /// # Errors
    /// When the file cannot be read, or is damaged.
    pub(super) fn open(dir: &Path) -> io::Result<Owner> {
        let known = match fs::read(Owner::file(dir)) {
            Ok(bytes) => Some(decode(&bytes).ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    "it is damaged; it may be removed if this is the directory's cluster: the metadata server tells its contents again",
                )
            })?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Owner { dir: dir.to_owned(), known: Mutex::new(known) })
    }

    /// Where it is noted.
    pub(super) fn file(dir: &Path) -> PathBuf {
        dir.join(FILE)
    }

    /// Who it is.
    pub(super) fn known(&self) -> Option<[u8; 16]> {
        *lock(&self.known)
    }

    /// Whether metadata of this identity owns the data. It does from now on if nobody did.
    ///
    /// # Errors
    /// When it cannot be noted.
    pub(super) fn admits(&self, identity: [u8; 16]) -> io::Result<bool> {
        let mut known = lock(&self.known);
        if let Some(known) = *known {
            return Ok(known == identity);
        }
        let new = self.dir.join(format!("{FILE}.tmp"));
        let mut file =
            private::file_options().create(true).truncate(true).write(true).open(&new)?;
        file.write_all(&MAGIC)?;
        file.write_all(&identity)?;
        file.write_all(&crc32fast::hash(&identity).to_le_bytes())?;
        file.sync_all()?;
        fs::rename(&new, Owner::file(&self.dir))?;
        File::open(&self.dir)?.sync_all()?;
        tracing::info!(owner = %ClusterId(identity), "the data directory belongs to this metadata from now on");
        *known = Some(identity);
        Ok(true)
    }
}

fn decode(bytes: &[u8]) -> Option<[u8; 16]> {
    let (magic, rest) = bytes.split_first_chunk::<8>()?;
    let (identity, sum) = rest.split_first_chunk::<16>()?;
    (*magic == MAGIC && *sum == crc32fast::hash(identity).to_le_bytes()).then_some(*identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_metadata_that_is_heard_owns_the_data() {
        let dir = tempfile::tempdir().unwrap();
        let owner = Owner::open(dir.path()).unwrap();
        assert_eq!(owner.known(), None);
        assert!(owner.admits([7; 16]).unwrap());
        assert!(owner.admits([7; 16]).unwrap() && !owner.admits([8; 16]).unwrap());
        let again = Owner::open(dir.path()).unwrap();
        assert_eq!(again.known(), Some([7; 16]));
        assert!(!again.admits([8; 16]).unwrap() && again.admits([7; 16]).unwrap());
        let path = Owner::file(dir.path());
        let bytes = fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 4;
            fs::write(&path, &bad).unwrap();
            assert!(Owner::open(dir.path()).is_err(), "byte {at}");
            fs::write(&path, &bytes[..at]).unwrap();
            assert!(Owner::open(dir.path()).is_err(), "cut at {at}");
        }
    }
}
