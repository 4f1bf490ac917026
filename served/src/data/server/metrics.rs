//! Counters of a data server.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use netfs_common::telemetry::Rarely;
use netfs_common::wire::cluster::Work;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::data::store::StoreError;

/// Failures of the store are logged this often at most.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// The kind of a call.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OpLabel {
    pub(super) op: &'static str,
}

/// Counters of the object store. Cheap to clone; clones count together.
#[derive(Clone, Debug, Default)]
pub(super) struct TierMetrics {
    pub(super) away_chunks: Gauge,
    pub(super) unreachable: Gauge,
    pub(super) uploads: Counter,
    pub(super) uploaded_bytes: Counter,
    pub(super) fetches: Counter,
    pub(super) fetched_bytes: Counter,
    pub(super) removed: Counter,
    pub(super) errors: Counter,
}

impl TierMetrics {
    fn register(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("tier");
        let away = "Chunks of which something is only in the object store";
        r.register("away_chunks", away, self.away_chunks.clone());
        r.register("unreachable", "1: its last call failed", self.unreachable.clone());
        r.register("uploads", "Objects put there", self.uploads.clone());
        r.register("uploaded_bytes", "Bytes put there", self.uploaded_bytes.clone());
        r.register("fetches", "Chunks that came back", self.fetches.clone());
        r.register("fetched_bytes", "Bytes that came back", self.fetched_bytes.clone());
        r.register("removed", "Objects removed", self.removed.clone());
        r.register("errors", "Calls that failed", self.errors.clone());
    }
}

/// Counters of a data server. Cheap to clone; clones count together.
#[derive(Clone, Debug)]
pub struct DataMetrics {
    pub(super) calls: Family<OpLabel, Counter>,
    pub(super) failures: Family<OpLabel, Counter>,
    pub(super) bytes_read: Counter,
    pub(super) bytes_written: Counter,
    pub(super) bytes_forwarded: Counter,
    pub(super) flushes: Counter,
    /// Calls of the store, and their time in microseconds.
    pub(super) store_calls: Counter,
    pub(super) store_busy: Counter,
    pub(super) malformed: Counter,
    pub(super) reclaimed: Counter,
    pub(super) scrubbed: Counter,
    pub(super) scrub_faults: Counter,
    pub(super) damaged: Counter,
    pub(super) mended: Counter,
    pub(super) swept: Counter,
    pub(super) live: Gauge,
    pub(super) stored: Gauge,
    pub(super) dead: Gauge,
    pub(super) free: Gauge,
    pub(super) capacity: Gauge,
    pub(super) chunks: Gauge,
    pub(super) away: Gauge,
    pub(super) tier: TierMetrics,
    log: Arc<Rarely>,
    /// What the last flush failed with, if it failed. There is one a second at least.
    trouble: Arc<Mutex<Option<String>>>,
}

impl Default for DataMetrics {
    fn default() -> Self {
        DataMetrics {
            calls: Family::default(),
            failures: Family::default(),
            bytes_read: Counter::default(),
            bytes_written: Counter::default(),
            bytes_forwarded: Counter::default(),
            flushes: Counter::default(),
            store_calls: Counter::default(),
            store_busy: Counter::default(),
            malformed: Counter::default(),
            reclaimed: Counter::default(),
            scrubbed: Counter::default(),
            scrub_faults: Counter::default(),
            damaged: Counter::default(),
            mended: Counter::default(),
            swept: Counter::default(),
            live: Gauge::default(),
            stored: Gauge::default(),
            dead: Gauge::default(),
            free: Gauge::default(),
            capacity: Gauge::default(),
            chunks: Gauge::default(),
            away: Gauge::default(),
            tier: TierMetrics::default(),
            log: Arc::new(Rarely::every(LOG_INTERVAL)),
            trouble: Arc::default(),
        }
    }
}

impl DataMetrics {
    /// Adds the counters to a registry.
    pub fn register(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("data");
        r.register("calls", "Calls answered", self.calls.clone());
        r.register("failures", "Calls that failed", self.failures.clone());
        r.register("read_bytes", "Bytes read by clients", self.bytes_read.clone());
        r.register("written_bytes", "Bytes written by clients", self.bytes_written.clone());
        r.register(
            "forwarded_bytes",
            "Bytes passed on by the replica before in a chain",
            self.bytes_forwarded.clone(),
        );
        r.register("flushes", "Flushes of the store", self.flushes.clone());
        r.register("store_calls", "Calls of the store", self.store_calls.clone());
        r.register(
            "store_busy_us",
            "Time that calls of the store took, in microseconds",
            self.store_busy.clone(),
        );
        r.register("malformed", "Connections closed for nonsense", self.malformed.clone());
        r.register("reclaimed_bytes", "Bytes of segments removed", self.reclaimed.clone());
        r.register("scrubbed_bytes", "Bytes verified by the scrub", self.scrubbed.clone());
        r.register(
            "scrub_faults",
            "Damaged ranges that the scrub found",
            self.scrub_faults.clone(),
        );
        r.register(
            "damaged",
            "Damaged ranges of chunks found, by reads or the scrub",
            self.damaged.clone(),
        );
        r.register("mended", "Damaged ranges replaced from another replica", self.mended.clone());
        r.register(
            "swept_chunks",
            "Copies removed of groups in which the server has no place",
            self.swept.clone(),
        );
        r.register("live_bytes", "Bytes of chunks", self.live.clone());
        r.register(
            "live_stored_bytes",
            "What the bytes of chunks take on the disk, compressed or not",
            self.stored.clone(),
        );
        r.register("dead_bytes", "Bytes that reclamation could win", self.dead.clone());
        r.register("free_bytes", "Bytes that can be appended", self.free.clone());
        r.register("capacity_bytes", "Bytes that the store can hold", self.capacity.clone());
        r.register("chunks", "Chunks held", self.chunks.clone());
        r.register(
            "away_bytes",
            "Bytes of chunks that are only in the object store",
            self.away.clone(),
        );
        self.tier.register(r);
    }

    /// Logs a failure of the store, unless one was logged just now.
    pub(super) fn store_failed(&self, error: &StoreError) {
        // The caller's mistake, and it is told.
        if matches!(error, StoreError::OutOfRange { .. }) {
            return;
        }
        if let Some(held_back) = self.log.pass() {
            tracing::error!(held_back, %error, "data store");
        }
    }

    /// Does something in the store, which counts as its work.
    pub(super) fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let out = work();
        self.store_calls.inc();
        let took = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.store_busy.inc_by(took);
        out
    }

    /// What the store has done so far.
    pub(super) fn work(&self) -> Work {
        Work { calls: self.store_calls.get(), busy_us: self.store_busy.get() }
    }

    /// A flush has ended.
    pub(super) fn flushed(&self, failure: Option<String>) {
        self.flushes.inc();
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = failure;
    }

    /// What is wrong with the store, as far as its last flush could tell.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
