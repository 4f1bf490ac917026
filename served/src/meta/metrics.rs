//! What the metadata server counts besides its calls.

use netfs_common::wire::meta::Op;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

type Label = [(&'static str, &'static str); 1];

/// Counters of all volumes together. Cheap to clone; clones count together.
#[derive(Clone, Debug)]
pub struct MetaMetrics {
    /// Changes by type.
    pub changes: Family<Label, Counter>,
    /// Leases held.
    pub leases: Gauge,
    /// Requests that wait for leases of others.
    pub waiting: Gauge,
    /// Sessions.
    pub sessions: Gauge,
    /// Placement groups with fewer replicas than wanted.
    pub degraded_groups: Gauge,
    /// Placement groups without any replica that answers.
    pub unavailable_groups: Gauge,
    /// Data servers that are taken for dead.
    pub dead_servers: Gauge,
    /// Placement groups in which a server is getting what it lacks.
    pub learners: Gauge,
    /// Messages with recalls that were sent, repetitions over new connections not counted.
    pub recalls: Counter,
    /// Those that were answered.
    pub recalls_answered: Counter,
    /// Those whose session ended before.
    pub recalls_failed: Counter,
    /// From a recall to its answer.
    pub recall_seconds: Histogram,
    /// For how long requests have waited for leases; those that had not to wait are not in it.
    pub wait_seconds: Histogram,
}

impl Default for MetaMetrics {
    fn default() -> Self {
        MetaMetrics {
            changes: Family::default(),
            leases: Gauge::default(),
            waiting: Gauge::default(),
            sessions: Gauge::default(),
            degraded_groups: Gauge::default(),
            unavailable_groups: Gauge::default(),
            dead_servers: Gauge::default(),
            learners: Gauge::default(),
            recalls: Counter::default(),
            recalls_answered: Counter::default(),
            recalls_failed: Counter::default(),
            recall_seconds: durations(),
            wait_seconds: durations(),
        }
    }
}

/// Buckets from 50 µs, each three times the one before, to some 80 s.
fn durations() -> Histogram {
    Histogram::new(exponential_buckets(50e-6, 3.0, 14))
}

impl MetaMetrics {
    /// Adds everything to a registry.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("meta");
        registry.register("changes", "Changes by type", self.changes.clone());
        registry.register("leases", "Leases held", self.leases.clone());
        let help = "Requests that wait for leases of others";
        registry.register("waiting_requests", help, self.waiting.clone());
        registry.register("sessions", "Sessions", self.sessions.clone());
        let help = "Placement groups with fewer replicas than wanted";
        registry.register("degraded_groups", help, self.degraded_groups.clone());
        let help = "Placement groups without any replica that answers";
        registry.register("unavailable_groups", help, self.unavailable_groups.clone());
        let help = "Data servers that are taken for dead";
        registry.register("dead_data_servers", help, self.dead_servers.clone());
        let help = "Placement groups in which a server is getting what it lacks";
        registry.register("learners", help, self.learners.clone());
        registry.register("recalls", "Messages with recalls sent", self.recalls.clone());
        let help = "Messages with recalls answered";
        registry.register("recalls_answered", help, self.recalls_answered.clone());
        let help = "Messages with recalls whose session ended without an answer";
        registry.register("recalls_failed", help, self.recalls_failed.clone());
        let help = "Time from a recall to its answer";
        registry.register("recall_seconds", help, self.recall_seconds.clone());
        let help = "Time that requests have waited for leases of others";
        registry.register("lease_wait_seconds", help, self.wait_seconds.clone());
    }

    /// Notes a change.
    pub(super) fn changed(&self, op: &Op) {
        self.changes.get_or_create(&[("change", name(op))]).inc();
    }
}

/// What one volume has added to the gauges.
#[derive(Debug, Default)]
pub(super) struct Share {
    pub(super) leases: i64,
    pub(super) waiting: i64,
    pub(super) sessions: i64,
}

impl MetaMetrics {
    /// A volume's part of the gauges is another now.
    pub(super) fn replace(&self, before: &mut Share, now: Share) {
        self.leases.inc_by(now.leases - before.leases);
        self.waiting.inc_by(now.waiting - before.waiting);
        self.sessions.inc_by(now.sessions - before.sessions);
        *before = now;
    }
}

/// The cluster's part of the gauges.
#[derive(Debug, Default)]
pub(super) struct ClusterShare {
    pub(super) degraded: i64,
    pub(super) unavailable: i64,
    pub(super) dead: i64,
    pub(super) learners: i64,
}

impl MetaMetrics {
    /// Says how the cluster is.
    pub(super) fn cluster(&self, share: &ClusterShare) {
        self.degraded_groups.set(share.degraded);
        self.unavailable_groups.set(share.unavailable);
        self.dead_servers.set(share.dead);
        self.learners.set(share.learners);
    }
}

fn name(op: &Op) -> &'static str {
    match op {
        Op::Create { .. } => "create",
        Op::Link { .. } => "link",
        Op::Unlink { .. } => "unlink",
        Op::Rmdir { .. } => "rmdir",
        Op::Rename { .. } => "rename",
        Op::SetAttr { .. } => "setattr",
        Op::SetXattr { .. } => "setxattr",
        Op::RemoveXattr { .. } => "removexattr",
        Op::WriteInline { .. } => "write_inline",
        Op::WroteChunks { .. } => "wrote_chunks",
        Op::Accessed { .. } => "accessed",
        Op::Forget { .. } => "forget",
        Op::EndSession => "end_session",
        Op::CutTail { .. } => "cut_tail",
    }
}

#[cfg(test)]
mod tests {
    use netfs_common::telemetry::Metrics;

    use super::*;

    #[test]
    fn volumes_share_the_gauges_and_changes_are_told_apart() {
        let (registry, metrics) = (Metrics::new(), MetaMetrics::default());
        registry.with(|r| metrics.register(r));
        let (mut a, mut b) = (Share::default(), Share::default());
        metrics.replace(&mut a, Share { leases: 5, waiting: 1, sessions: 2 });
        metrics.replace(&mut b, Share { leases: 7, waiting: 0, sessions: 1 });
        metrics.replace(&mut a, Share { leases: 3, waiting: 0, sessions: 2 });
        metrics.changed(&Op::EndSession);
        metrics.recalls.inc();
        metrics.recall_seconds.observe(0.002);
        let text = registry.encode().unwrap();
        for line in [
            "netfs_meta_leases 10",
            "netfs_meta_waiting_requests 0",
            "netfs_meta_sessions 3",
            "netfs_meta_changes_total{change=\"end_session\"} 1",
            "netfs_meta_recalls_total 1",
            "netfs_meta_recall_seconds_count 1",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
