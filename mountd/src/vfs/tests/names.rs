//! Names under races.

use std::sync::Arc;

use netfs_common::attr::SetAttr;
use netfs_common::id::Ino;
use netfs_common::wire::meta::Request;
use tokio::sync::Notify;

use super::world::{Hold, Kernel, World, file, name};
use crate::session::lock;
use crate::vfs::{Caller, Looked};

pub(super) fn hold(world: &World, which: fn(&Request) -> bool) -> Hold {
    let hold = Hold { which, caught: Arc::new(Notify::new()), release: Arc::new(Notify::new()) };
    *lock(&world.held) = Some(hold.clone());
    hold
}

#[tokio::test]
async fn a_lookup_overtaken_by_a_change_is_not_kept() {
    let world = World::new(1, 16);
    file(&world.mount().await, "f").await;
    let vfs = world.mount().await;
    let held = hold(&world, |r| matches!(r, Request::Lookup { .. }));
    let (v, n) = (Arc::clone(&vfs), name("f"));
    let looking = tokio::spawn(async move { v.lookup(Ino::ROOT, &n).await });
    held.caught.notified().await;
    *lock(&world.held) = None;
    vfs.unlink(Ino::ROOT, &name("f")).await.unwrap();
    held.release.notify_one();
    let Looked::Found(entry) = looking.await.unwrap().unwrap() else { panic!() };
    assert!(entry.ttl.is_zero(), "the kernel must not keep it either");
    assert!(matches!(vfs.try_lookup(Ino::ROOT, &name("f")), Some(Ok(Looked::Absent { .. }))));
}

#[tokio::test]
async fn of_two_answers_the_newer_one_counts() {
    let world = World::new(2, 16);
    file(&world.mount().await, "f").await;
    let vfs = world.mount().await;
    let Looked::Found(e) = vfs.lookup(Ino::ROOT, &name("f")).await.unwrap() else { panic!() };
    let held = hold(&world, |r| matches!(r, Request::Lookup { .. }));
    let v = Arc::clone(&vfs);
    vfs.cache.unknown_name(&vfs.cache.table.obtain(Ino::ROOT), &name("f"));
    let looking = tokio::spawn(async move { v.lookup(Ino::ROOT, &name("f")).await });
    held.caught.notified().await;
    *lock(&world.held) = None;
    let set = SetAttr { perm: Some(0o600), ..SetAttr::default() };
    vfs.setattr(e.attr.ino, set, None, Caller::default()).await.unwrap();
    held.release.notify_one();
    let Looked::Found(late) = looking.await.unwrap().unwrap() else { panic!() };
    assert_eq!(late.attr.perm, 0o600);
    assert_eq!(vfs.try_getattr(e.attr.ino, None).unwrap().unwrap().attr.perm, 0o600);
}

#[tokio::test]
async fn names_that_are_evicted_are_taken_back_from_the_kernel() {
    let world = World::new(4, 16);
    let vfs = world.mount_with(|o| o.cache.names = 10).await;
    let kernel = Arc::new(Kernel::default());
    vfs.set_kernel(kernel.clone());
    for i in 0..15 {
        file(&vfs, &format!("f{i}")).await;
    }
    assert!(lock(&kernel.told).contains(&"entry 1 \"f0\"".to_owned()));
    let Looked::Found(_) = vfs.lookup(Ino::ROOT, &name("f0")).await.unwrap() else { panic!() };
}
