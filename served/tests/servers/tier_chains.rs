//! Several data servers before one object store, which is in memory; the test makes the map.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::TryStreamExt;
use netfs_common::coding::{Cipher, Coding};
use netfs_common::errno::Errno;
use netfs_common::id::{ChunkId, Epoch, InstanceId, ServerId, Version};
use netfs_common::map::{ClusterMap, DataServer as Described, Replica, TierMode};
use netfs_common::wire::audit::{AuditOp, AuditReply, Seeded, Unseeded};
use netfs_common::wire::cluster::{Beat, BeatReply, PeerOp};
use netfs_common::wire::data::{At, Op, Reply, Request};
use netfs_served::data::codec::{KeyFile, VolumeKey};
use netfs_served::data::server::{DataOptions, DataServer, TierOptions};
use netfs_served::data::tier::{BucketOptions, Place};
use netfs_served::thread::Ending;
use object_store::memory::InMemory;
use object_store::path::Path as Name;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::common::{
    DataClient, GROUPS, PATIENCE, Pki, chunk, damage, localhost, make_pki, map_of_one, set_chains,
    sign_of_life, tell as tell_map,
};

/// Nothing goes before it was not used for so long.
pub(crate) const SOON: Duration = Duration::from_secs(1);
pub(crate) const NEVER: Duration = Duration::from_secs(100_000);

pub(crate) struct Cluster<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) pki: Arc<Pki>,
    pub(crate) servers: Vec<DataServer>,
    map: ClusterMap,
    pub(crate) bucket: Arc<InMemory>,
    /// The identity of the metadata.
    owner: [u8; 16],
}

impl<'a> Cluster<'a> {
    /// Servers with these times after which chunks go; `None`: without an object store.
    pub(crate) fn start(dir: &'a Path, after: &[Option<Duration>]) -> Cluster<'a> {
        Cluster::start_with(dir, after, Arc::new(make_pki(dir)), Arc::default(), 1)
    }

    /// With the certificates and the bucket of others.
    pub(crate) fn start_with(
        dir: &'a Path,
        after: &[Option<Duration>],
        pki: Arc<Pki>,
        bucket: Arc<InMemory>,
        owner: u8,
    ) -> Cluster<'a> {
        let mut map = map_of_one(InstanceId(0), localhost());
        (map.version, map.servers) = (Epoch(0), Vec::new());
        KeyFile::make(&dir.join("key")).unwrap();
        let (servers, owner) = (Vec::new(), [owner; 16]);
        let mut cluster = Cluster { dir, pki, servers, map, bucket, owner };
        after.iter().for_each(|after| cluster.add(*after));
        cluster
    }

    fn add(&mut self, after: Option<Duration>) {
        let index = self.servers.len();
        let server = self.serve(index, after);
        let id = ServerId(index as u32 + 1);
        self.map.servers.push(Described { id, addrs: vec![server.addr().to_string()] });
        self.servers.push(server);
    }

    /// Ends a server in good order, and starts it again, changed, as its sole replica of everything.
    pub(crate) async fn restart(
        &mut self,
        index: usize,
        after: Duration,
        change: impl FnOnce(&Path),
    ) {
        let server = self.servers.remove(index);
        let end = move || server.stop(Ending::Drain);
        tokio::task::spawn_blocking(end).await.unwrap().unwrap();
        change(&self.dir.join(format!("data{index}")));
        let server = self.serve(index, Some(after));
        self.map.servers[index].addrs = vec![server.addr().to_string()];
        self.servers.insert(index, server);
        self.set(&[index], None).await;
    }

    fn serve(&self, index: usize, after: Option<Duration>) -> DataServer {
        let own = self.dir.join(format!("data{index}"));
        let mut options = DataOptions::new(own, localhost(), self.pki.server.clone());
        let place = Place::Store(self.bucket.clone());
        let bucket = BucketOptions { place, prefix: "p".into() };
        options.key_file = Some(self.dir.join("key"));
        options.tier = after.map(|after| TierOptions {
            after,
            delay: Duration::from_secs(1),
            sweep_interval: Duration::from_secs(1),
            ..TierOptions::new(bucket)
        });
        DataServer::start(options).unwrap()
    }

    fn encrypt(&mut self) {
        let file = KeyFile::load(&self.dir.join("key")).unwrap();
        let key = VolumeKey::draw(Cipher::Aes256Gcm).unwrap();
        let sealed = file.seal(0, &key).unwrap();
        self.map.pools[0].coding = Coding { key: Some(sealed), ..Coding::default() };
    }

