//! Both servers in memory, and a network that delays, reorders and loses.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use netfs_common::errno::Errno;
use netfs_common::id::{ClusterId, Ino, InstanceId, ServerId, SessionId};
use netfs_common::map::DataServer;
use netfs_common::name::Name;
use netfs_common::wire::hello::VolumeInfo;
use netfs_common::wire::lease::Lease;
use netfs_common::wire::meta::{self, Push, PushReply, Request};
use netfs_common::wire::{Claim, Hello, HelloReply, PROTOCOL, data};
use tokio::sync::{Notify, mpsc, oneshot};

use super::data_server::{DataStore, Mood};
use super::meta_server::MetaStore;
use crate::session::{
    Answer, DataLink, DialError, Dialer, Dialled, LinkError, MetaLink, PushCall, lock,
};
use crate::vfs::{KernelCache, Options, Vfs};

/// SplitMix64, so that a seed is a history.
#[derive(Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// What the network does.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Weather {
    /// Calls take up to so long, each way.
    pub(super) delay_ms: u64,
    /// One call in so many loses its connection; 0: none.
    pub(super) loss: u64,
}

pub(super) struct World {
    pub(super) meta: Mutex<MetaStore>,
    pub(super) data: Mutex<DataStore>,
    pub(super) random: Mutex<Random>,
    pub(super) weather: Mutex<Weather>,
    pub(super) instance: AtomicU64,
    pub(super) term_ms: AtomicU32,
    /// Which file system is served.
    pub(super) volume: AtomicU64,
    /// The metadata server cannot be reached, and nobody says so.
    pub(super) silent: AtomicBool,
    /// Every client there ever was.
    peers: Mutex<Vec<Arc<Peer>>>,
    /// Answers to metadata calls wait for this to be released.
    pub(super) held: Mutex<Option<Hold>>,
}

/// Holds back the answers to some calls.
#[derive(Clone)]
pub(super) struct Hold {
    pub(super) which: fn(&Request) -> bool,
    pub(super) caught: Arc<Notify>,
    pub(super) release: Arc<Notify>,
}

/// A client, as the network knows it.
#[derive(Default)]
pub(super) struct Peer {
    /// That of its last connection.
    session: Mutex<Option<SessionId>>,
    /// Nothing comes from it or gets to it, and nobody says so.
    pub(super) silent: AtomicBool,
    /// Raised to cut its connections.
    cut: Mutex<Arc<Cut>>,
    connection: Mutex<Option<Connection>>,
}

#[derive(Default)]
struct Cut {
    gone: AtomicBool,
    tell: Notify,
}

impl Cut {
    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }

    async fn closed(&self) {
        loop {
            let told = self.tell.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            if self.is_gone() {
                return;
            }
            told.await;
        }
    }
}

/// A connection of a client to the metadata server, seen from there.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) pushes: mpsc::Sender<PushCall>,
    cut: Arc<Cut>,
}

impl Connection {
    /// A call of the server to the client.
    pub(super) async fn through<T>(
        &self,
        world: &World,
        peer: &Peer,
        call: impl AsyncFnOnce() -> T,
    ) -> Result<T, LinkError> {
        let called = async {
            world.travel(peer).await;
            let answer = call().await;
            world.travel(peer).await;
            answer
        };
        let answer = tokio::select! {
            biased;
            () = self.cut.closed() => return Err(LinkError::Lost),
            answer = called => answer,
        };
        if world.loses() {
            peer.cut();
            return Err(LinkError::Lost);
        }
        Ok(answer)
    }
}

impl Peer {
    /// Its connections are lost.
    pub(super) fn cut(&self) {
        let cut = std::mem::take(&mut *lock(&self.cut));
        cut.gone.store(true, Ordering::SeqCst);
        cut.tell.notify_waiters();
    }

    /// The connection that it has now.
    pub(super) fn connection(&self) -> Option<Connection> {
        lock(&self.connection).clone().filter(|c| !c.cut.is_gone())
    }
}

impl World {
    pub(super) fn new(seed: u64, chunk_bits: u8) -> Arc<World> {
        World::with_servers(seed, chunk_bits, 1, 1)
    }

    /// With so many data servers, in chains of so many.
    pub(super) fn with_servers(
        seed: u64,
        chunk_bits: u8,
        servers: u32,
        replicas: u32,
    ) -> Arc<World> {
        Arc::new(World {
            meta: Mutex::new(MetaStore::new(chunk_bits)),
            data: Mutex::new(DataStore::new(servers, replicas)),
            random: Mutex::new(Random(seed)),
            weather: Mutex::default(),
            instance: AtomicU64::new(1),
            term_ms: AtomicU32::new(30_000),
            volume: AtomicU64::new(7),
            silent: AtomicBool::new(false),
            peers: Mutex::default(),
            held: Mutex::new(None),
        })
    }

