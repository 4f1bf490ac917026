//! Figures of the segment store beside raw files in the same directory, as one table. The two take turns, now the one and now the other
//! first, and each turn is compared with the one beside it: the ratio is the median of these, with the quartiles around it. A machine that is
//! slow for a while is so for both.
//!
//! What is in memory waits for nothing, so random reads are timed by the processor time of the thread that makes them: others on the
//! machine do not count then. Everything else is timed by the clock.
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
use netfs_served::flusher::Flusher;

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
    let mut out = Options { dir: "/var/tmp".into(), rounds: 9, mib: 512, all: false, only: None };
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

/// Rates of two kinds of work, turn by turn.
#[derive(Default)]
struct Pair {
    base: Vec<f64>,
    own: Vec<f64>,
}

/// The value of which this share of all is less.
fn at_share(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}

fn median(values: &[f64]) -> f64 {
    at_share(values, 0.5)
}

impl Pair {
    /// Takes `turns` turns of each, and as many as `warm_up` before that do not count.
    fn take(
        warm_up: usize,
        turns: usize,
        mut base: impl FnMut() -> f64,
        mut own: impl FnMut() -> f64,
    ) -> Self {
        let mut out = Self::default();
        for turn in 0..warm_up + turns {
            let (first, second);
            if turn % 2 == 0 {
                first = base();
                second = own();
            } else {
                second = own();
                first = base();
            }
            if turn >= warm_up {
                out.base.push(first);
                out.own.push(second);
            }
        }
        out
    }

    fn show(&self, options: &Options, what: &str, unit: &str, aim: Option<f64>) {
        if options.all {
            eprintln!("base {:.0?}\nstore {:.0?}", self.base, self.own);
        }
        let (base, own) = (median(&self.base), median(&self.own));
        let ratios: Vec<f64> =
            self.own.iter().zip(&self.base).map(|(own, base)| own / base).collect();
        let [low, ratio, high] = [0.25, 0.5, 0.75].map(|share| at_share(&ratios, share));
        let (aim, met) = match aim {
            None => (String::new(), ""),
            Some(aim) => (aim.to_string(), if ratio >= aim { "met" } else { "MISSED" }),
        };
        println!(
            "| {what} | {unit} | {base:.0} | {own:.0} | {ratio:.2} ({low:.2} to {high:.2}) | {aim} | {met} |"
        );
    }
}

fn per_second(count: u64, work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    count as f64 / start.elapsed().as_secs_f64()
}

