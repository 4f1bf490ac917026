//! Configuration: a TOML file, then the environment, then flags; the later wins.
//!
//! - **File**: sections and keys as [`ServedConfig`] and [`ClientConfig`] define them.
//! - **Environment**: `NETFS_SECTION_KEY`, for example `NETFS_META_FLUSH_INTERVAL_MS=500`.
//! - **Flags**: `section.key=value`, for example `meta.flush_interval_ms=500`.
//!
//! A key that nobody knows and a value of the wrong type are refused with a line that says where: a setting
//! that is silently ignored is worse than a daemon that does not start.
//!
//! Every setting is declared once, with its documentation and default; the annotated file that [`render`] makes
//! comes from the same declaration.

mod client;
mod load;
mod log;
mod served;
mod settings;
mod shared;
mod size;

pub use client::{CacheConfig, ClientConfig, MountConfig, OutagePolicy};
pub use load::Sources;
pub use log::{LogConfig, LogFormat};
pub use served::{
    DataConfig, HttpConfig, MetaConfig, ServedConfig, SyncPolicy, TierConfig, VolumeConfig,
};
pub use settings::{Field, FieldKind, Settings, render};
pub use shared::{NetConfig, TlsConfig};
pub use size::ByteSize;

use std::path::PathBuf;

/// What can be wrong with a configuration. Each message is one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Something in the file.
    #[error("{}:{line}: {key}: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The offending key, or what is there instead.
        key: String,
        /// What is wrong with it.
        what: String,
    },
    /// Something in the environment or on the command line.
    #[error("{origin}: {what}")]
    Override {
        /// The variable or flag.
        origin: String,
        /// What is wrong with it.
        what: String,
    },
    /// Settings that cannot both be.
    #[error("configuration: {0}")]
    Conflict(String),
}

impl ConfigError {
    /// Escapes what would not stay on one line: parts of what was written there are in most messages.
    fn on_one_line(self) -> Self {
        let plain = |text: String| match text.contains(char::is_control) {
            true => text.escape_debug().to_string(),
            false => text,
        };
        match self {
            Self::Read { .. } => self,
            Self::File { path, line, key, what } => {
                Self::File { path, line, key: plain(key), what: plain(what) }
            }
            Self::Override { origin, what } => {
                Self::Override { origin: plain(origin), what: plain(what) }
            }
            Self::Conflict(what) => Self::Conflict(plain(what)),
        }
    }
}

/// A configuration that can be loaded.
pub trait Config: Settings + serde::de::DeserializeOwned {
    /// Checks what no single setting can tell. The message names all values involved.
    fn validate(&self) -> Result<(), String>;
}
