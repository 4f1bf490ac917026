//! New payloads take the place of dead ones, and nobody is the wiser.

use std::sync::Arc;

use super::super::disk::sim::{Dice, Holes, SimDisk};
use super::super::format::{LogPos, segment_name};
use super::super::holes::Aim;
use super::super::holes::rules::{BROKEN, Broken};
use super::super::slots::{Free, Pool};
use super::super::sync::{lock, read};
use super::super::{SegmentStore, StoreConfig, StoreError};
use super::holes::{bytes, churn, noticed};
use super::model::one_history;
use super::{KIB, V0, assert_clean, assert_rebuilds, key, open, reclaim_all, small, try_open};

/// A record of so many bytes fills half of a segment, and has its checksums in between.
const LEN: usize = 9_900;

fn put(store: &SegmentStore, n: u64, tag: u64) {
    store.write(key(1, n), 0, &[bytes(tag, LEN)], V0).unwrap();
}

fn assert_has(store: &SegmentStore, n: u64, tag: u64) {
    assert_eq!(store.read(key(1, n), 0, LEN as u64).unwrap(), bytes(tag, LEN), "chunk {n}");
}

/// So many chunks of which every third was written anew, and what is dead by that to be written over. In `put`'s numbers: tags of the
/// first are 100 and more.
fn third_dead(store: &SegmentStore, chunks: u64) {
    (0..chunks).for_each(|n| put(store, n, n));
    (0..chunks).step_by(3).for_each(|n| put(store, n, 100 + n));
    assert!(store.sweep_all(Aim::Slots).unwrap() >= (chunks / 3 - 2) * LEN as u64);
}

fn in_slots(store: &SegmentStore) -> usize {
    read(&store.state).slots.iter().len()
}

#[test]
fn what_is_dead_is_written_over_and_the_log_hardly_grows() {
    let disk = SimDisk::new(1, 8 << 20);
    let store = open(&disk);
    third_dead(&store, 30);
    let before = disk.allocated();
    (1..30).step_by(3).take(8).for_each(|n| put(&store, n, 200 + n));
    let grown = disk.allocated() - before;
    assert!(grown < 8 * 100, "{grown}");
    assert_eq!(in_slots(&store), 8);
    assert_eq!(store.won().by_slots, 8 * (LEN as u64 + 12));
    let look = |store: &SegmentStore| {
        for n in 0..30 {
            let tag = if n % 3 == 0 { 100 + n } else { n };
            assert_has(store, n, if n % 3 == 1 && n < 24 { 200 + n } else { tag });
        }
    };
    look(&store);
    assert_rebuilds(&store, &disk);
    let mut cursor = Some(Default::default());
    while let Some(at) = cursor {
        let step = store.scrub_step(at).unwrap();
        assert!(step.bad.is_empty() && step.damage.is_empty(), "{step:?}");
        cursor = step.next;
    }
    store.close().unwrap();
    assert_clean(&disk);
    let store = open(&disk);
    assert_eq!(in_slots(&store), 8);
    look(&store);
    // Slots, and records that have theirs elsewhere, can both be moved.
    for _ in 0..3 {
        (0..30)
            .filter(|n| n % 3 != 1)
            .for_each(|n| put(&store, n, if n % 3 == 0 { 100 + n } else { n }));
        reclaim_all(&store);
        look(&store);
        assert_rebuilds(&store, &disk);
    }
    store.close().unwrap();
    assert_clean(&disk);
}

