//! Dead bytes become holes, and nobody is the wiser.

use std::sync::Arc;
use std::time::Duration;

use super::super::disk::Disk;
use super::super::disk::sim::{Dice, Holes, SimDisk};
use super::super::format::segment_name;
use super::super::holes::Aim;
use super::super::holes::rules::{BROKEN, Broken};
use super::super::sync::{lock, read};
use super::super::ways::Way;
use super::super::{SegmentStore, StoreConfig, StoreError};
use super::model::one_history;
use super::{KIB, V0, assert_clean, assert_rebuilds, key, open, reclaim_all, small, try_open};
use crate::data::codec::Codec;
use netfs_common::coding::Compression;

/// Bytes that do not compress, the same for the same tag.
pub(super) fn bytes(tag: u64, len: usize) -> Vec<u8> {
    let mut dice = Dice(tag);
    (0..len).map(|_| 1 + dice.below(255) as u8).collect()
}

fn taken(store: &SegmentStore) -> u64 {
    read(&store.state).segments.values().map(|info| info.taken()).sum()
}

/// Two records in a segment, of which the first is overwritten then.
fn half_dead(store: &SegmentStore, pairs: u64) {
    for n in 0..pairs {
        store.write(key(1, 2 * n), 0, &[bytes(n, 14_000)], V0).unwrap();
        store.write(key(1, 2 * n + 1), 0, &[bytes(n + 1000, 14_000)], V0).unwrap();
    }
    for n in 0..pairs {
        store.write(key(1, 2 * n), 0, &[bytes(n + 2000, 14_000)], V0).unwrap();
    }
}

fn assert_half_dead(store: &SegmentStore, pairs: u64) {
    for n in 0..pairs {
        assert_eq!(store.read(key(1, 2 * n), 0, 14_000).unwrap(), bytes(n + 2000, 14_000));
        assert_eq!(store.read(key(1, 2 * n + 1), 0, 14_000).unwrap(), bytes(n + 1000, 14_000));
    }
}

#[test]
fn dead_pages_go_back_to_the_file_system_and_everything_is_still_there() {
    let disk = SimDisk::new(1, 8 << 20);
    let store = open(&disk);
    half_dead(&store, 10);
    let (before, dead) = (disk.allocated(), store.usage().unwrap().dead_bytes);
    let won = store.sweep_all(Aim::Holes).unwrap();
    assert!(won >= 10 * 2 * 4096, "{won}");
    // No more than the notes that prove it, one for some segments, were written for it.
    let now = disk.allocated();
    assert!(now <= before - won + 1000, "{before} {won} {now}");
    let usage = store.usage().unwrap();
    assert_eq!(usage.dead_bytes, dead - won);
    assert_eq!(store.sweep_all(Aim::Holes).unwrap(), 0, "all holes are made");
    assert_half_dead(&store, 10);
    assert_rebuilds(&store, &disk);
    let mut cursor = Some(Default::default());
    while let Some(at) = cursor {
        let step = store.scrub_step(at).unwrap();
        assert!(step.bad.is_empty() && step.damage.is_empty(), "{step:?}");
        cursor = step.next;
    }
    let counted = taken(&store);
    store.close().unwrap();
    assert_clean(&disk);
    let store = open(&disk);
    // Closing has left a note.
    assert!((counted..counted + 200).contains(&taken(&store)), "opening finds the holes");
    assert_half_dead(&store, 10);
    reclaim_all(&store);
    assert_half_dead(&store, 10);
    store.close().unwrap();
    assert_clean(&disk);
}

#[test]
fn parts_of_records_become_holes_in_every_form() {
    let plain = || Some(Arc::default());
    let packed = || Some(Arc::new(Codec::new(Compression::Lz4, None)));
    for (len, codec) in [(9_900, plain()), (24_000, plain()), (24_000, packed())] {
        let disk = SimDisk::new(1, 8 << 20);
        let store = open(&disk);
        store.set_codec(0, codec);
        let mut content = bytes(1, len);
        store.write(key(1, 0), 300, &[&content], V0).unwrap();
        let mut dice = Dice(len as u64);
        let mut won = 0;
        for n in 0..40 {
            let from = dice.below(len as u64) as usize;
            let part = bytes(n, (1 + dice.below(9000) as usize).min(len - from));
            content[from..from + part.len()].copy_from_slice(&part);
            store.write(key(1, 0), 300 + from as u64, &[&part], V0).unwrap();
            won += store.sweep_all(Aim::Holes).unwrap();
            assert_eq!(store.read(key(1, 0), 300, len as u64).unwrap(), content);
            assert_clean(&disk);
        }
        assert!(won >= 2 * 4096, "{won}");
        assert_rebuilds(&store, &disk);
        reclaim_all(&store);
        assert_eq!(store.read(key(1, 0), 300, len as u64).unwrap(), content);
    }
}

