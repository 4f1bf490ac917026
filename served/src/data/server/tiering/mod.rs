//! Moving chunks between the store and the bucket.
//!
//! A chunk goes when it was not used for a while, or when the disk fills (`evicting.rs`): its object is made, unless it is there
//! already, and then the store forgets the bytes, if the chunk still has that version. Every replica does that for itself. Which of them
//! makes the object does not matter: equal versions are equal bytes.
//!
//! A read that meets bytes which are away waits until they are back ([`Replicas::bring_back`]). A change does not: it
//! hides parts of what is away, like parts of anything else. So a bucket that cannot be reached stops reads of what is only there, and nothing else.
//!
//! The bucket is used only if it is this file system's (`claiming.rs`).
//!
//! Objects that no replica needs any more are removed by the head (`sweeping.rs`, which says why that is safe). A server that is to go on with a group whose
//! replicas are all lost finds out first what the bucket has of it (`seeding.rs`).

mod claiming;
mod evicting;
mod seeding;
mod sweeping;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use netfs_common::errno::Errno;
use netfs_common::id::{ChunkId, GroupId, Version};
use netfs_common::warn_rarely;
use netfs_common::wire::cluster::{MAX_OBJECTS, TierReport};
use tokio::sync::{Semaphore, watch};

pub(super) use claiming::Known;

use claiming::Claim;

use super::chunks;
use super::fault;
use super::mending::Said;
use super::metrics::TierMetrics;
use super::replicas::{Replicas, lock};
use super::teaching::Pace;
use crate::data::codec::Codec;
use crate::data::store::StoreError;
use crate::data::tier::{
    Bucket, BucketError, BucketOptions, Dirty, Object, ObjectError, ObjectId, Policy, PolicyConfig,
};

/// Chunks that are fetched, or wait for it, at a time; of more, callers are told to come again.
const MAX_FETCHES: usize = 1024;
/// Nobody waits longer for a chunk.
const PATIENCE: Duration = Duration::from_secs(25);
/// So long after it was logged that the bucket cannot be reached it is logged again.
const WARN: Duration = Duration::from_secs(30);
/// A chunk may be changed again and again while it is fetched.
const ROUNDS: usize = 8;

/// Settings of the tier.
#[derive(Clone, Debug)]
pub struct TierOptions {
    /// The bucket.
    pub bucket: BucketOptions,
    /// What was not used for so long goes.
    pub after: Duration,
    /// At this level of the disk the coldest go before their time.
    pub fill_percent: u8,
    /// The longest time from one look at all chunks to the next.
    pub look_interval: Duration,
    /// Objects that are moved at a time, in each direction.
    pub transfers: usize,
    /// How fast chunks are sent away, in bytes per second; 0 for as fast as it goes.
    pub rate: u64,
    /// Changes of volumes that have their primary copy in the bucket are there after this time.
    pub delay: Duration,
    /// From one look for objects that nobody needs to the next.
    pub sweep_interval: Duration,
}

impl TierOptions {
    /// A bucket, with default settings.
    pub fn new(bucket: BucketOptions) -> TierOptions {
        TierOptions {
            bucket,
            after: Duration::from_secs(30 * 24 * 3600),
            fill_percent: 80,
            look_interval: Duration::from_secs(30),
            transfers: 4,
            rate: 128 << 20,
            delay: Duration::from_secs(60),
            sweep_interval: Duration::from_secs(600),
        }
    }
}

/// How the fetch of a chunk ended.
type Fetched = Option<Result<(), Errno>>;

/// What moves chunks.
#[derive(Debug)]
pub(super) struct Tier {
    /// Of [`Replicas::bucket`] alone.
    bucket: Bucket,
    claim: Claim,
    options: TierOptions,
    begun: Instant,
    policy: Mutex<Policy>,
    dirty: Mutex<Dirty>,
    fetching: Mutex<HashMap<ChunkId, watch::Receiver<Fetched>>>,
    /// Fetches have places of their own: nobody waits for uploads.
    fetches: Semaphore,
    pace: Pace,
    counts: TierMetrics,
}

impl Tier {
    pub(super) fn new(
        options: TierOptions,
        cluster: [u8; 16],
        known: Known,
        counts: TierMetrics,
    ) -> Result<Tier, BucketError> {
        let config = PolicyConfig { after: options.after, fill_percent: options.fill_percent };
        Ok(Tier {
            bucket: Bucket::new(&options.bucket, cluster)?,
            claim: Claim::new(known),
            begun: Instant::now(),
            policy: Mutex::new(Policy::new(config)),
            dirty: Mutex::new(Dirty::new(options.delay)),
            fetching: Mutex::default(),
            fetches: Semaphore::new(options.transfers.max(1)),
            pace: Pace::new(options.rate),
            counts,
            options,
        })
    }

