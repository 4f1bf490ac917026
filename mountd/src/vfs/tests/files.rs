//! Contents of files.

use bytes::Bytes;
use netfs_common::attr::{SetAttr, SetTime, Timestamp};
use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::wire::meta::RenameMode;

use super::world::{World, file, name, read, write};
use crate::vfs::{Caller, Looked};

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

#[tokio::test]
async fn what_is_written_is_read_before_and_after_it_was_sent() {
    let world = World::new(1, 16);
    let vfs = world.mount().await;
    let f = file(&vfs, "f").await;
    let data: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
    for (i, part) in data.chunks(1000).enumerate() {
        write(&vfs, f, i as u64 * 1000, part).await.unwrap();
    }
    assert_eq!(read(&vfs, f, 0, 400_000).await, data);
    assert_eq!(vfs.getattr(f.0, None).await.unwrap().attr.size, 300_000);
    vfs.fsync(f.0, f.1, false).await.unwrap();
    assert_eq!(read(&vfs, f, 12_345, 100_000).await, data[12_345..112_345]);
    vfs.shutdown().await;

    let again = world.mount().await;
    let Looked::Found(entry) = again.lookup(Ino::ROOT, &name("f")).await.unwrap() else {
        panic!("the file is gone")
    };
    let fh = again.open(entry.attr.ino, libc::O_RDONLY).await.unwrap().fh;
    assert_eq!(read(&again, (f.0, fh), 0, 400_000).await, data);
    assert_eq!(entry.attr.allocated, 300_000);
}

#[tokio::test]
async fn a_small_file_stays_in_its_inode_until_it_outgrows_it() {
    let world = World::new(2, 16);
    let vfs = world.mount().await;
    let f = file(&vfs, "f").await;
    write(&vfs, f, 0, &[1; 3000]).await.unwrap();
    vfs.fsync(f.0, f.1, false).await.unwrap();
    assert_eq!(vfs.messages("data_write"), 0);
    assert_eq!(vfs.messages("write_inline"), 1);
    write(&vfs, f, 10_000, &[2; 100]).await.unwrap();
    vfs.fsync(f.0, f.1, false).await.unwrap();
    let attr = vfs.getattr(f.0, None).await.unwrap().attr;
    assert!(!attr.inline);
    let mut expected = vec![0; 10_100];
    expected[..3000].fill(1);
    expected[10_000..].fill(2);
    assert_eq!(read(&vfs, f, 0, 20_000).await, expected);
    assert_eq!(vfs.lseek(f.0, f.1, 3000, libc::SEEK_DATA).await, Ok(3000));
    assert_eq!(vfs.lseek(f.0, f.1, 0, libc::SEEK_HOLE).await, Ok(4096));
    assert_eq!(vfs.lseek(f.0, f.1, 4096, libc::SEEK_DATA).await, Ok(8192));
}

#[tokio::test]
async fn holes_are_found_in_buffers_and_at_servers() {
    let world = World::new(3, 16);
    let vfs = world.mount().await;
    let f = file(&vfs, "f").await;
    write(&vfs, f, 100_000, &[1; 5000]).await.unwrap();
    for synced in [false, true] {
        if synced {
            vfs.fsync(f.0, f.1, false).await.unwrap();
        }
        assert_eq!(vfs.lseek(f.0, f.1, 0, libc::SEEK_DATA).await, Ok(98_304));
        assert_eq!(vfs.lseek(f.0, f.1, 0, libc::SEEK_HOLE).await, Ok(0));
        assert_eq!(vfs.lseek(f.0, f.1, 101_000, libc::SEEK_HOLE).await, Ok(105_000));
        assert_eq!(vfs.lseek(f.0, f.1, 105_000, libc::SEEK_DATA).await, Err(Errno::ENXIO));
    }
    vfs.fallocate(f.0, f.1, 98_304, 4096, PUNCH).await.unwrap();
    for synced in [false, true] {
        if synced {
            vfs.fsync(f.0, f.1, false).await.unwrap();
        }
        assert_eq!(vfs.lseek(f.0, f.1, 100_500, libc::SEEK_HOLE).await, Ok(100_500));
        assert_eq!(vfs.lseek(f.0, f.1, 100_500, libc::SEEK_DATA).await, Ok(102_400));
        assert_eq!(read(&vfs, f, 102_398, 3).await, [0, 0, 1]);
    }
}

