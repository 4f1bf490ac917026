//! A copy of the index on disk, so that opening need not read the whole log. Always dispensable: a damaged one is
//! ignored and the index rebuilt.
//!
//! Layout: frames of up to about 1 MiB, each `length u32, CRC-32 of (store id, frame number u64, payload) u32, payload`;
//! a frame of length 0 ends the file. The payload is one stream of little endian numbers, in which an item
//! never crosses a frame:
//!
//! - `magic "NETFSIDX", version u32, last sequence number u64, tail segment u32, tail length u64, next segment u32`,
//! - `segment count u32`, per segment `number u32, flags u32 (1: damaged), length u64, data u64, tombstones u64,
//!   first seq u64, last seq u64, least inode u64, greatest inode u64, taken by records of what is away u64, data of
//!   them u64, and the same of records with their payload in slots`,
//! - `chunk count u64`, per chunk `inode u64, generation u32, index u64, extent count u32, version u64, place of its
//!   carrier u64 (0: with data), version of its object u64 (0: nothing is away)`, per extent `offset u32, len
//!   u32, segment u32, position u32, record offset u32, record length u32`,
//! - `slot count u64`, per slot `place of its record u64, where it begins u64, bytes stored u32`.
//!
//! The top bit of a record's length says that its payload is packed, bit 29 that it is in pages, bit 28 that it is in a slot.
//!
//! It changes by raising the version; a program ignores a snapshot of a version that it does not know, and rebuilds. In
//! version 1 a chunk has neither version nor carrier: all of them are 0 then, in the log too. In versions 1 and 2 nothing is packed or away,
//! up to version 3 nothing in pages, and up to version 4 nothing in slots.

use std::io::IoSlice;

use super::chunk::Chunk;
use super::disk::{DiskFile, read_full, write_all};
use super::error::StoreError;
use super::extent::{AWAY, Extent, Extents, PACKED, PAGES, SLOT};
use super::format::{
    FIRST_RECORD, LogPos, MAX_CHUNK_BYTES, MAX_SEGMENT, MAX_SEQ, RECORD_HEADER_LEN, SegmentId,
    StoreId, get_u32, table_len,
};
use super::key::{ChunkKey, ChunkVersion};
use super::slots::Slot;
use super::state::{Elsewhere, SegmentInfo, State};

pub(super) const SNAPSHOT_FILE: &str = "index.snap";
pub(super) const SNAPSHOT_TEMP: &str = "index.tmp";
const MAGIC: &[u8; 8] = b"NETFSIDX";
const VERSION: u32 = 5;
const FRAME_FULL: usize = 1 << 20;
const FRAME_MAX: usize = FRAME_FULL + (64 << 10);
/// Positions in a segment have 32 bits.
const MAX_SEGMENT_LEN: u64 = u32::MAX as u64;
/// More than the records of a segment can speak of: notes of lost bytes are shorter than these.
const MAX_SEGMENT_DATA: u64 = MAX_SEGMENT_LEN * MAX_CHUNK_BYTES / 64;

/// Where in the log a snapshot was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SnapshotPoint {
    /// Sequence number of the last record that is in it.
    pub(super) seq: u64,
    /// The newest segment, and its length.
    pub(super) tail: SegmentId,
    pub(super) tail_len: u64,
    pub(super) next_segment: SegmentId,
}

/// A loaded snapshot.
pub(super) struct Snapshot {
    pub(super) point: SnapshotPoint,
    pub(super) state: State,
}

pub(super) fn frame_crc(store: StoreId, number: u64, payload: &[u8]) -> u32 {
    let mut h = crc32fast::Hasher::new();
    h.update(&store.0);
    h.update(&number.to_le_bytes());
    h.update(payload);
    h.finalize()
}

struct Writer<'a> {
    file: &'a dyn DiskFile,
    store: StoreId,
    at: u64,
    frame: u64,
    buf: Vec<u8>,
}

