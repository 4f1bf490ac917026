//! Calls to the metadata server.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use netfs_common::attr::{Attr, Timestamp};
use netfs_common::errno::Errno;
use netfs_common::id::{Ino, InstanceId, OpSeq, SessionId};
use netfs_common::map::ClusterMap;
use netfs_common::wire::hello::VolumeInfo;
use netfs_common::wire::lease::{Grant, Lease, Recall};
use netfs_common::wire::meta::{self, MAX_BATCH, Mutation, Op, Push, PushReply, Request, Response};
use netfs_common::wire::{Claim, Hello, HelloReply, PROTOCOL, Role};
use tokio::sync::{Semaphore, mpsc, watch};
use tracing::{error, info, warn};

use super::counters::{Counters, Traffic};
use super::data::Bulk;
use super::link::{Answer, DialError, Dialer, Dialled, LinkError, MetaLink, PushCall};
use super::lost::LostPositions;
use super::oplog::OpLog;
use super::positions::Positions;
use super::term::{Look, Term, since_boot};
use crate::insight::{Lost, Wait, waiting};

/// The most metadata calls under way at once; further ones wait.
const MAX_CALLS: usize = 192;
/// Besides them, those that report what is buffered: another client may wait for that, and any of the others for the
/// other client.
const MAX_REPORTS: usize = 32;
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
}

/// Who is told what happens to the session.
pub trait SessionEvents: Send + Sync {
    /// There is a new connection, which no call has used yet. Must not wait for a call.
    fn reconnected(&self, what: Reconnected);
    /// The server may end the session any moment and let others in: nothing that was learned may be
    /// used until it answers again, which [`SessionEvents::reconnected`] tells. Must not wait.
    fn lapsed(&self);
    /// Something must be given back; the answer goes out when the future is done.
    fn recall(self: Arc<Self>, recalls: Vec<Recall>) -> Answer<'static, ()>;
    /// Whether others use the volume. Must not wait.
    fn company(&self, others: bool);
    /// After a restart of the server, before [`SessionEvents::reconnected`]: the leases without which what is buffered would be
    /// lost. Must not wait.
    fn to_reclaim(&self) -> Vec<(Ino, Lease)>;
    /// After [`SessionEvents::reconnected`]: those of them that the server has given back. Must not wait.
    fn reclaimed(&self, grants: &[Grant]);
    /// The session may be relied upon until this time since boot. Must not wait.
    fn alive(&self, until: Duration);
    /// A data server takes nothing of the session any more: it is over, and what was to be sent in it is lost. Must
    /// not wait.
    fn fenced(&self);
    /// A data server has a new life: what it had not flushed may be gone.
    fn data_restarted(&self, server: netfs_common::id::ServerId, now: InstanceId);
}

/// The outcome of a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// The inode that the change was about.
    pub target: Option<Ino>,
    /// All inodes touched.
    pub attrs: Vec<Attr>,
    /// What of it may be kept.
    pub grants: Vec<Grant>,
}

