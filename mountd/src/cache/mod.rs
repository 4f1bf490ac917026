//! What the client knows without asking.
//!
//! What was learned under a lease stays true until this client changes it or the server recalls it. Nodes without
//! a lease remain, as places for locks and buffers, but their attributes are not served.
//!
//! Three things keep stale answers out. An answer is kept only if the rules of [`crate::lease`] allow it. Attributes carry the log
//! position of their last change, and of two copies the newer wins, in whatever order answers arrive. Names carry no such mark:
//! each directory has a change counter that moves before and after every change made through
//! this client, and what a lookup found is kept only if the counter has not moved since the
//! question went out.
//!
//! Locks: names or extended attributes before a node's state before contents or pages; the table's lock is
//! a leaf. None is held across an `await`.

mod contents;
mod expired;
mod node;
mod pages;
mod paths;
mod table;
mod touched;

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use lru::LruCache;
use netfs_common::attr::Attr;
use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::name::Name;
use netfs_common::wire::lease::{Grant, Lease, Names};
use netfs_common::wire::meta::granted;

use crate::lease::{self, Clock};
use crate::session::{Changed, LostPositions, Restored, lock, since_boot};
use crate::vfs::{FOREVER, KernelCache};
use contents::Contents;
use expired::Expired;
pub use node::{FailLog, File, Gates, Mark, Node, State};
pub use pages::{Coming, Fetch, Found, Held, Key, Pages};
pub use table::{Lingering, Table};
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
    /// Bytes that were read ahead, or are being, of all files together. With 0 nothing is read ahead.
    pub ahead: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            nodes: 64 << 10,
            names: 96 << 10,
            contents: 16 << 20,
            xattrs: 4096,
            ahead: 128 << 20,
        }
    }
}

/// The largest extended attribute that is kept, in bytes.
const MAX_KEPT_XATTR: usize = 1024;

/// When a question was sent, in the terms of the caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    leases: lease::Ticket,
    changes: u64,
}

/// A cached name.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// `None`: there is no such name.
    ino: Option<Ino>,
    /// The kernel may have it in its cache too.
    told: bool,
}

/// For so long the kernel is given no names of a directory to keep after another client has changed one: to take names back from it
/// is dearer than to be asked.
const CONTENDED: Duration = Duration::from_secs(2);

/// For so long after a change the kernel is given no attributes to keep. It first notes that what it has is good again and then
/// stores it, and whoever looks in between sees what was before (`fuse_change_attributes_common` in Linux 6.18). Who has asked by
/// itself meanwhile would go back in time.
pub const SETTLES: Duration = Duration::from_millis(2);
/// Likewise after a change by another client, when more are likely to come.
const DISPUTED: Duration = Duration::from_millis(100);

type XattrKey = (Ino, Vec<u8>);

/// What the kernel was given under leases that are gone.
#[derive(Debug, Default)]
pub struct Remnant {
    /// Inodes with pages or attributes.
    pub inodes: Vec<Ino>,
    /// Names, by their directories.
    pub names: Vec<(Ino, Vec<Name>)>,
}

/// All caches of a mount.
pub struct Cache {
    /// The inodes.
    pub table: Table,
    names: Mutex<LruCache<(Ino, Name), Known>>,
    name_limit: usize,
    /// Its lock is a leaf.
    expired: Mutex<Expired>,
    contents: Mutex<Contents>,
    /// What was read ahead. Its lock is a leaf.
    pub pages: Pages,
    /// `None`: there is no such attribute.
    xattrs: Mutex<LruCache<XattrKey, Option<Vec<u8>>>>,
    /// Until when leases may be relied upon, in nanoseconds since boot.
    alive_until: AtomicU64,
    clock: Arc<Clock>,
    /// Versions that the server has given out in earlier lives, and lost.
    gone: Mutex<LostPositions>,
    kernel: OnceLock<Arc<dyn KernelCache>>,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("alive_until", &self.alive_until).finish_non_exhaustive()
    }
}

fn at_least_one(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).unwrap_or(NonZeroUsize::MIN)
}

impl Cache {
    /// Empty caches.
    pub fn new(limits: Limits) -> Cache {
        let clock = Arc::<Clock>::default();
        Cache {
            table: Table::new(limits.nodes, clock.clone()),
            names: Mutex::new(LruCache::unbounded()),
            name_limit: limits.names,
            expired: Mutex::new(Expired::new()),
            contents: Mutex::new(Contents::new(limits.contents)),
            pages: Pages::new(limits.ahead),
            xattrs: Mutex::new(LruCache::new(at_least_one(limits.xattrs))),
            alive_until: AtomicU64::new(0),
            clock,
            gone: Mutex::default(),
            kernel: OnceLock::new(),
        }
    }

