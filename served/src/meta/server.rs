//! The metadata server: volumes behind a QUIC endpoint, on a thread of its own.
//!
//! ```text
//! frame -> client -> volume -> engine (reads and changes, at once, in the order of arrival)
//!                           -> flusher (who asks for durability waits for the next group flush)
//!                           -> trims, deletions -> data servers
//! ```
//!
//! The state on disk:
//!
//! ```text
//! DIR/NEXT_VOLUME   the number of the next volume
//! DIR/cluster       the data servers, and which of them has what, see `cluster`
//! DIR/TERM          the longest deadline of data servers that may still count, in the form of that of a volume
//! DIR/NAME/         a volume, see `engine`
//! DIR/NAME/CLEAN    it was left in order
//! DIR/NAME/BOOT     the life of the machine in which it is served
//! DIR/NAME/TERM     the longest term that its clients may count on, see `terms`
//! ```

mod audit;
mod classes;
mod client;
mod clock;
mod cluster;
mod company;
mod cuts;
mod data_link;
mod deletions;
mod fencing;
mod inspect;
mod leasing;
mod locks;
mod lookups;
mod members;
mod numbers;
mod orphans;
mod recent;
mod replaying;
mod terms;
mod trims;
mod upkeep;
mod uptime;
mod volume;
pub mod volumes;
mod waits;
pub mod wants;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netfs_common::codec;
use netfs_common::coding::{Cipher, Coding, Compression, Encryption, SealedKey};
use netfs_common::id::{ClusterId, InstanceId};
use netfs_common::map::TierMode;
use netfs_common::net::{Dialer, EndpointError, Incoming, Limits, NetMetrics, Server};
use netfs_common::telemetry::CallMetrics;
use netfs_common::tls::{self, Identity, TlsError};
use netfs_common::wire::hello::VolumeInfo;
use netfs_common::wire::meta::{Reply, Response, Status};
use netfs_common::wire::operator::{AuditStep, Operation, Outcome};
use netfs_common::wire::{Hello, HelloReply, Role};

use crate::data::codec::{KeyError, KeyFile, VolumeKey};
use crate::greeting::{self, Refusal};
use crate::health::Health;
use crate::meta::cluster::Config;
use crate::meta::engine::EngineConfig;
use crate::meta::metrics::MetaMetrics;
use crate::thread::{Ending, ServerThread, StopSignal};

use audit::{Audits, Parts};
use client::{Admin, Client, Member};
pub use cluster::FileError;
pub(crate) use cluster::kept_state;
use cluster::{Caller, Cluster, tell};
use data_link::DataLink;
use volume::Volume;
use volumes::{Opened, VolumeError};

/// Threads for flushes and checkpoints.
const BLOCKING_THREADS: usize = 4;
/// How long calls under way may take when the server is told to end.
const DRAIN: Duration = Duration::from_secs(10);
/// How long the goodbye to the data servers may take.
const FAREWELL: Duration = Duration::from_millis(500);

/// Where the data servers are. Those that are not known yet are added at the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataServers {
    /// On this machine, at this port: clients find it at the address where they found this server. There is no other.
    Local(u16),
    /// At these addresses of one server, `host:port`.
    At(Vec<String>),
    /// At these addresses of each server.
    Cluster(Vec<Vec<String>>),
}

/// What a volume's placement groups are like when they are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolOptions {
    /// Replicas of each.
    pub replicas: u8,
    /// How many there are.
    pub groups: u32,
    /// How what is written is compressed. May change from start to start.
    pub compression: Compression,
    /// How data is encrypted. Fixed when the volume is made.
    pub encryption: Encryption,
    /// What of it goes to the object store of the data servers; looked at at every start.
    pub tier: TierMode,
}

impl Default for PoolOptions {
    fn default() -> Self {
        PoolOptions {
            replicas: 1,
            groups: 256,
            compression: Compression::None,
            encryption: Encryption::None,
            tier: TierMode::Cold,
        }
    }
}

