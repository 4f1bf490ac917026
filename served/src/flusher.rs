//! Flushing in groups: whoever asks while a flush is under way shares the next one.
//!
//! A thread of its own flushes, so that a flush waits for no other work and nothing else for it. Those who shared the last flush
//! most likely ask again at once, so the next one waits a moment until as many have asked: the first of them would have a flush for itself
//! otherwise, and all others would wait for two. What this may cost is bounded by half of what a flush takes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{fmt, io};

use netfs_common::errno::Errno;
use tokio::sync::oneshot;

/// For which share of the time of a flush the next one waits for callers that are expected, and the most.
const GATHER_SHARE: u32 = 2;
const GATHER_MAX: Duration = Duration::from_millis(2);

type Answer = oneshot::Sender<Result<(), Errno>>;

/// Brings a store to stable storage when asked, and at intervals.
#[derive(Clone, Debug)]
pub struct Flusher {
    thread: Arc<Thread>,
}

/// Ends with the last handle; a flush that is under way then is waited for, so that nobody has the store any more afterwards.
struct Thread {
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    /// The first has asked, or the last that is expected, or it is over.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<Answer>,
    /// So many are worth waiting for: as many as shared the last flush or asked during it.
    expected: usize,
    over: bool,
}

impl Flusher {
    /// `flush` is run on a thread of its own, which ends with the last handle.
    ///
    /// # Errors
    /// There can be no thread.
    pub fn start<F>(interval: Duration, flush: F) -> io::Result<Flusher>
    where
        F: Fn() -> Result<(), Errno> + Send + 'static,
    {
        let queue = Arc::new(Queue::default());
        let asked = queue.clone();
        let thread = std::thread::Builder::new()
            .name("flusher".into())
            .spawn(move || run(interval, &asked, flush))?;
        Ok(Flusher { thread: Arc::new(Thread { queue, thread: Some(thread) }) })
    }

    /// Returns when all that was acknowledged before is on stable storage.
    ///
    /// # Errors
    /// What the flush says, or that the flusher has ended.
    pub async fn flush(&self) -> Result<(), Errno> {
        let (answer, answered) = oneshot::channel();
        self.thread.queue.ask(answer);
        answered.await.map_err(|_| Errno::ESHUTDOWN)?
    }
}

impl fmt::Debug for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Thread").finish_non_exhaustive()
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.queue.lock().over = true;
        self.queue.changed.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a flusher's thread has panicked");
        }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Each field is set in one step, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, answer: Answer) {
        let mut state = self.lock();
        state.waiting.push(answer);
        let asked = state.waiting.len();
        let wakes = asked == 1 || asked == state.expected;
        drop(state);
        if wakes {
            self.changed.notify_one();
        }
    }

    /// Waits until somebody has asked, and a moment for others who are expected; at most for the interval if nobody does. `None`: it is over.
    fn next(&self, interval: Duration, moment: Duration) -> Option<Vec<Answer>> {
        let wait = |state, most: Duration, until: fn(&State) -> bool| {
            let goes_on = |state: &mut State| !state.over && !until(state);
            let waited = self.changed.wait_timeout_while(state, most, goes_on);
            waited.unwrap_or_else(PoisonError::into_inner).0
        };
        let mut state = wait(self.lock(), interval, |state| !state.waiting.is_empty());
        if !state.waiting.is_empty() {
            state = wait(state, moment, |state| state.waiting.len() >= state.expected);
        }
        // Nobody asks without a handle.
        if state.over { None } else { Some(std::mem::take(&mut state.waiting)) }
    }
}

fn run(interval: Duration, asked: &Queue, flush: impl Fn() -> Result<(), Errno>) {
    let mut moment = Duration::ZERO;
    while let Some(waiting) = asked.next(interval, moment) {
        let begun = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(&flush)).unwrap_or_else(|_| {
            tracing::error!("a flush has panicked");
            Err(Errno::EIO)
        });
        moment = (begun.elapsed() / GATHER_SHARE).min(GATHER_MAX);
        let mut state = asked.lock();
        state.expected = waiting.len() + state.waiting.len();
        drop(state);
        for answer in waiting {
            // Whoever has given up does not want to know.
            let _ = answer.send(result);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// As [`Flusher::flush`], for threads.
    fn ask(flusher: &Flusher) -> oneshot::Receiver<Result<(), Errno>> {
        let (answer, answered) = oneshot::channel();
        flusher.thread.queue.ask(answer);
        answered
    }

    #[test]
    fn all_who_ask_during_a_flush_share_the_next_one() {
        let (begun, begins) = mpsc::channel();
        let (end, ends) = mpsc::channel::<Result<(), Errno>>();
        let flusher = Flusher::start(LONG, move || {
            begun.send(()).unwrap();
            ends.recv().unwrap()
        })
        .unwrap();
        let first = ask(&flusher);
        begins.recv().unwrap();
        let mut others: Vec<_> = (0..50).map(|_| ask(&flusher)).collect();
        end.send(Ok(())).unwrap();
        assert_eq!(first.blocking_recv(), Ok(Ok(())));
        begins.recv().unwrap();
        assert_eq!(flusher.thread.queue.lock().expected, 51, "all of them may be back");
        assert!(others.iter_mut().all(|other| other.try_recv().is_err()), "served too early");
        end.send(Err(Errno::EIO)).unwrap();
        for other in others {
            assert_eq!(other.blocking_recv(), Ok(Err(Errno::EIO)));
        }
        assert!(begins.try_recv().is_err(), "more than two flushes");
    }

    #[test]
    fn those_who_are_expected_are_waited_for_but_not_for_long() {
        let queue = Arc::new(Queue::default());
        queue.lock().expected = 3;
        let asking = queue.clone();
        let asker = std::thread::spawn(move || {
            for _ in 0..3 {
                asking.ask(oneshot::channel().0);
                std::thread::yield_now();
            }
        });
        let asked = |moment| queue.next(LONG, moment).map(|waiting| waiting.len());
        let begun = Instant::now();
        assert_eq!(asked(LONG), Some(3));
        asker.join().unwrap();
        queue.ask(oneshot::channel().0);
        assert_eq!(asked(Duration::from_millis(1)), Some(1));
        assert!(begun.elapsed() < LONG / 2, "waited in vain");
    }

    #[tokio::test]
    async fn it_flushes_at_intervals_too_and_after_a_panic() {
        let (begun, begins) = mpsc::channel();
        let flusher = Flusher::start(Duration::from_millis(1), move || {
            begun.send(()).unwrap();
            panic!("on purpose");
        })
        .unwrap();
        (0..3).for_each(|_| begins.recv().unwrap());
        assert_eq!(flusher.flush().await, Err(Errno::EIO));
    }

    #[test]
    fn what_it_flushes_is_free_when_the_last_handle_is_gone() {
        let held = Arc::new(());
        let theirs = held.clone();
        let flusher = Flusher::start(LONG, move || {
            let _ = &theirs;
            Ok(())
        })
        .unwrap();
        let other = flusher.clone();
        drop(flusher);
        assert_eq!(Arc::strong_count(&held), 2);
        drop(other);
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
