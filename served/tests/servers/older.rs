//! An operator brings back an older copy of the metadata's directory.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use netfs_common::attr::SetAttr;
use netfs_common::codec;
use netfs_common::errno::Errno;
use netfs_common::id::{ChunkId, Ino};
use netfs_common::map::ClusterMap;
use netfs_common::net::Link;
use netfs_common::wire::Role;
use netfs_common::wire::data::{At, Op, Reply, Request};
use netfs_common::wire::meta::{
    Answer, NewInode, Op as MetaOp, Request as MetaRequest, Response, Status,
};
use netfs_served::data::server::{DataOptions, DataServer};
use netfs_served::data::store::StoreConfig;
use netfs_served::meta::server::{DataServers, MetaOptions, MetaServer, PoolOptions};
use netfs_served::thread::Ending;

use crate::common::{DataClient, MetaClient, PATIENCE, Pki, hello, localhost, make_pki};

const CHUNK: u64 = 4 << 20;
/// A data server that is silent for so long is taken for dead.
const DEADLINE: Duration = Duration::from_secs(4);
static SESSIONS: AtomicU64 = AtomicU64::new(1);

pub(crate) struct World<'a> {
    dir: &'a Path,
    pub(crate) store: StoreConfig,
    pki: Pki,
    pub(crate) meta: Option<MetaServer>,
    pub(crate) data: Vec<Option<DataServer>>,
    addrs: Vec<SocketAddr>,
}

