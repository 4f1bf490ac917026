//! Changes whose caller was killed or has lost patience.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use netfs_common::attr::SetAttr;
use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::wire::meta::{NewInode, RenameMode, Request};

use super::names::hold;
use super::world::{Kernel, World, file, name, write};
use crate::session::lock;
use crate::vfs::{Caller, Vfs};

const ROOT: Ino = Ino::ROOT;

fn in_use(vfs: &Vfs) -> (usize, BTreeSet<Ino>) {
    (vfs.handles.len(), vfs.cache.table.referenced().into_iter().collect())
}

async fn until(done: impl Fn() -> bool) {
    let waited = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waited).await.unwrap();
}

#[tokio::test]
async fn what_timed_out_is_taken_back_from_the_kernel() {
    let world = World::new(1, 16);
    let vfs = world.mount_with(|o| o.soft = Some(Duration::from_millis(40))).await;
    let mut made = Vec::new();
    for n in ["from", "gone", "cut", "emptied", "linked"] {
        made.push(file(&vfs, n).await.0);
    }
    let kernel = Arc::new(Kernel::default());
    vfs.set_kernel(kernel.clone());
    let before = in_use(&vfs);
    let held = hold(&world, |r| matches!(r, Request::Mutate(_)));
    let caller = Caller::default();
    let late = Err(Errno::ETIMEDOUT);
    let mkdir = vfs.make(ROOT, &name("dir"), NewInode::Dir, 0o755, 0, caller).await;
    assert_eq!(mkdir.map(|_| ()), late);
    let created = vfs.create(ROOT, &name("new"), 0o644, 0, libc::O_RDWR, caller).await;
    assert_eq!(created.map(|_| ()), late);
    let moved = vfs.rename(ROOT, &name("from"), ROOT, &name("to"), RenameMode::Replace).await;
    assert_eq!(moved, late);
    assert_eq!(vfs.unlink(ROOT, &name("gone")).await, late);
    assert_eq!(vfs.link(made[4], ROOT, &name("hard")).await.map(|_| ()), late);
    let set = SetAttr { size: Some(0), ..SetAttr::default() };
    assert_eq!(vfs.setattr(made[2], set, None, caller).await.map(|_| ()), late);
    assert_eq!(vfs.open(made[3], libc::O_RDWR | libc::O_TRUNC).await.map(|_| ()), late);
    assert!(lock(&kernel.told).is_empty(), "not before the outcome");

    *lock(&world.held) = None;
    held.release.notify_waiters();
    let mut expected: BTreeSet<String> =
        ["dir", "new", "from", "to", "gone", "hard"].map(|n| format!("entry {ROOT} {n:?}")).into();
    expected.insert(format!("data {ROOT} 0 0"));
    expected.extend(made.iter().map(|ino| format!("data {ino} 0 0")));
    until(|| {
        let told: BTreeSet<String> = lock(&kernel.told).iter().cloned().collect();
        expected.is_subset(&told)
    })
    .await;
    until(|| in_use(&vfs) == before).await;
}

#[tokio::test]
async fn what_a_killed_program_has_changed_is_taken_back_from_the_kernel() {
    let world = World::new(2, 16);
    let vfs = world.mount().await;
    let kernel = Arc::new(Kernel::default());
    vfs.set_kernel(kernel.clone());
    let before = in_use(&vfs);
    let held = hold(&world, |r| matches!(r, Request::Mutate(_)));
    let v = Arc::clone(&vfs);
    let creating = tokio::spawn(async move {
        v.create(ROOT, &name("new"), 0o644, 0, libc::O_RDWR, Caller::default()).await
    });
    held.caught.notified().await;
    creating.abort();
    assert!(creating.await.unwrap_err().is_cancelled());
    *lock(&world.held) = None;
    held.release.notify_one();
    until(|| lock(&kernel.told).contains(&format!("entry {ROOT} \"new\""))).await;
    until(|| in_use(&vfs) == before).await;
    assert!(vfs.try_lookup(ROOT, &name("new")).unwrap().is_ok(), "it was made all the same");
}

#[tokio::test]
async fn what_was_heard_is_left_to_the_kernel() {
    let world = World::new(3, 16);
    let vfs = world.mount().await;
    let kernel = Arc::new(Kernel::default());
    vfs.set_kernel(kernel.clone());
    let f = file(&vfs, "f").await;
    write(&vfs, f, 0, b"x").await.unwrap();
    vfs.fsync(f.0, f.1, false).await.unwrap();
    vfs.unlink(ROOT, &name("f")).await.unwrap();
    assert!(lock(&kernel.told).is_empty(), "{:?}", lock(&kernel.told));
}

#[tokio::test]
async fn pages_of_a_mapping_do_not_undo_a_cut() {
    const WRITE_CACHE: u32 = 1;
    let world = World::new(4, 16);
    let vfs = world.mount().await;
    let f = file(&vfs, "f").await;
    write(&vfs, f, 0, &[1; 6000]).await.unwrap();
    let page = Bytes::from(vec![2; 4096]);
    for (at, size) in [(4096, 6000), (8192, 6000)] {
        let written = vfs.write(f.0, f.1, at, page.clone(), libc::O_RDWR, WRITE_CACHE).await;
        assert_eq!(written, Ok(4096));
        assert_eq!(vfs.getattr(f.0, None).await.unwrap().attr.size, size);
    }
}
