//! Chains of data servers in this process, whose map is made by the test.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use netfs_common::codec;
use netfs_common::id::{ChunkId, Epoch, GroupId, Ino, InstanceId, ServerId, Version};
use netfs_common::map::{ClusterMap, DataServer as Described, Replica};
use netfs_common::wire::cluster::{Beat, BeatReply, Install, PeerOp};
use netfs_common::wire::data::{At, Op, Reply, Request, Span};
use netfs_served::data::server::{DataOptions, DataServer, UpkeepConfig};
use netfs_served::data::store::SegmentStore;

use crate::common::{
    DataClient, GROUPS, PATIENCE, Pki, chunk, localhost, make_pki, map_of_one, set_chains,
    sign_of_life, tell, tell_twice,
};

pub(crate) struct Cluster<'a> {
    pub(crate) dir: &'a Path,
    pki: Pki,
    pub(crate) servers: Vec<Option<DataServer>>,
    map: ClusterMap,
    /// Changes the settings of every server, whenever it is started.
    set_up: fn(&mut DataOptions),
}

impl<'a> Cluster<'a> {
    pub(crate) fn start(dir: &'a Path, count: usize) -> Cluster<'a> {
        Cluster::start_with(dir, count, |_| {})
    }

    pub(crate) fn start_with(
        dir: &'a Path,
        count: usize,
        set_up: fn(&mut DataOptions),
    ) -> Cluster<'a> {
        let pki = make_pki(dir);
        let start = |n: usize| {
            let own = dir.join(format!("data{n}"));
            let mut options = DataOptions::new(own, localhost(), pki.server.clone());
            set_up(&mut options);
            DataServer::start(options).unwrap()
        };
        let servers: Vec<_> = (0..count).map(start).collect();
        let mut map = map_of_one(InstanceId(0), localhost());
        map.servers = Vec::new();
        for (index, server) in servers.iter().enumerate() {
            let id = ServerId(index as u32 + 1);
            map.servers.push(Described { id, addrs: vec![server.addr().to_string()] });
        }
        map.version = Epoch(0);
        let servers = servers.into_iter().map(Some).collect();
        Cluster { dir, pki, servers, map, set_up }
    }

    fn replica(&self, index: usize) -> Replica {
        let instance = self.servers[index].as_ref().unwrap().instance();
        Replica { server: ServerId(index as u32 + 1), instance }
    }

    pub(crate) fn restart(&mut self, index: usize) {
        let listen = self.servers[index].as_ref().unwrap().addr();
        drop(self.servers[index].take());
        let own = self.dir.join(format!("data{index}"));
        let mut options = DataOptions::new(own, listen, self.pki.server.clone());
        (self.set_up)(&mut options);
        self.servers[index] = Some(DataServer::start(options).unwrap());
    }

    /// All groups get this chain, and all servers are told.
    pub(crate) async fn set(&mut self, replicas: &[usize], learner: Option<usize>) {
        let replicas = replicas.iter().map(|index| self.replica(*index)).collect();
        let learner = learner.map(|index| self.replica(index));
        set_chains(&mut self.map, replicas, learner);
        for index in 0..self.servers.len() {
            if self.servers[index].is_some() {
                let reply = self.beat(index, true).await;
                assert_eq!(reply.version, self.map.version);
            }
        }
    }

    pub(crate) async fn beat(&self, index: usize, tell: bool) -> BeatReply {
        let addr = self.servers[index].as_ref().unwrap().addr();
        let meta = DataClient::connect_as(&self.pki.server, addr, 0).await.unwrap();
        let server = ServerId(index as u32 + 1);
        tell_twice(&meta, server, self.map.version, tell.then_some(&self.map)).await
    }

    /// A connection as that of another server.
    pub(crate) async fn peer(&self, addr: std::net::SocketAddr) -> DataClient {
        DataClient::connect_as(&self.pki.server, addr, 0).await.unwrap()
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.map.version
    }