impl Writer<'_> {
    fn u32(&mut self, v: u32) {
        self.buf.extend_from_slice(&v.to_le_bytes());
    }

    fn u64(&mut self, v: u64) {
        self.buf.extend_from_slice(&v.to_le_bytes());
    }

    fn frame(&mut self) -> Result<(), StoreError> {
        let len = self.buf.len() as u32;
        let crc = frame_crc(self.store, self.frame, &self.buf);
        let (len, crc) = (len.to_le_bytes(), crc.to_le_bytes());
        let mut slices = [IoSlice::new(&len), IoSlice::new(&crc), IoSlice::new(&self.buf)];
        write_all(self.file, &mut slices, self.at)
            .map_err(StoreError::io("write", SNAPSHOT_TEMP))?;
        self.at += 8 + self.buf.len() as u64;
        self.frame += 1;
        self.buf.clear();
        Ok(())
    }

    fn end_item(&mut self) -> Result<(), StoreError> {
        if self.buf.len() >= FRAME_FULL { self.frame() } else { Ok(()) }
    }
}

/// Writes a snapshot of `state`; the caller makes it durable.
pub(super) fn write(
    file: &dyn DiskFile,
    store: StoreId,
    point: &SnapshotPoint,
    state: &State,
) -> Result<(), StoreError> {
    let mut w = Writer { file, store, at: 0, frame: 0, buf: Vec::with_capacity(FRAME_MAX) };
    w.buf.extend_from_slice(MAGIC);
    w.u32(VERSION);
    w.u64(point.seq);
    w.u32(point.tail);
    w.u64(point.tail_len);
    w.u32(point.next_segment);
    w.u32(state.segments.len() as u32);
    w.end_item()?;
    for (id, s) in &state.segments {
        w.u32(*id);
        w.u32(u32::from(s.damaged));
        for v in [s.len, s.data, s.tombs, s.first_seq, s.last_seq, s.min_ino, s.max_ino] {
            w.u64(v);
        }
        for account in [s.aways, s.slots] {
            w.u64(account.taken);
            w.u64(account.data);
        }
        w.end_item()?;
    }
    w.u64(state.index.chunks());
    w.end_item()?;
    for (key, chunk) in state.index.iter() {
        w.u64(key.ino);
        w.u32(key.generation);
        w.u64(key.index);
        w.u32(chunk.extents.0.len() as u32);
        w.u64(chunk.version.0);
        w.u64(chunk.carrier.to_u64());
        w.u64(chunk.object.0);
        w.end_item()?;
        for e in &chunk.extents.0 {
            for v in [e.offset, e.len, e.at.segment, e.at.at, e.record_offset, e.record_len] {
                w.u32(v);
            }
            w.end_item()?;
        }
    }
    w.u64(state.slots.iter().len() as u64);
    w.end_item()?;
    for (record, slot) in state.slots.iter() {
        w.u64(record.to_u64());
        w.u64(slot.place.to_u64());
        w.u32(slot.stored);
        w.end_item()?;
    }
    if !w.buf.is_empty() {
        w.frame()?;
    }
    w.frame()
}

struct Reader<'a> {
    file: &'a dyn DiskFile,
    store: StoreId,
    at: u64,
    frame: u64,
    buf: Vec<u8>,
    used: usize,
}

