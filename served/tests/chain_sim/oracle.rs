//! Knows what was promised.

use std::collections::HashMap;

use netfs_common::id::{ChunkId, GroupId, Verifier, Version};
use netfs_common::map::ClusterMap;

use super::model::Cells;

/// What is known when a read begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begin {
    floor: usize,
    flushed: usize,
    raised: u64,
    behind: bool,
}

#[derive(Debug)]
struct Chunk {
    group: GroupId,
    /// What it contains after each change of its writer.
    history: Vec<Cells>,
    /// No read that begins now may show what was before this one.
    floor: usize,
    /// This one is never lost.
    flushed: usize,
    /// How often something may have been lost.
    raised: u64,
    /// Something was lost, and its writer has not made it again yet: each cell goes its own way.
    behind: bool,
    deleted: bool,
    /// It is being removed, and copies may be so at any moment.
    going: bool,
}

impl Chunk {
    /// Whether this is a part of what it was after a change, from that one on.
    fn may_be_part(&self, from: usize, part: Cells) -> bool {
        let is_part = |whole: &Cells| (0..2).all(|at| part[at] == whole[at] || part[at] == 0);
        self.history[from..].iter().any(is_part)
    }

    /// Whether one of its cells had this after a change, from that one on.
    fn may_have(&self, from: usize, at: usize, cell: u64) -> bool {
        self.history[from..].iter().any(|cells| cells[at] == cell)
    }
}

#[derive(Debug)]
pub(crate) struct Oracle {
    chunks: Vec<Chunk>,
    verifiers: HashMap<GroupId, Verifier>,
    versions: HashMap<(ChunkId, Version), Cells>,
    pub(crate) reads: u64,
    pub(crate) violation: Option<String>,
}

impl Oracle {
    pub(crate) fn new(groups: impl Iterator<Item = GroupId>) -> Oracle {
        let chunk = |group| Chunk {
            group,
            history: vec![[0; 2]],
            floor: 0,
            flushed: 0,
            raised: 0,
            behind: false,
            deleted: false,
            going: false,
        };
        Oracle {
            chunks: groups.map(chunk).collect(),
            verifiers: HashMap::new(),
            versions: HashMap::new(),
            reads: 0,
            violation: None,
        }
    }

    pub(crate) fn fail(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    /// The number of the writer's next change; it names its cells.
    pub(crate) fn next(&self, index: usize) -> u64 {
        self.chunks[index].history.len() as u64
    }

    /// The writer makes another change, which results in this.
    pub(crate) fn began(&mut self, index: usize, cells: Cells) -> usize {
        self.chunks[index].history.push(cells);
        self.chunks[index].history.len() - 1
    }

    pub(crate) fn latest(&self, index: usize) -> Cells {
        *self.chunks[index].history.last().unwrap()
    }

    /// The writer has its answer; all that it has made and not flushed was answered under this verifier too.
    pub(crate) fn answered(&mut self, index: usize, change: usize, under: Verifier, all: bool) {
        let chunk = &mut self.chunks[index];
        if self.verifiers.get(&chunk.group).is_some_and(|now| *now != under) {
            return;
        }
        if all {
            chunk.behind = false;
        }
        if !chunk.behind {
            chunk.floor = chunk.floor.max(change);
        }
    }

    /// A server that goes by this map tells a client that something in a group is done.
    pub(crate) fn acknowledged(&mut self, map: Option<&ClusterMap>, group: GroupId, by: &str) {
        let chain = map.and_then(|map| Some((map.chain(group)?, map.pool_of(group)?)));
        let Some((chain, pool)) = chain else {
            return self.fail(format!(
                "{by} acknowledges something of group {group}, of which it knows nothing"
            ));
        };
        if chain.replicas.len() < usize::from(pool.min_replicas) {
            let min = pool.min_replicas;
            self.fail(format!(
                "{by} acknowledges something of group {group}, below {min} replicas: {chain:?}"
            ));
        }
    }

    pub(crate) fn flushed(&mut self, index: usize, change: usize) {
        let chunk = &mut self.chunks[index];
        chunk.flushed = chunk.flushed.max(change);
        chunk.floor = chunk.floor.max(change);
    }

    /// A chunk has been removed for ever.
    pub(crate) fn deleted(&mut self, index: usize, change: usize) {
        let chunk = &mut self.chunks[index];
        (chunk.floor, chunk.flushed) = (change, change);
        (chunk.deleted, chunk.behind) = (true, false);
    }

    pub(crate) fn goes(&mut self, index: usize) {
        self.chunks[index].going = true;
    }

    pub(crate) fn is_deleted(&self, index: usize) -> bool {
        self.chunks[index].deleted
    }

    /// What a group's verifier is from now on.
    pub(crate) fn verifier(&mut self, group: GroupId, now: Verifier) {
        let before = self.verifiers.insert(group, now);
        if before.is_none_or(|before| before == now) {
            return;
        }
        for chunk in self.chunks.iter_mut().filter(|chunk| chunk.group == group) {
            chunk.raised += 1;
            chunk.floor = chunk.flushed;
            chunk.behind = !chunk.deleted;
        }
    }

    pub(crate) fn begin(&self, index: usize) -> Begin {
        let chunk = &self.chunks[index];
        Begin {
            floor: chunk.floor,
            flushed: chunk.flushed,
            raised: chunk.raised,
            behind: chunk.behind,
        }
    }

    /// A read that began then has shown this.
    pub(crate) fn read(&mut self, index: usize, begin: Begin, cells: Cells, by: &str) {
        self.reads += 1;
        let chunk = &mut self.chunks[index];
        if chunk.behind || begin.behind || chunk.raised != begin.raised {
            if !(0..2).all(|at| chunk.may_have(begin.flushed, at, cells[at])) {
                let (flushed, shown) = (begin.flushed, chunk.history[begin.flushed]);
                self.fail(format!(
                    "{by}: chunk {index} shows {cells:?}, {shown:?} ({flushed}) was flushed"
                ));
            }
            return;
        }
        let found = chunk.history[begin.floor..].iter().position(|c| *c == cells);
        match found {
            // What is being removed may be gone here and still there elsewhere; and of a copy that is under way meanwhile a part.
            Some(_) if chunk.going => {}
            None if chunk.going && chunk.may_be_part(begin.floor, cells) => {}
            Some(after) => chunk.floor = chunk.floor.max(begin.floor + after),
            None => {
                let (floor, shown) = (begin.floor, chunk.history[begin.floor]);
                self.fail(format!(
                    "{by}: chunk {index} shows {cells:?}, {shown:?} ({floor}) was known before"
                ));
            }
        }
    }

    /// A server has this of a chunk now: whoever has the same version must have the same contents.
    pub(crate) fn stored(&mut self, chunk: ChunkId, version: Version, cells: Cells, by: &str) {
        if version == Version::NONE || self.chunks[chunk.index as usize].going {
            return;
        }
        let first = *self.versions.entry((chunk, version)).or_insert(cells);
        if first != cells {
            self.fail(format!(
                "{by}: chunk {} of version {version} has {cells:?}, elsewhere {first:?}",
                chunk.index
            ));
        }
    }
}