#[test]
fn damage_in_a_slot_is_found_by_reading_scrubbing_and_checking() {
    let disk = SimDisk::new(1, 8 << 20);
    let store = open(&disk);
    third_dead(&store, 9);
    put(&store, 1, 201);
    store.flush().unwrap();
    let place = {
        let state = read(&store.state);
        let e = state.lookup(&key(1, 1), 0, LEN as u32)[0];
        assert!(e.is_in_slot());
        state.slots.place(e.at).unwrap()
    };
    disk.tamper(&segment_name(place.segment), |data| data[place.at as usize + 4200] ^= 1);
    let found = store.read(key(1, 1), 0, LEN as u64);
    assert!(matches!(found, Err(StoreError::Corrupt { offset: 4096, len: 4096, .. })), "{found:?}");
    let (mut cursor, mut bad) = (Some(Default::default()), Vec::new());
    while let Some(at) = cursor {
        let step = store.scrub_step(at).unwrap();
        bad.extend(step.bad);
        cursor = step.next;
    }
    let bad: Vec<_> = bad.iter().map(|b| (b.key, b.offset, b.len)).collect();
    assert_eq!(bad, [(key(1, 1), 4096, 4096)]);
    drop(store);
    let report = super::super::check::check_disk(&disk, std::path::Path::new("sim")).unwrap();
    assert_eq!(report.fault_count, 1, "{report:?}");
    assert!(report.faults[0].contains("live bytes 4096..8192"), "{report:?}");
}

#[test]
fn parts_of_what_is_in_a_slot_live_on_when_its_record_or_its_segment_is_moved() {
    let disk = SimDisk::new(1, 8 << 20);
    let store = open(&disk);
    third_dead(&store, 12);
    put(&store, 1, 201);
    put(&store, 4, 204);
    // Half of one of them is hidden again.
    store.write(key(1, 1), 3000, &[bytes(7, 4000)], V0).unwrap();
    let expected =
        [bytes(201, LEN)[..3000].to_vec(), bytes(7, 4000), bytes(201, LEN)[7000..].to_vec()]
            .concat();
    for round in 0..6 {
        (0..12).filter(|n| *n != 1 && *n != 4).for_each(|n| put(&store, n, round + n));
        reclaim_all(&store);
        assert_eq!(store.read(key(1, 1), 0, LEN as u64).unwrap(), expected);
        assert_has(&store, 4, 204);
        assert_rebuilds(&store, &disk);
        store.flush().unwrap();
        assert_clean(&disk);
    }
}

#[test]
fn who_reads_while_its_place_is_written_over_finds_all_of_one_write() {
    let disk = SimDisk::new(1, 8 << 20);
    let store = Arc::new(open(&disk));
    put(&store, 0, 1);
    put(&store, 2, 2);
    let act = |tag: u64| {
        let store = store.clone();
        move || {
            // Elsewhere, and then to the very place that the reader has looked up.
            put(&store, 0, tag);
            put(&store, 2, 2);
            put(&store, 3, 3);
            put(&store, 3, 4);
            assert!(store.sweep_all(Aim::Slots).unwrap() > 0);
            store.write(key(1, 0), 0, &[&bytes(tag + 1, LEN)[..4096]], V0).unwrap();
            store.write(key(1, 0), 0, &[&bytes(tag + 1, LEN)], V0).unwrap();
        }
    };
    for tag in [10, 20, 30] {
        disk.set_before_read(act(tag));
        let found = store.read(key(1, 0), 0, LEN as u64).unwrap();
        assert!(found == bytes(tag + 1, LEN), "some bytes are older");
        assert_has(&store, 0, tag + 1);
    }
    disk.set_before_read(act(40));
    assert_eq!(store.read_now(key(1, 0), 0, LEN as u64).unwrap(), None);
    assert!(in_slots(&store) > 0);
}

#[test]
fn overwriting_a_full_store_that_makes_no_holes_moves_next_to_nothing() {
    for holes in [Holes::None, Holes::Vain] {
        let disk = SimDisk::new(1, 1 << 30);
        disk.set_holes(holes);
        // Their checksums are in between.
        let (moved, store) = churn(&disk, 1 << 20);
        assert!(moved < 0.3, "{holes:?}: {moved}");
        let won = store.won();
        assert!(won.by_slots > 10 * won.by_moving, "{won:?}");
        assert!(disk.allocated() <= 18 << 20, "{holes:?}");
        store.close().unwrap();
        assert_clean(&disk);
    }
}

