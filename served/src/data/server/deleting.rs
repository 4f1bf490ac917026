//! Removing chunks apart from the chains.
//!
//! A removal knows no epochs. One that takes long, part by part, may be superseded: the server left its chains, or was asked once more, the
//! removal was answered without this one, and clients write new chunks of the same contents. Those must not go with its last parts. So whoever
//! asks what there is here to be relied on waits for all removals that are at work ([`Removals::over`]), a removal of the same contents waits for an
//! earlier one, and one that had to wait while the map has changed is refused.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use netfs_common::id::{ChunkId, Epoch};
use netfs_common::wire::data::{At, Op, Reply, Request};
use tokio::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard};

use super::handler::{Answer, Handler};

/// A learner has this long to remove what it got from here.
const HEIR_TIMEOUT: Duration = Duration::from_secs(10);

/// Contents of files that are removed one after the other, by their hashes.
const LANES: usize = 64;

/// The removals at work.
#[derive(Debug)]
pub(super) struct Removals {
    /// One removal of certain contents at a time.
    lanes: Vec<Mutex<()>>,
    /// Held by every removal while it removes anything, exclusively by who waits for all of them. Taken after the lane.
    at_work: RwLock<()>,
}

/// A removal is at work.
#[derive(Debug)]
pub(super) struct Removal<'a> {
    _lane: MutexGuard<'a, ()>,
    _at_work: RwLockReadGuard<'a, ()>,
}

impl Default for Removals {
    fn default() -> Removals {
        let lanes = (0..LANES).map(|_| Mutex::default()).collect();
        Removals { lanes, at_work: RwLock::default() }
    }
}

impl Removals {
    /// A removal begins, after an earlier one of the same contents.
    async fn begin(&self, first: ChunkId) -> Removal<'_> {
        let mut hasher = DefaultHasher::new();
        (first.ino, first.generation).hash(&mut hasher);
        let lane = hasher.finish() as usize % self.lanes.len();
        let lane = self.lanes[lane].lock().await;
        Removal { _lane: lane, _at_work: self.at_work.read().await }
    }

    /// Waits until those are over that have begun.
    pub(super) async fn over(&self) {
        drop(self.at_work.write().await);
    }
}

impl Handler {
    /// Removes the chunks of a file's contents from one on, a part at a time, the last first: a file may have very many.
    ///
    /// Whoever has got some of them from here meanwhile removes them too. That is asked of the groups when the chunks are gone: whoever begins
    /// to learn from here later does not find them, whatever has become of the map. What went is counted where the server is the head:
    /// so every chunk is counted once, however many replicas it has.
    pub(super) async fn delete(self: &Arc<Self>, first: ChunkId) -> Answer {
        // Not while others are called, who may call this one.
        let version = self.replicas.view().map.version;
        if version == Epoch(0) {
            // Nobody has told yet that it is known whose chunks these are.
            return Err(Reply::Busy);
        }
        let removal = self.replicas.removals.begin(first).await;
        if self.replicas.view().map.version != version {
            // Perhaps somebody has asked meanwhile what there is here, and was told.
            return Err(Reply::Busy);
        }
        let chunks = self.chunks.clone();
        let parts = self.blocking(move || chunks.parts(first)).await?;
        let (mut freed, mut heirs) = (0, BTreeSet::new());
        for part in parts.into_iter().rev() {
            let (chunks, view, own) = (self.chunks.clone(), self.replicas.view(), self.instance);
            let counts = move |chunk| {
                let chain = view.map.chain_of(chunk).map(|(_, chain)| chain);
                chain.and_then(|chain| chain.head()).is_some_and(|head| head.instance == own)
            };
            let removed = self.blocking(move || chunks.remove(part, counts)).await?;
            let (gone, bytes) = removed.map_err(|e| self.failed(&e))?;
            freed += bytes;
            heirs.extend(self.replicas.removed(gone));
        }
        drop(removal);
        for heir in heirs {
            let view = self.replicas.view();
            let request = Request { at: At::Server, op: Op::Delete { first } };
            let deadline = Some(Instant::now() + HEIR_TIMEOUT);
            let peers = &self.replicas.peers;
            match peers.call(&view.map, heir, &request, Bytes::new(), deadline).await {
                Ok((Reply::Deleted { .. }, _)) => {}
                Ok(_) => return Err(Reply::Busy),
                Err(error) => {
                    tracing::debug!(%error, "a learner did not remove chunks");
                    return Err(Reply::Busy);
                }
            }
        }
        Ok((Reply::Deleted { instance: self.instance, freed }, Bytes::new()))
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use netfs_common::id::Ino;

    use super::*;

    fn contents(ino: u64) -> ChunkId {
        ChunkId { ino: Ino(ino), generation: 0, index: 0 }
    }

    fn poll<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Poll<T> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[tokio::test]
    async fn whoever_asks_what_there_is_waits_for_removals() {
        let removals = Removals::default();
        let removal = removals.begin(contents(1)).await;
        let mut over = pin!(removals.over());
        assert!(poll(over.as_mut()).is_pending());
        drop(removal);
        assert!(poll(over.as_mut()).is_ready());
    }

    #[tokio::test]
    async fn a_removal_waits_for_an_earlier_one_of_the_same_contents() {
        let removals = Removals::default();
        let first = removals.begin(contents(1)).await;
        let mut again = pin!(removals.begin(ChunkId { index: 7, ..contents(1) }));
        assert!(poll(again.as_mut()).is_pending());
        let others = (2..40).filter(|ino| poll(pin!(removals.begin(contents(*ino)))).is_ready());
        assert!(others.count() > 30, "others do not wait");
        drop(first);
        assert!(poll(again.as_mut()).is_ready());
    }
}
