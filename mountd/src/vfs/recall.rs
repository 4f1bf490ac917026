//! Leases: getting the one for writing, and giving back what the server recalls.
//!
//! A recall is answered when nothing of what becomes untrue can be served any more, by the kernel neither. Two rules keep
//! clients from waiting for each other in a circle:
//!
//! - Nobody waits for a lease while holding a gate of an inode. What is done under a gate is covered by leases that are held, and the server
//!   lets it pass whoever waits. So a recall of a write lease, which takes the gate, gets it.
//! - The kernel locks pages for a read or write that waits here for a lease, and to take back those pages would wait for it. They
//!   hold nothing that could be read: not yet filled, or not yet written. So they are left out ([`takeback::take_pages`]) and go when the kernel
//!   lets go of them. If names cannot be taken back at once, because a call in their directory waits, all names are, which needs no lock.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::name::Name;
use netfs_common::wire::lease::{Lease, Names, Recall, Scope};
use netfs_common::wire::meta::Request;
use tokio::task::JoinSet;
use tracing::error;

use super::takeback::{self, BLOCKED, PATIENCE};
use super::{Entry, KernelCache, Looked, Vfs};
use crate::cache::{Node, State};
use crate::insight::{Wait, What, waiting};
use crate::session::lock;

/// The kernel's pages.
pub(super) const PAGE: u64 = 4096;
/// The most recalls of one message that are worked on at once.
const MAX_AT_ONCE: usize = 64;

/// An inode of which a name in a directory is being taken back.
struct Moving {
    vfs: Arc<Vfs>,
    ino: Ino,
    dir: Ino,
    name: Name,
}

impl Moving {
    fn new(vfs: &Arc<Vfs>, ino: Ino, dir: Ino, name: Name) -> Moving {
        lock(&vfs.moving).entry(ino).or_default().push((dir, name.clone()));
        Moving { vfs: Arc::clone(vfs), ino, dir, name }
    }
}

impl Drop for Moving {
    fn drop(&mut self) {
        let mut moving = lock(&self.vfs.moving);
        if let Some(names) = moving.get_mut(&self.ino) {
            let mine = |(dir, name): &(Ino, Name)| (*dir, name) == (self.dir, &self.name);
            if let Some(at) = names.iter().position(mine) {
                names.swap_remove(at);
            }
            if names.is_empty() {
                moving.remove(&self.ino);
                self.vfs.moved.notify_waiters();
            }
        }
    }
}

/// An answer on its way to the kernel that lets it keep a name. When the kernel asks whether a name that it has is still true, it holds no lock: the
/// answer could overtake the end of that name. So who takes names of the directory back waits for this.
#[derive(Debug)]
pub struct Telling(Arc<Node>);

impl Telling {
    fn new(dir: Arc<Node>) -> Telling {
        dir.state().telling += 1;
        Telling(dir)
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        self.0.state().telling -= 1;
    }
}

/// A read that is being answered: the kernel has pages locked, and will fill them.
pub(super) struct Filling<'a>(&'a Node);

impl<'a> Filling<'a> {
    pub(super) fn new(node: &'a Node) -> Filling<'a> {
        node.state().filling += 1;
        Filling(node)
    }

    /// If the state allows it.
    pub(super) fn if_so(node: &'a Node, may: impl FnOnce(&State) -> bool) -> Option<Filling<'a>> {
        let mut state = node.state();
        if !may(&state) {
            return None;
        }
        state.filling += 1;
        Some(Filling(node))
    }
}

impl Drop for Filling<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.filling -= 1;
        state.told = true;
    }
}

/// A write past the kernel's pages that is being taken: reads that the kernel would keep wait for its end.
pub(super) struct Passing<'a>(&'a Node);

impl<'a> Passing<'a> {
    pub(super) fn new(node: &'a Node) -> Passing<'a> {
        node.state().passing += 1;
        Passing(node)
    }
}

impl Drop for Passing<'_> {
    fn drop(&mut self) {
        self.0.state().passing -= 1;
        self.0.gates().progress.notify_waiters();
    }
}

/// A part of a file that the kernel has locked for a request which waits for a lease.
pub(super) struct Pinned<'a> {
    node: &'a Node,
    range: (u64, u64),
}

impl<'a> Pinned<'a> {
    pub(super) fn new(node: &'a Node, offset: u64, len: u64) -> Pinned<'a> {
        let end = offset.saturating_add(len);
        let range =
            (offset - offset % PAGE, end.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX));
        node.state().pinned.push(range);
        Pinned { node, range }
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        let mut state = self.node.state();
        if let Some(at) = state.pinned.iter().position(|r| *r == self.range) {
            state.pinned.swap_remove(at);
        }
    }
}

