//! Tests of the store as a whole.

mod away;
mod codecs;
mod faults;
mod fixture;
mod holes;
mod lost;
mod model;
mod operations;
mod pages;
mod rot;
mod slots;
mod stress;
mod versions;

use std::path::Path;
use std::sync::Arc;

use super::disk::sim::SimDisk;
use super::format::StoreId;
use super::{ChunkKey, ChunkVersion, RecoveryReport, SegmentStore, StoreConfig, StoreError};

pub(super) const KIB: u64 = 1 << 10;

/// Small segments, so that a short test fills many.
pub(super) fn small() -> StoreConfig {
    StoreConfig {
        segment_bytes: 32 * KIB,
        reserve_bytes: 0,
        max_chunk_bytes: 64 * KIB,
        max_extents_per_mib: 12,
        step_bytes: 16 * KIB,
        checkpoint_bytes: 256 * KIB,
        // Half of the longer records have checksums in between.
        paged_bytes: 10_000,
        // Of two or three records.
        checksum_cache_bytes: 300,
        max_open_segments: 3,
        ..StoreConfig::default()
    }
}

pub(super) fn try_open(
    disk: &SimDisk,
    config: StoreConfig,
) -> Result<(SegmentStore, RecoveryReport), StoreError> {
    SegmentStore::open_on(
        Arc::new(disk.clone()),
        Path::new("sim"),
        config,
        StoreId(*b"a test's store 1"),
        &|_| Ok(()),
    )
}

pub(super) fn open(disk: &SimDisk) -> SegmentStore {
    try_open(disk, small()).unwrap().0
}

/// For what is not about versions.
pub(super) const V0: ChunkVersion = ChunkVersion::UNKNOWN;

pub(super) fn key(ino: u64, index: u64) -> ChunkKey {
    ChunkKey { ino, generation: 1, index }
}

pub(super) fn assert_clean(disk: &SimDisk) {
    let report = super::check::check_disk(disk, Path::new("sim")).unwrap();
    assert!(report.is_clean(), "{report:?}");
}

/// The log alone gives the same index, with the same versions, and says them at the same places.
pub(super) fn assert_rebuilds(store: &SegmentStore, disk: &SimDisk) {
    let rebuilt = super::recover::rebuild(disk, store.id(), store.log.durable()).unwrap();
    let state = super::sync::read(&store.state);
    let of = |state: &super::state::State| {
        let chunks = state.index.iter().map(|(key, chunk)| (key, chunk.clone()));
        let normal = chunks.map(|(key, mut chunk)| {
            chunk.extents.normalise();
            (key, chunk)
        });
        normal.collect::<Vec<_>>()
    };
    assert_eq!(of(&state), of(&rebuilt.state));
    for (id, info) in &state.segments {
        let pinned = rebuilt.state.segments.get(id).map_or(0, |info| info.pinned);
        assert_eq!(info.pinned, pinned, "segment {id}");
        let aways = rebuilt.state.segments.get(id).map_or_else(Default::default, |info| info.aways);
        assert_eq!(info.aways, aways, "segment {id}");
        let of = |info: &super::state::SegmentInfo| (info.slots, info.lent);
        let slots = rebuilt.state.segments.get(id).map_or_else(Default::default, of);
        assert_eq!(of(info), slots, "segment {id}");
    }
    assert_eq!(state.slots, rebuilt.state.slots);
}

/// Reclaims until there is nothing left to reclaim.
pub(super) fn reclaim_all(store: &SegmentStore) {
    for _ in 0..10_000 {
        if store.reclaim_step().unwrap().idle {
            return;
        }
    }
    panic!("reclamation does not end");
}
