//! The stored form of a write: blocks with their checksums in between, without copying the data.

use std::io::IoSlice;

use super::format::{BLOCK, ChunkSeed, block_count};
use super::key::ChunkKey;

/// Data cut into blocks, and the checksum of each.
pub(super) struct Payload<'a> {
    /// Pieces in order, each with the number of its block.
    pieces: Vec<(usize, &'a [u8])>,
    crcs: Vec<[u8; 4]>,
}

/// The checksums of `data`, which goes to `offset` of the chunk. `found` is told of each piece of a block, with the block's number.
pub(super) fn cut<'a>(
    key: &ChunkKey,
    offset: u32,
    data: impl Iterator<Item = &'a [u8]>,
    mut found: impl FnMut(usize, &'a [u8]),
) -> Vec<[u8; 4]> {
    let seed = ChunkSeed::new(key);
    let mut crcs = Vec::new();
    let mut at = offset;
    let mut hasher = seed.block(offset);
    for mut part in data {
        crcs.reserve(part.len() / BLOCK as usize + 1);
        while !part.is_empty() {
            let room = (BLOCK - at % BLOCK) as usize;
            let (piece, rest) = part.split_at(room.min(part.len()));
            hasher.update(piece);
            found(crcs.len(), piece);
            at += piece.len() as u32;
            part = rest;
            if at.is_multiple_of(BLOCK) {
                let full = std::mem::replace(&mut hasher, seed.block(at));
                crcs.push(full.finalize().to_le_bytes());
            }
        }
    }
    if !at.is_multiple_of(BLOCK) {
        crcs.push(hasher.finalize().to_le_bytes());
    }
    crcs
}

impl<'a> Payload<'a> {
    /// Cuts `data`, which goes to `offset` of the chunk.
    pub(super) fn new(
        key: &ChunkKey,
        offset: u32,
        len: u32,
        data: impl Iterator<Item = &'a [u8]>,
    ) -> Self {
        let mut pieces = Vec::with_capacity(block_count(offset, len) as usize);
        let crcs = cut(key, offset, data, |block, piece| pieces.push((block, piece)));
        Self { pieces, crcs }
    }

    pub(super) fn slices(&self) -> Vec<IoSlice<'_>> {
        let mut out = Vec::with_capacity(self.pieces.len() + self.crcs.len());
        let mut last = 0;
        for (block, piece) in &self.pieces {
            if *block != last {
                out.push(IoSlice::new(&self.crcs[last]));
                last = *block;
            }
            out.push(IoSlice::new(piece));
        }
        out.extend(self.crcs.last().map(|crc| IoSlice::new(crc)));
        out
    }
}
