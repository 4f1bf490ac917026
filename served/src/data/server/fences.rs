//! The block list: sessions that are over, although their clients may not know it yet.
//!
//! The metadata server ends the session of a client that is silent, and gives to others what that had. What the client
//! has sent may still be on its way here, and it goes on sending when it wakes. So the session is put on this list
//! before anybody else gets anything. It does not depend on the metadata server from then on: the list is a file beside the
//! segments, written anew as a whole and flushed before the call is answered.
//!
//! Identifiers are drawn at random and never used again, so an entry may stay for ever; it leaves the list when
//! [`MAX_FENCED`] later ones have come. A client that sleeps through all of these is not kept out here.
//!
//! # A list that is damaged
//!
//! It is set aside, as `fenced.damaged`, and the list begins anew. That is safe because it can only be found damaged at the start of a
//! new life of the server. All sessions on the list were ended before that. Their clients know maps of then at the latest: the metadata
//! server closes their connections with the end of the session, tells an ended session no map, and lets none of them take it up again;
//! and under its next session a client never sends what was made up in the one before. This life of the server has no place in any chain of such
//! a map, only in later epochs, because a chain names the life of each replica. And every call of a client that does or shows anything names an epoch, or the
//! version of the map, and is refused if it is not that of now. Sessions that end from now on are fenced here as ever, also those
//! whose fence was under way: the metadata server repeats it until it is answered.
//!
//! What the list is kept in a file for all the same: a second line of defence that does not depend on what clients are told.
//!
//! The file: `NFSFENCE`, the version 1, the number of sessions, the sessions with the latest first, and a CRC-32 of all that;
//! numbers are little-endian, of 4 and, the sessions, 8 bytes. Another layout gets another version.

use std::collections::{HashSet, VecDeque};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use netfs_common::id::SessionId;

use crate::private;

/// The most sessions on the list.
const MAX_FENCED: usize = 4096;
const FILE: &str = "fenced";
const NEW_FILE: &str = "fenced.new";
/// Where a list that is damaged is put.
const DAMAGED_FILE: &str = "fenced.damaged";
const MAGIC: &[u8; 8] = b"NFSFENCE";
const VERSION: u32 = 1;
const HEADER: usize = 16;

/// The block list of a data server.
#[derive(Debug)]
pub(super) struct Fences {
    dir: PathBuf,
    list: Mutex<List>,
    /// Held while the file is written; before `list`.
    writing: Mutex<()>,
}

#[derive(Debug, Default)]
struct List {
    /// The latest first.
    order: VecDeque<SessionId>,
    all: HashSet<SessionId>,
    /// The file has all of it.
    stored: bool,
}

impl List {
    fn add(&mut self, session: SessionId) {
        if self.all.insert(session) {
            self.order.push_front(session);
            self.stored = false;
        }
        while self.order.len() > MAX_FENCED
            && let Some(old) = self.order.pop_back()
        {
            self.all.remove(&old);
        }
    }
}

impl Fences {
    /// The list in the store's directory; an empty one if there is none, or if it is damaged: then also what is wrong with it.
    /// See the [module](self) for why that is safe.
    ///
    /// # Errors
    /// When it cannot be read or set aside, or a later version of the program has made it.
    pub(super) fn open(dir: &Path) -> io::Result<(Fences, Option<&'static str>)> {
        let (mut list, mut damage) = (List::default(), None);
        match fs::read(dir.join(FILE)) {
            Ok(bytes) => match decode(&bytes) {
                Ok(known) => list = known,
                Err(Unreadable::Newer) => {
                    let what = "a later version of this program has made it";
                    return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                }
                Err(Unreadable::Damaged(what)) => {
                    fs::rename(dir.join(FILE), dir.join(DAMAGED_FILE))?;
                    File::open(dir)?.sync_all()?;
                    damage = Some(what);
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        list.stored = true;
        let fences =
            Fences { dir: dir.to_owned(), list: Mutex::new(list), writing: Mutex::new(()) };
        Ok((fences, damage))
    }

    /// Where a damaged list is.
    pub(super) fn file_of_damage(dir: &Path) -> PathBuf {
        dir.join(DAMAGED_FILE)
    }

    /// Where the list is.
    pub(super) fn file(dir: &Path) -> PathBuf {
        dir.join(FILE)
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a session is on the list.
    pub(super) fn contains(&self, session: SessionId) -> bool {
        self.list().all.contains(&session)
    }

    /// Puts a session on the list. It counts at once, and is on stable storage when this returns. May wait for the disk.
    ///
    /// # Errors
    /// When the list cannot be stored; it counts until the server ends, and is to be added again.
    pub(super) fn add(&self, session: SessionId) -> io::Result<()> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = {
            let mut list = self.list();
            list.add(session);
            if list.stored {
                return Ok(());
            }
            encode(&list)
        };
        let new = self.dir.join(NEW_FILE);
        let mut file =
            private::file_options().write(true).create(true).truncate(true).open(&new)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&new, self.dir.join(FILE))?;
        File::open(&self.dir)?.sync_all()?;
        // Nobody has added to it meanwhile.
        self.list().stored = true;
        Ok(())
    }
}

fn encode(list: &List) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + list.order.len() * 8 + 4);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    let count = u32::try_from(list.order.len()).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&count.to_le_bytes());
    for session in &list.order {
        bytes.extend_from_slice(&session.0.to_le_bytes());
    }
    let sum = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes
}