    /// A client of this world with quick buffers.
    pub(super) async fn mount(self: &Arc<Self>) -> Arc<Vfs> {
        self.mount_with(|_| {}).await
    }

    pub(super) async fn mount_with(self: &Arc<Self>, set: impl FnOnce(&mut Options)) -> Arc<Vfs> {
        let mut options = Options::new("test", "here");
        options.writeback.age = Duration::from_millis(15);
        options.leave = Duration::from_secs(20);
        set(&mut options);
        let peer = Arc::new(Peer::default());
        lock(&self.peers).push(Arc::clone(&peer));
        Vfs::start(Arc::new(Net { world: Arc::clone(self), peer }), options).await.unwrap()
    }

    /// The client with a session.
    pub(super) fn peer_of(&self, session: SessionId) -> Option<Arc<Peer>> {
        lock(&self.peers).iter().find(|p| *lock(&p.session) == Some(session)).cloned()
    }

    /// A client.
    pub(super) fn peer(&self, vfs: &Vfs) -> Arc<Peer> {
        self.peer_of(session(vfs)).unwrap()
    }

    pub(super) fn weather(&self, weather: Weather) {
        *lock(&self.weather) = weather;
    }

    pub(super) fn term(&self) -> Duration {
        Duration::from_millis(self.term_ms.load(Ordering::SeqCst).into())
    }

    /// All connections are lost.
    pub(super) fn cut(&self) {
        lock(&self.peers).iter().for_each(|peer| peer.cut());
    }

    /// The metadata server has another map: every client is told. Returns when all have heard that could.
    pub(super) async fn push_map(self: &Arc<Self>) {
        let map = lock(&self.data).map.clone();
        let peers = lock(&self.peers).clone();
        for peer in peers {
            let Some(connection) = peer.connection() else { continue };
            let push = Push::Map(map.clone());
            let answered = connection.through(self, &peer, async || {
                let (answer, wait) = oneshot::channel();
                connection.pushes.send(PushCall { push, answer }).await.ok()?;
                wait.await.ok()
            });
            // One that is not connected gets it when it is.
            assert!(matches!(answered.await, Ok(Some(PushReply::Done) | None) | Err(_)));
        }
    }

    /// The metadata server tells a client that inodes have lost their last name. Returns when it has heard.
    pub(super) async fn push_orphans(self: &Arc<Self>, vfs: &Vfs, inos: &[Ino]) {
        let peer = self.peer(vfs);
        let (connection, push) = (peer.connection().unwrap(), Push::Orphans(inos.to_vec()));
        let answered = connection.through(self, &peer, async || {
            let (answer, wait) = oneshot::channel();
            connection.pushes.send(PushCall { push, answer }).await.ok()?;
            wait.await.ok()
        });
        assert_eq!(answered.await.ok().flatten(), Some(PushReply::Done));
    }

    /// The data servers are killed with everything they had not flushed, and started again.
    pub(super) fn restart_data(&self) {
        lock(&self.data).crash();
        self.cut();
    }

    /// The metadata server loses its power, and is started again.
    pub(super) fn restart_meta(&self) {
        lock(&self.meta).crash();
        self.instance.fetch_add(1, Ordering::SeqCst);
        self.cut();
    }

    /// The process of the metadata server is killed, and started again.
    pub(super) fn kill_meta(&self) {
        lock(&self.meta).kill();
        self.instance.fetch_add(1, Ordering::SeqCst);
        self.cut();
    }

    /// How many messages have recalled something.
    pub(super) fn recalls(&self) -> u64 {
        lock(&self.meta).leasing.recalls
    }

    /// What a client holds of an inode.
    pub(super) fn lease(&self, vfs: &Vfs, ino: Ino) -> Option<Lease> {
        let holders = lock(&self.meta).holders(ino);
        holders.iter().find(|(s, _)| *s == session(vfs)).map(|(_, lease)| *lease)
    }

