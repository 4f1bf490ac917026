//! The layout on disk. Everything is little endian.
//!
//! A store is a directory:
//!
//! | name | is |
//! | --- | --- |
//! | `store` | identity: a [header block](HeaderBlock) with magic `NETFSSTO` |
//! | `lock` | empty; the process that has the store open holds an `flock` on it |
//! | `0123456789abcdef.seg` | a segment: its number in hexadecimal, counting up from 1 |
//! | `index.snap` | a snapshot of the index (see `snapshot`); only ever replaced by rename |
//! | `*.tmp` | a file being made; of no value |
//!
//! A segment is a header block with magic `NETFSSEG`, then records, each beginning at a multiple of 8. The
//! segments in order of their numbers, with their records in order of position, are **the log**. Every record has a
//! sequence number, one higher than that of the record before it; what is missing between two segments was reclaimed.
//!
//! A header block, 64 bytes, keeps this shape in every version of the format:
//!
//! | at | size | |
//! | --- | --- | --- |
//! | 0 | 8 | magic |
//! | 8 | 4 | format version, 1 to 5 |
//! | 12 | 4 | flags, 0 |
//! | 16 | 16 | store id, random |
//! | 32 | 8 | segment number; 0 in `store` |
//! | 40 | 8 | sequence number of the segment's first record; 0 in `store` |
//! | 48 | 12 | 0 |
//! | 60 | 4 | CRC-32 of bytes 0..60 |
//!
//! A record header, 80 bytes:
//!
//! | at | size | |
//! | --- | --- | --- |
//! | 0 | 4 | magic `NFR1` |
//! | 4 | 4 | CRC-32 of store id, segment number (8), position of the record in the segment (8), bytes 8..80 of the header: a record is valid only where it was written |
//! | 8 | 1 | kind: [`Kind`] |
//! | 9 | 1 | flags: 1 in a `Write` whose payload is packed, 2 in one whose payload is in pages, 4 in one whose payload is in a slot, and 8 besides if that was durable before the record was appended; otherwise 0 |
//! | 10 | 2 | 0 |
//! | 12 | 4 | generation |
//! | 16 | 8 | inode number; in `Retire` the segment number |
//! | 24 | 8 | chunk index; in `Delete` the first index that goes |
//! | 32 | 4 | offset in the chunk |
//! | 36 | 4 | length in the chunk |
//! | 40 | 8 | sequence number |
//! | 48 | 8 | durable: all records up to this sequence number were on stable storage when this one was appended |
//! | 56 | 8 | version that the record gives its chunk, 0 if unknown (see `chunk`); in version 1 always 0 |
//! | 64 | 8 | in a packed `Write`: the range that is packed, offset and length in the chunk, 4 bytes each. In a moved `Punch` or `Delete`: its first position, segment number << 32 + position. It hides only what is before that. 0: its own position. In `Lost`: where the lost records end. In `Away`: the version that names the object. In a `Write` with its payload in a slot: where that begins |
//! | 72 | 4 | bytes stored after the header, without padding |
//! | 76 | 4 | 0 |
//!
//! The payload of a `Write` is cut at multiples of 4096 of the **chunk offset**; each block, of which the first and the
//! last may be shorter, is followed by its CRC-32, which starts from the chunk's key and the block's offset: bytes are
//! valid only for the place that they were written for. So any block can be read and verified alone.
//!
//! A payload in *pages* has the same blocks and the same checksums, but all checksums first, as a table, and then all blocks. Before
//! the table there are up to 4095 zeros, so many that a byte at a multiple of 4096 of the chunk is at a multiple of 4096 of the file.
//!
//! A *packed* payload is compressed, encrypted, or both; `data/codec` describes it. It may hold more of the chunk than its record says:
//! when part of a record is moved, whole frames are. What the record says is within what is packed.
//!
//! A payload in a *slot* is in the place of an older one that is dead, in another segment (`slots`). Nothing follows the header then.
//!
//! Whole pages of payloads, or of parts of them, that newer records hide may be zeros: they are holes of the file, which the file system
//! has back (`holes`); or any part of them may hold payloads of others. Headers never do.
//!
//! **How it changes.** A change that an older program must not misread raises [`FORMAT_VERSION`]; it is written in the header
//! block of each new segment, older segments stay readable but are not appended to, and reclamation turns them into new
//! ones. Older programs refuse a newer version. The fixture test pins the bytes; it gets a new fixture beside the old
//! one, which must still open.
//!
//! - 1: the first.
//! - 2: chunk versions, `Stamp` and `Lost`. An older program would write version 0 when it moves records, and lose punches that
//!   carry a version.
//! - 3: packed payloads, and `Away`. An older program would take them for damage.
//! - 4: payloads in pages. An older program would take them for damage.
//! - 5: payloads in slots. An older program would take them for damage, and what they were written over too.

