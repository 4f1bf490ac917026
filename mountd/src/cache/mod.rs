//! What the client knows without asking.
//!
//! While nobody else uses the volume ("exclusive"), everything learned stays true until this
//! client changes it. As soon as another session joins, nothing is kept from one call to the
//! next: nodes remain, as places for locks and buffers, but their attributes are not served.
//!
//! Two things keep stale answers out. Attributes carry the log position of their last change, and
//! of two copies the newer wins, in whatever order answers arrive. Names carry no such mark:
//! each directory has a change counter that moves before and after every change made through
//! this client, and what a lookup found is kept only if the counter has not moved since the
//! question went out.
//!
//! Locks: names or extended attributes before a node's state before contents; the table's lock is
//! a leaf. None is held across an `await`.

mod contents;
mod node;
mod paths;
mod table;
mod touched;

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use lru::LruCache;
use netfs_common::attr::Attr;
use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::name::Name;

use crate::session::{LostPositions, lock};
use crate::vfs::KernelCache;
use contents::Contents;
pub use node::{FailLog, File, Gates, Mark, Node, State};
pub use table::Table;
use touched::touch_name;
pub use touched::{Touched, noting, touch_all, touch_inode};

/// The bounds of the caches.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Inodes whose attributes are kept, besides those in use. About 400 bytes each.
    pub nodes: usize,
    /// Names, absent ones included. About 150 bytes each. The kernel keeps no others.
    pub names: usize,
    /// Bytes of inline files.
    pub contents: usize,
    /// Extended attributes.
    pub xattrs: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { nodes: 64 << 10, names: 96 << 10, contents: 16 << 20, xattrs: 4096 }
    }
}

/// The largest extended attribute that is kept, in bytes.
const MAX_KEPT_XATTR: usize = 1024;

/// When a question was sent, in the terms of the caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    epoch: u64,
    changes: u64,
}

type XattrKey = (Ino, Vec<u8>);

/// All caches of a mount.
pub struct Cache {
    /// The inodes.
    pub table: Table,
    names: Mutex<LruCache<(Ino, Name), Option<Ino>>>,
    name_limit: usize,
    contents: Mutex<Contents>,
    /// `None`: there is no such attribute.
    xattrs: Mutex<LruCache<XattrKey, Option<Vec<u8>>>>,
    exclusive: AtomicBool,
    epoch: AtomicU64,
    /// The epoch since which versions count.
    versions_since: AtomicU64,
    kernel: OnceLock<Arc<dyn KernelCache>>,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("exclusive", &self.exclusive).finish_non_exhaustive()
    }
}

fn at_least_one(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).unwrap_or(NonZeroUsize::MIN)
}

impl Cache {
    /// Empty caches.
    pub fn new(limits: Limits, exclusive: bool) -> Cache {
        Cache {
            table: Table::new(limits.nodes),
            names: Mutex::new(LruCache::unbounded()),
            name_limit: limits.names,
            contents: Mutex::new(Contents::new(limits.contents)),
            xattrs: Mutex::new(LruCache::new(at_least_one(limits.xattrs))),
            exclusive: AtomicBool::new(exclusive),
            epoch: AtomicU64::new(0),
            versions_since: AtomicU64::new(0),
            kernel: OnceLock::new(),
        }
    }

    /// Names the kernel. Every name that it may keep is in the cache of names as well, so that
    /// all can be taken back: a name that is evicted here is taken back from there.
    pub fn set_kernel(&self, kernel: Arc<dyn KernelCache>) {
        // Set once at mount; a second kernel does not exist.
        let _ = self.kernel.set(kernel);
    }

    /// Nobody else uses the volume.
    pub fn exclusive(&self) -> bool {
        self.exclusive.load(Ordering::SeqCst)
    }

    /// To be taken before a question is sent, about an inode or its names.
    pub fn ticket(&self, node: &Node) -> Ticket {
        let epoch = self.epoch.load(Ordering::SeqCst);
        Ticket { epoch, changes: node.state().changes }
    }

