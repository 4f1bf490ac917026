//! Having replicas learn anew that are not the same as the others.
//!
//! What a replica learns takes the place of all that it has in the group, whatever was found of it. So before it leaves its place everything that it has
//! is compared with what its teacher has: if there is anything that might be alive, that the teacher lacks or has otherwise, and that was not
//! judged in its favour, nobody learns, and it is left to people.

use std::collections::{BTreeMap, BTreeSet};

use netfs_common::id::{ChunkId, Epoch, GroupId, ServerId, Version};
use netfs_common::map::{MAX_REPLICAS, volume_of};

use super::confirm::{PATIENCE, Sample, attr_of};
use super::inventory::{Inventory, Seen};
use super::replicas::{State, learner};
use super::{Audit, MAX_SUSPECTS, Place, chunk_named, place};

/// Places in a chain: who is to learn, and from whom.
type Lesson = (usize, usize);

impl Audit {
    /// Has replicas of a group learn until all are the same. What still differs then, or is not known.
    pub(super) async fn teach(
        &self,
        group: GroupId,
        mut samples: BTreeMap<ChunkId, Sample>,
    ) -> BTreeSet<ChunkId> {
        for _ in 0..MAX_REPLICAS {
            let Some(Sample { epoch, shown, .. }) = samples.values().next().cloned() else { break };
            let states = samples.iter().map(|(chunk, s)| (*chunk, s.shown.clone())).collect();
            let chain = self.parts.cluster.published().map.chain(group).cloned();
            let same = samples.values().all(|sample| sample.epoch == epoch);
            let Some(chain) = chain.filter(|chain| chain.epoch == epoch && same) else {
                self.unfinished(format!("the replicas of placement group {group} change"));
                break;
            };
            let lesson = learner(&states).and_then(|(learner, teacher)| {
                let (at, from) = (chain.replicas.get(learner)?, chain.replicas.get(teacher)?);
                Some(((learner, teacher), (at.server, from.server)))
            });
            let Some((places, (server, teacher))) = lesson else {
                self.unfinished(format!(
                    "the replicas of placement group {group} differ, and which is right cannot be known"
                ));
                break;
            };
            let judged = samples.keys().copied().collect();
            if let Err(why) = self.loses_nothing(group, places, (server, teacher), &judged).await {
                self.unfinished(format!(
                    "data server {server} is not made to learn placement group {group} anew: {why}"
                ));
                break;
            }
            tracing::warn!(%group, %server, chunks = samples.len(), "a replica is not the same as the others, and learns anew");
            if !self.parts.cluster.relearn(group, epoch, server).await
                || !self.is_whole(group, epoch, shown.len()).await
            {
                self.unfinished(format!(
                    "data server {server} has not learnt placement group {group} again yet"
                ));
                break;
            }
            let now = self.sample(judged.clone()).await;
            if now.len() < judged.len() {
                // It has been told. What is not known counts as not mended.
                let same = |chunk: &ChunkId| now.get(chunk).is_some_and(|now| !now.differs());
                return judged.into_iter().filter(|chunk| !same(chunk)).collect();
            }
            samples = now;
            samples.retain(|_, sample| sample.differs());
        }
        samples.into_keys().collect()
    }

    /// Whether a replica has nothing but what its teacher has too, or what was judged; an error says why not.
    async fn loses_nothing(
        &self,
        group: GroupId,
        places: Lesson,
        (learner, teacher): (ServerId, ServerId),
        judged: &BTreeSet<ChunkId>,
    ) -> Result<(), String> {
        let map = &self.parts.cluster.published().map;
        let mut inventory = Inventory::new(self.link.clone(), [learner, teacher].into_iter());
        let mut risked = BTreeSet::new();
        while let Some(seen) = inventory.next().await {
            let of_it = map.chain_of(seen.chunk).is_some_and(|(of, _)| of == group);
            if !of_it || judged.contains(&seen.chunk) || !is_risked(&seen, learner, teacher) {
                continue;
            }
            if risked.len() >= MAX_SUSPECTS {
                return Err("too much of what it has is not the same there".into());
            }
            risked.insert(seen.chunk);
        }
        if let Some((server, why)) = inventory.lost().first() {
            return Err(format!("data server {server} did not say all that it has: {why}"));
        }
        if risked.is_empty() {
            return Ok(());
        }
        let before = self.sample(risked.clone()).await;
        self.pause().await;
        let now = self.sample(risked.clone()).await;
        for chunk in risked {
            let kept = matches!((before.get(&chunk), now.get(&chunk)), (Some(before), Some(now))
                if is_kept(places, &before.shown, &now.shown));
            if !kept && self.may_live(chunk)? {
                return Err(format!(
                    "it has {}, which data server {teacher} lacks or has otherwise",
                    chunk_named(chunk)
                ));
            }
        }
        Ok(())
    }

