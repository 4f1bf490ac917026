//! Removing objects that nobody needs any more.
//!
//! The head of a group lists the group's objects and looks at those whose version is not that of their chunk: the chunk has changed since, or is
//! gone, or the object was made and never used. It asks all other members of the chain whether they need one of them, now or after a crash, and
//! removes those that nobody does.
//!
//! **Why no replica ever misses one.** A replica *needs* an object if its chunk has that version, or if a part of the chunk is in that object.
//! Say that the object is of version v.
//!
//! - A replica that does not need it never will again. A chunk is sent to the object of its own version only, and it comes to v only by
//!   the change that v names. The head has nothing noted of the chunk, so whatever change made the object has been stored by all, or will
//!   never be; and no version is given twice.
//! - That holds after a crash as well: a member that says it does not need the object has flushed after it looked. What recovery finds is
//!   not older than what was flushed.
//! - A later chain consists of members of this one, or of replicas that were taught by them. Those that were away compare versions first; one that
//!   shows the same version as its teacher and keeps what it has needs the object of that version only, since a chunk of which a part is in an older
//!   object shows no version when versions are compared. Everything else it is given anew.
//! - A copy that is on its way to a learner may say where bytes are ([`super::super::teaching`]) and arrive after the learner was asked. So nothing is
//!   removed while the group has a learner, but for chunks that are not there at all: nobody is taught these.
//! - What was found out counts for the epoch in which it was asked. If that is over before the answers are there, nothing is removed. If
//!   it ends afterwards, the next chain is made of those that have answered.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use netfs_common::id::{ChunkId, Epoch, GroupId, Ino, Version};
use netfs_common::map::{Replica, TierMode};
use netfs_common::wire::cluster::PeerOp;
use netfs_common::wire::data::{At, Op, Reply, Request};

use super::super::chunks;
use super::super::replicas::{Replicas, lock};
use super::Tier;
use crate::data::tier::ObjectId;

/// Another replica has this long to look and to flush.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two groups, for each call of the bucket: a sweep is in no hurry.
const STEP: Duration = Duration::from_millis(20);

/// What a sweep remembers of a group.
type Known = HashSet<(ChunkId, Version)>;

/// Sweeps the groups of which this server is the head, again and again.
pub(super) async fn attend(replicas: Weak<Replicas>) {
    let mut headed_before: BTreeMap<GroupId, Epoch> = BTreeMap::new();
    let mut last = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let Some(this) = replicas.upgrade() else { return };
        let Some(tier) = &this.tier else { return };
        let headed = this.headed_groups();
        let due = last.elapsed() >= tier.options.sweep_interval;
        if due {
            last = Instant::now();
        }
        for (group, epoch) in &headed {
            // A head that is new to a group finds out what its primary copy lacks.
            let new = headed_before.get(group) != Some(epoch) && this.is_primary(*group);
            if (due || new) && this.tidy(tier, *group, *epoch).await.is_some() {
                headed_before.insert(*group, *epoch);
            }
            if due || new {
                tokio::time::sleep(STEP).await;
            }
        }
        headed_before.retain(|group, epoch| headed.get(group) == Some(epoch));
    }
}

impl Replicas {
    /// Groups of which this server is the head and may count on it.
    fn headed_groups(&self) -> BTreeMap<GroupId, Epoch> {
        let mut headed = BTreeMap::new();
        for (id, slot) in self.slots() {
            let slot = lock(&slot);
            if slot.group.is_head() && (slot.group.is_sole() || self.lease.runs()) {
                headed.insert(id, slot.group.epoch());
            }
        }
        headed
    }

    pub(in super::super) fn is_primary(&self, group: GroupId) -> bool {
        self.view().map.pool_of(group).is_some_and(|pool| pool.tier == TierMode::Primary)
    }

    /// Removes what nobody needs of a group; `None`: it could not be looked at to the end.
    async fn tidy(self: &Arc<Self>, tier: &Tier, group: GroupId, epoch: Epoch) -> Option<()> {
        let view = self.view();
        let volume = view.map.pool_of(group)?.volume;
        let primary = self.is_primary(group);
        let (mut known, mut after) = (Known::new(), None);
        loop {
            let (page, more) = match self.objects(tier, (volume, group), after.as_ref()).await {
                Ok(page) => page,
                Err(error) => {
                    tier.failed("list", &error);
                    return None;
                }
            };
            after = page.last().copied();
            if primary {
                known.extend(page.iter().map(|id| (id.chunk, id.version)));
            }
            // Looked at after they were listed: what is noted of a chunk now is what may still need one of them.
            let needless = page.into_iter().filter(|id| !self.needs(id.chunk, id.version));
            let needless = needless.filter(|id| self.is_settled(group, epoch, id.chunk)).collect();
            self.discard(tier, group, epoch, needless).await;
            if !more {
                break;
            }
            tokio::time::sleep(STEP).await;
        }
        if primary {
            self.find_missing(tier, group, &known).await;
        }
        Some(())
    }

