//! Requests that wait for an answer, and their interruption.
//!
//! The kernel announces an interruption by an `INTERRUPT` message, which fuser refuses; so a killed
//! program would wait until the server answers. Instead a watcher looks at the callers of requests
//! that have waited for a while: one that is being killed gets `EINTR` at once. There is exactly one
//! reply: it belongs to the request's task, which answers also when it is dropped, or it lies in a
//! [`Slot`], and whoever takes it out answers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use netfs_common::errno::Errno;
use tokio::task::AbortHandle;

use super::reply::Refuse;
use super::signals::{Fate, fate};

/// A request is left alone for so long; most are answered long before.
const PATIENCE: Duration = Duration::from_millis(100);

/// How often the callers of older requests are looked at.
const INTERVAL: Duration = Duration::from_millis(50);

/// So many callers are looked at in a round; when there are more, each has its turn later.
const MAX_LOOKS: usize = 128;

/// A reply that is sent once, by its task or by the watcher, for tasks that are not dropped.
pub(super) struct Slot<R>(Mutex<Option<R>>);

impl<R> Slot<R> {
    pub(super) fn new(reply: R) -> Slot<R> {
        Slot(Mutex::new(Some(reply)))
    }

    /// The reply, unless it was sent.
    pub(super) fn take(&self) -> Option<R> {
        lock(&self.0).take()
    }

    /// Works on the reply where it is, unless it was sent.
    pub(super) fn with<T>(&self, f: impl FnOnce(&mut R) -> T) -> Option<T> {
        lock(&self.0).as_mut().map(f)
    }
}

/// A reply of any kind, as the watcher sees it.
pub(super) trait Interrupt: Send + Sync {
    fn interrupt(&self);
}

impl<R: Refuse + Send> Interrupt for Slot<R> {
    fn interrupt(&self) {
        if let Some(reply) = self.take() {
            reply.refuse(Errno::EINTR);
        }
    }
}

struct Waiting {
    since: Instant,
    caller: u32,
    /// Where it does not belong to the task.
    reply: Option<Arc<dyn Interrupt>>,
    /// A signal that the caller handles interrupts it too.
    any_signal: bool,
    /// Where the request ends when its task does.
    task: Option<AbortHandle>,
}

/// All requests that wait for an answer. The kernel bounds their number: by `max_background` and
/// by one for each thread that waits in a system call.
#[derive(Default)]
pub struct Inflight {
    /// Never held while a reply is sent or dropped.
    waiting: Mutex<HashMap<u64, Waiting>>,
    arrived: Condvar,
    /// The last request whose caller was looked at.
    looked: AtomicU64,
}

impl std::fmt::Debug for Inflight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inflight").field("waiting", &lock(&self.waiting).len()).finish()
    }
}

/// The place of a request among those that wait; leaves it when dropped.
pub(super) struct Ticket {
    all: Arc<Inflight>,
    unique: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let gone = lock(&self.all.waiting).remove(&self.unique);
        drop(gone);
    }
}

impl Inflight {
    /// An empty table and the thread that watches it, which ends with the table.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start() -> std::io::Result<Arc<Inflight>> {
        let all = Arc::new(Inflight::default());
        let watched = Arc::downgrade(&all);
        thread::Builder::new().name("netfs-interrupt".into()).spawn(move || watch(&watched))?;
        Ok(all)
    }

    /// Requests that wait now.
    pub fn len(&self) -> usize {
        lock(&self.waiting).len()
    }

    /// Whether no request waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn enter(
        self: &Arc<Self>,
        unique: u64,
        caller: u32,
        reply: Option<Arc<dyn Interrupt>>,
    ) -> Ticket {
        let entry = Waiting { since: Instant::now(), caller, reply, any_signal: false, task: None };
        let mut waiting = lock(&self.waiting);
        let first = waiting.is_empty();
        let replaced = waiting.insert(unique, entry);
        drop(waiting);
        drop(replaced);
        if first {
            self.arrived.notify_one();
        }
        Ticket { all: self.clone(), unique }
    }

    /// The task of a request, if it is to be dropped when the caller is killed. It may have ended already.
    pub(super) fn abortable(&self, unique: u64, task: AbortHandle) {
        if let Some(w) = lock(&self.waiting).get_mut(&unique) {
            w.task = Some(task);
        }
    }

    /// A request that waits for other programs, maybe for ever: any signal that its caller does not block or
    /// ignore interrupts it. The kernel goes on with it if nothing is to be done about the signal.
    pub(super) fn any_signal(&self, unique: u64) {
        if let Some(w) = lock(&self.waiting).get_mut(&unique) {
            w.any_signal = true;
        }
    }

    /// Answers `EINTR` to every request that has waited for longer than `patience` and whose
    /// caller is dying.
    fn interrupt_the_dying(&self, patience: Duration, fate: impl Fn(u32) -> Fate) {
        let mut old: Vec<(u64, u32, bool)> = lock(&self.waiting)
            .iter()
            // The kernel's own requests have no caller.
            .filter(|(_, w)| w.caller != 0 && w.since.elapsed() >= patience)
            .map(|(unique, w)| (*unique, w.caller, w.any_signal))
            .collect();
        old.sort_unstable();
        let last = self.looked.load(Ordering::Relaxed);
        let first = old.partition_point(|(unique, ..)| *unique <= last);
        let first = if first < old.len() { first } else { 0 };
        old.rotate_left(first);
        for (unique, caller, any_signal) in old.into_iter().take(MAX_LOOKS) {
            self.looked.store(unique, Ordering::Relaxed);
            match fate(caller) {
                Fate::Alive => continue,
                Fate::Signalled if !any_signal => continue,
                Fate::Signalled | Fate::Dying | Fate::Gone => {}
            }
            let Some(w) = lock(&self.waiting).remove(&unique) else { continue };
            tracing::debug!(caller, "a program no longer waits for its request");
            if let Some(reply) = w.reply {
                reply.interrupt();
            }
            if let Some(task) = w.task {
                task.abort();
            }
        }
    }
}

