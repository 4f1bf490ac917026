//! The store's operations as calls want them: by chunk or by range of a file, and bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use netfs_common::id::{ChunkId, Ino, Version};
use netfs_common::wire::data::Span;

use crate::data::store::{
    AwayParts, ChunkInfo, ChunkKey, ChunkVersion, Patch, SegmentStore, StoreError, Usage,
};

/// Chunks looked at in one go. It bounds for how long the index is held.
const STEP: usize = 256;
/// Chunks looked at, or punched, for one answer.
const MAX_VISITED: usize = 16 * STEP;
/// Chunks removed in one go.
const PART: usize = 16 * STEP;
/// After so many chunks a list ends: it has to fit into a message's header.
const LISTED: usize = 1024;
/// The sizes of chunks that a file may have, as powers of two.
const CHUNK_BITS: std::ops::RangeInclusive<u8> = 12..=31;

/// A part of a file's answer: what it says, and how far it goes.
pub(super) type Upto<T> = (T, u64);

/// What is kept free, so that no replica runs out of room in the middle of a change that others have stored.
const MARGIN: u64 = 256 << 20;
/// What a record takes besides its data, at most.
const RECORD: u64 = 128;

/// The chunks of a store.
#[derive(Debug)]
pub(super) struct Chunks {
    store: Arc<SegmentStore>,
    max_chunk: u64,
    /// What can still be stored, as far as is known: as it was when it was looked at last, less what was stored since.
    left: AtomicU64,
    /// What is kept free.
    margin: AtomicU64,
    /// It is called full.
    full: AtomicBool,
    /// What was stored since it was looked.
    since: AtomicU64,
}

/// What a part of a chunk consists of, and the ranges of that which cannot be read.
pub(super) type Rotten = (Patch, Vec<(u64, u64)>);
/// Part of a file's chunks, with where they have data, and whether there are more.
pub(super) type Page = (Vec<(ChunkId, Vec<(u64, u64)>)>, Option<ChunkId>);

/// So much is read at a time where some of it is damaged, and so read again.
const DAMAGE_STEP: u64 = 64 << 10;

impl Chunks {
    pub(super) fn new(store: Arc<SegmentStore>, max_chunk: u64) -> Chunks {
        let (left, margin) = (AtomicU64::new(u64::MAX), AtomicU64::new(MARGIN));
        let (full, since) = (AtomicBool::new(false), AtomicU64::new(0));
        let chunks = Chunks { store, max_chunk, left, margin, full, since };
        if let Err(error) = chunks.usage() {
            tracing::warn!(%error, "it is not known how much room the store has");
        }
        chunks
    }

    pub(super) fn store(&self) -> &SegmentStore {
        &self.store
    }

