//! Reading, which always verifies.

use std::io::{self, IoSliceMut};

use super::disk::{DiskFile, read_full_onto, read_vectored_full};
use super::error::StoreError;
use super::extent::Extent;
use super::format::{
    BLOCK, Block, CRC_LEN, ChunkSeed, block_count, block_in, get_u32, segment_name,
};
use super::key::ChunkKey;
use super::scan::is_medium_error;
use super::segment_store::SegmentStore;
use super::state::{Pieces, State};
use super::sync::{read, try_read};

/// Blocks that are read at a time.
pub(super) const STEP_BLOCKS: u32 = 64;
/// How often a read may find its segment reclaimed, or a hole, under it. Each time what it failed at was written or moved anew meanwhile.
const MOVED_MAX: u32 = 64;

/// Whether to wait for the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    Wait,
    Now,
}

/// Why extents could not be read.
pub(super) enum ReadFault {
    /// It would have to wait; only where there is no [`Patience`].
    WouldWait,
    /// The segment's file is gone: look again where the data is.
    Gone(Extent),
    Failed(StoreError),
}

impl From<StoreError> for ReadFault {
    fn from(e: StoreError) -> Self {
        Self::Failed(e)
    }
}

/// The part of a range that a fault is about.
fn faulted(fault: &StoreError, (offset, end): (u32, u32)) -> (u32, u32) {
    let StoreError::Corrupt { offset: at, len, .. } = fault else { return (offset, end) };
    let within = |x: u64| x.clamp(offset.into(), end.into()) as u32;
    match (within(*at), within(at.saturating_add(*len))) {
        (from, to) if from < to => (from, to),
        _ => (offset, end),
    }
}

/// The pieces of a range.
fn clipped(pieces: &[Extent], from: u32, to: u32) -> impl Iterator<Item = Extent> {
    let within = pieces.iter().filter(move |e| e.offset < to && e.end() > from);
    within.map(move |e| e.clip(from, to))
}

pub(super) fn corrupt(key: ChunkKey, offset: u32, len: u32, why: impl Into<String>) -> StoreError {
    let (offset, len, why) = (u64::from(offset), u64::from(len), why.into());
    StoreError::Corrupt { key, offset, len, why, rotten: false }
}

/// As [`corrupt`], of what will not pass.
pub(super) fn rotten(key: ChunkKey, offset: u32, len: u32, why: impl Into<String>) -> StoreError {
    let (offset, len, why) = (u64::from(offset), u64::from(len), why.into());
    StoreError::Corrupt { key, offset, len, why, rotten: true }
}

impl SegmentStore {
    /// Reads a range of a chunk; holes, and what lies behind the end, read as zeros. Fails rather than return
    /// bytes that are not those that were written.
    pub fn read(&self, key: ChunkKey, offset: u64, len: u64) -> Result<Vec<u8>, StoreError> {
        let (offset, len) = self.check_range(offset, len)?;
        Ok(self.read_with_pieces(key, offset, len)?.0)
    }

    /// As [`Self::read`], if that takes no waiting: neither for the disk nor for somebody who changes the index.
    pub fn read_now(
        &self,
        key: ChunkKey,
        offset: u64,
        len: u64,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let (offset, len) = self.check_range(offset, len)?;
        let fillings = self.log.fillings();
        let Some(state) = try_read(&self.state) else { return Ok(None) };
        let extents = state.pieces(&key, offset, offset + len);
        drop(state);
        let mut out = Vec::with_capacity(len as usize);
        let range = (offset, offset + len);
        match self.read_extents(key, range, &extents, &mut out, Patience::Now) {
            Ok(()) if self.log.fillings() == fillings => Ok(Some(out)),
            Ok(()) => Ok(None),
            // Only who waits finds out whether that is damage, or a place that was given up meanwhile.
            Err(ReadFault::WouldWait | ReadFault::Gone(_))
            | Err(ReadFault::Failed(StoreError::Corrupt { .. })) => Ok(None),
            Err(ReadFault::Failed(e)) => Err(e),
        }
    }

