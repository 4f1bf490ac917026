//! What each operation promises.

use super::super::disk::sim::SimDisk;
use super::super::format::{Form, Kind};
use super::super::log::{Draft, Space};
use super::super::sync::{lock, read};
use super::super::{ChunkKey, SegmentStore, StoreConfig, StoreError};
use super::{KIB, V0, key, open, reclaim_all, small, try_open};

#[test]
fn what_was_never_written_is_a_hole() {
    let store = open(&SimDisk::new(1, 8 << 20));
    assert_eq!(store.read(key(1, 0), 100, 50).unwrap(), vec![0; 50]);
    assert!(store.extents(key(1, 0)).is_empty());
}

#[test]
fn parts_of_a_write_may_be_of_any_size() {
    let store = open(&SimDisk::new(1, 8 << 20));
    let data: Vec<u8> = (0..20_000u32).map(|i| (i % 251) as u8).collect();
    let parts: Vec<&[u8]> = data.chunks(777).collect();
    store.write(key(1, 0), 1234, &parts, V0).unwrap();
    assert_eq!(store.read(key(1, 0), 1234, 20_000).unwrap(), data);
    assert_eq!(store.read(key(1, 0), 5000, 10).unwrap(), data[3766..3776]);
    assert_eq!(store.extents(key(1, 0)), [(1234, 20_000)]);
}

#[test]
fn neighbouring_extents_are_joined_and_holes_are_not() {
    let store = open(&SimDisk::new(1, 8 << 20));
    store.write(key(1, 0), 0, &[[1; 4096]], V0).unwrap();
    store.write(key(1, 0), 4096, &[[2; 4096]], V0).unwrap();
    store.write(key(1, 0), 20_480, &[[3; 10]], V0).unwrap();
    store.punch(key(1, 0), 1000, 1000, V0).unwrap();
    assert_eq!(store.extents(key(1, 0)), [(0, 1000), (2000, 6192), (20_480, 10)]);
}

#[test]
fn deleting_from_an_index_leaves_what_is_before_it_and_other_generations() {
    let store = open(&SimDisk::new(1, 8 << 20));
    for index in 0..5 {
        store.write(key(1, index), 0, &[[7; 100]], V0).unwrap();
    }
    let other = ChunkKey { ino: 1, generation: 2, index: 4 };
    store.write(other, 0, &[[8; 100]], V0).unwrap();
    assert_eq!(store.delete_chunks(1, 1, 3).unwrap(), -200);
    assert_eq!(store.delete_chunks(1, 1, 3).unwrap(), 0);
    let left: Vec<ChunkKey> = store.list(ChunkKey::MIN, 100).iter().map(|c| c.key).collect();
    assert_eq!(left, [key(1, 0), key(1, 1), key(1, 2), other]);
    let some: Vec<ChunkKey> = store.list(key(1, 2), 1).iter().map(|c| c.key).collect();
    assert_eq!(some, [key(1, 2)]);
}

#[test]
fn a_copy_carries_holes_over() {
    let store = open(&SimDisk::new(1, 8 << 20));
    store.write(key(1, 0), 0, &[[1; 100]], V0).unwrap();
    store.write(key(1, 0), 200, &[[2; 100]], V0).unwrap();
    store.write(key(2, 0), 0, &[[9; 1000]], V0).unwrap();
    store.copy(key(1, 0), 50, key(2, 0), 150, 400, V0).unwrap();
    assert_eq!(store.extents(key(2, 0)), [(0, 200), (300, 100), (550, 450)]);
    let expected: Vec<u8> =
        [vec![9; 150], vec![1; 50], vec![0; 100], vec![2; 100], vec![0; 150], vec![9; 450]]
            .concat();
    assert_eq!(store.read(key(2, 0), 0, 1000).unwrap(), expected);
}

#[test]
fn ranges_outside_of_a_chunk_are_refused() {
    let store = open(&SimDisk::new(1, 8 << 20));
    let outside =
        |r: Result<i64, StoreError>| assert!(matches!(r, Err(StoreError::OutOfRange { .. })));
    outside(store.write(key(1, 0), 64 * KIB - 1, &[[0; 2]], V0));
    outside(store.punch(key(1, 0), u64::MAX, 2, V0));
    outside(store.read(key(1, 0), 1 << 40, 1).map(|_| 0));
    outside(store.copy(key(1, 0), 0, key(1, 1), 64 * KIB, 1, V0));
}

