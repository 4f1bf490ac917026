//! The metadata server as a client of the data servers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use netfs_common::codec;
use netfs_common::errno::Errno;
use netfs_common::id::{ChunkId, ClusterId, Ino, InstanceId, ServerId, SessionId};
use netfs_common::map::ClusterMap;
use netfs_common::net::{
    Backoff, Bulk, CallError, Channel, ChannelConfig, Dialer, EstablishedFuture, Greeter, Payload,
};
use netfs_common::warn_rarely;
use netfs_common::wire::data::{At, Op, Reply, Request, Usage};
use netfs_common::wire::{Claim, Hello, HelloReply, PROTOCOL, Role};
use tokio::task::JoinSet;

/// One call to a data server may take this long; then it is tried again by whoever needs it done.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The figures of `statfs(2)` are at most this old while the data servers answer.
const USAGE_AGE: Duration = Duration::from_secs(1);
/// `statfs(2)` waits this long for a data server before older figures are given.
const USAGE_TIMEOUT: Duration = Duration::from_secs(2);

/// Pauses between attempts to fence a session.
const FENCE_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// The same trouble is logged this often.
const WARN_INTERVAL: Duration = Duration::from_secs(10);

/// Stands for the chunk in calls that are about none.
const NO_CHUNK: ChunkId = ChunkId { ino: Ino(0), generation: 0, index: 0 };

/// Why a data server has not done what was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum DataCallError {
    #[error("data server {server}: {source}")]
    Call { server: ServerId, source: CallError },
    #[error("data server {server}: {errno}")]
    Refused { server: ServerId, errno: Errno },
    #[error("data server {server} gave an answer that makes no sense")]
    Nonsense { server: ServerId },
    #[error("data server {server} has restarted, and may have lost what it did before")]
    Restarted { server: ServerId },
}

/// Changes that are to be flushed together, at all data servers: a server that restarts before the flush may
/// lose what it has answered, and then all of it is done once more.
#[derive(Debug, Default)]
pub(super) struct Attempt {
    /// The life of each server in which it made the changes.
    lives: Mutex<HashMap<ServerId, InstanceId>>,
    /// By how many bytes the data shrank.
    freed: AtomicU64,
}

impl Attempt {
    /// By how many bytes the data shrank so far.
    pub(super) fn freed(&self) -> u64 {
        self.freed.load(Ordering::Relaxed)
    }

    /// A server answers in this life.
    fn met(&self, server: ServerId, life: InstanceId) -> Result<(), DataCallError> {
        let mut lives = self.lives.lock().unwrap_or_else(PoisonError::into_inner);
        match *lives.entry(server).or_insert(life) == life {
            true => Ok(()),
            false => Err(DataCallError::Restarted { server }),
        }
    }
}

/// Connections to all data servers of the map.
#[derive(Debug)]
pub(super) struct DataLink {
    map: Arc<ClusterMap>,
    channels: HashMap<ServerId, Channel<Bulk>>,
    usage: Mutex<Option<(Instant, Usage)>>,
}

struct Greeting {
    hello: Bytes,
    cluster: ClusterId,
}

impl Greeter<Bulk> for Greeting {
    fn hello(&self) -> Bytes {
        self.hello.clone()
    }

    fn established(&self, _peer: Bulk, welcome: Bytes) -> EstablishedFuture {
        let checked = match codec::decode::<HelloReply>(&welcome) {
            Ok(reply) if reply.cluster == self.cluster => Ok(()),
            Ok(_) => Err(CallError::Untrusted("a data server of another cluster".into())),
            Err(error) => Err(CallError::Protocol(error.to_string().into())),
        };
        Box::pin(std::future::ready(checked))
    }
}

impl DataLink {
    /// Must be called within a runtime. Connecting goes on in the background.
    pub(super) fn new(
        dialer: &Dialer,
        map: Arc<ClusterMap>,
        cluster: ClusterId,
        instance: InstanceId,
    ) -> Result<DataLink, codec::CodecError> {
        let hello = Hello {
            protocol: (PROTOCOL, PROTOCOL),
            features: 0,
            role: Role::Data,
            volume: String::new(),
            session: SessionId(0),
            claim: Claim::Begin,
            instance,
            client: "metadata server".into(),
        };
        let hello: Bytes = codec::encode(&hello)?.into();
        let channels = map.servers.iter().map(|server| {
            let config =
                ChannelConfig { addresses: server.addrs.clone(), backoff: Backoff::default() };
            let greeting = Greeting { hello: hello.clone(), cluster };
            (server.id, Channel::bulk(dialer.clone(), config, greeting))
        });
        Ok(DataLink { channels: channels.collect(), map, usage: Mutex::new(None) })
    }

    /// Removes everything of a file's contents from a byte on. Durable when it returns.
    pub(super) async fn cut(
        &self,
        attempt: &Attempt,
        file: ChunkId,
        chunk_bits: u8,
        from: u64,
    ) -> Result<(), DataCallError> {
        let (index, within) = (from >> chunk_bits, from & ((1u64 << chunk_bits) - 1));
        let mut first = index;
        if within > 0 {
            let chunk = ChunkId { index, ..file };
            let punch = Op::Punch { chunk, offset: within, len: u64::MAX };
            for server in self.channels.keys() {
                self.change(attempt, *server, chunk, punch.clone()).await?;
            }
            first += 1;
        }
        self.delete_from(attempt, ChunkId { index: first, ..file }).await?;
        self.flush(attempt).await
    }

