//! Writing, punching, deleting, copying.
//!
//! Every change takes the version that the chunk has with it. The order of versions is the order of the log: the last one
//! counts, not the highest. A chunk without data has no version.

use super::error::StoreError;
use super::extent::Extent;
use super::format::{BLOCK, Kind, MAX_CHUNK_BYTES, stored_len};
use super::key::{ChunkKey, ChunkVersion, FileKey};
use super::log::{Draft, Space};
use super::read::{Patience, ReadFault};
use super::reclaim::Want;
use super::segment_store::SegmentStore;
use super::slots::Pool;
use super::sync::{lock, read};

/// Fragmentation is counted, and mended, by windows of this size.
const WINDOW: u32 = 1 << 20;
/// Pieces of at least this size stay as they are: what is appended to a file little by little would be rewritten again with each join otherwise.
const LARGE: u32 = WINDOW / 8;
/// How often a write tries again after room was made; another writer may take the room each time.
const ROOM_TRIES: u32 = 16;

impl SegmentStore {
    /// Writes `data`, in one record, to `offset` of a chunk. When it returns, readers see it and it survives the end of the
    /// process; after the next [`flush`](Self::flush) also that of the machine. Like every change it returns by how many
    /// bytes the data grew.
    pub fn write<B: AsRef<[u8]>>(
        &self,
        key: ChunkKey,
        offset: u64,
        data: &[B],
        version: ChunkVersion,
    ) -> Result<i64, StoreError> {
        let total = data.iter().map(|d| d.as_ref().len() as u64).sum();
        let (offset, len) = self.check_range(offset, total)?;
        if len == 0 {
            return self.stamp(key, version).map(|_| 0);
        }
        let pieces: Vec<&[u8]> = data.iter().map(AsRef::as_ref).collect();
        let body = self.body(&key, offset, len, &pieces)?;
        let slices = body.slices();
        let draft = Draft::range(Kind::Write, key, offset, len).with_version(version);
        let draft = draft.with_form(body.form());
        let put = |space| self.commit(&draft, &slices, space, None);
        let grown = self.with_room(&draft, put)?;
        Ok(grown.unwrap_or(0) + self.after_write(key, offset, len)?)
    }

    /// Makes a range of a chunk a hole. Also how a chunk is truncated.
    pub fn punch(
        &self,
        key: ChunkKey,
        offset: u64,
        len: u64,
        version: ChunkVersion,
    ) -> Result<i64, StoreError> {
        let (offset, len) = self.check_range(offset, len)?;
        self.punch_unless_hole(key, offset, len, version)
    }

    fn punch_unless_hole(
        &self,
        key: ChunkKey,
        offset: u32,
        len: u32,
        version: ChunkVersion,
    ) -> Result<i64, StoreError> {
        // What is a hole already needs no tombstone: whatever made it one is in the log and outlives what it hides.
        if len == 0 || read(&self.state).lookup(&key, offset, offset + len).is_empty() {
            return self.stamp(key, version).map(|_| 0);
        }
        self.log.check_poison()?;
        let draft = Draft::range(Kind::Punch, key, offset, len).with_version(version);
        Ok(self.commit(&draft, &[], Space::UseReserve, None)?.unwrap_or(0))
    }

    /// Gives a chunk a version without changing its data; `false`: it holds none. For a copy of a chunk that was
    /// written in parts, each without a version.
    pub fn stamp(&self, key: ChunkKey, version: ChunkVersion) -> Result<bool, StoreError> {
        self.log.check_poison()?;
        match read(&self.state).index.get(&key) {
            None => return Ok(false),
            Some(chunk) if chunk.version == version => return Ok(true),
            Some(_) => {}
        }
        let draft = Draft::range(Kind::Stamp, key, 0, 0).with_version(version);
        self.commit(&draft, &[], Space::UseReserve, None)?;
        Ok(true)
    }

    /// Deletes one chunk.
    pub fn delete_chunk(&self, key: ChunkKey) -> Result<i64, StoreError> {
        let all = MAX_CHUNK_BYTES as u32;
        self.punch_unless_hole(key, 0, all, ChunkVersion::UNKNOWN)
    }

    /// Deletes all chunks of a file from an index on: one record, however large the file.
    pub fn delete_chunks(
        &self,
        ino: u64,
        generation: u32,
        from_index: u64,
    ) -> Result<i64, StoreError> {
        self.log.check_poison()?;
        let file = FileKey { ino, generation };
        if !read(&self.state).index.has_any(file, from_index) {
            return Ok(0);
        }
        let draft = Draft::note(Kind::Delete, ino).with_key(file.chunk(from_index));
        Ok(self.commit(&draft, &[], Space::UseReserve, None)?.unwrap_or(0))
    }

    /// Copies a range of one chunk into another, or within one; holes become holes. If that takes several records, the target
    /// has no version until the last of them: a part of it must not pass for the whole. Servers copy by reading and writing; this
    /// is how tests make changes of several records.
    #[cfg(test)]
    pub(super) fn copy(
        &self,
        from: ChunkKey,
        from_offset: u64,
        to: ChunkKey,
        to_offset: u64,
        len: u64,
        version: ChunkVersion,
    ) -> Result<i64, StoreError> {
        let (from_offset, _) = self.check_range(from_offset, len)?;
        let (to_offset, len) = self.check_range(to_offset, len)?;
        let (data, extents) = self.read_with_pieces(from, from_offset, len)?;
        // All is read before the first change, because the ranges may overlap.
        let runs = runs(&extents, 0);
        match runs[..] {
            [] => return self.punch_unless_hole(to, to_offset, len, version),
            [(start, end)] if end - start == len => {
                return self.write(to, u64::from(to_offset), &[&data], version);
            }
            _ => {}
        }
        let part_of = ChunkVersion::UNKNOWN;
        let (mut done, mut grown) = (0, 0);
        for (start, end) in runs {
            let (start, end) = (start - from_offset, end - from_offset);
            grown += self.punch_unless_hole(to, to_offset + done, start - done, part_of)?;
            let part = &data[start as usize..end as usize];
            grown += self.write(to, u64::from(to_offset + start), &[part], part_of)?;
            done = end;
        }
        grown += self.punch_unless_hole(to, to_offset + done, len - done, part_of)?;
        self.stamp(to, version)?;
        Ok(grown)
    }

