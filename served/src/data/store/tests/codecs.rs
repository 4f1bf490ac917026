//! Compressed and encrypted chunks in the store.

use std::sync::Arc;

use netfs_common::coding::{Cipher, Compression};
use netfs_common::map::INODE_BITS;

use super::super::disk::Disk;
use super::super::disk::sim::{Dice, SimDisk};
use super::super::{ChunkKey, ScrubCursor, SegmentStore, StoreConfig, StoreError};
use super::{KIB, V0, assert_clean, assert_rebuilds, key, open, reclaim_all, small, try_open};
use crate::data::codec::{Codec, VolumeKey};

/// One of nine combinations, with frames of this size.
pub(super) fn some_codec(number: u64, bits: u8) -> Codec {
    let compression = [Compression::None, Compression::Lz4, Compression::Zstd];
    let cipher = [None, Some(Cipher::Aes256Gcm), Some(Cipher::ChaCha20Poly1305)];
    let key = cipher[(number / 3 % 3) as usize].map(|cipher| VolumeKey::fixed(cipher, [9; 32]));
    Codec::new(compression[(number % 3) as usize], key).with_frames(bits)
}

/// In the volume with this number.
fn in_volume(volume: u64, ino: u64) -> ChunkKey {
    key(volume << INODE_BITS | ino, 0)
}

fn large() -> StoreConfig {
    StoreConfig {
        segment_bytes: 256 * KIB,
        max_chunk_bytes: 1024 * KIB,
        reserve_bytes: 0,
        ..small()
    }
}

fn open_large(disk: &SimDisk) -> SegmentStore {
    try_open(disk, large()).unwrap().0
}

fn begin(store: &SegmentStore, codec: &Codec) {
    store.set_codec(1, Some(Arc::new(codec.clone())));
}

/// Bytes that can be compressed, and are different everywhere.
fn text(len: usize, seed: u64) -> Vec<u8> {
    let words = (0..).flat_map(|n: u64| format!("line {} of {seed}; ", n * 7).into_bytes());
    words.take(len).collect()
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut dice = Dice(seed);
    (0..len).map(|_| dice.next() as u8).collect()
}

/// Bytes of all segments.
fn on_disk(disk: &SimDisk) -> Vec<u8> {
    let names = disk.list().unwrap();
    let segments = names.iter().filter(|name| name.ends_with(".seg"));
    segments.flat_map(|name| disk.tamper(name, |bytes| bytes.clone())).collect()
}

#[test]
fn every_way_gives_back_what_was_written_at_every_edge_of_frames() {
    for number in 0..9 {
        let disk = SimDisk::new(1, 64 << 20);
        let store = open_large(&disk);
        begin(&store, &some_codec(number, 14));
        let chunk = in_volume(1, 5);
        let mut model = vec![0u8; 200_000];
        let frame = 1u64 << 14;
        for (n, edge) in (0..5).map(|n| (n, n * frame)).chain([(9, 40_000)]) {
            for (offset, len) in
                [(edge, frame), (edge.max(1) - 1, 2), (edge + 1, frame - 2), (edge, 1)]
            {
                for data in [text(len as usize, n), noise(len as usize, n)] {
                    store.write(chunk, offset, &[&data[..1], &data[1..]], V0).unwrap();
                    model[offset as usize..(offset + len) as usize].copy_from_slice(&data);
                }
            }
        }
        store.write(chunk, 100, &[text(150_000, 1)], V0).unwrap();
        model[100..150_100].copy_from_slice(&text(150_000, 1));
        store.punch(chunk, 20_000, 10_000, V0).unwrap();
        model[20_000..30_000].fill(0);
        store.punch(chunk, 16_384, 16_384, V0).unwrap();
        model[16_384..32_768].fill(0);
        let compare = |store: &SegmentStore| {
            assert_eq!(store.read(chunk, 0, 200_000).unwrap(), model, "{number}");
            for at in (0..199_000).step_by(997) {
                assert_eq!(store.read(chunk, at, 1000).unwrap(), model[at as usize..][..1000]);
            }
        };
        compare(&store);
        // Reclaimed several times over.
        for round in 0..4 {
            store.write(in_volume(1, 6), 0, &[noise(400_000, round)], V0).unwrap();
        }
        store.delete_chunks(in_volume(1, 6).ino, 1, 0).unwrap();
        reclaim_all(&store);
        compare(&store);
        assert_rebuilds(&store, &disk);
        assert_clean(&disk);
        store.close().unwrap();
        let store = open_large(&disk);
        begin(&store, &some_codec(number, 14));
        compare(&store);
    }
}

