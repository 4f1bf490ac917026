//! The bytes on disk, pinned. A change of the format gets a new fixture beside these, and these must still open.

use std::sync::Arc;

use netfs_common::coding::Compression;

use super::super::disk::Disk;
use super::super::disk::sim::SimDisk;
use super::super::holes::Aim;
use super::super::sync::{lock, read};
use super::super::{ChunkKey, ChunkVersion, StoreConfig};
use super::{V0, assert_clean, key, open, small, try_open};
use crate::data::codec::Codec;

/// The files of a store, in hexadecimal.
type Files = &'static [(&'static str, &'static str)];

const FILES_V1: Files = &[
    ("store", include_str!("fixture_v1/store.hex")),
    ("0000000000000001.seg", include_str!("fixture_v1/segment.hex")),
    ("index.snap", include_str!("fixture_v1/snapshot.hex")),
];

const FILES_V2: Files = &[
    ("store", include_str!("fixture_v2/store.hex")),
    ("0000000000000001.seg", include_str!("fixture_v2/segment.hex")),
    ("index.snap", include_str!("fixture_v2/snapshot.hex")),
];

const FILES_V3: Files = &[
    ("store", include_str!("fixture_v3/store.hex")),
    ("0000000000000001.seg", include_str!("fixture_v3/segment.hex")),
    ("index.snap", include_str!("fixture_v3/snapshot.hex")),
];

const FILES_V4: Files = &[
    ("store", include_str!("fixture_v4/store.hex")),
    ("0000000000000001.seg", include_str!("fixture_v4/segment.hex")),
    ("index.snap", include_str!("fixture_v4/snapshot.hex")),
];

const FILES_V5: Files = &[
    ("store", include_str!("fixture_v5/store.hex")),
    ("0000000000000001.seg", include_str!("fixture_v5/segment.hex")),
    ("0000000000000002.seg", include_str!("fixture_v5/segment_2.hex")),
    ("index.snap", include_str!("fixture_v5/snapshot.hex")),
];

/// In a volume that is compressed. What LZ4 makes of it may change with the library.
const PACKED: ChunkKey = ChunkKey { ino: 1 << 48, generation: 1, index: 0 };
const BIG: ChunkKey = ChunkKey { ino: 0x0102_0304_0506_0708, generation: 9, index: 10 };
const BIG_VERSION: ChunkVersion = ChunkVersion(0x1112_1314_1516_1718);

fn to_hex(bytes: &[u8]) -> String {
    let line = |l: &[u8]| l.iter().map(|b| format!("{b:02x}")).collect::<String>() + "\n";
    bytes.chunks(32).map(line).collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    (0..digits.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap())
        .collect()
}

/// One record of each kind that a client can cause.
fn make(disk: &SimDisk) {
    let config = StoreConfig { segment_bytes: 64 << 10, paged_bytes: 4097, ..small() };
    let store = try_open(disk, config).unwrap().0;
    store.write(key(7, 0), 4090, &[b"two blocks of a chunk"], ChunkVersion(5)).unwrap();
    store.write(BIG, 0, &[b"big key"], BIG_VERSION).unwrap();
    store.write(key(8, 3), 0, &[b"to be deleted"], V0).unwrap();
    store.write(key(9, 0), 0, &[b"stamped"], V0).unwrap();
    store.stamp(key(9, 0), ChunkVersion(7)).unwrap();
    store.punch(key(7, 0), 4096, 4, ChunkVersion(6)).unwrap();
    store.delete_chunks(8, 1, 2).unwrap();
    store.set_codec(1, Some(Arc::new(Codec::new(Compression::Lz4, None).with_frames(12))));
    store.write(PACKED, 4000, &[[b'z'; 200]], ChunkVersion(8)).unwrap();
    store.write(key(9, 1), 100, &[b"away"], ChunkVersion(9)).unwrap();
    store.send_away(key(9, 1), ChunkVersion(9)).unwrap();
    store.write(key(9, 2), 4000, &[[b'p'; 4200]], ChunkVersion(10)).unwrap();
    // In the place of another, once that is not in the last segment.
    store.write(key(9, 3), 0, &[[b'd'; 4300]], ChunkVersion(11)).unwrap();
    store.log.roll(&mut lock(&store.log.tail)).unwrap();
    store.punch(key(9, 3), 0, 4300, ChunkVersion(12)).unwrap();
    assert!(store.sweep_all(Aim::Slots).unwrap() > 0);
    store.write(key(9, 3), 0, &[[b's'; 4096]], ChunkVersion(13)).unwrap();
    store.close().unwrap();
}