    /// Tries again after making room, as long as there is some to be made. What can be in a slot spares the last room, which records of
    /// slots need too, as long as there is something to write over.
    pub(super) fn with_room<T>(
        &self,
        draft: &Draft,
        attempt: impl Fn(Space) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let suits = Pool::suits(draft.form, stored_len(draft.offset, draft.len));
        let first = if suits { Space::Spare } else { Space::Keep };
        for _ in 0..ROOM_TRIES {
            match attempt(first) {
                Err(StoreError::NoSpace { .. }) => {}
                other => return other,
            }
            let mut reclaimer = lock(&self.reclaimer);
            // Whoever had it before has made room, most likely, and for more than itself.
            let mut result = attempt(first);
            if suits && matches!(result, Err(StoreError::NoSpace { .. })) {
                self.make_room(&mut reclaimer, 1, Want::Slots)?;
                // What was found may be too short.
                result = attempt(Space::Keep);
            }
            match result {
                Err(StoreError::NoSpace { needed, free }) => {
                    let short = needed.saturating_sub(free).max(1);
                    if !self.make_room(&mut reclaimer, short, Want::Room)? {
                        return Err(StoreError::NoSpace { needed, free });
                    }
                }
                other => return other,
            }
        }
        attempt(Space::Keep)
    }

    /// What a write owes to the bounds: no chunk in too many pieces, not too much unflushed.
    fn after_write(&self, key: ChunkKey, offset: u32, len: u32) -> Result<i64, StoreError> {
        let mut grown = 0;
        let last = (offset + len - 1) / WINDOW;
        for window in offset / WINDOW..=last {
            let (start, end) = (window * WINDOW, (window + 1) * WINDOW);
            let count =
                read(&self.state).index.get(&key).map_or(0, |c| c.extents.range(start, end).len());
            if count > self.config.max_extents_per_mib {
                grown += self.defragment(key, start, end)?;
            }
        }
        if self.log.unflushed_segments() >= self.config.max_unflushed_segments {
            self.flush()?;
        }
        Ok(grown)
    }

    /// Rewrites a range of a chunk in fewer pieces.
    fn defragment(&self, key: ChunkKey, start: u32, end: u32) -> Result<i64, StoreError> {
        let extents = read(&self.state).lookup(&key, start, end);
        let stays = |e: &Extent| e.is_away() || e.len >= LARGE;
        let small = extents.iter().filter(|e| !stays(e)).count();
        // Gaps within a block are filled with the zeros that they read as: otherwise tiny writes could not be joined.
        let runs: Vec<_> =
            extents.split(stays).flat_map(|extents| runs(extents, BLOCK - 1)).collect();
        if runs.len() * 2 > small {
            return Ok(0);
        }
        let mut grown = 0;
        for (from, to) in runs {
            let pieces: Vec<Extent> =
                extents.iter().filter(|e| e.offset >= from && e.end() <= to).copied().collect();
            if pieces.len() < 2 {
                continue;
            }
            match self.rewrite(key, from, to, &pieces, Space::Keep) {
                // The write itself succeeded. If there is no room, or damage, or somebody was faster, it stays in pieces.
                Ok(None)
                | Err(
                    StoreError::NoSpace { .. }
                    | StoreError::Corrupt { .. }
                    | StoreError::NoKey { .. },
                ) => {}
                Ok(Some(bytes)) => grown += bytes,
                Err(e) => return Err(e),
            }
        }
        Ok(grown)
    }

    /// Appends a copy, with the chunk's version, of a range that consists of `pieces`, unless it has changed meanwhile: `None` then.
    pub(super) fn rewrite(
        &self,
        key: ChunkKey,
        from: u32,
        to: u32,
        pieces: &[Extent],
        space: Space,
    ) -> Result<Option<i64>, StoreError> {
        let mut data = Vec::with_capacity((to - from) as usize);
        match self.read_extents(key, (from, to), pieces, &mut data, Patience::Wait) {
            Ok(()) => {}
            Err(ReadFault::Gone(_) | ReadFault::WouldWait) => return Ok(None),
            Err(ReadFault::Failed(e)) => return Err(e),
        }
        let data = [data.as_slice()];
        let body = self.body(&key, from, to - from, &data)?;
        let draft = Draft::range(Kind::Write, key, from, to - from).with_form(body.form());
        self.commit(&draft, &body.slices(), space, Some(pieces))
    }
}

/// Start and end of ranges without gaps larger than `max_gap`.
fn runs(extents: &[Extent], max_gap: u32) -> Vec<(u32, u32)> {
    let mut out: Vec<(u32, u32)> = Vec::new();
    for e in extents {
        match out.last_mut() {
            Some((_, end)) if e.offset - *end <= max_gap => *end = e.end(),
            _ => out.push((e.offset, e.end())),
        }
    }
    out
}
