//! How to log.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::settings::settings;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

settings! {
    /// How to log.
    pub struct LogConfig {
        /// How log lines look: "text" for people, "json" for collectors.
        pub format: LogFormat = LogFormat::Text;
        /// How much to log: "error", "warn", "info", "debug" or "trace", also per module, as in
        /// "info,netfs_common::net=debug". From "debug" on it costs speed.
        pub level: String = "info".into();
        /// File to append to, instead of standard error. It grows until something rotates it.
        pub file: Option<PathBuf> = None, e.g. "\"/var/log/netfs.log\"";
    }
}
