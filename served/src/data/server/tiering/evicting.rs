//! Sending chunks away.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use netfs_common::errno::Errno;
use netfs_common::id::{ChunkId, GroupId, Ino, Version};
use netfs_common::map::TierMode;
use tokio::task::JoinSet;

use super::super::chunks::{self, Chunks};
use super::super::replicas::{Replicas, lock};
use super::Tier;
use crate::data::codec::Codec;
use crate::data::store::{ChunkInfo, ChunkVersion, StoreError};
use crate::data::tier::{BucketError, Fill, ObjectId, encode};

/// The shortest time from one look at all chunks to the next.
const LOOK_MIN: Duration = Duration::from_millis(200);
/// The shortest and the longest time from one look for changed chunks to the next.
const UPLOAD_MIN: Duration = Duration::from_millis(50);
const UPLOAD_MAX: Duration = Duration::from_secs(3);
/// Changed chunks that are begun with at a time.
const DUE: usize = 64;

/// Why a chunk did not go.
#[derive(Debug)]
enum Stays {
    /// It is in use, or is changing.
    Changed,
    /// The bucket.
    Bucket(BucketError),
    /// The store.
    Store(StoreError),
}

/// Looks at all chunks again and again, and sends away what is cold.
pub(super) async fn attend(replicas: Weak<Replicas>) {
    loop {
        let pause = {
            let Some(this) = replicas.upgrade() else { return };
            let Some(tier) = &this.tier else { return };
            (tier.options.after / 4).min(tier.options.look_interval).max(LOOK_MIN)
        };
        tokio::time::sleep(pause).await;
        let Some(this) = replicas.upgrade() else { return };
        this.send_cold().await;
    }
}

/// Puts changed chunks of volumes into the bucket that have their primary copy there.
pub(super) async fn keep_up(replicas: Weak<Replicas>) {
    loop {
        let pause = {
            let Some(this) = replicas.upgrade() else { return };
            let Some(tier) = &this.tier else { return };
            (tier.options.delay / 8).clamp(UPLOAD_MIN, UPLOAD_MAX)
        };
        tokio::time::sleep(pause).await;
        let Some(this) = replicas.upgrade() else { return };
        this.upload_changed().await;
    }
}

/// A chunk's bytes in one version; `None`: it is another one by now, or a part of it is away.
type Contents = Option<Vec<(u32, Vec<u8>)>>;