    /// All groups get this chain, and all servers are told.
    pub(crate) async fn set(&mut self, replicas: &[usize], learner: Option<usize>) {
        let replica = |index: usize| {
            let instance = self.servers[index].instance();
            Replica { server: ServerId(index as u32 + 1), instance }
        };
        let replicas = replicas.iter().map(|index| replica(*index)).collect();
        let learner = learner.map(replica);
        set_chains(&mut self.map, replicas, learner);
        for index in 0..self.servers.len() {
            self.beat(index, true).await;
        }
    }

    pub(crate) async fn server(&self, index: usize) -> DataClient {
        DataClient::connect_as(&self.pki.server, self.servers[index].addr(), 0).await.unwrap()
    }

    pub(crate) async fn beat(&self, index: usize, tell: bool) -> BeatReply {
        let meta = self.server(index).await;
        let server = ServerId(index as u32 + 1);
        let beat = Beat { owner: self.owner, ..sign_of_life(server, self.map.version) };
        let first = tell_map(&meta, beat.clone(), tell.then_some(&self.map)).await;
        tell_map(&meta, Beat { echo: Some(first.token), ..beat }, None).await
    }

    pub(crate) async fn client(&self, index: usize) -> DataClient {
        DataClient::connect(&self.pki.client, self.servers[index].addr()).await.unwrap()
    }

    pub(crate) async fn objects(&self) -> Vec<Name> {
        let all = self.bucket.list(None).map_ok(|meta| meta.location);
        let mut all = all.try_collect::<Vec<_>>().await.unwrap();
        all.retain(|name| name.filename() != Some("owner"));
        all
    }

    /// What says whose the objects are.
    pub(crate) async fn marker(&self) -> Name {
        let all = self.bucket.list(None).map_ok(|meta| meta.location);
        let mut all = all.try_collect::<Vec<_>>().await.unwrap();
        all.retain(|name| name.filename() == Some("owner"));
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    /// Why a server does not use the bucket.
    pub(crate) async fn trouble(&self, index: usize) -> String {
        self.beat(index, false).await.tier.unwrap().trouble.unwrap_or_default()
    }

    /// Has a server take over what the bucket has of all groups of the first volume.
    async fn seed(&self, index: usize) -> Result<Seeded, Reply> {
        let (meta, mut sum) = (self.server(index).await, Seeded::default());
        for (group, chain) in self.map.groups().take(GROUPS as usize) {
            let mut after: Option<(ChunkId, Version)> = None;
            loop {
                let op = AuditOp::Seed { group, epoch: chain.epoch, after };
                let request = Request { at: At::Server, op: Op::Peer(PeerOp::Audit(op)) };
                let (reply, _) = meta.raw(&request, Bytes::new()).await.unwrap();
                let Reply::Audited(AuditReply::Seeded { seeded, next }) = reply else {
                    return Err(reply);
                };
                sum.chunks += seeded.chunks;
                sum.bytes += seeded.bytes;
                sum.kept += seeded.kept;
                sum.bad += seeded.bad;
                after = next;
                if after.is_none() {
                    break;
                }
            }
        }
        Ok(sum)
    }

    /// Flips a bit wherever these bytes are in the files of a server. How often.
    fn damage(&self, index: usize, what: &[u8]) -> usize {
        damage(&self.dir.join(format!("data{index}")), what)
    }
}

/// Waits until something is so.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, is_so: impl Fn() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(crate) async fn live(client: &DataClient) -> u64 {
    match client.call(chunk(2, 0), Op::Usage, Bytes::new()).await.0 {
        Reply::Usage(usage) => usage.live,
        other => panic!("{other:?}"),
    }
}

/// A read in the present epoch.
pub(crate) async fn read(
    cluster: &Cluster<'_>,
    index: usize,
    of: ChunkId,
    len: u64,
) -> (Reply, Bytes) {
    let (group, chain) = cluster.map.chain_of(of).unwrap();
    let at = At::Group { group, epoch: chain.epoch };
    let op = Op::Read { chunk: of, offset: 0, len };
    cluster.client(index).await.raw(&Request { at, op }, Bytes::new()).await.unwrap()
}

pub(crate) async fn until_read(cluster: &Cluster<'_>, index: usize, of: ChunkId, expected: &[u8]) {
    until("it cannot be read", async || {
        let (reply, data) = read(cluster, index, of, expected.len() as u64).await;
        match reply {
            Reply::Read => {
                assert_eq!(data, *expected);
                true
            }
            Reply::Failed(Errno::EIO) | Reply::Busy => false,
            other => panic!("{other:?}"),
        }
    })
    .await;
}

