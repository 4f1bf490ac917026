//! One operation, and where its time goes.
//!
//! The operation under way is known to the task that works on it. Whatever waits in there says for what ([`waiting`]); of waits
//! inside each other the outer one counts, of waits beside each other the one that began first, so that the parts never add up to
//! more than the whole.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::name::Name;

use crate::session::lock;

tokio::task_local! {
    static SPAN: Arc<Span>;
}

/// For what an operation waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The write lease.
    Lease,
    /// The metadata server's answer; it may have to wait for other clients there.
    Meta,
    /// A connection to the metadata server.
    Connection,
    /// Data servers.
    Data,
    /// Room in the buffers.
    Room,
    /// The kernel, to drop pages and names.
    Kernel,
    /// Other operations here on the same inode.
    Turn,
}

impl Wait {
    /// All of them.
    pub const ALL: [Wait; 7] = [
        Wait::Lease,
        Wait::Meta,
        Wait::Connection,
        Wait::Data,
        Wait::Room,
        Wait::Kernel,
        Wait::Turn,
    ];
}

/// What an operation is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct What {
    /// Its name.
    pub op: &'static str,
    /// The inode that it is about; the directory, if it is about a name.
    pub ino: Ino,
    /// The name.
    pub name: Option<Name>,
    /// The process that asked for it; 0: nobody did.
    pub pid: u32,
}

#[derive(Debug, Default)]
struct Times {
    /// Waits inside and beside each other.
    depth: u32,
    /// The one that counts.
    present: Option<(Wait, Instant)>,
    waited: [Duration; Wait::ALL.len()],
    ended: Option<(Instant, Option<Errno>)>,
}

/// An operation, under way or ended.
#[derive(Debug)]
pub(super) struct Span {
    pub(super) what: What,
    begun: Instant,
    /// A leaf.
    times: Mutex<Times>,
}

impl Span {
    pub(super) fn begin(what: What) -> Span {
        Span { what, begun: Instant::now(), times: Mutex::default() }
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        lock(&self.times)
    }

    pub(super) fn end(&self, outcome: Option<Errno>) {
        let now = Instant::now();
        self.times().ended = Some((now, outcome));
    }

    fn enter(&self, wait: Wait) {
        let mut times = self.times();
        times.depth += 1;
        if times.depth == 1 {
            times.present = Some((wait, Instant::now()));
        }
    }

    fn leave(&self) {
        let mut times = self.times();
        times.depth -= 1;
        if times.depth == 0
            && let Some((wait, since)) = times.present.take()
        {
            times.waited[wait as usize] += since.elapsed();
        }
    }

    /// As it is now.
    pub(super) fn look(&self, now: Instant) -> Operation {
        let times = self.times();
        let until = times.ended.map_or(now, |(at, _)| at);
        Operation {
            what: self.what.clone(),
            took: until.saturating_duration_since(self.begun),
            ended: times.ended.map(|(at, outcome)| (now.saturating_duration_since(at), outcome)),
            waits: times.present.map(|(w, since)| (w, now.saturating_duration_since(since))),
            waited: times.waited,
        }
    }
}

/// An operation, as people are shown it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// What it is.
    pub what: What,
    /// How long it has taken, so far or in the end.
    pub took: Duration,
    /// How long ago it ended, and how; `None`: it is under way.
    pub ended: Option<(Duration, Option<Errno>)>,
    /// What it waits for now, and for how long already.
    pub waits: Option<(Wait, Duration)>,
    /// For how long it has waited for each, the present wait not counted.
    pub waited: [Duration; Wait::ALL.len()],
}

/// A wait that is over when dropped.
struct Waiting(Arc<Span>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// Waits, and has the time counted for the operation under way, if there is one.
pub async fn waiting<T>(wait: Wait, what: impl Future<Output = T>) -> T {
    let _waiting = SPAN.try_with(Arc::clone).ok().map(|span| {
        span.enter(wait);
        Waiting(span)
    });
    what.await
}

/// Takes the operation under way along into another task.
pub fn carried<F: Future>(work: F) -> impl Future<Output = F::Output> + use<F> {
    let span = SPAN.try_with(Arc::clone).ok();
    async move {
        match span {
            Some(span) => SPAN.scope(span, work).await,
            None => work.await,
        }
    }
}

/// Works on an operation.
pub(super) async fn working<T>(span: Arc<Span>, work: impl Future<Output = T>) -> T {
    SPAN.scope(span, work).await
}
