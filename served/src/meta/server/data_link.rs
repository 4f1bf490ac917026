//! The metadata server as a client of the data servers: cuts, removals, fences.
//!
//! What must be gone is removed at every server that may count on it ([`Cluster::everybody`]), and each of them has to go by the map of the
//! begin first, or a later one: then nothing that was sent to an earlier chain can bring it back, and later ones nobody asks for what must
//! be gone. Other changes of the map meanwhile are of no concern, however often they come. A server that is left out because it is dead has left its chains;
//! it comes back as a learner, and what it has is compared. If the servers are others at the end than at the begin, all is done again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use netfs_common::class::Class;
use netfs_common::codec;
use netfs_common::errno::Errno;
use netfs_common::id::{ChunkId, Epoch, GroupId, InstanceId, ServerId, SessionId, Verifier};
use netfs_common::net::{CallError, Payload};
use netfs_common::warn_rarely;
use netfs_common::wire::audit::AuditOp;
use netfs_common::wire::cluster::PeerOp;
use netfs_common::wire::data::{At, Op, Reply, Request, Usage};
use netfs_common::wire::operator::Redundancy;
use tokio::task::JoinSet;

use super::cluster::Cluster;

/// One call to a data server may take this long; then it is tried again by whoever needs it done.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// A chain that is being mended is waited for so long; then it is tried again by whoever needs it done.
const CHAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause between two questions to a chain that is being mended, if there is no news of it.
const CHAIN_PAUSE: Duration = Duration::from_millis(50);
/// Pauses between attempts to fence a session.
const FENCE_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// The same trouble is logged this often.
const WARN_INTERVAL: Duration = Duration::from_secs(10);

/// Why a data server has not done what was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum DataCallError {
    #[error("data server {server}: {source}")]
    Call { server: ServerId, source: CallError },
    #[error("data server {server}: {errno}")]
    Refused { server: ServerId, errno: Errno },
    #[error("data server {server} cannot do it now")]
    Busy { server: ServerId },
    #[error("data server {server} gave an answer that makes no sense")]
    Nonsense { server: ServerId },
    #[error("data server {server} has restarted, and may have lost what it did before")]
    Restarted { server: ServerId },
    #[error("placement group {group} has lost what was not flushed")]
    Lost { group: GroupId },
    #[error("placement group {group} has no replica that can be changed now")]
    Unavailable { group: GroupId },
    #[error("data server {server} does not take the present cluster map")]
    Behind { server: ServerId },
    #[error("data server {server} has come or gone meanwhile")]
    Others { server: ServerId },
}

impl DataCallError {
    /// The server was waited for already, or has gone.
    pub(super) fn is_final(&self) -> bool {
        matches!(
            self,
            DataCallError::Call { source: CallError::Deadline, .. } | DataCallError::Others { .. }
        )
    }
}

/// Removals that are to be flushed together: a server that restarts before the flush may lose what it has answered,
/// and then all of it is done once more.
#[derive(Debug)]
pub(super) struct Attempt {
    /// The servers at which it is done.
    servers: BTreeSet<ServerId>,
    done: Mutex<Done>,
    /// By how many bytes the data shrank at the heads of chains.
    punched: AtomicU64,
    /// By how many bytes it shrank where chunks were removed; each server counts those of which it is the head.
    deleted: AtomicU64,
}

#[derive(Debug, Default)]
struct Done {
    /// The life of each server in which it made the changes.
    lives: BTreeMap<ServerId, InstanceId>,
    /// The verifiers under which chunks were punched.
    groups: BTreeMap<GroupId, Verifier>,
}

impl Attempt {
    fn new(servers: BTreeSet<ServerId>) -> Attempt {
        Attempt {
            servers,
            done: Mutex::default(),
            punched: AtomicU64::new(0),
            deleted: AtomicU64::new(0),
        }
    }

    fn done(&self) -> MutexGuard<'_, Done> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A server answers in this life.
    fn met(&self, server: ServerId, life: InstanceId) -> Result<(), DataCallError> {
        match *self.done().lives.entry(server).or_insert(life) == life {
            true => Ok(()),
            false => Err(DataCallError::Restarted { server }),
        }
    }

