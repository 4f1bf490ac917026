//! Chunks whose bytes are in an object of a bucket, and not here.
//!
//! The store knows nothing of buckets. It is told that an object has the bytes of a chunk in the version that it has now, and forgets
//! its own; it says of which object what is away, and gets the bytes back. Neither is a change: the chunk keeps its version.
//! Why a version is never shown with other contents is argued in `chunk.rs`.

use super::error::StoreError;
use super::extent::Extent;
use super::format::{Kind, LogPos};
use super::key::{ChunkKey, ChunkVersion};
use super::log::{Draft, Space};
use super::segment_store::SegmentStore;
use super::sync::{lock, read, write};

/// What of a chunk is away.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AwayParts {
    /// The version of the chunk that its object has.
    pub object: ChunkVersion,
    /// The version of the chunk now. It is another one where it was changed while a part of it was away.
    pub version: ChunkVersion,
    /// Offset and length of what is in the object, sorted, neighbours joined.
    pub ranges: Vec<(u32, u32)>,
}

impl SegmentStore {
    /// What of a chunk is away; `None`: nothing.
    pub fn away(&self, key: ChunkKey) -> Option<AwayParts> {
        let state = read(&self.state);
        let chunk = state.index.get(&key)?;
        let ranges = joined(chunk.extents.0.iter().filter(|e| e.is_away()));
        let (object, version) = (chunk.object, chunk.version);
        (!ranges.is_empty()).then_some(AwayParts { object, version, ranges })
    }

    /// Forgets the bytes of a chunk that an object has in this version. By how many bytes less is here; `None`: the chunk
    /// has another version by now, or a part of it is in another object.
    ///
    /// # Errors
    /// Those of a change.
    pub fn send_away(
        &self,
        key: ChunkKey,
        version: ChunkVersion,
    ) -> Result<Option<u64>, StoreError> {
        if version == ChunkVersion::UNKNOWN {
            return Ok(None);
        }
        // All under the lock that orders changes: in between it would be another chunk.
        let mut tail = lock(&self.log.tail);
        let here = {
            let state = read(&self.state);
            let Some(chunk) = state.index.get(&key) else { return Ok(None) };
            let same_object = [ChunkVersion::UNKNOWN, version].contains(&chunk.object);
            if chunk.version != version || !same_object {
                return Ok(None);
            }
            // What is lost here comes back with the object.
            joined(chunk.extents.0.iter().filter(|e| !e.is_away()))
        };
        let mut freed = 0;
        for (offset, len) in here {
            let draft = away(key, offset, len, version).with_version(version);
            let (at, header) = self.log.append(&mut tail, &draft, &[], Space::UseReserve)?;
            write(&self.state).apply(at, &header);
            freed += u64::from(len);
        }
        let started = tail.take_started();
        drop(tail);
        self.log.start_sync(&started)?;
        Ok(Some(freed))
    }

    /// Says that a range of a chunk is in its object, in the version that the chunk had then: for a copy of a chunk of another store.
    ///
    /// # Errors
    /// Those of a change; the range cannot be, or the object has no version.
    pub fn write_away(
        &self,
        key: ChunkKey,
        offset: u64,
        len: u64,
        object: ChunkVersion,
        version: ChunkVersion,
    ) -> Result<i64, StoreError> {
        let (offset, len) = self.check_range(offset, len)?;
        if len == 0 || object == ChunkVersion::UNKNOWN {
            let (offset, len) = (offset.into(), len.into());
            return Err(StoreError::OutOfRange { offset, len, max: self.config.max_chunk_bytes });
        }
        let draft = away(key, offset, len, object).with_version(version);
        Ok(self.commit(&draft, &[], Space::UseReserve, None)?.unwrap_or(0))
    }

    /// Puts the bytes back that are in this object. `contents` fills a buffer with what the object has from an offset on. What was
    /// changed meanwhile stays as it is. By how many bytes more is here.
    ///
    /// # Errors
    /// Those of a write.
    pub fn bring_back(
        &self,
        key: ChunkKey,
        object: ChunkVersion,
        contents: impl Fn(u32, &mut [u8]),
    ) -> Result<u64, StoreError> {
        let pieces: Vec<Extent> = {
            let state = read(&self.state);
            match state.index.get(&key) {
                Some(chunk) if chunk.object == object => {
                    chunk.extents.0.iter().filter(|e| e.is_away()).copied().collect()
                }
                _ => return Ok(0),
            }
        };
        let mut back = 0;
        for piece in pieces {
            let mut data = vec![0; piece.len as usize];
            contents(piece.offset, &mut data);
            let data = [data.as_slice()];
            let body = self.body(&key, piece.offset, piece.len, &data)?;
            let draft = Draft::range(Kind::Write, key, piece.offset, piece.len);
            let draft = draft.with_form(body.form());
            // Moved or split meanwhile: the caller looks again.
            let same = [piece];
            let put = |space| self.commit(&draft, &body.slices(), space, Some(&same));
            if self.with_room(&draft, put)?.is_some() {
                back += u64::from(piece.len);
            }
        }
        Ok(back)
    }
}

fn away(key: ChunkKey, offset: u32, len: u32, object: ChunkVersion) -> Draft {
    Draft { as_of: LogPos::from_u64(object.0), ..Draft::range(Kind::Away, key, offset, len) }
}

fn joined<'a>(extents: impl Iterator<Item = &'a Extent>) -> Vec<(u32, u32)> {
    let mut out: Vec<(u32, u32)> = Vec::new();
    for e in extents {
        match out.last_mut() {
            Some((offset, len)) if *offset + *len == e.offset => *len += e.len,
            _ => out.push((e.offset, e.len)),
        }
    }
    out
}
