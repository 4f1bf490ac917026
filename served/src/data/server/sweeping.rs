//! What the server has of groups in which it has no place, and audits of everything that it has.
//!
//! A server that leaves a chain keeps its copies: it may come back, and then only what differs is copied. When the group has all its
//! replicas elsewhere, nobody will ever ask for them again, and they are removed.
//!
//! # Why nothing is removed that is needed
//!
//! The metadata server names groups and epochs, and only such groups as have had all wanted replicas in sync, all of them there, for
//! longer than a lost replica is waited for (`Manager::garbage`): the copies here are older than those and will not be asked for. It names
//! none in which this server is to have a place. What it says may come late. So each chunk is removed only while the map here still has the group in that epoch,
//! without this server. If it gets a place in the group meanwhile, that is a later epoch, and the tail asks which chunks it has before
//! it relies on any of them: that question waits for [`Replicas::sweeping`], under which each removal looks at the map again. So what
//! the tail is told to be here stays here. Where the disk has lost data nothing is removed: what is here may be all that there is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netfs_common::errno::Errno;
use netfs_common::id::{ChunkId, Epoch, GroupId, Version};
use netfs_common::wire::audit::{AuditOp, AuditReply, Holding, MAX_AUDITED};
use netfs_common::wire::data::Reply;

use super::replicas::Replicas;

/// One call goes on for so long; the caller then asks for more.
const AT_A_TIME: Duration = Duration::from_secs(3);
/// The first chunk of all.
const FIRST: ChunkId = ChunkId { ino: netfs_common::id::Ino(0), generation: 0, index: 0 };

impl Replicas {
    /// Answers an audit.
    pub(super) async fn audit(self: &Arc<Self>, op: AuditOp) -> Result<Reply, Reply> {
        match op {
            AuditOp::Inventory { from, limit } => {
                let chunks = self.chunks.clone();
                let limit = usize::try_from(limit).unwrap_or(usize::MAX);
                let page = self.blocking(move || chunks.page(from, limit)).await;
                let (chunks, next) = page.ok_or(Reply::Busy)?;
                Ok(Reply::Listed { chunks, next })
            }
            AuditOp::Holdings { from } => self.holdings(from).await,
            AuditOp::Sweep { groups, from } => self.sweep(groups, from).await,
            AuditOp::Seed { group, epoch, after } => {
                Ok(Reply::Audited(self.seed(group, epoch, after).await?))
            }
        }
    }

    /// How much there is of each group.
    async fn holdings(&self, from: GroupId) -> Result<Reply, Reply> {
        let mut all: BTreeMap<GroupId, Holding> = BTreeMap::new();
        let mut next = Some(FIRST);
        while let Some(first) = next {
            let (chunks, view) = (self.chunks.clone(), self.view());
            let page = self.blocking(move || chunks.page(first, usize::MAX)).await;
            let (page, more) = page.ok_or(Reply::Busy)?;
            for (chunk, version) in page {
                let Some(group) = view.group_of(chunk).filter(|group| *group >= from) else {
                    continue;
                };
                let new = Holding { group, chunks: 0, newest: Version::NONE };
                let held = all.entry(group).or_insert(new);
                held.chunks += 1;
                held.newest = held.newest.max(version);
                // The map bounds it, and no more are told.
                if all.len() > 2 * MAX_AUDITED {
                    all.pop_last();
                }
            }
            next = more;
        }
        let next = all.keys().nth(MAX_AUDITED).copied();
        let groups = all.into_values().take(MAX_AUDITED).collect();
        Ok(Reply::Audited(AuditReply::Holdings { groups, next }))
    }

    /// Whether this server has no place in a group, which is still in this epoch. One whose disk has lost data, or whose directory is an older copy, is not
    /// certain to know its place.
    fn is_stranger(&self, group: GroupId, epoch: Epoch) -> bool {
        if self.loss.is_incomplete() {
            return false;
        }
        let view = self.view();
        let (Some(me), Some(chain)) = (view.me, view.map.chain(group)) else { return false };
        chain.epoch == epoch
            && !chain.has(me)
            && !chain.members().any(|member| member.instance == self.instance)
    }

    /// Removes what there is of these groups. The caller sees to it that it goes on to its end when nobody waits for it any more.
    async fn sweep(
        self: &Arc<Self>,
        groups: Vec<(GroupId, Epoch)>,
        from: ChunkId,
    ) -> Result<Reply, Reply> {
        if groups.len() > MAX_AUDITED {
            return Err(Reply::Failed(Errno::EINVAL));
        }
        let groups: Arc<BTreeMap<GroupId, Epoch>> = Arc::new(groups.into_iter().collect());
        let (until, mut next) = (Instant::now() + AT_A_TIME, Some(from));
        let (mut removed, mut bytes) = (0, 0u64);
        while let Some(first) = next
            && Instant::now() < until
        {
            let (chunks, view, wanted) = (self.chunks.clone(), self.view(), groups.clone());
            let of_these =
                move |chunk| view.group_of(chunk).is_some_and(|g| wanted.contains_key(&g));
            let page = self.blocking(move || chunks.step(first, of_these)).await;
            let (page, more) = page.ok_or(Reply::Busy)?;
            for (chunk, _) in page {
                let Some(group) = self.view().group_of(chunk) else { continue };
                let Some(epoch) = groups.get(&group) else { continue };
                let _alone = self.sweeping.lock().await;
                if !self.is_stranger(group, *epoch) {
                    continue;
                }
                let chunks = self.chunks.clone();
                let grown = self.blocking(move || chunks.erase(chunk)).await.ok_or(Reply::Busy)?;
                let grown = grown.map_err(|error| {
                    self.metrics.store_failed(&error);
                    Reply::Failed(super::fault::errno(&error))
                })?;
                removed += 1;
                bytes = bytes.saturating_add(grown.min(0).unsigned_abs());
                self.metrics.swept.inc();
            }
            next = more;
        }
        if removed > 0 {
            tracing::info!(
                chunks = removed,
                bytes,
                "removed copies of groups in which this server has no place any more"
            );
        }
        Ok(Reply::Audited(AuditReply::Swept { chunks: removed, bytes, next }))
    }
}
