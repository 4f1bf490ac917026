//! Listings and symbolic links.

use std::sync::Arc;
use std::time::Duration;

use netfs_common::attr::FileKind;
use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::wire::meta::{DirEntry, Request, Response};

use super::handles::{Handle, Page};
use super::{DirItem, Opened, Vfs};
use crate::cache::Node;

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
            state.target.clone().filter(|_| self.cache.exclusive())
        };
        let target = match kept {
            Some(target) => target.to_vec(),
            None => {
                let ticket = self.cache.ticket(&node);
                let reply = self.session.ask(Request::ReadLink { ino });
                let Response::Bytes(target) = self.patiently(reply).await? else {
                    return Err(Errno::EPROTO);
                };
                // It never changes; but a node that is not exclusive keeps nothing.
                if self.cache.fresh(ticket, &node) {
                    node.state().target = Some(target.clone().into());
                }
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
        let exclusive = self.cache.exclusive();
        let fh = self.handles.add(self.cache.table.obtain(ino), flags, exclusive);
        Ok(Opened {
            fh,
            keep_cache: exclusive && self.keeps_pages(),
            direct_io: false,
            cache_dir: exclusive,
            noflush: true,
        })
    }

    /// Closes a directory.
    pub fn releasedir(&self, _ino: Ino, fh: u64) {
        // An unknown handle was released before.
        let _ = self.handles.remove(fh);
    }

    /// The kernel was given an entry of [`Vfs::readdir`]: counts one reference.
    pub fn referenced(&self, ino: Ino) {
        self.cache.table.refer(ino);
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
        plus: bool,
    ) -> Result<Vec<DirItem>, Errno> {
        self.up()?;
        let handle = self.handles.get(fh)?;
        let pages = self.before_pages(&handle);
        let items = self.patiently(self.list(&handle, after, max, plus)).await;
        self.after_pages(&handle, pages);
        items
    }

    async fn list(
        &self,
        handle: &Handle,
        mut after: u64,
        max: usize,
        plus: bool,
    ) -> Result<Vec<DirItem>, Errno> {
        let node = &handle.node;
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
            return Ok(items);
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
                dir.page = Some(self.fetch_page(node, from, plus).await?);
            }
            let Some(page) = &dir.page else { break };
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
        Ok(items)
    }

    async fn fetch_page(&self, node: &Arc<Node>, after: u64, plus: bool) -> Result<Page, Errno> {
        let ticket = self.cache.ticket(node);
        // While it can be kept, the attributes are most often asked for next.
        let plus = plus || self.cache.exclusive();
        let request = Request::ReadDir { ino: node.ino, after, limit: PAGE, plus };
        let Response::Listing { entries, end, .. } = self.session.ask(request).await? else {
            return Err(Errno::EPROTO);
        };
        let ascending = entries.is_sorted_by(|a, b| a.cookie < b.cookie)
            && entries.first().is_none_or(|e| e.cookie > after.max(DOT_DOT));
        if !ascending {
            return Err(Errno::EPROTO);
        }
        for entry in &entries {
            if let Some(attr) = &entry.attr {
                self.cache.learn(ticket, attr.clone(), None);
                self.cache.learn_name(ticket, node, &entry.name, Some(entry.ino));
            }
        }
        Ok(Page { after, entries, end })
    }

    /// An entry as the kernel shall see it. Attributes go with it only if the name is known to
    /// lead there still: the page may be older than a change, and the kernel would keep what it
    /// is told.
    fn item(&self, dir: &Node, entry: &DirEntry) -> DirItem {
        let known = || self.cache.name(dir.ino, &entry.name) == Some(Some(entry.ino));
        let shared = !self.cache.exclusive();
        let attr = if entry.attr.is_some() && (shared || known()) {
            let node = self.cache.table.get(entry.ino);
            node.and_then(|n| if shared { n.effective() } else { n.served() })
        } else {
            None
        };
        let ttl = if shared { Duration::ZERO } else { self.ttl() };
        DirItem {
            cookie: entry.cookie,
            name: entry.name.as_bytes().to_vec(),
            ino: entry.ino,
            kind: entry.kind,
            entry: attr.map(|attr| super::Entry { attr, ttl }),
        }
    }
}

fn dot(name: &[u8], cookie: u64, ino: Ino) -> DirItem {
    DirItem { cookie, name: name.to_vec(), ino, kind: FileKind::Dir, entry: None }
}