    /// Everything learned so far may be untrue from now on. With `forget_versions` the log
    /// positions too: the server may have lost the end of its log.
    pub fn drop_all(&self, exclusive: bool, forget_versions: bool) {
        self.exclusive.store(exclusive, Ordering::SeqCst);
        let epoch = self.epoch.fetch_add(1, Ordering::SeqCst) + 1;
        if forget_versions {
            self.versions_since.store(epoch, Ordering::SeqCst);
        }
        for node in self.table.all() {
            let mut state = node.state();
            state.valid = false;
            state.complete = false;
            state.target = None;
            state.tail_known = false;
            state.paged = 0;
            if forget_versions && let Some(attr) = &mut state.attr {
                attr.version = 0;
            }
        }
        lock(&self.contents).clear();
        lock(&self.xattrs).clear();
        let mut names = lock(&self.names);
        if let Some(kernel) = self.kernel.get() {
            for ((parent, name), _) in names.iter() {
                kernel.inval_entry(*parent, name);
            }
            for ino in self.table.referenced() {
                kernel.inval_data(ino, 0, 0);
            }
        }
        names.clear();
    }

    /// The server has lost what it had answered with some versions: whoever has an inode open that was changed so is
    /// told once.
    pub fn changes_lost(&self, gone: &LostPositions) {
        for node in self.table.all() {
            let mut state = node.state();
            if gone.has(std::mem::take(&mut state.changed_at)) {
                state.failed.add(Errno::EIO);
            }
        }
    }

    /// A directory was made by this client: nothing is in it.
    pub fn made_empty(&self, ticket: Ticket, dir: &Node) {
        let mut state = dir.state();
        state.complete =
            self.exclusive() && self.epoch.load(Ordering::SeqCst) == ticket.epoch && state.valid;
    }

    /// A file was made by this client: the data servers have nothing of it.
    pub fn sole_writer(&self, ticket: Ticket, node: &Node) {
        let alone = self.exclusive() && self.epoch.load(Ordering::SeqCst) == ticket.epoch;
        node.state().tail_known = alone;
    }

    /// Takes in attributes, and the inline data that came with them. Returns the node.
    pub fn learn(&self, ticket: Ticket, mut attr: Attr, inline: Option<Bytes>) -> Arc<Node> {
        let node = self.table.obtain(attr.ino);
        let mut state = node.state();
        if ticket.epoch < self.versions_since.load(Ordering::SeqCst) {
            // Asked in an earlier life of the server, which may have lost it: it yields to whatever
            // this one says.
            attr.version = 0;
        }
        let current = state.attr.as_ref().map_or(0, |a| a.version);
        if attr.version >= current {
            let keep = self.exclusive() && self.epoch.load(Ordering::SeqCst) == ticket.epoch;
            if keep && let Some(data) = inline {
                lock(&self.contents).put(attr.ino, attr.version, data);
            }
            state.valid = keep;
            let outdated = state.paged != 0 && attr.version > state.paged;
            if outdated && let Some(kernel) = self.kernel.get() {
                state.paged = 0;
                kernel.inval_data(attr.ino, 0, 0);
            }
            state.attr = Some(attr);
        }
        drop(state);
        node
    }

    /// Attributes that a change has answered with. What is not cached needs no update.
    pub fn learn_changed(&self, ticket: Ticket, attrs: &[Attr]) {
        for attr in attrs {
            touch_inode(attr.ino);
            if attr.nlink == 0 {
                self.table.orphaned(attr.ino);
            }
            let node = self.learn(ticket, attr.clone(), None);
            let mut state = node.state();
            state.changed_at = state.changed_at.max(attr.version);
        }
    }

    /// Inline data as this client has just written it.
    pub fn put_content(&self, ino: Ino, version: u64, data: Bytes) {
        if self.exclusive() {
            lock(&self.contents).put(ino, version, data);
        }
    }

    /// The inline data of a file, if kept.
    pub fn content(&self, ino: Ino) -> Option<Bytes> {
        lock(&self.contents).get(ino)
    }

    /// The file's data is no longer inline.
    pub fn drop_content(&self, ino: Ino) {
        lock(&self.contents).remove(ino);
    }