#[test]
fn what_compresses_takes_less_and_what_does_not_hardly_more() {
    for number in 0..9 {
        let stored = |data: &[u8]| {
            let disk = SimDisk::new(1, 64 << 20);
            let store = open_large(&disk);
            begin(&store, &some_codec(number, 16));
            store.write(in_volume(1, 1), 0, &[data], V0).unwrap();
            let usage = store.usage().unwrap();
            assert_eq!(usage.live_bytes, data.len() as u64);
            usage.stored_bytes
        };
        let (compressible, random) = (stored(&text(900_000, 3)), stored(&noise(900_000, 3)));
        match number % 3 {
            0 => assert!((900_000..905_000).contains(&compressible), "{number}: {compressible}"),
            _ => assert!(compressible < 400_000, "{number}: {compressible}"),
        }
        assert!((900_000..905_000).contains(&random), "{number}: {random}");
    }
}

#[test]
fn what_is_encrypted_stands_nowhere_and_everything_else_does() {
    let marker = b"a word that nobody else writes";
    for number in 0..9 {
        let disk = SimDisk::new(1, 64 << 20);
        let store = open_large(&disk);
        begin(&store, &some_codec(number, 12));
        // Incompressible around it, so that it is not hidden by compression.
        let mut data = noise(60_000, 7);
        data[30_000..30_000 + marker.len()].copy_from_slice(marker);
        store.write(in_volume(1, 1), 5, &[&data], V0).unwrap();
        store.copy(in_volume(1, 1), 20_000, in_volume(1, 2), 0, 20_000, V0).unwrap();
        store.close().unwrap();
        let found = on_disk(&disk).windows(marker.len()).any(|part| part == marker);
        assert_eq!(found, number < 3, "{number}");
    }
}

#[test]
fn without_the_key_nothing_is_stored_or_read_but_everything_else_goes_on() {
    for number in [3, 5, 6, 8] {
        let disk = SimDisk::new(1, 64 << 20);
        let store = open_large(&disk);
        let codec = some_codec(number, 12);
        begin(&store, &codec);
        let (chunk, data) = (in_volume(1, 1), text(100_000, 4));
        store.write(chunk, 3, &[&data], V0).unwrap();
        for n in 0..20 {
            store.punch(chunk, 5000 * n, 1000, V0).unwrap();
            store.write(in_volume(1, 2), 0, &[noise(90_000, n)], V0).unwrap();
        }
        let before = store.read(chunk, 0, 110_000).unwrap();
        store.close().unwrap();
        let store = open_large(&disk);
        let no_key = |result: Result<Vec<u8>, StoreError>| {
            assert!(matches!(result, Err(StoreError::NoKey { volume: 1 })), "{result:?}");
        };
        no_key(store.read(chunk, 2000, 1));
        store.set_codec(1, None);
        no_key(store.read(chunk, 5, 1));
        no_key(store.read(in_volume(1, 77), 5, 1));
        let refused = store.write(chunk, 0, &[b"plain"], V0);
        assert!(matches!(refused, Err(StoreError::NoKey { volume: 1 })));
        // Removal, reclamation and verification need none.
        store.delete_chunks(in_volume(1, 2).ino, 1, 0).unwrap();
        store.write(key(7, 0), 0, &[b"of another volume"], V0).unwrap();
        reclaim_all(&store);
        assert!(scrub(&store).is_empty());
        assert_rebuilds(&store, &disk);
        let plain = on_disk(&disk).windows(7).filter(|part| part == b"line 7 ").count();
        assert_eq!(plain, 0);
        store.close().unwrap();
        assert_clean(&disk);
        let store = open_large(&disk);
        begin(&store, &codec);
        assert_eq!(store.read(chunk, 0, 110_000).unwrap(), before);
        // Another key opens nothing, and is told from damage by nobody.
        let wrong = VolumeKey::fixed(codec.cipher().unwrap(), [8; 32]);
        begin(&store, &Codec::new(Compression::None, Some(wrong)));
        let refused = store.read(chunk, 2000, 10);
        assert!(matches!(refused, Err(StoreError::Corrupt { rotten: false, .. })), "{refused:?}");
    }
}

