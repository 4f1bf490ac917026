//! Settings that servers and clients have in common.

use std::path::PathBuf;
use std::time::Duration;

use super::ByteSize;
use super::settings::settings;
use crate::net::Limits;
use crate::tls::{Identity, TlsError};

settings! {
    /// Where the certificate of this node is.
    pub struct TlsConfig {
        /// Certificate of the cluster's authority. Whoever it signed is trusted, nobody else is.
        pub ca: PathBuf = "/etc/netfs/tls/ca.pem".into();
        /// Certificate of this node, as `netfs pki issue` makes it.
        pub cert: PathBuf = "/etc/netfs/tls/cert.pem".into();
        /// Its private key; the file must be readable by its owner only (mode 0600).
        pub key: PathBuf = "/etc/netfs/tls/key.pem".into();
    }
}

impl TlsConfig {
    /// Loads and checks the files.
    pub fn load(&self) -> Result<Identity, TlsError> {
        Identity::load(&self.ca, &self.cert, &self.key)
    }
}

settings! {
    /// The bounds of the network layer.
    pub struct NetConfig {
        /// Silence after which a peer is given up, in milliseconds. Shorter notices failures sooner and
        /// mistakes a busy peer for a dead one more often.
        pub idle_timeout_ms: u64 = 15_000;
        /// How often an idle connection shows that it is alive, in milliseconds; less than a third of
        /// idle_timeout_ms, so that two losses do no harm. Costs two small packets each time.
        pub keep_alive_ms: u64 = 4_000;
        /// Largest packet that is tried, in bytes. The path's own limit is found by probing; 8900 fits jumbo
        /// frames and costs half the processor time per byte of 1452.
        pub max_mtu: u16 = 8_900;
        /// Connections that a server serves at once; more are refused. Each costs some 100 KiB when idle.
        pub max_connections: u32 = 4_096;
        /// Calls of one peer under way at once; more wait at the peer. Each costs a few KiB.
        pub max_calls: u32 = 1_024;
        /// Bytes of bulk requests of one connection in memory at once; more wait unread.
        pub max_bulk_bytes: ByteSize = ByteSize::mib(64);
    }
}

impl NetConfig {
    /// As the network layer wants it.
    pub fn limits(&self) -> Limits {
        Limits {
            idle_timeout: Duration::from_millis(self.idle_timeout_ms),
            keep_alive: Duration::from_millis(self.keep_alive_ms),
            max_mtu: self.max_mtu,
            max_connections: self.max_connections,
            max_calls: self.max_calls,
            max_bulk_bytes: u32::try_from(self.max_bulk_bytes.0).unwrap_or(u32::MAX),
            ..Limits::default()
        }
    }

    pub(super) fn validate(&self) -> Result<(), String> {
        let Self { idle_timeout_ms: idle, keep_alive_ms: keep, .. } = *self;
        if keep == 0 || keep.saturating_mul(3) > idle {
            return Err(format!(
                "net.keep_alive_ms = {keep} must be positive and at most a third of \
                 net.idle_timeout_ms = {idle}"
            ));
        }
        if !(1200..=16_000).contains(&self.max_mtu) {
            return Err(format!("net.max_mtu = {} is not between 1200 and 16000", self.max_mtu));
        }
        for (key, value) in
            [("net.max_connections", self.max_connections), ("net.max_calls", self.max_calls)]
        {
            if !(1..=1_000_000).contains(&value) {
                return Err(format!("{key} = {value} is not between 1 and 1000000"));
            }
        }
        let (min, max) = (ByteSize::mib(8), ByteSize::gib(2));
        if !(min..=max).contains(&self.max_bulk_bytes) {
            let value = self.max_bulk_bytes;
            return Err(format!("net.max_bulk_bytes = \"{value}\" is not between {min} and {max}"));
        }
        Ok(())
    }
}