#[test]
fn a_chunk_in_too_many_pieces_is_joined() {
    let store = open(&SimDisk::new(1, 8 << 20));
    for i in 0..200 {
        store.write(key(1, 0), i * 300, &[[i as u8; 290]], V0).unwrap();
    }
    let pieces = read(&store.state).index.get(&key(1, 0)).unwrap().extents.0.len();
    assert!(pieces <= 13, "{pieces} pieces");
    for i in 0..200 {
        assert_eq!(store.read(key(1, 0), i * 300, 290).unwrap(), vec![i as u8; 290]);
        assert_eq!(store.read(key(1, 0), i * 300 + 290, 10).unwrap(), vec![0; 10]);
    }
}

#[test]
fn what_is_appended_little_by_little_is_joined_once() {
    const MIB: u64 = 1 << 20;
    let config = StoreConfig {
        segment_bytes: 64 << 20,
        max_chunk_bytes: 4 << 20,
        max_extents_per_mib: 256,
        ..small()
    };
    let store = try_open(&SimDisk::new(1, 64 << 20), config).unwrap().0;
    let pieces =
        |chunk| read(&store.state).index.get(&key(1, chunk)).map_or(0, |c| c.extents.0.len());
    let appended = || lock(&store.log.tail).position().1;
    // Pages stay as they are.
    for page in 0..256 {
        store.write(key(1, 0), page * 4096, &[[page as u8; 4096]], V0).unwrap();
    }
    let after_pages = appended();
    assert_eq!(pieces(0), 256);
    assert!(after_pages < MIB + MIB / 16, "{after_pages}");
    // Shorter ones are joined, and what was joined stays as it is.
    for part in 0..2 * MIB / 512 {
        store.write(key(1, 1), part * 512, &[[part as u8; 512]], V0).unwrap();
    }
    let times = (appended() - after_pages) as f64 / (2 * MIB) as f64;
    assert!(times < 3.0, "{times:.2} bytes for each");
    assert!(pieces(1) <= 2 * 257, "{} pieces", pieces(1));
    for part in 0..2 * MIB / 512 {
        assert_eq!(store.read(key(1, 1), part * 512, 512).unwrap(), [part as u8; 512]);
    }
}

#[test]
fn an_emptied_store_gives_its_space_back() {
    let disk = SimDisk::new(1, 8 << 20);
    let store = open(&disk);
    for ino in 1..100 {
        store.write(key(ino, 0), 0, &[vec![1; 30_000]], V0).unwrap();
    }
    for ino in 1..100 {
        store.delete_chunks(ino, 1, 0).unwrap();
    }
    reclaim_all(&store);
    let usage = store.usage().unwrap();
    assert_eq!((usage.chunks, usage.live_bytes), (0, 0));
    assert!(usage.segments <= 3, "{usage:?}");
    super::assert_clean(&disk);
}

#[test]
fn opening_after_a_checkpoint_replays_only_what_came_later() {
    let disk = SimDisk::new(1, 8 << 20);
    let store = open(&disk);
    for ino in 1..50 {
        store.write(key(ino, 0), 0, &[vec![1; 3000]], V0).unwrap();
    }
    store.close().unwrap();
    let (store, report) = try_open(&disk, small()).unwrap();
    assert!(report.snapshot_used && report.records_replayed <= 1, "{report:?}");
    store.write(key(1, 0), 0, &[vec![2; 3000]], V0).unwrap();
    drop(store);
    let (store, report) = try_open(&disk, small()).unwrap();
    assert!(report.records_replayed <= 2, "{report:?}");
    assert_eq!(store.read(key(1, 0), 0, 1).unwrap(), [2]);
}

#[test]
fn a_real_directory_is_opened_once_and_refused_if_foreign() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let config = StoreConfig { reserve_bytes: 0, ..StoreConfig::default() };
    let (store, report) = SegmentStore::open(&path, config.clone()).unwrap();
    assert!(report.created);
    store.write(key(1, 0), 5, &[vec![3; 1 << 20]], V0).unwrap();
    store.flush().unwrap();
    assert!(matches!(SegmentStore::open(&path, config.clone()), Err(StoreError::InUse(_))));
    assert!(matches!(SegmentStore::check(&path), Err(StoreError::InUse(_))));
    drop(store);
    let check = SegmentStore::check(&path).unwrap();
    assert!(
        check.is_clean() && check.chunks == 1 && check.snapshot_agrees == Some(true),
        "{check:?}"
    );
    let (store, report) = SegmentStore::open(&path, config.clone()).unwrap();
    assert!(!report.created && report.is_clean());
    assert_eq!(store.read(key(1, 0), 5, 1 << 20).unwrap(), vec![3; 1 << 20]);
    store.close().unwrap();

    std::fs::write(dir.path().join("letter.txt"), "hello").unwrap();
    let refused = SegmentStore::open(dir.path(), config).unwrap_err();
    assert!(matches!(refused, StoreError::NotAStore { .. }), "{refused}");
    assert!(matches!(
        SegmentStore::check(&dir.path().join("nowhere")),
        Err(StoreError::BadFile { .. })
    ));
}

