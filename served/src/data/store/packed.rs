//! Reading, verifying and moving packed payloads.
//!
//! Verifying and moving look at stored bytes only, so they need no key. A piece is moved with whole frames; what a frame
//! holds besides is moved along and never looked at. If that would be more than the piece, it is decoded and stored anew, provided that
//! the key is at hand: otherwise small remains of large records would never give their space back.

use std::io::{self, IoSlice};
use std::sync::Arc;

use super::disk::{DiskFile, read_full_onto};
use super::error::StoreError;
use super::extent::Extent;
use super::format::{Form, Kind, RECORD_HEADER_LEN, RecordHeader, segment_name};
use super::key::ChunkKey;
use super::log::{Draft, Space};
use super::read::{ReadFault, corrupt, rotten};
use super::scan::{BadRange, is_medium_error};
use super::segment_store::SegmentStore;
use crate::data::codec::{Codec, CodecError, Frame, Table};

/// What is read at first: the tables of most ranges fit, and small ranges as a whole.
const PROBE: usize = 1024;
/// Ranges up to this length are read at once.
const SMALL: u32 = 8 << 10;
/// Stored bytes that are read, or moved, at a time.
const STEP: u32 = (1 << 20) + (64 << 10);

/// Bytes that could not be had, and why.
enum Lost {
    /// They are not what was stored.
    Damaged {
        why: String,
        /// See [`StoreError::Corrupt`].
        rotten: bool,
    },
    /// The disk does not work, or there is no file.
    Failed(io::Error),
}

/// A packed payload in a file.
struct Packed<'a> {
    file: &'a dyn DiskFile,
    /// Where it begins.
    at: u64,
    table: Table,
    /// What has been read of it already.
    begin: Vec<u8>,
}

/// Reads as much as there is.
fn read_some(file: &dyn DiskFile, len: usize, at: u64) -> Result<Vec<u8>, Lost> {
    let mut buf = Vec::with_capacity(len);
    match read_full_onto(file, &mut buf, len, at, true) {
        Ok(_) => Ok(buf),
        Err(e) if is_medium_error(&e) => {
            Err(Lost::Damaged { why: format!("it cannot be read: {e}"), rotten: false })
        }
        Err(e) => Err(Lost::Failed(e)),
    }
}

impl<'a> Packed<'a> {
    fn open(
        file: &'a dyn DiskFile,
        at: u64,
        key: &ChunkKey,
        range: (u32, u32),
    ) -> Result<Self, Lost> {
        let most = Table::most_stored(range) as usize;
        let first = if range.1 <= SMALL { most } else { most.min(PROBE) };
        let damaged = |error: CodecError| Lost::Damaged { why: error.to_string(), rotten: true };
        let mut begin = read_some(file, first, at)?;
        let len = Table::len_of(&begin, range).map_err(damaged)?;
        if begin.len() < len && begin.len() == first {
            begin = read_some(file, len, at)?;
        }
        let table = Table::parse(&begin, key, range).map_err(damaged)?;
        Ok(Self { file, at, table, begin })
    }

    /// The frames that hold some of a range.
    fn frames(&self, from: u32, to: u32) -> &[Frame] {
        let frames = &self.table.frames;
        let first = frames.partition_point(|f| f.end() <= from);
        let last = frames.partition_point(|f| f.offset < to);
        &frames[first..last.max(first)]
    }

    /// The stored bytes of neighbouring frames, not verified.
    fn read(&self, frames: &[Frame]) -> Result<Vec<u8>, Lost> {
        let (Some(first), Some(last)) = (frames.first(), frames.last()) else {
            return Ok(Vec::new());
        };
        let (from, to) = (first.at as usize, (last.at + last.stored) as usize);
        match self.begin.get(from..to) {
            Some(bytes) => Ok(bytes.to_vec()),
            None => read_some(self.file, to - from, self.at + u64::from(first.at)),
        }
    }
}

/// Neighbouring frames that are read at a time.
fn steps(frames: &[Frame]) -> impl Iterator<Item = &[Frame]> {
    let mut rest = frames;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = rest.iter().take_while(|f| {
            bytes += f.stored;
            bytes <= STEP
        });
        let (step, behind) = rest.split_at(fits.count().max(1).min(rest.len()));
        rest = behind;
        (!step.is_empty()).then_some(step)
    })
}

