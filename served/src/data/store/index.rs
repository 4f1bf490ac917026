//! The map of all chunks.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::chunk::Chunk;
use super::key::{ChunkKey, FileKey};

/// All chunks that hold data. A chunk without extents is not in it.
#[derive(Default, Debug)]
pub(super) struct Index {
    files: BTreeMap<FileKey, Chunks>,
    chunks: u64,
}

/// The chunks of one file. Most files have one, which then needs no map of its own.
#[derive(Debug)]
enum Chunks {
    One(u64, Chunk),
    Many(BTreeMap<u64, Chunk>),
}

/// Chunks that were taken out of the index at once, to be looked at and dropped without holding a lock.
#[derive(Default, Debug)]
pub(super) struct Detached(BTreeMap<u64, Chunk>);

impl Detached {
    pub(super) fn chunks(&self) -> impl Iterator<Item = &Chunk> {
        self.0.values()
    }
}

impl Index {
    pub(super) fn chunks(&self) -> u64 {
        self.chunks
    }

    pub(super) fn get(&self, key: &ChunkKey) -> Option<&Chunk> {
        match self.files.get(&key.file())? {
            Chunks::One(index, chunk) => (*index == key.index).then_some(chunk),
            Chunks::Many(map) => map.get(&key.index),
        }
    }

    pub(super) fn has_any(&self, file: FileKey, from: u64) -> bool {
        match self.files.get(&file) {
            None => false,
            Some(Chunks::One(index, _)) => *index >= from,
            Some(Chunks::Many(map)) => map.range(from..).next().is_some(),
        }
    }

    /// Changes a chunk; one that did not exist begins empty, one that ends empty is forgotten.
    pub(super) fn update(&mut self, key: &ChunkKey, change: impl FnOnce(&mut Chunk)) {
        let chunks = match self.files.entry(key.file()) {
            std::collections::btree_map::Entry::Vacant(entry) => {
                let mut chunk = Chunk::default();
                change(&mut chunk);
                if !chunk.is_empty() {
                    entry.insert(Chunks::One(key.index, chunk));
                    self.chunks += 1;
                }
                return;
            }
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
        };
        let gone = match chunks {
            Chunks::One(index, chunk) if *index == key.index => {
                change(chunk);
                let gone = chunk.is_empty();
                self.chunks -= u64::from(gone);
                gone
            }
            Chunks::One(index, chunk) => {
                let mut fresh = Chunk::default();
                change(&mut fresh);
                if !fresh.is_empty() {
                    let map = BTreeMap::from([(*index, std::mem::take(chunk)), (key.index, fresh)]);
                    *chunks = Chunks::Many(map);
                    self.chunks += 1;
                }
                false
            }
            Chunks::Many(map) => {
                let before = map.len();
                let chunk = map.entry(key.index).or_default();
                change(chunk);
                if chunk.is_empty() {
                    map.remove(&key.index);
                }
                self.chunks = self.chunks + map.len() as u64 - before as u64;
                map.is_empty()
            }
        };
        if gone {
            self.files.remove(&key.file());
        }
    }

    /// Takes out all chunks of a file from an index on.
    pub(super) fn detach(&mut self, file: FileKey, from: u64) -> Detached {
        let (out, gone) = match self.files.get_mut(&file) {
            None => return Detached::default(),
            Some(Chunks::One(index, _)) if *index < from => return Detached::default(),
            Some(Chunks::One(index, chunk)) => {
                (BTreeMap::from([(*index, std::mem::take(chunk))]), true)
            }
            Some(Chunks::Many(map)) => {
                let out = map.split_off(&from);
                (out, map.is_empty())
            }
        };
        if gone {
            self.files.remove(&file);
        }
        self.chunks -= out.len() as u64;
        Detached(out)
    }

    /// Keys of a file's chunks from an index on.
    pub(super) fn keys_of(&self, file: FileKey, from: u64) -> Vec<ChunkKey> {
        match self.files.get(&file) {
            None => Vec::new(),
            Some(Chunks::One(index, _)) => {
                (*index >= from).then(|| file.chunk(*index)).into_iter().collect()
            }
            Some(Chunks::Many(map)) => {
                map.range(from..).map(|(index, _)| file.chunk(*index)).collect()
            }
        }
    }

    /// A file's chunks from one index to another, both included, in order.
    pub(super) fn chunks_of(
        &self,
        file: FileKey,
        from: u64,
        last: u64,
    ) -> impl Iterator<Item = (u64, &Chunk)> {
        let (one, many) = match self.files.get(&file) {
            Some(Chunks::One(index, chunk)) => {
                ((from..=last).contains(index).then_some((*index, chunk)), None)
            }
            Some(Chunks::Many(map)) if from <= last => (None, Some(map.range(from..=last))),
            _ => (None, None),
        };
        let many = many.into_iter().flatten().map(|(index, chunk)| (*index, chunk));
        one.into_iter().chain(many)
    }

    /// All chunks from a key on, in order.
    pub(super) fn iter_from(&self, from: ChunkKey) -> impl Iterator<Item = (ChunkKey, &Chunk)> {
        let first = from.file();
        self.files.range((Bound::Included(first), Bound::Unbounded)).flat_map(
            move |(file, chunks)| {
                let start = if *file == first { from.index } else { 0 };
                let (one, many) = match chunks {
                    Chunks::One(index, chunk) => {
                        ((*index >= start).then_some((*index, chunk)), None)
                    }
                    Chunks::Many(map) => (None, Some(map.range(start..))),
                };
                let many = many.into_iter().flatten().map(|(index, chunk)| (*index, chunk));
                one.into_iter().chain(many).map(|(index, chunk)| (file.chunk(index), chunk))
            },
        )
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (ChunkKey, &Chunk)> {
        self.iter_from(ChunkKey::MIN)
    }

    /// Visits every chunk for change, and forgets those that end empty.
    pub(super) fn retain(&mut self, mut change: impl FnMut(&mut Chunk)) {
        let mut count = 0;
        self.files.retain(|_, chunks| match chunks {
            Chunks::One(_, chunk) => {
                change(chunk);
                count += u64::from(!chunk.is_empty());
                !chunk.is_empty()
            }
            Chunks::Many(map) => {
                map.retain(|_, chunk| {
                    change(chunk);
                    !chunk.is_empty()
                });
                count += map.len() as u64;
                !map.is_empty()
            }
        });
        self.chunks = count;
    }
}
