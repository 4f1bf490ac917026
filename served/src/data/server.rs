//! The data server: the segment store behind a QUIC endpoint, on a thread of its own.
//!
//! ```text
//! stream -> handler (bounds, epoch) -> store, on the thread itself where that is cheap,
//!                                      else on a small pool; flushes of all callers in groups
//! upkeep thread -> reclamation, checkpoints, scrub
//! ```

mod beating;
mod chunks;
mod deleting;
mod fault;
mod fences;
mod flushing;
mod followed;
mod forwarding;
mod handler;
mod keys;
mod lease;
mod lives;
mod loss;
mod mending;
mod metrics;
mod noted;
mod owner;
pub(crate) mod peers;
mod progress;
mod replicas;
mod rights;
mod room;
mod spans;
mod sweeping;
mod teaching;
mod tiering;
mod turns;
mod upkeep;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netfs_common::codec;
use netfs_common::id::{ClusterId, InstanceId};
use netfs_common::net::{CallError, Dialer, EndpointError, Incoming, Limits, NetMetrics, Server};
use netfs_common::tls::{self, Identity, TlsError};

use tokio::sync::Semaphore;

use crate::data::store::{SegmentStore, StoreConfig, StoreError};
use crate::data::tier::BucketError;
use crate::flusher::Flusher;
use crate::greeting::{self, Refusal};
use crate::health::Health;
use crate::thread::{Ending, ServerThread, StopSignal};

pub use keys::KeysError;
pub use metrics::DataMetrics;
#[cfg(test)]
pub(crate) use owner::own;
pub(crate) use owner::owner_of;
pub use tiering::TierOptions;
pub use upkeep::UpkeepConfig;

use chunks::Chunks;
use fences::Fences;
use handler::{Handler, Peer};
use keys::Keys;
use loss::Loss;
use owner::Owner;
use peers::{Greeting, Peers};
use replicas::{Parts, Replicas};
use rights::Rights;
use tiering::{Known, Tier};
use turns::Turns;
use upkeep::Upkeep;

/// Threads for calls that may wait for the disk. More only queue at the store's lock.
const BLOCKING_THREADS: usize = 8;
/// Besides them, for flushes: they must not wait for calls that wait for them.
const FLUSH_THREADS: usize = 2;
/// Holes in ranges that are made at a time. Each goes to its end, also when its client withdraws it.
const SPANS: usize = 32;
/// How long the goodbye to other data servers may take.
const FAREWELL: Duration = Duration::from_millis(500);
/// How long calls under way may take when the server is told to end.
const DRAIN: Duration = Duration::from_secs(10);

/// What a data server needs to know.
#[derive(Clone, Debug)]
pub struct DataOptions {
    /// The directory of the store.
    pub dir: PathBuf,
    /// Where to listen; port 0 for any.
    pub listen: SocketAddr,
    /// The server's certificate, and whom it trusts.
    pub identity: Arc<Identity>,
    /// Settings of the store.
    pub store: StoreConfig,
    /// Everything is on stable storage this long after it was written, asked for or not.
    pub flush_interval: Duration,
    /// Background work.
    pub upkeep: UpkeepConfig,
    /// What fails together with this server, in one word: a rack, a room. Empty: nothing but itself.
    pub domain: String,
    /// The key file, needed for encrypted volumes.
    pub key_file: Option<PathBuf>,
    /// The bucket for what nobody uses; `None`: there is none.
    pub tier: Option<TierOptions>,
    /// How fast chunks are copied to replicas that lack them, in bytes per second; 0 for as fast as it goes.
    pub repair_rate: u64,
    /// What is damaged and could not be mended for so long counts as lost: a replica that is to get it is told so.
    pub loss_after: Duration,
    /// Bounds of the endpoint.
    pub limits: Limits,
    /// Counters of the endpoint.
    pub net_metrics: NetMetrics,
    /// Counters of the server.
    pub metrics: DataMetrics,
}

