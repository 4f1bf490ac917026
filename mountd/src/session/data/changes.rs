//! Changes of chunks: they go to the head of the chain, which has all replicas make them.

use bytes::Bytes;
use netfs_common::errno::Errno;
use netfs_common::id::{ChunkId, Epoch, GroupId, ServerId, SessionId};
use netfs_common::map::{Chain, ClusterMap};
use netfs_common::wire::data::{Op, Reply, Span};

use super::calls::{Basis, Call, Outcome};
use super::together::Together;
use super::{Bulk, Copied, PAUSE, Written, heads, home};
use crate::insight::{Wait, waiting};

impl Bulk {
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
        done(self.change(within, chunk, Op::Write { chunk, offset }, data).await?)
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
        done(self.change(within, chunk, Op::Punch { chunk, offset, len }, Bytes::new()).await?)
    }

    /// Copies between two chunks if one server has the one and changes the other.
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
        let op = Op::Copy { source, source_offset, target, target_offset, len };
        self.change(within, target, op, Bytes::new()).await
    }

    async fn change(
        &self,
        within: SessionId,
        chunk: ChunkId,
        op: Op,
        payload: Bytes,
    ) -> Result<Copied, Errno> {
        waiting(Wait::Data, self.change_until_made(within, chunk, op, payload)).await
    }

    async fn change_until_made(
        &self,
        within: SessionId,
        chunk: ChunkId,
        op: Op,
        payload: Bytes,
    ) -> Result<Copied, Errno> {
        let mut pause = PAUSE.0;
        loop {
            let map = self.map();
            let place = home(&map, chunk)?.and_then(|(group, c)| Some((group, c, c.head()?)));
            let Some((group, chain, head)) = place else {
                self.pause(Some(within), map.version, &mut pause).await?;
                continue;
            };
            if let Op::Copy { source, .. } = &op {
                let Some((_, from)) = home(&map, *source)? else { return Ok(Copied::Apart) };
                if from.replicas.iter().all(|replica| replica.server != head.server) {
                    return Ok(Copied::Apart);
                }
            }
            let call = Call {
                within: Some(within),
                basis: Basis::Groups(vec![(group, chain.epoch)]),
                op: op.clone(),
                payload: payload.clone(),
            };
            match self.call(head.server, &call).await? {
                Outcome::Moved => pause = PAUSE.0,
                Outcome::Answered(reply) => match reply {
                    Reply::Written { verifier, allocated } => {
                        return Ok(Copied::Done(Written { group, verifier, allocated }));
                    }
                    Reply::Apart => return Ok(Copied::Apart),
                    Reply::StaleEpoch(_) | Reply::Busy => {
                        self.pause(Some(within), map.version, &mut pause).await?;
                    }
                    Reply::Failed(e) => return Err(e),
                    _ => return Err(Errno::EPROTO),
                },
            }
        }
    }

    /// Makes a range of a file a hole, durably, with messages by what is there and not by its length. Returns by how many
    /// bytes the allocated data grew.
    ///
    /// # Errors
    /// As [`Bulk::write`].
    pub async fn punch_span(&self, within: SessionId, span: Span) -> Result<i64, Errno> {
        waiting(Wait::Data, self.punch_until_made(within, span)).await
    }

    async fn punch_until_made(&self, within: SessionId, span: Span) -> Result<i64, Errno> {
        let (mut pause, mut allocated) = (PAUSE.0, 0);
        loop {
            let map = self.map();
            if let Some(heads) = heads(&map, &span) {
                let mut parts = Together::new();
                for head in heads {
                    let basis = Basis::Any(map.version, headed(&map, &span, head));
                    parts.add(self.punch_at(within, head, basis, span));
                }
                let mut all = true;
                while let Some(part) = parts.next().await {
                    // What was punched is not there to be punched again.
                    let (freed, whole) = part?;
                    allocated += freed;
                    all &= whole;
                }
                if all {
                    return Ok(allocated);
                }
            }
            // Some server knows better, or the map has changed: a head of now may not have been one then.
            self.pause(Some(within), map.version, &mut pause).await?;
        }
    }

    /// The part of one server, as far as it does it by this map, and whether that is all.
    async fn punch_at(
        &self,
        within: SessionId,
        server: ServerId,
        basis: Basis,
        span: Span,
    ) -> Result<(i64, bool), Errno> {
        let (mut rest, mut sum) = (span, 0);
        loop {
            let op = Op::PunchSpan { span: rest };
            let basis = basis.clone();
            let call = Call { within: Some(within), basis, op, payload: Bytes::new() };
            match self.call(server, &call).await? {
                Outcome::Moved => return Ok((sum, false)),
                Outcome::Answered(reply) => match reply {
                    Reply::Punched { allocated, upto } => {
                        sum += allocated;
                        if upto >= span.to {
                            return Ok((sum, true));
                        }
                        if upto <= rest.from {
                            return Err(Errno::EPROTO);
                        }
                        rest.from = upto;
                    }
                    Reply::StaleEpoch(_) | Reply::Busy => return Ok((sum, false)),
                    Reply::Failed(e) => return Err(e),
                    _ => return Err(Errno::EPROTO),
                },
            }
        }
    }
}

/// The groups for a file's contents that a server is the head of, and their epochs.
fn headed(map: &ClusterMap, span: &Span, server: ServerId) -> Vec<(GroupId, Epoch)> {
    let Some(pool) = map.pool_for(span.ino, span.generation) else { return Vec::new() };
    let groups = (pool.first.0..).map(GroupId).zip(&pool.chains);
    let is_head = |chain: &Chain| chain.head().is_some_and(|head| head.server == server);
    groups.filter(|(_, chain)| is_head(chain)).map(|(group, chain)| (group, chain.epoch)).collect()
}

/// Of a change that has one chunk only.
fn done(made: Copied) -> Result<Written, Errno> {
    match made {
        Copied::Done(written) => Ok(written),
        Copied::Apart => Err(Errno::EPROTO),
    }
}
