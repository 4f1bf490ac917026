//! Answering the calls of one client.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use netfs_common::codec;
use netfs_common::errno::Errno;
use netfs_common::id::{ChunkId, Epoch, GroupId, InstanceId, SessionId, Verifier, Version};
use netfs_common::net::{BulkHandler, BulkMessage, BulkReplyFuture, Payload};
use netfs_common::wire::cluster::{Deed, Install, MAX_OBJECTS, PeerOp};
use netfs_common::wire::data::{At, MAX_PAYLOAD, Op, Reply, Request, Usage};
use tokio::sync::{Notify, Semaphore};

use super::chunks::Chunks;
use super::fault;
use super::fences::Fences;
use super::metrics::{DataMetrics, OpLabel};
use super::noted::Held;
use super::replicas::{Replicas, What, Work};
use super::rights::Rights;
use super::turns::{AtWork, Client, Superseded, Turns};
use crate::data::chain::Refusal;
use crate::data::store::StoreError;
use crate::flusher::Flusher;

/// A write that has to wait for the bucket is held back so long before its client is told to come again.
const LATE_PAUSE: Duration = Duration::from_millis(200);

/// Reads up to this size are done on the server's own thread if they need not wait for the disk: they take less time
/// then than handing them to another one (some 10 µs) costs. Changes never are: they may have to wait for a
/// checkpoint, for room, or for a flush.
const INLINE_BYTES: u64 = 32 << 10;

/// What all clients of a data server share.
#[derive(Debug)]
pub(super) struct Handler {
    pub(super) chunks: Arc<Chunks>,
    pub(super) replicas: Arc<Replicas>,
    pub(super) turns: Turns,
    pub(super) fences: Arc<Fences>,
    pub(super) flusher: Flusher,
    pub(super) instance: InstanceId,
    /// Room for calls about ranges.
    pub(super) spans: Arc<Semaphore>,
    pub(super) metrics: DataMetrics,
}

/// One client.
#[derive(Debug)]
pub(super) struct Peer {
    handler: Arc<Handler>,
    client: Arc<Client>,
    rights: Rights,
    nonsense: Notify,
}

impl Peer {
    pub(super) fn new(handler: Arc<Handler>, client: Arc<Client>, rights: Rights) -> Peer {
        Peer { handler, client, rights, nonsense: Notify::new() }
    }

    /// Waits until it sends what nobody understands; its connection is of no use then.
    pub(super) async fn nonsense(&self) {
        self.nonsense.notified().await;
    }
}

impl BulkHandler for Peer {
    fn call(&self, message: BulkMessage) -> BulkReplyFuture {
        match codec::decode::<Request>(&message.header) {
            Ok(request) => {
                if let Err(errno) = self.rights.check(&request.op) {
                    let refused = message_of(Reply::Failed(errno), Bytes::new());
                    return Box::pin(std::future::ready(refused));
                }
                let (handler, client) = (self.handler.clone(), self.client.clone());
                Box::pin(answer(handler, client, request, message.payload))
            }
            Err(error) => {
                self.handler.metrics.malformed.inc();
                tracing::warn!(%error, "malformed data call; connection closed");
                self.nonsense.notify_one();
                Box::pin(std::future::ready(message_of(Reply::Failed(Errno::EPROTO), Bytes::new())))
            }
        }
    }
}

async fn answer(
    handler: Arc<Handler>,
    client: Arc<Client>,
    request: Request,
    payload: Payload,
) -> BulkMessage {
    let label = OpLabel { op: name(&request.op) };
    handler.metrics.calls.get_or_create(&label).inc();
    let (reply, payload) = match handler.run(&client, request, payload).await {
        Ok(done) => done,
        Err(reply) => {
            handler.metrics.failures.get_or_create(&label).inc();
            (reply, Bytes::new())
        }
    };
    message_of(reply, payload)
}

fn message_of(reply: Reply, payload: Bytes) -> BulkMessage {
    let header = codec::encode(&reply).unwrap_or_else(|error| {
        tracing::error!(%error, "a data reply cannot be encoded");
        Vec::new()
    });
    BulkMessage::new(header.into(), payload)
}

