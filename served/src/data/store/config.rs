//! The store's settings, with their defaults in one place.

use super::error::StoreError;
use super::format::MAX_CHUNK_BYTES;

/// Settings of a [`SegmentStore`](super::SegmentStore). None of them is part of the disk format: all may change
/// between one opening and the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// A segment file is closed when it would grow beyond this. Larger segments mean fewer files; smaller ones mean
    /// shorter reclamation. At most 2 GiB.
    pub segment_bytes: u64,
    /// Free disk space kept back from writes, so that deletes and reclamation always have room to work. Should be
    /// two segments or more.
    pub reserve_bytes: u64,
    /// The most that the segment files together may take; `None`: what the file system has.
    pub capacity_limit_bytes: Option<u64>,
    /// No chunk reaches beyond this offset. At most 64 MiB.
    pub max_chunk_bytes: u64,
    /// In a MiB of a chunk that is split into more extents than this, short ones that are neighbours are rewritten in one piece. Each extent
    /// costs 24 bytes of memory, each rewrite up to a MiB of writing. By default as many as it has blocks: pages that are written one by
    /// one, as databases do, are never joined, and take 6 KiB of memory for each MiB, or 24 in a full store that writes over what is dead. At least 12.
    pub max_extents_per_mib: usize,
    /// A segment is worth reclaiming when at least this share of it is dead. Lower saves disk space and costs more copying.
    pub reclaim_dead_percent: u8,
    /// The same when writes find the disk full.
    pub reclaim_dead_percent_when_full: u8,
    /// One step of reclamation or scrubbing handles about this many bytes.
    pub step_bytes: u64,
    /// A new index snapshot is due after this much was appended; it bounds what recovery has to read.
    pub checkpoint_bytes: u64,
    /// Records of at least so many bytes have them at whole pages of the file, where a block is read and verified at the least cost. Each of
    /// them costs up to 4 KiB of the disk.
    pub paged_bytes: u32,
    /// Memory for the checksums of such records, 1 KiB per MiB. Of a record whose checksums are not in it they are read first.
    pub checksum_cache_bytes: usize,
    /// Segment files kept open for reading.
    pub max_open_segments: usize,
    /// Closed segments that may wait for a flush before a writer has to help with it. Bounds what a power failure loses
    /// and how much unwritten data the kernel holds.
    pub max_unflushed_segments: usize,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            reserve_bytes: 256 << 20,
            capacity_limit_bytes: None,
            max_chunk_bytes: 4 << 20,
            max_extents_per_mib: 256,
            reclaim_dead_percent: 25,
            reclaim_dead_percent_when_full: 3,
            step_bytes: 8 << 20,
            checkpoint_bytes: 1 << 30,
            paged_bytes: 512 << 10,
            checksum_cache_bytes: 16 << 20,
            max_open_segments: 256,
            max_unflushed_segments: 4,
        }
    }
}

impl StoreConfig {
    /// Checks the settings against each other and against the format's limits.
    pub fn validate(&self) -> Result<(), StoreError> {
        let fail = |text: String| Err(StoreError::Config(text));
        if !(16 << 10..=2 << 30).contains(&self.segment_bytes) {
            return fail(format!(
                "segment_bytes {} is not within 16 KiB..=2 GiB",
                self.segment_bytes
            ));
        }
        if !(1..=MAX_CHUNK_BYTES).contains(&self.max_chunk_bytes) {
            return fail(format!(
                "max_chunk_bytes {} is not within 1..={MAX_CHUNK_BYTES}",
                self.max_chunk_bytes
            ));
        }
        if self.max_extents_per_mib < 12 {
            return fail(format!(
                "max_extents_per_mib {} is less than 12",
                self.max_extents_per_mib
            ));
        }
        if !(1..=100).contains(&self.reclaim_dead_percent)
            || !(1..=self.reclaim_dead_percent).contains(&self.reclaim_dead_percent_when_full)
        {
            return fail(format!(
                "reclaim_dead_percent {} and reclaim_dead_percent_when_full {} are not within 1..=100 in falling order",
                self.reclaim_dead_percent, self.reclaim_dead_percent_when_full
            ));
        }
        if self.step_bytes == 0 || self.max_open_segments == 0 || self.max_unflushed_segments == 0 {
            return fail(
                "step_bytes, max_open_segments and max_unflushed_segments must not be 0".into(),
            );
        }
        Ok(())
    }
}
