//! Notifications that somebody waits for.
//!
//! The kernel may hold a lock that one of them needs until a request is answered, which may take as long as another client likes. So each
//! has a thread for as long as it takes, and those behind it go on in others.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

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
    /// All pages of several.
    Inodes(Vec<Ino>),
    /// Names of a directory: it has one lock for all of them.
    Names(Ino, Vec<Name>),
    /// Inodes, as far as they are only cached.
    Unused(Vec<Ino>),
    /// A name with all below it.
    Gone(Ino, Name),
}

/// Whether the kernel knows an inode, or is about to.
pub(super) type IsKnown = Box<dyn Fn(Ino) -> bool + Send + Sync>;

/// For so long the kernel is waited for to make an inode from an answer.
const AWAITED: Duration = Duration::from_millis(500);
const LOOK_AGAIN: Duration = Duration::from_millis(1);

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
    is_known: std::sync::OnceLock<IsKnown>,
    /// It has refused to drop inodes that are only cached.
    never_prunes: AtomicBool,
}

impl TakeBack {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No statement under the lock leaves it half-changed.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names the kernel. What came before has nothing to take back.
    pub(super) fn start(&self, kernel: Box<dyn Kernel + Sync>, is_known: IsKnown) {
        // A second kernel does not exist.
        let _ = self.is_known.set(is_known);
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

    /// Lets all names expire, here and now: it takes no lock, and must not wait behind what does. `false`: the kernel cannot do it.
    pub(super) fn all_names(&self) -> bool {
        let Some(kernel) = self.kernel.get().filter(|_| !self.lock().closed) else { return true };
        match kernel.all_entries() {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => false,
            told => {
                report("names", Ino::ROOT, told);
                true
            }
        }
    }

    /// The kernel can drop inodes that are only cached, as far as is known.
    pub(super) fn prunes(&self) -> bool {
        !self.never_prunes.load(Ordering::Relaxed)
    }

    fn deliver(&self, kernel: &dyn Kernel, notice: &Notice) {
        match notice {
            Notice::Unused(all) => match kernel.prune(all) {
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => {
                    self.never_prunes.store(true, Ordering::Relaxed);
                }
                told => report("unused inodes", Ino::ROOT, told),
            },
            Notice::Gone(parent, name) => report("name", *parent, kernel.remove(*parent, name)),
            Notice::Attr(ino) => self.insist("attributes", *ino, || kernel.attr(*ino)),
            Notice::Data(ino, offset, len) => {
                self.insist("pages", *ino, || kernel.data(*ino, *offset, *len));
            }
            Notice::Inodes(all) => {
                for ino in all {
                    self.insist("pages", *ino, || kernel.data(*ino, 0, 0));
                }
            }
            Notice::Names(parent, names) => {
                for name in names {
                    report("name", *parent, kernel.entry(*parent, name));
                }
            }
        }
    }

    /// Tells the kernel of an inode. If it does not know the inode although it was answered with it, the one who has asked has not had a
    /// processor since: the inode will be made from that answer, and what is taken back here would be good in it.
    fn insist(&self, what: &str, ino: Ino, tell: impl Fn() -> io::Result<()>) {
        let begun = Instant::now();
        loop {
            let told = tell();
            let unknown = told.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::ENOENT));
            let expected = unknown && self.is_known.get().is_some_and(|known| known(ino));
            if !expected || begun.elapsed() >= AWAITED || self.lock().closed {
                if expected {
                    tracing::warn!(%ino, "the kernel does not take in the answer that leads to an inode");
                }
                return report(what, ino, told);
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    fn work(&self) {
        let Some(kernel) = self.kernel.get() else { return };
        let mut inner = self.lock();
        loop {
            if let Some((notice, done)) = inner.jobs.pop_front() {
                drop(inner);
                self.deliver(&**kernel, &notice);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Every lock of it is held until `free`.
    #[derive(Default)]
    struct Locked {
        free: AtomicBool,
        told: Mutex<Vec<String>>,
    }

    impl Locked {
        fn wait(&self, what: String) -> io::Result<()> {
            while !self.free.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(1));
            }
            self.told.lock().unwrap().push(what);
            Ok(())
        }
    }

    impl Kernel for Arc<Locked> {
        fn attr(&self, ino: Ino) -> io::Result<()> {
            self.wait(format!("attr {ino}"))
        }

        fn data(&self, ino: Ino, offset: i64, len: i64) -> io::Result<()> {
            self.wait(format!("data {ino} {offset}+{len}"))
        }

        fn entry(&self, parent: Ino, name: &Name) -> io::Result<()> {
            self.wait(format!("entry {parent} {name:?}"))
        }

        fn all_entries(&self) -> io::Result<()> {
            self.told.lock().unwrap().push("all".into());
            Err(io::Error::from_raw_os_error(libc::EINVAL))
        }

        fn remove(&self, parent: Ino, name: &Name) -> io::Result<()> {
            self.wait(format!("gone {parent} {name:?}"))
        }

        fn prune(&self, _: &[Ino]) -> io::Result<()> {
            Err(io::Error::from_raw_os_error(libc::EINVAL))
        }
    }

    /// Makes an inode from an answer some time after the answer.
    #[derive(Default)]
    struct Slow(Mutex<u32>);

    impl Kernel for Arc<Slow> {
        fn attr(&self, _: Ino) -> io::Result<()> {
            let mut asked = self.0.lock().unwrap();
            *asked += 1;
            if *asked < 4 { Err(io::Error::from_raw_os_error(libc::ENOENT)) } else { Ok(()) }
        }

        fn data(&self, ino: Ino, _: i64, _: i64) -> io::Result<()> {
            self.attr(ino)
        }

        fn entry(&self, _: Ino, _: &Name) -> io::Result<()> {
            Ok(())
        }

        fn all_entries(&self) -> io::Result<()> {
            Ok(())
        }

        fn remove(&self, _: Ino, _: &Name) -> io::Result<()> {
            Ok(())
        }

        fn prune(&self, _: &[Ino]) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_the_kernel_is_about_to_know_is_taken_back_once_it_does() {
        for (known, asked) in [(true, 4), (false, 1)] {
            let (kernel, all) = (Arc::new(Slow::default()), Arc::new(TakeBack::default()));
            all.start(Box::new(Arc::clone(&kernel)), Box::new(move |_| known));
            all.tell(Notice::Data(Ino(5), 0, 0)).blocking_recv().unwrap();
            assert_eq!(*kernel.0.lock().unwrap(), asked);
            all.close();
        }
    }

    #[test]
    fn a_kernel_that_cannot_drop_inodes_is_not_told_to_again() {
        let (kernel, all) = (Arc::new(Locked::default()), Arc::new(TakeBack::default()));
        all.start(Box::new(kernel), Box::new(|_| false));
        assert!(all.prunes());
        all.tell(Notice::Unused(vec![Ino(1)])).blocking_recv().unwrap();
        assert!(!all.prunes());
        all.close();
    }

    #[test]
    fn all_names_go_past_what_waits_and_a_directory_takes_one_thread() {
        let (kernel, all) = (Arc::new(Locked::default()), Arc::new(TakeBack::default()));
        all.start(Box::new(Arc::clone(&kernel)), Box::new(|_| false));
        let names = ["a", "b"].map(|n| Name::new(n).unwrap()).to_vec();
        let told = all.tell(Notice::Names(Ino(1), names));
        let more: Vec<_> =
            (0..2 * MAX_THREADS as u64).map(|i| all.tell(Notice::Data(Ino(i), 0, 0))).collect();
        assert!(!all.all_names(), "an old kernel");
        assert_eq!(*kernel.told.lock().unwrap(), ["all"]);
        assert_eq!(all.lock().threads, MAX_THREADS);
        kernel.free.store(true, Ordering::SeqCst);
        told.blocking_recv().unwrap();
        for one in more {
            one.blocking_recv().unwrap();
        }
        let told = kernel.told.lock().unwrap();
        assert!(told.contains(&"entry 1 \"b\"".to_owned()));
        assert_eq!(told.len(), 3 + 2 * MAX_THREADS);
        drop(told);
        all.close();
    }
}
