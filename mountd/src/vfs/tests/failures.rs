//! Lost connections, restarted servers, full disks.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use netfs_common::attr::SetAttr;
use netfs_common::errno::Errno;
use netfs_common::id::{ChunkId, Ino};
use netfs_common::wire::data::Op;
use netfs_common::wire::meta::NewInode;

use super::world::{Weather, World, file, name, read, session, write};
use crate::session::lock;
use crate::vfs::{Caller, Looked};

#[tokio::test]
async fn changes_are_applied_once_over_a_network_that_loses_calls() {
    let world = World::new(1, 16);
    let vfs = world.mount().await;
    world.weather(Weather { delay_ms: 1, loss: 6 });
    for i in 0..60 {
        let n = name(&format!("d{i}"));
        // A second application would fail with `EEXIST`, and `ENOENT` below.
        vfs.make(Ino::ROOT, &n, NewInode::Dir, 0o755, 0, Caller::default()).await.unwrap();
        if i % 2 == 0 {
            vfs.rmdir(Ino::ROOT, &n).await.unwrap();
        }
    }
    world.weather(Weather::default());
    assert_eq!(lock(&world.meta).inodes[&Ino::ROOT].attr.nlink, 2);
    let kept = lock(&world.meta).sessions.values().map(|s| s.len()).sum::<usize>();
    assert!(kept <= 2, "answered changes are forgotten by the server, {kept} are not");
}

#[tokio::test]
async fn a_restarted_data_server_gets_again_what_it_lost() {
    let world = World::new(2, 16);
    let vfs = world.mount().await;
    let f = file(&vfs, "f").await;
    write(&vfs, f, 0, &[1; 100_000]).await.unwrap();
    vfs.fsync(f.0, f.1, false).await.unwrap();
    for round in 0..5u8 {
        let at = u64::from(round) * 30_000;
        write(&vfs, f, at, &[round + 2; 50_000]).await.unwrap();
        // Long enough to be acknowledged, too short to be flushed.
        tokio::time::sleep(Duration::from_millis(60)).await;
        assert_eq!(vfs.writeback.pending(), 0);
        world.restart_data();
        assert_eq!(read(&vfs, f, at, 50_000).await, vec![round + 2; 50_000]);
        vfs.fsync(f.0, f.1, false).await.unwrap();
        world.restart_data();
        assert_eq!(read(&vfs, f, at, 50_000).await, vec![round + 2; 50_000]);
    }
    vfs.shutdown().await;
    let vfs = world.mount().await;
    let Looked::Found(e) = vfs.lookup(Ino::ROOT, &name("f")).await.unwrap() else { panic!() };
    let fh = vfs.open(e.attr.ino, libc::O_RDONLY).await.unwrap().fh;
    assert_eq!(read(&vfs, (f.0, fh), 0, 30_001).await[29_999..], [2, 3]);
    assert_eq!(e.attr.size, 170_000);
}

#[tokio::test]
async fn a_failed_write_is_told_once_to_each_open_file() {
    let world = World::new(3, 16);
    let vfs = world.mount().await;
    let f = file(&vfs, "f").await;
    let second = vfs.open(f.0, libc::O_RDWR).await.unwrap().fh;
    lock(&world.data).refuse = Some(Errno::ENOSPC);
    write(&vfs, f, 0, &[1; 100_000]).await.unwrap();
    assert_eq!(vfs.fsync(f.0, f.1, false).await, Err(Errno::ENOSPC));
    assert_eq!(vfs.flush(f.0, f.1).await, Ok(()));
    lock(&world.data).refuse = None;
    assert_eq!(write(&vfs, (f.0, second), 0, &[2; 10]).await, Err(Errno::ENOSPC));
    assert_eq!(write(&vfs, (f.0, second), 0, &[2; 10]).await, Ok(10));
    vfs.fsync(f.0, f.1, false).await.unwrap();
    let late = vfs.open(f.0, libc::O_RDWR).await.unwrap().fh;
    assert_eq!(vfs.flush(f.0, late).await, Ok(()));
    assert_eq!(vfs.getattr(f.0, None).await.unwrap().attr.size, 10);
}

