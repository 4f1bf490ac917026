//! What becomes of a store whose files hold arbitrary bytes.
//!
//! An input is a little program: it writes a store on a disk in memory, changes bytes of its files, and is then judged by what
//! opening makes of them. After some of the changes all checksums are made right again ("sealed"), so that what lies behind
//! them is reached too: values that no store ever wrote, but that a fault in a program could have.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use netfs_common::coding::{Cipher, Compression};
use netfs_common::map::INODE_BITS;

use super::check::check_disk;
use super::disk::Disk;
use super::disk::sim::SimDisk;
use super::format::{
    BLOCK, FIRST_RECORD, FORMAT_VERSION, Form, HEADER_BLOCK_LEN, HeaderBlock, Kind, LogPos,
    MAX_CHUNK_BYTES, RECORD_ALIGN, RECORD_HEADER_LEN, RECORD_MAGIC, RecordHeader, SEGMENT_MAGIC,
    STORE_FILE, SegmentSeed, StoreId, get_u32, parse_segment_name, segment_name,
};
use super::holes::Aim;
use super::snapshot::{SNAPSHOT_FILE, frame_crc};
use super::{ChunkKey, ChunkVersion, ScrubCursor, SegmentStore, StoreConfig, StoreError};
use crate::data::codec::{Codec, VolumeKey, seal_checksums};
use crate::fuzzing::{Input, put};

const ID: StoreId = StoreId(*b"a store to fuzz!");
const DIR: &str = "sim";
/// Bounds that keep one input within milliseconds.
const OPS_MAX: usize = 40;
const EDITS_MAX: usize = 40;
const CHUNKS_SEEN: usize = 24;
const BLOCKS_SEEN: usize = 24;

/// Runs one input.
///
/// # Panics
/// When the store breaks a promise: it panics, a second opening finds something else than the first, reclamation
/// changes what is read, or a store that was refused was changed.
pub fn recover(input: &[u8]) {
    let mut input = Input(input);
    let disk = SimDisk::new(1, 64 << 20);
    let sealed = input.byte() & 1 != 0;
    build(&disk, &mut input);
    let mut marks = Marks::of(&disk);
    let mut intact = true;
    for _ in 0..EDITS_MAX {
        if input.0.is_empty() {
            break;
        }
        edit(&disk, &mut input, &mut marks);
        intact = false;
    }
    if sealed {
        marks.seal(&disk);
    }
    examine(&disk, intact);
}

fn config() -> StoreConfig {
    StoreConfig {
        segment_bytes: 16 << 10,
        reserve_bytes: 0,
        max_chunk_bytes: MAX_CHUNK_BYTES,
        max_extents_per_mib: 12,
        step_bytes: 8 << 10,
        checkpoint_bytes: 64 << 10,
        paged_bytes: 5000,
        checksum_cache_bytes: 300,
        max_open_segments: 3,
        ..StoreConfig::default()
    }
}

fn open(disk: &SimDisk) -> Result<(SegmentStore, super::RecoveryReport), StoreError> {
    let opened =
        SegmentStore::open_on(Arc::new(disk.clone()), Path::new(DIR), config(), ID, &|_| Ok(()))?;
    for (volume, codec) in (1..).zip(codecs()) {
        opened.0.set_codec(volume, Some(Arc::new(codec)));
    }
    Ok(opened)
}

/// Of the volumes 1 to 3; what is in volume 0 is stored as it is.
fn codecs() -> [Codec; 3] {
    let key = |cipher| Some(VolumeKey::fixed(cipher, [7; 32]));
    let codec = |compression, key| Codec::new(compression, key).with_frames(12);
    [
        codec(Compression::Lz4, None),
        codec(Compression::Zstd, key(Cipher::Aes256Gcm)),
        codec(Compression::None, key(Cipher::ChaCha20Poly1305)),
    ]
}