/// A frame's part of the bytes of its step, as far as they could be read.
fn stored_of<'a>(step: &[Frame], frame: &Frame, bytes: &'a [u8]) -> &'a [u8] {
    let from = (frame.at - step.first().map_or(0, |f| f.at)) as usize;
    bytes.get(from..bytes.len().min(from + frame.stored as usize)).unwrap_or_default()
}

impl SegmentStore {
    /// Reads an extent of a packed payload, behind what `out` has.
    pub(super) fn read_packed(
        &self,
        key: ChunkKey,
        e: &Extent,
        file: &dyn DiskFile,
        out: &mut Vec<u8>,
    ) -> Result<(), ReadFault> {
        let name = || segment_name(e.at.segment);
        let lost = |lost: Lost, offset: u32, len: u32| match lost {
            Lost::Damaged { why, rotten: is_rotten } => {
                let why = format!("{why}, in {} at {}", name(), e.at.at);
                match is_rotten {
                    true => rotten(key, offset, len, why),
                    false => corrupt(key, offset, len, why),
                }
            }
            Lost::Failed(error) => StoreError::io("read", name())(error),
        };
        let range = e.packed().unwrap_or_default();
        let packed = Packed::open(file, e.at.at.into(), &key, range)
            .map_err(|l| lost(l, e.offset, e.len))?;
        let codec = self.codec_of(&key)?;
        // What is known of the volume and does not fit was not written here.
        let known = codec.is_some();
        let codec = codec.unwrap_or_else(|| Arc::new(Codec::default()));
        let opener = codec.opener(&self.id().0, &packed.table).map_err(|error| match error {
            CodecError::NoKey if known => {
                corrupt(key, e.offset, e.len, "it is encrypted in another way than its volume")
            }
            error => self.not_coded(&key, error),
        })?;
        // Nor is anything taken for the volume's that did not need its key.
        if codec.cipher() != packed.table.cipher() {
            return Err(
                corrupt(key, e.offset, e.len, "it is not encrypted as its volume is").into()
            );
        }
        let mut plain = Vec::new();
        for step in steps(packed.frames(e.offset, e.end())) {
            let (start, stop) =
                (step[0].offset.max(e.offset), step[step.len() - 1].end().min(e.end()));
            let mut bytes = packed.read(step).map_err(|l| lost(l, start, stop - start))?;
            let base = step[0].at;
            for frame in step {
                let (from, to) = (frame.offset.max(e.offset), frame.end().min(e.end()));
                plain.clear();
                let damaged = |error: CodecError, rotten: bool| {
                    lost(Lost::Damaged { why: error.to_string(), rotten }, from, to - from)
                };
                frame
                    .verify(&key, stored_of(step, frame, &bytes))
                    .map_err(|error| damaged(error, true))?;
                let at = (frame.at - base) as usize;
                let stored = &mut bytes[at..at + frame.stored as usize];
                let opened = opener.open(&key, frame, stored, &mut plain);
                opened.map_err(|error| damaged(error, false))?;
                let part = &plain[(from - frame.offset) as usize..(to - frame.offset) as usize];
                out.extend_from_slice(part);
            }
        }
        Ok(())
    }

