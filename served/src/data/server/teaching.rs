//! Giving a learner what it lacks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use netfs_common::id::{ChunkId, Epoch, GroupId, Ino, Version};
use netfs_common::map::Replica;
use netfs_common::net::Payload;
use netfs_common::wire::cluster::{Install, PeerOp};
use netfs_common::wire::data::{At, MAX_PAYLOAD, Op, Reply, Request};

use super::replicas::{Replicas, lock};
use crate::data::store::StoreError;

/// After a failure.
const PAUSE: Duration = Duration::from_millis(200);
/// One piece, or one list, may take this long.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// The first chunk of all.
const FIRST: ChunkId = ChunkId { ino: Ino(0), generation: 0, index: 0 };

/// Why a chunk is not copied.
#[derive(Debug)]
enum Failed {
    /// The learner did not take it, or did not answer.
    Refused,
    /// It cannot be read here. That says nothing of the learner.
    Unread,
}

/// What has been copied to learners since the start.
#[derive(Debug, Default)]
pub(super) struct Taught {
    pub(super) chunks: AtomicU64,
    pub(super) bytes: AtomicU64,
}

/// How fast is copied: bytes per second over all groups, with a burst of a tenth of a second.
#[derive(Debug)]
pub(super) struct Pace {
    rate: u64,
    /// When the next piece may go.
    next: Mutex<Instant>,
}

impl Pace {
    /// 0: as fast as it goes.
    pub(super) fn new(rate: u64) -> Pace {
        Pace { rate, next: Mutex::new(Instant::now()) }
    }

    /// Waits until so many bytes may go.
    pub(super) async fn wait(&self, bytes: u64) {
        if self.rate == 0 {
            return;
        }
        let cost = Duration::from_nanos(
            (u128::from(bytes) * 1_000_000_000 / u128::from(self.rate)) as u64,
        );
        let until = {
            let mut next = lock(&self.next);
            let now = Instant::now();
            let begin = (*next).max(now.checked_sub(Duration::from_millis(100)).unwrap_or(now));
            *next = begin + cost;
            begin
        };
        tokio::time::sleep_until(until.into()).await;
    }
}

impl Replicas {
    /// Compares versions with a learner until that is done or the epoch is over.
    pub(super) async fn compare(self: Arc<Self>, id: GroupId, epoch: Epoch, learner: Replica) {
        let compared = async {
            loop {
                let differ = self.differences(id, epoch, learner).await;
                self.note_lesson(id, epoch, None, differ.is_some());
                match differ {
                    Some(differ) => return differ,
                    None => tokio::time::sleep(PAUSE).await,
                }
            }
        };
        let differ = tokio::select! {
            differ = compared => differ,
            () = self.epoch_over(id, epoch) => return,
        };
        // One line for each group, of which there may be hundreds: most lack nothing after a short absence.
        match differ.len() {
            0 => tracing::debug!(group = %id, server = %learner.server, "a replica lacks nothing"),
            chunks => {
                tracing::info!(group = %id, server = %learner.server, chunks, "a replica learns what it lacks");
            }
        }
        self.run(id, |slot| slot.group.compared(learner, differ));
    }

    /// A learner that takes nothing for too long is reported like a replica that does not answer.
    fn note_lesson(&self, id: GroupId, epoch: Epoch, chunk: Option<ChunkId>, taken: bool) {
        if let Some(slot) = self.slot(id) {
            let mut slot = lock(&slot);
            if slot.group.epoch() == epoch {
                slot.note_lesson(chunk, taken);
            }
        }
    }

    /// What cannot be read here the learner neither takes nor refuses.
    fn note_unread(&self, id: GroupId, epoch: Epoch, chunk: ChunkId) {
        if let Some(slot) = self.slot(id) {
            let mut slot = lock(&slot);
            if slot.group.epoch() == epoch {
                slot.note_unread(chunk);
            }
        }
    }

    /// Chunks that only one has, or both in different versions. `None`: it could not be found out.
    async fn differences(
        &self,
        id: GroupId,
        epoch: Epoch,
        learner: Replica,
    ) -> Option<BTreeSet<ChunkId>> {
        let mut theirs: BTreeMap<ChunkId, Version> = BTreeMap::new();
        let mut from = Some(FIRST);
        while let Some(first) = from {
            let op = PeerOp::List { from: first };
            match self.ask(id, epoch, learner, op, Bytes::new()).await? {
                Reply::Listed { chunks, next } => {
                    theirs.extend(chunks);
                    if next.is_some_and(|next| next <= first) {
                        return None;
                    }
                    from = next;
                }
                _ => return None,
            }
        }
        let mut differ = BTreeSet::new();
        let mut from = Some(FIRST);
        while let Some(first) = from {
            let (ours, next) = self.list(id, first).await?;
            for (chunk, version) in ours {
                let same = theirs.remove(&chunk) == Some(version) && version != Version::NONE;
                if !same {
                    differ.insert(chunk);
                }
            }
            from = next;
        }
        differ.extend(theirs.into_keys());
        Some(differ)
    }

