//! Metadata and data servers in this process, compared while they run; and a data server that is lost for good.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::TryStreamExt;
use netfs_common::attr::SetAttr;
use netfs_common::id::{ChunkId, Ino, ServerId};
use netfs_common::map::ClusterMap;
use netfs_common::name::Name;
use netfs_common::wire::audit::AuditOp;
use netfs_common::wire::cluster::PeerOp;
use netfs_common::wire::data::{At, Op, Reply, Request};
use netfs_common::wire::meta::{NewInode, Op as MetaOp, Request as MetaRequest, Response, Status};
use netfs_common::wire::operator::{AuditReport, AuditStep, Operation, Outcome};
use netfs_served::data::server::{DataOptions, DataServer, TierOptions};
use netfs_served::data::tier::{BucketOptions, Place};
use netfs_served::meta::server::{DataServers, MetaOptions, MetaServer, PoolOptions};

use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::common::{DataClient, MetaClient, PATIENCE, Pki, administer, localhost, make_pki};

pub(crate) const GROUPS: u32 = 16;
const CHUNK: u64 = 4 << 20;
/// Sessions that only ask for the map.
static ASKERS: AtomicU64 = AtomicU64::new(1 << 40);

/// A metadata server and data servers, which find their places by themselves.
pub(crate) struct World {
    pki: Pki,
    meta: MetaServer,
    pub(crate) data: Vec<Option<DataServer>>,
}

impl World {
    pub(crate) async fn start(dir: &Path, servers: usize, replicas: u8) -> World {
        World::start_with(dir, servers, replicas, |_| {}).await
    }

    pub(crate) async fn start_with(
        dir: &Path,
        servers: usize,
        replicas: u8,
        set_up: impl Fn(&mut DataOptions),
    ) -> World {
        let pki = make_pki(dir);
        let start = |n: usize| {
            let own = dir.join(format!("data{n}"));
            let mut options = DataOptions::new(own, localhost(), pki.server.clone());
            set_up(&mut options);
            DataServer::start(options).unwrap()
        };
        let data: Vec<_> = (1..=servers).map(start).collect();
        let addrs = data.iter().map(|server| vec![server.addr().to_string()]).collect();
        let at = DataServers::Cluster(addrs);
        let mut options = MetaOptions::new(dir.join("meta"), localhost(), at, pki.server.clone());
        options.volumes = vec!["v".into()];
        options.pools =
            [("v".to_string(), PoolOptions { replicas, groups: GROUPS, ..PoolOptions::default() })]
                .into();
        options.cluster.deadline = Duration::from_secs(2);
        options.cluster.repair_after = Duration::from_secs(3);
        let meta = MetaServer::start(options).unwrap();
        let data = data.into_iter().map(Some).collect();
        let world = World { pki, meta, data };
        world.until_full().await;
        world
    }

    async fn ask(&self, request: MetaRequest) -> Response {
        administer(&self.pki.server, self.meta.addr(), request).await
    }

