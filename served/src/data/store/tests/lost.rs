//! Chunks of which bytes were lost elsewhere.

use std::path::Path;

use super::super::check::check_disk;
use super::super::disk::sim::SimDisk;
use super::super::{ChunkVersion, ScrubCursor, SegmentStore, StoreError};
use super::{assert_clean, assert_rebuilds, key, open, reclaim_all};

const V: ChunkVersion = ChunkVersion(7);
const W: ChunkVersion = ChunkVersion(8);

fn is_lost(store: &SegmentStore, from: u64, len: u64) -> bool {
    let found = store.read(key(1, 0), from, len);
    matches!(found, Err(StoreError::Corrupt { rotten: true, .. }))
}

#[test]
fn what_is_taken_over_as_lost_reads_as_nothing_else_until_it_is_written_anew() {
    let disk = SimDisk::new(1, 8 << 20);
    let mut store = open(&disk);
    let max = store.config.max_chunk_bytes;
    assert!(store.write_bad(key(1, 0), 0, 0, V).is_err());
    assert!(store.write_bad(key(1, 0), max, 1, V).is_err());
    assert!(store.write_bad(key(1, 0), u64::MAX, 2, V).is_err());
    assert_eq!(store.write(key(1, 0), 0, &[vec![1; 4096]], V).unwrap(), 4096);
    // Over what there was, and beside it.
    assert_eq!(store.write_bad(key(1, 0), 4000, 4192, ChunkVersion::UNKNOWN).unwrap(), 4096);
    assert_eq!(store.write(key(1, 0), 8192, &[vec![3; 20_000]], V).unwrap(), 20_000);
    let look = |store: &SegmentStore| {
        assert_eq!(store.read(key(1, 0), 0, 4000).unwrap(), vec![1; 4000]);
        assert!(is_lost(store, 4000, 4192) && is_lost(store, 0, 30_000));
        assert!(is_lost(store, 5000, 1) && is_lost(store, 8191, 2));
        assert_eq!(store.read_now(key(1, 0), 5000, 1).unwrap(), None, "not zeros");
        assert_eq!(store.read(key(1, 0), 8192, 20_000).unwrap(), vec![3; 20_000]);
        assert_eq!(store.extents(key(1, 0)), [(0, 28_192)]);
        assert_eq!(store.version(key(1, 0)), V);
        assert_rebuilds(store, &disk);
    };
    look(&store);
    assert_eq!(store.usage().unwrap().live_bytes, 28_192);
    store.flush().unwrap();
    drop(store);
    disk.power_cycle();
    store = open(&disk);
    look(&store);
    // Other data comes and goes, so that the segment is reclaimed.
    for _ in 0..30 {
        store.write(key(2, 0), 0, &[vec![5; 20_000]], V).unwrap();
    }
    reclaim_all(&store);
    look(&store);
    let mut found = Vec::new();
    let mut cursor = Some(ScrubCursor::default());
    while let Some(at) = cursor {
        let step = store.scrub_step(at).unwrap();
        found.extend(step.bad.iter().map(|bad| (bad.key, bad.offset, bad.len)));
        cursor = step.next;
    }
    assert_eq!(found, [(key(1, 0), 4000, 4192)], "it is still looked for");
    // By the snapshot.
    store.close().unwrap();
    let report = check_disk(&disk, Path::new("sim")).unwrap();
    assert_eq!((report.fault_count, report.snapshot_agrees), (1, Some(true)), "{report:?}");
    assert!(report.faults[0].contains("has lost bytes 4000..8192"), "{report:?}");
    store = open(&disk);
    look(&store);
    assert_eq!(store.write(key(1, 0), 4000, &[vec![4; 2000]], W).unwrap(), 0);
    assert!(is_lost(&store, 6000, 1));
    assert_eq!(store.read(key(1, 0), 4000, 2000).unwrap(), vec![4; 2000]);
    assert_eq!(store.punch(key(1, 0), 6000, 1000, W).unwrap(), -1000);
    assert_eq!(store.read(key(1, 0), 6000, 1000).unwrap(), vec![0; 1000]);
    assert!(is_lost(&store, 7000, 1192));
    assert_eq!(store.write(key(1, 0), 7000, &[vec![5; 1192]], W).unwrap(), 0);
    assert_eq!(store.read(key(1, 0), 0, 28_192).unwrap()[7000..8192], [5; 1192]);
    assert_rebuilds(&store, &disk);
    store.close().unwrap();
    assert_clean(&disk);
}

#[test]
fn what_the_disk_does_not_give_may_come_back_and_is_not_called_rotten() {
    let disk = SimDisk::new(1, 8 << 20);
    let store = open(&disk);
    store.write(key(1, 0), 0, &[vec![1; 20_000]], V).unwrap();
    disk.set_unreadable("0000000000000001.seg", 10_000, 10_001);
    let found = store.read(key(1, 0), 0, 20_000);
    assert!(matches!(found, Err(StoreError::Corrupt { rotten: false, .. })), "{found:?}");
}