fn name(op: &Op) -> &'static str {
    match op {
        Op::Write { .. } => "write",
        Op::Read { .. } => "read",
        Op::Punch { .. } => "punch",
        Op::Delete { .. } => "delete",
        Op::Copy { .. } => "copy",
        Op::Extents { .. } => "extents",
        Op::Flush { .. } | Op::FlushHere => "flush",
        Op::Usage => "usage",
        Op::PunchSpan { .. } => "punch_span",
        Op::Fence { .. } => "fence",
        Op::Peer(_) => "peer",
    }
}

/// A piece of a chunk that a learner gets.
enum Piece {
    Bytes(Payload),
    /// It is in the object of this version.
    Away {
        len: u64,
        object: Version,
    },
    /// It is lost.
    Bad {
        len: u64,
    },
}

/// What a call is answered with.
pub(super) type Answer = Result<(Reply, Bytes), Reply>;

impl Handler {
    /// The answer with its payload; a refusal or failure as an error.
    async fn run(
        self: &Arc<Self>,
        client: &Arc<Client>,
        request: Request,
        payload: Payload,
    ) -> Answer {
        if client.is_fenced() {
            return Err(Reply::SessionOver);
        }
        let given = payload.len() as u64;
        let fits = match &request.op {
            Op::Write { .. } => (1..=MAX_PAYLOAD).contains(&given),
            Op::Read { len, .. } => given == 0 && *len <= MAX_PAYLOAD,
            Op::Peer(_) => given <= MAX_PAYLOAD,
            _ => given == 0,
        };
        if !fits {
            return Err(Reply::Failed(Errno::EINVAL));
        }
        match (request.op, request.at) {
            (Op::Write { chunk, offset }, At::Group { group, epoch }) => {
                self.fits(offset, given)?;
                let data = Arc::new(payload.into_chunks());
                let what = What::Write { offset, data };
                let done = self.change(client, (group, epoch), chunk, what, given).await?;
                self.metrics.bytes_written.inc_by(given);
                Ok((done, Bytes::new()))
            }
            (Op::Punch { chunk, offset, len }, At::Group { group, epoch }) => {
                self.fits(offset, if len == u64::MAX { 0 } else { len })?;
                let what = What::Punch { offset, len };
                Ok((self.change(client, (group, epoch), chunk, what, 0).await?, Bytes::new()))
            }
            (Op::Read { chunk, offset, len }, At::Group { group, epoch }) => {
                self.fits(offset, len)?;
                self.belongs(chunk, group)?;
                let data = self.read(client, (group, epoch), chunk, offset, len).await?;
                self.metrics.bytes_read.inc_by(len);
                Ok((Reply::Read, data))
            }
            (
                Op::Copy { source, source_offset, target, target_offset, len },
                At::Group { group, epoch },
            ) => {
                self.fits(source_offset, len)?;
                self.fits(target_offset, len)?;
                let (from, to) = ((source, source_offset), (target, target_offset));
                let done = self.copy(client, (group, epoch), from, to, len).await?;
                self.metrics.bytes_written.inc_by(len);
                Ok((done, Bytes::new()))
            }
            (Op::Extents { span, limit }, At::Map { version }) => {
                self.extents(client, span, limit, version).await
            }
            (Op::PunchSpan { span }, At::Map { version }) => {
                let one = self.spans.clone().acquire_owned().await.map_err(|_| Reply::Busy)?;
                let work = self.begin(client).await?;
                let this = self.clone();
                let task = async move {
                    let _one = one;
                    this.punch_span(span, version).await
                };
                self.to_its_end(work, task).await
            }
            (Op::Flush { groups }, At::Server) => {
                let verifiers = self.replicas.flush(groups).await?;
                Ok((Reply::Flushed { verifiers }, Bytes::new()))
            }
            (Op::FlushHere, At::Server) => {
                self.flusher.flush().await.map_err(Reply::Failed)?;
                Ok((Reply::FlushedHere { instance: self.instance }, Bytes::new()))
            }
            (Op::Delete { first }, At::Server) => {
                let work = self.begin(client).await?;
                let this = self.clone();
                self.to_its_end(work, async move { this.delete(first).await }).await
            }
            (Op::Fence { session }, At::Server) => {
                self.fence(session).await.map_err(Reply::Failed)?;
                Ok((Reply::Fenced, Bytes::new()))
            }
            (Op::Usage, At::Server) => self.usage(client).await,
            (Op::Peer(op), at) => self.peer(client, at, op, payload).await,
            // The call and what it relies on do not go together.
            _ => Err(Reply::Failed(Errno::EINVAL)),
        }
    }