use crc32fast::Hasher;

use super::error::StoreError;
use super::key::{ChunkKey, ChunkVersion};
use crate::data::codec::{HEAD, Table};

/// The version written, and the latest one understood.
pub const FORMAT_VERSION: u32 = 5;
/// The format's limit for the size of a chunk.
pub const MAX_CHUNK_BYTES: u64 = 64 << 20;

pub(super) const STORE_FILE: &str = "store";
pub(super) const STORE_TEMP: &str = "store.tmp";
pub(super) const LOCK_FILE: &str = "lock";
pub(super) const STORE_MAGIC: [u8; 8] = *b"NETFSSTO";
pub(super) const SEGMENT_MAGIC: [u8; 8] = *b"NETFSSEG";
pub(super) const RECORD_MAGIC: [u8; 4] = *b"NFR1";
pub(super) const HEADER_BLOCK_LEN: usize = 64;
pub(super) const RECORD_HEADER_LEN: usize = 80;
pub(super) const RECORD_ALIGN: u64 = 8;
/// Data is verified in blocks of this size.
pub(super) const BLOCK: u32 = 4096;
pub(super) const CRC_LEN: u32 = 4;
/// The flag of packed payloads.
const PACKED: u8 = 1;
/// The flag of payloads in pages.
const PAGES: u8 = 2;
/// The flag of payloads in slots.
const SLOT: u8 = 4;
/// The flag of payloads in slots that are durable already.
const KEPT: u8 = 8;

/// Position of a segment's first record.
pub(super) const FIRST_RECORD: u64 = HEADER_BLOCK_LEN as u64;

const _: () = assert!(FIRST_RECORD.is_multiple_of(RECORD_ALIGN));
const _: () = assert!((RECORD_HEADER_LEN as u64).is_multiple_of(RECORD_ALIGN));

/// Tells this store's files from another's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct StoreId(pub(super) [u8; 16]);

/// Number of a segment; never used twice for data that is kept.
pub(super) type SegmentId = u32;

/// No store lives long enough to reach these. What claims more is damage, and was not written by this program; so
/// counting on from a number that was read cannot overflow.
pub(super) const MAX_SEGMENT: SegmentId = 1 << 30;
/// See [`MAX_SEGMENT`].
pub(super) const MAX_SEQ: u64 = 1 << 62;

/// A place in the log. The order of places is the order of writing.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct LogPos {
    pub(super) segment: SegmentId,
    pub(super) at: u32,
}

impl LogPos {
    /// No place: there is no segment 0.
    pub(super) const NOWHERE: Self = Self { segment: 0, at: 0 };

    pub(super) fn to_u64(self) -> u64 {
        u64::from(self.segment) << 32 | u64::from(self.at)
    }

    pub(super) fn from_u64(v: u64) -> Option<Self> {
        (v != 0).then_some(Self { segment: (v >> 32) as u32, at: v as u32 })
    }
}

