//! The bytes on disk, pinned. A change of the format gets a new fixture beside these, and these must still open.

use super::super::disk::Disk;
use super::super::disk::sim::SimDisk;
use super::super::{ChunkKey, StoreConfig};
use super::{assert_clean, key, open, small, try_open};

/// The files of a store of version 1, in hexadecimal.
const FILES: [(&str, &str); 3] = [
    ("store", include_str!("fixture_v1/store.hex")),
    ("0000000000000001.seg", include_str!("fixture_v1/segment.hex")),
    ("index.snap", include_str!("fixture_v1/snapshot.hex")),
];

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
    let store = try_open(disk, StoreConfig { segment_bytes: 64 << 10, ..small() }).unwrap().0;
    store.write(key(7, 0), 4090, &[b"two blocks of a chunk"]).unwrap();
    store
        .write(ChunkKey { ino: 0x0102_0304_0506_0708, generation: 9, index: 10 }, 0, &[b"big key"])
        .unwrap();
    store.write(key(8, 3), 0, &[b"to be deleted"]).unwrap();
    store.punch(key(7, 0), 4096, 4).unwrap();
    store.delete_chunks(8, 1, 2).unwrap();
    store.close().unwrap();
}

#[test]
fn the_format_is_pinned() {
    let disk = SimDisk::new(1, 8 << 20);
    make(&disk);
    for (name, expected) in FILES {
        let bytes = disk.tamper(name, |b| b.clone());
        assert_eq!(to_hex(&bytes), expected, "{name}");
    }
}

#[test]
fn a_store_of_version_1_opens() {
    for with_snapshot in [true, false] {
        let disk = SimDisk::new(1, 8 << 20);
        for (name, hex) in FILES {
            if with_snapshot || name != "index.snap" {
                disk.create(name).unwrap();
                disk.tamper(name, |b| *b = from_hex(hex));
            }
        }
        disk.sync_dir().unwrap();
        assert_clean(&disk);
        let store = open(&disk);
        let chunk = store.read(key(7, 0), 4090, 21).unwrap();
        assert_eq!(chunk, b"two bl\0\0\0\0 of a chunk");
        assert_eq!(store.extents(key(7, 0)), [(4090, 6), (4100, 11)]);
        let keys: Vec<ChunkKey> = store.list(ChunkKey::MIN, 10).iter().map(|c| c.key).collect();
        assert_eq!(
            keys,
            [key(7, 0), ChunkKey { ino: 0x0102_0304_0506_0708, generation: 9, index: 10 }]
        );
    }
}
