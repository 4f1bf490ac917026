//! Chunks whose bytes are elsewhere.

use super::super::disk::sim::SimDisk;
use super::super::{AwayParts, ChunkKey, ChunkVersion, SegmentStore, StoreError};
use super::{KIB, assert_clean, assert_rebuilds, key, open, reclaim_all};

const V: ChunkVersion = ChunkVersion(7);
const W: ChunkVersion = ChunkVersion(8);

fn fill(at: u32, out: &mut [u8]) {
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = (at as usize + i) as u8 | 1;
    }
}

fn contents(at: u32, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    fill(at, &mut out);
    out
}

fn away(store: &SegmentStore, key: ChunkKey) -> Option<Vec<(u32, u32)>> {
    store.away(key).map(|parts| parts.ranges)
}

fn with_two_pieces(disk: &SimDisk) -> SegmentStore {
    let store = open(disk);
    store.write(key(1, 0), 0, &[contents(0, 20_000)], V).unwrap();
    store.write(key(1, 0), 30_000, &[contents(30_000, 5_000)], V).unwrap();
    store
}

#[test]
fn what_is_away_is_listed_with_its_version_and_its_ranges_and_cannot_be_read() {
    let disk = SimDisk::new(1, 8 << 20);
    let store = with_two_pieces(&disk);
    let before = store.list(ChunkKey::MIN, 9);
    assert_eq!(store.send_away(key(1, 0), W).unwrap(), None, "it has another version");
    assert_eq!(store.send_away(key(1, 0), V).unwrap(), Some(25_000));
    assert_eq!(store.send_away(key(1, 0), V).unwrap(), Some(0), "once more changes nothing");
    let look = |store: &SegmentStore| {
        let after = store.list(ChunkKey::MIN, 9);
        assert_eq!((after[0].away_bytes, after[0].object), (25_000, V));
        assert_eq!(after[0].allocated_bytes, before[0].allocated_bytes);
        assert_eq!((after[0].end, after[0].version), (before[0].end, before[0].version));
        assert_eq!(store.extents(key(1, 0)), [(0, 20_000), (30_000, 5_000)]);
        let ranges = vec![(0, 20_000), (30_000, 5_000)];
        assert_eq!(store.away(key(1, 0)), Some(AwayParts { object: V, version: V, ranges }));
        let read = store.read(key(1, 0), 10, 10);
        assert!(matches!(read, Err(StoreError::Away { offset: 10, len: 10, .. })), "{read:?}");
        let read = store.read_now(key(1, 0), 10, 10);
        assert!(matches!(read, Err(StoreError::Away { .. })), "{read:?}");
        assert_eq!(store.read(key(1, 0), 20_000, 10_000).unwrap(), vec![0; 10_000]);
        let usage = store.usage().unwrap();
        assert_eq!((usage.live_bytes, usage.away_bytes), (0, 25_000));
    };
    look(&store);
    reclaim_all(&store);
    look(&store);
    store.close().unwrap();
    let store = open(&disk);
    look(&store);
    assert_rebuilds(&store, &disk);
    assert_clean(&disk);
}

#[test]
fn it_comes_back_with_its_version_but_for_what_was_changed_meanwhile() {
    let disk = SimDisk::new(1, 8 << 20);
    let store = with_two_pieces(&disk);
    store.send_away(key(1, 0), V).unwrap();
    store.write(key(1, 0), 5_000, &[b"news"], W).unwrap();
    store.punch(key(1, 0), 31_000, 1_000, W).unwrap();
    let left = [(0, 5_000), (5_004, 14_996), (30_000, 1_000), (32_000, 3_000)];
    assert_eq!(away(&store, key(1, 0)).unwrap(), left);
    assert_eq!(store.send_away(key(1, 0), W).unwrap(), None, "a part is in another object");
    assert_eq!(store.bring_back(key(1, 0), W, fill).unwrap(), 0, "not of this object");
    assert_eq!(store.bring_back(key(1, 0), V, fill).unwrap(), 23_996);
    assert_eq!((away(&store, key(1, 0)), store.version(key(1, 0))), (None, W));
    let mut expected = contents(0, 20_000);
    expected[5_000..5_004].copy_from_slice(b"news");
    assert_eq!(store.read(key(1, 0), 0, 20_000).unwrap(), expected);
    assert_eq!(store.read(key(1, 0), 31_000, 1_000).unwrap(), vec![0; 1_000]);
    assert_eq!(store.send_away(key(1, 0), W).unwrap(), Some(24_000));
    assert_rebuilds(&store, &disk);
}

