//! Answering the calls of one client.

use std::sync::Arc;

use bytes::Bytes;
use netfs_common::codec;
use netfs_common::errno::Errno;
use netfs_common::id::InstanceId;
use netfs_common::net::{BulkHandler, BulkMessage, BulkReplyFuture, Payload};
use netfs_common::wire::data::{MAX_PAYLOAD, Op, Reply, Request, Usage};

use tokio::sync::Notify;

use super::chunks::Chunks;
use super::fault;
use super::metrics::{DataMetrics, OpLabel};
use crate::cluster;
use crate::data::store::StoreError;
use crate::flusher::Flusher;

/// Reads up to this size are done on the server's own thread: they take less time than handing them
/// to another one (some 10 µs) costs. Changes never are: they may have to wait for a checkpoint, for
/// room, or for a flush.
const INLINE_BYTES: u64 = 32 << 10;

/// What all clients of a data server share.
#[derive(Debug)]
pub(super) struct Handler {
    pub(super) chunks: Arc<Chunks>,
    pub(super) flusher: Flusher,
    pub(super) instance: InstanceId,
    pub(super) metrics: DataMetrics,
}

/// One client.
#[derive(Debug)]
pub(super) struct Peer {
    handler: Arc<Handler>,
    nonsense: Notify,
}

impl Peer {
    pub(super) fn new(handler: Arc<Handler>) -> Peer {
        Peer { handler, nonsense: Notify::new() }
    }

    /// Waits until it sends what nobody understands; its connection is of no use then.
    pub(super) async fn nonsense(&self) {
        self.nonsense.notified().await;
    }
}

impl BulkHandler for Peer {
    fn call(&self, message: BulkMessage) -> BulkReplyFuture {
        match codec::decode::<Request>(&message.header) {
            Ok(request) => Box::pin(answer(self.handler.clone(), request, message.payload)),
            Err(error) => {
                self.handler.metrics.malformed.inc();
                tracing::warn!(%error, "malformed data call; connection closed");
                self.nonsense.notify_one();
                Box::pin(std::future::ready(message_of(Reply::Failed(Errno::EPROTO), Bytes::new())))
            }
        }
    }
}

async fn answer(handler: Arc<Handler>, request: Request, payload: Payload) -> BulkMessage {
    let label = OpLabel { op: name(&request.op) };
    handler.metrics.calls.get_or_create(&label).inc();
    let (reply, payload) = match handler.run(request, payload).await {
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
        Op::Flush => "flush",
        Op::Usage => "usage",
    }
}

impl Handler {
    /// The answer with its payload; a refusal or failure as an error.
    async fn run(&self, request: Request, payload: Payload) -> Result<(Reply, Bytes), Reply> {
        let about_chunks = !matches!(request.op, Op::Flush | Op::Usage);
        if about_chunks {
            cluster::check_epoch(request.group, request.epoch).map_err(Reply::StaleEpoch)?;
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
                let allocated = self.stored(false, work).await?;
                self.metrics.bytes_written.inc_by(given);
                Ok(self.written(allocated))
            }
            Op::Read { chunk, offset, len } => {
                let work = move || chunks.read(chunk, offset, len);
                let data = self.stored(len <= INLINE_BYTES, work).await?;
                self.metrics.bytes_read.inc_by(len);
                Ok((Reply::Read, data.into()))
            }
            Op::Punch { chunk, offset, len } => {
                let allocated =
                    self.stored(false, move || chunks.punch(chunk, offset, len)).await?;
                Ok(self.written(allocated))
            }
            Op::Delete { first } => {
                let allocated = self.stored(false, move || chunks.delete(first)).await?;
                Ok(self.written(allocated))
            }
            Op::Copy { source, source_offset, target, target_offset, len } => {
                let work =
                    move || chunks.copy((source, source_offset), (target, target_offset), len);
                let allocated = self.stored(false, work).await?;
                self.metrics.bytes_written.inc_by(len);
                Ok(self.written(allocated))
            }
            Op::Extents { chunk } => Ok((Reply::Extents(chunks.extents(chunk)), Bytes::new())),
            Op::Flush => {
                self.flusher.flush().await.map_err(Reply::Failed)?;
                Ok((Reply::Flushed { verifier: self.instance }, Bytes::new()))
            }
            Op::Usage => {
                let usage = self.stored(false, move || chunks.store().usage()).await?;
                // What is dead is as good as free: a write that finds no room reclaims it first.
                let free = usage.free_bytes.saturating_add(usage.dead_bytes);
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

    fn written(&self, allocated: i64) -> (Reply, Bytes) {
        (Reply::Written { verifier: self.instance, allocated }, Bytes::new())
    }

    /// Runs a call of the store, on this thread if it is `cheap`.
    async fn stored<T: Send + 'static>(
        &self,
        cheap: bool,
        work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Reply> {
        let result = if cheap {
            work()
        } else {
            tokio::task::spawn_blocking(work).await.map_err(|error| {
                tracing::error!(%error, "a call of the data store has panicked");
                Reply::Failed(Errno::EIO)
            })?
        };
        result.map_err(|error| {
            self.metrics.store_failed(&error);
            Reply::Failed(fault::errno(&error))
        })
    }
}
