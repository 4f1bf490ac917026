//! File locks, which hold among all clients of the volume.
//!
//! The metadata server has the table of locks; nothing is granted here. What this client has is noted, to know at which
//! `close` a message is due, and to reclaim locks from a server that was restarted. The kernel
//! gives an owner as a number: for `fcntl` that of the process's table of descriptors, which a `FLUSH` names at each
//! close; for `flock` and open-file-description locks that of the open file, which ends with `RELEASE`.
//!
//! An uncontended lock costs one call, and so does its end.

mod book;
mod reclaim;
mod wait;

use std::sync::Arc;
use std::time::Duration;

use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::locks::{LockKind, LockMode, LockRange};
use netfs_common::wire::lock::{LockCall, LockConflict, LockHeld, LockOn, LockReply};
use netfs_common::wire::meta::{Request, Response};

use super::Vfs;
use super::delivery::Outcome;
pub(super) use book::LockBook;
use book::{Noted, Unwanted};
pub(super) use reclaim::attend;

/// A server that waits for others to reclaim their locks is asked again after this.
const GRACE_PAUSE: Duration = Duration::from_millis(100);
/// The end of a `flock` or open-file-description lock by its last `close` is told after that has returned. Who
/// tries one meanwhile is not sent away for it, but tries again after these pauses.
const RETRIES: [Duration; 3] =
    [Duration::from_millis(1), Duration::from_millis(2), Duration::from_millis(4)];

/// A lock that a program asks for.
#[derive(Clone, Copy, Debug)]
pub struct WantedLock {
    /// The handle that it asks through.
    pub fh: u64,
    /// The lock.
    pub lock: LockHeld,
    /// Its kind is known, and not only presumed.
    pub certain: bool,
}

/// A lock that was taken, if somebody wants it.
#[derive(Debug)]
pub(super) struct Taken {
    lock: LockHeld,
    noted: Noted,
}

impl Outcome for Taken {
    fn give_back(self, vfs: &Arc<Vfs>) {
        if vfs.locks.take_back(&self.lock, &self.noted) {
            let (this, lock) = (Arc::clone(vfs), self.lock);
            let unwanted = Unwanted::begin(&vfs.locks, &lock.on);
            let used = Use::begin(vfs, lock.on.ino);
            vfs.runtime.spawn(async move {
                {
                    let _gate = used.gate.lock().await;
                    this.align(&lock).await;
                }
                drop(unwanted);
            });
        }
    }
}

/// Something is under way about the locks of an inode.
struct Use {
    vfs: Arc<Vfs>,
    ino: Ino,
    gate: Arc<tokio::sync::Mutex<()>>,
}

impl Use {
    fn begin(vfs: &Arc<Vfs>, ino: Ino) -> Use {
        Use { vfs: Arc::clone(vfs), ino, gate: vfs.locks.enter(ino) }
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        self.vfs.locks.leave(self.ino);
    }
}

impl Vfs {
    /// What kind of lock an owner asks for, if earlier requests tell. `whole`: it may be a `flock`.
    pub fn lock_kind(&self, ino: Ino, fh: u64, owner: u64, whole: bool) -> Option<LockKind> {
        self.locks.kind_known(ino, fh, owner, whole)
    }

    /// Takes a lock, or fails with `EAGAIN` if somebody has one in the way.
    ///
    /// # Errors
    /// As `fcntl(2)` with `F_SETLK`.
    pub async fn try_lock(self: &Arc<Self>, wanted: WantedLock) -> Result<(), Errno> {
        let this = Arc::clone(self);
        self.run(async move { this.take_lock(wanted).await }).await.map(drop)
    }

    /// Takes a lock as soon as nobody is in the way any more. The future may be dropped: then nothing
    /// has changed.
    ///
    /// # Errors
    /// As `fcntl(2)` with `F_SETLKW`.
    pub async fn lock(self: &Arc<Self>, wanted: WantedLock) -> Result<(), Errno> {
        self.up()?;
        self.wait_for_lock(wanted).await
    }