    /// Chunks of a group here, from one on.
    pub(super) async fn list(
        &self,
        id: GroupId,
        from: ChunkId,
    ) -> Option<(Vec<(ChunkId, Version)>, Option<ChunkId>)> {
        let (chunks, view) = (self.chunks.clone(), self.view());
        self.blocking(move || chunks.list(from, |chunk| view.group_of(chunk) == Some(id))).await
    }

    /// One call to a learner.
    async fn ask(
        &self,
        id: GroupId,
        epoch: Epoch,
        learner: Replica,
        op: PeerOp,
        payload: impl Into<Payload>,
    ) -> Option<Reply> {
        let at = At::Replica { group: id, epoch, instance: learner.instance };
        let request = Request { at, op: Op::Peer(op) };
        let deadline = Some(Instant::now() + CALL_TIMEOUT);
        let view = self.view();
        match self.peers.call(&view.map, learner.server, &request, payload, deadline).await {
            Ok((reply, _)) => Some(reply),
            Err(error) => {
                tracing::debug!(group = %id, %error, "a learner did not answer");
                None
            }
        }
    }

    /// Copies a chunk. It is held: nothing changes it meanwhile.
    pub(super) async fn push(
        self: Arc<Self>,
        id: GroupId,
        epoch: Epoch,
        learner: Replica,
        chunk: ChunkId,
    ) {
        let pushed = tokio::select! {
            pushed = self.try_push(id, epoch, learner, chunk) => pushed,
            () = self.epoch_over(id, epoch) => return,
        };
        let done = pushed.is_ok();
        match pushed {
            Ok(()) | Err(Failed::Refused) => self.note_lesson(id, epoch, Some(chunk), done),
            Err(Failed::Unread) => self.note_unread(id, epoch, chunk),
        }
        if done {
            self.taught.chunks.fetch_add(1, Ordering::Relaxed);
        } else {
            tokio::time::sleep(PAUSE).await;
        }
        self.run(id, |slot| slot.group.pushed(learner, epoch, chunk, done));
    }

    async fn try_push(
        &self,
        id: GroupId,
        epoch: Epoch,
        learner: Replica,
        chunk: ChunkId,
    ) -> Result<(), Failed> {
        let chunks = self.chunks.clone();
        let outline = self.blocking(move || chunks.outline(chunk)).await;
        let (version, ranges) = outline.ok_or(Failed::Unread)?;
        // Sooner or later it is mended, or found lost. Until then the learner keeps what it has.
        if self.damage.may_mend(chunk) {
            return Err(Failed::Unread);
        }
        // What is away is not fetched for the learner: it is told where it is. The chunk is held, so all that can happen to what is away is that
        // it comes back, and then its object is still there (`tiering/sweeping.rs`).
        let away = self.chunks.away(chunk);
        let gone = away.as_ref().map_or(&[][..], |parts| &parts.ranges);
        let mut pieces = pieces(&without(&ranges, gone));
        let mut gone = gone.iter().copied();
        let mut first = true;
        if let Some(object) = away.as_ref().map(|parts| Version(parts.object.0)) {
            while let Some((offset, len)) = gone.next() {
                let last = gone.len() == 0 && pieces.is_empty();
                let version = if last { version } else { Version::NONE };
                let install = Install { chunk, first, version, offset: offset.into() };
                let op = PeerOp::InstallAway { install, len: len.into(), object };
                self.install(id, epoch, learner, op, Bytes::new()).await?;
                first = false;
            }
        }
        while first || !pieces.is_empty() {
            let (offset, len) = pieces.pop().unwrap_or_default();
            self.pace.wait(len).await;
            let (data, lost) = match self.read_piece(chunk, (offset, len)).await? {
                Ok(data) => (data, 0),
                Err((from, lost)) => {
                    let end = offset + len;
                    pieces.extend(Some((from + lost, end - from - lost)).filter(|rest| rest.1 > 0));
                    if from > offset {
                        // What is before it goes first; then it is met again.
                        pieces.push((from, lost));
                        pieces.push((offset, from - offset));
                        continue;
                    }
                    (Vec::new(), lost)
                }
            };
            let last = pieces.is_empty();
            let version = if last { version } else { Version::NONE };
            let install = Install { chunk, first, version, offset };
            let op = match lost {
                0 => PeerOp::Install(install),
                len => PeerOp::InstallBad { install, len },
            };
            let bytes = data.len() as u64;
            self.install(id, epoch, learner, op, Bytes::from(data)).await?;
            if lost > 0 {
                tracing::error!(?chunk, offset, len = lost, server = %learner.server, "nobody has these bytes any more: the new replica has them as lost, too");
            }
            self.taught.bytes.fetch_add(bytes, Ordering::Relaxed);
            first = false;
        }
        Ok(())
    }

