//! Which version of the cluster map the directory has followed.
//!
//! A metadata server whose directory was brought back from an older copy has an older map. By it, a server that had nothing left of a group may be one of
//! its replicas, and those that have it all may be strangers, who are told to remove it. A data server that goes on takes no older map; one that
//! is started anew has to go by what there is, but it can tell, and then sweeps nothing.
//!
//! The file `followed`: `NETFSFV1`, the version, and a CRC-32 of it. It is written some seconds late and not flushed: what has to be told apart lies hours
//! back. One that is not there, or damaged, says nothing.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use netfs_common::id::Epoch;
use netfs_common::warn_rarely;

use crate::private;

/// The file's name in the store's directory.
const FILE: &str = "followed";
/// The magic at its begin, with the version of its form.
const MAGIC: [u8; 8] = *b"NETFSFV1";
/// It is not written more often.
const PACE: Duration = Duration::from_secs(5);
/// The same trouble is logged this often.
const WARN_INTERVAL: Duration = Duration::from_secs(10);

/// What the file says, and what it is to say.
#[derive(Debug)]
pub(super) struct Followed {
    dir: PathBuf,
    noted: Epoch,
    version: Epoch,
    tried: Option<Instant>,
}

impl Followed {
    /// What earlier lives have followed.
    pub(super) fn open(dir: &Path) -> Followed {
        let found = fs::read(dir.join(FILE)).map(|bytes| decode(&bytes));
        if let Ok(None) = found {
            tracing::warn!(path = %dir.join(FILE).display(), "the version of the last cluster map cannot be read");
        }
        let noted = found.ok().flatten().unwrap_or_default();
        Followed { dir: dir.to_owned(), noted, version: noted, tried: None }
    }

    /// The highest version that was followed.
    pub(super) fn version(&self) -> Epoch {
        self.version
    }

    /// From now on this one is followed, though it may be lower.
    pub(super) fn follow(&mut self, version: Epoch) {
        self.version = version;
    }

    /// Notes it, if it is time to. To be called again and again.
    pub(super) fn note(&mut self) {
        let due = self.tried.is_none_or(|tried| tried.elapsed() >= PACE);
        if self.noted == self.version || !due {
            return;
        }
        self.tried = Some(Instant::now());
        match self.write() {
            Ok(()) => self.noted = self.version,
            Err(error) => {
                warn_rarely!(WARN_INTERVAL, dir = %self.dir.display(), %error, "the version of the cluster map cannot be noted");
            }
        }
    }

    fn write(&self) -> io::Result<()> {
        let new = self.dir.join(format!("{FILE}.tmp"));
        let mut file =
            private::file_options().create(true).truncate(true).write(true).open(&new)?;
        let body = self.version.0.to_le_bytes();
        file.write_all(&[&MAGIC[..], &body, &crc32fast::hash(&body).to_le_bytes()].concat())?;
        fs::rename(&new, self.dir.join(FILE))
    }
}

fn decode(bytes: &[u8]) -> Option<Epoch> {
    let (body, crc) = bytes.strip_prefix(&MAGIC)?.split_last_chunk::<4>()?;
    let version = u64::from_le_bytes(body.try_into().ok()?);
    (crc32fast::hash(body) == u32::from_le_bytes(*crc)).then_some(Epoch(version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_followed_is_known_to_the_next_life_unless_the_file_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = Followed::open(dir.path());
        assert_eq!(first.version(), Epoch(0));
        first.follow(Epoch(7));
        first.note();
        // Too soon for another.
        first.follow(Epoch(9));
        first.note();
        let mut second = Followed::open(dir.path());
        assert_eq!(second.version(), Epoch(7));
        second.follow(Epoch(3));
        second.note();
        assert_eq!(Followed::open(dir.path()).version(), Epoch(3));
        let path = dir.path().join(FILE);
        let sound = fs::read(&path).unwrap();
        for at in 0..sound.len() {
            let mut bad = sound.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            assert_eq!(Followed::open(dir.path()).version(), Epoch(0), "byte {at}");
            fs::write(&path, &sound[..at]).unwrap();
            assert_eq!(Followed::open(dir.path()).version(), Epoch(0), "{at} bytes");
        }
    }
}