/// A full store of many short records, of which some are long: what is dead has room for the short ones only.
#[test]
fn who_finds_no_slot_that_is_long_enough_gets_room() {
    let disk = SimDisk::new(1, 1 << 30);
    disk.set_holes(Holes::None);
    let config = StoreConfig {
        segment_bytes: 1 << 20,
        max_chunk_bytes: 1 << 20,
        capacity_limit_bytes: Some(8 << 20),
        ..small()
    };
    let store = try_open(&disk, config).unwrap().0;
    let chunks = 600;
    (0..chunks).for_each(|n| put(&store, n, n));
    let mut dice = Dice(3);
    for round in 1..20 {
        for _ in 0..chunks / 3 {
            let n = dice.below(chunks);
            put(&store, n, n);
            store.reclaim_step().unwrap();
        }
        // In pages.
        let long = bytes(round, 200 * KIB as usize);
        store.write(key(2, round % 2), 0, &[&long], V0).unwrap();
        assert_eq!(store.read(key(2, round % 2), 0, 200 * KIB).unwrap(), long);
    }
    (0..chunks).for_each(|n| assert_has(&store, n, n));
    assert!(store.won().by_slots > 0 && store.won().by_moving > 0, "{:?}", store.won());
    store.close().unwrap();
    assert_clean(&disk);
}

/// A store of two segments, of which the second holds the records of what is in slots of the first: chunks 1 and 4, with tags of 200 and more.
fn with_records_apart(disk: &SimDisk) -> SegmentStore {
    let config = StoreConfig {
        segment_bytes: 128 * KIB,
        max_unflushed_segments: 100,
        step_bytes: 60,
        ..small()
    };
    let store = try_open(disk, config).unwrap().0;
    (0..6).for_each(|n| put(&store, n, n));
    (0..2).for_each(|n| put(&store, n, 100 + n));
    store.log.roll(&mut lock(&store.log.tail)).unwrap();
    assert!(store.sweep_all(Aim::Slots).unwrap() > 0);
    [1, 4].into_iter().for_each(|n| put(&store, n, 200 + n));
    assert_eq!(in_slots(&store), 2);
    store.log.roll(&mut lock(&store.log.tail)).unwrap();
    store
}

/// Moves one segment away.
fn reclaim(store: &SegmentStore, segment: u32) {
    for _ in 0..100 {
        if !read(&store.state).segments.contains_key(&segment) {
            return;
        }
        store.reclaim_step().unwrap();
    }
    panic!("segment {segment} stays: {:?}", read(&store.state).segments);
}

#[test]
fn a_rotten_payload_whose_record_was_moved_is_not_the_end_of_the_log() {
    let mut unproven = 0;
    for seed in 1..=100 {
        let disk = SimDisk::new(seed, 8 << 20);
        let store = with_records_apart(&disk);
        store.flush().unwrap();
        let at = read(&store.state).lookup(&key(1, 4), 0, 10)[0].at;
        let place = read(&store.state).slots.place(at).unwrap();
        disk.tamper(&segment_name(place.segment), |data| data[place.at as usize + 10] ^= 1);
        // Nothing else of the second segment is needed.
        store.delete_chunk(key(1, 1)).unwrap();
        // Until it is moved, and no further.
        while read(&store.state).lookup(&key(1, 4), 0, 10)[0].at == at {
            store.reclaim_step().unwrap();
        }
        assert!(read(&store.state).segments.contains_key(&2));
        put(&store, 9, 9);
        store.flush().unwrap();
        drop(store);
        disk.power_cycle();
        let (store, report) = try_open(&disk, small()).unwrap();
        assert!(report.is_clean(), "{report:?}");
        unproven += usize::from(report.cut.is_some());
        assert_has(&store, 9, 9);
        let found = store.read(key(1, 4), 0, LEN as u64);
        assert!(matches!(found, Err(StoreError::Corrupt { offset: 0, .. })), "{found:?}");
    }
    assert!(unproven > 0, "no end of a log was cut off");
}