    /// One way through the network.
    async fn travel(&self, peer: &Peer) {
        let ms = {
            let weather = *lock(&self.weather);
            lock(&self.random).below(weather.delay_ms + 1)
        };
        match ms {
            0 => tokio::task::yield_now().await,
            ms => tokio::time::sleep(Duration::from_micros(ms * 700)).await,
        }
        while peer.silent.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn heard(&self) {
        while self.silent.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn loses(&self) -> bool {
        let loss = lock(&self.weather).loss;
        loss > 0 && lock(&self.random).below(loss) == 0
    }

    /// Resolves when a data server has died.
    async fn dead(&self, server: ServerId) {
        while lock(&self.data).disk(server).mood != Mood::Dead {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Resolves when a data server says something.
    async fn heard_of(&self, server: ServerId) {
        while lock(&self.data).disk(server).mood == Mood::Hung {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn hello_reply(&self, instance: u64, volume: Option<VolumeInfo>) -> HelloReply {
        HelloReply {
            protocol: PROTOCOL,
            features: 0,
            cluster: ClusterId::default(),
            instance: InstanceId(instance),
            volume,
        }
    }
}

struct Net {
    world: Arc<World>,
    peer: Arc<Peer>,
}

impl Net {
    fn link(&self, hello: Hello, server: ServerId) -> Arc<Link> {
        let cut = Arc::clone(&lock(&self.peer.cut));
        Arc::new(Link {
            world: Arc::clone(&self.world),
            peer: Arc::clone(&self.peer),
            cut,
            session: hello.session,
            server,
        })
    }
}

impl Dialer for Net {
    fn meta(
        &self,
        hello: Hello,
        pushes: mpsc::Sender<PushCall>,
    ) -> Answer<'_, Dialled<dyn MetaLink>> {
        Box::pin(async move {
            let world = &self.world;
            world.travel(&self.peer).await;
            world.heard().await;
            let session = hello.session;
            let known = lock(&world.meta).sessions.contains_key(&session);
            if !known && hello.claim == Claim::Resume {
                return Err(DialError::SessionOver("it is not known".into()));
            }
            let before = lock(&self.peer.session).replace(session);
            if let Some(before) = before.filter(|_| hello.claim == Claim::Succeed) {
                // In place of its term, after which it would end.
                let mut store = lock(&world.meta);
                store.end(before);
                store.work_off(world);
            }
            let link = self.link(hello, ServerId(0));
            let resumed = {
                let mut store = lock(&world.meta);
                let resumed = store.greet(session);
                store.leasing.heard.insert(session, tokio::time::Instant::now());
                resumed
            };
            let volume = VolumeInfo {
                id: world.volume.load(Ordering::SeqCst),
                inline_limit: 4096,
                map: lock(&world.data).map.clone(),
                resumed,
                term_ms: world.term_ms.load(Ordering::SeqCst),
                lost: lock(&world.meta).lost.clone(),
                others: false,
                time: std::time::SystemTime::now().into(),
            };
            let reply = world.hello_reply(world.instance.load(Ordering::SeqCst), Some(volume));
            let connection = Connection { pushes, cut: Arc::clone(&link.cut) };
            *lock(&self.peer.connection) = Some(connection);
            Ok((reply, link as Arc<dyn MetaLink>))
        })
    }

    fn data(&self, server: DataServer, hello: Hello) -> Answer<'_, Dialled<dyn DataLink>> {
        Box::pin(async move {
            let world = &self.world;
            world.travel(&self.peer).await;
            if lock(&world.data).fenced.contains(&hello.session) {
                return Err(DialError::SessionOver("it is fenced".into()));
            }
            world.heard_of(server.id).await;
            if lock(&world.data).disk(server.id).mood == Mood::Dead {
                return Err(DialError::Unreachable("it is dead".into()));
            }
            let link = self.link(hello, server.id);
            Ok((world.hello_reply(100, None), link as Arc<dyn DataLink>))
        })
    }
}

struct Link {
    world: Arc<World>,
    peer: Arc<Peer>,
    cut: Arc<Cut>,
    session: SessionId,
    server: ServerId,
}

impl Link {
    /// Runs a call through the weather: it may be lost before or after it was executed.
    async fn through<T>(
        &self,
        execute: impl AsyncFnOnce(&Arc<World>) -> T,
    ) -> Result<T, LinkError> {
        let called = async {
            self.world.travel(&self.peer).await;
            if self.world.loses() {
                self.peer.cut();
                return Err(LinkError::Lost);
            }
            let answer = execute(&self.world).await;
            self.world.travel(&self.peer).await;
            if self.world.loses() {
                self.peer.cut();
            }
            Ok(answer)
        };
        let answer = tokio::select! {
            biased;
            () = self.cut.closed() => return Err(LinkError::Lost),
            answer = called => answer?,
        };
        if self.cut.is_gone() { Err(LinkError::Lost) } else { Ok(answer) }
    }
}

impl MetaLink for Link {
    fn call(&self, request: Request) -> Answer<'_, Result<meta::Answer, LinkError>> {
        Box::pin(async move {
            let hold = lock(&self.world.held).clone().filter(|h| (h.which)(&request));
            tokio::select! {
                () = self.world.heard() => {}
                () = self.cut.closed() => return Err(LinkError::Lost),
            }
            let session = self.session;
            let answer = self.through(async |world| world.serve(session, request).await).await?;
            if let Some(hold) = hold {
                hold.caught.notify_one();
                hold.release.notified().await;
            }
            Ok(answer)
        })
    }

    fn closed(&self) -> Answer<'_, ()> {
        Box::pin(self.cut.closed())
    }

    fn close(&self) {
        if !self.cut.is_gone() {
            self.peer.cut();
        }
    }
}

impl DataLink for Link {
    fn call(
        &self,
        request: data::Request,
        payload: Bytes,
    ) -> Answer<'_, Result<(data::Reply, Bytes), LinkError>> {
        let (session, server) = (self.session, self.server);
        let answered = self.through(async move |world| {
            let served = {
                let mut data = lock(&world.data);
                if data.fenced.contains(&session) {
                    return (data::Reply::SessionOver, Bytes::new());
                }
                data.serve(server, request, &payload)
            };
            match served {
                Some(answer) => answer,
                None => std::future::pending().await,
            }
        });
        Box::pin(async move {
            tokio::select! {
                answered = answered => answered,
                () = self.world.dead(server) => Err(LinkError::Lost),
            }
        })
    }

    fn close(&self) {}
}

/// Notes what the kernel is told.
#[derive(Debug, Default)]
pub(super) struct Kernel {
    pub(super) told: Mutex<Vec<String>>,
}

impl KernelCache for Kernel {
    fn inval_attr(&self, ino: Ino) {
        lock(&self.told).push(format!("attr {ino}"));
    }