/// A store as operations leave it.
fn build(disk: &SimDisk, input: &mut Input<'_>) {
    let (mut store, _) = open(disk).expect("an empty disk takes a store");
    for _ in 0..usize::from(input.byte()) % OPS_MAX {
        let op = input.byte();
        let which = input.byte();
        let key = ChunkKey {
            ino: (1 + u64::from(which & 3)) | u64::from(which >> 4 & 3) << INODE_BITS,
            generation: 1,
            index: u64::from(which >> 2 & 3),
        };
        let offset = input.number::<2>();
        // Few of them, so that some changes have the version of the one before.
        let version = ChunkVersion(u64::from(op >> 4));
        match op % 8 {
            0..3 => {
                let len = 1 + input.number::<2>() % 10_000;
                store.write(key, offset, &[vec![which | 1; len as usize]], version).map(drop)
            }
            3 => store.punch(key, offset, 1 + input.number::<2>(), version).map(drop),
            4 => store.delete_chunks(key.ino, 1, key.index).map(drop),
            5 => store.flush(),
            6 if which & 1 == 0 => store.reclaim_step().map(drop),
            6 => store.sweep_all(Aim::Slots).map(drop),
            _ if which & 1 == 0 => store.checkpoint(),
            _ => {
                drop(store);
                store = open(disk).expect("what the store wrote opens").0;
                Ok(())
            }
        }
        .expect("the disk works and has room");
    }
    store.flush().expect("the disk works");
}

/// The places in the files that carry checksums.
struct Marks {
    /// Where records begin, by segment file.
    records: BTreeMap<String, Vec<u64>>,
}

impl Marks {
    fn of(disk: &SimDisk) -> Self {
        let mut records = BTreeMap::new();
        for name in names(disk) {
            let Some(id) = parse_segment_name(&name) else { continue };
            let seed = SegmentSeed::new(ID, id);
            let bytes = disk.tamper(&name, |bytes| bytes.clone());
            let mut at = FIRST_RECORD;
            let mut found = Vec::new();
            while let Some(header) =
                bytes.get(at as usize..).and_then(|b| RecordHeader::decode(b, seed, at))
            {
                found.push(at);
                at += header.footprint();
            }
            records.insert(name, found);
        }
        Self { records }
    }

    /// Makes all checksums right, except those of payloads.
    fn seal(&self, disk: &SimDisk) {
        for name in names(disk) {
            disk.tamper(&name, |bytes| {
                if name == STORE_FILE {
                    seal_block(bytes);
                } else if name == SNAPSHOT_FILE {
                    seal_snapshot(bytes);
                } else if let Some(id) = parse_segment_name(&name) {
                    seal_block(bytes);
                    let seed = SegmentSeed::new(ID, id);
                    for at in self.records.get(&name).into_iter().flatten() {
                        let header = bytes.get_mut(*at as usize..).unwrap_or_default();
                        if let Some((header, payload)) =
                            header.split_first_chunk_mut::<RECORD_HEADER_LEN>()
                        {
                            header[..4].copy_from_slice(&RECORD_MAGIC);
                            let crc = seed.crc(*at, header);
                            header[4..8].copy_from_slice(&crc.to_le_bytes());
                            seal_packed(header, payload, seed, *at);
                        }
                    }
                }
            });
        }
    }
}

/// Makes the checksums of a packed payload right.
fn seal_packed(header: &[u8], payload: &mut [u8], seed: SegmentSeed, at: u64) {
    let Some(header) = RecordHeader::decode(header, seed, at) else { return };
    if let Form::Packed { offset, len, stored } = header.form
        && let Some(payload) = payload.get_mut(..stored as usize)
    {
        seal_checksums(payload, &header.key, (offset, len));
    }
}

fn seal_block(bytes: &mut [u8]) {
    if let Some(block) = bytes.first_chunk_mut::<HEADER_BLOCK_LEN>() {
        let crc = crc32fast::hash(&block[..60]);
        block[60..].copy_from_slice(&crc.to_le_bytes());
    }
}