    pub(crate) async fn operate(&self, operation: Operation) -> Outcome {
        match self.ask(MetaRequest::Operate(operation)).await {
            Response::Operated(outcome) => outcome,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn status(&self) -> Status {
        match self.ask(MetaRequest::Status).await {
            Response::Status(status) => status,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn until_full(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status().await;
            let of = status.volumes[0].redundancy;
            // What is decided is told when it is stored.
            let told = self.map().await.groups().all(|(_, chain)| chain.head().is_some());
            if told && (of.full, of.repairing) == (GROUPS, 0) {
                return;
            }
            assert!(Instant::now() < deadline, "{of:?} {:?}", status.alarms);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn audit(&self, dry_run: bool) -> AuditReport {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut outcome = self.operate(Operation::Audit(AuditStep::Begin { dry_run })).await;
        loop {
            match outcome {
                Outcome::Audit(report) if !report.running => return *report,
                Outcome::Audit(report) => assert!(Instant::now() < deadline, "{report:?}"),
                other => panic!("{other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            outcome = self.operate(Operation::Audit(AuditStep::Look)).await;
        }
    }

    /// A client's session.
    pub(crate) async fn mount(&self, session: u64) -> MetaClient {
        MetaClient::connect(&self.pki.client, self.meta.addr(), "v", session).await.unwrap()
    }

    pub(crate) async fn map(&self) -> ClusterMap {
        self.mount(ASKERS.fetch_add(1, Ordering::Relaxed)).await.info.map
    }

    /// A call of a client to the head of a chunk's chain.
    async fn at_head(&self, chunk: ChunkId, op: Op, payload: &[u8]) -> (Reply, Bytes) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let map = self.map().await;
            let (group, chain) = map.chain_of(chunk).unwrap();
            let head = map.server(chain.head().unwrap().server).unwrap().addrs[0].parse().unwrap();
            let client = DataClient::connect(&self.pki.client, head).await.unwrap();
            let at = match op {
                Op::Flush { .. } => At::Server,
                _ => At::Group { group, epoch: chain.epoch },
            };
            let op = match &op {
                Op::Flush { .. } => Op::Flush { groups: vec![(group, chain.epoch)] },
                op => op.clone(),
            };
            let payload = Bytes::copy_from_slice(payload);
            match client.raw(&Request { at, op }, payload).await.unwrap() {
                (Reply::Busy | Reply::StaleEpoch(_), _) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                answer => return answer,
            }
        }
    }

    pub(crate) async fn write(&self, chunk: ChunkId, data: &[u8]) {
        let (reply, _) = self.at_head(chunk, Op::Write { chunk, offset: 0 }, data).await;
        assert!(matches!(reply, Reply::Written { .. }), "{reply:?}");
        let (reply, _) = self.at_head(chunk, Op::Flush { groups: Vec::new() }, &[]).await;
        assert!(matches!(reply, Reply::Flushed { .. }), "{reply:?}");
    }

    pub(crate) async fn read(&self, chunk: ChunkId, len: u64) -> Bytes {
        let (reply, data) = self.at_head(chunk, Op::Read { chunk, offset: 0, len }, &[]).await;
        assert_eq!(reply, Reply::Read);
        data
    }

    /// What each replica of a chunk that the map names shows of it.
    pub(crate) async fn read_everywhere(&self, chunk: ChunkId, len: u64) -> Vec<Bytes> {
        let map = self.map().await;
        let (group, chain) = map.chain_of(chunk).unwrap();
        let at = At::Group { group, epoch: chain.epoch };
        let request = Request { at, op: Op::Read { chunk, offset: 0, len } };
        let mut all = Vec::new();
        for replica in &chain.replicas {
            let addr = self.of(replica.server).addr();
            let client = DataClient::connect(&self.pki.client, addr).await.unwrap();
            let (reply, data) = client.raw(&request, Bytes::new()).await.unwrap();
            assert_eq!(reply, Reply::Read, "{replica:?}");
            all.push(data);
        }
        all
    }

    /// A file of some chunks.
    pub(crate) async fn file(&self, client: &MetaClient, name: &str, chunks: u64) -> Ino {
        let ino = client.create(Ino::ROOT, name, NewInode::File).await.unwrap();
        for index in 0..chunks {
            self.write(ChunkId { ino, generation: 0, index }, &[index as u8 + 1; 100]).await;
        }
        let end = (chunks - 1) * CHUNK + 100;
        let mtime = std::time::SystemTime::now().into();
        let wrote =
            MetaOp::WroteChunks { ino, generation: 0, end, allocated: chunks as i64 * 100, mtime };
        client.change(wrote).await.unwrap();
        ino
    }

    fn of(&self, server: ServerId) -> &DataServer {
        self.data[server.0 as usize - 1].as_ref().unwrap()
    }

    /// A call of a server to a data server.
    async fn as_server(&self, server: ServerId, op: Op) -> Reply {
        let addr = self.of(server).addr();
        let client = DataClient::connect_as(&self.pki.server, addr, 0).await.unwrap();
        client.raw(&Request { at: At::Server, op }, Bytes::new()).await.unwrap().0
    }

    /// All chunks that a server has.
    pub(crate) async fn chunks(&self, server: ServerId) -> Vec<ChunkId> {
        let (mut all, mut next) =
            (Vec::new(), Some(ChunkId { ino: Ino(0), generation: 0, index: 0 }));
        while let Some(from) = next {
            let op = Op::Peer(PeerOp::Audit(AuditOp::Inventory { from, limit: 3 }));
            match self.as_server(server, op).await {
                Reply::Listed { chunks, next: more } => {
                    assert!(chunks.len() <= 3);
                    all.extend(chunks.into_iter().map(|(chunk, _)| chunk));
                    next = more;
                }
                other => panic!("{other:?}"),
            }
        }
        all
    }

    async fn copies(&self) -> usize {
        let mut sum = 0;
        for server in 1..=self.data.len() as u32 {
            sum += self.chunks(ServerId(server)).await.len();
        }
        sum
    }
}

fn kind<'a>(report: &'a AuditReport, word: &str) -> &'a netfs_common::wire::operator::AuditKind {
    let found = report.kinds.iter().find(|kind| kind.what.contains(word));
    found.unwrap_or_else(|| panic!("nothing about {word}: {report:?}"))
}

fn is_clean(report: &AuditReport) -> bool {
    report.kinds.is_empty() && report.unfinished.is_empty()
}

#[tokio::test]
async fn what_belongs_to_nobody_goes_and_what_a_replica_lacks_is_copied() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path(), 3, 2).await;
    let client = world.mount(7).await;
    let kept = world.file(&client, "kept", 6).await;
    let removed = world.file(&client, "removed", 3).await;
    let cut = world.file(&client, "cut", 2).await;
    let report = world.audit(false).await;
    assert!(is_clean(&report), "{report:?}");
    assert_eq!((report.chunks, report.files, report.servers), (11, 3, 3));

    // A file is removed while it is open; a straggler writes to one that is gone; and chunks come from nowhere.
    let open = world.file(&client, "open", 2).await;
    let unlink = |name| MetaOp::Unlink { parent: Ino::ROOT, name: Name::new(name).unwrap() };
    client.change(unlink("open")).await.unwrap();
    client.change(unlink("removed")).await.unwrap();
    client.change(MetaOp::Forget { inos: vec![removed] }).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    while world.copies().await > 2 * (6 + 2 + 2) {
        assert!(Instant::now() < deadline, "the chunks of a removed file are still there");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    world.write(ChunkId { ino: removed, generation: 0, index: 1 }, b"straggler").await;
    let nowhere = Ino(open.0 + 5000);
    world.write(ChunkId { ino: nowhere, generation: 3, index: 9 }, b"nobody").await;
    // Beyond the end of a file that its client is writing to.
    world.write(ChunkId { ino: cut, generation: 0, index: 7 }, b"not reported").await;
    // A replica loses a chunk.
    let lost = ChunkId { ino: kept, generation: 0, index: 5 };
    let map = world.map().await;
    let tail = map.chain_of(lost).unwrap().1.replicas[1].server;
    let reply = world.as_server(tail, Op::Delete { first: lost }).await;
    assert!(matches!(reply, Reply::Deleted { .. }), "{reply:?}");
    assert!(!world.chunks(tail).await.contains(&lost));

    let dry = world.audit(true).await;
    assert!(dry.kinds.iter().all(|kind| kind.mended == 0), "{dry:?}");
    let gone = kind(&dry, "that are gone");
    assert_eq!(gone.found, 2, "{dry:?}");
    assert!(gone.names[1].contains(&format!("inode {}, generation 3", nowhere.0)), "{gone:?}");
    assert_eq!(
        kind(&dry, "not the same").names,
        [format!("inode {}, generation 0, chunk 5", kept.0)]
    );
    assert!(dry.notes.iter().any(|note| note.contains("1 files that are in use")), "{dry:?}");
    assert_eq!((dry.kinds.len(), dry.unfinished.len()), (2, 0), "{dry:?}");
    assert!(!world.chunks(tail).await.contains(&lost), "it only looks");

    let report = world.audit(false).await;
    assert!(report.unfinished.is_empty(), "{report:?}");
    assert_eq!(
        (kind(&report, "that are gone").found, kind(&report, "that are gone").mended),
        (2, 2)
    );
    assert_eq!((kind(&report, "not the same").found, kind(&report, "not the same").mended), (1, 1));
    assert!(world.chunks(tail).await.contains(&lost));
    assert_eq!(world.read(lost, 100).await, [6; 100][..]);
    let again = world.audit(false).await;
    assert!(is_clean(&again), "{again:?}");
    // The number is left out from now on.
    let next = client.create(Ino::ROOT, "next", NewInode::File).await.unwrap();
    assert!(next.0 > nowhere.0);

    // The client ends: now nobody will report what it has sent, and what was open is gone.
    client.change(MetaOp::EndSession).await.unwrap();
    let report = world.audit(false).await;
    assert_eq!(
        (kind(&report, "beyond their end").found, kind(&report, "beyond their end").mended),
        (1, 1)
    );
    assert!(report.unfinished.is_empty(), "{report:?}");
    let again = world.audit(false).await;
    assert!(is_clean(&again) && again.notes.is_empty(), "{again:?}");
    for index in 0..6 {
        let data = world.read(ChunkId { ino: kept, generation: 0, index }, 100).await;
        assert_eq!(data, [index as u8 + 1; 100][..]);
    }
    for index in 0..2 {
        let data = world.read(ChunkId { ino: cut, generation: 0, index }, 100).await;
        assert_eq!(data, [index as u8 + 1; 100][..]);
    }
}

#[tokio::test]
async fn a_replica_with_something_that_its_teacher_lacks_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path(), 2, 2).await;
    let client = world.mount(7).await;
    let file = world.file(&client, "file", 1).await;
    let lost = ChunkId { ino: file, generation: 0, index: 0 };
    let map = world.map().await;
    let (group, chain) = map.chain_of(lost).unwrap();
    let (head, tail) = (chain.replicas[0].server, chain.replicas[1].server);
    // Contents that the file may get, in the same group: only the tail has them. And the tail lacks what the file has.
    let ahead = (0..).map(|index| ChunkId { ino: file, generation: 1, index });
    let ahead = ahead.into_iter().find(|c| map.chain_of(*c).unwrap().0 == group).unwrap();
    world.write(ahead, b"ahead").await;
    for (server, first) in [(head, ahead), (tail, lost)] {
        let reply = world.as_server(server, Op::Delete { first }).await;
        assert!(matches!(reply, Reply::Deleted { .. }), "{reply:?}");
    }
    let report = world.audit(false).await;
    let differ = kind(&report, "not the same");
    assert_eq!((differ.found, differ.mended), (1, 0), "{report:?}");
    let why = format!("it has inode {}, generation 1, chunk {}", file.0, ahead.index);
    assert!(report.unfinished.iter().any(|line| line.contains(&why)), "{report:?}");
    assert!(world.chunks(tail).await.contains(&ahead), "the last copy is still there");
    // When both have it there is nothing against it.
    world.write(ahead, b"again").await;
    let report = world.audit(false).await;
    assert!(report.unfinished.is_empty(), "{report:?}");
    assert_eq!(kind(&report, "not the same").mended, 1, "{report:?}");
    assert_eq!(world.chunks(tail).await.len(), 2);
    assert_eq!(world.read(lost, 100).await, [1; 100][..]);
}

