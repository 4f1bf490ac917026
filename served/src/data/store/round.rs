//! Who flushes for whom: callers at the same time share one flush of the disk, and one of them does it for all.
//!
//! A caller joins the next round and sleeps until it is over. Those that took part in the last round most likely write again at once and
//! come back, so the next one waits a moment until as many are there: without it the first one that is back would begin
//! alone, and all others would wait for two flushes. The last one that comes leads, since it is awake anyway; if not all
//! come, the one that minds the time does.
//!
//! Waking is what many writers of little data spend their time with when the disk flushes quickly. So the sleepers of a round are woken
//! all at once, and those of the next one sleep on, but for one that minds the time; all of them wake only if some were served already.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::sync::{lock, wait, wait_at_most};

/// For which share of the time of a flush the next one waits for callers that are expected, and the most.
const GATHER_SHARE: u32 = 2;
const GATHER_MAX: Duration = Duration::from_millis(2);

#[derive(Default)]
struct State {
    /// The number of the next round; the one before it may be running.
    next: u64,
    running: bool,
    /// How many sleep until the next round is over.
    waiting: usize,
    /// The least that one of them wants to be durable.
    least_wanted: u64,
    /// One of them minds how long the others are waited for.
    is_minded: bool,
    /// How many it is worth waiting for before the next round begins: as many as took part in the last one or came during it.
    expected: usize,
    /// How long the last one took.
    took: Duration,
}

impl State {
    fn is_over(&self, round: u64) -> bool {
        round + u64::from(self.running) < self.next
    }

    fn has_begun(&self, round: u64) -> bool {
        round < self.next
    }
}

/// The rounds of flushing of one log.
pub(super) struct Rounds {
    state: Mutex<State>,
    /// For those of even rounds and of odd ones.
    over: [Condvar; 2],
    /// All records up to this one are on stable storage.
    durable: AtomicU64,
}

impl Rounds {
    pub(super) fn new(durable: u64) -> Self {
        Self { state: Mutex::default(), over: Default::default(), durable: AtomicU64::new(durable) }
    }

    pub(super) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// Takes part in a round that begins after the call, unless the running one does for it. Whoever leads calls `flush`, which says up to which record everything is on stable
    /// storage then, and has that returned; all others have to look by themselves whether it did.
    pub(super) fn take_part<E>(
        &self,
        target: u64,
        flush: impl FnOnce() -> Result<u64, E>,
    ) -> Result<Option<u64>, E> {
        let mut state = lock(&self.state);
        if self.durable() >= target {
            return Ok(None);
        }
        if !state.running && state.waiting + 1 >= state.expected {
            return self.lead(state, flush);
        }
        let mine = state.next;
        state.least_wanted =
            if state.waiting == 0 { target } else { state.least_wanted.min(target) };
        state.waiting += 1;
        let mut until = None;
        loop {
            if state.is_over(mine) || self.durable() >= target {
                // The round before has served it; what has begun meanwhile is for others.
                if !state.has_begun(mine) {
                    state.waiting -= 1;
                }
                return Ok(None);
            }
            if !state.running && !state.is_minded && !state.has_begun(mine) {
                state.is_minded = true;
                until = Some(Instant::now() + (state.took / GATHER_SHARE).min(GATHER_MAX));
            }
            let rest = until.map(|until| until.saturating_duration_since(Instant::now()));
            state = match rest {
                Some(Duration::ZERO) if !state.has_begun(mine) => {
                    state.waiting -= 1;
                    return self.lead(state, flush);
                }
                Some(rest) if !state.has_begun(mine) => {
                    wait_at_most(self.over_of(mine), state, rest)
                }
                _ => wait(self.over_of(mine), state),
            };
        }
    }

    fn over_of(&self, round: u64) -> &Condvar {
        &self.over[(round % 2) as usize]
    }

    fn lead<E>(
        &self,
        mut state: MutexGuard<'_, State>,
        flush: impl FnOnce() -> Result<u64, E>,
    ) -> Result<Option<u64>, E> {
        let mine = state.next;
        state.next += 1;
        state.running = true;
        state.is_minded = false;
        let others = std::mem::take(&mut state.waiting);
        drop(state);
        let _running = Running { rounds: self, mine, others, begun: Instant::now() };
        let durable = flush()?;
        self.durable.fetch_max(durable, Ordering::AcqRel);
        Ok(Some(durable))
    }
}

