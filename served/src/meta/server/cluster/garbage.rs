//! Copies that servers have of groups in which they have no place any more: they are told when they may go.
//!
//! [`Manager::garbage`](crate::meta::cluster::Manager::garbage) says which; why a server may rely on it stands in `data/server/sweeping.rs`. A
//! server is told of a group once in each of its lives and each epoch of the group. Whatever comes to it later, an audit finds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use netfs_common::codec;
use netfs_common::id::{ChunkId, Epoch, GroupId, Ino, InstanceId, ServerId};
use netfs_common::net::Payload;
use netfs_common::wire::audit::{AuditOp, AuditReply, MAX_AUDITED};
use netfs_common::wire::cluster::PeerOp;
use netfs_common::wire::data::{At, Op, Reply, Request};

use super::Cluster;

/// How often it is looked whether there is something to tell.
const LOOK: Duration = Duration::from_secs(1);
/// A call may take this long.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// After a failure a server is left alone for so long.
const PAUSE: Duration = Duration::from_secs(10);
/// The first chunk of all.
const FIRST: ChunkId = ChunkId { ino: Ino(0), generation: 0, index: 0 };

/// Groups with the epochs in which a server was told of them, in its present life.
type Told = BTreeMap<ServerId, (InstanceId, BTreeSet<(GroupId, Epoch)>)>;

/// What a sweep has done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::meta::server) struct Swept {
    /// Chunks that were removed.
    pub(in crate::meta::server) chunks: u64,
    /// The groups that were gone through to the end.
    pub(in crate::meta::server) groups: BTreeSet<(GroupId, Epoch)>,
}

/// A server that did not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("data server {0} does not answer as it should")]
pub(in crate::meta::server) struct NotDone(ServerId);

impl Cluster {
    /// Tells servers what they may remove, for ever.
    pub(super) async fn collect_garbage(self: Arc<Self>) {
        let mut told = Told::new();
        let mut spared: BTreeMap<ServerId, Instant> = BTreeMap::new();
        loop {
            tokio::time::sleep(LOOK).await;
            let present = self.present();
            told.retain(|id, (life, _)| present.get(id) == Some(life));
            spared.retain(|id, until| present.contains_key(id) && *until > Instant::now());
            for (server, life) in present {
                if spared.contains_key(&server) {
                    continue;
                }
                let Some(now) = self.garbage(server) else { continue };
                let (_, known) = told.entry(server).or_insert_with(|| (life, BTreeSet::new()));
                known.retain(|group| now.contains(group));
                let new: Vec<_> = now.difference(known).copied().collect();
                if new.is_empty() {
                    continue;
                }
                match self.sweep(server, &new).await {
                    Ok(swept) => known.extend(swept.groups),
                    Err(error) => {
                        tracing::debug!(%error, "what it need not keep stays there for the present");
                        spared.insert(server, Instant::now() + PAUSE);
                    }
                }
            }
        }
    }

    /// Groups of which a server may forget what it has. `None`: that cannot be said now, because nobody hears of a decision before it is stored.
    pub(in crate::meta::server) fn garbage(
        &self,
        server: ServerId,
    ) -> Option<BTreeSet<(GroupId, Epoch)>> {
        let stored = self.published().map.version;
        self.with(|manager, now| {
            let known = manager.state().version == stored;
            known.then(|| manager.garbage(server, now).into_iter().collect())
        })
    }

    /// Has a server remove what it has of these groups. That takes long, and what a server may forget changes: it is asked
    /// again before each step, and a group is left out from when it is to be kept, or when that cannot be said.
    pub(in crate::meta::server) async fn sweep(
        &self,
        server: ServerId,
        groups: &[(GroupId, Epoch)],
    ) -> Result<Swept, NotDone> {
        let mut swept = Swept::default();
        for groups in groups.chunks(MAX_AUDITED) {
            let mut groups = groups.to_vec();
            let mut next = Some(FIRST);
            while let Some(from) = next {
                let now = self.garbage(server).unwrap_or_default();
                groups.retain(|group| now.contains(group));
                if groups.is_empty() {
                    break;
                }
                let op = AuditOp::Sweep { groups: groups.clone(), from };
                match self.ask(server, op).await {
                    Some(Reply::Audited(AuditReply::Swept { chunks, next: more, .. }))
                        if more.is_none_or(|more| more > from) =>
                    {
                        swept.chunks += chunks;
                        next = more;
                    }
                    _ => return Err(NotDone(server)),
                }
            }
            swept.groups.extend(groups);
        }
        Ok(swept)
    }

    /// One question; `None`: it was not answered.
    pub(super) async fn ask(&self, server: ServerId, op: AuditOp) -> Option<Reply> {
        let request = Request { at: At::Server, op: Op::Peer(PeerOp::Audit(op)) };
        let header: Bytes = codec::encode(&request).ok()?.into();
        let channel = self.channel(server)?;
        let deadline = Instant::now() + CALL_TIMEOUT;
        match channel.call(header, Payload::default(), deadline).await {
            Ok(answer) => codec::decode(&answer.header).ok(),
            Err(error) => {
                tracing::debug!(%server, %error, "a data server did not say what it has");
                None
            }
        }
    }
}