    /// Gives up locks of an owner in a range: those of a kind, or of whatever kind they are.
    ///
    /// # Errors
    /// As `fcntl(2)` with `F_UNLCK`.
    pub async fn unlock(
        self: &Arc<Self>,
        (ino, owner): (Ino, u64),
        kind: Option<LockKind>,
        range: LockRange,
    ) -> Result<(), Errno> {
        let this = Arc::clone(self);
        self.run(async move {
            let kinds = kind.map_or_else(|| this.locks.kinds(ino, owner), |kind| vec![kind]);
            for kind in kinds {
                this.clear_lock(LockOn { ino, kind, owner }, range).await?;
            }
            Ok(())
        })
        .await
    }

    /// A lock that is in the way of another, if there is one.
    ///
    /// # Errors
    /// As `fcntl(2)` with `F_GETLK`.
    pub async fn test_lock(&self, lock: LockHeld) -> Result<Option<LockConflict>, Errno> {
        self.up()?;
        loop {
            self.patiently(async {
                self.locks.ready().await;
                Ok(())
            })
            .await?;
            match self.patiently(self.ask_lock(LockCall::Test { lock })).await? {
                LockReply::Granted => return Ok(None),
                LockReply::Conflict(conflict) => return Ok(Some(conflict)),
                LockReply::Grace => tokio::time::sleep(GRACE_PAUSE).await,
                _ => return Err(Errno::EPROTO),
            }
        }
    }

    /// A process closes a file: its `fcntl` locks there end, whichever descriptor it closes. Costs
    /// nothing where there are none.
    ///
    /// # Errors
    /// As [`Vfs::unlock`].
    pub async fn closed_by(self: &Arc<Self>, ino: Ino, owner: u64) -> Result<(), Errno> {
        let Some(gate) = self.locks.enter_known(ino) else { return Ok(()) };
        let used = Use { vfs: Arc::clone(self), ino, gate };
        let this = Arc::clone(self);
        self.run(async move {
            this.locks.given_back(&LockOn { ino, kind: LockKind::Posix, owner }).await;
            {
                // What is under way may be a lock of this owner.
                let _gate = used.gate.lock().await;
                if !this.locks.closed(ino, owner) {
                    return Ok(());
                }
            }
            let on = LockOn { ino, kind: LockKind::Posix, owner };
            this.clear_lock(on, LockRange::ALL).await
        })
        .await
    }

    /// The last descriptor of a handle is closed: locks of the open file end. Never waits.
    pub(super) fn locks_released(self: &Arc<Self>, ino: Ino, fh: u64) {
        self.locks.released(ino, fh).into_iter().for_each(|on| self.end_later(on));
    }

    fn end_later(self: &Arc<Self>, on: LockOn) {
        let this = Arc::clone(self);
        self.runtime.spawn(async move {
            if let Err(e) = this.clear_lock(on, LockRange::ALL).await
                && !this.is_down()
            {
                tracing::warn!(ino = %on.ino, error = %e, "locks of a closed file were not released");
            }
        });
    }

    fn note_lock(&self, wanted: &WantedLock) {
        // As `opened` has it: of such a handle closes are told only if it was opened after the first lock.
        let read_only = |flags: i32| flags & libc::O_ACCMODE == libc::O_RDONLY;
        let unheard = self.handles.get(wanted.fh).is_ok_and(|h| read_only(h.flags));
        self.locks.note(wanted, unheard);
    }