impl<'a> World<'a> {
    fn start(dir: &'a Path, servers: usize) -> World<'a> {
        World::start_with(dir, servers, StoreConfig::default())
    }

    pub(crate) fn start_with(dir: &'a Path, servers: usize, store: StoreConfig) -> World<'a> {
        let pki = make_pki(dir);
        let (data, addrs) = (Vec::new(), Vec::new());
        let mut world = World { dir, store, pki, meta: None, data, addrs };
        for index in 0..servers {
            world.addrs.push(localhost());
            world.data.push(None);
            world.start_data(index);
        }
        world.start_meta();
        world
    }

    fn data_server(&self, index: usize) -> DataServer {
        let own = self.dir.join(format!("data{index}"));
        let mut options = DataOptions::new(own, self.addrs[index], self.pki.server.clone());
        options.store = self.store.clone();
        DataServer::start(options).unwrap()
    }

    pub(crate) fn start_data(&mut self, index: usize) {
        let server = self.data_server(index);
        self.addrs[index] = server.addr();
        self.data[index] = Some(server);
    }

    pub(crate) async fn stop_data(&mut self, index: usize) {
        let server = self.data[index].take().unwrap();
        tokio::task::spawn_blocking(|| server.stop(Ending::Drain)).await.unwrap().unwrap();
    }

    fn meta_dir(&self) -> PathBuf {
        self.dir.join("meta")
    }

    fn start_meta(&mut self) {
        let at = self.addrs.iter().map(|addr| vec![addr.to_string()]).collect();
        let mut options = MetaOptions::new(
            self.meta_dir(),
            localhost(),
            DataServers::Cluster(at),
            self.pki.server.clone(),
        );
        options.volumes = vec!["v".into()];
        let replicas = self.addrs.len().min(2) as u8;
        let pool = PoolOptions { replicas, groups: 8, ..PoolOptions::default() };
        options.pools = BTreeMap::from([("v".to_string(), pool)]);
        options.cluster.deadline = DEADLINE;
        self.meta = Some(MetaServer::start(options).unwrap());
    }

    async fn stop_meta(&mut self) {
        let meta = self.meta.take().unwrap();
        tokio::task::spawn_blocking(|| meta.stop(Ending::Drain)).await.unwrap().unwrap();
    }

    /// Copies the metadata's directory while nobody serves it.
    async fn copy(&mut self) {
        self.stop_meta().await;
        copy_dir(&self.meta_dir(), &self.dir.join("copy"));
        self.start_meta();
    }

    /// Puts the copy in the place of the metadata's directory.
    async fn bring_back(&mut self) {
        self.stop_meta().await;
        std::fs::rename(self.meta_dir(), self.dir.join("lost")).unwrap();
        copy_dir(&self.dir.join("copy"), &self.meta_dir());
    }

    /// Both servers follow a later map than before.
    async fn change_map(&mut self) {
        self.until_replicas(2).await;
        self.stop_data(1).await;
        self.until_replicas(1).await;
        self.start_data(1);
        self.until_replicas(2).await;
    }

    pub(crate) async fn mount(&self) -> MetaClient {
        let session = SESSIONS.fetch_add(1, Ordering::Relaxed);
        let addr = self.meta.as_ref().unwrap().addr();
        MetaClient::connect(&self.pki.client, addr, "v", session).await.unwrap()
    }

    pub(crate) async fn status(&self) -> Status {
        let dialer = crate::common::dialer(&self.pki.server);
        let words = codec::encode(&hello(Role::Admin, "", 0)).unwrap();
        let handler = std::sync::Arc::new(|_: Link, _: Bytes| async { Bytes::new() });
        let addr = self.meta.as_ref().unwrap().addr();
        let (link, _) = dialer.link(addr, &words, handler).await.unwrap();
        let request = codec::encode(&MetaRequest::Status).unwrap();
        let answer = link.call(request.into(), Instant::now() + PATIENCE).await.unwrap();
        match codec::decode::<Answer>(&answer).unwrap().reply {
            Ok(Response::Status(status)) => status,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn map(&self) -> ClusterMap {
        let client = self.mount().await;
        client.change(MetaOp::EndSession).await.unwrap();
        client.info.map.clone()
    }

    /// A call of a client to the head of a chunk's chain.
    pub(crate) async fn at_head(&self, chunk: ChunkId, op: Op, payload: &[u8]) -> (Reply, Bytes) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let map = self.map().await;
            if let Some((group, chain)) = map.chain_of(chunk)
                && let Some(head) = chain.head()
            {
                let addr = map.server(head.server).unwrap().addrs[0].parse().unwrap();
                let at = At::Group { group, epoch: chain.epoch };
                let request = Request { at, op: op.clone() };
                if let Ok(client) = DataClient::connect(&self.pki.client, addr).await
                    && let Ok(answer) = client.raw(&request, Bytes::copy_from_slice(payload)).await
                    && !matches!(answer.0, Reply::Busy | Reply::StaleEpoch(_))
                {
                    return answer;
                }
            }
            assert!(Instant::now() < deadline, "the head does not answer");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn write(&self, chunk: ChunkId, data: &[u8]) {
        let (reply, _) = self.at_head(chunk, Op::Write { chunk, offset: 0 }, data).await;
        assert!(matches!(reply, Reply::Written { .. }), "{reply:?}");
    }

    async fn read(&self, chunk: ChunkId, len: u64) -> Bytes {
        let (reply, data) = self.at_head(chunk, Op::Read { chunk, offset: 0, len }, &[]).await;
        assert_eq!(reply, Reply::Read);
        data
    }

    /// Reads at each replica.
    pub(crate) async fn read_all(&self, chunk: ChunkId, len: u64) -> Vec<Vec<u8>> {
        let deadline = Instant::now() + PATIENCE;
        let mut all = Vec::new();
        while Instant::now() < deadline {
            let map = self.map().await;
            let (group, chain) = map.chain_of(chunk).unwrap();
            let op = Op::Read { chunk, offset: 0, len };
            let request = Request { at: At::Group { group, epoch: chain.epoch }, op };
            all.clear();
            for replica in &chain.replicas {
                let addr = map.server(replica.server).unwrap().addrs[0].parse().unwrap();
                let client = DataClient::connect(&self.pki.client, addr).await.unwrap();
                if let (Reply::Read, data) = client.raw(&request, Bytes::new()).await.unwrap() {
                    all.push(data.to_vec());
                }
            }
            if all.len() == chain.replicas.len() {
                return all;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{} replicas answer", all.len());
    }

    /// Until all groups have so many replicas, that are there and nobody learns.
    pub(crate) async fn until_replicas(&self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let map = self.map().await;
            let lives: Vec<_> = self.data.iter().flatten().map(DataServer::instance).collect();
            let full = map.groups().all(|(_, chain)| {
                chain.replicas.len() == count
                    && chain.learner.is_none()
                    && chain.replicas.iter().all(|replica| lives.contains(&replica.instance))
            });
            if full {
                return;
            }
            let alarms = self.status().await.alarms;
            assert!(Instant::now() < deadline, "{map:?} {alarms:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) async fn until_alarm(&self, words: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let alarms = self.status().await.alarms;
            if alarms.iter().any(|line| line.contains(words)) {
                return;
            }
            assert!(Instant::now() < deadline, "{alarms:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Writes to all chunks of a file of this length.
    async fn fill(&self, client: &MetaClient, ino: Ino, chunks: u64, byte: u8) {
        let generation = client.get(ino).await.unwrap().generation;
        for index in 0..chunks {
            self.write(ChunkId { ino, generation, index }, &[byte; 100]).await;
        }
        let (end, mtime) = ((chunks - 1) * CHUNK + 100, std::time::SystemTime::now().into());
        let wrote =
            MetaOp::WroteChunks { ino, generation, end, allocated: chunks as i64 * 100, mtime };
        client.change(wrote).await.unwrap();
    }

    pub(crate) async fn file(&self, client: &MetaClient, name: &str) -> Ino {
        client.create(Ino::ROOT, name, NewInode::File).await.unwrap()
    }
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_dir(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
    std::fs::set_permissions(to, std::fs::metadata(from).unwrap().permissions()).unwrap();
}

async fn set_size(client: &MetaClient, ino: Ino, size: u64) {
    let set = SetAttr { size: Some(size), ..SetAttr::default() };
    client.change(MetaOp::SetAttr { ino, set }).await.unwrap();
}

#[tokio::test]
async fn numbers_that_the_lost_metadata_gave_out_are_not_given_out_by_an_older_copy() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::start(dir.path(), 1);
    let client = world.mount().await;
    let old = world.file(&client, "old").await;
    world.fill(&client, old, 2, 1).await;
    client.change(MetaOp::EndSession).await.unwrap();
    world.copy().await;

    // What is in no copy: another file, and other contents of the first one.
    let client = world.mount().await;
    let later = world.file(&client, "later").await;
    world.fill(&client, later, 3, 2).await;
    set_size(&client, old, 0).await;
    world.fill(&client, old, 3, 3).await;
    client.change(MetaOp::EndSession).await.unwrap();
    world.bring_back().await;

    // The data server comes only when a file is about to be made.
    world.stop_data(0).await;
    world.start_meta();
    let client = world.mount().await;
    let (new, server) = {
        let made = world.file(&client, "new");
        tokio::pin!(made);
        let moment = Duration::from_millis(300);
        assert!(tokio::time::timeout(moment, &mut made).await.is_err(), "nobody was asked");
        let server = world.data_server(0);
        (made.await, server)
    };
    world.data[0] = Some(server);
    assert!(new > later, "{new} after {later}");
    assert_eq!(client.lookup(Ino::ROOT, "later").await, Err(Errno::ENOENT));
    let status = world.status().await;
    assert!(status.alarms.iter().any(|line| line.contains("older copy")), "{:?}", status.alarms);
    // Nothing shows where the new file has a hole, or the old one got other contents.
    world.fill(&client, new, 1, 9).await;
    set_size(&client, new, 3 * CHUNK).await;
    set_size(&client, old, 0).await;
    set_size(&client, old, 3 * CHUNK).await;
    for (ino, first) in [(new, 1), (old, 0)] {
        let generation = client.get(ino).await.unwrap().generation;
        for index in first..3 {
            let found = world.read(ChunkId { ino, generation, index }, 100).await;
            assert_eq!(found, [0; 100][..], "inode {ino}, generation {generation}, {index}");
        }
    }
}

#[tokio::test]
async fn a_data_server_that_stays_away_keeps_nobody_from_making_files_for_long() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::start(dir.path(), 1);
    let client = world.mount().await;
    let before = world.file(&client, "before").await;
    world.fill(&client, before, 1, 1).await;
    client.change(MetaOp::EndSession).await.unwrap();
    world.stop_data(0).await;
    world.stop_meta().await;
    world.start_meta();
    let client = world.mount().await;
    let began = Instant::now();
    client.create(Ino::ROOT, "dir", NewInode::Dir).await.unwrap();
    assert!(began.elapsed() < DEADLINE, "a directory has no chunks");
    let next = world.file(&client, "file").await;
    assert_eq!(next.0, before.0 + 2, "no number is left out");
    world.start_data(0);
    assert_eq!(world.read(ChunkId { ino: before, generation: 0, index: 0 }, 1).await, [1][..]);
    let status = world.status().await;
    assert!(!status.alarms.iter().any(|line| line.contains("older copy")), "{:?}", status.alarms);
}

#[tokio::test]
async fn by_an_older_map_nobody_who_has_less_teaches_one_who_has_more() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::start(dir.path(), 2);
    let client = world.mount().await;
    let file = world.file(&client, "file").await;
    world.until_replicas(2).await;
    world.fill(&client, file, 4, 1).await;
    client.change(MetaOp::EndSession).await.unwrap();
    world.copy().await;
    world.change_map().await;

    // What is written from here on has the first server alone.
    world.stop_data(1).await;
    world.until_replicas(1).await;
    let client = world.mount().await;
    world.fill(&client, file, 4, 2).await;
    client.change(MetaOp::EndSession).await.unwrap();
    world.bring_back().await;
    world.stop_data(0).await;

    // By the older map both had everything, and the other one is back first.
    world.start_data(1);
    world.start_meta();
    tokio::time::sleep(DEADLINE / 20).await;
    world.start_data(0);
    world.until_replicas(2).await;
    for index in 0..4 {
        let chunk = ChunkId { ino: file, generation: 0, index };
        assert_eq!(world.read(chunk, 100).await, [2; 100][..], "chunk {index}");
        assert_eq!(world.read_all(chunk, 100).await, vec![vec![2; 100]; 2], "chunk {index}");
    }
    let status = world.status().await;
    assert!(status.alarms.iter().all(|line| !line.contains("older copy")), "{:?}", status.alarms);
    // There is nothing of the copy's time that anybody goes by any more.
    world.stop_meta().await;
    world.start_meta();
    world.until_replicas(2).await;
}

#[tokio::test]
async fn servers_that_run_go_on_when_older_metadata_has_taken_over_their_map() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::start(dir.path(), 2);
    world.until_replicas(2).await;
    world.copy().await;
    world.change_map().await;
    world.stop_data(1).await;
    world.until_replicas(1).await;
    let client = world.mount().await;
    let file = world.file(&client, "file").await;
    world.fill(&client, file, 3, 5).await;
    client.change(MetaOp::EndSession).await.unwrap();
    world.bring_back().await;
    world.start_meta();
    // Nobody knows whether the other one has followed a still later map.
    world.until_alarm("is waited for").await;
    world.start_data(1);
    world.until_replicas(2).await;
    let client = world.mount().await;
    assert!(world.file(&client, "new").await > file);
    for index in 0..3 {
        let chunk = ChunkId { ino: file, generation: 0, index };
        assert_eq!(world.read_all(chunk, 100).await, vec![vec![5; 100]; 2], "chunk {index}");
    }
}
