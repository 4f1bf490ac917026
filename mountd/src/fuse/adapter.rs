//! How a request becomes a call of the [`Vfs`] and its outcome a reply.

use std::ffi::OsStr;
use std::future::Future;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use fuser::{INodeNo, RenameFlags, ReplyEntry, Request};
use netfs_common::attr::{FileKind, SetAttr};
use netfs_common::class;
use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::name::Name;
use netfs_common::wire::meta::{NewInode, RenameMode};

use super::inflight::Inflight;
use super::renamed::LastTold;
use super::reply::{self, Refuse};
use super::{convert, groups};
use crate::insight::What;
use crate::vfs::{Caller, Looked, Vfs};

/// Speaks FUSE on one side and [`Vfs`] on the other.
#[derive(Debug)]
pub struct Adapter {
    pub(super) vfs: Arc<Vfs>,
    pub(super) inflight: Arc<Inflight>,
    pub(super) max_background: u16,
    pub(super) last_told: Arc<LastTold>,
}

/// A reply that tells of an interruption if its task is dropped.
struct Unanswered<R: Refuse>(Option<R>);

impl<R: Refuse> Drop for Unanswered<R> {
    fn drop(&mut self) {
        if let Some(reply) = self.0.take() {
            reply.refuse(if std::thread::panicking() { Errno::EIO } else { Errno::EINTR });
        }
    }
}

/// A request that was not answered at once.
pub(super) struct Asked {
    unique: u64,
    what: What,
}

impl From<&Request> for Asked {
    /// One of which nothing is told.
    fn from(req: &Request) -> Asked {
        asked(req, "request", Ino(0))
    }
}

/// What a request is: its operation and the inode that it is about.
pub(super) fn asked(req: &Request, op: &'static str, ino: Ino) -> Asked {
    Asked { unique: req.unique().0, what: What { op, ino, name: None, pid: req.pid() } }
}

/// The same of a request about a name.
pub(super) fn named(req: &Request, op: &'static str, dir: Ino, name: &Name) -> Asked {
    let what = What { op, ino: dir, name: Some(name.clone()), pid: req.pid() };
    Asked { unique: req.unique().0, what }
}

pub(super) fn caller(req: &Request) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), pid: req.pid() }
}

/// Who sets an extended attribute. Of most the kernel decides about that, and they need no user.
pub(super) fn who_sets(req: &Request, name: &OsStr) -> Caller {
    match name.as_bytes() == class::XATTR {
        true => groups::with_user(caller(req)),
        false => caller(req),
    }
}

/// Runs a handler. One that panics takes its reply with it, and a reply that is dropped answers
/// `EIO`; the event loop goes on.
pub(super) fn guarded(handler: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(handler)).is_err() {
        tracing::error!("a request handler panicked; its request was answered with EIO");
    }
}

/// Unwraps, or refuses the request.
macro_rules! ok_or_refuse {
    ($reply:ident, $result:expr) => {
        match $result {
            Ok(value) => value,
            Err(e) => return $reply.refuse(e),
        }
    };
}
pub(super) use ok_or_refuse;

impl Adapter {
    /// The adapter of a mounted volume.
    pub fn new(vfs: Arc<Vfs>, inflight: Arc<Inflight>, max_background: u16) -> Adapter {
        Adapter { vfs, inflight, max_background, last_told: Arc::new(LastTold::new()) }
    }

    /// Answers a request from a task of its own, which is dropped when the caller is killed: then
    /// the caller gets `EINTR`, and the core sees to it that what goes on has no one to tell.
    pub(super) fn later<R, T>(
        &self,
        asked: impl Into<Asked>,
        reply: R,
        work: impl Future<Output = Result<T, Errno>> + Send + 'static,
        answer: impl FnOnce(R, Result<T, Errno>) + Send + 'static,
    ) where
        R: Refuse + Send + 'static,
        T: Send + 'static,
    {
        let Asked { unique, what } = asked.into();
        let ticket = self.inflight.enter(unique, what.pid, None);
        let work = self.vfs.insight().follow(what, work);
        let mut reply = Unanswered(Some(reply));
        let task = self.vfs.runtime().spawn(async move {
            let result = work.await;
            // No `await` from here on: what has arrived is passed on.
            drop(ticket);
            if let Some(reply) = reply.0.take() {
                answer(reply, result);
            }
        });
        self.inflight.abortable(unique, task.abort_handle());
    }

