//! Names that come and go without a new inode.

use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::name::Name;
use netfs_common::wire::meta::Response;

use super::change::Change;
use super::{Fault, MAX_LINKS, changed};
use crate::meta::record::Inode;

impl Change<'_, '_> {
    pub(super) fn link(&mut self, ino: Ino, parent: Ino, name: &Name) -> Result<Response, Fault> {
        let mut dir = self.live_dir(parent)?;
        let mut inode = self.inode(ino)?;
        if self.entry(parent, name)?.is_some() {
            return Err(Errno::EEXIST.into());
        }
        if inode.is_dir() {
            return Err(Errno::EPERM.into());
        }
        if inode.attr.nlink == 0 {
            return Err(Errno::ENOENT.into());
        }
        if inode.attr.nlink >= MAX_LINKS {
            return Err(Errno::EMLINK.into());
        }
        inode.attr.nlink += 1;
        self.touch(&mut inode);
        self.add_entry(&mut dir, name, (ino, inode.attr.kind), None)?;
        self.put(inode);
        self.put(dir);
        Ok(changed(ino))
    }

    pub(super) fn unlink(&mut self, parent: Ino, name: &Name) -> Result<Response, Fault> {
        let mut dir = self.live_dir(parent)?;
        let entry = self.entry(parent, name)?.ok_or(Errno::ENOENT)?;
        let inode = self.inode_of(&entry)?;
        if inode.is_dir() {
            return Err(Errno::EISDIR.into());
        }
        self.remove_entry(&mut dir, name, &entry);
        self.put(dir);
        self.drop_name(inode)?;
        Ok(changed(entry.ino))
    }

    pub(super) fn rmdir(&mut self, parent: Ino, name: &Name) -> Result<Response, Fault> {
        let mut dir = self.live_dir(parent)?;
        let entry = self.entry(parent, name)?.ok_or(Errno::ENOENT)?;
        let victim = self.inode_of(&entry)?;
        if !victim.is_dir() {
            return Err(Errno::ENOTDIR.into());
        }
        if victim.entries > 0 {
            return Err(Errno::ENOTEMPTY.into());
        }
        self.remove_entry(&mut dir, name, &entry);
        dir.attr.nlink = dir.attr.nlink.saturating_sub(1);
        self.put(dir);
        self.drop_name(victim)?;
        Ok(changed(entry.ino))
    }

    /// An inode loses a name; with the last one (a directory has only one) it becomes an orphan.
    pub(super) fn drop_name(&mut self, mut inode: Inode) -> Result<(), Fault> {
        self.touch(&mut inode);
        if inode.is_dir() {
            inode.attr.nlink = 0;
            inode.attr.parent = Ino(0);
        } else {
            inode.attr.nlink = inode.attr.nlink.saturating_sub(1);
        }
        let ino = inode.attr.ino;
        let orphaned = inode.attr.nlink == 0;
        self.put(inode);
        if orphaned { self.orphan(ino) } else { Ok(()) }
    }
}
