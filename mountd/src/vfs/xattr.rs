//! Extended attributes.

use std::sync::Arc;

use netfs_common::attr::{Attr, FileKind};
use netfs_common::class::{self, Class};
use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::wire::meta::{MAX_XATTR_NAME, MAX_XATTR_VALUE, Op, Request, Response, XattrMode};

use super::{Caller, Vfs};

/// Namespaces that are kept. Who may use them is the kernel's business.
const NAMESPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
const ACLS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];

/// What is said of an attribute that is not there.
///
/// `ls -l` asks for the SELinux label of every file, and no kernel keeps in mind that a FUSE file has none; told that there is no
/// such thing, it asks once for a directory. Where SELinux is in use the kernel answers by itself, and a label that was
/// stored is given back.
fn absent(name: &[u8]) -> Errno {
    if name == b"security.selinux" { Errno::EOPNOTSUPP } else { Errno::ENODATA }
}

fn check_name(name: &[u8]) -> Result<(), Errno> {
    if name.len() > MAX_XATTR_NAME {
        return Err(Errno::ERANGE);
    }
    if ACLS.contains(&name) || name == class::XATTR {
        return Ok(());
    }
    match NAMESPACES.iter().find(|n| name.starts_with(n)) {
        Some(namespace) if name.len() > namespace.len() => Ok(()),
        Some(_) => Err(Errno::EINVAL),
        None => Err(Errno::EOPNOTSUPP),
    }
}

/// The class of a file or directory, which stands in its attributes and is no attribute that is kept. It is not listed either: what copies
/// files with all their attributes must not carry it along.
fn class_of(attr: &Attr) -> Result<Vec<u8>, Errno> {
    match attr.kind {
        FileKind::File | FileKind::Dir => Ok(Class::of(attr.generation).to_string().into_bytes()),
        _ => Err(Errno::ENODATA),
    }
}

impl Vfs {
    /// An extended attribute, if known.
    pub fn try_getxattr(&self, ino: Ino, name: &[u8]) -> Option<Result<Vec<u8>, Errno>> {
        if self.is_down() {
            return Some(Err(Errno::EIO));
        }
        if let Err(e) = check_name(name) {
            return Some(Err(e));
        }
        // Most inodes have none, and the kernel asks before many writes.
        let attr: Attr = self.served(&*self.cache.table.get(ino)?)?;
        if name == class::XATTR {
            return Some(class_of(&attr));
        }
        if !attr.has_xattrs {
            return Some(Err(absent(name)));
        }
        Some(self.cache.xattr(ino, name)?.ok_or(absent(name)))
    }

    /// An extended attribute.
    ///
    /// # Errors
    /// As `getxattr(2)`.
    pub async fn getxattr(self: &Arc<Self>, ino: Ino, name: &[u8]) -> Result<Vec<u8>, Errno> {
        if let Some(known) = self.try_getxattr(ino, name) {
            return known;
        }
        if name == class::XATTR {
            return class_of(&self.getattr(ino, None).await?.attr);
        }
        self.patiently(async {
            let node = self.cache.table.obtain(ino);
            let ticket = self.cache.ticket(&node);
            let request = Request::GetXattr { ino, name: name.to_vec() };
            let answer = self.session.ask(request).await;
            let grant = answer.granted(ino);
            match answer.reply {
                Ok(Response::Bytes(value)) => {
                    self.cache.learn_xattr(ticket, &node, name, Some(value.clone()), grant);
                    Ok(value)
                }
                Err(Errno::ENODATA) => {
                    self.cache.learn_xattr(ticket, &node, name, None, grant);
                    Err(absent(name))
                }
                Ok(_) => Err(Errno::EPROTO),
                Err(e) => Err(e),
            }
        })
        .await
    }

    /// The names of all extended attributes.
    ///
    /// # Errors
    /// As `listxattr(2)`.
    pub async fn listxattr(self: &Arc<Self>, ino: Ino) -> Result<Vec<Vec<u8>>, Errno> {
        self.up()?;
        let served = self.cache.table.get(ino).and_then(|n| self.served(&n));
        if served.is_some_and(|a| !a.has_xattrs) {
            return Ok(Vec::new());
        }
        self.patiently(async {
            match self.session.ask(Request::ListXattrs { ino }).await.reply? {
                Response::Xattrs(names) => Ok(names),
                _ => Err(Errno::EPROTO),
            }
        })
        .await
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// As `setxattr(2)`.
    pub async fn setxattr(
        self: &Arc<Self>,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        flags: i32,
        caller: Caller,
    ) -> Result<(), Errno> {
        check_name(name)?;
        self.may_set(ino, name, caller).await?;
        if value.len() > MAX_XATTR_VALUE {
            return Err(Errno::E2BIG);
        }
        let mode = match flags {
            0 => XattrMode::Set,
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => return Err(Errno::EINVAL),
        };
        self.change_xattr(
            Op::SetXattr { ino, name: name.to_vec(), value: value.to_vec(), mode },
            ino,
        )
        .await
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// As `removexattr(2)`.
    pub async fn removexattr(
        self: &Arc<Self>,
        ino: Ino,
        name: &[u8],
        caller: Caller,
    ) -> Result<(), Errno> {
        check_name(name)?;
        self.may_set(ino, name, caller).await?;
        self.change_xattr(Op::RemoveXattr { ino, name: name.to_vec() }, ino).await
    }

    /// The kernel decides about all other attributes. About one that it does not know it asks for the right to write only, which
    /// in a shared directory everybody has.
    async fn may_set(self: &Arc<Self>, ino: Ino, name: &[u8], caller: Caller) -> Result<(), Errno> {
        if name != class::XATTR || caller.uid == 0 {
            return Ok(());
        }
        let owner = self.getattr(ino, None).await?.attr.uid;
        // The last number is nobody's, and says that the user could not be seen.
        let known = caller.uid != u32::MAX;
        if known && owner == caller.uid { Ok(()) } else { Err(Errno::EPERM) }
    }

    async fn change_xattr(self: &Arc<Self>, op: Op, ino: Ino) -> Result<(), Errno> {
        let this = Arc::clone(self);
        self.run(async move {
            let node = this.cache.table.obtain(ino);
            this.cache.xattrs_moved(&node);
            let ticket = this.cache.ticket(&node);
            let outcome = this.session.mutate(op, false).await;
            this.cache.xattrs_moved(&node);
            let changed = outcome?;
            this.cache.learn_changed(ticket, &changed);
            Ok(())
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_namespaces_are_kept() {
        assert_eq!(check_name(b"user.a"), Ok(()));
        assert_eq!(check_name(b"system.posix_acl_access"), Ok(()));
        assert_eq!(check_name(b"user."), Err(Errno::EINVAL));
        assert_eq!(check_name(b"system.nfs4_acl"), Err(Errno::EOPNOTSUPP));
        assert_eq!(check_name(&[b'u'; 300]), Err(Errno::ERANGE));
    }
}