    pub(crate) async fn client(&self, index: usize) -> DataClient {
        let addr = self.servers[index].as_ref().unwrap().addr();
        DataClient::connect(&self.pki.client, addr).await.unwrap()
    }

    /// Until the tail says that the learner has everything, in all groups.
    pub(crate) async fn until_synced(&self, tail: usize) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let reply = self.beat(tail, false).await;
            if reply.synced.len() == 2 * GROUPS as usize {
                return;
            }
            assert!(Instant::now() < deadline, "{} groups are synced", reply.synced.len());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Until a server has copied so many chunks since its start; says how many.
    async fn until_pushed(&self, index: usize, count: u64) -> u64 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let pushed = self.beat(index, false).await.counts.pushed_chunks;
            if pushed >= count {
                return pushed;
            }
            assert!(Instant::now() < deadline, "{pushed} chunks are copied");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn group(&self, chunk: ChunkId) -> GroupId {
        self.map.group_of(chunk).unwrap()
    }
}

pub(crate) fn bytes(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(seed * 2 + 1) >> 3) as u8).collect()
}

#[tokio::test]
async fn every_replica_has_what_the_head_has_answered() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), 3);
    cluster.set(&[0, 1, 2], None).await;
    let head = cluster.client(0).await;
    let big = bytes(3, 3 << 20);
    assert_eq!(head.write(chunk(2, 0), 0, &big).await, 3 << 20);
    for index in 1..40 {
        assert_eq!(head.write(chunk(2, index), 5, &bytes(index, 1000)).await, 1000);
    }
    let punch = Op::Punch { chunk: chunk(2, 0), offset: 100, len: 50 };
    let (reply, _) = head.call(chunk(2, 0), punch, Bytes::new()).await;
    assert!(matches!(reply, Reply::Written { allocated: -50, .. }), "{reply:?}");
    let copy = Op::Copy {
        source: chunk(2, 0),
        source_offset: 0,
        target: chunk(3, 0),
        target_offset: 10,
        len: 2 << 20,
    };
    let (reply, _) = head.call(chunk(3, 0), copy, Bytes::new()).await;
    assert!(matches!(reply, Reply::Written { allocated, .. } if allocated == (2 << 20) - 50));
    head.flush(&[chunk(2, 0), chunk(2, 1), chunk(3, 0)]).await;
    let mut expected = big.clone();
    expected[100..150].fill(0);
    for index in 0..3 {
        let client = cluster.client(index).await;
        assert_eq!(client.read(chunk(2, 0), 0, 3 << 20).await, expected, "replica {index}");
        assert_eq!(client.read(chunk(3, 0), 10, 2 << 20).await, expected[..2 << 20]);
        for other in 1..40 {
            assert_eq!(client.read(chunk(2, other), 5, 1000).await, bytes(other, 1000));
        }
    }
    // Only the head takes changes.
    let tail = cluster.client(2).await;
    let at = At::Group { group: cluster.group(chunk(2, 0)), epoch: Epoch(1) };
    let write = Request { at, op: Op::Write { chunk: chunk(2, 0), offset: 0 } };
    let (reply, _) = tail.raw(&write, Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(reply, Reply::StaleEpoch(Epoch(1)));
}

#[tokio::test]
async fn a_change_that_waits_for_a_dead_replica_ends_when_the_chain_is_mended() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), 3);
    cluster.set(&[0, 1, 2], None).await;
    let head = cluster.client(0).await;
    head.write(chunk(2, 0), 0, b"before").await;
    drop(cluster.servers[2].take());
    let waiting = tokio::spawn(async move { head.write(chunk(2, 0), 0, b"during").await });
    let read = cluster.client(1).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished(), "the tail has not stored it");
    let at = At::Group { group: cluster.group(chunk(2, 0)), epoch: Epoch(1) };
    let op = Op::Read { chunk: chunk(2, 0), offset: 0, len: 6 };
    let request = Request { at, op };
    let look = read.raw(&request, Bytes::new());
    let shown = tokio::time::timeout(Duration::from_millis(200), look).await;
    assert!(shown.is_err(), "nothing is shown that a dead replica may show otherwise: {shown:?}");
    let stalled = cluster.beat(1, false).await.stalled;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert!(stalled.is_empty());
    let told = cluster.beat(1, false).await.stalled;
    assert_eq!(told.len(), 1, "the last one that is to blame is told");
    assert_eq!(told[0].2.server, ServerId(3));
    cluster.set(&[0, 1], None).await;
    assert_eq!(waiting.await.unwrap(), 0);
    assert_eq!(cluster.client(1).await.read(chunk(2, 0), 0, 6).await, &b"during"[..]);
}

