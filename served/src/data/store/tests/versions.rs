//! Which version a chunk has, and that it keeps it whatever becomes of the records that said it.

use super::super::disk::Disk;
use super::super::disk::sim::SimDisk;
use super::super::snapshot::SNAPSHOT_FILE;
use super::super::{ChunkKey, ChunkVersion, SegmentStore, StoreError};
use super::{V0, assert_clean, assert_rebuilds, key, open, reclaim_all, small, try_open};

fn v(n: u64) -> ChunkVersion {
    ChunkVersion(n)
}

/// Opens again what the log alone tells.
fn reopen_from_log(store: SegmentStore, disk: &SimDisk) -> SegmentStore {
    drop(store);
    if disk.list().unwrap().iter().any(|name| name == SNAPSHOT_FILE) {
        disk.remove(SNAPSHOT_FILE).unwrap();
    }
    let store = open(disk);
    assert_rebuilds(&store, disk);
    store
}

/// Fills segments with what is dead at once, and reclaims all that can be.
fn churn(store: &SegmentStore) {
    for round in 0..8 {
        store.write(key(900, 0), 0, &[vec![round; 30_000]], V0).unwrap();
    }
    store.delete_chunks(900, 1, 0).unwrap();
    reclaim_all(store);
}

#[test]
fn the_last_change_counts_and_not_the_highest_version() {
    let disk = SimDisk::new(1, 8 << 20);
    let store = open(&disk);
    assert_eq!(store.version(key(1, 0)), V0);
    store.write(key(1, 0), 0, &[[1; 100]], v(7)).unwrap();
    store.write(key(1, 0), 50, &[[1; 100]], v(3)).unwrap();
    assert_eq!(store.version(key(1, 0)), v(3));
    store.punch(key(1, 0), 0, 10, v(9)).unwrap();
    assert_eq!(store.version(key(1, 0)), v(9));
    // A hole already, but the chunk has seen it.
    store.punch(key(1, 0), 5000, 10, v(2)).unwrap();
    assert_eq!(store.version(key(1, 0)), v(2));
    assert!(store.stamp(key(1, 0), v(4)).unwrap());
    assert_eq!(store.outline(key(1, 0)), (v(4), vec![(10, 140)]));
    let store = reopen_from_log(store, &disk);
    assert_eq!(store.outline(key(1, 0)), (v(4), vec![(10, 140)]));
    store.write(key(1, 0), 0, &[[1; 1]], V0).unwrap();
    assert_eq!(store.version(key(1, 0)), V0);
    assert_eq!(store.list(ChunkKey::MIN, 9)[0].version, V0);
}

#[test]
fn a_chunk_without_data_has_no_version() {
    let disk = SimDisk::new(1, 8 << 20);
    let store = open(&disk);
    store.write(key(1, 0), 0, &[[1; 100]], v(7)).unwrap();
    store.write(key(1, 1), 0, &[[1; 100]], v(8)).unwrap();
    store.write(key(1, 2), 0, &[[1; 100]], v(9)).unwrap();
    store.punch(key(1, 0), 0, 100, v(10)).unwrap();
    assert_eq!(store.delete_chunk(key(1, 1)).unwrap(), -100);
    assert_eq!(store.delete_chunk(key(1, 1)).unwrap(), 0);
    store.punch(key(5, 0), 0, 100, v(10)).unwrap();
    assert!(!store.stamp(key(5, 0), v(10)).unwrap());
    let store = reopen_from_log(store, &disk);
    assert_eq!(store.version(key(1, 0)), V0);
    assert_eq!(store.outline(key(1, 1)), (V0, vec![]));
    assert_eq!(store.version(key(1, 2)), v(9));
    assert_eq!(store.list(ChunkKey::MIN, 9).len(), 1);
    // What comes back does not come back as what it was.
    store.write(key(1, 1), 0, &[[2; 100]], V0).unwrap();
    let store = reopen_from_log(store, &disk);
    assert_eq!(store.version(key(1, 1)), V0);
}

