//! Clients that are cut off for longer than their term, while others go on.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use netfs_common::errno::Errno;
use netfs_common::id::Ino;

use super::world::{World, file, name, read, write};
use crate::vfs::{Looked, Vfs};

const ROOT: Ino = Ino::ROOT;
const TERM: Duration = Duration::from_millis(400);
const LATE: Duration = Duration::from_secs(60);

async fn two(seed: u64) -> (Arc<World>, Arc<Vfs>, Arc<Vfs>) {
    let world = World::new(seed, 16);
    world.term_ms.store(TERM.as_millis() as u32, Ordering::SeqCst);
    world.expire_sessions();
    let cut_off = world.mount_with(|o| {
        o.soft = Some(Duration::from_millis(50));
        o.writeback.age = LATE;
    });
    (Arc::clone(&world), cut_off.await, world.mount().await)
}

#[tokio::test]
async fn what_it_has_not_sent_is_lost_and_told_and_others_wait_no_longer_than_its_term() {
    let (world, lost, other) = two(1).await;
    let f = file(&lost, "f").await;
    write(&lost, f, 0, b"synced").await.unwrap();
    lost.fsync(f.0, f.1, false).await.unwrap();
    write(&lost, f, 0, b"buffer").await.unwrap();
    world.peer(&lost).silent.store(true, Ordering::SeqCst);
    let before = tokio::time::Instant::now();
    let Looked::Found(entry) = other.lookup(ROOT, &name("f")).await.unwrap() else { panic!() };
    assert!(before.elapsed() >= TERM * 2 / 3 && before.elapsed() < TERM * 2);
    assert_eq!(entry.attr.size, 6);
    let fh = other.open(f.0, libc::O_RDWR).await.unwrap().fh;
    assert_eq!(read(&other, (f.0, fh), 0, 10).await, b"synced");
    write(&other, (f.0, fh), 0, b"others").await.unwrap();
    other.fsync(f.0, fh, false).await.unwrap();

    // It serves and takes nothing meanwhile.
    assert!(lost.try_read(f.0, f.1, 0, 10).is_none() && lost.try_getattr(f.0, None).is_none());
    assert!(lost.try_lookup(ROOT, &name("f")).is_none());
    assert!(lost.try_write(f.0, f.1, 0, &b"x"[..].into(), libc::O_RDWR, 0).is_none());
    assert_eq!(lost.getattr(f.0, None).await.map(|_| ()), Err(Errno::ETIMEDOUT));

    world.peer(&lost).silent.store(false, Ordering::SeqCst);
    let back = async { while lost.getattr(f.0, None).await.is_err() {} };
    tokio::time::timeout(TERM * 4, back).await.unwrap();
    assert_eq!(lost.fsync(f.0, f.1, false).await, Err(Errno::EIO));
    assert_eq!(lost.fsync(f.0, f.1, false).await, Ok(()), "told once");
    assert_eq!(read(&lost, f, 0, 10).await, b"others");
    assert_eq!(read(&other, (f.0, fh), 0, 10).await, b"others");
}

#[tokio::test]
async fn what_it_has_not_sent_is_sent_if_it_is_back_within_its_term() {
    let (world, away, other) = two(2).await;
    let f = file(&away, "f").await;
    write(&away, f, 0, b"buffer").await.unwrap();
    world.peer(&away).silent.store(true, Ordering::SeqCst);
    let looking = {
        let other = Arc::clone(&other);
        tokio::spawn(async move { other.lookup(ROOT, &name("f")).await })
    };
    tokio::time::sleep(TERM / 3).await;
    assert!(!looking.is_finished());
    world.peer(&away).silent.store(false, Ordering::SeqCst);
    let Looked::Found(entry) = looking.await.unwrap().unwrap() else { panic!() };
    assert_eq!(entry.attr.size, 6);
    assert_eq!(away.fsync(f.0, f.1, false).await, Ok(()));
}

#[tokio::test]
async fn who_is_back_between_its_own_deadline_and_its_end_sends_first_what_another_waits_for() {
    let (world, away, other) = two(4).await;
    let f = file(&away, "f").await;
    write(&away, f, 0, b"buffer").await.unwrap();
    world.peer(&away).silent.store(true, Ordering::SeqCst);
    while away.cache.live() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let looking = {
        let other = Arc::clone(&other);
        tokio::spawn(async move {
            let Looked::Found(entry) = other.lookup(ROOT, &name("f")).await.unwrap() else {
                panic!()
            };
            let fh = other.open(f.0, libc::O_RDWR).await.unwrap().fh;
            (entry.attr.size, read(&other, (f.0, fh), 0, 10).await, fh)
        })
    };
    tokio::time::sleep(TERM / 20).await;
    assert!(!looking.is_finished());
    world.peer(&away).silent.store(false, Ordering::SeqCst);
    let (size, seen, fh) = looking.await.unwrap();
    assert_eq!((size, &*seen), (6, &b"buffer"[..]));
    write(&other, (f.0, fh), 0, b"others").await.unwrap();
    assert_eq!(away.fsync(f.0, f.1, false).await, Ok(()));
    assert_eq!(read(&other, (f.0, fh), 0, 10).await, b"others", "nothing older was sent over it");
    assert_eq!(read(&away, f, 0, 10).await, b"others");
}

#[tokio::test]
async fn a_client_that_died_is_waited_for_only_where_it_held_something() {
    let (world, dead, other) = two(3).await;
    let f = file(&dead, "f").await;
    let g = file(&other, "g").await;
    write(&dead, f, 0, b"buffer").await.unwrap();
    world.peer(&dead).silent.store(true, Ordering::SeqCst);
    let before = tokio::time::Instant::now();
    for i in 0..20u8 {
        write(&other, g, 0, &[i; 10]).await.unwrap();
        other.fsync(g.0, g.1, false).await.unwrap();
    }
    assert!(before.elapsed() < TERM / 2, "{:?}", before.elapsed());
    other.lookup(ROOT, &name("f")).await.unwrap();
    assert!(before.elapsed() < TERM * 2);
}