pub(super) fn segment_name(id: SegmentId) -> String {
    format!("{id:016x}.seg")
}

/// The segment's number, if this is the name of one.
pub(super) fn parse_segment_name(name: &str) -> Option<SegmentId> {
    let id = SegmentId::from_str_radix(name.strip_suffix(".seg")?, 16).ok()?;
    (segment_name(id) == name && (1..=MAX_SEGMENT).contains(&id)).then_some(id)
}

fn get<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

pub(super) fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(get(bytes, at))
}

pub(super) fn get_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(get(bytes, at))
}

fn put(bytes: &mut [u8], at: usize, v: &[u8]) {
    bytes[at..at + v.len()].copy_from_slice(v);
}

/// The first 64 bytes of `store` and of every segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct HeaderBlock {
    pub(super) magic: [u8; 8],
    /// Version of the format.
    pub(super) format: u32,
    pub(super) store: StoreId,
    pub(super) segment: SegmentId,
    pub(super) first_seq: u64,
}

impl HeaderBlock {
    pub(super) fn encode(&self) -> [u8; HEADER_BLOCK_LEN] {
        let mut b = [0; HEADER_BLOCK_LEN];
        put(&mut b, 0, &self.magic);
        put(&mut b, 8, &self.format.to_le_bytes());
        put(&mut b, 16, &self.store.0);
        put(&mut b, 32, &u64::from(self.segment).to_le_bytes());
        put(&mut b, 40, &self.first_seq.to_le_bytes());
        let crc = crc32fast::hash(&b[..60]);
        put(&mut b, 60, &crc.to_le_bytes());
        b
    }

    /// `Ok(None)`: damaged. An error: intact, but of a later version.
    pub(super) fn decode(
        b: &[u8; HEADER_BLOCK_LEN],
        magic: [u8; 8],
        file: &str,
    ) -> Result<Option<Self>, StoreError> {
        if get_u32(b, 60) != crc32fast::hash(&b[..60]) || b[..8] != magic {
            return Ok(None);
        }
        let format = get_u32(b, 8);
        if !(1..=FORMAT_VERSION).contains(&format) || get_u32(b, 12) != 0 {
            return Err(StoreError::NewerVersion {
                file: file.into(),
                found: format,
                known: FORMAT_VERSION,
            });
        }
        let Ok(segment) = SegmentId::try_from(get_u64(b, 32)) else { return Ok(None) };
        let first_seq = get_u64(b, 40);
        let known = segment <= MAX_SEGMENT && first_seq <= MAX_SEQ;
        Ok(known.then_some(Self { magic, format, store: StoreId(get(b, 16)), segment, first_seq }))
    }
}

/// What a record says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Kind {
    /// These bytes of the chunk are in the payload.
    Write = 1,
    /// These bytes of the chunk are a hole.
    Punch = 2,
    /// All chunks of the file from this index on are gone.
    Delete = 3,
    /// These bytes of the chunk were lost to a disk fault; the record that had them is reclaimed, or was another store's.
    Bad = 4,
    /// Says only what is durable.
    Mark = 5,
    /// All that lived in this segment has moved; its file may be gone.
    Retire = 6,
    /// The chunk, if it holds data, has this version; nothing else changes.
    Stamp = 7,
    /// Records of the log before its `as_of` are lost, with a segment that was reclaimed.
    Lost = 8,
    /// These bytes of the chunk are in an object of the bucket. No change: whatever they hide here is the same.
    Away = 40,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Write,
            2 => Self::Punch,
            3 => Self::Delete,
            4 => Self::Bad,
            5 => Self::Mark,
            6 => Self::Retire,
            7 => Self::Stamp,
            8 => Self::Lost,
            40 => Self::Away,
            _ => return None,
        })
    }
}