#[test]
fn the_format_is_pinned() {
    let disk = SimDisk::new(1, 8 << 20);
    make(&disk);
    for (name, expected) in FILES_V5 {
        let bytes = disk.tamper(name, |b| b.clone());
        assert_eq!(to_hex(&bytes), *expected, "{name}");
    }
}

/// Opens a fixture, once with its snapshot and once without.
fn each_opening(files: Files, look: impl Fn(&super::SegmentStore)) {
    for with_snapshot in [true, false] {
        let disk = SimDisk::new(1, 8 << 20);
        for (name, hex) in files {
            if with_snapshot || *name != "index.snap" {
                disk.create(name).unwrap();
                disk.tamper(name, |b| *b = from_hex(hex));
            }
        }
        disk.sync_dir().unwrap();
        assert_clean(&disk);
        let (store, report) = try_open(&disk, small()).unwrap();
        assert_eq!((report.snapshot_used, report.snapshot_fault), (with_snapshot, None));
        let chunk = store.read(key(7, 0), 4090, 21).unwrap();
        assert_eq!(chunk, b"two bl\0\0\0\0 of a chunk");
        assert_eq!(store.extents(key(7, 0)), [(4090, 6), (4100, 11)]);
        look(&store);
        assert_clean(&disk);
        drop(store);
        look(&open(&disk));
    }
}

fn versions(store: &super::SegmentStore) -> Vec<(ChunkKey, ChunkVersion)> {
    store.list(ChunkKey::MIN, 10).iter().map(|c| (c.key, c.version)).collect()
}

#[test]
fn a_store_of_version_1_opens() {
    each_opening(FILES_V1, |store| {
        assert_eq!(versions(store), [(key(7, 0), V0), (BIG, V0)]);
    });
}

#[test]
fn a_store_of_version_2_opens() {
    each_opening(FILES_V2, |store| {
        let stamped = (key(9, 0), ChunkVersion(7));
        assert_eq!(versions(store), [(key(7, 0), ChunkVersion(6)), stamped, (BIG, BIG_VERSION)]);
    });
}

#[test]
fn a_store_of_version_3_opens() {
    each_opening(FILES_V3, |store| {
        let (stamped, away) = ((key(9, 0), ChunkVersion(7)), (key(9, 1), ChunkVersion(9)));
        let (first, packed) = ((key(7, 0), ChunkVersion(6)), (PACKED, ChunkVersion(8)));
        assert_eq!(versions(store), [first, stamped, away, packed, (BIG, BIG_VERSION)]);
        assert_eq!(store.read(PACKED, 4000, 200).unwrap(), [b'z'; 200]);
        assert_eq!(store.read(PACKED, 4090, 10).unwrap(), [b'z'; 10]);
        let parts = store.away(key(9, 1)).unwrap();
        assert_eq!((parts.object, parts.ranges), (ChunkVersion(9), vec![(100, 4)]));
    });
}

#[test]
fn a_store_of_version_4_opens() {
    each_opening(FILES_V4, |store| {
        let (away, paged) = ((key(9, 1), ChunkVersion(9)), (key(9, 2), ChunkVersion(10)));
        assert_eq!(versions(store)[2..4], [away, paged]);
        assert_eq!(store.read(PACKED, 4000, 200).unwrap(), [b'z'; 200]);
        assert_eq!(store.read(key(9, 2), 4000, 4200).unwrap(), [b'p'; 4200]);
        assert_eq!(store.read(key(9, 2), 4095, 2).unwrap(), [b'p'; 2]);
        let place = read(&store.state).index.get(&key(9, 2)).unwrap().extents.0[0];
        // Byte 4096 of the chunk is the first of a page.
        assert_eq!((place.pages(), (place.at.at + 96) % 4096), (Some((4000, 4200)), 0));
    });
}

#[test]
fn a_store_of_version_5_opens() {
    each_opening(FILES_V5, |store| {
        assert_eq!(store.read(key(9, 2), 4000, 4200).unwrap(), [b'p'; 4200]);
        assert_eq!(store.read(key(9, 3), 0, 4096).unwrap(), [b's'; 4096]);
        let state = read(&store.state);
        let place = state.index.get(&key(9, 3)).unwrap().extents.0[0];
        assert_eq!((place.is_in_slot(), place.at.segment), (true, 2));
        assert_eq!(state.slots.place(place.at).map(|slot| slot.segment), Some(1));
    });
}