#[tokio::test]
async fn a_change_that_reaches_another_replica_than_is_meant_is_not_taken_for_stored() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), 3);
    let exchange = |cluster: &mut Cluster<'_>| {
        let addrs = std::mem::take(&mut cluster.map.servers[1].addrs);
        cluster.map.servers[1].addrs = std::mem::replace(&mut cluster.map.servers[2].addrs, addrs);
    };
    // The second replica is looked for where the third one is.
    exchange(&mut cluster);
    cluster.set(&[0, 1, 2], None).await;
    let head = cluster.client(0).await;
    let writing = tokio::spawn(async move { head.write(chunk(2, 0), 0, b"data").await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!writing.is_finished(), "the second replica has not stored it");
    exchange(&mut cluster);
    cluster.set(&[0, 1, 2], None).await;
    assert_eq!(writing.await.unwrap(), 4);
    for index in 0..3 {
        let client = cluster.client(index).await;
        assert_eq!(client.read(chunk(2, 0), 0, 4).await, &b"data"[..], "replica {index}");
    }
}

#[tokio::test]
async fn a_lesson_that_reaches_another_server_than_the_learner_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), 2);
    cluster.set(&[0, 1], None).await;
    cluster.client(0).await.write(chunk(2, 0), 0, b"data").await;
    cluster.set(&[0], Some(1)).await;
    cluster.until_synced(0).await;
    let (group, epoch) = (cluster.group(chunk(2, 0)), cluster.map.version);
    let addr = cluster.servers[1].as_ref().unwrap().addr();
    let teacher = DataClient::connect_as(&cluster.pki.server, addr, 0).await.unwrap();
    let (meant, other) = (cluster.replica(1).instance, cluster.replica(0).instance);
    let gone = Install { chunk: chunk(2, 0), first: true, version: Version::NONE, offset: 0 };
    let list = PeerOp::List { from: chunk(0, 0) };
    let ask = async |at, op: &PeerOp| {
        let request = Request { at, op: Op::Peer(op.clone()) };
        teacher.raw(&request, Bytes::new()).await.unwrap().0
    };
    for op in [PeerOp::Install(gone), list.clone()] {
        let at = At::Replica { group, epoch, instance: other };
        assert_eq!(ask(at, &op).await, Reply::Busy);
        let refused = ask(At::Group { group, epoch }, &op).await;
        assert_eq!(refused, Reply::Failed(netfs_common::errno::Errno::EINVAL));
    }
    match ask(At::Replica { group, epoch, instance: meant }, &list).await {
        Reply::Listed { chunks, next: None } => assert_eq!(chunks[0].0, chunk(2, 0)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn changes_that_a_replica_refused_for_now_are_not_overtaken_by_those_that_wait_for_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), 2);
    cluster.set(&[0, 1], None).await;
    // The head goes by another map, of which its successor knows nothing yet.
    let replicas = vec![cluster.replica(0), cluster.replica(1)];
    set_chains(&mut cluster.map, replicas, None);
    cluster.beat(0, true).await;
    let head = std::sync::Arc::new(cluster.client(0).await);
    let mut writes = tokio::task::JoinSet::new();
    for part in 0..50 {
        let head = head.clone();
        writes.spawn(async move {
            // Each is tried again at times of its own.
            tokio::time::sleep(Duration::from_millis(part * 13)).await;
            head.write(chunk(2, 0), part * 1000, &bytes(part, 1000)).await
        });
    }
    // All of them come to the head, and are refused by the other.
    assert!(tokio::time::timeout(Duration::from_secs(2), writes.join_next()).await.is_err());
    cluster.beat(1, true).await;
    let all = tokio::time::timeout(Duration::from_secs(10), writes.join_all()).await;
    assert_eq!(all.expect("they wait for each other"), [1000; 50]);
    let tail = cluster.client(1).await;
    for part in 0..50 {
        assert_eq!(tail.read(chunk(2, 0), part * 1000, 1000).await, bytes(part, 1000));
    }
}