/// What the payload of a record is like.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) enum Form {
    /// Blocks with their checksums.
    #[default]
    Blocks,
    /// Packed: this range of the chunk, in so many bytes.
    Packed { offset: u32, len: u32, stored: u32 },
    /// A table of checksums, and the blocks at whole pages of the file. So many zeros are before the table.
    Pages { gap: u32 },
    /// Blocks with their checksums, that begin at this place of another segment. `kept`: they were durable before the record was appended.
    Slot { place: LogPos, kept: bool },
}

/// The first 80 bytes of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct RecordHeader {
    pub(super) kind: Kind,
    pub(super) key: ChunkKey,
    pub(super) offset: u32,
    pub(super) len: u32,
    pub(super) seq: u64,
    pub(super) durable: u64,
    pub(super) version: ChunkVersion,
    /// In a moved tombstone: where it was first.
    pub(super) as_of: Option<LogPos>,
    /// Of the payload of a `Write`.
    pub(super) form: Form,
}

/// What makes a record header valid in one segment only.
#[derive(Clone, Copy, Debug)]
pub(super) struct SegmentSeed(u32);

impl SegmentSeed {
    pub(super) fn new(store: StoreId, segment: SegmentId) -> Self {
        let mut h = Hasher::new();
        h.update(&store.0);
        h.update(&u64::from(segment).to_le_bytes());
        Self(h.finalize())
    }

    pub(super) fn crc(self, position: u64, header: &[u8]) -> u32 {
        let mut h = Hasher::new_with_initial(self.0);
        h.update(&position.to_le_bytes());
        h.update(&header[8..RECORD_HEADER_LEN]);
        h.finalize()
    }
}

impl RecordHeader {
    /// Bytes after the header, without padding.
    pub(super) fn stored(&self) -> u32 {
        match (self.kind, self.form) {
            (Kind::Write, Form::Blocks) => stored_len(self.offset, self.len),
            (Kind::Write, Form::Packed { stored, .. }) => stored,
            (Kind::Write, Form::Pages { gap }) => gap + stored_len(self.offset, self.len),
            _ => 0,
        }
    }

    /// Bytes of its payload, wherever that is, if that has its checksums between the blocks.
    pub(super) fn payload_len(&self) -> u32 {
        stored_len(self.offset, self.len)
    }

    /// The same record at a position of a segment.
    pub(super) fn placed_at(self, position: u64) -> Self {
        match self.form {
            Form::Pages { .. } => {
                let gap = page_gap(position, self.offset, self.len);
                Self { form: Form::Pages { gap }, ..self }
            }
            Form::Blocks | Form::Packed { .. } | Form::Slot { .. } => self,
        }
    }

    /// Where the extent of a record that is at this position points to: the begin of the payload, of the blocks if they are in pages,
    /// or of the record if it holds no data.
    pub(super) fn data_at(&self, position: u64) -> u64 {
        let payload = position + RECORD_HEADER_LEN as u64;
        match (self.kind, self.form) {
            (Kind::Write, Form::Pages { gap }) => {
                payload + u64::from(gap) + table_len(self.offset, self.len)
            }
            (Kind::Write, Form::Blocks | Form::Packed { .. }) => payload,
            _ => position,
        }
    }

    /// In an `Away`: the version of the chunk that the object has.
    pub(super) fn object(&self) -> ChunkVersion {
        ChunkVersion(self.as_of.map_or(0, LogPos::to_u64))
    }

    /// Bytes that the whole record takes in the segment.
    pub(super) fn footprint(&self) -> u64 {
        record_footprint(self.stored())
    }

