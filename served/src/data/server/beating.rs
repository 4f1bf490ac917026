//! Signs of life for the metadata server, and what it says.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use netfs_common::codec;
use netfs_common::id::ClusterId;
use netfs_common::map::{Chain, ClusterMap};
use netfs_common::net::Payload;
use netfs_common::warn_rarely;
use netfs_common::wire::cluster::{Beat, BeatReply, Counts, TierReport};
use netfs_common::wire::data::Reply;

use super::lease;
use super::replicas::{Replicas, lock};
use crate::data::store::Usage;

/// An answer is never held back longer.
const MAX_HOLD: Duration = Duration::from_secs(10);
/// While it is held back it is looked whether a replica has stalled.
const LOOK: Duration = Duration::from_millis(200);
/// The store's figures are looked at again after this time.
const USAGE_AGE: Duration = Duration::from_millis(500);
/// Groups of which one answer tells, for each kind of news: it has to fit into a message's header.
const MAX_TOLD: usize = 512;
/// The same trouble is logged this often.
const WARN_INTERVAL: Duration = Duration::from_secs(10);
/// A replica that waits for one after it gets this much longer, for each of them: the last one is to blame first.
const PER_HOP: Duration = Duration::from_secs(1);

impl Replicas {
    /// Answers a sign of life with what there is to tell.
    pub(super) async fn beat(
        self: &Arc<Self>,
        beat: Beat,
        payload: Payload,
    ) -> Result<Reply, Reply> {
        let admitted = self.owner.admits(beat.owner).map_err(|error| {
            tracing::error!(%error, "it cannot be noted whose the data is");
            Reply::Failed(netfs_common::errno::Errno::from_io(&error))
        })?;
        if !admitted {
            return self.not_for(&beat).await;
        }
        self.loss.note_followed();
        if let Some(token) = beat.echo {
            self.lease.renew(token, Duration::from_millis(beat.lease_ms.into()));
        }
        let mut at_once = beat.echo.is_none();
        if !payload.is_empty() {
            let map: ClusterMap = codec::decode(&payload.into_bytes()).map_err(|error| {
                tracing::error!(%error, "the cluster map cannot be understood");
                Reply::Failed(netfs_common::errno::Errno::EPROTO)
            })?;
            if let Err(error) = map.validate() {
                tracing::error!(%error, "the cluster map cannot be used");
                return Err(Reply::Failed(netfs_common::errno::Errno::EPROTO));
            }
            self.set_map(beat.server, map);
            at_once = true;
        }
        for (id, epoch) in &beat.revoke {
            self.run(*id, |slot| slot.group.revoke(*epoch));
            at_once = true;
        }
        // The map may have said just now that others are gone.
        if self.has_given_up() {
            warn_rarely!(
                WARN_INTERVAL,
                "the data store takes no more writes since its disk has failed: the metadata server is not answered any more, so that others go on \
                 in place of this one; check the disk, then restart the server"
            );
            // It has nothing else to say, however often it is asked.
            tokio::time::sleep(Duration::from_millis(beat.hold_ms.into()).min(MAX_HOLD)).await;
            return Err(Reply::Failed(netfs_common::errno::Errno::EIO));
        }
        // Answered at once when nothing is under way any more, which may be now.
        for (id, epoch) in &beat.hand_over {
            self.run(*id, |slot| slot.group.hand_over(*epoch));
        }
        let until = Instant::now() + Duration::from_millis(beat.hold_ms.into()).min(MAX_HOLD);
        let stall = Duration::from_millis(beat.stall_ms.into());
        loop {
            let news = self.news.notified();
            tokio::pin!(news);
            news.as_mut().enable();
            let reply = self.report(&beat, stall).await?;
            let left = until.saturating_duration_since(Instant::now());
            let nothing = reply.synced.is_empty()
                && reply.broken.is_empty()
                && reply.stalled.is_empty()
                && reply.handed_over.is_empty()
                && reply.version == beat.version;
            if at_once || !nothing || left.is_zero() {
                return Ok(Reply::Beat(Box::new(reply)));
            }
            tokio::select! {
                () = news => {}
                () = tokio::time::sleep(left.min(LOOK)) => {}
            }
        }
    }

    /// Whether this server is better taken for a dead one: it can store nothing any more, not even that something is to be removed, and all
    /// that it has others have too. Where it is the only one, it goes on for those who read.
    pub(super) fn has_given_up(&self) -> bool {
        let alone = |chain: &Chain| {
            chain.replicas.len() == 1 && chain.replicas[0].instance == self.instance
        };
        self.chunks.store().is_poisoned()
            && !self.view().map.groups().any(|(_, chain)| alone(chain))
    }

    /// Answers metadata to which the data does not belong.
    async fn not_for(self: &Arc<Self>, beat: &Beat) -> Result<Reply, Reply> {
        warn_rarely!(
            WARN_INTERVAL,
            other = %ClusterId(beat.owner),
            own = ?self.owner.known().map(ClusterId),
            "this data directory belongs to another cluster, or to this one before its metadata was made anew: it is left alone; \
             start the server with the right directory, or with an empty one"
        );
        // It has nothing else to say, however often it is asked.
        let hold = Duration::from_millis(beat.hold_ms.into()).min(MAX_HOLD);
        tokio::time::sleep(hold).await;
        let mut reply = self.report(beat, hold).await?;
        reply.revoked = Vec::new();
        Ok(Reply::Beat(Box::new(reply)))
    }

