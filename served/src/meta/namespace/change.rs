//! One command at work: inodes read and written once each, counters kept exact.

use std::collections::BTreeMap;

use netfs_common::attr::{Attr, FileKind, Timestamp};
use netfs_common::errno::Errno;
use netfs_common::id::{Ino, LogIndex, SessionId};
use netfs_common::map::{INODE_BITS, volume_of};
use netfs_common::name::Name;
use netfs_common::wire::meta::Response;

use super::volume::dir_size;
use super::{Fault, required};
use crate::meta::command::Settings;
use crate::meta::keys;
use crate::meta::kv::{Read, Txn};
use crate::meta::record::{self, Entry, Inode, Listed, State, Volume};

/// A command at work.
pub(super) struct Change<'t, 's> {
    pub(super) txn: &'t mut Txn<'s>,
    pub(super) index: LogIndex,
    pub(super) time: Timestamp,
    pub(super) settings: Settings,
    pub(super) state: State,
    /// The session that asks; 0 for the server itself.
    pub(super) session: SessionId,
    /// It was made before and lost, and came to this inode with this generation.
    pub(super) replays: Option<Option<(Ino, u32)>>,
    inodes: BTreeMap<Ino, Inode>,
    /// Changed inodes in the order of their change; what was purged is not among them.
    dirty: Vec<Ino>,
}

impl<'t, 's> Change<'t, 's> {
    pub(super) fn begin(
        txn: &'t mut Txn<'s>,
        index: LogIndex,
        time: Timestamp,
    ) -> Result<Change<'t, 's>, Fault> {
        let state = required::<State>(txn, &keys::state())?;
        let settings = required::<Volume>(txn, &keys::volume())?.settings;
        Ok(Change {
            txn,
            index,
            time,
            settings,
            state,
            session: SessionId(0),
            replays: None,
            inodes: BTreeMap::new(),
            dirty: Vec::new(),
        })
    }

    /// Writes what was changed and tells about it in the response.
    pub(super) fn finish(self, mut response: Response) -> Result<Response, Fault> {
        for ino in &self.dirty {
            if let Some(inode) = self.inodes.get(ino) {
                self.txn.put(keys::inode(*ino), record::encode(inode)?);
            }
        }
        self.txn.put(keys::state(), record::encode(&self.state)?);
        if let Response::Changed { target, attrs } = &mut response {
            let first = target.iter().filter(|t| self.dirty.contains(t));
            let rest = self.dirty.iter().filter(|ino| Some(**ino) != *target);
            attrs.extend(first.chain(rest).filter_map(|ino| self.attr(*ino)));
        }
        Ok(response)
    }

    fn attr(&self, ino: Ino) -> Option<Attr> {
        self.inodes.get(&ino).map(|i| i.attr.clone())
    }

    /// The inode, `ESTALE` when there is none.
    pub(super) fn inode(&mut self, ino: Ino) -> Result<Inode, Fault> {
        self.find(ino)?.ok_or(Fault::Refused(Errno::ESTALE))
    }

    pub(super) fn find(&mut self, ino: Ino) -> Result<Option<Inode>, Fault> {
        if let Some(inode) = self.inodes.get(&ino) {
            return Ok(Some(inode.clone()));
        }
        let found: Option<Inode> = record::load(self.txn, &keys::inode(ino))?;
        if let Some(inode) = &found {
            self.inodes.insert(ino, inode.clone());
        }
        Ok(found)
    }

    /// The inode that an entry leads to.
    pub(super) fn inode_of(&mut self, entry: &Entry) -> Result<Inode, Fault> {
        let key = keys::inode(entry.ino);
        let missing = || super::StoreError::damaged(&key, "an entry leads nowhere");
        Ok(self.find(entry.ino)?.ok_or_else(missing)?)
    }

    /// Records a changed inode.
    pub(super) fn put(&mut self, mut inode: Inode) {
        let ino = inode.attr.ino;
        inode.attr.version = self.index.0;
        if !self.dirty.contains(&ino) {
            self.dirty.push(ino);
        }
        self.inodes.insert(ino, inode);
    }

    /// Forgets an inode that is gone from the store.
    pub(super) fn forget_inode(&mut self, ino: Ino) {
        self.dirty.retain(|d| *d != ino);
        self.inodes.remove(&ino);
    }

    /// A directory in which names can be changed.
    pub(super) fn live_dir(&mut self, ino: Ino) -> Result<Inode, Fault> {
        let dir = self.inode(ino)?;
        match (dir.attr.kind, dir.attr.nlink) {
            (FileKind::Dir, 0) => Err(Errno::ENOENT.into()),
            (FileKind::Dir, _) => Ok(dir),
            _ => Err(Errno::ENOTDIR.into()),
        }
    }

