//! What becomes of a command log whose segments hold arbitrary bytes.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use netfs_common::id::LogIndex;

use super::format::{HEADER_BYTES, Header, RECORD_BYTES, Record, checksum, segment_name};
use super::{Disk, Log, LogConfig, LogError, LogFile, Recovered, recover as recover_log, scan};
use crate::fuzzing::{Input, put};

const VOLUME: u64 = 7;
const RECORDS_MAX: usize = 40;
const EDITS_MAX: usize = 24;

/// Runs one input.
///
/// # Panics
/// When the log breaks a promise: it panics, looking at it changes it, a log that was refused was changed, records come out
/// of order, or a second recovery finds something else than the first.
pub fn recover(input: &[u8]) {
    let mut input = Input(input);
    let sealed = input.byte() & 1 != 0;
    let disk = MemoryDisk::default();
    let written = build(&disk, &mut input);
    let applied = match input.byte() % 4 {
        0 => 0,
        1 => written,
        2 => written.min(u64::from(input.byte())),
        _ => input.telling(),
    };
    let mut records = marks(&disk);
    let mut intact = true;
    for _ in 0..EDITS_MAX {
        if input.0.is_empty() {
            break;
        }
        edit(&disk, &mut input, &mut records);
        intact = false;
    }
    if sealed {
        seal(&disk, &records);
    }
    examine(&disk, LogIndex(applied), intact.then_some(written));
}

/// A log of some records in several segments; how many.
fn build(disk: &MemoryDisk, input: &mut Input<'_>) -> u64 {
    let log = open(disk, Recovered::default(), LogIndex(0));
    let mut last = 0;
    for _ in 0..usize::from(input.byte()) % RECORDS_MAX {
        let kind = input.byte();
        last = log.append(&vec![kind; usize::from(kind) % 50]).expect("there is room").0;
        if kind.is_multiple_of(5) {
            log.flush(LogIndex(last)).expect("the disk works");
        }
    }
    last
}

fn open(disk: &MemoryDisk, found: Recovered, last: LogIndex) -> Log {
    let config = LogConfig { segment_bytes: 200 };
    Log::new(Arc::new(disk.clone()), Path::new(""), VOLUME, config, found, last)
}

type Marks = BTreeMap<PathBuf, Vec<usize>>;

/// Where the records begin.
fn marks(disk: &MemoryDisk) -> Marks {
    let positions = |bytes: &Vec<u8>| {
        let mut found = Vec::new();
        let mut at = HEADER_BYTES;
        let salt = salt(bytes);
        while let Some(Ok(record)) = bytes.get(at..).map(|rest| Record::parse(rest, salt)) {
            found.push(at);
            at += record.byte_len();
        }
        found
    };
    disk.files().iter().map(|(path, bytes)| (path.clone(), positions(bytes))).collect()
}

/// The salt that a segment's header names.
fn salt(segment: &[u8]) -> u32 {
    let at = |i: usize| segment.get(i).copied().unwrap_or(0);
    u32::from_le_bytes([at(12), at(13), at(14), at(15)])
}

