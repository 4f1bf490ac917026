//! Answering the calls of one client.

use std::sync::Arc;

use bytes::Bytes;
use netfs_common::codec;
use netfs_common::errno::Errno;
use netfs_common::id::{InstanceId, SessionId, Verifier};
use netfs_common::net::{BulkHandler, BulkMessage, BulkReplyFuture, Payload};
use netfs_common::wire::data::{At, MAX_EXTENTS, MAX_PAYLOAD, Op, Reply, Request, Usage};

use tokio::sync::Notify;

use super::chunks::Chunks;
use super::fault;
use super::fences::Fences;
use super::metrics::{DataMetrics, OpLabel};
use super::rights::Rights;
use super::turns::{Client, Superseded, Turns};
use crate::cluster;
use crate::data::store::StoreError;
use crate::flusher::Flusher;

/// Reads up to this size are done on the server's own thread if they need not wait for the disk: they take less time
/// then than handing them to another one (some 10 µs) costs. Changes never are: they may have to wait for a
/// checkpoint, for room, or for a flush.
const INLINE_BYTES: u64 = 32 << 10;

/// What all clients of a data server share.
#[derive(Debug)]
pub(super) struct Handler {
    pub(super) chunks: Arc<Chunks>,
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

impl Handler {
    /// The answer with its payload; a refusal or failure as an error.
    async fn run(
        &self,
        client: &Client,
        request: Request,
        payload: Payload,
    ) -> Result<(Reply, Bytes), Reply> {
        if client.is_fenced() {
            return Err(Reply::SessionOver);
        }
        if let At::Group { group, epoch } = request.at {
            cluster::check_epoch(group, epoch).map_err(Reply::StaleEpoch)?;
        }
        let given = payload.len() as u64;
        let fits = match request.op {
            Op::Write { .. } => (1..=MAX_PAYLOAD).contains(&given),
            Op::Read { len, .. } => given == 0 && len <= MAX_PAYLOAD,
            _ => given == 0,
        };
        if !fits {
            return Err(Reply::Failed(Errno::EINVAL));
        }
        let chunks = self.chunks.clone();
        match request.op {
            Op::Write { chunk, offset } => {
                let data = payload.into_chunks();
                let work = move || chunks.write(chunk, offset, &data);
                let allocated = self.stored(client, work).await?;
                self.metrics.bytes_written.inc_by(given);
                Ok(self.written(allocated))
            }
            Op::Read { chunk, offset, len } => {
                let cached = match len <= INLINE_BYTES {
                    true => chunks.read_now(chunk, offset, len).map_err(|e| self.failed(&e))?,
                    false => None,
                };
                let data = match cached {
                    Some(data) => data,
                    None => self.stored(client, move || chunks.read(chunk, offset, len)).await?,
                };
                self.metrics.bytes_read.inc_by(len);
                Ok((Reply::Read, data.into()))
            }
            Op::Punch { chunk, offset, len } => {
                let allocated =
                    self.stored(client, move || chunks.punch(chunk, offset, len)).await?;
                Ok(self.written(allocated))
            }
            Op::Delete { first } => {
                let grown = self.stored(client, move || chunks.delete(first)).await?;
                let freed = grown.min(0).unsigned_abs();
                Ok((Reply::Deleted { instance: self.instance, freed }, Bytes::new()))
            }
            Op::Copy { source, source_offset, target, target_offset, len } => {
                let work =
                    move || chunks.copy((source, source_offset), (target, target_offset), len);
                let allocated = self.stored(client, work).await?;
                self.metrics.bytes_written.inc_by(len);
                Ok(self.written(allocated))
            }
            Op::Extents { span, limit } => {
                let limit = limit.clamp(1, MAX_EXTENTS) as usize;
                let work = move || chunks.extents(span, limit);
                let (extents, upto) = self.stored(client, work).await?;
                Ok((Reply::Extents { extents, upto }, Bytes::new()))
            }
            Op::PunchSpan { span } => {
                let (allocated, upto) =
                    self.stored(client, move || chunks.punch_span(span)).await?;
                self.flusher.flush().await.map_err(Reply::Failed)?;
                Ok((Reply::Punched { allocated, upto }, Bytes::new()))
            }
            Op::Flush { groups } => {
                self.flusher.flush().await.map_err(Reply::Failed)?;
                let verifiers = vec![Verifier(self.instance.0); groups.len()];
                Ok((Reply::Flushed { verifiers }, Bytes::new()))
            }
            Op::FlushHere => {
                self.flusher.flush().await.map_err(Reply::Failed)?;
                Ok((Reply::FlushedHere { instance: self.instance }, Bytes::new()))
            }
            Op::Peer(_) => Err(Reply::Failed(Errno::ENOSYS)),
            Op::Fence { session } => {
                self.fence(session).await.map_err(Reply::Failed)?;
                Ok((Reply::Fenced, Bytes::new()))
            }
            Op::Usage => {
                let usage = self.stored(client, move || chunks.store().usage()).await?;
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
        }
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

    fn written(&self, allocated: i64) -> (Reply, Bytes) {
        (Reply::Written { verifier: Verifier(self.instance.0), allocated }, Bytes::new())
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
            Err(Superseded) if client.is_fenced() => Err(Reply::SessionOver),
            // Nobody reads it: the connection is gone.
            Err(Superseded) => Err(Reply::Failed(Errno::ESHUTDOWN)),
        }
    }

    fn failed(&self, error: &StoreError) -> Reply {
        self.metrics.store_failed(error);
        Reply::Failed(fault::errno(error))
    }
}
