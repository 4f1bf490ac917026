//! Calls to the metadata server.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::{Duration, SystemTime};

use netfs_common::attr::{Attr, Timestamp};
use netfs_common::errno::Errno;
use netfs_common::id::{Ino, InstanceId, LogIndex, OpSeq, SessionId};
use netfs_common::map::ClusterMap;
use netfs_common::wire::hello::VolumeInfo;
use netfs_common::wire::lease::{Grant, Lease, Recall};
use netfs_common::wire::meta::{self, Mutation, Op, Replayed, Request, Response};
use netfs_common::wire::{Claim, Hello, HelloReply, PROTOCOL, Role};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, watch};
use tracing::warn;

use super::clock::Clock;
use super::counters::{Counters, Traffic};
use super::data::Bulk;
use super::kept::Kept;
use super::link::{Answer, DialError, Dialer, LinkError, MetaLink};
use super::lost::LostPositions;
use super::oplog::OpLog;
use super::positions::Positions;
use super::term::{Term, since_boot};
use crate::insight::{Lost, Wait, waiting};

mod life;

/// The most metadata calls under way at once which may wait for other clients; further ones wait here.
const MAX_CALLS: usize = 192;
/// The most of those, besides, that wait for nobody, or are made under a lease that stands in everybody else's way: other clients may
/// wait for them.
const MAX_COVERED: usize = 48;

/// Which of the places for calls under way a call takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    /// It may wait at the server for what other clients hold.
    ForOthers,
    /// It waits for nobody: it is about no lease, or this client holds the one for writing. What is done under a gate of an inode
    /// must be of this kind, since others may wait for the gate.
    ForNobody,
}
/// A server that keeps a call this long is taken for hung: the connection is given up and the
/// call sent again. It is far above the longest operation.
const HUNG_AFTER: Duration = Duration::from_secs(120);
/// Pauses between attempts to connect.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

/// What a session is made of.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// The volume.
    pub volume: String,
    /// Host and mount point, for people.
    pub client: String,
    /// The first session's identifier, drawn at random.
    pub session: SessionId,
    /// This life of the client, drawn at random.
    pub instance: InstanceId,
}

/// What is different after a reconnect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reconnected {
    /// The server is another process than before: what it answered without it being durable may
    /// be gone.
    pub restarted: bool,
    /// The server has begun a new session: the old one's orphans, and all that was not sent, are
    /// lost.
    pub lost: bool,
    /// What was answered before with these versions is lost.
    pub gone: LostPositions,
    /// But these changes of this client have been made again.
    pub restored: Restored,
}

/// What a server that had lost changes has made of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// The positions that they had, of those that were made again.
    pub positions: BTreeSet<u64>,
    /// What the others were about.
    pub missing: BTreeSet<Ino>,
}

/// Who is told what happens to the session.
pub trait SessionEvents: Send + Sync {
    /// There is a new connection, which no call has used yet. Returns the leases that are to be reclaimed from a restarted server,
    /// without which what is buffered would be lost. Must not wait for a call.
    fn reconnected(&self, what: Reconnected) -> Vec<(Ino, Lease)>;
    /// After [`SessionEvents::reconnected`], and before the server is told what was held and lets others at the rest: resolves when
    /// nobody here is served what was learned before. Must not wait for the session, which is not up yet.
    fn taken_back(self: Arc<Self>) -> Answer<'static, ()>;
    /// The server may end the session any moment and let others in: nothing that was learned may be
    /// used until it answers again, which [`SessionEvents::reconnected`] tells. Must not wait.
    fn lapsed(&self);
    /// Something must be given back; the answer goes out when the future is done.
    fn recall(self: Arc<Self>, recalls: Vec<Recall>) -> Answer<'static, ()>;
    /// Inodes have lost their last name for good, and the server keeps them until this client gives them up. Must not wait.
    fn orphaned(self: Arc<Self>, inos: &[Ino]);
    /// Whether others use the volume. Must not wait.
    fn company(&self, others: bool);
    /// Those leases that the server has given back. Must not wait.
    fn reclaimed(&self, grants: &[Grant]);
    /// The session may be relied upon until this time since boot. Must not wait.
    fn alive(&self, until: Duration);
    /// A data server takes nothing of the session any more: it is over, and what was to be sent in it is lost. Must
    /// not wait.
    fn fenced(&self);
    /// By a new map, by which no call is made yet, what was acknowledged in some groups under earlier verifiers and not flushed may
    /// be gone. Must not wait.
    fn verifiers_changed(&self, map: &ClusterMap);
}