/// The trap: the last change is a punch, what it hid is long reclaimed, and older records of the chunk live on.
#[test]
fn a_punch_that_hides_nothing_any_more_still_says_the_version() {
    for (last, from_log) in [(v(3), true), (v(3), false), (V0, true)] {
        let disk = SimDisk::new(1, 8 << 20);
        let store = open(&disk);
        store.write(key(1, 0), 0, &[[1; 10_000]], v(1)).unwrap();
        churn(&store);
        store.write(key(1, 0), 10_000, &[[2; 20_000]], v(2)).unwrap();
        churn(&store);
        store.punch(key(1, 0), 10_000, 20_000, last).unwrap();
        for _ in 0..4 {
            // Now the punched bytes are gone, then the punch.
            churn(&store);
            assert_eq!(store.version(key(1, 0)), last);
            assert_rebuilds(&store, &disk);
        }
        let store = match from_log {
            true => reopen_from_log(store, &disk),
            false => {
                drop(store);
                open(&disk)
            }
        };
        assert_eq!(store.outline(key(1, 0)), (last, vec![(0, 10_000)]));
        // It goes with the chunk, or with the next change.
        store.write(key(1, 0), 0, &[[3; 10]], v(4)).unwrap();
        churn(&store);
        let pinned = |store: &SegmentStore| {
            let state = super::super::sync::read(&store.state);
            state.segments.values().map(|info| info.pinned).sum::<u64>()
        };
        assert_eq!(pinned(&store), 0);
        store.punch(key(1, 0), 0, 10, v(5)).unwrap();
        assert_eq!(pinned(&store), 80);
        store.delete_chunks(1, 1, 0).unwrap();
        assert_eq!(pinned(&store), 0);
        assert_clean(&disk);
    }
}

#[test]
fn many_versions_without_data_do_not_keep_reclamation_busy() {
    let disk = SimDisk::new(1, 16 << 20);
    let store = open(&disk);
    for index in 0..1500 {
        store.write(key(1, index), 0, &[[1; 200]], v(index)).unwrap();
    }
    for index in 0..1500 {
        store.punch(key(1, index), 0, 100, v(index + 5000)).unwrap();
    }
    reclaim_all(&store);
    let store = reopen_from_log(store, &disk);
    for index in 0..1500 {
        assert_eq!(store.version(key(1, index)), v(index + 5000));
    }
    store.delete_chunks(1, 1, 0).unwrap();
    reclaim_all(&store);
    assert!(store.usage().unwrap().segments <= 3);
}

#[test]
fn joining_pieces_keeps_the_version() {
    let disk = SimDisk::new(1, 8 << 20);
    let store = open(&disk);
    for i in 0..200 {
        store.write(key(1, 0), i * 300, &[[i as u8; 290]], v(i + 1)).unwrap();
        assert_eq!(store.version(key(1, 0)), v(i + 1));
    }
    churn(&store);
    let store = reopen_from_log(store, &disk);
    assert_eq!(store.version(key(1, 0)), v(200));
}

#[test]
fn a_copy_in_parts_has_its_version_at_the_end_only() {
    let disk = SimDisk::new(1, 1 << 20);
    let store = open(&disk);
    store.write(key(1, 0), 0, &[[1; 100]], v(1)).unwrap();
    store.write(key(1, 0), 200, &[[2; 100]], v(2)).unwrap();
    store.write(key(2, 0), 0, &[[9; 1000]], v(3)).unwrap();
    store.copy(key(1, 0), 50, key(2, 0), 150, 400, v(4)).unwrap();
    assert_eq!(store.version(key(2, 0)), v(4));
    let mut records = Vec::new();
    drop(reopen_from_log(store, &disk));
    let name = "0000000000000001.seg";
    let whole = disk.tamper(name, |bytes| bytes.clone());
    // Whatever part of the log is there: no version shows with anything but what it named.
    for len in (64..whole.len()).step_by(8) {
        let part = disk.duplicate();
        part.tamper(name, |bytes| bytes.truncate(len));
        for file in part.list().unwrap() {
            if file != name && (file == SNAPSHOT_FILE || file.ends_with(".seg")) {
                part.remove(&file).unwrap();
            }
        }
        let Ok((store, _)) = try_open(&part, small()) else { continue };
        let (version, ranges) = store.outline(key(2, 0));
        if version == v(3) {
            assert_eq!(ranges, [(0, 1000)]);
        }
        if version == v(4) {
            assert_eq!(ranges, [(0, 200), (300, 100), (550, 450)]);
        }
        records.push(version);
    }
    records.dedup();
    assert!(records.contains(&v(3)) && records.contains(&V0));
}

