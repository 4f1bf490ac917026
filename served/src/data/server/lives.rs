//! Which lives of the server the directory has seen.
//!
//! The chains of the map say in which life a server was a replica, and so which life had everything that was acknowledged. A directory that does not
//! know that life is older than it: somebody has put back a copy, or the disk has fallen back to an earlier state, in itself whole. Nothing in the store
//! tells, and as the first of its group to return it would pass for one that has everything. So each life is noted here before anybody
//! is told of it. A copy that was made in the last life itself is not told from the real directory.
//!
//! The file `lives`: `NETFSLV1`, the lives in the order in which they began, and a CRC-32 of these. One that is not there, because the directory is new or from before
//! there was such a file, or that is damaged, is made anew, and what the first map says is believed then. Without room for it the server goes on, and
//! tries again with every map; if it ends before, its own directory passes for an older copy, which costs time and no data.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use netfs_common::id::InstanceId;
use netfs_common::warn_rarely;

use crate::private;

/// The file's name in the store's directory.
const FILE: &str = "lives";
/// The magic at its begin, with the version of its form.
const MAGIC: [u8; 8] = *b"NETFSLV1";
/// Earlier ones are forgotten: no chain counts on a server for so many of its starts without its having learnt anything since.
const MAX_LIVES: usize = 4096;
/// The same trouble is logged this often.
const WARN_INTERVAL: Duration = Duration::from_secs(10);

/// What the file says, with this life.
#[derive(Debug)]
pub(super) struct Lives {
    dir: PathBuf,
    all: Vec<InstanceId>,
    /// It is known which there were before this one.
    is_known: bool,
    /// The file says all this.
    is_noted: bool,
}

impl Lives {
    /// A life begins. It is noted at once if it is known which there were before; otherwise with these, when the map names some: a file that
    /// named this life alone would deny all others.
    pub(super) fn begin(dir: &Path, life: InstanceId) -> Lives {
        let path = Lives::file(dir);
        let found = match fs::read(&path) {
            Ok(bytes) => decode(&bytes).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData)),
            Err(error) => Err(error),
        };
        if let Err(error) = &found
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "the list of the lives of this server is damaged; it begins anew");
        }
        let is_known = found.is_ok();
        let mut all = found.unwrap_or_default();
        all.push(life);
        let mut lives = Lives { dir: dir.to_owned(), all, is_known, is_noted: false };
        if is_known {
            lives.add(&[]);
        }
        lives
    }

    /// Where they stand.
    pub(super) fn file(dir: &Path) -> PathBuf {
        dir.join(FILE)
    }

    /// Whether the directory has seen all of these lives. If it is not known which it has seen, it is believed to have.
    pub(super) fn has_seen(&mut self, lives: &[InstanceId]) -> bool {
        if lives.is_empty() {
            return true;
        }
        if !self.is_known {
            self.is_known = true;
            self.add(lives);
        } else if !self.is_noted {
            self.note();
        }
        lives.iter().all(|life| self.all.contains(life))
    }

    fn add(&mut self, lives: &[InstanceId]) {
        let new: Vec<_> = lives.iter().filter(|life| !self.all.contains(life)).copied().collect();
        self.all.extend(new);
        self.all.drain(..self.all.len().saturating_sub(MAX_LIVES));
        self.note();
    }

    fn note(&mut self) {
        let written = self.write();
        self.is_noted = written.is_ok();
        if let Err(error) = written {
            warn_rarely!(WARN_INTERVAL, path = %Lives::file(&self.dir).display(), %error, "the lives of this server cannot be noted");
        }
    }

    fn write(&self) -> io::Result<()> {
        let body: Vec<u8> = self.all.iter().flat_map(|life| life.0.to_le_bytes()).collect();
        let new = self.dir.join(format!("{FILE}.tmp"));
        let mut file =
            private::file_options().create(true).truncate(true).write(true).open(&new)?;
        file.write_all(&MAGIC)?;
        file.write_all(&body)?;
        file.write_all(&crc32fast::hash(&body).to_le_bytes())?;
        file.sync_all()?;
        fs::rename(&new, Lives::file(&self.dir))?;
        File::open(&self.dir)?.sync_all()
    }
}

