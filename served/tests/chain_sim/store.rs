//! What a data server keeps: once in memory, once where power failures do not reach it.

use std::collections::BTreeMap;

use netfs_common::id::{ChunkId, Version};

use super::model::{Cells, Deed, Piece};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) version: Version,
    pub(crate) cells: Cells,
}

/// A chunk as it was after so many changes of the store. `None`: nothing is there.
pub(crate) type Shot = (ChunkId, u64, Option<Entry>);

#[derive(Debug, Default)]
pub(crate) struct Store {
    chunks: BTreeMap<ChunkId, Entry>,
    durable: BTreeMap<ChunkId, (u64, Option<Entry>)>,
    /// When each chunk was changed last.
    changed: BTreeMap<ChunkId, u64>,
    clock: u64,
}

impl Store {
    pub(crate) fn get(&self, chunk: ChunkId) -> Option<Entry> {
        self.chunks.get(&chunk).copied()
    }

    pub(crate) fn cells(&self, chunk: ChunkId) -> Cells {
        self.get(chunk).map_or([0; 2], |entry| entry.cells)
    }

    fn set(&mut self, chunk: ChunkId, version: Version, cells: Cells) {
        self.clock += 1;
        self.changed.insert(chunk, self.clock);
        match cells {
            [0, 0] => self.chunks.remove(&chunk),
            _ => self.chunks.insert(chunk, Entry { version, cells }),
        };
    }

    pub(crate) fn apply(&mut self, chunk: ChunkId, version: Version, deed: Deed) -> Cells {
        let cells = deed.on(self.cells(chunk));
        self.set(chunk, version, cells);
        cells
    }

    pub(crate) fn install(&mut self, chunk: ChunkId, piece: Piece) -> Option<(Version, Cells)> {
        let before = self.cells(chunk);
        match piece {
            Piece::Gone => self.set(chunk, Version::NONE, [0; 2]),
            Piece::First(cell) => self.set(chunk, Version::NONE, [cell, 0]),
            Piece::Last(cell, version) => {
                let cells = [before[0], cell];
                self.set(chunk, version, cells);
                return Some((version, cells));
            }
        }
        None
    }

    /// Removes a chunk for good.
    pub(crate) fn remove(&mut self, chunk: ChunkId) {
        self.set(chunk, Version::NONE, [0; 2]);
        self.keep(vec![(chunk, self.clock, None)]);
    }

    pub(crate) fn list(&self) -> impl Iterator<Item = (ChunkId, Entry)> + '_ {
        self.chunks.iter().map(|(chunk, entry)| (*chunk, *entry))
    }

    /// What is to be made durable.
    pub(crate) fn shoot(&self, of: impl Fn(ChunkId) -> bool) -> Vec<Shot> {
        let changed = self.changed.iter().filter(|(chunk, _)| of(**chunk));
        changed.map(|(chunk, at)| (*chunk, *at, self.get(*chunk))).collect()
    }

    pub(crate) fn keep(&mut self, shots: Vec<Shot>) {
        for (chunk, at, entry) in shots {
            let kept = self.durable.entry(chunk).or_default();
            if at >= kept.0 {
                *kept = (at, entry);
            }
        }
    }

    /// Some of what was durable is lost too, and nobody knows which version anything has.
    pub(crate) fn rot(&mut self, seed: usize) {
        self.lose_power();
        let lost = self.chunks.keys().nth(seed % self.chunks.len().max(1)).copied();
        self.chunks.retain(|chunk, _| Some(*chunk) != lost);
        for (chunk, entry) in &mut self.chunks {
            entry.version = Version::NONE;
            self.clock += 1;
            self.durable.insert(*chunk, (self.clock, Some(*entry)));
        }
        self.durable.extend(lost.map(|chunk| (chunk, (self.clock, None))));
    }

    /// What was not made durable is lost.
    pub(crate) fn lose_power(&mut self) {
        self.chunks =
            self.durable.iter().filter_map(|(chunk, (_, e))| Some((*chunk, (*e)?))).collect();
    }
}