    /// The time of the policy.
    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// A chunk is read or written.
    pub(super) fn used(&self, chunk: ChunkId) {
        lock(&self.policy).used(chunk, self.now());
    }

    /// A chunk of a volume whose primary copy is in the bucket was changed.
    pub(super) fn changed(&self, chunk: ChunkId) {
        lock(&self.dirty).changed(chunk, self.now());
    }

    /// Whether changes of such volumes have to wait.
    pub(super) fn is_late(&self) -> bool {
        lock(&self.dirty).is_late(self.now())
    }

    /// Why the bucket is not used, or could not be reached by the last call, whatever was found out last.
    pub(super) fn trouble(&self) -> Option<String> {
        let found = [self.claim.refused(), self.bucket.trouble()].into_iter().flatten();
        found.max_by_key(|(at, _)| *at).map(|(_, why)| why)
    }

    /// A call of the bucket has failed.
    fn failed(&self, what: &'static str, error: &BucketError) {
        self.counts.errors.inc();
        self.counts.unreachable.set(i64::from(self.trouble().is_some()));
        match error {
            BucketError::Unreachable(why) | BucketError::Unusable(why) => {
                warn_rarely!(WARN, what, why, "the object store cannot be used");
            }
            error => tracing::error!(what, %error, "object store"),
        }
    }

    pub(super) fn report(&self, away_bytes: u64) -> TierReport {
        let trouble = self.trouble();
        self.counts.unreachable.set(i64::from(trouble.is_some()));
        let counts = &self.counts;
        let (waiting, stuck, late) = {
            let dirty = lock(&self.dirty);
            (dirty.len() as u64, dirty.stuck_len() as u64, dirty.is_late(self.now()))
        };
        TierReport {
            trouble,
            away_chunks: counts.away_chunks.get().unsigned_abs(),
            away_bytes,
            uploads: counts.uploads.get(),
            uploaded_bytes: counts.uploaded_bytes.get(),
            fetches: counts.fetches.get(),
            fetched_bytes: counts.fetched_bytes.get(),
            removed: counts.removed.get(),
            errors: counts.errors.get(),
            waiting,
            late,
            stuck,
        }
    }
}

/// Moves chunks, for as long as the replicas are there.
pub(super) async fn attend(replicas: Weak<Replicas>) {
    let evicting = evicting::attend(replicas.clone());
    let sweeping = sweeping::attend(replicas.clone());
    let claiming = claiming::attend(replicas.clone());
    let uploading = evicting::keep_up(replicas);
    tokio::join!(evicting, sweeping, claiming, uploading);
}

impl Replicas {
    /// The name of a chunk's object in a version.
    fn object_of(&self, tier: &Tier, chunk: ChunkId, version: Version) -> Option<ObjectId> {
        let view = self.view();
        let group = view.group_of(chunk)?;
        let volume = view.map.pool_of(group)?.volume;
        Some(ObjectId { cluster: tier.bucket.cluster(), volume, group, chunk, version })
    }

    /// An object that should be there. The marker is read with it: another bucket may have one of the same name, and may lack this one.
    async fn object(
        &self,
        tier: &Tier,
        id: &ObjectId,
        codec: Arc<Codec>,
    ) -> Result<Object, BucketError> {
        let bucket = self.bucket(tier).await?;
        let (ours, got) =
            tokio::join!(self.bucket_since(tier, Instant::now()), bucket.get(id, codec));
        ours.and(got)
    }

    /// Objects of a group, as [`Bucket::list`], of a bucket that is this file system's also when they have been listed.
    async fn objects(
        &self,
        tier: &Tier,
        of: (u64, GroupId),
        after: Option<&ObjectId>,
    ) -> Result<(Vec<ObjectId>, bool), BucketError> {
        let page = self.bucket(tier).await?.list(of, after, MAX_OBJECTS).await?;
        self.bucket_since(tier, Instant::now()).await?;
        Ok(page)
    }

    /// How the bytes of a chunk's object look.
    fn codec(&self, chunk: ChunkId) -> Result<Arc<Codec>, StoreError> {
        self.chunks.store().codec(chunks::key(chunk))
    }