    /// Whether anybody may ever ask for a chunk.
    fn may_live(&self, chunk: ChunkId) -> Result<bool, String> {
        let Some(volume) = self.volume(volume_of(chunk.ino)) else { return Ok(true) };
        let attr = attr_of(&volume, chunk.ino);
        let attr = attr.map_err(|errno| format!("metadata cannot be read: {errno}"))?;
        Ok(place(attr.as_ref(), chunk) != Place::Gone)
    }

    /// Waits until a group has so many replicas again, in a later epoch.
    async fn is_whole(&self, group: GroupId, epoch: Epoch, replicas: usize) -> bool {
        let mut maps = self.parts.cluster.maps();
        let whole = maps.wait_for(|published| {
            published.map.chain(group).is_some_and(|chain| {
                chain.epoch.0 > epoch.0 + 1
                    && chain.learner.is_none()
                    && chain.replicas.len() >= replicas
            })
        });
        matches!(tokio::time::timeout(PATIENCE, whole).await, Ok(Ok(_)))
    }
}

/// Whether a learner has a chunk that its teacher lacks, or has otherwise.
fn is_risked(seen: &Seen, learner: ServerId, teacher: ServerId) -> bool {
    let of = |server| seen.at.iter().find(|(id, _)| *id == server).map(|(_, version)| *version);
    of(learner).is_some_and(|version| of(teacher) != Some(version) || version == Version::NONE)
}

/// Whether a chunk that looked so before a pause, and so after it, outlives the lesson: it is gone at the learner, the same at both, or both
/// have it and it is being changed.
fn is_kept((learner, teacher): Lesson, before: &[State], now: &[State]) -> bool {
    let (Some(ours), Some(theirs)) = (now.get(learner), now.get(teacher)) else { return false };
    match (ours, theirs) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(ours), Some(theirs)) => (ours == theirs && *ours != Version::NONE) || before != now,
    }
}

#[cfg(test)]
mod tests {
    use netfs_common::id::Ino;

    use super::*;

    #[test]
    fn what_only_the_learner_has_is_at_risk() {
        let (learner, teacher) = (ServerId(1), ServerId(2));
        let risked = |at: &[(u32, u64)]| {
            let chunk = ChunkId { ino: Ino(2), generation: 0, index: 0 };
            let at = at.iter().map(|(server, version)| (ServerId(*server), Version(*version)));
            is_risked(&Seen { chunk, at: at.collect() }, learner, teacher)
        };
        assert!(risked(&[(1, 5)]) && risked(&[(1, 5), (2, 4)]) && risked(&[(1, 0), (2, 0)]));
        assert!(!risked(&[(2, 5)]) && !risked(&[(1, 5), (2, 5)]));
    }

    #[test]
    fn what_is_at_rest_and_not_the_same_is_not_kept() {
        let (five, six) = (Some(Version(5)), Some(Version(6)));
        let kept = |before: &[State], now: &[State]| is_kept((1, 0), before, now);
        assert!(!kept(&[None, five], &[None, five]));
        assert!(!kept(&[None, five], &[None, six]), "the teacher still lacks it");
        assert!(!kept(&[six, five], &[six, five]));
        assert!(kept(&[six, five], &[six, six]), "it was on its way");
        assert!(kept(&[five, five], &[six, five]), "it is on its way");
        assert!(kept(&[None, five], &[None, None]), "it was removed");
        let unknown = Some(Version::NONE);
        assert!(!kept(&[unknown, unknown], &[unknown, unknown]));
    }
}
