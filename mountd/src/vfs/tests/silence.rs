//! A metadata server that cannot be reached.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use netfs_common::errno::Errno;
use netfs_common::id::Ino;

use super::world::{Kernel, World, file, name, read, write};
use crate::session::lock;
use crate::vfs::{Looked, NotStored};

const TERM: Duration = Duration::from_millis(300);

#[tokio::test]
async fn a_client_cut_off_stops_using_its_caches_before_its_term_is_over() {
    let world = World::new(1, 16);
    world.term_ms.store(TERM.as_millis() as u32, Ordering::SeqCst);
    let vfs = world.mount_with(|o| o.soft = Some(Duration::from_millis(50))).await;
    let kernel = Arc::new(Kernel::default());
    vfs.set_kernel(kernel.clone());
    let f = file(&vfs, "f").await;
    write(&vfs, f, 0, b"content").await.unwrap();
    vfs.fsync(f.0, f.1, false).await.unwrap();
    // As long as it is renewed, the session outlives its term.
    tokio::time::sleep(TERM * 2).await;
    assert!(vfs.try_lookup(Ino::ROOT, &name("f")).is_some());

    world.silent.store(true, Ordering::SeqCst);
    tokio::time::sleep(TERM).await;
    assert!(vfs.try_lookup(Ino::ROOT, &name("f")).is_none());
    assert!(vfs.try_getattr(f.0, None).is_none() && vfs.try_read(f.0, f.1, 0, 10).is_none());
    let late = vfs.lookup(Ino::ROOT, &name("f")).await;
    assert_eq!(late.map(|_| ()), Err(Errno::ETIMEDOUT));
    assert_eq!(write(&vfs, f, 0, b"CONTENT").await, Err(Errno::ETIMEDOUT));
    let told = lock(&kernel.told).clone();
    assert!(told.contains(&"entry 1 \"f\"".to_owned()), "{told:?}");
    assert!(told.contains(&format!("data {} 0 0", f.0)), "{told:?}");

    world.silent.store(false, Ordering::SeqCst);
    tokio::time::sleep(TERM).await;
    // The kernel keeps what it has been given before.
    vfs.lookup(Ino::ROOT, &name("f")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(15)).await;
    let Looked::Found(e) = vfs.lookup(Ino::ROOT, &name("f")).await.unwrap() else { panic!() };
    assert!(!e.ttl.is_zero(), "as before");
    assert!(vfs.try_lookup(Ino::ROOT, &name("f")).is_some());
    assert!(read(&vfs, f, 0, 10).await.eq_ignore_ascii_case(b"content"));
}

#[tokio::test]
async fn a_hard_mount_waits_until_the_server_is_back() {
    let world = World::new(2, 16);
    world.term_ms.store(TERM.as_millis() as u32, Ordering::SeqCst);
    let vfs = world.mount().await;
    let f = file(&vfs, "f").await;
    world.silent.store(true, Ordering::SeqCst);
    tokio::time::sleep(TERM).await;
    let v = Arc::clone(&vfs);
    let waiting = tokio::spawn(async move { v.getattr(f.0, None).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!waiting.is_finished());
    world.silent.store(false, Ordering::SeqCst);
    assert_eq!(waiting.await.unwrap().unwrap().attr.ino, f.0);
}

#[tokio::test]
async fn unmounting_does_not_wait_for_a_dead_server_with_nothing_to_send() {
    let world = World::new(3, 16);
    let vfs = world.mount_with(|o| o.leave = Duration::from_secs(600)).await;
    let f = file(&vfs, "f").await;
    write(&vfs, f, 0, b"content").await.unwrap();
    vfs.syncfs().await.unwrap();
    world.silent.store(true, Ordering::SeqCst);
    world.cut();
    let left = tokio::time::timeout(Duration::from_secs(20), vfs.shutdown()).await.unwrap();
    assert_eq!((left.stored, left.ended), (Ok(()), false));
}

#[tokio::test]
async fn unmounting_waits_for_a_dead_server_as_long_as_it_was_told_to() {
    let world = World::new(4, 16);
    let vfs = world.mount_with(|o| o.leave = Duration::from_millis(300)).await;
    let f = file(&vfs, "f").await;
    world.silent.store(true, Ordering::SeqCst);
    world.cut();
    write(&vfs, f, 0, b"content").await.unwrap();
    let stored = vfs.store().await;
    assert!(
        matches!(stored, Err(NotStored::Unsent(u)) if u.files == 1 && u.bytes >= 7),
        "{stored:?}"
    );
    assert_eq!(vfs.flush(f.0, f.1).await, Ok(()), "nothing is given up by that");
    world.silent.store(false, Ordering::SeqCst);
    vfs.store().await.unwrap();
    world.silent.store(true, Ordering::SeqCst);
    world.cut();
    write(&vfs, f, 0, b"CONTENT").await.unwrap();
    let left = vfs.shutdown().await;
    assert!(matches!(left.stored, Err(NotStored::Unsent(_))) && !left.ended);
}
