//! Listings: entries are asked for in batches until the kernel's buffer is full.

use std::sync::Arc;
use std::time::Duration;

use fuser::{INodeNo, ReplyDirectory, ReplyDirectoryPlus, Request};
use netfs_common::errno::Errno;
use netfs_common::id::Ino;

use super::adapter::Adapter;
use super::convert;
use super::inflight::{Slot, Ticket};
use super::reply::{self, GENERATION, Refuse};
use crate::insight::What;
use crate::vfs::{DirItem, Entry, Vfs};

/// A listing being filled. fuser does not tell how large its buffer is, only when it is full.
pub(super) trait Listing: Refuse + Send + 'static {
    /// With attributes.
    const PLUS: bool;

    /// Entries to ask for at a time: about what a buffer of one page holds.
    const BATCH: usize;

    /// Adds an entry; `false` when there is no room for it.
    fn push(&mut self, item: &DirItem) -> bool;

    /// Sends it.
    fn send(self);
}

impl Listing for ReplyDirectory {
    const PLUS: bool = false;
    const BATCH: usize = 128;

    fn push(&mut self, item: &DirItem) -> bool {
        let kind = convert::file_type(item.kind);
        !self.add(INodeNo(item.ino.0), item.cookie, kind, reply::os(&item.name))
    }

    fn send(self) {
        self.ok();
    }
}

impl Listing for ReplyDirectoryPlus {
    const PLUS: bool = true;
    const BATCH: usize = 128;

    fn push(&mut self, item: &DirItem) -> bool {
        let (ttl, attr) = match &item.entry {
            Some(e) => (e.ttl, convert::attr(&e.attr)),
            None => (Duration::ZERO, convert::bare_attr(item.ino, item.kind)),
        };
        let name = reply::os(&item.name);
        !self.add(INodeNo(item.ino.0), item.cookie, name, &ttl, &attr, GENERATION)
    }

    fn send(self) {
        self.ok();
    }
}

/// `.` and `..` are never counted as references, and the kernel does not use their attributes.
fn is_dots(item: &DirItem) -> bool {
    matches!(item.name.as_slice(), b"." | b"..")
}

impl Adapter {
    /// Answers a listing in a task of its own.
    pub(super) fn list<L: Listing>(&self, req: &Request, ino: Ino, fh: u64, after: u64, reply: L) {
        let unique = req.unique().0;
        let slot = Arc::new(Slot::new(reply));
        let ticket = self.inflight.enter(unique, req.pid(), Some(slot.clone()));
        let task = list(self.vfs.clone(), ino, fh, after, slot, ticket);
        let what = What { op: "readdir", ino, name: None, pid: req.pid() };
        let task = self.vfs.insight().follow(what, async move {
            task.await;
            Ok(())
        });
        let task = self.vfs.runtime().spawn(task);
        // Entries that were added with attributes count as references: such a listing is not dropped half-way.
        if !L::PLUS {
            self.inflight.abortable(unique, task.abort_handle());
        }
    }
}

/// Answers a listing after the cookie `after`.
async fn list<L: Listing>(
    vfs: Arc<Vfs>,
    ino: Ino,
    fh: u64,
    after: u64,
    slot: Arc<Slot<L>>,
    ticket: Ticket,
) {
    let mut referenced = Vec::new();
    let result = fill(&vfs, ino, fh, after, &slot, &mut referenced).await;
    let reply = slot.take();
    drop(ticket);
    match (reply, result) {
        (Some(reply), Ok(())) => reply.send(),
        (reply, result) => {
            // The kernel does not get the entries that were added.
            referenced.into_iter().for_each(|ino| vfs.forget(ino, 1));
            if let (Some(reply), Err(e)) = (reply, result) {
                reply.refuse(e);
            }
        }
    }
}

async fn fill<L: Listing>(
    vfs: &Arc<Vfs>,
    ino: Ino,
    fh: u64,
    mut after: u64,
    slot: &Slot<L>,
    referenced: &mut Vec<Ino>,
) -> Result<(), Errno> {
    let mut sent_some = false;
    loop {
        if !referenced.is_empty() {
            // Once the kernel is to be given an inode it is given it at once: whoever takes back what it may keep of it waits for that.
            return Ok(());
        }
        let items = match vfs.readdir(ino, fh, after, L::BATCH).await {
            // What is there is sent; the next call will meet the error again.
            Err(_) if sent_some => return Ok(()),
            other => other?,
        };
        let Some(last) = items.last().map(|i| i.cookie) else { return Ok(()) };
        for mut item in items {
            let counts = L::PLUS && !is_dots(&item);
            if counts && item.entry.is_none() {
                // fuser cannot leave attributes out, and the kernel would believe made-up ones. But
                // the name may lead elsewhere by now: the kernel shall ask again before it uses it.
                let known = vfs.try_getattr(item.ino, None);
                if known.is_none() && !referenced.is_empty() {
                    // The kernel asks again from here.
                    return Ok(());
                }
                let entry = match known {
                    Some(entry) => entry,
                    None => vfs.getattr(item.ino, None).await,
                };
                match entry {
                    Ok(e) => item.entry = Some(Entry { attr: e.attr, ttl: Duration::ZERO }),
                    // Removed since.
                    Err(Errno::ESTALE | Errno::ENOENT) => continue,
                    Err(_) if sent_some => return Ok(()),
                    Err(e) => return Err(e),
                }
            }
            // Before the answer: the kernel may forget it right after.
            if counts && !vfs.listed(ino, &mut item) {
                continue;
            }
            match slot.with(|reply| reply.push(&item)) {
                Some(true) => {}
                // Full, or the caller was killed.
                Some(false) | None => {
                    if counts {
                        vfs.forget(item.ino, 1);
                    }
                    return Ok(());
                }
            }
            sent_some = true;
            if counts {
                referenced.push(item.ino);
            }
        }
        after = last;
    }
}
