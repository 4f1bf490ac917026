//! File locks: what they cost, and what becomes of them when calls, callers, servers and sessions are lost.

use std::sync::Arc;
use std::time::Duration;

use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::locks::{LockKind, LockMode, LockRange};
use netfs_common::wire::lock::{LockCall, LockHeld, LockOn};
use netfs_common::wire::meta::Request;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::world::{Hold, Random, Weather, World, file, session, write};
use crate::session::lock;
use crate::vfs::{Vfs, WantedLock};

const LONG: Duration = Duration::from_secs(20);

fn wanted(
    (ino, fh): (Ino, u64),
    kind: LockKind,
    owner: u64,
    (start, end): (u64, u64),
    mode: LockMode,
) -> WantedLock {
    let on = LockOn { ino, kind, owner };
    let held = LockHeld { on, range: LockRange { start, end }, mode, pid: 77 };
    WantedLock { fh, lock: held, certain: true }
}

fn posix(f: (Ino, u64), owner: u64, range: (u64, u64), mode: LockMode) -> WantedLock {
    wanted(f, LockKind::Posix, owner, range, mode)
}

fn held(world: &World, ino: Ino) -> Vec<(u64, u64, u64, LockMode)> {
    let all = lock(&world.meta).locks.held(ino);
    all.iter().map(|b| (b.owner.number, b.range.start, b.range.end, b.mode)).collect()
}

async fn until(what: impl Fn() -> bool) {
    let polls = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(LONG, polls).await.expect("it did not come to that");
}

#[tokio::test]
async fn a_lock_costs_one_message_and_a_close_without_locks_none() {
    let world = World::new(1, 16);
    let vfs = world.mount().await;
    let f = file(&vfs, "f").await;
    let start = vfs.messages("lock");
    vfs.closed_by(f.0, 5).await.unwrap();
    vfs.unlock((f.0, 5), Some(LockKind::Posix), LockRange::ALL).await.unwrap();
    assert_eq!(vfs.messages("lock") - start, 0);
    vfs.try_lock(posix(f, 5, (0, 9), LockMode::Write)).await.unwrap();
    assert_eq!(vfs.messages("lock") - start, 1);
    vfs.lock(posix(f, 5, (10, 19), LockMode::Write)).await.unwrap();
    assert_eq!(vfs.messages("lock") - start, 2);
    assert_eq!(held(&world, f.0), [(5, 0, 19, LockMode::Write)]);
    vfs.closed_by(f.0, 6).await.unwrap();
    assert_eq!(vfs.messages("lock") - start, 2, "somebody else closes it");
    vfs.closed_by(f.0, 5).await.unwrap();
    assert_eq!(vfs.messages("lock") - start, 3);
    assert_eq!(held(&world, f.0), []);
    vfs.release(f.0, f.1);
    assert_eq!(vfs.locks.len(), 0);
}

#[tokio::test]
async fn locks_of_an_open_file_end_with_its_handle_only() {
    let world = World::new(2, 16);
    let vfs = world.mount().await;
    let f = file(&vfs, "f").await;
    let all = (0, i64::MAX as u64);
    vfs.try_lock(wanted(f, LockKind::Flock, 9, all, LockMode::Write)).await.unwrap();
    vfs.try_lock(wanted(f, LockKind::Ofd, 9, (0, 4), LockMode::Write)).await.unwrap();
    assert_eq!(vfs.lock_kind(f.0, f.1, 9, false), Some(LockKind::Ofd));
    assert_eq!(vfs.lock_kind(f.0, f.1, 9, true), None);
    vfs.closed_by(f.0, 9).await.unwrap();
    assert_eq!(held(&world, f.0).len(), 2);
    let other = vfs.open(f.0, libc::O_RDONLY).await.unwrap().fh;
    vfs.release(f.0, other);
    vfs.release(f.0, f.1);
    until(|| held(&world, f.0).is_empty()).await;
    until(|| vfs.locks.len() == 0).await;
}