    pub(super) fn entry(&self, dir: Ino, name: &Name) -> Result<Option<Entry>, Fault> {
        Ok(record::load(self.txn, &keys::entry(dir, name.as_bytes()))?)
    }

    /// Adds a name; `cookie` keeps a place that the directory has given out before.
    pub(super) fn add_entry(
        &mut self,
        dir: &mut Inode,
        name: &Name,
        (ino, kind): (Ino, FileKind),
        cookie: Option<u64>,
    ) -> Result<(), Fault> {
        let cookie = match cookie {
            Some(cookie) => cookie,
            None => {
                let next = dir.next_cookie;
                // `d_off` is signed.
                dir.next_cookie =
                    next.checked_add(1).filter(|n| *n < i64::MAX as u64).ok_or(Errno::ENOSPC)?;
                next
            }
        };
        dir.entries = dir.entries.saturating_add(1);
        self.write_entry(dir.attr.ino, name, Entry { ino, kind, cookie })?;
        self.touch_dir(dir);
        Ok(())
    }

    /// Writes both keys of an entry without counting it.
    pub(super) fn write_entry(&mut self, dir: Ino, name: &Name, entry: Entry) -> Result<(), Fault> {
        let listed = Listed { ino: entry.ino, kind: entry.kind, name: name.clone() };
        self.txn.put(keys::entry(dir, name.as_bytes()), record::encode(&entry)?);
        self.txn.put(keys::listing(dir, entry.cookie), record::encode(&listed)?);
        Ok(())
    }

    pub(super) fn remove_entry(&mut self, dir: &mut Inode, name: &Name, entry: &Entry) {
        dir.entries = dir.entries.saturating_sub(1);
        self.txn.remove(keys::entry(dir.attr.ino, name.as_bytes()));
        self.txn.remove(keys::listing(dir.attr.ino, entry.cookie));
        self.touch_dir(dir);
    }

    /// The contents of a directory have changed.
    pub(super) fn touch_dir(&self, dir: &mut Inode) {
        dir.attr.size = dir_size(dir.entries);
        self.touch(dir);
        dir.attr.mtime = dir.attr.ctime;
    }

    /// The attributes of an inode have changed.
    pub(super) fn touch(&self, inode: &mut Inode) {
        inode.attr.ctime = inode.attr.ctime.max(self.time);
    }

    /// Sets what data takes up and keeps the volume's sum.
    pub(super) fn set_allocated(&mut self, inode: &mut Inode, allocated: u64) {
        let without = self.state.bytes.saturating_sub(inode.attr.allocated);
        self.state.bytes = without.saturating_add(allocated);
        inode.attr.allocated = allocated;
    }

    /// The number of a new inode: one that was not given out before, or that which was when this change was made the first time.
    pub(super) fn new_ino(&mut self) -> Result<Ino, Fault> {
        let next = self.state.next_ino;
        if let Some(Some((ino, _))) = self.replays {
            // Left out when the end of the log was lost.
            let left_out = ino.0 >= self.settings.first_ino && ino.0 < next;
            return match left_out && self.find(ino)?.is_none() {
                true => Ok(ino),
                false => Err(Errno::EEXIST.into()),
            };
        }
        if volume_of(Ino(next)) != self.settings.first_ino >> INODE_BITS {
            // It is another volume's.
            return Err(Errno::ENOSPC.into());
        }
        self.state.next_ino = next.checked_add(1).ok_or(Errno::ENOSPC)?;
        Ok(Ino(next))
    }

    /// The generation that an inode had after this change when it was made the first time.
    pub(super) fn old_generation(&self, ino: Ino) -> Option<u32> {
        self.replays
            .flatten()
            .filter(|(target, _)| *target == ino)
            .map(|(_, generation)| generation)
    }

    /// The number of a new trim or deletion.
    pub(super) fn next_task(&mut self) -> u64 {
        let id = self.state.next_task;
        self.state.next_task = id.wrapping_add(1);
        id
    }

    pub(super) fn bytes_at(&self, key: &[u8]) -> Result<Vec<u8>, Fault> {
        Ok(self.txn.get(key)?.map(|b| b.to_vec()).unwrap_or_default())
    }
}

/// What inline data takes up, in the unit that `stat` counts in.
pub(super) fn inline_allocation(len: usize) -> u64 {
    (len as u64).next_multiple_of(512)
}
