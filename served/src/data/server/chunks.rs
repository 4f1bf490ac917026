//! The store's operations as calls want them: by chunk or by range of a file, and bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use netfs_common::id::{ChunkId, Ino, Version};
use netfs_common::warn_rarely;
use netfs_common::wire::data::Span;

use crate::data::store::{ChunkKey, ChunkVersion, Patch, SegmentStore, StoreError, Usage};

/// Chunks looked at in one go. It bounds for how long the index is held.
const STEP: usize = 256;
/// Chunks looked at, or punched, for one answer.
const MAX_VISITED: usize = 16 * STEP;
/// After so many chunks a list ends: it has to fit into a message's header.
const LISTED: usize = 1024;
/// The sizes of chunks that a file may have, as powers of two.
const CHUNK_BITS: std::ops::RangeInclusive<u8> = 12..=31;

/// A part of a file's answer: what it says, and how far it goes.
pub(super) type Upto<T> = (T, u64);

/// What is kept free, so that no replica runs out of room in the middle of a change that others have stored.
const MARGIN: u64 = 256 << 20;
/// How much room there is, is looked at whenever this part of that was written.
const LOOKS: u64 = 16;

const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The chunks of a store.
#[derive(Debug)]
pub(super) struct Chunks {
    store: Arc<SegmentStore>,
    max_chunk: u64,
    full: AtomicBool,
    /// Written since somebody looked how much room there is.
    unseen: AtomicU64,
    /// When that is so much, somebody looks.
    look_after: AtomicU64,
}

/// Part of a file's chunks, with where they have data, and whether there are more.
pub(super) type Page = (Vec<(ChunkId, Vec<(u64, u64)>)>, Option<ChunkId>);

impl Chunks {
    pub(super) fn new(store: Arc<SegmentStore>, max_chunk: u64) -> Chunks {
        Chunks {
            store,
            max_chunk,
            full: AtomicBool::new(false),
            unseen: AtomicU64::new(0),
            look_after: AtomicU64::new(0),
        }
    }

    pub(super) fn store(&self) -> &SegmentStore {
        &self.store
    }

