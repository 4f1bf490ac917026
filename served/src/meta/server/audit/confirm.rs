//! The second look at what looked wrong, and mending it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use netfs_common::attr::Attr;
use netfs_common::errno::Errno;
use netfs_common::id::{ChunkId, Epoch, GroupId, Ino, ServerId};
use netfs_common::wire::audit::AuditOp;
use netfs_common::wire::data::Reply;
use netfs_common::wire::meta::Response;

use super::replicas::State;
use super::{Audit, MIN_PAUSE, Place, Suspects, chunk_named, files, named, place};
use crate::meta::server::cluster::garbage::Swept;
use crate::meta::server::volume::Volume;

/// Kinds of what is found.
const GONE: &str = "contents of files that are gone";
const TAILS: &str = "files with chunks beyond their end";
const DIFFER: &str = "chunks that are not the same on all replicas";
const STRANGERS: &str = "copies where nobody asks for them any more";
const LOST: &str = "files whose data is lost: no data server has any of it";
const PARTLY_LOST: &str = "files of whose data some is lost";

/// Contents, or files, in one command.
const BATCH: usize = 1024;
/// Chunks that a server tells at a time when they are counted.
const COUNTED: u32 = 1024;
/// Removals, cuts and repairs are waited for so long.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked whether they are done.
const LOOK: Duration = Duration::from_millis(100);

/// What the replicas of a chunk show, in the order of the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) group: GroupId,
    pub(super) epoch: Epoch,
    pub(super) shown: Vec<State>,
}

impl Sample {
    pub(super) fn differs(&self) -> bool {
        self.shown.windows(2).any(|two| two[0] != two[1])
    }
}

impl Audit {
    /// Looks at all suspects once more; mends what is wrong.
    pub(super) async fn confirm(&mut self) {
        let suspects = std::mem::take(&mut self.suspects);
        let Suspects { gone, tails, ahead, differ, strangers, lacking, partial, .. } = suspects;
        let all = gone.len() + tails.len() + ahead.len() + differ.len() + lacking.len();
        if all > 0 {
            let before = self.sample(differ).await;
            self.pause().await;
            for (number, contents) in gone {
                if let Some(volume) = self.volume(number) {
                    self.of_gone(&volume, contents).await;
                }
            }
            for (number, files) in tails {
                if let Some(volume) = self.volume(number) {
                    self.of_tails(&volume, files).await;
                }
            }
            self.of_replicas(before, partial).await;
            self.of_ahead(ahead).await;
            self.of_lacking(lacking).await;
        }
        self.of_strangers(strangers).await;
    }

    /// Long enough for all that was under way: what keeps a change for longer than the deadline leaves its chain.
    pub(super) async fn pause(&self) {
        let pause = self.parts.cluster.deadline().max(MIN_PAUSE) + Duration::from_secs(1);
        tokio::time::sleep(pause).await;
    }

    /// Whether any server has a chunk of these contents, from this one on. `None`: not all have said.
    async fn is_there(&self, first: ChunkId) -> Option<bool> {
        let mut all = true;
        for server in self.parts.cluster.present().into_keys() {
            match self.shows(server, first).await {
                Some(Some((next, _)))
                    if (next.ino, next.generation) == (first.ino, first.generation) =>
                {
                    return Some(true);
                }
                Some(_) => {}
                None => all = false,
            }
        }
        all.then_some(false)
    }

    /// The first chunk that a server has from one on. `None`: it does not answer.
    async fn shows(
        &self,
        server: ServerId,
        from: ChunkId,
    ) -> Option<Option<(ChunkId, netfs_common::id::Version)>> {
        match self.link.audit(server, AuditOp::Inventory { from, limit: 1 }).await {
            Ok(Reply::Listed { chunks, .. }) => Some(chunks.first().copied()),
            Ok(_) => None,
            Err(error) => {
                tracing::debug!(%error, "an audit goes on without an answer");
                None
            }
        }
    }