pub(crate) async fn write(
    cluster: &Cluster<'_>,
    index: usize,
    of: ChunkId,
    offset: u64,
    data: &[u8],
) {
    let (group, chain) = cluster.map.chain_of(of).unwrap();
    let at = At::Group { group, epoch: chain.epoch };
    let request = Request { at, op: Op::Write { chunk: of, offset } };
    let client = cluster.client(index).await;
    let (reply, _) = client.raw(&request, data.to_vec().into()).await.unwrap();
    assert!(matches!(reply, Reply::Written { .. }), "{reply:?}");
    let op = Op::Flush { groups: vec![(group, chain.epoch)] };
    let flushed = client.raw(&Request { at: At::Server, op }, Bytes::new()).await.unwrap();
    assert!(matches!(flushed.0, Reply::Flushed { .. }));
}

pub(crate) fn bytes(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(seed * 2 + 1) >> 3) as u8).collect()
}

#[tokio::test]
async fn a_damaged_copy_is_mended_from_a_replica_whose_bytes_are_away() {
    let dir = tempfile::tempdir().unwrap();
    // The first has no object store: it can only ask the other.
    let mut cluster = Cluster::start(dir.path(), &[None, Some(SOON)]);
    cluster.set(&[0, 1], None).await;
    let data = [&bytes(1, 50_000)[..], b"here it will be damaged", &bytes(2, 50_000)].concat();
    write(&cluster, 0, chunk(2, 0), 0, &data).await;
    let other = cluster.client(1).await;
    until("it does not go", async || live(&other).await == 0).await;
    assert_eq!(cluster.damage(0, b"here it will be damaged"), 1);
    assert_eq!(read(&cluster, 0, chunk(2, 0), 100_000).await.0, Reply::Failed(Errno::EIO));
    until_read(&cluster, 0, chunk(2, 0), &data).await;
}

#[tokio::test]
async fn a_damaged_copy_without_other_replicas_is_mended_from_the_bucket() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), &[Some(NEVER)]);
    cluster.map.pools[0].tier = TierMode::Primary;
    cluster.set(&[0], None).await;
    let data = [&bytes(1, 50_000)[..], b"here it will be damaged", &bytes(2, 50_000)].concat();
    write(&cluster, 0, chunk(2, 0), 0, &data).await;
    until("it is not uploaded", async || cluster.objects().await.len() == 1).await;
    assert_eq!(cluster.damage(0, b"here it will be damaged"), 1);
    assert_eq!(read(&cluster, 0, chunk(2, 0), 100_000).await.0, Reply::Failed(Errno::EIO));
    until_read(&cluster, 0, chunk(2, 0), &data).await;
}

#[tokio::test]
async fn a_changed_chunk_that_is_damaged_holds_up_no_others_on_their_way_to_the_bucket() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), &[Some(NEVER)]);
    cluster.map.pools[0].tier = TierMode::Primary;
    cluster.set(&[0], None).await;
    let stuck = async || cluster.beat(0, false).await.tier.unwrap().stuck;
    let mut data = bytes(3, 20_000);
    data[100..118].copy_from_slice(b"a place of its own");
    write(&cluster, 0, chunk(2, 0), 0, &data).await;
    until("it does not go", async || cluster.objects().await.len() == 1).await;
    assert_eq!(cluster.damage(0, b"a place of its own"), 1);
    // Its next object needs all of it.
    write(&cluster, 0, chunk(2, 0), 10_000, b"changed").await;
    until("nothing is said", async || stuck().await == 1).await;
    // For longer than twice the delay.
    for n in 0..30u64 {
        write(&cluster, 0, chunk(2, 1 + n % 2), 0, &bytes(n, 100)).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    until("the others do not go", async || cluster.objects().await.len() >= 3).await;
    assert_eq!(stuck().await, 1);
    write(&cluster, 0, chunk(2, 0), 0, &data).await;
    until("it does not go when it is whole", async || stuck().await == 0).await;
    until_read(&cluster, 0, chunk(2, 0), &data).await;
}

#[tokio::test]
async fn a_loss_is_not_taught_while_the_bucket_has_the_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), &[Some(NEVER), None]);
    cluster.map.pools[0].tier = TierMode::Primary;
    cluster.set(&[0], None).await;
    let data = [&bytes(1, 50_000)[..], b"here it will be damaged", &bytes(2, 50_000)].concat();
    write(&cluster, 0, chunk(2, 0), 0, &data).await;
    until("it is not uploaded", async || cluster.objects().await.len() == 1).await;
    assert_eq!(cluster.damage(0, b"here it will be damaged"), 1);
    cluster.set(&[0], Some(1)).await;
    until("it does not learn", async || {
        cluster.beat(0, false).await.synced.len() == 2 * GROUPS as usize
    })
    .await;
    cluster.set(&[0, 1], None).await;
    for index in 0..2 {
        assert_eq!(read(&cluster, index, chunk(2, 0), data.len() as u64).await.1, data);
    }
    assert_eq!(cluster.beat(0, false).await.counts.mended, 1);
    assert_eq!(cluster.beat(1, false).await.counts.damaged, 0, "it has learned a loss");
}

