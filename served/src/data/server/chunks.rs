//! The store's operations as calls want them: by chunk or by range of a file, and bounded.

use std::sync::Arc;

use netfs_common::id::ChunkId;
use netfs_common::wire::data::Span;

use crate::data::store::{ChunkKey, ChunkVersion, SegmentStore, StoreError};

/// Chunks looked at in one go. It bounds for how long the index is held.
const STEP: usize = 256;
/// Chunks looked at, or punched, for one answer.
const MAX_VISITED: usize = 16 * STEP;
/// The sizes of chunks that a file may have, as powers of two.
const CHUNK_BITS: std::ops::RangeInclusive<u8> = 12..=31;

/// A part of a file's answer: what it says, and how far it goes.
pub(super) type Upto<T> = (T, u64);

/// The chunks of a store.
#[derive(Debug)]
pub(super) struct Chunks {
    store: Arc<SegmentStore>,
    max_chunk: u64,
}

impl Chunks {
    pub(super) fn new(store: Arc<SegmentStore>, max_chunk: u64) -> Chunks {
        Chunks { store, max_chunk }
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
        self.store.write(key(chunk), offset, data, ChunkVersion::UNKNOWN)
    }

    pub(super) fn read(
        &self,
        chunk: ChunkId,
        offset: u64,
        len: u64,
    ) -> Result<Vec<u8>, StoreError> {
        self.store.read(key(chunk), offset, len)
    }

    /// As [`Chunks::read`], if that takes no waiting.
    pub(super) fn read_now(
        &self,
        chunk: ChunkId,
        offset: u64,
        len: u64,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        self.store.read_now(key(chunk), offset, len)
    }

    pub(super) fn punch(&self, chunk: ChunkId, offset: u64, len: u64) -> Result<i64, StoreError> {
        let len = match len {
            u64::MAX => self.max_chunk.saturating_sub(offset),
            len => len,
        };
        // Beyond the largest chunk there is nothing to punch, but the caller is confused.
        if offset > self.max_chunk {
            return Err(StoreError::OutOfRange { offset, len, max: self.max_chunk });
        }
        self.store.punch(key(chunk), offset, len, ChunkVersion::UNKNOWN)
    }

    /// Punches what there is in a range, chunk by chunk, and tells how far it came.
    pub(super) fn punch_span(&self, span: Span) -> Result<Upto<i64>, StoreError> {
        let range = Range::of(span)?;
        let (mut grown, mut visited, mut next) = (0, 0, range.first);
        while visited < MAX_VISITED {
            let part = self.store.extents_of(range.key(next), range.last, STEP);
            for chunk in &part {
                let start = span.from.saturating_sub(range.start(chunk.index));
                let end = (span.to - range.start(chunk.index)).min(self.max_chunk);
                if start < end {
                    let key = range.key(chunk.index);
                    grown += self.store.punch(key, start, end - start, ChunkVersion::UNKNOWN)?;
                }
            }
            match part.last() {
                Some(last) if part.len() == STEP && last.index < range.last => {
                    next = last.index + 1
                }
                _ => return Ok((grown, span.to)),
            }
            visited += part.len();
        }
        Ok((grown, range.start(next)))
    }

    pub(super) fn delete(&self, first: ChunkId) -> Result<i64, StoreError> {
        self.store.delete_chunks(first.ino.0, first.generation, first.index)
    }

    pub(super) fn copy(
        &self,
        (source, source_offset): (ChunkId, u64),
        (target, target_offset): (ChunkId, u64),
        len: u64,
    ) -> Result<i64, StoreError> {
        self.store.copy(
            key(source),
            source_offset,
            key(target),
            target_offset,
            len,
            ChunkVersion::UNKNOWN,
        )
    }

    /// Where a file has data within a range: at most `limit` ranges, and how far that is all.
    pub(super) fn extents(
        &self,
        span: Span,
        limit: usize,
    ) -> Result<Upto<Vec<(u64, u64)>>, StoreError> {
        let range = Range::of(span)?;
        let mut out: Vec<(u64, u64)> = Vec::new();
        let (mut visited, mut next) = (0, range.first);
        while visited < MAX_VISITED {
            let part = self.store.extents_of(range.key(next), range.last, STEP);
            for chunk in &part {
                let start = range.start(chunk.index);
                for (offset, len) in &chunk.ranges {
                    let from = start.saturating_add(*offset).max(span.from);
                    let to = start.saturating_add((offset + len).min(range.size)).min(span.to);
                    if from >= to {
                        continue;
                    }
                    let told = out.len();
                    match out.last_mut() {
                        Some((_, end)) if *end == from => *end = to,
                        // Up to here all is told.
                        _ if told == limit => return Ok((out, from)),
                        _ => out.push((from, to)),
                    }
                }
            }
            match part.last() {
                Some(last) if part.len() == STEP && last.index < range.last => {
                    next = last.index + 1
                }
                _ => return Ok((out, span.to)),
            }
            visited += part.len();
        }
        Ok((out, range.start(next)))
    }
}

