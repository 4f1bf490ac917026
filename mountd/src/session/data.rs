//! Calls to the data servers.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use netfs_common::errno::Errno;
use netfs_common::id::{ChunkId, GroupId, InstanceId, ServerId, SessionId};
use netfs_common::map::ClusterMap;
use netfs_common::wire::Hello;
use netfs_common::wire::data::{MAX_PAYLOAD, Op, Reply, Request, Span};
use tokio::sync::{Notify, Semaphore};
use tracing::{error, info, warn};

use super::counters::Counters;
use super::link::{DataLink, DialError, Dialer, LinkError};
use super::meta::{SessionEvents, lock};
use crate::insight::{Wait, waiting};

/// The most reads under way at once. With the kernel's requests of 1 MiB it bounds the memory
/// that reads can take.
const MAX_READS: usize = 32;
/// A server that keeps a call this long is taken for hung.
const HUNG_AFTER: Duration = Duration::from_secs(120);
/// Pauses between attempts to connect, and between calls that are refused for an old map.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

/// Where a chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The server to call.
    pub server: ServerId,
    group: GroupId,
    epoch: netfs_common::id::Epoch,
}

/// A change of a chunk was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// By whom.
    pub server: ServerId,
    /// In which of its lives.
    pub verifier: InstanceId,
    /// By how many bytes the allocated data grew.
    pub allocated: i64,
}

/// What became of a copy within a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    /// It is done.
    Done(Written),
    /// The chunks are on different servers.
    Apart,
}

struct Server {
    /// The connection; taken only to look or to dial.
    link: tokio::sync::Mutex<Option<Connected>>,
    serial: AtomicU64,
    instance: Mutex<Option<InstanceId>>,
}

/// A connection, with its serial number and the session that it was made in.
struct Connected {
    serial: u64,
    session: SessionId,
    link: Arc<dyn DataLink>,
}

type Usable = (u64, SessionId, Arc<dyn DataLink>);

/// The connections to the data servers.
pub struct Bulk {
    /// The session changes.
    hello: Mutex<Hello>,
    dialer: Arc<dyn Dialer>,
    counters: Arc<Counters>,
    map: RwLock<Arc<ClusterMap>>,
    /// One entry per server of the map.
    servers: Mutex<HashMap<ServerId, Arc<Server>>>,
    reads: Semaphore,
    events: Mutex<Option<Weak<dyn SessionEvents>>>,
    /// The session that a data server has refused for good; 0: none.
    fenced: AtomicU64,
    /// Told when there is another session, or none.
    renewed: Notify,
    stopped: AtomicBool,
    stop: Notify,
    stale: Notify,
}

impl Bulk {
    pub(super) fn new(
        hello: Hello,
        dialer: Arc<dyn Dialer>,
        counters: Arc<Counters>,
        map: Arc<ClusterMap>,
    ) -> Bulk {
        Bulk {
            hello: Mutex::new(hello),
            dialer,
            counters,
            map: RwLock::new(map),
            servers: Mutex::default(),
            reads: Semaphore::new(MAX_READS),
            events: Mutex::new(None),
            fenced: AtomicU64::new(0),
            renewed: Notify::new(),
            stopped: AtomicBool::new(false),
            stop: Notify::new(),
            stale: Notify::new(),
        }
    }

    pub(super) fn set_events(&self, events: Weak<dyn SessionEvents>) {
        *lock(&self.events) = Some(events);
    }