/// Why a snapshot is of no use.
type Unusable = &'static str;

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Unusable> {
        if self.used == self.buf.len() {
            self.load()?;
        }
        let part = self.buf.get(self.used..self.used + N).ok_or("it ends within an item")?;
        let mut out = [0; N];
        out.copy_from_slice(part);
        self.used += N;
        Ok(out)
    }

    fn u32(&mut self) -> Result<u32, Unusable> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    fn u64(&mut self) -> Result<u64, Unusable> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    /// Reads the next frame; an empty one is an error here, because the caller expects more.
    fn load(&mut self) -> Result<(), Unusable> {
        let len = self.read_frame()?;
        if len == 0 { Err("it ends early") } else { Ok(()) }
    }

    fn read_frame(&mut self) -> Result<usize, Unusable> {
        let mut head = [0; 8];
        if read_full(self.file, &mut head, self.at).map_err(|_| "it cannot be read")? != 8 {
            return Err("it is cut short");
        }
        let len = get_u32(&head, 0) as usize;
        if len > FRAME_MAX {
            return Err("a frame has an impossible length");
        }
        self.buf.resize(len, 0);
        if read_full(self.file, &mut self.buf, self.at + 8).map_err(|_| "it cannot be read")? != len
        {
            return Err("it is cut short");
        }
        if frame_crc(self.store, self.frame, &self.buf) != get_u32(&head, 4) {
            return Err("a checksum does not match");
        }
        self.at += 8 + len as u64;
        self.frame += 1;
        self.used = 0;
        Ok(len)
    }

    fn segment(&mut self, format: u32) -> Result<(SegmentId, SegmentInfo), Unusable> {
        let (id, flags) = (self.u32()?, self.u32()?);
        let (len, data, tombs) = (self.u64()?, self.u64()?, self.u64()?);
        let (first_seq, last_seq) = (self.u64()?, self.u64()?);
        let (min_ino, max_ino) = (self.u64()?, self.u64()?);
        let aways = if format < 3 { Elsewhere::default() } else { self.elsewhere(len)? };
        let slots = if format < 5 { Elsewhere::default() } else { self.elsewhere(len)? };
        let damaged = flags & 1 != 0;
        let possible = (1..=MAX_SEGMENT).contains(&id)
            && len <= MAX_SEGMENT_LEN
            && data <= MAX_SEGMENT_DATA
            && tombs <= len
            && aways.taken + slots.taken <= len
            && first_seq.max(last_seq) <= MAX_SEQ;
        if !possible {
            return Err("a segment is impossible");
        }
        let info = SegmentInfo {
            len,
            data,
            live: 0,
            tombs,
            pinned: 0,
            aways,
            slots,
            lent: 0,
            // The files know.
            holes: 0,
            guessed: false,
            first_seq,
            last_seq,
            min_ino,
            max_ino,
            damaged,
        };
        Ok((id, info))
    }

    /// An account in a segment of some length.
    fn elsewhere(&mut self, len: u64) -> Result<Elsewhere, Unusable> {
        let (taken, data) = (self.u64()?, self.u64()?);
        let possible = taken <= len && data <= MAX_SEGMENT_DATA;
        if possible {
            Ok(Elsewhere { taken, data, live: 0 })
        } else {
            Err("a segment is impossible")
        }
    }

    /// The place of a record, and the slot that it has.
    fn slot(&mut self) -> Result<(LogPos, Slot), Unusable> {
        let (record, place, stored) = (self.u64()?, self.u64()?, self.u32()?);
        let (record, place) = (LogPos::from_u64(record), LogPos::from_u64(place));
        let (Some(record), Some(place)) = (record, place) else {
            return Err("a slot is nowhere");
        };
        let end = u64::from(place.at) + u64::from(stored);
        let begin = FIRST_RECORD + RECORD_HEADER_LEN as u64;
        if u64::from(place.at) < begin || end > MAX_SEGMENT_LEN || place.segment > MAX_SEGMENT {
            return Err("a slot is impossible");
        }
        Ok((record, Slot { place, stored, live: 0 }))
    }

    fn chunk(&mut self, format: u32) -> Result<(ChunkKey, Chunk), Unusable> {
        let key = ChunkKey { ino: self.u64()?, generation: self.u32()?, index: self.u64()? };
        let count = self.u32()?;
        let (version, carrier) = if format == 1 { (0, 0) } else { (self.u64()?, self.u64()?) };
        let object = if format < 3 { 0 } else { self.u64()? };
        let mut extents = Vec::with_capacity(count.min(4096) as usize);
        let mut free_from = 0;
        for _ in 0..count {
            let (offset, len) = (self.u32()?, self.u32()?);
            let at = LogPos { segment: self.u32()?, at: self.u32()? };
            let (record_offset, record_len) = (self.u32()?, self.u32()?);
            let end = u64::from(offset) + u64::from(len);
            let is_away = record_len == AWAY;
            let packed = format >= 3 && record_len & PACKED != 0;
            let paged = format >= 4 && !packed && record_len & PAGES != 0;
            let in_slot =
                format >= 5 && record_len & (PACKED | PAGES | AWAY) == 0 && record_len & SLOT != 0;
            let payload = match is_away {
                true => 0,
                false if in_slot => record_len & !SLOT,
                false if packed => record_len & !PACKED,
                false if paged => record_len & !PAGES,
                false => record_len,
            };
            let record_end = u64::from(record_offset) + u64::from(payload);
            let in_record =
                record_len == 0 || is_away || (offset >= record_offset && end <= record_end);
            let in_chunk = end.max(record_end) <= MAX_CHUNK_BYTES;
            if paged && u64::from(at.at) < first_blocks((record_offset, payload)) {
                return Err("an extent has no room for its checksums");
            }
            if is_away && object == 0 {
                return Err("an extent is in no object");
            }
            if len == 0 || u64::from(offset) < free_from || !in_chunk || !in_record {
                return Err("an extent is impossible");
            }
            free_from = end;
            extents.push(Extent { offset, len, at, record_offset, record_len });
        }
        let chunk = Chunk {
            extents: Extents(extents),
            version: ChunkVersion(version),
            carrier: LogPos::from_u64(carrier).unwrap_or(LogPos::NOWHERE),
            object: ChunkVersion(object),
        };
        if chunk.is_empty() { Err("a chunk is empty") } else { Ok((key, chunk)) }
    }
}

