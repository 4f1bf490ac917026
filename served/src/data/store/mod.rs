//! The segment store: chunks on a local disk, in append-only segments of checksummed records.
//!
//! - Every change is one record, appended to **the log** ([`format`](self) of the records: `format.rs`; appending: `log.rs`).
//! - **The index** says where each byte of each chunk is (`index.rs`, `extent.rs`). It is in memory, and can always be rebuilt
//!   from the log (`recover.rs`); a snapshot of it makes that quick (`snapshot.rs`).
//! - A range that was deleted has a **tombstone** in the log for as long as an older segment may hold what it hides.
//! - Space is won back by making holes in the files of segments where records are dead (`holes.rs`), by writing over what is dead (`slots.rs`), or by moving what
//!   lives out of the emptiest segment (`reclaim.rs`); all say why that is safe. Which of them is decided by what they cost (`ways.rs`).
//! - Every chunk has the **version** of the last change applied to it, by which replicas tell whether they are equal (`chunk.rs`).
//! - Chunks that nobody uses may be **away**: the index says where they have data, and an object of a bucket has it (`away.rs`).
//! - Long records have their data at whole pages of the file, and their checksums apart (`pages.rs`).
//! - Nothing is returned unverified (`read.rs`), and `scrub.rs` looks for damage before somebody needs the data.
//! - All file operations go through a small trait (`disk/`), so that tests can cut the power at any of them.
//!
//! The store is synchronous and may be called from any number of threads. After a failed write or flush of the disk
//! it refuses every further change: nobody knows then what the disk holds, and only a restart finds out.
//!
//! Memory: an extent of 24 bytes per record that lives, and 50 to 120 bytes per chunk, its version included. For data that was
//! written sequentially in records of a MiB to chunks of 4 MiB that is some 55 bytes per MiB (`scripts/bench-store` counts
//! them); in records of 64 KiB about 400, and written page by page 6 KiB. What was
//! written over dead records takes up to 70 bytes more for each record: 1.5 KiB per MiB in records of 64 KiB, 24 KiB page by page.

mod away;
mod body;
mod check;
mod chunk;
mod config;
mod disk;
mod error;
mod extent;
mod format;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod holes;
mod index;
mod key;
mod log;
mod mend;
mod packed;
mod pages;
mod payload;
mod read;
mod reclaim;
mod recover;
mod round;
mod scan;
mod scrub;
mod segment_store;
mod slots;
mod snapshot;
mod state;
mod sync;
mod ways;
mod write;

#[cfg(test)]
mod tests;

pub use away::AwayParts;
pub use check::{CheckReport, StoreView};
pub use config::StoreConfig;
pub use error::StoreError;
pub use format::{FORMAT_VERSION, MAX_CHUNK_BYTES};
pub use key::{ChunkKey, ChunkVersion};
pub use mend::Patch;
pub use reclaim::Reclaimed;
pub use recover::{CutTail, Damage, RecoveryReport};
pub use scrub::{BadRange, ScrubCursor, ScrubStep};
pub use segment_store::{ChunkInfo, ChunkRanges, SegmentStore, Usage};
pub use ways::Won;