fn seal(disk: &MemoryDisk, marks: &Marks) {
    for (path, bytes) in disk.files().iter_mut() {
        if let Some(header) = bytes.first_chunk_mut::<HEADER_BYTES>() {
            let crc = crc32fast::hash(&header[..HEADER_BYTES - 4]);
            header[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        }
        let salt = salt(bytes);
        for at in marks.get(path).into_iter().flatten() {
            let Some(record) = bytes.get_mut(*at..).filter(|r| r.len() >= RECORD_BYTES) else {
                continue;
            };
            let len = u32::from_le_bytes([record[0], record[1], record[2], record[3]]) as usize;
            let end = RECORD_BYTES.saturating_add(len).min(record.len());
            let crc = checksum(salt, &record[8..end]);
            record[4..8].copy_from_slice(&crc.to_le_bytes());
        }
    }
}

fn edit(disk: &MemoryDisk, input: &mut Input<'_>, marks: &mut Marks) {
    let kind = input.byte();
    let pick = usize::from(input.byte());
    let mut files = disk.files();
    let Some(path) = files.keys().nth(pick % files.len().max(1)).cloned() else { return };
    let width = [1, 4, 8, 8][usize::from(kind >> 4 & 3)];
    let named = |index: u64| PathBuf::from(segment_name(LogIndex(index)));
    match kind % 10 {
        0 => drop(files.remove(&path)),
        1 => {
            let to = named(input.telling());
            let bytes = files.remove(&path).unwrap_or_default();
            files.insert(to.clone(), bytes);
            let records = marks.remove(&path).unwrap_or_default();
            marks.insert(to, records);
        }
        2 => {
            let (first, previous) = (LogIndex(input.telling()), LogIndex(input.telling()));
            let header = Header { volume: VOLUME, salt: 3, first, previous };
            let to = named(first.0);
            files.insert(to.clone(), header.to_bytes());
            marks.insert(to, Vec::new());
        }
        3 => {
            let len = usize::from(input.byte());
            let payload = input.take(len);
            let (index, flushed) = (LogIndex(input.telling()), LogIndex(input.telling()));
            let bytes = files.entry(path.clone()).or_default();
            marks.entry(path).or_default().push(bytes.len());
            let salt = salt(bytes);
            bytes.extend(Record { index, flushed, payload: &payload }.to_bytes(salt));
        }
        4 | 5 => {
            let records = marks.get(&path).map(Vec::as_slice).unwrap_or_default();
            let nth = usize::from(input.byte()) % records.len().max(1);
            let at = records.get(nth).copied().unwrap_or(0) + usize::from(input.byte() % 32);
            let value = input.telling();
            put(files.entry(path).or_default(), at, value, width);
        }
        6 => {
            let (at, value) = (usize::from(input.byte()), input.telling());
            put(files.entry(path).or_default(), at, value, width);
        }
        7 => files.entry(path).or_default().truncate(usize::from(input.byte())),
        8 => {
            let len = usize::from(input.byte());
            let raw = input.take(len);
            files.entry(path).or_default().extend(raw);
        }
        _ => {
            let (at, mask) = (usize::from(input.byte()), input.byte() | 1);
            if let Some(byte) = files.entry(path).or_default().get_mut(at) {
                *byte ^= mask;
            }
        }
    }
}

type Replayed = Vec<(LogIndex, Vec<u8>)>;

fn examine(disk: &MemoryDisk, applied: LogIndex, written: Option<u64>) {
    let before = disk.files().clone();
    let mut seen = Replayed::new();
    let scanned = scan(disk, Path::new(""), VOLUME, applied, |index, payload| {
        seen.push((index, payload.to_vec()));
        Ok::<(), LogError>(())
    });
    assert!(*disk.files() == before, "looking at a log changed it");
    let (replayed, found) = match run(disk, applied) {
        Ok(found) => found,
        Err(error) => {
            assert!(scanned.is_err() && written.is_none(), "{error}");
            assert!(*disk.files() == before, "refused, but changed: {error}");
            return;
        }
    };
    let scanned = scanned.expect("what is recovered can be read");
    assert_eq!((&seen, scanned.last, &scanned.cut), (&replayed, found.last, &found.cut));
    // There may be a gap where a segment says so.
    assert!(replayed.is_sorted_by_key(|(index, _)| *index), "records out of order");
    assert!(replayed.iter().all(|(index, _)| *index > applied));
    if let Some(written) = written {
        assert_eq!(found.last.0, written);
        assert_eq!(replayed.len() as u64, written.saturating_sub(applied.0));
    }
    let last = found.last.max(applied);
    let again = run(disk, applied).expect("what was recovered is recovered again");
    assert_eq!((&again.0, &again.1.cut), (&replayed, &None));
    if applied <= found.last {
        go_on(disk, found, last, applied, replayed);
    }
}

/// Writes more records and finds them again.
fn go_on(
    disk: &MemoryDisk,
    found: Recovered,
    last: LogIndex,
    applied: LogIndex,
    mut replayed: Replayed,
) {
    let log = open(disk, found, last);
    for n in 0..3u8 {
        match log.append(&[n; 9]) {
            Ok(index) => replayed.push((index, vec![n; 9])),
            Err(error) => {
                assert!(matches!(error, LogError::Full), "{error}");
                return;
            }
        }
    }
    log.flush(log.last()).expect("the disk works");
    let (again, found) = run(disk, applied).expect("what was written is recovered");
    assert_eq!((again, found.cut), (replayed, None));
}

fn run(disk: &MemoryDisk, applied: LogIndex) -> Result<(Replayed, Recovered), LogError> {
    let mut replayed = Replayed::new();
    let found = recover_log(disk, Path::new(""), VOLUME, applied, |index, payload| {
        replayed.push((index, payload.to_vec()));
        Ok::<(), LogError>(())
    })?;
    Ok((replayed, found))
}

type Files = BTreeMap<PathBuf, Vec<u8>>;

/// One folder in memory. Clones are the same disk.
#[derive(Clone, Default)]
struct MemoryDisk(Arc<Mutex<Files>>);

struct MemoryFile {
    disk: MemoryDisk,
    path: PathBuf,
}

impl MemoryDisk {
    fn files(&self) -> MutexGuard<'_, Files> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, path: &Path, act: impl FnOnce(&mut Vec<u8>) -> T) -> io::Result<T> {
        self.files().get_mut(path).map(act).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Disk for MemoryDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        if self.files().contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.files().insert(path.to_owned(), Vec::new());
        Ok(Arc::new(MemoryFile { disk: self.clone(), path: path.to_owned() }))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.with(path, |bytes| bytes.clone())
    }

    fn list(&self, _dir: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(self.files().keys().cloned().collect())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.files().remove(path).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn cut(&self, path: &Path, len: u64) -> io::Result<()> {
        self.with(path, |bytes| bytes.resize(len as usize, 0))
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn free_bytes(&self, _dir: &Path) -> io::Result<u64> {
        Ok(1 << 30)
    }
}

impl LogFile for MemoryFile {
    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        self.disk.with(&self.path, |file| file.extend(bytes))
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.disk.with(&self.path, |file| file.truncate(len as usize))
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn whatever_is_in_the_log_is_recovered_or_refused() {
        crate::fuzzing::try_inputs(2000, 300, super::recover);
    }
}
