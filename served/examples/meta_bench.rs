//! How many creates and lookups one volume does per second, and what they cost in memory.
//!
//! `cargo run --release -p netfs-served --example meta_bench -- FOLDER [COUNT]`

use std::error::Error;
use std::time::{Duration, Instant};

use netfs_common::attr::Timestamp;
use netfs_common::id::{Ino, OpSeq, SessionId};
use netfs_common::name::Name;
use netfs_common::wire::meta::{NewInode, Op, Response};
use netfs_served::meta::command::{Action, Command, Settings};
use netfs_served::meta::engine::{Engine, EngineConfig, NewVolume};

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("which folder?")?;
    let count: u64 = args.next().map_or(Ok(200_000), |n| n.parse())?;
    let time = Timestamp { secs: 1, nanos: 0 };
    let new_volume = Some(NewVolume { id: 1, settings: Settings::default(), time });
    let config = EngineConfig { new_volume, ..EngineConfig::default() };
    let (engine, report) = Engine::open(dir.as_ref(), config)?;
    if !report.created {
        return Err("the folder is in use; choose an empty one".into());
    }
    let session = SessionId(1);
    let action =
        Action::OpenSession { id: session, description: String::new(), owner: String::new() };
    engine.execute(Command { time, action }).1?;
    let mut seq = 0;
    let mut change = |op| -> Outcome<Ino> {
        seq += 1;
        let (seq, answered) = (OpSeq(seq), OpSeq(seq - 1));
        let (_, reply) =
            engine.execute(Command { time, action: Action::Mutate { session, seq, answered, op } });
        match reply? {
            Response::Changed { target: Some(ino), .. } => Ok(ino),
            other => Err(format!("{other:?}").into()),
        }
    };
    let create =
        |parent, name, new| Op::Create { parent, name, new, perm: 0o755, umask: 0, uid: 0, gid: 0 };

    let (mut slowest, started) = (Duration::ZERO, Instant::now());
    let mut dirs: Vec<Ino> = Vec::new();
    for n in 0..count {
        let step = Instant::now();
        if n % 1000 == 0 {
            let name = Name::new(format!("dir-{n}"))?;
            dirs.push(change(create(Ino::ROOT, name, NewInode::Dir))?);
        }
        let dir = dirs[dirs.len() - 1];
        change(create(dir, Name::new(format!("file-{n}"))?, NewInode::File))?;
        if engine.checkpoint_due() {
            engine.checkpoint()?;
        }
        if n % 10_000 == 0 {
            engine.flush(engine.last())?;
        }
        slowest = slowest.max(step.elapsed());
    }
    show("create", count, started.elapsed());
    println!("slowest step {slowest:?}, {} MiB resident", resident_mib()?);

    for (what, stride) in [("lookup, in order", 1), ("lookup, all over", 7919)] {
        let started = Instant::now();
        for n in 0..count {
            let n = n * stride % count;
            let dir = dirs[(n / 1000) as usize];
            engine.lookup(dir, &Name::new(format!("file-{n}"))?)?;
        }
        show(what, count, started.elapsed());
    }
    let started = Instant::now();
    for _ in 0..count {
        engine.lookup(dirs[0], &Name::new("file-1")?)?;
    }
    show("lookup, the same", count, started.elapsed());
    let started = Instant::now();
    for dir in &dirs {
        engine.read_dir(*dir, 0, 1000, true)?;
    }
    show("listed with attributes", count, started.elapsed());
    let started = Instant::now();
    let flushes = 2000;
    for n in 0..flushes {
        change(create(dirs[0], Name::new(format!("synced-{n}"))?, NewInode::File))?;
        engine.flush(engine.last())?;
    }
    show("create and flush", flushes, started.elapsed());
    println!(
        "{} MiB resident, {} MiB on disk",
        resident_mib()?,
        engine.status()?.store_bytes >> 20
    );
    drop(engine);
    let started = Instant::now();
    let (_, report) = Engine::open(dir.as_ref(), config)?;
    println!("reopened in {:?}, {} commands replayed", started.elapsed(), report.replayed);
    Ok(())
}

fn show(what: &str, count: u64, took: Duration) {
    let rate = count as f64 / took.as_secs_f64();
    println!("{what}: {rate:.0}/s");
}

fn resident_mib() -> Outcome<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? >> 10)
}