#[tokio::test]
async fn a_replica_that_was_away_gets_what_differs_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), 3);
    cluster.set(&[0, 1], None).await;
    let head = cluster.client(0).await;
    for index in 0..60 {
        head.write(chunk(2, index), 0, &bytes(index, 3000)).await;
    }
    head.flush(&(0..60).map(|index| chunk(2, index)).collect::<Vec<_>>()).await;
    cluster.set(&[0], None).await;
    for index in 0..10 {
        head.write(chunk(2, index), 100, &bytes(index + 7, 50)).await;
    }
    let meta =
        DataClient::connect_as(&cluster.pki.server, cluster.servers[0].as_ref().unwrap().addr(), 5);
    let meta = meta.await.unwrap();
    let (reply, _) =
        meta.call(chunk(2, 50), Op::Delete { first: chunk(2, 50) }, Bytes::new()).await;
    assert!(matches!(reply, Reply::Deleted { freed: 30_000, .. }), "{reply:?}");
    head.write(chunk(9, 0), 0, &bytes(1, 2_500_000)).await;
    cluster.restart(1);
    cluster.set(&[0], Some(1)).await;
    cluster.until_synced(0).await;
    // Ten were changed, ten removed, and one is new.
    let counts = cluster.beat(0, false).await.counts;
    assert!((21..=23).contains(&counts.pushed_chunks), "{counts:?}");
    let differ = 10 * 3000 + 2_500_000;
    assert!((differ..differ + 6000).contains(&counts.pushed_bytes), "{counts:?}");
    // Away again, and now changes go on while it learns, of what it has and of what it lacks.
    cluster.set(&[0], None).await;
    for index in 0..10 {
        head.write(chunk(2, index), 200, &bytes(index + 9, 50)).await;
    }
    cluster.set(&[0], Some(1)).await;
    for index in 0..60 {
        head.write(chunk(4, index), 0, &bytes(index, 500)).await;
        head.write(chunk(2, index % 50), 1000, &bytes(index, 500)).await;
    }
    cluster.until_synced(0).await;
    cluster.set(&[0, 1], None).await;
    for index in 0..2 {
        let client = cluster.client(index).await;
        for n in 0..50 {
            let mut expected = bytes(n, 1000);
            if n < 10 {
                expected[100..150].copy_from_slice(&bytes(n + 7, 50));
                expected[200..250].copy_from_slice(&bytes(n + 9, 50));
            }
            let found = client.read(chunk(2, n), 0, 1000).await;
            assert_eq!(found, expected, "chunk {n} of replica {index}");
            assert_eq!(client.read(chunk(4, n), 0, 500).await, bytes(n, 500));
        }
        assert_eq!(client.read(chunk(9, 0), 0, 2_500_000).await, bytes(1, 2_500_000));
        assert_eq!(client.read(chunk(2, 50), 0, 100).await, vec![0; 100]);
    }
    // The head is lost for ever.
    drop(cluster.servers[0].take());
    cluster.set(&[1], Some(2)).await;
    cluster.until_synced(1).await;
    cluster.set(&[1, 2], None).await;
    let (one, two) = (cluster.client(1).await, cluster.client(2).await);
    one.write(chunk(2, 3), 0, b"later").await;
    assert_eq!(two.read(chunk(2, 3), 0, 5).await, &b"later"[..]);
    assert_eq!(two.read(chunk(9, 0), 0, 2_500_000).await, bytes(1, 2_500_000));
    for index in 1..3 {
        drop(cluster.servers[index].take());
        let report = SegmentStore::check(&dir.path().join(format!("data{index}"))).unwrap();
        assert!(report.is_clean());
    }
}