/// The least position that the blocks of a payload in pages can have.
fn first_blocks((offset, len): (u32, u32)) -> u64 {
    FIRST_RECORD + RECORD_HEADER_LEN as u64 + table_len(offset, len)
}

/// Reads a snapshot, or says why it cannot be used.
pub(super) fn read(file: &dyn DiskFile, store: StoreId) -> Result<Snapshot, Unusable> {
    let mut r = Reader { file, store, at: 0, frame: 0, buf: Vec::new(), used: 0 };
    if r.take::<8>()? != *MAGIC {
        return Err("it is not an index snapshot");
    }
    let format = r.u32()?;
    if !(1..=VERSION).contains(&format) {
        return Err("it is of another version");
    }
    let point =
        SnapshotPoint { seq: r.u64()?, tail: r.u32()?, tail_len: r.u64()?, next_segment: r.u32()? };
    if point.seq > MAX_SEQ
        || !(FIRST_RECORD..=MAX_SEGMENT_LEN).contains(&point.tail_len)
        || point.tail >= point.next_segment
        || point.next_segment > MAX_SEGMENT + 1
    {
        return Err("its place in the log is impossible");
    }
    let mut state = State::default();
    for _ in 0..r.u32()? {
        let (id, info) = r.segment(format)?;
        state.segments.insert(id, info);
    }
    let mut last = None;
    for _ in 0..r.u64()? {
        let (key, chunk) = r.chunk(format)?;
        if last.is_some_and(|last| last >= key) {
            return Err("its chunks are out of order");
        }
        last = Some(key);
        state.index.update(&key, |c| *c = chunk);
    }
    if format >= 5 {
        for _ in 0..r.u64()? {
            let (record, slot) = r.slot()?;
            state.slots.insert(record, slot);
        }
    }
    let State { index, slots, .. } = &mut state;
    for e in index.iter().flat_map(|(_, chunk)| &chunk.extents.0).filter(|e| e.is_in_slot()) {
        slots.place(e.at).ok_or("an extent is in no slot")?;
        // What is replayed on top of this takes from it.
        slots.count(e.at, e.len);
    }
    if r.used != r.buf.len() || r.read_frame()? != 0 {
        return Err("it has more than it says");
    }
    Ok(Snapshot { point, state })
}