    /// A group answers under this verifier.
    fn under(&self, group: GroupId, verifier: Verifier) -> Result<(), DataCallError> {
        match *self.done().groups.entry(group).or_insert(verifier) == verifier {
            true => Ok(()),
            false => Err(DataCallError::Lost { group }),
        }
    }
}

/// Calls to the data servers.
pub(super) struct DataLink {
    cluster: Arc<Cluster>,
}

impl DataLink {
    pub(super) fn new(cluster: Arc<Cluster>) -> DataLink {
        DataLink { cluster }
    }

    /// The cluster.
    pub(super) fn cluster(&self) -> Arc<Cluster> {
        self.cluster.clone()
    }

    /// Begins an attempt, when all servers go by the map of now.
    pub(super) async fn begin(&self) -> Result<Attempt, DataCallError> {
        let limit = Instant::now() + CALL_TIMEOUT;
        let mut events = self.cluster.events();
        let (_, version) = self.cluster.everybody();
        loop {
            events.borrow_and_update();
            let (servers, _) = self.cluster.everybody();
            let Some(behind) = servers.iter().find(|s| !self.cluster.goes_by(**s, version)) else {
                return Ok(Attempt::new(servers));
            };
            if Instant::now() >= limit || events.changed().await.is_err() {
                return Err(DataCallError::Behind { server: *behind });
            }
        }
    }

    /// By how many bytes an attempt has made a file smaller so far. Exact unless a group has got another head meanwhile.
    pub(super) fn freed(&self, attempt: &Attempt) -> u64 {
        let deleted = attempt.deleted.load(Ordering::Relaxed);
        attempt.punched.load(Ordering::Relaxed).saturating_add(deleted)
    }

    /// Removes everything of a file's contents from a byte on. Durable when it returns.
    pub(super) async fn cut(
        &self,
        attempt: &Attempt,
        file: ChunkId,
        chunk_bits: u8,
        from: u64,
    ) -> Result<(), DataCallError> {
        let (index, within) = (from >> chunk_bits, from & ((1u64 << chunk_bits) - 1));
        let mut first = index;
        if within > 0 {
            self.punch(attempt, ChunkId { index, ..file }, within).await?;
            first += 1;
        }
        self.delete_from(attempt, ChunkId { index: first, ..file }).await?;
        self.flush(attempt).await
    }

    /// Removes chunks; durable after [`DataLink::flush`].
    pub(super) async fn delete_from(
        &self,
        attempt: &Attempt,
        first: ChunkId,
    ) -> Result<(), DataCallError> {
        for server in attempt.servers.iter().copied() {
            match self.call_while_counted(server, &Op::Delete { first }).await? {
                Reply::Deleted { instance, freed } => {
                    attempt.met(server, instance)?;
                    attempt.deleted.fetch_add(freed, Ordering::Relaxed);
                }
                _ => return Err(DataCallError::Nonsense { server }),
            }
        }
        Ok(())
    }

    /// Brings what was changed in an attempt to stable storage.
    pub(super) async fn flush(&self, attempt: &Attempt) -> Result<(), DataCallError> {
        let groups: Vec<GroupId> = attempt.done().groups.keys().copied().collect();
        for group in groups {
            let flush = |epoch| (At::Server, Op::Flush { groups: vec![(group, epoch)] });
            match self.at_head(group, flush).await? {
                (server, Reply::Flushed { verifiers }) => match verifiers.as_slice() {
                    [verifier] => attempt.under(group, *verifier)?,
                    _ => return Err(DataCallError::Nonsense { server }),
                },
                (server, _) => return Err(DataCallError::Nonsense { server }),
            }
        }
        for server in attempt.servers.iter().copied() {
            match self.call_while_counted(server, &Op::FlushHere).await? {
                Reply::FlushedHere { instance } => attempt.met(server, instance)?,
                _ => return Err(DataCallError::Nonsense { server }),
            }
        }
        // One that has come meanwhile may have got from others what these have removed since.
        let (servers, _) = self.cluster.everybody();
        match servers.difference(&attempt.servers).next() {
            Some(server) => Err(DataCallError::Others { server: *server }),
            None => Ok(()),
        }
    }

