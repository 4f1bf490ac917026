//! Replacing damaged copies by what another replica has.
//!
//! Replicas that show the same version of a chunk have the same bytes. So another replica that has the version of the
//! damaged copy knows what belongs there; it is put there if that part of the chunk has not changed since the version was
//! looked at. Where versions differ something is under way, and it is tried again. A replica whose bytes are away fetches them for that. The
//! object of that version in the bucket, if there is one, is as good as a replica.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use netfs_common::id::{ChunkId, GroupId, Version};
use netfs_common::map::Replica;
use netfs_common::warn_rarely;
use netfs_common::wire::cluster::PeerOp;
use netfs_common::wire::data::{At, MAX_PAYLOAD, Op, Reply, Request};
use tokio::sync::Notify;

use super::metrics::DataMetrics;
use super::replicas::{Replicas, lock};
use crate::data::store::StoreError;

/// So many damaged places are remembered; the scrub finds the others again.
const MAX_PLACES: usize = 4096;
/// Between attempts.
const PAUSE: Duration = Duration::from_secs(1);
/// Another replica has this long to answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Damaged places that are to be mended.
#[derive(Debug)]
pub(super) struct Damage {
    places: Mutex<BTreeMap<(ChunkId, u64), u64>>,
    found: Notify,
    metrics: DataMetrics,
}

impl Damage {
    pub(super) fn new(metrics: DataMetrics) -> Damage {
        Damage { places: Mutex::default(), found: Notify::new(), metrics }
    }

    /// A place was found damaged.
    pub(super) fn note(&self, chunk: ChunkId, offset: u64, len: u64) {
        let mut places = lock(&self.places);
        if places.len() < MAX_PLACES {
            let known = places.entry((chunk, offset)).or_default();
            if *known == 0 {
                self.metrics.damaged.inc();
            }
            *known = len.max(*known);
        }
        drop(places);
        self.found.notify_one();
    }

    /// An error that a read ended with may say that.
    pub(super) fn note_error(&self, error: &StoreError) {
        if let StoreError::Corrupt { key, offset, len, .. } = error {
            self.note(super::chunks::id(key), *offset, *len);
        }
    }
}

/// Mends what is found, for as long as the replicas are there.
pub(super) async fn attend(replicas: Weak<Replicas>) {
    loop {
        let Some(this) = replicas.upgrade() else { return };
        let next: Vec<_> = lock(&this.damage.places).iter().map(|(at, len)| (*at, *len)).collect();
        if next.is_empty() {
            // Not for ever: it would keep the replicas alive. Either way it is looked again.
            let _ = tokio::time::timeout(PAUSE, this.damage.found.notified()).await;
            continue;
        }
        let mut left = false;
        for ((chunk, offset), len) in next {
            match this.mend(chunk, offset, len).await {
                true => drop(lock(&this.damage.places).remove(&(chunk, offset))),
                false => left = true,
            }
        }
        drop(this);
        if left {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl Replicas {
    /// Whether nothing is left to be done about a place.
    async fn mend(self: &Arc<Self>, chunk: ChunkId, offset: u64, len: u64) -> bool {
        let view = self.view();
        let Some((group, chain)) = view.map.chain_of(chunk) else { return true };
        let others: Vec<_> =
            chain.replicas.iter().filter(|r| r.instance != self.instance).copied().collect();
        if !chain.members().any(|member| member.instance == self.instance) {
            return true;
        }
        let chunks = self.chunks.clone();
        let damaged = move || chunks.damaged(chunk, offset, len);
        let patch = match self.blocking(damaged).await {
            Some(Ok(Some(patch))) => patch,
            Some(Ok(None)) => return true,
            Some(Err(_)) | None => return false,
        };
        for range in patch.ranges().collect::<Vec<_>>() {
            let version = Version(patch.version().0);
            let mut data = None;
            for other in &others {
                data = self.fetch(group, *other, chunk, range, version).await;
                if data.is_some() {
                    break;
                }
            }
            let from = if data.is_some() { "another replica" } else { "the object store" };
            if data.is_none() {
                data = self.of_object(chunk, range, version).await;
            }
            let Some(data) = data else {
                if others.is_empty() {
                    warn_rarely!(
                        Duration::from_secs(60),
                        ?chunk,
                        offset,
                        len,
                        "a chunk is damaged, and there is no other replica to mend it from"
                    );
                }
                return false;
            };
            let (chunks, patch) = (self.chunks.clone(), patch.clone());
            let put = move || chunks.store().mend(&patch, range, &data);
            match self.blocking(put).await {
                Some(Ok(true)) => {
                    self.metrics.mended.inc();
                    tracing::warn!(
                        ?chunk,
                        offset = range.0,
                        len = range.1,
                        from,
                        "damaged data was replaced"
                    );
                }
                // It was written to meanwhile: what is there now is new.
                Some(Ok(false)) => {}
                Some(Err(error)) => {
                    self.metrics.store_failed(&error);
                    return false;
                }
                None => return false,
            }
        }
        true
    }

    /// A range of a chunk in this version, from another replica.
    async fn fetch(
        &self,
        group: GroupId,
        from: Replica,
        chunk: ChunkId,
        (offset, len): (u64, u64),
        version: Version,
    ) -> Option<Vec<u8>> {
        let view = self.view();
        let epoch = view.map.chain(group)?.epoch;
        let mut whole = Vec::new();
        while (whole.len() as u64) < len {
            let (at, step) = (offset + whole.len() as u64, len - whole.len() as u64);
            let fetch = PeerOp::Fetch { chunk, offset: at, len: step.min(MAX_PAYLOAD) };
            let at = At::Replica { group, epoch, instance: from.instance };
            let request = Request { at, op: Op::Peer(fetch) };
            let deadline = Some(Instant::now() + CALL_TIMEOUT);
            let call = self.peers.call(&view.map, from.server, &request, Bytes::new(), deadline);
            match call.await {
                Ok((Reply::Fetched(theirs), data)) if theirs == version && !data.is_empty() => {
                    whole.extend_from_slice(&data.into_bytes());
                }
                answer => {
                    tracing::debug!(?chunk, ?answer, %version, "nothing to mend a chunk with");
                    return None;
                }
            }
        }
        (whole.len() as u64 == len && version != Version::NONE).then_some(whole)
    }
}
