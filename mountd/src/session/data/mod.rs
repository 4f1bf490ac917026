//! Calls to the data servers.
//!
//! A chunk is held by a chain of servers, which the cluster map names. Changes and flushes go to its head, reads to any
//! of its replicas ([`reads`]). The map changes while calls are under way, and a server that is no longer of use may keep
//! a call for ever. So every call says what of the map it relies on, and is withdrawn and made anew when that changes
//! ([`calls`]).

mod calls;
mod changes;
mod connections;
mod flush;
mod health;
mod race;
mod reads;
mod together;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

use netfs_common::class::Class;
use netfs_common::errno::Errno;
use netfs_common::id::{ChunkId, Epoch, GroupId, ServerId, SessionId, Verifier};
use netfs_common::map::{Chain, ClusterMap, volume_of};
use netfs_common::wire::Hello;
use netfs_common::wire::data::Span;
use tokio::sync::{Notify, Semaphore, watch};
use tracing::{debug, error};

use super::counters::Counters;
use super::link::Dialer;
use super::meta::{SessionEvents, lock};
use connections::Server;
use health::Health;

/// The most reads under way at once. With the kernel's requests of 1 MiB it bounds the memory
/// that reads can take.
const MAX_READS: usize = 32;
/// Pauses between attempts that come to nothing, unless the map changes before.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// A change of a chunk was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// In which group.
    pub group: GroupId,
    /// It is durable after a flush of the group that answers with the same one.
    pub verifier: Verifier,
    /// By how many bytes the allocated data grew.
    pub allocated: i64,
}

/// What became of a copy within a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    /// It is done.
    Done(Written),
    /// No server has the one chunk and changes the other.
    Apart,
}

/// The connections to the data servers.
pub struct Bulk {
    /// Itself, for connections that are made in the background.
    this: Weak<Bulk>,
    /// The session changes.
    hello: Mutex<Hello>,
    dialer: Arc<dyn Dialer>,
    counters: Arc<Counters>,
    /// By which calls are made.
    map: watch::Sender<Arc<ClusterMap>>,
    /// The newest one. It is here before calls are made by it.
    newest: RwLock<Arc<ClusterMap>>,
    /// Held while another map is taken over. It comes before everything else.
    turning: Mutex<()>,
    /// At most one entry per server of the map.
    servers: Mutex<HashMap<ServerId, Arc<Server>>>,
    /// Likewise. A leaf.
    health: Mutex<Health>,
    reads: Semaphore,
    events: Mutex<Option<Weak<dyn SessionEvents>>>,
    /// The session that a data server has refused for good; 0: none.
    fenced: AtomicU64,
    /// Told when there is another session, or none.
    renewed: Notify,
    stopped: AtomicBool,
    stop: Notify,
}

impl Bulk {
    pub(super) fn new(
        hello: Hello,
        dialer: Arc<dyn Dialer>,
        counters: Arc<Counters>,
        map: Arc<ClusterMap>,
    ) -> Arc<Bulk> {
        Arc::new_cyclic(|this| Bulk {
            this: this.clone(),
            hello: Mutex::new(hello),
            dialer,
            counters,
            newest: RwLock::new(Arc::clone(&map)),
            map: watch::Sender::new(map),
            turning: Mutex::new(()),
            servers: Mutex::default(),
            health: Mutex::default(),
            reads: Semaphore::new(MAX_READS),
            events: Mutex::new(None),
            fenced: AtomicU64::new(0),
            renewed: Notify::new(),
            stopped: AtomicBool::new(false),
            stop: Notify::new(),
        })
    }

    pub(super) fn set_events(&self, events: Weak<dyn SessionEvents>) {
        *lock(&self.events) = Some(events);
    }

    fn events(&self) -> Option<Arc<dyn SessionEvents>> {
        lock(&self.events).as_ref().and_then(Weak::upgrade)
    }