    /// A name's inode, or that it has none; outer `None`: unknown.
    pub fn name(&self, parent: Ino, name: &Name) -> Option<Option<Ino>> {
        lock(&self.names).get(&(parent, name.clone())).copied()
    }

    /// A directory is about to be changed, or has been: lookups under way shall not be kept.
    pub fn moved(&self, dir: &Node) {
        let _names = lock(&self.names);
        dir.state().changes = self.table.next_stamp();
    }

    /// The outcome of a change of this client: the name leads to `ino` now.
    pub fn set_name(&self, dir: &Node, name: &Name, ino: Option<Ino>) {
        touch_name(dir.ino, name);
        let mut names = lock(&self.names);
        dir.state().changes = self.table.next_stamp();
        if self.exclusive() {
            names.put((dir.ino, name.clone()), ino);
        }
        self.shrink(names);
    }

    /// A name about which nothing is known any more.
    pub fn unknown_name(&self, dir: &Node, name: &Name) {
        touch_name(dir.ino, name);
        let mut names = lock(&self.names);
        let mut state = dir.state();
        state.changes = self.table.next_stamp();
        state.complete = false;
        drop(state);
        names.pop(&(dir.ino, name.clone()));
    }

    /// What a lookup has found, if it is still true. Whether it is, and may be kept.
    pub fn learn_name(&self, ticket: Ticket, dir: &Node, name: &Name, ino: Option<Ino>) -> bool {
        let mut names = lock(&self.names);
        let fresh = self.fresh(ticket, dir);
        if fresh {
            names.put((dir.ino, name.clone()), ino);
            self.shrink(names);
        }
        fresh
    }

    /// The ticket's question is as good as if it were asked now.
    pub fn fresh(&self, ticket: Ticket, node: &Node) -> bool {
        self.exclusive()
            && self.epoch.load(Ordering::SeqCst) == ticket.epoch
            && node.state().changes == ticket.changes
    }

    /// Evicts down to the limit. A directory that loses a name is no longer known completely.
    fn shrink(&self, mut names: std::sync::MutexGuard<'_, LruCache<(Ino, Name), Option<Ino>>>) {
        let mut parents = Vec::new();
        while names.len() > self.name_limit
            && let Some(((parent, name), target)) = names.pop_lru()
        {
            if let Some(kernel) = self.kernel.get() {
                kernel.inval_entry(parent, &name);
            }
            if target.is_some() {
                parents.push(parent);
            }
        }
        // Still under the lock of the names, so that nobody sees the directory complete without it.
        for parent in parents {
            if let Some(node) = self.table.peek(parent) {
                node.state().complete = false;
            }
        }
        drop(names);
    }

    /// All names of a directory are cached, so that others do not exist.
    pub fn absent_for_sure(&self, dir: &Node, name: &Name) -> bool {
        let mut names = lock(&self.names);
        let known = names.get(&(dir.ino, name.clone())).copied();
        match known {
            Some(ino) => ino.is_none(),
            None => self.exclusive() && dir.state().complete,
        }
    }

    /// A cached extended attribute; inner `None`: there is none.
    pub fn xattr(&self, ino: Ino, name: &[u8]) -> Option<Option<Vec<u8>>> {
        lock(&self.xattrs).get(&(ino, name.to_vec())).cloned()
    }

    /// What a question for an extended attribute has found.
    pub fn learn_xattr(&self, ticket: Ticket, node: &Node, name: &[u8], value: Option<Vec<u8>>) {
        let mut xattrs = lock(&self.xattrs);
        let small = value.as_ref().is_none_or(|v| v.len() <= MAX_KEPT_XATTR);
        if small && self.fresh(ticket, node) {
            xattrs.put((node.ino, name.to_vec()), value);
        }
    }

    /// Extended attributes of an inode are about to change, or have.
    pub fn xattrs_moved(&self, node: &Node) {
        let mut xattrs = lock(&self.xattrs);
        node.state().changes = self.table.next_stamp();
        let mine: Vec<XattrKey> =
            xattrs.iter().map(|(k, _)| k).filter(|k| k.0 == node.ino).cloned().collect();
        for key in mine {
            xattrs.pop(&key);
        }
    }
}