/// The outcome of a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Up to where the server's log must be on stable storage for all that the answer shows.
    pub at: u64,
    /// The inode that the change was about.
    pub target: Option<Ino>,
    /// All inodes touched.
    pub attrs: Vec<Attr>,
    /// What of it may be kept.
    pub grants: Vec<Grant>,
}

impl Changed {
    /// What the server needs to make the change again.
    fn to_replay(&self, seq: OpSeq, time: Timestamp, op: Op) -> Replayed {
        let at = LogIndex(self.at);
        let target = self.target.and_then(|ino| self.attrs.iter().find(|a| a.ino == ino));
        // As the server has dated it.
        let dated = target.or(self.attrs.first()).map_or(time, |a| a.ctime);
        let target = target.map(|a| (a.ino, a.generation));
        Replayed { at, seq, time: dated, target, op }
    }

    /// The attributes of the target.
    ///
    /// # Errors
    /// `EPROTO` when the server left them out.
    pub fn target_attr(&self) -> Result<Attr, Errno> {
        let target = self.target.ok_or(Errno::EPROTO)?;
        self.attrs.iter().find(|a| a.ino == target).cloned().ok_or(Errno::EPROTO)
    }
}

#[derive(Clone)]
enum State {
    Down,
    Up { serial: u64, incarnation: u64, link: Arc<dyn MetaLink> },
    Stopped,
}

/// The session.
pub struct Session {
    config: SessionConfig,
    /// The identifier in use: one that the server has ended is never used again.
    id: watch::Sender<SessionId>,
    dialer: Arc<dyn Dialer>,
    state: watch::Sender<State>,
    /// A leaf: nothing is locked or awaited under it.
    ops: Mutex<OpLog>,
    slots: Semaphore,
    covered: Semaphore,
    volume: RwLock<Arc<VolumeInfo>>,
    counters: Arc<Counters>,
    bulk: Arc<Bulk>,
    events: Mutex<Option<Weak<dyn SessionEvents>>>,
    positions: Mutex<Positions>,
    /// Comes after `positions`.
    kept: Mutex<Kept>,
    /// A leaf.
    term: Mutex<Term>,
    clock: Clock,
    /// When the server has answered last, in nanoseconds since boot.
    heard: AtomicU64,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Locks a mutex whose data is valid whatever its holder did: a panic elsewhere is not passed on.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    /// Connects for the first time, and keeps the session alive from then on.
    ///
    /// # Errors
    /// Whatever the first attempt says; later ones are repeated until they succeed.
    pub async fn open(
        config: SessionConfig,
        dialer: Arc<dyn Dialer>,
    ) -> Result<Arc<Session>, DialError> {
        let (push_to, pushes) = mpsc::channel(4);
        let hello = hello(&config, Role::Meta, config.session, Claim::Begin);
        let (sent, sent_wall) = (since_boot(), SystemTime::now());
        let (reply, link) = dialer.meta(hello, push_to).await?;
        let server_time = reply.volume.as_ref().map(|volume| volume.time);
        let volume = usable(&reply)?;
        let counters = Arc::new(Counters::default());
        let bulk = Bulk::new(
            hello_template(&config),
            Arc::clone(&dialer),
            Arc::clone(&counters),
            Arc::new(volume.map.clone()),
        );
        let session = Arc::new(Session {
            id: watch::Sender::new(config.session),
            config,
            dialer,
            state: watch::Sender::new(State::Up { serial: 1, incarnation: 0, link }),
            ops: Mutex::default(),
            slots: Semaphore::new(MAX_CALLS),
            covered: Semaphore::new(MAX_COVERED),
            volume: RwLock::new(Arc::new(volume)),
            counters,
            bulk,
            events: Mutex::new(None),
            positions: Mutex::new(Positions::new(1)),
            kept: Mutex::default(),
            term: Mutex::new(Term::new(sent)),
            clock: Clock::default(),
            heard: AtomicU64::new(0),
        });
        session.hear();
        if let Some(time) = server_time {
            session.compare_clocks(sent_wall, time);
        }
        tokio::spawn(life::watch_term(Arc::downgrade(&session)));
        tokio::spawn(life::drive(Arc::downgrade(&session), reply.instance, pushes));
        Ok(session)
    }