#[test]
fn an_unreadable_record_loses_no_version_while_the_index_knows_it() {
    let disk = SimDisk::new(1, 8 << 20);
    let store = open(&disk);
    store.write(key(1, 0), 0, &[[1; 10_000]], v(1)).unwrap();
    churn(&store);
    store.write(key(2, 0), 0, &[[1; 10_000]], v(2)).unwrap();
    store.punch(key(1, 0), 0, 10, v(3)).unwrap();
    let at = super::super::sync::read(&store.state).index.get(&key(1, 0)).unwrap().carrier;
    let name = super::super::format::segment_name(at.segment);
    disk.tamper(&name, |bytes| bytes[at.at as usize + 20] ^= 1);
    store.delete_chunks(2, 1, 0).unwrap();
    churn(&store);
    assert!(!disk.list().unwrap().contains(&name));
    let now = (v(3), vec![(10, 9_990)]);
    assert_eq!(store.outline(key(1, 0)), now);
    drop(store);
    let (store, report) = try_open(&disk, small()).unwrap();
    assert_eq!((store.outline(key(1, 0)), report.is_clean()), (now, true));
    // The log alone has lost the punch. Who believes it must not believe the version.
    for _ in 0..2 {
        churn(&store);
    }
    drop(store);
    disk.remove(SNAPSHOT_FILE).unwrap();
    let (store, report) = try_open(&disk, small()).unwrap();
    assert_eq!(store.outline(key(1, 0)), (V0, vec![(0, 10_000)]));
    assert!(!report.is_clean() && report.versions_dropped == 1);
}

#[test]
fn where_records_may_be_missing_no_version_is_shown_and_none_comes_back() {
    let disk = SimDisk::new(1, 8 << 20);
    let store = open(&disk);
    for ino in 1..=6 {
        store.write(key(ino, 0), 0, &[[1; 20_000]], v(ino)).unwrap();
    }
    store.write(key(1, 0), 0, &[[2; 20_000]], v(10)).unwrap();
    store.flush().unwrap();
    store.write(key(2, 0), 0, &[[2; 20_000]], v(11)).unwrap();
    store.flush().unwrap();
    let place = {
        let state = super::super::sync::read(&store.state);
        state.index.get(&key(1, 0)).unwrap().extents.0[0].at
    };
    let name = super::super::format::segment_name(place.segment);
    drop(store);
    disk.remove(SNAPSHOT_FILE).unwrap();
    // The header of the record of version 10.
    disk.tamper(&name, |bytes| {
        let before = &bytes[..place.at as usize];
        let header = before.windows(4).rposition(|bytes| bytes == b"NFR1").unwrap();
        bytes[header + 50] ^= 1;
    });
    let (store, report) = try_open(&disk, small()).unwrap();
    assert!(!report.is_clean());
    assert_eq!(report.versions_dropped, 6);
    assert!(store.list(ChunkKey::MIN, 9).iter().all(|chunk| chunk.version == V0));
    store.write(key(3, 0), 0, &[[3; 10]], v(12)).unwrap();
    // With the damaged segment goes all that tells of the damage.
    store.delete_chunks(6, 1, 0).unwrap();
    for _ in 0..8 {
        store.write(key(2, 0), 0, &[[3; 20_000]], V0).unwrap();
    }
    churn(&store);
    assert!(!disk.list().unwrap().contains(&name));
    assert_eq!(store.version(key(3, 0)), v(12));
    drop(store);
    let store = open(&disk);
    assert_eq!(store.version(key(3, 0)), v(12));
    drop(store);
    disk.remove(SNAPSHOT_FILE).unwrap();
    let (store, report) = try_open(&disk, small()).unwrap();
    assert!(!report.is_clean(), "{report:?}");
    assert!(store.list(ChunkKey::MIN, 9).iter().all(|chunk| chunk.version == V0));
}

