//! What the tail knows of its learner.

use std::collections::{BTreeMap, BTreeSet};

use netfs_common::id::ChunkId;
use netfs_common::map::Replica;

/// Chunks that are copied at a time, for one group.
const AT_ONCE: usize = 1;

/// The chunks that a learner does not have yet.
#[derive(Debug)]
pub(super) struct Sync {
    pub(super) learner: Replica,
    /// The versions have been compared. Before, every chunk counts as lacking.
    compared: bool,
    /// Those that differ; before the comparison, those that have changed since it began.
    todo: BTreeSet<ChunkId>,
    /// Those that the learner did not take: when there are no others. It may have no room before it is rid of what it has too much.
    put_off: BTreeSet<ChunkId>,
    /// Those that are being copied, or are about to be. No change of them is begun meanwhile. False: not yet.
    pushing: BTreeMap<ChunkId, bool>,
    sealing: bool,
    pub(super) sealed: bool,
}

impl Sync {
    pub(super) fn new(learner: Replica) -> Sync {
        Sync {
            learner,
            compared: false,
            todo: BTreeSet::new(),
            put_off: BTreeSet::new(),
            pushing: BTreeMap::new(),
            sealing: false,
            sealed: false,
        }
    }

    /// Whether changes of a chunk are passed on.
    pub(super) fn has(&self, chunk: ChunkId) -> bool {
        let lacks = self.todo.contains(&chunk) || self.put_off.contains(&chunk);
        self.compared && !lacks && !self.pushing.contains_key(&chunk)
    }

    /// Whether a chunk is being copied.
    pub(super) fn holds(&self, chunk: ChunkId) -> bool {
        self.pushing.contains_key(&chunk)
    }

    /// The learner lacks this chunk, or may have too much of it.
    pub(super) fn lacks(&mut self, chunk: ChunkId) {
        self.todo.insert(chunk);
        (self.sealing, self.sealed) = (false, false);
    }

    /// The versions have been compared; these differ.
    pub(super) fn compared(&mut self, differ: BTreeSet<ChunkId>) {
        self.compared = true;
        self.todo.extend(differ);
    }

    /// The chain has changed: what was under way is begun again.
    pub(super) fn again(&mut self) {
        self.todo.extend(std::mem::take(&mut self.pushing).into_keys());
        self.sealing = false;
    }

    pub(super) fn is_compared(&self) -> bool {
        self.compared
    }

    /// Chunks to copy now. Those of which a change has been begun wait for it, and no other is begun.
    pub(super) fn next(&mut self, free: impl Fn(ChunkId) -> bool) -> Vec<ChunkId> {
        if !self.compared {
            return Vec::new();
        }
        if self.todo.is_empty() {
            self.todo = std::mem::take(&mut self.put_off);
        }
        while self.pushing.len() < AT_ONCE
            && let Some(chunk) = self.todo.pop_first()
        {
            self.pushing.insert(chunk, false);
        }
        let ready = self.pushing.iter_mut().filter(|(chunk, begun)| !**begun && free(**chunk));
        ready.map(|(chunk, begun)| (*begun = true, *chunk).1).collect()
    }

    /// A copy has ended. What was not done is done again.
    pub(super) fn pushed(&mut self, chunk: ChunkId, done: bool) {
        if self.pushing.remove(&chunk).is_some() && !done {
            self.put_off.insert(chunk);
        }
    }

    /// Nothing differs: whether the learner is to be asked to flush now.
    pub(super) fn seal(&mut self) -> bool {
        let now = self.compared
            && self.todo.is_empty()
            && self.put_off.is_empty()
            && self.pushing.is_empty()
            && !self.sealing
            && !self.sealed;
        self.sealing |= now;
        now
    }

    /// The learner has flushed, or not.
    pub(super) fn flushed(&mut self, done: bool) {
        if std::mem::take(&mut self.sealing) {
            self.sealed = done;
        }
    }

    /// How many chunks are still to be copied.
    pub(super) fn left(&self) -> usize {
        self.todo.len() + self.put_off.len() + self.pushing.len()
    }
}
