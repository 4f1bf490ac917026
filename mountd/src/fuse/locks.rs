//! Requests about locks: of which kind they are, and whether their callers still wait.
//!
//! fuser does not pass on the flag that tells `flock` from `fcntl`, and the kernel has none for
//! open-file-description locks. But the caller is blocked in its system call while the request is open, and
//! `/proc/TID/syscall` shows which one that is. Where it may not be read, a lock is taken for one of `fcntl`: then `flock`
//! meets `fcntl` locks of the whole file, and is released at the same closes as ever.

use std::fs;
use std::time::Duration;

use fuser::{FileHandle, INodeNo, LockOwner, ReplyEmpty, ReplyLock, Request};
use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::locks::{LockKind, LockMode, LockRange};
use netfs_common::wire::lock::{LockConflict, LockHeld, LockOn};

use super::adapter::{Adapter, ok_or_refuse};
use super::reply::{self, Refuse};
use crate::vfs::WantedLock;

/// The last byte of a lock that goes on to the end of the file (`OFFSET_MAX`).
const TO_THE_END: u64 = i64::MAX as u64;
/// The caller is seen to wait a moment after its request has come.
const NOT_YET: Duration = Duration::from_micros(200);
const LOOKS: usize = 20;

/// A lock as the kernel describes it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) ino: INodeNo,
    pub(super) fh: FileHandle,
    pub(super) owner: LockOwner,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) typ: i32,
    pub(super) pid: u32,
}

impl Asked {
    fn range(&self) -> LockRange {
        LockRange { start: self.start, end: self.end }
    }

    fn whole(&self) -> bool {
        self.start == 0 && self.end == TO_THE_END
    }

    /// `None`: no lock.
    fn mode(&self) -> Result<Option<LockMode>, Errno> {
        match self.typ {
            libc::F_RDLCK => Ok(Some(LockMode::Read)),
            libc::F_WRLCK => Ok(Some(LockMode::Write)),
            libc::F_UNLCK => Ok(None),
            _ => Err(Errno::EINVAL),
        }
    }

    fn held(&self, kind: Option<LockKind>, mode: LockMode) -> LockHeld {
        let kind = kind.unwrap_or(LockKind::Posix);
        let on = LockOn { ino: Ino(self.ino.0), kind, owner: self.owner.0 };
        LockHeld { on, range: self.range(), mode, pid: self.pid }
    }
}

impl Adapter {
    /// `F_GETLK` and `F_OFD_GETLK`.
    pub(super) fn test_lock(&self, req: &Request, asked: Asked, reply: ReplyLock) {
        let mode = ok_or_refuse!(reply, asked.mode());
        let known = self.lock_kind(&asked);
        let (vfs, tid) = (self.vfs.clone(), req.pid());
        let work = async move {
            let Some(mode) = mode else { return Err(Errno::EINVAL) };
            let kind = kind_of(known, tid).await;
            vfs.test_lock(asked.held(kind, mode)).await
        };
        self.later(req, reply, work, answer_test);
    }

    /// Everything else that there is to ask.
    pub(super) fn set_lock(&self, req: &Request, asked: Asked, sleep: bool, reply: ReplyEmpty) {
        let mode = ok_or_refuse!(reply, asked.mode());
        let known = self.lock_kind(&asked);
        let (vfs, tid) = (self.vfs.clone(), req.pid());
        let work = async move {
            let kind = kind_of(known, tid).await;
            let Some(mode) = mode else {
                let owner = (Ino(asked.ino.0), asked.owner.0);
                return vfs.unlock(owner, kind, asked.range()).await;
            };
            let lock = asked.held(kind, mode);
            let wanted = WantedLock { fh: asked.fh.0, lock, certain: kind.is_some() };
            if sleep { vfs.lock(wanted).await } else { vfs.try_lock(wanted).await }
        };
        self.later(req, reply, work, reply::empty);
        if sleep && mode.is_some() {
            self.inflight.any_signal(req.unique().0);
        }
    }

