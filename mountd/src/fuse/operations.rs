//! Every FUSE request: which call of the [`Vfs`](crate::vfs::Vfs) it is. How that is made and
//! answered is in `adapter`.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, INodeNo, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags,
    ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use netfs_common::attr::{FileKind, SetAttr};
use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::wire::meta::{MAX_SYMLINK, NewInode};

use super::adapter::{
    Adapter, asked, caller, drop_set_gid, guarded, named, ok_or_refuse, rename_mode, who_sets,
};
use super::locks::Asked;
use super::reply::{self, Refuse};
use super::{convert, groups, init, ioctl};
use crate::vfs::Looked;

/// Bytes that one `copy_file_range` may be answered with: the reply has 32 bits, and the kernel
/// asks again for the rest.
const MAX_COPY: u64 = 0x7fff_f000;

/// The extended attribute that is an access control list.
const ACCESS_LIST: &[u8] = b"system.posix_acl_access";

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        init::negotiate(config, self.max_background)
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        guarded(|| {
            let parent = Ino(parent.0);
            if matches!(name.as_bytes(), b"." | b"..") {
                return self.lookup_dots(req, parent, name.len() == 2, reply);
            }
            let name = ok_or_refuse!(reply, convert::name(name));
            let thread = (req.pid(), self.last_told.before(req.pid()));
            if let Some(result) = self.vfs.try_lookup(parent, &name) {
                self.vfs.insight().at_once();
                let told = result.and_then(|looked| {
                    let (looked, telling) = self.vfs.confirm(parent, &name, looked);
                    let told = self.last_told.tell(&self.vfs, thread, (parent, &name), looked)?;
                    Ok((told, telling))
                });
                return reply::told(reply, told);
            }
            let (vfs, last_told) = (self.vfs.clone(), Arc::clone(&self.last_told));
            let what = named(req, "lookup", parent, &name);
            let work = async move {
                let looked = vfs.lookup(parent, &name).await?;
                let (looked, telling) = vfs.confirm(parent, &name, looked);
                Ok((last_told.tell(&vfs, thread, (parent, &name), looked)?, telling))
            };
            self.later(what, reply, work, reply::told);
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        guarded(|| self.vfs.forget(Ino(ino.0), nlookup));
    }

    // `batch_forget` stays as it is, one `forget` for each: fuser 0.18 does not let the type of its
    // argument be named.

    fn getattr(&self, req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        guarded(|| {
            let (ino, fh) = (Ino(ino.0), fh.map(|fh| fh.0));
            if let Some(result) = self.vfs.try_getattr(ino, fh) {
                self.vfs.insight().at_once();
                return reply::attr(reply, result);
            }
            let vfs = self.vfs.clone();
            let work = async move { vfs.getattr(ino, fh).await };
            self.later(asked(req, "getattr", ino), reply, work, reply::attr);
        });
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        // The change time is ours to set; the others are of macOS.
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        guarded(|| {
            let set = SetAttr {
                perm: mode.map(convert::perm_of),
                uid,
                gid,
                size,
                atime: atime.map(convert::set_time),
                mtime: mtime.map(convert::set_time),
            };
            let (vfs, caller, ino, fh) =
                (self.vfs.clone(), caller(req), Ino(ino.0), fh.map(|fh| fh.0));
            let work = async move { vfs.setattr(ino, set, fh, caller).await };
            self.later(asked(req, "setattr", ino), reply, work, reply::attr);
        });
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        guarded(|| {
            let (vfs, ino) = (self.vfs.clone(), Ino(ino.0));
            let work = async move { vfs.readlink(ino).await };
            self.later(asked(req, "readlink", ino), reply, work, reply::data);
        });
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        guarded(|| {
            let new = match convert::kind_of(mode) {
                Some(FileKind::File) => NewInode::File,
                Some(kind @ (FileKind::Char | FileKind::Block)) => NewInode::Special(kind, rdev),
                Some(kind @ (FileKind::Fifo | FileKind::Socket)) => NewInode::Special(kind, 0),
                Some(FileKind::Dir | FileKind::Symlink) | None => {
                    return reply.refuse(Errno::EINVAL);
                }
            };
            self.make(req, parent, name, new, (mode, umask), reply);
        });
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        guarded(|| self.make(req, parent, name, NewInode::Dir, (mode, umask), reply));
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        guarded(|| {
            let name = ok_or_refuse!(reply, convert::name(name));
            let (vfs, parent) = (self.vfs.clone(), Ino(parent.0));
            let what = named(req, "unlink", parent, &name);
            let work = async move { vfs.unlink(parent, &name).await };
            self.later(what, reply, work, reply::empty);
        });
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        guarded(|| {
            let name = ok_or_refuse!(reply, convert::name(name));
            let (vfs, parent) = (self.vfs.clone(), Ino(parent.0));
            let what = named(req, "rmdir", parent, &name);
            let work = async move { vfs.rmdir(parent, &name).await };
            self.later(what, reply, work, reply::empty);
        });
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        guarded(|| {
            let target = target.as_os_str().as_bytes();
            if target.len() > MAX_SYMLINK {
                return reply.refuse(Errno::ENAMETOOLONG);
            }
            let new = NewInode::Symlink(target.to_vec());
            self.make(req, parent, link_name, new, (0o777, 0), reply);
        });
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        guarded(|| {
            let mode = ok_or_refuse!(reply, rename_mode(flags, caller(req)));
            let name = ok_or_refuse!(reply, convert::name(name));
            let new_name = ok_or_refuse!(reply, convert::name(newname));
            let (vfs, parent, new_parent) = (self.vfs.clone(), Ino(parent.0), Ino(newparent.0));
            let what = named(req, "rename", parent, &name);
            let work = async move { vfs.rename(parent, &name, new_parent, &new_name, mode).await };
            self.later(what, reply, work, reply::empty);
        });
    }

    fn link(
        &self,
        req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        guarded(|| {
            let name = ok_or_refuse!(reply, convert::name(newname));
            let (vfs, ino, parent) = (self.vfs.clone(), Ino(ino.0), Ino(newparent.0));
            self.enter(named(req, "link", parent, &name), reply, async move {
                vfs.link(ino, parent, &name).await.map(Looked::Found)
            });
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        guarded(|| {
            let ino = Ino(ino.0);
            if let Some(result) = self.vfs.try_open(ino, flags.0) {
                self.vfs.insight().at_once();
                return reply::opened(reply, result);
            }
            let vfs = self.vfs.clone();
            let work = async move { vfs.open(ino, flags.0).await };
            self.later(asked(req, "open", ino), reply, work, reply::opened);
        });
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        guarded(|| {
            let (ino, fh) = (Ino(ino.0), fh.0);
            if let Some(result) = self.vfs.try_read(ino, fh, offset, size) {
                self.vfs.insight().at_once();
                return reply::data(reply, result.map(|d| d.0));
            }
            let vfs = self.vfs.clone();
            let work = async move { vfs.read(ino, fh, offset, size).await.map(|d| d.0) };
            self.later(asked(req, "read", ino), reply, work, reply::data);
        });
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        guarded(|| {
            let (ino, fh, write_flags) = (Ino(ino.0), fh.0, write_flags.bits());
            let data = Bytes::copy_from_slice(data);
            if let Some(result) = self.vfs.try_write(ino, fh, offset, &data, flags.0, write_flags) {
                self.vfs.insight().at_once();
                return reply::written(reply, result);
            }
            let vfs = self.vfs.clone();
            let work = async move { vfs.write(ino, fh, offset, data, flags.0, write_flags).await };
            self.later(asked(req, "write", ino), reply, work, reply::written);
        });
    }

    fn flush(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        guarded(|| {
            let (vfs, ino) = (self.vfs.clone(), Ino(ino.0));
            let work = async move {
                let flushed = vfs.flush(ino, fh.0).await;
                // Whatever became of the data: the process no longer has the file.
                vfs.closed_by(ino, lock_owner.0).await?;
                flushed
            };
            self.later(asked(req, "flush", ino), reply, work, reply::empty);
        });
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        guarded(|| {
            self.vfs.release(Ino(ino.0), fh.0);
            reply.ok();
        });
    }

    fn fsync(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        guarded(|| {
            let (vfs, ino) = (self.vfs.clone(), Ino(ino.0));
            let work = async move { vfs.fsync(ino, fh.0, datasync).await };
            self.later(asked(req, "fsync", ino), reply, work, reply::empty);
        });
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        guarded(|| reply::opened(reply, self.vfs.opendir(Ino(ino.0), flags.0)));
    }

    fn readdir(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        guarded(|| self.list(req, Ino(ino.0), fh.0, offset, reply));
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        guarded(|| self.list(req, Ino(ino.0), fh.0, offset, reply));
    }

    fn releasedir(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        guarded(|| {
            self.vfs.releasedir(Ino(ino.0), fh.0);
            reply.ok();
        });
    }

    fn fsyncdir(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        guarded(|| {
            let (vfs, ino) = (self.vfs.clone(), Ino(ino.0));
            let work = async move { vfs.fsyncdir(ino, fh.0).await };
            self.later(asked(req, "fsyncdir", ino), reply, work, reply::empty);
        });
    }

    fn statfs(&self, req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        guarded(|| {
            let vfs = self.vfs.clone();
            let work = async move { vfs.statfs().await };
            self.later(asked(req, "statfs", Ino(ino.0)), reply, work, reply::statfs);
        });
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        // Of macOS.
        _position: u32,
        reply: ReplyEmpty,
    ) {
        guarded(|| {
            let (vfs, caller, ino) = (self.vfs.clone(), who_sets(req, name), Ino(ino.0));
            let (name, value) = (name.as_bytes().to_vec(), value.to_vec());
            let both = self.vfs.clone();
            let work = async move {
                vfs.setxattr(ino, &name, &value, flags, caller).await?;
                if name == ACCESS_LIST { drop_set_gid(&vfs, ino, caller).await } else { Ok(()) }
            };
            let work = async move { both.as_one(work).await };
            self.later(asked(req, "setxattr", ino), reply, work, reply::empty);
        });
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        guarded(|| {
            let ino = Ino(ino.0);
            if let Some(result) = self.vfs.try_getxattr(ino, name.as_bytes()) {
                self.vfs.insight().at_once();
                return reply::xattr(reply, size, result);
            }
            let (vfs, name) = (self.vfs.clone(), name.as_bytes().to_vec());
            let work = async move { vfs.getxattr(ino, &name).await };
            self.later(asked(req, "getxattr", ino), reply, work, move |r, v| {
                reply::xattr(r, size, v)
            });
        });
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        guarded(|| {
            let (vfs, ino, caller) = (self.vfs.clone(), Ino(ino.0), req.pid());
            let work = async move {
                let mut names = vfs.listxattr(ino).await?;
                // xattr(7): `trusted` is not shown to the unprivileged. The kernel leaves that to us.
                let hidden = names.iter().any(|n| n.starts_with(b"trusted."));
                if hidden && !groups::administers(caller) {
                    names.retain(|n| !n.starts_with(b"trusted."));
                }
                Ok(reply::xattr_list(&names))
            };
            self.later(asked(req, "listxattr", ino), reply, work, move |r, v| {
                reply::xattr(r, size, v)
            });
        });
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        guarded(|| {
            let (vfs, caller, ino) = (self.vfs.clone(), who_sets(req, name), Ino(ino.0));
            let name = name.as_bytes().to_vec();
            let work = async move { vfs.removexattr(ino, &name, caller).await };
            self.later(asked(req, "removexattr", ino), reply, work, reply::empty);
        });
    }

    /// With `default_permissions` the kernel checks by itself and does not ask.
    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        guarded(|| {
            let name = ok_or_refuse!(reply, convert::name(name));
            let vfs = self.vfs.clone();
            let (caller, parent) = (caller(req), Ino(parent.0));
            let (perm, umask) = (convert::perm_of(mode), convert::perm_of(umask));
            let what = named(req, "create", parent, &name);
            let work = async move { vfs.create(parent, &name, perm, umask, flags, caller).await };
            self.later(what, reply, work, reply::created);
        });
    }

    fn getlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let asked = Asked { ino, fh, owner, start, end, typ, pid };
        guarded(|| self.test_lock(req, asked, reply));
    }

    fn setlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let asked = Asked { ino, fh, owner, start, end, typ, pid };
        guarded(|| self.set_lock(req, asked, sleep, reply));
    }

    /// There is no block device whose blocks could be named.
    fn bmap(&self, _req: &Request, _ino: INodeNo, _size: u32, _idx: u64, reply: ReplyBmap) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        guarded(|| {
            if cmd != ioctl::GOINGDOWN {
                // Among them the flags of `chattr`, which no file here has.
                return reply.refuse(Errno::ENOTTY);
            }
            if !groups::administers(req.pid()) {
                return reply.refuse(Errno::EPERM);
            }
            let (vfs, flush) = (self.vfs.clone(), ioctl::wants_flush(req.pid()));
            tracing::warn!(flush, "going down on request: everything fails until the next mount");
            let work = async move {
                if vfs.is_down() {
                    return Ok(());
                }
                let going = vfs.clone();
                let all = async move {
                    going.going_down(flush).await;
                    Ok(())
                };
                vfs.as_one(all).await
            };
            self.later(
                asked(req, "ioctl", Ino(ino.0)),
                reply,
                work,
                |reply, result: Result<(), Errno>| match result {
                    Ok(()) => reply.ioctl(0, &[]),
                    Err(e) => reply.refuse(e),
                },
            );
        });
    }

    /// Regular files are always ready: the kernel says so by itself after this answer.
    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        guarded(|| {
            let (vfs, ino, caller) = (self.vfs.clone(), Ino(ino.0), caller(req));
            let work = async move {
                // The kernel takes away only the bit of a file that its group may execute.
                drop_set_gid(&vfs, ino, caller).await?;
                vfs.fallocate(ino, fh.0, offset, length, mode).await
            };
            self.later(asked(req, "fallocate", ino), reply, work, reply::empty);
        });
    }

    fn lseek(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        guarded(|| {
            let (vfs, ino) = (self.vfs.clone(), Ino(ino.0));
            let work = async move { vfs.lseek(ino, fh.0, offset, whence).await };
            self.later(asked(req, "lseek", ino), reply, work, reply::offset);
        });
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        guarded(|| {
            if !flags.is_empty() {
                return reply.refuse(Errno::EINVAL);
            }
            let (vfs, len) = (self.vfs.clone(), len.min(MAX_COPY));
            let (from, to) = (Ino(ino_in.0), Ino(ino_out.0));
            let work = async move {
                let copied = vfs
                    .copy_file_range(from, fh_in.0, offset_in, to, fh_out.0, offset_out, len)
                    .await?;
                u32::try_from(copied).map_err(|_| Errno::EIO)
            };
            self.later(asked(req, "copy_file_range", to), reply, work, reply::written);
        });
    }
}
