//! Directories with a number of replicas of their own, on real servers.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use netfs_common::attr::SetAttr;
use netfs_common::class::{self, Class};
use netfs_common::codec;
use netfs_common::errno::Errno;
use netfs_common::id::{ChunkId, Ino};
use netfs_common::map::ClusterMap;
use netfs_common::name::Name;
use netfs_common::net::Link;
use netfs_common::wire::Role;
use netfs_common::wire::data::{At, Op as DataOp, Reply, Request as DataRequest};
use netfs_common::wire::meta::{
    Answer, NewInode, Op, RenameMode, Request, Response, Status, XattrMode,
};
use netfs_common::wire::operator::Redundancy;
use netfs_served::data::server::{DataOptions, DataServer};
use netfs_served::meta::server::{DataServers, MetaOptions, MetaServer, PoolOptions};
use netfs_served::thread::Ending;

use crate::common::{DataClient, MetaClient, PATIENCE, Pki, dialer, hello, localhost, make_pki};

const GROUPS: u32 = 16;
const CHUNKS: u64 = 12;
const LEN: u64 = 1000;
const THREE: u8 = 3;

struct World<'a> {
    dir: &'a Path,
    pki: Pki,
    addrs: Vec<SocketAddr>,
    data: Vec<Option<DataServer>>,
    meta: Option<MetaServer>,
    next_session: AtomicU64,
}

