//! Log output: one subscriber for the process.

use std::fs::OpenOptions;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::config::{LogConfig, LogFormat};

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TelemetryError {
    /// The level is none.
    #[error("log.level = \"{level}\": {why}")]
    Level {
        /// As configured.
        level: String,
        /// What is wrong with it.
        why: String,
    },
    /// The file cannot be opened.
    #[error("cannot open log file {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Somebody was first.
    #[error("logging is set up already")]
    Twice,
}

/// Sets up logging for the process; once.
pub fn init(config: &LogConfig) -> Result<(), TelemetryError> {
    let filter = EnvFilter::try_new(&config.level)
        .map_err(|e| TelemetryError::Level { level: config.level.clone(), why: e.to_string() })?;
    let (writer, colours) = match &config.file {
        None => (BoxMakeWriter::new(std::io::stderr), std::io::stderr().is_terminal()),
        Some(path) => {
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .map_err(|source| TelemetryError::Open { path: path.clone(), source })?;
            (BoxMakeWriter::new(Mutex::new(file)), false)
        }
    };
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(colours);
    let result = match config.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    result.map_err(|_| TelemetryError::Twice)
}