#[test]
fn a_lost_segment_takes_the_versions_with_it() {
    let disk = SimDisk::new(1, 8 << 20);
    let store = open(&disk);
    for ino in 1..=6 {
        store.write(key(ino, 0), 0, &[[1; 30_000]], v(ino)).unwrap();
    }
    store.close().unwrap();
    disk.remove("0000000000000002.seg").unwrap();
    disk.sync_dir().unwrap();
    let (store, report) = try_open(&disk, small()).unwrap();
    assert_eq!((report.missing_segments, report.versions_dropped), (vec![2], 6));
    assert_eq!(store.version(key(1, 0)), V0);
    store.stamp(key(1, 0), v(77)).unwrap();
    drop(store);
    // Only once.
    let (store, report) = try_open(&disk, small()).unwrap();
    assert_eq!(report.versions_dropped, 0);
    assert_eq!(store.version(key(1, 0)), v(77));
    assert!(matches!(store.read(key(2, 0), 0, 1), Err(StoreError::Corrupt { .. })));
}

#[test]
fn a_listing_of_what_is_wanted_looks_at_so_many_chunks_only() {
    let store = open(&SimDisk::new(1, 8 << 20));
    for ino in 1..=10 {
        for index in 0..3 {
            store.write(key(ino, index), 0, &[[1; 10]], v(ino)).unwrap();
        }
    }
    let wanted = |key: &ChunkKey| key.index == 1;
    let (first, next) = store.list_where(ChunkKey::MIN, 4, wanted);
    assert_eq!(first.iter().map(|c| c.key).collect::<Vec<_>>(), [key(1, 1)]);
    assert_eq!(next, Some(key(2, 1)));
    let (mut found, mut from, mut steps) = (Vec::new(), Some(ChunkKey::MIN), 0);
    while let Some(at) = from {
        let (part, next) = store.list_where(at, 10, wanted);
        found.extend(part);
        (from, steps) = (next, steps + 1);
    }
    assert_eq!((found.len(), steps), (10, 3));
    assert!(found.iter().all(|c| c.version == v(c.key.ino) && c.allocated_bytes == 10));
    assert_eq!(store.list_where(key(11, 0), 5, |_| true), (vec![], None));
}

/// Segments of older programs are read, but take no new records.
#[test]
fn a_segment_of_an_older_version_is_not_appended_to() {
    for format in [1, 2, 3] {
        is_not_appended_to(format);
    }
}

fn is_not_appended_to(format: u8) {
    let disk = SimDisk::new(1, 8 << 20);
    let store = open(&disk);
    store.write(key(1, 0), 0, &[[1; 100]], V0).unwrap();
    store.close().unwrap();
    for name in disk.list().unwrap().iter().filter(|name| name.ends_with(".seg")) {
        disk.tamper(name, |bytes| {
            bytes[8] = format;
            let crc = crc32fast::hash(&bytes[..60]);
            bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        });
    }
    let segments = |disk: &SimDisk| {
        let names = disk.list().unwrap();
        names.iter().filter(|name| name.ends_with(".seg")).count()
    };
    let before = segments(&disk);
    let store = open(&disk);
    store.write(key(1, 0), 0, &[[2; 10]], v(2)).unwrap();
    assert_eq!(segments(&disk), before + 1);
    let store = reopen_from_log(store, &disk);
    assert_eq!(segments(&disk), before + 1);
    assert_eq!(store.version(key(1, 0)), v(2));
}