    async fn report(self: &Arc<Self>, beat: &Beat, stall: Duration) -> Result<BeatReply, Reply> {
        let (mut synced, mut broken) = (Vec::new(), Vec::new());
        let (mut stalled, mut lacking) = (Vec::new(), Vec::new());
        let mut handed_over = Vec::new();
        // Whether others store the same, and have to get out of the way before one is full.
        let mut shares = false;
        for (id, slot) in self.slots() {
            let slot = lock(&slot);
            let epoch = slot.group.epoch();
            if let Some((at, learner)) = slot.synced.filter(|(at, _)| *at == epoch) {
                synced.push((id, at, learner));
            }
            shares |= slot.group.chain().is_some_and(|chain| {
                chain.members().any(|m| m.instance == self.instance) && chain.members().count() > 1
            });
            if slot.group.has_handed_over() {
                handed_over.push((id, epoch));
            }
            if slot.broken == Some(epoch) {
                broken.push((id, epoch));
            }
            if let Some(learner) = slot.group.chain().and_then(|chain| chain.learner)
                && slot.refused.is_some_and(|since| since.elapsed() > stall)
            {
                stalled.push((id, epoch, learner));
            }
            if let Some(chain) = slot.group.chain()
                && let Some(since) = slot.passed_on.values().min()
            {
                let members: Vec<_> = chain.members().collect();
                let mine = members.iter().position(|m| m.instance == self.instance);
                let next = mine.and_then(|mine| Some((mine + 1, *members.get(mine + 1)?)));
                if let Some((place, next)) = next {
                    let below = u32::try_from(members.len() - 1 - place).unwrap_or(u32::MAX);
                    let deadline = stall + PER_HOP * below;
                    if self.progress.is_stalled(next.server, *since, deadline) {
                        tracing::debug!(group = %id, %epoch, server = %next.server, "a replica has stalled");
                        stalled.push((id, epoch, next));
                    }
                }
            }
            if slot.group.is_teaching() {
                lacking.push((id, slot.group.left().map(|left| left as u64)));
            }
        }
        // What does not fit is said when this is dealt with.
        synced.truncate(MAX_TOLD);
        broken.truncate(MAX_TOLD);
        stalled.truncate(MAX_TOLD);
        lacking.truncate(MAX_TOLD);
        handed_over.truncate(MAX_TOLD);
        let usage = self.usage().await?;
        let free = usage.free_bytes.saturating_add(usage.reclaimable_bytes);
        let free = match shares {
            true => self.chunks.beyond_margin(free),
            false => free,
        };
        let free = free.min(usage.capacity_bytes);
        Ok(BeatReply {
            token: lease::now(),
            instance: self.instance,
            store: self.chunks.store().identity(),
            domain: self.domain.clone(),
            capacity: usage.capacity_bytes,
            free,
            live: usage.live_bytes,
            chunks: usage.chunks,
            full: self.chunks.is_called_full(),
            version: self.view().map.version,
            revoked: beat.revoke.clone(),
            synced,
            broken,
            stalled,
            handed_over,
            lacking,
            locked: self.keys.locked(),
            counts: Counts {
                pushed_chunks: self.taught.chunks.load(Ordering::Relaxed),
                pushed_bytes: self.taught.bytes.load(Ordering::Relaxed),
                damaged: self.metrics.damaged.get(),
                mended: self.metrics.mended.get(),
            },
            work: self.metrics.work(),
            tier: match &self.tier {
                Some(tier) => Some(tier.report(usage.away_bytes)),
                None if usage.away_bytes > 0 => Some(TierReport {
                    trouble: Some("its settings have no section [tier]".into()),
                    away_bytes: usage.away_bytes,
                    ..TierReport::default()
                }),
                None => None,
            },
            lacks: self.loss.lacks(),
            owner: self.owner.known(),
            incomplete: self.loss.is_alone_with_it(),
            followed: self.loss.followed(),
        })
    }

    /// The store's figures of a moment ago. They are looked at beside: a sign of life must not wait behind changes for a thread, or a
    /// server with much to do is taken for a dead one.
    async fn usage(self: &Arc<Self>) -> Result<Usage, Reply> {
        let known = *lock(&self.usage);
        match known {
            Some((at, usage)) if at.elapsed() < USAGE_AGE => return Ok(usage),
            Some((_, usage)) => {
                // The next look is by then.
                *lock(&self.usage) = Some((Instant::now(), usage));
                let this = self.clone();
                tokio::spawn(async move { this.look_at_usage().await });
                return Ok(usage);
            }
            None => {}
        }
        self.look_at_usage().await
    }

    /// The store's figures of now.
    pub(super) async fn look_at_usage(&self) -> Result<Usage, Reply> {
        let chunks = self.chunks.clone();
        let usage = self.blocking(move || chunks.usage()).await;
        let usage = usage.ok_or(Reply::Busy)?.map_err(|error| {
            self.metrics.store_failed(&error);
            Reply::Failed(super::fault::errno(&error))
        })?;
        *lock(&self.usage) = Some((Instant::now(), usage));
        Ok(usage)
    }
}
