//! The table of inodes.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use lru::LruCache;
use netfs_common::id::Ino;

use super::node::Node;
use crate::lease::{Clock, Held};
use crate::session::lock;

/// How many inodes in use are passed over in search of one to evict, before the table is left
/// above its limit for now.
const MAX_PASSED_OVER: usize = 8;

#[derive(Debug)]
struct Inner {
    nodes: LruCache<Ino, Arc<Node>>,
    /// References that the kernel holds. It is as large as the kernel's own table of inodes,
    /// which the kernel bounds by memory; an entry is some 25 bytes.
    refs: HashMap<Ino, u64>,
    /// Inodes without a name that are still in use here.
    orphans: HashSet<Ino>,
}

/// All inodes that the client knows something of.
#[derive(Debug)]
pub struct Table {
    inner: Mutex<Inner>,
    limit: usize,
    clock: Arc<Clock>,
}

impl Table {
    pub(super) fn new(limit: usize, clock: Arc<Clock>) -> Table {
        let inner =
            Inner { nodes: LruCache::unbounded(), refs: HashMap::new(), orphans: HashSet::new() };
        Table { inner: Mutex::new(inner), limit, clock }
    }

    /// An inode, if known.
    pub fn get(&self, ino: Ino) -> Option<Arc<Node>> {
        lock(&self.inner).nodes.get(&ino).cloned()
    }

    /// As [`Table::get`], without counting as a use.
    pub fn peek(&self, ino: Ino) -> Option<Arc<Node>> {
        lock(&self.inner).nodes.peek(&ino).cloned()
    }

    /// An inode, entered if need be.
    pub fn obtain(&self, ino: Ino) -> Arc<Node> {
        let mut inner = lock(&self.inner);
        if let Some(node) = inner.nodes.get(&ino) {
            return Arc::clone(node);
        }
        // The counter begins where none has been: one that was evicted never shows an old value.
        let node = Arc::new(Node::new(ino, self.clock.stamp(), Held::new(&self.clock)));
        inner.nodes.put(ino, Arc::clone(&node));
        let mut passed = 0;
        while inner.nodes.len() > self.limit && passed < MAX_PASSED_OVER {
            let Some((old, candidate)) = inner.nodes.pop_lru() else { break };
            // Handles, queues and operations each hold the node; new holders come only through
            // this table, which is locked.
            if Arc::strong_count(&candidate) > 1 {
                inner.nodes.put(old, candidate);
                passed += 1;
                continue;
            }
            self.clock.evicted(&candidate.state().held);
        }
        node
    }

    /// Removes what is known of an inode.
    pub fn remove(&self, ino: Ino) -> Option<Arc<Node>> {
        let mut inner = lock(&self.inner);
        let node = inner.nodes.pop(&ino)?;
        self.clock.evicted(&node.state().held);
        Some(node)
    }

    /// The kernel was given a reference.
    pub fn refer(&self, ino: Ino) {
        *lock(&self.inner).refs.entry(ino).or_insert(0) += 1;
    }

    /// The kernel has references, or is about to.
    pub fn is_referred(&self, ino: Ino) -> bool {
        ino == Ino::ROOT || lock(&self.inner).refs.contains_key(&ino)
    }

    /// The kernel gives references back. `true` when it has none left and the inode is an
    /// orphan, which then is no longer in use by anybody.
    pub fn forget(&self, ino: Ino, count: u64) -> bool {
        let mut inner = lock(&self.inner);
        if let Some(refs) = inner.refs.get_mut(&ino) {
            *refs = refs.saturating_sub(count);
            if *refs > 0 {
                return false;
            }
            inner.refs.remove(&ino);
        }
        inner.orphans.remove(&ino)
    }

    /// An inode has lost its last name.
    pub fn orphaned(&self, ino: Ino) {
        lock(&self.inner).orphans.insert(ino);
    }

    /// An inode has a name again.
    pub fn adopted(&self, ino: Ino) {
        lock(&self.inner).orphans.remove(&ino);
    }

    /// Orphans that the kernel does not refer to: those whose last reference went before the
    /// name did.
    pub fn unreferenced(&self, inos: impl Iterator<Item = Ino>) -> Vec<Ino> {
        let mut inner = lock(&self.inner);
        let Inner { refs, orphans, .. } = &mut *inner;
        inos.filter(|i| !refs.contains_key(i) && orphans.remove(i)).collect()
    }

    /// All orphans are gone.
    pub fn no_orphans(&self) {
        lock(&self.inner).orphans.clear();
    }

    /// Every inode known.
    pub fn all(&self) -> Vec<Arc<Node>> {
        lock(&self.inner).nodes.iter().map(|(_, n)| Arc::clone(n)).collect()
    }

    /// Every inode that the kernel refers to.
    pub fn referenced(&self) -> Vec<Ino> {
        lock(&self.inner).refs.keys().copied().collect()
    }

    /// How many inodes are known.
    pub fn len(&self) -> usize {
        lock(&self.inner).nodes.len()
    }

    /// No inode is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inodes_in_use_are_not_evicted() {
        let table = Table::new(4, Arc::default());
        let held = table.obtain(Ino(1));
        for i in 2..100 {
            table.obtain(Ino(i));
        }
        assert!(table.len() <= 5);
        assert!(Arc::ptr_eq(&held, &table.obtain(Ino(1))));
    }

    #[test]
    fn an_orphan_goes_with_its_last_reference() {
        let table = Table::new(4, Arc::default());
        table.refer(Ino(7));
        table.refer(Ino(7));
        table.orphaned(Ino(7));
        assert!(!table.forget(Ino(7), 1));
        assert!(table.forget(Ino(7), 1));
        assert!(!table.forget(Ino(7), 1), "only once");
        table.orphaned(Ino(8));
        assert_eq!(table.unreferenced([Ino(8), Ino(9)].into_iter()), vec![Ino(8)]);
    }
}
