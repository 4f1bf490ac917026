//! One call to one server, and when it may be made again.
//!
//! A write, a punch and a copy done twice are the same as done once, if nothing that overlaps comes in between. Who makes
//! changes has no two under way that overlap; so it is enough that no copy of a change is still at work, or can come to
//! be, once the change was answered. A call is sent a second time only
//!
//! * after it was answered, with `Busy` or `StaleEpoch`: then it is not at work any more;
//! * over another connection, after the one before was lost: a server welcomes a client again when nothing of its earlier
//!   connection is at work;
//! * in a newer epoch of the group: a server that takes part in it does nothing of an earlier one any more, and one that does
//!   not has no part in what the chain holds.
//!
//! Never, then, over the same connection in the same epoch without an answer, however long that takes: what is withdrawn for
//! another reason is not repeated. Reads change nothing, and are free of this.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use netfs_common::errno::Errno;
use netfs_common::id::{Epoch, GroupId, ServerId, SessionId};
use netfs_common::map::ClusterMap;
use netfs_common::wire::data::{At, Op, Reply, Request};
use tracing::warn;

use super::connections::NoConnection;
use super::{Bulk, PAUSE};
use crate::session::link::LinkError;

/// A server that keeps a call this long is taken for hung.
const HUNG_AFTER: Duration = Duration::from_secs(120);

/// What of the map a call relies on. It is withdrawn when that is otherwise.
#[derive(Clone, Debug)]
pub(super) enum Basis {
    /// These groups have these epochs.
    Groups(Vec<(GroupId, Epoch)>),
    /// All groups have the heads that they have in this map. Only for questions.
    Heads(Arc<ClusterMap>),
    /// The call names the version, and concerns these groups in these epochs: it stands as long as one of them is so. If it
    /// were made again earlier, that group could meet it twice in one epoch.
    Any(Epoch, Vec<(GroupId, Epoch)>),
}

impl Basis {
    pub(super) fn holds(&self, map: &ClusterMap) -> bool {
        let is_so = |(group, epoch): &(GroupId, Epoch)| {
            map.chain(*group).is_some_and(|chain| chain.epoch == *epoch)
        };
        match self {
            Basis::Groups(groups) => groups.iter().all(is_so),
            Basis::Heads(known) => map.version == known.version || same_heads(known, map),
            Basis::Any(version, groups) => map.version == *version || groups.iter().any(is_so),
        }
    }

    /// As it stands in a call.
    fn at(&self, op: &Op) -> At {
        match (self, op) {
            (Basis::Heads(map), _) => At::Map { version: map.version },
            (Basis::Any(version, _), _) => At::Map { version: *version },
            // It names them itself.
            (_, Op::Flush { .. }) => At::Server,
            (Basis::Groups(groups), _) => match groups[..] {
                [(group, epoch)] => At::Group { group, epoch },
                _ => At::Server,
            },
        }
    }
}

/// Whether all groups have the same heads, in the same lives.
fn same_heads(one: &ClusterMap, other: &ClusterMap) -> bool {
    let heads = |map: &ClusterMap| -> Vec<_> {
        map.groups().map(|(group, chain)| (group, chain.head())).collect()
    };
    heads(one) == heads(other)
}

/// A call that is made until it is answered, or what it relies on has changed.
#[derive(Clone, Debug)]
pub(super) struct Call {
    /// A change is made within one session, and fails when that is over; a question waits for the next one.
    pub(super) within: Option<SessionId>,
    pub(super) basis: Basis,
    pub(super) op: Op,
    pub(super) payload: Bytes,
}

/// What one attempt came to.
#[derive(Debug)]
pub(super) enum Attempt {
    Answered(Reply, Bytes),
    /// Whether it was done is unknown.
    Lost,
    Unreachable,
    /// The session is over.
    Over,
}

/// What became of a call.
#[derive(Debug)]
pub(super) enum Outcome {
    Answered(Reply),
    /// The map is another one in what it relies on.
    Moved,
}

