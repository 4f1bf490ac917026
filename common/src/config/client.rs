//! The configuration of the client.

use serde::{Deserialize, Serialize};

use super::settings::settings;
use super::{ByteSize, Config, LogConfig, NetConfig, TlsConfig};

/// What programs see while no server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutagePolicy {
    /// Their calls wait; a signal ends the wait.
    Wait,
    /// Their calls fail after a while.
    Error,
}

settings! {
    /// What is kept in memory.
    pub struct CacheConfig {
        /// Written data that the server has not got yet. Writers slow down at half of it and wait at all of it.
        pub dirty_bytes: ByteSize = ByteSize::mib(64);
        /// Data that was read ahead of programs, or is being, of all files together. 0: only the kernel reads ahead.
        pub ahead_bytes: ByteSize = ByteSize::mib(128);
        /// Files and names remembered. Each costs about 500 bytes.
        pub entries: u64 = 100_000;
    }
}

settings! {
    /// How the mount behaves.
    pub struct MountConfig {
        /// How far the kernel reads ahead in a file that is read in sequence, in KiB. More fills a slower
        /// network better and reads more in vain. Needs root.
        pub read_ahead_kb: u32 = 8_192;
        /// Threads that take requests from the kernel. More than two helped nobody in measurements.
        pub threads: u32 = 2;
        /// Requests that the kernel has under way in the background at once.
        pub max_background: u16 = 64;
        /// While no server answers: "wait" as for a disk that is busy, or "error" for ETIMEDOUT after
        /// outage_timeout_ms. Programs seldom expect the latter.
        pub on_outage: OutagePolicy = OutagePolicy::Wait;
        /// With on_outage = "error": how long a call waits, in milliseconds.
        pub outage_timeout_ms: u64 = 60_000;
        /// How long unmounting waits for servers that do not answer, in milliseconds, while they lack
        /// something that was written. After that it is given up, which is said. With nothing to send
        /// unmounting does not wait.
        pub leave_timeout_ms: u64 = 60_000;
    }
}

settings! {
    /// The configuration of `netfs mount`.
    pub struct ClientConfig {
        /// The certificate of this client.
        pub tls: TlsConfig as section = TlsConfig::default();
        /// What is kept in memory.
        pub cache: CacheConfig as section = CacheConfig::default();
        /// How the mount behaves.
        pub mount: MountConfig as section = MountConfig::default();
        /// The bounds of the network layer.
        pub net: NetConfig as section = NetConfig::default();
        /// Logging.
        pub log: LogConfig as section = LogConfig::default();
    }
}

impl Config for ClientConfig {
    fn validate(&self) -> Result<(), String> {
        let Self { cache, mount, net, .. } = self;
        net.validate()?;
        let least = ByteSize::mib(4);
        if cache.dirty_bytes < least {
            return Err(format!("cache.dirty_bytes = \"{}\" is below {least}", cache.dirty_bytes));
        }
        if cache.ahead_bytes.0 > 0 && cache.ahead_bytes < least {
            return Err(format!(
                "cache.ahead_bytes = \"{}\" is below {least}, and not 0",
                cache.ahead_bytes
            ));
        }
        if cache.entries < 1_000 {
            return Err(format!("cache.entries = {} is below 1000", cache.entries));
        }
        if mount.read_ahead_kb > 65_536 {
            return Err(format!("mount.read_ahead_kb = {} is above 65536", mount.read_ahead_kb));
        }
        if !(1..=64).contains(&mount.threads) {
            return Err(format!("mount.threads = {} is not between 1 and 64", mount.threads));
        }
        if mount.max_background == 0 {
            return Err("mount.max_background = 0 would let nothing pass".into());
        }
        if mount.on_outage == OutagePolicy::Error && mount.outage_timeout_ms < 1_000 {
            return Err(format!(
                "mount.outage_timeout_ms = {} is below 1000, with mount.on_outage = \"error\"",
                mount.outage_timeout_ms
            ));
        }
        Ok(())
    }
}
