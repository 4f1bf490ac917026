//! Signs of life: one conversation with each data server, all the time.
//!
//! A server holds its answer back while it has nothing to say. What it must know at once (a newer map, reads that it has to refuse) goes to it in a
//! second call beside the one that is held back.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use netfs_common::codec;
use netfs_common::id::{Epoch, GroupId, InstanceId, ServerId};
use netfs_common::net::{Bulk, CallError, Channel, Payload};
use netfs_common::warn_rarely;
use netfs_common::wire::cluster::{Beat, BeatReply, PeerOp};
use netfs_common::wire::data::{At, Op, Reply, Request};
use tokio::task::JoinSet;

use super::{Cluster, TICK, WARN_INTERVAL};
use crate::meta::cluster::Config;

/// Calls to one server under way at a time.
const CALLS: usize = 2;
/// The least time from one call to the next, whatever a server says.
const PACE: Duration = Duration::from_millis(20);
/// Refusals of reads in one call; the rest follows when these are done.
const MAX_REVOKED: usize = 2048;

/// What a server is to do in which groups, up to which epochs.
type Groups = Vec<(GroupId, Epoch)>;

/// What a server has said last.
#[derive(Debug, Default)]
struct Pulse {
    /// Which of the channel's connections it was; answers of older ones come too late.
    connection: u64,
    last: Option<Last>,
}

#[derive(Debug, Clone, Copy)]
struct Last {
    instance: InstanceId,
    token: u64,
    version: Epoch,
}

impl Pulse {
    /// A call goes out over a connection: what was said last over it, and whether the server has the map of this version.
    fn call(&mut self, connection: u64, version: Epoch) -> (Option<Last>, bool) {
        if connection > self.connection {
            // Another life of the server may be at its end, which has no map and never gave the token.
            self.last = None;
            self.connection = connection;
        }
        let has = self.last.is_some_and(|last| last.version >= version && version > Epoch(0));
        (self.last, has)
    }

    /// An answer has come; `false` if it is of a connection that has been replaced.
    fn answer(&mut self, connection: u64, reply: &BeatReply) -> bool {
        if connection < self.connection {
            return false;
        }
        let known = self.last.filter(|last| last.instance == reply.instance);
        let token = known.map_or(reply.token, |last| last.token.max(reply.token));
        self.last = Some(Last { instance: reply.instance, token, version: reply.version });
        true
    }
}

/// Why a server was not heard.
#[derive(Debug, thiserror::Error)]
enum Silence {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("{0}")]
    Codec(#[from] codec::CodecError),
    #[error("it answers {0}")]
    Nonsense(String),
}

/// Talks to whoever is at the addresses of a server, for ever.
pub(super) async fn beat(
    cluster: Arc<Cluster>,
    server: ServerId,
    addrs: Vec<String>,
    channel: Channel<Bulk>,
) {
    let config = cluster.lock().manager.config();
    let pulse = Arc::new(Mutex::new(Pulse::default()));
    let mut maps = cluster.maps();
    let mut calls = JoinSet::new();
    let mut sent: (Epoch, Groups, Groups) = (Epoch(0), Vec::new(), Vec::new());
    let mut last = Instant::now();
    loop {
        let (mut revoke, hand_over) = cluster.requests(server);
        revoke.truncate(MAX_REVOKED);
        let says = (maps.borrow_and_update().map.version, revoke, hand_over);
        if calls.is_empty() || (calls.len() < CALLS && says != sent) {
            // Who is not that server, or is told no map, has no reason to hold its answers back.
            let pace = if cluster.is_astray(server) || cluster.is_outdated() {
                config.deadline / 10
            } else {
                PACE
            };
            tokio::time::sleep(pace.saturating_sub(last.elapsed())).await;
            last = Instant::now();
            sent.clone_from(&says);
            let (_, revoke, hand_over) = says;
            let words = Words { server, config, map: cluster.published(), revoke, hand_over };
            calls.spawn(one(cluster.clone(), channel.clone(), pulse.clone(), words));
        }
        tokio::select! {
            Some(done) = calls.join_next() => match done {
                Ok(Ok(reply)) => cluster.heard(server, &addrs, *reply),
                Ok(Err(error)) => {
                    tracing::debug!(%server, %error, "a data server was not heard");
                    if let Silence::Nonsense(_) | Silence::Codec(_) = error {
                        warn_rarely!(WARN_INTERVAL, %server, %error, "a data server gives no sign of life");
                    }
                }
                Err(error) => tracing::error!(%server, %error, "a sign of life has panicked"),
            },
            _ = maps.changed() => {}
            () = tokio::time::sleep(TICK / 2) => {}
        }
    }
}

/// What a server is told.
struct Words {
    server: ServerId,
    config: Config,
    map: Arc<super::Published>,
    revoke: Groups,
    hand_over: Groups,
}

/// One call. Before it is known who is there, and if it is not that server, it is asked for nothing. A late answer of an older connection counts for nothing.
async fn one(
    cluster: Arc<Cluster>,
    channel: Channel<Bulk>,
    pulse: Arc<Mutex<Pulse>>,
    words: Words,
) -> Result<Box<BeatReply>, Silence> {
    let Words { server, config, map, revoke, hand_over } = words;
    let hold = config.deadline / 10;
    let until = Instant::now() + config.deadline / 5 + hold;
    let (connection, bulk) = channel.peer(until).await?;
    let version = map.map.version;
    let (last, has) = lock(&pulse).call(connection, version);
    let known = last.and_then(|last| cluster.number(server, last.instance));
    let is_it = known.is_some_and(|(_, is_it)| is_it);
    let (revoke, hand_over) = if is_it { (revoke, hand_over) } else { Default::default() };
    let may_echo =
        is_it && cluster.is_settled(server) && cluster.published().map.version == version;
    // It would be followed by nobody who knows better, and by others it must not be.
    let payload = match known.is_none() || has || cluster.is_outdated() {
        true => Payload::default(),
        false => map.bytes.clone().into(),
    };
    let beat = Beat {
        // Chains count on a store, and so the number is that of the store.
        server: known.map_or(server, |(number, _)| number),
        echo: last.filter(|_| may_echo).map(|last| last.token),
        lease_ms: millis(config.lease()),
        version,
        revoke,
        hand_over,
        hold_ms: millis(hold),
        stall_ms: millis(config.deadline),
        owner: cluster.owner(),
    };
    let request = Request { at: At::Server, op: Op::Peer(PeerOp::Beat(beat)) };
    let header: Bytes = codec::encode(&request)?.into();
    let answer = bulk.call(header, payload, until).await?;
    match codec::decode(&answer.header)? {
        Reply::Beat(reply) if lock(&pulse).answer(connection, &reply) => Ok(reply),
        Reply::Beat(_) => Err(Silence::Call(CallError::Closed)),
        Reply::Failed(errno) => Err(Silence::Nonsense(errno.to_string())),
        _ => Err(Silence::Nonsense("what was not asked".into())),
    }
}

fn lock(pulse: &Mutex<Pulse>) -> MutexGuard<'_, Pulse> {
    pulse.lock().unwrap_or_else(PoisonError::into_inner)
}

fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}
