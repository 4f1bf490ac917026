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

impl<'a> Payload<'a> {
    /// Cuts `data`, which goes to `offset` of the chunk.
    pub(super) fn new(
        key: &ChunkKey,
        offset: u32,
        len: u32,
        data: impl Iterator<Item = &'a [u8]>,
    ) -> Self {
        let seed = ChunkSeed::new(key);
        let blocks = block_count(offset, len) as usize;
        let mut out = Self { pieces: Vec::with_capacity(blocks), crcs: Vec::with_capacity(blocks) };
        let mut at = offset;
        let mut hasher = seed.block(offset);
        for mut part in data {
            while !part.is_empty() {
                let room = (BLOCK - at % BLOCK) as usize;
                let (piece, rest) = part.split_at(room.min(part.len()));
                hasher.update(piece);
                out.pieces.push((out.crcs.len(), piece));
                at += piece.len() as u32;
                part = rest;
                if at.is_multiple_of(BLOCK) {
                    let full = std::mem::replace(&mut hasher, seed.block(at));
                    out.crcs.push(full.finalize().to_le_bytes());
                }
            }
        }
        if !at.is_multiple_of(BLOCK) {
            out.crcs.push(hasher.finalize().to_le_bytes());
        }
        out
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