    /// What servers do among themselves.
    async fn peer(
        self: &Arc<Self>,
        client: &Arc<Client>,
        at: At,
        op: PeerOp,
        payload: Payload,
    ) -> Answer {
        let replicas = &self.replicas;
        let at = match at {
            At::Replica { group, epoch, instance } if instance == self.instance => {
                At::Group { group, epoch }
            }
            // Addresses may have been exchanged. Another replica of the group would take it for what is meant for itself.
            At::Replica { .. } => return Err(Reply::Busy),
            // Between replicas each says whom it means.
            At::Group { .. } => return Err(Reply::Failed(Errno::EINVAL)),
            at => at,
        };
        let done = match (op, at) {
            (PeerOp::Beat(beat), At::Server) => replicas.beat(beat, payload).await?,
            (PeerOp::Forward(forward), At::Group { group, epoch }) => {
                let len = payload.len() as u64;
                let len = match forward.deed {
                    Deed::Write { .. } if len == 0 => return Err(Reply::Failed(Errno::EINVAL)),
                    Deed::Write { .. } => len,
                    _ if len > 0 => return Err(Reply::Failed(Errno::EINVAL)),
                    Deed::Punch { len: u64::MAX, .. } => 0,
                    Deed::Punch { len, .. } => len,
                };
                let (Deed::Write { offset } | Deed::Punch { offset, .. }) = forward.deed;
                self.fits(offset, len)?;
                self.metrics.bytes_forwarded.inc_by(payload.len() as u64);
                let take = |g: &mut _, call| Replicas::take(g, call, epoch, forward, payload);
                replicas.call(group, take).await.map_err(refused)?;
                self.stored_reply(group)
            }
            (PeerOp::Install(install), At::Group { group, epoch }) => {
                self.fits(install.offset, payload.len() as u64)?;
                self.belongs(install.chunk, group)?;
                let work = self.begin(client).await?;
                let this = self.clone();
                let piece = Piece::Bytes(payload);
                let task = async move { this.install(group, epoch, install, piece).await };
                return self.to_its_end(work, task).await;
            }
            (PeerOp::InstallAway { install, len, object }, At::Group { group, epoch }) => {
                self.fits(install.offset, len)?;
                self.belongs(install.chunk, group)?;
                if !payload.is_empty() || len == 0 || object == Version::NONE {
                    return Err(Reply::Failed(Errno::EINVAL));
                }
                let work = self.begin(client).await?;
                let this = self.clone();
                let piece = Piece::Away { len, object };
                let task = async move { this.install(group, epoch, install, piece).await };
                return self.to_its_end(work, task).await;
            }
            (PeerOp::InstallBad { install, len }, At::Group { group, epoch }) => {
                self.fits(install.offset, len)?;
                self.belongs(install.chunk, group)?;
                if !payload.is_empty() || len == 0 {
                    return Err(Reply::Failed(Errno::EINVAL));
                }
                let work = self.begin(client).await?;
                let this = self.clone();
                let piece = Piece::Bad { len };
                let task = async move { this.install(group, epoch, install, piece).await };
                return self.to_its_end(work, task).await;
            }
            (PeerOp::Needed { objects }, At::Group { group, epoch }) => {
                if objects.len() > MAX_OBJECTS {
                    return Err(Reply::Failed(Errno::EINVAL));
                }
                if replicas.epoch(group) != Some(epoch) {
                    return Err(Reply::Busy);
                }
                let chunks = replicas.needed(&objects).await?;
                if replicas.epoch(group) != Some(epoch) {
                    return Err(Reply::Busy);
                }
                Reply::Listed { chunks, next: None }
            }
            (PeerOp::List { from }, At::Group { group, epoch }) => {
                if replicas.epoch(group) != Some(epoch) {
                    return Err(Reply::Busy);
                }
                // A copy may be being removed of which nobody knew yet that it is wanted.
                drop(replicas.sweeping.lock().await);
                // A removal may be at work that was done without this server, and chunks may have been written since.
                replicas.removals.over().await;
                // What it has forgotten, or another tail has sent, may be being stored.
                let _alone = replicas.no_install(group).await;
                replicas.call(group, |g, call| g.settle(call)).await.map_err(refused)?;
                let (chunks, next) = replicas.list(group, from).await.ok_or(Reply::Busy)?;
                if replicas.epoch(group) != Some(epoch) {
                    return Err(Reply::Busy);
                }
                Reply::Listed { chunks, next }
            }
            (PeerOp::Fetch { chunk, offset, len }, At::Group { group, epoch }) => {
                self.fits(offset, len)?;
                self.belongs(chunk, group)?;
                if len > MAX_PAYLOAD {
                    return Err(Reply::Failed(Errno::EINVAL));
                }
                loop {
                    let shown = replicas.show(group, epoch, chunk).await.map_err(refused)?;
                    let chunks = self.chunks.clone();
                    let read = move || chunks.read_version(chunk, offset, len);
                    let found = self.try_stored(client, read).await?;
                    // Nothing changes it as long as it is shown.
                    let version = self.chunks.version(chunk);
                    replicas.still(group, epoch).map_err(refused)?;
                    // No change of the chunk waits for the bucket.
                    drop(shown);
                    match found {
                        Ok(Some((version, data))) => {
                            return Ok((Reply::Fetched(version), data.into()));
                        }
                        Ok(None) => return Err(Reply::Busy),
                        // Whoever asks wants to know whether it is lost.
                        Err(error) if error.is_rotten() => {
                            self.failed(&error);
                            return Ok((Reply::Fetched(version), Bytes::new()));
                        }
                        Err(error) => self.fetch_or_fail(&error).await?,
                    }
                }
            }
            (PeerOp::Audit(op), At::Server) => {
                let work = self.begin(client).await?;
                let replicas = replicas.clone();
                let task = async move { Ok((replicas.audit(op).await?, Bytes::new())) };
                return self.to_its_end(work, task).await;
            }
            (PeerOp::Followed, At::Server) => {
                let Some((version, map)) = replicas.loss.followed_map() else {
                    return Err(Reply::Failed(Errno::ENODATA));
                };
                return Ok((Reply::Followed(version), map));
            }
            (PeerOp::FlushGroups(groups), _) => {
                replicas.flush_here(&groups).await?;
                Reply::FlushedHere { instance: self.instance }
            }
            _ => return Err(Reply::Failed(Errno::EINVAL)),
        };
        Ok((done, Bytes::new()))
    }

