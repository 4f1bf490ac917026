//! How many replicas there are, with servers in this process that find their places by themselves: what is there while a lesson takes
//! long, and what is left when servers are gone.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use netfs_common::id::{ChunkId, Ino};
use netfs_common::map::Chain;
use netfs_common::wire::operator::{Operation, Outcome};
use netfs_served::data::server::{DataOptions, DataServer};

use crate::audit::{GROUPS, World};
use crate::common::PATIENCE;

/// A file's chunks have so many bytes.
const LEN: usize = 20_000;

fn chunk(ino: Ino, index: u64) -> ChunkId {
    ChunkId { ino, generation: 0, index }
}

#[tokio::test]
async fn how_much_a_learner_still_lacks_is_in_the_status() {
    const CHUNKS: u64 = 40;
    let dir = tempfile::tempdir().unwrap();
    // All of it takes some seconds.
    let slow = |options: &mut DataOptions| options.repair_rate = 100_000;
    let world = World::start_with(dir.path(), 2, 1, slow).await;
    let client = world.mount(7).await;
    let file = world.file(&client, "file", 1).await;
    for index in 0..CHUNKS {
        world.write(chunk(file, index), &[index as u8 + 1; LEN]).await;
    }
    let before = world.status().await.volumes[0].redundancy;
    assert_eq!((before.repairing, before.lacking), (0, 0));
    let more = Operation::Replicas { volume: "v".into(), replicas: 2, min: None };
    assert!(matches!(world.operate(more).await, Outcome::Done(_)));
    let deadline = Instant::now() + PATIENCE;
    let mut seen = Vec::new();
    loop {
        let of = world.status().await.volumes[0].redundancy;
        assert!(of.repairing <= GROUPS && of.lacking <= CHUNKS, "{of:?}");
        seen.push(of.lacking);
        if of.full == GROUPS && of.repairing == 0 {
            assert_eq!(of.lacking, 0);
            break;
        }
        assert!(Instant::now() < deadline, "{of:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // At first many, and fewer and fewer.
    let most = seen.iter().max().copied().unwrap_or(0);
    assert!(most > CHUNKS / 4, "{seen:?}");
    assert!(seen.iter().any(|lacking| (1..most).contains(lacking)), "{seen:?}");
}

#[tokio::test]
async fn with_five_replicas_two_servers_may_die_and_everything_can_be_read_and_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::start(dir.path(), 5, 5).await;
    let client = world.mount(7).await;
    let file = world.file(&client, "file", 30).await;
    for (_, chain) in world.map().await.groups() {
        let servers: BTreeSet<_> = chain.replicas.iter().map(|replica| replica.server).collect();
        assert_eq!(servers.len(), 5, "{chain:?}");
    }
    drop(world.data[1].take());
    drop(world.data[3].take());
    let left: BTreeSet<_> = world.data.iter().flatten().map(DataServer::instance).collect();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let map = world.map().await;
        let lives = |chain: &Chain| {
            chain.replicas.iter().map(|replica| replica.instance).collect::<BTreeSet<_>>() == left
        };
        if map.groups().all(|(_, chain)| lives(chain)) {
            break;
        }
        assert!(Instant::now() < deadline, "the dead ones are still in chains");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for index in 0..30 {
        let expected = [index as u8 + 1; 100];
        for found in world.read_everywhere(chunk(file, index), 100).await {
            assert_eq!(found, expected[..]);
        }
    }
    world.write(chunk(file, 3), b"later").await;
    let found = world.read_everywhere(chunk(file, 3), 5).await;
    assert_eq!(found, vec![&b"later"[..]; 3]);
    let of = world.status().await.volumes[0].redundancy;
    assert_eq!((of.full, of.degraded, of.missing), (0, GROUPS, 2 * GROUPS), "{of:?}");
}