impl Changed {
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
    report_slots: Semaphore,
    volume: RwLock<Arc<VolumeInfo>>,
    counters: Arc<Counters>,
    bulk: Bulk,
    events: Mutex<Option<Weak<dyn SessionEvents>>>,
    /// A leaf.
    positions: Mutex<Positions>,
    /// A leaf.
    term: Mutex<Term>,
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
        let sent = since_boot();
        let (reply, link) = dialer.meta(hello, push_to).await?;
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
            report_slots: Semaphore::new(MAX_REPORTS),
            volume: RwLock::new(Arc::new(volume)),
            counters,
            bulk,
            events: Mutex::new(None),
            positions: Mutex::new(Positions::new(1)),
            term: Mutex::new(Term::new(sent)),
            heard: AtomicU64::new(0),
        });
        session.hear();
        tokio::spawn(watch_term(Arc::downgrade(&session)));
        tokio::spawn(drive(Arc::downgrade(&session), reply.instance, pushes));
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
        match self.ask_in(&self.slots, request).await {
            Ok(answer) => answer,
            Err(errno) => meta::Answer::bare(Err(errno)),
        }
    }

    /// As [`Session::ask`], for what must go on while all other calls wait for other clients: what is buffered here is what those
    /// wait for.
    pub async fn ask_for_report(&self, request: Request) -> meta::Answer {
        match self.ask_in(&self.report_slots, request).await {
            Ok(answer) => answer,
            Err(errno) => meta::Answer::bare(Err(errno)),
        }
    }

    async fn ask_in(&self, slots: &Semaphore, request: Request) -> Result<meta::Answer, Errno> {
        let slot = waiting(Wait::Meta, slots.acquire()).await;
        let _slot = slot.map_err(|_| Errno::EIO)?;
        let mut after = 0;
        loop {
            let (serial, _, link) = waiting(Wait::Connection, self.up(after)).await?;
            match self.once(&*link, request.clone()).await? {
                // An earlier life of the server does not speak for the present one.
                Some(answer) if lock(&self.positions).is_current(serial) => return Ok(answer),
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
        self.change(op, sync, now(), None).await
    }

    /// Which of the sessions that have followed each other under its identifier this is.
    pub fn incarnation(&self) -> u64 {
        lock(&self.ops).incarnation()
    }

    /// A change made up from what was known in an incarnation of the session. It is applied once
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
        self.change(op, sync, time, Some(known_in)).await
    }

    async fn change(
        &self,
        op: Op,
        sync: bool,
        time: Timestamp,
        known_in: Option<u64>,
    ) -> Result<Changed, Errno> {
        let slots = if known_in.is_some() { &self.report_slots } else { &self.slots };
        let slot = waiting(Wait::Meta, slots.acquire()).await;
        let _slot = slot.map_err(|_| Errno::EIO)?;
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
            let op = op.clone();
            let mutation = Mutation { seq: number.seq, answered, time, sync, op };
            match self.once(&*link, Request::Mutate(mutation)).await? {
                Some(meta::Answer { reply, grants }) => {
                    let Response::Changed { target, attrs } = reply? else {
                        return Err(Errno::EPROTO);
                    };
                    let at = attrs.iter().map(|a| a.version).max().unwrap_or(0);
                    lock(&self.positions).answered(serial, at, sync)?;
                    return Ok(Changed { target, attrs, grants });
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
        match self.ask(Request::Sync).await.reply? {
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

/// The present.
pub(crate) fn now() -> Timestamp {
    std::time::SystemTime::now().into()
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

/// Keeps the session connected and alive until it is stopped or dropped.
async fn drive(
    weak: Weak<Session>,
    mut instance: InstanceId,
    mut pushes: mpsc::Receiver<PushCall>,
) {
    let mut serial = 1;
    // What could not be reclaimed over an earlier connection.
    let mut unreclaimed: Option<Vec<(Ino, Lease)>> = None;
    loop {
        {
            let Some(session) = weak.upgrade() else { return };
            let State::Up { link, .. } = session.state.borrow().clone() else { return };
            drop(session);
            attend(&weak, &*link, &mut pushes).await;
        }
        let Some(session) = weak.upgrade() else { return };
        if !session.replace(State::Down) {
            return;
        }
        warn!("the connection to the metadata server is lost");
        let Some(connected) = session.reconnect().await else { return };
        let Connected { reply, link, pushes: new_pushes, volume, successor } = connected;
        pushes = new_pushes;
        serial += 1;
        let earlier = unreclaimed.take();
        let restarted = reply.instance != instance || earlier.is_some();
        let what = Reconnected {
            restarted,
            lost: successor.is_some(),
            gone: LostPositions::new(volume.lost.clone()),
        };
        info!(?what, "connected to the metadata server again");
        instance = reply.instance;
        let incarnation = {
            let mut ops = lock(&session.ops);
            if what.lost { ops.restart() } else { ops.incarnation() }
        };
        if let Some(id) = successor {
            session.bulk.succeed(id);
            session.id.send_replace(id);
        }
        if what.restarted || what.lost {
            let gone = what.gone.clone();
            if let Some(latest) = lock(&session.positions).begin_anew(serial, gone) {
                error!(
                    latest,
                    "the metadata server has lost changes that it had answered and nobody had synced"
                );
            }
        }
        session.bulk.set_map(Arc::new(volume.map.clone()));
        *session.volume.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(volume);
        let reclaims = what.restarted && !what.lost;
        let events = session.events();
        let mut held = events.as_ref().map(|e| e.to_reclaim()).unwrap_or_default();
        // The caches have forgotten these since.
        held.extend(earlier.unwrap_or_default());
        if let Some(events) = &events {
            events.company(session.volume().others);
            events.reconnected(what);
        }
        session.tell_alive();
        if reclaims {
            match reclaim(&*link, &held).await {
                Ok(grants) => {
                    if let Some(events) = &events {
                        events.reclaimed(&grants);
                    }
                }
                // The next connection tries again.
                Err(why) => {
                    warn!(%why, "leases could not be reclaimed");
                    unreclaimed = Some(held);
                    link.close();
                }
            }
        }
        let fenced = link.clone();
        if !session.replace(State::Up { serial, incarnation, link }) {
            return;
        }
        if session.bulk.is_fenced(*session.id.borrow()) {
            // Learned just now: this session will not do.
            fenced.close();
        }
    }
}

/// Serves one connection until it is lost: signs of life go out, the server's calls are answered.
async fn attend(weak: &Weak<Session>, link: &dyn MetaLink, pushes: &mut mpsc::Receiver<PushCall>) {
    let Some(third) = weak
        .upgrade()
        .map(|s| Duration::from_millis(u64::from(s.volume().term_ms) / 3))
        .map(|t| t.max(Duration::from_millis(100)))
    else {
        return;
    };
    let mut renew = tokio::time::interval(third);
    renew.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    renew.tick().await;
    let closed = link.closed();
    tokio::pin!(closed);
    loop {
        tokio::select! {
            () = &mut closed => return,
            _ = renew.tick() => {
                let Some(session) = weak.upgrade() else { return };
                let counted = session.counters.meta(&Request::Renew);
                let sent = since_boot();
                // Anything but an answer shows in `closed`.
                match tokio::time::timeout(third * 2, link.call(Request::Renew)).await {
                    Ok(Ok(meta::Answer { reply: Ok(_), .. })) => {
                        session.counters.answered(counted);
                        session.hear();
                        lock(&session.term).answered(sent);
                        session.tell_alive();
                    }
                    Ok(Ok(meta::Answer { reply: Err(e), .. })) => {
                        warn!(error = %e, "the session was not renewed");
                        link.close();
                    }
                    Ok(Err(_)) | Err(_) => link.close(),
                }
            }
            Some(call) = pushes.recv() => {
                let Some(session) = weak.upgrade() else { return };
                let events = session.events();
                session.counters.recalled();
                // In a task of its own: what is buffered is sent first, and renewals go on.
                tokio::spawn(async move {
                    match call.push {
                        Push::Company { others } => {
                            if let Some(events) = events { events.company(others) }
                        }
                        Push::Recall(recalls) => {
                            if let Some(events) = events { events.recall(recalls).await }
                        }
                    }
                    // A server that has gone meanwhile no longer waits for it.
                    let _ = call.answer.send(PushReply::Done);
                    session.counters.gave_back();
                });
            }
        }
    }
}

/// Sees to it that the session is not relied upon beyond its term.
async fn watch_term(weak: Weak<Session>) {
    loop {
        let pause = {
            let Some(session) = weak.upgrade() else { return };
            if matches!(*session.state.borrow(), State::Stopped) {
                return;
            }
            let term = Duration::from_millis(u64::from(session.volume().term_ms));
            let look = lock(&session.term).look(since_boot(), term);
            match look {
                Look::Again(pause) => pause,
                Look::Lapsed => {
                    warn!(
                        "the metadata server does not answer: the caches are not used until it does"
                    );
                    if let Some(events) = session.events() {
                        events.lapsed();
                    }
                    // A connection that seems to be there does not work.
                    session.refresh();
                    Duration::from_millis(1)
                }
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Tells a server that was restarted what was held, before anything else is asked of it.
async fn reclaim(link: &dyn MetaLink, held: &[(Ino, Lease)]) -> Result<Vec<Grant>, DialError> {
    let mut grants = Vec::new();
    let mut batches: Vec<Vec<(Ino, Lease)>> = held.chunks(MAX_BATCH).map(<[_]>::to_vec).collect();
    if batches.is_empty() {
        batches.push(Vec::new());
    }
    let last = batches.len() - 1;
    for (i, leases) in batches.into_iter().enumerate() {
        let request = Request::Reclaim { leases, done: i == last };
        let answer = tokio::time::timeout(HUNG_AFTER, link.call(request)).await;
        let answer = answer
            .map_err(|_| DialError::Unreachable("no answer".into()))?
            .map_err(|e| DialError::Unreachable(e.to_string()))?;
        answer.reply.map_err(|e| DialError::Refused(e.to_string()))?;
        grants.extend(answer.grants);
    }
    Ok(grants)
}

/// A connection that was made anew.
struct Connected {
    reply: HelloReply,
    link: Arc<dyn MetaLink>,
    pushes: mpsc::Receiver<PushCall>,
    volume: VolumeInfo,
    /// The session that was begun, because the one before is over.
    successor: Option<SessionId>,
}

fn draw() -> Result<SessionId, DialError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)
        .map_err(|e| DialError::Unreachable(format!("there are no random numbers: {e}")))?;
    Ok(SessionId(u64::from_le_bytes(bytes).max(1)))
}

impl Session {
    /// Says for how long what was learned may be used.
    fn tell_alive(&self) {
        let term = Duration::from_millis(u64::from(self.volume().term_ms));
        let until = lock(&self.term).until(term);
        if let Some(events) = self.events() {
            events.alive(until);
        }
    }

    /// Sets the state unless the session is stopped.
    fn replace(&self, new: State) -> bool {
        self.state.send_if_modified(|s| match s {
            State::Stopped => false,
            _ => {
                *s = new;
                true
            }
        })
    }

    /// A greeting in the session, or in its successor if it is known to be over.
    async fn greet(
        &self,
        successor: &mut Option<SessionId>,
        pushes: mpsc::Sender<PushCall>,
    ) -> Dialled<dyn MetaLink> {
        let id = *self.id.borrow();
        if successor.is_none() && self.bulk.is_fenced(id) {
            *successor = Some(draw()?);
        }
        let (id, claim) = match *successor {
            Some(next) => (next, Claim::Succeed),
            None => (id, Claim::Resume),
        };
        self.dialer.meta(hello(&self.config, Role::Meta, id, claim), pushes).await
    }

    async fn reconnect(&self) -> Option<Connected> {
        let mut pause = BACKOFF.0;
        let mut told = None;
        let mut successor = None;
        loop {
            if matches!(*self.state.borrow(), State::Stopped) {
                return None;
            }
            let (push_to, pushes) = mpsc::channel(4);
            let sent = since_boot();
            let outcome = self.greet(&mut successor, push_to).await.and_then(|(reply, link)| {
                let volume = usable(&reply)?;
                Ok(Connected { reply, link, pushes, volume, successor })
            });
            match outcome {
                // A data server has said meanwhile that the session is over.
                Ok(connected) if successor.is_none() && self.bulk.is_fenced(*self.id.borrow()) => {
                    connected.link.close();
                    continue;
                }
                Ok(connected) => {
                    // Nothing is awaited until `reconnected` was told.
                    lock(&self.term).begin_anew(sent);
                    self.hear();
                    return Some(connected);
                }
                // At once in another one.
                Err(DialError::SessionOver(why)) if successor.is_none() => {
                    warn!(why, "the metadata server has ended the session");
                    successor = draw().ok();
                    continue;
                }
                Err(e) => {
                    if told.as_ref() != Some(&e) {
                        warn!(error = %e, "no connection to the metadata server; trying again");
                        told = Some(e);
                    }
                }
            }
            let mut state = self.state.subscribe();
            let stopped = state.wait_for(|s| matches!(s, State::Stopped));
            if tokio::time::timeout(pause, stopped).await.is_ok() {
                return None;
            }
            pause = (pause * 2).min(BACKOFF.1);
        }
    }
}
