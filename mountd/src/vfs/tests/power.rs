//! The metadata server loses its power, and with it what it had answered and nobody had synced.

use std::sync::Arc;

use netfs_common::attr::SetAttr;
use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::wire::meta::{NewInode, RenameMode, Request};

use super::names::hold;
use super::world::{World, file, name};
use crate::session::lock;
use crate::vfs::{Caller, Entry, Looked, Vfs};

const ROOT: Ino = Ino::ROOT;

async fn chmod(vfs: &Arc<Vfs>, ino: Ino, perm: u16) -> Result<Entry, Errno> {
    let set = SetAttr { perm: Some(perm), ..SetAttr::default() };
    vfs.setattr(ino, set, None, Caller::default()).await
}

/// Returns when there is a connection to the new server.
async fn restart(world: &World, vfs: &Arc<Vfs>) {
    world.restart_meta();
    vfs.statfs().await.unwrap();
    let Looked::Absent { .. } = vfs.lookup(ROOT, &name("none")).await.unwrap() else { panic!() };
}

#[tokio::test]
async fn lost_changes_are_told_once_and_nothing_counts_as_durable() {
    let world = World::new(1, 16);
    let vfs = world.mount().await;
    let (clean, changed) = (file(&vfs, "clean").await, file(&vfs, "changed").await);
    let root = vfs.opendir(ROOT, 0).unwrap().fh;
    vfs.fsync(clean.0, clean.1, false).await.unwrap();
    vfs.fsyncdir(ROOT, root).await.unwrap();
    chmod(&vfs, changed.0, 0o600).await.unwrap();
    vfs.make(ROOT, &name("dir"), NewInode::Dir, 0o755, 0, Caller::default()).await.unwrap();
    restart(&world, &vfs).await;

    let before = vfs.messages("sync");
    assert_eq!(vfs.fsync(clean.0, clean.1, false).await, Ok(()));
    assert_eq!(vfs.messages("sync"), before + 1, "the new server has not said that it is");
    assert_eq!(vfs.fsync(changed.0, changed.1, false).await, Err(Errno::EIO));
    assert_eq!(vfs.fsync(changed.0, changed.1, false).await, Ok(()));
    assert_eq!(vfs.fsyncdir(ROOT, root).await, Err(Errno::EIO));
    assert_eq!(vfs.fsyncdir(ROOT, root).await, Ok(()));
    assert_eq!(vfs.getattr(changed.0, None).await.unwrap().attr.perm, 0o644);
    let Looked::Absent { .. } = vfs.lookup(ROOT, &name("dir")).await.unwrap() else { panic!() };

    chmod(&vfs, changed.0, 0o640).await.unwrap();
    let before = vfs.messages("sync");
    vfs.fsync(changed.0, changed.1, false).await.unwrap();
    vfs.fsync(changed.0, changed.1, false).await.unwrap();
    assert_eq!(vfs.messages("sync"), before + 1, "it is known to be durable");
    restart(&world, &vfs).await;
    assert_eq!(vfs.fsync(changed.0, changed.1, false).await, Ok(()), "nothing was lost");
    assert_eq!(vfs.getattr(changed.0, None).await.unwrap().attr.perm, 0o640);
}

#[tokio::test]
async fn a_loss_is_told_by_a_server_that_has_failed_once_more_since() {
    let world = World::new(3, 16);
    let vfs = world.mount().await;
    let f = file(&vfs, "f").await;
    vfs.fsync(f.0, f.1, false).await.unwrap();
    chmod(&vfs, f.0, 0o600).await.unwrap();
    world.restart_meta();
    restart(&world, &vfs).await;
    assert_eq!(vfs.fsync(f.0, f.1, false).await, Err(Errno::EIO));
    assert_eq!(vfs.fsync(f.0, f.1, false).await, Ok(()));
}

#[tokio::test]
async fn late_answers_of_a_server_that_died_do_not_count() {
    let world = World::new(2, 16);
    let vfs = world.mount().await;
    let f = file(&vfs, "f").await;
    vfs.fsync(f.0, f.1, false).await.unwrap();
    chmod(&vfs, f.0, 0o600).await.unwrap();

    vfs.cache.unknown_name(&vfs.cache.table.obtain(ROOT), &name("f"));
    let held = hold(&world, |r| matches!(r, Request::Lookup { .. } | Request::Mutate(_)));
    let v = Arc::clone(&vfs);
    let looking = tokio::spawn(async move { v.lookup(ROOT, &name("f")).await });
    held.caught.notified().await;
    let v = Arc::clone(&vfs);
    let changing = tokio::spawn(async move { chmod(&v, f.0, 0o640).await });
    held.caught.notified().await;
    *lock(&world.held) = None;
    restart(&world, &vfs).await;
    held.release.notify_waiters();

    let Looked::Found(late) = looking.await.unwrap().unwrap() else { panic!() };
    assert_eq!(late.attr.perm, 0o644);
    assert_eq!(changing.await.unwrap().map(|_| ()), Err(Errno::EIO));
    assert_eq!(vfs.getattr(f.0, None).await.unwrap().attr.perm, 0o644);
}

#[tokio::test]
async fn what_was_lost_is_made_again() {
    let world = World::new(4, 16);
    lock(&world.meta).replays = true;
    let vfs = world.mount().await;
    let f = file(&vfs, "f").await;
    let root = vfs.opendir(ROOT, 0).unwrap().fh;
    vfs.fsync(f.0, f.1, false).await.unwrap();
    chmod(&vfs, f.0, 0o600).await.unwrap();
    let caller = Caller::default();
    let dir = vfs.make(ROOT, &name("dir"), NewInode::Dir, 0o755, 0, caller).await.unwrap();
    let inner = vfs.make(dir.attr.ino, &name("in"), NewInode::Dir, 0o700, 0, caller).await.unwrap();
    vfs.rename(ROOT, &name("f"), dir.attr.ino, &name("g"), RenameMode::Replace).await.unwrap();
    restart(&world, &vfs).await;

    assert_eq!(vfs.messages("replay"), 1);
    assert_eq!(vfs.fsync(f.0, f.1, false).await, Ok(()), "nothing is missing");
    assert_eq!(vfs.fsyncdir(ROOT, root).await, Ok(()));
    let found = |looked| match looked {
        Looked::Found(Entry { attr, .. }) => (attr.ino, attr.perm),
        Looked::Absent { .. } => panic!("it is missing"),
    };
    let dir = dir.attr.ino;
    assert_eq!(found(vfs.lookup(ROOT, &name("dir")).await.unwrap()), (dir, 0o755));
    assert_eq!(found(vfs.lookup(dir, &name("in")).await.unwrap()), (inner.attr.ino, 0o700));
    assert_eq!(found(vfs.lookup(dir, &name("g")).await.unwrap()), (f.0, 0o600));
    // It is on stable storage now, and the client has forgotten it.
    world.restart_meta();
    chmod(&vfs, dir, 0o711).await.unwrap();
    assert_eq!(vfs.messages("replay"), 2);
    assert_eq!(found(vfs.lookup(dir, &name("g")).await.unwrap()), (f.0, 0o600));
}
