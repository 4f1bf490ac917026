//! Taking over what the bucket has of a group whose replicas are lost.
//!
//! The metadata server asks for it before it gives the group to this server: nobody reads or writes the group until then, so nobody is
//! shown a hole where the bucket has data, and no head removes objects that nobody seems to need. Of each chunk the newest object that is
//! sound is taken, and only if what is here is older; it becomes a chunk that is away, all of it, in that version. The
//! bytes come when somebody reads them.
//!
//! What is here may be an older copy, from before this server left the group, or the beginning of one: what a learner has got of a chunk of which it did not get
//! the end has no version, and is replaced too.
//!
//! Versions of a chunk only rise, whoever was the head, and the group's next epoch is later than all of these: so the newest object is the latest state of
//! the chunk that was ever sent, and what is written from then on is newer. What cannot be known is what was removed: objects of chunks that are gone
//! and were not removed yet become chunks again. An audit finds those of files that are gone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netfs_common::errno::Errno;
use netfs_common::id::{ChunkId, Epoch, GroupId, Version};
use netfs_common::wire::audit::{AuditReply, Seeded, Unseeded};
use netfs_common::wire::data::Reply;
use tokio::task::JoinSet;

use super::super::fault;
use super::super::replicas::Replicas;
use crate::data::tier::{BucketError, ObjectError, ObjectId, Ranges};

/// One call goes on for so long; the caller then asks for more.
const AT_A_TIME: Duration = Duration::from_secs(5);
/// Objects whose ranges are asked for at a time.
const ASKED: usize = 16;

/// What of a chunk is in the bucket and not here.
enum Found {
    /// What is here is not older.
    Kept,
    /// This is newer, and so many objects that would be newer still are damaged.
    Newer { version: Version, ranges: Ranges, bad: u64 },
    /// All that would be newer is damaged.
    Bad(u64),
}

impl Replicas {
    /// Takes over a part of what the bucket has of a group.
    pub(in super::super) async fn seed(
        self: &Arc<Self>,
        group: GroupId,
        epoch: Epoch,
        after: Option<(ChunkId, Version)>,
    ) -> Result<AuditReply, Reply> {
        let view = self.view();
        let Some(volume) = view.map.pool_of(group).map(|pool| pool.volume) else {
            return Err(Reply::StaleEpoch(view.map.version));
        };
        self.may_seed(group, epoch)?;
        let Some(tier) = &self.tier else {
            return Ok(AuditReply::NotSeeded(Unseeded::NoStore));
        };
        let trouble = |error: &BucketError| {
            tier.failed("seed", error);
            Ok(AuditReply::NotSeeded(Unseeded::Trouble(error.to_string())))
        };
        let id_of = |(chunk, version)| {
            let cluster = tier.bucket.cluster();
            ObjectId { cluster, volume, group, chunk, version }
        };
        let after = after.map(id_of);
        let (page, more) = match self.objects(tier, (volume, group), after.as_ref()).await {
            Ok(page) => page,
            Err(error) => return trouble(&error),
        };
        let last = page.last().map(|id| (id.chunk, id.version)).filter(|_| more);
        let mut of_chunks: BTreeMap<ChunkId, Vec<ObjectId>> = BTreeMap::new();
        for id in page {
            of_chunks.entry(id.chunk).or_default().push(id);
        }
        let of_chunks: Vec<_> = of_chunks.into_values().collect();
        let (mut seeded, mut next) = (Seeded::default(), last);
        let until = Instant::now() + AT_A_TIME;
        for (at, part) in of_chunks.chunks(ASKED).enumerate() {
            let mut asked = JoinSet::new();
            for objects in part.iter().cloned() {
                let this = self.clone();
                asked.spawn(async move { this.newest(objects).await });
            }
            while let Some(found) = asked.join_next().await {
                match found.map_err(|_| Reply::Failed(Errno::EIO))? {
                    Ok((chunk, found)) => {
                        self.take_over(group, epoch, chunk, found, &mut seeded).await?;
                    }
                    Err(error) => return trouble(&error),
                }
            }
            let is_last = (at + 1) * ASKED >= of_chunks.len();
            if Instant::now() >= until && !is_last {
                let looked_at = part.last().and_then(|objects| objects.last());
                next = looked_at.map(|id| (id.chunk, id.version));
                break;
            }
        }
        self.flusher.flush().await.map_err(Reply::Failed)?;
        Ok(AuditReply::Seeded { seeded, next })
    }