#[test]
fn moving_data_that_has_changed_meanwhile_moves_nothing() {
    let store = open(&SimDisk::new(1, 8 << 20));
    let pieces = || read(&store.state).lookup(&key(1, 0), 0, 5000);
    let move_it = |pieces: &[_]| {
        store.rewrite(key(1, 0), 0, 5000, pieces, Space::UseReserve).unwrap().is_some()
    };
    store.write(key(1, 0), 0, &[[1; 5000]], V0).unwrap();
    let first = pieces();
    assert!(move_it(&first));
    assert!(!move_it(&first), "it is somewhere else by now");
    let second = pieces();
    store.write(key(1, 0), 100, &[[2; 10]], V0).unwrap();
    assert!(!move_it(&second));
    assert_eq!(store.read(key(1, 0), 99, 12).unwrap(), [1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1]);
    let third = pieces();
    store.delete_chunks(1, 1, 0).unwrap();
    assert!(!move_it(&third));
    assert!(store.extents(key(1, 0)).is_empty());
}

#[test]
fn a_read_that_must_not_wait_reads_only_what_is_at_hand() {
    let disk = SimDisk::new(1, 8 << 20);
    let store = open(&disk);
    store.write(key(1, 0), 0, &[[7; 5000]], V0).unwrap();
    assert_eq!(store.read_now(key(1, 0), 0, 10).unwrap(), None, "the segment is not open");
    store.read(key(1, 0), 0, 10).unwrap();
    assert_eq!(store.read_now(key(1, 0), 4990, 20).unwrap(), Some([[7; 10], [0; 10]].concat()));
    disk.set_cold(true);
    assert_eq!(store.read_now(key(1, 0), 0, 10).unwrap(), None, "the disk has to be waited for");
    assert_eq!(store.read_now(key(2, 0), 0, 10).unwrap(), Some(vec![0; 10]));
    disk.set_cold(false);
    {
        let _changing = super::super::sync::write(&store.state);
        assert_eq!(store.read_now(key(1, 0), 0, 10).unwrap(), None, "somebody changes the index");
    }
    assert!(store.read_now(key(1, 0), 1 << 40, 1).is_err());
}

#[test]
fn only_what_a_full_store_would_reclaim_counts_as_free() {
    let store = open(&SimDisk::new(1, 8 << 20));
    let config = small();
    for index in 0..20 {
        store.write(key(1, index), 0, &[vec![1; 24_000]], V0).unwrap();
    }
    let before = store.usage().unwrap();
    // Two in a hundred bytes of each segment, where three are worth it.
    assert_eq!(config.reclaim_dead_percent_when_full, 3);
    for index in 0..20 {
        store.punch(key(1, index), 0, 600, V0).unwrap();
    }
    let after = store.usage().unwrap();
    assert!(after.dead_bytes >= 20 * 600 && before.dead_bytes == 0, "{after:?}");
    assert_eq!(after.reclaimable_bytes, 0);
    store.punch(key(1, 3), 0, 15_000, V0).unwrap();
    assert!(store.usage().unwrap().reclaimable_bytes >= 15_000);
}

#[test]
fn who_waited_for_room_that_another_has_made_makes_no_more() {
    let store = open(&SimDisk::new(1, 8 << 20));
    let tries = std::cell::Cell::new(0);
    let attempt = |_| {
        tries.set(tries.get() + 1);
        // As if another one had made room meanwhile.
        if tries.get() == 1 { Err(StoreError::NoSpace { needed: 1, free: 0 }) } else { Ok(()) }
    };
    store.write(key(1, 0), 0, &[vec![1; 30_000]], V0).unwrap();
    store.write(key(1, 0), 0, &[vec![2; 30_000]], V0).unwrap();
    let segments = store.usage().unwrap().segments;
    store
        .with_room(&Draft::note(Kind::Mark, 0).with_form(Form::Pages { gap: 0 }), attempt)
        .unwrap();
    assert_eq!((tries.get(), store.usage().unwrap().segments), (2, segments));
}
