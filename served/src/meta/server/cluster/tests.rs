//! The shell with data servers that only pretend.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use netfs_common::errno::Errno;
use netfs_common::id::{ChunkId, ClusterId, Ino, InstanceId, SessionId, Verifier};
use netfs_common::net::{BulkMessage, Dialer, Limits, NetMetrics, Server};
use netfs_common::tls::{Identity, pki};
use netfs_common::wire::cluster::{Beat, PeerOp, Work};
use netfs_common::wire::data::{Op, Reply, Request};
use netfs_common::wire::operator::{Operation, Outcome};

use super::garbage::Swept;
use super::*;
use crate::greeting;
use crate::meta::server::data_link::{Attempt, DataCallError, DataLink};

const DEADLINE: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(20);

fn identity(dir: &Path) -> Arc<Identity> {
    let (ca, own) = (dir.join("ca"), dir.join("server"));
    pki::init(&ca, "test").unwrap();
    let leaf = pki::Leaf::Server { name: "server".into(), names: Vec::new() };
    pki::issue(&ca, &leaf, &own, &pki::IssueOptions::default()).unwrap();
    Arc::new(Identity::load_dir(&own).unwrap())
}

/// What a pretended data server was asked, and how it answers.
struct Fake {
    addr: SocketAddr,
    told: Mutex<Told>,
    clock: AtomicU64,
}

struct Told {
    instance: InstanceId,
    store: u8,
    number: Option<ServerId>,
    map: Option<ClusterMap>,
    beats: u64,
    /// Beats that brought the map.
    maps: u64,
    /// Tokens that came back.
    echoes: Vec<u64>,
    silent: bool,
    /// Its directory is an older copy, which it finds out by a map.
    older: bool,
    /// Its data belongs to other metadata.
    owner: Option<[u8; 16]>,
    verifier: Verifier,
    /// Punches are answered so often that the chain is not ready.
    busy: u32,
    fenced: BTreeSet<SessionId>,
    deleted: Vec<ChunkId>,
    punched: Vec<ChunkId>,
}

impl Fake {
    fn start(identity: &Identity, store: u8) -> Arc<Fake> {
        let server = Server::bind(
            ([127, 0, 0, 1], 0).into(),
            identity.server_config().unwrap(),
            Limits::default(),
            NetMetrics::default(),
        )
        .unwrap();
        let told = Told {
            instance: InstanceId(u64::from(store) * 100),
            store,
            number: None,
            map: None,
            beats: 0,
            maps: 0,
            echoes: Vec::new(),
            silent: false,
            older: false,
            owner: None,
            verifier: Verifier(1),
            busy: 0,
            fenced: BTreeSet::new(),
            deleted: Vec::new(),
            punched: Vec::new(),
        };
        let fake = Arc::new(Fake {
            addr: server.local_addr().unwrap(),
            told: Mutex::new(told),
            clock: AtomicU64::new(1),
        });
        let (own, cluster) = (fake.clone(), ClusterId(identity.peer().cluster));
        tokio::spawn(async move {
            while let Some(incoming) = server.accept().await {
                let fake = own.clone();
                tokio::spawn(async move {
                    greeting::open(&incoming, cluster, greeting::DATA).unwrap();
                    let instance = fake.told().instance;
                    let words = codec::encode(&greeting::reply(cluster, instance)).unwrap();
                    let handler = move |message: BulkMessage| {
                        let fake = fake.clone();
                        async move { fake.answer(message).await }
                    };
                    if let Ok(peer) = incoming.welcome_bulk(&words, Arc::new(handler)).await {
                        peer.closed().await;
                    }
                });
            }
        });
        fake
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap()
    }

