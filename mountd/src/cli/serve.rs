//! A mount in operation: from the moment it answers to the moment everything is stored.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use super::connect::Connection;
use super::control::{Answers, Control, OK};
use super::daemon;
use super::error::CliError;
use super::question::Question;
use super::users;
use crate::fuse::{MountSpec, Mounted, Unmount, unmount};
use crate::vfs::{Unsent, Vfs};

/// What the control socket can say about a mount.
struct Facts {
    vfs: Arc<Vfs>,
    source: String,
    target: String,
    since: Instant,
    abandoned: Arc<Abandoned>,
}

/// Whether what is buffered was given up.
#[derive(Default)]
struct Abandoned {
    flag: AtomicBool,
    told: Notify,
}

impl Abandoned {
    fn set(&self) {
        self.flag.store(true, Ordering::Release);
        self.told.notify_waiters();
        // For a waiter that is about to look.
        self.told.notify_one();
    }

    fn is_set(&self) -> bool {
        self.flag.load(Ordering::Acquire)
    }

    async fn wait(&self) {
        while !self.is_set() {
            self.told.notified().await;
        }
    }
}

impl Answers for Facts {
    fn status(&self) -> String {
        let stats = self.vfs.stats();
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{} on {}", self.source, self.target);
        let _ = writeln!(text, "  version:    {}", env!("CARGO_PKG_VERSION"));
        let _ = writeln!(text, "  process:    {}", std::process::id());
        let server = if stats.connected { "connected" } else { "cannot be reached" };
        let _ = writeln!(text, "  server:     {server}");
        let (read, write) = stats.leases;
        let _ = writeln!(
            text,
            "  leases:     {read} to read, {write} to write; {} recalls",
            stats.recalls
        );
        let _ = writeln!(text, "  mounted:    {} s", self.since.elapsed().as_secs());
        let unsent = self.vfs.unsent();
        let _ = writeln!(text, "  unsent:     {unsent}");
        let (ahead, mib) = (stats.ahead, 1u64 << 20);
        let _ = writeln!(
            text,
            "  read ahead: {} MiB held, {} MiB fetched, {} MiB of that read",
            ahead.bytes / mib,
            ahead.fetched / mib,
            ahead.used / mib
        );
        let _ = writeln!(text, "  inodes:     {}", stats.inodes);
        let (at_once, others) = stats.operations;
        let _ = writeln!(text, "  operations: {at_once} answered at once, {others} not");
        let traffic = &stats.traffic;
        let (sent, received) = traffic.bytes;
        let _ = writeln!(text, "  traffic:    {sent} bytes sent, {received} received");
        let (written, read) = traffic.data;
        let _ = writeln!(text, "  data:       {written} bytes written, {read} read");
        let (hedged, failed_over) = traffic.helped;
        let _ = writeln!(
            text,
            "  data reads: {hedged} asked of a second replica too, {failed_over} answered after one had failed"
        );
        let (recalls, answered) = traffic.recalls;
        let _ = writeln!(text, "  recall messages: {recalls} received, {answered} answered");
        for (kind, count) in stats.messages.iter().filter(|(_, n)| *n > 0) {
            let _ = writeln!(text, "  message {kind}: {count}");
        }
        // Still waiting, or repeated over another connection.
        for (kind, sent, answered) in traffic.messages.iter().filter(|(_, s, a)| s > a) {
            let _ = writeln!(text, "  without answer {kind}: {}", sent - answered);
        }
        text
    }

    fn leases(&self, question: &Question) -> String {
        let shown = String::from_utf8_lossy(&question.shown);
        self.vfs.runtime().block_on(self.vfs.leases_of(&shown, &question.place))
    }

    fn why(&self, question: &Question) -> String {
        let shown = String::from_utf8_lossy(&question.shown);
        self.vfs.runtime().block_on(self.vfs.why(&shown, &question.place))
    }

    fn sync(&self) -> Result<(), String> {
        if self.vfs.is_down() {
            // What was not stored was given up on request.
            return Ok(());
        }
        let vfs = self.vfs.clone();
        self.vfs.runtime().block_on(async move { vfs.store().await }).map_err(|e| e.to_string())
    }

    fn waits_for(&self) -> String {
        let (unsent, limit) = (self.vfs.unsent(), self.vfs.leave_limit());
        if unsent == Unsent::default() {
            return format!("{} to answer; it lacks nothing", self.source);
        }
        format!("{} to store {unsent}, for {} s at most", self.source, limit.as_secs())
    }

    fn abandon(&self) {
        self.abandoned.set();
    }
}