    /// As [`Audit::is_there`]; what is not known is told and counts as not there.
    async fn is_still_there(&self, first: ChunkId) -> bool {
        let there = self.is_there(first).await;
        if there.is_none() {
            self.unfinished("not all data servers answer when they are asked once more".into());
        }
        there == Some(true)
    }

    async fn of_gone(&self, volume: &std::sync::Arc<Volume>, suspects: BTreeSet<(Ino, u32)>) {
        let mut gone = BTreeSet::new();
        for (ino, generation) in suspects {
            match attr_of(volume, ino) {
                Ok(attr) if place(attr.as_ref(), first_of((ino, generation))) == Place::Gone => {
                    gone.insert((ino, generation));
                }
                Ok(_) => {}
                Err(errno) => return self.unfinished(format!("metadata cannot be read: {errno}")),
            }
        }
        // What is in the queue is on its way out. It leaves the queue when its chunks are gone, so whatever is not in the queue now
        // and is still there afterwards has been forgotten.
        if let Err(errno) = without_queued(volume, &mut gone) {
            return self.unfinished(format!("metadata cannot be read: {errno}"));
        }
        let mut found = Vec::new();
        for contents in gone {
            if self.is_still_there(first_of(contents)).await {
                found.push(contents);
            }
        }
        if self.dry_run {
            return found.into_iter().for_each(|c| self.found(GONE, named(c), 1, 0));
        }
        for batch in found.chunks(BATCH) {
            if let Err(errno) = volume.sweep(batch.to_vec(), Vec::new()).await {
                self.unfinished(format!("removals cannot be put in the queue: {errno}"));
            }
        }
        if !found.is_empty() && !worked_off(volume).await {
            self.unfinished("what is to be removed waits for data servers".into());
        }
        for contents in found {
            let gone = self.is_there(first_of(contents)).await == Some(false);
            self.found(GONE, named(contents), 1, u64::from(gone));
        }
    }

    async fn of_tails(&self, volume: &std::sync::Arc<Volume>, suspects: BTreeMap<Ino, ChunkId>) {
        let (mut idle, mut busy) = (BTreeMap::new(), 0);
        for (ino, first) in suspects {
            let attr = match attr_of(volume, ino) {
                Ok(attr) => attr,
                Err(errno) => return self.unfinished(format!("metadata cannot be read: {errno}")),
            };
            if place(attr.as_ref(), first) != Place::Tail || !self.is_still_there(first).await {
                continue;
            }
            match volume.nobody_writes(ino) {
                true => drop(idle.insert(ino, first)),
                false => busy += 1,
            }
        }
        let mut inos: Vec<Ino> = idle.keys().copied().collect();
        if self.dry_run {
            idle.values().for_each(|c| self.found(TAILS, chunk_named(*c), 1, 0));
            inos.clear();
        }
        for batch in inos.chunks(BATCH) {
            let cut = match volume.sweep(Vec::new(), batch.to_vec()).await {
                Ok(cut) => cut,
                Err(errno) => {
                    self.unfinished(format!("files cannot be cut: {errno}"));
                    continue;
                }
            };
            let done = tokio::time::timeout(PATIENCE, volume.trims.wait(&cut)).await;
            if !matches!(done, Ok(Ok(()))) || !worked_off(volume).await {
                self.unfinished("what is to be cut waits for data servers".into());
            }
            for ino in batch {
                let Some(first) = idle.get(ino).copied() else { continue };
                match cut.contains(ino) {
                    true => {
                        let gone = self.is_there(first).await == Some(false);
                        self.found(TAILS, chunk_named(first), 1, u64::from(gone));
                    }
                    // Somebody has begun to write.
                    false => busy += 1,
                }
            }
        }
        if busy > 0 {
            self.note(format!("{busy} files that are in use have chunks beyond the end that is known: they may be about to grow"));
        }
    }