#[tokio::test]
async fn a_process_that_could_not_be_told_from_an_open_file_gives_its_locks_back_too() {
    let world = World::new(3, 16);
    let vfs = world.mount().await;
    let f = file(&vfs, "f").await;
    let mut unsure = posix(f, 9, (0, 9), LockMode::Read);
    unsure.certain = false;
    vfs.try_lock(unsure).await.unwrap();
    assert_eq!(vfs.lock_kind(f.0, f.1, 9, false), None);
    // It was an open file: no process of this number ever closes it.
    vfs.release(f.0, f.1);
    until(|| held(&world, f.0).is_empty()).await;
}

#[tokio::test]
async fn a_process_that_is_gone_without_a_word_has_no_locks() {
    let world = World::new(11, 16);
    let vfs = world.mount().await;
    let f = file(&vfs, "f").await;
    let quiet = (f.0, vfs.open(f.0, libc::O_RDONLY).await.unwrap().fh);
    let mut mine = posix(quiet, 1, (0, 9), LockMode::Read);
    mine.lock.pid = std::process::id();
    vfs.try_lock(mine).await.unwrap();
    let mut gone = posix(quiet, 2, (0, 9), LockMode::Read);
    gone.lock.pid = u32::MAX;
    vfs.try_lock(gone).await.unwrap();
    assert_eq!(held(&world, f.0).len(), 2);
    until(|| held(&world, f.0) == [(1, 0, 9, LockMode::Read)]).await;
}

#[tokio::test]
async fn closes_are_told_of_files_that_were_locked() {
    let world = World::new(4, 16);
    let vfs = world.mount().await;
    let f = file(&vfs, "f").await;
    let open = async |vfs: &Arc<Vfs>| vfs.open(f.0, libc::O_RDONLY).await.unwrap();
    assert!(open(&vfs).await.noflush);
    vfs.try_lock(wanted(f, LockKind::Flock, 9, (0, 0), LockMode::Read)).await.unwrap();
    assert!(open(&vfs).await.noflush, "a close does not end a flock");
    vfs.try_lock(posix(f, 1, (0, 0), LockMode::Read)).await.unwrap();
    assert!(!open(&vfs).await.noflush);
}

#[tokio::test]
async fn a_waiter_gets_it_when_the_other_client_unlocks() {
    let world = World::new(5, 16);
    let (a, b) = (world.mount().await, world.mount().await);
    let f = file(&a, "f").await;
    a.try_lock(posix(f, 1, (0, 9), LockMode::Write)).await.unwrap();
    let want = posix(f, 1, (5, 9), LockMode::Read);
    assert_eq!(b.try_lock(want).await, Err(Errno::EAGAIN));
    let conflict = b.test_lock(want.lock).await.unwrap().unwrap();
    assert_eq!((conflict.range.start, conflict.range.end, conflict.pid), (0, 9, 0));
    assert_eq!(
        a.test_lock(posix(f, 2, (0, 0), LockMode::Read).lock).await.unwrap().unwrap().pid,
        77
    );
    let waiting = tokio::spawn({
        let b = Arc::clone(&b);
        async move { b.lock(want).await }
    });
    until(|| lock(&world.meta).locks.is_waiting(session(&b))).await;
    a.unlock((f.0, 1), None, LockRange { start: 5, end: 9 }).await.unwrap();
    assert_eq!(timeout(LONG, waiting).await.unwrap().unwrap(), Ok(()));
    assert_eq!(held(&world, f.0).len(), 2);
    until(|| lock(&world.meta).locks.granted(session(&b), 9).is_empty()).await;
}