    /// What is shown to somebody is not exchanged.
    fn may_seed(&self, group: GroupId, epoch: Epoch) -> Result<(), Reply> {
        let view = self.view();
        match view.map.chain(group) {
            Some(chain) if chain.epoch == epoch => {
                match chain.replicas.iter().any(|replica| replica.instance == self.instance) {
                    true => Err(Reply::Failed(Errno::EBUSY)),
                    false => Ok(()),
                }
            }
            _ => Err(Reply::StaleEpoch(view.map.version)),
        }
    }

    /// What of a chunk is in these objects, which are all of it and ascending, and not here.
    async fn newest(&self, objects: Vec<ObjectId>) -> Result<(ChunkId, Found), BucketError> {
        let lost = || BucketError::Unreachable("the server ends".into());
        let (Some(tier), Some(chunk)) = (&self.tier, objects.first().map(|id| id.chunk)) else {
            return Err(lost());
        };
        let here = self.chunks.version(chunk);
        let codec = self.codec(chunk).map_err(|error| BucketError::Settings(error.to_string()))?;
        let mut bad = 0;
        for id in objects.iter().rev().filter(|id| id.version > here) {
            match self.bucket(tier).await?.outline(id, codec.clone()).await {
                Ok(ranges) => {
                    return Ok((chunk, Found::Newer { version: id.version, ranges, bad }));
                }
                // What this program cannot read is not damaged: an older one must not be taken in its place.
                Err(
                    error @ BucketError::Damaged(ObjectError::Damaged(_) | ObjectError::Forged),
                ) => {
                    tracing::error!(object = id.name(), %error, "an object cannot be taken over");
                    bad += 1;
                }
                // It was listed a moment ago.
                Err(error) => return Err(error),
            }
        }
        Ok((chunk, if bad > 0 { Found::Bad(bad) } else { Found::Kept }))
    }

    async fn take_over(
        self: &Arc<Self>,
        group: GroupId,
        epoch: Epoch,
        chunk: ChunkId,
        found: Found,
        seeded: &mut Seeded,
    ) -> Result<(), Reply> {
        let (version, ranges) = match found {
            Found::Kept => {
                seeded.kept += 1;
                return Ok(());
            }
            Found::Bad(bad) => {
                seeded.bad += bad;
                return Ok(());
            }
            Found::Newer { version, ranges, bad } => {
                seeded.bad += bad;
                (version, ranges)
            }
        };
        // Neither is a copy removed meanwhile, nor does a piece come in from a replica that is about to die.
        let _alone = self.sweeping.lock().await;
        let _no_install = self.no_install(group).await;
        self.may_seed(group, epoch)?;
        seeded.chunks += 1;
        seeded.bytes += ranges.iter().map(|(_, len)| u64::from(*len)).sum::<u64>();
        let chunks = self.chunks.clone();
        let put = move || {
            if chunks.version(chunk) >= version {
                return Ok(());
            }
            chunks.erase(chunk)?;
            // It has its version when all of it is there.
            let last = ranges.len().saturating_sub(1);
            for (at, (offset, len)) in ranges.into_iter().enumerate() {
                let shown = if at == last { version } else { Version::NONE };
                chunks.write_away(chunk, shown, (offset.into(), len.into()), version)?;
            }
            Ok(())
        };
        let done = self.blocking(put).await.ok_or(Reply::Failed(Errno::EIO))?;
        done.map_err(|error| {
            self.metrics.store_failed(&error);
            Reply::Failed(fault::errno(&error))
        })
    }
}
