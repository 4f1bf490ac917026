//! What operations may cost in messages.

use netfs_common::id::Ino;
use netfs_common::wire::lease::Lease;
use netfs_common::wire::meta::NewInode;

use super::world::{World, file, name, read, write};
use crate::vfs::{Caller, Looked, Vfs};

fn total(vfs: &Vfs) -> u64 {
    vfs.session.counters().total()
}

async fn seen_again(world: &std::sync::Arc<World>) -> (std::sync::Arc<Vfs>, Ino) {
    let vfs = world.mount().await;
    let Looked::Found(entry) = vfs.lookup(Ino::ROOT, &name("f")).await.unwrap() else { panic!() };
    (vfs, entry.attr.ino)
}

#[tokio::test]
async fn the_first_look_at_a_small_file_costs_one_message_and_all_else_none() {
    let world = World::new(1, 22);
    let vfs = world.mount().await;
    let f = file(&vfs, "f").await;
    write(&vfs, f, 0, b"content").await.unwrap();
    vfs.shutdown().await;

    let (vfs, ino) = seen_again(&world).await;
    let fh = vfs.try_open(ino, libc::O_RDONLY).unwrap().unwrap().fh;
    assert_eq!(&*vfs.try_read(ino, fh, 0, 4096).unwrap().unwrap(), b"content");
    assert!(vfs.try_getattr(ino, None).unwrap().is_ok());
    assert!(vfs.try_lookup(Ino::ROOT, &name("f")).unwrap().is_ok());
    assert_eq!(vfs.try_getxattr(ino, b"security.capability").unwrap().ok(), None);
    assert_eq!(total(&vfs), 1);
    assert!(matches!(vfs.lookup(Ino::ROOT, &name("g")).await.unwrap(), Looked::Absent { .. }));
    assert!(vfs.try_lookup(Ino::ROOT, &name("g")).is_some());
    assert_eq!(total(&vfs), 2);
}

#[tokio::test]
async fn sequential_data_costs_a_message_per_mebibyte() {
    let world = World::new(2, 22);
    let vfs = world.mount_with(|o| o.writeback.age = std::time::Duration::from_secs(5)).await;
    let f = file(&vfs, "f").await;
    let block = vec![3u8; 128 << 10];
    for i in 0..(16 * 8) {
        write(&vfs, f, i * block.len() as u64, &block).await.unwrap();
    }
    vfs.fsync(f.0, f.1, false).await.unwrap();
    assert_eq!(vfs.messages("data_write"), 16);
    // Either the last report is durable itself, or an earlier one is made so.
    assert!(vfs.messages("wrote_chunks") + vfs.messages("sync") <= 3);
    assert!(vfs.messages("data_flush") <= 3);
    let before = total(&vfs);
    vfs.fsync(f.0, f.1, false).await.unwrap();
    assert_eq!(total(&vfs), before, "nothing to do");
    vfs.shutdown().await;

    let (vfs, ino) = seen_again(&world).await;
    let fh = vfs.open(ino, libc::O_RDONLY).await.unwrap().fh;
    for i in 0..16 {
        assert_eq!(read(&vfs, (ino, fh), i << 20, 1 << 20).await, vec![3; 1 << 20]);
    }
    assert_eq!(vfs.messages("data_read"), 16);
}

#[tokio::test]
async fn a_listing_costs_a_message_per_thousand_and_fills_the_caches() {
    let world = World::new(3, 22);
    let vfs = world.mount().await;
    let caller = Caller::default();
    let dir = vfs.make(Ino::ROOT, &name("d"), NewInode::Dir, 0o755, 0, caller).await.unwrap();
    let dir = dir.attr.ino;
    for i in 0..5000 {
        let n = name(&format!("f{i}"));
        assert!(vfs.try_lookup(dir, &n).is_some(), "a new directory is known to be empty");
        vfs.make(dir, &n, NewInode::File, 0o644, 0, caller).await.unwrap();
    }
    assert_eq!(vfs.messages("lookup"), 0);
    vfs.shutdown().await;

    for _ in 0..2 {
        let vfs = world.mount().await;
        vfs.lookup(Ino::ROOT, &name("d")).await.unwrap();
        let fh = vfs.opendir(dir, 0).unwrap().fh;
        let (mut after, mut names) = (0, Vec::new());
        loop {
            let mut items = vfs.readdir(dir, fh, after, 70).await.unwrap();
            // As the kernel does, whose buffer is full before.
            items.truncate(53);
            let Some(last) = items.last() else { break };
            after = last.cookie;
            assert!(items.iter().all(|i| i.entry.is_some() || i.name.starts_with(b".")));
            names.extend(items.into_iter().map(|i| i.name));
        }
        assert_eq!(names.len(), 5002);
        assert_eq!(names[..2], [b".".to_vec(), b"..".to_vec()]);
        assert_eq!(vfs.messages("readdir"), 5);
        for i in 0..5000 {
            assert!(vfs.try_lookup(dir, &name(&format!("f{i}"))).unwrap().is_ok());
        }
        assert_eq!(total(&vfs), 6, "attributes came with the listing");
        vfs.shutdown().await;
    }
}