#[test]
fn who_reads_while_a_hole_is_made_finds_what_is_in_its_place() {
    for len in [9_900, 24_000] {
        let disk = SimDisk::new(1, 8 << 20);
        let store = Arc::new(open(&disk));
        store.write(key(1, 0), 0, &[bytes(1, len)], V0).unwrap();
        // So that its segment is not the last one.
        store.write(key(2, 0), 0, &[bytes(2, 30_000)], V0).unwrap();
        let act = |now: u64| {
            let store = store.clone();
            move || {
                store.write(key(1, 0), 0, &[bytes(now, len)], V0).unwrap();
                store.write(key(2, 0), 0, &[bytes(2, 30_000)], V0).unwrap();
                assert!(store.sweep_all(Aim::Holes).unwrap() > 0);
            }
        };
        disk.set_before_read(act(3));
        assert_eq!(store.read(key(1, 0), 0, len as u64).unwrap(), bytes(3, len));
        disk.set_before_read(act(4));
        assert_eq!(store.read_now(key(1, 0), 0, len as u64).unwrap(), None);
        assert_eq!(store.read(key(1, 0), 0, len as u64).unwrap(), bytes(4, len));
    }
}

#[test]
fn zeros_in_what_lives_are_damage() {
    let disk = SimDisk::new(1, 8 << 20);
    let store = open(&disk);
    half_dead(&store, 1);
    store.sweep_all(Aim::Holes).unwrap();
    let lives = read(&store.state).lookup(&key(1, 1), 0, 14_000)[0];
    assert!(lives.pages().is_some());
    let at = lives.at.at as usize;
    disk.tamper(&segment_name(lives.at.segment), |data| data[at..at + 8192].fill(0));
    let read = store.read(key(1, 1), 0, 14_000);
    assert!(matches!(read, Err(StoreError::Corrupt { offset: 0, .. })), "{read:?}");
    drop(store);
    let report = super::super::check::check_disk(&disk, std::path::Path::new("sim")).unwrap();
    assert_eq!(report.fault_count, 1, "{report:?}");
    assert!(report.faults[0].contains("live bytes 0..8192"), "{report:?}");
}

/// Fills four fifths of a store and overwrites it at random for a while: bytes that were moved for each overwritten, and the store.
pub(super) fn churn(disk: &SimDisk, paged_bytes: u32) -> (f64, SegmentStore) {
    const LEN: u64 = 64 * KIB;
    let capacity = 16 << 20;
    let config = StoreConfig {
        segment_bytes: 1 << 20,
        capacity_limit_bytes: Some(capacity + (2 << 20)),
        reserve_bytes: 2 << 20,
        step_bytes: 256 * KIB,
        paged_bytes,
        ..small()
    };
    let store = try_open(disk, config).unwrap().0;
    let region = capacity / 5 * 4 / LEN;
    let mut dice = Dice(5);
    let write = |n: u64, tag: u64| {
        store.write(key(1, n), 0, &[bytes(tag << 16 | n, LEN as usize)], V0).unwrap();
    };
    (0..region).for_each(|n| write(n, 0));
    let mut tags = vec![0; region as usize];
    let mut moved = 0;
    let writes = 6 * region;
    for n in 0..writes {
        let block = dice.below(region);
        tags[block as usize] = n + 1;
        write(block, n + 1);
        if n % 4 == 0 {
            moved += store.reclaim_step().unwrap().moved_bytes;
        }
    }
    for n in 0..region {
        let expected = bytes(tags[n as usize] << 16 | n, LEN as usize);
        assert_eq!(store.read(key(1, n), 0, LEN).unwrap(), expected);
    }
    (moved as f64 / (writes * LEN) as f64, store)
}

const MIB: u64 = 1 << 20;

