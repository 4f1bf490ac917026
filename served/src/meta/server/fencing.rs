//! Ending the sessions of clients that are silent.
//!
//! Such a client may be alive and just not heard: what it has sent to data servers may arrive at any time. So what it
//! had is given to nobody before that can do no harm. In this order:
//!
//! 1. The end is recorded in the log ([`Action::CloseSession`]), on stable storage. From here on no change of the session is taken, and its
//!    client cannot take it up again: it begins another one, with another identifier.
//! 2. It is fenced at every data server, and for as long as one of them does not say that this is done, it is tried again:
//!    a server that cannot be reached from here may well be reached by the client.
//! 3. Its leases and locks are given to others, and its orphans are removed ([`Action::Reap`]).
//!
//! A daemon that was killed leaves its session likewise, and the next one at its place ends that ([`BURIAL`]): there the
//! orphans go with step 1, which harms nobody, since inode numbers are not used again.
//!
//! Between 1 and 3 the session is in the store as ended. After a restart all that are found so are fenced once more. A session
//! that its client has ended needs no fence: its client had nothing under way any more.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use netfs_common::errno::Errno;
use netfs_common::id::SessionId;
use netfs_common::warn_rarely;
#[cfg(doc)]
use netfs_common::wire::meta::BURIAL;
use netfs_common::wire::meta::{Reply, Response};

use super::volume::{Ends, Volume, WARN_INTERVAL, now};
use crate::meta::command::{Action, Command};

/// Ended sessions of which nothing can happen any more, and which are not yet reaped. Bounded by the sessions in the store.
#[derive(Debug, Default)]
pub(super) struct Harmless(Mutex<HashSet<SessionId>>);

impl Harmless {
    fn lock(&self) -> MutexGuard<'_, HashSet<SessionId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session was ended by its client, or is fenced.
    pub(super) fn add(&self, id: SessionId) {
        self.lock().insert(id);
    }

    /// One that can be reaped.
    fn any(&self) -> Option<SessionId> {
        self.lock().iter().min().copied()
    }

    fn remove(&self, id: SessionId) {
        self.lock().remove(&id);
    }
}

impl Volume {
    /// Returns when nothing that a session has sent to a data server can happen any more, however long that takes. Its
    /// end is in the log already. Only then may anybody else get what it had.
    pub(super) async fn fenced(&self, id: SessionId) {
        self.data.fence(id).await;
    }

    /// Ends a session whose client has not been heard of, or talks nonsense.
    pub(super) async fn expire(self: &Arc<Self>, id: SessionId, why: Ends) {
        let turn = self.my_turn().await;
        // It may have been heard of while this was waiting, or ended: then others get what it had when it is fenced.
        let spared = why == Ends::Silent && !self.members.expired().contains(&id);
        if spared || self.members.is_closed(id) {
            return;
        }
        let action = Action::CloseSession { id };
        let (_, reply) = self.engine.execute(Command { time: now(), action });
        drop(turn);
        match reply {
            Ok(_) => {
                tracing::warn!(volume = %self.name(), session = %id, ?why, "session ended by the server");
                self.lookups.end(id);
                if let Some(link) = self.members.close(id) {
                    link.close();
                }
                tokio::spawn(self.clone().give_away(id));
            }
            // It was only about to join, or is long gone. Nobody else would answer for it.
            Err(Errno::ESHUTDOWN) => {
                if let Some(link) = self.members.left(id) {
                    link.close();
                }
                self.end_leases(id);
            }
            Err(errno) => {
                warn_rarely!(WARN_INTERVAL, session = %id, %errno, "a session cannot be ended");
            }
        }
    }

    /// Ends the session of a client that has died, before anything else can be done in it.
    pub(super) async fn bury(self: &Arc<Self>, id: SessionId) -> Reply {
        let command = Command { time: now(), action: Action::CloseSession { id } };
        self.execute(command).await.1?;
        self.lookups.end(id);
        // The connection is left to who has asked for this.
        drop(self.members.close(id));
        tokio::spawn(self.clone().give_away(id));
        Ok(Response::Changed { target: None, attrs: Vec::new() })
    }

    /// Lets others have what an ended session had, as soon as that is safe: its end must not be undone by a crash, and what its
    /// client sends must not arrive.
    pub(super) async fn give_away(self: Arc<Self>, id: SessionId) {
        while let Err(errno) = self.flush_to(self.engine.last()).await {
            warn_rarely!(WARN_INTERVAL, session = %id, %errno, "others do not get what an ended session had: its end is not on stable storage");
            tokio::time::sleep(WARN_INTERVAL).await;
        }
        self.fenced(id).await;
        self.members.left(id);
        self.end_leases(id);
        self.harmless.add(id);
        self.ended.notify_waiters();
    }

    /// Removes what ended sessions have left, a step at a time, so that others get their turn.
    pub(super) async fn reap(self: Arc<Self>) {
        loop {
            // Enabled before the look, so that no end is missed.
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            let Some(id) = self.harmless.any() else {
                ended.await;
                continue;
            };
            let step = match self.engine.session(id) {
                Ok(Some(_)) => {
                    let reap = Command { time: now(), action: Action::Reap { id } };
                    self.execute(reap).await.1.map(drop)
                }
                Ok(None) => {
                    self.harmless.remove(id);
                    continue;
                }
                Err(errno) => Err(errno),
            };
            match step {
                Ok(()) => tokio::task::yield_now().await,
                Err(errno) => {
                    warn_rarely!(WARN_INTERVAL, volume = %self.name(), %errno, "what ended sessions have left cannot be removed");
                    tokio::time::sleep(WARN_INTERVAL).await;
                }
            }
        }
    }
}
