//! Answering the calls of one client.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use netfs_common::codec;
use netfs_common::errno::Errno;
use netfs_common::id::{ChunkId, Epoch, GroupId, InstanceId, SessionId, Verifier};
use netfs_common::net::{BulkHandler, BulkMessage, BulkReplyFuture, Payload};
use netfs_common::wire::cluster::{Deed, Install, PeerOp};
use netfs_common::wire::data::{At, MAX_EXTENTS, MAX_PAYLOAD, Op, Reply, Request, Span, Usage};
use tokio::sync::Notify;

use super::chunks::Chunks;
use super::fault;
use super::fences::Fences;
use super::metrics::{DataMetrics, OpLabel};
use super::replicas::{Replicas, Work, lock};
use super::rights::Rights;
use super::turns::{AtWork, Client, Superseded, Turns};
use crate::data::chain::Refusal;
use crate::data::store::StoreError;
use crate::flusher::Flusher;

/// A learner has this long to remove what it got from here.
const HEIR_TIMEOUT: Duration = Duration::from_secs(10);

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

/// What a call is answered with.
type Answer = Result<(Reply, Bytes), Reply>;

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
                let work = Work::Write { offset, data };
                let done = self.change(client, (group, epoch), chunk, work).await?;
                self.metrics.bytes_written.inc_by(given);
                Ok((done, Bytes::new()))
            }
            (Op::Punch { chunk, offset, len }, At::Group { group, epoch }) => {
                self.fits(offset, if len == u64::MAX { 0 } else { len })?;
                let work = Work::Punch { offset, len };
                Ok((self.change(client, (group, epoch), chunk, work).await?, Bytes::new()))
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
                let work = self.begin(client).await?;
                let this = self.clone();
                self.to_its_end(work, async move { this.punch_span(span, version).await }).await
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
                let task = async move { this.install(group, epoch, install, payload).await };
                return self.to_its_end(work, task).await;
            }
            (PeerOp::List { from }, At::Group { group, epoch }) => {
                if replicas.epoch(group) != Some(epoch) {
                    return Err(Reply::Busy);
                }
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
                replicas.show(group, epoch, chunk).await.map_err(refused)?;
                let chunks = self.chunks.clone();
                let read = move || chunks.read_version(chunk, offset, len);
                let (version, data) = self.stored(client, read).await?.ok_or(Reply::Busy)?;
                replicas.still(group, epoch).map_err(refused)?;
                return Ok((Reply::Fetched(version), data.into()));
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
        work: Work,
    ) -> Result<Reply, Reply> {
        self.belongs(chunk, group)?;
        let at_work = self.begin(client).await?;
        let this = self.clone();
        let task = async move {
            let (allocated, verifier) = this.propose((group, epoch), chunk, work).await?;
            Ok((Reply::Written { verifier, allocated }, Bytes::new()))
        };
        self.to_its_end(at_work, task).await.map(|(reply, _)| reply)
    }

    async fn propose(
        &self,
        (group, epoch): (GroupId, Epoch),
        chunk: ChunkId,
        work: Work,
    ) -> Result<(i64, Verifier), Reply> {
        let takes_room = matches!(work, Work::Write { .. });
        if takes_room && self.is_out_of_room((group, epoch), chunk).await {
            return Err(Reply::Failed(Errno::ENOSPC));
        }
        self.replicas.propose(group, epoch, chunk, work).await.map_err(refused)
    }

    /// Whether data is refused: one of the replicas is nearly full. A replica that is alone finds out when it is.
    async fn is_out_of_room(&self, (group, epoch): (GroupId, Epoch), chunk: ChunkId) -> bool {
        let view = self.replicas.view();
        if view.map.chain(group).is_none_or(|chain| chain.members().count() < 2) {
            return false;
        }
        let room = &self.replicas.room;
        if self.chunks.is_full() {
            return true;
        }
        if room.asks(group) {
            // It takes no room.
            let nothing = Work::Punch { offset: 0, len: 0 };
            if let Err(why) = self.replicas.propose(group, epoch, chunk, nothing).await {
                tracing::debug!(%group, ?why, "how much room there is was not heard");
            }
        }
        room.is_out(group)
    }

    /// The answer to a change that was passed on.
    fn stored_reply(&self, group: GroupId) -> Reply {
        let view = self.replicas.view();
        let last = view.map.chain(group).and_then(|chain| chain.members().last());
        // Nobody comes after the last one, whatever was heard when somebody did.
        let passes_on = last.is_none_or(|last| last.instance != self.instance);
        let full = self.chunks.is_full() || (passes_on && self.replicas.room.is_out(group));
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
        loop {
            // In this order: what has this version when nothing is noted of the chunk is stored by all.
            let version = self.chunks.version(chunk);
            self.replicas.show(group, epoch, chunk).await.map_err(refused)?;
            let chunks = self.chunks.clone();
            let cached = match len <= INLINE_BYTES {
                true => chunks.read_now(chunk, offset, len).map_err(|e| self.failed(&e))?,
                false => None,
            };
            let data = match cached {
                Some(data) => data,
                None => self.stored(client, move || chunks.read(chunk, offset, len)).await?,
            };
            self.replicas.still(group, epoch).map_err(refused)?;
            if self.chunks.version(chunk) == version {
                return Ok(data.into());
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
        let before = self.chunks.version(source);
        self.replicas.show(from.0, from.1, source).await.map_err(refused)?;
        let (version, ranges) = self.chunks.outline(source);
        if version != before {
            return Err(Reply::Busy);
        }
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
                let work = match data {
                    true => {
                        let bytes = this.read(&client, from, source, at, step).await?;
                        Work::Write { offset, data: Arc::new(vec![bytes]) }
                    }
                    false => Work::Punch { offset, len: step },
                };
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

    /// Of the groups of which this server is the head in this version of the map.
    async fn headed(&self, version: Epoch) -> Result<HashSet<GroupId>, Reply> {
        let view = self.replicas.view();
        if view.map.version != version {
            return Err(match view.map.version > version {
                true => Reply::StaleEpoch(view.map.version),
                false => Reply::Busy,
            });
        }
        // Whoever asks goes by the server. Groups of which an earlier life of it is the head it must not leave out.
        let earlier = view
            .map
            .groups()
            .filter_map(|(_, chain)| chain.head())
            .any(|head| Some(head.server) == view.me && head.instance != self.instance);
        if earlier || view.me.is_none() {
            return Err(Reply::Busy);
        }
        let mut headed = HashSet::new();
        for (id, slot) in self.replicas.slots() {
            let slot = lock(&slot);
            if slot.group.is_head() {
                if !slot.group.is_sole() && !self.replicas.lease.runs() {
                    return Err(Reply::Busy);
                }
                headed.insert(id);
            }
        }
        Ok(headed)
    }

    async fn extents(&self, client: &Client, span: Span, limit: u32, version: Epoch) -> Answer {
        let headed = self.headed(version).await?;
        // Nothing is told that the next head might not have.
        self.replicas.settle().await;
        let limit = limit.clamp(1, MAX_EXTENTS) as usize;
        let (chunks, view) = (self.chunks.clone(), self.replicas.view());
        let mine = move |chunk| view.group_of(chunk).is_some_and(|group| headed.contains(&group));
        let (extents, upto) =
            self.stored(client, move || chunks.extents(span, limit, mine)).await?;
        self.headed(version).await?;
        Ok((Reply::Extents { extents, upto }, Bytes::new()))
    }

    async fn punch_span(self: &Arc<Self>, span: Span, version: Epoch) -> Answer {
        let headed = self.headed(version).await?;
        let view = self.replicas.view();
        let (page, more) = self.chunks.of_span(span, None).map_err(|e| self.failed(&e))?;
        let mut allocated = 0;
        let mut groups = BTreeMap::new();
        for (chunk, _) in page {
            let Some((group, chain)) = view.map.chain_of(chunk) else { continue };
            if !headed.contains(&group) {
                continue;
            }
            let start = chunk.index << span.chunk_bits;
            let (from, to) = (span.from.saturating_sub(start), span.to - start);
            let len = to.min(1 << span.chunk_bits).saturating_sub(from);
            let work = Work::Punch { offset: from, len };
            let (grown, _) = self.propose((group, chain.epoch), chunk, work).await?;
            allocated += grown;
            groups.insert(group, chain.epoch);
        }
        if !groups.is_empty() {
            self.replicas.flush(groups.into_iter().collect()).await?;
        }
        let upto = more.map_or(span.to, |chunk| chunk.index << span.chunk_bits);
        Ok((Reply::Punched { allocated, upto }, Bytes::new()))
    }

    /// Removes chunks here, apart from the chains. Whoever has got them from here meanwhile removes them too.
    async fn delete(self: &Arc<Self>, first: ChunkId) -> Answer {
        let version = self.replicas.view().map.version;
        let mut gone = Vec::new();
        if self.replicas.teaches() {
            let mut from = Some(first);
            let whole = Span {
                ino: first.ino,
                generation: first.generation,
                chunk_bits: 12,
                from: 0,
                to: u64::MAX,
            };
            while let Some(next) = from {
                let (page, more) =
                    self.chunks.of_span(whole, Some(next)).map_err(|e| self.failed(&e))?;
                gone.extend(page.into_iter().map(|(chunk, _)| chunk));
                from = more;
            }
        }
        let chunks = self.chunks.clone();
        let grown = self.replicas.blocking(move || chunks.delete(first)).await;
        let grown = grown.ok_or(Reply::Failed(Errno::EIO))?.map_err(|e| self.failed(&e))?;
        let freed = grown.min(0).unsigned_abs();
        for heir in self.replicas.removed(&gone) {
            let view = self.replicas.view();
            let request = Request { at: At::Server, op: Op::Delete { first } };
            let deadline = Some(std::time::Instant::now() + HEIR_TIMEOUT);
            let peers = &self.replicas.peers;
            match peers.call(&view.map, heir, &request, Bytes::new(), deadline).await {
                Ok((Reply::Deleted { .. }, _)) => {}
                Ok(_) => return Err(Reply::Busy),
                Err(error) => {
                    tracing::debug!(%error, "a learner did not remove chunks");
                    return Err(Reply::Busy);
                }
            }
        }
        if self.replicas.view().map.version != version {
            // Others may have begun to learn from here meanwhile.
            return Err(Reply::Busy);
        }
        Ok((Reply::Deleted { instance: self.instance, freed }, Bytes::new()))
    }

    /// A piece of a chunk takes its place here, in a learner.
    async fn install(
        self: &Arc<Self>,
        group: GroupId,
        epoch: Epoch,
        install: Install,
        payload: Payload,
    ) -> Answer {
        let chunk = install.chunk;
        // In the order in which they come, each to its end: the first piece of a new attempt takes away what an old one has left.
        let _alone = self.replicas.no_install(group).await;
        let wait = self.replicas.call(group, |g, call| g.install(call, epoch, chunk));
        wait.await.map_err(refused)?;
        let chunks = self.chunks.clone();
        let data = payload.into_chunks();
        let work = move || {
            if install.first {
                chunks.erase(chunk)?;
            }
            if !data.is_empty() {
                chunks.write(chunk, install.version, install.offset, &data)?;
            }
            Ok(())
        };
        let done = self.replicas.blocking(work).await.ok_or(Reply::Failed(Errno::EIO))?;
        done.map_err(|error| self.failed(&error))?;
        Ok((Reply::Stored { full: self.chunks.is_full() }, Bytes::new()))
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

    /// Runs a call of the store on a thread that may block.
    async fn stored<T: Send + 'static>(
        &self,
        client: &Client,
        work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Reply> {
        match self.turns.take(client, work).await {
            Ok(Some(result)) => result.map_err(|error| self.failed(&error)),
            Ok(None) => Err(Reply::Failed(Errno::EIO)),
            Err(Superseded) => Err(superseded(client)),
        }
    }

    fn failed(&self, error: &StoreError) -> Reply {
        self.replicas.damage.note_error(error);
        self.metrics.store_failed(error);
        Reply::Failed(fault::errno(error))
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
        Refusal::Failed(errno) => Reply::Failed(errno),
    }
}