#[tokio::test]
async fn a_lesson_that_is_broken_off_goes_on_with_what_is_left() {
    const LACKED: u64 = 60;
    let dir = tempfile::tempdir().unwrap();
    // Some 10 chunks a second, so that there is a middle to break it off in.
    let slow = |options: &mut DataOptions| options.repair_rate = 200_000;
    let mut cluster = Cluster::start_with(dir.path(), 2, slow);
    cluster.set(&[0, 1], None).await;
    let head = cluster.client(0).await;
    let all: Vec<_> = (0..100).map(|index| chunk(2, index)).collect();
    for chunk in &all {
        head.write(*chunk, 0, &bytes(chunk.index, 20_000)).await;
    }
    head.flush(&all).await;
    cluster.set(&[0], None).await;
    for chunk in &all[..LACKED as usize] {
        head.write(*chunk, 100, &bytes(chunk.index + 7, 50)).await;
    }
    cluster.set(&[0], Some(1)).await;
    let first = cluster.until_pushed(0, 15).await;
    // The chain changes, and it is the same teacher and the same learner.
    cluster.set(&[0], Some(1)).await;
    let second = cluster.until_pushed(0, first + 15).await;
    assert!(second < LACKED, "{second}: it was over before it was broken off");
    // The learner begins another life.
    cluster.restart(1);
    cluster.set(&[0], Some(1)).await;
    cluster.until_synced(0).await;
    let counts = cluster.beat(0, false).await.counts;
    // One that was on its way then may have been copied twice, or once without anybody counting it.
    assert!((LACKED - 4..=LACKED + 4).contains(&counts.pushed_chunks), "{counts:?}");
    cluster.set(&[0, 1], None).await;
    let learnt = cluster.client(1).await;
    for chunk in &all {
        let mut expected = bytes(chunk.index, 20_000);
        if chunk.index < LACKED {
            expected[100..150].copy_from_slice(&bytes(chunk.index + 7, 50));
        }
        assert_eq!(learnt.read(*chunk, 0, 20_000).await, expected, "{chunk:?}");
    }
}