#[tokio::test]
async fn nothing_is_said_to_be_lost_while_a_server_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::start(dir.path(), 2, 1).await;
    let client = world.mount(7).await;
    let file = world.file(&client, "file", 1).await;
    let map = world.map().await;
    let chunk = ChunkId { ino: file, generation: 0, index: 0 };
    let at = map.chain_of(chunk).unwrap().1.replicas[0].server;
    drop(world.data[at.0 as usize - 1].take());
    let deadline = Instant::now() + PATIENCE;
    let report = loop {
        let report = world.audit(true).await;
        let says = |word| report.unfinished.iter().any(|line| line.contains(word));
        if says("does not answer") && says("placement groups are unavailable") {
            break report;
        }
        assert!(Instant::now() < deadline, "{report:?}");
    };
    assert!(report.notes.is_empty(), "{report:?}");
}

#[tokio::test]
async fn an_object_store_that_is_not_the_one_of_before_is_an_alarm_and_no_clean_audit() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = Arc::new(InMemory::new());
    let options = BucketOptions { place: Place::Store(bucket.clone()), prefix: String::new() };
    let set_up = |to: &mut DataOptions| to.tier = Some(TierOptions::new(options.clone()));
    let world = World::start_with(dir.path(), 1, 1, set_up).await;
    let deadline = Instant::now() + Duration::from_secs(60);
    let all = async || bucket.list(None).try_collect::<Vec<_>>().await.unwrap();
    while all().await.is_empty() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let report = world.audit(true).await;
    assert!(report.unfinished.is_empty(), "{report:?}");
    bucket.delete(&all().await[0].location).await.unwrap();
    loop {
        let alarms = world.status().await.alarms.join("\n");
        if alarms.contains("cannot use its object store") {
            assert!(alarms.contains("it has no marker"), "{alarms}");
            break;
        }
        assert!(Instant::now() < deadline, "{alarms}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let report = world.audit(true).await;
    assert!(report.unfinished[0].contains("cannot use its object store"), "{report:?}");
}

#[tokio::test]
async fn a_server_forgets_what_others_have_had_for_a_while() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path(), 3, 2).await;
    let client = world.mount(7).await;
    let file = world.file(&client, "file", 40).await;
    assert_eq!(world.copies().await, 80);
    let fewer = Operation::Replicas { volume: "v".into(), replicas: 1, min: None };
    assert!(matches!(world.operate(fewer).await, Outcome::Done(_)));
    // They stay for a while, which is nothing to complain of.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let report = world.audit(false).await;
        assert!(report.unfinished.is_empty(), "{report:?}");
        let word = "copies of placement groups in which it has no place";
        if report.notes.iter().any(|note| note.contains(word)) {
            break;
        }
        assert!(Instant::now() < deadline && world.copies().await > 40, "{report:?}");
    }
    while world.copies().await != 40 {
        assert!(Instant::now() < deadline, "{} copies are left", world.copies().await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for index in 0..40 {
        let data = world.read(ChunkId { ino: file, generation: 0, index }, 100).await;
        assert_eq!(data, [index as u8 + 1; 100][..]);
    }
    // They come again, and those of a server that is drained go when others have had them for a while.
    let more = Operation::Replicas { volume: "v".into(), replicas: 2, min: None };
    assert!(matches!(world.operate(more).await, Outcome::Done(_)));
    world.until_full().await;
    assert_eq!(world.copies().await, 80);
    let drain = Operation::Drain(ServerId(1));
    assert!(matches!(world.operate(drain).await, Outcome::Done(_)));
    let deadline = Instant::now() + PATIENCE;
    while !world.chunks(ServerId(1)).await.is_empty() {
        assert!(Instant::now() < deadline, "what a drained server had is still there");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let report = world.audit(false).await;
    assert!(is_clean(&report), "{report:?}");
    assert_eq!(world.copies().await, 80);
}

#[tokio::test]
async fn a_lost_server_is_given_up_and_everything_goes_on_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::start(dir.path(), 2, 1).await;
    let client = world.mount(7).await;
    let file = world.file(&client, "file", 30).await;
    let map = world.map().await;
    let at = |index| {
        let chunk = ChunkId { ino: file, generation: 0, index };
        (chunk, map.chain_of(chunk).unwrap().1.replicas[0].server)
    };
    let (lost, kept): (Vec<_>, Vec<_>) = (0..30).map(at).partition(|(_, s)| *s == ServerId(1));
    assert!(!lost.is_empty() && !kept.is_empty());
    let give_up = |lose_data| Operation::GiveUp { server: ServerId(1), with: None, lose_data };
    let outcome = world.operate(give_up(true)).await;
    assert!(matches!(&outcome, Outcome::Refused(why) if why.contains("is there")), "{outcome:?}");
    drop(world.data[0].take());
    // A cut and a removal wait for it.
    let size = MetaOp::SetAttr {
        ino: file,
        set: SetAttr { size: Some(20 * CHUNK), ..SetAttr::default() },
    };
    let cutting = tokio::spawn(async move { client.change(size).await.map(|_| client) });
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!cutting.is_finished());
    let outcome = world.operate(give_up(false)).await;
    assert!(
        matches!(&outcome, Outcome::Refused(why) if why.contains("DATA IS LOST")),
        "{outcome:?}"
    );
    assert!(!cutting.is_finished());
    let outcome = world.operate(give_up(true)).await;
    assert!(matches!(&outcome, Outcome::Done(text) if text.contains("go on empty")), "{outcome:?}");
    let client = tokio::time::timeout(PATIENCE, cutting).await.unwrap().unwrap().unwrap();
    world.until_full().await;
    for (chunk, _) in lost.iter().filter(|(chunk, _)| chunk.index < 20) {
        assert_eq!(world.read(*chunk, 100).await, [0; 100][..]);
    }
    for (chunk, _) in kept.iter().filter(|(chunk, _)| chunk.index < 20) {
        assert_eq!(world.read(*chunk, 100).await, [chunk.index as u8 + 1; 100][..]);
    }
    // It can be written to again, and the server can be forgotten.
    world.write(lost[0].0, b"new").await;
    assert_eq!(client.get(file).await.unwrap().size, 20 * CHUNK);
    assert!(matches!(world.operate(Operation::Remove(ServerId(1))).await, Outcome::Done(_)));
    let report = world.audit(false).await;
    assert!(is_clean(&report), "{report:?}");
    // Metadata counts more than the chunks that are left can hold.
    let allocated = 20 * CHUNK as i64;
    let mtime = std::time::SystemTime::now().into();
    let end = 20 * CHUNK;
    let wrote = MetaOp::WroteChunks { ino: file, generation: 0, end, allocated, mtime };
    client.change(wrote).await.unwrap();
    let report = world.audit(false).await;
    let [kind] = &report.kinds[..] else { panic!("{report:?}") };
    assert!(kind.what.contains("some is lost"), "{report:?}");
    assert_eq!((kind.found, kind.mended), (1, 0));
    assert_eq!(kind.names, [format!("inode {}", file.0)]);
}