#[test]
fn what_is_in_a_slot_of_a_missing_segment_is_lost_and_nobody_waits_for_it() {
    let disk = SimDisk::new(1, 8 << 20);
    let store = with_records_apart(&disk);
    // A part of one of them is hidden.
    store.write(key(1, 4), 1000, &[bytes(5, 100)], V0).unwrap();
    store.close().unwrap();
    super::super::disk::Disk::remove(&disk, &segment_name(1)).unwrap();
    let store = open(&disk);
    assert!(matches!(store.read(key(1, 4), 0, 500), Err(StoreError::Corrupt { .. })));
    store.delete_chunk(key(1, 1)).unwrap();
    reclaim(&store, 2);
    assert!(matches!(store.read(key(1, 4), 0, 500), Err(StoreError::Corrupt { .. })));
    assert_eq!(store.read(key(1, 4), 1000, 100).unwrap(), bytes(5, 100));
}

#[test]
fn of_a_slot_that_is_dead_in_part_the_rest_stays_when_its_record_is_moved() {
    let disk = SimDisk::new(1, 8 << 20);
    let store = with_records_apart(&disk);
    store.write(key(1, 4), 4000, &[bytes(5, 100)], V0).unwrap();
    let expected =
        [bytes(204, LEN)[..4000].to_vec(), bytes(5, 100), bytes(204, LEN)[4100..].to_vec()]
            .concat();
    store.delete_chunk(key(1, 1)).unwrap();
    let moved: u64 = std::iter::from_fn(|| {
        let there = read(&store.state).segments.contains_key(&2);
        there.then(|| store.reclaim_step().unwrap().moved_bytes)
    })
    .sum();
    // What is left before the hidden bytes has no whole block, what is behind has some.
    assert!(moved <= 4000 + (8192 - 4100) + 2 * 80, "{moved}");
    assert_eq!(in_slots(&store), 1);
    assert_eq!(store.read(key(1, 4), 0, LEN as u64).unwrap(), expected);
    assert_rebuilds(&store, &disk);
    store.close().unwrap();
    assert_clean(&disk);
    assert_eq!(open(&disk).read(key(1, 4), 0, LEN as u64).unwrap(), expected);
}

/// The server is killed while a record is moved piece by piece: what is left of it lies in its slot beside the copies, until all has moved.
#[test]
fn a_slot_whose_record_was_moved_in_part_is_not_given_out() {
    for again in [false, true] {
        let mut in_part = 0;
        for fuse in 1.. {
            let disk = SimDisk::new(fuse, 8 << 20);
            let store = with_records_apart(&disk);
            store.write(key(1, 4), 4096, &[bytes(5, 904)], V0).unwrap();
            let expected =
                [bytes(204, LEN)[..4096].to_vec(), bytes(5, 904), bytes(204, LEN)[5000..].to_vec()]
                    .concat();
            store.delete_chunk(key(1, 1)).unwrap();
            store.flush().unwrap();
            disk.set_fuse(Some(fuse));
            let broken = std::iter::from_fn(|| {
                let there = read(&store.state).segments.contains_key(&2);
                there.then(|| store.reclaim_step())
            })
            .any(|step| step.is_err());
            drop(store);
            disk.set_fuse(None);
            // What was written is still known to the system, as after a kill.
            let store = open(&disk);
            let pieces = read(&store.state).lookup(&key(1, 4), 0, LEN as u32);
            let there = |n: usize| pieces[n].at.segment == 2;
            in_part += usize::from(!there(0) && there(pieces.len() - 1));
            if again && broken {
                reclaim(&store, 1);
            }
            store.sweep_all(Aim::Slots).unwrap();
            // Short enough for a part of it.
            (20..40).for_each(|n| {
                store.write(key(1, n), 0, &[bytes(n, 4200)], V0).unwrap();
            });
            assert_eq!(store.read(key(1, 4), 0, LEN as u64).unwrap(), expected, "{fuse}");
            (20..40).for_each(|n| {
                assert_eq!(store.read(key(1, n), 0, 4200).unwrap(), bytes(n, 4200));
            });
            if !broken {
                break;
            }
        }
        assert!(in_part > 0, "no copy was there without the other");
    }
}