/// Processor time that this thread has had, in seconds.
fn processor_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` may be filled for the duration of the call.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(done, 0);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn per_processor_second(count: u64, work: impl FnOnce()) -> f64 {
    let start = processor_seconds();
    work();
    count as f64 / (processor_seconds() - start)
}

/// Bytes that this process has had written to disks.
fn written_bytes() -> f64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.and_then(|count| count.parse().ok()).unwrap_or(f64::NAN)
}

/// Removes what a turn has left, with the work that this leaves to the file system: it is not the next one's.
fn clear(dir: &Path, path: &Path) {
    match path.is_dir() {
        true => std::fs::remove_dir_all(path).unwrap(),
        false => std::fs::remove_file(path).unwrap(),
    }
    File::open(dir).unwrap().sync_all().unwrap();
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

/// Writing and reading with each codec, of data of which half can be compressed. Beside the same without any, in turn.
fn codecs(dir: &Path, options: &Options) {
    let ways = [Compression::None, Compression::Lz4, Compression::Zstd];
    let ciphers = [None, Some(Cipher::Aes256Gcm), Some(Cipher::ChaCha20Poly1305)];
    let mib = options.mib.min(128);
    let mut dice = Dice(11);
    // Lines of text, each with as many random characters.
    let mut data = Vec::with_capacity(MIB as usize + 64);
    while data.len() < MIB as usize {
        data.extend_from_slice(b"2026-11-22 04:40:01 INFO request ");
        data.extend((0..33).map(|_| b' ' + dice.below(90) as u8));
    }
    data.truncate(MIB as usize);
    let store_of = |name: &str, codec: Option<Codec>| {
        let home = dir.join(name);
        let store = open(&home, StoreConfig { reserve_bytes: 0, ..StoreConfig::default() });
        store.set_codec(0, codec.map(Arc::new).or_else(|| Some(Arc::default())));
        (home, store)
    };
    let written = |store: &SegmentStore| {
        per_processor_second(mib, || {
            for n in 0..mib {
                let (key, at) = place(1, n * MIB);
                store.write(key, at, &[&data], ChunkVersion(n)).unwrap();
            }
        })
    };
    let scanned = |store: &SegmentStore| {
        per_processor_second(mib, || {
            for n in 0..mib {
                let (key, at) = place(1, n * MIB);
                std::hint::black_box(store.read(key, at, MIB).unwrap());
            }
        })
    };
    let picked = |store: &SegmentStore, dice: &mut Dice| {
        per_processor_second(1000, || {
            for _ in 0..1000 {
                let (key, at) = place(1, dice.below(mib * MIB / 4096) * 4096);
                std::hint::black_box(store.read(key, at, 4096).unwrap());
            }
        })
    };
    let (plain_home, plain) = store_of("codec-plain", None);
    written(&plain);
    for cipher in ciphers {
        for way in ways {
            let key = cipher.map(|cipher| VolumeKey::draw(cipher).unwrap());
            let cipher = cipher.map_or("none".into(), |cipher| cipher.to_string());
            let (home, store) = store_of("codec", Some(Codec::new(way, key)));
            let turns = options.rounds.min(5);
            let write = Pair::take(1, turns, || written(&plain), || written(&store));
            store.flush().unwrap();
            let usage = store.usage().unwrap();
            let size = usage.stored_bytes as f64 / usage.live_bytes as f64;
            let what = format!("{way:?}, {cipher}, to {size:.2}");
            let (mut base_dice, mut own_dice) = (Dice(5), Dice(5));
            let read = Pair::take(1, turns, || scanned(&plain), || scanned(&store));
            let pick = Pair::take(
                1,
                4 * turns,
                || picked(&plain, &mut base_dice),
                || picked(&store, &mut own_dice),
            );
            let unit = "MiB per processor second";
            write.show(options, &format!("write: {what}"), unit, None);
            read.show(options, &format!("read 1 MiB: {what}"), unit, None);
            pick.show(options, &format!("read 4 KiB: {what}"), "1 per processor second", None);
            drop(store);
            clear(dir, &home);
        }
    }
    drop(plain);
    clear(dir, &plain_home);
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
    let mut memory = Vec::new();
    let append = Pair::take(
        2,
        options.rounds,
        || {
            let rate = per_second(options.mib, || write_raw(&raw_path, options, &data));
            clear(dir, &raw_path);
            rate
        },
        || {
            let store = open(&store_path, StoreConfig::default());
            let before = NOW.load(Relaxed);
            let rate = per_second(options.mib, || write_store(&store, options, &data));
            memory.push((NOW.load(Relaxed) - before) as f64 / options.mib as f64);
            drop(store);
            clear(dir, &store_path);
            rate
        },
    );
    let what = "sequential writes of 1 MiB, flushed at the end, beside a file";
    append.show(options, what, "MiB/s", Some(0.8));
    let each = median(&memory);
    let met = if each < 64.0 { "met" } else { "MISSED" };
    println!(
        "| memory of the index, per MiB written sequentially | bytes | | {each:.1} | | 64 | {met} |"
    );
}

/// Random reads of what is in memory.
fn reads(dir: &Path, options: &Options) {
    const READS: u64 = 4_000;
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
    let (mut base_dice, mut own_dice) = (Dice(88172645463325252), Dice(88172645463325252));
    let pair = Pair::take(
        10,
        20 * options.rounds,
        || {
            per_processor_second(READS, || {
                for _ in 0..READS {
                    let mut buf = vec![0; 4096];
                    raw.read_exact_at(&mut buf, base_dice.below(blocks) * 4096).unwrap();
                    std::hint::black_box(buf);
                }
            })
        },
        || {
            per_processor_second(READS, || {
                for _ in 0..READS {
                    let (key, offset) = place(1, own_dice.below(blocks) * 4096);
                    std::hint::black_box(store.read(key, offset, 4096).unwrap());
                }
            })
        },
    );
    let what = "random reads of 4 KiB, in memory, beside a file";
    pair.show(options, what, "1 per processor second", Some(0.7));
    drop(store);
    clear(dir, &raw_path);
    clear(dir, &store_path);
}

/// Small writes, each flushed before the next: one thread, then many, which share flushes.
fn durable(dir: &Path, options: &Options) {
    const EACH: u64 = 400;
    let store = Arc::new(open(&dir.join("durable"), StoreConfig::default()));
    let data = vec![5; 4096];
    let run = |threads: u64| {
        let barrier = Barrier::new(threads as usize);
        per_second(threads * EACH, || {
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
        })
    };
    // As the data server does it.
    let run_tasks = |tasks: u64| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let flushed = store.clone();
        let flusher = Flusher::start(Duration::from_secs(60), move || {
            flushed.flush().map_err(|_| netfs_common::errno::Errno::EIO)
        });
        let flusher = flusher.unwrap();
        per_second(tasks * EACH, || {
            let tasks = (0..tasks).map(|task| {
                let (store, data, flusher) = (store.clone(), data.clone(), flusher.clone());
                async move {
                    for n in 0..EACH {
                        let (key, offset) = place(101 + task, n * 4096);
                        store.write(key, offset, &[&data], ChunkVersion(n + 1)).unwrap();
                        flusher.flush().await.unwrap();
                    }
                }
            });
            runtime.block_on(async {
                for task in tasks.map(tokio::spawn).collect::<Vec<_>>() {
                    task.await.unwrap();
                }
            });
        })
    };
    let pair = Pair::take(1, options.rounds, || run_tasks(1), || run_tasks(THREADS));
    let what = "durable writes of 4 KiB, 16 tasks of a server beside 1";
    pair.show(options, what, "1/s", Some(8.0));
    let pair = Pair::take(1, options.rounds, || run(1), || run(THREADS));
    let what = "the same by threads that sleep in the store, 16 beside 1";
    pair.show(options, what, "1/s", None);
    drop(store);
    clear(dir, &dir.join("durable"));
    // What the disk allows: nobody has to be woken here, and nothing is looked up or verified.
    let raw = File::create(dir.join("raw")).unwrap();
    let mut at = 0;
    let mut run = |writes: u64| {
        per_second(writes * EACH, || {
            for _ in 0..EACH {
                for _ in 0..writes {
                    raw.write_all_at(&data, at).unwrap();
                    at += data.len() as u64;
                }
                raw.sync_data().unwrap();
            }
        })
    };
    let mut pair = Pair::default();
    for _ in 0..options.rounds {
        pair.base.push(run(1));
        pair.own.push(run(THREADS));
    }
    let what = "the same of one thread and a file: flushed after 16 beside after each";
    pair.show(options, what, "1/s", None);
    clear(dir, &dir.join("raw"));
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
    let run = |store: &SegmentStore, dice: &mut Dice| {
        with_upkeep(store, || {
            (0..load).for_each(|_| write(store, dice.below(region)));
            store.flush().unwrap();
        });
    };
    let (mut base_dice, mut own_dice) = (Dice(1234567), Dice(1234567));
    let full = open(&dir.join("full"), config.clone());
    (0..region).for_each(|block| write(&full, block));
    // Until what is free has been used once, nothing needs to be reclaimed.
    run(&full, &mut own_dice);
    let (mib, empty_path) = (load * OVERWRITE / MIB, dir.join("empty"));
    let mut amplified = Vec::new();
    let before = full.won();
    let pair = Pair::take(
        1,
        options.rounds,
        || {
            let empty = open(&empty_path, config.clone());
            let rate = per_second(mib, || run(&empty, &mut base_dice));
            drop(empty);
            clear(dir, &empty_path);
            rate
        },
        || {
            let before = written_bytes();
            let rate = per_second(mib, || run(&full, &mut own_dice));
            amplified.push((written_bytes() - before) / (load * OVERWRITE) as f64);
            rate
        },
    );
    let usage = full.usage().unwrap();
    let fill = usage.live_bytes as f64 / usage.capacity_bytes as f64 * 100.0;
    let what = format!("random overwrites of 64 KiB at {fill:.0} % fill, beside an empty store");
    pair.show(options, &what, "MiB/s", Some(0.5));
    let each = median(&amplified);
    println!("| bytes written to the disk for each of these | | | {each:.2} | | | |");
    let won = full.won();
    let holes = (won.by_holes - before.by_holes) / MIB;
    let moving = (won.by_moving - before.by_moving) / MIB;
    let slots = (won.by_slots - before.by_slots) / MIB;
    let ways = [(holes, "holes"), (moving, "moving"), (slots, "writing over what is dead")];
    let (_, way) = ways.into_iter().max().unwrap_or_default();
    println!(
        "| most space won back by {way}: by holes, by moving, by writing over | MiB | {holes} | {moving} | {slots} | | |"
    );
    println!("| segments at the end | | | {} | | | |", usage.segments);
    drop(full);
    clear(dir, &dir.join("full"));
}

/// Does something while the store is reclaimed in the background, as the server does it: one part of work, three of rest, and none when room
/// is short.
fn with_upkeep(store: &SegmentStore, work: impl FnOnce()) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Relaxed) {
                let start = Instant::now();
                let done = store.reclaim_step().unwrap();
                std::thread::sleep(match () {
                    () if done.idle => Duration::from_millis(50),
                    () if done.urgent => Duration::ZERO,
                    () => (start.elapsed() * 3).max(Duration::from_millis(5)),
                });
            }
        });
        work();
        over.store(true, Relaxed);
    });
}
