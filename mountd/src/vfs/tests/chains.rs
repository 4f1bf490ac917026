//! Several data servers with chains of replicas, some of which fail.

use std::sync::Arc;
use std::time::{Duration, Instant};

use netfs_common::errno::Errno;
use netfs_common::id::{Ino, ServerId};

use super::data_server::Mood;
use super::world::{World, file, name, read, write};
use crate::session::lock;
use crate::vfs::{Looked, Vfs};

const ALL: [ServerId; 3] = [ServerId(1), ServerId(2), ServerId(3)];
/// A file of so many bytes has chunks in all groups.
const SIZE: usize = 1_000_000;
const CHUNK: u64 = 1 << 16;

/// A client with a file that is full of a byte, all of it durable.
async fn prepared(seed: u64, byte: u8) -> (Arc<World>, Arc<Vfs>, (Ino, u64)) {
    let world = World::with_servers(seed, 16, 3, 2);
    let vfs = world.mount_with(|o| o.cache.ahead = 0).await;
    let f = file(&vfs, "f").await;
    write(&vfs, f, 0, &vec![byte; SIZE]).await.unwrap();
    vfs.fsync(f.0, f.1, false).await.unwrap();
    (world, vfs, f)
}

/// As the servers have it, for a client that has nothing yet.
async fn seen_by_another(world: &Arc<World>) -> Vec<u8> {
    let vfs = world.mount().await;
    let Looked::Found(e) = vfs.lookup(Ino::ROOT, &name("f")).await.unwrap() else { panic!() };
    let fh = vfs.open(e.attr.ino, libc::O_RDONLY).await.unwrap().fh;
    let seen = read(&vfs, (e.attr.ino, fh), 0, SIZE as u32 + 1).await;
    vfs.shutdown().await;
    seen
}

fn syncing(vfs: &Arc<Vfs>, f: (Ino, u64)) -> tokio::task::JoinHandle<Result<(), Errno>> {
    let vfs = Arc::clone(vfs);
    tokio::spawn(async move { vfs.fsync(f.0, f.1, false).await })
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(2), what).await.expect("it takes too long")
}

