//! What the network layer counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Counters of an endpoint. Cheap to clone; clones count together.
#[derive(Debug, Clone, Default)]
pub struct NetMetrics {
    /// Connections that are up.
    pub connections: Gauge,
    /// Connections that were greeted successfully.
    pub accepted: Counter,
    /// Connections that ended before a greeting: no valid certificate, wrong protocol, silence.
    pub handshakes_failed: Counter,
    /// Greetings that the application refused.
    pub refused: Counter,
    /// Connections turned away at a limit.
    pub overloaded: Counter,
    /// Connections closed because the peer broke the protocol.
    pub protocol_errors: Counter,
    /// Calls that peers withdrew before they were answered.
    pub calls_cancelled: Counter,
    /// Handlers that failed without an answer.
    pub calls_failed: Counter,
    /// Attempts of this side to connect that failed.
    pub dials_failed: Counter,
}

impl NetMetrics {
    /// Adds the counters to a registry.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("net");
        registry.register("connections", "Connections that are up", self.connections.clone());
        let counters: [(&str, &str, &Counter); 8] = [
            ("accepted", "Connections greeted successfully", &self.accepted),
            (
                "handshakes_failed",
                "Connections that ended before a greeting",
                &self.handshakes_failed,
            ),
            ("refused", "Greetings refused by the application", &self.refused),
            ("overloaded", "Connections turned away at a limit", &self.overloaded),
            (
                "protocol_errors",
                "Connections closed because the peer broke the protocol",
                &self.protocol_errors,
            ),
            ("calls_cancelled", "Calls withdrawn by their callers", &self.calls_cancelled),
            ("calls_failed", "Handlers that failed without an answer", &self.calls_failed),
            ("dials_failed", "Attempts to connect that failed", &self.dials_failed),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
    }
}