    async fn answer(&self, message: BulkMessage) -> BulkMessage {
        let request: Request = codec::decode(&message.header).unwrap();
        while self.told().silent {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let reply = match request.op {
            Op::Peer(PeerOp::Beat(beat)) => self.beat(&beat, message.payload.into_bytes()).await,
            Op::Fence { session } => {
                self.told().fenced.insert(session);
                Reply::Fenced
            }
            Op::Delete { first } => {
                self.told().deleted.push(first);
                Reply::Deleted { instance: self.told().instance, freed: 10 }
            }
            Op::FlushHere => Reply::FlushedHere { instance: self.told().instance },
            Op::Flush { groups } => {
                Reply::Flushed { verifiers: vec![self.told().verifier; groups.len()] }
            }
            Op::Punch { chunk, .. } => self.punch(chunk),
            _ => Reply::Failed(netfs_common::errno::Errno::EPERM),
        };
        BulkMessage::new(codec::encode(&reply).unwrap().into(), Bytes::new())
    }

    fn punch(&self, chunk: ChunkId) -> Reply {
        let mut told = self.told();
        if told.busy > 0 {
            told.busy -= 1;
            return Reply::Busy;
        }
        told.punched.push(chunk);
        Reply::Written { verifier: told.verifier, allocated: -7 }
    }

    async fn beat(&self, beat: &Beat, map: Bytes) -> Reply {
        assert!(beat.lease_ms < u32::try_from(DEADLINE.as_millis()).unwrap());
        let news = {
            let mut told = self.told();
            told.beats += 1;
            told.number = Some(beat.server);
            told.echoes.extend(beat.echo);
            if !map.is_empty() {
                let map: ClusterMap = codec::decode(&map).unwrap();
                assert_eq!(map.version, beat.version);
                told.maps += 1;
                let newer = told.map.as_ref().is_none_or(|known| known.version < map.version);
                told.map = if newer { Some(map) } else { told.map.take() };
            }
            !map.is_empty() || told.map.is_none()
        };
        if !news {
            tokio::time::sleep(Duration::from_millis(beat.hold_ms.into())).await;
        }
        let told = self.told();
        let version = told.map.as_ref().map_or(Epoch(0), |map| map.version);
        // A learner is given everything at once.
        let mut synced = Vec::new();
        for (group, chain) in told.map.iter().flat_map(|map| map.groups()) {
            let tail = chain.replicas.last().map(|tail| tail.server);
            if let (true, Some(learner)) = (tail == told.number, chain.learner) {
                synced.push((group, chain.epoch, learner));
            }
        }
        Reply::Beat(Box::new(BeatReply {
            token: self.clock.fetch_add(1, Ordering::Relaxed),
            instance: told.instance,
            store: [told.store; 16],
            domain: format!("d{}", told.store),
            capacity: 1 << 40,
            free: 1 << 39,
            live: 1000,
            chunks: 3,
            full: false,
            version,
            revoked: beat.revoke.clone(),
            synced,
            broken: Vec::new(),
            stalled: Vec::new(),
            handed_over: Vec::new(),
            followed: Epoch(0),
            lacking: Vec::new(),
            locked: Vec::new(),
            counts: Counts::default(),
            work: Work::default(),
            tier: None,
            lacks: told.older && told.map.is_some(),
            incomplete: false,
            owner: told.owner.or(Some(beat.owner)),
        }))
    }
}

struct World {
    dir: tempfile::TempDir,
    identity: Arc<Identity>,
    cluster: Arc<Cluster>,
    link: Arc<DataLink>,
}

impl World {
    fn new(fakes: &[&Arc<Fake>], dir: tempfile::TempDir, identity: Arc<Identity>) -> World {
        let addrs = fakes.iter().map(|fake| vec![fake.addr.to_string()]).collect();
        World::with(DataServers::Cluster(addrs), dir, identity)
    }

    fn with(data: DataServers, dir: tempfile::TempDir, identity: Arc<Identity>) -> World {
        let config = Config {
            deadline: DEADLINE,
            repair_after: Duration::from_secs(3600),
            ..Config::default()
        };
        let cluster = Cluster::open(dir.path(), &data, config, DEADLINE).unwrap();
        cluster
            .ensure_pool(
                dir.path(),
                0,
                PoolOptions { replicas: 2, groups: 8, ..PoolOptions::default() },
                Coding::default(),
            )
            .unwrap();
        let tls = identity.client_config().unwrap();
        let dialer = Dialer::new(tls, Limits::default(), NetMetrics::default()).unwrap();
        let lives = [InstanceId(1), InstanceId(2)];
        let caller = Caller::new(dialer, ClusterId(identity.peer().cluster), lives).unwrap();
        cluster.run(dir.path(), caller, MetaMetrics::default());
        let link = Arc::new(DataLink::new(cluster.clone()));
        World { dir, identity, cluster, link }
    }

