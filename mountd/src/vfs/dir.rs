//! Listings and symbolic links.

use std::collections::HashMap;
use std::sync::Arc;

use netfs_common::attr::FileKind;
use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::name::Name;
use netfs_common::wire::lease::Grant;
use netfs_common::wire::meta::{DirEntry, Request, Response};

use super::handles::{Handle, Page};
use super::{DirItem, Opened, Vfs};
use crate::cache::{Node, Ticket};

/// Entries per message.
const PAGE: u32 = 1000;
/// The cookies of `.` and `..`.
const DOT: u64 = 1;
const DOT_DOT: u64 = 2;

impl Vfs {
    /// The target of a symbolic link.
    ///
    /// # Errors
    /// As `readlink(2)`.
    pub async fn readlink(self: &Arc<Self>, ino: Ino) -> Result<Vec<u8>, Errno> {
        self.up()?;
        let node = self.cache.table.obtain(ino);
        let kept = {
            let state = node.state();
            state.target.clone()
        };
        let target = match kept {
            Some(target) => target.to_vec(),
            None => {
                let reply = async { self.session.ask(Request::ReadLink { ino }).await.reply };
                let Response::Bytes(target) = self.patiently(reply).await? else {
                    return Err(Errno::EPROTO);
                };
                // It never changes.
                node.state().target = Some(target.clone().into());
                target
            }
        };
        self.touch(&node, 0);
        Ok(target)
    }

    /// Opens a directory.
    ///
    /// # Errors
    /// `EIO` when the file system has gone down.
    pub fn opendir(&self, ino: Ino, flags: i32) -> Result<Opened, Errno> {
        self.up()?;
        let node = self.cache.table.obtain(ino);
        // The kernel's copy goes with every recall of a name.
        let kept = self.served(&node).is_some() && !self.cache.contended(&node);
        let fh = self.handles.add(node, flags, false);
        Ok(Opened {
            fh,
            keep_cache: kept && self.keeps_pages(),
            direct_io: false,
            cache_dir: kept,
            noflush: true,
        })
    }

    /// Closes a directory.
    pub fn releasedir(&self, _ino: Ino, fh: u64) {
        // An unknown handle was released before.
        let _ = self.handles.remove(fh);
    }

    /// The kernel is about to be given an inode: counts one reference. `false`: it must not be, since the inode was removed and is given up here.
    #[must_use]
    pub fn referenced(&self, ino: Ino) -> bool {
        self.cache.table.refer(ino)
    }

    /// As [`Vfs::referenced`], for an entry of [`Vfs::readdir`] with attributes.
    #[must_use]
    pub fn listed(&self, dir: Ino, item: &mut DirItem) -> bool {
        // `.` and `..` are no names.
        if let Ok(name) = Name::new(item.name.as_slice()) {
            self.cache.asked_for(dir, &name);
        }
        let Some(entry) = item.entry.take() else { return self.referenced(item.ino) };
        item.entry = self.counted(entry);
        item.entry.is_some()
    }

    /// Entries after a cookie, at most `max`, often fewer; none at the end.
    ///
    /// # Errors
    /// As `getdents(2)`.
    pub async fn readdir(
        self: &Arc<Self>,
        _ino: Ino,
        fh: u64,
        after: u64,
        max: usize,
    ) -> Result<Vec<DirItem>, Errno> {
        self.up()?;
        let handle = self.handles.get(fh)?;
        let (items, ticket) = self.patiently(self.list(&handle, after, max)).await?;
        if !self.cache.unchanged(ticket, &handle.node)
            && let Some(kernel) = self.kernel.get()
        {
            // Changed meanwhile: the kernel shall not keep it as a part of its listing.
            kernel.inval_data(handle.node.ino, 0, 0);
        }
        Ok(items)
    }

