//! Data servers without room.

use netfs_common::errno::Errno;
use netfs_common::id::{ChunkId, Ino};
use netfs_common::wire::data::{Op, Reply};
use netfs_served::data::store::StoreConfig;

use crate::older::World;

const MIB: usize = 1 << 20;

/// Writes chunks until there is no room for another. How many.
async fn fill(world: &World<'_>, ino: Ino) -> u64 {
    for index in 0.. {
        let chunk = ChunkId { ino, generation: 0, index };
        let (reply, _) =
            world.at_head(chunk, Op::Write { chunk, offset: 0 }, &vec![index as u8 + 1; MIB]).await;
        match reply {
            Reply::Written { .. } => assert!(index < 100, "there is no end of the room"),
            Reply::Failed(Errno::ENOSPC) => return index,
            other => panic!("{other:?}"),
        }
    }
    unreachable!("it does not end")
}

#[tokio::test]
async fn full_servers_are_started_anew_one_after_the_other_and_all_are_replicas_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = StoreConfig {
        capacity_limit_bytes: Some(48 << 20),
        reserve_bytes: 8 << 20,
        segment_bytes: 4 << 20,
        ..StoreConfig::default()
    };
    let mut world = World::start_with(dir.path(), 2, store);
    world.until_replicas(2).await;
    let client = world.mount().await;
    let file = world.file(&client, "file").await;
    let chunks = fill(&world, file).await;
    assert!(chunks > 10, "{chunks}");
    for away in [0, 1] {
        world.stop_data(away).await;
        world.until_replicas(1).await;
        // Something is made otherwise meanwhile, and something goes.
        let chunk = ChunkId { ino: file, generation: 0, index: 3 + away as u64 };
        let hole = Op::Punch { chunk, offset: 0, len: 4096 };
        let (reply, _) = world.at_head(chunk, hole, &[]).await;
        assert!(matches!(reply, Reply::Written { .. }), "{reply:?}");
        world.start_data(away);
        world.until_replicas(2).await;
    }
    for index in 0..chunks {
        let chunk = ChunkId { ino: file, generation: 0, index };
        let mut expected = vec![index as u8 + 1; 8192];
        if (3..5).contains(&index) {
            expected[..4096].fill(0);
        }
        let found = world.read_all(chunk, 8192).await;
        assert!(found == vec![expected; 2], "chunk {index}");
    }
}