fn scrub(store: &SegmentStore) -> Vec<super::super::BadRange> {
    let (mut cursor, mut bad) = (Some(ScrubCursor::default()), Vec::new());
    while let Some(at) = cursor {
        let step = store.scrub_step(at).unwrap();
        assert!(step.damage.is_empty());
        bad.extend(step.bad);
        cursor = step.next;
    }
    bad
}

/// A flipped bit costs one frame, is found by the scrub, is moved as a loss, and is mended.
#[test]
fn damage_is_found_without_a_key_and_costs_one_frame() {
    for number in [1, 3, 8] {
        let disk = SimDisk::new(1, 64 << 20);
        let store = open_large(&disk);
        let codec = some_codec(number, 12);
        begin(&store, &codec);
        let (chunk, data) = (in_volume(1, 1), text(64 << 10, 4));
        store.write(chunk, 0, &[&data], V0).unwrap();
        let len = on_disk(&disk).len();
        disk.tamper("0000000000000001.seg", |bytes| bytes[len - 2000] ^= 4);
        store.set_codec(1, None);
        let bad = scrub(&store);
        assert_eq!(bad.len(), 1);
        assert_eq!((bad[0].key, bad[0].len, bad[0].offset % 4096), (chunk, 4096, 0));
        begin(&store, &codec);
        let patch = store.patch(chunk, bad[0].offset, bad[0].len).unwrap();
        for round in 0..3 {
            store.write(in_volume(1, 2), 0, &[noise(250_000, round)], V0).unwrap();
        }
        let readable = |at: u64| store.read(chunk, at, 4096).is_ok();
        let found = store.read(chunk, 0, 64 << 10);
        assert!(matches!(found, Err(StoreError::Corrupt { rotten: true, .. })), "{found:?}");
        let lost = (0..16).filter(|n| !readable(n * 4096)).map(|n| n * 4096);
        assert_eq!(lost.collect::<Vec<_>>(), [bad[0].offset]);
        let at = bad[0].offset as usize;
        for range in patch.ranges() {
            assert!(store.mend(&patch, range, &data[at..at + 4096]).unwrap());
        }
        assert_eq!(store.read(chunk, 0, 64 << 10).unwrap(), data);
        assert!(scrub(&store).is_empty());
    }
}

#[test]
fn damage_is_moved_as_a_loss_and_the_rest_lives_on() {
    for number in [1, 3, 8] {
        for begin_of_table in [false, true] {
            let disk = SimDisk::new(1, 64 << 20);
            let store = open(&disk);
            begin(&store, &some_codec(number, 12));
            let (chunk, data) = (in_volume(1, 1), text(32 << 10, 4));
            store.write(chunk, 0, &[&data], V0).unwrap();
            let len = on_disk(&disk).len();
            let at = if begin_of_table { 64 + 80 + 10 } else { len - 1000 };
            disk.tamper("0000000000000001.seg", |bytes| bytes[at] ^= 4);
            let read = || {
                let part = |n: u64| store.read(chunk, n * 4096, 4096).ok();
                (0..8).map(part).collect::<Vec<_>>()
            };
            let before = read();
            let lost = before.iter().filter(|part| part.is_none()).count();
            assert_eq!(lost, if begin_of_table { 8 } else { 1 });
            for round in 0..5 {
                store.write(key(9, 0), 0, &[noise(30_000, round)], V0).unwrap();
            }
            store.punch(chunk, 0, 4096, V0).unwrap();
            for _ in 0..5 {
                store.write(key(9, 0), 0, &[[1; 10]], V0).unwrap();
                reclaim_all(&store);
            }
            assert_eq!(read()[1..], before[1..]);
        }
    }
}