#[tokio::test]
async fn damage_that_nobody_reads_is_found_and_replaced_from_another_replica() {
    let dir = tempfile::tempdir().unwrap();
    let often = |options: &mut DataOptions| {
        options.upkeep =
            UpkeepConfig { scrub_interval: Duration::from_secs(1), scrub_rate: 1 << 30 };
    };
    let mut cluster = Cluster::start_with(dir.path(), 2, often);
    cluster.set(&[0, 1], None).await;
    let head = cluster.client(0).await;
    let whole = bytes(3, 1 << 20);
    head.write(chunk(2, 0), 0, &whole).await;
    head.write(chunk(2, 1), 0, b"another").await;
    head.flush(&[chunk(2, 0), chunk(2, 1)]).await;
    // A byte changes on the disk of the second replica.
    let files = std::fs::read_dir(dir.path().join("data1")).unwrap().map(|e| e.unwrap().path());
    let place = |file: &Path| {
        let stored = std::fs::read(file).unwrap();
        stored.windows(64).position(|found| found == &whole[500_000..500_064])
    };
    let (file, at) = files
        .filter(|path| path.is_file())
        .find_map(|path| place(&path).map(|at| (path, at)))
        .expect("the data is in a file as it is");
    let disk = std::fs::OpenOptions::new().write(true).open(&file).unwrap();
    disk.write_all_at(&[!whole[500_010]], at as u64 + 10).unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let counts = cluster.beat(1, false).await.counts;
        if (counts.damaged, counts.mended) == (1, 1) {
            break;
        }
        assert!(Instant::now() < deadline, "{counts:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(cluster.beat(0, false).await.counts.damaged, 0, "the other one is well");
    // Without the other one, so that nobody can help any more.
    cluster.set(&[1], None).await;
    drop(cluster.servers[0].take());
    let mended = cluster.client(1).await;
    assert_eq!(mended.read(chunk(2, 0), 0, 1 << 20).await, whole);
    assert_eq!(mended.read(chunk(2, 1), 0, 7).await, &b"another"[..]);
    assert_eq!(cluster.beat(1, false).await.counts.damaged, 1);
}

#[tokio::test]
async fn without_a_lease_a_replica_that_others_can_replace_shows_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), 2);
    cluster.set(&[0, 1], None).await;
    cluster.client(0).await.write(chunk(2, 0), 0, b"shown").await;
    let fresh = cluster.replica(1);
    cluster.restart(1);
    assert_ne!(fresh, cluster.replica(1));
    // It knows the map, and nobody has counted on it for long enough.
    let addr = cluster.servers[0].as_ref().unwrap().addr();
    let meta = DataClient::connect_as(&cluster.pki.server, addr, 9).await.unwrap();
    let revoke = vec![(cluster.group(chunk(2, 0)), Epoch(1))];
    let beat = Beat { revoke: revoke.clone(), ..sign_of_life(ServerId(1), Epoch(1)) };
    assert_eq!(tell(&meta, beat, None).await.revoked, revoke);
    let at = At::Group { group: cluster.group(chunk(2, 0)), epoch: Epoch(1) };
    let op = Op::Read { chunk: chunk(2, 0), offset: 0, len: 5 };
    let client = cluster.client(0).await;
    let (reply, _) = client.raw(&Request { at, op }, Bytes::new()).await.unwrap();
    assert_eq!(reply, Reply::Busy, "it has promised not to");
    cluster.set(&[0], None).await;
    assert_eq!(client.read(chunk(2, 0), 0, 5).await, &b"shown"[..]);
}

#[tokio::test]
async fn what_withdrawn_writes_leave_with_a_head_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), 2);
    cluster.set(&[0, 1], None).await;
    let head = cluster.client(0).await;
    head.write(chunk(2, 0), 0, b"before").await;
    drop(cluster.servers[1].take());
    let group = cluster.group(chunk(2, 0));
    let same = (1..).map(|index| chunk(2, index)).filter(|of| cluster.group(*of) == group);
    let chunks: Vec<_> = same.take(40).collect();
    let data = Bytes::from(bytes(1, 1 << 20));
    for chunk in &chunks {
        let at = At::Group { group, epoch: Epoch(1) };
        let request = Request { at, op: Op::Write { chunk: *chunk, offset: 0 } };
        let call = head.raw(&request, data.clone());
        let withdrawn = tokio::time::timeout(Duration::from_millis(30), call).await;
        assert!(withdrawn.is_err(), "the other has not stored it");
    }
    cluster.set(&[0], None).await;
    // It ends when all that was noted before is stored.
    head.write(chunk(2, 0), 0, b"after").await;
    let mut made = 0;
    for chunk in &chunks {
        made += usize::from(head.read(*chunk, 0, 100).await == data[..100]);
    }
    assert!((4..=16).contains(&made), "{made} of {} were noted", chunks.len());
    // Room is given back.
    for chunk in &chunks {
        head.write(*chunk, 0, &data).await;
    }
}

#[tokio::test]
async fn a_chunk_that_is_written_all_the_time_can_be_read_at_every_replica() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), 2);
    cluster.set(&[0, 1], None).await;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut writers = Vec::new();
    for n in 0..6u64 {
        let (client, stop) = (cluster.client(0).await, stop.clone());
        writers.push(tokio::spawn(async move {
            let mut count = 0u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                count += 1;
                client.write(chunk(2, 0), n * 65536, &[count as u8; 65536]).await;
            }
            count
        }));
    }
    for index in 0..2 {
        let reader = cluster.client(index).await;
        let began = Instant::now();
        for _ in 0..30 {
            let data = reader.read(chunk(2, 0), 0, 6 * 65536).await;
            let whole = data.chunks(65536).all(|part| part.iter().all(|byte| *byte == part[0]));
            assert!(whole, "a part of a write is shown");
        }
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for writer in writers {
        assert!(writer.await.unwrap() > 5, "writes do not starve either");
    }
}

