//! Reads: from any replica, and from another one when that is late or fails.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use netfs_common::errno::Errno;
use netfs_common::id::{ChunkId, GroupId, ServerId};
use netfs_common::map::Chain;
use netfs_common::wire::data::{MAX_PAYLOAD, Op, Reply, Span};
use tokio::time::Instant;

use super::calls::{Attempt, Basis, Call, Outcome};
use super::race::{Failure, Race, Runner, Step, Verdict, Won};
use super::together::Together;
use super::{Bulk, PAUSE, heads, home};
use crate::insight::{Wait, waiting};
use crate::session::lock;

/// What asking the replicas of a chain came to.
enum Asked {
    Read(Bytes),
    /// At once, by the map and in the session of then.
    Anew,
    /// When some time has passed.
    Later,
    Refused(Errno),
}

impl Bulk {
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
        waiting(Wait::Data, self.read_until_answered(chunk, offset, len)).await
    }

    async fn read_until_answered(
        &self,
        chunk: ChunkId,
        offset: u64,
        len: u64,
    ) -> Result<Bytes, Errno> {
        let op = Op::Read { chunk, offset, len };
        let (mut pause, mut reconnected) = (PAUSE.0, false);
        loop {
            let map = self.map();
            let Some((group, chain)) = home(&map, chunk)? else {
                self.pause(None, map.version, &mut pause).await?;
                continue;
            };
            let asked = {
                // Not while it pauses: other chains may be well.
                let _slot = self.reads.acquire().await.map_err(|_| Errno::EIO)?;
                self.ask(group, chain, &op, chunk, len).await?
            };
            match asked {
                Asked::Read(bytes) => return Ok(bytes),
                Asked::Refused(e) => return Err(e),
                Asked::Anew if !std::mem::replace(&mut reconnected, true) => {}
                Asked::Anew | Asked::Later => self.pause(None, map.version, &mut pause).await?,
            }
        }
    }

    async fn ask(
        &self,
        group: GroupId,
        chain: &Chain,
        op: &Op,
        chunk: ChunkId,
        len: u64,
    ) -> Result<Asked, Errno> {
        let basis = Basis::Groups(vec![(group, chain.epoch)]);
        let call = Call { within: None, basis, op: op.clone(), payload: Bytes::new() };
        tokio::select! {
            biased;
            asked = self.race(chain, &call, chunk, len) => asked,
            () = self.moved(&call.basis) => Ok(Asked::Anew),
            () = self.at_the_end() => Err(Errno::EIO),
        }
    }

    async fn race(
        &self,
        chain: &Chain,
        call: &Call,
        chunk: ChunkId,
        len: u64,
    ) -> Result<Asked, Errno> {
        let mut race = Race::new(self.runners(chain, chunk));
        let mut calls = Together::new();
        loop {
            let until = match race.step(Instant::now()) {
                Step::Ask(server) => {
                    calls.add(async move { (server, self.attempt(server, call).await) });
                    continue;
                }
                Step::Wait(until) => until,
                Step::Over(Verdict::Again) => return Ok(Asked::Later),
                Step::Over(Verdict::Reconnect) => return Ok(Asked::Anew),
                Step::Over(Verdict::Refused(e)) => return Ok(Asked::Refused(e)),
            };
            let (server, attempt) = tokio::select! {
                ended = calls.ended() => ended,
                () = sleep_until(until) => continue,
            };
            let now = Instant::now();
            let failure = match attempt? {
                Attempt::Answered(Reply::Read, bytes) if bytes.len() as u64 == len => {
                    self.note(&race.won(server, now), server, now);
                    return Ok(Asked::Read(bytes));
                }
                // It was not this server's fault.
                Attempt::Over => {
                    self.next_session().await;
                    return Ok(Asked::Anew);
                }
                Attempt::Answered(Reply::Failed(e), _) => Failure::Refused(e),
                // It is well, and knows another map.
                Attempt::Answered(Reply::StaleEpoch(_), _) => Failure::Unable,
                Attempt::Answered(Reply::Busy, _) | Attempt::Unreachable => {
                    lock(&self.health).failed(server, now);
                    Failure::Unable
                }
                Attempt::Answered(..) => Failure::Refused(Errno::EPROTO),
                Attempt::Lost => {
                    lock(&self.health).failed(server, now);
                    Failure::Lost
                }
            };
            race.failed(server, failure, now);
        }
    }

    fn runners(&self, chain: &Chain, chunk: ChunkId) -> Vec<Runner> {
        let client = lock(&self.hello).instance;
        let replicas = chain.replicas.iter().map(|replica| replica.server);
        let mut health = lock(&self.health);
        let order = health.order(client, chunk, replicas, Instant::now());
        let delays: Vec<(ServerId, Duration)> =
            order.into_iter().map(|server| (server, health.delay(server))).collect();
        drop(health);
        let runner =
            |(server, delay)| Runner { server, delay, connected: self.is_connected(server) };
        delays.into_iter().map(runner).collect()
    }

    fn note(&self, won: &Won, winner: ServerId, now: Instant) {
        let mut health = lock(&self.health);
        health.answered(winner, won.took);
        for (server, waited) in &won.late {
            health.was_late(*server, *waited, now);
        }
        drop(health);
        self.counters.read_answered(won.hedged, won.failed_over);
    }

    /// Where a file has data: ascending, not touching, and up to where that is all. About `limit` ranges.
    ///
    /// # Errors
    /// As [`Bulk::write`].
    pub async fn extents(&self, span: Span, limit: u32) -> Result<(Vec<(u64, u64)>, u64), Errno> {
        waiting(Wait::Data, self.extents_until_answered(span, limit)).await
    }

    async fn extents_until_answered(
        &self,
        span: Span,
        limit: u32,
    ) -> Result<(Vec<(u64, u64)>, u64), Errno> {
        let mut pause = PAUSE.0;
        'again: loop {
            let map = self.map();
            let op = Op::Extents { span, limit };
            let basis = Basis::Heads(Arc::clone(&map));
            let call = Call { within: None, basis, op, payload: Bytes::new() };
            let (mut all, mut upto) = (Vec::new(), span.to);
            let mut parts = Together::new();
            let Some(heads) = heads(&map, &span) else {
                self.pause(None, map.version, &mut pause).await?;
                continue;
            };
            for head in heads {
                parts.add(self.call(head, &call));
            }
            while let Some(part) = parts.next().await {
                match part? {
                    Outcome::Answered(Reply::Extents { extents, upto: told })
                        if told > span.from =>
                    {
                        all.extend(extents);
                        upto = upto.min(told);
                    }
                    Outcome::Moved => continue 'again,
                    Outcome::Answered(Reply::StaleEpoch(_) | Reply::Busy) => {
                        self.pause(None, map.version, &mut pause).await?;
                        continue 'again;
                    }
                    Outcome::Answered(Reply::Failed(e)) => return Err(e),
                    Outcome::Answered(..) => return Err(Errno::EPROTO),
                }
            }
            return Ok((merge(all, upto), upto));
        }
    }
}

async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
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