fn seal_snapshot(bytes: &mut [u8]) {
    let mut at = 0;
    for number in 0.. {
        let Some(head) = bytes.get(at..at + 8) else { return };
        let end = at + 8 + get_u32(head, 0) as usize;
        let Some(payload) = bytes.get(at + 8..end) else { return };
        let crc = frame_crc(ID, number, payload);
        bytes[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
        at = end;
    }
}

fn names(disk: &SimDisk) -> Vec<String> {
    disk.list().expect("the disk works")
}

fn content(disk: &SimDisk) -> BTreeMap<String, Vec<u8>> {
    names(disk).into_iter().map(|n| (n.clone(), disk.tamper(&n, |bytes| bytes.clone()))).collect()
}

/// Changes one thing behind the store's back.
fn edit(disk: &SimDisk, input: &mut Input<'_>, marks: &mut Marks) {
    let kind = input.byte();
    let all = names(disk);
    let pick = usize::from(input.byte());
    let Some(name) = all.get(pick % all.len().max(1)).cloned() else { return };
    match kind % 16 {
        0 => drop(disk.remove(&name)),
        1 => {
            // Under another number, where nothing in it is valid before it is sealed.
            let to = segment_name((input.telling() as u32).max(1));
            if disk.rename(&name, &to).is_ok()
                && let Some(records) = marks.records.remove(&name)
            {
                marks.records.insert(to, records);
            }
        }
        2 => append_record(disk, input, marks, &name),
        3 => {
            let body = input.number::<1>() as usize;
            let body = input.take(body);
            drop(disk.create(SNAPSHOT_FILE));
            disk.tamper(SNAPSHOT_FILE, |bytes| {
                bytes.extend((body.len() as u32).to_le_bytes());
                bytes.extend(frame_crc(ID, 0, &body).to_le_bytes());
                bytes.extend(&body);
                bytes.extend(0u32.to_le_bytes());
                bytes.extend(frame_crc(ID, 1, &[]).to_le_bytes());
            });
        }
        4 => new_segment(disk, input, marks),
        5..9 => {
            // A field of a record, or of what comes after its header: there are the tables of packed payloads.
            let records = marks.records.get(&name).map(Vec::as_slice).unwrap_or_default();
            let nth = usize::from(input.byte());
            let record = records.get(nth % records.len().max(1)).copied().unwrap_or(0);
            let at = record as usize + usize::from(input.byte());
            let value = input.telling();
            disk.tamper(&name, |bytes| put(bytes, at, value, width(kind)));
        }
        9..12 => {
            let at = input.number::<2>() as usize;
            let value = input.telling();
            disk.tamper(&name, |bytes| put(bytes, at, value, width(kind)));
        }
        12 => {
            let at = input.number::<2>() as usize;
            disk.tamper(&name, |bytes| bytes.truncate(at));
        }
        13 => {
            let (at, len) = (input.number::<2>() as usize, input.number::<2>() as usize);
            disk.tamper(&name, |bytes| {
                let end = (at + len).min(bytes.len());
                bytes.get_mut(at..end).unwrap_or_default().fill(0);
            });
        }
        14 => {
            let len = usize::from(input.byte());
            let raw = input.take(len);
            disk.tamper(&name, |bytes| bytes.extend(raw));
        }
        _ => {
            let at = input.number::<2>() as usize;
            let mask = input.byte() | 1;
            disk.tamper(&name, |bytes| {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= mask;
                }
            });
        }
    }
}

/// How many bytes a change is wide.
fn width(kind: u8) -> usize {
    [1, 4, 8, 8][usize::from(kind >> 4 & 3)]
}