#[tokio::test]
async fn a_full_volume_is_told_to_the_program_that_fills_it() {
    let world = World::new(4, 16);
    let vfs = world.mount().await;
    let f = file(&vfs, "f").await;
    lock(&world.meta).free = 0;
    lock(&world.data).refuse = Some(Errno::ENOSPC);
    vfs.statfs().await.unwrap();
    assert_eq!(write(&vfs, f, 0, &[1; 100_000]).await, Err(Errno::ENOSPC));
    assert_eq!(vfs.flush(f.0, f.1).await, Ok(()), "told already");
}

#[tokio::test]
async fn an_ended_session_is_told_and_the_next_one_works() {
    let world = World::new(5, 16);
    let vfs = world.mount_with(|o| o.writeback.age = Duration::from_secs(60)).await;
    let f = file(&vfs, "f").await;
    let clean = file(&vfs, "clean").await;
    write(&vfs, f, 0, &[1; 100]).await.unwrap();
    world.end_sessions();
    // A question, which may be repeated in any session.
    vfs.lookup(Ino::ROOT, &name("none")).await.unwrap();
    assert_eq!(vfs.fsync(f.0, f.1, false).await, Err(Errno::EIO));
    assert_eq!(vfs.fsync(f.0, f.1, false).await, Ok(()));
    assert_eq!(vfs.fsync(clean.0, clean.1, false).await, Ok(()));
    assert_eq!(read(&vfs, f, 0, 100).await, b"");
    write(&vfs, f, 0, b"again").await.unwrap();
    vfs.fsync(f.0, f.1, false).await.unwrap();
}

#[tokio::test]
async fn a_session_ended_behind_the_client_s_back_is_noticed_by_the_next_call() {
    let world = World::new(6, 16);
    let vfs = world.mount().await;
    file(&vfs, "f").await;
    world.end_sessions();
    let outcome = vfs.make(Ino::ROOT, &name("d"), NewInode::Dir, 0o755, 0, Caller::default()).await;
    // It may or may not have been applied; unless something else has noticed the end before it was sent.
    if let Err(e) = outcome {
        assert_eq!(e, Errno::EIO);
    }
    vfs.make(Ino::ROOT, &name("e"), NewInode::Dir, 0o755, 0, Caller::default()).await.unwrap();
}

#[tokio::test]
async fn a_soft_mount_gives_up_and_a_mount_that_went_down_refuses() {
    let world = World::new(7, 16);
    let vfs = world.mount_with(|o| o.soft = Some(Duration::from_millis(80))).await;
    let f = file(&vfs, "f").await;
    world.weather(Weather { delay_ms: 2, loss: 1 });
    let stat = vfs.lookup(Ino::ROOT, &name("g")).await;
    assert_eq!(stat.map(|_| ()), Err(Errno::ETIMEDOUT));
    world.weather(Weather::default());
    write(&vfs, f, 0, b"lost").await.unwrap();
    vfs.going_down(false).await;
    assert_eq!(vfs.getattr(f.0, None).await.map(|_| ()), Err(Errno::EIO));
    assert_eq!(vfs.fsync(f.0, f.1, false).await, Err(Errno::EIO));
    vfs.release(f.0, f.1);
    world.end_session(session(&vfs));
    let again = world.mount().await;
    assert_eq!(again.getattr(f.0, None).await.unwrap().attr.size, 0);
}

#[tokio::test]
async fn writers_wait_for_room_and_go_on() {
    let world = World::new(8, 16);
    let vfs = world
        .mount_with(|o| {
            o.writeback.dirty = 300_000;
            o.writeback.kept = 400_000;
            o.writeback.age = Duration::from_secs(60);
        })
        .await;
    world.weather(Weather { delay_ms: 1, loss: 0 });
    let f = file(&vfs, "f").await;
    for i in 0..100u64 {
        write(&vfs, f, i * 20_000, &[i as u8; 20_000]).await.unwrap();
        assert!(vfs.writeback.pending() < 300_000 + 25_000);
    }
    vfs.fsync(f.0, f.1, false).await.unwrap();
    assert_eq!(read(&vfs, f, 99 * 20_000, 10).await, [99; 10]);
    assert_eq!(vfs.writeback.pending(), 0);
}