#[test]
fn where_slots_are_too_short_room_is_made() {
    let disk = SimDisk::new(1, 1 << 30);
    disk.set_holes(Holes::None);
    let config = StoreConfig {
        segment_bytes: 128 * KIB,
        paged_bytes: 1 << 20,
        capacity_limit_bytes: Some(6 << 20),
        ..small()
    };
    let store = try_open(&disk, config).unwrap().0;
    // Every other one is dead then, in each segment.
    let chunks = 1300;
    for n in 0..chunks {
        store.write(key(1, n), 0, &[bytes(n, 4096)], V0).unwrap();
    }
    for n in (0..chunks).step_by(2) {
        store.delete_chunk(key(1, n)).unwrap();
    }
    for n in 0..40 {
        store.write(key(2, n), 0, &[bytes(n, 40_000)], V0).unwrap();
    }
    (0..40).for_each(|n| assert_eq!(store.read(key(2, n), 0, 40_000).unwrap(), bytes(n, 40_000)));
    assert!(store.won().by_moving > 500_000, "{:?}", store.won());
}

#[test]
fn the_pool_knows_what_it_has_and_keeps_few_files() {
    let disk = SimDisk::new(1, 1 << 20);
    let file = super::super::disk::Disk::create(&disk, "some").unwrap();
    let mut pool = Pool::default();
    let free = |segment, at, len| Free { place: LogPos { segment, at }, len };
    pool.fill(file.clone(), vec![free(1, 1000, 20_000), free(1, 50_000, 5000)]);
    assert!(pool.take(4000).is_none(), "too short for a slot");
    assert_eq!(pool.take(5000).unwrap().0, LogPos { segment: 1, at: 50_000 });
    assert_eq!(pool.take(5000).unwrap().0, LogPos { segment: 1, at: 1000 });
    assert_eq!(pool.left(), [(1, 15_000)].into());
    assert!(!pool.is_low(15_000) && pool.is_low(15_001));
    assert!(pool.take(16_000).is_none() && pool.is_low(0), "somebody found none");
    assert_eq!(pool.take(15_000).unwrap().0, LogPos { segment: 1, at: 6000 });
    assert!(pool.left().is_empty());
    pool.fill(file.clone(), vec![free(2, 0, 9000)]);
    pool.refuse(2);
    pool.fill(file.clone(), vec![free(2, 0, 9000)]);
    assert!(pool.take(9000).is_none());
    (3..1000).for_each(|segment| pool.fill(file.clone(), vec![free(segment, 0, 5000)]));
    let left = pool.left();
    assert!(left.len() <= 64 && left.contains_key(&999), "{left:?}");
    left.keys().for_each(|segment| pool.forget(*segment));
    assert!(pool.left().is_empty() && pool.is_low(1));
}

/// The power fails after something was written to slots. With `flushed`, all is flushed last.
fn crash_with_slots(seed: u64, flushed: bool) {
    let disk = SimDisk::new(seed, 8 << 20);
    let config = StoreConfig { max_unflushed_segments: 100, ..small() };
    let store = try_open(&disk, config).unwrap().0;
    (0..6).for_each(|n| put(&store, n, n));
    store.flush().unwrap();
    (0..2).for_each(|n| put(&store, n, 10 + n));
    assert!(store.sweep_all(Aim::Slots).unwrap() > 0);
    (4..6).for_each(|n| put(&store, n, 10 + n));
    assert_eq!(in_slots(&store), 2);
    if flushed {
        store.flush().unwrap();
    }
    drop(store);
    disk.power_cycle();
    assert_clean(&disk);
    let (store, report) = try_open(&disk, small()).unwrap();
    assert!(report.is_clean(), "{report:?}");
    // The sweep had to flush all this.
    for (n, tag) in [(0, 10), (1, 11), (2, 2), (3, 3)] {
        assert_has(&store, n, tag);
    }
    for n in 4..6 {
        let found = store.read(key(1, n), 0, LEN as u64).unwrap();
        let new = found == bytes(10 + n, LEN);
        assert!(new || (!flushed && found == bytes(n, LEN)), "chunk {n}");
    }
}

