//! What the daemon is doing and has done lately, for people who ask why something takes long.
//!
//! Every operation that could not be answered at once from what is known is noted: while it is under way, and afterwards among the
//! last [`KEPT`]. The others are counted.

mod hot;
mod span;
mod text;

use std::collections::VecDeque;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::name::Name;

use crate::session::lock;
use hot::Hot;
use span::Span;
pub use span::{Operation, Wait, What, carried, waiting};
pub use text::{Connection, Findings, Here, Lost, is_of_nothing, leases, overview, why};

/// So many operations that have ended are remembered, at some 200 bytes each.
pub const KEPT: usize = 4096;

#[derive(Debug, Default)]
struct Log {
    /// Those under way. The kernel bounds their number, and the server that of its recalls.
    present: Vec<Option<Arc<Span>>>,
    free: Vec<usize>,
    /// The latest last.
    past: VecDeque<Arc<Span>>,
}

/// The operations of a mount.
#[derive(Debug, Default)]
pub struct Insight {
    /// A leaf.
    log: Mutex<Log>,
    at_once: AtomicU64,
    others: AtomicU64,
    hot: Mutex<Hot>,
}

/// Which operations are looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Of {
    /// All.
    All,
    /// Those about an inode, or about its name in a directory.
    Inode(Option<Ino>, Option<(Ino, Name)>),
}

impl Of {
    fn includes(&self, what: &What) -> bool {
        match self {
            Of::All => true,
            Of::Inode(ino, named) => {
                let named = named.as_ref();
                Some(what.ino) == *ino
                    || named.is_some_and(|(dir, name)| {
                        what.ino == *dir && what.name.as_ref() == Some(name)
                    })
            }
        }
    }
}

/// An operation under way; one that is dropped before its end was given up by its caller.
struct Underway {
    insight: Arc<Insight>,
    span: Arc<Span>,
    place: usize,
    outcome: Option<Errno>,
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.span.end(self.outcome);
        let mut log = lock(&self.insight.log);
        let oldest = if log.past.len() >= KEPT { log.past.pop_front() } else { None };
        if let Some(span) = log.present.get_mut(self.place).and_then(Option::take) {
            log.free.push(self.place);
            log.past.push_back(span);
        }
        drop(log);
        drop(oldest);
    }
}

impl Insight {
    /// An operation was answered at once.
    pub fn at_once(&self) {
        self.at_once.fetch_add(1, Ordering::Relaxed);
    }

    /// How many operations were answered at once, and how many were not.
    pub fn counts(&self) -> (u64, u64) {
        (self.at_once.load(Ordering::Relaxed), self.others.load(Ordering::Relaxed))
    }

    /// An operation begins now, and ends when the future does.
    pub fn follow<T, F>(
        self: &Arc<Self>,
        what: What,
        work: F,
    ) -> impl Future<Output = Result<T, Errno>> + use<T, F>
    where
        F: Future<Output = Result<T, Errno>>,
    {
        self.others.fetch_add(1, Ordering::Relaxed);
        let span = Arc::new(Span::begin(what));
        let mut log = lock(&self.log);
        let place = match log.free.pop() {
            Some(place) => place,
            None => {
                log.present.push(None);
                log.present.len() - 1
            }
        };
        log.present[place] = Some(span.clone());
        drop(log);
        let insight = Arc::clone(self);
        let outcome = Some(Errno::EINTR);
        let underway = Underway { insight, span, place, outcome };
        async move {
            // As a whole: its drop is the end.
            let mut underway = underway;
            let result = span::working(Arc::clone(&underway.span), work).await;
            underway.outcome = result.as_ref().err().copied();
            result
        }
    }

    /// Something of an inode was recalled.
    pub fn recalled(&self, ino: Ino) {
        lock(&self.hot).add(ino);
    }

    /// The inodes that were recalled most, and how often at least.
    pub fn most_recalled(&self, n: usize) -> Vec<(Ino, u64)> {
        lock(&self.hot).top(n)
    }