    /// The object of a chunk in a version, if there is one that is good.
    pub(super) async fn of_object(&self, chunk: ChunkId, version: Version) -> Said<Object> {
        let Some(tier) = self.tier.as_ref().filter(|_| version != Version::NONE) else {
            return Said::HasNot;
        };
        let (Some(id), Ok(codec)) = (self.object_of(tier, chunk, version), self.codec(chunk))
        else {
            return Said::Nothing;
        };
        match self.object(tier, &id, codec).await {
            Ok(object) => Said::Has(object),
            Err(BucketError::Missing) => Said::HasNot,
            Err(error) => {
                let is_bad = matches!(
                    error,
                    BucketError::Damaged(ObjectError::Damaged(_) | ObjectError::Forged)
                );
                tier.failed("fetch", &error);
                if is_bad { Said::HasNot } else { Said::Nothing }
            }
        }
    }

    /// Waits until nothing of a chunk is away. All who wait for a chunk share one fetch.
    pub(super) async fn bring_back(self: &Arc<Self>, chunk: ChunkId) -> Result<(), Errno> {
        let Some(tier) = &self.tier else {
            warn_rarely!(
                WARN,
                ?chunk,
                "a chunk is in an object store, and this server has no [tier] to fetch it from"
            );
            return Err(Errno::EIO);
        };
        let mut done = {
            let mut fetching = lock(&tier.fetching);
            match fetching.get(&chunk) {
                Some(done) => done.clone(),
                None if fetching.len() >= MAX_FETCHES => return Err(Errno::EAGAIN),
                None => {
                    let (tell, done) = watch::channel(None);
                    fetching.insert(chunk, done.clone());
                    let this = self.clone();
                    tokio::spawn(async move {
                        let result = match &this.tier {
                            Some(tier) => this.fetch_back(tier, chunk).await,
                            None => Err(Errno::EIO),
                        };
                        if let Some(tier) = &this.tier {
                            lock(&tier.fetching).remove(&chunk);
                        }
                        tell.send_replace(Some(result));
                    });
                    done
                }
            }
        };
        let waited = tokio::time::timeout(PATIENCE, done.wait_for(Option::is_some)).await;
        match waited {
            Ok(Ok(result)) => result.unwrap_or(Err(Errno::EIO)),
            // The fetch has panicked.
            Ok(Err(_)) => {
                lock(&tier.fetching).remove(&chunk);
                Err(Errno::EIO)
            }
            Err(_) => Err(Errno::EIO),
        }
    }

    async fn fetch_back(&self, tier: &Tier, chunk: ChunkId) -> Result<(), Errno> {
        let _place = tier.fetches.acquire().await.map_err(|_| Errno::ESHUTDOWN)?;
        tier.used(chunk);
        for _ in 0..ROUNDS {
            let Some(parts) = self.chunks.away(chunk) else { return Ok(()) };
            let version = Version(parts.object.0);
            let Some(id) = self.object_of(tier, chunk, version) else { return Err(Errno::EIO) };
            let codec = self.codec(chunk).map_err(|error| fault::errno(&error))?;
            let object = match self.object(tier, &id, codec).await {
                Ok(object) => object,
                Err(error) => {
                    // It may have changed hands meanwhile: a whole overwrite needs no object.
                    if self.chunks.away(chunk).is_none_or(|now| now.object != parts.object) {
                        continue;
                    }
                    if !matches!(error, BucketError::Unreachable(_) | BucketError::Unusable(_)) {
                        tracing::error!(?chunk, %version, %error, "a chunk that is only in the object store cannot be read");
                    }
                    tier.failed("fetch", &error);
                    return Err(Errno::EIO);
                }
            };
            let chunks = self.chunks.clone();
            let put = move || {
                let fill = |at: u32, out: &mut [u8]| object.fill(at, out);
                chunks.store().bring_back(chunks::key(chunk), parts.object, fill)
            };
            match self.blocking(put).await {
                Some(Ok(bytes)) => {
                    tier.counts.fetches.inc();
                    tier.counts.fetched_bytes.inc_by(bytes);
                }
                Some(Err(error)) => {
                    self.metrics.store_failed(&error);
                    return Err(fault::errno(&error));
                }
                None => return Err(Errno::EIO),
            }
        }
        match self.chunks.away(chunk) {
            None => Ok(()),
            Some(_) => Err(Errno::EAGAIN),
        }
    }

    /// What is done about a failure of the store: bytes that are away are fetched; `false`: it was another failure.
    pub(super) async fn fetch_if_away(self: &Arc<Self>, error: &StoreError) -> Result<bool, Errno> {
        match error {
            StoreError::Away { key, .. } => self.bring_back(chunks::id(key)).await.map(|()| true),
            _ => Ok(false),
        }
    }
}
