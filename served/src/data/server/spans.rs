//! Calls about a range of a file, whose chunks are of many groups. Whoever asks goes by a version of the cluster map and asks every head of
//! it; each answers for its own chunks.
//!
//! The map changes often while much is moved about, and most of that does not matter here. So an older version than this server's does as long
//! as all groups of the volume still have the heads that they had in it. A hole is made group by group: only in the epoch that the group
//! had in the caller's version, for in a later one the caller may have asked anew, and written since.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use netfs_common::id::{Epoch, GroupId, Verifier};
use netfs_common::map::volume_of;
use netfs_common::wire::data::{MAX_EXTENTS, Reply, Span};

use super::handler::{Answer, Handler};
use super::replicas::{What, Work, lock};
use super::turns::Client;

/// A map that somebody else has already is waited for so long.
const MAP_PATIENCE: Duration = Duration::from_secs(1);
/// A chain that changes while a hole in it is flushed is asked again for so long.
const FLUSH_PATIENCE: Duration = Duration::from_secs(10);
const FLUSH_PAUSE: Duration = Duration::from_millis(20);

impl Handler {
    /// The groups of a volume of which this server is the head, and was in this version of the map.
    async fn headed(&self, version: Epoch, volume: u64) -> Result<HashSet<GroupId>, Reply> {
        let mut known = self.replicas.version.subscribe();
        let reached = async { known.wait_for(|known| *known >= version).await.is_ok() };
        if !matches!(tokio::time::timeout(MAP_PATIENCE, reached).await, Ok(true)) {
            return Err(Reply::Busy);
        }
        let view = self.replicas.view();
        if !view.has_heads_of(volume, version) {
            return Err(Reply::StaleEpoch(view.map.version));
        }
        // Whoever asks goes by the server. Groups of which an earlier life of it is the head it must not leave out.
        let pools = || view.map.pools.iter().filter(|pool| pool.volume == volume);
        let earlier = pools()
            .flat_map(|pool| &pool.chains)
            .filter_map(|chain| chain.head())
            .any(|head| Some(head.server) == view.me && head.instance != self.instance);
        if earlier || view.me.is_none() {
            return Err(Reply::Busy);
        }
        let mut headed = HashSet::new();
        for (id, slot) in self.replicas.slots() {
            let slot = lock(&slot);
            let of_volume = view.map.pool_of(id).is_some_and(|pool| pool.volume == volume);
            if of_volume && slot.group.is_head() {
                let may = slot.group.is_sole() || self.replicas.lease.runs();
                if !may || !slot.group.may_show() {
                    return Err(Reply::Busy);
                }
                headed.insert(id);
            }
        }
        Ok(headed)
    }

    pub(super) async fn extents(
        &self,
        client: &Client,
        span: Span,
        limit: u32,
        version: Epoch,
    ) -> Answer {
        let volume = volume_of(span.ino);
        let headed = self.headed(version, volume).await?;
        // Nothing is told that the next head might not have.
        self.replicas.settle().await;
        let limit = limit.clamp(1, MAX_EXTENTS) as usize;
        let (chunks, view) = (self.chunks.clone(), self.replicas.view());
        let mine = move |chunk| view.group_of(chunk).is_some_and(|group| headed.contains(&group));
        let (extents, upto) =
            self.stored(client, move || chunks.extents(span, limit, mine)).await?;
        self.headed(version, volume).await?;
        Ok((Reply::Extents { extents, upto }, Bytes::new()))
    }

    pub(super) async fn punch_span(self: &Arc<Self>, span: Span, version: Epoch) -> Answer {
        let headed = self.headed(version, volume_of(span.ino)).await?;
        let view = self.replicas.view();
        let chunks = self.chunks.clone();
        let page = self.blocking(move || chunks.of_span(span, None)).await?;
        let (page, more) = page.map_err(|e| self.failed(&e))?;
        let mut allocated = 0;
        let mut upto = more.map_or(span.to, |chunk| chunk.index << span.chunk_bits);
        let mut made = BTreeMap::new();
        for (chunk, _) in page {
            let Some((group, chain)) = view.map.chain_of(chunk) else { continue };
            if !headed.contains(&group) {
                continue;
            }
            let start = chunk.index << span.chunk_bits;
            let (from, to) = (span.from.saturating_sub(start), span.to - start);
            let len = to.min(1 << span.chunk_bits).saturating_sub(from);
            let done = async {
                if view.chain_since(group) > version {
                    return Err(Reply::StaleEpoch(view.map.version));
                }
                let work = Work::own(What::Punch { offset: from, len }, self.held(group, 0).await?);
                self.propose((group, chain.epoch), chunk, work).await
            };
            match done.await {
                Ok((grown, verifier)) => {
                    allocated += grown;
                    if *made.entry(group).or_insert(verifier) != verifier {
                        return Err(Reply::Busy);
                    }
                }
                // What is done before stays done.
                Err(Reply::StaleEpoch(_) | Reply::Busy) if start > span.from => {
                    upto = start;
                    break;
                }
                Err(reply) => return Err(reply),
            }
        }
        self.flush_made(&made).await?;
        Ok((Reply::Punched { allocated, upto }, Bytes::new()))
    }

    /// Flushes groups in which something was done under these verifiers. It is there under the same verifier in whichever epoch.
    async fn flush_made(&self, made: &BTreeMap<GroupId, Verifier>) -> Result<(), Reply> {
        let until = Instant::now() + FLUSH_PATIENCE;
        while !made.is_empty() {
            let now = |group: &GroupId| (*group, self.replicas.epoch(*group).unwrap_or_default());
            match self.replicas.flush(made.keys().map(now).collect()).await {
                Ok(verifiers) if verifiers.iter().eq(made.values()) => break,
                Ok(_) => return Err(Reply::Busy),
                Err(Reply::StaleEpoch(_) | Reply::Busy) if Instant::now() < until => {
                    tokio::time::sleep(FLUSH_PAUSE).await;
                }
                Err(reply) => return Err(reply),
            }
        }
        Ok(())
    }
}