#[tokio::test]
async fn an_object_stays_as_long_as_any_replica_needs_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), &[Some(NEVER), Some(SOON)]);
    cluster.set(&[0, 1], None).await;
    let mut data = bytes(1, 200_000);
    write(&cluster, 0, chunk(2, 0), 0, &data).await;
    let other = cluster.client(1).await;
    until("it does not go", async || live(&other).await == 0).await;
    let first = cluster.objects().await;
    assert_eq!(first.len(), 1);
    // The head needs the object no more, and the other for what was not changed.
    write(&cluster, 0, chunk(2, 0), 1000, b"changed").await;
    data[1000..1007].copy_from_slice(b"changed");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(cluster.objects().await, first);
    until_read(&cluster, 1, chunk(2, 0), &data).await;
    until("the old object stays", async || !cluster.objects().await.contains(&first[0])).await;
    until_read(&cluster, 1, chunk(2, 0), &data).await;
    until_read(&cluster, 0, chunk(2, 0), &data).await;
}

#[tokio::test]
async fn a_new_replica_is_told_what_is_away_and_goes_on_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), &[Some(SOON), Some(NEVER)]);
    cluster.set(&[0], None).await;
    let (whole, mut mixed) = (bytes(1, 1 << 20), bytes(2, 300_000));
    write(&cluster, 0, chunk(2, 0), 0, &whole).await;
    write(&cluster, 0, chunk(2, 1), 0, &mixed).await;
    let first = cluster.client(0).await;
    until("they do not go", async || live(&first).await == 0).await;
    // A part of it is in an older object.
    write(&cluster, 0, chunk(2, 1), 100_000, b"changed").await;
    mixed[100_000..100_007].copy_from_slice(b"changed");
    cluster.set(&[0], Some(1)).await;
    until("it does not learn", async || {
        cluster.beat(0, false).await.synced.len() == 2 * GROUPS as usize
    })
    .await;
    let second = cluster.client(1).await;
    assert!(live(&second).await < 100_000, "what is away is not copied");
    cluster.set(&[1], None).await;
    until_read(&cluster, 1, chunk(2, 0), &whole).await;
    until_read(&cluster, 1, chunk(2, 1), &mixed).await;
}

/// A bucket with the chunks of a first server, of which some were changed, and what they are; the second has some of them as they were before.
async fn with_lost_server<'a>(dir: &'a Path, is_encrypted: bool) -> (Cluster<'a>, Vec<Vec<u8>>) {
    let mut cluster = Cluster::start(dir, &[Some(NEVER), Some(NEVER)]);
    cluster.map.pools[0].tier = TierMode::Primary;
    if is_encrypted {
        cluster.encrypt();
    }
    let mut chunks: Vec<_> = (0..12u64).map(|n| bytes(n, 10_000 + n as usize * 999)).collect();
    cluster.set(&[0, 1], None).await;
    for (index, data) in chunks.iter().enumerate().take(6) {
        write(&cluster, 0, chunk(2, index as u64), 0, data).await;
    }
    // From here on the second has an older copy.
    cluster.set(&[0], None).await;
    for (index, data) in chunks.iter_mut().enumerate().skip(3) {
        data[5000..5007].copy_from_slice(b"changed");
        write(&cluster, 0, chunk(2, index as u64), 0, data).await;
    }
    // A hole in the middle.
    let punch = Op::Punch { chunk: chunk(2, 11), offset: 100, len: 200 };
    let (group, chain) = cluster.map.chain_of(chunk(2, 11)).unwrap();
    let request = Request { at: At::Group { group, epoch: chain.epoch }, op: punch };
    cluster.client(0).await.raw(&request, Bytes::new()).await.unwrap();
    chunks[11][100..300].fill(0);
    until("not all is uploaded", async || {
        let report = cluster.beat(0, false).await.tier.unwrap();
        report.waiting == 0 && cluster.objects().await.len() == 12
    })
    .await;
    (cluster, chunks)
}

