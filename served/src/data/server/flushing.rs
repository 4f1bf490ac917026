//! Bringing what was acknowledged to stable storage, at all replicas.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use netfs_common::errno::Errno;
use netfs_common::id::{Epoch, GroupId, Verifier};
use netfs_common::map::Replica;
use netfs_common::wire::cluster::PeerOp;
use netfs_common::wire::data::{At, MAX_FLUSHED, Op, Reply, Request};
use tokio::task::JoinSet;

use super::replicas::{Replicas, lock};

/// A flush of another server may take this long, if the epoch lasts.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

impl Replicas {
    /// Flushes groups of which this server is the head, at all replicas. What was answered to clients before is stored by
    /// all of them, so that they need only flush. Where fewer replicas are than the volume asks for the client has to wait.
    pub(super) async fn flush(
        self: &Arc<Self>,
        groups: Vec<(GroupId, Epoch)>,
    ) -> Result<Vec<Verifier>, Reply> {
        if groups.len() > MAX_FLUSHED {
            return Err(Reply::Failed(Errno::EINVAL));
        }
        let view = self.view();
        let mut verifiers = Vec::with_capacity(groups.len());
        let mut others: HashMap<Replica, Vec<(GroupId, Epoch)>> = HashMap::new();
        for (id, epoch) in &groups {
            let slot = self.slot(*id).ok_or(Reply::StaleEpoch(view.map.version))?;
            let slot = lock(&slot);
            let Some(chain) = slot.group.chain().filter(|_| slot.group.is_head()) else {
                return Err(Reply::StaleEpoch(slot.group.epoch()));
            };
            if chain.epoch != *epoch {
                return Err(Reply::StaleEpoch(chain.epoch));
            }
            if slot.group.is_short() {
                return Err(Reply::Busy);
            }
            verifiers.push(chain.verifier);
            // The learner too: it may be a replica by the time this is answered.
            for member in chain.members().filter(|member| member.instance != self.instance) {
                others.entry(member).or_default().push((*id, *epoch));
            }
        }
        let mut calls = JoinSet::new();
        for (replica, groups) in others {
            let this = self.clone();
            calls.spawn(async move { this.flush_at(replica, groups).await });
        }
        self.flusher.flush().await.map_err(|errno| self.not_flushed(errno))?;
        while let Some(done) = calls.join_next().await {
            done.map_err(|_| Reply::Failed(Errno::EIO))??;
        }
        for (id, epoch) in &groups {
            if self.epoch(*id) != Some(*epoch) {
                return Err(Reply::StaleEpoch(self.epoch(*id).unwrap_or_default()));
            }
            // The minimum may have been raised meanwhile, in the same epoch.
            if self.slot(*id).is_none_or(|slot| lock(&slot).group.is_short()) {
                return Err(Reply::Busy);
            }
        }
        Ok(verifiers)
    }

    async fn flush_at(
        self: Arc<Self>,
        replica: Replica,
        groups: Vec<(GroupId, Epoch)>,
    ) -> Result<(), Reply> {
        let Some((first, epoch)) = groups.first().copied() else { return Ok(()) };
        let request = Request { at: At::Server, op: Op::Peer(PeerOp::FlushGroups(groups)) };
        let deadline = Some(Instant::now() + CALL_TIMEOUT);
        let view = self.view();
        let call = self.peers.call(&view.map, replica.server, &request, Bytes::new(), deadline);
        let answer = tokio::select! {
            answer = call => answer,
            // Its chain is being mended: that is told at once, and not when the call is given up.
            () = self.epoch_over(first, epoch) => return Err(Reply::Busy),
        };
        match answer {
            Ok((Reply::FlushedHere { instance }, _)) if instance == replica.instance => Ok(()),
            Ok((reply @ (Reply::StaleEpoch(_) | Reply::Failed(_)), _)) => Err(reply),
            Ok(_) => Err(Reply::Busy),
            Err(error) => {
                tracing::debug!(%error, "a replica did not flush");
                Err(Reply::Busy)
            }
        }
    }

    /// Where others have everything, nobody is told that a disk has failed: the next epoch is without this replica.
    fn not_flushed(&self, errno: Errno) -> Reply {
        if self.has_given_up() { Reply::Busy } else { Reply::Failed(errno) }
    }

    /// Flushes here what was stored in these groups, as one of their replicas.
    pub(super) async fn flush_here(&self, groups: &[(GroupId, Epoch)]) -> Result<(), Reply> {
        if groups.len() > MAX_FLUSHED {
            return Err(Reply::Failed(Errno::EINVAL));
        }
        for (id, epoch) in groups {
            match self.slot(*id).map(|slot| {
                let slot = lock(&slot);
                (slot.group.epoch(), slot.group.is_member())
            }) {
                Some((known, true)) if known == *epoch => {}
                Some((known, _)) if known < *epoch => return Err(Reply::Busy),
                Some((known, _)) => return Err(Reply::StaleEpoch(known)),
                None => return Err(Reply::Busy),
            }
        }
        self.flusher.flush().await.map_err(|errno| self.not_flushed(errno))
    }
}
