//! Background work on the store: reclamation, checkpoints and the scrub, on a thread of its own.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::metrics::DataMetrics;
use crate::data::store::{BadRange, ScrubCursor, SegmentStore, StoreError};

/// How often to look whether there is something to do.
const LOOK: Duration = Duration::from_millis(500);
/// Reclamation rests for this many times as long as its last step took, so that it takes a quarter
/// of the disk's time at most. When room is short it does not rest: writes wait for it, and reclaim by themselves if need be.
const REST: u32 = 3;
/// The shortest rest.
const MIN_REST: Duration = Duration::from_millis(5);

/// Settings of the background work.
#[derive(Clone, Debug)]
pub struct UpkeepConfig {
    /// From the beginning of one scrub to that of the next. Zero: no scrub.
    pub scrub_interval: Duration,
    /// How fast the scrub reads, in bytes per second.
    pub scrub_rate: u64,
}

impl Default for UpkeepConfig {
    fn default() -> Self {
        UpkeepConfig { scrub_interval: Duration::from_secs(7 * 24 * 3600), scrub_rate: 8 << 20 }
    }
}

/// The thread.
#[derive(Debug)]
pub(super) struct Upkeep {
    /// Dropped to end it.
    stop: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl Upkeep {
    pub(super) fn start(
        store: Arc<SegmentStore>,
        config: UpkeepConfig,
        metrics: DataMetrics,
        damaged: impl Fn(&BadRange) + Send + 'static,
    ) -> io::Result<Upkeep> {
        let (stop, stopped) = mpsc::channel();
        let damaged = Box::new(damaged);
        let mut work = Work { store, scrub: Scrub::new(config), metrics, damaged };
        let thread = std::thread::Builder::new()
            .name("netfs-upkeep".into())
            .spawn(move || work.run(&stopped))?;
        Ok(Upkeep { stop, thread })
    }

    /// Ends it after its present step.
    pub(super) fn stop(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            tracing::error!("the upkeep of the data store has panicked");
        }
    }
}

struct Work {
    store: Arc<SegmentStore>,
    scrub: Scrub,
    metrics: DataMetrics,
    /// Told of every damaged range.
    damaged: Box<dyn Fn(&BadRange) + Send>,
}

/// What is left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Left {
    Nothing,
    Some,
    /// Writes are about to find no room.
    Urgent,
}

impl Left {
    /// Until the next step, after one that took so long.
    fn rest(self, step: Duration) -> Duration {
        match self {
            Left::Nothing => LOOK,
            Left::Some => (step * REST).max(MIN_REST).min(LOOK),
            Left::Urgent => Duration::ZERO,
        }
    }
}

struct Scrub {
    config: UpkeepConfig,
    /// The scrub under way.
    cursor: Option<ScrubCursor>,
    /// When the next step, or the next scrub, is due.
    due: Option<Instant>,
    begun: Instant,
}

impl Scrub {
    fn new(config: UpkeepConfig) -> Scrub {
        let begun = Instant::now();
        let due = match config.scrub_interval {
            Duration::ZERO => None,
            // Not at once, when everybody has just come back, but also where servers restart every day.
            interval => Some(begun + interval.min(Duration::from_secs(3600))),
        };
        Scrub { config, cursor: None, due, begun }
    }
}

impl Work {
    fn run(&mut self, stopped: &mpsc::Receiver<()>) {
        let mut pause = LOOK;
        loop {
            match stopped.recv_timeout(pause) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
            }
            let step = Instant::now();
            let work = match self.reclaim().and_then(|work| Ok(work.max(self.scrub()?))) {
                Ok(work) => work,
                Err(StoreError::Poisoned(why)) => {
                    tracing::error!(%why, "the data store takes no more writes; upkeep ends");
                    return;
                }
                Err(error) => {
                    self.metrics.store_failed(&error);
                    Left::Nothing
                }
            };
            pause = work.rest(step.elapsed());
            let busy = work > Left::Nothing;
            if !busy {
                self.note_usage();
            }
        }
    }

    /// One step of reclamation, which includes checkpoints.
    fn reclaim(&mut self) -> Result<Left, StoreError> {
        let done = self.store.reclaim_step()?;
        self.metrics.reclaimed.inc_by(done.freed_bytes);
        Ok(match () {
            () if done.urgent => Left::Urgent,
            () if done.idle => Left::Nothing,
            () => Left::Some,
        })
    }

    /// One step of the scrub when it is due.
    fn scrub(&mut self) -> Result<Left, StoreError> {
        let now = Instant::now();
        if self.scrub.due.is_none_or(|due| due > now) {
            return Ok(Left::Nothing);
        }
        let cursor = match self.scrub.cursor.take() {
            Some(cursor) => cursor,
            None => {
                self.scrub.begun = now;
                ScrubCursor::default()
            }
        };
        let step = self.store.scrub_step(cursor)?;
        self.metrics.scrubbed.inc_by(step.bytes);
        for bad in &step.bad {
            self.metrics.scrub_faults.inc();
            tracing::error!(chunk = %bad.key, offset = bad.offset, len = bad.len, "the scrub found damaged data");
            (self.damaged)(bad);
        }
        for damage in &step.damage {
            self.metrics.scrub_faults.inc();
            tracing::error!(segment = damage.segment, from = damage.from, to = damage.to, why = %damage.why, "the scrub found a part of a segment that cannot be understood");
        }
        let pace = step.bytes.saturating_mul(1000) / self.scrub.config.scrub_rate.max(1);
        self.scrub.due = match step.next {
            Some(_) => Some(now + Duration::from_millis(pace)),
            None => Some((self.scrub.begun + self.scrub.config.scrub_interval).max(now + LOOK)),
        };
        self.scrub.cursor = step.next;
        Ok(Left::Some)
    }

    fn note_usage(&self) {
        match self.store.usage() {
            Ok(usage) => {
                self.metrics.live.set(gauge(usage.live_bytes));
                self.metrics.stored.set(gauge(usage.stored_bytes));
                self.metrics.dead.set(gauge(usage.dead_bytes));
                self.metrics.free.set(gauge(usage.free_bytes));
                self.metrics.capacity.set(gauge(usage.capacity_bytes));
                self.metrics.chunks.set(gauge(usage.chunks));
                self.metrics.away.set(gauge(usage.away_bytes));
            }
            Err(error) => self.metrics.store_failed(&error),
        }
    }
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reclamation_rests_unless_room_is_short() {
        let step = Duration::from_millis(20);
        assert_eq!(Left::Some.rest(step), step * REST);
        assert_eq!(Left::Some.max(Left::Urgent).rest(step), Duration::ZERO);
        assert_eq!(Left::Nothing.rest(step), LOOK);
    }
}