impl Vfs {
    /// The answer to a lookup is about to be passed on: what of it is still so may be kept. To be held until the answer has been written.
    pub fn confirm(&self, parent: Ino, name: &Name, looked: Looked) -> (Looked, Option<Telling>) {
        let (found, ttl) = match &looked {
            Looked::Found(entry) => (Some(entry.attr.ino), entry.ttl),
            Looked::Absent { ttl } => (None, *ttl),
        };
        if ttl.is_zero() {
            return (looked, None);
        }
        let dir = self.cache.table.obtain(parent);
        // First this: whoever takes the name back from now on waits.
        let telling = Telling::new(Arc::clone(&dir));
        let known = self.cache.give_name(&dir, name).filter(|(ino, _)| *ino == found);
        let ttl = ttl.min(known.map_or(Duration::ZERO, |(_, ttl)| ttl));
        let looked = match looked {
            Looked::Found(entry) => Looked::Found(Entry { ttl, ..entry }),
            Looked::Absent { .. } => Looked::Absent { ttl },
        };
        (looked, (!ttl.is_zero()).then_some(telling))
    }

    /// The file may be changed without asking.
    pub(super) fn owns(&self, node: &Node) -> bool {
        let state = node.state();
        state.owned() && self.cache.live()
    }

    /// Waits for the write lease. It may be gone again by the time a gate is held: then this is called once more, without the
    /// gate.
    ///
    /// # Errors
    /// As [`crate::session::Session::ask`].
    pub(super) async fn own(&self, node: &Arc<Node>) -> Result<(), Errno> {
        if self.owns(node) && !node.state().giving {
            return Ok(());
        }
        waiting(Wait::Lease, self.get_lease(node)).await
    }

    async fn get_lease(&self, node: &Arc<Node>) -> Result<(), Errno> {
        loop {
            if node.state().giving {
                // Until it is given back.
                drop(node.gates().giving.lock().await);
            }
            if self.owns(node) && !node.state().giving {
                return Ok(());
            }
            let _asking = node.gates().lease.lock().await;
            if self.owns(node) {
                continue;
            }
            self.up()?;
            self.ask_node(node, Request::Acquire { ino: node.ino }).await?;
            // Recalled already, or not granted: the server makes everybody wait in turn.
            tokio::task::yield_now().await;
        }
    }

