//! Why a volume cannot be served. Each is one line that says what to do where something can be.

use std::io;
use std::path::PathBuf;

use netfs_common::id::LogIndex;

use crate::meta::kv::StoreError;
use crate::meta::log::LogError;

/// Why a volume cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// There is no volume.
    #[error("{} holds no volume", .0.display())]
    Missing(PathBuf),
    /// The folder has something else in it.
    #[error("{} is not a metadata folder: it has files but no FORMAT; choose an empty one", .0.display())]
    Foreign(PathBuf),
    /// The file FORMAT is not what it should be.
    #[error("{}: {what}", path.display())]
    BadFormat {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A later version has written the folder.
    #[error("{} has format {found}, and this version knows formats up to {known}: use a newer version", path.display())]
    Newer {
        /// The folder.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The latest format known here.
        known: u32,
    },
    /// Another process serves the volume.
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// A file or folder cannot be used.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// A command in the log cannot be understood.
    #[error("command {index} in the log cannot be read: {what}")]
    BadCommand {
        /// Its position.
        index: LogIndex,
        /// What is wrong.
        what: String,
    },
    /// The store and the folder belong to different volumes.
    #[error("{} holds the store of another volume", .0.display())]
    WrongVolume(PathBuf),
    /// The volume could not be made.
    #[error("the volume cannot be made: {0}")]
    NotMade(netfs_common::errno::Errno),
    /// A change or flush has failed before.
    #[error("no more changes are taken: {0}")]
    Failed(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
}

impl EngineError {
    pub(super) fn io(path: impl Into<PathBuf>, source: io::Error) -> EngineError {
        EngineError::Io { path: path.into(), source }
    }
}
