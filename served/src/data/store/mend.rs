//! Putting good bytes in place of damaged ones, without changing what the chunk says; and taking over that bytes are lost.

use super::error::StoreError;
use super::extent::Extent;
use super::format::Kind;
use super::key::{ChunkKey, ChunkVersion};
use super::log::{Draft, Space};
use super::segment_store::SegmentStore;
use super::sync::read;

/// A range of a chunk as it was at one moment: who knows the bytes that it had in this version can put them there.
#[derive(Clone, Debug)]
pub struct Patch {
    key: ChunkKey,
    version: ChunkVersion,
    pieces: Vec<Extent>,
}

impl Patch {
    /// The chunk's version at that moment.
    pub fn version(&self) -> ChunkVersion {
        self.version
    }

    /// The ranges with data, as offset and length.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.pieces.iter().map(|e| (u64::from(e.offset), u64::from(e.len)))
    }
}

impl SegmentStore {
    /// Says that a range of a chunk is lost, for a copy of a chunk of another store in which it is: reading it fails until it is written anew.
    ///
    /// # Errors
    /// Those of a change; the range cannot be.
    pub fn write_bad(
        &self,
        key: ChunkKey,
        offset: u64,
        len: u64,
        version: ChunkVersion,
    ) -> Result<i64, StoreError> {
        let (offset, len) = self.check_range(offset, len)?;
        if len == 0 {
            let max = self.config.max_chunk_bytes;
            return Err(StoreError::OutOfRange { offset: offset.into(), len: 0, max });
        }
        let draft = Draft::range(Kind::Bad, key, offset, len).with_version(version);
        Ok(self.commit(&draft, &[], Space::UseReserve, None)?.unwrap_or(0))
    }

    /// What a range consists of now.
    ///
    /// # Errors
    /// The range cannot be.
    pub fn patch(&self, key: ChunkKey, offset: u64, len: u64) -> Result<Patch, StoreError> {
        let (offset, len) = self.check_range(offset, len)?;
        let state = read(&self.state);
        let pieces = state.lookup(&key, offset, offset + len);
        Ok(Patch { key, version: state.version(&key), pieces })
    }

    /// Stores the bytes of one of a patch's ranges anew, unless that range has changed since: then `false`. The chunk's version
    /// stays what it is, for these are the bytes that it stands for.
    ///
    /// # Errors
    /// Those of a write.
    pub fn mend(&self, patch: &Patch, range: (u64, u64), data: &[u8]) -> Result<bool, StoreError> {
        let same = |e: &&Extent| (u64::from(e.offset), u64::from(e.len)) == range;
        let Some(piece) = patch.pieces.iter().find(same) else { return Ok(false) };
        if data.len() != piece.len as usize {
            let (offset, len) = (range.0, data.len() as u64);
            return Err(StoreError::OutOfRange { offset, len, max: range.1 });
        }
        let data = [data];
        let body = self.body(&patch.key, piece.offset, piece.len, &data)?;
        let draft = Draft::range(Kind::Write, patch.key, piece.offset, piece.len);
        let draft = draft.with_form(body.form());
        let pieces = [*piece];
        let put = |space| self.commit(&draft, &body.slices(), space, Some(&pieces));
        let done = self.with_room(&draft, put)?;
        Ok(done.is_some())
    }
}