    /// Processes that are gone, without a word because their handle was opened before anybody locked, have no locks.
    fn bury_owners(self: &Arc<Self>) {
        for (on, pid) in self.locks.unheard() {
            let gone = std::fs::metadata(format!("/proc/{pid}"))
                .is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound);
            if gone {
                self.end_later(on);
            }
        }
    }

    async fn take_lock(self: &Arc<Self>, wanted: WantedLock) -> Result<Taken, Errno> {
        let lock = wanted.lock;
        self.locks.given_back(&lock.on).await;
        let used = Use::begin(self, lock.on.ino);
        let _gate = used.gate.lock().await;
        self.locks.ready().await;
        self.note_lock(&wanted);
        let mut retries = RETRIES.iter();
        loop {
            let life = self.locks.life();
            match self.ask_lock(LockCall::Set { lock, wait: None }).await? {
                LockReply::Granted => {
                    if let Some(noted) = self.locks.granted(life, &lock) {
                        return Ok(Taken { lock, noted });
                    }
                }
                LockReply::Conflict(conflict) => {
                    if lock.on.kind == LockKind::Flock {
                        // Given up first, to get another mode.
                        self.locks.cleared(&lock.on, lock.range);
                    }
                    match retries.next() {
                        Some(pause) if conflict.kind != LockKind::Posix => {
                            tokio::time::sleep(*pause).await;
                        }
                        _ => return Err(Errno::EAGAIN),
                    }
                }
                LockReply::Grace => tokio::time::sleep(GRACE_PAUSE).await,
                _ => return Err(Errno::EPROTO),
            }
        }
    }

    async fn clear_lock(self: &Arc<Self>, on: LockOn, range: LockRange) -> Result<(), Errno> {
        self.locks.given_back(&on).await;
        let used = Use::begin(self, on.ino);
        let _gate = used.gate.lock().await;
        self.locks.ready().await;
        // Before it is sent: it must not be reclaimed any more.
        let before = self.locks.cleared(&on, range);
        if before.is_empty() {
            return Ok(());
        }
        // If that has begun just before, it is being reclaimed, and must not come after this.
        self.locks.ready().await;
        let life = self.locks.life();
        match self.ask_lock(LockCall::Clear { on, range }).await {
            Ok(LockReply::Granted) => Ok(()),
            Ok(_) => Err(Errno::EPROTO),
            Err(Errno::ENOLCK) => {
                for (range, mode) in before {
                    let _ = self.locks.granted(life, &LockHeld { on, range, mode, pid: 0 });
                }
                Err(Errno::ENOLCK)
            }
            Err(e) => Err(e),
        }
    }

    /// Brings what the server has of an owner within a range to what is noted here, after a grant
    /// that nobody wants. The caller holds the gate.
    async fn align(&self, lock: &LockHeld) {
        let LockHeld { on, range, .. } = *lock;
        let life = self.locks.life();
        let (held, gaps) = self.locks.within(&on, range);
        for range in gaps {
            if let Err(e) = self.ask_lock(LockCall::Clear { on, range }).await
                && !self.is_down()
            {
                tracing::warn!(ino = %on.ino, error = %e, "a lock that nobody wants was not released");
            }
        }
        for (range, mode) in held {
            let before = LockHeld { on, range, mode, pid: lock.pid };
            loop {
                match self.ask_lock(LockCall::Set { lock: before, wait: None }).await {
                    // A server that was restarted meanwhile is told what is noted here.
                    Ok(_) if self.locks.life() != life => return,
                    Ok(LockReply::Grace) => {
                        tokio::time::sleep(GRACE_PAUSE).await;
                        continue;
                    }
                    Ok(LockReply::Conflict(_)) if on.kind == LockKind::Flock => {
                        // It was given up, to get another mode, and somebody else was faster.
                        self.locks.cleared(&on, range);
                    }
                    Ok(LockReply::Conflict(_)) if mode == LockMode::Write => {
                        // It had become a read lock for a moment, and another reader was faster.
                        tracing::warn!(ino = %on.ino, "a write lock has become a read lock");
                        let weaker = LockHeld { mode: LockMode::Read, ..before };
                        let _ = self.locks.granted(life, &weaker);
                    }
                    Err(e) if !self.is_down() => {
                        tracing::warn!(ino = %on.ino, error = %e, "a lock was not put back to what it was");
                    }
                    _ => {}
                }
                break;
            }
        }
    }

    /// Makes a call to its end, under the gate of its file.
    async fn ask_lock(&self, call: LockCall) -> Result<LockReply, Errno> {
        self.locks.about_to(&call);
        match self.session.ask(Request::Lock(call)).await.reply? {
            Response::Lock(reply) => Ok(reply),
            _ => Err(Errno::EPROTO),
        }
    }
}
