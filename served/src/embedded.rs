//! Both servers in the calling process, on loopback: what `netfs dev` uses.
//!
//! ```text
//! STATE/lock              held by the process that uses STATE
//! STATE/identity/ca       the cluster's authority; made at the first start
//! STATE/identity/server   the servers' certificate
//! STATE/identity/client   the client's certificate
//! STATE/meta/NAME         the volumes
//! STATE/data              the chunks
//! STATE/servers.toml      where the servers are, while they run: for further clients
//! ```

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use netfs_common::net::{EndpointError, NetMetrics};
use netfs_common::telemetry::Metrics;
use netfs_common::tls::pki::{self, IssueOptions, Leaf};
use netfs_common::tls::{Identity, TlsError};

use crate::data::server::{DataError, DataOptions, DataServer};
use crate::meta::server::{DataServers, MetaError, MetaOptions, MetaServer};
use crate::private;
use crate::thread::Ending;

/// The name of the volume that there is.
pub const DEV_VOLUME: &str = "dev";
/// The file that says where the servers are.
pub const SERVERS_FILE: &str = "servers.toml";

/// Choices for the embedded servers.
#[derive(Clone, Copy, Debug, Default)]
pub struct EmbeddedOptions {
    /// Where to count what happens; nowhere if `None`.
    pub metrics: Option<&'static Metrics>,
}

/// Why the servers cannot be started, or did not end well. Each is one line.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// Somebody else is there.
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// Something else is there.
    #[error("{} holds other files ({found:?}) and no netfs state; give an empty or new directory", dir.display())]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// The first foreign name found in it.
        found: String,
    },
    /// A file or directory cannot be used.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The metadata server.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// The data server.
    #[error(transparent)]
    Data(#[from] DataError),
}

impl EmbeddedError {
    fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> EmbeddedError {
        let path = path.into();
        move |source| EmbeddedError::Io { path, source }
    }
}

/// Running servers. Dropping them is like killing them: nothing is flushed, and the next start
/// recovers.
#[derive(Debug)]
pub struct Embedded {
    // In this order: cuts under way at the metadata server need the data server.
    meta: MetaServer,
    data: DataServer,
    client: Arc<Identity>,
    dir: PathBuf,
    _lock: File,
}

/// Starts both servers on the state in `dir`, which is made if there is nothing yet.
///
/// # Errors
/// See [`EmbeddedError`].
pub fn start(dir: &Path, options: &EmbeddedOptions) -> Result<Embedded, EmbeddedError> {
    let lock = enter(dir)?;
    let server = identity(dir, "server", &server_leaf())?;
    let client = identity(dir, "client", &Leaf::Client { name: "local".into() })?;
    let before = recorded(dir);
    let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));

    let mut data = DataOptions::new(dir.join("data"), free, server.clone());
    // Clients that are left from before a crash find the servers where they were.
    data.listen = before.map_or(free, |(_, data)| data);
    let net_metrics = NetMetrics::default();
    data.net_metrics = net_metrics.clone();
    if let Some(metrics) = options.metrics {
        metrics.with(|registry| data.metrics.register(registry));
        metrics.with(|registry| net_metrics.register(registry));
    }
    let data = match DataServer::start(data.clone()) {
        Err(DataError::Endpoint(EndpointError::Bind { .. })) if data.listen != free => {
            DataServer::start(DataOptions { listen: free, ..data })?
        }
        other => other?,
    };

    // It may have another port than at the start before.
    let at = DataServers::Local(data.addr().port());
    let mut meta = MetaOptions::new(dir.join("meta"), free, at, server);
    meta.volumes = vec![DEV_VOLUME.into()];
    meta.listen = before.map_or(free, |(meta, _)| meta);
    meta.net_metrics = net_metrics;
    if let Some(metrics) = options.metrics {
        meta.calls = metrics.calls("meta");
        metrics.with(|registry| meta.metrics.register(registry));
    }
    let meta = match MetaServer::start(meta.clone()) {
        Err(MetaError::Endpoint(EndpointError::Bind { .. })) if meta.listen != free => {
            MetaServer::start(MetaOptions { listen: free, ..meta })?
        }
        other => other?,
    };
    record(dir, meta.addr(), data.addr())?;
    Ok(Embedded { meta, data, client, dir: dir.into(), _lock: lock })
}

impl Embedded {
    /// Where the metadata server listens.
    pub fn meta_addr(&self) -> SocketAddr {
        self.meta.addr()
    }

    /// Where the data server listens.
    pub fn data_addr(&self) -> SocketAddr {
        self.data.addr()
    }

