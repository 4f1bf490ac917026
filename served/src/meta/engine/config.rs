//! How a volume's metadata is kept.

use std::num::NonZeroUsize;

use netfs_common::attr::Timestamp;

use crate::meta::command::Settings;
use crate::meta::kv::FjallConfig;
use crate::meta::log::LogConfig;

/// How a volume's metadata is kept. None of it changes what is stored.
#[derive(Clone, Copy, Debug)]
pub struct EngineConfig {
    /// The log.
    pub log: LogConfig,
    /// Memory of the store.
    pub store: FjallConfig,
    /// How many inodes and entries stay in memory; each takes up about 300 bytes.
    pub cache_values: NonZeroUsize,
    /// Changes that need room fail with `ENOSPC` when the disk has less than this, in bytes;
    /// removals and the store's own upkeep still have it.
    pub reserve_bytes: u64,
    /// A checkpoint is due when the log is this long, in bytes. It bounds the time that a
    /// restart takes.
    pub checkpoint_log_bytes: u64,
    /// The volume to make in an empty or missing folder; without it that is an error.
    pub new_volume: Option<NewVolume>,
}

/// A volume that is to be made.
#[derive(Clone, Copy, Debug)]
pub struct NewVolume {
    /// A random number that identifies it.
    pub id: u64,
    /// What never changes.
    pub settings: Settings,
    /// The present time.
    pub time: Timestamp,
}

impl Default for EngineConfig {
    fn default() -> Self {
        EngineConfig {
            log: LogConfig::default(),
            store: FjallConfig::default(),
            cache_values: NonZeroUsize::MIN.saturating_add((1 << 16) - 1),
            reserve_bytes: 128 << 20,
            checkpoint_log_bytes: 32 << 20,
            new_volume: None,
        }
    }
}
