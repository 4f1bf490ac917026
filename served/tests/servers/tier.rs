//! A data server with an object store behind it, driven with raw calls. The store is in memory; with the variable
//! `NETFS_TEST_S3` it is the bucket `netfs` of the S3 server at that URL, which takes the key `netfs` with the secret `netfs-secret`.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::TryStreamExt;
use netfs_common::errno::Errno;
use netfs_common::id::{Epoch, Ino, ServerId};
use netfs_common::map::{INODE_BITS, TierMode};
use netfs_common::wire::data::{Op, Reply, Span};
use netfs_served::data::server::{DataError, DataOptions, DataServer, TierOptions};
use netfs_served::data::store::{ChunkKey, SegmentStore, StoreConfig};
use netfs_served::data::tier::{BucketOptions, Place};
use netfs_served::thread::Ending;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::common::{DataClient, chunk, localhost, make_pki, map_of_one, serve_alone, tell_twice};

struct World {
    dir: tempfile::TempDir,
    pki: crate::common::Pki,
    bucket: Arc<dyn ObjectStore>,
    prefix: String,
    after: Duration,
    fill_percent: u8,
    store: StoreConfig,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let pki = make_pki(dir.path());
        let prefix = dir.path().file_name().unwrap().to_str().unwrap().replace('.', "t");
        let bucket: Arc<dyn ObjectStore> = match std::env::var("NETFS_TEST_S3") {
            Ok(url) => {
                // As the servers do it.
                let key = dir.path().join("bucket.key");
                std::fs::write(&key, "netfs\nnetfs-secret\n").unwrap();
                std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
                let place = Place::S3 {
                    endpoint: Some(url),
                    region: "us-east-1".into(),
                    bucket: "netfs".into(),
                    credentials: Some(key),
                    ca: None,
                };
                place.open().unwrap()
            }
            Err(_) => Arc::new(InMemory::new()),
        };
        let (after, store) = (Duration::from_secs(1), StoreConfig::default());
        World { dir, pki, bucket, prefix, after, fill_percent: 80, store }
    }

    /// With room for 100 MiB, of which 10 may be filled; nothing goes for its age.
    fn small() -> World {
        let store = StoreConfig {
            segment_bytes: 4 << 20,
            reserve_bytes: 8 << 20,
            capacity_limit_bytes: Some(108 << 20),
            ..StoreConfig::default()
        };
        World { after: Duration::from_secs(3600), fill_percent: 10, store, ..World::new() }
    }

    async fn start(&self, with_tier: bool) -> (DataServer, DataClient) {
        let data = self.dir.path().join("data");
        let mut options = DataOptions::new(data, localhost(), self.pki.server.clone());
        let place = Place::Store(self.bucket.clone());
        let bucket = BucketOptions { place, prefix: self.prefix.clone() };
        options.store = self.store.clone();
        options.tier = with_tier.then(|| TierOptions {
            after: self.after,
            fill_percent: self.fill_percent,
            look_interval: Duration::from_millis(200),
            sweep_interval: Duration::from_secs(1),
            ..TierOptions::new(bucket)
        });
        let server = DataServer::start(options).unwrap();
        serve_alone(&self.pki, &server).await;
        let client = DataClient::connect(&self.pki.client, server.addr()).await.unwrap();
        (server, client)
    }

    async fn objects(&self) -> Vec<Path> {
        let prefix = Path::from(self.prefix.as_str());
        let all = self.bucket.list(Some(&prefix)).map_ok(|meta| meta.location);
        let mut all = all.try_collect::<Vec<_>>().await.unwrap();
        // That one says whose they are.
        all.retain(|name| name.filename() != Some("owner"));
        all
    }

    /// Waits until the bucket has so many objects.
    async fn wait_for_objects(&self, count: usize) -> Vec<Path> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let objects = self.objects().await;
            if objects.len() == count {
                return objects;
            }
            assert!(Instant::now() < deadline, "{objects:?}, and not {count}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// How many bytes of the chunks of a server are here.
async fn bytes_here(client: &DataClient) -> u64 {
    let (reply, _) = client.call(chunk(2, 0), Op::Usage, Bytes::new()).await;
    let Reply::Usage(usage) = reply else { panic!("{reply:?}") };
    usage.live
}

/// Waits until nothing of the chunks of a server is here.
async fn wait_until_away(client: &DataClient) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let here = bytes_here(client).await;
        if here == 0 {
            return;
        }
        assert!(Instant::now() < deadline, "{here} bytes are still here");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn stop(server: DataServer) {
    tokio::task::spawn_blocking(move || server.stop(Ending::Drain)).await.unwrap().unwrap();
}

fn pattern(len: u32) -> Vec<u8> {
    (0..len).map(|i| (i / 7) as u8).collect()
}

async fn read(client: &DataClient, index: u64, offset: u64, len: u64) -> Reply {
    let op = Op::Read { chunk: chunk(2, index), offset, len };
    client.call(chunk(2, index), op, Bytes::new()).await.0
}

#[tokio::test]
async fn cold_chunks_go_come_back_on_use_and_stay_away_over_a_restart() {
    let world = World::new();
    let (server, client) = world.start(true).await;
    let big = pattern(4 << 20);
    client.write(chunk(2, 0), 0, &big).await;
    client.write(chunk(2, 1), 5_000_000 % (4 << 20), b"small").await;
    client.flush(&[chunk(2, 0), chunk(2, 1)]).await;
    wait_until_away(&client).await;
    world.wait_for_objects(2).await;
    let span = Span { ino: Ino(2), generation: 0, chunk_bits: 22, from: 0, to: 1 << 62 };
    let (reply, _) = client.call(chunk(2, 0), Op::Extents { span, limit: 9 }, Bytes::new()).await;
    let Reply::Extents { extents, .. } = reply else { panic!("{reply:?}") };
    assert_eq!(extents.len(), 2, "where data is can be told without the bucket");
    assert_eq!(client.read(chunk(2, 0), 0, 4 << 20).await, big);
    wait_until_away(&client).await;
    stop(server).await;

    let (server, client) = world.start(true).await;
    assert_eq!(client.read(chunk(2, 1), 5_000_000 % (4 << 20), 5).await, b"small"[..]);
    assert_eq!(client.read(chunk(2, 0), 0, 4 << 20).await, big);
    wait_until_away(&client).await;
    assert_eq!(world.objects().await.len(), 2, "what is there need not be put there again");
    stop(server).await;
    assert!(SegmentStore::check(&world.dir.path().join("data")).unwrap().is_clean());

    let (server, client) = world.start(false).await;
    assert_eq!(read(&client, 0, 0, 10).await, Reply::Failed(Errno::EIO), "nowhere to get it from");
    client.write(chunk(2, 7), 0, b"other chunks go on").await;
    assert_eq!(client.read(chunk(2, 7), 0, 18).await, b"other chunks go on"[..]);
    drop(server);
}

#[tokio::test]
async fn a_chunk_that_is_away_can_be_changed_and_its_old_objects_vanish() {
    let world = World::new();
    let (_server, client) = world.start(true).await;
    let mut expected = pattern(2 << 20);
    client.write(chunk(2, 0), 0, &expected).await;
    wait_until_away(&client).await;
    let first = world.wait_for_objects(1).await;
    client.write(chunk(2, 0), 1000, b"changed").await;
    expected[1000..1007].copy_from_slice(b"changed");
    let punch = Op::Punch { chunk: chunk(2, 0), offset: 1 << 20, len: 10_000 };
    client.call(chunk(2, 0), punch, Bytes::new()).await;
    expected[1 << 20..][..10_000].fill(0);
    // Longer than it takes to be cold, and for a sweep: a part of it is needed.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(world.objects().await, first);
    assert_eq!(client.read(chunk(2, 0), 0, 2 << 20).await, expected);
    wait_until_away(&client).await;
    let second = world.wait_for_objects(1).await;
    assert_ne!(first, second);
    assert_eq!(client.read(chunk(2, 0), 0, 2 << 20).await, expected);

    let server = DataClient::connect(&world.pki.server, _server.addr()).await.unwrap();
    let delete = Op::Delete { first: chunk(2, 0) };
    assert!(matches!(
        server.call(chunk(2, 0), delete, Bytes::new()).await.0,
        Reply::Deleted { .. }
    ));
    world.wait_for_objects(0).await;
}

#[tokio::test]
async fn a_disk_that_fills_sends_the_coldest_away_long_before_their_time() {
    let world = World::small();
    let (_server, client) = world.start(true).await;
    let data = pattern(4 << 20);
    for index in 0..2 {
        client.write(chunk(2, index), 0, &data).await;
    }
    // Many looks at them, by which they are seconds old.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(world.objects().await.is_empty(), "it is not filled, and nothing is that old");
    for index in 2..4 {
        client.write(chunk(2, index), 0, &data).await;
    }
    // 16 % are used, and it gets down to 5 at the most.
    let deadline = Instant::now() + Duration::from_secs(30);
    while bytes_here(&client).await > 8 << 20 {
        assert!(Instant::now() < deadline, "it is as full as before");
        // What is in use stays.
        client.read(chunk(2, 3), 0, 10).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // And no more go than have to.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(bytes_here(&client).await >= 4 << 20, "everything went");
    let objects = world.objects().await;
    for index in 0..2 {
        let name = format!("/{index:016x}/");
        assert!(objects.iter().any(|o| o.as_ref().contains(&name)), "{index}: {objects:?}");
    }
    for index in 0..4 {
        assert_eq!(client.read(chunk(2, index), 0, 4 << 20).await, data);
    }
}

#[tokio::test]
async fn what_has_to_stay_does_not_keep_others_when_the_disk_fills() {
    let world = World::small();
    let (server, client) = world.start(true).await;
    // The first volume stays, all of it.
    let mut map = map_of_one(server.instance(), server.addr());
    (map.version, map.pools[0].tier) = (Epoch(2), TierMode::None);
    let meta = DataClient::connect_as(&world.pki.server, server.addr(), 0).await.unwrap();
    let told = tell_twice(&meta, ServerId(1), map.version, Some(&map)).await;
    assert_eq!(told.version, map.version);
    let data = pattern(4 << 20);
    for index in 0..4 {
        client.write(chunk(2, index), 0, &data).await;
    }
    // It alone is more than would have to go.
    let second = (1 << INODE_BITS) + 2;
    // A connection is for one volume.
    let client = DataClient::connect(&world.pki.client, server.addr()).await.unwrap();
    client.write(chunk(second, 0), 0, &data[..1 << 20]).await;
    let objects = world.wait_for_objects(1).await;
    assert!(objects[0].as_ref().contains(&format!("/{second:016x}.")), "{objects:?}");
    assert_eq!(client.read(chunk(second, 0), 0, 1 << 20).await, data[..1 << 20]);
}

#[tokio::test]
async fn an_object_that_is_damaged_or_gone_is_an_error_and_never_other_bytes() {
    let world = World::new();
    let (_server, client) = world.start(true).await;
    client.write(chunk(2, 0), 0, &pattern(1 << 20)).await;
    client.write(chunk(2, 1), 0, b"it is gone").await;
    wait_until_away(&client).await;
    let objects = world.wait_for_objects(2).await;
    let of = |index: u64| objects.iter().find(|o| o.as_ref().contains(&format!("/{index:016x}/")));
    let (big, small) = (of(0).unwrap(), of(1).unwrap());
    let good = world.bucket.get(big).await.unwrap().bytes().await.unwrap();
    let mut bad = good.to_vec();
    bad[300_000] ^= 4;
    world.bucket.put(big, bad.into()).await.unwrap();
    world.bucket.delete(small).await.unwrap();
    assert_eq!(read(&client, 0, 0, 10).await, Reply::Failed(Errno::EIO));
    assert_eq!(read(&client, 1, 0, 10).await, Reply::Failed(Errno::EIO));
    world.bucket.put(big, good.into()).await.unwrap();
    assert_eq!(client.read(chunk(2, 0), 0, 1 << 20).await, pattern(1 << 20));
    // What is written whole needs no object.
    client.write(chunk(2, 1), 0, b"it is back").await;
    assert_eq!(client.read(chunk(2, 1), 0, 10).await, b"it is back"[..]);
}

#[tokio::test]
async fn many_readers_of_a_chunk_share_one_fetch() {
    let world = World::new();
    let (_server, client) = world.start(true).await;
    let expected = pattern(4 << 20);
    client.write(chunk(2, 0), 0, &expected).await;
    wait_until_away(&client).await;
    let client = Arc::new(client);
    let readers: Vec<_> = (0..32)
        .map(|n| {
            let client = client.clone();
            tokio::spawn(async move { (n, client.read(chunk(2, 0), n << 17, 1 << 17).await) })
        })
        .collect();
    for reader in readers {
        let (n, data) = reader.await.unwrap();
        assert_eq!(data, expected[(n as usize) << 17..][..1 << 17]);
    }
}

#[test]
fn a_store_with_chunks_that_are_away_is_checked_without_the_bucket() {
    let world = World::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (server, client) = world.start(true).await;
        client.write(chunk(2, 0), 0, b"cold").await;
        wait_until_away(&client).await;
        stop(server).await;
    });
    let (report, view) = SegmentStore::examine(&world.dir.path().join("data")).unwrap();
    assert!(report.is_clean(), "{report:?}");
    let listed = view.list(ChunkKey::MIN, 9);
    assert_eq!((listed.len(), listed[0].away_bytes), (1, 4));
}

