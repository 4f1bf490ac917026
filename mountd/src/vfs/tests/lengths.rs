//! What the kernel has stored of an inode, and what it may go by.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use netfs_common::id::Ino;

use super::world::{World, file, name, write};
use crate::vfs::{Looked, Vfs};

/// After a change by another client and the two answers that the kernel must have had.
const SETTLED: Duration = Duration::from_millis(110);
const STORED: Duration = Duration::from_millis(15);

async fn kept(vfs: &Arc<Vfs>, ino: Ino) -> bool {
    !vfs.getattr(ino, None).await.unwrap().ttl.is_zero()
}

async fn past_pages(vfs: &Arc<Vfs>, ino: Ino) -> bool {
    let opened = vfs.open(ino, libc::O_RDONLY).await.unwrap();
    vfs.release(ino, opened.fh);
    opened.direct_io
}

#[tokio::test]
async fn what_the_kernel_may_not_know_the_length_of_is_read_past_its_pages() {
    let world = World::new(1, 16);
    let (a, b) = (world.mount().await, world.mount().await);
    b.company.store(true, Ordering::SeqCst);
    let f = file(&a, "f").await;
    write(&a, f, 0, b"1").await.unwrap();
    let Looked::Found(entry) = b.lookup(Ino::ROOT, &name("f")).await.unwrap() else { panic!() };
    assert!(!entry.ttl.is_zero(), "the kernel makes the inode from it");
    assert!(!past_pages(&b, f.0).await);

    write(&a, f, 1, b"2").await.unwrap();
    assert!(past_pages(&b, f.0).await);
    assert!(!kept(&b, f.0).await && past_pages(&b, f.0).await);
    tokio::time::sleep(SETTLED).await;
    assert!(!kept(&b, f.0).await && past_pages(&b, f.0).await, "it may be storing it just now");
    tokio::time::sleep(STORED).await;
    assert!(!past_pages(&b, f.0).await && kept(&b, f.0).await);

    write(&a, f, 2, b"3").await.unwrap();
    assert!(past_pages(&b, f.0).await);
    b.company.store(false, Ordering::SeqCst);
    assert!(!past_pages(&b, f.0).await, "nobody else changes it");
}

#[tokio::test]
async fn attributes_are_given_twice_before_they_are_kept() {
    let world = World::new(2, 16);
    // What is written is not reported meanwhile.
    let vfs = world.mount_with(|o| o.writeback.age = Duration::from_secs(60)).await;
    let f = file(&vfs, "f").await;
    assert!(matches!(vfs.lookup(Ino::ROOT, &name("f")).await, Ok(Looked::Found(_))));
    for round in 0..3 {
        write(&vfs, f, round, b"x").await.unwrap();
        tokio::time::sleep(STORED).await;
        assert!(!kept(&vfs, f.0).await, "the kernel has those of before");
        assert!(!kept(&vfs, f.0).await, "nobody knows whether it has stored the new ones");
        tokio::time::sleep(STORED).await;
        assert!(kept(&vfs, f.0).await);
    }
    assert!(kept(&vfs, f.0).await);
}
