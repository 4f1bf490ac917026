use std::fs;
use std::io::Read as _;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use netfs_common::attr::Timestamp;
use netfs_common::id::{Ino, OpSeq, SessionId};
use netfs_common::name::Name;
use netfs_common::wire::meta::{NewInode, Response};
use tempfile::TempDir;

use super::*;
use crate::meta::command::Settings;
use crate::meta::kv::{Cached, FjallStore, MemoryStore, Pair, Read};
use crate::meta::log::LogConfig;
use crate::meta::log::faults::BadDisk;
use crate::meta::namespace::tests::model::Rng;

const SESSION: SessionId = SessionId(1);

fn config() -> EngineConfig {
    let new = NewVolume { id: 7, settings: Settings::default(), time: Timestamp::default() };
    EngineConfig {
        log: LogConfig { segment_bytes: 4096 },
        cache_values: NonZeroUsize::new(50).unwrap(),
        reserve_bytes: 1 << 20,
        new_volume: Some(new),
        ..EngineConfig::default()
    }
}

fn existing() -> EngineConfig {
    EngineConfig { new_volume: None, ..config() }
}

fn at(secs: u64) -> Timestamp {
    Timestamp { secs: secs as i64, nanos: 0 }
}

fn open_session(engine: &Engine) {
    let action =
        Action::OpenSession { id: SESSION, description: "test".into(), owner: String::new() };
    engine.execute(Command { time: at(1), action }).1.unwrap();
}

fn change(seq: u64, op: Op) -> Command {
    let (seq, answered) = (OpSeq(seq), OpSeq(seq - 1));
    let action = Action::Mutate { session: SESSION, seq, answered, op };
    Command { time: at(seq.0), action }
}

fn create(text: &str) -> Op {
    let (parent, name) = (Ino::ROOT, Name::new(text).unwrap());
    Op::Create { parent, name, new: NewInode::File, perm: 0o644, umask: 0, uid: 0, gid: 0 }
}

fn unlink(text: &str) -> Op {
    Op::Unlink { parent: Ino::ROOT, name: Name::new(text).unwrap() }
}

fn dump(store: &dyn Read) -> Vec<Pair> {
    store.range(&[0], &[0xff], usize::MAX).unwrap()
}

fn faults(engine: &Engine) -> Vec<String> {
    check_store(&*engine.store).unwrap().faults
}

/// What has been written to a journal of the store, which is made with zeros in it. Tests write much less than is read.
fn journal(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    fs::File::open(path).unwrap().take(8 << 20).read_to_end(&mut bytes).unwrap();
    bytes.truncate(bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1));
    bytes
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            // Mostly room for what is to come.
            false if target.extension().is_some_and(|e| e == "jnl") => {
                fs::write(target, journal(&entry.path())).unwrap();
            }
            // The store removes what it has compacted, also while it is copied.
            false => drop(fs::copy(entry.path(), target)),
        }
    }
}

#[test]
fn a_volume_survives_a_restart() {
    let dir = TempDir::new().unwrap();
    let (engine, report) = Engine::open(dir.path(), config()).unwrap();
    assert!(report.created);
    open_session(&engine);
    let (index, reply) = engine.execute(change(1, create("f")));
    reply.unwrap();
    engine.flush(index).unwrap();
    assert_eq!((engine.durable(), engine.last()), (index, index));
    drop(engine);
    let (engine, report) = Engine::open(dir.path(), existing()).unwrap();
    assert_eq!((report.created, report.last, report.cut), (false, index, None));
    engine.lookup(Ino::ROOT, &Name::new("f").unwrap()).unwrap();
    assert_eq!(engine.sessions().unwrap()[0].0, SESSION);
    // A retry is answered as before, and has no place in the log.
    assert_eq!(engine.execute(change(1, create("f"))).0, index);
    engine.checkpoint().unwrap();
    assert_eq!(engine.log.bytes(), 0);
    drop(engine);
    let report = check(dir.path(), existing()).unwrap();
    assert_eq!((report.faults.len(), report.inodes, report.recovery.replayed), (0, 2, 0));
}

