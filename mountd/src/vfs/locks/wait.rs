//! Locks that are waited for.
//!
//! A request gets its place in the queue of the server under a number, and one task for all of
//! them asks for news. Who asks again, after a reconnect or because nothing was heard for long, does so under the same
//! number and keeps its place. A request that is given up, because its caller got a signal, is
//! withdrawn; and if it was granted at that very moment, what is held is put back to what it was. Its owner's next requests wait for that.
//!
//! What one thread of an owner gives up or changes may be what another was granted and has not heard of yet. So news of a grant counts
//! only if nothing was asked for of its owner after the request that was granted; else the request is made again, and the
//! server says what there is.

use std::sync::{Arc, Weak};
use std::time::Duration;

use netfs_common::errno::Errno;
use netfs_common::locks::LockKind;
use netfs_common::wire::lock::{LockCall, LockHeld, LockReply, WaitId};
use netfs_common::wire::meta::{Request, Response};

use super::book::{LockBook, Unwanted};
use super::{GRACE_PAUSE, Use, WantedLock};
use crate::session::Session;
use crate::vfs::Vfs;

/// A server that says that nothing waits is asked again after this at the latest.
const IDLE_PAUSE: Duration = Duration::from_millis(500);

/// A request that waits. Dropped before it is over, it is withdrawn.
struct Waiting {
    vfs: Arc<Vfs>,
    lock: LockHeld,
    wait: WaitId,
    over: bool,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.vfs.locks.end_wait(self.wait);
        if self.over {
            return;
        }
        let (vfs, lock, wait) = (Arc::clone(&self.vfs), self.lock, self.wait);
        // From now on: what the owner does next waits for it.
        let (unwanted, used) =
            (Unwanted::begin(&vfs.locks, &lock.on), Use::begin(&vfs, lock.on.ino));
        self.vfs.runtime.spawn(async move {
            vfs.withdraw(used, lock, wait).await;
            drop(unwanted);
        });
    }
}

impl Vfs {
    /// Waits for a lock until it is granted or the future is dropped.
    pub(super) async fn wait_for_lock(self: &Arc<Self>, wanted: WantedLock) -> Result<(), Errno> {
        let (lock, book) = (wanted.lock, &self.locks);
        self.patiently(async {
            book.given_back(&lock.on).await;
            Ok(())
        })
        .await?;
        let used = Use::begin(self, lock.on.ino);
        self.note_lock(&wanted);
        let (wait, mut news) = book.begin_wait(lock.on);
        let mut first = true;
        let mut waiting = Waiting { vfs: Arc::clone(self), lock, wait, over: false };
        loop {
            let reply = {
                let _gate = used.gate.lock().await;
                book.ready().await;
                news.mark_unchanged();
                if book.told(wait).is_some_and(|life| book.granted(life, &lock).is_some()) {
                    break;
                }
                let life = book.life();
                let call = LockCall::Set { lock, wait: Some(wait) };
                let reply = self.patiently(self.ask_lock(call)).await;
                if reply == Ok(LockReply::Granted) {
                    if !first {
                        book.granted_unheard();
                    }
                    match book.granted(life, &lock) {
                        Some(_) => break,
                        None => continue,
                    }
                }
                if lock.on.kind == LockKind::Flock && reply != Ok(LockReply::Grace) {
                    // Given up first, to get another mode.
                    book.cleared(&lock.on, lock.range);
                }
                book.answered(wait);
                reply
            };
            match reply {
                Ok(LockReply::Queued) => {
                    self.expect_news(std::mem::take(&mut first));
                    // Its other end goes with `waiting`.
                    let _ = news.changed().await;
                }
                Ok(LockReply::Grace) => tokio::time::sleep(GRACE_PAUSE).await,
                Ok(_) => return Err(Errno::EPROTO),
                Err(e) => {
                    // What was refused does not wait; after anything else it might.
                    waiting.over = matches!(e, Errno::EDEADLK | Errno::ENOLCK | Errno::EINVAL);
                    return Err(e);
                }
            }
        }
        waiting.over = true;
        Ok(())
    }

    async fn withdraw(self: Arc<Self>, used: Use, lock: LockHeld, wait: WaitId) {
        let _gate = used.gate.lock().await;
        self.locks.ready().await;
        match self.ask_lock(LockCall::Withdraw { wait }).await {
            // A `flock` was given up to wait for another mode.
            Ok(LockReply::Withdrawn { waiting: true }) if lock.on.kind != LockKind::Flock => {}
            // It may have been granted.
            Ok(_) => self.align(&lock).await,
            Err(e) if self.is_down() => tracing::debug!(error = %e, "gone with the session"),
            Err(e) => tracing::warn!(error = %e, "a lock that nobody waits for was not withdrawn"),
        }
    }

    fn expect_news(self: &Arc<Self>, first: bool) {
        if self.locks.begin_awaiting() {
            let (session, book) = (Arc::downgrade(&self.session), Arc::clone(&self.locks));
            self.runtime.spawn(bring_news(session, book));
        }
        // Who only asks again does not wake the task that has just told it to.
        if first {
            self.locks.queued.notify_one();
        }
    }
}

/// Asks for news as long as something waits.
async fn bring_news(session: Weak<Session>, book: Arc<LockBook>) {
    let mut received: Vec<WaitId> = Vec::new();
    loop {
        if received.is_empty() && book.end_awaiting(false) {
            return;
        }
        let Some(session) = session.upgrade() else {
            book.end_awaiting(true);
            return;
        };
        let begun = book.begin_news();
        let asked = !received.is_empty();
        let call = LockCall::Await { received: received.clone() };
        match session.ask(Request::Lock(call)).await.reply {
            Ok(Response::Lock(LockReply::Grants(granted))) => {
                book.tell_granted(begun, &granted);
                received = granted;
                if received.is_empty() && !asked {
                    // Long silence, or a server that knows of nothing: it may be another one.
                    book.tell_again();
                    let queued = book.queued.notified();
                    let _ = tokio::time::timeout(IDLE_PAUSE, queued).await;
                }
            }
            answer => {
                // They will hear of it themselves.
                book.tell_again();
                tracing::debug!(?answer, "no news of locks");
                received.clear();
                if book.end_awaiting(answer.err() == Some(Errno::EIO)) {
                    return;
                }
                tokio::time::sleep(IDLE_PAUSE).await;
            }
        }
    }
}