    async fn of_ahead(&self, suspects: BTreeSet<(Ino, u32)>) {
        for contents in suspects {
            let first = first_of(contents);
            let Some(volume) = self.volume(netfs_common::map::volume_of(first.ino)) else {
                continue;
            };
            let attr = attr_of(&volume, first.ino).ok().flatten();
            if place(attr.as_ref(), first) == Place::Ahead && self.is_still_there(first).await {
                self.note(format!(
                    "{} is there, which the file does not have yet: a failure of the machine leaves such, and it is left alone",
                    named(contents)
                ));
            }
        }
    }

    async fn of_lacking(&self, suspects: BTreeSet<(Ino, u32)>) {
        for contents in suspects {
            let first = first_of(contents);
            let Some(volume) = self.volume(netfs_common::map::volume_of(first.ino)) else {
                continue;
            };
            let fewest = || match attr_of(&volume, first.ino) {
                Ok(Some(attr)) if attr.generation == first.generation => files::fewest(&attr),
                _ => 0,
            };
            let there = self.count(first, fewest()).await;
            let what = match there {
                // It may have been cut meanwhile.
                Some(there) if there >= fewest() => continue,
                Some(0) => LOST,
                Some(_) => PARTLY_LOST,
                None => {
                    self.unfinished(format!(
                        "inode {} may have lost data, and not all data servers have said what they have of it",
                        first.ino.0
                    ));
                    continue;
                }
            };
            // Nothing here can bring it back.
            self.found(what, format!("inode {}", first.ino.0), 1, 0);
        }
    }

    /// How many chunks of these contents there are, or that there are enough. `None`: not all servers have said.
    async fn count(&self, first: ChunkId, enough: u64) -> Option<u64> {
        let of_these = |c: &ChunkId| (c.ino, c.generation) == (first.ino, first.generation);
        let mut seen = BTreeSet::new();
        // What is only at one that is away is not lost.
        for server in self.parts.cluster.servers() {
            let mut next = Some(first);
            while let Some(from) = next.filter(|from| of_these(from) && *from >= first)
                && (seen.len() as u64) < enough
            {
                match self.link.audit(server, AuditOp::Inventory { from, limit: COUNTED }).await {
                    Ok(Reply::Listed { chunks, next: more }) => {
                        let ours = chunks.into_iter().map(|(chunk, _)| chunk).filter(of_these);
                        seen.extend(ours.map(|chunk| chunk.index));
                        next = more.filter(|more| *more > from);
                    }
                    _ => return None,
                }
            }
        }
        Some(seen.len() as u64)
    }

    /// Copies on servers that have no place in the group. How many there are now the servers know themselves.
    async fn of_strangers(&self, suspects: BTreeMap<(ServerId, GroupId), u64>) {
        let mut by_server: BTreeMap<ServerId, BTreeMap<GroupId, u64>> = BTreeMap::new();
        for ((server, group), chunks) in suspects {
            by_server.entry(server).or_default().insert(group, chunks);
        }
        for (server, groups) in by_server {
            let may_go = self.parts.cluster.garbage(server).unwrap_or_default();
            let mut may_go = Vec::from_iter(may_go);
            may_go.retain(|(group, _)| groups.contains_key(group));
            let going: u64 = may_go.iter().filter_map(|(group, _)| groups.get(group)).sum();
            let kept = groups.values().sum::<u64>() - going;
            if kept > 0 {
                self.note(format!(
                    "data server {server} keeps {kept} copies of placement groups in which it has no place, until these have had all their replicas elsewhere for a while"
                ));
            }
            let name = format!("on data server {server}");
            if going == 0 {
                continue;
            }
            if self.dry_run {
                self.found(STRANGERS, name, going, 0);
                continue;
            }
            match self.parts.cluster.sweep(server, &may_go).await {
                // It has removed them by itself meanwhile.
                Ok(Swept { chunks: 0, .. }) => {}
                Ok(Swept { chunks: removed, .. }) => self.found(STRANGERS, name, removed, removed),
                Err(error) => {
                    self.found(STRANGERS, name, going, 0);
                    self.unfinished(error.to_string());
                }
            }
        }
    }

