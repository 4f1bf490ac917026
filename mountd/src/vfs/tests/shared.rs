//! A volume that several clients use.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use netfs_common::attr::SetAttr;
use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::wire::meta::Push;

use super::world::{Kernel, World, file, name, read, write};
use crate::session::lock;
use crate::vfs::{Caller, Vfs};

const KILL_SUIDGID: u32 = 4;

#[tokio::test]
async fn a_write_takes_set_id_bits_and_capabilities() {
    let world = World::new(1, 16);
    world.exclusive.store(false, Ordering::SeqCst);
    let vfs = world.mount().await;
    let f = file(&vfs, "f").await;
    let chmod = async |perm: u16| {
        let set = SetAttr { perm: Some(perm), ..SetAttr::default() };
        vfs.setattr(f.0, set, None, Caller::default()).await.unwrap();
    };
    let write_as = async |flags: u32| {
        let data = Bytes::from_static(b"x");
        vfs.write(f.0, f.1, 0, data, libc::O_RDWR, flags).await.unwrap();
        vfs.getattr(f.0, None).await.unwrap().attr.perm
    };
    chmod(0o6777).await;
    assert_eq!(write_as(0).await, 0o6777, "the kernel says whether the writer may keep them");
    assert_eq!(write_as(KILL_SUIDGID).await, 0o777);
    chmod(0o6767).await;
    assert_eq!(write_as(KILL_SUIDGID).await, 0o2767);
    let capability = b"security.capability";
    vfs.setxattr(f.0, capability, b"cap", 0, Caller::default()).await.unwrap();
    write_as(0).await;
    assert_eq!(vfs.getxattr(f.0, capability).await, Err(Errno::ENODATA));
}

/// A file that was opened before the volume was shared, and its pages read since; and another
/// client.
async fn opened_before(world: &Arc<World>) -> (Arc<Vfs>, Arc<Kernel>, (Ino, u64), Arc<Vfs>) {
    let vfs = world.mount().await;
    let kernel = Arc::new(Kernel::default());
    vfs.set_kernel(kernel.clone());
    let f = file(&vfs, "f").await;
    write(&vfs, f, 0, b"before").await.unwrap();
    world.push(Push::Share).await;
    world.exclusive.store(false, Ordering::SeqCst);
    let other = world.mount().await;
    assert_eq!(read(&vfs, f, 0, 100).await, b"before");
    vfs.getattr(f.0, None).await.unwrap();
    lock(&kernel.told).clear();
    (vfs, kernel, f, other)
}

fn dropped(kernel: &Kernel, ino: Ino) -> bool {
    lock(&kernel.told).contains(&format!("data {ino} 0 0"))
}

async fn change(other: &Arc<Vfs>) {
    other.lookup(Ino::ROOT, &name("f")).await.unwrap();
    let ino = Ino(2);
    let fh = other.open(ino, libc::O_RDWR).await.unwrap().fh;
    write(other, (ino, fh), 0, b"after").await.unwrap();
}

#[tokio::test]
async fn pages_kept_from_before_are_dropped_by_a_stat_that_shows_a_change() {
    let world = World::new(2, 16);
    let (vfs, kernel, f, other) = opened_before(&world).await;
    vfs.getattr(f.0, None).await.unwrap();
    assert!(!dropped(&kernel, f.0), "nothing has changed");
    change(&other).await;
    vfs.getattr(f.0, None).await.unwrap();
    assert!(dropped(&kernel, f.0));
    assert_eq!(read(&vfs, f, 0, 100).await, b"aftere");
}

#[tokio::test]
async fn pages_kept_from_before_are_dropped_though_nobody_asks() {
    let world = World::new(3, 16);
    let (_vfs, kernel, f, other) = opened_before(&world).await;
    change(&other).await;
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert!(dropped(&kernel, f.0));
}

#[tokio::test]
async fn a_read_overtaken_by_a_change_leaves_no_pages() {
    let world = World::new(4, 16);
    let (vfs, kernel, f, other) = opened_before(&world).await;
    change(&other).await;
    // The read itself meets the new version.
    assert_eq!(read(&vfs, f, 0, 100).await, b"aftere");
    assert!(dropped(&kernel, f.0));
}