    /// Reads a range, and says which extents it came from.
    pub(super) fn read_with_pieces(
        &self,
        key: ChunkKey,
        offset: u32,
        len: u32,
    ) -> Result<(Vec<u8>, Pieces), StoreError> {
        let mut out = Vec::with_capacity(len as usize);
        let end = offset + len;
        let mut fillings = self.log.fillings();
        let mut extents = read(&self.state).pieces(&key, offset, end);
        for _ in 0..MOVED_MAX {
            let range = (offset, end);
            let fault = match self.read_extents(key, range, &extents, &mut out, Patience::Wait) {
                Ok(()) if self.log.fillings() == fillings => return Ok((out, extents)),
                // Some of it may have been written over, by what is valid for the same place.
                Ok(()) => {
                    fillings = self.log.fillings();
                    let now = read(&self.state).pieces(&key, offset, end);
                    if now == extents {
                        return Ok((out, extents));
                    }
                    extents = now;
                    continue;
                }
                // What was hidden meanwhile may be a hole by now.
                Err(ReadFault::Failed(e @ StoreError::Corrupt { .. })) => e,
                Err(ReadFault::Failed(e)) => return Err(e),
                Err(ReadFault::Gone(gone)) => {
                    let why = format!("{} is missing", segment_name(gone.at.segment));
                    corrupt(key, gone.offset, gone.len, why)
                }
                Err(ReadFault::WouldWait) => continue,
            };
            fillings = self.log.fillings();
            let now = read(&self.state).pieces(&key, offset, end);
            // What became of the rest says nothing about this.
            let (from, to) = faulted(&fault, (offset, end));
            if clipped(&now, from, to).eq(clipped(&extents, from, to)) {
                return Err(fault);
            }
            extents = now;
        }
        Err(StoreError::io("read", "a chunk")(io::Error::other(
            "its segments were reclaimed faster than it was read",
        )))
    }

    /// Reads a range of a chunk, of which these are the extents in their order, into `out`. What that had before is gone; after a
    /// failure it has some of the range.
    pub(super) fn read_extents(
        &self,
        key: ChunkKey,
        (offset, end): (u32, u32),
        extents: &[Extent],
        out: &mut Vec<u8>,
        patience: Patience,
    ) -> Result<(), ReadFault> {
        out.clear();
        let seed = ChunkSeed::new(&key);
        // Also where nothing is to be read: without its key a volume says nothing.
        let encrypted = self.codec_of(&key)?.is_some_and(|codec| codec.cipher().is_some());
        let mut buf = Vec::new();
        for e in extents {
            // Anybody can write what is not encrypted.
            if encrypted && !e.is_away() && !e.is_bad() && e.packed().is_none() {
                let why = "it is not encrypted as its volume is";
                return Err(corrupt(key, e.offset, e.len, why).into());
            }
            out.resize((e.offset - offset) as usize, 0);
            self.read_extent((key, seed), e, out, &mut buf, patience)?;
        }
        out.resize((end - offset) as usize, 0);
        Ok(())
    }

    /// An extent of what is in a slot, as if the slot were its record's payload.
    fn placed(&self, e: &Extent, state: &State) -> Result<Extent, ReadFault> {
        state.slots.place(e.at).map(|place| e.placed(place)).ok_or(ReadFault::Gone(*e))
    }

    /// Reads all of an extent, behind what `out` has.
    fn read_extent(
        &self,
        (key, seed): (ChunkKey, ChunkSeed),
        e: &Extent,
        out: &mut Vec<u8>,
        buf: &mut Vec<u8>,
        patience: Patience,
    ) -> Result<(), ReadFault> {
        if e.is_away() {
            let (offset, len) = (u64::from(e.offset), u64::from(e.len));
            return Err(StoreError::Away { key, offset, len }.into());
        }
        if e.is_bad() {
            return Err(rotten(key, e.offset, e.len, "it was lost to a disk fault").into());
        }
        // The rest goes on as if its record had it with it.
        let placed = match (e.is_in_slot(), patience) {
            (false, _) => *e,
            (true, Patience::Wait) => self.placed(e, &read(&self.state))?,
            (true, Patience::Now) => {
                self.placed(e, &*try_read(&self.state).ok_or(ReadFault::WouldWait)?)?
            }
        };
        let e = &placed;
        let name = || segment_name(e.at.segment);
        let opened = match patience {
            Patience::Wait => self.segment_file(e.at.segment),
            Patience::Now => Ok(self.open_segment(e.at.segment).ok_or(ReadFault::WouldWait)?),
        };
        let file = match opened {
            Ok(file) => file,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Err(ReadFault::Gone(*e)),
            Err(err) => return Err(StoreError::io("open", name())(err).into()),
        };
        if e.packed().is_some() {
            return match patience {
                Patience::Wait => self.read_packed(key, e, file.as_ref(), out),
                // Decoding takes longer than handing it to another thread.
                Patience::Now => Err(ReadFault::WouldWait),
            };
        }
        let mut from = e.offset;
        while from < e.end() {
            let to = (from / BLOCK * BLOCK + STEP_BLOCKS * BLOCK).min(e.end());
            let step = Step::new(e, from, to);
            let unsound = if step.in_pages {
                self.read_pages(&step, (file.as_ref(), seed), out, buf, patience)
            } else if step.is_whole() {
                let start = out.len();
                out.resize(start + (to - from) as usize, 0);
                step.read_whole(file.as_ref(), seed, &mut out[start..], patience)
            } else {
                step.read_parts(file.as_ref(), seed, out, buf, patience)
            };
            match unsound {
                Ok(None) => {}
                Ok(Some(block)) => {
                    let end = (block.offset + block.len).min(to);
                    let (x, at) =
                        (block.offset.max(from), u64::from(e.at.at) + u64::from(block.at));
                    let why = format!("checksum mismatch in {} at {at}", name());
                    return Err(rotten(key, x, end - x, why).into());
                }
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                    return Err(ReadFault::WouldWait);
                }
                Err(err) if is_medium_error(&err) => {
                    let why = format!("{} cannot be read: {err}", name());
                    return Err(corrupt(key, from, to - from, why).into());
                }
                Err(err) => return Err(StoreError::io("read", name())(err).into()),
            }
            from = to;
        }
        Ok(())
    }
}

