//! The way to the server, and the thread on which the client's core lives.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use netfs_common::config::{ClientConfig, OutagePolicy};
use netfs_common::id::SessionId;
use netfs_common::net::NetMetrics;

use super::burial::Note;
use super::error::CliError;
use super::source::Source;
use crate::dial::QuicDialer;
use crate::fuse::MountSpec;
use crate::vfs::{AccessTimes, NotStored, Options, Vfs};

/// How long saying goodbye to the servers may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// A volume with its connections.
pub(super) struct Connection {
    pub(super) vfs: Arc<Vfs>,
    dialer: Arc<QuicDialer>,
    note: Arc<Option<Note>>,
}

impl Connection {
    /// Connects and greets. A server that is not there is a failure now: only later ones wait.
    pub(super) fn open(
        source: &Source,
        config: &ClientConfig,
        spec: &MountSpec,
    ) -> Result<Connection, CliError> {
        let failed = |why: String| CliError::Connect {
            server: source.server.to_string(),
            volume: source.volume.clone(),
            why,
        };
        let dialer = Arc::new(QuicDialer::new(
            config.tls.load()?,
            &config.net,
            vec![source.server.to_string()],
            NetMetrics::default(),
        ));
        let options = options(source, config, spec);
        let note = Arc::new(Note::take(&spec.target, &source.volume)?);
        let buried = note.clone();
        let (tx, rx) = mpsc::sync_channel(1);
        let dialing = dialer.clone();
        // One thread drives all connections and tasks: measured, that halves the time of a call.
        let run = move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(e) => {
                    let _ = tx.send(Err(format!("no runtime: {e}")));
                    return;
                }
            };
            runtime.block_on(async move {
                if let Some(note) = &*buried {
                    note.bury(&*dialing).await;
                }
                let started = Vfs::start(dialing, options).await.map_err(|e| e.to_string());
                let session = started.as_ref().ok().map(|vfs| vfs.session_id());
                // The receiver waits until it has got this.
                let _ = tx.send(started);
                if let Some(session) = session {
                    keep_noted(&buried, session).await;
                    // To the end of the process.
                    std::future::pending::<()>().await;
                }
            });
        };
        thread::Builder::new()
            .name("netfs-vfs".into())
            .spawn(run)
            .map_err(CliError::system("starting a thread"))?;
        let vfs = match rx.recv() {
            Ok(Ok(vfs)) => vfs,
            Ok(Err(why)) => return Err(failed(why)),
            Err(_) => return Err(failed("the connecting thread died".into())),
        };
        let session = *vfs.session_id().borrow();
        write_note(&note, session);
        Ok(Connection { vfs, dialer, note })
    }

    /// Stores everything and ends the session, unless that has been hopeless for too long, counted
    /// since a time.
    pub(super) async fn close(&self, since: Instant) -> Result<(), NotStored> {
        // One that has gone down on request does not say goodbye, nor one that nobody hears: its
        // successor does.
        let farewell = self.vfs.shutdown_since(since).await;
        if farewell.ended
            && let Some(Err(e)) = self.note.as_ref().as_ref().map(Note::clear)
        {
            tracing::warn!(error = %e, "the note of the session stays");
        }
        let goodbye = tokio::time::timeout(FAREWELL, self.dialer.close());
        if goodbye.await.is_err() {
            tracing::debug!("the servers did not answer the goodbye");
        }
        farewell.stored
    }
}

fn write_note(note: &Option<Note>, session: SessionId) {
    if let Some(Err(e)) = note.as_ref().map(|n| n.write(session)) {
        // It only costs waiting, after a crash.
        tracing::warn!(error = %e, "the session is not noted");
    }
}

/// Notes each session that takes the place of one that has expired, until there are no more.
async fn keep_noted(note: &Option<Note>, mut session: watch::Receiver<SessionId>) {
    while session.changed().await.is_ok() {
        let next = *session.borrow_and_update();
        write_note(note, next);
    }
}

/// Settings in the terms of the client's core.
fn options(source: &Source, config: &ClientConfig, spec: &MountSpec) -> Options {
    let client = format!("{}:{}", host(), spec.target.display());
    let mut options = Options::new(source.volume.clone(), client);
    options.soft = (config.mount.on_outage == OutagePolicy::Error)
        .then(|| Duration::from_millis(config.mount.outage_timeout_ms));
    options.access_times = match spec.flags {
        f if f.no_access_times() => AccessTimes::Never,
        f if f.all_access_times() => AccessTimes::Always,
        _ => AccessTimes::Relative,
    };
    options.nodiratime = spec.flags.no_directory_access_times();
    let entries = usize::try_from(config.cache.entries).unwrap_or(usize::MAX);
    options.cache.nodes = entries;
    options.cache.names = entries;
    options.cache.ahead = config.cache.ahead_bytes.0;
    options.leave = Duration::from_millis(config.mount.leave_timeout_ms);
    options.writeback.dirty = config.cache.dirty_bytes.0;
    options
}

/// This machine's name, for people.
fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "unknown".into(), |name| name.trim().to_string())
}
