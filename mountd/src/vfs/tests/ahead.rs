//! Reading ahead: what it costs, and that nothing old is served from it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use netfs_common::attr::SetAttr;
use netfs_common::id::Ino;

use super::world::{Random, Weather, World, file, name, read, write};
use crate::vfs::{Caller, Looked, Options, Vfs};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// What a file has at a place, in its first life.
fn cell(at: u64) -> u8 {
    (at / 4096 % 251) as u8
}

fn content(from: u64, to: u64) -> Vec<u8> {
    (from..to).map(cell).collect()
}

/// A file of so many bytes, and a client that has nothing of it.
async fn cold(seed: u64, size: u64, set: impl FnOnce(&mut Options)) -> (Arc<World>, Arc<Vfs>, Ino) {
    let world = World::new(seed, 22);
    let vfs = world.mount().await;
    let f = file(&vfs, "f").await;
    for at in (0..size).step_by(MIB as usize) {
        write(&vfs, f, at, &content(at, size.min(at + MIB))).await.unwrap();
    }
    vfs.fsync(f.0, f.1, false).await.unwrap();
    vfs.shutdown().await;
    let vfs = world.mount_with(set).await;
    let ino = find(&vfs).await;
    (world, vfs, ino)
}

async fn find(vfs: &Arc<Vfs>) -> Ino {
    let Looked::Found(entry) = vfs.lookup(Ino::ROOT, &name("f")).await.unwrap() else { panic!() };
    entry.attr.ino
}

async fn open(vfs: &Arc<Vfs>, ino: Ino, flags: i32) -> (Ino, u64) {
    (ino, vfs.open(ino, flags).await.unwrap().fh)
}

/// Waits until nothing is under way.
async fn settled(vfs: &Arc<Vfs>) {
    let mut before = 0;
    for _ in 0..500 {
        tokio::time::sleep(Duration::from_millis(4)).await;
        let now = vfs.messages("data_read") + vfs.stats().ahead.fetched;
        if now == before {
            return;
        }
        before = now;
    }
    panic!("it never ends");
}

#[tokio::test]
async fn small_sequential_reads_cost_a_message_per_mebibyte_and_are_fetched_once() {
    let size = 12 * MIB;
    let (_world, vfs, ino) = cold(1, size, |_| {}).await;
    // With a connection: what waits for one and comes together afterwards is not what is looked at here.
    let direct = open(&vfs, ino, libc::O_RDONLY | libc::O_DIRECT).await;
    read(&vfs, direct, 0, 1).await;
    let before = vfs.messages("data_read");
    let f = open(&vfs, ino, libc::O_RDONLY).await;
    for at in (0..size).step_by(64 << 10) {
        assert_eq!(read(&vfs, f, at, 64 << 10).await, content(at, at + 64 * KIB));
    }
    // A few more for the start, when the window is small.
    let messages = vfs.messages("data_read") - before;
    assert!(messages <= 12 + 6, "{messages}");
    let held = vfs.stats().ahead;
    assert!(held.fetched < size && held.used == held.fetched && held.bytes == 0, "{held:?}");
    vfs.shutdown().await;
}

#[tokio::test]
async fn strides_are_there_in_time_and_random_reads_fetch_nothing() {
    let (_world, vfs, ino) = cold(2, 24 * MIB, |_| {}).await;
    let f = open(&vfs, ino, libc::O_RDONLY).await;
    for i in 0..40 {
        let at = 20 * MIB - i * 512 * KIB;
        assert_eq!(read(&vfs, f, at, 4096).await, content(at, at + 4096));
    }
    let held = vfs.stats().ahead;
    assert!(held.used >= 35 * 4096, "{held:?}");
    let mut random = Random(5);
    read(&vfs, f, 3 * MIB + 777, 5).await;
    settled(&vfs).await;
    let (fetched, messages) = (vfs.stats().ahead.fetched, vfs.messages("data_read"));
    for _ in 0..100 {
        let at = random.below(24 * 256) * 4096;
        assert_eq!(read(&vfs, f, at, 4096).await, content(at, at + 4096));
    }
    settled(&vfs).await;
    assert_eq!(vfs.stats().ahead.fetched, fetched);
    assert!(vfs.messages("data_read") <= messages + 100);
    assert_eq!(vfs.stats().ahead.bytes, 0, "dropped at once");
    vfs.shutdown().await;
}

#[tokio::test]
async fn direct_reads_and_a_limit_of_nothing_read_nothing_ahead() {
    for (flags, limit) in [(libc::O_RDONLY | libc::O_DIRECT, 128 * MIB), (libc::O_RDONLY, 0)] {
        let (_world, vfs, ino) = cold(3, 4 * MIB, |o| o.cache.ahead = limit).await;
        let f = open(&vfs, ino, flags).await;
        for at in (0..4 * MIB).step_by(128 << 10) {
            read(&vfs, f, at, 128 << 10).await;
        }
        settled(&vfs).await;
        assert_eq!(vfs.stats().ahead.fetched, 0);
        assert_eq!(vfs.messages("data_read"), 32);
        vfs.shutdown().await;
    }
}