    /// Names the kernel. Every name that it may keep is in the cache of names as well, so that
    /// all can be taken back: a name that is evicted here is taken back from there.
    pub fn set_kernel(&self, kernel: Arc<dyn KernelCache>) {
        // Set once at mount; a second kernel does not exist.
        let _ = self.kernel.set(kernel);
    }

    /// Leases may be relied upon until a time since boot.
    pub fn alive(&self, until: Duration) {
        let nanos = u64::try_from(until.as_nanos()).unwrap_or(u64::MAX);
        self.alive_until.store(nanos, Ordering::SeqCst);
    }

    /// For how long from now on leases may be relied upon without hearing of the server; zero if no longer. A process that was
    /// stopped finds out here, before it serves anything.
    pub fn ttl(&self) -> Duration {
        let until = Duration::from_nanos(self.alive_until.load(Ordering::SeqCst));
        until.saturating_sub(since_boot()).min(FOREVER)
    }

    /// Inodes on which there are leases, for reading and for writing.
    pub fn leases(&self) -> (u64, u64) {
        let held = |lease| {
            self.table.all().iter().filter(|n| n.state().held.mode() == Some(lease)).count()
        };
        (held(Lease::Read) as u64, held(Lease::Write) as u64)
    }

    /// Leases may be relied upon.
    pub fn live(&self) -> bool {
        !self.ttl().is_zero()
    }

    /// To be taken before a question is sent, about an inode or its names.
    pub fn ticket(&self, node: &Node) -> Ticket {
        let leases = self.clock.ticket();
        Ticket { leases, changes: node.state().changes }
    }

    /// Under what circumstances the data of a file is what its attributes say; `None` without a lease, and for what is not in chunks.
    pub fn page_key(&self, state: &State) -> Option<Key> {
        let kept = state.valid && state.held.mode().is_some() && !state.is_inline();
        let attr = state.attr.as_ref().filter(|_| kept)?;
        let recalled = state.held.last_recall();
        Some(Key { epoch: self.clock.epoch(), recalled, generation: attr.generation })
    }

    /// Nothing of the inode was recalled since the question.
    fn in_time(&self, ticket: Ticket, state: &State) -> bool {
        state.held.in_time(ticket.leases, &self.clock)
    }

    /// There is a lease on the inode, and nothing of it was recalled since the question.
    pub fn still_holds(&self, ticket: Ticket, state: &State) -> bool {
        state.held.mode().is_some() && self.in_time(ticket, state)
    }

    /// All leases are gone. With `forget_versions` the log positions too: the server may have lost
    /// the end of its log. Returns what is to be taken back from the kernel, and those without which what is buffered could not be sent.
    pub fn drop_all(&self, forget_versions: bool) -> (Remnant, Vec<(Ino, Lease)>) {
        self.drop_leases(forget_versions, |_| false)
    }

    /// Nothing has been heard of the server for so long that nothing may be served. The session may live on for all that, with
    /// what it holds for writing: then what is buffered is sent under those leases, and before they are given back. Returns what is to be
    /// taken back from the kernel.
    pub fn lapse(&self) -> Remnant {
        self.drop_leases(false, State::has_unsent).0
    }

    fn drop_leases(
        &self,
        forget_versions: bool,
        to_send: impl Fn(&State) -> bool,
    ) -> (Remnant, Vec<(Ino, Lease)>) {
        let mut held = Vec::new();
        self.clock.drop_all();
        self.table.nothing_left();
        for node in self.table.all() {
            let mut state = node.state();
            if state.held.writes() && state.file.is_some() {
                held.push((node.ino, Lease::Write));
            }
            let unsent = to_send(&state);
            state.held.dropped(unsent);
            state.disown();
            state.not_shown();
            state.behind = true;
            if forget_versions && let Some(attr) = &mut state.attr {
                attr.version = 0;
            }
        }
        lock(&self.contents).clear();
        // After every lease is gone: nothing is entered under the new epoch before one is granted again.
        self.pages.clear();
        lock(&self.xattrs).clear();
        let mut by_directory: HashMap<Ino, Vec<Name>> = HashMap::new();
        let mut names = lock(&self.names);
        while let Some(((parent, name), known)) = names.pop_lru() {
            self.expired(parent, &name, known);
            by_directory.entry(parent).or_default().push(name);
        }
        drop(names);
        if self.kernel.get().is_none() {
            return (Remnant::default(), held);
        }
        // The kernel has the root without having looked it up.
        let mut inodes = self.table.referenced();
        inodes.push(Ino::ROOT);
        (Remnant { inodes, names: by_directory.into_iter().collect() }, held)
    }