fn decode(bytes: &[u8]) -> Option<Vec<InstanceId>> {
    let (body, crc) = bytes.strip_prefix(&MAGIC)?.split_last_chunk::<4>()?;
    let (lives, []) = body.as_chunks::<8>() else { return None };
    let sound = crc32fast::hash(body) == u32::from_le_bytes(*crc) && lives.len() <= MAX_LIVES;
    sound.then(|| lives.iter().map(|life| InstanceId(u64::from_le_bytes(*life))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(dir: &Path, life: u64) -> Lives {
        Lives::begin(dir, InstanceId(life))
    }

    fn has_seen(lives: &mut Lives, these: &[u64]) -> bool {
        let these: Vec<_> = these.iter().map(|life| InstanceId(*life)).collect();
        lives.has_seen(&these)
    }

    #[test]
    fn a_directory_knows_its_lives_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        // From before there was such a list: what the first map says is believed, and only that.
        let mut first = begun(dir.path(), 7);
        assert!(has_seen(&mut first, &[3, 7]));
        assert!(!has_seen(&mut first, &[4]));
        let mut second = begun(dir.path(), 8);
        assert!(has_seen(&mut second, &[3, 7, 8]));
        assert!(!has_seen(&mut second, &[8, 9]), "nothing is believed any more");
        // Put back as it was before the second life.
        let copy = tempfile::tempdir().unwrap();
        assert!(has_seen(&mut begun(copy.path(), 7), &[7]));
        assert!(!has_seen(&mut begun(copy.path(), 10), &[8]));
    }

    #[test]
    fn a_life_that_ends_before_the_first_map_denies_no_earlier_one() {
        let dir = tempfile::tempdir().unwrap();
        begun(dir.path(), 7);
        let mut second = begun(dir.path(), 8);
        // Nothing is counted on yet, or the server is taken for another one.
        assert!(has_seen(&mut second, &[]));
        assert!(has_seen(&mut second, &[3]), "it is from before there was such a list");
        assert!(has_seen(&mut begun(dir.path(), 9), &[3, 8]));
    }

    #[test]
    fn what_could_not_be_noted_is_noted_later() {
        let dir = tempfile::tempdir().unwrap();
        let blocked = dir.path().join(format!("{FILE}.tmp"));
        fs::create_dir(&blocked).unwrap();
        let mut lives = begun(dir.path(), 7);
        assert!(has_seen(&mut lives, &[3, 7]));
        assert!(!Lives::file(dir.path()).exists());
        fs::remove_dir(&blocked).unwrap();
        assert!(!has_seen(&mut lives, &[4]), "and with this it is noted");
        assert!(has_seen(&mut begun(dir.path(), 8), &[3, 7, 8]));
    }

    #[test]
    fn a_damaged_list_begins_anew_and_a_long_one_forgets_its_beginning() {
        let dir = tempfile::tempdir().unwrap();
        assert!(has_seen(&mut begun(dir.path(), 7), &[7]));
        let mut bytes = fs::read(Lives::file(dir.path())).unwrap();
        for damaged in [&bytes[..bytes.len() - 1], &bytes[..4], b""] {
            assert_eq!(decode(damaged), None);
        }
        bytes[9] ^= 1;
        fs::write(Lives::file(dir.path()), &bytes).unwrap();
        let mut lives = begun(dir.path(), 8);
        assert!(has_seen(&mut lives, &[5]));
        let many: Vec<_> = (100..100 + MAX_LIVES as u64).map(InstanceId).collect();
        lives.add(&many);
        assert!(!has_seen(&mut lives, &[8]) && has_seen(&mut lives, &[100]));
        assert!(has_seen(&mut begun(dir.path(), 1), &[101, 1]));
    }
}
