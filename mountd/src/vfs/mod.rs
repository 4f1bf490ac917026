//! The semantics of the file system, free of FUSE.
//!
//! Operations come in pairs where that pays: `try_…` answers at once from what is known, or not
//! at all; its asynchronous twin may send messages. Changes run in tasks of their own, so that a
//! caller who gives up (a signal, a soft mount's time-out) does not leave the caches without the
//! outcome: the future of an operation may be dropped at any time.

mod ahead;
mod atime;
mod attrs;
mod copy;
mod delivery;
mod dir;
mod handles;
mod inspect;
mod leave;
mod life;
mod locks;
mod names;
mod open;
mod orphans;
mod read;
mod recall;
mod space;
mod takeback;
mod types;
mod write;
mod xattr;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use netfs_common::attr::{Attr, FileKind};
use netfs_common::errno::Errno;
use netfs_common::id::{Ino, InstanceId, SessionId};
use netfs_common::name::Name;
use netfs_common::wire::meta::{Request, Response, StatFs};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cache::{self, Cache, Node};
use crate::insight::{Insight, carried};
use crate::session::{DialError, Dialer, Session, SessionConfig, Traffic};
use crate::writeback::{self, Writeback};
use delivery::{Delivery, Outcome};
use handles::Handles;
pub use inspect::Place;
pub use leave::{Farewell, NotStored, Unsent};
use locks::LockBook;
pub use locks::WantedLock;
pub use recall::Telling;
pub use types::{Caller, DirItem, Entry, FOREVER, KernelCache, Looked, Opened, ReadData};

/// How a volume is mounted.
#[derive(Clone, Debug)]
pub struct Options {
    /// The volume.
    pub volume: String,
    /// Host and mount point, for people.
    pub client: String,
    /// A call that waits longer fails with `ETIMEDOUT`; `None`: it waits for ever.
    pub soft: Option<Duration>,
    /// Which reads move an access time.
    pub access_times: AccessTimes,
    /// Listing a directory leaves no trace.
    pub nodiratime: bool,
    /// How long unmounting may take to send what is buffered.
    pub leave: Duration,
    /// Bounds of the caches.
    pub cache: cache::Limits,
    /// Bounds of the buffers.
    pub writeback: writeback::Limits,
}

impl Options {
    /// The defaults for a volume.
    pub fn new(volume: impl Into<String>, client: impl Into<String>) -> Options {
        Options {
            volume: volume.into(),
            client: client.into(),
            soft: None,
            access_times: AccessTimes::default(),
            nodiratime: false,
            leave: Duration::from_secs(60),
            cache: cache::Limits::default(),
            writeback: writeback::Limits::default(),
        }
    }
}

/// Which reads move an access time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessTimes {
    /// None (`noatime`).
    Never,
    /// The first one after a change, and one a day (`relatime`).
    #[default]
    Relative,
    /// All that reach the daemon (`strictatime`). So that those of a newly opened file do, the
    /// kernel keeps no pages from one `open` to the next.
    Always,
}

/// Why a volume cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The system gives no random numbers.
    #[error("the system gives no random numbers: {0}")]
    Random(String),
}

/// A mounted volume.
pub struct Vfs {
    runtime: tokio::runtime::Handle,
    options: Options,
    session: Arc<Session>,
    cache: Arc<Cache>,
    writeback: Arc<Writeback>,
    handles: Handles,
    locks: Arc<LockBook>,
    kernel: OnceLock<Arc<dyn KernelCache>>,
    /// Access times that the server does not know. Bounded, see [`atime`].
    accessed: Mutex<HashMap<Ino, netfs_common::attr::Timestamp>>,
    /// Held while access times are on their way. Locked after an inode's `meta`.
    access_gate: tokio::sync::Mutex<()>,
    /// Orphans that nobody uses any more, to be told to the server.
    forgotten: Mutex<Vec<Ino>>,
    background: Notify,
    ahead: ahead::Ahead,
    space: Mutex<Option<(Instant, StatFs)>>,
    down: AtomicBool,
    /// Recalls answered.
    recalls: AtomicU64,
    /// Others use the volume.
    company: AtomicBool,
    /// Inodes of which names are being taken back from the kernel, and these names; bounded by the recalls under way.
    moving: Mutex<HashMap<Ino, Vec<(Ino, Name)>>>,
    /// One of them is gone.
    moved: Notify,
    /// What the kernel still has of before the last reconnection.
    remnant: Mutex<cache::Remnant>,
    insight: Arc<Insight>,
}

