use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use tempfile::TempDir;

use super::faults::BadDisk;
use super::*;
use netfs_common::id::LogIndex;

type Replayed = Vec<(u64, Vec<u8>)>;

fn open(dir: &Path, disk: &BadDisk, applied: u64) -> Result<(Log, Replayed, Recovered), LogError> {
    let mut replayed = Vec::new();
    let found = recover(disk, dir, 7, LogIndex(applied), |index, payload| {
        replayed.push((index.0, payload.to_vec()));
        Ok::<(), LogError>(())
    })?;
    let last = found.last.max(LogIndex(applied));
    let config = LogConfig { segment_bytes: 200 };
    let log = Log::new(Arc::new(disk.clone()), dir, 7, config, found.clone(), last);
    Ok((log, replayed, found))
}

fn payload(index: u64) -> Vec<u8> {
    vec![index as u8; 10 + index as usize % 7]
}

/// A log of `count` records in several segments, the last one flushed if wanted.
fn written(count: u64, flushed: u64) -> (TempDir, BadDisk) {
    let (dir, disk) = (TempDir::new().unwrap(), BadDisk::default());
    let (log, ..) = open(dir.path(), &disk, 0).unwrap();
    for index in 1..=count {
        assert_eq!(log.append(&payload(index)).unwrap(), LogIndex(index));
        if index == flushed {
            log.flush(LogIndex(index)).unwrap();
        }
    }
    (dir, disk)
}

fn segments(dir: &TempDir) -> Vec<PathBuf> {
    let mut all: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    all
}

#[test]
fn what_was_written_is_read_again() {
    let (dir, disk) = written(20, 0);
    assert!(segments(&dir).len() > 2);
    let (log, replayed, found) = open(dir.path(), &disk, 5).unwrap();
    assert_eq!(replayed, (6..=20).map(|i| (i, payload(i))).collect::<Vec<_>>());
    assert_eq!((found.last, found.cut), (LogIndex(20), None));
    // What was found is on stable storage from here on.
    assert_eq!(log.durable(), LogIndex(20));
    assert_eq!(log.append(b"next").unwrap(), LogIndex(21));
    drop(log);
    assert_eq!(open(dir.path(), &disk, 20).unwrap().1, [(21, b"next".to_vec())]);
}

#[test]
fn an_incomplete_end_is_cut_off_wherever_it_breaks() {
    let (dir, disk) = written(12, 0);
    let last = segments(&dir).pop().unwrap();
    let whole = fs::read(&last).unwrap();
    let first = format::segment_first(last.file_name().unwrap().to_str().unwrap()).unwrap().0;
    for len in 0..whole.len() {
        fs::write(&last, &whole[..len]).unwrap();
        let (_, replayed, found) = open(dir.path(), &disk, 0).unwrap();
        assert_eq!(replayed.len() as u64, found.last.0);
        assert!(found.last.0 >= first - 1 && found.last.0 < 12);
        // Once mended, it stays so.
        let again = open(dir.path(), &disk, 0).unwrap();
        assert_eq!((again.1, again.2.cut), (replayed, None), "{len}");
    }
}

#[test]
fn damage_to_what_was_flushed_is_an_error_that_says_where() {
    // A later record says that all up to 11 was flushed.
    let (dir, disk) = written(12, 11);
    for path in segments(&dir) {
        let whole = fs::read(&path).unwrap();
        let last_segment = segments(&dir).pop().unwrap() == path;
        let record_12 = whole.len() - format::RECORD_BYTES - payload(12).len();
        let end = if last_segment { record_12 } else { whole.len() };
        for at in 0..end {
            let mut bad = whole.clone();
            bad[at] ^= 0x10;
            fs::write(&path, &bad).unwrap();
            match open(dir.path(), &disk, 0) {
                Err(LogError::Damaged { path: named, offset, .. }) => {
                    assert!(named == path && offset <= at as u64, "{at}: {offset}");
                }
                Err(other) => panic!("{other}"),
                Ok(_) => panic!("byte {at} of {} was not missed", path.display()),
            }
            assert_eq!(fs::read(&path).unwrap(), bad, "nothing may be touched");
        }
        fs::write(&path, &whole).unwrap();
    }
    open(dir.path(), &disk, 0).unwrap();
}

#[test]
fn a_hole_in_what_was_never_flushed_ends_the_log_and_is_reported() {
    let (dir, disk) = written(12, 0);
    let last = segments(&dir).pop().unwrap();
    let mut bad = fs::read(&last).unwrap();
    bad[format::HEADER_BYTES + 9] ^= 1;
    fs::write(&last, bad).unwrap();
    let (_, _, found) = open(dir.path(), &disk, 0).unwrap();
    let cut = found.cut.unwrap();
    assert_eq!((cut.offset, cut.path), (format::HEADER_BYTES as u64, last));
    assert!(cut.records > 0);
}