/// The power fails after a segment with slots was moved, whose records died just before and were flushed by nobody.
fn crash_after_a_removal(seed: u64) {
    let disk = SimDisk::new(seed, 8 << 20);
    let config = StoreConfig { max_unflushed_segments: 100, ..small() };
    let store = try_open(&disk, config).unwrap().0;
    (0..6).for_each(|n| put(&store, n, n));
    (0..3).for_each(|n| put(&store, n, 10 + n));
    assert!(store.sweep_all(Aim::Slots).unwrap() > 0);
    put(&store, 3, 13);
    assert_eq!(in_slots(&store), 1);
    put(&store, 3, 23);
    // Nothing of the first segment is needed any more.
    (0..5).for_each(|n| put(&store, n, 30 + n));
    reclaim_all(&store);
    let gone = !read(&store.state).segments.contains_key(&1);
    assert!(gone, "{:?}", read(&store.state).segments);
    drop(store);
    disk.power_cycle();
    assert_clean(&disk);
    let (store, report) = try_open(&disk, small()).unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_has(&store, 5, 5);
    (0..5).for_each(|n| assert_has(&store, n, 30 + n));
}

#[test]
fn slots_are_given_out_flushed_and_removed_when_that_is_safe() {
    for seed in 1..=300 {
        crash_with_slots(seed, false);
        crash_with_slots(seed, true);
        crash_after_a_removal(seed);
    }
    type Run<'a> = &'a dyn Fn(u64);
    let mutants: [(Broken, Run<'_>, u64); 3] = [
        (Broken::NotFlushed, &|seed| crash_with_slots(seed, false), 300),
        (Broken::SlotsNotFlushed, &|seed| crash_with_slots(seed, true), 300),
        (Broken::NotFlushed, &|seed| one_history(seed, Some(Aim::Slots)), 2000),
    ];
    for (broken, run, seeds) in mutants {
        BROKEN.set(broken);
        let found = noticed(run, seeds);
        BROKEN.set(Broken::None);
        let Some(seed) = found else { panic!("nobody notices {broken:?}") };
        run(seed);
    }
}

#[test]
fn a_segment_with_slots_is_removed_only_when_their_records_are_proven() {
    BROKEN.set(Broken::NotProvenAtRemoval);
    let found = noticed(&|seed| crash_after_a_removal(seed), 300);
    let found = found.or_else(|| noticed(&|seed| one_history(seed, Some(Aim::Slots)), 3000));
    BROKEN.set(Broken::None);
    assert!(found.is_some(), "nobody notices it");
}

#[test]
fn a_real_store_writes_over_what_is_dead() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig { segment_bytes: 32 * KIB, ..small() };
    let store = SegmentStore::open(dir.path(), config.clone()).unwrap().0;
    third_dead(&store, 30);
    (1..20).step_by(3).for_each(|n| put(&store, n, 200 + n));
    store.flush().unwrap();
    assert_eq!(in_slots(&store), 7);
    let tail = lock(&store.log.tail).position();
    drop(store);
    assert!(SegmentStore::check(dir.path()).unwrap().is_clean());
    let store = SegmentStore::open(dir.path(), config).unwrap().0;
    assert!(lock(&store.log.tail).position() >= tail);
    (1..20).step_by(3).for_each(|n| assert_has(&store, n, 200 + n));
    assert_has(&store, 0, 100);
}
