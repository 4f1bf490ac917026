//! Records in pages: where they lie, what of their checksums is in memory, and what damage does.

use super::super::disk::sim::SimDisk;
use super::super::extent::Extent;
use super::super::format::segment_name;
use super::super::{ChunkVersion, ScrubCursor, SegmentStore, StoreError};
use super::{V0, assert_clean, assert_rebuilds, key, open, reclaim_all};

const LEN: usize = 12_000;

fn data(seed: u8) -> Vec<u8> {
    (0..LEN).map(|i| (i / 7) as u8 ^ seed).collect()
}

/// Writes a long record behind a shorter one; deleting that makes their segment worth reclaiming.
fn write(store: &SegmentStore, ino: u64, offset: u64) {
    store.write(key(100 + ino, 0), 0, &[[9; 9_000]], V0).unwrap();
    store.write(key(ino, 0), offset, &[data(ino as u8)], ChunkVersion(ino)).unwrap();
}

fn delete_others(store: &SegmentStore) {
    for ino in 1..20 {
        store.delete_chunks(100 + ino, 1, 0).unwrap();
    }
    reclaim_all(store);
}

fn extent(store: &SegmentStore, ino: u64) -> Extent {
    super::super::sync::read(&store.state).index.get(&key(ino, 0)).unwrap().extents.0[0]
}

/// Where the table of an extent's record begins.
fn table_of(e: &Extent) -> u64 {
    u64::from(e.at.at) - 4 * (LEN as u64).div_ceil(4096)
}

fn scrub(store: &SegmentStore) -> Vec<(u64, u64)> {
    let (mut cursor, mut bad) = (Some(ScrubCursor::default()), Vec::new());
    while let Some(at) = cursor {
        let step = store.scrub_step(at).unwrap();
        bad.extend(step.bad.iter().map(|bad| (bad.offset, bad.len)));
        cursor = step.next;
    }
    bad
}

#[test]
fn long_records_lie_at_whole_pages_and_do_so_when_they_have_moved() {
    let disk = SimDisk::new(1, 8 << 20);
    let store = open(&disk);
    let places = [(1, 0), (2, 4096), (3, 5), (4, 8191)];
    let look = |(ino, offset): (u64, u64)| {
        let e = extent(&store, ino);
        assert_eq!(e.pages(), Some((offset as u32, LEN as u32)));
        assert_eq!(u64::from(e.at.at) % 4096, offset % 4096, "of {ino}");
        let data = data(ino as u8);
        assert_eq!(store.read(key(ino, 0), offset, LEN as u64).unwrap(), data);
        assert_eq!(store.read(key(ino, 0), offset + 4000, 7000).unwrap(), data[4000..11_000]);
        e.at
    };
    places.iter().for_each(|(ino, offset)| write(&store, *ino, *offset));
    let before = places.map(look);
    delete_others(&store);
    let moved = places.map(look);
    assert!(moved.iter().zip(&before).all(|(moved, before)| moved.segment != before.segment));
    assert_rebuilds(&store, &disk);
    drop(store);
    assert_clean(&disk);
}

#[test]
fn checksums_in_memory_are_bounded_and_spare_a_read() {
    let disk = SimDisk::new(1, 8 << 20);
    let store = open(&disk);
    for ino in 1..=9 {
        store.write(key(ino, 0), 0, &[data(ino as u8)], V0).unwrap();
    }
    for ino in 1..=9 {
        assert_eq!(store.read(key(ino, 0), 0, LEN as u64).unwrap(), data(ino as u8));
        assert!(store.tables.bytes() <= 300, "{}", store.tables.bytes());
    }
    assert!(store.tables.bytes() > 100);
    // The last one is in memory, the first one is not any more.
    for (ino, known) in [(9, true), (1, false)] {
        let e = extent(&store, ino);
        let at = table_of(&e);
        disk.set_unreadable(&segment_name(e.at.segment), at, at + 4);
        let found = store.read(key(ino, 0), 4096, 4096);
        match known {
            true => assert_eq!(found.unwrap(), data(ino as u8)[4096..8192]),
            false => assert!(matches!(found, Err(StoreError::Corrupt { .. }))),
        }
    }
}

#[test]
fn checksums_in_memory_are_believed_only_if_they_fit() {
    let disk = SimDisk::new(1, 8 << 20);
    let store = open(&disk);
    store.write(key(1, 0), 0, &[data(1)], V0).unwrap();
    let e = extent(&store, 1);
    for wrong in [vec![7; 5], vec![], vec![1; 500]] {
        store.tables.put(e.at, wrong.into());
        assert_eq!(store.read(key(1, 0), 4096, 10).unwrap(), data(1)[4096..4106]);
        assert_eq!(store.read(key(1, 0), 0, LEN as u64).unwrap(), data(1));
    }
}

#[test]
fn a_damaged_checksum_costs_its_block_only() {
    let disk = SimDisk::new(1, 8 << 20);
    let store = open(&disk);
    write(&store, 1, 0);
    let e = extent(&store, 1);
    disk.tamper(&segment_name(e.at.segment), |b| b[table_of(&e) as usize + 5] ^= 1);
    assert_eq!(store.read(key(1, 0), 0, 4096).unwrap(), data(1)[..4096]);
    assert!(matches!(store.read(key(1, 0), 4096, 4096), Err(StoreError::Corrupt { .. })));
    assert_eq!(store.read(key(1, 0), 8192, 3808).unwrap(), data(1)[8192..]);
    assert_eq!(scrub(&store), [(4096, 4096)]);
    // Moving keeps what is sound.
    write(&store, 2, 0);
    delete_others(&store);
    assert_ne!(extent(&store, 1).at, e.at);
    assert!(matches!(store.read(key(1, 0), 4096, 4096), Err(StoreError::Corrupt { .. })));
    assert_eq!(store.read(key(1, 0), 8192, 3000).unwrap(), data(1)[8192..11_192]);
}
