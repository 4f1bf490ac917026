//! The command log: the truth of which the store is an index.
//!
//! A log is a folder of segments, each named after the first index in it. A segment is a header
//! and records, see [`mod@format`]; indices run on without a gap from segment to segment. Only the
//! last segment is written to, and it is flushed before the next one begins, so whatever is
//! wrong in an earlier one is damage.
//!
//! In the last segment a record that does not check out may be the trace of a power failure:
//! what had not been flushed is there in part, or not at all. Every record says up to where the
//! log was known to be flushed when it was written. So the first bad record is cut off, with all
//! that follows, unless a record after it says that it had been flushed: then it is damage, and
//! nothing is touched.

mod disk;
mod flush;
pub mod format;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod recovery;
mod writer;

#[cfg(test)]
pub(crate) mod faults;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;

use netfs_common::errno::Errno;

pub use disk::{Disk, LogFile, RealDisk};
pub use recovery::{Cut, Recovered, is_whole, recover, scan};
pub use writer::{Log, LogConfig};

/// Why the log does not take or give records.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A call to the disk failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// Records that were on stable storage have changed.
    #[error("{}: damaged at byte {offset}: {what}", path.display())]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where the first bad record begins.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// Records between those that are there are missing.
    #[error("{}: the log begins at {found:x} where {wanted:x} was expected: a segment is missing", path.display())]
    Gap {
        /// The segment after the gap.
        path: PathBuf,
        /// The first index that is missing.
        wanted: u64,
        /// The first index of the segment.
        found: u64,
    },
    /// An earlier write or flush failed, so nothing is certain any more until a restart.
    #[error("the log has failed before and takes no more commands: {0}")]
    Poisoned(String),
    /// No number is left for another record.
    #[error("the log has used up its numbers")]
    Full,
    /// A record would be longer than any command can be.
    #[error("a command of {0} bytes is too long for the log")]
    TooLong(usize),
}

impl LogError {
    fn io(path: impl Into<PathBuf>, source: io::Error) -> LogError {
        LogError::Io { path: path.into(), source }
    }

    /// What a client is told.
    pub fn errno(&self) -> Errno {
        match self {
            LogError::Io { source, .. } => match Errno::from_io(source) {
                full @ (Errno::ENOSPC | Errno::EDQUOT) => full,
                _ => Errno::EIO,
            },
            LogError::TooLong(_) => Errno::E2BIG,
            _ => Errno::EIO,
        }
    }
}
