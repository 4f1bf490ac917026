//! Reading a log after a restart.

use std::path::{Path, PathBuf};

use netfs_common::id::LogIndex;

use super::format::{self, HEADER_BYTES, Header, Record};
use super::{Disk, LogError};

/// What was cut off the end of the log because it had not been written completely.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The segment.
    pub path: PathBuf,
    /// Where the first incomplete record began.
    pub offset: u64,
    /// How many bytes went.
    pub bytes: u64,
    /// How many whole records, never flushed and never reached without the one before, went.
    pub records: u64,
}

/// A log after recovery.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The last record, 0 when there is none.
    pub last: LogIndex,
    /// What was cut off.
    pub cut: Option<Cut>,
    /// The segments in order: first index, path, length of what is whole.
    pub segments: Vec<(LogIndex, PathBuf, u64)>,
}

/// Reads the log in `dir`, gives every record after `applied` to `replay`, and cuts off an
/// incomplete end. What is left is on stable storage.
///
/// # Errors
/// When the disk fails, the log is damaged or has a gap, or `replay` fails.
pub fn recover<E: From<LogError>>(
    disk: &dyn Disk,
    dir: &Path,
    volume: u64,
    applied: LogIndex,
    replay: impl FnMut(LogIndex, &[u8]) -> Result<(), E>,
) -> Result<Recovered, E> {
    let mut found = scan(disk, dir, volume, applied, replay)?;
    if let Some(cut) = found.cut.as_ref().filter(|cut| cut.offset == 0) {
        // It did not come to have a header, so it held nothing.
        disk.remove(&cut.path).map_err(|e| LogError::io(&cut.path, e))?;
    }
    if let Some((first, path, len)) = found.segments.pop() {
        let io = |e| LogError::io(&path, e);
        if first > found.last {
            // Nothing in it either; its name is needed for the next segment.
            disk.remove(&path).map_err(io)?;
        } else {
            // A crash of the process alone leaves whole records that were never flushed. From
            // here on they count as flushed.
            disk.cut(&path, len).map_err(io)?;
            found.segments.push((first, path, len));
        }
    }
    disk.sync_dir(dir).map_err(|e| LogError::io(dir, e))?;
    Ok(found)
}

/// Like [`recover`], but changes nothing.
///
/// # Errors
/// As [`recover`].
pub fn scan<E: From<LogError>>(
    disk: &dyn Disk,
    dir: &Path,
    volume: u64,
    applied: LogIndex,
    mut replay: impl FnMut(LogIndex, &[u8]) -> Result<(), E>,
) -> Result<Recovered, E> {
    let segments = list(disk, dir)?;
    let mut out = Recovered::default();
    let count = segments.len();
    for (i, (first, path)) in segments.into_iter().enumerate() {
        let bytes = disk.read(&path).map_err(|e| LogError::io(&path, e))?;
        // What is before the first segment must be in the store.
        let before = (i > 0).then_some(out.last);
        let place = Place { volume, first, before, applied, is_last: i + 1 == count };
        let (last, cut) = read_segment(&path, &bytes, &place, &mut replay)?;
        let kept = cut.as_ref().map_or(bytes.len() as u64, |c| c.offset);
        out.last = last;
        out.cut = cut;
        if kept > 0 {
            out.segments.push((first, path, kept));
        }
    }
    Ok(out)
}

/// Whether the log has everything since the first command.
///
/// # Errors
/// When the disk fails.
pub fn is_whole(disk: &dyn Disk, dir: &Path) -> Result<bool, LogError> {
    Ok(list(disk, dir)?.first().is_some_and(|(first, _)| *first == LogIndex(1)))
}

/// The segments in a folder, in order. Other files are none of ours to judge.
fn list(disk: &dyn Disk, dir: &Path) -> Result<Vec<(LogIndex, PathBuf)>, LogError> {
    let paths = disk.list(dir).map_err(|e| LogError::io(dir, e))?;
    let first = |p: &PathBuf| format::segment_first(p.file_name()?.to_str()?);
    let mut out: Vec<_> = paths.into_iter().filter_map(|p| Some((first(&p)?, p))).collect();
    out.sort();
    Ok(out)
}