    /// Takes another map over, unless it is older than the present one or the same.
    ///
    /// Who keeps what may be lost is told before a call is made by it: what is asked then is asked after it was counted.
    pub(super) fn set_map(&self, map: Arc<ClusterMap>) {
        let _turn = lock(&self.turning);
        let before = self.map();
        if map.version <= before.version {
            return;
        }
        *self.newest.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&map);
        let raised = |(group, chain): (GroupId, &netfs_common::map::Chain)| {
            before.chain(group).is_some_and(|known| known.verifier != chain.verifier)
        };
        if map.groups().any(raised)
            && let Some(events) = self.events()
        {
            events.verifiers_changed(&map);
        }
        debug!(version = %map.version, "the cluster map has changed");
        self.map.send_replace(Arc::clone(&map));
        // Nobody adds one any more that the map does not have.
        lock(&self.servers).retain(|id, server| {
            // At its old address another one may be.
            let addrs = |map: &ClusterMap| map.server(*id).map(|server| server.addrs.clone());
            let stays = addrs(&map).is_some_and(|now| Some(now) == addrs(&before));
            if !stays {
                server.dismiss();
            }
            stays
        });
        lock(&self.health).retain(|id| map.server(id).is_some());
    }

    /// Another session has taken the place of the one before. Connections are made anew in it; what was to be sent in
    /// the earlier one counts as lost, and must not arrive.
    pub(super) fn succeed(&self, session: SessionId) {
        lock(&self.hello).session = session;
        self.renewed.notify_waiters();
    }

    /// The present session. Changes are made in the one in which the client had the right to make them.
    pub fn session(&self) -> SessionId {
        lock(&self.hello).session
    }

    /// Whether a data server has said that a session is over.
    pub(super) fn is_fenced(&self, session: SessionId) -> bool {
        self.fenced.load(Ordering::SeqCst) == session.0
    }

    /// A data server says that a session is over: whatever it was to carry is given up, once.
    fn note_fenced(&self, server: ServerId, session: SessionId) {
        if self.session() != session || self.fenced.swap(session.0, Ordering::SeqCst) == session.0 {
            return;
        }
        error!(%server, %session, "the session is over: the data server takes nothing of it any more");
        if let Some(events) = self.events() {
            events.fenced();
        }
    }

    /// Waits until a session is no longer the one in use.
    async fn replaced(&self, session: SessionId) {
        loop {
            let renewed = self.renewed.notified();
            tokio::pin!(renewed);
            renewed.as_mut().enable();
            if self.session() != session {
                return;
            }
            renewed.await;
        }
    }

    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.stop.notify_waiters();
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Resolves when everything has ended.
    async fn at_the_end(&self) {
        let stop = self.stop.notified();
        tokio::pin!(stop);
        stop.as_mut().enable();
        if !self.is_stopped() {
            stop.await;
        }
    }

    fn map(&self) -> Arc<ClusterMap> {
        Arc::clone(&self.map.borrow())
    }

    /// The group of a chunk; `None` if the map does not have its pool.
    pub fn group_of(&self, chunk: ChunkId) -> Option<GroupId> {
        self.map().group_of(chunk)
    }

    /// The verifier of a group by the newest map: what was acknowledged under an earlier one and not flushed may be lost.
    pub fn verifier(&self, group: GroupId) -> Option<Verifier> {
        let newest = self.newest.read().unwrap_or_else(PoisonError::into_inner);
        newest.chain(group).map(|chain| chain.verifier)
    }

    /// Pauses until there is a later map than one, or for a while, longer each time.
    async fn pause(
        &self,
        within: Option<SessionId>,
        version: Epoch,
        pause: &mut Duration,
    ) -> Result<(), Errno> {
        let mut map = self.map.subscribe();
        tokio::select! {
            _ = map.wait_for(|map| map.version > version) => *pause = PAUSE.0,
            () = tokio::time::sleep(*pause) => *pause = (*pause * 2).min(PAUSE.1),
            () = self.at_the_end() => {}
        }
        let over = within.is_some_and(|id| self.session() != id || self.is_fenced(id));
        if self.is_stopped() || over { Err(Errno::EIO) } else { Ok(()) }
    }
}

/// The chain of a chunk; `None` while the map does not have its class: the metadata server has made the groups before any file is of
/// that class, but its answers may come before its map.
///
/// # Errors
/// `EIO` when no later map will have it.
fn home(map: &ClusterMap, chunk: ChunkId) -> Result<Option<(GroupId, &Chain)>, Errno> {
    let found = map.chain_of(chunk);
    let may_come = Class::of(chunk.generation).exists()
        && map.pools.iter().any(|pool| pool.volume == volume_of(chunk.ino));
    if found.is_some() || may_come { Ok(found) } else { Err(Errno::EIO) }
}

/// The servers that change the chunks of a file's contents by a map; `None` while a chain has no replica, or as in [`home`].
fn heads(map: &ClusterMap, span: &Span) -> Option<BTreeSet<ServerId>> {
    let pool = map.pool_for(span.ino, span.generation)?;
    pool.chains.iter().map(|chain| Some(chain.head()?.server)).collect()
}

impl std::fmt::Debug for Bulk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bulk").field("servers", &self.map().servers).finish_non_exhaustive()
    }
}
