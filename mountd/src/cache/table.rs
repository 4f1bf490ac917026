//! The table of inodes.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use lru::LruCache;
use netfs_common::id::Ino;

use super::node::{Left, Node};
use crate::lease::{Clock, Held};
use crate::session::lock;

/// How many inodes in use are passed over in search of one to evict, before the table is left
/// above its limit for now.
const MAX_PASSED_OVER: usize = 8;
/// So many inodes that are gone for good are remembered, for answers that were under way when they went. Some 50 bytes each.
const MAX_GONE: usize = 1 << 16;

/// An inode without a name that is still in use here.
#[derive(Clone, Copy, Debug, Default)]
struct Orphan {
    /// The server has said so, and that it is on stable storage: it will never have a name again.
    for_good: bool,
    /// The kernel was asked to forget it.
    asked: bool,
}

/// An orphan that the kernel refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lingering {
    /// Its number.
    pub ino: Ino,
    /// The kernel was asked before to forget it.
    pub again: bool,
}

#[derive(Debug)]
struct Inner {
    nodes: LruCache<Ino, Arc<Node>>,
    /// References that the kernel holds. It is as large as the kernel's own table of inodes,
    /// which the kernel bounds by memory; an entry is some 25 bytes.
    refs: HashMap<Ino, u64>,
    /// Of those to which the kernel refers and that were evicted: what it knows.
    left: HashMap<Ino, Left>,
    /// Inodes without a name that are still in use here.
    orphans: BTreeMap<Ino, Orphan>,
    /// Inodes that were given up for good: the kernel gets no reference to them any more.
    gone: LruCache<Ino, ()>,
}

impl Inner {
    /// An inode is an orphan that nobody here uses: given up from now on. `false` if it is no orphan.
    fn give_up(&mut self, ino: Ino) -> bool {
        let Some(orphan) = self.orphans.remove(&ino) else { return false };
        if orphan.for_good {
            self.gone.put(ino, ());
            if self.gone.len() > MAX_GONE {
                self.gone.pop_lru();
            }
        }
        true
    }
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
        let inner = Inner {
            nodes: LruCache::unbounded(),
            refs: HashMap::new(),
            left: HashMap::new(),
            orphans: BTreeMap::new(),
            gone: LruCache::unbounded(),
        };
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
        if ino == Ino::ROOT || inner.refs.contains_key(&ino) {
            let left = inner.left.remove(&ino);
            node.state().resume(left);
        }
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
            let state = candidate.state();
            self.clock.evicted(&state.held);
            if inner.refs.contains_key(&old) {
                inner.left.insert(old, state.leave());
            }
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

    /// The kernel is given a reference. `false`: it must not be, since the inode was given up for good while the answer was under
    /// way that leads to it.
    #[must_use]
    pub fn refer(&self, ino: Ino) -> bool {
        let mut inner = lock(&self.inner);
        if inner.gone.contains(&ino) {
            return false;
        }
        *inner.refs.entry(ino).or_insert(0) += 1;
        true
    }

    /// Of what is not known here the kernel may know anything.
    pub(super) fn nothing_left(&self) {
        lock(&self.inner).left.clear();
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
            inner.left.remove(&ino);
        }
        inner.give_up(ino)
    }

    /// An inode has lost its last name.
    pub fn orphaned(&self, ino: Ino) {
        lock(&self.inner).orphans.entry(ino).or_default();
    }

    /// An inode has lost its last name, and will never have one again. `true` when the kernel does not refer to it, so that it is
    /// no longer in use by anybody.
    pub fn orphaned_for_good(&self, ino: Ino) -> bool {
        let mut inner = lock(&self.inner);
        inner.orphans.entry(ino).or_default().for_good = true;
        !inner.refs.contains_key(&ino) && inner.give_up(ino)
    }

    /// Orphans that the kernel refers to, of those with higher numbers than `after`, in order, looking at `limit` orphans at most. They count
    /// as ones that it was asked to forget. `None`: there are no more.
    pub fn lingering(&self, after: Ino, limit: usize) -> Option<(Ino, Vec<Lingering>)> {
        let mut inner = lock(&self.inner);
        let Inner { refs, orphans, .. } = &mut *inner;
        let (mut last, mut all) = (None, Vec::new());
        for (ino, orphan) in orphans.range_mut(Ino(after.0.saturating_add(1))..).take(limit) {
            last = Some(*ino);
            if refs.contains_key(ino) {
                let again = std::mem::replace(&mut orphan.asked, true);
                all.push(Lingering { ino: *ino, again });
            }
        }
        Some((last?, all))
    }

    /// An inode has a name again.
    pub fn adopted(&self, ino: Ino) {
        lock(&self.inner).orphans.remove(&ino);
    }

    /// Orphans that the kernel does not refer to: those whose last reference went before the
    /// name did.
    pub fn unreferenced(&self, inos: impl Iterator<Item = Ino>) -> Vec<Ino> {
        let mut inner = lock(&self.inner);
        inos.filter(|ino| !inner.refs.contains_key(ino) && inner.give_up(*ino)).collect()
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
        assert!(table.refer(Ino(7)) && table.refer(Ino(7)));
        table.orphaned(Ino(7));
        assert!(!table.forget(Ino(7), 1));
        assert!(table.forget(Ino(7), 1));
        assert!(!table.forget(Ino(7), 1), "only once");
        table.orphaned(Ino(8));
        assert_eq!(table.unreferenced([Ino(8), Ino(9)].into_iter()), vec![Ino(8)]);
        assert!(table.refer(Ino(8)), "the server may have lost the end of its name");
    }

    #[test]
    fn what_is_gone_for_good_is_not_referred_to_any_more() {
        let table = Table::new(4, Arc::default());
        assert!(table.refer(Ino(7)));
        assert!(!table.orphaned_for_good(Ino(7)), "it is in use");
        assert!(table.refer(Ino(7)));
        assert!(table.forget(Ino(7), 2));
        assert!(!table.refer(Ino(7)));
        table.orphaned(Ino(8));
        assert!(table.orphaned_for_good(Ino(8)) && !table.refer(Ino(8)));
        assert!(table.orphaned_for_good(Ino(8)), "told again, it is given up again");
        for ino in 100..100 + MAX_GONE as u64 {
            assert!(table.orphaned_for_good(Ino(ino)));
        }
        assert_eq!(lock(&table.inner).gone.len(), MAX_GONE);
    }

    #[test]
    fn orphans_that_the_kernel_refers_to_are_gone_through_in_parts() {
        let table = Table::new(4, Arc::default());
        for ino in 1..=5 {
            assert!(table.refer(Ino(ino)));
            table.orphaned(Ino(ino));
        }
        table.orphaned(Ino(6));
        assert!(table.forget(Ino(2), 1));
        let some = |inos: &[u64], again| -> Vec<Lingering> {
            inos.iter().map(|ino| Lingering { ino: Ino(*ino), again }).collect()
        };
        assert_eq!(table.lingering(Ino(0), 2), Some((Ino(3), some(&[1, 3], false))));
        assert_eq!(table.lingering(Ino(3), 9), Some((Ino(6), some(&[4, 5], false))));
        assert_eq!(table.lingering(Ino(6), 9), None);
        assert_eq!(table.lingering(Ino(0), 2), Some((Ino(3), some(&[1, 3], true))));
    }
}