    /// Entries, with a ticket from before they were asked for.
    async fn list(
        &self,
        handle: &Handle,
        mut after: u64,
        max: usize,
    ) -> Result<(Vec<DirItem>, Ticket), Errno> {
        let node = &handle.node;
        let mut ticket = self.cache.ticket(node);
        let mut items = Vec::new();
        let mut dir = handle.dir.lock().await;
        if after == 0 {
            // From the beginning means as it is now.
            dir.page = None;
            self.touch(node, handle.flags);
            items.push(dot(b".", DOT, node.ino));
            after = DOT;
        }
        if after == DOT && items.len() < max {
            let (_, attr) = self.known(node.ino).await?;
            if attr.kind != FileKind::Dir {
                return Err(Errno::ENOTDIR);
            }
            let parent = if attr.parent == Ino(0) { node.ino } else { attr.parent };
            items.push(dot(b"..", DOT_DOT, parent));
            after = DOT_DOT;
        }
        if after < DOT_DOT {
            return Ok((items, ticket));
        }
        let mut from = if after == DOT_DOT { 0 } else { after };
        let mut taken = 0;
        while items.len() < max {
            let usable = dir.page.as_ref().is_some_and(|p| {
                let last = p.entries.last().map_or(p.after, |e| e.cookie);
                from >= p.after && (from < last || (p.end && from == last))
            });
            if !usable {
                if taken > 0 {
                    // The kernel may have room for a part of these only, and ask for the rest again:
                    // this page must still be there then.
                    break;
                }
                dir.page = Some(self.fetch_page(node, from).await?);
            }
            let Some(page) = &dir.page else { break };
            // It may be from an earlier call. Of two pages the first one is older.
            if taken == 0 {
                ticket = page.ticket;
            }
            let begin = page.entries.partition_point(|e| e.cookie <= from);
            let rest = &page.entries[begin..];
            for entry in rest.iter().take(max - items.len()) {
                from = entry.cookie;
                taken += 1;
                items.push(self.item(node, entry));
            }
            if rest.is_empty() || (page.end && from == page.entries.last().map_or(0, |e| e.cookie))
            {
                break;
            }
        }
        Ok((items, ticket))
    }

    async fn fetch_page(&self, node: &Arc<Node>, after: u64) -> Result<Page, Errno> {
        let ticket = self.cache.ticket(node);
        // The attributes are most often asked for next, whoever asks for names.
        let request = Request::ReadDir { ino: node.ino, after, limit: PAGE, plus: true };
        let answer = self.session.ask(request).await;
        let Response::Listing { entries, end, .. } = answer.reply? else {
            return Err(Errno::EPROTO);
        };
        let grants: HashMap<Ino, Grant> = answer.grants.iter().map(|g| (g.ino, *g)).collect();
        let of_dir = grants.get(&node.ino).copied();
        let ascending = entries.is_sorted_by(|a, b| a.cookie < b.cookie)
            && entries.first().is_none_or(|e| e.cookie > after.max(DOT_DOT));
        if !ascending {
            return Err(Errno::EPROTO);
        }
        for entry in &entries {
            if let Some(attr) = &entry.attr {
                self.cache.learn(ticket, attr.clone(), None, grants.get(&entry.ino).copied());
                self.cache.learn_name(ticket, node, &entry.name, Some(entry.ino), of_dir);
            }
        }
        Ok(Page { after, entries, end, ticket })
    }

    /// An entry as the kernel shall see it. Attributes go with it only if the name is known to
    /// lead there still: the page may be older than a change, and the kernel would keep what it
    /// is told.
    fn item(&self, dir: &Node, entry: &DirEntry) -> DirItem {
        let shown = self.cache.give_name(dir, &entry.name).and_then(|(ino, ttl)| {
            let node = self.cache.table.get(entry.ino).filter(|_| ino == Some(entry.ino))?;
            let mut shown = self.entry(&node).filter(|e| !e.ttl.is_zero())?;
            shown.ttl = shown.ttl.min(ttl);
            Some(shown)
        });
        DirItem {
            cookie: entry.cookie,
            name: entry.name.as_bytes().to_vec(),
            ino: entry.ino,
            kind: entry.kind,
            entry: shown.filter(|_| entry.attr.is_some()),
        }
    }
}

fn dot(name: &[u8], cookie: u64, ino: Ino) -> DirItem {
    DirItem { cookie, name: name.to_vec(), ino, kind: FileKind::Dir, entry: None }
}