#[tokio::test]
async fn what_is_in_the_bucket_is_there_again_when_the_server_is_lost() {
    for is_encrypted in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (mut cluster, chunks) = with_lost_server(dir.path(), is_encrypted).await;
        let refused = cluster.seed(0).await;
        assert_eq!(refused, Err(Reply::Failed(Errno::EBUSY)), "its own chunks are shown");
        let sum = cluster.seed(1).await.unwrap();
        let all = chunks[3..].iter().map(|data| data.len() as u64).sum::<u64>() - 200;
        assert_eq!(sum, Seeded { chunks: 9, bytes: all, kept: 3, bad: 0 });
        // Once more is as good.
        let again = cluster.seed(1).await.unwrap();
        assert_eq!(again, Seeded { kept: 12, ..Seeded::default() });
        cluster.set(&[1], None).await;
        for (index, data) in chunks.iter().enumerate() {
            until_read(&cluster, 1, chunk(2, index as u64), data).await;
        }
        write(&cluster, 1, chunk(2, 5), 3, b"goes on").await;
        until("its change is not uploaded", async || {
            let waiting = cluster.beat(1, false).await.tier.unwrap().waiting;
            waiting == 0 && cluster.objects().await.len() == 12
        })
        .await;
    }
}

#[tokio::test]
async fn of_damaged_objects_older_ones_are_taken_and_an_unreachable_bucket_gives_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut cluster, chunks) = with_lost_server(dir.path(), true).await;
    cluster.add(Some(NEVER));
    cluster.add(None);
    cluster.set(&[0], None).await;
    let objects = cluster.objects().await;
    let of = |index: u64| {
        objects.iter().find(|o| o.as_ref().contains(&format!("/{index:016x}/"))).unwrap()
    };
    // The latest of one is damaged, and what is older is not what it was said to be.
    let good = cluster.bucket.get(of(7)).await.unwrap().bytes().await.unwrap();
    let mut bad = good.to_vec();
    bad[110] ^= 1;
    cluster.bucket.put(of(7), bad.into()).await.unwrap();
    let (folder, _) = of(8).as_ref().rsplit_once('/').unwrap();
    let foreign = Name::from(format!("{folder}/00000fff00000001"));
    cluster.bucket.put(&foreign, good.into()).await.unwrap();
    let sum = cluster.seed(2).await.unwrap();
    assert_eq!((sum.chunks, sum.kept, sum.bad), (11, 0, 2));
    let none = cluster.seed(3).await;
    assert_eq!(none, Err(Reply::Audited(AuditReply::NotSeeded(Unseeded::NoStore))));
    cluster.set(&[2], None).await;
    for index in (0..12).filter(|index| *index != 7) {
        until_read(&cluster, 2, chunk(2, index), &chunks[index as usize]).await;
    }
    let (reply, data) = read(&cluster, 2, chunk(2, 7), 10).await;
    assert_eq!((reply, data), (Reply::Read, vec![0; 10].into()));
}

#[tokio::test]
async fn nothing_of_an_encrypted_volume_can_be_read_in_the_bucket() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), &[Some(SOON)]);
    cluster.encrypt();
    cluster.set(&[0], None).await;
    let marker = b"words that stand in no other file";
    write(&cluster, 0, chunk(2, 0), 0, &marker.repeat(1000)).await;
    write(&cluster, 0, chunk(2, 1), 0, &marker.repeat(1000)).await;
    let client = cluster.client(0).await;
    until("they do not go", async || live(&client).await == 0).await;
    let objects = cluster.objects().await;
    assert_eq!(objects.len(), 2);
    let get = async |name: &Name| cluster.bucket.get(name).await.unwrap().bytes().await.unwrap();
    for name in &objects {
        let bytes = get(name).await;
        assert!(!bytes.windows(marker.len()).any(|part| part == marker));
        assert!(bytes.len() < 40_000);
    }
    until_read(&cluster, 0, chunk(2, 0), &marker.repeat(1000)).await;
    until("it does not go again", async || live(&client).await == 0).await;
    let good = get(&objects[0]).await;
    let mut flipped = good.to_vec();
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    // Another object of the same size in its place.
    for bad in [flipped, get(&objects[1]).await.to_vec()] {
        cluster.bucket.put(&objects[0], bad.into()).await.unwrap();
        let index = if objects[0].as_ref().contains(&format!("/{:016x}/", 0)) { 0 } else { 1 };
        let (reply, _) = read(&cluster, 0, chunk(2, index), 10).await;
        assert_eq!(reply, Reply::Failed(Errno::EIO));
    }
    cluster.bucket.put(&objects[0], good.into()).await.unwrap();
    until_read(&cluster, 0, chunk(2, 0), &marker.repeat(1000)).await;
    until_read(&cluster, 0, chunk(2, 1), &marker.repeat(1000)).await;
}