fn watch(all: &Weak<Inflight>) {
    loop {
        let Some(all) = all.upgrade() else { return };
        let waiting = lock(&all.waiting);
        if waiting.is_empty() {
            // A bound, so that the thread notices when the table is dropped.
            let idle = all
                .arrived
                .wait_timeout(waiting, Duration::from_secs(1))
                .unwrap_or_else(PoisonError::into_inner);
            drop(idle);
        } else {
            drop(waiting);
            all.interrupt_the_dying(PATIENCE, fate);
        }
        drop(all);
        thread::sleep(INTERVAL);
    }
}

/// The data behind these locks is whole between any two statements, so a panic elsewhere does
/// not make it unusable.
fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    struct Told(mpsc::Sender<Option<Errno>>);

    impl Refuse for Told {
        fn refuse(self, e: Errno) {
            self.0.send(Some(e)).unwrap();
        }
    }

    fn request(all: &Arc<Inflight>, n: u64, pid: u32) -> (Arc<Slot<Told>>, Ticket, Answers) {
        let (tx, rx) = mpsc::channel();
        let slot = Arc::new(Slot::new(Told(tx)));
        let ticket = all.enter(n, pid, Some(slot.clone()));
        (slot, ticket, rx)
    }

    type Answers = mpsc::Receiver<Option<Errno>>;

    #[test]
    fn a_dying_caller_is_answered_once() {
        let all = Arc::new(Inflight::default());
        let (slot, ticket, rx) = request(&all, 1, 10);
        all.interrupt_the_dying(Duration::ZERO, |_| Fate::Dying);
        assert_eq!(rx.recv().unwrap(), Some(Errno::EINTR));
        assert!(slot.take().is_none());
        drop(ticket);
        assert!(all.is_empty());
    }

    #[test]
    fn a_living_caller_waits_on() {
        let all = Arc::new(Inflight::default());
        let (slot, _ticket, _rx) = request(&all, 1, 10);
        all.interrupt_the_dying(Duration::ZERO, |_| Fate::Alive);
        assert!(slot.take().is_some());
    }

    #[test]
    fn a_signal_that_is_handled_interrupts_only_what_may_wait_for_ever() {
        let all = Arc::new(Inflight::default());
        let (slot, _ticket, rx) = request(&all, 1, 10);
        all.interrupt_the_dying(Duration::ZERO, |_| Fate::Signalled);
        assert!(rx.try_recv().is_err());
        all.any_signal(1);
        all.interrupt_the_dying(Duration::ZERO, |_| Fate::Signalled);
        assert_eq!(rx.recv().unwrap(), Some(Errno::EINTR));
        assert!(slot.take().is_none());
    }

    #[test]
    fn of_many_each_has_its_turn() {
        let all = Arc::new(Inflight::default());
        let many = 3 * MAX_LOOKS as u64;
        let _tickets: Vec<_> = (0..many).map(|n| request(&all, n, n as u32 + 1)).collect();
        let looks = Mutex::new(Vec::new());
        for _ in 0..3 {
            all.interrupt_the_dying(Duration::ZERO, |tid| {
                lock(&looks).push(tid);
                Fate::Alive
            });
        }
        let mut looks = lock(&looks).clone();
        looks.sort_unstable();
        looks.dedup();
        assert_eq!(looks.len(), 3 * MAX_LOOKS);
    }

    #[test]
    fn a_young_request_is_left_alone() {
        let all = Arc::new(Inflight::default());
        let (slot, _ticket, _rx) = request(&all, 1, 10);
        all.interrupt_the_dying(Duration::from_secs(60), |_| Fate::Gone);
        assert!(slot.take().is_some());
    }

    #[test]
    fn a_request_of_the_kernel_is_never_interrupted() {
        let all = Arc::new(Inflight::default());
        let (slot, _ticket, _rx) = request(&all, 1, 0);
        all.interrupt_the_dying(Duration::ZERO, |_| Fate::Gone);
        assert!(slot.take().is_some());
    }

    #[test]
    fn an_answered_request_is_not_answered_again() {
        let all = Arc::new(Inflight::default());
        let (slot, ticket, rx) = request(&all, 1, 10);
        assert!(slot.take().is_some());
        all.interrupt_the_dying(Duration::ZERO, |_| Fate::Dying);
        assert!(rx.try_recv().is_err());
        drop(ticket);
    }
}