#[tokio::test]
async fn ranges_are_answered_by_an_older_map_as_long_as_the_heads_are_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), 2);
    cluster.set(&[0, 1], None).await;
    let head = cluster.client(0).await;
    for index in 0..20 {
        head.write(chunk(2, index), 0, &bytes(index, 1000)).await;
    }
    let end = 20u64 << 22;
    let span = Span { ino: Ino(2), generation: 0, chunk_bits: 22, from: 0, to: end };
    let call = async |version, op| {
        let request = Request { at: At::Map { version: Epoch(version) }, op };
        head.raw(&request, Bytes::new()).await.unwrap().0
    };
    cluster.set(&[0], None).await;
    for version in [1, 2] {
        let reply = call(version, Op::Extents { span, limit: 100 }).await;
        let whole = matches!(&reply, Reply::Extents { extents, upto } if extents.len() == 20 && *upto == end);
        assert!(whole, "{reply:?}");
    }
    // A hole is made in the epochs of the map that was named, and in no later one.
    let reply = call(1, Op::PunchSpan { span }).await;
    assert_eq!(reply, Reply::StaleEpoch(Epoch(2)));
    let reply = call(2, Op::PunchSpan { span }).await;
    assert_eq!(reply, Reply::Punched { allocated: -20_000, upto: end });
    cluster.set(&[1, 0], None).await;
    cluster.set(&[0], None).await;
    let reply = call(2, Op::Extents { span, limit: 100 }).await;
    assert_eq!(reply, Reply::StaleEpoch(Epoch(4)), "another was the head meanwhile");
    let reply = call(4, Op::Extents { span, limit: 100 }).await;
    assert_eq!(reply, Reply::Extents { extents: Vec::new(), upto: end });
}

#[tokio::test]
async fn metadata_to_which_the_data_does_not_belong_is_not_obeyed() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), 1);
    cluster.set(&[0], None).await;
    cluster.client(0).await.write(chunk(2, 0), 0, b"ours").await;
    cluster.restart(0);
    let addr = cluster.servers[0].as_ref().unwrap().addr();
    let meta = DataClient::connect_as(&cluster.pki.server, addr, 9).await.unwrap();
    let mut map = cluster.map.clone();
    map.version = Epoch(map.version.0 + 1);
    for chain in map.pools.iter_mut().flat_map(|pool| &mut pool.chains) {
        chain.epoch = map.version;
        chain.replicas = vec![cluster.replica(0)];
    }
    let beat = Beat {
        server: ServerId(1),
        echo: None,
        lease_ms: 60_000,
        version: map.version,
        revoke: Vec::new(),
        hand_over: Vec::new(),
        hold_ms: 0,
        stall_ms: 5000,
        owner: [2; 16],
    };
    let op = Op::Peer(PeerOp::Beat(beat));
    let payload: Bytes = codec::encode(&map).unwrap().into();
    let (reply, _) = meta.raw(&Request { at: At::Server, op }, payload).await.unwrap();
    let Reply::Beat(reply) = reply else { panic!("{reply:?}") };
    assert_eq!((reply.owner, reply.version), (Some([1; 16]), Epoch(0)));
    let op = Op::Delete { first: chunk(2, 0) };
    let (reply, _) = meta.raw(&Request { at: At::Server, op }, Bytes::new()).await.unwrap();
    assert_eq!(reply, Reply::Busy, "whose chunks it has is not known");
    cluster.set(&[0], None).await;
    assert_eq!(cluster.client(0).await.read(chunk(2, 0), 0, 4).await, &b"ours"[..]);
}
