//! Clients with a kernel that keeps whatever it may: what it serves is as true as what the client serves.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use netfs_common::attr::{Attr, SetAttr};
use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::name::Name;
use netfs_common::wire::meta::RenameMode;
use tokio::sync::oneshot;

use super::world::{World, done, name};
use crate::session::{lock, since_boot};
use crate::vfs::{Caller, KernelCache, Looked, Options, Vfs};

/// What a kernel keeps, and until when.
#[derive(Debug, Default)]
struct Kept {
    names: HashMap<(Ino, Name), (Option<Ino>, Duration)>,
    attrs: HashMap<Ino, (Attr, Duration)>,
    /// Pages, as they were read: offset and length.
    pages: HashMap<Ino, BTreeMap<(u64, u32), Vec<u8>>>,
    listings: HashMap<Ino, BTreeSet<Vec<u8>>>,
}

/// A kernel's caches.
#[derive(Debug, Default)]
pub(super) struct CachingKernel(Mutex<Kept>);

impl KernelCache for CachingKernel {
    fn inval_attr(&self, ino: Ino) {
        lock(&self.0).attrs.remove(&ino);
    }

    fn inval_data(&self, ino: Ino, offset: u64, len: u64) {
        let mut kept = lock(&self.0);
        kept.attrs.remove(&ino);
        kept.listings.remove(&ino);
        let end = if len == 0 { u64::MAX } else { offset.saturating_add(len) };
        if let Some(pages) = kept.pages.get_mut(&ino) {
            pages.retain(|(at, n), _| *at >= end || at + u64::from(*n) <= offset);
        }
    }

    fn inval_entry(&self, parent: Ino, name: &Name) {
        lock(&self.0).names.remove(&(parent, name.clone()));
    }

    fn barrier(&self) -> oneshot::Receiver<()> {
        done()
    }

    fn drop_attr(&self, ino: Ino) -> oneshot::Receiver<()> {
        self.inval_attr(ino);
        done()
    }

    fn drop_data(&self, ino: Ino, offset: u64, len: u64) -> oneshot::Receiver<()> {
        self.inval_data(ino, offset, len);
        done()
    }

    fn drop_inodes(&self, inodes: Vec<Ino>) -> oneshot::Receiver<()> {
        inodes.iter().for_each(|ino| self.inval_data(*ino, 0, 0));
        done()
    }

    fn drop_names(&self, parent: Ino, names: Vec<Name>) -> oneshot::Receiver<()> {
        names.iter().for_each(|name| self.inval_entry(parent, name));
        done()
    }

    fn drop_unused(&self, _: Vec<Ino>) -> Option<oneshot::Receiver<()>> {
        Some(done())
    }

    fn remove_name(&self, _: Ino, _: Name) -> oneshot::Receiver<()> {
        done()
    }

    fn drop_all_names(&self) -> bool {
        lock(&self.0).names.clear();
        true
    }
}

/// A client as programs see it, through its kernel.
pub(super) struct Client {
    pub(super) vfs: Arc<Vfs>,
    kernel: Arc<CachingKernel>,
    handles: HashMap<Ino, u64>,
}

impl Client {
    pub(super) async fn mount(world: &Arc<World>, set: impl FnOnce(&mut Options)) -> Client {
        let vfs = world.mount_with(set).await;
        let kernel = Arc::new(CachingKernel::default());
        vfs.set_kernel(Arc::clone(&kernel) as Arc<dyn KernelCache>);
        Client { vfs, kernel, handles: HashMap::new() }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        lock(&self.kernel.0)
    }

    fn keep_attr(&self, attr: &Attr, ttl: Duration) {
        let mut kept = self.kept();
        kept.attrs.remove(&attr.ino);
        if !ttl.is_zero() {
            kept.attrs.insert(attr.ino, (attr.clone(), since_boot() + ttl));
        }
    }

    fn keep_name(&self, dir: Ino, n: &str, ino: Option<Ino>, ttl: Duration) {
        let mut kept = self.kept();
        kept.names.remove(&(dir, name(n)));
        if !ttl.is_zero() {
            kept.names.insert((dir, name(n)), (ino, since_boot() + ttl));
        }
    }

    /// What this client's own change of a directory does to its kernel.
    fn changed_names(&self, dirs: &[Ino], names: &[(Ino, &str)], inos: &[Ino]) {
        let mut kept = self.kept();
        for dir in dirs {
            kept.attrs.remove(dir);
            kept.listings.remove(dir);
        }
        for (dir, n) in names {
            kept.names.remove(&(*dir, name(n)));
        }
        for ino in inos {
            kept.attrs.remove(ino);
        }
    }

    pub(super) async fn lookup(&self, dir: Ino, n: &str) -> Option<Ino> {
        let kept = self.kept().names.get(&(dir, name(n))).copied();
        if let Some((ino, until)) = kept
            && until > since_boot()
        {
            return ino;
        }
        match self.vfs.lookup(dir, &name(n)).await.unwrap() {
            Looked::Found(entry) => {
                self.keep_name(dir, n, Some(entry.attr.ino), entry.ttl);
                self.keep_attr(&entry.attr, entry.ttl);
                Some(entry.attr.ino)
            }
            Looked::Absent { ttl } => {
                self.keep_name(dir, n, None, ttl);
                None
            }
        }
    }

    pub(super) async fn stat(&self, ino: Ino) -> Attr {
        let kept = self.kept().attrs.get(&ino).cloned();
        if let Some((attr, until)) = kept
            && until > since_boot()
        {
            return attr;
        }
        let entry = self.vfs.getattr(ino, None).await.unwrap();
        self.keep_attr(&entry.attr, entry.ttl);
        entry.attr
    }

