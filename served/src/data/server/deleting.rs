//! Removing chunks apart from the chains.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use netfs_common::id::ChunkId;
use netfs_common::wire::data::{At, Op, Reply, Request};

use super::handler::{Answer, Handler};

/// A learner has this long to remove what it got from here.
const HEIR_TIMEOUT: Duration = Duration::from_secs(10);

impl Handler {
    /// Removes the chunks of a file's contents from one on, a part at a time, the last first: a file may have very many.
    ///
    /// Whoever has got some of them from here meanwhile removes them too. That is asked of the groups when the chunks are gone: whoever begins
    /// to learn from here later does not find them, whatever has become of the map. What went is counted where the server is the head:
    /// so every chunk is counted once, however many replicas it has.
    pub(super) async fn delete(self: &Arc<Self>, first: ChunkId) -> Answer {
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