    /// Whether a range can be one of a chunk.
    pub(super) fn fits(&self, offset: u64, len: u64) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.max_chunk)
    }

    /// There is hardly any room left: no more data is to come. What was stored counts at once.
    pub(super) fn is_full(&self) -> bool {
        let full = self.left.load(Ordering::Relaxed) < self.margin.load(Ordering::Relaxed);
        if full {
            self.full.store(true, Ordering::Relaxed);
        }
        full
    }

    /// There is no room to learn anything new either. Of what is kept free, a server that was away may use half for what it has missed: nobody gets
    /// more data while a replica is full, and what is under way is far less than the rest.
    pub(super) fn is_crammed(&self) -> bool {
        self.left.load(Ordering::Relaxed) < self.margin.load(Ordering::Relaxed) / 2
    }

    /// It was full, and there is not much more room since: so it is called, and learns nothing new. Data is taken as soon as there is room, but
    /// what is said of a server does not change with every segment that is reclaimed.
    pub(super) fn is_called_full(&self) -> bool {
        let margin = self.margin.load(Ordering::Relaxed);
        if !self.is_full() && self.left.load(Ordering::Relaxed) >= margin + margin / 4 {
            self.full.store(false, Ordering::Relaxed);
        }
        self.full.load(Ordering::Relaxed)
    }

    /// What of the free space data gets, if other replicas store the same.
    pub(super) fn beyond_margin(&self, free: u64) -> u64 {
        free.saturating_sub(self.margin.load(Ordering::Relaxed))
    }

    /// So much was stored.
    fn stored(&self, bytes: u64) {
        let cost = bytes.saturating_add(RECORD);
        let less = |left: u64| Some(left.saturating_sub(cost));
        // It is never `None`.
        let _ = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        let since = self.since.fetch_add(cost, Ordering::Relaxed).saturating_add(cost);
        // What others put on the disk, or reclamation has won, is seen with the next look.
        if since >= self.margin.load(Ordering::Relaxed) / 8
            && let Err(error) = self.usage()
        {
            tracing::debug!(%error, "it is not known how much room the store has");
        }
    }

    /// The store's figures of now.
    pub(super) fn usage(&self) -> Result<Usage, StoreError> {
        // What is stored while it is looked may be missed until the next look; that is little.
        self.since.store(0, Ordering::Relaxed);
        let usage = self.store.usage()?;
        let left = usage.free_bytes.saturating_add(usage.reclaimable_bytes);
        self.margin.store(MARGIN.min(usage.capacity_bytes / 8), Ordering::Relaxed);
        self.left.store(left, Ordering::Relaxed);
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
        self.stored(data.iter().map(|part| part.as_ref().len() as u64).sum());
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

    /// Where the parts begin in which a file's chunks from one on are removed, in order.
    pub(super) fn parts(&self, first: ChunkId) -> Vec<ChunkId> {
        let (mut out, mut seen, mut next) = (Vec::new(), 0usize, Some(first.index));
        while let Some(from) = next {
            let found =
                self.store.extents_of(key(ChunkId { index: from, ..first }), u64::MAX, STEP);
            if seen.is_multiple_of(PART) && !found.is_empty() {
                out.push(ChunkId { index: from, ..first });
            }
            seen += found.len();
            let full = found.len() == STEP;
            next = found.last().filter(|_| full).and_then(|last| last.index.checked_add(1));
        }
        out
    }

    /// Removes a file's chunks from one on, which are few; which they were, and how many bytes of those that count.
    pub(super) fn remove(
        &self,
        first: ChunkId,
        counts: impl Fn(ChunkId) -> bool,
    ) -> Result<(Vec<ChunkId>, u64), StoreError> {
        let (mut gone, mut bytes, mut next) = (Vec::new(), 0, Some(first.index));
        while let Some(from) = next {
            let found =
                self.store.extents_of(key(ChunkId { index: from, ..first }), u64::MAX, STEP);
            for found in &found {
                let chunk = ChunkId { index: found.index, ..first };
                if counts(chunk) {
                    bytes += found.ranges.iter().map(|(_, len)| len).sum::<u64>();
                }
                gone.push(chunk);
            }
            let full = found.len() == STEP;
            next = found.last().filter(|_| full).and_then(|last| last.index.checked_add(1));
        }
        self.store.delete_chunks(first.ino.0, first.generation, first.index)?;
        Ok((gone, bytes))
    }

    /// What of a chunk is in an object of the bucket, and not here.
    pub(super) fn away(&self, chunk: ChunkId) -> Option<AwayParts> {
        self.store.away(key(chunk))
    }

    /// Whether a chunk has any data, here or in its object.
    pub(super) fn has(&self, chunk: ChunkId) -> bool {
        !self.store.outline(key(chunk)).1.is_empty()
    }

    /// All chunks from one on, a part of them, and where to go on.
    pub(super) fn infos(&self, from: ChunkId) -> (Vec<ChunkInfo>, Option<ChunkId>) {
        let (found, next) = self.store.list_where(key(from), STEP, |_| true);
        (found, next.map(|key| id(&key)))
    }

    /// Takes over from another replica that a range of a chunk is in the chunk's object.
    pub(super) fn write_away(
        &self,
        chunk: ChunkId,
        version: Version,
        (offset, len): (u64, u64),
        object: Version,
    ) -> Result<i64, StoreError> {
        let (object, version) = (ChunkVersion(object.0), ChunkVersion(version.0));
        self.store.write_away(key(chunk), offset, len, object, version)
    }

    /// Takes over from another replica that a range of a chunk is lost.
    pub(super) fn write_bad(
        &self,
        chunk: ChunkId,
        version: Version,
        offset: u64,
        len: u64,
    ) -> Result<i64, StoreError> {
        self.store.write_bad(key(chunk), offset, len, ChunkVersion(version.0))
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

    /// Those of some places of a chunk of which something cannot be read: what they consist of, and which parts of that it is.
    pub(super) fn damaged(
        &self,
        chunk: ChunkId,
        places: &[u64],
        len: u64,
    ) -> Vec<(u64, Result<Option<Rotten>, StoreError>)> {
        let look = |at: &u64| (*at, self.rotten(chunk, *at, len));
        let seen: Vec<_> = places.iter().map(look).collect();
        // Afterwards, and thus of one version, unless it is written to in this very moment.
        let with_patch = |(at, rotten): (u64, Result<Vec<_>, _>)| {
            let patch = |ranges: Vec<(u64, u64)>| match ranges.is_empty() {
                true => Ok(None),
                false => self.store.patch(key(chunk), at, len).map(|patch| Some((patch, ranges))),
            };
            (at, rotten.and_then(patch))
        };
        seen.into_iter().map(with_patch).collect()
    }

    /// The parts of a range that cannot be read. Nothing that is away is one.
    fn rotten(&self, chunk: ChunkId, at: u64, len: u64) -> Result<Vec<(u64, u64)>, StoreError> {
        let mut rotten = Vec::new();
        for (offset, len) in self.store.patch(key(chunk), at, len)?.ranges() {
            match self.store.read(key(chunk), offset, len) {
                Ok(_) | Err(StoreError::Away { .. }) => {}
                Err(StoreError::Corrupt { .. }) => rotten.push((offset, len)),
                Err(error) => return Err(error),
            }
        }
        Ok(rotten)
    }

    /// All ranges of a chunk that are damaged.
    pub(super) fn damaged_in(&self, chunk: ChunkId) -> Vec<(u64, u64)> {
        let mut found = Vec::new();
        for (mut at, len) in self.outline(chunk).1 {
            let end = at + len;
            while at < end {
                let step = (end - at).min(DAMAGE_STEP);
                at = match self.store.read(key(chunk), at, step) {
                    Err(StoreError::Corrupt { offset, len, .. }) if offset + len > at => {
                        found.push((offset, len));
                        offset + len
                    }
                    _ => at + step,
                };
            }
        }
        found
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
            // Part of an older object, which another replica may not have any more: it is no proof of being equal.
            let mixed = |info: &ChunkInfo| info.away_bytes > 0 && info.object != info.version;
            let version = |info: &ChunkInfo| match mixed(info) {
                true => Version::NONE,
                false => Version(info.version.0),
            };
            out.extend(found.iter().map(|info| (id(&info.key), version(info))));
            next = more;
        }
        (out, next.map(|key| id(&key)))
    }

    /// Chunks from one on with their versions, not more than some, and where to go on.
    pub(super) fn page(
        &self,
        from: ChunkId,
        limit: usize,
    ) -> (Vec<(ChunkId, Version)>, Option<ChunkId>) {
        let (found, next) = self.store.list_where(key(from), limit.clamp(1, LISTED), |_| true);
        let named = found.iter().map(|info| (id(&info.key), Version(info.version.0)));
        (named.collect(), next.map(|key| id(&key)))
    }

    /// As [`Chunks::list`], of a few chunks only.
    pub(super) fn step(
        &self,
        from: ChunkId,
        keep: impl Fn(ChunkId) -> bool,
    ) -> (Vec<(ChunkId, Version)>, Option<ChunkId>) {
        let (found, next) = self.store.list_where(key(from), LISTED, |key| keep(id(key)));
        let named = found.iter().map(|info| (id(&info.key), Version(info.version.0)));
        (named.collect(), next.map(|key| id(&key)))
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

pub(super) fn key(chunk: ChunkId) -> ChunkKey {
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
        let all = (vec![chunk(1, 0), chunk(1, 9)], 10_000);
        assert_eq!(chunks.remove(chunk(1, 0), |chunk| chunk.index > 0).unwrap(), all);
        assert_eq!(chunks.remove(chunk(1, 0), |_| true).unwrap(), (Vec::new(), 0));
        assert!(chunks.punch(chunk(2, 0), v, 5 << 20, u64::MAX).is_err());
        assert!(chunks.fits(1, (4 << 20) - 1) && !chunks.fits(1, 4 << 20));
        assert!(!chunks.fits(u64::MAX, 2));
    }

    #[test]
    fn of_a_place_only_what_cannot_be_read_is_damaged_whatever_lies_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let chunks = chunks(&dir);
        let (of, v) = (chunk(1, 0), Version(7));
        chunks.write_away(of, v, (0, 2000), Version(3)).unwrap();
        chunks.write_bad(of, v, 2000, 500).unwrap();
        chunks.write(of, v, 3000, &[&[5; 3000]]).unwrap();
        let found = chunks.damaged(of, &[0, 4096, 8192], 4096);
        let found = found.into_iter().map(|(at, found)| (at, found.unwrap().map(|f| f.1)));
        let found: Vec<_> = found.collect();
        assert_eq!(found, [(0, Some(vec![(2000, 500)])), (4096, None), (8192, None)]);
    }

    #[test]
    fn a_store_says_that_it_is_full_before_a_write_fails_however_fast_it_fills() {
        let dir = tempfile::tempdir().unwrap();
        let config = StoreConfig {
            capacity_limit_bytes: Some(40 << 20),
            reserve_bytes: 8 << 20,
            segment_bytes: 4 << 20,
            ..StoreConfig::default()
        };
        let (store, _) = SegmentStore::open(dir.path(), config).unwrap();
        let chunks = Chunks::new(Arc::new(store), 4 << 20);
        let data = vec![7u8; 1 << 20];
        let mut written = 0u64;
        while !chunks.is_full() {
            chunks.write(chunk(1, written), Version(1), 0, &[&data]).unwrap();
            written += 1;
        }
        assert!((20..32).contains(&written), "{written} MiB of 32");
        assert!(!chunks.is_crammed(), "there is room for what a replica has missed");
        for more in 0..2 {
            chunks.write(chunk(2, more), Version(1), 0, &[&data]).unwrap();
        }
        assert!(chunks.is_full() && chunks.is_called_full());
        chunks.remove(chunk(2, 0), |_| true).unwrap();
        chunks.usage().unwrap();
        let free = || {
            let usage = chunks.store().usage().unwrap();
            usage.free_bytes + usage.reclaimable_bytes
        };
        assert_eq!(chunks.is_full(), chunks.beyond_margin(free()) == 0);
        assert!(chunks.is_called_full(), "there is little more room than none");
        chunks.remove(chunk(1, 0), |_| true).unwrap();
        chunks.usage().unwrap();
        assert!(!chunks.is_full(), "what was removed can be reclaimed");
        assert!(!chunks.is_called_full() && chunks.beyond_margin(free()) > 16 << 20);
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
    fn very_many_chunks_are_removed_in_parts_from_the_last_on() {
        let dir = tempfile::tempdir().unwrap();
        let (chunks, v) = (chunks(&dir), Version(9));
        let count = PART as u64 * 2 + 10;
        for index in 0..count {
            chunks.write(chunk(1, index * 3 + 1), v, 0, &[[1; 8]]).unwrap();
        }
        chunks.write(chunk(2, 0), v, 0, &[[1; 8]]).unwrap();
        let parts = chunks.parts(chunk(1, 0));
        assert_eq!((parts.len(), parts[0]), (3, chunk(1, 0)));
        assert_eq!(parts[2], chunk(1, (PART as u64 * 2 - 1) * 3 + 2));
        let mut left = count;
        for part in parts.into_iter().rev() {
            let (gone, bytes) = chunks.remove(part, |_| true).unwrap();
            assert!(gone.len() <= PART && bytes == gone.len() as u64 * 8);
            left -= gone.len() as u64;
        }
        assert_eq!(left, 0);
        assert!(chunks.parts(chunk(1, 0)).is_empty());
        assert_eq!(chunks.version(chunk(2, 0)), v, "another file stays");
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