    /// What the replicas of chunks show now.
    pub(super) async fn sample(&self, chunks: BTreeSet<ChunkId>) -> BTreeMap<ChunkId, Sample> {
        let mut samples = BTreeMap::new();
        for chunk in chunks {
            let published = self.parts.cluster.published();
            let Some((group, chain)) = published.map.chain_of(chunk) else { continue };
            let mut shown = Vec::with_capacity(chain.replicas.len());
            for replica in &chain.replicas {
                let Some(first) = self.shows(replica.server, chunk).await else { break };
                shown.push(first.filter(|(id, _)| *id == chunk).map(|(_, version)| version));
            }
            if shown.len() == chain.replicas.len() {
                samples.insert(chunk, Sample { group, epoch: chain.epoch, shown });
            } else {
                self.unfinished(format!("not all replicas of placement group {group} answer"));
            }
        }
        samples
    }

    /// Chunks whose replicas showed this before the pause. What is the same now as then is at rest. Of `partial` ones nobody learns: a
    /// replica is judged by all its chunks, or not at all.
    async fn of_replicas(&self, before: BTreeMap<ChunkId, Sample>, partial: bool) {
        let differed = before.iter().filter(|(_, sample)| sample.differs());
        let now = self.sample(differed.map(|(chunk, _)| *chunk).collect()).await;
        let mut groups: BTreeMap<GroupId, BTreeMap<ChunkId, Sample>> = BTreeMap::new();
        let mut moving = 0;
        for (chunk, sample) in now {
            if !sample.differs() {
                continue;
            }
            match before.get(&chunk) == Some(&sample) {
                true => drop(groups.entry(sample.group).or_default().insert(chunk, sample)),
                false => moving += 1,
            }
        }
        if moving > 0 {
            self.note(format!(
                "{moving} chunks were being changed all the time, and are not compared"
            ));
        }
        if partial && !self.dry_run && !groups.is_empty() {
            self.unfinished(
                "not all chunks are known that are not the same on all replicas, and no replica is made to learn anew".into(),
            );
        }
        for (group, samples) in groups {
            let found: Vec<ChunkId> = samples.keys().copied().collect();
            let left = match self.dry_run || partial {
                true => found.iter().copied().collect(),
                false => self.teach(group, samples).await,
            };
            for chunk in found {
                self.found(DIFFER, chunk_named(chunk), 1, u64::from(!left.contains(&chunk)));
            }
        }
    }
}

fn first_of((ino, generation): (Ino, u32)) -> ChunkId {
    ChunkId { ino, generation, index: 0 }
}

/// The inode as it is now.
pub(super) fn attr_of(volume: &Volume, ino: Ino) -> Result<Option<Attr>, Errno> {
    match volume.engine.get(ino) {
        Ok(Response::Entry { attr, .. }) => Ok(Some(attr)),
        Ok(_) => Err(Errno::EIO),
        Err(Errno::ESTALE) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Leaves out what is to be removed already.
fn without_queued(volume: &Volume, contents: &mut BTreeSet<(Ino, u32)>) -> Result<(), Errno> {
    let mut from = 0;
    loop {
        let page = volume.engine.pending_deletions_from(from, BATCH)?;
        let Some((last, _)) = page.last() else { return Ok(()) };
        from = last + 1;
        for (_, deletion) in &page {
            contents.remove(&(deletion.ino, deletion.generation));
        }
    }
}

/// Waits until all removals are done that are in the queue now.
async fn worked_off(volume: &Volume) -> bool {
    let until = Instant::now() + PATIENCE;
    let Ok(upto) = volume.engine.counters().map(|state| state.next_task) else { return false };
    loop {
        match volume.engine.pending_deletions(1) {
            Ok(first) if first.first().is_none_or(|(id, _)| *id >= upto) => return true,
            Ok(_) if Instant::now() < until => tokio::time::sleep(LOOK).await,
            _ => return false,
        }
    }
}
