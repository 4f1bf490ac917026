//! The map from chunks to extents.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::extent::Extents;
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
    One(u64, Extents),
    Many(BTreeMap<u64, Extents>),
}

/// Chunks that were taken out of the index at once, to be looked at and dropped without holding a lock.
#[derive(Default, Debug)]
pub(super) struct Detached(BTreeMap<u64, Extents>);

impl Detached {
    pub(super) fn extents(&self) -> impl Iterator<Item = &super::extent::Extent> {
        self.0.values().flat_map(|e| &e.0)
    }
}

impl Index {
    pub(super) fn chunks(&self) -> u64 {
        self.chunks
    }

    pub(super) fn get(&self, key: &ChunkKey) -> Option<&Extents> {
        match self.files.get(&key.file())? {
            Chunks::One(index, extents) => (*index == key.index).then_some(extents),
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

    /// Changes a chunk's extents; one that did not exist begins empty, one that ends empty is forgotten.
    pub(super) fn update(&mut self, key: &ChunkKey, change: impl FnOnce(&mut Extents)) {
        let chunks = match self.files.entry(key.file()) {
            std::collections::btree_map::Entry::Vacant(entry) => {
                let mut extents = Extents::default();
                change(&mut extents);
                if !extents.0.is_empty() {
                    entry.insert(Chunks::One(key.index, extents));
                    self.chunks += 1;
                }
                return;
            }
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
        };
        let gone = match chunks {
            Chunks::One(index, extents) if *index == key.index => {
                change(extents);
                let gone = extents.0.is_empty();
                self.chunks -= u64::from(gone);
                gone
            }
            Chunks::One(index, extents) => {
                let mut fresh = Extents::default();
                change(&mut fresh);
                if !fresh.0.is_empty() {
                    let map =
                        BTreeMap::from([(*index, std::mem::take(extents)), (key.index, fresh)]);
                    *chunks = Chunks::Many(map);
                    self.chunks += 1;
                }
                false
            }
            Chunks::Many(map) => {
                let before = map.len();
                let extents = map.entry(key.index).or_default();
                change(extents);
                if extents.0.is_empty() {
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
            Some(Chunks::One(index, extents)) => {
                (BTreeMap::from([(*index, std::mem::take(extents))]), true)
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
    ) -> impl Iterator<Item = (u64, &Extents)> {
        let (one, many) = match self.files.get(&file) {
            Some(Chunks::One(index, extents)) => {
                ((from..=last).contains(index).then_some((*index, extents)), None)
            }
            Some(Chunks::Many(map)) if from <= last => (None, Some(map.range(from..=last))),
            _ => (None, None),
        };
        let many = many.into_iter().flatten().map(|(index, extents)| (*index, extents));
        one.into_iter().chain(many)
    }

    /// All chunks from a key on, in order.
    pub(super) fn iter_from(&self, from: ChunkKey) -> impl Iterator<Item = (ChunkKey, &Extents)> {
        let first = from.file();
        self.files.range((Bound::Included(first), Bound::Unbounded)).flat_map(
            move |(file, chunks)| {
                let start = if *file == first { from.index } else { 0 };
                let (one, many) = match chunks {
                    Chunks::One(index, extents) => {
                        ((*index >= start).then_some((*index, extents)), None)
                    }
                    Chunks::Many(map) => (None, Some(map.range(start..))),
                };
                let many = many.into_iter().flatten().map(|(index, extents)| (*index, extents));
                one.into_iter().chain(many).map(|(index, extents)| (file.chunk(index), extents))
            },
        )
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (ChunkKey, &Extents)> {
        self.iter_from(ChunkKey::MIN)
    }

    /// Visits every chunk for change, and forgets those that end empty.
    pub(super) fn retain(&mut self, mut change: impl FnMut(&mut Extents)) {
        let mut count = 0;
        self.files.retain(|_, chunks| match chunks {
            Chunks::One(_, extents) => {
                change(extents);
                count += u64::from(!extents.0.is_empty());
                !extents.0.is_empty()
            }
            Chunks::Many(map) => {
                map.retain(|_, extents| {
                    change(extents);
                    !extents.0.is_empty()
                });
                count += map.len() as u64;
                !map.is_empty()
            }
        });
        self.chunks = count;
    }
}