impl<'a> World<'a> {
    fn start(dir: &'a Path) -> World<'a> {
        let pki = make_pki(dir);
        let options = |n: usize| {
            DataOptions::new(dir.join(format!("data{n}")), localhost(), pki.server.clone())
        };
        let data: Vec<_> = (0..3).map(|n| DataServer::start(options(n)).unwrap()).collect();
        let addrs = data.iter().map(DataServer::addr).collect();
        let data = data.into_iter().map(Some).collect();
        let mut world =
            World { dir, pki, addrs, data, meta: None, next_session: AtomicU64::new(100) };
        world.start_meta();
        world
    }

    fn start_meta(&mut self) {
        let servers = self.addrs.iter().map(|addr| vec![addr.to_string()]).collect();
        let at = DataServers::Cluster(servers);
        let own = self.dir.join("meta");
        let mut options = MetaOptions::new(own, localhost(), at, self.pki.server.clone());
        options.volumes = vec!["v".into()];
        options.pools = [(
            "v".to_string(),
            PoolOptions { replicas: 1, groups: GROUPS, ..PoolOptions::default() },
        )]
        .into();
        options.cluster.deadline = Duration::from_secs(1);
        self.meta = Some(MetaServer::start(options).unwrap());
    }

    async fn stop_meta(&mut self) {
        let meta = self.meta.take().unwrap();
        tokio::task::spawn_blocking(|| meta.stop(Ending::Drain)).await.unwrap().unwrap();
    }

    fn start_data(&mut self, n: usize) {
        let own = self.dir.join(format!("data{n}"));
        let options = DataOptions::new(own, self.addrs[n], self.pki.server.clone());
        self.data[n] = Some(DataServer::start(options).unwrap());
    }

    fn meta_addr(&self) -> SocketAddr {
        self.meta.as_ref().unwrap().addr()
    }

    async fn client(&self) -> MetaClient {
        let session = self.next_session.fetch_add(1, Ordering::Relaxed);
        MetaClient::connect(&self.pki.client, self.meta_addr(), "v", session).await.unwrap()
    }

    async fn map(&self) -> ClusterMap {
        let client = self.client().await;
        let map = client.info.map.clone();
        client.change(Op::EndSession).await.unwrap();
        map
    }

    async fn status(&self) -> Status {
        let words = codec::encode(&hello(Role::Admin, "", 0)).unwrap();
        let handler = Arc::new(|_: Link, _: Bytes| async { Bytes::new() });
        let dialer = dialer(&self.pki.client);
        let (link, _) = dialer.link(self.meta_addr(), &words, handler).await.unwrap();
        let request = codec::encode(&Request::Status).unwrap();
        let answer = link.call(request.into(), Instant::now() + PATIENCE).await.unwrap();
        match codec::decode::<Answer>(&answer).unwrap().reply {
            Ok(Response::Status(status)) => status,
            other => panic!("{other:?}"),
        }
    }

    /// Of the default class, and of three replicas.
    async fn redundancy(&self) -> (Redundancy, Redundancy) {
        let status = self.status().await;
        let volume = &status.volumes[0];
        let of =
            |(class, of): &(Class, Redundancy)| (class.replicas() == Some(THREE)).then_some(*of);
        (volume.redundancy, volume.classes.iter().find_map(of).unwrap())
    }

    async fn until(&self, what: &str, test: impl Fn(&Redundancy, &Redundancy) -> bool) {
        let limit = Instant::now() + PATIENCE;
        loop {
            let (default, three) = self.redundancy().await;
            if test(&default, &three) {
                return;
            }
            assert!(Instant::now() < limit, "{what}: {default:?} {three:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Asks the head of a chunk's chain until it does it.
    async fn change(
        &self,
        chunk: ChunkId,
        op: impl Fn(&ClusterMap) -> DataOp,
        payload: &[u8],
    ) -> Reply {
        let limit = Instant::now() + PATIENCE;
        loop {
            let map = self.map().await;
            let (group, chain) = map.chain_of(chunk).unwrap();
            if let Some(head) = chain.head() {
                let addr = map.server(head.server).unwrap().addrs[0].parse().unwrap();
                let op = op(&map);
                let at = match op {
                    DataOp::Flush { .. } => At::Server,
                    _ => At::Group { group, epoch: chain.epoch },
                };
                if let Ok(client) = DataClient::connect(&self.pki.client, addr).await {
                    let payload = Bytes::copy_from_slice(payload);
                    match client.raw(&DataRequest { at, op }, payload).await {
                        Ok((Reply::Busy | Reply::StaleEpoch(_), _)) | Err(_) => {}
                        Ok((reply, _)) => return reply,
                    }
                }
            }
            assert!(Instant::now() < limit, "no head does it: {chain:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A file's chunks, each of one byte many times, all flushed.
    async fn write(&self, meta: &MetaClient, ino: Ino, seed: u8) {
        let generation = meta.get(ino).await.unwrap().generation;
        for index in 0..CHUNKS {
            let chunk = ChunkId { ino, generation, index };
            let bytes = vec![seed + index as u8; LEN as usize];
            let reply = self.change(chunk, |_| DataOp::Write { chunk, offset: 0 }, &bytes).await;
            assert!(matches!(reply, Reply::Written { allocated: 1000, .. }), "{reply:?}");
            let flush = |map: &ClusterMap| {
                let (group, chain) = map.chain_of(chunk).unwrap();
                DataOp::Flush { groups: vec![(group, chain.epoch)] }
            };
            assert!(matches!(self.change(chunk, flush, &[]).await, Reply::Flushed { .. }));
        }
        let (end, mtime) = (((CHUNKS - 1) << 22) + LEN, std::time::SystemTime::now().into());
        let allocated = (CHUNKS * LEN) as i64;
        let wrote = Op::WroteChunks { ino, generation, end, allocated, mtime };
        meta.change(wrote).await.unwrap();
    }

    /// Which of a file's chunks can be read within `patience`, from whichever replica. They have what they should.
    async fn readable(&self, ino: Ino, generation: u32, seed: u8, patience: Duration) -> Vec<bool> {
        let limit = Instant::now() + patience;
        let mut found = vec![false; CHUNKS as usize];
        loop {
            let map = self.map().await;
            for index in (0..CHUNKS).filter(|i| !found[*i as usize]).collect::<Vec<_>>() {
                let chunk = ChunkId { ino, generation, index };
                let (group, chain) = map.chain_of(chunk).unwrap();
                for replica in &chain.replicas {
                    let addr = map.server(replica.server).unwrap().addrs[0].parse().unwrap();
                    if self.data[self.addrs.iter().position(|a| *a == addr).unwrap()].is_none() {
                        continue;
                    }
                    let client = DataClient::connect(&self.pki.client, addr).await.unwrap();
                    let at = At::Group { group, epoch: chain.epoch };
                    let op = DataOp::Read { chunk, offset: 0, len: LEN };
                    let answer = client.raw(&DataRequest { at, op }, Bytes::new()).await;
                    if let Ok((Reply::Read, bytes)) = answer {
                        assert_eq!(bytes, vec![seed + index as u8; LEN as usize]);
                        found[index as usize] = true;
                        break;
                    }
                }
            }
            if found.iter().all(|found| *found) || Instant::now() >= limit {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Chunks that each server has.
    async fn held(&self) -> Vec<u64> {
        let mut all = Vec::new();
        for addr in &self.addrs {
            let client = DataClient::connect(&self.pki.client, *addr).await.unwrap();
            let request = DataRequest { at: At::Server, op: DataOp::Usage };
            match client.raw(&request, Bytes::new()).await.unwrap().0 {
                Reply::Usage(usage) => all.push(usage.chunks),
                other => panic!("{other:?}"),
            }
        }
        all
    }

    async fn until_held(&self, sum: u64) {
        let limit = Instant::now() + PATIENCE;
        loop {
            let held = self.held().await;
            if held.iter().sum::<u64>() == sum {
                return;
            }
            assert!(Instant::now() < limit, "{held:?} chunks are there, {sum} should be");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

fn set(ino: Ino, value: &[u8]) -> Op {
    let (name, value) = (class::XATTR.to_vec(), value.to_vec());
    Op::SetXattr { ino, name, value, mode: XattrMode::Set }
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

#[tokio::test]
async fn files_of_a_directory_with_three_replicas_survive_any_server_and_others_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::start(dir.path());
    let three = Class::with_replicas(THREE).unwrap();
    let meta = world.client().await;
    let safe = meta.create(Ino::ROOT, "safe", NewInode::Dir).await.unwrap();
    let plain = meta.create(Ino::ROOT, "plain", NewInode::Dir).await.unwrap();
    assert_eq!(world.map().await.pools.len(), 1);
    assert_eq!(meta.change(set(safe, b"6")).await, Err(Errno::EINVAL));
    meta.change(set(safe, b"3")).await.unwrap();
    let map = world.map().await;
    assert_eq!(
        map.pools.iter().map(|pool| pool.class).collect::<Vec<_>>(),
        [Class::DEFAULT, three]
    );
    assert_eq!(map.pools[1].chains.len(), GROUPS as usize);
    let sub = meta.create(safe, "sub", NewInode::Dir).await.unwrap();
    let dear = meta.create(sub, "dear", NewInode::File).await.unwrap();
    let cheap = meta.create(plain, "cheap", NewInode::File).await.unwrap();
    assert_eq!(meta.change(set(dear, b"3")).await, Err(Errno::ENOTDIR));
    // What is refused leaves no groups behind.
    assert_eq!(meta.change(set(dear, b"2")).await, Err(Errno::ENOTDIR));
    assert_eq!(meta.change(set(Ino(dear.0 + 1000), b"2")).await, Err(Errno::ESTALE));
    assert_eq!(world.map().await.pools.len(), 2);
    let generation = meta.get(dear).await.unwrap().generation;
    assert_eq!((Class::of(generation), class::count(generation)), (three, 0));
    assert_eq!(meta.get(cheap).await.unwrap().generation, 0);
    world.until("full", |one, three| one.full == GROUPS && three.full == GROUPS).await;
    world.write(&meta, dear, 1).await;
    world.write(&meta, cheap, 101).await;
    assert!(world.held().await.iter().all(|held| *held >= CHUNKS), "three copies of one");
    world.until_held(3 * CHUNKS + CHUNKS).await;

    // Moved and linked elsewhere, it stays what it is.
    let mode = RenameMode::Replace;
    let (from, to) = (name("dear"), name("moved"));
    meta.change(Op::Rename { parent: sub, name: from, new_parent: plain, new_name: to, mode })
        .await
        .unwrap();
    meta.change(Op::Link { ino: dear, parent: Ino::ROOT, name: name("link") }).await.unwrap();
    assert_eq!(meta.get(dear).await.unwrap().generation, generation);

    for n in 0..3 {
        let before = world.map().await;
        let id =
            before.servers.iter().find(|s| s.addrs[0] == world.addrs[n].to_string()).unwrap().id;
        let lives = |index| {
            let chunk = ChunkId { ino: cheap, generation: 0, index };
            before.chain_of(chunk).unwrap().1.head().unwrap().server != id
        };
        let expected: Vec<bool> = (0..CHUNKS).map(lives).collect();
        drop(world.data[n].take());
        let begun = Instant::now();
        assert_eq!(world.readable(dear, generation, 1, PATIENCE).await, [true; CHUNKS as usize]);
        println!("server {n} dead: all of the dear file was read after {:?}", begun.elapsed());
        world
            .until("unavailable", |one, three| {
                one.unavailable > 0 && three.unavailable == 0 && three.degraded == GROUPS
            })
            .await;
        let cheap = world.readable(cheap, 0, 101, Duration::from_secs(1)).await;
        assert_eq!(cheap, expected, "only what is on other servers");
        let alarms = world.status().await.alarms.join("\n");
        let wanted =
            "volume v, directories with 3 replicas: 16 of 16 placement groups lack 16 replicas";
        assert!(alarms.contains(wanted), "{alarms}");
        assert!(alarms.contains("volume v: "), "{alarms}");
        world.start_data(n);
        world.until("full again", |one, three| one.full == GROUPS && three.full == GROUPS).await;
    }

    // Everything is there after a restart of the metadata server.
    meta.change(Op::EndSession).await.unwrap();
    world.stop_meta().await;
    world.start_meta();
    let meta = world.client().await;
    let later = meta.create(sub, "later", NewInode::File).await.unwrap();
    assert_eq!(Class::of(meta.get(later).await.unwrap().generation), three);
    assert_eq!(world.map().await.pools.len(), 2);
    world.until("full", |one, three| one.full == GROUPS && three.full == GROUPS).await;
    assert_eq!(world.readable(dear, generation, 1, PATIENCE).await, [true; CHUNKS as usize]);
    assert_eq!(world.readable(cheap, 0, 101, PATIENCE).await, [true; CHUNKS as usize]);

    // What is made from now on has what the volume says, and what is there stays.
    meta.change(set(sub, b"default")).await.unwrap();
    let last = meta.create(sub, "last", NewInode::File).await.unwrap();
    assert_eq!(meta.get(last).await.unwrap().generation, 0);

    // Cut, emptied and removed: the chunks go from every server.
    let cut =
        |size| Op::SetAttr { ino: dear, set: SetAttr { size: Some(size), ..SetAttr::default() } };
    let (_, attrs) = meta.change(cut((4 << 22) + 10)).await.unwrap();
    let attr = attrs.iter().find(|attr| attr.ino == dear).unwrap();
    assert_eq!((attr.allocated, attr.generation), (4 * LEN + 10, generation), "exact, per class");
    world.until_held(3 * 5 + CHUNKS).await;
    meta.change(cut(0)).await.unwrap();
    let emptied = meta.get(dear).await.unwrap().generation;
    assert_eq!((Class::of(emptied), class::count(emptied)), (three, 1));
    world.until_held(CHUNKS).await;
    world.write(&meta, dear, 51).await;
    world.until_held(3 * CHUNKS + CHUNKS).await;
    meta.change(Op::Unlink { parent: plain, name: name("moved") }).await.unwrap();
    assert_eq!(world.readable(dear, emptied, 51, PATIENCE).await, [true; CHUNKS as usize]);
    meta.change(Op::Unlink { parent: Ino::ROOT, name: name("link") }).await.unwrap();
    meta.change(Op::Unlink { parent: plain, name: name("cheap") }).await.unwrap();
    meta.change(Op::Forget { inos: vec![dear, cheap] }).await.unwrap();
    world.until_held(0).await;
    world.stop_meta().await;
}