    /// Names who is told what happens.
    pub fn set_events(&self, events: Weak<dyn SessionEvents>) {
        self.bulk.set_events(events.clone());
        *lock(&self.events) = Some(events);
        self.tell_alive();
    }

    fn events(&self) -> Option<Arc<dyn SessionEvents>> {
        lock(&self.events).as_ref().and_then(Weak::upgrade)
    }

    /// The volume, as the last connection described it.
    pub fn volume(&self) -> Arc<VolumeInfo> {
        Arc::clone(&self.volume.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The present, by which changes are dated.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// A greeting that was sent at a time of this client's has been answered just now.
    fn compare_clocks(&self, sent: SystemTime, server: Timestamp) {
        if let Some(skew) = self.clock.compare(sent, SystemTime::now(), server) {
            let skew_ms = u64::try_from(skew.as_millis()).unwrap_or(u64::MAX);
            warn!(
                skew_ms,
                "this machine's clock disagrees with the metadata server's, by which changes are dated instead"
            );
        }
    }

    /// The server has answered.
    fn hear(&self) {
        let now = u64::try_from(since_boot().as_nanos()).unwrap_or(u64::MAX);
        self.heard.store(now, Ordering::Relaxed);
    }

    /// Since the server's last answer.
    pub fn silent(&self) -> Duration {
        since_boot().saturating_sub(Duration::from_nanos(self.heard.load(Ordering::Relaxed)))
    }

    /// What went over the connections.
    pub fn traffic(&self) -> Traffic {
        self.counters.traffic(self.dialer.bytes())
    }

    /// A question that nothing depends on, asked once over the present connection, past all calls that wait.
    ///
    /// # Errors
    /// See [`Lost`].
    pub async fn inquire(&self, request: Request, limit: Duration) -> Result<Response, Lost> {
        let State::Up { link, .. } = self.state.borrow().clone() else {
            return Err(Lost::Disconnected);
        };
        let counted = self.counters.meta(&request);
        match tokio::time::timeout(limit, link.call(request)).await {
            Ok(Ok(answer)) => {
                self.counters.answered(counted);
                self.hear();
                answer.reply.map_err(Lost::Refused)
            }
            Ok(Err(_)) => Err(Lost::Disconnected),
            Err(_) => Err(Lost::Late(limit)),
        }
    }

    /// Messages sent.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The data servers.
    pub fn bulk(&self) -> &Bulk {
        &self.bulk
    }

    /// Changes that were answered and may not be on stable storage.
    pub fn kept(&self) -> usize {
        lock(&self.kept).missed()
    }

    /// There is a connection now.
    pub fn connected(&self) -> bool {
        matches!(*self.state.borrow(), State::Up { .. })
    }

    /// Ends everything: every call, waiting or to come, fails with `EIO`.
    pub fn stop(&self) {
        let old = self.state.send_replace(State::Stopped);
        if let State::Up { link, .. } = old {
            link.close();
        }
        self.bulk.stop();
    }

    /// Its identifier, and those that take its place when the server has ended it.
    pub fn id(&self) -> watch::Receiver<SessionId> {
        self.id.subscribe()
    }

    /// Asks for the volume's description anew, the cluster map with it. It comes with the first
    /// exchange of a connection, so that a new connection is what it takes.
    pub fn refresh(&self) {
        if let State::Up { link, .. } = &*self.state.borrow() {
            link.close();
        }
    }

    async fn up(&self, after: u64) -> Result<(u64, u64, Arc<dyn MetaLink>), Errno> {
        let mut state = self.state.subscribe();
        let found = state
            .wait_for(|s| match s {
                State::Down => false,
                State::Up { serial, .. } => *serial > after,
                State::Stopped => true,
            })
            .await
            .map_err(|_| Errno::EIO)?;
        match &*found {
            State::Up { serial, incarnation, link } => {
                Ok((*serial, *incarnation, Arc::clone(link)))
            }
            _ => Err(Errno::EIO),
        }
    }

    /// A question, asked until it is answered.
    ///
    /// # Errors
    /// The server's; `EIO` once the session is stopped.
    pub async fn ask(&self, request: Request) -> meta::Answer {
        let waits = match request {
            Request::Sync | Request::StatFs | Request::ReadLink { .. } => Waits::ForNobody,
            _ => Waits::ForOthers,
        };
        self.ask_as(waits, request).await
    }

    /// As [`Session::ask`]; whether it waits for others is known to the caller.
    pub async fn ask_as(&self, waits: Waits, request: Request) -> meta::Answer {
        match self.ask_until_answered(waits, request).await {
            Ok(answer) => answer,
            Err(errno) => meta::Answer::bare(Err(errno)),
        }
    }

    async fn slot(&self, waits: Waits) -> Result<SemaphorePermit<'_>, Errno> {
        let slots = match waits {
            Waits::ForOthers => &self.slots,
            Waits::ForNobody => &self.covered,
        };
        waiting(Wait::Meta, slots.acquire()).await.map_err(|_| Errno::EIO)
    }

    async fn ask_until_answered(
        &self,
        waits: Waits,
        request: Request,
    ) -> Result<meta::Answer, Errno> {
        let _slot = self.slot(waits).await?;
        let mut after = 0;
        loop {
            let (serial, _, link) = waiting(Wait::Connection, self.up(after)).await?;
            match self.once(&*link, request.clone()).await? {
                // An earlier life of the server does not speak for the present one.
                Some(answer) if lock(&self.positions).is_current(serial) => {
                    lock(&self.kept).durable(answer.durable);
                    return Ok(answer);
                }
                _ => after = serial,
            }
        }
    }

    /// One attempt; `None` when it must be made again on another connection.
    async fn once(
        &self,
        link: &dyn MetaLink,
        request: Request,
    ) -> Result<Option<meta::Answer>, Errno> {
        let counted = self.counters.meta(&request);
        let call = tokio::time::timeout(HUNG_AFTER, link.call(request));
        let outcome = waiting(Wait::Meta, call).await;
        if let Ok(Ok(_)) = &outcome {
            self.counters.answered(counted);
            self.hear();
        }
        match outcome {
            Ok(Ok(meta::Answer { reply: Err(Errno::ESHUTDOWN), .. })) => {
                // The session is unknown to the server; the next hello begins a new one.
                link.close();
                Ok(None)
            }
            Ok(Ok(answer)) => Ok(Some(answer)),
            Ok(Err(LinkError::Lost)) => Ok(None),
            Ok(Err(e @ LinkError::Unsendable(_))) => {
                warn!(error = %e, "a call was not sent");
                Err(Errno::EIO)
            }
            Err(_) => {
                warn!("the metadata server does not answer a call; connecting anew");
                link.close();
                Ok(None)
            }
        }
    }

    /// A change at the present time.
    ///
    /// # Errors
    /// As [`Session::mutate_at`].
    pub async fn mutate(&self, op: Op, sync: bool) -> Result<Changed, Errno> {
        let waits = match op {
            Op::Accessed { .. } | Op::Forget { .. } | Op::EndSession => Waits::ForNobody,
            _ => Waits::ForOthers,
        };
        self.mutate_as(waits, op, sync).await
    }

    /// As [`Session::mutate`]; whether it waits for others is known to the caller.
    ///
    /// # Errors
    /// As [`Session::mutate_at`].
    pub async fn mutate_as(&self, waits: Waits, op: Op, sync: bool) -> Result<Changed, Errno> {
        self.change(waits, op, sync, self.now(), None).await
    }

    /// Which of the sessions that have followed each other under its identifier this is.
    pub fn incarnation(&self) -> u64 {
        lock(&self.ops).incarnation()
    }

    /// A change made up from what was known in an incarnation of the session, under a lease for writing. It is applied once
    /// however often its connection is lost. The future should be run to its end: the change may
    /// be applied although nobody waits for the answer any more.
    ///
    /// # Errors
    /// The server's; `EIO` when the incarnation has ended before the answer came.
    pub async fn mutate_at(
        &self,
        op: Op,
        sync: bool,
        time: Timestamp,
        known_in: u64,
    ) -> Result<Changed, Errno> {
        self.change(Waits::ForNobody, op, sync, time, Some(known_in)).await
    }

    async fn change(
        &self,
        waits: Waits,
        op: Op,
        sync: bool,
        time: Timestamp,
        known_in: Option<u64>,
    ) -> Result<Changed, Errno> {
        let slot = self.slot(waits).await?;
        let (mut serial, mut incarnation, mut link) = waiting(Wait::Connection, self.up(0)).await?;
        if known_in.is_some_and(|known| known != incarnation) {
            return Err(Errno::EIO);
        }
        let number = Number::begin(self);
        loop {
            if incarnation != number.incarnation {
                return Err(Errno::EIO);
            }
            let answered = lock(&self.ops).answered();
            let mutation = Mutation { seq: number.seq, answered, time, sync, op: op.clone() };
            match self.once(&*link, Request::Mutate(mutation)).await? {
                Some(meta::Answer { reply, grants, at, durable }) => {
                    let Response::Changed { target, attrs } = reply? else {
                        return Err(Errno::EPROTO);
                    };
                    // The end of a cut has a place of its own, after that of the change.
                    let at = match &op {
                        Op::SetAttr { set, .. } if set.size.is_some() => at.0.max(newest(&attrs)),
                        Op::CutTail { .. } => at.0.max(newest(&attrs)),
                        _ => at.0,
                    };
                    let changed = Changed { at, target, attrs, grants };
                    let full = {
                        let mut positions = lock(&self.positions);
                        positions.answered(serial, at.max(newest(&changed.attrs)), sync)?;
                        // Of an earlier life it is what that has not lost.
                        let may_be_lost = at > durable.0 && !sync && positions.is_current(serial);
                        let mut kept = lock(&self.kept);
                        if may_be_lost && !matches!(op, Op::EndSession) {
                            let touched = changed.attrs.iter().map(|a| a.ino).collect();
                            kept.add(changed.to_replay(number.seq, time, op), touched);
                        }
                        kept.durable(durable);
                        kept.is_full()
                    };
                    if full {
                        // It takes a place of its own.
                        drop((number, slot));
                        // An error means that nothing goes on anyway.
                        let _ = self.sync_to(u64::MAX).await;
                    }
                    return Ok(changed);
                }
                None => {
                    let up = waiting(Wait::Connection, self.up(serial));
                    (serial, incarnation, link) = up.await?;
                }
            }
        }
    }
}

impl Session {
    /// Returns when the log is durable up to a position, `u64::MAX` or 0 for everything answered so
    /// far. Costs no message when that is known.
    ///
    /// # Errors
    /// As [`Session::ask`].
    pub async fn sync_to(&self, position: u64) -> Result<(), Errno> {
        let Some(wanted) = lock(&self.positions).want(position) else { return Ok(()) };
        let answer = self.ask(Request::Sync).await;
        match answer.reply? {
            Response::Done => {}
            _ => return Err(Errno::EPROTO),
        }
        lock(&self.positions).reached(wanted);
        Ok(())
    }
}

/// A number in use. It is given back however the call ends; one that was cancelled is never sent
/// again, so that the server may forget it too.
struct Number<'a> {
    session: &'a Session,
    incarnation: u64,
    seq: OpSeq,
}

