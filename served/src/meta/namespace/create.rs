//! New inodes.

use netfs_common::attr::{Attr, FileKind};
use netfs_common::class::Class;
use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::name::Name;
use netfs_common::wire::meta::{MAX_SYMLINK, NewInode, Response};

use super::change::Change;
use super::volume::dir_size;
use super::{Fault, changed};
use crate::meta::acl::{self, Acl};
use crate::meta::keys;
use crate::meta::record::{FIRST_COOKIE, Inode};

const SET_GID: u16 = 0o2000;

/// What the caller wants a new inode to have.
pub(super) struct Wanted {
    pub(super) perm: u16,
    pub(super) umask: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Change<'_, '_> {
    pub(super) fn create(
        &mut self,
        parent: Ino,
        name: &Name,
        new: NewInode,
        wanted: Wanted,
    ) -> Result<Response, Fault> {
        let mut dir = self.live_dir(parent)?;
        if self.entry(parent, name)?.is_some() {
            return Err(Errno::EEXIST.into());
        }
        let (kind, rdev, target) = shape(new)?;
        if self.state.inodes >= self.settings.max_inodes {
            return Err(Errno::ENOSPC.into());
        }
        let ino = self.new_ino()?;
        self.state.inodes = self.state.inodes.saturating_add(1);

        let mut inode = Inode {
            attr: Attr {
                ino,
                kind,
                perm: wanted.perm & 0o7777,
                nlink: 1,
                uid: wanted.uid,
                gid: wanted.gid,
                rdev,
                size: target.len() as u64,
                allocated: 0,
                atime: self.time,
                mtime: self.time,
                ctime: self.time,
                btime: self.time,
                generation: self.class_of_new(ino, kind, &dir).first_generation(),
                chunk_bits: self.settings.chunk_bits,
                inline: kind == FileKind::File,
                has_xattrs: false,
                parent: Ino(0),
                version: 0,
            },
            next_cookie: 0,
            entries: 0,
            xattr_names: 0,
            xattr_bytes: 0,
            // Of one that is made again, generations may have been given out that are lost.
            crashes: self.state.crashes.wrapping_sub(u32::from(self.replays.is_some())),
        };
        if kind == FileKind::Dir {
            inode.attr.nlink = 2;
            inode.attr.size = dir_size(0);
            inode.attr.parent = parent;
            inode.next_cookie = FIRST_COOKIE;
            dir.attr.nlink = dir.attr.nlink.checked_add(1).ok_or(Errno::EMLINK)?;
        }
        if dir.attr.perm & SET_GID != 0 {
            inode.attr.gid = dir.attr.gid;
            if kind == FileKind::Dir {
                inode.attr.perm |= SET_GID;
            }
        }
        self.inherit_permissions(&dir, &mut inode, wanted.umask)?;
        if kind == FileKind::Symlink {
            self.txn.put(keys::inline(ino), target);
        }
        self.add_entry(&mut dir, name, (ino, kind), None)?;
        self.put(inode);
        self.put(dir);
        Ok(changed(ino))
    }

    /// Files and directories get the class of their directory. One that is made again has the one it had: there may be chunks of it.
    fn class_of_new(&self, ino: Ino, kind: FileKind, dir: &Inode) -> Class {
        if !matches!(kind, FileKind::File | FileKind::Dir) {
            return Class::DEFAULT;
        }
        let old = self.old_generation(ino).map(Class::of).filter(|class| class.exists());
        old.unwrap_or(Class::of(dir.attr.generation))
    }

    /// The directory's default access control list, or else the caller's mask, takes away
    /// permission bits.
    fn inherit_permissions(
        &mut self,
        dir: &Inode,
        inode: &mut Inode,
        umask: u16,
    ) -> Result<(), Fault> {
        if inode.attr.kind == FileKind::Symlink {
            inode.attr.perm = 0o777;
            return Ok(());
        }
        let default = match dir.attr.has_xattrs {
            true => self.acl(dir.attr.ino, acl::DEFAULT)?,
            false => None,
        };
        let Some(default) = default else {
            inode.attr.perm &= !(umask & 0o777);
            return Ok(());
        };
        let (access, perm) = default.inherit(inode.attr.perm);
        inode.attr.perm = perm;
        if !access.is_minimal() {
            self.write_xattr(inode, acl::ACCESS, access.to_bytes())?;
        }
        if inode.is_dir() {
            self.write_xattr(inode, acl::DEFAULT, default.to_bytes())?;
        }
        Ok(())
    }

    /// An access control list that the store has.
    pub(super) fn acl(&mut self, ino: Ino, name: &[u8]) -> Result<Option<Acl>, Fault> {
        let key = keys::xattr(ino, name);
        let value = self.bytes_at(&key)?;
        let damaged = |e: Errno| super::StoreError::damaged(&key, format!("not a list: {e}"));
        Ok(Acl::parse(&value).map_err(damaged)?)
    }
}

/// Kind, device number and target of a new inode.
fn shape(new: NewInode) -> Result<(FileKind, u32, Vec<u8>), Errno> {
    match new {
        NewInode::File => Ok((FileKind::File, 0, Vec::new())),
        NewInode::Dir => Ok((FileKind::Dir, 0, Vec::new())),
        NewInode::Symlink(target) if target.is_empty() => Err(Errno::ENOENT),
        NewInode::Symlink(target) if target.len() > MAX_SYMLINK => Err(Errno::ENAMETOOLONG),
        NewInode::Symlink(target) if target.contains(&0) => Err(Errno::EINVAL),
        NewInode::Symlink(target) => Ok((FileKind::Symlink, 0, target)),
        NewInode::Special(kind @ (FileKind::Char | FileKind::Block), rdev) => {
            Ok((kind, rdev, Vec::new()))
        }
        NewInode::Special(kind @ (FileKind::Fifo | FileKind::Socket), _) => {
            Ok((kind, 0, Vec::new()))
        }
        NewInode::Special(..) => Err(Errno::EINVAL),
    }
}
