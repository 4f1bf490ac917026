//! The store's operations as calls want them: bounds checked, and with the growth of the data.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use netfs_common::id::ChunkId;

use crate::data::store::{ChunkKey, SegmentStore, StoreError};

/// Chunks that can be changed at the same time, at most. A power of two.
const STRIPES: usize = 256;
/// Chunks looked at in one go when a file is deleted.
const LIST_STEP: usize = 1024;
/// Extents in one answer; what is more is joined across the smallest holes.
const MAX_EXTENTS: usize = 4096;

/// The chunks of a store.
///
/// A change answers by how much the allocated data grew. That is measured before and after under a
/// lock of the chunk, so that concurrent changes of one chunk are not counted twice.
///
/// Locks, in the order in which they are taken: `files`, one of `stripes` (for a copy only that of
/// the target), the store's own.
#[derive(Debug)]
pub(super) struct Chunks {
    store: Arc<SegmentStore>,
    max_chunk: u64,
    /// Held exclusively by what changes any number of chunks.
    files: RwLock<()>,
    stripes: Vec<Mutex<()>>,
}

impl Chunks {
    pub(super) fn new(store: Arc<SegmentStore>, max_chunk: u64) -> Chunks {
        let stripes = (0..STRIPES).map(|_| Mutex::new(())).collect();
        Chunks { store, max_chunk, files: RwLock::new(()), stripes }
    }

    pub(super) fn store(&self) -> &SegmentStore {
        &self.store
    }

    pub(super) fn write<B: AsRef<[u8]>>(
        &self,
        chunk: ChunkId,
        offset: u64,
        data: &[B],
    ) -> Result<i64, StoreError> {
        let key = key(chunk);
        self.changing(key, || self.store.write(key, offset, data))
    }

    pub(super) fn read(
        &self,
        chunk: ChunkId,
        offset: u64,
        len: u64,
    ) -> Result<Vec<u8>, StoreError> {
        self.store.read(key(chunk), offset, len)
    }

    pub(super) fn punch(&self, chunk: ChunkId, offset: u64, len: u64) -> Result<i64, StoreError> {
        let key = key(chunk);
        let len = match len {
            u64::MAX => self.max_chunk.saturating_sub(offset),
            len => len,
        };
        // Beyond the largest chunk there is nothing to punch, but the caller is confused.
        if offset > self.max_chunk {
            return Err(StoreError::OutOfRange { offset, len, max: self.max_chunk });
        }
        self.changing(key, || self.store.punch(key, offset, len))
    }

    pub(super) fn delete(&self, first: ChunkId) -> Result<i64, StoreError> {
        let _alone = self.files.write().unwrap_or_else(PoisonError::into_inner);
        let mut freed = 0;
        let mut from = key(first);
        loop {
            let part = self.store.list(from, LIST_STEP);
            let of_file = part.iter().take_while(|info| {
                info.key.ino == from.ino && info.key.generation == from.generation
            });
            let mut last = None;
            for info in of_file {
                freed += info.allocated_bytes;
                last = Some(info.key);
            }
            let Some(last) = last else { break };
            let whole = part.len() == LIST_STEP && part.last().is_some_and(|info| info.key == last);
            match last.index.checked_add(1) {
                Some(index) if whole => from = ChunkKey { index, ..last },
                _ => break,
            }
        }
        self.store.delete_chunks(first.ino.0, first.generation, first.index)?;
        Ok(-signed(freed))
    }

    pub(super) fn copy(
        &self,
        (source, source_offset): (ChunkId, u64),
        (target, target_offset): (ChunkId, u64),
        len: u64,
    ) -> Result<i64, StoreError> {
        let to = key(target);
        self.changing(to, || self.store.copy(key(source), source_offset, to, target_offset, len))
    }

    /// Where a chunk has data; of very scattered chunks with small holes left out, which `lseek(2)` allows.
    pub(super) fn extents(&self, chunk: ChunkId) -> Vec<(u64, u64)> {
        let mut extents = self.store.extents(key(chunk));
        let mut gap = 4096;
        while extents.len() > MAX_EXTENTS {
            extents = join(extents, gap);
            gap *= 2;
        }
        extents
    }

    fn changing(
        &self,
        key: ChunkKey,
        change: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<i64, StoreError> {
        let _shared = self.shared();
        let _chunk = self.stripe(key);
        let before = self.store.allocated_bytes(key);
        change()?;
        Ok(signed(self.store.allocated_bytes(key)) - signed(before))
    }

    fn shared(&self) -> RwLockReadGuard<'_, ()> {
        self.files.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn stripe(&self, key: ChunkKey) -> MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let stripe = &self.stripes[hasher.finish() as usize % STRIPES];
        stripe.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(chunk: ChunkId) -> ChunkKey {
    ChunkKey { ino: chunk.ino.0, generation: chunk.generation, index: chunk.index }
}

/// Sizes on one disk are far below the limit.
fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Joins ranges with holes below `gap` between them.
fn join(ranges: Vec<(u64, u64)>, gap: u64) -> Vec<(u64, u64)> {
    let mut out: Vec<(u64, u64)> = Vec::new();
    for (offset, len) in ranges {
        match out.last_mut() {
            Some((start, before)) if offset - (*start + *before) < gap => {
                *before = offset + len - *start;
            }
            _ => out.push((offset, len)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use netfs_common::id::Ino;

    use super::*;
    use crate::data::store::StoreConfig;

    fn chunk(ino: u64, index: u64) -> ChunkId {
        ChunkId { ino: Ino(ino), generation: 0, index }
    }

    #[test]
    fn every_change_answers_by_how_much_the_data_grew() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = SegmentStore::open(dir.path(), StoreConfig::default()).unwrap();
        let chunks = Chunks::new(Arc::new(store), 4 << 20);
        let data = vec![1u8; 10_000];
        assert_eq!(chunks.write(chunk(1, 0), 0, &[&data]).unwrap(), 10_000);
        assert_eq!(chunks.write(chunk(1, 0), 5_000, &[&data]).unwrap(), 5_000);
        assert_eq!(chunks.write(chunk(1, 9), 0, &[&data]).unwrap(), 10_000);
        assert_eq!(chunks.write(chunk(2, 0), 0, &[&data]).unwrap(), 10_000);
        assert_eq!(chunks.copy((chunk(1, 0), 100), (chunk(2, 1), 0), 200).unwrap(), 200);
        assert_eq!(chunks.punch(chunk(1, 0), 14_000, u64::MAX).unwrap(), -1_000);
        assert_eq!(chunks.delete(chunk(1, 0)).unwrap(), -24_000);
        assert_eq!(chunks.delete(chunk(1, 0)).unwrap(), 0);
        assert_eq!(chunks.read(chunk(2, 0), 0, 10_000).unwrap(), data);
        assert!(chunks.punch(chunk(2, 0), 5 << 20, u64::MAX).is_err());
    }

    #[test]
    fn scattered_ranges_are_joined_across_small_holes_only() {
        let joined = join(vec![(0, 10), (20, 10), (5000, 1)], 100);
        assert_eq!(joined, [(0, 30), (5000, 1)]);
    }
}