#[tokio::test]
async fn a_waiter_that_is_given_up_leaves_nothing_behind() {
    let world = World::new(6, 16);
    let (a, b) = (world.mount().await, world.mount().await);
    let f = file(&a, "f").await;
    a.try_lock(posix(f, 1, (0, 9), LockMode::Write)).await.unwrap();
    b.try_lock(posix(f, 2, (20, 29), LockMode::Read)).await.unwrap();
    let want = posix(f, 2, (0, 29), LockMode::Write);
    let given_up = timeout(Duration::from_millis(50), b.lock(want)).await;
    assert!(given_up.is_err());
    until(|| !lock(&world.meta).locks.is_waiting(session(&b))).await;
    // And one to which the answer "granted" is on its way at that moment.
    a.unlock((f.0, 1), None, LockRange::ALL).await.unwrap();
    let hold = Hold {
        which: |r| matches!(r, Request::Lock(LockCall::Set { .. })),
        caught: Arc::new(Notify::new()),
        release: Arc::new(Notify::new()),
    };
    *lock(&world.held) = Some(hold.clone());
    {
        let asking = b.lock(want);
        tokio::select! {
            _ = asking => panic!("its answer is held back"),
            () = hold.caught.notified() => {}
        }
    }
    *lock(&world.held) = None;
    until(|| held(&world, f.0) == [(2, 20, 29, LockMode::Read)]).await;
}

/// Two threads of one process wait for a byte, and one gets a signal just when both have been granted it. `delivered`: the other has
/// heard of its grant before what is given back is given back, and is to be told by then; else it asks again after that.
async fn one_of_two_threads_gives_up(delivered: bool) {
    let world = World::new(12, 16);
    let (a, b) = (world.mount().await, world.mount().await);
    let f = file(&a, "f").await;
    let want = posix(f, 1, (0, 0), LockMode::Write);
    let theirs = posix(f, 7, (0, 0), LockMode::Write);
    a.try_lock(theirs).await.unwrap();
    let wait = |b: &Arc<Vfs>| {
        let b = Arc::clone(b);
        tokio::spawn(async move { b.lock(want).await })
    };
    let gives_up = wait(&b);
    until(|| lock(&world.meta).locks.queued(f.0).len() == 1).await;
    let mut goes_on = wait(&b);
    until(|| lock(&world.meta).locks.queued(f.0).len() == 2).await;
    let hold = Hold {
        which: |r| match r {
            Request::Lock(LockCall::Await { .. }) => true,
            Request::Lock(LockCall::Clear { on, .. }) => on.owner == 1,
            _ => false,
        },
        caught: Arc::new(Notify::new()),
        release: Arc::new(Notify::new()),
    };
    *lock(&world.held) = Some(hold.clone());
    // No news of what comes now.
    hold.caught.notified().await;
    a.unlock((f.0, 7), None, LockRange::ALL).await.unwrap();
    assert_eq!(held(&world, f.0), [(1, 0, 0, LockMode::Write)]);
    gives_up.abort();
    // It is given back, and the answer is on its way.
    hold.caught.notified().await;
    *lock(&world.held) = None;
    a.try_lock(theirs).await.unwrap();
    // First the call for news, then that.
    hold.release.notify_one();
    if delivered {
        until(|| lock(&world.meta).locks.granted(session(&b), 9).is_empty()).await;
    }
    hold.release.notify_one();
    let early = timeout(Duration::from_millis(700), &mut goes_on).await;
    assert!(early.is_err(), "both have it: {early:?}");
    a.unlock((f.0, 7), None, LockRange::ALL).await.unwrap();
    assert_eq!(timeout(LONG, goes_on).await.unwrap().unwrap(), Ok(()));
    assert_eq!(held(&world, f.0), [(1, 0, 0, LockMode::Write)]);
    b.closed_by(f.0, 1).await.unwrap();
    assert_eq!(held(&world, f.0), []);
}

#[tokio::test]
async fn what_one_thread_gives_back_its_sister_has_to_be_granted_again() {
    one_of_two_threads_gives_up(true).await;
}

#[tokio::test]
async fn a_grant_that_was_undone_is_not_told_to_who_asks_again() {
    one_of_two_threads_gives_up(false).await;
}