impl Bulk {
    /// Sends a call once.
    pub(super) async fn attempt(&self, id: ServerId, call: &Call) -> Result<Attempt, Errno> {
        let connection = match self.connection(id).await {
            Ok(connection) => connection,
            Err(NoConnection::Over) => return Ok(Attempt::Over),
            Err(NoConnection::Unreachable | NoConnection::Renewed) => {
                return Ok(Attempt::Unreachable);
            }
        };
        let session = connection.session;
        if call.within.is_some_and(|within| within != session) {
            return Err(Errno::EIO);
        }
        let request = Request { at: call.basis.at(&call.op), op: call.op.clone() };
        let counted = self.counters.data(&request.op, call.payload.len());
        let answer = connection.link.call(request, call.payload.clone());
        match tokio::time::timeout(HUNG_AFTER, answer).await {
            Ok(Ok((reply, data))) => {
                self.counters.data_answered(counted, data.len());
                if reply == Reply::SessionOver {
                    self.note_fenced(id, session);
                    return Ok(Attempt::Over);
                }
                Ok(Attempt::Answered(reply, data))
            }
            Ok(Err(LinkError::Lost)) => {
                self.lost(id, &connection);
                Ok(Attempt::Lost)
            }
            Ok(Err(e @ LinkError::Unsendable(_))) => {
                warn!(error = %e, "a call to a data server was not sent");
                Err(Errno::EIO)
            }
            Err(_) => {
                warn!(server = %id, "a data server does not answer; connecting anew");
                connection.link.close();
                self.lost(id, &connection);
                Ok(Attempt::Lost)
            }
        }
    }

    /// Makes a call until it is answered.
    pub(super) async fn call(&self, id: ServerId, call: &Call) -> Result<Outcome, Errno> {
        tokio::select! {
            // An answer counts, whatever the map has become.
            biased;
            answered = self.until_answered(id, call) => answered,
            () = self.moved(&call.basis) => Ok(Outcome::Moved),
            () = self.at_the_end() => Err(Errno::EIO),
        }
    }

    async fn until_answered(&self, id: ServerId, call: &Call) -> Result<Outcome, Errno> {
        let mut pause = PAUSE.0;
        loop {
            if self.is_stopped() {
                return Err(Errno::EIO);
            }
            match self.attempt(id, call).await? {
                Attempt::Answered(reply, _) => return Ok(Outcome::Answered(reply)),
                Attempt::Lost => {}
                Attempt::Unreachable => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE.1);
                }
                Attempt::Over if call.within.is_some() => return Err(Errno::EIO),
                Attempt::Over => self.next_session().await,
            }
        }
    }

    /// Waits until there is another session than the one that is over.
    pub(super) async fn next_session(&self) {
        let over = self.fenced.load(std::sync::atomic::Ordering::SeqCst);
        self.replaced(SessionId(over)).await;
    }

    /// Resolves when the map is another one in what a call relies on.
    pub(super) async fn moved(&self, basis: &Basis) {
        let mut map = self.map.subscribe();
        // It is never closed: it belongs to this.
        let _ = map.wait_for(|map| !basis.holds(map)).await;
    }
}

#[cfg(test)]
mod tests {
    use netfs_common::id::{InstanceId, Verifier};
    use netfs_common::map::{Chain, Pool, Replica};

    use super::*;

    fn map(version: u64, chains: &[(u64, &[u32])]) -> ClusterMap {
        let replica = |id: &u32| Replica { server: ServerId(*id), instance: InstanceId(1) };
        let chain = |(epoch, replicas): &(u64, &[u32])| Chain {
            epoch: Epoch(*epoch),
            verifier: Verifier(1),
            replicas: replicas.iter().map(replica).collect(),
            learner: None,
        };
        let chains = chains.iter().map(chain).collect();
        let pool = Pool {
            tier: Default::default(),
            volume: 0,
            class: netfs_common::class::Class::DEFAULT,
            first: GroupId(0),
            min_replicas: 1,
            coding: Default::default(),
            chains,
        };
        ClusterMap { version: Epoch(version), servers: Vec::new(), pools: vec![pool] }
    }

    #[test]
    fn a_question_to_all_heads_stands_while_the_map_changes_elsewhere() {
        let basis = Basis::Heads(Arc::new(map(5, &[(1, &[1, 2]), (1, &[2, 1])])));
        assert!(basis.holds(&map(6, &[(4, &[1]), (3, &[2, 3])])));
        assert!(!basis.holds(&map(6, &[(2, &[2]), (1, &[2, 1])])));
        let mut reborn = map(6, &[(2, &[1, 2]), (1, &[2, 1])]);
        reborn.pools[0].chains[0].replicas[0].instance = InstanceId(2);
        assert!(!basis.holds(&reborn), "it may have lost something");
    }
}