    /// [`Adapter::later`] of something that ends in an entry, which counts as one reference of the
    /// kernel's.
    pub(super) fn enter(
        &self,
        asked: impl Into<Asked>,
        reply: ReplyEntry,
        work: impl Future<Output = Result<Looked, Errno>> + Send + 'static,
    ) {
        self.later(asked, reply, work, reply::looked);
    }

    /// Makes an inode with its first name.
    pub(super) fn make(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        new: NewInode,
        (mode, umask): (u32, u32),
        reply: ReplyEntry,
    ) {
        let name = ok_or_refuse!(reply, convert::name(name));
        let (vfs, caller, parent) = (self.vfs.clone(), caller(req), Ino(parent.0));
        let (perm, umask) = (convert::perm_of(mode), convert::perm_of(umask));
        let op = match new {
            NewInode::File | NewInode::Special(..) => "mknod",
            NewInode::Dir => "mkdir",
            NewInode::Symlink(_) => "symlink",
        };
        self.enter(named(req, op, parent, &name), reply, async move {
            vfs.make(parent, &name, new, perm, umask, caller).await.map(Looked::Found)
        });
    }

    /// Looks up `.` or `..`, as the kernel does for a file handle that it has forgotten.
    pub(super) fn lookup_dots(&self, req: &Request, of: Ino, up: bool, reply: ReplyEntry) {
        let vfs = self.vfs.clone();
        self.enter(asked(req, "lookup", of), reply, async move {
            let mut entry = vfs.getattr(of, None).await?;
            if up {
                if entry.attr.kind != FileKind::Dir {
                    return Err(Errno::ENOTDIR);
                }
                entry = vfs.getattr(entry.attr.parent, None).await?;
            }
            vfs.counted(entry).map(Looked::Found).ok_or(Errno::ESTALE)
        });
    }
}

/// Takes the set-group-id bit from a file whose contents or access control list are changed by
/// somebody who must not keep it.
pub(super) async fn drop_set_gid(vfs: &Arc<Vfs>, ino: Ino, caller: Caller) -> Result<(), Errno> {
    let attr = vfs.getattr(ino, None).await?.attr;
    let set_gid = libc::S_ISGID as u16;
    if attr.perm & set_gid == 0 || groups::keeps_set_gid(caller.pid, attr.gid) {
        return Ok(());
    }
    let set = SetAttr { perm: Some(attr.perm & !set_gid), ..SetAttr::default() };
    vfs.setattr(ino, set, None, caller).await?;
    // The kernel did not ask for this change and would go on to show the old mode.
    vfs.attributes_changed(ino).await;
    Ok(())
}

/// What `renameat2(2)` is asked for, by whom.
pub(super) fn rename_mode(flags: RenameFlags, caller: Caller) -> Result<RenameMode, Errno> {
    if flags.is_empty() {
        Ok(RenameMode::Replace)
    } else if flags == RenameFlags::RENAME_NOREPLACE {
        Ok(RenameMode::NoReplace)
    } else if flags == RenameFlags::RENAME_EXCHANGE {
        Ok(RenameMode::Exchange)
    } else if flags == RenameFlags::RENAME_WHITEOUT {
        Ok(RenameMode::Whiteout { uid: caller.uid, gid: caller.gid })
    } else {
        Err(Errno::EINVAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rename_flags_have_one_meaning_each() {
        let mode = |flags| rename_mode(flags, Caller { uid: 7, gid: 8, pid: 9 });
        assert_eq!(mode(RenameFlags::empty()), Ok(RenameMode::Replace));
        assert_eq!(mode(RenameFlags::RENAME_NOREPLACE), Ok(RenameMode::NoReplace));
        assert_eq!(mode(RenameFlags::RENAME_EXCHANGE), Ok(RenameMode::Exchange));
        let whiteout = RenameMode::Whiteout { uid: 7, gid: 8 };
        assert_eq!(mode(RenameFlags::RENAME_WHITEOUT), Ok(whiteout));
        let both = RenameFlags::RENAME_NOREPLACE | RenameFlags::RENAME_EXCHANGE;
        assert_eq!(mode(both), Err(Errno::EINVAL));
    }

    #[test]
    fn a_panic_stays_inside_its_handler() {
        guarded(|| panic!("as a test"));
    }
}