async fn pause(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

/// Of all servers: changes, reads, flushes.
fn calls(world: &World) -> (u64, u64, u64) {
    let data = lock(&world.data);
    let sum = |of: fn(&super::data_server::Disk) -> u64| data.disks.values().map(of).sum();
    (sum(|d| d.writes), sum(|d| d.reads), sum(|d| d.flushes))
}

#[tokio::test]
async fn a_write_goes_on_by_the_new_map_when_the_head_keeps_it_for_ever() {
    for which in ALL {
        let (world, vfs, f) = prepared(1, 1).await;
        lock(&world.data).disk(which).mood = Mood::Hung;
        write(&vfs, f, 0, &vec![2; SIZE]).await.unwrap();
        let sync = syncing(&vfs, f);
        pause(100).await;
        assert!(!sync.is_finished());
        let before = calls(&world);
        pause(150).await;
        assert_eq!(calls(&world), before, "nothing is sent twice over a connection in an epoch");
        lock(&world.data).depose(which);
        let begun = Instant::now();
        world.push_map().await;
        assert_eq!(soon(sync).await.unwrap(), Ok(()));
        assert!(begun.elapsed() < Duration::from_secs(1));
        assert_eq!(seen_by_another(&world).await, vec![2; SIZE]);
        vfs.shutdown().await;
    }
}

#[tokio::test]
async fn a_write_waits_for_a_server_that_cannot_be_reached_until_the_map_changes() {
    let (world, vfs, f) = prepared(2, 1).await;
    lock(&world.data).disk(ALL[1]).mood = Mood::Dead;
    write(&vfs, f, 0, &vec![2; SIZE]).await.unwrap();
    let sync = syncing(&vfs, f);
    pause(100).await;
    assert!(!sync.is_finished());
    lock(&world.data).depose(ALL[1]);
    world.push_map().await;
    assert_eq!(soon(sync).await.unwrap(), Ok(()));
    assert_eq!(seen_by_another(&world).await, vec![2; SIZE]);
}

#[tokio::test]
async fn reads_go_on_when_a_replica_dies_or_hangs() {
    for mood in [Mood::Dead, Mood::Hung] {
        for which in ALL {
            let (world, vfs, f) = prepared(3, 7).await;
            assert_eq!(read(&vfs, f, 0, SIZE as u32).await, vec![7; SIZE]);
            lock(&world.data).disk(which).mood = mood;
            let begun = Instant::now();
            for round in 0..3 {
                for at in (0..SIZE as u64).step_by(CHUNK as usize) {
                    let one = Instant::now();
                    assert_eq!(read(&vfs, f, at, 1000).await, [7; 1000]);
                    assert!(one.elapsed() < Duration::from_secs(1), "{mood:?} {which} {round}");
                }
            }
            assert!(begun.elapsed() < Duration::from_millis(1500), "it is avoided");
            // Which replica is asked is left to chance.
            for _ in 0..30 {
                if vfs.stats().traffic.helped != (0, 0) {
                    break;
                }
                for at in (0..SIZE as u64).step_by(CHUNK as usize) {
                    assert_eq!(read(&vfs, f, at, 1000).await, [7; 1000]);
                }
            }
            let helped = vfs.stats().traffic.helped;
            assert!(helped.0 + helped.1 > 0 && helped.0 < 8, "{mood:?}: {helped:?}");
            // One that is well again is used again.
            lock(&world.data).disk(which).mood = Mood::Well;
        }
    }
}

#[tokio::test]
async fn reads_are_spread_over_the_replicas_and_each_is_asked_once() {
    let (world, vfs, f) = prepared(4, 7).await;
    // The first one makes the connections.
    read(&vfs, f, 0, SIZE as u32).await;
    read(&vfs, f, 0, SIZE as u32).await;
    let before = calls(&world).1;
    assert_eq!(read(&vfs, f, 0, SIZE as u32).await, vec![7; SIZE]);
    assert_eq!(calls(&world).1 - before, (SIZE as u64).div_ceil(CHUNK));
    assert!(lock(&world.data).disks.values().all(|disk| disk.reads > 0));
}

#[tokio::test]
async fn what_was_not_flushed_is_sent_again_under_a_new_verifier_and_nothing_else() {
    let (world, vfs, f) = prepared(5, 1).await;
    write(&vfs, f, 0, &[2; 3 << 16]).await.unwrap();
    // Long enough to be acknowledged, too short to be flushed.
    pause(60).await;
    assert_eq!(vfs.writeback.pending(), 0);
    let (resends, sent) = (vfs.writeback.resends(), vfs.messages("data_write"));
    lock(&world.data).lose_all_but(ALL[2]);
    world.push_map().await;
    assert_eq!(vfs.writeback.resends(), resends + 1);
    assert_eq!(read(&vfs, f, 0, 3 << 16).await, [2; 3 << 16]);
    soon(vfs.fsync(f.0, f.1, false)).await.unwrap();
    assert_eq!(vfs.messages("data_write"), sent + 3, "three chunks were not flushed");
    let seen = seen_by_another(&world).await;
    assert!(seen.len() == SIZE && seen[..3 << 16].iter().all(|b| *b == 2));
    assert!(seen[3 << 16..].iter().all(|b| *b == 1));

    let (resends, sent) = (vfs.writeback.resends(), vfs.messages("data_write"));
    lock(&world.data).crash();
    world.push_map().await;
    vfs.syncfs().await.unwrap();
    assert_eq!(vfs.messages("data_write"), sent, "all was flushed");
    assert_eq!(vfs.writeback.resends(), resends + 1);
}

#[tokio::test]
async fn an_older_map_is_ignored() {
    let (world, vfs, f) = prepared(6, 1).await;
    let old = lock(&world.data).map.clone();
    lock(&world.data).depose(ALL[0]);
    world.push_map().await;
    let new = std::mem::replace(&mut lock(&world.data).map, old);
    world.push_map().await;
    lock(&world.data).map = new;
    write(&vfs, f, 0, &vec![2; SIZE]).await.unwrap();
    soon(vfs.fsync(f.0, f.1, false)).await.unwrap();
    assert_eq!(vfs.messages("data_flush"), 3 + 2, "to three heads, then to two");
}

#[tokio::test]
async fn servers_that_are_busy_or_know_another_epoch_are_asked_again() {
    for mood in [Mood::Busy, Mood::Stale] {
        let (world, vfs, f) = prepared(7, 1).await;
        lock(&world.data).moods(mood);
        write(&vfs, f, 0, &vec![2; SIZE]).await.unwrap();
        let sync = syncing(&vfs, f);
        let (v, g) = (Arc::clone(&vfs), file(&vfs, "g").await);
        let reading = tokio::spawn(async move {
            // Not from the buffers.
            v.fsync(g.0, g.1, false).await.unwrap();
            read(&v, f, SIZE as u64 - 10, 100).await
        });
        pause(120).await;
        assert!(!sync.is_finished(), "{mood:?}");
        lock(&world.data).moods(Mood::Well);
        assert_eq!(soon(sync).await.unwrap(), Ok(()), "{mood:?}");
        assert_eq!(soon(reading).await.unwrap(), [2; 10]);
        assert_eq!(seen_by_another(&world).await, vec![2; SIZE]);

        // One of them: reads do not wait for it.
        lock(&world.data).disk(ALL[0]).mood = mood;
        assert_eq!(soon(read(&vfs, f, 0, SIZE as u32)).await, vec![2; SIZE]);
        assert!(vfs.stats().traffic.helped.1 > 0);
    }
}

#[tokio::test]
async fn a_chain_without_replicas_is_waited_for_and_left_at_the_end() {
    let (world, vfs, f) = prepared(8, 1).await;
    let replicas = lock(&world.data).empty_chains();
    world.push_map().await;
    write(&vfs, f, 0, &vec![2; SIZE]).await.unwrap();
    let sync = syncing(&vfs, f);
    let v = Arc::clone(&vfs);
    let seeking = tokio::spawn(async move { v.lseek(f.0, f.1, 0, libc::SEEK_HOLE).await });
    pause(100).await;
    assert!(!sync.is_finished());
    lock(&world.data).fill_chains(replicas);
    world.push_map().await;
    assert_eq!(soon(sync).await.unwrap(), Ok(()));
    assert_eq!(soon(seeking).await.unwrap(), Ok(SIZE as i64));
    assert_eq!(seen_by_another(&world).await, vec![2; SIZE]);

    lock(&world.data).empty_chains();
    world.push_map().await;
    let v = Arc::clone(&vfs);
    let reading = tokio::spawn(async move { v.read(f.0, f.1, 0, 100).await.map(|_| ()) });
    write(&vfs, f, 0, &vec![3; SIZE]).await.unwrap();
    let sync = syncing(&vfs, f);
    pause(50).await;
    assert!(!sync.is_finished());
    vfs.going_down(false).await;
    assert_eq!(soon(sync).await.unwrap(), Err(Errno::EIO));
    let _ = soon(reading).await;
}

#[tokio::test]
async fn a_chain_that_is_too_short_does_not_hold_up_the_flushes_of_others() {
    let (world, vfs, f) = prepared(13, 1).await;
    let kept = |vfs: &Vfs| {
        let state = vfs.cache.table.peek(f.0).unwrap();
        let state = state.state();
        state.file.as_ref().map_or(0, |file| file.kept.tags().count())
    };
    let change = async |least: u8, length: usize| {
        {
            let map = &mut lock(&world.data).map;
            map.version.0 += 1;
            map.pools[0].min_replicas = least;
            let chain = &mut map.pools[0].chains[0];
            chain.epoch.0 += 1;
            chain.replicas.truncate(length);
        }
        world.push_map().await;
    };
    change(2, 1).await;
    write(&vfs, f, 0, &vec![2; SIZE]).await.unwrap();
    pause(1500).await;
    let left = kept(&vfs);
    assert!(left > 0 && left <= 8, "{left} of 16 are not flushed");
    let sync = syncing(&vfs, f);
    pause(200).await;
    assert!(!sync.is_finished());
    change(1, 1).await;
    assert_eq!(soon(sync).await.unwrap(), Ok(()));
    assert_eq!((kept(&vfs), seen_by_another(&world).await), (0, vec![2; SIZE]));
    vfs.shutdown().await;
}

#[tokio::test]
async fn a_chain_without_servers_does_not_hold_up_what_is_in_others() {
    let (world, vfs, f) = prepared(12, 1).await;
    write(&vfs, f, 0, &vec![2; SIZE]).await.unwrap();
    while vfs.writeback.pending() > 0 {
        pause(5).await;
    }
    let kept = |vfs: &Vfs| {
        let state = vfs.cache.table.peek(f.0).unwrap();
        let state = state.state();
        state.file.as_ref().map_or(0, |file| file.kept.tags().count())
    };
    assert_eq!((vfs.writeback.pending(), kept(&vfs)), (0, 16));
    // The head of two of the groups: what they have stays kept here.
    lock(&world.data).disk(ALL[0]).mood = Mood::Hung;
    pause(700).await;
    let left = kept(&vfs);
    assert!(left > 0 && left < 16, "{left}");
    let flushes = lock(&world.data).disk(ALL[0]).flushes;
    // And so on, past the round that waits.
    let (chunks, sent) = ((0..16).map(|i| i * CHUNK), vfs.messages("data_flush"));
    for at in chunks {
        write(&vfs, f, at, &[3; 10]).await.unwrap();
    }
    pause(1800).await;
    assert!(vfs.messages("data_flush") > sent);
    assert_eq!(lock(&world.data).disk(ALL[0]).flushes, flushes, "it is asked once");
    lock(&world.data).disk(ALL[0]).mood = Mood::Dead;
    lock(&world.data).depose(ALL[0]);
    world.push_map().await;
    soon(vfs.fsync(f.0, f.1, false)).await.unwrap();
    assert_eq!(kept(&vfs), 0);
}

#[tokio::test]
async fn a_damaged_copy_is_read_from_another_replica() {
    let (world, vfs, f) = prepared(9, 5).await;
    for which in ALL {
        lock(&world.data).disk(which).mood = Mood::Damaged;
        assert_eq!(read(&vfs, f, 0, SIZE as u32).await, vec![5; SIZE]);
        lock(&world.data).disk(which).mood = Mood::Well;
    }
    assert!(vfs.stats().traffic.helped.1 > 0);
    lock(&world.data).moods(Mood::Damaged);
    let all = soon(vfs.read(f.0, f.1, 0, 100)).await;
    assert_eq!(all.map(|_| ()), Err(Errno::EIO));
}

#[tokio::test]
async fn holes_are_made_and_found_over_several_heads() {
    let (world, vfs, f) = prepared(10, 5).await;
    let block = 4096;
    let (from, to) = (3 * CHUNK + block, 9 * CHUNK + 2 * block);
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // Bytes that are not durable yet, and must not come back over the hole.
    write(&vfs, f, from, &vec![6; (to - from) as usize]).await.unwrap();
    pause(60).await;
    vfs.fallocate(f.0, f.1, from, to - from, mode).await.unwrap();
    lock(&world.data).depose(ALL[0]);
    let sync = syncing(&vfs, f);
    pause(30).await;
    world.push_map().await;
    assert_eq!(soon(sync).await.unwrap(), Ok(()));
    let seek = |at: u64, whence| vfs.lseek(f.0, f.1, at as i64, whence);
    assert_eq!(soon(seek(0, libc::SEEK_HOLE)).await, Ok(from as i64));
    assert_eq!(soon(seek(from, libc::SEEK_DATA)).await, Ok(to as i64));
    assert_eq!(soon(seek(to, libc::SEEK_HOLE)).await, Ok(SIZE as i64));
    lock(&world.data).crash();
    world.push_map().await;
    vfs.fsync(f.0, f.1, false).await.unwrap();
    let seen = seen_by_another(&world).await;
    for (at, byte) in seen.iter().enumerate() {
        let hole = (from..to).contains(&(at as u64));
        assert_eq!(*byte, if hole { 0 } else { 5 }, "{at}");
    }
    assert_eq!(seen.len(), SIZE);
}

#[tokio::test]
async fn a_copy_is_made_by_servers_where_they_can_and_through_the_client_where_not() {
    let (world, vfs, f) = prepared(11, 5).await;
    let g = file(&vfs, "g").await;
    write(&vfs, g, 0, &vec![1; SIZE]).await.unwrap();
    vfs.fsync(g.0, g.1, false).await.unwrap();
    let copied = soon(vfs.copy_file_range(g.0, g.1, 0, f.0, f.1, 1000, SIZE as u64 - 2000)).await;
    assert_eq!(copied, Ok(SIZE as u64 - 2000));
    let by_servers = vfs.messages("data_copy");
    assert!(by_servers > 5 && by_servers < 2 * 16, "{by_servers}");
    soon(vfs.fsync(f.0, f.1, false)).await.unwrap();
    lock(&world.data).crash();
    world.push_map().await;
    let seen = seen_by_another(&world).await;
    assert_eq!(seen.len(), SIZE);
    let old = |at: usize| !(1000..SIZE - 1000).contains(&at);
    assert!(seen.iter().enumerate().all(|(at, b)| *b == if old(at) { 5 } else { 1 }));
}
