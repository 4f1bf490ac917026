//! A client whose session the servers have ended, and that does not know it yet.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use netfs_common::errno::Errno;
use netfs_common::id::{Ino, SessionId};

use super::world::{World, file, name, read, session, write};
use crate::session::lock;
use crate::vfs::Looked;

/// The metadata server ends the session, and keeps it out of the data server.
fn expire(world: &Arc<World>, session: SessionId) {
    let mut store = lock(&world.meta);
    store.end(session);
    store.work_off(world);
    drop(store);
    lock(&world.data).fenced.push(session);
}

#[tokio::test]
async fn a_fenced_client_gives_its_data_up_and_says_so_once_to_each_open_file() {
    let world = World::new(1, 16);
    let vfs = world.mount().await;
    let f = file(&vfs, "f").await;
    write(&vfs, f, 0, &[1; 100_000]).await.unwrap();
    vfs.fsync(f.0, f.1, false).await.unwrap();
    let second = vfs.open(f.0, libc::O_RDWR).await.unwrap().fh;
    let before = session(&vfs);

    // It is cut off from the metadata server only, and goes on sending.
    world.silent.store(true, Ordering::SeqCst);
    expire(&world, before);
    write(&vfs, f, 0, &[2; 100_000]).await.unwrap();
    write(&vfs, f, 200_000, &[2; 1000]).await.unwrap();
    let give_up = async {
        while vfs.writeback.pending() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), give_up).await.expect("it tries for ever");
    assert_eq!(vfs.flush(f.0, f.1).await, Err(Errno::EIO));
    assert_eq!(vfs.flush(f.0, f.1).await, Ok(()), "it was told");
    assert_eq!(vfs.flush(f.0, second).await, Err(Errno::EIO));

    world.silent.store(false, Ordering::SeqCst);
    assert_eq!(vfs.fsync(f.0, f.1, false).await, Ok(()));
    assert_eq!(read(&vfs, f, 0, 100_001).await, [1; 100_000]);
    assert_ne!(session(&vfs), before, "a session that is over is never used again");
    write(&vfs, f, 0, &[3; 100_000]).await.unwrap();
    vfs.fsync(f.0, f.1, false).await.unwrap();
    assert_eq!(read(&vfs, f, 0, 100_001).await, [3; 100_000]);
    assert_eq!(lock(&world.meta).sessions.len(), 1);
}

#[tokio::test]
async fn what_was_acknowledged_in_a_session_that_is_over_is_not_sent_again() {
    let world = World::new(2, 16);
    let vfs = world.mount().await;
    let f = file(&vfs, "f").await;
    write(&vfs, f, 0, &[1; 100_000]).await.unwrap();
    vfs.fsync(f.0, f.1, false).await.unwrap();
    write(&vfs, f, 0, &[2; 100_000]).await.unwrap();
    // Long enough to be acknowledged and reported, too short to be flushed.
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert_eq!(vfs.writeback.pending(), 0);
    expire(&world, session(&vfs));
    world.restart_data();
    vfs.lookup(Ino::ROOT, &name("none")).await.unwrap();
    assert_eq!(vfs.fsync(f.0, f.1, false).await, Err(Errno::EIO), "it may be gone, and is");
    assert_eq!(vfs.fsync(f.0, f.1, false).await, Ok(()));
    assert_eq!(read(&vfs, f, 0, 100_001).await, [1; 100_000], "others may rely on it");
}

#[tokio::test]
async fn a_read_in_a_fenced_session_is_answered_in_the_next_one() {
    let world = World::new(3, 16);
    let vfs = world.mount().await;
    let f = file(&vfs, "f").await;
    write(&vfs, f, 0, &[1; 100_000]).await.unwrap();
    vfs.syncfs().await.unwrap();
    let before = session(&vfs);
    // The metadata server has not heard of it: the data server is believed all the same.
    lock(&world.data).fenced.push(before);
    assert_eq!(read(&vfs, f, 0, 100_001).await, [1; 100_000]);
    assert_ne!(session(&vfs), before);
    let Looked::Found(e) = vfs.lookup(Ino::ROOT, &name("f")).await.unwrap() else { panic!() };
    assert_eq!(e.attr.ino, f.0);
}

#[tokio::test]
async fn the_log_names_the_files_that_lost_data() {
    let world = World::new(4, 16);
    let vfs = world.mount_with(|o| o.writeback.age = Duration::from_secs(60)).await;
    let f = file(&vfs, "f").await;
    write(&vfs, f, 0, &[1; 100]).await.unwrap();
    assert_eq!(vfs.cache.paths(&[f.0, Ino(99)]).into_values().collect::<Vec<_>>(), ["/f"]);
    vfs.writeback.note_paths();
    let node = vfs.cache.table.peek(f.0).unwrap();
    assert_eq!(node.state().file.as_ref().unwrap().path.as_deref(), Some("/f"));
}
