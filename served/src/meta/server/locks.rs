//! File locks of a volume, around their state machine: who waits for news of grants.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use netfs_common::errno::Errno;
use netfs_common::id::{Ino, SessionId};
use netfs_common::wire::lock::{LockCall, LockConflict, LockReply, MAX_LOCK_BATCH, WaitId};
use netfs_common::wire::meta::{Reply, Response};
use tokio::sync::Notify;

use crate::meta::locks::{Blocker, LockLimits, Locks, Outcome};

/// So long a call for news is kept without any: below the time after which a client takes a server for hung.
const NEWS_AFTER: Duration = Duration::from_secs(20);

/// The locks of one volume.
#[derive(Debug)]
pub(super) struct LockTable(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    locks: Locks,
    /// Rung when a session is granted something. One for each that has asked for news.
    bells: HashMap<SessionId, Arc<Notify>>,
    /// The server ends: nobody is kept.
    closing: bool,
}

impl LockTable {
    /// `known`: sessions of before, which may have locks to reclaim.
    pub(super) fn new(known: impl IntoIterator<Item = SessionId>) -> LockTable {
        let mut locks = Locks::new(LockLimits::default());
        locks.begin_grace(known);
        LockTable(Mutex::new(Inner { locks, bells: HashMap::new(), closing: false }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers a call. All but [`LockCall::Await`] are done at once. `goes_on`: whether the session does, over the connection that
    /// the call came on. That is asked when nothing can come between: what a call of before does after it was made again, or after
    /// the session has ended, might take a lock from whoever has it by then, or leave one that nobody ever gives back.
    pub(super) async fn answer(
        &self,
        session: SessionId,
        call: LockCall,
        goes_on: impl Fn() -> bool,
    ) -> Reply {
        let reply = match call {
            LockCall::Await { received } => self.news(session, &received).await?,
            call => self.at_once(session, &call, goes_on)?,
        };
        Ok(Response::Lock(reply))
    }

    fn at_once(
        &self,
        session: SessionId,
        call: &LockCall,
        goes_on: impl Fn() -> bool,
    ) -> Result<LockReply, Errno> {
        let mut inner = self.lock();
        if !goes_on() {
            return Err(Errno::ESHUTDOWN);
        }
        let reply = inner.locks.answer(session, call);
        inner.ring();
        reply
    }

    /// What has been granted, when there is something, nothing is waited for, or it takes long.
    async fn news(&self, session: SessionId, received: &[WaitId]) -> Result<LockReply, Errno> {
        if received.len() > MAX_LOCK_BATCH {
            return Err(Errno::EINVAL);
        }
        let bell = {
            let mut inner = self.lock();
            inner.locks.received(session, received);
            let waits = inner.locks.is_waiting(session) && !inner.closing;
            if !waits || !inner.locks.granted(session, 1).is_empty() {
                return Ok(LockReply::Grants(inner.locks.granted(session, MAX_LOCK_BATCH)));
            }
            inner.bells.entry(session).or_default().clone()
        };
        // One call of a session waits at a time; a bell that rang before is heard.
        if tokio::time::timeout(NEWS_AFTER, bell.notified()).await.is_err() {
            tracing::trace!(%session, "no news of locks");
        }
        Ok(LockReply::Grants(self.lock().locks.granted(session, MAX_LOCK_BATCH)))
    }

    /// The server is about to end: calls for news are answered.
    pub(super) fn close(&self) {
        let mut inner = self.lock();
        inner.closing = true;
        inner.bells.values().for_each(|bell| bell.notify_one());
    }

    /// The locks of a file, and the requests for some that wait.
    pub(super) fn look(&self, ino: Ino) -> (Vec<Blocker>, Vec<Blocker>) {
        let inner = self.lock();
        (inner.locks.held(ino), inner.locks.queued(ino))
    }

    /// Which sessions have yet to reclaim their locks.
    pub(super) fn absent(&self) -> Vec<SessionId> {
        self.lock().locks.absent().collect()
    }

    /// A session has ended.
    pub(super) fn end(&self, session: SessionId) {
        let mut inner = self.lock();
        inner.locks.end_session(session);
        inner.bells.remove(&session);
        inner.ring();
    }
}

impl Inner {
    fn ring(&mut self) {
        for session in self.locks.take_woken() {
            // Who has not asked for news finds it when it does.
            if let Some(bell) = self.bells.get(&session) {
                bell.notify_one();
            }
        }
    }
}

impl Locks {
    /// Answers every call that needs no waiting.
    ///
    /// # Errors
    /// Those of the operations; `EINVAL` for too long a batch.
    pub fn answer(&mut self, session: SessionId, call: &LockCall) -> Result<LockReply, Errno> {
        let told = |outcome| match outcome {
            Outcome::Granted => LockReply::Granted,
            Outcome::Conflict(blocker) => LockReply::Conflict(shown(session, &blocker)),
            Outcome::Queued => LockReply::Queued,
            Outcome::Grace => LockReply::Grace,
        };
        match call {
            LockCall::Set { lock, wait } => self.set(session, lock, *wait).map(told),
            LockCall::Test { lock } => self.test(session, lock).map(told),
            LockCall::Clear { on, range } => {
                self.clear(session, on, *range).map(|()| LockReply::Granted)
            }
            LockCall::Withdraw { wait } => {
                Ok(LockReply::Withdrawn { waiting: self.withdraw(session, *wait) })
            }
            LockCall::Reclaim { locks, .. } if locks.len() > MAX_LOCK_BATCH => Err(Errno::EINVAL),
            LockCall::Reclaim { batch, locks, last } => {
                self.reclaim(session, *batch, locks, *last).map(LockReply::Refused)
            }
            LockCall::Await { received } => {
                self.received(session, received);
                Ok(LockReply::Grants(self.granted(session, MAX_LOCK_BATCH)))
            }
        }
    }
}

fn shown(asks: SessionId, blocker: &Blocker) -> LockConflict {
    // The processes of other machines have other numbers.
    let pid = if blocker.owner.session == asks { blocker.pid } else { 0 };
    let Blocker { owner, range, mode, .. } = *blocker;
    LockConflict { kind: owner.kind, range, mode, pid }
}

#[cfg(test)]
mod tests {
    use netfs_common::locks::{LockKind, LockMode, LockRange};
    use netfs_common::wire::lock::{LockHeld, LockOn};

    use super::*;

    #[tokio::test]
    async fn a_call_of_a_connection_that_was_replaced_does_nothing() {
        let table = LockTable::new([]);
        let (a, b) = (SessionId(1), SessionId(2));
        let on = LockOn { ino: Ino(7), kind: LockKind::Posix, owner: 1 };
        let lock = LockHeld { on, range: LockRange::ALL, mode: LockMode::Write, pid: 1 };
        let set = || LockCall::Set { lock, wait: None };
        let clear = || LockCall::Clear { on, range: LockRange::ALL };
        let granted = Ok(Response::Lock(LockReply::Granted));
        assert_eq!(table.answer(a, set(), || true).await, granted);
        assert_eq!(table.answer(a, clear(), || false).await, Err(Errno::ESHUTDOWN));
        assert_eq!(table.look(Ino(7)).0.len(), 1);
        assert_eq!(table.answer(a, clear(), || true).await, granted);
        assert_eq!(table.answer(a, set(), || false).await, Err(Errno::ESHUTDOWN));
        assert_eq!(table.answer(b, set(), || true).await, granted);
    }
}
