//! Figures of the segment store beside raw files in the same directory, as one table: medians of several rounds, in which
//! the two take turns.
//!
//! `cargo run --release -p netfs-served --example store_bench -- [--rounds N] [--mib N] [--only PART] [--all] [DIR]`, or `scripts/bench-store`.
//! PART: sequential, reads, durable, overwrites or codecs. Uses up to eight times `--mib` (512) of disk in a folder of its own below DIR, which it removes.

#![allow(clippy::unwrap_used, reason = "a failure ends a measurement")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use netfs_common::coding::{Cipher, Compression};
use netfs_served::data::codec::{Codec, VolumeKey};
use netfs_served::data::store::{ChunkKey, ChunkVersion, SegmentStore, StoreConfig};

/// Bytes that are allocated.
static NOW: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: everything is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        NOW.fetch_add(layout.size(), Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        NOW.fetch_add(layout.size(), Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        NOW.fetch_add(new_size, Relaxed);
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const CHUNK: u64 = 4 * MIB;
/// What the load on a full store writes at a time.
const OVERWRITE: u64 = 64 * KIB;
const THREADS: u64 = 16;

/// A place in the store's address space, as chunk and offset.
fn place(ino: u64, at: u64) -> (ChunkKey, u64) {
    (ChunkKey { ino, generation: 1, index: at / CHUNK }, at % CHUNK)
}

/// A small source of numbers, the same in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

struct Options {
    dir: PathBuf,
    rounds: usize,
    mib: u64,
    /// Shows each round.
    all: bool,
    only: Option<String>,
}

impl Options {
    fn wants(&self, part: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only == part)
    }
}

fn options() -> Options {
    let mut out = Options { dir: "/var/tmp".into(), rounds: 5, mib: 512, all: false, only: None };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--rounds" => out.rounds = args.next().unwrap().parse().unwrap(),
            "--mib" => out.mib = args.next().unwrap().parse().unwrap(),
            "--all" => out.all = true,
            "--only" => out.only = args.next(),
            _ => out.dir = arg.into(),
        }
    }
    out
}