    pub(super) fn encode(&self, seed: SegmentSeed, position: u64) -> [u8; RECORD_HEADER_LEN] {
        let mut b = [0; RECORD_HEADER_LEN];
        put(&mut b, 0, &RECORD_MAGIC);
        b[8] = self.kind as u8;
        put(&mut b, 12, &self.key.generation.to_le_bytes());
        put(&mut b, 16, &self.key.ino.to_le_bytes());
        put(&mut b, 24, &self.key.index.to_le_bytes());
        put(&mut b, 32, &self.offset.to_le_bytes());
        put(&mut b, 36, &self.len.to_le_bytes());
        put(&mut b, 40, &self.seq.to_le_bytes());
        put(&mut b, 48, &self.durable.to_le_bytes());
        put(&mut b, 56, &self.version.0.to_le_bytes());
        put(&mut b, 64, &self.as_of.map_or(0, LogPos::to_u64).to_le_bytes());
        if let Form::Packed { offset, len, .. } = self.form {
            b[9] = PACKED;
            put(&mut b, 64, &offset.to_le_bytes());
            put(&mut b, 68, &len.to_le_bytes());
        }
        if let Form::Pages { .. } = self.form {
            b[9] = PAGES;
        }
        if let Form::Slot { place, kept } = self.form {
            b[9] = if kept { SLOT | KEPT } else { SLOT };
            put(&mut b, 64, &place.to_u64().to_le_bytes());
        }
        put(&mut b, 72, &self.stored().to_le_bytes());
        let crc = seed.crc(position, &b);
        put(&mut b, 4, &crc.to_le_bytes());
        b
    }

    /// `None` unless this is, bit for bit, a header that was written at this position of this segment.
    pub(super) fn decode(b: &[u8], seed: SegmentSeed, position: u64) -> Option<Self> {
        if b.len() < RECORD_HEADER_LEN
            || b[..4] != RECORD_MAGIC
            || get_u32(b, 4) != seed.crc(position, b)
        {
            return None;
        }
        let (offset, len) = (get_u32(b, 32), get_u32(b, 36));
        let form = match b[9] {
            0 => Form::Blocks,
            // The bytes stored are compared with what follows from this.
            PAGES => Form::Pages { gap: page_gap(position, offset, len) },
            PACKED => {
                let (offset, len) = (get_u32(b, 64), get_u32(b, 68));
                Form::Packed { offset, len, stored: get_u32(b, 72) }
            }
            flags if flags & !KEPT == SLOT => {
                let place = LogPos::from_u64(get_u64(b, 64))?;
                Form::Slot { place, kept: flags & KEPT != 0 }
            }
            _ => return None,
        };
        let header = Self {
            kind: Kind::from_byte(b[8])?,
            key: ChunkKey {
                ino: get_u64(b, 16),
                generation: get_u32(b, 12),
                index: get_u64(b, 24),
            },
            offset,
            len,
            seq: get_u64(b, 40),
            durable: get_u64(b, 48),
            version: ChunkVersion(get_u64(b, 56)),
            as_of: match form {
                Form::Blocks | Form::Pages { .. } => LogPos::from_u64(get_u64(b, 64)),
                Form::Packed { .. } | Form::Slot { .. } => None,
            },
            form,
        };
        let in_chunk = u64::from(header.offset) + u64::from(header.len) <= MAX_CHUNK_BYTES;
        let has_range = matches!(header.kind, Kind::Write | Kind::Punch | Kind::Bad | Kind::Away);
        let in_order = header.durable < header.seq && header.seq <= MAX_SEQ;
        let is_named = header.kind != Kind::Away || header.as_of.is_some();
        let has_form = in_order && is_named && header.is_form_sound();
        let sound = in_chunk && (header.len > 0) == has_range && has_form;
        (sound && get_u32(b, 72) == header.stored()).then_some(header)
    }