#[test]
fn foreign_newer_and_busy_folders_are_refused_in_one_line() {
    let dir = TempDir::new().unwrap();
    let refusal = |config| Engine::open(dir.path(), config).err().unwrap().to_string();
    assert!(refusal(existing()).contains("holds no volume"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    fs::write(dir.path().join("letter.txt"), "dear").unwrap();
    assert!(refusal(config()).contains("choose an empty one"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    fs::remove_file(dir.path().join("letter.txt")).unwrap();

    let (engine, _) = Engine::open(dir.path(), config()).unwrap();
    assert!(refusal(existing()).contains("in use"));
    drop(engine);
    let format = dir.path().join("FORMAT");
    let text = fs::read_to_string(&format).unwrap();
    assert_eq!(text, "netfs metadata\nformat 2\nvolume 0000000000000007\n");
    fs::write(&format, text.replace("format 2", "format 3")).unwrap();
    assert!(refusal(config()).contains("use a newer version"));
    for bad in ["", "netfs data\n", "netfs metadata\nformat x\n", "netfs metadata\nformat 2\n"] {
        fs::write(&format, bad).unwrap();
        assert!(matches!(Engine::open(dir.path(), config()), Err(EngineError::BadFormat { .. })));
    }
    let missing = dir.path().join("none");
    assert!(matches!(Engine::open(&missing, existing()), Err(EngineError::Missing(_))));
    fs::write(&missing, "").unwrap();
    assert!(Engine::open(&missing, existing()).is_err());
}

/// A history on a real store, with the folder copied again and again as a crash would leave it.
#[test]
fn a_crash_of_the_process_at_any_moment_loses_nothing() {
    let mut replayed = 0;
    for seed in 0..3 {
        let (dir, copies) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let (engine, _) = Engine::open(dir.path(), config()).unwrap();
        open_session(&engine);
        let mut rng = Rng(seed);
        let mut states = vec![Vec::new(), Vec::new(), dump(&*engine.store)];
        let (mut flushed, mut crashes) = (engine.durable(), Vec::new());
        for seq in 1..=300 {
            let inos = engine.counters().unwrap().next_ino;
            let (index, _) = engine.execute(change(seq, rng.op(inos)));
            states.push(dump(&*engine.store));
            assert_eq!(states.len() as u64, index.0 + 1);
            match rng.below(20) {
                0 => engine.checkpoint().unwrap(),
                1 | 2 => engine.flush(index).unwrap(),
                3 => {
                    let path = copies.path().join(seq.to_string());
                    copy(dir.path(), &path);
                    crashes.push((path, flushed, index));
                }
                // The store may come to the disk before the log.
                4 => engine.store.persist().unwrap(),
                _ => {}
            }
            flushed = engine.durable();
        }
        for (path, flushed, written) in crashes {
            let (engine, report) = Engine::open(&path, existing()).unwrap();
            replayed += report.replayed;
            // Only the process died, so nothing is missing.
            assert_eq!((report.last, report.cut), (written, None), "{flushed} flushed");
            assert!(dump(&*engine.store) == states[written.0 as usize], "seed {seed}, {written}");
            assert_eq!(faults(&engine), Vec::<String>::new());
            engine.execute(change(written.0 + 1000, create("after"))).1.ok();
            let end = engine.last();
            drop(engine);
            assert_eq!(Engine::open(&path, existing()).unwrap().1.last, end);
        }
    }
    assert!(replayed > 0, "nothing was tested");
}

/// What a power failure does to bytes that were written and not flushed: each page of them may have
/// come to the disk or not, and the file may end anywhere among them.
fn lose_power(path: &Path, synced: u64, rng: &mut Rng) -> bool {
    let mut bytes = fs::read(path).unwrap();
    let written = bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last as u64 + 1);
    if written <= synced {
        return false;
    }
    let within = |rng: &mut Rng| synced + rng.below(written - synced);
    match rng.below(4) {
        0 => bytes.truncate(within(rng) as usize),
        1 => {
            // What the disk had there before.
            let (from, to) = (within(rng), within(rng));
            bytes[from.min(to) as usize..=from.max(to) as usize].fill(0xa5);
        }
        _ => {
            for page in 0..written.div_ceil(512) {
                let (from, to) = ((page * 512).max(synced), ((page + 1) * 512).min(written));
                if from < to && rng.below(3) == 0 {
                    bytes[from as usize..to as usize].fill(0);
                }
            }
        }
    }
    fs::write(path, bytes).unwrap();
    true
}

/// The only file that is written to at the moment: the highest of these.
fn newest(dir: &Path, ending: &str) -> std::path::PathBuf {
    let files = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let mut files: Vec<_> =
        files.filter(|p| p.to_str().is_some_and(|p| p.ends_with(ending))).collect();
    files.sort_by_key(|p| (p.as_os_str().len(), p.clone()));
    files.pop().unwrap()
}

#[test]
fn a_power_failure_with_holes_and_garbage_in_the_unflushed_end_leaves_a_prefix() {
    let (mut torn_logs, mut torn_journals, mut lost, mut cuts) = (0, 0, 0, 0);
    for seed in 0..12 {
        let (dir, copies) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let (engine, _) = Engine::open(dir.path(), config()).unwrap();
        open_session(&engine);
        let mut rng = Rng(1000 + seed);
        let mut states = vec![Vec::new(), Vec::new(), dump(&*engine.store)];
        let (mut crashes, mut synced) = (Vec::new(), (engine.log.segment(), engine.durable()));
        for seq in 1..=200 {
            let inos = engine.counters().unwrap().next_ino;
            let op = match rng.below(4) {
                // Several pages in one batch of the store, and in one record of the log.
                0 => Op::Create {
                    parent: Ino::ROOT,
                    name: Name::new(format!("big-{seq}")).unwrap(),
                    new: NewInode::Symlink(vec![b'x'; 4000]),
                    perm: 0o777,
                    umask: 0,
                    uid: 0,
                    gid: 0,
                },
                _ => rng.op(inos),
            };
            let (index, _) = engine.execute(change(seq, op));
            states.push(dump(&*engine.store));
            match rng.below(20) {
                0 if seq > 50 => engine.checkpoint().unwrap(),
                1 => engine.flush(index).unwrap(),
                2 | 3 => {
                    let path = copies.path().join(seq.to_string());
                    copy(dir.path(), &path);
                    crashes.push((path, synced.clone(), index));
                }
                _ => {}
            }
            if engine.durable() > synced.1 {
                synced = (engine.log.segment(), engine.durable());
            }
        }
        for (path, ((segment, len), flushed), written) in crashes {
            let log = newest(&dir::log_dir(&path), ".log");
            // A segment is flushed before the next one begins.
            let synced = match log.file_name() == segment.file_name() {
                true => len,
                false => crate::meta::log::format::HEADER_BYTES as u64,
            };
            torn_logs += u32::from(lose_power(&log, synced, &mut rng));
            let journal = newest(&dir::store_dir(&path), ".jnl");
            torn_journals += u32::from(lose_power(&journal, 0, &mut rng));
            let (engine, report) = Engine::open(&path, existing()).unwrap();
            let last = report.last;
            cuts += u32::from(report.cut.is_some());
            lost += u32::from(last < written);
            assert!(flushed <= last && last <= written, "{flushed} <= {last} <= {written}");
            assert!(dump(&*engine.store) == states[last.0 as usize], "seed {seed}, {last}");
            assert_eq!(faults(&engine), Vec::<String>::new());
        }
    }
    let tested = torn_logs.min(torn_journals).min(lost).min(cuts);
    assert!(tested > 10, "{torn_logs} logs, {torn_journals} journals, {lost} lost, {cuts} cut");
}

#[test]
fn a_hole_in_the_stores_journal_never_keeps_a_volume_from_opening() {
    let dir = TempDir::new().unwrap();
    let (engine, _) = Engine::open(dir.path(), config()).unwrap();
    open_session(&engine);
    engine.execute(change(1, create("before"))).1.unwrap();
    engine.checkpoint().unwrap();
    for seq in 2..40 {
        let set = Op::SetXattr {
            ino: Ino::ROOT,
            name: format!("user.{seq}").into_bytes(),
            value: vec![7; 9000],
            mode: netfs_common::wire::meta::XattrMode::Set,
        };
        engine.execute(change(seq, set)).1.ok();
        engine.execute(change(seq + 100, create(&seq.to_string()))).1.ok();
    }
    let (last, expected) = (engine.last(), dump(&*engine.store));
    drop(engine);
    let newest = newest(&dir::store_dir(dir.path()), ".jnl");
    let whole = journal(&newest);
    for page in (0..whole.len() / 4096).step_by(5) {
        let mut bytes = whole.clone();
        bytes[page * 4096..(page + 1) * 4096].fill(0);
        fs::write(&newest, bytes).unwrap();
        let copied = TempDir::new().unwrap();
        copy(dir.path(), copied.path());
        let (engine, report) = Engine::open(copied.path(), existing()).unwrap();
        assert_eq!(report.last, last);
        assert!(dump(&*engine.store) == expected, "page {page}");
    }
}

#[test]
fn a_store_that_cannot_be_read_is_made_anew_while_the_log_has_everything() {
    let dir = TempDir::new().unwrap();
    let (engine, _) = Engine::open(dir.path(), config()).unwrap();
    open_session(&engine);
    engine.execute(change(1, create("f"))).1.unwrap();
    let expected = dump(&*engine.store);
    drop(engine);
    fs::write(dir::store_dir(dir.path()).join("version"), b"not what was here").unwrap();
    let (engine, _) = Engine::open(dir.path(), existing()).unwrap();
    assert!(dump(&*engine.store) == expected);
    assert!(dir.path().join("store.damaged-1").exists());
}

#[test]
fn a_volume_whose_making_was_interrupted_anywhere_is_made_by_the_next_attempt() {
    let new = "netfs metadata\nformat 2\nvolume 0000000000000009\n";
    let steps: [fn(&Path); 4] = [
        |dir| fs::write(dir.join("LOCK"), "").unwrap(),
        |dir| fs::write(dir.join("NUMBER"), "4").unwrap(),
        |dir| fs::create_dir(dir.join("log")).unwrap(),
        |dir| {
            fs::create_dir(dir.join("store")).unwrap();
            fs::write(dir.join("store/0.jnl"), "half").unwrap();
            fs::write(dir.join("log/0000000000000001.log"), "half").unwrap();
        },
    ];
    for count in 0..=steps.len() {
        let dir = TempDir::new().unwrap();
        // Before anything else there is the mark.
        fs::write(dir.path().join("FORMAT.new"), &new[..new.len() / (count + 1)]).unwrap();
        steps[..count].iter().for_each(|step| step(dir.path()));
        assert!(matches!(Engine::open(dir.path(), existing()), Err(EngineError::Missing(_))));
        assert!(Engine::open(dir.path(), config()).unwrap().1.created, "{count}");
        assert!(!Engine::open(dir.path(), existing()).unwrap().1.created);
    }
}

#[test]
fn positions_that_may_have_been_lost_are_never_given_out_again() {
    let dir = TempDir::new().unwrap();
    let (engine, _) = Engine::open(dir.path(), config()).unwrap();
    open_session(&engine);
    let (kept, _) = engine.execute(change(1, create("kept")));
    engine.flush(kept).unwrap();
    let (lost, _) = engine.execute(change(2, create("lost")));
    let (segment, len) = engine.log.segment();
    drop(engine);
    let log = newest(&dir::log_dir(dir.path()), ".log");
    assert_eq!(log, segment);
    let record = fs::read(&log).unwrap();
    fs::write(&log, &record[..len as usize - 1]).unwrap();
    // The store's journal went with it.
    let journal = newest(&dir::store_dir(dir.path()), ".jnl");
    fs::write(&journal, b"").unwrap();
    let (engine, report) = Engine::open(dir.path(), existing()).unwrap();
    assert_eq!(report.last, kept);
    engine.skip_lost(10, at(5)).unwrap();
    let (index, reply) = engine.execute(change(2, create("new")));
    reply.unwrap();
    assert!(index.0 > lost.0 + (1 << 30), "{index}");
    let told = engine.lost().unwrap();
    let [gap] = told[..] else { panic!("{told:?}") };
    assert_eq!(gap.after, kept);
    assert!(lost < gap.before && gap.before < index);
    assert_eq!(
        engine.get(Ino::ROOT).map(|r| match r {
            Response::Entry { attr, .. } => attr.version,
            other => panic!("{other:?}"),
        }),
        Ok(index.0)
    );
    let expected = dump(&*engine.store);
    // Across the gap the log is read, checkpointed and cut as ever.
    for _ in 0..2 {
        engine.flush(index).unwrap();
        let copied = TempDir::new().unwrap();
        copy(dir.path(), copied.path());
        let journal = newest(&dir::store_dir(copied.path()), ".jnl");
        fs::write(&journal, b"").unwrap();
        let (again, report) = Engine::open(copied.path(), existing()).unwrap();
        assert_eq!(report.last, index);
        assert!(dump(&*again.store) == expected);
        engine.checkpoint().unwrap();
        assert_eq!(engine.log.bytes(), 0);
    }
}

#[test]
fn a_store_that_is_ahead_of_the_log_goes_on() {
    let dir = TempDir::new().unwrap();
    let (engine, _) = Engine::open(dir.path(), config()).unwrap();
    open_session(&engine);
    let log: Vec<_> = fs::read_dir(dir::log_dir(dir.path())).unwrap().collect();
    let segment = log[0].as_ref().unwrap().path();
    let short = fs::read(&segment).unwrap();
    engine.execute(change(1, create("f"))).1.unwrap();
    let last = engine.last();
    engine.store.persist().unwrap();
    drop(engine);
    fs::write(segment, short).unwrap();
    for ahead in [true, false] {
        let (engine, report) = Engine::open(dir.path(), existing()).unwrap();
        assert_eq!((report.store_ahead, report.last), (ahead, last));
        engine.lookup(Ino::ROOT, &Name::new("f").unwrap()).unwrap();
    }
    let (engine, _) = Engine::open(dir.path(), existing()).unwrap();
    engine.execute(change(2, create("g"))).1.unwrap();
    drop(engine);
    assert_eq!(check(dir.path(), existing()).unwrap().entries, 2);
}

fn on_bad_disk(dir: &TempDir, config: EngineConfig) -> (Engine, BadDisk) {
    let disk = BadDisk::default();
    let store = |_: &Path| Ok(Box::new(MemoryStore::new()) as Box<dyn Store>);
    let (engine, _) = Engine::open_on(dir.path(), config, Arc::new(disk.clone()), store).unwrap();
    open_session(&engine);
    (engine, disk)
}

#[test]
fn a_full_disk_refuses_what_needs_room_and_lets_removals_through() {
    let dir = TempDir::new().unwrap();
    let (engine, disk) = on_bad_disk(&dir, config());
    engine.execute(change(1, create("f"))).1.unwrap();
    *disk.0.append.lock().unwrap() = Some((10, libc::ENOSPC));
    let before = dump(&*engine.store);
    assert_eq!(engine.execute(change(2, create("g"))).1, Err(Errno::ENOSPC));
    assert_eq!(dump(&*engine.store), before);
    // Nothing was done, so nothing is remembered either.
    engine.execute(change(2, create("g"))).1.unwrap();

    *disk.0.free.lock().unwrap() = Some(1000);
    let refused = (3..100).find(|seq| {
        let reply = engine.execute(change(*seq, create(&seq.to_string()))).1;
        reply == Err(Errno::ENOSPC)
    });
    let seq = refused.unwrap();
    engine.execute(change(seq, unlink("f"))).1.unwrap();
    // Who could remove something is let in.
    let (id, owner) = (SessionId(2), String::new());
    let open = Action::OpenSession { id, description: "late".into(), owner };
    engine.execute(Command { time: at(1), action: open }).1.unwrap();
    assert_eq!(engine.execute(change(seq + 1, create("h"))).1, Err(Errno::ENOSPC));
    *disk.0.free.lock().unwrap() = None;
    engine.execute(change(seq + 1, create("h"))).1.unwrap();
    assert_eq!(faults(&engine), Vec::<String>::new());
}

#[test]
fn a_log_that_only_grows_takes_nothing_more_that_needs_room() {
    let dir = TempDir::new().unwrap();
    let config = EngineConfig { checkpoint_log_bytes: 200, ..config() };
    let (engine, _) = on_bad_disk(&dir, config);
    let refused = (1..500)
        .find(|seq| engine.execute(change(*seq, create(&seq.to_string()))).1 == Err(Errno::ENOSPC));
    let seq = refused.unwrap();
    engine.execute(change(seq, unlink("1"))).1.unwrap();
    assert!(engine.checkpoint_due());
    engine.checkpoint().unwrap();
    engine.execute(change(seq + 1, create("g"))).1.unwrap();
}

#[test]
fn after_a_failed_write_or_flush_only_reads_go_on() {
    for flush in [false, true] {
        let dir = TempDir::new().unwrap();
        let (engine, disk) = on_bad_disk(&dir, config());
        let (index, reply) = engine.execute(change(1, create("f")));
        reply.unwrap();
        if flush {
            disk.0.sync.store(true, SeqCst);
            assert_eq!(engine.flush(index), Err(Errno::EIO));
            disk.0.sync.store(false, SeqCst);
        } else {
            *disk.0.append.lock().unwrap() = Some((10, libc::EIO));
            assert_eq!(engine.execute(change(2, create("g"))).1, Err(Errno::EIO));
        }
        assert_eq!(engine.execute(change(2, create("g"))).1, Err(Errno::EIO));
        assert_eq!(engine.flush(engine.last()), Err(Errno::EIO));
        assert!(engine.checkpoint().is_err() && engine.failure().is_some());
        engine.lookup(Ino::ROOT, &Name::new("f").unwrap()).unwrap();
    }
}

#[test]
fn reads_beside_changes_see_whole_changes() {
    let dir = TempDir::new().unwrap();
    let (engine, _) = on_bad_disk(&dir, config());
    let name = Name::new("f").unwrap();
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..3000 {
                        // There or not, but never a name that leads nowhere (that were EIO).
                        if let Err(errno) = engine.lookup(Ino::ROOT, &name) {
                            assert_eq!(errno, Errno::ENOENT);
                        }
                        engine.read_dir(Ino::ROOT, 0, 100, true).unwrap();
                    }
                })
            })
            .collect();
        for n in 0..1000 {
            let (index, reply) = engine.execute(change(3 * n + 1, create("f")));
            let Ok(Response::Changed { target: Some(ino), .. }) = reply else { panic!() };
            engine.execute(change(3 * n + 2, unlink("f"))).1.unwrap();
            engine.execute(change(3 * n + 3, Op::Forget { inos: vec![ino] })).1.unwrap();
            assert!(index <= engine.last());
        }
        readers.into_iter().for_each(|r| r.join().unwrap());
    });
    assert_eq!(faults(&engine), Vec::<String>::new());
}