    /// Moves a piece of a packed payload out of a segment. `false`: it has changed meanwhile.
    pub(super) fn move_packed(&self, key: &ChunkKey, piece: Extent) -> Result<bool, StoreError> {
        let name = segment_name(piece.at.segment);
        let file = self.segment_file(piece.at.segment).map_err(StoreError::io("open", &name))?;
        let failed = |error| StoreError::io("read", &name)(error);
        let range = piece.packed().unwrap_or_default();
        let packed = match Packed::open(file.as_ref(), piece.at.at.into(), key, range) {
            Ok(packed) => packed,
            Err(Lost::Damaged { .. }) => return self.note_bad(key, piece),
            Err(Lost::Failed(error)) => return Err(failed(error)),
        };
        for step in steps(packed.frames(piece.offset, piece.end())) {
            let bytes = match packed.read(step) {
                Ok(bytes) => bytes,
                // Of which of them, is found out one by one.
                Err(Lost::Damaged { .. }) => Vec::new(),
                Err(Lost::Failed(error)) => return Err(failed(error)),
            };
            let one_by_one = bytes.is_empty();
            let sound = |f: &Frame| f.verify(key, stored_of(step, f, &bytes)).is_ok();
            for run in step.chunk_by(|a, b| !one_by_one && sound(a) && sound(b)) {
                let part = piece.clip(run[0].offset, run[run.len() - 1].end());
                let done = match sound(&run[0]) {
                    true => {
                        let base = (run[0].at - step[0].at) as usize;
                        self.move_frames(key, part, &packed.table, run, &bytes[base..])?
                    }
                    false if one_by_one => self.move_one(key, part, &packed, &run[0], &name)?,
                    false => self.note_bad(key, part)?,
                };
                if !done {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Moves a frame beside others that cannot be read.
    fn move_one(
        &self,
        key: &ChunkKey,
        part: Extent,
        packed: &Packed<'_>,
        frame: &Frame,
        name: &str,
    ) -> Result<bool, StoreError> {
        match packed.read(std::slice::from_ref(frame)) {
            Ok(bytes) if frame.verify(key, &bytes).is_ok() => {
                self.move_frames(key, part, &packed.table, std::slice::from_ref(frame), &bytes)
            }
            Ok(_) | Err(Lost::Damaged { .. }) => self.note_bad(key, part),
            Err(Lost::Failed(error)) => Err(StoreError::io("read", name)(error)),
        }
    }

    /// Appends a copy of sound frames, for the part of a piece that they hold.
    fn move_frames(
        &self,
        key: &ChunkKey,
        part: Extent,
        table: &Table,
        frames: &[Frame],
        bytes: &[u8],
    ) -> Result<bool, StoreError> {
        let Some(table) = table.part(frames) else { return Ok(true) };
        let (offset, len) = table.range;
        if part.len < len / 2 {
            match self.rewrite(*key, part.offset, part.end(), &[part], Space::UseReserve) {
                // Nobody here can tell what it is: it is kept.
                Err(StoreError::NoKey { .. } | StoreError::Corrupt { .. }) => {}
                other => return Ok(other?.is_some()),
            }
        }
        let head = table.encode(key);
        let stored = table.stored();
        let frames = &bytes[..stored as usize - head.len()];
        let draft = Draft::range(Kind::Write, *key, part.offset, part.len)
            .with_form(Form::Packed { offset, len, stored });
        let payload = [IoSlice::new(&head), IoSlice::new(frames)];
        Ok(self.commit(&draft, &payload, Space::UseReserve, Some(&[part]))?.is_some())
    }

    /// Leaves a note in place of what is lost, so that it never reads as something else.
    pub(super) fn note_bad(&self, key: &ChunkKey, part: Extent) -> Result<bool, StoreError> {
        let draft = Draft::range(Kind::Bad, *key, part.offset, part.len);
        Ok(self.commit(&draft, &[], Space::UseReserve, Some(&[part]))?.is_some())
    }
}

/// The parts of a packed record's range that are not what was stored, neighbours joined.
pub(super) fn verify_packed(
    file: &dyn DiskFile,
    at: u64,
    h: &RecordHeader,
    range: (u32, u32),
) -> io::Result<Vec<BadRange>> {
    let packed = match Packed::open(file, at + RECORD_HEADER_LEN as u64, &h.key, range) {
        Ok(packed) if packed.table.stored() == h.stored() => packed,
        Ok(_) | Err(Lost::Damaged { .. }) => return Ok(vec![(h.offset, h.len)]),
        Err(Lost::Failed(error)) => return Err(error),
    };
    let mut bad: Vec<BadRange> = Vec::new();
    let end = h.offset + h.len;
    // All frames of the payload: what lies beside the record's range is moved with it.
    for step in steps(&packed.table.frames) {
        let bytes = match packed.read(step) {
            Ok(bytes) => bytes,
            Err(Lost::Damaged { .. }) => Vec::new(),
            Err(Lost::Failed(error)) => return Err(error),
        };
        for frame in step {
            let sound = match bytes.is_empty() {
                false => frame.verify(&h.key, stored_of(step, frame, &bytes)).is_ok(),
                true => match packed.read(std::slice::from_ref(frame)) {
                    Ok(bytes) => frame.verify(&h.key, &bytes).is_ok(),
                    Err(Lost::Damaged { .. }) => false,
                    Err(Lost::Failed(error)) => return Err(error),
                },
            };
            let (from, to) = (frame.offset.max(h.offset), frame.end().min(end));
            if sound || from >= to {
                continue;
            }
            match bad.last_mut() {
                Some((offset, len)) if *offset + *len == from => *len += to - from,
                _ => bad.push((from, to - from)),
            }
        }
    }
    Ok(bad)
}
