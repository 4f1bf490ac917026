//! Disks that lie.

use super::super::check::check_disk;
use super::super::disk::Disk;
use super::super::disk::sim::{Dice, SimDisk};
use super::super::{ScrubCursor, SegmentStore, StoreError};
use super::{V0, key, open, reclaim_all, small, try_open};

const KEYS: u64 = 6;

/// A store with overwritten, punched and deleted data; returns what it holds.
fn sample(disk: &SimDisk) -> (SegmentStore, Vec<Vec<u8>>) {
    let store = open(disk);
    let mut dice = Dice(5);
    for round in 0..60u64 {
        let k = key(1 + dice.below(KEYS), 0);
        let offset = dice.below(20_000);
        let _grown = match dice.below(8) {
            0 => store.delete_chunks(k.ino, 1, 0).unwrap(),
            1 => store.punch(k, offset, 5000, V0).unwrap(),
            _ => store
                .write(k, offset, &[vec![round as u8 + 1; 1 + dice.below(9000) as usize]], V0)
                .unwrap(),
        };
    }
    store.flush().unwrap();
    let content = (1..=KEYS).map(|ino| store.read(key(ino, 0), 0, 32 << 10).unwrap()).collect();
    (store, content)
}

fn segments(disk: &SimDisk) -> Vec<String> {
    disk.list().unwrap().into_iter().filter(|n| n.ends_with(".seg")).collect()
}

fn flip(disk: &SimDisk, dice: &mut Dice) {
    let names = segments(disk);
    let name = &names[dice.below(names.len() as u64) as usize];
    disk.tamper(name, |b| {
        let at = dice.below(b.len() as u64) as usize;
        b[at] ^= 1 << dice.below(8);
    });
}

/// Whether all that can be read is right.
fn reads_are_right(store: &SegmentStore, content: &[Vec<u8>]) -> bool {
    (1..=KEYS).zip(content).all(|(ino, expected)| {
        (0..8).all(|part| match store.read(key(ino, 0), part * 4096, 4096) {
            Ok(data) => data == expected[part as usize * 4096..][..4096],
            Err(StoreError::Corrupt { .. }) => true,
            Err(e) => panic!("{e}"),
        })
    })
}

#[test]
fn a_flipped_bit_behind_a_snapshot_never_gives_wrong_bytes() {
    let disk = SimDisk::new(1, 8 << 20);
    let (store, content) = sample(&disk);
    store.close().unwrap();
    for seed in 0..300 {
        let mut dice = Dice(seed);
        let copy = disk.duplicate();
        flip(&copy, &mut dice);
        let store = open(&copy);
        assert!(reads_are_right(&store, &content), "seed {seed}");
        // Nor does moving the data.
        for ino in 100..103 {
            store.write(key(ino, 0), 0, &[vec![1; 30_000]], V0).unwrap();
        }
        reclaim_all(&store);
        assert!(reads_are_right(&store, &content), "seed {seed} after reclamation");
    }
}

#[test]
fn a_flipped_bit_in_the_log_is_survived_and_told() {
    let disk = SimDisk::new(1, 8 << 20);
    let (store, content) = sample(&disk);
    drop(store);
    disk.remove("index.snap").unwrap();
    for seed in 0..300 {
        let mut dice = Dice(seed);
        let copy = disk.duplicate();
        flip(&copy, &mut dice);
        let told = !check_disk(&copy, std::path::Path::new("sim")).unwrap().is_clean();
        let (store, report) = try_open(&copy, small()).unwrap();
        let right = reads_are_right(&store, &content);
        assert!(right || !report.is_clean(), "seed {seed}: wrong and not told");
        assert!(right || told, "seed {seed}: wrong and not found by a check");
    }
}

#[test]
fn a_damaged_snapshot_is_ignored() {
    let disk = SimDisk::new(1, 8 << 20);
    let (store, content) = sample(&disk);
    store.close().unwrap();
    for seed in 0..100 {
        let mut dice = Dice(seed);
        let copy = disk.duplicate();
        copy.tamper("index.snap", |b| {
            let at = dice.below(b.len() as u64) as usize;
            b[at] ^= 1 << dice.below(8);
            if dice.below(4) == 0 {
                b.truncate(at);
            }
        });
        let (store, report) = try_open(&copy, small()).unwrap();
        assert!(report.snapshot_fault.is_some() && report.is_clean(), "seed {seed}: {report:?}");
        for (ino, expected) in (1..=KEYS).zip(&content) {
            assert_eq!(store.read(key(ino, 0), 0, 32 << 10).unwrap(), *expected);
        }
    }
}

