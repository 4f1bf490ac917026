//! Many threads on a real directory.

use std::sync::atomic::{AtomicBool, Ordering};

use super::super::{SegmentStore, StoreConfig};
use super::{KIB, V0, key};

#[test]
fn writers_readers_and_reclamation_at_once() {
    const WRITERS: u64 = 3;
    const ROUNDS: u64 = 400;
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig {
        segment_bytes: 256 * KIB,
        reserve_bytes: 0,
        max_open_segments: 4,
        ..super::small()
    };
    let (store, _) = SegmentStore::open(dir.path(), config.clone()).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (1..=WRITERS)
            .map(|ino| {
                let store = &store;
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        let k = key(ino, round % 4);
                        store.write(k, 0, &[vec![round as u8; 16 << 10]], V0).unwrap();
                        assert_eq!(store.read(k, 4096, 4096).unwrap(), vec![round as u8; 4096]);
                        match round % 50 {
                            10 => store.flush().unwrap(),
                            20 => drop(store.delete_chunks(ino, 1, 2).unwrap()),
                            30 => drop(store.punch(k, 8192, 4096, V0).unwrap()),
                            _ => {}
                        }
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                store.reclaim_step().unwrap();
            }
        });
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                for ino in 1..=WRITERS {
                    // A write is seen as a whole or not at all.
                    let data = store.read(key(ino, 1), 0, 8192).unwrap();
                    assert!(data.iter().all(|b| *b == data[0]));
                }
            }
        });
        let results: Vec<_> = writers.into_iter().map(|w| w.join()).collect();
        over.store(true, Ordering::Relaxed);
        assert!(results.iter().all(Result::is_ok));
    });
    store.checkpoint().unwrap();
    drop(store);
    let check = SegmentStore::check(dir.path()).unwrap();
    assert!(check.is_clean() && check.snapshot_agrees == Some(true), "{check:?}");
    let (store, _) = SegmentStore::open(dir.path(), config).unwrap();
    assert_eq!(store.read(key(1, 3), 0, 4096).unwrap(), vec![((ROUNDS - 1) % 256) as u8; 4096]);
}