#[tokio::test]
async fn allocation_keeps_its_rules() {
    let world = World::new(4, 16);
    let vfs = world.mount().await;
    let f = file(&vfs, "f").await;
    let size = async || vfs.getattr(f.0, None).await.unwrap().attr.size;
    vfs.fallocate(f.0, f.1, 0, 5000, libc::FALLOC_FL_KEEP_SIZE).await.unwrap();
    assert_eq!(size().await, 0);
    vfs.fallocate(f.0, f.1, 0, 5000, 0).await.unwrap();
    assert_eq!(size().await, 5000);
    write(&vfs, f, 0, &[7; 5000]).await.unwrap();
    let zero = libc::FALLOC_FL_ZERO_RANGE;
    vfs.fallocate(f.0, f.1, 1000, 9000, zero | libc::FALLOC_FL_KEEP_SIZE).await.unwrap();
    assert_eq!(size().await, 5000);
    vfs.fallocate(f.0, f.1, 900, 9000, zero).await.unwrap();
    assert_eq!(size().await, 9900);
    assert_eq!(read(&vfs, f, 899, 2).await, [7, 0]);
    let collapse = vfs.fallocate(f.0, f.1, 0, 4096, libc::FALLOC_FL_COLLAPSE_RANGE).await;
    assert_eq!(collapse, Err(Errno::EOPNOTSUPP));
    assert_eq!(vfs.fallocate(f.0, f.1, 0, 1 << 50, 0).await, Err(Errno::ENOSPC));
    assert_eq!(vfs.fallocate(f.0, f.1, i64::MAX as u64, 1, 0).await, Err(Errno::EFBIG));
}

#[tokio::test]
async fn a_cut_leaves_nothing_behind() {
    let world = World::new(5, 16);
    let vfs = world.mount().await;
    let f = file(&vfs, "f").await;
    write(&vfs, f, 0, &[9; 200_000]).await.unwrap();
    let set = |size| SetAttr { size: Some(size), ..SetAttr::default() };
    let attr = vfs.setattr(f.0, set(70_000), None, Caller::default()).await.unwrap().attr;
    assert_eq!(attr.size, 70_000);
    vfs.setattr(f.0, set(150_000), None, Caller::default()).await.unwrap();
    vfs.fsync(f.0, f.1, false).await.unwrap();
    let all = read(&vfs, f, 0, 200_000).await;
    assert_eq!(all.len(), 150_000);
    assert!(all[..70_000].iter().all(|b| *b == 9) && all[70_000..].iter().all(|b| *b == 0));
    vfs.setattr(f.0, set(0), None, Caller::default()).await.unwrap();
    write(&vfs, f, 10, b"x").await.unwrap();
    assert_eq!(read(&vfs, f, 0, 100).await, b"\0\0\0\0\0\0\0\0\0\0x");
}

#[tokio::test]
async fn times_of_writes_show_at_once_and_stay_as_they_were_shown() {
    let world = World::new(6, 16);
    let vfs = world.mount().await;
    let f = file(&vfs, "f").await;
    write(&vfs, f, 0, &[1; 100_000]).await.unwrap();
    let before = vfs.getattr(f.0, None).await.unwrap().attr;
    vfs.fsync(f.0, f.1, false).await.unwrap();
    let after = vfs.getattr(f.0, None).await.unwrap().attr;
    assert_eq!((before.mtime, before.ctime), (after.mtime, after.ctime));

    write(&vfs, f, 0, &[2; 10]).await.unwrap();
    let old = Timestamp { secs: 1000, nanos: 5 };
    let set = SetAttr { mtime: Some(SetTime::To(old)), ..SetAttr::default() };
    vfs.setattr(f.0, set, None, Caller::default()).await.unwrap();
    vfs.fsync(f.0, f.1, false).await.unwrap();
    assert_eq!(vfs.getattr(f.0, None).await.unwrap().attr.mtime, old);
}

#[tokio::test]
async fn appends_land_at_the_end_whatever_the_kernel_guessed() {
    let world = World::new(7, 16);
    let vfs = world.mount().await;
    let kernel = std::sync::Arc::new(super::world::Kernel::default());
    vfs.set_kernel(kernel.clone());
    let f = file(&vfs, "f").await;
    write(&vfs, f, 0, b"hello").await.unwrap();
    let flags = libc::O_WRONLY | libc::O_APPEND;
    vfs.write(f.0, f.1, 0, Bytes::from_static(b" world"), flags, 0).await.unwrap();
    assert_eq!(read(&vfs, f, 0, 100).await, b"hello world");
    let told = crate::session::lock(&kernel.told).clone();
    assert!(told.iter().any(|t| t == "data 2 0 0"), "{told:?}");
}