    /// Bytes of a chunk, or the first range of them that is lost: the bytes are others than were written, and all who could have them have said for long
    /// enough that they have not. What the disk does not give, or what cannot be read for want of a key, is never lost: that may pass, and may be so of all that there is.
    async fn read_piece(
        &self,
        chunk: ChunkId,
        (offset, len): (u64, u64),
    ) -> Result<Result<Vec<u8>, (u64, u64)>, Failed> {
        let chunks = self.chunks.clone();
        let read = self.blocking(move || chunks.read(chunk, offset, len)).await;
        let error = match read.ok_or(Failed::Unread)? {
            Ok(data) => return Ok(Ok(data)),
            Err(error) => error,
        };
        self.damage.note_error(&error);
        self.metrics.store_failed(&error);
        match error {
            StoreError::Corrupt { offset: from, len: lost, rotten: true, .. }
                if lost > 0
                    && from >= offset
                    && from + lost <= offset + len
                    && self.damage.is_lost(chunk, (from, lost))
                    && !self.chunks.store().is_poisoned() =>
            {
                Ok(Err((from, lost)))
            }
            StoreError::Corrupt { rotten: true, .. } => {
                self.note_damage(chunk).await;
                Err(Failed::Unread)
            }
            _ => Err(Failed::Unread),
        }
    }

    /// All that is damaged in a chunk, so that it need not be found piece by piece.
    async fn note_damage(&self, chunk: ChunkId) {
        let chunks = self.chunks.clone();
        let damaged = self.blocking(move || chunks.damaged_in(chunk)).await;
        for (offset, len) in damaged.unwrap_or_default() {
            self.damage.note(chunk, offset, len);
        }
    }

    async fn install(
        &self,
        id: GroupId,
        epoch: Epoch,
        learner: Replica,
        op: PeerOp,
        data: Bytes,
    ) -> Result<(), Failed> {
        match self.ask(id, epoch, learner, op, data).await {
            Some(Reply::Stored { full: false }) => Ok(()),
            Some(reply) => {
                tracing::debug!(group = %id, ?reply, "a learner did not take a chunk");
                Err(Failed::Refused)
            }
            None => Err(Failed::Refused),
        }
    }

    /// Has the learner flush what it has got.
    pub(super) async fn seal(self: Arc<Self>, id: GroupId, epoch: Epoch, learner: Replica) {
        let flush = PeerOp::FlushGroups(vec![(id, epoch)]);
        let done = tokio::select! {
            reply = self.ask(id, epoch, learner, flush, Bytes::new()) => {
                matches!(reply, Some(Reply::FlushedHere { instance }) if instance == learner.instance)
            }
            () = self.epoch_over(id, epoch) => return,
        };
        self.note_lesson(id, epoch, None, done);
        if !done {
            tokio::time::sleep(PAUSE).await;
        }
        self.run(id, |slot| slot.group.sealed(learner, epoch, done));
    }
}

/// Ranges without parts of them, both ascending.
fn without(ranges: &[(u64, u64)], parts: &[(u32, u32)]) -> Vec<(u64, u64)> {
    let mut out = Vec::new();
    for (start, len) in ranges {
        let (mut at, end) = (*start, start + len);
        for (offset, len) in parts {
            let (from, to) = (u64::from(*offset), u64::from(*offset) + u64::from(*len));
            if to <= at || from >= end {
                continue;
            }
            if from > at {
                out.push((at, from - at));
            }
            at = to.min(end);
        }
        if at < end {
            out.push((at, end - at));
        }
    }
    out
}

/// What goes in one message each, the last one first.
fn pieces(ranges: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut out = Vec::new();
    for (start, len) in ranges {
        let (mut at, end) = (*start, start + len);
        while at < end {
            let step = (end - at).min(MAX_PAYLOAD);
            out.push((at, step));
            at += step;
        }
    }
    out.reverse();
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_goes_in_pieces_that_fit_into_messages() {
        let mut all = pieces(&[(0, 10), (100, MAX_PAYLOAD * 2 + 1)]);
        all.reverse();
        let expected = [
            (0, 10),
            (100, MAX_PAYLOAD),
            (100 + MAX_PAYLOAD, MAX_PAYLOAD),
            (100 + MAX_PAYLOAD * 2, 1),
        ];
        assert_eq!(all, expected);
        assert!(pieces(&[]).is_empty());
    }

    #[test]
    fn ranges_without_parts_of_them() {
        let all = [(0, 10), (20, 10)];
        assert_eq!(without(&all, &[]), all);
        assert_eq!(without(&all, &[(0, 10), (22, 3), (29, 1)]), [(20, 2), (25, 4)]);
        assert_eq!(without(&all, &[(5, 20)]), [(0, 5), (25, 5)]);
        assert_eq!(without(&all, &[(0, 30)]), []);
    }

    #[tokio::test]
    async fn copies_keep_to_their_pace() {
        let (pace, began) = (Pace::new(1000), Instant::now());
        // A tenth of a second may go at once; the third waits for the second.
        for _ in 0..3 {
            pace.wait(100).await;
        }
        assert!(began.elapsed() >= Duration::from_millis(90), "{:?}", began.elapsed());
    }
}
