//! Notifications that somebody waits for.
//!
//! The kernel may hold a lock that one of them needs until a request is answered, which may take as long as another client likes. So each
//! has a thread for as long as it takes, and those behind it go on in others.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use netfs_common::id::Ino;
use netfs_common::name::Name;
use tokio::sync::oneshot;

use super::notice::{Kernel, report};

/// The most threads. Beyond them notifications wait for one that is done.
const MAX_THREADS: usize = 128;
/// Threads that stay when there is nothing to do.
const MAX_IDLE: usize = 4;

/// What the kernel shall no longer use.
#[derive(Clone, Debug)]
pub(super) enum Notice {
    Attr(Ino),
    /// A length of 0 is up to the end.
    Data(Ino, i64, i64),
    Name(Ino, Name),
    AllNames,
}

type Job = (Notice, oneshot::Sender<()>);

#[derive(Default)]
struct Inner {
    jobs: VecDeque<Job>,
    idle: usize,
    threads: usize,
    closed: bool,
}

/// Threads that tell the kernel.
#[derive(Default)]
pub(super) struct TakeBack {
    inner: Mutex<Inner>,
    arrived: Condvar,
    kernel: std::sync::OnceLock<Box<dyn Kernel + Sync>>,
}

impl TakeBack {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No statement under the lock leaves it half-changed.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names the kernel. What came before has nothing to take back.
    pub(super) fn start(&self, kernel: Box<dyn Kernel + Sync>) {
        // A second kernel does not exist.
        let _ = self.kernel.set(kernel);
    }

    /// There is no kernel any more: everything resolves.
    pub(super) fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.jobs.clear();
        drop(inner);
        self.arrived.notify_all();
    }

    /// Tells the kernel; resolves when that is done.
    pub(super) fn tell(self: &Arc<Self>, notice: Notice) -> oneshot::Receiver<()> {
        let (done, wait) = oneshot::channel();
        let mut inner = self.lock();
        if inner.closed || self.kernel.get().is_none() {
            // Dropping the sender resolves it.
            return wait;
        }
        inner.jobs.push_back((notice, done));
        if inner.jobs.len() > inner.idle && inner.threads < MAX_THREADS {
            inner.threads += 1;
            drop(inner);
            let this = Arc::clone(self);
            let spawned =
                thread::Builder::new().name("netfs-takeback".into()).spawn(move || this.work());
            if let Err(error) = spawned {
                self.lock().threads -= 1;
                tracing::error!(%error, "no thread to tell the kernel what is no longer true");
            }
        } else {
            drop(inner);
            self.arrived.notify_one();
        }
        wait
    }

    fn work(&self) {
        let Some(kernel) = self.kernel.get() else { return };
        let mut inner = self.lock();
        loop {
            if let Some((notice, done)) = inner.jobs.pop_front() {
                drop(inner);
                deliver(&**kernel, &notice);
                // Nobody waits for it any more: then nobody needs to be told.
                let _ = done.send(());
                inner = self.lock();
                continue;
            }
            if inner.closed || inner.idle >= MAX_IDLE {
                inner.threads -= 1;
                return;
            }
            inner.idle += 1;
            inner = self.arrived.wait(inner).unwrap_or_else(PoisonError::into_inner);
            inner.idle -= 1;
        }
    }
}

fn deliver(kernel: &dyn Kernel, notice: &Notice) {
    match notice {
        Notice::Attr(ino) => report("attributes", *ino, kernel.attr(*ino)),
        Notice::Data(ino, offset, len) => report("pages", *ino, kernel.data(*ino, *offset, *len)),
        Notice::Name(parent, name) => report("name", *parent, kernel.entry(*parent, name)),
        Notice::AllNames => report("names", Ino::ROOT, kernel.all_entries()),
    }
}