    fn inval_data(&self, ino: Ino, offset: u64, len: u64) {
        lock(&self.told).push(format!("data {ino} {offset} {len}"));
    }

    fn inval_entry(&self, parent: Ino, name: &Name) {
        lock(&self.told).push(format!("entry {parent} {name:?}"));
    }

    fn barrier(&self) -> oneshot::Receiver<()> {
        done()
    }

    fn drop_attr(&self, ino: Ino) -> oneshot::Receiver<()> {
        self.inval_attr(ino);
        done()
    }

    fn drop_data(&self, ino: Ino, offset: u64, len: u64) -> oneshot::Receiver<()> {
        self.inval_data(ino, offset, len);
        done()
    }

    fn drop_inodes(&self, inodes: Vec<Ino>) -> oneshot::Receiver<()> {
        inodes.iter().for_each(|ino| self.inval_data(*ino, 0, 0));
        done()
    }

    fn drop_names(&self, parent: Ino, names: Vec<Name>) -> oneshot::Receiver<()> {
        names.iter().for_each(|name| self.inval_entry(parent, name));
        done()
    }

    fn drop_unused(&self, inodes: Vec<Ino>) -> Option<oneshot::Receiver<()>> {
        lock(&self.told).push(format!("unused {inodes:?}"));
        Some(done())
    }

    fn remove_name(&self, parent: Ino, name: Name) -> oneshot::Receiver<()> {
        lock(&self.told).push(format!("gone {parent} {name:?}"));
        done()
    }

    fn drop_all_names(&self) -> bool {
        lock(&self.told).push("all names".to_owned());
        true
    }
}

pub(super) fn done() -> oneshot::Receiver<()> {
    let (done, wait) = oneshot::channel();
    let _ = done.send(());
    wait
}

pub(super) fn session(vfs: &Vfs) -> SessionId {
    *vfs.session_id().borrow()
}

pub(super) fn name(s: &str) -> Name {
    Name::new(s).unwrap()
}

/// Makes a file and opens it.
pub(super) async fn file(vfs: &Arc<Vfs>, s: &str) -> (Ino, u64) {
    let caller = crate::vfs::Caller::default();
    let flags = libc::O_RDWR | libc::O_EXCL;
    let made = vfs.create(Ino::ROOT, &name(s), 0o644, 0, flags, caller).await;
    let (entry, opened) = made.unwrap();
    (entry.attr.ino, opened.fh)
}

pub(super) async fn write(
    vfs: &Arc<Vfs>,
    (ino, fh): (Ino, u64),
    offset: u64,
    data: &[u8],
) -> Result<u32, Errno> {
    vfs.write(ino, fh, offset, Bytes::copy_from_slice(data), libc::O_RDWR, 0).await
}

pub(super) async fn read(vfs: &Arc<Vfs>, (ino, fh): (Ino, u64), offset: u64, len: u32) -> Vec<u8> {
    vfs.read(ino, fh, offset, len).await.unwrap().to_vec()
}