#[tokio::test]
async fn a_new_small_file_costs_two_messages() {
    let world = World::new(4, 22);
    let vfs = world.mount().await;
    let caller = Caller::default();
    let dir = vfs.make(Ino::ROOT, &name("d"), NewInode::Dir, 0o755, 0, caller).await.unwrap();
    let before = total(&vfs);
    for i in 0..50 {
        let n = name(&format!("f{i}"));
        vfs.lookup(dir.attr.ino, &n).await.unwrap();
        let made = vfs.create(dir.attr.ino, &n, 0o644, 0, libc::O_WRONLY, caller).await;
        let (entry, opened) = made.unwrap();
        let f = (entry.attr.ino, opened.fh);
        write(&vfs, f, 0, &[i; 4096]).await.unwrap();
        vfs.flush(f.0, f.1).await.unwrap();
        vfs.release(f.0, f.1);
    }
    vfs.syncfs().await.unwrap();
    let cost = total(&vfs) - before - vfs.messages("statfs");
    // One to make it, one for its data; one that makes everything durable.
    assert_eq!(cost, 101);
}

#[tokio::test]
async fn a_second_client_that_does_nothing_costs_nothing() {
    let world = World::new(5, 16);
    let vfs = world.mount().await;
    let f = file(&vfs, "f").await;
    write(&vfs, f, 0, b"content").await.unwrap();
    vfs.fsync(f.0, f.1, false).await.unwrap();
    let other = world.mount().await;
    other.lookup(Ino::ROOT, &name("f")).await.unwrap();
    // Looks of both cost nothing from here on.
    for client in [&vfs, &other] {
        client.lookup(Ino::ROOT, &name("f")).await.unwrap();
        let fh = client.open(f.0, libc::O_RDONLY).await.unwrap().fh;
        read(client, (f.0, fh), 0, 100).await;
        let dir = client.opendir(Ino::ROOT, 0).unwrap().fh;
        client.readdir(Ino::ROOT, dir, 0, 100).await.unwrap();
    }
    let (before, recalls) = ((total(&vfs), total(&other)), world.recalls());
    for client in [&vfs, &other] {
        assert!(client.try_lookup(Ino::ROOT, &name("f")).is_some());
        assert!(client.try_getattr(f.0, None).is_some());
        let fh = client.try_open(f.0, libc::O_RDONLY).unwrap().unwrap().fh;
        assert_eq!(&*client.try_read(f.0, fh, 0, 100).unwrap().unwrap(), b"content");
        let dir = client.opendir(Ino::ROOT, 0).unwrap();
        assert!(dir.cache_dir && dir.keep_cache, "the kernel has the listing");
    }
    assert_eq!((total(&vfs), total(&other)), before);
    assert_eq!(world.recalls(), recalls);
}

#[tokio::test]
async fn what_another_holds_for_writing_costs_a_call_and_a_recall() {
    let world = World::new(6, 16);
    let (one, two) = (world.mount().await, world.mount().await);
    let f = file(&one, "f").await;
    two.lookup(Ino::ROOT, &name("none")).await.unwrap();
    for i in 0..5u8 {
        write(&one, f, 0, &[i; 100]).await.unwrap();
        assert_eq!(world.lease(&one, f.0), Some(Lease::Write));
        let (before, recalls) = (total(&two), world.recalls());
        if i == 0 {
            two.lookup(Ino::ROOT, &name("f")).await.unwrap();
        }
        let fh = two.open(f.0, libc::O_RDONLY).await.unwrap().fh;
        assert_eq!(read(&two, (f.0, fh), 0, 100).await, [i; 100]);
        assert_eq!((total(&two) - before, world.recalls() - recalls), (1, 1), "round {i}");
    }
}

#[tokio::test]
async fn who_is_alone_again_has_everything_as_before() {
    let world = World::new(7, 16);
    let one = world.mount().await;
    let f = file(&one, "f").await;
    let two = world.mount().await;
    two.lookup(Ino::ROOT, &name("f")).await.unwrap();
    let fh = two.open(f.0, libc::O_RDWR).await.unwrap().fh;
    write(&two, (f.0, fh), 0, b"two").await.unwrap();
    two.shutdown().await;
    write(&one, f, 3, b"one").await.unwrap();
    assert_eq!(read(&one, f, 0, 10).await, b"twoone");
    assert_eq!(world.lease(&one, f.0), Some(Lease::Write));
    let (before, recalls) = (total(&one), world.recalls());
    for i in 0..10u8 {
        assert_eq!(one.try_write(f.0, f.1, 0, &vec![i; 10].into(), libc::O_RDWR, 0), Some(Ok(10)));
        assert!(one.try_getattr(f.0, None).is_some());
    }
    assert_eq!((total(&one), world.recalls()), (before, recalls));
}
