//! The registry of metrics.

use std::fmt;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::process::ProcessCollector;

/// The content type of what [`Metrics::encode`] makes.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A registry of metrics. A process has one, [`Metrics::global`]; tests make their own.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// An empty registry, whose metrics begin with `netfs_`.
    pub fn new() -> Self {
        Self { registry: Mutex::new(Registry::with_prefix("netfs")) }
    }

    /// The registry of the process, with what the system knows about the process.
    pub fn global() -> &'static Self {
        static GLOBAL: OnceLock<Metrics> = OnceLock::new();
        GLOBAL.get_or_init(|| {
            let metrics = Self::new();
            metrics.with(|registry| registry.register_collector(Box::new(ProcessCollector)));
            metrics
        })
    }

    /// Gives access to the registry itself, for metrics of any kind.
    pub fn with<T>(&self, register: impl FnOnce(&mut Registry) -> T) -> T {
        register(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds a counter, `netfs_PART_NAME_total`.
    pub fn counter(&self, part: &str, name: &str, help: &str) -> Counter {
        let counter = Counter::default();
        self.with(|registry| {
            registry.sub_registry_with_prefix(part).register(name, help, counter.clone());
        });
        counter
    }

    /// Adds a gauge, `netfs_PART_NAME`.
    pub fn gauge(&self, part: &str, name: &str, help: &str) -> Gauge {
        let gauge = Gauge::default();
        self.with(|registry| {
            registry.sub_registry_with_prefix(part).register(name, help, gauge.clone());
        });
        gauge
    }

    /// Adds a histogram of durations in seconds, `netfs_PART_NAME`, from 10 µs to 10 s.
    pub fn durations(&self, part: &str, name: &str, help: &str) -> Histogram {
        let histogram = latency_histogram();
        self.with(|registry| {
            registry.sub_registry_with_prefix(part).register(name, help, histogram.clone());
        });
        histogram
    }

    /// Adds the metrics of calls of one part.
    pub fn calls(&self, part: &str) -> CallMetrics {
        let calls = CallMetrics::default();
        self.with(|registry| {
            let registry = registry.sub_registry_with_prefix(part);
            registry.register("calls", "Calls by type and outcome", calls.count.clone());
            registry.register(
                "call_seconds",
                "Time from a call's begin to its end, by type",
                calls.seconds.clone(),
            );
        });
        calls
    }

    /// All metrics as text, for a scraper.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        self.with(|registry| encode(&mut text, registry))?;
        Ok(text)
    }

    /// The content type of [`encode`](Self::encode)'s text.
    pub fn content_type(&self) -> &'static str {
        CONTENT_TYPE
    }
}

type Labels = [(&'static str, &'static str); 2];
type TypeLabel = [(&'static str, &'static str); 1];

/// Counts and times calls by type. Labels are words of the program, never of its input, so their number is
/// bounded.
#[derive(Debug, Clone)]
pub struct CallMetrics {
    count: Family<Labels, Counter>,
    seconds: Family<TypeLabel, Histogram, fn() -> Histogram>,
}

impl Default for CallMetrics {
    fn default() -> Self {
        Self {
            count: Family::default(),
            seconds: Family::new_with_constructor(latency_histogram as fn() -> Histogram),
        }
    }
}

impl CallMetrics {
    /// Notes a call of a type that took so long and ended so: "ok", or a word for the error.
    pub fn record(&self, call: &'static str, outcome: &'static str, took: Duration) {
        self.count.get_or_create(&[("call", call), ("outcome", outcome)]).inc();
        self.seconds.get_or_create(&[("call", call)]).observe(took.as_secs_f64());
    }

    /// Calls of a type that ended so.
    pub fn count(&self, call: &'static str, outcome: &'static str) -> u64 {
        self.count.get_or_create(&[("call", call), ("outcome", outcome)]).get()
    }
}

/// Buckets from 10 µs, each three times the one before, to some 10 s.
fn latency_histogram() -> Histogram {
    Histogram::new(exponential_buckets(10e-6, 3.0, 14))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_shown_with_their_prefix_and_labels() {
        let metrics = Metrics::new();
        metrics.counter("meta", "recalls", "Leases recalled").inc_by(3);
        metrics.gauge("meta", "sessions", "Sessions").set(2);
        let calls = metrics.calls("meta");
        calls.record("lookup", "ok", Duration::from_micros(50));
        calls.record("lookup", "ENOENT", Duration::from_micros(20));
        let text = metrics.encode().unwrap();
        for line in [
            "netfs_meta_recalls_total 3",
            "netfs_meta_sessions 2",
            "netfs_meta_calls_total{call=\"lookup\",outcome=\"ok\"} 1",
            "netfs_meta_call_seconds_count{call=\"lookup\"} 2",
            "# EOF",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }

    #[test]
    fn the_process_knows_its_own_size() {
        let text = Metrics::global().encode().unwrap();
        let value = |name: &str| -> f64 {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line.split(' ').next_back().unwrap().parse().unwrap()
        };
        assert!(value("netfs_process_resident_memory_bytes ") > 1e6);
        assert!(value("netfs_process_open_fds ") > 2.0);
        assert!(value("netfs_process_threads ") >= 1.0);
    }
}