#[tokio::test]
async fn holes_cost_messages_by_the_data_and_not_by_their_length() {
    const LARGE: u64 = 16 << 40;
    let world = World::new(11, 16);
    let vfs = world.mount().await;
    let f = file(&vfs, "f").await;
    let size = i64::MAX as u64;
    let set = SetAttr { size: Some(size), ..SetAttr::default() };
    vfs.setattr(f.0, set, Some(f.1), Caller::default()).await.unwrap();
    let seek = async |at: u64, whence| vfs.lseek(f.0, f.1, at as i64, whence).await;
    assert_eq!(seek(0, libc::SEEK_DATA).await, Err(Errno::ENXIO));
    write(&vfs, f, LARGE + 1, b"x").await.unwrap();
    for at in [5, 1 << 30, LARGE - 1, LARGE + (1 << 30)] {
        write(&vfs, f, at, &[1; 100_000]).await.unwrap();
    }
    vfs.fsync(f.0, f.1, false).await.unwrap();

    let before = vfs.messages("data_extents");
    assert_eq!(seek(0, libc::SEEK_HOLE).await, Ok(102_400));
    assert_eq!(seek(102_400, libc::SEEK_DATA).await, Ok(1 << 30));
    assert_eq!(seek(2 << 30, libc::SEEK_DATA).await, Ok((LARGE - 4096) as i64));
    assert_eq!(seek(LARGE + (2 << 30), libc::SEEK_DATA).await, Err(Errno::ENXIO));
    assert_eq!(seek(LARGE + (2 << 30), libc::SEEK_HOLE).await, Ok((LARGE + (2 << 30)) as i64));
    assert_eq!(vfs.messages("data_extents") - before, 5);

    let before = vfs.messages("data_punch");
    let zero = libc::FALLOC_FL_ZERO_RANGE;
    vfs.fallocate(f.0, f.1, 50_000, LARGE, zero).await.unwrap();
    vfs.fsync(f.0, f.1, false).await.unwrap();
    assert!(vfs.messages("data_punch") - before < 12, "the holes were sent");
    assert_eq!(read(&vfs, f, 49_999, 3).await, [1, 0, 0]);
    assert_eq!(read(&vfs, f, LARGE + 49_999, 2).await, [0, 1]);
    assert_eq!(seek(53_248, libc::SEEK_DATA).await, Ok((LARGE + 49_152) as i64));
    let kept = (50_000 - 5) + (100_000 - 50_001) + 100_000;
    assert_eq!(vfs.getattr(f.0, None).await.unwrap().attr.allocated, kept);
    vfs.fallocate(f.0, f.1, 0, size, PUNCH).await.unwrap();
    vfs.fsync(f.0, f.1, false).await.unwrap();
    assert_eq!(vfs.getattr(f.0, None).await.unwrap().attr.allocated, 0);
    assert_eq!(seek(0, libc::SEEK_DATA).await, Err(Errno::ENXIO));
}

#[tokio::test]
async fn copies_are_made_by_the_server_and_keep_holes() {
    let world = World::new(8, 16);
    let vfs = world.mount().await;
    let (a, b) = (file(&vfs, "a").await, file(&vfs, "b").await);
    let data: Vec<u8> = (0..50_000u32).map(|i| (i % 250) as u8 + 1).collect();
    write(&vfs, a, 100_000, &data).await.unwrap();
    write(&vfs, b, 0, &[8; 20_000]).await.unwrap();
    let n = vfs.copy_file_range(a.0, a.1, 90_000, b.0, b.1, 5_000, 1 << 30).await.unwrap();
    assert_eq!(n, 60_000);
    assert!(vfs.messages("data_copy") > 0 && vfs.messages("data_read") == 0);
    let all = read(&vfs, b, 0, 100_000).await;
    assert_eq!(all.len(), 65_000);
    assert!(all[..5000].iter().all(|x| *x == 8) && all[5000..15_000].iter().all(|x| *x == 0));
    assert_eq!(all[15_000..], data);
    assert_eq!(vfs.lseek(b.0, b.1, 0, libc::SEEK_HOLE).await, Ok(8192));
    let overlap = vfs.copy_file_range(a.0, a.1, 0, a.0, a.1, 10, 20).await;
    assert_eq!(overlap, Err(Errno::EINVAL));
    // Inline files go through the client.
    let (c, d) = (file(&vfs, "c").await, file(&vfs, "d").await);
    write(&vfs, c, 0, b"small").await.unwrap();
    assert_eq!(vfs.copy_file_range(c.0, c.1, 1, d.0, d.1, 2, 100).await, Ok(4));
    assert_eq!(read(&vfs, d, 0, 100).await, b"\0\0mall");
}