    /// Operations under way, the oldest first, and those that have ended, the latest first.
    pub fn operations(&self, of: &Of, limit: usize) -> (Vec<Operation>, Vec<Operation>) {
        let (present, past): (Vec<_>, Vec<_>) = {
            let log = lock(&self.log);
            let wanted = |span: &&Arc<Span>| of.includes(&span.what);
            let present = log.present.iter().flatten().filter(wanted).cloned().collect();
            (present, log.past.iter().rev().filter(wanted).take(limit).cloned().collect())
        };
        let now = Instant::now();
        let shown = |all: Vec<Arc<Span>>| -> Vec<_> { all.iter().map(|s| s.look(now)).collect() };
        let (mut present, past) = (shown(present), shown(past));
        present.sort_by_key(|o| std::cmp::Reverse(o.took));
        present.truncate(limit);
        (present, past)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn what(op: &'static str, ino: u64) -> What {
        What { op, ino: Ino(ino), name: None, pid: 42 }
    }

    fn both(insight: &Insight, ino: u64) -> (Vec<Operation>, Vec<Operation>) {
        insight.operations(&Of::Inode(Some(Ino(ino)), None), 10)
    }

    #[tokio::test]
    async fn an_operation_is_shown_while_it_waits_and_afterwards() {
        let insight = Arc::new(Insight::default());
        let (go, gone) = tokio::sync::oneshot::channel::<()>();
        let work = insight.follow(what("read", 7), async {
            waiting(Wait::Meta, async {
                let _ = waiting(Wait::Data, gone).await;
            })
            .await;
            Err::<(), _>(Errno::ENOENT)
        });
        let task = tokio::spawn(work);
        tokio::task::yield_now().await;
        let (present, past) = both(&insight, 7);
        assert_eq!((present.len(), past.len()), (1, 0));
        assert_eq!(present[0].waits.unwrap().0, Wait::Meta, "the outer wait counts");
        assert_eq!(both(&insight, 8), (vec![], vec![]));
        std::thread::sleep(Duration::from_millis(5));
        go.send(()).unwrap();
        assert_eq!(task.await.unwrap(), Err(Errno::ENOENT));
        let (present, past) = both(&insight, 7);
        assert_eq!((present.len(), past.len()), (0, 1));
        assert_eq!(past[0].ended.unwrap().1, Some(Errno::ENOENT));
        let waited = past[0].waited;
        assert!(waited[Wait::Meta as usize] >= Duration::from_millis(5), "{waited:?}");
        assert_eq!(waited[Wait::Data as usize], Duration::ZERO);
        assert!(past[0].took >= waited[Wait::Meta as usize]);
    }

    #[tokio::test]
    async fn what_is_given_up_has_ended_by_a_signal() {
        let insight = Arc::new(Insight::default());
        let work = insight.follow(what("write", 7), std::future::pending::<Result<(), Errno>>());
        drop(work);
        let (present, past) = both(&insight, 7);
        assert_eq!((present.len(), past.len()), (0, 1));
        assert_eq!(past[0].ended.unwrap().1, Some(Errno::EINTR));
    }

    #[tokio::test]
    async fn another_task_counts_for_the_operation_that_began_it() {
        let insight = Arc::new(Insight::default());
        let work = insight.follow(what("fsync", 7), async {
            let slow = async {
                waiting(Wait::Data, async {
                    std::thread::sleep(Duration::from_millis(3));
                })
                .await;
            };
            tokio::spawn(carried(slow)).await.map_err(|_| Errno::EIO)
        });
        work.await.unwrap();
        let (_, past) = both(&insight, 7);
        assert!(past[0].waited[Wait::Data as usize] >= Duration::from_millis(3));
    }

    #[tokio::test]
    async fn the_past_is_bounded_and_found_by_name() {
        let insight = Arc::new(Insight::default());
        let name = Name::new("file").unwrap();
        let lookup = What { op: "lookup", ino: Ino(1), name: Some(name.clone()), pid: 1 };
        for _ in 0..KEPT {
            insight.follow(what("read", 2), async { Ok(()) }).await.unwrap();
        }
        insight.follow(lookup, async { Ok(()) }).await.unwrap();
        let log = lock(&insight.log);
        assert_eq!((log.past.len(), log.present.len()), (KEPT, 1));
        drop(log);
        let of = Of::Inode(Some(Ino(2)), Some((Ino(1), name)));
        let (_, past) = insight.operations(&of, 2);
        assert_eq!([past[0].what.op, past[1].what.op], ["lookup", "read"]);
        assert_eq!(insight.counts(), (0, KEPT as u64 + 1));
    }

    /// Of this thread: others may be busy.
    fn processor_time() -> Duration {
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the pointer leads to a `timespec` of ours, and the clock exists on every Linux.
        unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) };
        Duration::new(now.tv_sec.try_into().unwrap(), now.tv_nsec.try_into().unwrap())
    }

    /// Prints a figure: `cargo test --release -p netfs-mountd --lib cost_of -- --nocapture`.
    #[tokio::test]
    async fn the_cost_of_an_operation_is_small() {
        let insight = Arc::new(Insight::default());
        let rounds = 200_000;
        let name = Name::new("a-name-of-usual-length").unwrap();
        let begun = processor_time();
        for i in 0..rounds {
            let what = What { op: "lookup", ino: Ino(i), name: Some(name.clone()), pid: 1 };
            insight.follow(what, async { Ok(()) }).await.unwrap();
        }
        let each = (processor_time() - begun) / u32::try_from(rounds).unwrap();
        println!("insight: {} ns of processor time for each operation", each.as_nanos());
        // Far above what an optimised build needs, and far below what anybody could notice.
        assert!(each < Duration::from_micros(20), "{each:?}");
    }
}