#[test]
fn the_end_of_a_session_that_was_cut_short_is_completed_at_the_next_start() {
    let dir = TempDir::new().unwrap();
    let (engine, _) = Engine::open(dir.path(), config()).unwrap();
    open_session(&engine);
    for n in 0..1500 {
        engine.execute(change(2 * n + 1, create("f"))).1.unwrap();
        engine.execute(change(2 * n + 2, unlink("f"))).1.unwrap();
    }
    assert_eq!(engine.counters().unwrap().orphans, 1500);
    // As if the process died right after the first step.
    engine.execute(change(9999, Op::EndSession)).1.unwrap();
    assert_eq!(engine.counters().unwrap().orphans, 1500 - 1024);
    drop(engine);
    let (engine, _) = Engine::open(dir.path(), existing()).unwrap();
    while let [(id, _), ..] = engine.ended_sessions().unwrap()[..] {
        let reap = Command { time: at(1), action: Action::Reap { id } };
        engine.execute(reap).1.unwrap();
    }
    let state = engine.counters().unwrap();
    assert_eq!((state.orphans, state.inodes, state.sessions), (0, 1, 0));
    assert_eq!(faults(&engine), Vec::<String>::new());
}

#[test]
fn a_damaged_store_is_an_error() {
    let dir = TempDir::new().unwrap();
    drop(Engine::open(dir.path(), config()).unwrap());
    fs::remove_dir_all(dir::log_dir(dir.path())).unwrap();
    assert!(Engine::open(dir.path(), existing()).is_err());
    fs::create_dir(dir::log_dir(dir.path())).unwrap();
    for entry in fs::read_dir(dir::store_dir(dir.path())).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::write(path, b"not what was here").unwrap();
        }
    }
    assert!(Engine::open(dir.path(), existing()).is_err());
}

#[test]
fn the_store_on_disk_and_the_one_in_memory_agree() {
    let dir = TempDir::new().unwrap();
    let fjall = FjallStore::open(dir.path(), EngineConfig::default().store).unwrap();
    let stores: [Box<dyn Store>; 2] =
        [Box::new(MemoryStore::new()), Box::new(Cached::new(fjall, NonZeroUsize::new(3).unwrap()))];
    let mut rng = Rng(5);
    for _ in 0..2000 {
        let key = |rng: &mut Rng| vec![crate::meta::keys::INODE, rng.below(40) as u8];
        let (a, b) = (key(&mut rng), key(&mut rng));
        let limit = rng.below(9) as usize;
        let value = rng.below(600) as usize;
        let write = (rng.below(3) > 0).then(|| vec![1; value]);
        let got = stores.each_ref().map(|store| {
            let read = (store.get(&a).unwrap(), store.range(&a, &b, limit).unwrap());
            store.commit([(b.clone(), write.clone())].into_iter().collect()).unwrap();
            read
        });
        assert!(got[0] == got[1]);
    }
}