    /// Makes the rest of a chunk a hole.
    async fn punch(
        &self,
        attempt: &Attempt,
        chunk: ChunkId,
        offset: u64,
    ) -> Result<(), DataCallError> {
        // Without a group the volume has no data.
        let Some(group) = self.cluster.published().map.group_of(chunk) else { return Ok(()) };
        let punch = Op::Punch { chunk, offset, len: u64::MAX };
        let at = |epoch| (At::Group { group, epoch }, punch.clone());
        match self.at_head(group, at).await? {
            (_, Reply::Written { verifier, allocated }) => {
                attempt.punched.fetch_add(allocated.min(0).unsigned_abs(), Ordering::Relaxed);
                attempt.under(group, verifier)
            }
            (server, _) => Err(DataCallError::Nonsense { server }),
        }
    }

    /// Space for a volume's data.
    pub(super) async fn usage(&self, volume: u64) -> Result<Usage, Errno> {
        self.cluster.usage(volume).await
    }

    /// How a volume's data is replicated, by class.
    pub(super) fn redundancy(&self, volume: u64) -> BTreeMap<Class, Redundancy> {
        self.cluster.redundancy(volume)
    }

    /// Returns when data of a class has a place.
    pub(super) async fn ensure_class(&self, volume: u64, class: Class) -> Result<(), Errno> {
        self.cluster.ensure_class(volume, class).await
    }

    /// Calls the head of a chain, by the newest map, until it answers. Only for what may be repeated.
    async fn at_head(
        &self,
        group: GroupId,
        call: impl Fn(Epoch) -> (At, Op),
    ) -> Result<(ServerId, Reply), DataCallError> {
        let limit = Instant::now() + CHAIN_TIMEOUT;
        let mut maps = self.cluster.maps();
        let mut trouble = DataCallError::Unavailable { group };
        while Instant::now() < limit {
            let published = maps.borrow_and_update().clone();
            let chain = published.map.chain(group);
            if let Some((head, epoch)) = chain.and_then(|c| Some((c.head()?.server, c.epoch))) {
                let (at, op) = call(epoch);
                let answer = tokio::select! {
                    answer = self.call(head, at, op) => answer,
                    // The head may be gone.
                    () = chain_changes(&mut maps, group, epoch) => continue,
                };
                match answer {
                    Ok(Reply::StaleEpoch(_) | Reply::Busy) => {}
                    Ok(reply) => return Ok((head, reply)),
                    Err(error @ DataCallError::Call { .. }) => trouble = error,
                    Err(error) => return Err(error),
                }
            }
            // Until there is another map, or the same chain is ready.
            if let Ok(Err(_)) = tokio::time::timeout(CHAIN_PAUSE, maps.changed()).await {
                break;
            }
        }
        Err(trouble)
    }

    /// Keeps a session out of all data servers. Returns when nothing that it has sent can happen any more, however
    /// long that takes: a server that cannot be reached from here may be reached by the client. One that is dead and has left all
    /// chains is not waited for, when all others go by a map without it.
    pub(super) async fn fence(self: &Arc<Self>, session: SessionId) {
        let mut events = self.cluster.events();
        let mut calls = JoinSet::new();
        let (mut asked, mut fenced) = (BTreeSet::new(), BTreeSet::new());
        let mut before = BTreeSet::new();
        let mut left_by = None;
        loop {
            events.borrow_and_update();
            let (servers, version) = self.cluster.everybody();
            // In this version at the latest those have left that are not among them any more.
            let gone = before.difference(&servers).any(|server| !fenced.contains(server));
            if left_by.is_none() || gone {
                left_by = Some(version);
            }
            before.clone_from(&servers);
            for server in &servers {
                if asked.insert(*server) {
                    let (link, server) = (self.clone(), *server);
                    calls.spawn(async move { link.fence_at(server, session).await });
                }
            }
            let version = left_by.unwrap_or(version);
            let all = servers.is_subset(&fenced);
            if all && servers.iter().all(|server| self.cluster.goes_by(*server, version)) {
                return;
            }
            tokio::select! {
                Some(done) = calls.join_next() => match done {
                    Ok(server) => drop(fenced.insert(server)),
                    Err(error) => {
                        // Better others wait for ever than that two write.
                        tracing::error!(%session, %error, "fencing a session has panicked");
                        std::future::pending::<()>().await;
                    }
                },
                _ = events.changed() => {}
            }
        }
    }