/// A range of an extent that is read at a time.
pub(super) struct Step<'a> {
    pub(super) e: &'a Extent,
    /// The range of the whole payload.
    pub(super) record: (u32, u32),
    in_pages: bool,
    pub(super) from: u32,
    pub(super) to: u32,
    /// The blocks that hold its first and its last byte.
    pub(super) first: Block,
    pub(super) last: Block,
}

impl<'a> Step<'a> {
    fn new(e: &'a Extent, from: u32, to: u32) -> Self {
        let record = e.pages().unwrap_or((e.record_offset, e.record_len));
        let in_pages = e.pages().is_some();
        let block = |x| block_in(in_pages, record, x);
        Self { e, record, in_pages, from, to, first: block(from), last: block(to - 1) }
    }

    /// Whether all of its blocks are wanted from end to end.
    pub(super) fn is_whole(&self) -> bool {
        self.first.offset == self.from && self.last.offset + self.last.len == self.to
    }

    pub(super) fn blocks(&self) -> impl Iterator<Item = Block> {
        let next = |block: &Block| {
            let x = block.offset + block.len;
            (x < self.to).then(|| block_in(self.in_pages, self.record, x))
        };
        std::iter::successors(Some(self.first), next)
    }

    /// Which of its record's blocks this is.
    pub(super) fn number(&self, block: &Block) -> usize {
        (block.offset / BLOCK - self.record.0 / BLOCK) as usize
    }

    pub(super) fn position(&self) -> u64 {
        u64::from(self.e.at.at) + u64::from(self.first.at)
    }

    /// Reads whole blocks straight into their places. The first block that is not what was written, if there is one.
    fn read_whole(
        &self,
        file: &dyn DiskFile,
        seed: ChunkSeed,
        out: &mut [u8],
        patience: Patience,
    ) -> io::Result<Option<Block>> {
        let mut crcs = [[0; CRC_LEN as usize]; STEP_BLOCKS as usize];
        let mut parts =
            Vec::with_capacity(2 * block_count(self.from, self.to - self.from) as usize);
        let mut rest = &mut *out;
        for (block, crc) in self.blocks().zip(&mut crcs) {
            let (piece, behind) = rest.split_at_mut(block.len as usize);
            parts.extend([IoSliceMut::new(piece), IoSliceMut::new(crc)]);
            rest = behind;
        }
        let got =
            read_vectored_full(file, &mut parts, self.position(), patience == Patience::Wait)?;
        let mut blocks = self.blocks().zip(&crcs);
        let unsound = blocks.find(|(block, crc)| {
            let start = (block.offset - self.from) as usize;
            let stored_end = (block.at + block.len + CRC_LEN - self.first.at) as usize;
            stored_end > got
                || seed.crc(block.offset, &out[start..start + block.len as usize])
                    != u32::from_le_bytes(**crc)
        });
        Ok(unsound.map(|(block, _)| block))
    }

    /// Reads blocks of which the first or the last is wanted in part only, behind what `out` has.
    fn read_parts(
        &self,
        file: &dyn DiskFile,
        seed: ChunkSeed,
        out: &mut Vec<u8>,
        buf: &mut Vec<u8>,
        patience: Patience,
    ) -> io::Result<Option<Block>> {
        buf.clear();
        let stored = (self.last.at + self.last.len + CRC_LEN - self.first.at) as usize;
        let got = read_full_onto(file, buf, stored, self.position(), patience == Patience::Wait)?;
        for block in self.blocks() {
            let at = (block.at - self.first.at) as usize;
            let crc_at = at + block.len as usize;
            let sound = crc_at + CRC_LEN as usize <= got
                && seed.crc(block.offset, &buf[at..crc_at]) == get_u32(buf, crc_at);
            if !sound {
                return Ok(Some(block));
            }
            let (x, end) = (block.offset.max(self.from), (block.offset + block.len).min(self.to));
            let (skip, part) = (at + (x - block.offset) as usize, (end - x) as usize);
            out.extend_from_slice(&buf[skip..skip + part]);
        }
        Ok(None)
    }
}