impl DataOptions {
    /// A server for `dir`, listening at `listen`, with default settings.
    pub fn new(dir: PathBuf, listen: SocketAddr, identity: Arc<Identity>) -> DataOptions {
        DataOptions {
            dir,
            listen,
            identity,
            store: StoreConfig::default(),
            flush_interval: Duration::from_secs(1),
            upkeep: UpkeepConfig::default(),
            domain: String::new(),
            key_file: None,
            tier: None,
            repair_rate: 128 << 20,
            loss_after: Duration::from_secs(30),
            limits: Limits::default(),
            net_metrics: NetMetrics::default(),
            metrics: DataMetrics::default(),
        }
    }
}

/// Why there is no data server, or why it did not end well.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The store.
    #[error("data store {}: {source}", dir.display())]
    Store {
        /// Its directory.
        dir: PathBuf,
        /// What is wrong.
        source: StoreError,
    },
    /// The keys of encrypted volumes.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The list of sessions that must be kept out.
    #[error("data server: the list of ended sessions {} cannot be used: {source}", path.display())]
    Fences {
        /// Where it is.
        path: PathBuf,
        /// What is wrong.
        source: std::io::Error,
    },
    /// The note that the disk has lost something.
    #[error("data server: {}: {source}", path.display())]
    Loss {
        /// Where it is kept.
        path: PathBuf,
        /// What is wrong.
        source: std::io::Error,
    },
    /// The note whose data it is.
    #[error("data server: {}: {source}", path.display())]
    Owner {
        /// Where it is kept.
        path: PathBuf,
        /// What is wrong.
        source: std::io::Error,
    },
    /// The note which bucket it uses.
    #[error("data server: {}: {source}", path.display())]
    Bucket {
        /// Where it is kept.
        path: PathBuf,
        /// What is wrong.
        source: std::io::Error,
    },
    /// The endpoint.
    #[error("data server: {0}")]
    Endpoint(#[from] EndpointError),
    /// The certificate.
    #[error("data server: {0}")]
    Tls(#[from] TlsError),
    /// The object store.
    #[error("object store: {0}")]
    Tier(#[from] BucketError),
    /// A message.
    #[error("data server: {0}")]
    Codec(#[from] codec::CodecError),
    /// Threads, random numbers.
    #[error("data server: {0}")]
    System(#[from] std::io::Error),
}

/// A running data server. Dropping it is like killing it: nothing is flushed.
#[derive(Debug)]
pub struct DataServer {
    addr: SocketAddr,
    instance: InstanceId,
    health: Health,
    thread: ServerThread<DataError>,
}

impl DataServer {
    /// Opens the store and starts to serve it.
    ///
    /// # Errors
    /// See [`DataError`].
    pub fn start(options: DataOptions) -> Result<DataServer, DataError> {
        let begin = async move |stop| begin(options, stop).await;
        let ((addr, instance, health), thread) =
            ServerThread::start("netfs-data", BLOCKING_THREADS + FLUSH_THREADS, begin)?;
        Ok(DataServer { addr, instance, health, thread })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// This life of the server.
    pub fn instance(&self) -> InstanceId {
        self.instance
    }

    /// Tells whether it takes writes; if not, a line that says why.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Ends it and waits until it has ended.
    ///
    /// # Errors
    /// What could not be brought to stable storage.
    pub fn stop(self, ending: Ending) -> Result<(), DataError> {
        self.thread.stop(ending)
    }
}

/// What the starter gets to know.
type Facts = (SocketAddr, InstanceId, Health);

async fn begin(
    options: DataOptions,
    stop: StopSignal,
) -> Result<(Facts, impl Future<Output = Result<(), DataError>>), DataError> {
    let dir = options.dir.clone();
    let store_error = |source| DataError::Store { dir: dir.clone(), source };
    let keys = Keys::open(&options.dir, options.key_file.as_deref())?;
    let (store, report) =
        SegmentStore::open_noting(&options.dir, options.store.clone(), &|report| {
            Loss::note(&options.dir, report)
        })
        .map_err(store_error)?;
    if report.identity_restored {
        tracing::warn!(dir = %dir.display(), "the file `store` was damaged; it is made anew from what all segments say");
    }
    if report.created {
        tracing::info!(dir = %dir.display(), "data store made");
    } else if report.is_clean() {
        tracing::info!(dir = %dir.display(), replayed = report.records_replayed, "data store opened");
    } else {
        tracing::error!(dir = %dir.display(), ?report, "data store opened; the disk has lost data");
    }
    let instance = greeting::draw_instance().map_err(std::io::Error::from)?;
    let loss = Loss::open(&options.dir, instance)
        .map_err(|source| DataError::Loss { path: Loss::file(&options.dir), source })?;
    if loss.lacks() {
        tracing::error!(note = %Loss::file(&options.dir).display(), "the disk has lost data: other replicas go on in place of this server's, if there are any");
    }
    loss.warn();
    let owner = Owner::open(&options.dir)
        .map_err(|source| DataError::Owner { path: Owner::file(&options.dir), source })?;
    keys.begin(&store);
    let store = Arc::new(store);
    let (fences, damaged) = Fences::open(&options.dir)
        .map_err(|source| DataError::Fences { path: Fences::file(&options.dir), source })?;
    if let Some(what) = damaged {
        let kept = Fences::file_of_damage(&options.dir);
        tracing::warn!(%what, kept = %kept.display(), "the list of ended sessions was damaged; it begins anew, which is safe in a new life of the server");
    }
    // What is wrong with its settings is said before anything is served.
    let (cluster, counts) = (options.identity.peer().cluster, options.metrics.tier.clone());
    let known = Known::open(&options.dir, report.created)
        .map_err(|source| DataError::Bucket { path: Known::file(&options.dir), source })?;
    let tier = options.tier.clone();
    let tier = tier.map(|tier| Tier::new(tier, cluster, known, counts)).transpose()?;
    let server = Server::bind_with_secret(
        options.listen,
        options.identity.server_config()?,
        &options.identity.endpoint_secret()?,
        options.limits.clone(),
        options.net_metrics.clone(),
    )?;
    let addr = server.local_addr()?;
    let (watched, metrics) = (Arc::downgrade(&store), options.metrics.clone());
    let health = Health::new(move || match metrics.trouble() {
        Some(why) => Err(format!("data store: {why}")),
        None if watched.strong_count() == 0 => Err("the data server has ended".into()),
        None => Ok(()),
    });
    let work = async move {
        serve(server, (store, fences, keys, (loss, owner, tier)), options, instance, stop).await
    };
    Ok(((addr, instance, health), work))
}

async fn serve(
    server: Server,
    (store, fences, keys, (loss, owner, tier)): (
        Arc<SegmentStore>,
        Fences,
        Keys,
        (Loss, Owner, Option<Tier>),
    ),
    options: DataOptions,
    instance: InstanceId,
    mut stop: StopSignal,
) -> Result<(), DataError> {
    let cluster = ClusterId(options.identity.peer().cluster);
    let (flushed, metrics) = (store.clone(), options.metrics.clone());
    let flusher = Flusher::start(options.flush_interval, move || {
        let result = metrics.during(|| flushed.flush());
        metrics.flushed(result.as_ref().err().map(ToString::to_string));
        result.map_err(|error| {
            metrics.store_failed(&error);
            fault::errno(&error)
        })
    })?;
    let chunks = Arc::new(Chunks::new(store.clone(), options.store.max_chunk_bytes));
    let turns = Turns::new(BLOCKING_THREADS);
    let dialer = Dialer::new(
        options.identity.client_config()?,
        options.limits.clone(),
        options.net_metrics.clone(),
    )?;
    let store_id = ClusterId(store.identity()).to_string();
    let domain = match options.domain.as_str() {
        "" => store_id,
        domain => domain.to_owned(),
    };
    let replicas = Arc::new(Replicas::new(Parts {
        tier,
        loss,
        owner,
        instance,
        chunks: chunks.clone(),
        keys,
        flusher: flusher.clone(),
        peers: Peers::new(dialer, Greeting::new(cluster, instance, "data server")?),
        metrics: options.metrics.clone(),
        threads: turns.slots(),
        domain,
        repair_rate: options.repair_rate,
        loss_after: options.loss_after,
    }));
    tokio::spawn(mending::attend(Arc::downgrade(&replicas)));
    tokio::spawn(tiering::attend(Arc::downgrade(&replicas)));
    let found = Arc::downgrade(&replicas);
    let upkeep = Upkeep::start(
        store.clone(),
        options.upkeep.clone(),
        options.metrics.clone(),
        move |bad| {
            if let Some(replicas) = found.upgrade() {
                replicas.damage.note(chunks::id(&bad.key), bad.offset, bad.len);
            }
        },
    )?;
    let handler = Arc::new(Handler {
        turns,
        fences: Arc::new(fences),
        flusher,
        chunks,
        replicas: replicas.clone(),
        instance,
        spans: Arc::new(Semaphore::new(SPANS)),
        metrics: options.metrics.clone(),
    });
    let ending = loop {
        tokio::select! {
            ending = stop.wait() => break ending,
            incoming = server.accept() => match incoming {
                Some(incoming) => {
                    tokio::spawn(welcome(incoming, handler.clone(), cluster));
                }
                None => break Ending::Drain,
            },
        }
    };
    if ending == Ending::Abrupt {
        upkeep.stop();
        return Ok(());
    }
    let deadline = Instant::now() + DRAIN;
    server.shutdown(deadline).await;
    handler.turns.quiet(deadline).await;
    replicas.loss.note_last_followed();
    replicas.peers.farewell(FAREWELL).await;
    upkeep.stop();
    let source = match store.checkpoint() {
        Ok(()) => return Ok(()),
        // A full disk has no room for the snapshot; what counts is flushed before it is tried.
        Err(StoreError::NoSpace { .. }) => store.flush(),
        Err(e) => Err(e),
    };
    source.map_err(|source| DataError::Store { dir: options.dir, source })
}

async fn welcome(incoming: Incoming, handler: Arc<Handler>, cluster: ClusterId) {
    let hello = match greeting::open(&incoming, cluster, greeting::DATA) {
        Ok(hello) => hello,
        Err(refusal) => return greeting::refuse(incoming, &refusal),
    };
    let words = match codec::encode(&greeting::reply(cluster, handler.instance)) {
        Ok(words) => words,
        Err(error) => {
            tracing::error!(%error, "the welcome cannot be encoded");
            return;
        }
    };
    let (address, certificate) = (incoming.remote_address(), incoming.peer().name.clone());
    let who = (certificate.clone(), hello.session, hello.instance);
    let rights = match incoming.peer().role {
        tls::Role::Server => Rights::Server,
        _ => Rights::client(),
    };
    let client = handler.turns.enter(&who).await;
    // Only now: a fence that is put up from here on finds the client.
    if handler.fences.contains(hello.session) {
        handler.turns.leave(&who, &client).await;
        let text = "it was silent for too long, and others may have what it had";
        return greeting::refuse(incoming, &Refusal::SessionOver(text.into()));
    }
    let peer = Arc::new(Peer::new(handler.clone(), client.clone(), rights));
    match incoming.welcome_bulk(&words, peer.clone()).await {
        Ok(connection) => {
            tracing::info!(%address, %certificate, client = %hello.client, session = %hello.session, "data client connected");
            let reason = tokio::select! {
                reason = connection.closed() => reason,
                () = client.superseded() => {
                    connection.close();
                    CallError::Lost(match client.is_fenced() {
                        true => "its session has been fenced".into(),
                        false => "it has connected anew".into(),
                    })
                }
                () = peer.nonsense() => {
                    connection.close();
                    CallError::Protocol("it talked nonsense".into())
                }
            };
            tracing::info!(%address, session = %hello.session, %reason, "data client gone");
        }
        Err(error) => tracing::info!(%address, %error, "client lost before its welcome"),
    }
    handler.turns.leave(&who, &client).await;
}