/// A range of a file in chunks.
struct Range {
    span: Span,
    first: u64,
    last: u64,
    /// Of a chunk.
    size: u64,
}

impl Range {
    /// Refuses what nobody can mean.
    fn of(span: Span) -> Result<Range, StoreError> {
        if span.from >= span.to || !CHUNK_BITS.contains(&span.chunk_bits) {
            let len = span.to.saturating_sub(span.from);
            return Err(StoreError::OutOfRange { offset: span.from, len, max: u64::MAX });
        }
        let (first, last) = (span.from >> span.chunk_bits, (span.to - 1) >> span.chunk_bits);
        Ok(Range { span, first, last, size: 1 << span.chunk_bits })
    }

    fn key(&self, index: u64) -> ChunkKey {
        ChunkKey { ino: self.span.ino.0, generation: self.span.generation, index }
    }

    /// Where a chunk of the range begins in the file.
    fn start(&self, index: u64) -> u64 {
        index << self.span.chunk_bits
    }
}

fn key(chunk: ChunkId) -> ChunkKey {
    ChunkKey { ino: chunk.ino.0, generation: chunk.generation, index: chunk.index }
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

    fn span(ino: u64, from: u64, to: u64) -> Span {
        Span { ino: Ino(ino), generation: 0, chunk_bits: 22, from, to }
    }

    /// Everything in a range, answer by answer, and how many there were.
    fn all(chunks: &Chunks, whole: Span, limit: usize) -> (Vec<(u64, u64)>, usize) {
        let (mut out, mut answers, mut from) = (Vec::new(), 0, whole.from);
        while from < whole.to {
            let (part, upto) = chunks.extents(Span { from, ..whole }, limit).unwrap();
            assert!(part.len() <= limit && upto > from && upto <= whole.to);
            out.extend(part);
            (answers, from) = (answers + 1, upto);
        }
        (out, answers)
    }

    #[test]
    fn data_is_found_across_chunks_whatever_the_length_of_the_holes() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = SegmentStore::open(dir.path(), StoreConfig::default()).unwrap();
        let chunks = Chunks::new(Arc::new(store), 4 << 20);
        let (chunk_size, end) = (4u64 << 20, 1u64 << 63);
        let last = (end - 1) >> 22;
        chunks.write(chunk(1, 0), 100, &[[1; 100]]).unwrap();
        for index in 7..9 {
            chunks.write(chunk(1, index), 0, &[vec![1; 4 << 20]]).unwrap();
        }
        chunks.write(chunk(1, last), chunk_size - 1, &[[1]]).unwrap();
        chunks.write(chunk(2, 3), 0, &[[1; 100]]).unwrap();
        let expected = vec![(100, 200), (7 * chunk_size, 9 * chunk_size), (end - 1, end)];
        assert_eq!(all(&chunks, span(1, 0, end), 16), (expected.clone(), 1));
        assert_eq!(all(&chunks, span(1, 0, end), 1).0, expected);
        assert_eq!(
            all(&chunks, span(1, 150, 8 * chunk_size + 1), 9).0,
            [(150, 200), (7 * chunk_size, 8 * chunk_size + 1),]
        );
        assert!(chunks.extents(span(1, 5, 5), 1).is_err());
        assert!(chunks.extents(Span { chunk_bits: 64, ..span(1, 0, 5) }, 1).is_err());

        let most = (150, 9 * chunk_size);
        let freed = 50 + 2 * chunk_size as i64;
        assert_eq!(chunks.punch_span(span(1, most.0, most.1)).unwrap(), (-freed, most.1));
        assert_eq!(chunks.punch_span(span(1, most.0, most.1)).unwrap(), (0, most.1));
        assert_eq!(all(&chunks, span(1, 0, end), 16).0, [(100, 150), (end - 1, end)]);
        assert_eq!(chunks.punch_span(span(1, 0, end)).unwrap(), (-51, end));
        assert_eq!(chunks.extents(span(2, 0, end), 9).unwrap().0.len(), 1);
    }

    #[test]
    fn an_answer_about_very_many_chunks_comes_in_parts() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = SegmentStore::open(dir.path(), StoreConfig::default()).unwrap();
        let chunks = Chunks::new(Arc::new(store), 4 << 20);
        let count = MAX_VISITED as u64 + 10;
        for index in 0..count {
            chunks.write(chunk(1, index * 3), 0, &[[1; 8]]).unwrap();
        }
        let whole = span(1, 0, 1 << 50);
        let (found, answers) = all(&chunks, whole, usize::MAX);
        assert_eq!((found.len() as u64, answers), (count, 2));
        let (freed, upto) = chunks.punch_span(whole).unwrap();
        assert_eq!(freed, -8 * MAX_VISITED as i64);
        let rest = chunks.punch_span(Span { from: upto, ..whole }).unwrap();
        assert_eq!(rest, (-80, whole.to));
        assert_eq!(chunks.store().usage().unwrap().chunks, 0);
    }
}