#[test]
fn a_missing_segment_is_an_error() {
    let (dir, disk) = written(20, 20);
    let all = segments(&dir);
    fs::remove_file(&all[1]).unwrap();
    assert!(matches!(open(dir.path(), &disk, 0), Err(LogError::Gap { .. })));
    fs::remove_file(&all[0]).unwrap();
    assert!(matches!(open(dir.path(), &disk, 0), Err(LogError::Gap { wanted: 1, .. })));
}

#[test]
fn a_full_disk_refuses_a_record_and_takes_the_next() {
    let (dir, disk) = written(2, 0);
    let (log, ..) = open(dir.path(), &disk, 0).unwrap();
    for part in [0, 5, 30] {
        *disk.0.append.lock().unwrap() = Some((part, libc::ENOSPC));
        assert_eq!(log.append(b"refused").unwrap_err().errno(), Errno::ENOSPC);
    }
    assert_eq!(log.append(b"three").unwrap(), LogIndex(3));
    *disk.0.append.lock().unwrap() = Some((9, libc::ENOSPC));
    assert_eq!(log.append(b"refused").unwrap_err().errno(), Errno::ENOSPC);
    assert_eq!(log.append(b"four").unwrap(), LogIndex(4));
    drop(log);
    let replayed = open(dir.path(), &disk, 2).unwrap().1;
    assert_eq!(replayed, [(3, b"three".to_vec()), (4, b"four".to_vec())]);
}

#[test]
fn a_failing_disk_stops_the_log() {
    let faults: [fn(&BadDisk); 3] = [
        |disk| *disk.0.append.lock().unwrap() = Some((5, libc::EIO)),
        |disk| disk.0.sync.store(true, SeqCst),
        |disk| {
            disk.0.truncate.store(true, SeqCst);
            *disk.0.append.lock().unwrap() = Some((5, libc::ENOSPC));
        },
    ];
    for fault in faults {
        let (dir, disk) = written(2, 0);
        let (log, ..) = open(dir.path(), &disk, 0).unwrap();
        log.append(b"three").unwrap();
        fault(&disk);
        let failed = log.append(b"four").map(|_| ()).and_then(|()| log.flush(log.last()));
        assert!(failed.is_err());
        disk.0.sync.store(false, SeqCst);
        assert!(matches!(log.append(b"five"), Err(LogError::Poisoned(_))));
        assert!(matches!(log.flush(LogIndex(3)), Err(LogError::Poisoned(_))));
        drop(log);
        // All that was acknowledged is there.
        let replayed = open(dir.path(), &BadDisk::default(), 2).unwrap().1;
        assert_eq!(replayed[0], (3, b"three".to_vec()));
    }
}

#[test]
fn those_who_wait_at_the_same_time_share_a_flush() {
    let (dir, disk) = (TempDir::new().unwrap(), BadDisk::default());
    let found = recover(&disk, dir.path(), 7, LogIndex(0), |_, _| Ok::<(), LogError>(())).unwrap();
    let config = LogConfig::default();
    let log = Log::new(Arc::new(disk.clone()), dir.path(), 7, config, found, LogIndex(0));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let index = log.append(b"x").unwrap();
                    log.flush(index).unwrap();
                    assert!(log.durable() >= index);
                }
            });
        }
    });
    let syncs = disk.0.syncs.load(SeqCst);
    assert!(log.last() == LogIndex(400) && syncs <= 400, "{syncs}");
    log.flush(LogIndex(u64::MAX)).unwrap();
    assert_eq!(disk.0.syncs.load(SeqCst), syncs);
}

#[test]
fn old_segments_go_after_a_checkpoint() {
    let (dir, disk) = written(20, 0);
    let (log, ..) = open(dir.path(), &disk, 0).unwrap();
    let before = log.bytes();
    log.drop_before(LogIndex(10)).unwrap();
    assert!(log.bytes() < before);
    let first = segments(&dir)[0].file_name().unwrap().to_str().unwrap().to_owned();
    assert!(format::segment_first(&first).unwrap().0 <= 11);
    log.append(b"more").unwrap();
    log.seal_current().unwrap();
    log.drop_before(log.last()).unwrap();
    assert_eq!((segments(&dir).len(), log.bytes()), (0, 0));
    log.append(b"and more").unwrap();
    drop(log);
    assert_eq!(open(dir.path(), &disk, 21).unwrap().1, [(22, b"and more".to_vec())]);
}

#[test]
fn a_segment_of_another_log_is_refused() {
    let (dir, disk) = written(3, 3);
    let refused = scan(&disk, dir.path(), 8, LogIndex(0), |_, _| Ok::<(), LogError>(()));
    assert!(matches!(refused, Err(LogError::Damaged { offset: 0, .. })));
}