/// What a metadata server needs to know.
#[derive(Clone, Debug)]
pub struct MetaOptions {
    /// The directory of the volumes.
    pub dir: PathBuf,
    /// Volumes to make if they are not there; all others found in `dir` are served too.
    pub volumes: Vec<String>,
    /// Where to listen; port 0 for any.
    pub listen: SocketAddr,
    /// Where the data is.
    pub data: DataServers,
    /// How data servers are watched.
    pub cluster: Config,
    /// Volumes whose placement groups are to be made in another way than by default.
    pub pools: BTreeMap<String, PoolOptions>,
    /// The key file, needed for encrypted volumes.
    pub key_file: Option<PathBuf>,
    /// The server's certificate, and whom it trusts.
    pub identity: Arc<Identity>,
    /// How volumes are kept.
    pub engine: EngineConfig,
    /// Everything is on stable storage this long after it was done, asked for or not.
    pub flush_interval: Duration,
    /// Flush before each acknowledgement.
    pub sync_always: bool,
    /// How long a session lives without a sign of life.
    pub term: Duration,
    /// A session that gives signs of life and nothing else has this long to give back what it is asked for, or ten terms if that
    /// is longer; and after a restart to say what it has.
    pub answer: Duration,
    /// Bounds of the endpoint.
    pub limits: Limits,
    /// Counters of the endpoint.
    pub net_metrics: NetMetrics,
    /// Counters of the calls.
    pub calls: CallMetrics,
    /// Other counters.
    pub metrics: MetaMetrics,
}

impl MetaOptions {
    /// A server for `dir`, listening at `listen`, with default settings and without volumes to make.
    pub fn new(
        dir: PathBuf,
        listen: SocketAddr,
        data: DataServers,
        identity: Arc<Identity>,
    ) -> MetaOptions {
        MetaOptions {
            dir,
            volumes: Vec::new(),
            listen,
            data,
            cluster: Config::default(),
            pools: BTreeMap::new(),
            key_file: None,
            identity,
            engine: EngineConfig::default(),
            flush_interval: Duration::from_secs(1),
            sync_always: false,
            term: Duration::from_secs(30),
            answer: Duration::from_secs(120),
            limits: Limits::default(),
            net_metrics: NetMetrics::default(),
            calls: CallMetrics::default(),
            metrics: MetaMetrics::default(),
        }
    }
}

/// Why there is no metadata server, or why it did not end well.
#[derive(Debug, thiserror::Error)]
pub enum MetaError {
    /// A volume.
    #[error("metadata server: {0}")]
    Volume(#[from] VolumeError),
    /// The endpoint.
    #[error("metadata server: {0}")]
    Endpoint(#[from] EndpointError),
    /// The certificate.
    #[error("metadata server: {0}")]
    Tls(#[from] TlsError),
    /// A message.
    #[error("metadata server: {0}")]
    Codec(#[from] codec::CodecError),
    /// What is kept of the cluster.
    #[error("metadata server: {0}")]
    Cluster(#[from] FileError),
    /// The data server of this process is not the only one.
    #[error(
        "metadata server: meta.data_servers is empty, and there are {0} data servers: name at least the one of this process there, \
         by an address that all can reach"
    )]
    SeveralServers(usize),
    /// Data of a time when there was one data server only.
    #[error(
        "metadata server: volume \"{volume}\" has data, and nothing says on which data server: the file `cluster` in meta.dir is missing. \
         Bring it back from a copy. If the volume is of a version that knew one data server only, name this one alone in \
         meta.data_servers for the first start, and add the others when it runs"
    )]
    OldVolume {
        /// The volume.
        volume: String,
    },
    /// A volume that has data is not there.
    #[error(
        "metadata server: volume \"{volume}\" would be made anew, and empty: the file `cluster` in {} knows of more volumes than have a directory there. \
         Bring the directory back, from a copy if need be. If it is lost for good, `netfs-served volume create {volume}` makes an empty one",
        dir.display()
    )]
    LostVolume {
        /// The volume that is wanted.
        volume: String,
        /// Where it is missing.
        dir: PathBuf,
    },
    /// The key file, or its key.
    #[error("metadata server: {0}")]
    Key(#[from] KeyError),
    /// The configuration says something else than when the volume was made.
    #[error(
        "metadata server: volume \"{volume}\" was made with encryption = \"{is}\", which cannot be changed to \"{wanted}\": make \
         another volume and copy the files"
    )]
    EncryptionFixed {
        /// The volume.
        volume: String,
        /// What it has.
        is: String,
        /// What is asked for.
        wanted: String,
    },
    /// Too many placement groups.
    #[error(
        "metadata server: the cluster map would take up to {bytes} bytes, and {limit} fit into a message: use fewer volumes, \
         placement groups (volume.groups) or replicas"
    )]
    MapTooLarge {
        /// So many.
        bytes: u64,
        /// Not more than this.
        limit: u64,
    },
    /// Threads, random numbers.
    #[error("metadata server: {0}")]
    System(#[from] std::io::Error),
}

