//! Extended attributes.

use netfs_common::attr::FileKind;
use netfs_common::class::{self, Class};
use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::wire::meta::{MAX_XATTR_NAME, MAX_XATTR_VALUE, Response, XattrMode};

use super::change::Change;
use super::{Fault, changed};
use crate::meta::acl::{self, Acl};
use crate::meta::keys;
use crate::meta::kv::Read;
use crate::meta::record::Inode;

/// All extended attributes of an inode together, names and values. ext4 has a bound too.
const MAX_XATTR_BYTES: usize = 1 << 20;

impl Change<'_, '_> {
    pub(super) fn set_xattr(
        &mut self,
        ino: Ino,
        name: &[u8],
        value: Vec<u8>,
        mode: XattrMode,
    ) -> Result<Response, Fault> {
        let mut inode = self.inode(ino)?;
        if name == class::XATTR {
            return self.set_class(inode, Class::parse(&value).ok_or(Errno::EINVAL)?, mode);
        }
        check_name(name)?;
        check_kind(&inode, name, Errno::EPERM)?;
        if value.len() > MAX_XATTR_VALUE {
            return Err(Errno::E2BIG.into());
        }
        self.touch(&mut inode);
        if name == acl::ACCESS || name == acl::DEFAULT {
            self.set_acl(&mut inode, name, &value)?;
        } else {
            let exists = self.txn.get(&keys::xattr(ino, name))?.is_some();
            match mode {
                XattrMode::Create if exists => return Err(Errno::EEXIST.into()),
                XattrMode::Replace if !exists => return Err(Errno::ENODATA.into()),
                _ => self.write_xattr(&mut inode, name, value)?,
            }
        }
        self.put(inode);
        Ok(changed(ino))
    }

    /// What is made in a directory from now on gets this class. It is no attribute that is kept: it stands in the directory's
    /// generation, where those who make something in it have it at hand.
    fn set_class(
        &mut self,
        mut inode: Inode,
        class: Class,
        mode: XattrMode,
    ) -> Result<Response, Fault> {
        if !inode.is_dir() {
            return Err(Errno::ENOTDIR.into());
        }
        let ino = inode.attr.ino;
        let exists = Class::of(inode.attr.generation) != Class::DEFAULT;
        match mode {
            XattrMode::Create if exists => return Err(Errno::EEXIST.into()),
            XattrMode::Replace if !exists => return Err(Errno::ENODATA.into()),
            _ => inode.attr.generation = class.first_generation(),
        }
        self.touch(&mut inode);
        self.put(inode);
        Ok(changed(ino))
    }

    pub(super) fn remove_xattr(&mut self, ino: Ino, name: &[u8]) -> Result<Response, Fault> {
        let mut inode = self.inode(ino)?;
        if name == class::XATTR {
            return self.set_class(inode, Class::DEFAULT, XattrMode::Replace);
        }
        check_name(name)?;
        check_kind(&inode, name, Errno::EPERM)?;
        let exists = self.delete_xattr(&mut inode, name)?;
        // A list that is not there says what the permission bits say: removing it succeeds.
        if !exists && name != acl::ACCESS && name != acl::DEFAULT {
            return Err(Errno::ENODATA.into());
        }
        self.touch(&mut inode);
        self.put(inode);
        Ok(changed(ino))
    }

    /// The permission bits become those of an access list, and a list that says no more than
    /// they do is not kept.
    fn set_acl(&mut self, inode: &mut Inode, name: &[u8], value: &[u8]) -> Result<(), Fault> {
        if inode.attr.kind == FileKind::Symlink {
            return Err(Errno::EOPNOTSUPP.into());
        }
        let list = Acl::parse(value)?;
        if name == acl::DEFAULT && !inode.is_dir() {
            // The kernel lets a file's default list be removed, for there is none.
            return if list.is_some() { Err(Errno::EACCES.into()) } else { Ok(()) };
        }
        let keep = match &list {
            Some(list) if name == acl::ACCESS => {
                inode.attr.perm = list.to_perm(inode.attr.perm);
                !list.is_minimal()
            }
            Some(_) => true,
            None => false,
        };
        match list.filter(|_| keep) {
            Some(list) => self.write_xattr(inode, name, list.to_bytes()),
            None => self.delete_xattr(inode, name).map(|_| ()),
        }
    }

    /// Writes an attribute whose name and value are known to be right.
    pub(super) fn write_xattr(
        &mut self,
        inode: &mut Inode,
        name: &[u8],
        value: Vec<u8>,
    ) -> Result<(), Fault> {
        let key = keys::xattr(inode.attr.ino, name);
        let old = match inode.attr.has_xattrs {
            true => self.txn.get(&key)?.map(|v| v.len()),
            false => None,
        };
        let (mut names, mut bytes) = (inode.xattr_names as usize, inode.xattr_bytes as usize);
        match old {
            Some(len) => bytes = bytes.saturating_sub(len) + value.len(),
            None => {
                names += name.len() + 1;
                bytes += name.len() + value.len();
            }
        }
        if names > MAX_XATTR_VALUE || bytes > MAX_XATTR_BYTES {
            return Err(Errno::ENOSPC.into());
        }
        // Both are bounded by the line above.
        (inode.xattr_names, inode.xattr_bytes) = (names as u32, bytes as u32);
        inode.attr.has_xattrs = true;
        self.txn.put(key, value);
        Ok(())
    }

    fn delete_xattr(&mut self, inode: &mut Inode, name: &[u8]) -> Result<bool, Fault> {
        let key = keys::xattr(inode.attr.ino, name);
        let Some(value) = self.txn.get(&key)? else { return Ok(false) };
        inode.xattr_names = inode.xattr_names.saturating_sub(name.len() as u32 + 1);
        let bytes = (name.len() + value.len()) as u32;
        inode.xattr_bytes = inode.xattr_bytes.saturating_sub(bytes);
        inode.attr.has_xattrs = inode.xattr_names > 0;
        self.txn.remove(key);
        Ok(true)
    }
}

/// The namespaces that there are.
pub(super) fn check_name(name: &[u8]) -> Result<(), Errno> {
    if name.is_empty() || name.len() > MAX_XATTR_NAME {
        return Err(Errno::ERANGE);
    }
    if name.contains(&0) {
        return Err(Errno::EINVAL);
    }
    if name == acl::ACCESS || name == acl::DEFAULT {
        return Ok(());
    }
    for prefix in [b"user.".as_slice(), b"trusted.", b"security."] {
        match name.strip_prefix(prefix) {
            Some([]) => return Err(Errno::EINVAL),
            Some(_) => return Ok(()),
            None => {}
        }
    }
    Err(Errno::EOPNOTSUPP)
}

/// Users' attributes are for files and directories.
fn check_kind(inode: &Inode, name: &[u8], errno: Errno) -> Result<(), Errno> {
    let plain = matches!(inode.attr.kind, FileKind::File | FileKind::Dir);
    if name.starts_with(b"user.") && !plain { Err(errno) } else { Ok(()) }
}