    pub(super) async fn handle(&mut self, ino: Ino) -> (Ino, u64) {
        if let Some(fh) = self.handles.get(&ino) {
            return (ino, *fh);
        }
        let opened = self.vfs.open(ino, libc::O_RDWR).await.unwrap();
        if !opened.keep_cache {
            self.kept().pages.remove(&ino);
        }
        self.handles.insert(ino, opened.fh);
        (ino, opened.fh)
    }

    pub(super) fn close(&mut self, ino: Ino) {
        if let Some(fh) = self.handles.remove(&ino) {
            self.vfs.release(ino, fh);
        }
    }

    pub(super) async fn read(&mut self, ino: Ino, offset: u64, len: u32) -> Vec<u8> {
        let (_, fh) = self.handle(ino).await;
        let kept = self.kept().pages.get(&ino).and_then(|p| p.get(&(offset, len))).cloned();
        if let Some(data) = kept {
            return data;
        }
        let data = self.vfs.read(ino, fh, offset, len).await.unwrap().to_vec();
        self.kept().pages.entry(ino).or_default().insert((offset, len), data.clone());
        data
    }

    pub(super) async fn write(
        &mut self,
        ino: Ino,
        at: u64,
        data: &[u8],
        flags: i32,
    ) -> Result<u32, Errno> {
        let (_, fh) = self.handle(ino).await;
        let data = Bytes::copy_from_slice(data);
        let written = self.vfs.write(ino, fh, at, data, libc::O_RDWR | flags, 0).await;
        self.kernel.inval_data(ino, 0, 0);
        written
    }

    pub(super) async fn set(&self, ino: Ino, set: SetAttr) -> Result<Attr, Errno> {
        let cuts = set.size.is_some();
        let entry = self.vfs.setattr(ino, set, None, Caller::default()).await?;
        if cuts {
            self.kept().pages.remove(&ino);
        }
        self.keep_attr(&entry.attr, entry.ttl);
        Ok(entry.attr)
    }

    pub(super) async fn create(&mut self, dir: Ino, n: &str) -> Result<Ino, Errno> {
        let flags = libc::O_RDWR | libc::O_EXCL;
        let made = self.vfs.create(dir, &name(n), 0o644, 0, flags, Caller::default()).await;
        self.changed_names(&[dir], &[(dir, n)], &[]);
        let (entry, opened) = made?;
        self.keep_name(dir, n, Some(entry.attr.ino), entry.ttl);
        self.keep_attr(&entry.attr, entry.ttl);
        self.handles.insert(entry.attr.ino, opened.fh);
        Ok(entry.attr.ino)
    }

    pub(super) async fn unlink(&self, dir: Ino, n: &str, ino: Ino) -> Result<(), Errno> {
        let outcome = self.vfs.unlink(dir, &name(n)).await;
        self.changed_names(&[dir], &[(dir, n)], &[ino]);
        outcome
    }

    pub(super) async fn link(&self, ino: Ino, dir: Ino, n: &str) -> Result<(), Errno> {
        let outcome = self.vfs.link(ino, dir, &name(n)).await;
        self.changed_names(&[dir], &[(dir, n)], &[ino]);
        outcome.map(|_| ())
    }

    pub(super) async fn rename(
        &self,
        (from, n): (Ino, &str),
        (to, m): (Ino, &str),
        inos: &[Ino],
    ) -> Result<(), Errno> {
        let outcome = self.vfs.rename(from, &name(n), to, &name(m), RenameMode::Replace).await;
        self.changed_names(&[from, to], &[(from, n), (to, m)], inos);
        outcome
    }

    pub(super) async fn list(&self, dir: Ino) -> BTreeSet<Vec<u8>> {
        let opened = self.vfs.opendir(dir, 0).unwrap();
        let kept = self.kept().listings.get(&dir).cloned();
        if let Some(listing) = kept
            && opened.cache_dir
            && opened.keep_cache
        {
            self.vfs.releasedir(dir, opened.fh);
            return listing;
        }
        let (mut all, mut after) = (BTreeSet::new(), 0);
        loop {
            let items = self.vfs.readdir(dir, opened.fh, after, 100).await.unwrap();
            let Some(last) = items.last() else { break };
            after = last.cookie;
            for mut item in items {
                if item.entry.is_some() {
                    assert!(self.vfs.listed(dir, &mut item));
                }
                if let Some(entry) = &item.entry {
                    let n = std::str::from_utf8(&item.name).unwrap();
                    self.keep_name(dir, n, Some(item.ino), entry.ttl);
                    self.keep_attr(&entry.attr, entry.ttl);
                }
                assert!(all.insert(item.name), "listed twice");
            }
        }
        if opened.cache_dir {
            self.kept().listings.insert(dir, all.clone());
        }
        self.vfs.releasedir(dir, opened.fh);
        all
    }

    pub(super) async fn set_xattr(&self, ino: Ino, value: &[u8]) {
        let caller = Caller::default();
        self.vfs.setxattr(ino, b"user.x", value, 0, caller).await.unwrap();
        self.kept().attrs.remove(&ino);
    }

    pub(super) async fn xattr(&self, ino: Ino) -> Option<Vec<u8>> {
        match self.vfs.getxattr(ino, b"user.x").await {
            Ok(value) => Some(value),
            Err(Errno::ENODATA) => None,
            Err(e) => panic!("{e}"),
        }
    }
}
