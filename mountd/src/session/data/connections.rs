//! The connections themselves: one to each server, made when it is wanted.

use std::sync::{Arc, Mutex};

use netfs_common::id::{ServerId, SessionId};
use tokio::sync::Notify;
use tracing::{info, warn};

use super::Bulk;
use crate::session::link::{DataLink, DialError};
use crate::session::lock;

/// A server of the map.
#[derive(Default)]
pub(super) struct Server {
    /// A leaf.
    slot: Mutex<Slot>,
    /// Told when an attempt to connect has ended.
    told: Notify,
}

#[derive(Default)]
struct Slot {
    /// One that has been lost is taken out by who finds out.
    made: Option<Connection>,
    /// How many there were.
    serial: u64,
    /// One is being made.
    dialling: bool,
    /// Counts attempts that have ended, and how the last of them has failed.
    attempts: u64,
    failure: Option<NoConnection>,
    /// What people were told last of why there is none.
    reported: Option<DialError>,
    /// It is no longer in the map, or not at the same addresses.
    dismissed: bool,
}

/// A connection, with its number and the session that it was made in.
#[derive(Clone)]
pub(super) struct Connection {
    serial: u64,
    pub(super) session: SessionId,
    pub(super) link: Arc<dyn DataLink>,
}

/// Why there is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoConnection {
    /// The server cannot be reached, or refuses.
    Unreachable,
    /// The session is over.
    Over,
    /// The session has been replaced meanwhile.
    Renewed,
}

impl Server {
    /// It is no longer in the map, or not at the same addresses.
    pub(super) fn dismiss(&self) {
        let mut slot = lock(&self.slot);
        slot.dismissed = true;
        if let Some(made) = slot.made.take() {
            made.link.close();
        }
    }
}

impl Bulk {
    fn server(&self, id: ServerId) -> Option<Arc<Server>> {
        let mut servers = lock(&self.servers);
        // Under the lock: a map that no longer has it comes to forget it after this.
        self.map.borrow().server(id)?;
        Some(Arc::clone(servers.entry(id).or_default()))
    }

    /// Whether there is a connection that can be used at once.
    pub(super) fn is_connected(&self, id: ServerId) -> bool {
        let Some(server) = lock(&self.servers).get(&id).cloned() else { return false };
        let session = self.session();
        let slot = lock(&server.slot);
        slot.made.as_ref().is_some_and(|made| made.session == session)
    }

    /// A connection has been lost: the next call makes another.
    pub(super) fn lost(&self, id: ServerId, connection: &Connection) {
        let Some(server) = lock(&self.servers).get(&id).cloned() else { return };
        let mut slot = lock(&server.slot);
        if slot.made.as_ref().is_some_and(|made| made.serial == connection.serial) {
            slot.made = None;
        }
    }

    /// The connection to a server in the present session. If there is none it is made, with one attempt, which goes on
    /// when nobody waits for it any more: else a server that another one is always faster than would never get one.
    pub(super) async fn connection(&self, id: ServerId) -> Result<Connection, NoConnection> {
        let mut before = None;
        loop {
            let Some(server) = self.server(id) else { return Err(NoConnection::Unreachable) };
            let told = server.told.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            let session = self.session();
            let dials = {
                let mut slot = lock(&server.slot);
                match &slot.made {
                    Some(made) if made.session == session => return Ok(made.clone()),
                    Some(made) => {
                        made.link.close();
                        slot.made = None;
                    }
                    None => {}
                }
                match (before, slot.failure) {
                    (Some(before), Some(why)) if slot.attempts > before => match why {
                        NoConnection::Renewed => {}
                        why => return Err(why),
                    },
                    _ => {}
                }
                before = Some(slot.attempts);
                !std::mem::replace(&mut slot.dialling, true)
            };
            if dials {
                let (this, server) = (self.this.clone(), Arc::clone(&server));
                tokio::spawn(async move {
                    let Some(bulk) = this.upgrade() else { return };
                    let outcome = bulk.dial(id).await;
                    bulk.dialled(id, &server, outcome);
                });
            }
            told.await;
        }
    }

    async fn dial(&self, id: ServerId) -> Result<(SessionId, Arc<dyn DataLink>), Failure> {
        let described = self.map().server(id).cloned().ok_or(Failure::Is(NoConnection::Renewed))?;
        let hello = lock(&self.hello).clone();
        let session = hello.session;
        if self.is_fenced(session) {
            return Err(Failure::Is(NoConnection::Over));
        }
        match self.dialer.data(described, hello).await {
            Ok((_, link)) if session != self.session() => {
                link.close();
                Err(Failure::Is(NoConnection::Renewed))
            }
            Ok((_, link)) => Ok((session, link)),
            Err(DialError::SessionOver(_)) => {
                self.note_fenced(id, session);
                Err(Failure::Is(NoConnection::Over))
            }
            Err(e) => Err(Failure::Dial(e)),
        }
    }

    fn dialled(
        &self,
        id: ServerId,
        server: &Server,
        outcome: Result<(SessionId, Arc<dyn DataLink>), Failure>,
    ) {
        let mut slot = lock(&server.slot);
        slot.dialling = false;
        slot.attempts += 1;
        slot.failure = None;
        match outcome {
            Ok((_, link)) if slot.dismissed => link.close(),
            Ok((session, link)) => {
                slot.serial += 1;
                slot.reported = None;
                if slot.serial > 1 {
                    info!(server = %id, "connected to the data server again");
                }
                slot.made = Some(Connection { serial: slot.serial, session, link });
            }
            Err(Failure::Is(why)) => slot.failure = Some(why),
            Err(Failure::Dial(e)) => {
                slot.failure = Some(NoConnection::Unreachable);
                if slot.reported.as_ref() != Some(&e) {
                    warn!(server = %id, error = %e, "no connection to the data server; trying again");
                    slot.reported = Some(e);
                }
            }
        }
        drop(slot);
        server.told.notify_waiters();
    }
}

enum Failure {
    Is(NoConnection),
    Dial(DialError),
}