/// Mounts, calls `ready`, and serves until the mount is gone and everything is stored.
///
/// SIGINT and SIGTERM unmount; a second one gives up what is still buffered.
pub(super) fn serve(
    connection: &Connection,
    spec: &MountSpec,
    ready: impl FnOnce() -> Result<(), CliError>,
) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::system("starting the runtime"))?;
    // Before the mount is there, so that no signal can leave it behind.
    let mut signals = runtime.block_on(async { Signals::new() })?;
    let vfs = connection.vfs.clone();
    let abandoned = Arc::new(Abandoned::default());
    let mut mounted = match Mounted::mount(vfs.clone(), spec) {
        Ok(mounted) => mounted,
        Err(e) => {
            give_back(&runtime, connection);
            return Err(e.into());
        }
    };
    let facts = Facts {
        vfs: vfs.clone(),
        source: spec.source.clone(),
        target: spec.target.display().to_string(),
        since: Instant::now(),
        abandoned: abandoned.clone(),
    };
    let started = Control::start(&spec.target, facts).and_then(|c| ready().map(|()| c));
    let control = match started {
        Ok(control) => control,
        Err(e) => {
            if let Err(e) = unmount(&spec.target, Unmount::Lazy) {
                tracing::error!(error = %e, "the mount could not be taken away again");
            }
            give_back(&runtime, connection);
            return Err(e);
        }
    };
    let outcome = runtime.block_on(async {
        let since = until_gone(&vfs, &mut mounted, &mut signals, &abandoned).await;
        store(connection, since, &mut signals, &abandoned).await
    });
    match outcome {
        Ok(()) => {
            control.finish(OK);
            Ok(())
        }
        Err(lost) => {
            control.finish(&lost);
            Err(CliError::LostData(spec.target.clone(), lost))
        }
    }
}

/// Ends a session that nothing was written in.
fn give_back(runtime: &tokio::runtime::Runtime, connection: &Connection) {
    if let Err(e) = runtime.block_on(connection.close(tokio::time::Instant::now())) {
        tracing::error!(error = %e, "the session did not end well");
    }
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// A closed terminal ends a mount in the foreground; a daemon has none.
    hang_up: Signal,
}

impl Signals {
    fn new() -> Result<Signals, CliError> {
        let of = |kind| signal(kind).map_err(CliError::system("watching for signals"));
        Ok(Signals {
            interrupt: of(SignalKind::interrupt())?,
            terminate: of(SignalKind::terminate())?,
            hang_up: of(SignalKind::hangup())?,
        })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => daemon::silence(),
        }
    }
}

/// Waits until the mount is gone, or makes it so at a signal. Returns since when it is being left.
async fn until_gone(
    vfs: &Arc<Vfs>,
    mounted: &mut Mounted,
    signals: &mut Signals,
    abandoned: &Abandoned,
) -> tokio::time::Instant {
    tokio::select! {
        result = mounted.ended() => {
            report_end(result);
            return tokio::time::Instant::now();
        }
        () = signals.any() => {}
    }
    tracing::info!("stopping");
    let since = tokio::time::Instant::now();
    let target = mounted.target().to_path_buf();
    match unmount(&target, Unmount::Busy) {
        Ok(()) => {
            report_end(mounted.ended().await);
            return since;
        }
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
        Err(e) => tracing::warn!(error = %e, "cannot unmount {}", target.display()),
    }
    complain!(
        "netfs: {} is busy{}: detaching it after storing what was written",
        target.display(),
        users::of(&target)
    );
    tokio::select! {
        result = vfs.syncfs() => if let Err(e) = result {
            tracing::error!(error = %e, "not everything could be stored");
        },
        _ = vfs.patience(since) => tracing::warn!("the servers do not answer: detaching"),
        () = abandoned.wait() => {}
        () = signals.any() => abandoned.set(),
    }
    if let Err(e) = unmount(&target, Unmount::Lazy) {
        tracing::warn!(error = %e, "cannot detach {}", target.display());
    }
    since
}

fn report_end(result: std::io::Result<()>) {
    match result {
        Ok(()) => tracing::info!("unmounted"),
        Err(e) => tracing::warn!(error = %e, "the connection to the kernel broke"),
    }
}

/// Stores what is buffered and says goodbye, unless it was given up. An error says what was lost.
async fn store(
    connection: &Connection,
    since: tokio::time::Instant,
    signals: &mut Signals,
    abandoned: &Abandoned,
) -> Result<(), String> {
    let vfs = &connection.vfs;
    let given_up = || {
        let unsent = vfs.unsent();
        if unsent == Unsent::default() {
            return Ok(());
        }
        Err(format!("not stored and given up: {unsent}"))
    };
    tokio::select! {
        result = connection.close(since) => result.map_err(|e| e.to_string()),
        () = abandoned.wait() => given_up(),
        () = signals.any() => {
            abandoned.set();
            given_up()
        }
    }
}