/// How a file grows over what lies beyond its end.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Growth {
    Write,
    Truncate,
    Copy,
}

#[tokio::test]
async fn what_a_dead_client_left_unreported_never_shows() {
    for (length, growth) in [
        (10, Growth::Write),
        (10, Growth::Truncate),
        (10, Growth::Copy),
        (70_000, Growth::Write),
        (70_000, Growth::Truncate),
        (70_000, Growth::Copy),
    ] {
        let world = World::new(9, 16);
        let vfs = world.mount().await;
        let f = file(&vfs, "f").await;
        write(&vfs, f, 0, &vec![1; length]).await.unwrap();
        let from = file(&vfs, "from").await;
        write(&vfs, from, 0, &[3; 200_000]).await.unwrap();
        vfs.shutdown().await;
        assert_eq!(vfs.session.counters().get("cut_tail"), 0, "nobody else can have written");
        // Behind the end, and in the next chunk.
        let generation = lock(&world.meta).inodes[&f.0].attr.generation;
        for at in [80_000u64, 140_000] {
            let chunk = ChunkId { ino: f.0, generation, index: at >> 16 };
            let left = Op::Write { chunk, offset: at & 0xffff };
            lock(&world.data).call(left, &Bytes::from_static(&[9; 1000]));
        }
        let vfs = world.mount().await;
        let Looked::Found(e) = vfs.lookup(Ino::ROOT, &name("f")).await.unwrap() else { panic!() };
        assert_eq!(e.attr.size, length as u64);
        let f = (f.0, vfs.open(f.0, libc::O_RDWR).await.unwrap().fh);
        match growth {
            Growth::Write => {
                write(&vfs, f, 180_000, &[2; 10]).await.unwrap();
            }
            Growth::Truncate => {
                let set = SetAttr { size: Some(180_010), ..SetAttr::default() };
                vfs.setattr(f.0, set, None, Caller::default()).await.unwrap();
                // An inline file stays inline until then.
                write(&vfs, f, 100_000, &[2; 10]).await.unwrap();
            }
            Growth::Copy => {
                let Looked::Found(_) = vfs.lookup(Ino::ROOT, &name("from")).await.unwrap() else {
                    panic!()
                };
                let source = vfs.open(from.0, libc::O_RDONLY).await.unwrap().fh;
                let copied = vfs.copy_file_range(from.0, source, 0, f.0, f.1, 180_000, 10).await;
                assert_eq!(copied, Ok(10));
            }
        }
        vfs.fsync(f.0, f.1, false).await.unwrap();
        let seen = read(&vfs, f, 0, 200_000).await;
        assert_eq!(seen.len(), 180_010, "{length} {growth:?}");
        assert_eq!(seen.iter().filter(|b| **b == 9).count(), 0, "{length} {growth:?}");
        assert_eq!(seen.iter().filter(|b| **b == 1).count(), length);
        write(&vfs, f, 300_000, &[2; 10]).await.unwrap();
        vfs.fsync(f.0, f.1, false).await.unwrap();
        assert_eq!(
            vfs.session.counters().get("cut_tail"),
            1,
            "once is enough: {length} {growth:?}"
        );
    }
}

/// Waits a random part of the time that a few calls take, then restarts the data server.
async fn restart_soon(world: &World) {
    let pause = lock(&world.random).below(40_000);
    tokio::time::sleep(Duration::from_micros(pause)).await;
    world.restart_data();
}

#[tokio::test]
async fn a_restart_during_a_cut_brings_nothing_back() {
    for seed in 0..60 {
        let world = World::new(seed, 16);
        let vfs = world.mount().await;
        let f = file(&vfs, "f").await;
        write(&vfs, f, 0, &[1; 70_000]).await.unwrap();
        vfs.fsync(f.0, f.1, false).await.unwrap();
        world.weather(Weather { delay_ms: 5, loss: 0 });
        write(&vfs, f, 0, &[2; 700_000]).await.unwrap();
        vfs.writeback.kick(&vfs.cache.table.obtain(f.0));
        let size = if seed % 2 == 0 { 0 } else { 4096 };
        let set = SetAttr { size: Some(size), ..SetAttr::default() };
        let (cut, ()) =
            tokio::join!(vfs.setattr(f.0, set, None, Caller::default()), restart_soon(&world),);
        assert_eq!(cut.unwrap().attr.size, size, "seed {seed}");
        world.weather(Weather::default());
        tokio::time::sleep(Duration::from_millis(40)).await;
        vfs.fsync(f.0, f.1, false).await.unwrap();
        assert_eq!(vfs.getattr(f.0, None).await.unwrap().attr.size, size, "seed {seed}");
        write(&vfs, f, 300_000, b"x").await.unwrap();
        vfs.fsync(f.0, f.1, false).await.unwrap();
        let seen = read(&vfs, f, size, 300_001).await;
        assert!(seen[..seen.len() - 1].iter().all(|b| *b == 0), "seed {seed}");
    }
}