    /// The name of the volume to mount.
    pub fn volume(&self) -> &'static str {
        DEV_VOLUME
    }

    /// A certificate for a client.
    pub fn client_identity(&self) -> Arc<Identity> {
        self.client.clone()
    }

    /// Ends both in order: calls under way are finished, all is brought to stable storage.
    ///
    /// # Errors
    /// What could not be.
    pub fn stop(self) -> Result<(), EmbeddedError> {
        let meta = self.meta.stop(Ending::Drain);
        let data = self.data.stop(Ending::Drain);
        let path = self.dir.join(SERVERS_FILE);
        let removed = fs::remove_file(&path).map_err(EmbeddedError::io(path));
        meta?;
        data?;
        removed
    }
}

/// Where the directory of the certificates of a client is.
pub fn client_identity_dir(dir: &Path) -> PathBuf {
    dir.join("identity/client")
}

/// Where the servers of a state directory were when they last started: metadata, data.
pub fn recorded(dir: &Path) -> Option<(SocketAddr, SocketAddr)> {
    let text = fs::read_to_string(dir.join(SERVERS_FILE)).ok()?;
    let value = |key: &str| {
        let line =
            text.lines().find_map(|line| line.strip_prefix(key)?.trim().strip_prefix('='))?;
        line.trim().trim_matches('"').parse().ok()
    };
    value("meta").zip(value("data"))
}

fn record(dir: &Path, meta: SocketAddr, data: SocketAddr) -> Result<(), EmbeddedError> {
    let (path, new) = (dir.join(SERVERS_FILE), dir.join("servers.toml.new"));
    let identity = client_identity_dir(dir);
    let text = format!(
        "# Written at each start of the servers, removed when they stop.\nmeta = \"{meta}\"\ndata = \"{data}\"\n\
         volume = \"{DEV_VOLUME}\"\nidentity = {:?}\npid = {}\n",
        identity.display().to_string(),
        std::process::id()
    );
    let mut options = private::file_options();
    let mut write = || {
        let mut file = options.write(true).create(true).truncate(true).open(&new)?;
        file.write_all(text.as_bytes())
    };
    write().map_err(EmbeddedError::io(&new))?;
    fs::rename(&new, &path).map_err(EmbeddedError::io(path))
}

/// Makes the directory if there is none, and locks it.
fn enter(dir: &Path) -> Result<File, EmbeddedError> {
    if !dir.exists() {
        private::create_dir(dir).map_err(EmbeddedError::io(dir))?;
    }
    let path = dir.join("lock");
    if !path.exists() {
        let entries = fs::read_dir(dir).map_err(EmbeddedError::io(dir))?;
        for entry in entries {
            let name = entry.map_err(EmbeddedError::io(dir))?.file_name();
            if name != "lost+found" && name != "lock" {
                let found = name.to_string_lossy().into_owned();
                return Err(EmbeddedError::Foreign { dir: dir.into(), found });
            }
        }
    }
    // It is ours, so others may not look into it.
    private::create_dir(dir).map_err(EmbeddedError::io(dir))?;
    let mut options = private::file_options();
    let file = options.create(true).truncate(false).write(true).open(&path);
    let mut file = file.map_err(EmbeddedError::io(&path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(EmbeddedError::InUse(dir.into())),
        Err(TryLockError::Error(e)) => return Err(EmbeddedError::io(path)(e)),
    }
    // For the person who wonders who it is; nobody relies on it.
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(EmbeddedError::io(path))?;
    Ok(file)
}

fn server_leaf() -> Leaf {
    Leaf::Server { name: "local".into(), names: vec!["localhost".into(), "127.0.0.1".into()] }
}

/// The identity in `dir/identity/name`; issued where there is none, and anew where it has expired.
fn identity(dir: &Path, name: &str, leaf: &Leaf) -> Result<Arc<Identity>, EmbeddedError> {
    let (ca, own) = (authority(dir)?, dir.join("identity").join(name));
    match Identity::load_dir(&own) {
        Ok(identity) => return Ok(Arc::new(identity)),
        // Not there, or half there after an interrupted first start.
        Err(TlsError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        Err(TlsError::OutOfDate { .. }) => {
            tracing::info!(name, "the certificate has expired; another is issued");
        }
        Err(error) => return Err(error.into()),
    }
    pki::issue(&ca, leaf, &own, &IssueOptions { overwrite: true, ..IssueOptions::default() })?;
    Ok(Arc::new(Identity::load_dir(&own)?))
}

/// The directory of the authority, which is there as a whole or not at all.
fn authority(dir: &Path) -> Result<PathBuf, EmbeddedError> {
    let (ca, new) = (dir.join("identity/ca"), dir.join("identity/ca.new"));
    if ca.exists() {
        return Ok(ca);
    }
    if new.exists() {
        fs::remove_dir_all(&new).map_err(EmbeddedError::io(&new))?;
    }
    fs::create_dir_all(dir.join("identity")).map_err(EmbeddedError::io(dir))?;
    pki::init(&new, "dev")?;
    fs::rename(&new, &ca).map_err(EmbeddedError::io(&ca))?;
    Ok(ca)
}