/// Rates of two kinds of work, round by round.
#[derive(Default)]
struct Pair {
    base: Vec<f64>,
    own: Vec<f64>,
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

impl Pair {
    fn show(&self, options: &Options, what: &str, unit: &str, aim: f64) {
        if options.all {
            eprintln!("base {:.0?}\nstore {:.0?}", self.base, self.own);
        }
        let (base, own) = (median(&self.base), median(&self.own));
        let ratio = own / base;
        let met = if ratio >= aim { "met" } else { "MISSED" };
        println!("| {what} | {unit} | {base:.0} | {own:.0} | {ratio:.2} | {aim} | {met} |");
    }
}

fn per_second(count: u64, work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    count as f64 / start.elapsed().as_secs_f64()
}

fn main() {
    let options = options();
    let dir =
        tempfile::Builder::new().prefix("netfs-store-bench.").tempdir_in(&options.dir).unwrap();
    println!("| | unit | base | store | ratio | aim | |\n|---|---|---:|---:|---:|---:|---|");
    for (part, measure) in [
        ("sequential", sequential as fn(&Path, &Options)),
        ("reads", reads),
        ("durable", durable),
        ("overwrites", overwrites),
        ("codecs", codecs),
    ] {
        if options.wants(part) {
            measure(dir.path(), &options);
        }
    }
}

/// Appending and random reads with each codec, of data of which half can be compressed. Against the same without any.
fn codecs(dir: &Path, options: &Options) {
    let ways = [Compression::None, Compression::Lz4, Compression::Zstd];
    let ciphers = [None, Some(Cipher::Aes256Gcm), Some(Cipher::ChaCha20Poly1305)];
    let mib = options.mib.min(256);
    let mut dice = Dice(11);
    // Lines of text, each with as many random characters.
    let mut data = Vec::with_capacity(MIB as usize + 64);
    while data.len() < MIB as usize {
        data.extend_from_slice(b"2026-11-22 04:40:01 INFO request ");
        data.extend((0..33).map(|_| b' ' + dice.below(90) as u8));
    }
    data.truncate(MIB as usize);
    let mut base = None;
    for cipher in ciphers {
        for way in ways {
            let key = cipher.map(|cipher| VolumeKey::draw(cipher).unwrap());
            let cipher = cipher.map_or("none".into(), |cipher| cipher.to_string());
            let home = dir.join(format!("codec-{way:?}-{cipher}"));
            let store = open(&home, StoreConfig { reserve_bytes: 0, ..StoreConfig::default() });
            store.set_codec(0, Some(Arc::new(Codec::new(way, key))));
            let appended = per_second(mib, || {
                for n in 0..mib {
                    let (key, at) = place(1, n * MIB);
                    store.write(key, at, &[&data], ChunkVersion(n)).unwrap();
                }
            });
            let count = 4000;
            let mut dice = Dice(5);
            let read = per_second(count, || {
                for _ in 0..count {
                    let (key, at) = place(1, dice.below(mib * MIB / 4096) * 4096);
                    store.read(key, at, 4096).unwrap();
                }
            });
            let (append_base, read_base) = *base.get_or_insert((appended, read));
            let usage = store.usage().unwrap();
            let size = usage.stored_bytes as f64 / usage.live_bytes as f64;
            let what = format!("{way:?}, {cipher}, to {size:.2}");
            let (a, r) = (appended / append_base, read / read_base);
            println!("| append: {what} | MiB/s | {append_base:.0} | {appended:.0} | {a:.2} | | |");
            println!("| read 4 KiB: {what} | /s | {read_base:.0} | {read:.0} | {r:.2} | | |");
            drop(store);
            std::fs::remove_dir_all(home).unwrap();
        }
    }
}

fn open(dir: &Path, config: StoreConfig) -> SegmentStore {
    SegmentStore::open(dir, config).unwrap().0
}

/// A file of the test's size, written and flushed.
fn write_raw(path: &Path, options: &Options, data: &[u8]) {
    let mut raw = File::create(path).unwrap();
    (0..options.mib).for_each(|_| raw.write_all(data).unwrap());
    raw.sync_data().unwrap();
}

/// The same in a store.
fn write_store(store: &SegmentStore, options: &Options, data: &[u8]) {
    for n in 0..options.mib {
        let (key, offset) = place(1, n * MIB);
        store.write(key, offset, &[data], ChunkVersion(n + 1)).unwrap();
    }
    store.flush().unwrap();
}

/// Sequential writes, and memory of the index. Each finds nothing of the other's in memory: pages that a machine has
/// not used before cost several times as much as those that were just given back.
fn sequential(dir: &Path, options: &Options) {
    let data: Vec<u8> = (0..MIB).map(|i| (i * 7 % 253) as u8).collect();
    let (raw_path, store_path) = (dir.join("raw"), dir.join("sequential"));
    let (mut append, mut memory) = (Pair::default(), Vec::new());
    for round in 0..=options.rounds {
        append.base.push(per_second(options.mib, || write_raw(&raw_path, options, &data)));
        std::fs::remove_file(&raw_path).unwrap();
        let store = open(&store_path, StoreConfig::default());
        let before = NOW.load(Relaxed);
        append.own.push(per_second(options.mib, || write_store(&store, options, &data)));
        memory.push((NOW.load(Relaxed) - before) as f64 / options.mib as f64);
        drop(store);
        std::fs::remove_dir_all(&store_path).unwrap();
        if round == 0 {
            // To warm up.
            append = Pair::default();
        }
    }
    append.show(
        options,
        "sequential writes of 1 MiB, flushed at the end, beside a file",
        "MiB/s",
        0.8,
    );
    let each = median(&memory);
    let met = if each < 64.0 { "met" } else { "MISSED" };
    println!(
        "| memory of the index, per MiB written sequentially | bytes | | {each:.1} | | 64 | {met} |"
    );
}

/// Random reads of what is in memory.
fn reads(dir: &Path, options: &Options) {
    const READS: u64 = 200_000;
    let data: Vec<u8> = (0..MIB).map(|i| (i * 7 % 253) as u8).collect();
    let (raw_path, store_path) = (dir.join("raw"), dir.join("reads"));
    write_raw(&raw_path, options, &data);
    let store = open(&store_path, StoreConfig::default());
    write_store(&store, options, &data);
    let raw = File::open(&raw_path).unwrap();
    let mut whole = vec![0; MIB as usize];
    for n in 0..options.mib {
        raw.read_exact_at(&mut whole, n * MIB).unwrap();
        let (key, offset) = place(1, n * MIB);
        assert_eq!(store.read(key, offset, MIB).unwrap(), whole);
    }
    let blocks = options.mib * MIB / 4096;
    let (mut pair, mut dice) = (Pair::default(), Dice(88172645463325252));
    for _ in 0..options.rounds {
        pair.base.push(per_second(READS, || {
            for _ in 0..READS {
                let mut buf = vec![0; 4096];
                raw.read_exact_at(&mut buf, dice.below(blocks) * 4096).unwrap();
                std::hint::black_box(buf);
            }
        }));
        pair.own.push(per_second(READS, || {
            for _ in 0..READS {
                let (key, offset) = place(1, dice.below(blocks) * 4096);
                std::hint::black_box(store.read(key, offset, 4096).unwrap());
            }
        }));
    }
    pair.show(options, "random reads of 4 KiB, in memory, beside a file", "1/s", 0.7);
    drop(store);
    std::fs::remove_file(&raw_path).unwrap();
    std::fs::remove_dir_all(&store_path).unwrap();
}

/// Small writes, each flushed before the next: one thread, then many, which share flushes.
fn durable(dir: &Path, options: &Options) {
    const EACH: u64 = 400;
    let store = open(&dir.join("durable"), StoreConfig::default());
    let data = vec![5; 4096];
    let mut pair = Pair::default();
    for _ in 0..options.rounds {
        for (threads, rates) in [(1, &mut pair.base), (THREADS, &mut pair.own)] {
            let barrier = Barrier::new(threads as usize);
            rates.push(per_second(threads * EACH, || {
                std::thread::scope(|scope| {
                    for thread in 0..threads {
                        let (store, data, barrier) = (&store, &data, &barrier);
                        scope.spawn(move || {
                            barrier.wait();
                            for n in 0..EACH {
                                let (key, offset) = place(1 + thread, n * 4096);
                                store.write(key, offset, &[data], ChunkVersion(n + 1)).unwrap();
                                store.flush().unwrap();
                            }
                        });
                    }
                });
            }));
        }
    }
    pair.show(options, "durable writes of 4 KiB, 16 threads beside 1", "1/s", 8.0);
    drop(store);
    std::fs::remove_dir_all(dir.join("durable")).unwrap();
}

/// Random overwrites in a store of which four fifths hold data, beside the same in an empty one.
fn overwrites(dir: &Path, options: &Options) {
    let capacity = 2 * options.mib * MIB;
    let region = capacity / 5 * 4 / OVERWRITE;
    let load = options.mib * MIB / OVERWRITE;
    let reserve = StoreConfig::default().reserve_bytes;
    let config =
        StoreConfig { capacity_limit_bytes: Some(capacity + reserve), ..StoreConfig::default() };
    let data: Vec<u8> = (0..OVERWRITE).map(|i| (i * 11 % 251) as u8).collect();
    let write = |store: &SegmentStore, block: u64| {
        let (key, offset) = place(1, block * OVERWRITE);
        store.write(key, offset, &[&data], ChunkVersion(1)).unwrap();
    };
    let mut dice = Dice(1234567);
    let mut run = |store: &SegmentStore| {
        with_upkeep(store, || {
            (0..load).for_each(|_| write(store, dice.below(region)));
            store.flush().unwrap();
        });
    };
    let full = open(&dir.join("full"), config.clone());
    (0..region).for_each(|block| write(&full, block));
    // Until what is free has been used once, nothing needs to be reclaimed.
    run(&full);
    let mut pair = Pair::default();
    for _ in 0..options.rounds {
        let path = dir.join("empty");
        let empty = open(&path, config.clone());
        pair.base.push(per_second(load * OVERWRITE / MIB, || run(&empty)));
        drop(empty);
        std::fs::remove_dir_all(path).unwrap();
        pair.own.push(per_second(load * OVERWRITE / MIB, || run(&full)));
    }
    let usage = full.usage().unwrap();
    let fill = usage.live_bytes as f64 / usage.capacity_bytes as f64 * 100.0;
    let what = format!("random overwrites of 64 KiB at {fill:.0} % fill, beside an empty store");
    pair.show(options, &what, "MiB/s", 0.5);
}

/// Does something while the store is reclaimed in the background, as the server does it: one part of work, three of rest.
fn with_upkeep(store: &SegmentStore, work: impl FnOnce()) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Relaxed) {
                let start = Instant::now();
                let idle = store.reclaim_step().unwrap().idle;
                let rest = (start.elapsed() * 3).max(Duration::from_millis(5));
                std::thread::sleep(if idle { Duration::from_millis(50) } else { rest });
            }
        });
        work();
        over.store(true, Relaxed);
    });
}