/// Why bytes are no list.
#[derive(Debug, PartialEq, Eq)]
enum Unreadable {
    Damaged(&'static str),
    /// They are sound, and of a later program.
    Newer,
}

fn decode(bytes: &[u8]) -> Result<List, Unreadable> {
    let short = || Unreadable::Damaged("it is too short");
    let (body, sum) = bytes.split_last_chunk::<4>().ok_or_else(short)?;
    let (magic, rest) = body.split_first_chunk::<8>().ok_or_else(short)?;
    if magic != MAGIC {
        return Err(Unreadable::Damaged("it is no list of sessions"));
    }
    if crc32fast::hash(body) != u32::from_le_bytes(*sum) {
        return Err(Unreadable::Damaged("its checksum does not match"));
    }
    let (version, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
    if u32::from_le_bytes(*version) != VERSION {
        return Err(Unreadable::Newer);
    }
    let (count, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
    let (sessions, odd) = rest.as_chunks::<8>();
    if !odd.is_empty()
        || sessions.len() > MAX_FENCED
        || u32::try_from(sessions.len()) != Ok(u32::from_le_bytes(*count))
    {
        return Err(Unreadable::Damaged("its length is wrong"));
    }
    let mut list = List::default();
    for bytes in sessions.iter().rev() {
        list.add(SessionId(u64::from_le_bytes(*bytes)));
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The list of a directory, which is sound.
    fn open(dir: &Path) -> Fences {
        let (fences, damage) = Fences::open(dir).unwrap();
        assert_eq!(damage, None);
        fences
    }

    #[test]
    fn a_damaged_list_is_set_aside_and_one_of_a_later_program_is_not() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).add(SessionId(1)).unwrap();
        let path = dir.path().join(FILE);
        let mut bytes = fs::read(&path).unwrap();
        bytes[9] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let (fences, damage) = Fences::open(dir.path()).unwrap();
        assert!(damage.is_some() && !fences.contains(SessionId(1)));
        assert_eq!(fs::read(Fences::file_of_damage(dir.path())).unwrap(), bytes);
        fences.add(SessionId(2)).unwrap();
        assert!(open(dir.path()).contains(SessionId(2)));
        let mut later = encode(&List::default());
        later[8] = 2;
        let end = later.len() - 4;
        let sum = crc32fast::hash(&later[..end]);
        later[end..].copy_from_slice(&sum.to_le_bytes());
        fs::write(&path, &later).unwrap();
        assert!(Fences::open(dir.path()).is_err());
        assert_eq!(fs::read(&path).unwrap(), later);
    }

    #[test]
    fn the_list_outlives_the_server_and_forgets_the_oldest() {
        let dir = tempfile::tempdir().unwrap();
        let fences = open(dir.path());
        assert!(!fences.contains(SessionId(1)));
        fences.list().order = (2..=MAX_FENCED as u64).rev().map(SessionId).collect();
        fences.list().all = (2..=MAX_FENCED as u64).map(SessionId).collect();
        fences.add(SessionId(1)).unwrap();
        let again = open(dir.path());
        assert!(again.contains(SessionId(1)) && again.contains(SessionId(2)));
        again.add(SessionId(1)).unwrap();
        again.add(SessionId(u64::MAX)).unwrap();
        let third = open(dir.path());
        assert!(!third.contains(SessionId(2)), "the oldest makes room");
        assert!(third.contains(SessionId(1)) && third.contains(SessionId(u64::MAX)));
        assert_eq!(third.list().order.len(), MAX_FENCED);
    }

    #[test]
    fn what_cannot_be_stored_counts_and_is_stored_with_the_next_attempt() {
        let dir = tempfile::tempdir().unwrap();
        let fences = open(dir.path());
        fs::create_dir(dir.path().join(NEW_FILE)).unwrap();
        assert!(fences.add(SessionId(5)).is_err());
        assert!(fences.contains(SessionId(5)));
        fs::remove_dir(dir.path().join(NEW_FILE)).unwrap();
        fences.add(SessionId(5)).unwrap();
        assert!(open(dir.path()).contains(SessionId(5)));
    }

    #[test]
    fn the_format_is_pinned_and_damage_is_found() {
        let mut list = List::default();
        list.add(SessionId(7));
        list.add(SessionId(0x0102));
        let bytes = encode(&list);
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        let body = "4e465346454e4345010000000200000002010000000000000700000000000000";
        assert_eq!(&hex[..body.len()], body);
        assert_eq!(bytes.len(), HEADER + 16 + 4);
        assert_eq!(decode(&bytes).unwrap().order, list.order);
        for cut in 0..bytes.len() {
            assert!(decode(&bytes[..cut]).is_err(), "{cut}");
            let mut bad = bytes.clone();
            bad[cut] ^= 4;
            assert!(decode(&bad).is_err(), "{cut}");
        }
    }
}
