//! Every bound of the network layer, in one place, with what it costs.

use std::time::Duration;

/// The bounds of an endpoint. The two ends tell each other in the greeting what they accept, so they need
/// not agree.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Longest message on a metadata connection. Each connection may buffer one that is half-received.
    pub max_frame_bytes: u32,
    /// Calls that the peer may have under way at once on a metadata connection; one more is a protocol
    /// violation, and well-behaved peers wait instead. Costs a task and a table entry per call.
    pub max_calls: u32,
    /// Bytes of messages waiting to be sent on a metadata connection; calls wait while it is full. A peer
    /// that reads slowly costs this much memory and no more.
    pub max_queued_bytes: u32,
    /// Longest header of a bulk message.
    pub max_header_bytes: u32,
    /// Longest payload of a bulk message.
    pub max_payload_bytes: u32,
    /// Bulk calls that the peer may have under way at once; more wait at the peer.
    pub max_bulk_calls: u32,
    /// Bytes of payload that the requests of one bulk connection may hold in memory; more wait, unread.
    pub max_bulk_bytes: u32,
    /// Connections that a server serves at once; one more is refused.
    pub max_connections: u32,
    /// Handshakes that a server has under way at once. From half of it on, unknown addresses are made
    /// to prove themselves first; beyond it they are refused.
    pub max_handshakes: u32,
    /// Time from the first packet of a connection to the end of its greeting.
    pub hello_timeout: Duration,
    /// Longest greeting. A server's has the cluster map of a volume in it.
    pub max_hello_bytes: u32,
    /// How often an idle connection shows that it is alive.
    pub keep_alive: Duration,
    /// Silence after which a peer is given up. A stopped process, a dead machine and a cut cable are noticed
    /// after this long.
    pub idle_timeout: Duration,
    /// Largest packet that path discovery tries. 8900 fits jumbo frames and costs half the processor
    /// time per byte of 1452; larger ones gain nothing.
    pub max_mtu: u16,
    /// Bytes that the peer may send on one stream before they are read.
    pub stream_window: u32,
    /// Bytes that the peer may send on one connection before they are read: its memory at worst. At least what all
    /// bulk calls together may bring: those that wait unread for `max_bulk_bytes` take it up, and must leave some to
    /// those that are being read.
    pub connection_window: u32,
    /// Size asked for the socket's buffers; the system may grant less.
    pub socket_buffer_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_frame_bytes: 1_310_720,
            max_calls: 1024,
            max_queued_bytes: 4 << 20,
            max_header_bytes: 64 << 10,
            max_payload_bytes: 1 << 20,
            max_bulk_calls: 64,
            max_bulk_bytes: 64 << 20,
            max_connections: 4096,
            max_handshakes: 128,
            hello_timeout: Duration::from_secs(5),
            max_hello_bytes: 1 << 20,
            keep_alive: Duration::from_secs(4),
            idle_timeout: Duration::from_secs(15),
            max_mtu: 8900,
            stream_window: 16 << 20,
            connection_window: 72 << 20,
            socket_buffer_bytes: 4 << 20,
        }
    }
}

impl Limits {
    /// Whether the bounds fit together.
    ///
    /// # Errors
    /// Which do not, with their values.
    pub(super) fn check(&self) -> Result<(), String> {
        let call = u64::from(self.max_payload_bytes) + u64::from(self.max_header_bytes);
        let calls = call.saturating_mul(self.max_bulk_calls.into());
        if calls > u64::from(self.connection_window) {
            return Err(format!(
                "{} bulk calls of {call} bytes do not fit into a connection's window of {} bytes",
                self.max_bulk_calls, self.connection_window
            ));
        }
        if self.max_payload_bytes > self.max_bulk_bytes {
            return Err(format!(
                "a payload of {} bytes does not fit into the {} bytes for bulk requests",
                self.max_payload_bytes, self.max_bulk_bytes
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::data::MAX_PAYLOAD;

    #[test]
    fn calls_that_wait_for_memory_leave_room_for_those_that_have_it() {
        let limits = Limits::default();
        assert_eq!(limits.check(), Ok(()));
        assert_eq!(u64::from(limits.max_payload_bytes), MAX_PAYLOAD);
        let large = Limits { max_payload_bytes: 8 << 20, ..Limits::default() };
        assert!(large.check().is_err_and(|e| e.contains("window")));
        let poor = Limits { max_bulk_bytes: 1000, ..Limits::default() };
        assert!(poor.check().is_err_and(|e| e.contains("1000 bytes")));
    }
}