#[test]
fn an_object_store_whose_settings_cannot_be_used_keeps_the_server_from_starting() {
    let world = World::new();
    let key = world.dir.path().join("key");
    let start = |endpoint: &str, ca: Option<&str>| {
        let place = Place::S3 {
            endpoint: Some(endpoint.into()),
            region: "us-east-1".into(),
            bucket: "netfs".into(),
            credentials: Some(key.clone()),
            ca: ca.map(|name| world.dir.path().join(name)),
        };
        let bucket = BucketOptions { place, prefix: String::new() };
        let data = world.dir.path().join("data");
        let mut options = DataOptions::new(data, localhost(), world.pki.server.clone());
        options.tier = Some(TierOptions::new(bucket));
        match DataServer::start(options) {
            Ok(_) => String::new(),
            Err(error @ DataError::Tier(_)) => error.to_string(),
            Err(other) => panic!("{other}"),
        }
    };
    let good = "http://127.0.0.1:9";
    let why = start(good, None);
    assert!(why.contains("key: No such file"), "{why}");
    std::fs::write(&key, "netfs\nnetfs-secret\n").unwrap();
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).unwrap();
    let why = start(good, None);
    assert!(why.contains("others may read it"), "{why}");
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
    for bad in ["", "s3.example:9000", "ftp://s3.example", "https://", "http:// s3"] {
        let why = start(bad, None);
        assert!(why.contains("tier.endpoint"), "{bad:?}: {why}");
    }
    let why = start("https://127.0.0.1:9", Some("missing.pem"));
    assert!(why.contains("missing.pem"), "{why}");
    // That it cannot be reached is no reason.
    assert_eq!(start(good, None), "");
}