    fn is_settled(&self, group: GroupId, epoch: Epoch, chunk: ChunkId) -> bool {
        self.slot(group).is_some_and(|slot| {
            let slot = lock(&slot);
            let learner = slot.group.chain().is_some_and(|chain| chain.learner.is_some());
            slot.group.readable(epoch, chunk) == Ok(true) && (!learner || !self.chunks.has(chunk))
        })
    }

    /// Whether the store here needs an object.
    pub(in super::super) fn needs(&self, chunk: ChunkId, version: Version) -> bool {
        let away = self.chunks.away(chunk).map(|parts| Version(parts.object.0));
        let here = self.chunks.version(chunk);
        // After a loss of the disk it is not known what is here: until it is, an object may be what this chunk was. It may be all that is left of one that
        // is not here at all.
        let doubted =
            here == Version::NONE && (self.chunks.has(chunk) || self.loss.is_incomplete());
        here == version || away == Some(version) || doubted
    }

    /// Which of these objects the store here needs, now or after a crash.
    pub(in super::super) async fn needed(
        &self,
        objects: &[(ChunkId, Version)],
    ) -> Result<Vec<(ChunkId, Version)>, Reply> {
        let needed =
            objects.iter().copied().filter(|(chunk, version)| self.needs(*chunk, *version));
        let needed = needed.collect();
        // In this order: what is not needed now was not needed by what is flushed after that.
        self.flusher.flush().await.map_err(Reply::Failed)?;
        Ok(needed)
    }

    /// Removes objects that nobody needs.
    async fn discard(
        self: &Arc<Self>,
        tier: &Tier,
        group: GroupId,
        epoch: Epoch,
        mut objects: Vec<ObjectId>,
    ) {
        if objects.is_empty() {
            return;
        }
        let named: Vec<_> = objects.iter().map(|id| (id.chunk, id.version)).collect();
        let Ok(needed) = self.needed(&named).await else { return };
        let mut needed: HashSet<_> = needed.into_iter().collect();
        let view = self.view();
        let Some(chain) = view.map.chain(group).filter(|chain| chain.epoch == epoch) else {
            return;
        };
        for member in chain.members().filter(|member| member.instance != self.instance) {
            match self.ask_needed(group, epoch, member, named.clone()).await {
                Some(theirs) => needed.extend(theirs),
                None => return,
            }
        }
        if self.headed_groups().get(&group) != Some(&epoch) {
            return;
        }
        objects.retain(|id| !needed.contains(&(id.chunk, id.version)));
        for id in objects {
            let removed = match self.bucket(tier).await {
                Ok(bucket) => bucket.delete(&id).await,
                Err(error) => Err(error),
            };
            match removed {
                Ok(()) => {
                    tier.counts.removed.inc();
                    tracing::debug!(object = %id.name(), "an object that nobody needs is removed");
                }
                Err(error) => {
                    tier.failed("delete", &error);
                    return;
                }
            }
        }
    }

    async fn ask_needed(
        &self,
        group: GroupId,
        epoch: Epoch,
        member: Replica,
        objects: Vec<(ChunkId, Version)>,
    ) -> Option<Vec<(ChunkId, Version)>> {
        let op = Op::Peer(PeerOp::Needed { objects });
        let at = At::Replica { group, epoch, instance: member.instance };
        let request = Request { at, op };
        let deadline = Some(Instant::now() + CALL_TIMEOUT);
        let view = self.view();
        let call = self.peers.call(&view.map, member.server, &request, Bytes::new(), deadline);
        match call.await {
            Ok((Reply::Listed { chunks, next: None }, _)) => Some(chunks),
            answer => {
                tracing::debug!(%group, ?answer, "a replica did not say which objects it needs");
                None
            }
        }
    }

    /// Chunks of which the bucket does not have the present version are put there.
    async fn find_missing(&self, tier: &Tier, group: GroupId, known: &Known) {
        let mut from = Some(ChunkId { ino: Ino(0), generation: 0, index: 0 });
        while let Some(first) = from {
            let chunks = self.chunks.clone();
            let Some((page, next)) = self.blocking(move || chunks.infos(first)).await else {
                return;
            };
            from = next;
            let view = self.view();
            for info in page {
                let (chunk, version) = (chunks::id(&info.key), Version(info.version.0));
                let ours = view.group_of(chunk) == Some(group);
                if ours && version != Version::NONE && !known.contains(&(chunk, version)) {
                    lock(&tier.dirty).missing(chunk, tier.now());
                }
            }
        }
    }
}