#[test]
fn overwriting_a_full_store_moves_next_to_nothing() {
    let disk = SimDisk::new(1, 1 << 30);
    let (moved, store) = churn(&disk, 10_000);
    assert!(moved < 0.3, "{moved}");
    let took = disk.allocated();
    // All but the snapshot and the names is counted, and the limit holds.
    assert!((took - 64 * KIB..=took).contains(&taken(&store)), "{took}");
    assert!(took <= 18 * MIB, "{took}");
    // There are no more files than that, however little is in each.
    let segments = store.usage().unwrap().segments;
    assert!(segments <= 2 * 16 + 8 + 2, "{segments}");
    store.close().unwrap();
    assert_clean(&disk);
}

#[test]
fn without_holes_that_are_of_use_long_records_are_moved() {
    for holes in [Holes::None, Holes::Vain] {
        let disk = SimDisk::new(1, 1 << 30);
        disk.set_holes(holes);
        let (moved, store) = churn(&disk, 10_000);
        assert!(moved > 0.5, "{holes:?}: {moved}");
        assert_eq!(store.won().by_holes, 0);
        assert!(disk.allocated() <= 18 * MIB, "{holes:?}");
        store.close().unwrap();
        assert_clean(&disk);
    }
}

#[test]
fn the_way_that_is_cheaper_here_is_used() {
    for (hole_us, mib_us) in [(4000, 500), (10, 500)] {
        let disk = SimDisk::new(1, 1 << 30);
        disk.set_times(Duration::from_micros(hole_us), Duration::from_micros(mib_us));
        let (moved, store) = churn(&disk, 10_000);
        let won = store.won();
        let slow = hole_us > mib_us;
        assert_eq!(won.by_moving > 10 * won.by_holes, slow, "{won:?}");
        assert_eq!(moved > 0.5, slow, "{moved}");
        assert!(won.by_holes > 0, "they had their turn");
    }
}

#[test]
fn a_long_record_gets_its_room_however_little_each_step_wins() {
    let disk = SimDisk::new(1, 1 << 30);
    let config = StoreConfig {
        segment_bytes: MIB,
        max_chunk_bytes: 4 * MIB,
        capacity_limit_bytes: Some(11 * MIB),
        ..small()
    };
    let store = try_open(&disk, config).unwrap().0;
    for n in (0..400).chain((0..400).step_by(2)) {
        store.write(key(1, n), 0, &[bytes(n, 16_000)], V0).unwrap();
    }
    // One hole of three pages in a step; moving would take longer yet.
    disk.set_times(Duration::from_millis(25), Duration::from_secs(1000));
    let long = bytes(7, 3 << 20);
    store.write(key(2, 0), 0, &[&long], V0).unwrap();
    assert!(store.won().by_holes > 32 * 12 * KIB, "{:?}", store.won());
    assert_eq!(store.read(key(2, 0), 0, 3 * MIB).unwrap(), long);
    for n in 0..400 {
        assert_eq!(store.read(key(1, n), 0, 16_000).unwrap(), bytes(n, 16_000));
    }
    assert_clean(&disk);
}

#[test]
fn no_step_makes_holes_for_long() {
    let disk = SimDisk::new(1, 1 << 30);
    let config =
        StoreConfig { segment_bytes: MIB, capacity_limit_bytes: Some(40 * MIB), ..small() };
    let store = try_open(&disk, config).unwrap().0;
    // Then the even ones again.
    for n in (0..400).chain((0..400).step_by(2)) {
        store.write(key(1, n), 0, &[bytes(n, 16_000)], V0).unwrap();
    }
    disk.set_times(Duration::from_millis(1), Duration::from_millis(1000));
    let (mut steps, mut before) = (0, 0);
    while before < 150 * 12 * KIB {
        let begun = disk.now();
        let done = store.reclaim_step().unwrap();
        assert!(!done.idle, "{:?}", store.won());
        let won = store.won().by_holes;
        if won > before {
            let took = disk.now() - begun;
            assert!(took <= Duration::from_millis(21), "{took:?}");
            assert!(won - before <= 21 * 16 * KIB, "{}", won - before);
            steps += 1;
        }
        before = won;
    }
    assert!(steps >= 150 / 21, "{steps}");
    // Where they are fast, their number is the bound.
    disk.set_times(Duration::ZERO, Duration::ZERO);
    for n in 0..400 {
        store.write(key(1, n), 0, &[bytes(n, 16_000)], V0).unwrap();
    }
    loop {
        let done = store.reclaim_step().unwrap();
        assert!(done.moved_bytes > 0 || done.freed_bytes <= MIB, "{done:?}");
        if done.idle {
            break;
        }
    }
}