#[tokio::test]
async fn what_was_read_ahead_is_not_served_once_another_client_has_written() {
    let (world, a, ino) = cold(4, 6 * MIB, |_| {}).await;
    let f = open(&a, ino, libc::O_RDONLY).await;
    let b = world.mount().await;
    assert_eq!(find(&b).await, ino);
    let g = open(&b, ino, libc::O_RDWR).await;
    for round in 1..20u8 {
        // Under way in some rounds, there in others.
        world.weather(Weather { delay_ms: u64::from(round % 4), loss: 0 });
        let start = u64::from(round % 3) * MIB;
        read(&a, f, start, 128 << 10).await;
        read(&a, f, start + 128 * KIB, 128 << 10).await;
        if round % 2 == 0 {
            settled(&a).await;
        }
        let at = start + (256 << 10);
        write(&b, g, at, &[round; 300 << 10]).await.unwrap();
        assert_eq!(read(&a, f, at, 128 << 10).await, vec![round; 128 << 10], "{round}");
        assert_eq!(read(&a, f, at + 128 * KIB, 128 << 10).await, vec![round; 128 << 10]);
    }
    assert!(a.stats().ahead.fetched > 0);
    a.shutdown().await;
    b.shutdown().await;
}

#[tokio::test]
async fn what_was_read_ahead_is_not_served_over_own_changes() {
    let (world, vfs, ino) = cold(5, 8 * MIB, |_| {}).await;
    let f = open(&vfs, ino, libc::O_RDWR).await;
    let mut model = content(0, 8 * MIB);
    let mut random = Random(9);
    for round in 0..120u64 {
        world.weather(Weather { delay_ms: round % 3, loss: 0 });
        let start = random.below(16) * 512 * KIB;
        for i in 0..3 {
            let at = start + i * 128 * KIB;
            let end = (at + 128 * KIB).min(model.len() as u64);
            if at < end {
                let expected = &model[at as usize..end as usize];
                assert_eq!(read(&vfs, f, at, 128 << 10).await, expected, "round {round} at {at}");
            }
        }
        let at = (start + random.below(1024) * KIB).min(7 * MIB);
        let len = 1 + random.below(256 * KIB);
        match random.below(6) {
            0 => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                vfs.fallocate(f.0, f.1, at, len, mode).await.unwrap();
                let end = ((at + len) as usize).min(model.len());
                if (at as usize) < end {
                    model[at as usize..end].fill(0);
                }
            }
            1 => {
                let cut = SetAttr { size: Some(at), ..SetAttr::default() };
                vfs.setattr(f.0, cut, Some(f.1), Caller::default()).await.unwrap();
                let grown = SetAttr { size: Some(8 * MIB), ..SetAttr::default() };
                vfs.setattr(f.0, grown, Some(f.1), Caller::default()).await.unwrap();
                model.truncate(at as usize);
                model.resize(8 << 20, 0);
            }
            2 => {
                let from = random.below(3 * 1024) * KIB;
                let to = 4 * MIB + random.below(3 * 1024) * KIB;
                vfs.copy_file_range(f.0, f.1, from, f.0, f.1, to, len).await.unwrap();
                let part = model[from as usize..(from + len) as usize].to_vec();
                model[to as usize..(to + len) as usize].copy_from_slice(&part);
            }
            _ => {
                let data = vec![random.next() as u8; len as usize];
                write(&vfs, f, at, &data).await.unwrap();
                let end = (at + len) as usize;
                model.resize(model.len().max(end), 0);
                model[at as usize..end].copy_from_slice(&data);
            }
        }
        // So that the buffers have nothing any more that would hide what is below.
        vfs.fsync(f.0, f.1, false).await.unwrap();
    }
    assert!(vfs.stats().ahead.used > 0);
    vfs.shutdown().await;
}

#[tokio::test]
async fn memory_stays_within_its_bound_with_many_files_and_goes_with_them() {
    let limit = 3 * MIB;
    let (world, vfs, ino) = cold(6, 8 * MIB, |o| o.cache.ahead = limit).await;
    world.weather(Weather { delay_ms: 2, loss: 0 });
    let mut open_files = Vec::new();
    for _ in 0..24 {
        open_files.push(open(&vfs, ino, libc::O_RDONLY).await);
    }
    for i in 0..30u64 {
        for (n, f) in open_files.iter().enumerate() {
            let at = (n as u64 * 300 * KIB + i * 64 * KIB) % (8 * MIB);
            let got: Bytes = vfs.read(f.0, f.1, at, 64 << 10).await.unwrap().0;
            assert_eq!(got, content(at, (at + 64 * KIB).min(8 * MIB)));
            assert!(vfs.stats().ahead.bytes <= limit);
        }
    }
    for f in open_files {
        vfs.release(f.0, f.1);
    }
    assert_eq!(vfs.stats().ahead.bytes, 0);
    vfs.shutdown().await;
}
