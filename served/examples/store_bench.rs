//! Figures of the segment store beside raw writes, on the disk of the source tree:
//! `cargo run --release -p netfs-served --example store_bench`.

#![allow(clippy::unwrap_used, reason = "a failure ends a measurement")]

use std::io::Write;
use std::time::Instant;

use netfs_served::data::store::{ChunkKey, ChunkVersion, SegmentStore, StoreConfig};

fn key(ino: u64, index: u64) -> ChunkKey {
    ChunkKey { ino, generation: 1, index }
}

const MIB: u64 = 1 << 20;
const TOTAL_MIB: u64 = 1024;

fn main() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let data: Vec<u8> = (0..MIB).map(|i| (i * 7 % 253) as u8).collect();
    let report = |what: &str, start: Instant| {
        let seconds = start.elapsed().as_secs_f64();
        println!("{what}: {:.0} MiB/s", TOTAL_MIB as f64 / seconds);
    };
    for _ in 0..2 {
        let mut raw = std::fs::File::create(dir.path().join("raw")).unwrap();
        let start = Instant::now();
        (0..TOTAL_MIB).for_each(|_| raw.write_all(&data).unwrap());
        report("raw write", start);
        raw.sync_data().unwrap();
        report("raw write and fdatasync", start);
        let start = Instant::now();
        for _ in 0..200 {
            raw.write_all(&data[..4096]).unwrap();
            raw.sync_data().unwrap();
        }
        println!(
            "raw append of 4 KiB and fdatasync: {:.0} us",
            start.elapsed().as_secs_f64() * 1e6 / 200.0
        );
        drop(raw);
        std::fs::remove_file(dir.path().join("raw")).unwrap();

        let config = StoreConfig { max_unflushed_segments: 1000, ..StoreConfig::default() };
        let (store, _) = SegmentStore::open(&dir.path().join("s"), config.clone()).unwrap();
        let start = Instant::now();
        for n in 0..TOTAL_MIB {
            store.write(key(1, n / 4), n % 4 * MIB, &[&data], ChunkVersion(n)).unwrap();
        }
        report("store write", start);
        store.flush().unwrap();
        report("store write and flush", start);

        let start = Instant::now();
        (0..TOTAL_MIB).for_each(|n| {
            assert_eq!(store.read(key(1, n / 4), n % 4 * MIB, MIB).unwrap().len(), MIB as usize)
        });
        report("store read of 1 MiB, cached", start);
        // A multiplicative congruential generator: any sequence without a pattern will do.
        let mut state = 1u64;
        let mut below = |n: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % n
        };
        let start = Instant::now();
        for _ in 0..100_000 {
            store.read(key(1, below(TOTAL_MIB / 4)), below(1024) * 4096, 4096).unwrap();
        }
        println!(
            "store read of 4 KiB at random, cached: {:.2} us",
            start.elapsed().as_secs_f64() * 10.0
        );
        let start = Instant::now();
        for n in 0..200 {
            store.write(key(2, 0), n * 4096, &[&data[..4096]], ChunkVersion(n)).unwrap();
            store.flush().unwrap();
        }
        println!("write of 4 KiB and flush: {:.0} us", start.elapsed().as_secs_f64() * 1e6 / 200.0);
        drop(store);
        let start = Instant::now();
        drop(SegmentStore::open(&dir.path().join("s"), config).unwrap());
        println!("open with a GiB to replay: {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
        std::fs::remove_dir_all(dir.path().join("s")).unwrap();
    }
}
