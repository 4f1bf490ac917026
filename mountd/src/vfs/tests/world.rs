//! Both servers in memory, and a network that delays, reorders and loses.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use netfs_common::errno::Errno;
use netfs_common::id::{ClusterId, Epoch, Ino, InstanceId, ServerId};
use netfs_common::map::{Chain, ClusterMap, DataServer};
use netfs_common::name::Name;
use netfs_common::wire::hello::VolumeInfo;
use netfs_common::wire::meta::{Push, PushReply, Reply, Request};
use netfs_common::wire::{Claim, Hello, HelloReply, data};
use tokio::sync::{Notify, mpsc, oneshot};

use super::data_server::DataStore;
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
    /// Raised to cut all connections.
    cut: Mutex<Arc<Cut>>,
    pub(super) exclusive: AtomicBool,
    pub(super) term_ms: AtomicU32,
    /// The metadata server cannot be reached, and nobody says so.
    pub(super) silent: AtomicBool,
    pushes: Mutex<Option<mpsc::Sender<PushCall>>>,
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

#[derive(Default)]
struct Cut {
    gone: AtomicBool,
    tell: Notify,
}

impl World {
    pub(super) fn new(seed: u64, chunk_bits: u8) -> Arc<World> {
        Arc::new(World {
            meta: Mutex::new(MetaStore::new(chunk_bits)),
            data: Mutex::new(DataStore::default()),
            random: Mutex::new(Random(seed)),
            weather: Mutex::default(),
            instance: AtomicU64::new(1),
            cut: Mutex::default(),
            exclusive: AtomicBool::new(true),
            term_ms: AtomicU32::new(30_000),
            silent: AtomicBool::new(false),
            pushes: Mutex::new(None),
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
        Vfs::start(Arc::new(Net(Arc::clone(self))), options).await.unwrap()
    }

    pub(super) fn weather(&self, weather: Weather) {
        *lock(&self.weather) = weather;
    }

    /// All connections are lost.
    pub(super) fn cut(&self) {
        let cut = std::mem::take(&mut *lock(&self.cut));
        cut.gone.store(true, Ordering::SeqCst);
        cut.tell.notify_waiters();
    }

    /// The data server is killed with everything it had not flushed, and started again.
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

    pub(super) async fn push(&self, push: Push) -> PushReply {
        let to = lock(&self.pushes).clone().unwrap();
        let (answer, wait) = oneshot::channel();
        to.send(PushCall { push, answer }).await.unwrap();
        wait.await.unwrap()
    }

    async fn travel(&self) {
        let ms = {
            let weather = *lock(&self.weather);
            lock(&self.random).below(weather.delay_ms + 1)
        };
        match ms {
            0 => tokio::task::yield_now().await,
            ms => tokio::time::sleep(Duration::from_micros(ms * 700)).await,
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

    fn map(&self) -> ClusterMap {
        let server = DataServer { id: ServerId(1), addrs: vec!["x:1".into()] };
        let chain = Chain { epoch: Epoch(1), replicas: vec![ServerId(1)] };
        ClusterMap { version: Epoch(1), servers: vec![server], chains: vec![chain; 4] }
    }

    fn hello_reply(&self, instance: u64, volume: Option<VolumeInfo>) -> HelloReply {
        HelloReply {
            protocol: 1,
            features: 0,
            cluster: ClusterId::default(),
            instance: InstanceId(instance),
            volume,
        }
    }
}

pub(super) struct Net(pub(super) Arc<World>);

impl Dialer for Net {
    fn meta(
        &self,
        hello: Hello,
        pushes: mpsc::Sender<PushCall>,
    ) -> Answer<'_, Dialled<dyn MetaLink>> {
        Box::pin(async move {
            let world = &self.0;
            world.travel().await;
            world.heard().await;
            *lock(&world.pushes) = Some(pushes);
            let known = lock(&world.meta).sessions.contains_key(&hello.session);
            if !known && hello.claim == Claim::Resume {
                return Err(DialError::SessionOver("it is not known".into()));
            }
            let resumed = lock(&world.meta).greet(hello.session);
            let volume = VolumeInfo {
                id: 7,
                inline_limit: 4096,
                map: world.map(),
                resumed,
                exclusive: world.exclusive.load(Ordering::SeqCst),
                term_ms: world.term_ms.load(Ordering::SeqCst),
                lost: lock(&world.meta).lost.clone(),
            };
            let reply = world.hello_reply(world.instance.load(Ordering::SeqCst), Some(volume));
            let cut = Arc::clone(&lock(&world.cut));
            let link = Link { world: Arc::clone(world), cut, hello };
            Ok((reply, Arc::new(link) as Arc<dyn MetaLink>))
        })
    }

    fn data(&self, _server: DataServer, hello: Hello) -> Answer<'_, Dialled<dyn DataLink>> {
        Box::pin(async move {
            let world = &self.0;
            world.travel().await;
            if lock(&world.data).fenced.contains(&hello.session) {
                return Err(DialError::SessionOver("it is fenced".into()));
            }
            let instance = lock(&world.data).instance.0;
            let cut = Arc::clone(&lock(&world.cut));
            let link = Link { world: Arc::clone(world), cut, hello };
            let link = Arc::new(link) as Arc<dyn DataLink>;
            Ok((world.hello_reply(instance, None), link))
        })
    }
}

struct Link {
    world: Arc<World>,
    cut: Arc<Cut>,
    hello: Hello,
}

impl Link {
    /// Runs a call through the weather: it may be lost before or after it was executed.
    async fn through<T>(&self, execute: impl FnOnce(&World) -> T) -> Result<T, LinkError> {
        self.world.travel().await;
        let gone = |l: &Link| l.cut.gone.load(Ordering::SeqCst);
        if gone(self) {
            return Err(LinkError::Lost);
        }
        if self.world.loses() {
            self.world.cut();
            return Err(LinkError::Lost);
        }
        let answer = execute(&self.world);
        self.world.travel().await;
        if self.world.loses() {
            self.world.cut();
        }
        if gone(self) { Err(LinkError::Lost) } else { Ok(answer) }
    }
}

impl MetaLink for Link {
    fn call(&self, request: Request) -> Answer<'_, Result<Reply, LinkError>> {
        Box::pin(async move {
            let hold = lock(&self.world.held).clone().filter(|h| (h.which)(&request));
            let session = self.hello.session;
            let gone = self.closed();
            tokio::select! {
                () = self.world.heard() => {}
                () = gone => return Err(LinkError::Lost),
            }
            let answer = self
                .through(|world| {
                    let mut data = lock(&world.data);
                    lock(&world.meta).call(session, request, &mut data)
                })
                .await?;
            if let Some(hold) = hold {
                hold.caught.notify_one();
                hold.release.notified().await;
            }
            Ok(answer)
        })
    }

    fn closed(&self) -> Answer<'_, ()> {
        Box::pin(async move {
            loop {
                let told = self.cut.tell.notified();
                if self.cut.gone.load(Ordering::SeqCst) {
                    return;
                }
                told.await;
            }
        })
    }

    fn close(&self) {
        if !self.cut.gone.load(Ordering::SeqCst) {
            self.world.cut();
        }
    }
}

impl DataLink for Link {
    fn call(
        &self,
        request: data::Request,
        payload: Bytes,
    ) -> Answer<'_, Result<(data::Reply, Bytes), LinkError>> {
        let session = self.hello.session;
        Box::pin(async move {
            self.through(|world| {
                let mut data = lock(&world.data);
                if data.fenced.contains(&session) {
                    return (data::Reply::SessionOver, Bytes::new());
                }
                data.call(request.op, &payload)
            })
            .await
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
        let (done, wait) = oneshot::channel();
        let _ = done.send(());
        wait
    }
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