    /// Changes whenever all leases go.
    pub fn epoch(&self) -> u64 {
        self.clock.epoch()
    }

    /// The server has lost what it had answered with some versions: whoever has an inode open that was changed so is
    /// told once, unless the change has been made again.
    pub fn changes_lost(&self, gone: &LostPositions, restored: &Restored) {
        *lock(&self.gone) = gone.clone();
        for node in self.table.all() {
            let mut state = node.state();
            let at = std::mem::take(&mut state.changed_at);
            let lost = gone.has(at) && !restored.positions.contains(&at);
            if lost || restored.missing.contains(&node.ino) {
                state.failed.add(Errno::EIO);
            }
        }
    }

    /// A directory was made by this client: nothing is in it.
    pub fn made_empty(&self, ticket: Ticket, dir: &Node) {
        let mut state = dir.state();
        state.complete = self.in_time(ticket, &state) && state.valid;
    }

    /// What the data servers have beyond the file's length is known: nothing, but for what this client sends.
    pub fn tail_known(&self, ticket: Ticket, node: &Node) {
        let mut state = node.state();
        state.tail_known = self.in_time(ticket, &state) && state.owned();
    }

    /// Takes in attributes, and the inline data that came with them. Returns the node.
    pub fn learn(
        &self,
        ticket: Ticket,
        mut attr: Attr,
        inline: Option<Bytes>,
        grant: Option<Grant>,
    ) -> Arc<Node> {
        let node = self.table.obtain(attr.ino);
        let mut state = node.state();
        if lock(&self.gone).has(attr.version) {
            // Answered in an earlier life of the server, which has lost it: it yields to whatever this one says. All other versions
            // are good in every life; so of two answers the older never wins, whenever it was asked for.
            attr.version = 0;
        }
        let current = state.attr.as_ref().map_or(0, |a| a.version);
        let grant = grant.filter(|_| self.in_time(ticket, &state));
        let served = state.held.answered(ticket.leases, &self.clock, grant.map(|g| g.lease));
        state.tail_known |= grant.is_some_and(|g| g.tail_known && g.lease == Lease::Write);
        if attr.version >= current {
            if grant.is_some()
                && let Some(data) = inline
            {
                lock(&self.contents).put(attr.ino, attr.version, data);
            }
            // Otherwise it stays as it is: a lease that is held covers this client's own changes.
            state.valid |= served;
            state.attr = Some(attr);
        }
        drop(state);
        node
    }

    /// Attributes that a change has answered with. What is not cached needs no update.
    pub fn learn_changed(&self, ticket: Ticket, changed: &Changed) {
        for attr in &changed.attrs {
            touch_inode(attr.ino);
            let node = self.learn(ticket, attr.clone(), None, granted(&changed.grants, attr.ino));
            let mut state = node.state();
            state.changed_at = state.changed_at.max(changed.at);
            state.held.changed(self.clock.stamp());
        }
    }