/// Sound in itself, but not at its place: neither checksums nor tags let it pass.
#[test]
fn frames_that_change_places_are_refused() {
    let codec = some_codec(3, 12);
    let (scope, data) = ([1; 16], noise(4 * 4096, 1));
    let chunk = in_volume(1, 1);
    let packed = codec.encode(&scope, &chunk, 0, &[&data]).unwrap().unwrap();
    let range = (0, 4 * 4096);
    assert_eq!(codec.decode(&scope, &chunk, range, &packed).unwrap(), data);
    let sealed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut packed = packed.clone();
        change(&mut packed);
        crate::data::codec::seal_checksums(&mut packed, &chunk, range);
        codec.decode(&scope, &chunk, range, &packed)
    };
    assert_eq!(sealed(&|_| {}).unwrap(), data);
    let (table, frame) = (24 + 4 * 8, 4096 + 16);
    let swapped = sealed(&|packed| {
        let (a, b) = packed[table..].split_at_mut(frame);
        a.swap_with_slice(&mut b[..frame]);
    });
    assert_eq!(swapped, Err(crate::data::codec::CodecError::Forged));
    let flipped = sealed(&|packed| packed[table + 7] ^= 1);
    assert_eq!(flipped, Err(crate::data::codec::CodecError::Forged));
    let salted = sealed(&|packed| packed[9] ^= 1);
    assert_eq!(salted, Err(crate::data::codec::CodecError::Forged));
    // Of another chunk, at another offset, of another store.
    for (scope, chunk, offset) in
        [(scope, in_volume(1, 2), 0), (scope, chunk, 1 << 14), ([2; 16], chunk, 0)]
    {
        let mut packed = packed.clone();
        let range = (offset, 4 * 4096);
        crate::data::codec::seal_checksums(&mut packed, &chunk, range);
        let refused = codec.decode(&scope, &chunk, range, &packed);
        assert_eq!(refused, Err(crate::data::codec::CodecError::Forged));
    }
}

/// A plain record in a volume that is encrypted was not written by a server that had the key.
#[test]
fn a_plain_record_does_not_pass_for_an_encrypted_one() {
    for compression in [0, 1] {
        let disk = SimDisk::new(1, 64 << 20);
        let store = open_large(&disk);
        begin(&store, &some_codec(compression, 12));
        store.write(in_volume(1, 1), 0, &[text(10_000, 1)], V0).unwrap();
        begin(&store, &some_codec(compression + 3, 12));
        let refused = store.read(in_volume(1, 1), 0, 10);
        assert!(matches!(refused, Err(StoreError::Corrupt { .. })), "{refused:?}");
    }
}

#[test]
fn a_change_of_the_compression_counts_for_what_is_written_from_then_on() {
    let disk = SimDisk::new(1, 64 << 20);
    let store = open_large(&disk);
    let data = text(50_000, 2);
    for number in [0, 1, 2, 0] {
        begin(&store, &some_codec(number, 16));
        store.write(in_volume(1, 1 + number), 0, &[&data], V0).unwrap();
        for n in 0..=number {
            let there = store.read(in_volume(1, 1 + n), 0, 50_000).unwrap();
            assert!(there == data || there.iter().all(|b| *b == 0));
        }
    }
    reclaim_all(&store);
    for number in 0..3 {
        assert_eq!(store.read(in_volume(1, 1 + number), 0, 50_000).unwrap(), data);
    }
}

/// Small remains of large records give the space of their frames back.
#[test]
fn small_remains_of_large_records_do_not_keep_whole_frames() {
    let disk = SimDisk::new(1, 64 << 20);
    let store = open_large(&disk);
    begin(&store, &some_codec(3, 16));
    for ino in 1..=8 {
        store.write(in_volume(1, ino), 0, &[noise(200_000, ino)], V0).unwrap();
        for frame in 0..3 {
            store.punch(in_volume(1, ino), frame * 65_536 + 500, 65_036, V0).unwrap();
        }
        store.punch(in_volume(1, ino), 3 * 65_536, 65_536, V0).unwrap();
    }
    store.write(key(1, 0), 0, &[noise(300_000, 1)], V0).unwrap();
    reclaim_all(&store);
    let usage = store.usage().unwrap();
    assert_eq!(usage.live_bytes, 8 * 3 * 500 + 300_000);
    assert!(usage.stored_bytes < 400_000, "{usage:?}");
    for ino in 1..=8 {
        let data = noise(200_000, ino);
        for frame in 0..3 {
            let at = frame * 65_536;
            assert_eq!(store.read(in_volume(1, ino), at as u64, 500).unwrap(), data[at..at + 500]);
        }
    }
}