    fn lock_kind(&self, asked: &Asked) -> Option<LockKind> {
        self.vfs.lock_kind(Ino(asked.ino.0), asked.fh.0, asked.owner.0, asked.whole())
    }
}

fn answer_test(reply: ReplyLock, result: Result<Option<LockConflict>, Errno>) {
    match result {
        Ok(None) => reply.locked(0, 0, libc::F_UNLCK, 0),
        Ok(Some(LockConflict { range, mode, pid, .. })) => {
            let typ = match mode {
                LockMode::Read => libc::F_RDLCK,
                LockMode::Write => libc::F_WRLCK,
            };
            reply.locked(range.start.min(TO_THE_END), range.end.min(TO_THE_END), typ, pid);
        }
        Err(e) => reply.refuse(e),
    }
}

/// Of which kind the lock is that a thread waits for; `None` if that cannot be seen.
async fn kind_of(known: Option<LockKind>, tid: u32) -> Option<LockKind> {
    if known.is_some() || tid == 0 {
        return known;
    }
    for _ in 0..LOOKS {
        match fs::read_to_string(format!("/proc/{tid}/syscall")) {
            Ok(text) if text.starts_with("running") => tokio::time::sleep(NOT_YET).await,
            Ok(text) => return kind_in(&text),
            Err(_) => return None,
        }
    }
    None
}

/// The kind of lock in a line of `/proc/TID/syscall`: number and arguments of the call.
fn kind_in(text: &str) -> Option<LockKind> {
    let mut words = text.split_ascii_whitespace();
    let number: i64 = words.next()?.parse().ok()?;
    if number == libc::SYS_flock {
        return Some(LockKind::Flock);
    }
    if number != libc::SYS_fcntl {
        return None;
    }
    let command = words.nth(1)?.strip_prefix("0x")?;
    // A C int: what is above it is whatever was in the register.
    match u64::from_str_radix(command, 16).ok()? as u32 as i32 {
        libc::F_OFD_GETLK | libc::F_OFD_SETLK | libc::F_OFD_SETLKW => Some(LockKind::Ofd),
        libc::F_GETLK | libc::F_SETLK | libc::F_SETLKW => Some(LockKind::Posix),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_call_tells_the_kind() {
        let line =
            |n: i64, command: i32| format!("{n} 0x3 {command:#x} 0x7ffd 0x0 0x0 0x0 0x1 0x2\n");
        assert_eq!(kind_in(&line(libc::SYS_flock, 2)), Some(LockKind::Flock));
        assert_eq!(kind_in(&line(libc::SYS_fcntl, libc::F_SETLKW)), Some(LockKind::Posix));
        assert_eq!(kind_in(&line(libc::SYS_fcntl, libc::F_OFD_SETLK)), Some(LockKind::Ofd));
        assert_eq!(kind_in(&line(libc::SYS_fcntl, libc::F_GETFL)), None);
        assert_eq!(kind_in(&line(libc::SYS_read, libc::F_SETLK)), None);
        for odd in ["", "running", "-1 0x7ffd 0x1", "72 0x3", "72 0x3 zz"] {
            assert_eq!(kind_in(odd), None, "{odd}");
        }
    }

    #[test]
    fn only_the_whole_file_can_be_flocked() {
        let asked = |start, end, typ| Asked {
            ino: INodeNo(1),
            fh: FileHandle(1),
            owner: LockOwner(1),
            start,
            end,
            typ,
            pid: 1,
        };
        assert!(asked(0, TO_THE_END, 0).whole());
        assert!(!asked(1, TO_THE_END, 0).whole() && !asked(0, 9, 0).whole());
        assert_eq!(asked(0, 9, libc::F_UNLCK).mode(), Ok(None));
        assert_eq!(asked(0, 9, 77).mode(), Err(Errno::EINVAL));
    }
}