    /// Inline data as this client has just written it.
    pub fn put_content(&self, node: &Node, version: u64, data: Bytes) {
        // Under the lock: once the lease is gone nothing is kept.
        let state = node.state();
        if state.held.writes() {
            lock(&self.contents).put(node.ino, version, data);
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
        lock(&self.names).get(&(parent, name.clone())).map(|known| known.ino)
    }

    /// A directory is about to be changed, or has been: lookups under way shall not be kept.
    pub fn moved(&self, dir: &Node) {
        let _names = lock(&self.names);
        dir.state().changes = self.clock.stamp();
    }

    /// The outcome of a change of this client: the name leads to `ino` now. Returns for how long the kernel may keep that.
    pub fn set_name(&self, ticket: Ticket, dir: &Node, name: &Name, ino: Option<Ino>) -> Duration {
        touch_name(dir.ino, name);
        let names = lock(&self.names);
        let mut state = dir.state();
        state.changes = self.clock.stamp();
        if state.held.mode().is_none() || !self.in_time(ticket, &state) {
            // Somebody else may have changed it since.
            state.complete = false;
            drop(state);
            return self.forget_name(names, dir, name);
        }
        let ttl = self.name_ttl(&state);
        // The lock of the names keeps recalls of them away.
        drop(state);
        self.keep_name(names, dir, name, ino, ttl);
        ttl
    }

    /// The kernel has moved a name, and keeps the new one for as long as it was told to keep the old one.
    pub fn moved_name(&self, dir: &Node, name: &Name) {
        if let Some(known) = lock(&self.names).get_mut(&(dir.ino, name.clone())) {
            known.told = true;
        } else if let Some(kernel) = self.kernel.get() {
            // Somebody else may have changed it since, and nobody would take it back later.
            kernel.inval_entry(dir.ino, name);
        }
    }

    fn forget_name(
        &self,
        mut names: MutexGuard<'_, LruCache<(Ino, Name), Known>>,
        dir: &Node,
        name: &Name,
    ) -> Duration {
        let known = names.pop(&(dir.ino, name.clone()));
        if known.is_some_and(|known| known.told)
            && let Some(kernel) = self.kernel.get()
        {
            kernel.inval_entry(dir.ino, name);
        }
        Duration::ZERO
    }

    fn keep_name(
        &self,
        mut names: MutexGuard<'_, LruCache<(Ino, Name), Known>>,
        dir: &Node,
        name: &Name,
        ino: Option<Ino>,
        ttl: Duration,
    ) {
        let before = names.peek(&(dir.ino, name.clone())).is_some_and(|known| known.told);
        names.put((dir.ino, name.clone()), Known { ino, told: before || !ttl.is_zero() });
        self.shrink(names);
    }

    /// For how long the kernel may keep names of a directory.
    fn name_ttl(&self, dir: &State) -> Duration {
        if dir.contended > since_boot() { Duration::ZERO } else { self.ttl() }
    }

    /// Others have changed names of a directory a short while ago.
    pub fn contended(&self, dir: &Node) -> bool {
        dir.state().contended > since_boot()
    }

    /// A name that is known, and for how long the kernel may keep it.
    pub fn give_name(&self, dir: &Node, name: &Name) -> Option<(Option<Ino>, Duration)> {
        let mut names = lock(&self.names);
        let ttl = self.name_ttl(&dir.state());
        let known = names.get_mut(&(dir.ino, name.clone()))?;
        known.told |= !ttl.is_zero();
        Some((known.ino, ttl))
    }

    /// A name that does not exist for sure, because all of the directory are known: for how long the kernel may keep that.
    pub fn give_absent(&self, dir: &Node, name: &Name) -> Option<Duration> {
        let names = lock(&self.names);
        let state = dir.state();
        if !state.complete || names.contains(&(dir.ino, name.clone())) {
            return None;
        }
        let ttl = self.name_ttl(&state);
        drop(state);
        // Noted, so that the kernel can be told should it appear by another hand.
        self.keep_name(names, dir, name, None, ttl);
        Some(ttl)
    }

    /// Names of a directory become untrue. Returns those that are known here, with where they led, and whether the kernel may
    /// have them.
    pub fn recall_names(&self, dir: &Node, which: &Names) -> Vec<(Name, Option<Ino>, bool)> {
        let mut names = lock(&self.names);
        let gone: Vec<Name> = match which {
            Names::None => return Vec::new(),
            Names::Some(some) => some.clone(),
            Names::All => names
                .iter()
                .filter(|((d, _), _)| *d == dir.ino)
                .map(|((_, n), _)| n.clone())
                .collect(),
        };
        let mut state = dir.state();
        state.changes = self.clock.stamp();
        state.complete = false;
        state.contended = since_boot() + CONTENDED;
        drop(state);
        let popped = gone.into_iter().filter_map(|name| {
            let known = names.pop(&(dir.ino, name.clone()))?;
            self.expired(dir.ino, &name, known);
            Some((name, known.ino, known.told))
        });
        popped.collect()
    }

    /// A name about which nothing is known any more.
    pub fn unknown_name(&self, dir: &Node, name: &Name) {
        touch_name(dir.ino, name);
        let names = lock(&self.names);
        let mut state = dir.state();
        state.changes = self.clock.stamp();
        state.complete = false;
        drop(state);
        // Nobody would take it back from the kernel later.
        self.forget_name(names, dir, name);
    }

    /// What a lookup has found. Returns for how long the kernel may keep it: not at all if it may not be true any more.
    pub fn learn_name(
        &self,
        ticket: Ticket,
        dir: &Node,
        name: &Name,
        ino: Option<Ino>,
        grant: Option<Grant>,
    ) -> Duration {
        let names = lock(&self.names);
        let mut state = dir.state();
        if grant.is_none() || !self.in_time(ticket, &state) || state.changes != ticket.changes {
            return Duration::ZERO;
        }
        state.held.answered(ticket.leases, &self.clock, grant.map(|g| g.lease));
        let ttl = self.name_ttl(&state);
        drop(state);
        self.keep_name(names, dir, name, ino, ttl);
        ttl
    }

    /// The ticket's question is as good as if it were asked now, and its answer may be kept.
    pub fn fresh(&self, ticket: Ticket, node: &Node, grant: Option<Grant>) -> bool {
        let state = node.state();
        grant.is_some() && self.in_time(ticket, &state) && state.changes == ticket.changes
    }

    /// Nothing of it was recalled or changed since the question.
    pub fn unchanged(&self, ticket: Ticket, node: &Node) -> bool {
        let state = node.state();
        self.in_time(ticket, &state) && state.changes == ticket.changes
    }

    /// The kernel may not use a name any more, and keeps it nevertheless.
    fn expired(&self, dir: Ino, name: &Name, known: Known) {
        if let Some(ino) = known.ino {
            lock(&self.expired).add(dir, name.clone(), ino);
        }
    }

    /// The kernel asks for a name, or is about to be shown it.
    pub fn asked_for(&self, dir: Ino, name: &Name) {
        let mut expired = lock(&self.expired);
        if !expired.is_empty() {
            expired.asked(&(dir, name.clone()));
        }
    }

    /// A name by which the kernel may keep an inode although it has expired, if nobody has asked for it since.
    pub fn take_expired(&self, ino: Ino) -> Option<(Ino, Name)> {
        lock(&self.expired).take(ino)
    }

    /// Evicts down to the limit. A directory that loses a name is no longer known completely.
    fn shrink(&self, mut names: MutexGuard<'_, LruCache<(Ino, Name), Known>>) {
        let mut parents = Vec::new();
        while names.len() > self.name_limit
            && let Some(((parent, name), known)) = names.pop_lru()
        {
            if known.told
                && let Some(kernel) = self.kernel.get()
            {
                kernel.inval_entry(parent, &name);
            }
            self.expired(parent, &name, known);
            if known.ino.is_some() {
                parents.push(parent);
            }
        }
        // Still under the lock of the names, so that nobody sees the directory complete without it.
        for parent in parents {
            if let Some(node) = self.table.peek(parent) {
                node.state().complete = false;
            }
        }
    }

    /// All names of a directory are cached, so that others do not exist.
    pub fn absent_for_sure(&self, dir: &Node, name: &Name) -> bool {
        let mut names = lock(&self.names);
        let known = names.get(&(dir.ino, name.clone())).map(|known| known.ino);
        match known {
            Some(ino) => ino.is_none(),
            None => dir.state().complete,
        }
    }

    /// A cached extended attribute; inner `None`: there is none.
    pub fn xattr(&self, ino: Ino, name: &[u8]) -> Option<Option<Vec<u8>>> {
        lock(&self.xattrs).get(&(ino, name.to_vec())).cloned()
    }

    /// What a question for an extended attribute has found.
    pub fn learn_xattr(
        &self,
        ticket: Ticket,
        node: &Node,
        name: &[u8],
        value: Option<Vec<u8>>,
        grant: Option<Grant>,
    ) {
        let mut xattrs = lock(&self.xattrs);
        let small = value.as_ref().is_none_or(|v| v.len() <= MAX_KEPT_XATTR);
        if small && self.fresh(ticket, node, grant) {
            xattrs.put((node.ino, name.to_vec()), value);
        }
    }

    /// A lease that a restarted server has given back. Attributes are asked for anew.
    pub fn reclaimed(&self, grant: Grant) {
        self.table.obtain(grant.ino).state().held.reclaimed(grant.lease);
    }

    /// What was asked of an inode before this is not kept, and it keeps no more than a lease.
    pub fn recalled(&self, node: &Node, keep: Option<Lease>, attrs: bool) {
        let mut state = node.state();
        state.not_shown();
        state.behind |= keep.is_none();
        state.held.recalled(self.clock.stamp(), keep);
        self.pages.drop_range(node.ino, 0, u64::MAX);
        state.unsettle(DISPUTED);
        if keep.is_none() {
            state.disown();
        } else {
            if keep != Some(Lease::Write) {
                state.tail_known = false;
            }
            state.valid &= !attrs && state.held.mode().is_some();
        }
    }

    /// Extended attributes of an inode are about to change, or have.
    pub fn xattrs_moved(&self, node: &Node) {
        let mut xattrs = lock(&self.xattrs);
        node.state().changes = self.clock.stamp();
        let mine: Vec<XattrKey> =
            xattrs.iter().map(|(k, _)| k).filter(|k| k.0 == node.ino).cloned().collect();
        for key in mine {
            xattrs.pop(&key);
        }
    }
}