    /// Whether a range can be one of a chunk.
    pub(super) fn fits(&self, offset: u64, len: u64) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.max_chunk)
    }

    /// There is hardly any room left, as far as was seen lately.
    pub(super) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// The store's figures of now.
    pub(super) fn usage(&self) -> Result<Usage, StoreError> {
        self.unseen.store(0, Ordering::Relaxed);
        let usage = self.store.usage()?;
        let left = usage.free_bytes.saturating_add(usage.reclaimable_bytes);
        let margin = MARGIN.min(usage.capacity_bytes / 8);
        self.full.store(left < margin, Ordering::Relaxed);
        self.look_after.store(margin / LOOKS, Ordering::Relaxed);
        Ok(usage)
    }

    pub(super) fn write<B: AsRef<[u8]>>(
        &self,
        chunk: ChunkId,
        version: Version,
        offset: u64,
        data: &[B],
    ) -> Result<i64, StoreError> {
        let grown = self.store.write(key(chunk), offset, data, ChunkVersion(version.0))?;
        // Nearly full must be known long before there is no room. Other looks come at intervals, in which much may be written.
        let len: u64 = data.iter().map(|d| d.as_ref().len() as u64).sum();
        let unseen = self.unseen.fetch_add(len, Ordering::Relaxed).saturating_add(len);
        if unseen >= self.look_after.load(Ordering::Relaxed)
            && let Err(error) = self.usage()
        {
            // The write is done, and whoever looks next says so too.
            warn_rarely!(LOG_INTERVAL, %error, "how much room there is cannot be seen");
        }
        Ok(grown)
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

    pub(super) fn punch(
        &self,
        chunk: ChunkId,
        version: Version,
        offset: u64,
        len: u64,
    ) -> Result<i64, StoreError> {
        let len = match len {
            u64::MAX => self.max_chunk.saturating_sub(offset),
            len => len,
        };
        // Beyond the largest chunk there is nothing to punch, but the caller is confused.
        if offset > self.max_chunk {
            return Err(StoreError::OutOfRange { offset, len, max: self.max_chunk });
        }
        self.store.punch(key(chunk), offset, len, ChunkVersion(version.0))
    }

    /// Removes one chunk.
    pub(super) fn erase(&self, chunk: ChunkId) -> Result<i64, StoreError> {
        self.store.delete_chunk(key(chunk))
    }

    /// Removes the chunks of a file's contents from one on.
    pub(super) fn delete(&self, first: ChunkId) -> Result<i64, StoreError> {
        self.store.delete_chunks(first.ino.0, first.generation, first.index)
    }

    /// A chunk's version.
    pub(super) fn version(&self, chunk: ChunkId) -> Version {
        Version(self.store.version(key(chunk)).0)
    }

    /// A chunk's version and where it has data, of one moment.
    pub(super) fn outline(&self, chunk: ChunkId) -> (Version, Vec<(u64, u64)>) {
        let (version, ranges) = self.store.outline(key(chunk));
        let wide = |(offset, len): (u32, u32)| (u64::from(offset), u64::from(len));
        (Version(version.0), ranges.into_iter().map(wide).collect())
    }

    /// What a range consists of, if part of it cannot be read.
    pub(super) fn damaged(
        &self,
        chunk: ChunkId,
        offset: u64,
        len: u64,
    ) -> Result<Option<Patch>, StoreError> {
        let patch = self.store.patch(key(chunk), offset, len)?;
        match self.store.read(key(chunk), offset, len) {
            Ok(_) => Ok(None),
            Err(StoreError::Corrupt { .. }) => Ok(Some(patch)),
            Err(error) => Err(error),
        }
    }

    /// A range with the version that it is of; `None` if it was changed meanwhile.
    pub(super) fn read_version(
        &self,
        chunk: ChunkId,
        offset: u64,
        len: u64,
    ) -> Result<Option<(Version, Vec<u8>)>, StoreError> {
        let before = self.store.version(key(chunk));
        let data = self.store.read(key(chunk), offset, len)?;
        Ok((self.store.version(key(chunk)) == before).then_some((Version(before.0), data)))
    }

    /// Chunks from one on with their versions, and where to go on.
    pub(super) fn list(
        &self,
        from: ChunkId,
        keep: impl Fn(ChunkId) -> bool,
    ) -> (Vec<(ChunkId, Version)>, Option<ChunkId>) {
        let (mut out, mut next) = (Vec::new(), Some(key(from)));
        while let Some(first) = next
            && out.len() < LISTED
        {
            let (found, more) = self.store.list_where(first, STEP, |key| keep(id(key)));
            out.extend(found.iter().map(|info| (id(&info.key), Version(info.version.0))));
            next = more;
        }
        (out, next.map(|key| id(&key)))
    }

    /// The chunks of a range of a file that have data, in order, from one on.
    pub(super) fn of_span(&self, span: Span, from: Option<ChunkId>) -> Result<Page, StoreError> {
        let range = Range::of(span)?;
        let first = from.map_or(range.first, |chunk| chunk.index.max(range.first));
        let part = self.store.extents_of(range.key(first), range.last, STEP);
        let more = match part.last() {
            Some(last) if part.len() == STEP && last.index < range.last => {
                Some(id(&range.key(last.index + 1)))
            }
            _ => None,
        };
        let named = part.into_iter().map(|chunk| (id(&range.key(chunk.index)), chunk.ranges));
        Ok((named.collect(), more))
    }

    /// Where a file has data within a range, of the chunks that are wanted: at most `limit` ranges, and how far that is all.
    pub(super) fn extents(
        &self,
        span: Span,
        limit: usize,
        keep: impl Fn(ChunkId) -> bool,
    ) -> Result<Upto<Vec<(u64, u64)>>, StoreError> {
        let range = Range::of(span)?;
        let mut out: Vec<(u64, u64)> = Vec::new();
        let (mut visited, mut from) = (0, None);
        while visited < MAX_VISITED {
            let (part, more) = self.of_span(span, from)?;
            visited += part.len();
            for (chunk, ranges) in part {
                if !keep(chunk) {
                    continue;
                }
                let start = range.start(chunk.index);
                for (offset, len) in ranges {
                    let from = start.saturating_add(offset).max(span.from);
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
            match more {
                Some(_) => from = more,
                None => return Ok((out, span.to)),
            }
        }
        Ok((out, from.map_or(span.to, |chunk| range.start(chunk.index))))
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

pub(super) fn id(key: &ChunkKey) -> ChunkId {
    ChunkId { ino: Ino(key.ino), generation: key.generation, index: key.index }
}

fn key(chunk: ChunkId) -> ChunkKey {
    ChunkKey { ino: chunk.ino.0, generation: chunk.generation, index: chunk.index }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::store::StoreConfig;

    fn chunk(ino: u64, index: u64) -> ChunkId {
        ChunkId { ino: Ino(ino), generation: 0, index }
    }

    fn chunks(dir: &tempfile::TempDir) -> Chunks {
        let (store, _) = SegmentStore::open(dir.path(), StoreConfig::default()).unwrap();
        Chunks::new(Arc::new(store), 4 << 20)
    }

    #[test]
    fn every_change_answers_by_how_much_the_data_grew() {
        let dir = tempfile::tempdir().unwrap();
        let chunks = chunks(&dir);
        let (data, v) = (vec![1u8; 10_000], Version(1));
        assert_eq!(chunks.write(chunk(1, 0), v, 0, &[&data]).unwrap(), 10_000);
        assert_eq!(chunks.write(chunk(1, 0), v, 5_000, &[&data]).unwrap(), 5_000);
        assert_eq!(chunks.write(chunk(1, 9), v, 0, &[&data]).unwrap(), 10_000);
        assert_eq!(chunks.punch(chunk(1, 0), v, 14_000, u64::MAX).unwrap(), -1_000);
        assert_eq!(chunks.delete(chunk(1, 0)).unwrap(), -24_000);
        assert_eq!(chunks.delete(chunk(1, 0)).unwrap(), 0);
        assert!(chunks.punch(chunk(2, 0), v, 5 << 20, u64::MAX).is_err());
        assert!(chunks.fits(1, (4 << 20) - 1) && !chunks.fits(1, 4 << 20));
        assert!(!chunks.fits(u64::MAX, 2));
    }

    #[test]
    fn nearly_full_is_known_by_the_writing_alone() {
        let dir = tempfile::tempdir().unwrap();
        let config = StoreConfig {
            segment_bytes: 2 << 20,
            reserve_bytes: 4 << 20,
            capacity_limit_bytes: Some(36 << 20),
            ..StoreConfig::default()
        };
        let (store, _) = SegmentStore::open(dir.path(), config).unwrap();
        let chunks = Chunks::new(Arc::new(store), 4 << 20);
        let (data, mut index) = (vec![7u8; 64 << 10], 0);
        while !chunks.is_full() {
            let written = chunks.write(chunk(1, index), Version(1), 0, &[&data]);
            written.expect("there is no room, and nobody was told before");
            index += 1;
        }
        // An eighth of 32 MiB, and less by what was written since the look before.
        let left = chunks.usage().unwrap().free_bytes;
        assert!((3 << 20..4 << 20).contains(&left), "{left} bytes are left");
    }

    fn span(ino: u64, from: u64, to: u64) -> Span {
        Span { ino: Ino(ino), generation: 0, chunk_bits: 22, from, to }
    }

    /// Everything in a range, answer by answer, and how many there were.
    fn all(chunks: &Chunks, whole: Span, limit: usize) -> (Vec<(u64, u64)>, usize) {
        let (mut out, mut answers, mut from) = (Vec::new(), 0, whole.from);
        while from < whole.to {
            let part = chunks.extents(Span { from, ..whole }, limit, |_| true);
            let (part, upto) = part.unwrap();
            assert!(part.len() <= limit && upto > from && upto <= whole.to);
            out.extend(part);
            (answers, from) = (answers + 1, upto);
        }
        (out, answers)
    }

    #[test]
    fn data_is_found_across_chunks_whatever_the_length_of_the_holes() {
        let dir = tempfile::tempdir().unwrap();
        let (chunks, v) = (chunks(&dir), Version(1));
        let (chunk_size, end) = (4u64 << 20, 1u64 << 63);
        let last = (end - 1) >> 22;
        chunks.write(chunk(1, 0), v, 100, &[[1; 100]]).unwrap();
        for index in 7..9 {
            chunks.write(chunk(1, index), v, 0, &[vec![1; 4 << 20]]).unwrap();
        }
        chunks.write(chunk(1, last), v, chunk_size - 1, &[[1]]).unwrap();
        chunks.write(chunk(2, 3), v, 0, &[[1; 100]]).unwrap();
        let expected = vec![(100, 200), (7 * chunk_size, 9 * chunk_size), (end - 1, end)];
        assert_eq!(all(&chunks, span(1, 0, end), 16), (expected.clone(), 1));
        assert_eq!(all(&chunks, span(1, 0, end), 1).0, expected);
        assert_eq!(
            all(&chunks, span(1, 150, 8 * chunk_size + 1), 9).0,
            [(150, 200), (7 * chunk_size, 8 * chunk_size + 1),]
        );
        let (some, _) = chunks.extents(span(1, 0, end), 9, |chunk| chunk.index == 0).unwrap();
        assert_eq!(some, [(100, 200)], "others answer for the other chunks");
        assert!(chunks.extents(span(1, 5, 5), 1, |_| true).is_err());
        let huge = Span { chunk_bits: 64, ..span(1, 0, 5) };
        assert!(chunks.extents(huge, 1, |_| true).is_err());
        let (page, more) = chunks.of_span(span(1, 150, 8 * chunk_size + 1), None).unwrap();
        assert_eq!(page.iter().map(|(chunk, _)| chunk.index).collect::<Vec<_>>(), [0, 7, 8]);
        assert_eq!(more, None);
    }

    #[test]
    fn an_answer_about_very_many_chunks_comes_in_parts() {
        let dir = tempfile::tempdir().unwrap();
        let (chunks, v) = (chunks(&dir), Version(9));
        let count = MAX_VISITED as u64 + 10;
        for index in 0..count {
            chunks.write(chunk(1, index * 3), v, 0, &[[1; 8]]).unwrap();
        }
        let whole = span(1, 0, 1 << 50);
        let (found, answers) = all(&chunks, whole, usize::MAX);
        assert_eq!((found.len() as u64, answers), (count, 2));
        let (mut listed, mut from) = (Vec::new(), Some(chunk(0, 0)));
        while let Some(first) = from {
            let (part, next) = chunks.list(first, |chunk| chunk.index.is_multiple_of(2));
            assert!(part.iter().all(|(_, version)| *version == v));
            listed.extend(part);
            from = next;
        }
        assert_eq!(listed.len() as u64, count.div_ceil(2));
    }
}