    /// The `io` gate of a file, exclusively and under the write lease.
    pub(super) async fn owned<'a>(
        &self,
        node: &'a Arc<Node>,
    ) -> Result<tokio::sync::RwLockWriteGuard<'a, ()>, Errno> {
        loop {
            self.own(node).await?;
            let io = waiting(Wait::Turn, node.gates().io.write()).await;
            if self.owns(node) {
                return Ok(io);
            }
        }
    }

    /// Gives back what the server wants, all of it before this returns.
    pub(super) async fn give_all_back(self: &Arc<Self>, recalls: Vec<Recall>) {
        let mut work = JoinSet::new();
        for recall in recalls {
            if work.len() >= MAX_AT_ONCE {
                work.join_next().await;
            }
            let this = Arc::clone(self);
            self.insight.recalled(recall.ino);
            let what = What { op: "recall", ino: recall.ino, name: None, pid: 0 };
            work.spawn(self.insight.follow(what, async move {
                this.give_back(recall).await;
                Ok(())
            }));
        }
        while work.join_next().await.is_some() {}
        self.recalls.fetch_add(1, Ordering::Relaxed);
    }

    async fn give_back(self: &Arc<Self>, recall: Recall) {
        let Recall { ino, keep, stale } = recall;
        let node = self.cache.table.obtain(ino);
        let stale = if keep.is_none() { Scope::all() } else { stale };
        let _giving = waiting(Wait::Turn, node.gates().giving.lock()).await;
        let writes = node.state().held.writes() && keep != Some(Lease::Write);
        if writes {
            node.state().giving = true;
            self.send_before(&node, &stale, keep).await;
        } else {
            self.cache.recalled(&node, keep, stale.attrs);
        }
        self.forget_stale(&node, &stale).await;
        node.state().giving = false;
    }

    /// Sends and reports what a file has buffered, and ends the write lease.
    async fn send_before(self: &Arc<Self>, node: &Arc<Node>, stale: &Scope, keep: Option<Lease>) {
        if stale.data.is_some() {
            // What programs have stored in mappings comes as writes.
            waiting(Wait::Kernel, self.take_pages(node, 0, u64::MAX)).await;
        }
        let _io = waiting(Wait::Turn, node.gates().io.write()).await;
        if let Err(errno) = self.writeback.bring(node).await
            && !self.is_down()
        {
            // Whoever has it open is told by the inode's log.
            error!(ino = %node.ino, %errno, "a file is given to another client without all that was written to it");
        }
        self.cache.recalled(node, keep, stale.attrs);
    }

    /// Drops what becomes untrue, here and in the kernel.
    async fn forget_stale(self: &Arc<Self>, node: &Arc<Node>, stale: &Scope) {
        let names = self.cache.recall_names(node, &stale.names);
        if stale.xattrs {
            self.cache.xattrs_moved(node);
        }
        if stale.data.is_some() {
            self.cache.drop_content(node.ino);
        }
        let Some(kernel) = self.kernel.get().cloned() else { return };
        let listing = !matches!(stale.names, Names::None);
        let told = async {
            if !names.is_empty() {
                self.take_names(&*kernel, node, &names).await;
            }
        };
        let dropped = async {
            if let Some((from, to)) = stale.data {
                self.take_pages(node, from, to).await;
            } else if listing {
                // The pages of a directory are its listing.
                self.take_pages(node, 0, u64::MAX).await;
            } else if stale.attrs || stale.xattrs {
                // An error means that there is no kernel any more.
                let _ = kernel.drop_attr(node.ino).await;
            }
        };
        waiting(Wait::Kernel, async { tokio::join!(told, dropped) }).await;
    }

    /// Has the kernel ask again for names. Those that it was given to keep are waited for, or all names go.
    ///
    /// A call in the directory may be at work that has found one of them already. If it then finds the same inode under another name, as
    /// `rename` may, the kernel takes the two for one file and does nothing. So until the kernel has let go of the directory,
    /// these inodes are not shown under any other name ([`Vfs::is_moving`]). A lookup that finds one waits for that in vain if it holds
    /// the directory itself, so it does not wait for long, and has the kernel begin the call again.
    async fn take_names(
        self: &Arc<Self>,
        kernel: &dyn KernelCache,
        dir: &Node,
        names: &[(Name, Option<Ino>, bool)],
    ) {
        let (told, others): (Vec<_>, Vec<_>) = names.iter().cloned().partition(|(.., told)| *told);
        // From now on, whatever is waited for first.
        let mark = |names: Vec<(Name, Option<Ino>, bool)>| {
            let led = names.iter().filter_map(|(name, ino, _)| Some((name.clone(), (*ino)?)));
            let moving: Vec<_> =
                led.map(|(name, ino)| Moving::new(self, ino, dir.ino, name)).collect();
            (names.into_iter().map(|(name, ..)| name).collect::<Vec<_>>(), moving)
        };
        let take = |(names, moving): (Vec<Name>, Vec<Moving>)| {
            let done = kernel.drop_names(dir.ino, names);
            tokio::spawn(async move {
                // An error means that there is no kernel any more.
                let _ = done.await;
                drop(moving);
            })
        };
        let (told, others) = (mark(told), mark(others));
        if !others.0.is_empty() {
            take(others);
        }
        if told.0.is_empty() {
            return;
        }
        let all_told = takeback::all_told(dir).await;
        let mut told = take(told);
        if tokio::time::timeout(BLOCKED, &mut told).await.is_err() || !all_told {
            // The names go later where the kernel cannot do that.
            kernel.drop_all_names();
        }
    }

    /// The kernel may be at work with another name of an inode than this, one that is no longer true.
    pub(super) fn is_moving(&self, ino: Ino, parent: Ino, name: &Name) -> bool {
        let moving = lock(&self.moving);
        let other = |(dir, moved): &(Ino, Name)| (*dir, moved) != (parent, name);
        moving.get(&ino).is_some_and(|names| names.iter().any(other))
    }

    /// Gives the kernel time to let go of names of an inode that are no longer true, for a lookup in a directory.
    pub(super) async fn let_settle(&self, ino: Ino, parent: Ino) {
        let moved = self.moved.notified();
        tokio::pin!(moved);
        moved.as_mut().enable();
        let limit = match lock(&self.moving).get(&ino) {
            None => return,
            Some(names) if names.iter().any(|(dir, _)| *dir == parent) => BLOCKED,
            Some(_) => PATIENCE,
        };
        // The caller looks again in either case.
        let _ = tokio::time::timeout(limit, moved).await;
    }

    /// As [`takeback::take_pages`].
    pub(super) async fn take_pages(&self, node: &Node, from: u64, to: u64) {
        if let Some(kernel) = self.kernel.get() {
            takeback::take_pages(&**kernel, node, from, to).await;
        }
    }
}