#[test]
fn sending_away_gives_space_back_and_the_records_of_it_do_not_go_round_for_ever() {
    let disk = SimDisk::new(1, 16 << 20);
    let store = open(&disk);
    for index in 0..200 {
        store.write(key(1, index), 0, &[contents(0, 30_000)], V).unwrap();
    }
    for index in 0..200 {
        assert_eq!(store.send_away(key(1, index), V).unwrap(), Some(30_000));
    }
    reclaim_all(&store);
    let usage = store.usage().unwrap();
    assert_eq!((usage.live_bytes, usage.away_bytes, usage.chunks), (0, 200 * 30_000, 200));
    assert!(usage.segments * 32 * KIB < 300 * KIB, "{usage:?}");
    assert_rebuilds(&store, &disk);
    // The other way round: nothing of it stays when the file is deleted.
    assert_eq!(store.delete_chunks(1, 1, 0).unwrap(), -200 * 30_000);
    for index in 0..20 {
        store.write(key(2, index), 0, &[contents(0, 30_000)], V).unwrap();
    }
    store.delete_chunks(2, 1, 0).unwrap();
    reclaim_all(&store);
    assert_eq!(store.usage().unwrap().away_bytes, 0);
    store.close().unwrap();
    let store = open(&disk);
    assert_eq!(store.list(ChunkKey::MIN, 9), []);
    assert_rebuilds(&store, &disk);
    assert_clean(&disk);
}

#[test]
fn a_copy_of_a_chunk_may_be_one_of_where_its_bytes_are() {
    let disk = SimDisk::new(1, 8 << 20);
    let store = open(&disk);
    assert!(store.write_away(key(1, 0), 0, 10, ChunkVersion::UNKNOWN, V).is_err());
    assert_eq!(store.write_away(key(1, 0), 100, 4_000, V, ChunkVersion::UNKNOWN).unwrap(), 4_000);
    assert_eq!(store.write(key(1, 0), 8_000, &[b"here"], W).unwrap(), 4);
    let ranges = vec![(100, 4_000)];
    assert_eq!(store.away(key(1, 0)), Some(AwayParts { object: V, version: W, ranges }));
    assert_rebuilds(&store, &disk);
}

#[test]
fn small_writes_to_a_chunk_that_is_away_are_joined_and_leave_the_rest_away() {
    let disk = SimDisk::new(1, 8 << 20);
    let store = open(&disk);
    store.write(key(1, 0), 0, &[contents(0, 60_000)], V).unwrap();
    store.send_away(key(1, 0), V).unwrap();
    for round in 0..2_000u64 {
        store.write(key(1, 0), round * 10, &[[9; 10]], W).unwrap();
    }
    assert_eq!(away(&store, key(1, 0)).unwrap(), [(20_000, 40_000)]);
    assert_eq!(store.read(key(1, 0), 0, 20_000).unwrap(), vec![9; 20_000]);
    assert!(read_extents(&store) < 40, "{}", read_extents(&store));
    assert_rebuilds(&store, &disk);
}

fn read_extents(store: &SegmentStore) -> usize {
    super::super::sync::read(&store.state).index.get(&key(1, 0)).map_or(0, |c| c.extents.0.len())
}