#[test]
fn what_compression_saves_is_not_taken_for_holes() {
    let disk = SimDisk::new(1, 8 << 20);
    let store = open(&disk);
    // Three in each segment.
    let thirds = || (0..60).chain((0..60).step_by(3));
    for n in thirds() {
        store.write(key(1, n), 0, &[bytes(n, 9_900)], V0).unwrap();
    }
    let len = taken(&store);
    store.close().unwrap();
    disk.set_holes(Holes::Squeezed);
    let before = disk.allocated();
    let store = open(&disk);
    let guessed = read(&store.state).segments.values().any(|info| info.guessed);
    assert!(guessed && store.usage().unwrap().dead_bytes < len / 20, "all seems to be holes");
    reclaim_all(&store);
    assert!(disk.allocated() + 20 * 4096 / 2 <= before, "{before} {}", disk.allocated());
    for n in thirds() {
        assert_eq!(store.read(key(1, n), 0, 9_900).unwrap(), bytes(n, 9_900));
    }
    store.close().unwrap();
    assert_clean(&disk);
}

#[test]
fn a_segment_that_was_swept_in_vain_is_swept_again_when_more_of_it_is_dead() {
    let disk = SimDisk::new(1, 8 << 20);
    disk.set_holes(Holes::Vain);
    let store = open(&disk);
    // The first three in one segment.
    for n in (0..6).chain([0]) {
        store.write(key(1, n), 0, &[bytes(n, 9_900)], V0).unwrap();
    }
    assert_eq!(store.sweep_all(Aim::Holes).unwrap(), 0);
    disk.set_holes(Holes::Free);
    let mut reclaimer = lock(&store.reclaimer);
    let (swept, _) = reclaimer.for_sweep();
    let promise = |swept: &_| {
        let state = read(&store.state);
        let all = state.segments.iter();
        all.map(|(id, info)| store.holes.promise((*id, info), Way::Holes, swept))
            .collect::<Vec<_>>()
    };
    assert_eq!(promise(swept)[0], 0);
    for n in 1..3 {
        store.write(key(1, n), 0, &[bytes(n, 9_900)], V0).unwrap();
    }
    assert!(promise(swept)[0] > 8000, "{:?}", promise(swept));
}

#[test]
fn segments_with_hardly_anything_left_between_holes_are_moved() {
    let disk = SimDisk::new(1, 1 << 30);
    let config = StoreConfig { segment_bytes: MIB, step_bytes: MIB, ..small() };
    let store = try_open(&disk, config).unwrap().0;
    let last = 30 * 60;
    for n in 0..last {
        store.write(key(1, n), 0, &[bytes(n, 16_000)], V0).unwrap();
    }
    let before = store.usage().unwrap().segments;
    // One of seven stays.
    for n in (0..last).filter(|n| n % 7 > 0) {
        store.delete_chunk(key(1, n)).unwrap();
    }
    while store.sweep_all(Aim::Holes).unwrap() > 0 {}
    assert!(store.usage().unwrap().segments >= before, "holes remove no segment");
    reclaim_all(&store);
    let after = store.usage().unwrap().segments;
    assert!(after <= before / 4, "{before} {after}");
    for n in (0..last).step_by(7) {
        assert_eq!(store.read(key(1, n), 0, 16_000).unwrap(), bytes(n, 16_000));
    }
    store.close().unwrap();
    assert_clean(&disk);
}

/// Overwrites a chunk whenever something is about to be read.
fn overwrite_at_each_read(disk: &SimDisk, store: &Arc<SegmentStore>, left: u64) {
    let (again, other) = (disk.clone(), store.clone());
    disk.set_before_read(move || {
        other.write(key(1, 0), 14_000, &[bytes(left, 14_000)], V0).unwrap();
        if left > 0 {
            overwrite_at_each_read(&again, &other, left - 1);
        }
    });
}

