//! Full disks and failing ones.

use super::super::disk::sim::SimDisk;
use super::super::{StoreConfig, StoreError};
use super::{KIB, V0, assert_clean, key, open, reclaim_all, small, try_open};

fn fill(store: &super::SegmentStore) -> u64 {
    for n in 0.. {
        match store.write(key(1 + n, 0), 0, &[vec![n as u8; 20_000]], V0) {
            Ok(_) => {}
            Err(StoreError::NoSpace { .. }) => return n,
            Err(e) => panic!("{e}"),
        }
    }
    unreachable!()
}

#[test]
fn a_full_store_keeps_its_reserve_and_can_be_emptied() {
    let disk = SimDisk::new(1, 1 << 20);
    let config = StoreConfig { reserve_bytes: 128 * KIB, ..small() };
    let store = try_open(&disk, config.clone()).unwrap().0;
    let written = fill(&store);
    assert!(written > 30);
    for n in 0..written {
        assert_eq!(store.read(key(1 + n, 0), 0, 20_000).unwrap(), vec![n as u8; 20_000]);
    }
    for n in 0..written {
        store.delete_chunks(1 + n, 1, 0).unwrap();
    }
    // Writers find the room by themselves.
    assert!(fill(&store) >= written - 2);
    store.close().unwrap();
    assert_clean(&disk);
    let store = try_open(&disk, config).unwrap().0;
    for n in 0..written {
        store.delete_chunks(1 + n, 1, 0).unwrap();
    }
    reclaim_all(&store);
    assert_eq!(store.usage().unwrap().live_bytes, 0);
}

#[test]
fn a_disk_that_fills_up_under_the_store_damages_nothing() {
    for capacity in 300..330 {
        let disk = SimDisk::new(capacity, capacity * KIB + capacity * 37);
        let Ok((store, _)) = try_open(&disk, small()) else { continue };
        let written = fill(&store);
        assert!(written > 5);
        for n in 0..written {
            assert_eq!(store.read(key(1 + n, 0), 0, 20_000).unwrap(), vec![n as u8; 20_000]);
        }
        drop(store);
        assert_clean(&disk);
        let store = open(&disk);
        for n in 0..written {
            assert_eq!(store.read(key(1 + n, 0), 0, 20_000).unwrap(), vec![n as u8; 20_000]);
        }
    }
}

#[test]
fn a_failed_flush_closes_the_store_for_writing_but_not_for_reading() {
    let disk = SimDisk::new(1, 8 << 20);
    let store = open(&disk);
    store.write(key(1, 0), 0, &[[1; 100]], V0).unwrap();
    disk.set_fail_sync(true);
    assert!(matches!(store.flush(), Err(StoreError::Io { .. })));
    disk.set_fail_sync(false);
    let refused = |r: Result<i64, StoreError>| assert!(matches!(r, Err(StoreError::Poisoned(_))));
    refused(store.flush().map(|()| 0));
    refused(store.write(key(1, 0), 0, &[[2; 100]], V0));
    refused(store.punch(key(1, 0), 0, 10, V0));
    refused(store.delete_chunks(1, 1, 0));
    refused(store.reclaim_step().map(|_| 0));
    refused(store.checkpoint().map(|()| 0));
    assert_eq!(store.read(key(1, 0), 0, 100).unwrap(), [1; 100]);
    drop(store);
    disk.power_cycle();
    open(&disk).write(key(1, 0), 0, &[[3; 100]], V0).unwrap();
}

#[test]
fn a_failed_write_closes_the_store_and_loses_nothing_flushed() {
    let disk = SimDisk::new(1, 8 << 20);
    let store = open(&disk);
    store.write(key(1, 0), 0, &[[1; 100]], V0).unwrap();
    store.flush().unwrap();
    disk.set_fail_writes(true);
    assert!(matches!(store.write(key(1, 0), 0, &[[2; 100]], V0), Err(StoreError::Io { .. })));
    disk.set_fail_writes(false);
    assert!(matches!(store.write(key(1, 0), 0, &[[2; 100]], V0), Err(StoreError::Poisoned(_))));
    drop(store);
    assert_eq!(open(&disk).read(key(1, 0), 0, 100).unwrap(), [1; 100]);
}

#[test]
fn a_newer_or_foreign_store_is_refused_and_left_alone() {
    let disk = SimDisk::new(1, 8 << 20);
    let store = open(&disk);
    store.write(key(1, 0), 0, &[[1; 100]], V0).unwrap();
    store.close().unwrap();
    let reseal = |block: &mut Vec<u8>| {
        let crc = crc32fast::hash(&block[..60]);
        block[60..64].copy_from_slice(&crc.to_le_bytes());
    };
    let refusal = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let copy = disk.duplicate();
        let before = copy.tamper(name, |b| {
            change(b);
            b.clone()
        });
        let error = try_open(&copy, small()).map(drop).unwrap_err();
        assert_eq!(copy.tamper(name, |b| b.clone()), before);
        assert!(!error.to_string().contains('\n'));
        error
    };
    let newer = |b: &mut Vec<u8>| {
        b[8] = 6;
        reseal(b);
    };
    assert!(matches!(refusal("store", &newer), StoreError::NewerVersion { found: 6, .. }));
    assert!(matches!(refusal("0000000000000001.seg", &newer), StoreError::NewerVersion { .. }));
    let foreign = |b: &mut Vec<u8>| {
        b[20] ^= 1;
        reseal(b);
    };
    assert!(matches!(refusal("0000000000000001.seg", &foreign), StoreError::BadFile { .. }));
    assert!(matches!(refusal("store", &foreign), StoreError::BadFile { .. }));
}