/// A round under way. It ends when this is dropped, so also if the flush panics: others must not sleep for ever then.
struct Running<'a> {
    rounds: &'a Rounds,
    mine: u64,
    others: usize,
    begun: Instant,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.rounds.state);
        state.running = false;
        state.took = self.begun.elapsed();
        // All of them come again now, if they do.
        state.expected = 1 + self.others + state.waiting;
        let (waiting, wanted) = (state.waiting, state.least_wanted);
        drop(state);
        if self.others > 0 {
            self.rounds.over_of(self.mine).notify_all();
        }
        let next = self.rounds.over_of(self.mine + 1);
        match waiting {
            0 => {}
            // Some came after the beginning and were served as well.
            _ if wanted <= self.rounds.durable() => next.notify_all(),
            _ => next.notify_one(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::sync::{Arc, Barrier, mpsc};
    use std::thread;

    use super::*;

    /// Waits until so many sleep for the next round.
    fn until_waiting(rounds: &Rounds, count: usize) {
        while lock(&rounds.state).waiting < count {
            thread::yield_now();
        }
    }

    #[test]
    fn one_caller_leads_and_what_is_durable_needs_no_round() {
        let rounds = Rounds::new(3);
        assert_eq!(rounds.take_part(5, || Ok::<_, ()>(7)), Ok(Some(7)));
        assert_eq!(rounds.durable(), 7);
        assert_eq!(rounds.take_part(7, || Err(())), Ok(None));
        // What is durable stays so.
        assert_eq!(rounds.take_part(8, || Err(())), Err(()));
        assert_eq!(rounds.durable(), 7);
    }

    /// A round of one caller that ends when told, and callers that come meanwhile.
    fn during_a_round(
        targets: &[u64],
        then: impl FnOnce(mpsc::Sender<Result<u64, ()>>),
    ) -> Vec<Result<Option<u64>, ()>> {
        let rounds = Arc::new(Rounds::new(0));
        let (tell, told) = mpsc::channel();
        let (begun_tell, begun) = mpsc::channel();
        let leader = rounds.clone();
        let leader = thread::spawn(move || {
            leader.take_part(1, || {
                begun_tell.send(()).unwrap();
                told.recv().unwrap()
            })
        });
        begun.recv().unwrap();
        let later: Vec<_> = targets
            .iter()
            .enumerate()
            .map(|(n, &target)| {
                let their = rounds.clone();
                let later = thread::spawn(move || their.take_part(target, || Ok(100)));
                until_waiting(&rounds, n + 1);
                later
            })
            .collect();
        then(tell);
        let all = std::iter::once(leader).chain(later);
        all.map(|thread| thread.join().unwrap()).collect()
    }

    #[test]
    fn who_was_served_by_the_running_round_needs_no_other() {
        let ended = during_a_round(&[2, 2], |end| end.send(Ok(2)).unwrap());
        assert_eq!(ended, [Ok(Some(2)), Ok(None), Ok(None)]);
    }

    #[test]
    fn who_was_not_is_in_the_next_one_with_all_that_wait() {
        let ended = during_a_round(&[3, 2, 3], |end| end.send(Ok(2)).unwrap());
        assert_eq!(ended[0], Ok(Some(2)));
        assert_eq!(ended.iter().filter(|ended| **ended == Ok(Some(100))).count(), 1, "{ended:?}");
        assert_eq!(ended.iter().filter(|ended| **ended == Ok(None)).count(), 2, "{ended:?}");
    }

    #[test]
    fn a_failure_is_told_to_who_led_and_leaves_nobody_asleep() {
        let ended = during_a_round(&[3, 3], |end| end.send(Err(())).unwrap());
        assert_eq!(ended[0], Err(()));
        assert_eq!(ended[1..].iter().filter(|ended| **ended == Ok(Some(100))).count(), 1);
    }

    #[test]
    fn a_flush_that_panics_ends_its_round() {
        let rounds = Arc::new(Rounds::new(0));
        let theirs = rounds.clone();
        let flush = move || theirs.take_part(1, || -> Result<u64, ()> { panic!("on purpose") });
        assert!(thread::spawn(flush).join().is_err());
        assert_eq!(rounds.take_part(1, || Ok::<_, ()>(1)), Ok(Some(1)));
    }

    #[test]
    fn who_was_served_does_not_sleep_through_a_round_that_began_before_it_woke() {
        // Often enough that some of them wake late.
        for _ in 0..200 {
            let rounds = Arc::new(Rounds::new(0));
            let (end, ends) = mpsc::channel::<Result<u64, ()>>();
            let (began, begins) = mpsc::channel();
            let leading = rounds.clone();
            let leader = thread::spawn(move || {
                leading.take_part(1, || {
                    began.send(()).unwrap();
                    ends.recv().unwrap()
                })
            });
            begins.recv().unwrap();
            let is_back = Arc::new(AtomicBool::new(false));
            let (theirs, back) = (rounds.clone(), is_back.clone());
            let served = thread::spawn(move || {
                let ended = theirs.take_part(2, || Err::<u64, ()>(()));
                back.store(true, Ordering::Release);
                ended
            });
            until_waiting(&rounds, 1);
            end.send(Ok(2)).unwrap();
            assert_eq!(leader.join().unwrap(), Ok(Some(2)));
            let flush = || {
                while !is_back.load(Ordering::Acquire) {
                    thread::yield_now();
                }
                Ok::<_, ()>(3)
            };
            assert_eq!(rounds.take_part(3, flush), Ok(Some(3)));
            assert_eq!(served.join().unwrap(), Ok(None));
        }
    }

    #[test]
    fn many_callers_share_few_rounds_and_none_is_forgotten() {
        const THREADS: u64 = 8;
        const EACH: u64 = 2000;
        let rounds = Arc::new(Rounds::new(0));
        let together = Arc::new(Barrier::new(THREADS as usize));
        let (appended, led) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let threads = (0..THREADS).map(|thread| {
            let (rounds, appended, led) = (rounds.clone(), appended.clone(), led.clone());
            let together = together.clone();
            thread::spawn(move || {
                together.wait();
                for turn in 0..EACH {
                    let target = appended.fetch_add(1, Ordering::AcqRel) + 1;
                    while rounds.durable() < target {
                        let flush = || {
                            led.fetch_add(1, Ordering::Relaxed);
                            // One in some fails; then nothing is durable by it.
                            let fails = (turn + thread) % 97 == 0 && turn % 2 == 0;
                            let all = appended.load(Ordering::Acquire);
                            thread::yield_now();
                            if fails { Err(()) } else { Ok(all) }
                        };
                        if rounds.take_part(target, flush).is_err() {
                            break;
                        }
                    }
                }
            })
        });
        threads.collect::<Vec<_>>().into_iter().for_each(|thread| thread.join().unwrap());
        let led = led.load(Ordering::Relaxed);
        assert!(led < THREADS * EACH / 2, "{led} rounds for {} writes", THREADS * EACH);
        assert_eq!(lock(&rounds.state).waiting, 0);
    }
}