#[tokio::test]
async fn who_does_not_wait_any_more_is_in_no_circle() {
    let world = World::new(13, 16);
    let (a, b) = (world.mount().await, world.mount().await);
    let (f, g) = (file(&a, "f").await, file(&a, "g").await);
    a.try_lock(posix(f, 7, (1, 1), LockMode::Write)).await.unwrap();
    let gives_up = tokio::spawn({
        let b = Arc::clone(&b);
        async move { b.lock(posix(f, 1, (1, 1), LockMode::Write)).await }
    });
    until(|| lock(&world.meta).locks.is_waiting(session(&b))).await;
    let hold = Hold {
        which: |r| matches!(r, Request::Lock(LockCall::Set { lock, .. }) if lock.on.owner == 3),
        caught: Arc::new(Notify::new()),
        release: Arc::new(Notify::new()),
    };
    *lock(&world.held) = Some(hold.clone());
    // So that it takes a while until the server hears that nobody waits.
    let other = tokio::spawn({
        let b = Arc::clone(&b);
        async move { b.try_lock(posix(f, 3, (9, 9), LockMode::Write)).await }
    });
    hold.caught.notified().await;
    gives_up.abort();
    assert!(gives_up.await.unwrap_err().is_cancelled());
    // The process that got the signal goes on with something else.
    let next = tokio::spawn({
        let b = Arc::clone(&b);
        async move { b.lock(posix(g, 1, (0, 0), LockMode::Write)).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let before = held(&world, g.0);
    let theirs = tokio::spawn({
        let a = Arc::clone(&a);
        async move { a.lock(posix(g, 7, (0, 0), LockMode::Write)).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    hold.release.notify_one();
    assert_eq!(other.await.unwrap(), Ok(()));
    if before.is_empty() {
        assert_eq!(timeout(LONG, theirs).await.unwrap().unwrap(), Ok(()));
        a.closed_by(g.0, 7).await.unwrap();
        assert_eq!(timeout(LONG, next).await.unwrap().unwrap(), Ok(()));
    } else {
        assert_eq!(timeout(LONG, next).await.unwrap().unwrap(), Ok(()));
        b.closed_by(g.0, 1).await.unwrap();
        assert_eq!(timeout(LONG, theirs).await.unwrap().unwrap(), Ok(()));
    }
}

#[tokio::test]
async fn a_lock_that_was_taken_for_a_caller_who_has_gone_is_given_back() {
    let world = World::new(7, 16);
    let vfs = world.mount().await;
    let f = file(&vfs, "f").await;
    vfs.try_lock(posix(f, 1, (0, 9), LockMode::Read)).await.unwrap();
    let hold = Hold {
        which: |r| matches!(r, Request::Lock(LockCall::Set { .. })),
        caught: Arc::new(Notify::new()),
        release: Arc::new(Notify::new()),
    };
    *lock(&world.held) = Some(hold.clone());
    {
        let asking = vfs.try_lock(posix(f, 1, (5, 20), LockMode::Write));
        tokio::select! {
            _ = asking => panic!("its answer is held back"),
            () = hold.caught.notified() => {}
        }
    }
    *lock(&world.held) = None;
    assert_eq!(held(&world, f.0).len(), 2);
    hold.release.notify_one();
    until(|| held(&world, f.0) == [(1, 0, 9, LockMode::Read)]).await;
}

#[tokio::test]
async fn a_restarted_server_gets_the_locks_again_and_waiters_wait_on() {
    let world = World::new(8, 16);
    let (a, b) = (world.mount().await, world.mount().await);
    let f = file(&a, "f").await;
    let g = file(&a, "g").await;
    a.try_lock(posix(f, 1, (0, 9), LockMode::Write)).await.unwrap();
    a.try_lock(wanted(f, LockKind::Flock, 9, (0, 0), LockMode::Read)).await.unwrap();
    for n in 0..1500 {
        b.try_lock(posix(g, 2, (2 * n, 2 * n), LockMode::Write)).await.unwrap();
    }
    let mut before = held(&world, f.0);
    let waiting = tokio::spawn({
        let b = Arc::clone(&b);
        async move { b.lock(posix(f, 1, (0, 0), LockMode::Write)).await }
    });
    until(|| lock(&world.meta).locks.is_waiting(session(&b))).await;
    world.restart_meta();
    until(|| lock(&world.meta).locks.is_waiting(session(&b))).await;
    let mut after = held(&world, f.0);
    before.sort();
    after.sort();
    assert_eq!(before, after);
    assert_eq!(held(&world, g.0).len(), 1500);
    a.closed_by(f.0, 1).await.unwrap();
    assert_eq!(timeout(LONG, waiting).await.unwrap().unwrap(), Ok(()));
}

#[tokio::test]
async fn locks_that_are_lost_with_the_session_are_told() {
    let world = World::new(9, 16);
    let vfs = world.mount().await;
    let (f, g) = (file(&vfs, "f").await, file(&vfs, "g").await);
    vfs.try_lock(posix(f, 1, (0, 9), LockMode::Write)).await.unwrap();
    {
        let mut meta = lock(&world.meta);
        meta.end(session(&vfs));
        meta.locks.end_session(session(&vfs));
    }
    world.cut();
    // Not among those of which another owner might have had them since.
    until(|| vfs.locks.len() <= 1 && vfs.session.connected()).await;
    vfs.try_lock(posix(g, 1, (0, 9), LockMode::Write)).await.unwrap();
    assert_eq!(held(&world, f.0), []);
    assert_eq!(write(&vfs, f, 0, b"x").await, Err(Errno::EIO));
    assert_eq!(write(&vfs, f, 0, b"x").await, Ok(1), "told once");
    assert_eq!(write(&vfs, g, 0, b"x").await, Ok(1));
}

#[tokio::test]
async fn over_a_network_that_loses_calls_no_two_clients_have_a_lock() {
    exclude_each_other(10, 4, 4).await;
}

#[tokio::test]
async fn over_a_network_that_loses_calls_signals_do_no_harm() {
    exclude_each_other(14, 2, 2).await;
}

/// Owners lock bytes for a moment, and nobody else has them meanwhile. One request in `signals` is given up after a moment.
async fn exclude_each_other(seed: u64, bytes: u64, signals: u64) {
    let world = World::new(seed, 16);
    let clients = [world.mount().await, world.mount().await];
    let f = file(&clients[0], "f").await;
    world.weather(Weather { delay_ms: 1, loss: 15 });
    let inside = Arc::new(std::sync::Mutex::new([0i64; 4]));
    let mut tasks = Vec::new();
    for n in 0..6u64 {
        let vfs = Arc::clone(&clients[n as usize % 2]);
        let inside = Arc::clone(&inside);
        tasks.push(tokio::spawn(async move {
            let mut random = Random(n);
            for _ in 0..25 {
                let byte = random.below(bytes);
                let at = (byte, byte);
                let want = posix(f, n, at, LockMode::Write);
                if random.below(signals) == 0 {
                    // Somebody who gets a signal.
                    let patience = Duration::from_micros(random.below(3000));
                    if timeout(patience, vfs.lock(want)).await.is_err() {
                        continue;
                    }
                } else {
                    vfs.lock(want).await.unwrap();
                }
                lock(&inside)[byte as usize] += 1;
                assert_eq!(lock(&inside)[byte as usize], 1);
                tokio::task::yield_now().await;
                lock(&inside)[byte as usize] -= 1;
                if random.below(2) == 0 {
                    vfs.closed_by(f.0, n).await.unwrap();
                } else {
                    let range = LockRange { start: byte, end: byte };
                    vfs.unlock((f.0, n), Some(LockKind::Posix), range).await.unwrap();
                }
            }
            vfs.closed_by(f.0, n).await.unwrap();
        }));
    }
    for task in tasks {
        timeout(Duration::from_secs(60), task).await.expect("stuck").unwrap();
    }
    world.weather(Weather::default());
    until(|| held(&world, f.0).is_empty()).await;
    for vfs in &clients {
        until(|| !lock(&world.meta).locks.is_waiting(session(vfs))).await;
    }
}