    pub(super) fn set_map(&self, map: Arc<ClusterMap>) {
        *self.map.write().unwrap_or_else(PoisonError::into_inner) = map;
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
        if let Some(events) = lock(&self.events).as_ref().and_then(Weak::upgrade) {
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

    /// Resolves when a server has said that the map is old.
    pub async fn map_is_stale(&self) {
        self.stale.notified().await;
    }

    fn map(&self) -> Arc<ClusterMap> {
        Arc::clone(&self.map.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where a chunk is by the present map.
    pub fn place(&self, chunk: ChunkId) -> Place {
        let map = self.map();
        let (group, chain) = map.chain_of(chunk);
        Place { server: chain.replicas[0], group, epoch: chain.epoch }
    }

    /// The last known life of a server.
    pub fn instance(&self, server: ServerId) -> Option<InstanceId> {
        lock(&self.servers).get(&server).and_then(|s| *lock(&s.instance))
    }

    /// Stores bytes at an offset of a chunk.
    ///
    /// # Errors
    /// The server's; `EIO` once stopped, or when the session is over.
    pub async fn write(
        &self,
        within: SessionId,
        chunk: ChunkId,
        offset: u64,
        data: Bytes,
    ) -> Result<Written, Errno> {
        self.change(within, chunk, Op::Write { chunk, offset }, data).await
    }

    /// Makes a range of a chunk a hole.
    ///
    /// # Errors
    /// As [`Bulk::write`].
    pub async fn punch(
        &self,
        within: SessionId,
        chunk: ChunkId,
        offset: u64,
        len: u64,
    ) -> Result<Written, Errno> {
        self.change(within, chunk, Op::Punch { chunk, offset, len }, Bytes::new()).await
    }

    /// Copies between two chunks if one server has both.
    ///
    /// # Errors
    /// As [`Bulk::write`].
    pub async fn copy(
        &self,
        within: SessionId,
        (source, source_offset): (ChunkId, u64),
        (target, target_offset): (ChunkId, u64),
        len: u64,
    ) -> Result<Copied, Errno> {
        let map = self.map();
        if map.chain_of(source).1.replicas != map.chain_of(target).1.replicas {
            return Ok(Copied::Apart);
        }
        let op = Op::Copy { source, source_offset, target, target_offset, len };
        self.change(within, target, op, Bytes::new()).await.map(Copied::Done)
    }

    async fn change(
        &self,
        within: SessionId,
        chunk: ChunkId,
        op: Op,
        payload: Bytes,
    ) -> Result<Written, Errno> {
        let (server, reply, _) = self.at(Some(within), chunk, op, payload).await?;
        match reply {
            Reply::Written { verifier, allocated } => Ok(Written { server, verifier, allocated }),
            _ => Err(Errno::EPROTO),
        }
    }

    /// Reads `len` bytes of a chunk.
    ///
    /// # Errors
    /// As [`Bulk::write`].
    pub async fn read(&self, chunk: ChunkId, offset: u64, len: u64) -> Result<Bytes, Errno> {
        if len <= MAX_PAYLOAD {
            return self.read_piece(chunk, offset, len).await;
        }
        let (mut whole, end) = (BytesMut::new(), offset.saturating_add(len));
        while offset + (whole.len() as u64) < end {
            let at = offset + whole.len() as u64;
            let piece = self.read_piece(chunk, at, MAX_PAYLOAD.min(end - at)).await?;
            whole.extend_from_slice(&piece);
        }
        Ok(whole.freeze())
    }

    async fn read_piece(&self, chunk: ChunkId, offset: u64, len: u64) -> Result<Bytes, Errno> {
        let slot = waiting(Wait::Data, self.reads.acquire()).await;
        let _slot = slot.map_err(|_| Errno::EIO)?;
        let (_, reply, bytes) =
            self.at(None, chunk, Op::Read { chunk, offset, len }, Bytes::new()).await?;
        match reply {
            Reply::Read if bytes.len() as u64 == len => Ok(bytes),
            _ => Err(Errno::EPROTO),
        }
    }

    /// Makes a range of a file a hole, with messages by what is there and not by its length.
    ///
    /// # Errors
    /// As [`Bulk::write`].
    pub async fn punch_span(&self, within: SessionId, span: Span) -> Result<Written, Errno> {
        let heads = self.heads();
        let (last, others) = heads.split_last().ok_or(Errno::EIO)?;
        let mut allocated = 0;
        for server in others {
            // Who waits for durability is told of one server only: here it is waited for at once.
            loop {
                let part = self.punch_at(within, *server, span).await?;
                allocated += part.allocated;
                if self.flush(*server).await? == part.verifier {
                    break;
                }
            }
        }
        let part = self.punch_at(within, *last, span).await?;
        Ok(Written { allocated: part.allocated + allocated, ..part })
    }

    /// All of it acknowledged in one life of the server.
    async fn punch_at(
        &self,
        within: SessionId,
        server: ServerId,
        span: Span,
    ) -> Result<Written, Errno> {
        let (mut rest, mut sum, mut life) = (span, 0, None);
        loop {
            let op = Op::PunchSpan { span: rest };
            let Reply::Punched { verifier, allocated, upto } =
                self.at_server(Some(within), server, op).await?
            else {
                return Err(Errno::EPROTO);
            };
            if life.is_some_and(|life| life != verifier) {
                // What was punched in the life before may be back.
                (rest, sum, life) = (span, allocated, None);
                continue;
            }
            sum += allocated;
            if upto >= span.to {
                return Ok(Written { server, verifier, allocated: sum });
            }
            if upto <= rest.from {
                return Err(Errno::EPROTO);
            }
            (rest.from, life) = (upto, Some(verifier));
        }
    }

    /// Where a file has data: ascending, not touching, and up to where that is all. About `limit` ranges.
    ///
    /// # Errors
    /// As [`Bulk::write`].
    pub async fn extents(&self, span: Span, limit: u32) -> Result<(Vec<(u64, u64)>, u64), Errno> {
        let (mut all, mut upto) = (Vec::new(), span.to);
        for server in self.heads() {
            match self.at_server(None, server, Op::Extents { span, limit }).await? {
                Reply::Extents { extents, upto: told } if told > span.from => {
                    all.extend(extents);
                    upto = upto.min(told);
                }
                _ => return Err(Errno::EPROTO),
            }
        }
        Ok((merge(all, upto), upto))
    }

    /// Makes everything durable that a server has acknowledged. Returns in which of its lives.
    ///
    /// # Errors
    /// As [`Bulk::write`].
    pub async fn flush(&self, server: ServerId) -> Result<InstanceId, Errno> {
        match self.at_server(None, server, Op::Flush).await? {
            Reply::Flushed { verifier } => Ok(verifier),
            _ => Err(Errno::EPROTO),
        }
    }

    /// The servers to which calls about chunks go.
    fn heads(&self) -> Vec<ServerId> {
        let map = self.map();
        let heads: BTreeSet<_> = map.chains.iter().map(|chain| chain.replicas[0]).collect();
        heads.into_iter().collect()
    }

    /// A call about all that a server has.
    async fn at_server(
        &self,
        within: Option<SessionId>,
        server: ServerId,
        op: Op,
    ) -> Result<Reply, Errno> {
        let mut pause = BACKOFF.0;
        loop {
            let map = self.map();
            let chain = map.chains.iter().enumerate().find(|(_, c)| c.replicas.contains(&server));
            let Some((group, chain)) = chain else { return Err(Errno::EIO) };
            let request =
                Request { group: GroupId(group as u32), epoch: chain.epoch, op: op.clone() };
            match self.call(within, server, request, Bytes::new()).await?.0 {
                Reply::Failed(e) => return Err(e),
                Reply::StaleEpoch(_) => pause = self.wait_for_map(pause).await,
                reply => return Ok(reply),
            }
        }
    }

    async fn at(
        &self,
        within: Option<SessionId>,
        chunk: ChunkId,
        op: Op,
        payload: Bytes,
    ) -> Result<(ServerId, Reply, Bytes), Errno> {
        let mut pause = BACKOFF.0;
        loop {
            let place = self.place(chunk);
            let request = Request { group: place.group, epoch: place.epoch, op: op.clone() };
            match self.call(within, place.server, request, payload.clone()).await? {
                (Reply::StaleEpoch(_), _) => pause = self.wait_for_map(pause).await,
                (Reply::Failed(e), _) => return Err(e),
                (reply, bytes) => return Ok((place.server, reply, bytes)),
            }
        }
    }

    async fn wait_for_map(&self, pause: Duration) -> Duration {
        self.stale.notify_one();
        tokio::time::sleep(pause).await;
        (pause * 2).min(BACKOFF.1)
    }

    /// One call, repeated on new connections until it is answered. A change is made within one session and fails when that is over; a
    /// question waits for the next one. All calls may be repeated: a
    /// write, a punch and a copy done twice are the same as done once, because no two that
    /// overlap are under way at a time.
    async fn call(
        &self,
        within: Option<SessionId>,
        id: ServerId,
        request: Request,
        payload: Bytes,
    ) -> Result<(Reply, Bytes), Errno> {
        waiting(Wait::Data, self.call_until_answered(within, id, request, payload)).await
    }

    async fn call_until_answered(
        &self,
        within: Option<SessionId>,
        id: ServerId,
        request: Request,
        payload: Bytes,
    ) -> Result<(Reply, Bytes), Errno> {
        let mut after = 0;
        loop {
            let stopped = self.stop.notified();
            if self.stopped.load(Ordering::SeqCst) {
                return Err(Errno::EIO);
            }
            let attempt = async {
                let Some((serial, session, link)) = self.link(id, after).await? else {
                    return Ok(None);
                };
                if within.is_some_and(|within| within != session) {
                    return Err(Errno::EIO);
                }
                let counted = self.counters.data(&request.op, payload.len());
                let call = link.call(request.clone(), payload.clone());
                Ok::<_, Errno>(Some((
                    (serial, session),
                    match tokio::time::timeout(HUNG_AFTER, call).await {
                        Ok(outcome) => {
                            if let Ok((_, data)) = &outcome {
                                self.counters.data_answered(counted, data.len());
                            }
                            outcome
                        }
                        Err(_) => {
                            warn!(server = %id, "a data server does not answer; connecting anew");
                            link.close();
                            Err(LinkError::Lost)
                        }
                    },
                )))
            };
            let done = tokio::select! {
                done = attempt => done?,
                () = stopped => return Err(Errno::EIO),
            };
            let outcome = match done {
                Some(((_, session), Ok((Reply::SessionOver, _)))) => {
                    self.note_fenced(id, session);
                    None
                }
                other => other,
            };
            let Some(((serial, _), outcome)) = outcome else {
                if within.is_some() {
                    return Err(Errno::EIO);
                }
                let stopped = self.stop.notified();
                if self.stopped.load(Ordering::SeqCst) {
                    return Err(Errno::EIO);
                }
                tokio::select! {
                    () = self.replaced(SessionId(self.fenced.load(Ordering::SeqCst))) => continue,
                    () = stopped => return Err(Errno::EIO),
                }
            };
            match outcome {
                Ok(answer) => return Ok(answer),
                Err(LinkError::Lost) => after = serial,
                Err(e @ LinkError::Unsendable(_)) => {
                    warn!(error = %e, "a call to a data server was not sent");
                    return Err(Errno::EIO);
                }
            }
        }
    }

    /// A connection later than `after` in the present session, made if need be. `None`: the session is over.
    async fn link(&self, id: ServerId, after: u64) -> Result<Option<Usable>, Errno> {
        let server = Arc::clone(lock(&self.servers).entry(id).or_insert_with(|| {
            Arc::new(Server {
                link: tokio::sync::Mutex::new(None),
                serial: AtomicU64::new(0),
                instance: Mutex::new(None),
            })
        }));
        let mut slot = server.link.lock().await;
        let session = self.session();
        match &*slot {
            Some(made) if made.session != session => made.link.close(),
            Some(Connected { serial, link, .. }) if *serial > after => {
                return Ok(Some((*serial, session, Arc::clone(link))));
            }
            _ => {}
        }
        *slot = None;
        let mut pause = BACKOFF.0;
        let mut told = None;
        loop {
            // The map may have moved the server meanwhile.
            let described = self.map().servers.iter().find(|s| s.id == id).cloned();
            let described = described.ok_or(Errno::EIO)?;
            let hello = lock(&self.hello).clone();
            let session = hello.session;
            if self.is_fenced(session) {
                return Ok(None);
            }
            match self.dialer.data(described, hello).await {
                // The session has been replaced meanwhile.
                Ok((_, link)) if session != self.session() => {
                    link.close();
                    continue;
                }
                Ok((reply, link)) => {
                    let serial = server.serial.fetch_add(1, Ordering::Relaxed) + 1;
                    *slot = Some(Connected { serial, session, link: Arc::clone(&link) });
                    drop(slot);
                    if serial > 1 {
                        info!(server = %id, "connected to the data server again");
                    }
                    self.seen(id, reply.instance);
                    return Ok(Some((serial, session, link)));
                }
                Err(DialError::SessionOver(_)) => {
                    drop(slot);
                    self.note_fenced(id, session);
                    return Ok(None);
                }
                Err(e) => {
                    if told.as_ref() != Some(&e) {
                        warn!(server = %id, error = %e, "no connection to the data server; trying again");
                        told = Some(e);
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(BACKOFF.1);
        }
    }

    /// Notes in which life a server was seen; a new one is told to those who keep what the old
    /// one had not flushed. Only the first exchange of a connection counts: the answer to a call
    /// may be read long after the server that gave it is gone.
    fn seen(&self, id: ServerId, instance: InstanceId) {
        let Some(server) = lock(&self.servers).get(&id).cloned() else { return };
        let before = lock(&server.instance).replace(instance);
        if before.is_some_and(|b| b != instance)
            && let Some(events) = lock(&self.events).as_ref().and_then(Weak::upgrade)
        {
            warn!(server = %id, "the data server was restarted");
            events.data_restarted(id, instance);
        }
    }
}

/// What several servers have told of their chunks, as far as all of them have.
fn merge(mut ranges: Vec<(u64, u64)>, upto: u64) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    let mut out: Vec<(u64, u64)> = Vec::new();
    for (start, end) in ranges {
        let end = end.min(upto);
        match out.last_mut() {
            _ if start >= end => {}
            Some((_, last)) if *last >= start => *last = end.max(*last),
            _ => out.push((start, end)),
        }
    }
    out
}

impl std::fmt::Debug for Bulk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bulk").field("servers", &self.map().servers).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::merge;

    #[test]
    fn answers_of_several_servers_become_one_as_far_as_all_of_them_go() {
        let (first, second) = ([(0, 4), (8, 12), (16, 20)], [(4, 8), (14, 15), (30, 31)]);
        let both = || first.into_iter().chain(second).collect::<Vec<_>>();
        assert_eq!(merge(both(), 100), [(0, 12), (14, 15), (16, 20), (30, 31)]);
        assert_eq!(merge(both(), 10), [(0, 10)]);
        assert_eq!(merge(Vec::new(), 10), []);
    }
}