#[tokio::test]
async fn a_restart_during_a_copy_neither_loses_nor_undoes_it() {
    for seed in 0..60 {
        let world = World::new(seed, 16);
        let vfs = world.mount().await;
        let (from, to) = (file(&vfs, "from").await, file(&vfs, "to").await);
        write(&vfs, from, 0, &[1; 70_000]).await.unwrap();
        write(&vfs, to, 0, &[2; 300_000]).await.unwrap();
        vfs.fsync(from.0, from.1, false).await.unwrap();
        vfs.fsync(to.0, to.1, false).await.unwrap();
        world.weather(Weather { delay_ms: 5, loss: 0 });
        write(&vfs, from, 0, &[3; 200_000]).await.unwrap();
        write(&vfs, to, 0, &[4; 300_000]).await.unwrap();
        let (copied, ()) = tokio::join!(
            vfs.copy_file_range(from.0, from.1, 0, to.0, to.1, 0, 200_000),
            restart_soon(&world),
        );
        assert_eq!(copied, Ok(200_000), "seed {seed}");
        world.weather(Weather::default());
        tokio::time::sleep(Duration::from_millis(40)).await;
        vfs.fsync(to.0, to.1, false).await.unwrap();
        let seen = read(&vfs, to, 0, 300_000).await;
        assert!(seen[..200_000].iter().all(|b| *b == 3), "seed {seed}");
        assert!(seen[200_000..].iter().all(|b| *b == 4), "seed {seed}");
    }
}

#[tokio::test]
async fn what_is_lost_with_a_session_is_not_sent_in_the_next_one() {
    let world = World::new(5, 16);
    let vfs = world.mount_with(|o| o.writeback.age = Duration::from_secs(60)).await;
    let f = file(&vfs, "f").await;
    write(&vfs, f, 0, b"old").await.unwrap();
    vfs.fsync(f.0, f.1, false).await.unwrap();
    write(&vfs, f, 0, b"new").await.unwrap();
    world.weather(Weather { delay_ms: 200, loss: 0 });
    world.end_sessions();
    while vfs.session.connected() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Made up while there is no connection, to be sent when there is one again.
    assert_eq!(vfs.fsync(f.0, f.1, false).await, Err(Errno::EIO));
    world.weather(Weather::default());
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(lock(&world.meta).inodes[&f.0].inline, b"old");
}

#[tokio::test]
async fn another_file_system_under_the_same_name_is_not_taken_for_the_mounted_one() {
    let world = World::new(9, 16);
    let vfs = world.mount().await;
    let f = file(&vfs, "f").await;
    write(&vfs, f, 0, &[1; 100_000]).await.unwrap();
    vfs.fsync(f.0, f.1, false).await.unwrap();
    let before = *vfs.session.id().borrow();
    world.volume.store(8, Ordering::SeqCst);
    world.restart_meta();
    write(&vfs, f, 0, &[2; 100_000]).await.unwrap();
    let synced = vfs.fsync(f.0, f.1, false);
    tokio::pin!(synced);
    // Long enough for many attempts.
    let waits = tokio::time::timeout(Duration::from_millis(1500), &mut synced).await;
    assert!(waits.is_err(), "{waits:?}");
    world.volume.store(7, Ordering::SeqCst);
    assert_eq!(synced.await, Ok(()));
    assert_eq!(*vfs.session.id().borrow(), before, "nothing was lost with it");
    assert!(read(&vfs, f, 0, 100_000).await.iter().all(|b| *b == 2));
}
