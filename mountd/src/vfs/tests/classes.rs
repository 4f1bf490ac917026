//! Directories with a number of replicas of their own, as the client meets them.

use std::time::Duration;

use netfs_common::class::{self, Class};
use netfs_common::errno::Errno;
use netfs_common::id::{GroupId, Ino, ServerId};
use netfs_common::map::Pool;
use netfs_common::wire::meta::NewInode;

use super::world::{World, name, read, write};
use crate::session::lock;
use crate::vfs::{Caller, Looked};

const SIZE: usize = 300_000;

fn user(uid: u32) -> Caller {
    Caller { uid, ..Caller::default() }
}

#[tokio::test]
async fn data_waits_for_the_groups_of_its_class_and_goes_there_and_nowhere_else() {
    let world = World::with_servers(21, 16, 3, 1);
    let vfs = world.mount_with(|o| o.cache.ahead = 0).await;
    let d = vfs.make(Ino::ROOT, &name("d"), NewInode::Dir, 0o755, 0, user(0)).await.unwrap();
    let d = d.attr.ino;
    assert_eq!(vfs.getxattr(d, class::XATTR).await, Ok(b"default".to_vec()));
    vfs.setxattr(d, class::XATTR, b"3", 0, user(0)).await.unwrap();
    assert_eq!(vfs.getxattr(d, class::XATTR).await, Ok(b"3".to_vec()));
    assert_eq!(vfs.listxattr(d).await, Ok(Vec::new()));
    let flags = libc::O_RDWR | libc::O_EXCL;
    let (entry, opened) = vfs.create(d, &name("f"), 0o644, 0, flags, user(0)).await.unwrap();
    let f = (entry.attr.ino, opened.fh);
    assert_eq!(vfs.getxattr(f.0, class::XATTR).await, Ok(b"3".to_vec()));
    let three = Class::with_replicas(3).unwrap();
    assert_eq!(Class::of(entry.attr.generation), three);

    // The map is late.
    write(&vfs, f, 0, &vec![5; SIZE]).await.unwrap();
    let sync = tokio::spawn({
        let vfs = vfs.clone();
        async move { vfs.fsync(f.0, f.1, false).await }
    });
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert!(!sync.is_finished(), "there is no place for it yet");
    {
        let mut data = lock(&world.data);
        let mut like = data.map.pools[0].clone();
        let all: Vec<_> = like.chains.iter().flat_map(|chain| chain.replicas.clone()).collect();
        let of = |id| *all.iter().find(|replica| replica.server == ServerId(id)).unwrap();
        for chain in &mut like.chains {
            chain.replicas = [1, 2, 3].map(of).into();
        }
        let first = GroupId(like.chains.len() as u32);
        data.map.pools.push(Pool { class: three, first, ..like });
        data.map.version.0 += 1;
    }
    world.push_map().await;
    let synced = tokio::time::timeout(Duration::from_secs(5), sync).await;
    assert_eq!(synced.expect("it goes on with the map").unwrap(), Ok(()));
    let chunks = SIZE.div_ceil(1 << 16);
    for disk in lock(&world.data).disks.values() {
        assert_eq!(disk.chunks(), chunks, "every server has every chunk");
    }
    // Holes are looked for and made where the chunks are.
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    vfs.fallocate(f.0, f.1, 1 << 16, 1 << 16, mode).await.unwrap();
    assert_eq!(vfs.lseek(f.0, f.1, 0, libc::SEEK_HOLE).await, Ok(1 << 16));
    let other = world.mount().await;
    let Looked::Found(found) = other.lookup(Ino::ROOT, &name("d")).await.unwrap() else { panic!() };
    let Looked::Found(file) = other.lookup(found.attr.ino, &name("f")).await.unwrap() else {
        panic!()
    };
    let fh = other.open(file.attr.ino, libc::O_RDONLY).await.unwrap().fh;
    let seen = read(&other, (file.attr.ino, fh), 0, SIZE as u32).await;
    assert!(seen.iter().enumerate().all(|(at, byte)| *byte == if at >> 16 == 1 { 0 } else { 5 }));
    assert_eq!(other.getxattr(found.attr.ino, class::XATTR).await, Ok(b"3".to_vec()));
}

#[tokio::test]
async fn only_the_owner_of_a_directory_and_root_may_set_its_class() {
    let world = World::with_servers(22, 16, 1, 1);
    let vfs = world.mount().await;
    let d = vfs.make(Ino::ROOT, &name("d"), NewInode::Dir, 0o777, 0, user(0)).await.unwrap();
    let d = d.attr.ino;
    let set = async |uid| vfs.setxattr(d, class::XATTR, b"2", 0, user(uid)).await;
    assert_eq!(set(5).await, Err(Errno::EPERM));
    assert_eq!(vfs.removexattr(d, class::XATTR, user(5)).await, Err(Errno::EPERM));
    assert_eq!(set(0).await, Ok(()));
    assert_eq!(vfs.removexattr(d, class::XATTR, user(0)).await, Ok(()));
    assert_eq!(vfs.getxattr(d, class::XATTR).await, Ok(b"default".to_vec()));
}