    fn fits(&self, offset: u64, len: u64) -> Result<(), Reply> {
        match self.chunks.fits(offset, len) {
            true => Ok(()),
            false => Err(Reply::Failed(Errno::EINVAL)),
        }
    }

    /// A chunk is where its name says: anything else would be found by nobody.
    fn belongs(&self, chunk: ChunkId, group: GroupId) -> Result<(), Reply> {
        let view = self.replicas.view();
        match view.group_of(chunk) {
            Some(own) if own == group => Ok(()),
            Some(_) => Err(Reply::Failed(Errno::EINVAL)),
            None => Err(Reply::StaleEpoch(view.map.version)),
        }
    }

    async fn begin(&self, client: &Client) -> Result<AtWork, Reply> {
        self.turns.begin(client).await.map_err(|Superseded| superseded(client))
    }

    /// Does something to its end, also when the caller goes meanwhile: what has been begun cannot be taken back.
    async fn to_its_end(
        &self,
        at_work: AtWork,
        work: impl Future<Output = Answer> + Send + 'static,
    ) -> Answer {
        let task = tokio::spawn(async move {
            let _at_work = at_work;
            work.await
        });
        match task.await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::error!(%error, "a data call has panicked");
                Err(Reply::Failed(Errno::EIO))
            }
        }
    }

    /// One change of a client.
    async fn change(
        self: &Arc<Self>,
        client: &Client,
        (group, epoch): (GroupId, Epoch),
        chunk: ChunkId,
        what: What,
        bytes: u64,
    ) -> Result<Reply, Reply> {
        self.belongs(chunk, group)?;
        // From here on it goes to its end, also when the client withdraws it.
        let held = self.held(group, bytes).await?;
        let at_work = self.begin(client).await?;
        let this = self.clone();
        let task = async move {
            let work = Work::own(what, held);
            let (allocated, verifier) = this.propose((group, epoch), chunk, work).await?;
            Ok((Reply::Written { verifier, allocated }, Bytes::new()))
        };
        self.to_its_end(at_work, task).await.map(|(reply, _)| reply)
    }

    /// Waits for room for a change that is to be ordered here.
    pub(super) async fn held(&self, group: GroupId, bytes: u64) -> Result<Arc<Held>, Reply> {
        self.replicas.noted.enter(group, bytes).await.ok_or(Reply::Busy)
    }

    pub(super) async fn propose(
        &self,
        (group, epoch): (GroupId, Epoch),
        chunk: ChunkId,
        work: Work,
    ) -> Result<(i64, Verifier), Reply> {
        let takes_room = matches!(work.what, What::Write { .. });
        if takes_room && self.is_out_of_room((group, epoch), chunk).await? {
            return Err(Reply::Failed(Errno::ENOSPC));
        }
        if let Some(tier) = &self.replicas.tier
            && matches!(work.what, What::Write { .. })
            && self.replicas.is_primary(group)
            && tier.is_late()
        {
            // The client comes again, until the bucket has caught up.
            tokio::time::sleep(LATE_PAUSE).await;
            return Err(Reply::Busy);
        }
        self.replicas.propose(group, epoch, chunk, work).await.map_err(refused)
    }

    /// Whether data is refused: one of the replicas is nearly full. A replica that is alone finds out when it is.
    async fn is_out_of_room(
        &self,
        (group, epoch): (GroupId, Epoch),
        chunk: ChunkId,
    ) -> Result<bool, Reply> {
        let view = self.replicas.view();
        if view.map.chain(group).is_none_or(|chain| chain.replicas.len() < 2) {
            return Ok(false);
        }
        if self.chunks.is_full() {
            return Ok(true);
        }
        let ask = async {
            // It takes no room.
            let nothing = Work::passed_on(What::Punch { offset: 0, len: 0 });
            let asked = self.replicas.propose(group, epoch, chunk, nothing).await;
            asked.map(drop).map_err(refused)
        };
        self.replicas.room.is_out(group, ask).await
    }

    /// The answer to a change that was passed on.
    fn stored_reply(&self, group: GroupId) -> Reply {
        let view = self.replicas.view();
        let last = view.map.chain(group).and_then(|chain| chain.replicas.last());
        // Nobody who counts comes after the last one, whatever was heard when somebody did.
        let passes_on = last.is_none_or(|last| last.instance != self.instance);
        let full = self.chunks.is_full() || (passes_on && self.replicas.room.is_full(group));
        Reply::Stored { full }
    }

    async fn read(
        &self,
        client: &Client,
        (group, epoch): (GroupId, Epoch),
        chunk: ChunkId,
        offset: u64,
        len: u64,
    ) -> Result<Bytes, Reply> {
        // In this order: what has this version when nothing is noted of the chunk is stored by all.
        let version = self.chunks.version(chunk);
        if self.replicas.shows(group, epoch, chunk).map_err(refused)? {
            let data = self.read_stored(client, chunk, offset, len).await?;
            self.replicas.still(group, epoch).map_err(refused)?;
            if self.chunks.version(chunk) == version {
                return Ok(data);
            }
        }
        // It is being changed: it is kept as it is for a moment.
        let shown = self.replicas.show(group, epoch, chunk).await.map_err(refused)?;
        let data = self.read_stored(client, chunk, offset, len).await?;
        self.replicas.still(group, epoch).map_err(refused)?;
        drop(shown);
        Ok(data)
    }

    async fn read_stored(
        &self,
        client: &Client,
        chunk: ChunkId,
        offset: u64,
        len: u64,
    ) -> Result<Bytes, Reply> {
        loop {
            let chunks = self.chunks.clone();
            let cached = match len <= INLINE_BYTES {
                true => chunks.read_now(chunk, offset, len),
                false => Ok(None),
            };
            let data = match cached {
                Ok(Some(data)) => Ok(data),
                Ok(None) => {
                    self.try_stored(client, move || chunks.read(chunk, offset, len)).await?
                }
                Err(error) => Err(error),
            };
            match data {
                Ok(data) => {
                    if let Some(tier) = &self.replicas.tier {
                        tier.used(chunk);
                    }
                    return Ok(data.into());
                }
                Err(error) => self.fetch_or_fail(&error).await?,
            }
        }
    }

    /// Copies piece by piece, holes as holes.
    async fn copy(
        self: &Arc<Self>,
        client: &Arc<Client>,
        (group, epoch): (GroupId, Epoch),
        (source, source_offset): (ChunkId, u64),
        (target, target_offset): (ChunkId, u64),
        len: u64,
    ) -> Result<Reply, Reply> {
        self.belongs(target, group)?;
        let view = self.replicas.view();
        let Some((from_group, chain)) = view.map.chain_of(source) else {
            return Err(Reply::StaleEpoch(view.map.version));
        };
        if !chain.replicas.iter().any(|replica| replica.instance == self.instance) {
            return Err(Reply::Apart);
        }
        let from = (from_group, chain.epoch);
        let shown = self.replicas.show(from.0, from.1, source).await.map_err(refused)?;
        let (_, ranges) = self.chunks.outline(source);
        self.replicas.still(from.0, from.1).map_err(refused)?;
        drop(shown);
        // Room for one piece, and there is never more than one.
        let held = self.held(group, len.min(MAX_PAYLOAD)).await?;
        let at_work = self.begin(client).await?;
        let (this, client) = (self.clone(), client.clone());
        let task = async move {
            let (mut at, end) = (source_offset, source_offset + len);
            let (mut sum, mut verifier) = (0, None);
            let mut parts = Vec::new();
            for (start, range) in ranges {
                let (start, stop) = (start.max(at), (start + range).min(end));
                if start >= stop {
                    continue;
                }
                if start > at {
                    parts.push((at, start - at, false));
                }
                at = start;
                while at < stop {
                    let step = (stop - at).min(MAX_PAYLOAD);
                    parts.push((at, step, true));
                    at += step;
                }
            }
            if at < end {
                parts.push((at, end - at, false));
            }
            for (at, step, data) in parts {
                let offset = target_offset + (at - source_offset);
                let what = match data {
                    true => {
                        let bytes = this.read(&client, from, source, at, step).await?;
                        What::Write { offset, data: Arc::new(vec![bytes]) }
                    }
                    false => What::Punch { offset, len: step },
                };
                let work = Work::own(what, held.clone());
                let (grown, now) = this.propose((group, epoch), target, work).await?;
                if verifier.is_some_and(|verifier| verifier != now) {
                    return Err(Reply::Busy);
                }
                (sum, verifier) = (sum + grown, Some(now));
            }
            let verifier = verifier.unwrap_or_else(|| this.replicas.verifier(group));
            Ok((Reply::Written { verifier, allocated: sum }, Bytes::new()))
        };
        self.to_its_end(at_work, task).await.map(|(reply, _)| reply)
    }

    /// A piece of a chunk takes its place here, in a learner.
    async fn install(
        self: &Arc<Self>,
        group: GroupId,
        epoch: Epoch,
        install: Install,
        piece: Piece,
    ) -> Answer {
        let chunk = install.chunk;
        // In the order in which they come, each to its end: the first piece of a new attempt takes away what an old one has left.
        let _alone = self.replicas.no_install(group).await;
        let wait = self.replicas.call(group, |g, call| g.install(call, epoch, chunk));
        wait.await.map_err(refused)?;
        let is_new = install.first && self.chunks.version(chunk) == Version::NONE;
        let takes_room = matches!(&piece, Piece::Bytes(data) if !data.is_empty());
        if is_new && takes_room && self.chunks.is_crammed() {
            return Ok((Reply::Stored { full: true }, Bytes::new()));
        }
        let chunks = self.chunks.clone();
        let lost = match &piece {
            Piece::Bad { len } => Some(*len),
            Piece::Bytes(_) | Piece::Away { .. } => None,
        };
        let work = move || {
            if install.first {
                chunks.erase(chunk)?;
            }
            match piece {
                Piece::Bytes(data) if data.is_empty() => {}
                Piece::Bytes(data) => {
                    chunks.write(chunk, install.version, install.offset, &data.into_chunks())?;
                }
                Piece::Away { len, object } => {
                    let range = (install.offset, len);
                    chunks.write_away(chunk, install.version, range, object)?;
                }
                Piece::Bad { len } => {
                    chunks.write_bad(chunk, install.version, install.offset, len)?;
                }
            }
            Ok(())
        };
        let done = self.replicas.blocking(work).await.ok_or(Reply::Failed(Errno::EIO))?;
        done.map_err(|error| self.failed(&error))?;
        if let Some(len) = lost {
            self.replicas.damage.note(chunk, install.offset, len);
        }
        Ok((Reply::Stored { full: false }, Bytes::new()))
    }

    async fn usage(&self, client: &Client) -> Answer {
        let chunks = self.chunks.clone();
        let usage = self.stored(client, move || chunks.usage()).await?;
        // As good as free: a write that finds no room reclaims it first.
        let free = usage.free_bytes.saturating_add(usage.reclaimable_bytes);
        let usage = Usage {
            capacity: usage.capacity_bytes,
            free: free.min(usage.capacity_bytes),
            live: usage.live_bytes,
            chunks: usage.chunks,
        };
        Ok((Reply::Usage(usage), Bytes::new()))
    }

    /// Sees to it that nothing of a session happens any more, whatever becomes of this server.
    async fn fence(&self, session: SessionId) -> Result<(), Errno> {
        if session == SessionId(0) {
            return Err(Errno::EINVAL);
        }
        let fences = self.fences.clone();
        let stored = tokio::task::spawn_blocking(move || fences.add(session)).await;
        // It counts already, stored or not.
        self.turns.fence(session).await;
        // What it had changed at a head that has died may still be on its way here.
        self.replicas.settle().await;
        match stored {
            Ok(Ok(())) => {
                tracing::info!(%session, "session fenced");
                Ok(())
            }
            Ok(Err(error)) => {
                tracing::error!(%session, %error, "a fenced session cannot be noted");
                Err(Errno::from_io(&error))
            }
            Err(error) => {
                tracing::error!(%session, %error, "noting a fenced session has panicked");
                Err(Errno::EIO)
            }
        }
    }

    /// Runs a call of the store that is nobody's any more on a thread that may block.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Reply> {
        self.replicas.blocking(work).await.ok_or(Reply::Failed(Errno::EIO))
    }

    /// What is away comes back; any other failure is one.
    async fn fetch_or_fail(&self, error: &StoreError) -> Result<(), Reply> {
        match self.replicas.fetch_if_away(error).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.failed(error)),
            Err(errno) => Err(fault::reply(errno)),
        }
    }

    /// Runs a call of the store on a thread that may block.
    pub(super) async fn stored<T: Send + 'static>(
        &self,
        client: &Client,
        work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Reply> {
        self.try_stored(client, work).await?.map_err(|error| self.failed(&error))
    }

    async fn try_stored<T: Send + 'static>(
        &self,
        client: &Client,
        work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<Result<T, StoreError>, Reply> {
        let metrics = self.metrics.clone();
        match self.turns.take(client, move || metrics.during(work)).await {
            Ok(Some(result)) => Ok(result),
            Ok(None) => Err(Reply::Failed(Errno::EIO)),
            Err(Superseded) => Err(superseded(client)),
        }
    }

    pub(super) fn failed(&self, error: &StoreError) -> Reply {
        self.replicas.damage.note_error(error);
        self.metrics.store_failed(error);
        fault::reply(fault::errno(error))
    }
}

fn superseded(client: &Client) -> Reply {
    match client.is_fenced() {
        true => Reply::SessionOver,
        // Nobody reads it: the connection is gone.
        false => Reply::Failed(Errno::ESHUTDOWN),
    }
}

fn refused(refusal: Refusal) -> Reply {
    match refusal {
        Refusal::Stale(epoch) => Reply::StaleEpoch(epoch),
        Refusal::Busy => Reply::Busy,
        Refusal::Failed(errno) => fault::reply(errno),
    }
}