impl std::fmt::Debug for Vfs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vfs").field("options", &self.options).finish_non_exhaustive()
    }
}

/// Message counters and sizes, for `netfs status`.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Messages sent, by request type.
    pub messages: Vec<(&'static str, u64)>,
    /// Bytes written by programs that no server has acknowledged, with what they cost in memory.
    pub dirty_bytes: u64,
    /// Inodes in the client's table.
    pub inodes: u64,
    /// There is a connection to the metadata server.
    pub connected: bool,
    /// Leases held, on inodes of which attributes are known: reading and writing.
    pub leases: (u64, u64),
    /// Recalls answered.
    pub recalls: u64,
    /// Messages in both directions.
    pub traffic: Traffic,
    /// Operations that were answered at once, and others.
    pub operations: (u64, u64),
    /// What was read ahead.
    pub ahead: cache::Held,
}

fn random() -> Result<u64, ConnectError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|e| ConnectError::Random(e.to_string()))?;
    Ok(u64::from_le_bytes(bytes))
}

impl Vfs {
    /// Connects to the volume's servers. The calling task's runtime carries all that follows.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn start(
        dialer: Arc<dyn Dialer>,
        options: Options,
    ) -> Result<Arc<Vfs>, ConnectError> {
        let config = SessionConfig {
            volume: options.volume.clone(),
            client: options.client.clone(),
            session: SessionId(random()?),
            instance: InstanceId(random()?),
        };
        let session = Session::open(config, dialer).await?;
        let others = session.volume().others;
        let cache = Arc::new(Cache::new(options.cache));
        let writeback = Writeback::new(Arc::clone(&session), Arc::clone(&cache), options.writeback);
        let vfs = Arc::new(Vfs {
            runtime: tokio::runtime::Handle::current(),
            options,
            session,
            cache,
            writeback,
            handles: Handles::default(),
            locks: Arc::new(LockBook::new()),
            kernel: OnceLock::new(),
            accessed: Mutex::default(),
            access_gate: tokio::sync::Mutex::new(()),
            forgotten: Mutex::default(),
            background: Notify::new(),
            ahead: ahead::Ahead::new(),
            space: Mutex::new(None),
            down: AtomicBool::new(false),
            recalls: AtomicU64::new(0),
            company: AtomicBool::new(others),
            moving: Mutex::default(),
            moved: Notify::new(),
            remnant: Mutex::default(),
            insight: Arc::default(),
        });
        let weak = Arc::downgrade(&vfs);
        vfs.session.set_events(weak.clone());
        tokio::spawn(life::attend(weak.clone()));
        tokio::spawn(locks::attend(weak));
        Ok(vfs)
    }

    /// Names the kernel's caches; to be done before the first operation.
    pub fn set_kernel(&self, kernel: Arc<dyn KernelCache>) {
        self.writeback.set_kernel(Arc::clone(&kernel));
        self.cache.set_kernel(Arc::clone(&kernel));
        // Set once at mount; a second kernel does not exist.
        let _ = self.kernel.set(kernel);
    }

    /// The runtime that the asynchronous operations run on.
    pub fn runtime(&self) -> tokio::runtime::Handle {
        self.runtime.clone()
    }

    /// The volume's description: its identifier, its limits.
    pub fn volume(&self) -> Arc<netfs_common::wire::hello::VolumeInfo> {
        self.session.volume()
    }

    /// The session with the metadata server, and those that take its place.
    pub fn session_id(&self) -> tokio::sync::watch::Receiver<SessionId> {
        self.session.id()
    }

    /// What the client is doing.
    pub fn stats(&self) -> Stats {
        Stats {
            messages: self.session.counters().snapshot(),
            dirty_bytes: self.writeback.pending(),
            inodes: self.cache.table.len() as u64,
            connected: self.session.connected(),
            leases: self.cache.leases(),
            recalls: self.recalls.load(Ordering::Relaxed),
            traffic: self.session.traffic(),
            operations: self.insight.counts(),
            ahead: self.cache.pages.held(),
        }
    }

    /// What it is doing and has done lately.
    pub fn insight(&self) -> &Arc<Insight> {
        &self.insight
    }

    /// Messages of one type sent so far, by the names in [`Stats::messages`].
    pub fn messages(&self, name: &str) -> u64 {
        self.session.counters().get(name)
    }

    /// Everything fails until the next mount: it has gone down on request, or was unmounted.
    pub fn is_down(&self) -> bool {
        self.down.load(Ordering::SeqCst)
    }

    /// The kernel knows an inode, or is about to.
    pub fn is_known(&self, ino: Ino) -> bool {
        self.cache.table.is_referred(ino)
    }

    /// Every inode that the kernel knows.
    pub fn known_inodes(&self) -> Vec<Ino> {
        self.cache.table.referenced()
    }

    fn up(&self) -> Result<(), Errno> {
        if self.is_down() { Err(Errno::EIO) } else { Ok(()) }
    }

    /// Waits for a question as long as the mount options say.
    async fn patiently<T>(
        &self,
        question: impl Future<Output = Result<T, Errno>>,
    ) -> Result<T, Errno> {
        self.up()?;
        match self.options.soft {
            None => question.await,
            Some(limit) => {
                tokio::time::timeout(limit, question).await.unwrap_or(Err(Errno::ETIMEDOUT))
            }
        }
    }

    /// Runs a change to its end, and waits for it as long as the mount options and the caller do.
    async fn run<T: Outcome>(
        self: &Arc<Self>,
        change: impl Future<Output = Result<T, Errno>> + Send + 'static,
    ) -> Result<T, Errno> {
        self.up()?;
        let this = Arc::clone(self);
        let task = async move { Delivery::new(this, cache::noting(change).await) };
        let task = self.runtime.spawn(carried(task));
        // A task that panicked has no answer.
        let arrival = async { task.await.map_or(Err(Errno::EIO), Delivery::arrive) };
        self.patiently(arrival).await
    }

    /// Runs several operations as one change.
    ///
    /// # Errors
    /// Those of the operations.
    pub async fn as_one(
        self: &Arc<Self>,
        change: impl Future<Output = Result<(), Errno>> + Send + 'static,
    ) -> Result<(), Errno> {
        self.run(change).await
    }

    /// An inode with attributes that are good for now: the cached ones, or fresh ones.
    async fn known(&self, ino: Ino) -> Result<(Arc<Node>, Attr), Errno> {
        let node = self.cache.table.obtain(ino);
        if let Some(attr) = self.served(&node) {
            return Ok((node, attr));
        }
        self.ask_node(&node, Request::Get { ino }).await?;
        let attr = node.effective().ok_or(Errno::EIO)?;
        Ok((node, attr))
    }

    /// Asks for an inode, and learns it.
    async fn ask_node(&self, node: &Node, question: Request) -> Result<(), Errno> {
        let ticket = self.cache.ticket(node);
        let answer = self.session.ask(question).await;
        let grant = answer.granted(node.ino);
        match answer.reply? {
            Response::Entry { attr, inline } if attr.ino == node.ino => {
                self.cache.learn(ticket, attr, inline.map(Into::into), grant);
                Ok(())
            }
            _ => Err(Errno::EPROTO),
        }
    }

    /// The attributes, if they may be served without asking.
    fn served(&self, node: &Node) -> Option<Attr> {
        // The clock first: whoever was stopped in between answers as of before.
        if self.cache.live() { node.served() } else { None }
    }

    /// An inode as the kernel shall see it.
    fn entry(&self, node: &Node) -> Option<Entry> {
        let ttl = self.cache.ttl();
        // Before the state is locked.
        let referred = self.cache.table.is_referred(node.ino);
        let mut state = node.state();
        let attr = state.effective()?;
        // The kernel notes that what it is given is good before it stores it, so it is given the same twice before it may keep it. Where
        // it has never heard of the inode, it makes one from the first.
        let settled = state.valid && state.settled();
        // A directory that is being filled would never be kept, and is asked for with every path.
        let once = !referred || attr.kind == FileKind::Dir;
        let kept = settled && (once || state.has_stored(&attr));
        if settled {
            state.show(&attr);
        }
        state.told |= kept;
        state.behind &= !kept;
        Some(Entry { attr, ttl: if kept { ttl } else { Duration::ZERO } })
    }

    /// As [`Vfs::entry`], if it may be shown without asking.
    fn served_entry(&self, node: &Node) -> Option<Entry> {
        self.served(node)?;
        self.entry(node)
    }
}