/// What is known of a segment before it is read.
struct Place {
    volume: u64,
    /// Its first index, as its name says.
    first: LogIndex,
    /// The last index of the segment before it, if there is one.
    before: Option<LogIndex>,
    /// The last command that the store has.
    applied: LogIndex,
    /// There is none after it.
    is_last: bool,
}

/// Reads one segment: the last index in it or before it, and what is to be cut off.
fn read_segment<E: From<LogError>>(
    path: &Path,
    bytes: &[u8],
    place: &Place,
    replay: &mut impl FnMut(LogIndex, &[u8]) -> Result<(), E>,
) -> Result<(LogIndex, Option<Cut>), E> {
    let Place { volume, first, applied, is_last: last_segment, .. } = *place;
    let damaged = |offset: usize, what: String| LogError::Damaged {
        path: path.to_owned(),
        offset: offset as u64,
        what,
    };
    let header = match Header::parse(bytes) {
        Ok(header) if header.volume != volume => {
            return Err(damaged(0, "a segment of another volume".into()).into());
        }
        Ok(header) if header.first == first && header.previous < first => header,
        Ok(_) => return Err(damaged(0, "the header and the name do not agree".into()).into()),
        // Made just before a power failure: the header may not have come to the disk.
        Err(_) if last_segment && is_torn_header(bytes) => {
            let cut =
                Cut { path: path.to_owned(), offset: 0, bytes: bytes.len() as u64, records: 0 };
            return Ok((place.before.unwrap_or(applied), Some(cut)));
        }
        Err(what) => return Err(damaged(0, what).into()),
    };
    let gap = match place.before {
        Some(before) => header.previous != before,
        None => header.previous > applied,
    };
    if gap {
        let wanted = place.before.unwrap_or(applied).0 + 1;
        return Err(LogError::Gap { path: path.to_owned(), wanted, found: first.0 }.into());
    }
    let mut at = HEADER_BYTES;
    let mut last = header.previous;
    while at < bytes.len() {
        let wanted = if at == HEADER_BYTES { first.0 } else { last.0 + 1 };
        let what = match Record::parse(&bytes[at..], header.salt) {
            Ok(record) if record.index.0 == wanted => {
                if record.index > applied {
                    replay(record.index, record.payload)?;
                }
                last = record.index;
                at += record.byte_len();
                continue;
            }
            Ok(record) => format!("record {} where {wanted:x} belongs", record.index),
            Err(what) => what,
        };
        let (records, flushed) = survivors(&bytes[at..], wanted, header.salt);
        if !last_segment || flushed.0 >= wanted {
            return Err(damaged(at, what).into());
        }
        let (offset, rest) = (at as u64, (bytes.len() - at) as u64);
        let cut = Cut { path: path.to_owned(), offset, bytes: rest, records };
        return Ok((last, Some(cut)));
    }
    Ok((last, None))
}

/// A header of which only a part, or nothing but zeros, came to the disk, and nothing after it.
fn is_torn_header(bytes: &[u8]) -> bool {
    bytes.len() < HEADER_BYTES || bytes.iter().all(|b| *b == 0)
}

/// The whole records somewhere after a bad one, and up to where they say the log was flushed.
fn survivors(bytes: &[u8], wanted: u64, salt: u32) -> (u64, LogIndex) {
    // No record is shorter than its frame, so this is the most that can follow.
    let most = wanted + (bytes.len() / format::RECORD_BYTES) as u64;
    let (mut count, mut flushed) = (0, LogIndex(0));
    let mut at = 1;
    while at < bytes.len() {
        let rest = &bytes[at..];
        // The index rules out nearly everything before a checksum has to be computed.
        let likely = Record::claimed_index(rest).is_some_and(|i| i >= wanted && i <= most);
        match likely.then(|| Record::parse(rest, salt)) {
            Some(Ok(record)) => {
                count += 1;
                flushed = flushed.max(record.flushed);
                at += record.byte_len();
            }
            _ => at += 1,
        }
    }
    (count, flushed)
}