#[tokio::test]
async fn an_unlinked_file_lives_until_the_kernel_forgets_it() {
    let world = World::new(9, 16);
    let vfs = world.mount().await;
    let f = file(&vfs, "f").await;
    write(&vfs, f, 0, &[5; 10_000]).await.unwrap();
    vfs.unlink(Ino::ROOT, &name("f")).await.unwrap();
    assert_eq!(vfs.getattr(f.0, None).await.unwrap().attr.nlink, 0);
    vfs.fsync(f.0, f.1, false).await.unwrap();
    assert_eq!(read(&vfs, f, 9_999, 10).await, [5]);
    vfs.release(f.0, f.1);
    vfs.forget(f.0, 1);
    tokio::time::sleep(std::time::Duration::from_millis(400)).await;
    assert_eq!(crate::session::lock(&world.meta).forgotten, [f.0]);
}

#[tokio::test]
async fn a_replacing_rename_gives_up_what_it_replaced() {
    let world = World::new(10, 16);
    let vfs = world.mount().await;
    let (a, b) = (file(&vfs, "a").await, file(&vfs, "b").await);
    write(&vfs, a, 0, b"new").await.unwrap();
    let (from, to) = (name("a"), name("b"));
    vfs.rename(Ino::ROOT, &from, Ino::ROOT, &to, RenameMode::Replace).await.unwrap();
    let Looked::Found(entry) = vfs.lookup(Ino::ROOT, &to).await.unwrap() else { panic!() };
    assert_eq!(entry.attr.ino, a.0);
    assert_eq!(vfs.getattr(b.0, None).await.unwrap().attr.nlink, 0);
    assert!(matches!(vfs.lookup(Ino::ROOT, &from).await.unwrap(), Looked::Absent { .. }));
}

#[tokio::test]
async fn bytes_from_before_emptying_never_come_back() {
    let world = World::new(12, 16);
    // Data arrives at once, reports wait.
    let vfs = world.mount_with(|o| o.writeback.age = std::time::Duration::from_secs(60)).await;
    let f = file(&vfs, "f").await;
    for cut in [0, 5000] {
        write(&vfs, f, 0, &[9; 300_000]).await.unwrap();
        let node = vfs.cache.table.get(f.0).unwrap();
        vfs.writeback.drain(&node, false).await.unwrap();
        let set = SetAttr { size: Some(cut), ..SetAttr::default() };
        vfs.setattr(f.0, set, None, Caller::default()).await.unwrap();
        write(&vfs, f, 500_000, b"x").await.unwrap();
        vfs.fsync(f.0, f.1, false).await.unwrap();
        let all = read(&vfs, f, cut, 600_000).await;
        assert!(all[..all.len() - 1].iter().all(|b| *b == 0), "cut at {cut}");
    }
}

#[tokio::test]
async fn what_arrived_of_an_unlinked_file_is_reported_so_that_it_can_be_removed() {
    let world = World::new(13, 16);
    let vfs = world.mount_with(|o| o.writeback.age = std::time::Duration::from_secs(60)).await;
    let f = file(&vfs, "f").await;
    write(&vfs, f, 0, &[1; 200_000]).await.unwrap();
    let node = vfs.cache.table.get(f.0).unwrap();
    vfs.writeback.drain(&node, false).await.unwrap();
    write(&vfs, f, 0, &[2; 100]).await.unwrap();
    vfs.unlink(Ino::ROOT, &name("f")).await.unwrap();
    vfs.release(f.0, f.1);
    vfs.forget(f.0, 1);
    tokio::time::sleep(std::time::Duration::from_millis(400)).await;
    assert_eq!(vfs.messages("wrote_chunks"), 1);
    assert_eq!(crate::session::lock(&world.meta).forgotten, [f.0]);
    assert_eq!(vfs.stats().dirty_bytes, 0);
}