    /// The server ends, and another one begins with what is kept.
    fn restart(self, fakes: &[&Arc<Fake>]) -> World {
        self.cluster.close();
        World::new(fakes, self.dir, self.identity)
    }

    async fn until(&self, what: &str, test: impl Fn(&ClusterMap) -> bool) {
        let limit = Instant::now() + PATIENCE;
        while !test(&self.cluster.published().map) {
            assert!(Instant::now() < limit, "{what}: {:?}", self.cluster.published());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn conditions(&self) -> netfs_common::wire::operator::Redundancy {
        self.cluster.redundancy(0)[&Class::DEFAULT]
    }

    fn alarms(&self) -> String {
        self.cluster.alarms(&BTreeMap::from([(0, "v".to_string())])).join("\n")
    }
}

fn replicas(map: &ClusterMap, count: usize) -> bool {
    map.groups().count() == 8 && map.groups().all(|(_, chain)| chain.replicas.len() == count)
}

fn chunk(index: u64) -> ChunkId {
    ChunkId { ino: Ino(2), generation: 0, index }
}

fn world() -> (tempfile::TempDir, Arc<Identity>) {
    let dir = tempfile::tempdir().unwrap();
    let identity = identity(dir.path());
    (dir, identity)
}

#[tokio::test]
async fn servers_are_found_told_the_map_and_kept_over_a_restart() {
    let (dir, identity) = world();
    let (a, b) = (Fake::start(&identity, 1), Fake::start(&identity, 2));
    let world = World::new(&[&a, &b], dir, identity);
    world.until("all groups have two replicas", |map| replicas(map, 2)).await;
    // Nobody was given a group before the other was heard.
    assert!(world.cluster.published().map.groups().all(|(_, chain)| chain.epoch == Epoch(1)));
    let version = world.cluster.published().map.version;
    world
        .until("both go by it", |_| {
            [&a, &b].iter().all(|f| f.told().map.as_ref().is_some_and(|map| map.version == version))
        })
        .await;
    tokio::time::sleep(DEADLINE).await;
    for fake in [&a, &b] {
        let told = fake.told();
        assert!(told.beats < 60 && told.maps < 10, "{} beats, {} maps", told.beats, told.maps);
        assert!(told.echoes.is_sorted() && told.echoes.len() > 5, "{:?}", told.echoes);
    }
    assert_eq!(world.conditions().full, 8);
    let usage = world.cluster.usage(0).await.unwrap();
    assert_eq!((usage.capacity, usage.free, usage.live), (1 << 40, 1 << 39, 1000));
    // The next life knows all, and changes nothing.
    let before = world.cluster.published().map.clone();
    let world = world.restart(&[&a, &b]);
    assert_eq!(world.cluster.published().map, before);
    tokio::time::sleep(DEADLINE * 2).await;
    assert_eq!(world.cluster.published().map, before);
    assert_eq!(world.alarms(), "");
}

#[tokio::test]
async fn a_silent_server_leaves_and_is_not_waited_for_and_comes_back() {
    let (dir, identity) = world();
    let (a, b) = (Fake::start(&identity, 1), Fake::start(&identity, 2));
    let world = World::new(&[&a, &b], dir, identity);
    world.until("all groups have two replicas", |map| replicas(map, 2)).await;
    b.told().silent = true;
    let silence = Instant::now();
    let fencing = {
        let link = world.link.clone();
        tokio::spawn(async move { link.fence(SessionId(9)).await })
    };
    world.until("one replica is left", |map| replicas(map, 1)).await;
    assert!(silence.elapsed() >= DEADLINE * 8 / 10, "its lease was not over");
    fencing.await.unwrap();
    let version = world.cluster.published().map.version;
    assert!(a.told().fenced.contains(&SessionId(9)), "who is left has fenced it");
    let known = a.told().map.as_ref().map(|map| map.version);
    assert!(known.is_some_and(|known| known.0 + 8 >= version.0), "{known:?} {version:?}");
    assert_eq!(world.conditions().degraded, 8);
    assert!(world.alarms().contains("has not answered for"), "{}", world.alarms());
    // Cuts go on without it.
    let attempt = world.link.begin().await.unwrap();
    world.link.cut(&attempt, chunk(0), 22, 5).await.unwrap();
    assert_eq!(a.told().deleted, [chunk(1)]);
    assert_eq!(b.told().deleted, []);
    b.told().silent = false;
    world.until("it has learned all and is a replica again", |map| replicas(map, 2)).await;
    assert_eq!(world.conditions().full, 8);
}

#[tokio::test]
async fn nobody_hears_of_what_is_not_stored() {
    let (dir, identity) = world();
    let (a, b) = (Fake::start(&identity, 1), Fake::start(&identity, 2));
    let world = World::new(&[&a, &b], dir, identity);
    world.until("all groups have two replicas", |map| replicas(map, 2)).await;
    let version = world.cluster.published().map.version;
    // The file cannot be replaced: a directory is in the way of the new one.
    let obstacle = world.dir.path().join("cluster.new");
    std::fs::create_dir(&obstacle).unwrap();
    let names = BTreeMap::from([(0, "v".to_string())]);
    let refused = world.cluster.operate(Operation::Drain(ServerId(1)), None).await;
    assert!(matches!(&refused, Outcome::Refused(why) if why.contains("not stored")), "{refused:?}");
    assert_eq!(world.cluster.published().map.version, version);
    let both = [ServerId(1), ServerId(2)].into();
    assert_eq!(world.cluster.everybody(), (both, version), "and nothing is decided by it");
    assert!(world.cluster.failure(&names).is_some_and(|why| why.contains("cannot be stored")));
    for fake in [&a, &b] {
        assert_eq!(fake.told().map.as_ref().map(|map| map.version), Some(version));
    }
    std::fs::remove_dir(&obstacle).unwrap();
    world.until("it is stored at last", |map| map.version > version).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(world.cluster.failure(&names), None);
    let kept = StateFile::of(world.dir.path()).read().unwrap().unwrap();
    assert_eq!(kept.version, world.cluster.published().map.version);
}

#[tokio::test]
async fn a_cut_is_done_again_when_what_was_not_flushed_may_be_lost() {
    let (dir, identity) = world();
    let (a, b) = (Fake::start(&identity, 1), Fake::start(&identity, 2));
    let world = World::new(&[&a, &b], dir, identity);
    world.until("all groups have two replicas", |map| replicas(map, 2)).await;
    [&a, &b].iter().for_each(|fake| fake.told().busy = 2);
    let attempt = world.link.begin().await.unwrap();
    world.link.cut(&attempt, chunk(0), 22, 5).await.unwrap();
    assert_eq!(world.link.freed(&attempt), 7 + 2 * 10);
    let punched = a.told().punched.len() + b.told().punched.len();
    assert_eq!(punched, 1, "at the head alone");
    for fake in [&a, &b] {
        assert_eq!(fake.told().deleted, [chunk(1)]);
    }
    // The group loses what was not flushed.
    let attempt = world.link.begin().await.unwrap();
    world.link.delete_from(&attempt, chunk(7)).await.unwrap();
    b.told().instance = InstanceId(999);
    let lost = world.link.flush(&attempt).await;
    assert!(matches!(lost, Err(DataCallError::Restarted { .. })), "{lost:?}");
    let attempt: Attempt = world.link.begin().await.unwrap();
    world.link.delete_from(&attempt, chunk(7)).await.unwrap();
    world.link.flush(&attempt).await.unwrap();
}

#[tokio::test]
async fn operators_add_drain_and_remove_servers() {
    let (dir, identity) = world();
    let (a, b) = (Fake::start(&identity, 1), Fake::start(&identity, 2));
    let world = World::new(&[&a, &b], dir, identity);
    world.until("all groups have two replicas", |map| replicas(map, 2)).await;
    let operate = |operation| world.cluster.operate(operation, Some(0));
    let refused = |outcome: &Outcome| matches!(outcome, Outcome::Refused(_));
    assert!(refused(&operate(Operation::Remove(ServerId(1))).await));
    assert!(refused(&operate(Operation::Add(vec![a.addr.to_string()])).await));
    operate(Operation::Drain(ServerId(1))).await;
    assert!(world.alarms().contains("cannot be drained"), "{}", world.alarms());
    let c = Fake::start(&world.identity, 3);
    let added = operate(Operation::Add(vec![c.addr.to_string()])).await;
    assert!(
        matches!(&added, Outcome::Done(text) if text.contains("server 3 is added")),
        "{added:?}"
    );
    world
        .until("nothing is left on the first", |map| {
            replicas(map, 2) && map.groups().all(|(_, chain)| !chain.has(ServerId(1)))
        })
        .await;
    let removed = operate(Operation::Remove(ServerId(1))).await;
    assert!(matches!(removed, Outcome::Done(_)), "{removed:?}");
    world.until("it is forgotten", |map| map.servers.len() == 2).await;
    let Outcome::Servers(lines) = operate(Operation::List).await else { panic!("no list") };
    assert_eq!(lines.iter().map(|line| line.id).collect::<Vec<_>>(), [ServerId(2), ServerId(3)]);
    assert_eq!(lines.iter().map(|line| line.head + line.replica).collect::<Vec<_>>(), [8, 8]);
    let few = operate(Operation::Replicas { volume: "v".into(), replicas: 3, min: Some(4) }).await;
    assert!(refused(&few));
    let more = operate(Operation::Replicas { volume: "v".into(), replicas: 3, min: None }).await;
    assert!(matches!(more, Outcome::Done(_)), "{more:?}");
    assert!(world.alarms().contains("wants 3 replicas"), "{}", world.alarms());
}

#[tokio::test]
async fn a_store_at_another_address_is_the_same_server() {
    let (dir, identity) = world();
    let (a, b) = (Fake::start(&identity, 1), Fake::start(&identity, 2));
    let world = World::new(&[&a, &b], dir, identity);
    world.until("all groups have two replicas", |map| replicas(map, 2)).await;
    // The first one's store is found at a new address, in another life.
    a.told().silent = true;
    let moved = Fake::start(&world.identity, 1);
    moved.told().instance = InstanceId(77);
    let world = world.restart(&[&moved, &b]);
    world
        .until("it has its new address", |map| {
            let new = vec![moved.addr.to_string()];
            map.servers.len() == 2 && map.server(ServerId(1)).is_some_and(|s| s.addrs == new)
        })
        .await;
    world.until("it has its groups again", |map| replicas(map, 2)).await;
}

#[tokio::test]
async fn servers_with_exchanged_directories_are_found_and_a_copy_is_told_whose_it_is() {
    let (dir, identity) = world();
    let (a, b) = (Fake::start(&identity, 1), Fake::start(&identity, 2));
    let world = World::new(&[&a, &b], dir, identity);
    world.until("all groups have two replicas", |map| replicas(map, 2)).await;
    // Both are started anew, each with the directory of the other.
    let addrs = |fake: &Fake| vec![fake.addr.to_string()];
    let (of_a, of_b) = (addrs(&a), addrs(&b));
    let (a, b) = (Fake::start(&world.identity, 2), Fake::start(&world.identity, 1));
    (a.told().instance, b.told().instance) = (InstanceId(77), InstanceId(78));
    let world = world.restart(&[]);
    let named = [(ServerId(1), of_a, addrs(&a)), (ServerId(2), of_b, addrs(&b))];
    world.cluster.with(|manager, now| {
        for (_, before, after) in &named {
            manager.meet(now, [before.clone(), after.clone()].concat());
            manager.meet(now, after.clone());
        }
    });
    world
        .until("each is found at the address of the other", |map| {
            let at = |id, fake: &Fake| map.server(id).is_some_and(|s| s.addrs == addrs(fake));
            at(ServerId(1), &b) && at(ServerId(2), &a)
        })
        .await;
    world.until("they have their groups again", |map| replicas(map, 2)).await;
    let number = |fake: &Fake| fake.told().number;
    let limit = Instant::now() + PATIENCE;
    // The first word of each connection goes to whoever is there.
    while (number(&a), number(&b)) != (Some(ServerId(2)), Some(ServerId(1))) {
        assert!(Instant::now() < limit, "{:?}", (number(&a), number(&b)));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // A copy is told the map, and has no right to show anything.
    let copy = Fake::start(&world.identity, 1);
    copy.told().instance = InstanceId(79);
    let added = world.cluster.operate(Operation::Add(addrs(&copy)), None).await;
    assert!(matches!(added, Outcome::Done(_)), "{added:?}");
    let limit = Instant::now() + PATIENCE;
    while !world.alarms().contains("it is a copy") {
        assert!(Instant::now() < limit, "{}", world.alarms());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!((number(&copy), copy.told().echoes.len()), (Some(ServerId(1)), 0));
    assert!(copy.told().map.is_some());
    assert!(!world.cluster.present().contains_key(&ServerId(3)));
}

#[tokio::test]
async fn cuts_and_fences_go_on_while_the_map_changes_all_the_time() {
    let (dir, identity) = world();
    let (a, b) = (Fake::start(&identity, 1), Fake::start(&identity, 2));
    let world = World::new(&[&a, &b], dir, identity);
    world.until("all groups have two replicas", |map| replicas(map, 2)).await;
    let before = world.cluster.published().map.version;
    let changes = async {
        for round in 0u64.. {
            let min = Some(1 + (round % 2) as u8);
            let fewest = Operation::Replicas { volume: "v".into(), replicas: 2, min };
            let done = world.cluster.operate(fewest, Some(0)).await;
            assert!(matches!(done, Outcome::Done(_)), "{done:?}");
        }
    };
    let work = async {
        for index in 0..5 {
            let attempt = world.link.begin().await.unwrap();
            world.link.delete_from(&attempt, chunk(index)).await.unwrap();
            world.link.flush(&attempt).await.unwrap();
            world.link.fence(SessionId(20 + index)).await;
        }
    };
    let in_time = async {
        tokio::select! {
            () = changes => {}
            () = work => {}
        }
    };
    tokio::time::timeout(Duration::from_secs(20), in_time).await.unwrap();
    let after = world.cluster.published().map.version;
    assert!(after.0 > before.0 + 3, "it has hardly changed: {before:?} {after:?}");
}

#[tokio::test]
async fn a_server_is_told_to_forget_only_what_it_may_forget_now() {
    let (dir, identity) = world();
    let (a, b) = (Fake::start(&identity, 1), Fake::start(&identity, 2));
    let world = World::new(&[&a, &b], dir, identity);
    world.until("all groups have two replicas", |map| replicas(map, 2)).await;
    // Decided some time ago; it has a place in all groups meanwhile. It would refuse the call.
    let map = world.cluster.published().map.clone();
    let stale: Vec<_> = map.groups().map(|(group, chain)| (group, chain.epoch)).collect();
    // Nor is it taken for told: when it may forget them in the end, it has to be.
    assert_eq!(world.cluster.sweep(ServerId(1), &stale).await, Ok(Swept::default()));
}

#[tokio::test]
async fn what_a_server_says_before_it_has_a_map_does_not_bring_it_back() {
    let (dir, identity) = world();
    let (a, b) = (Fake::start(&identity, 1), Fake::start(&identity, 2));
    let world = World::new(&[&a, &b], dir, identity);
    world.until("all groups have two replicas", |map| replicas(map, 2)).await;
    [&a, &b].iter().for_each(|fake| fake.told().silent = true);
    let limit = Instant::now() + PATIENCE;
    while world.alarms().matches("has not answered for").count() < 2 {
        assert!(Instant::now() < limit, "{}", world.alarms());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    {
        let mut told = a.told();
        (told.instance, told.map, told.older, told.silent) = (InstanceId(101), None, true, false);
    }
    while !world.alarms().contains("has come back without some of the data") {
        assert!(Instant::now() < limit, "{}", world.alarms());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let waits = |map: &ClusterMap| {
        map.groups().all(|(_, chain)| chain.replicas.iter().all(|r| r.instance != InstanceId(101)))
    };
    assert!(waits(&world.cluster.published().map), "{:?}", world.cluster.published().map);
    b.told().silent = false;
    let learns = |map: &ClusterMap| {
        map.groups().all(|(_, chain)| {
            let [head, tail] = chain.replicas[..] else { return false };
            head.server == ServerId(2) && tail.instance == InstanceId(101)
        })
    };
    world.until("the other goes on, and it learns", learns).await;
}

#[tokio::test]
async fn a_server_with_the_data_of_another_cluster_gets_nothing() {
    let (dir, identity) = world();
    let (a, b) = (Fake::start(&identity, 1), Fake::start(&identity, 2));
    b.told().owner = Some([5; 16]);
    let world = World::new(&[&a, &b], dir, identity);
    world.until("all groups have one replica", |map| replicas(map, 1)).await;
    let kept = StateFile::of(world.dir.path()).read().unwrap().unwrap();
    assert_ne!(kept.owner, [0; 16]);
    let limit = Instant::now() + PATIENCE;
    while !world.alarms().contains("the data of another cluster") {
        assert!(Instant::now() < limit, "{}", world.alarms());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let map = world.cluster.published().map.clone();
    assert!(map.groups().all(|(_, chain)| !chain.has(ServerId(2))));
    assert_eq!(kept.servers[&ServerId(2)].store, None, "it is not known by its store");
    // It comes with its own.
    b.told().owner = None;
    world.until("it has its share", |map| replicas(map, 2)).await;
    assert!(!world.alarms().contains("another cluster"), "{}", world.alarms());
    let owner = world.cluster.owner();
    let world = world.restart(&[&a, &b]);
    assert_eq!(world.cluster.owner(), owner);
}

#[tokio::test]
async fn nobody_wishes_for_more_replicas_than_servers_and_operators_lower_what_was_wished() {
    let (dir, identity) = world();
    let fakes = [1, 2, 3].map(|store| Fake::start(&identity, store));
    let world = World::new(&fakes.each_ref(), dir, identity);
    let class = |replicas| Class::with_replicas(replicas).unwrap();
    let wished = |replicas| world.cluster.ensure_class(0, class(replicas));
    let operate = |operation| world.cluster.operate(operation, Some(0));
    let of = |wanted: u8, replicas| Operation::ClassReplicas {
        volume: "v".into(),
        class: class(wanted),
        replicas,
    };
    assert_eq!(wished(4).await, Err(Errno::ERANGE));
    assert_eq!(world.cluster.published().map.pools.len(), 1);
    assert_eq!(wished(3).await, Ok(()));
    let full = |map: &ClusterMap, of, count| {
        let pools = &map.pools;
        let pool = pools.iter().find(|pool| pool.class == of).unwrap();
        pool.chains.iter().all(|chain| chain.replicas.len() == count)
    };
    world.until("three replicas", |map| full(map, class(3), 3)).await;
    operate(Operation::Drain(ServerId(1))).await;
    assert_eq!(wished(3).await, Err(Errno::ERANGE), "one is drained");
    assert!(world.alarms().contains("cannot be drained"), "{}", world.alarms());
    for wrong in [of(2, 1), of(3, 0), of(3, 6)] {
        let outcome = operate(wrong).await;
        assert!(matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
    }
    let lower = operate(of(3, 2)).await;
    assert!(matches!(lower, Outcome::Done(_)), "{lower:?}");
    world
        .until("nothing is left on the first", |map| {
            let left = map.groups().any(|(_, chain)| chain.has(ServerId(1)));
            !left && full(map, class(3), 2)
        })
        .await;
    assert!(!world.alarms().contains("cannot be drained"), "{}", world.alarms());
    // The volume's own number is another thing.
    let one = Operation::Replicas { volume: "v".into(), replicas: 1, min: None };
    assert!(matches!(operate(one).await, Outcome::Done(_)));
    world.until("one and two", |map| full(map, Class::DEFAULT, 1) && full(map, class(3), 2)).await;
    fakes[0].told().silent = true;
    let limit = Instant::now() + PATIENCE;
    while !world.alarms().contains("has not answered for") {
        assert!(Instant::now() < limit, "{}", world.alarms());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(world.alarms().contains("`netfs data remove 1` forgets it"), "{}", world.alarms());
    let removed = operate(Operation::Remove(ServerId(1))).await;
    assert!(matches!(removed, Outcome::Done(_)), "{removed:?}");
    // Kept over a restart.
    let world = world.restart(&[&fakes[1], &fakes[2]]);
    assert_eq!(world.cluster.replicas(0, class(3)), 2);
}