    async fn fence_at(&self, server: ServerId, session: SessionId) -> ServerId {
        let mut pause = FENCE_PAUSE.0;
        loop {
            let fence = Op::Fence { session };
            let error = match self.call_while_counted(server, &fence).await {
                Ok(Reply::Fenced) => return server,
                Ok(_) => DataCallError::Nonsense { server },
                Err(error) => error,
            };
            warn_rarely!(WARN_INTERVAL, %session, %error, "what an ended session had is not given to others before its writes are kept out");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(FENCE_PAUSE.1);
        }
    }

    /// Calls a server about itself, as long as it counts.
    async fn call_while_counted(&self, server: ServerId, op: &Op) -> Result<Reply, DataCallError> {
        let gone = async {
            let mut events = self.cluster.events();
            loop {
                if events.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
                if !self.cluster.everybody().0.contains(&server) {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            answer = self.call(server, At::Server, op.clone()) => match answer? {
                Reply::Busy => Err(DataCallError::Busy { server }),
                reply => Ok(reply),
            },
            () = gone => Err(DataCallError::Others { server }),
        }
    }

    /// Asks a server what it has, as long as it answers.
    pub(super) async fn audit(
        &self,
        server: ServerId,
        op: AuditOp,
    ) -> Result<Reply, DataCallError> {
        let gone = async {
            let mut events = self.cluster.events();
            while self.cluster.present().contains_key(&server) {
                if events.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            answer = self.call(server, At::Server, Op::Peer(PeerOp::Audit(op))) => match answer? {
                Reply::Busy => Err(DataCallError::Busy { server }),
                reply => Ok(reply),
            },
            // Nothing says that to a connection, which would go on waiting.
            () = gone => Err(DataCallError::Others { server }),
        }
    }

    async fn call(&self, server: ServerId, at: At, op: Op) -> Result<Reply, DataCallError> {
        let request = Request { at, op };
        let header = codec::encode(&request).map_err(|_| DataCallError::Nonsense { server })?;
        let Some(channel) = self.cluster.channel(server) else {
            return Err(DataCallError::Others { server });
        };
        if self.cluster.is_astray(server) {
            // What is done there is not done at that server.
            return Err(DataCallError::Call { server, source: CallError::Closed });
        }
        let deadline = Instant::now() + CALL_TIMEOUT;
        let answer = channel
            .call(Bytes::from(header), Payload::default(), deadline)
            .await
            .map_err(|source| DataCallError::Call { server, source })?;
        match codec::decode(&answer.header) {
            Ok(Reply::Failed(errno)) => Err(DataCallError::Refused { server, errno }),
            Ok(reply) => Ok(reply),
            Err(_) => Err(DataCallError::Nonsense { server }),
        }
    }
}

/// Waits until a chain is not in this epoch any more.
async fn chain_changes(
    maps: &mut tokio::sync::watch::Receiver<Arc<super::cluster::Published>>,
    group: GroupId,
    epoch: Epoch,
) {
    let changed = maps
        .wait_for(|published| published.map.chain(group).is_none_or(|chain| chain.epoch != epoch));
    if changed.await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_across_two_lives_of_a_server_or_group_is_none() {
        let (attempt, server) = (Attempt::new(BTreeSet::new()), ServerId(1));
        attempt.met(server, InstanceId(7)).unwrap();
        attempt.met(server, InstanceId(7)).unwrap();
        attempt.met(ServerId(2), InstanceId(8)).unwrap();
        let refused = attempt.met(server, InstanceId(9));
        assert!(matches!(refused, Err(DataCallError::Restarted { .. })));
        attempt.under(GroupId(3), Verifier(1)).unwrap();
        attempt.under(GroupId(4), Verifier(2)).unwrap();
        attempt.under(GroupId(3), Verifier(1)).unwrap();
        let lost = attempt.under(GroupId(3), Verifier(2));
        assert!(matches!(lost, Err(DataCallError::Lost { .. })));
    }
}