#[test]
fn damage_is_told_at_once_while_other_parts_change() {
    let disk = SimDisk::new(1, 8 << 20);
    let store = Arc::new(open(&disk));
    store.write(key(1, 0), 0, &[bytes(1, 14_000)], V0).unwrap();
    store.write(key(1, 0), 14_000, &[bytes(2, 14_000)], V0).unwrap();
    let at = read(&store.state).lookup(&key(1, 0), 0, 14_000)[0].at;
    disk.tamper(&segment_name(at.segment), |data| data[at.at as usize + 5000] ^= 1);
    overwrite_at_each_read(&disk, &store, 150);
    let found = store.read(key(1, 0), 0, 28_000);
    assert!(matches!(found, Err(StoreError::Corrupt { offset: 4096, .. })), "{found:?}");
}

/// The power fails just after holes were made of something that was overwritten. With `flushed`, what was overwritten had been flushed, and told to be.
fn crash_after_a_sweep(seed: u64, flushed: bool) {
    let disk = SimDisk::new(seed, 8 << 20);
    // Nobody else flushes.
    let config = StoreConfig { max_unflushed_segments: 100, ..small() };
    let store = try_open(&disk, config).unwrap().0;
    let write = |n: u64, tag: u64| {
        store.write(key(1, n), 0, &[bytes(tag, 14_000)], V0).unwrap();
    };
    (0..5).for_each(|n| write(n, n));
    if flushed {
        store.flush().unwrap();
        write(5, 5);
        store.flush().unwrap();
    }
    (0..2).for_each(|n| write(n, 10 + n));
    assert!(store.sweep_all(Aim::Holes).unwrap() > 0);
    drop(store);
    disk.power_cycle();
    assert_clean(&disk);
    let (store, report) = try_open(&disk, small()).unwrap();
    assert!(report.is_clean(), "{report:?}");
    // The sweep had to flush all this.
    for (n, tag) in [(0, 10), (1, 11), (2, 2), (3, 3), (4, 4)] {
        assert_eq!(store.read(key(1, n), 0, 14_000).unwrap(), bytes(tag, 14_000));
    }
}

/// The first of so many seeds with which something fails.
pub(super) fn noticed(run: &dyn Fn(u64), seeds: u64) -> Option<u64> {
    let failed =
        |seed: &u64| std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(*seed))).is_err();
    (1..=seeds).find(failed)
}

#[test]
fn holes_are_made_when_their_cause_is_proven_by_the_log() {
    for flushed in [false, true] {
        (1..=300).for_each(|seed| crash_after_a_sweep(seed, flushed));
    }
    for (broken, flushed) in [(Broken::NotFlushed, true), (Broken::NotProven, false)] {
        BROKEN.set(broken);
        let noticed = noticed(&|seed| crash_after_a_sweep(seed, flushed), 300);
        BROKEN.set(Broken::None);
        assert!(noticed.is_some(), "nobody notices {broken:?}");
    }
    BROKEN.set(Broken::NotFlushed);
    let noticed = noticed(&|seed| one_history(seed, Some(Aim::Holes)), 2000);
    BROKEN.set(Broken::None);
    let Some(seed) = noticed else { panic!("no history notices it") };
    one_history(seed, Some(Aim::Holes));
}

#[test]
fn a_real_file_gets_holes_where_it_can_have_them() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig { paged_bytes: 10_000, segment_bytes: 32 * KIB, ..small() };
    let store = SegmentStore::open(dir.path(), config.clone()).unwrap().0;
    half_dead(&store, 10);
    store.flush().unwrap();
    let blocks = || {
        use std::os::unix::fs::MetadataExt;
        let entries = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap());
        let segments = entries.filter(|e| e.file_name().to_string_lossy().ends_with(".seg"));
        segments.map(|e| e.metadata().unwrap().blocks() * 512).sum::<u64>()
    };
    let before = blocks();
    let won = store.sweep_all(Aim::Holes).unwrap();
    // Notes of holes may take some blocks.
    assert!(blocks() <= before - won / 2, "{before} {won} {}", blocks());
    assert_half_dead(&store, 10);
    drop(store);
    assert!(SegmentStore::check(dir.path()).unwrap().is_clean());
    let store = SegmentStore::open(dir.path(), config).unwrap().0;
    assert_half_dead(&store, 10);
}