#[test]
fn a_lost_segment_is_told_and_what_it_held_does_not_read_as_a_hole() {
    let disk = SimDisk::new(1, 8 << 20);
    let store = open(&disk);
    for ino in 1..=KEYS {
        store.write(key(ino, 0), 0, &[vec![ino as u8; 30_000]], V0).unwrap();
    }
    store.close().unwrap();
    disk.remove("0000000000000002.seg").unwrap();
    disk.sync_dir().unwrap();
    let (store, report) = try_open(&disk, small()).unwrap();
    assert_eq!(report.missing_segments, [2]);
    let lost = (1..=KEYS).filter(|ino| match store.read(key(*ino, 0), 0, 30_000) {
        Ok(data) => {
            assert_eq!(data, vec![*ino as u8; 30_000]);
            false
        }
        Err(e) => matches!(e, StoreError::Corrupt { .. }),
    });
    assert_eq!(lost.count(), 1);
}

#[test]
fn an_unreadable_sector_gives_an_error_for_its_blocks_only() {
    let disk = SimDisk::new(1, 8 << 20);
    let store = open(&disk);
    store.write(key(1, 0), 0, &[vec![1; 30_000]], V0).unwrap();
    store.close().unwrap();
    disk.set_unreadable("0000000000000001.seg", 8192, 8704);
    let (store, report) = try_open(&disk, small()).unwrap();
    assert!(report.is_clean());
    assert_eq!(store.read(key(1, 0), 0, 4096).unwrap(), [1; 4096]);
    assert!(matches!(store.read(key(1, 0), 4096, 4096), Err(StoreError::Corrupt { .. })));
    assert_eq!(store.read(key(1, 0), 12_288, 4096).unwrap(), [1; 4096]);
}

#[test]
fn a_scrub_finds_live_damage_and_a_new_write_mends_it() {
    let disk = SimDisk::new(1, 8 << 20);
    let store = open(&disk);
    store.write(key(1, 0), 0, &[vec![1; 20_000]], V0).unwrap();
    store.write(key(2, 0), 0, &[vec![2; 20_000]], V0).unwrap();
    disk.tamper("0000000000000001.seg", |b| b[10_000] ^= 4);
    let scrub = || {
        let mut cursor = Some(ScrubCursor::default());
        let mut bad = Vec::new();
        while let Some(at) = cursor {
            let step = store.scrub_step(at).unwrap();
            bad.extend(step.bad);
            cursor = step.next;
        }
        bad
    };
    let found = scrub();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].key, found[0].offset, found[0].len), (key(1, 0), 4096, 4096));
    store.write(key(1, 0), 4096, &[vec![1; 4096]], V0).unwrap();
    assert!(scrub().is_empty());
    assert_eq!(store.read(key(1, 0), 0, 20_000).unwrap(), vec![1; 20_000]);
}

#[test]
fn the_stores_name_is_known_from_its_segments() {
    let disk = SimDisk::new(7, 8 << 20);
    let (store, content) = sample(&disk);
    let id = store.identity();
    store.close().unwrap();
    assert!(segments(&disk).len() > 1);
    for damage in [0, 17, 63] {
        disk.tamper("store", |b| b[damage] ^= 1);
        // One segment that does not say it either does not matter.
        let first = segments(&disk).remove(0);
        disk.tamper(&first, |b| b[20] ^= 1);
        let (store, report) = try_open(&disk, small()).unwrap();
        assert!(report.identity_restored && !report.created);
        assert_eq!(store.identity(), id);
        assert!(reads_are_right(&store, &content));
        store.close().unwrap();
        disk.tamper(&first, |b| b[20] ^= 1);
        let (store, report) = try_open(&disk, small()).unwrap();
        assert!(!report.identity_restored);
        store.close().unwrap();
    }
    disk.tamper("store", |b| b.truncate(10));
    let (store, report) = try_open(&disk, small()).unwrap();
    assert!(report.identity_restored && store.identity() == id);
    store.close().unwrap();
    // Without any segment that says it nobody knows.
    for name in segments(&disk) {
        disk.tamper(&name, |b| b[20] ^= 1);
    }
    disk.tamper("store", |b| b[0] ^= 1);
    assert!(matches!(try_open(&disk, small()), Err(StoreError::BadFile { .. })));
}