    /// Removes chunks; durable after [`DataLink::flush`].
    pub(super) async fn delete_from(
        &self,
        attempt: &Attempt,
        first: ChunkId,
    ) -> Result<(), DataCallError> {
        for server in self.channels.keys() {
            self.change(attempt, *server, first, Op::Delete { first }).await?;
        }
        Ok(())
    }

    /// Brings what was changed in an attempt to stable storage.
    pub(super) async fn flush(&self, attempt: &Attempt) -> Result<(), DataCallError> {
        for server in self.channels.keys() {
            match self.call(*server, NO_CHUNK, Op::FlushHere).await? {
                Reply::FlushedHere { instance } => attempt.met(*server, instance)?,
                _ => return Err(DataCallError::Nonsense { server: *server }),
            }
        }
        Ok(())
    }

    /// Space of all data servers together; figures of a moment ago when they do not answer now.
    pub(super) async fn usage(&self) -> Result<Usage, Errno> {
        let known = *self.usage.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, usage)) = known
            && at.elapsed() < USAGE_AGE
        {
            return Ok(usage);
        }
        match tokio::time::timeout(USAGE_TIMEOUT, self.ask_usage()).await {
            Ok(Ok(usage)) => {
                let now = Some((Instant::now(), usage));
                *self.usage.lock().unwrap_or_else(PoisonError::into_inner) = now;
                Ok(usage)
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "no figures of free space");
                known.map(|(_, usage)| usage).ok_or(Errno::EIO)
            }
            Err(_) => known.map(|(_, usage)| usage).ok_or(Errno::ETIMEDOUT),
        }
    }

    /// Keeps a session out of all data servers. Returns when nothing that it has sent can happen any more, however
    /// long that takes: a server that cannot be reached from here may be reached by the client.
    pub(super) async fn fence(self: &Arc<Self>, session: SessionId) {
        let mut all = JoinSet::new();
        for server in self.channels.keys().copied() {
            let link = self.clone();
            all.spawn(async move { link.fence_at(server, session).await });
        }
        while let Some(done) = all.join_next().await {
            if let Err(error) = done {
                // Better others wait for ever than that two write.
                tracing::error!(%session, %error, "fencing a session has panicked");
                std::future::pending::<()>().await;
            }
        }
    }

    async fn fence_at(&self, server: ServerId, session: SessionId) {
        let mut pause = FENCE_PAUSE.0;
        loop {
            let error = match self.call(server, NO_CHUNK, Op::Fence { session }).await {
                Ok(Reply::Fenced) => return,
                Ok(_) => DataCallError::Nonsense { server },
                Err(error) => error,
            };
            warn_rarely!(WARN_INTERVAL, %session, %error, "what an ended session had is not given to others before its writes are kept out");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(FENCE_PAUSE.1);
        }
    }

    async fn ask_usage(&self) -> Result<Usage, DataCallError> {
        let mut sum = Usage::default();
        for server in self.channels.keys() {
            match self.call(*server, NO_CHUNK, Op::Usage).await? {
                Reply::Usage(usage) => {
                    sum.capacity = sum.capacity.saturating_add(usage.capacity);
                    sum.free = sum.free.saturating_add(usage.free);
                    sum.live = sum.live.saturating_add(usage.live);
                    sum.chunks = sum.chunks.saturating_add(usage.chunks);
                }
                _ => return Err(DataCallError::Nonsense { server: *server }),
            }
        }
        Ok(sum)
    }

    /// A change that can only make data less.
    async fn change(
        &self,
        attempt: &Attempt,
        server: ServerId,
        chunk: ChunkId,
        op: Op,
    ) -> Result<(), DataCallError> {
        match self.call(server, chunk, op).await? {
            Reply::Written { allocated, verifier } => {
                attempt.met(server, InstanceId(verifier.0))?;
                attempt.freed.fetch_add(allocated.min(0).unsigned_abs(), Ordering::Relaxed);
                Ok(())
            }
            Reply::Deleted { instance, freed } => {
                attempt.met(server, instance)?;
                attempt.freed.fetch_add(freed, Ordering::Relaxed);
                Ok(())
            }
            _ => Err(DataCallError::Nonsense { server }),
        }
    }

    async fn call(&self, server: ServerId, chunk: ChunkId, op: Op) -> Result<Reply, DataCallError> {
        let at = match self.map.chain_of(chunk) {
            Some((group, chain)) => At::Group { group, epoch: chain.epoch },
            None => At::Server,
        };
        let request = Request { at, op };
        let header = codec::encode(&request).map_err(|_| DataCallError::Nonsense { server })?;
        let Some(channel) = self.channels.get(&server) else {
            return Err(DataCallError::Nonsense { server });
        };
        let deadline = Instant::now() + CALL_TIMEOUT;
        let answer = channel
            .call(header.into(), Payload::default(), deadline)
            .await
            .map_err(|source| DataCallError::Call { server, source })?;
        match codec::decode(&answer.header) {
            Ok(Reply::Failed(errno)) => Err(DataCallError::Refused { server, errno }),
            Ok(reply) => Ok(reply),
            Err(_) => Err(DataCallError::Nonsense { server }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_across_two_lives_of_a_server_is_none() {
        let (attempt, server) = (Attempt::default(), ServerId(1));
        attempt.met(server, InstanceId(7)).unwrap();
        attempt.met(server, InstanceId(7)).unwrap();
        attempt.met(ServerId(2), InstanceId(8)).unwrap();
        let refused = attempt.met(server, InstanceId(9));
        assert!(matches!(refused, Err(DataCallError::Restarted { .. })));
    }
}