fn contents(chunks: &Chunks, chunk: ChunkId, version: Version) -> Result<Contents, StoreError> {
    let (found, ranges) = chunks.outline(chunk);
    if found != version {
        return Ok(None);
    }
    let mut pieces = Vec::with_capacity(ranges.len());
    for (offset, len) in ranges {
        let data = match chunks.read(chunk, offset, len) {
            Ok(data) => data,
            Err(StoreError::Away { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let Ok(offset) = u32::try_from(offset) else { return Ok(None) };
        pieces.push((offset, data));
    }
    // Still the same: so all that was read is of this version.
    Ok((chunks.version(chunk) == version).then_some(pieces))
}

impl Replicas {
    /// Whether a chunk has a place here, and nothing is noted of it.
    fn is_quiet(&self, group: GroupId, chunk: ChunkId) -> bool {
        self.slot(group).is_some_and(|slot| {
            let slot = lock(&slot);
            slot.group.readable(slot.group.epoch(), chunk) == Ok(true)
        })
    }

    fn mode_of(&self, chunk: ChunkId) -> TierMode {
        let view = self.view();
        let pool = view.group_of(chunk).and_then(|group| view.map.pool_of(group));
        // Of a volume whose key is not at hand nothing can be read.
        let open = self.codec(chunk).is_ok();
        pool.filter(|_| open).map_or(TierMode::None, |pool| pool.tier)
    }

    /// One look at all chunks.
    async fn send_cold(self: &Arc<Self>) {
        let Some(tier) = &self.tier else { return };
        // As it is now: by older figures what went in the last look would have to go once more. While it is not known, age alone counts.
        let usage = self.look_at_usage().await;
        let fill = usage.map_or_else(
            |_| Fill::default(),
            |usage| Fill {
                capacity: usage.capacity_bytes,
                free: usage.free_bytes.saturating_add(usage.reclaimable_bytes),
            },
        );
        lock(&tier.policy).begin(tier.now(), fill);
        let mut from = Some(ChunkId { ino: Ino(0), generation: 0, index: 0 });
        let (mut away, mut transfers) = (0, JoinSet::new());
        while let Some(first) = from {
            let chunks = self.chunks.clone();
            let Some((page, next)) = self.blocking(move || chunks.infos(first)).await else {
                break;
            };
            from = next;
            for info in page {
                let chunk = chunks::id(&info.key);
                away += i64::from(info.away_bytes > 0);
                if !self.is_cold(tier, chunk, &info) {
                    continue;
                }
                if tier.trouble().is_some() && transfers.is_empty() {
                    // One attempt in each look is enough to find out whether it is back.
                    from = None;
                }
                while transfers.len() >= tier.options.transfers.max(1) {
                    transfers.join_next().await;
                }
                let this = self.clone();
                let version = Version(info.version.0);
                transfers.spawn(async move { this.send(chunk, version).await });
                if from.is_none() {
                    break;
                }
            }
        }
        while transfers.join_next().await.is_some() {}
        tier.counts.away_chunks.set(away);
    }

    fn is_cold(&self, tier: &Tier, chunk: ChunkId, info: &ChunkInfo) -> bool {
        let here = info.allocated_bytes - info.away_bytes;
        // A part of an older object: it comes back as a whole first, when somebody reads it.
        let mixed = info.away_bytes > 0 && info.object != info.version;
        // What cannot go makes no room, however cold it is.
        let can = here > 0
            && !mixed
            && info.version != ChunkVersion::UNKNOWN
            && self.mode_of(chunk) != TierMode::None;
        can && lock(&tier.policy).goes(chunk, here, tier.now())
    }

    /// Sends one chunk away.
    async fn send(self: Arc<Self>, chunk: ChunkId, version: Version) {
        let Some(tier) = &self.tier else { return };
        match self.try_send(tier, chunk, version).await {
            Ok(()) => lock(&tier.policy).went(chunk),
            Err(stays) => self.note_stay(tier, chunk, &stays),
        }
    }

    fn note_stay(&self, tier: &Tier, chunk: ChunkId, stays: &Stays) {
        match stays {
            Stays::Changed => {}
            Stays::Bucket(error) => tier.failed("upload", error),
            Stays::Store(error) => {
                self.damage.note_error(error);
                self.metrics.store_failed(error);
                tracing::debug!(?chunk, "a chunk stays, because it cannot be read");
            }
        }
    }

    async fn try_send(&self, tier: &Tier, chunk: ChunkId, version: Version) -> Result<(), Stays> {
        self.upload(tier, chunk, version).await?;
        let chunks = self.chunks.clone();
        let forget = move || chunks.store().send_away(chunks::key(chunk), ChunkVersion(version.0));
        match self.blocking(forget).await {
            Some(Ok(Some(bytes))) => {
                tracing::debug!(?chunk, %version, bytes, "a chunk is away");
                Ok(())
            }
            Some(Ok(None)) | None => Err(Stays::Changed),
            Some(Err(error)) => Err(Stays::Store(error)),
        }
    }

    /// Sees to it that a chunk's object in a version is in the bucket.
    async fn upload(&self, tier: &Tier, chunk: ChunkId, version: Version) -> Result<(), Stays> {
        let id = self.object_of(tier, chunk, version).ok_or(Stays::Changed)?;
        if !self.is_quiet(id.group, chunk) || self.chunks.version(chunk) != version {
            return Err(Stays::Changed);
        }
        let codec = self.codec(chunk).map_err(Stays::Store)?;
        let bucket = self.bucket(tier).await.map_err(Stays::Bucket)?;
        if bucket.has(&id, &codec).await.map_err(Stays::Bucket)? {
            return self.is_in_bucket(tier).await;
        }
        let bytes = self.make_object(id, codec).await?;
        let len = bytes.len() as u64;
        tier.pace.wait(len).await;
        let bucket = self.bucket(tier).await.map_err(Stays::Bucket)?;
        bucket.put(&id, bytes).await.map_err(Stays::Bucket)?;
        tier.counts.uploads.inc();
        tier.counts.uploaded_bytes.inc_by(len);
        self.is_in_bucket(tier).await
    }

    /// What was found there, or put there, just now is in the bucket of this file system, unless that was exchanged.
    async fn is_in_bucket(&self, tier: &Tier) -> Result<(), Stays> {
        self.bucket_since(tier, Instant::now()).await.map_err(Stays::Bucket)?;
        Ok(())
    }

    async fn make_object(&self, id: ObjectId, codec: Arc<Codec>) -> Result<Bytes, Stays> {
        let chunks = self.chunks.clone();
        let make = move || {
            let found = contents(&chunks, id.chunk, id.version).map_err(Stays::Store)?;
            let pieces = found.ok_or(Stays::Changed)?;
            let bytes = encode(&id, &pieces, &codec);
            Ok(Bytes::from(bytes.map_err(|e| Stays::Bucket(BucketError::Damaged(e)))?))
        };
        self.blocking(make).await.ok_or(Stays::Changed)?
    }

    /// One round of what is due of the volumes that have their primary copy in the bucket.
    async fn upload_changed(self: &Arc<Self>) {
        let Some(tier) = &self.tier else { return };
        let due = lock(&tier.dirty).due(tier.now(), DUE);
        let mut transfers = JoinSet::new();
        for chunk in due {
            while transfers.len() >= tier.options.transfers.max(1) {
                transfers.join_next().await;
            }
            if tier.trouble().is_some() && !transfers.is_empty() {
                break;
            }
            let this = self.clone();
            transfers.spawn(async move { this.upload_one(chunk).await });
        }
        while transfers.join_next().await.is_some() {}
    }

    async fn upload_one(self: Arc<Self>, chunk: ChunkId) {
        let Some(tier) = &self.tier else { return };
        let begun = tier.now();
        let version = self.chunks.version(chunk);
        let view = self.view();
        let head = view.group_of(chunk).and_then(|group| self.slot(group));
        let is_head = head.is_some_and(|slot| lock(&slot).group.is_head());
        // Gone, or somebody else's: the next head finds what is not in the bucket in its sweep.
        if !is_head || version == Version::NONE {
            lock(&tier.dirty).uploaded(chunk, begun, false);
            return;
        }
        // A part of it is in the object of an older version: all of it is needed for the next.
        if self.chunks.away(chunk).is_some_and(|parts| parts.object != parts.version)
            && let Err(errno) = self.bring_back(chunk).await
        {
            // Without the bucket it may still be there.
            if errno == Errno::EIO && tier.trouble().is_none() {
                self.note_stuck(tier, chunk, "a part of it that was only there cannot be had");
            }
            return;
        }
        match self.upload(tier, chunk, version).await {
            Ok(()) => {
                let changed = self.chunks.version(chunk) != version;
                lock(&tier.dirty).uploaded(chunk, begun, changed);
            }
            Err(stays) => {
                self.note_stay(tier, chunk, &stays);
                if let Stays::Store(error) = stays {
                    self.note_stuck(tier, chunk, &error.to_string());
                }
            }
        }
    }

    /// A changed chunk cannot be put into the bucket, although that can be reached.
    fn note_stuck(&self, tier: &Tier, chunk: ChunkId, why: &str) {
        if lock(&tier.dirty).stuck(chunk, tier.now()) {
            tracing::error!(?chunk, why, "a changed chunk cannot be put into the object store");
        }
    }
}
