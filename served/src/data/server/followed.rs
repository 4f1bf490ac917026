//! The latest cluster map that was followed with the directory.
//!
//! A metadata server whose directory was brought back from an older copy has an older map. By it, a server that had nothing left of a group may be one of
//! its replicas, and those that have it all may be strangers, who learn from it or are told to remove what they have. So no data server goes by
//! an older map than was followed before with its directory, in whichever life: it shows nothing, takes nothing and teaches nobody, until the metadata
//! server has taken over the later map, which it can have from here (`meta/cluster/manager/outdated.rs`).
//!
//! The file `followed`: `NETFSFV2`, a CRC-32 of what follows, and the map. It is written some seconds late and not flushed: what has to be told apart lies
//! hours back, and an orderly end writes it once more. One that is not there, or damaged, says nothing. In its first form, `NETFSFV1`, it says the version only.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use netfs_common::codec;
use netfs_common::id::Epoch;
use netfs_common::map::ClusterMap;
use netfs_common::warn_rarely;

use crate::private;

/// The file's name in the store's directory.
const FILE: &str = "followed";
/// The magic at its begin, with the version of its form.
const MAGIC: [u8; 8] = *b"NETFSFV2";
/// The magic of its first form.
const MAGIC_1: [u8; 8] = *b"NETFSFV1";
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
    /// As it is sent. An earlier program has noted the version only.
    map: Option<Bytes>,
    tried: Option<Instant>,
}

impl Followed {
    /// What earlier lives have followed.
    pub(super) fn open(dir: &Path) -> Followed {
        let found = fs::read(dir.join(FILE)).map(|bytes| decode(&bytes));
        if let Ok(None) = found {
            tracing::warn!(path = %dir.join(FILE).display(), "the last cluster map cannot be read");
        }
        let (noted, map) = found.ok().flatten().unwrap_or_default();
        Followed { dir: dir.to_owned(), noted, version: noted, map, tried: None }
    }

    /// The highest version that was followed.
    pub(super) fn version(&self) -> Epoch {
        self.version
    }

    /// That version and its map, if that is known.
    pub(super) fn map(&self) -> Option<(Epoch, Bytes)> {
        Some((self.version, self.map.clone()?))
    }

    /// From now on this one is followed, unless it is older.
    pub(super) fn follow(&mut self, map: &ClusterMap) {
        if map.version < self.version {
            return;
        }
        match codec::encode(map) {
            Ok(bytes) => (self.version, self.map) = (map.version, Some(bytes.into())),
            // It has come in a message, so it fits.
            Err(error) => tracing::error!(%error, "the cluster map cannot be noted"),
        }
    }

    /// Notes it, if it is time to. To be called again and again.
    pub(super) fn note(&mut self) {
        if self.tried.is_none_or(|tried| tried.elapsed() >= PACE) {
            self.note_now();
        }
    }

    /// Notes it.
    pub(super) fn note_now(&mut self) {
        let Some(map) = self.map.clone().filter(|_| self.noted != self.version) else { return };
        self.tried = Some(Instant::now());
        match self.write(&map) {
            Ok(()) => self.noted = self.version,
            Err(error) => {
                warn_rarely!(WARN_INTERVAL, dir = %self.dir.display(), %error, "the cluster map cannot be noted");
            }
        }
    }

    fn write(&self, map: &[u8]) -> io::Result<()> {
        let new = self.dir.join(format!("{FILE}.tmp"));
        let mut file =
            private::file_options().create(true).truncate(true).write(true).open(&new)?;
        file.write_all(&MAGIC)?;
        file.write_all(&crc32fast::hash(map).to_le_bytes())?;
        file.write_all(map)?;
        fs::rename(&new, self.dir.join(FILE))
    }
}

fn decode(bytes: &[u8]) -> Option<(Epoch, Option<Bytes>)> {
    let (magic, rest) = bytes.split_first_chunk::<8>()?;
    if *magic == MAGIC_1 {
        let (body, crc) = rest.split_last_chunk::<4>()?;
        let version = u64::from_le_bytes(body.try_into().ok()?);
        let sound = crc32fast::hash(body) == u32::from_le_bytes(*crc);
        return sound.then_some((Epoch(version), None));
    }
    let (crc, body) = rest.split_first_chunk::<4>()?;
    if *magic != MAGIC || crc32fast::hash(body) != u32::from_le_bytes(*crc) {
        return None;
    }
    let map: ClusterMap = codec::decode(body).ok()?;
    Some((map.version, Some(Bytes::copy_from_slice(body))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(version: u64) -> ClusterMap {
        ClusterMap { version: Epoch(version), servers: Vec::new(), pools: Vec::new() }
    }

    #[test]
    fn what_was_followed_is_known_to_the_next_life_unless_the_file_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = Followed::open(dir.path());
        assert_eq!((first.version(), first.map()), (Epoch(0), None));
        first.follow(&map(7));
        first.note();
        // Too soon for another.
        first.follow(&map(9));
        first.note();
        let mut second = Followed::open(dir.path());
        assert_eq!(second.version(), Epoch(7));
        second.follow(&map(3));
        assert_eq!(second.version(), Epoch(7), "it never goes back");
        second.follow(&map(8));
        second.note();
        second.follow(&map(9));
        second.note_now();
        let third = Followed::open(dir.path());
        let (version, bytes) = third.map().unwrap();
        assert_eq!((version, codec::decode(&bytes).ok()), (Epoch(9), Some(map(9))));
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

    #[test]
    fn what_an_earlier_program_has_noted_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let body = 5u64.to_le_bytes();
        let old = [&MAGIC_1[..], &body, &crc32fast::hash(&body).to_le_bytes()].concat();
        fs::write(dir.path().join(FILE), old).unwrap();
        let mut found = Followed::open(dir.path());
        assert_eq!((found.version(), found.map()), (Epoch(5), None));
        found.follow(&map(5));
        assert!(found.map().is_some());
    }
}