fn append_record(disk: &SimDisk, input: &mut Input<'_>, marks: &mut Marks, name: &str) {
    let Some(id) = parse_segment_name(name) else { return };
    let kinds = [
        Kind::Write,
        Kind::Punch,
        Kind::Delete,
        Kind::Bad,
        Kind::Mark,
        Kind::Retire,
        Kind::Write,
        Kind::Stamp,
        Kind::Lost,
        Kind::Away,
        Kind::Write,
    ];
    let which = usize::from(input.byte()) % kinds.len();
    let kind = kinds[which];
    let place = LogPos { segment: input.telling() as u32, at: input.telling() as u32 };
    // One of the writes is in pages, and one in a slot.
    let form = match which {
        6 => Form::Pages { gap: 0 },
        10 => Form::Slot { place, kept: place.at.is_multiple_of(2) },
        _ => Form::Blocks,
    };
    let ranged = matches!(kind, Kind::Write | Kind::Punch | Kind::Bad | Kind::Away);
    let offset = (input.telling() % MAX_CHUNK_BYTES) as u32;
    let len = 1 + input.telling() % 5000;
    let len = len.min(MAX_CHUNK_BYTES - u64::from(offset)) as u32;
    let header = RecordHeader {
        kind,
        key: ChunkKey { ino: input.telling(), generation: 1, index: input.telling() },
        offset,
        len: if ranged { len } else { 0 },
        seq: input.telling(),
        durable: input.telling(),
        version: ChunkVersion(input.telling()),
        as_of: LogPos::from_u64(input.telling()),
        form,
    };
    disk.tamper(name, |bytes| {
        bytes.resize(bytes.len().next_multiple_of(RECORD_ALIGN as usize), 0);
        let at = bytes.len() as u64;
        let header = header.placed_at(at);
        bytes.extend(header.encode(SegmentSeed::new(ID, id), at));
        bytes.resize((at + header.footprint()) as usize, 7);
        marks.records.entry(name.into()).or_default().push(at);
    });
}

fn new_segment(disk: &SimDisk, input: &mut Input<'_>, marks: &mut Marks) {
    let segment = (input.telling() as u32).max(1);
    let (format, first_seq) = (FORMAT_VERSION, input.telling());
    let block = HeaderBlock { magic: SEGMENT_MAGIC, format, store: ID, segment, first_seq };
    let name = segment_name(segment);
    drop(disk.create(&name));
    disk.tamper(&name, |bytes| bytes.extend(block.encode()));
    marks.records.insert(name, Vec::new());
}

/// What a store shows: per chunk its version, and per block its bytes, or `None` where they are known to be lost.
type View = BTreeMap<ChunkKey, (ChunkVersion, BTreeMap<u64, Option<Vec<u8>>>)>;

fn view(store: &SegmentStore, of: &[ChunkKey]) -> View {
    let mut out = View::new();
    for key in of {
        let block = u64::from(BLOCK);
        let mut seen = BTreeMap::new();
        let blocks = store
            .extents(*key)
            .into_iter()
            .flat_map(|(at, len)| at / block..(at + len).div_ceil(block));
        for n in blocks.take(BLOCKS_SEEN) {
            let bytes = match store.read(*key, n * block, block) {
                Ok(bytes) => Some(bytes),
                Err(
                    StoreError::Corrupt { .. } | StoreError::NoKey { .. } | StoreError::Away { .. },
                ) => None,
                Err(e) => panic!("reading chunk {key}: {e}"),
            };
            seen.insert(n, bytes);
        }
        out.insert(*key, (store.version(*key), seen));
    }
    out
}

fn examine(disk: &SimDisk, intact: bool) {
    let checked = check_disk(disk, Path::new(DIR));
    if intact {
        let report = checked.as_ref().expect("what the store wrote can be checked");
        assert!(report.is_clean(), "{report:?}");
    }
    let before = content(disk);
    let (store, report) = match open(disk) {
        Ok(opened) => opened,
        Err(error) => {
            assert!(!intact, "{error}");
            assert!(!error.to_string().contains('\n'), "{error}");
            assert_eq!(content(disk), before, "refused, but changed: {error}");
            return;
        }
    };
    assert!(!intact || report.is_clean(), "{report:?}");
    let keys: Vec<_> =
        store.list(ChunkKey::MIN, CHUNKS_SEEN).into_iter().map(|chunk| chunk.key).collect();
    let first = view(&store, &keys);
    drop(store);
    let (store, _) = open(disk).expect("what was opened opens again");
    assert_eq!(first, view(&store, &keys), "a second opening shows something else");
    if let Err(error) = exercise(&store) {
        // After the last number there is none.
        assert!(error.to_string().contains("used up"), "{error}");
        return;
    }
    assert_eq!(first, view(&store, &keys), "using the store changed what it holds");
    drop(store);
    drop(check_disk(disk, Path::new(DIR)).expect("an open store could be checked"));
    let (store, _) = open(disk).expect("what was used opens again");
    assert_eq!(first, view(&store, &keys), "an opening after use shows something else");
}