/// A running metadata server. Dropping it is like killing it: nothing is flushed.
#[derive(Debug)]
pub struct MetaServer {
    addr: SocketAddr,
    health: Health,
    thread: ServerThread<MetaError>,
}

impl MetaServer {
    /// Opens the volumes and starts to serve them.
    ///
    /// # Errors
    /// See [`MetaError`].
    pub fn start(options: MetaOptions) -> Result<MetaServer, MetaError> {
        let begin = async move |stop| begin(options, stop).await;
        let ((addr, health), thread) = ServerThread::start("netfs-meta", BLOCKING_THREADS, begin)?;
        Ok(MetaServer { addr, health, thread })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Tells whether it takes changes; if not, a line that says why.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Ends it and waits until it has ended.
    ///
    /// # Errors
    /// What could not be brought to stable storage.
    pub fn stop(self, ending: Ending) -> Result<(), MetaError> {
        self.thread.stop(ending)
    }
}

/// What all connections share.
pub(crate) struct Shared {
    cluster: ClusterId,
    instance: InstanceId,
    started: Instant,
    volumes: BTreeMap<String, Arc<Volume>>,
    /// Volumes that cannot be opened, and why.
    broken: BTreeMap<String, String>,
    data: Arc<Cluster>,
    /// The volumes' names by their numbers.
    names: BTreeMap<u64, String>,
    audits: Audits,
    calls: CallMetrics,
}

async fn begin(
    options: MetaOptions,
    stop: StopSignal,
) -> Result<((SocketAddr, Health), impl Future<Output = Result<(), MetaError>>), MetaError> {
    let cluster = ClusterId(options.identity.peer().cluster);
    let instance = greeting::draw_instance().map_err(std::io::Error::from)?;
    // Before the volumes are opened: a wrong certificate or a port in use is found out at once.
    let server = Server::bind_with_secret(
        options.listen,
        options.identity.server_config()?,
        &options.identity.endpoint_secret()?,
        options.limits.clone(),
        options.net_metrics.clone(),
    )?;
    let addr = server.local_addr()?;
    let dialer = Dialer::new(
        options.identity.client_config()?,
        options.limits.clone(),
        options.net_metrics.clone(),
    )?;
    let (mut served, mut broken) = (BTreeMap::new(), BTreeMap::new());
    let mut first = None;
    // The directory is there when this returns.
    let key_file = options.key_file.as_deref().map(KeyFile::load).transpose()?;
    let encrypted = |name: &str| {
        options.pools.get(name).is_some_and(|pool| pool.encryption != Encryption::None)
    };
    if let (None, Some(name)) = (&key_file, options.volumes.iter().find(|name| encrypted(name))) {
        return Err(missing_key(name).into());
    }
    refuse_to_replace(&options)?;
    let opened = volumes::open_all(&options.dir, &options.volumes, encrypted, options.engine)?;
    let told = terms::raise(&options.dir, options.cluster.deadline)?;
    let data = Cluster::open(&options.dir, &options.data, options.cluster, told)?;
    let names = pools(&options, &data, &opened, key_file.as_ref())?;
    let own_life = greeting::draw_instance().map_err(std::io::Error::from)?;
    let caller = Caller::new(dialer.clone(), cluster, [instance, own_life])?;
    data.run(&options.dir, caller, options.metrics.clone());
    if told > options.cluster.deadline {
        tokio::spawn(terms::forget_longer(options.dir.clone(), told, options.cluster.deadline));
    }
    let link = Arc::new(DataLink::new(data.clone()));
    for (name, opened) in opened {
        let started =
            opened.and_then(|engine| Volume::start(name.clone(), engine, link.clone(), &options));
        match started {
            Ok(volume) => drop(served.insert(name, volume)),
            Err(error) => {
                tracing::error!(volume = %name, %error, "the volume is not served; the others are");
                broken.insert(name, error.to_string());
                first.get_or_insert(error);
            }
        }
    }
    if let (true, Some(error)) = (served.is_empty(), first) {
        return Err(error.into());
    }
    let shared = Arc::new(Shared {
        cluster,
        instance,
        started: Instant::now(),
        volumes: served,
        broken,
        data,
        names,
        audits: Audits::default(),
        calls: options.calls,
    });
    let watched = Arc::downgrade(&shared);
    let health = Health::new(move || match watched.upgrade() {
        Some(shared) => shared.health(),
        None => Err("the metadata server has ended".into()),
    });
    Ok(((addr, health), serve(server, shared, dialer, stop)))
}

/// A volume whose directory is missing must not be served anew, empty, under the same name: clients would take its files for removed. No volume
/// is ever removed, so there is one for each that has placement groups.
fn refuse_to_replace(options: &MetaOptions) -> Result<(), MetaError> {
    let present = volumes::list(&options.dir)?;
    let Some(new) = options.volumes.iter().find(|name| !present.contains(name)) else {
        return Ok(());
    };
    let pools = kept_state(&options.dir)?.map(|state| state.pools).unwrap_or_default();
    let known: BTreeSet<u64> = pools.iter().map(|pool| pool.pool.volume).collect();
    match known.len() > present.len() {
        true => Err(MetaError::LostVolume { volume: new.clone(), dir: options.dir.clone() }),
        false => Ok(()),
    }
}

/// Sees to it that all volumes have their placement groups. Returns their names by their numbers.
fn pools(
    options: &MetaOptions,
    data: &Cluster,
    opened: &[Opened],
    keys: Option<&KeyFile>,
) -> Result<BTreeMap<u64, String>, MetaError> {
    let mut names = BTreeMap::new();
    for (name, opened) in opened {
        let Ok(engine) = opened else { continue };
        let failed = |errno| VolumeError::Unreadable { name: name.clone(), errno };
        let settings = engine.volume().map_err(failed)?.settings;
        let number = volume::number_of(&settings);
        let wanted = options.pools.get(name);
        if let Some(coding) = data.coding(number) {
            keep_coding(options, data, (name, number), coding.clone(), keys)?;
            if let Some(wanted) = wanted {
                // It has its groups; what of it goes to an object store may have changed.
                data.ensure_pool(&options.dir, number, *wanted, coding)?;
            }
        } else {
            // Contents of files are in inodes already, or may be: too late for encryption.
            let encryption = wanted.map_or(Encryption::None, |wanted| wanted.encryption);
            let sealed = settings.inline_limit == 0;
            let cipher = encryption.cipher();
            if sealed != cipher.is_some() {
                let is = if sealed { "(some)" } else { "none" };
                return Err(encryption_fixed(name, is, encryption.cipher()));
            }
            let key = cipher.map(|cipher| new_key(name, number, cipher, keys)).transpose()?;
            let compression = wanted.map_or(Compression::None, |wanted| wanted.compression);
            let coding = Coding { compression, key };
            // Only while there is one data server is it certain that its data is found again.
            let used = engine.counters().map_err(failed)?.inodes > 1;
            if used && data.published().map.servers.len() > 1 {
                return Err(MetaError::OldVolume { volume: name.clone() });
            }
            let pool = wanted.copied().unwrap_or_default();
            data.ensure_pool(&options.dir, number, pool, coding)?;
        }
        names.insert(number, name.clone());
    }
    Ok(names)
}

/// A volume that has its placement groups: its key must be at hand, what cannot change must not have, and what can is taken over.
fn keep_coding(
    options: &MetaOptions,
    data: &Cluster,
    (name, number): (&str, u64),
    coding: Coding,
    keys: Option<&KeyFile>,
) -> Result<(), MetaError> {
    if let Some(sealed) = &coding.key {
        keys.ok_or_else(|| missing_key(name))?.open(number, sealed)?;
    }
    let Some(wanted) = options.pools.get(name) else { return Ok(()) };
    let is = coding.key.as_ref().map(|key| key.cipher);
    if is != wanted.encryption.cipher() {
        let is = is.map_or_else(|| "none".into(), |cipher| cipher.to_string());
        return Err(encryption_fixed(name, &is, wanted.encryption.cipher()));
    }
    if coding.compression != wanted.compression {
        let compression = wanted.compression;
        data.set_coding(&options.dir, number, Coding { compression, ..coding })?;
    }
    Ok(())
}

fn new_key(
    name: &str,
    number: u64,
    cipher: Cipher,
    keys: Option<&KeyFile>,
) -> Result<SealedKey, MetaError> {
    let keys = keys.ok_or_else(|| missing_key(name))?;
    let key = VolumeKey::draw(cipher).map_err(std::io::Error::from)?;
    Ok(keys.seal(number, &key)?)
}

fn missing_key(name: &str) -> KeyError {
    KeyError::Missing { setting: "meta.key_file", what: format!("volume \"{name}\"") }
}

fn encryption_fixed(name: &str, is: &str, wanted: Option<Cipher>) -> MetaError {
    let wanted = wanted.map_or_else(|| "none".into(), |cipher| cipher.to_string());
    MetaError::EncryptionFixed { volume: name.into(), is: is.into(), wanted }
}

async fn serve(
    server: Server,
    shared: Arc<Shared>,
    dialer: Dialer,
    mut stop: StopSignal,
) -> Result<(), MetaError> {
    let ending = loop {
        tokio::select! {
            ending = stop.wait() => break ending,
            incoming = server.accept() => match incoming {
                Some(incoming) => {
                    tokio::spawn(welcome(incoming, shared.clone()));
                }
                None => break Ending::Drain,
            },
        }
    };
    if ending == Ending::Drain {
        shared.volumes.values().for_each(|volume| volume.let_go());
        server.shutdown(Instant::now() + DRAIN).await;
    }
    let mut result = Ok(());
    for volume in shared.volumes.values() {
        // Without this, volume and connection would hold each other for ever.
        volume.forget_links();
        if ending == Ending::Drain
            && let Err(error) = volume.finish().await
        {
            result = Err(error.into());
        }
    }
    shared.data.close();
    if ending == Ending::Drain {
        // Otherwise a data server that stops next would wait for this one to read and close.
        dialer.close();
        if tokio::time::timeout(FAREWELL, dialer.wait_idle()).await.is_err() {
            tracing::debug!("a data server has not acknowledged the goodbye");
        }
    }
    result
}

async fn welcome(incoming: Incoming, shared: Arc<Shared>) {
    let hello = match greeting::open(&incoming, shared.cluster, greeting::META) {
        Ok(hello) => hello,
        Err(refusal) => return greeting::refuse(incoming, &refusal),
    };
    let address = incoming.remote_address();
    let result = match hello.role {
        Role::Admin => admin(incoming, shared).await,
        Role::Meta | Role::Data => member(incoming, hello, shared).await,
    };
    if let Err(error) = result {
        tracing::info!(%address, %error, "client lost before its welcome");
    }
}

async fn admin(incoming: Incoming, shared: Arc<Shared>) -> Result<(), Lost> {
    let words = codec::encode(&greeting::reply(shared.cluster, shared.instance))?;
    let operator = incoming.peer().role == tls::Role::Server;
    incoming.welcome_link(&words, Arc::new(Admin::new(shared, operator))).await?;
    Ok(())
}

/// Why a client got no welcome.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error(transparent)]
    Call(#[from] netfs_common::net::CallError),
    #[error(transparent)]
    Codec(#[from] codec::CodecError),
}

async fn member(incoming: Incoming, hello: Hello, shared: Arc<Shared>) -> Result<(), Lost> {
    if shared.broken.contains_key(&hello.volume) {
        let text =
            format!("the volume {} cannot be opened; the server's log says why", hello.volume);
        greeting::refuse(incoming, &Refusal::Unavailable(text));
        return Ok(());
    }
    let Some(volume) = shared.volumes.get(&hello.volume).cloned() else {
        let shown: String = hello.volume.chars().take(greeting::MAX_VOLUME_BYTES).collect();
        greeting::refuse(incoming, &Refusal::UnknownVolume(shown));
        return Ok(());
    };
    let certificate = incoming.peer().name.clone();
    let joined = match volume.join(&hello, &certificate).await {
        Ok(joined) => joined,
        Err(refusal) => {
            greeting::refuse(incoming, &refusal);
            return Ok(());
        }
    };
    let here = incoming.local_ip();
    let mut maps = shared.data.maps();
    let map = shared.data.map_for(&maps.borrow_and_update(), volume.number(), here);
    let info = VolumeInfo {
        id: volume.id(),
        inline_limit: volume.inline_limit(),
        map,
        resumed: joined.resumed,
        others: volume.has_company(),
        time: std::time::SystemTime::now().into(),
        term_ms: u32::try_from(volume.term().as_millis()).unwrap_or(u32::MAX),
        lost: volume.lost(),
    };
    let reply =
        HelloReply { volume: Some(info), ..greeting::reply(shared.cluster, shared.instance) };
    let words = codec::encode(&reply)?;
    let address = incoming.remote_address();
    let session = hello.session;
    tracing::info!(
        %address, %certificate, client = %hello.client, volume = %hello.volume, %session,
        resumed = joined.resumed, "client connected"
    );
    let cluster = shared.data.clone();
    let client = Client::new(shared, volume.clone(), (session, joined.entry), hello.client);
    let link = incoming.welcome_link(&words, Arc::new(Member(client))).await?;
    let Some(connection) = volume.connected(session, joined.entry, link.clone()) else {
        return Ok(());
    };
    let news = tokio::spawn(tell(cluster, maps, volume.number(), here, link.clone()));
    let reason = link.closed().await;
    news.abort();
    volume.disconnected(session, connection);
    tracing::info!(%address, %session, %reason, "client gone");
    Ok(())
}

impl Shared {
    fn health(&self) -> Result<(), String> {
        for volume in self.volumes.values() {
            if let Some(why) = volume.failure() {
                return Err(format!("volume {} {why}", volume.name()));
            }
        }
        if let Some((name, why)) = self.broken.first_key_value() {
            return Err(format!("volume {name} is not served: {why}"));
        }
        self.data.failure(&self.names).map_or(Ok(()), Err)
    }

    /// Does what an operator wants.
    async fn operate(&self, operation: Operation) -> Outcome {
        let number = match &operation {
            Operation::Replicas { volume, .. } | Operation::ClassReplicas { volume, .. } => {
                self.names.iter().find(|(_, name)| *name == volume).map(|(number, _)| *number)
            }
            _ => None,
        };
        match operation {
            Operation::Audit(AuditStep::Look) => Outcome::Audit(Box::new(self.audits.look())),
            Operation::Audit(AuditStep::Begin { dry_run }) => {
                let parts = Parts {
                    cluster: self.data.clone(),
                    volumes: self.volumes.values().cloned().collect(),
                    broken: self.broken.keys().cloned().collect(),
                };
                Outcome::Audit(Box::new(self.audits.begin(dry_run, parts)))
            }
            operation => self.data.operate(operation, number).await,
        }
    }

    async fn status(&self) -> Reply {
        let mut volumes = Vec::with_capacity(self.volumes.len());
        for volume in self.volumes.values() {
            volumes.push(volume.status().await?);
        }
        Ok(Response::Status(Status {
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_secs: self.started.elapsed().as_secs(),
            volumes,
            alarms: self.data.alarms(&self.names),
        }))
    }
}