impl<'a> Number<'a> {
    fn begin(session: &'a Session) -> Self {
        let (incarnation, seq) = lock(&session.ops).begin();
        Number { session, incarnation, seq }
    }
}

impl Drop for Number<'_> {
    fn drop(&mut self) {
        lock(&self.session.ops).finish(self.incarnation, self.seq);
    }
}

/// The latest version of attributes.
fn newest(attrs: &[Attr]) -> u64 {
    attrs.iter().map(|a| a.version).max().unwrap_or(0)
}

fn hello_template(config: &SessionConfig) -> Hello {
    hello(config, Role::Data, config.session, Claim::Begin)
}

fn hello(config: &SessionConfig, role: Role, session: SessionId, claim: Claim) -> Hello {
    Hello {
        protocol: (PROTOCOL, PROTOCOL),
        features: 0,
        role,
        volume: config.volume.clone(),
        session,
        claim,
        instance: config.instance,
        client: config.client.clone(),
    }
}

fn usable(reply: &HelloReply) -> Result<VolumeInfo, DialError> {
    let volume = reply.volume.clone().ok_or_else(|| {
        DialError::Refused("the metadata server did not describe the volume".into())
    })?;
    check_map(&volume.map)?;
    Ok(volume)
}

fn check_map(map: &ClusterMap) -> Result<(), DialError> {
    map.validate().map_err(|e| DialError::Refused(e.to_string()))
}