    /// Whether what is packed holds what the record says, and a slot can be where it is said to be.
    fn is_form_sound(&self) -> bool {
        let (offset, len, stored) = match self.form {
            Form::Blocks => return true,
            Form::Pages { .. } => return self.kind == Kind::Write,
            Form::Slot { place, .. } => {
                let end =
                    u64::from(place.at) + u64::from(self.len) + table_len(self.offset, self.len);
                return self.kind == Kind::Write
                    && (1..=MAX_SEGMENT).contains(&place.segment)
                    && u64::from(place.at) >= FIRST_RECORD + RECORD_HEADER_LEN as u64
                    && end <= u64::from(u32::MAX);
            }
            Form::Packed { offset, len, stored } => (offset, len, stored),
        };
        let end = u64::from(offset) + u64::from(len);
        self.kind == Kind::Write
            && end <= MAX_CHUNK_BYTES
            && offset <= self.offset
            && u64::from(self.offset) + u64::from(self.len) <= end
            && stored as usize > HEAD
            && u64::from(stored) <= Table::most_stored((offset, len))
    }
}

pub(super) fn record_footprint(stored: u32) -> u64 {
    (RECORD_HEADER_LEN as u64 + u64::from(stored)).next_multiple_of(RECORD_ALIGN)
}

/// Number of blocks that a range of a chunk touches.
pub(super) fn block_count(offset: u32, len: u32) -> u32 {
    (offset + len).div_ceil(BLOCK) - offset / BLOCK
}

/// Bytes that such a payload takes on disk.
pub(super) fn stored_len(offset: u32, len: u32) -> u32 {
    len + CRC_LEN * block_count(offset, len)
}

/// Bytes of the checksums of such a payload. For any numbers, also impossible ones.
pub(super) fn table_len(offset: u32, len: u32) -> u64 {
    let (block, end) = (u64::from(BLOCK), u64::from(offset) + u64::from(len));
    u64::from(CRC_LEN) * (end.div_ceil(block) - u64::from(offset) / block)
}

/// Zeros before the table of a payload in pages. For any numbers, also impossible ones.
fn page_gap(position: u64, offset: u32, len: u32) -> u32 {
    let block = u64::from(BLOCK);
    let data = position + RECORD_HEADER_LEN as u64 + table_len(offset, len);
    ((u64::from(offset) % block + block - data % block) % block) as u32
}

/// What makes a block valid for one place of one chunk only.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChunkSeed(u32);

impl ChunkSeed {
    pub(super) fn new(key: &ChunkKey) -> Self {
        let mut b = [0; 20];
        put(&mut b, 0, &key.ino.to_le_bytes());
        put(&mut b, 8, &key.generation.to_le_bytes());
        put(&mut b, 12, &key.index.to_le_bytes());
        Self(crc32fast::hash(&b))
    }

    /// A hasher for the block that begins at this offset of the chunk.
    pub(super) fn block(self, offset: u32) -> Hasher {
        let mut h = Hasher::new_with_initial(self.0);
        h.update(&offset.to_le_bytes());
        h
    }

    pub(super) fn crc(self, offset: u32, data: &[u8]) -> u32 {
        let mut h = self.block(offset);
        h.update(data);
        h.finalize()
    }
}

/// One block within the payload of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Block {
    /// Its first byte, in the chunk.
    pub(super) offset: u32,
    pub(super) len: u32,
    /// Its first byte, from the begin of the payload, or of the blocks if they are in pages.
    pub(super) at: u32,
}

/// As [`block_at`], of a payload that is `in_pages` or has its checksums between the blocks.
pub(super) fn block_in(in_pages: bool, (offset, len): (u32, u32), x: u32) -> Block {
    let block = block_at(offset, len, x);
    if in_pages { Block { at: block.offset - offset, ..block } } else { block }
}

/// The block that holds byte `x` of the chunk, in a record that covers `offset..offset + len`.
pub(super) fn block_at(offset: u32, len: u32, x: u32) -> Block {
    debug_assert!(x >= offset && x < offset + len);
    let floor = x / BLOCK * BLOCK;
    let start = floor.max(offset);
    let end = (floor + BLOCK).min(offset + len);
    Block {
        offset: start,
        len: end - start,
        at: start - offset + CRC_LEN * (x / BLOCK - offset / BLOCK),
    }
}