/// Everything that a server does with a store, in small.
fn exercise(store: &SegmentStore) -> Result<(), StoreError> {
    let key = ChunkKey { ino: 1 << 40, generation: 1, index: 7 };
    let data = vec![9; 5000];
    store.delete_chunks(key.ino, 1, 0)?;
    store.write(key, 100, &[&data], ChunkVersion(5))?;
    store.flush()?;
    assert_eq!(store.read(key, 100, 5000)?, data);
    for _ in 0..60 {
        if store.reclaim_step()?.idle {
            break;
        }
    }
    assert_eq!(store.read(key, 100, 5000)?, data);
    let mut cursor = Some(ScrubCursor::default());
    for _ in 0..1000 {
        let Some(at) = cursor else { break };
        cursor = store.scrub_step(at)?.next;
    }
    assert_eq!(cursor, None, "a scrub does not end");
    store.delete_chunks(key.ino, 1, 0)?;
    store.checkpoint()?;
    store.usage().map(drop)
}

#[cfg(test)]
mod tests {
    use super::super::format::{MAX_SEGMENT, MAX_SEQ};
    use super::*;

    #[test]
    fn whatever_is_on_disk_is_opened_or_refused() {
        crate::fuzzing::try_inputs(1000, 400, recover);
    }

    #[test]
    fn a_segment_with_a_number_far_beyond_the_others_costs_no_more_than_any() {
        for segment in [u32::MAX, MAX_SEGMENT, MAX_SEGMENT / 2] {
            let disk = SimDisk::new(1, 64 << 20);
            let store = open(&disk).unwrap().0;
            store
                .write(ChunkKey { ino: 1, generation: 1, index: 0 }, 0, &[b"data"], ChunkVersion(1))
                .unwrap();
            store.close().unwrap();
            let (magic, format) = (SEGMENT_MAGIC, FORMAT_VERSION);
            let header = HeaderBlock { magic, format, store: ID, segment, first_seq: 2 };
            // Its record says that all before it had been flushed, so it is not taken for an unflushed end.
            let record = RecordHeader {
                kind: Kind::Mark,
                key: ChunkKey::MIN,
                offset: 0,
                len: 0,
                seq: 1 << 40,
                durable: 1 << 39,
                version: ChunkVersion::UNKNOWN,
                as_of: None,
                form: Form::Blocks,
            };
            let name = segment_name(segment);
            drop(disk.create(&name).unwrap());
            disk.tamper(&name, |bytes| {
                bytes.extend(header.encode());
                bytes.extend(record.encode(SegmentSeed::new(ID, segment), FIRST_RECORD));
            });
            match open(&disk) {
                Ok((_, report)) => assert!(report.missing_segments.len() <= 1000),
                Err(error) => assert!(error.to_string().contains("used up"), "{error}"),
            }
        }
    }

    #[test]
    fn records_with_impossible_numbers_are_damage() {
        let seed = SegmentSeed::new(ID, 1);
        for (seq, sound) in [(MAX_SEQ, true), (MAX_SEQ + 1, false), (u64::MAX, false)] {
            let header = RecordHeader {
                kind: Kind::Mark,
                key: ChunkKey::MIN,
                offset: 0,
                len: 0,
                seq,
                durable: 1,
                version: ChunkVersion::UNKNOWN,
                as_of: None,
                form: Form::Blocks,
            };
            assert_eq!(RecordHeader::decode(&header.encode(seed, 64), seed, 64).is_some(), sound);
        }
    }
}
