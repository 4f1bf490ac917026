//! Taking over the map that data servers have followed, when `meta.dir` is an older copy.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use netfs_common::codec;
use netfs_common::id::ServerId;
use netfs_common::map::ClusterMap;
use netfs_common::net::Payload;
use netfs_common::wire::cluster::PeerOp;
use netfs_common::wire::data::{At, Op, Reply, Request};

use super::Cluster;

/// How often it is looked whether there is a later map.
const LOOK: Duration = Duration::from_millis(500);
/// A call may take this long.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

impl Cluster {
    /// Whether data servers have followed a later map than there is.
    pub(super) fn is_outdated(&self) -> bool {
        self.with(|manager, now| manager.is_frozen(now))
    }

    /// Takes over every later map that a data server has, for ever.
    pub(super) async fn catch_up(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK).await;
            let Some(leader) = self.with(|manager, now| manager.leader(now)) else { continue };
            let before = self.published().map.version;
            let taken = match self.later_map(leader).await {
                Ok(map) => {
                    let taken = self.with(|manager, now| manager.take_over(now, &map));
                    taken.map(|()| map.version).map_err(|error| error.to_string())
                }
                Err(error) => Err(error),
            };
            let why = match taken {
                Ok(later) => {
                    tracing::error!(
                        %before, %later, server = %leader,
                        "`meta.dir` is an older copy: the cluster map was taken over from a data server that has followed a later one"
                    );
                    None
                }
                Err(why) => {
                    tracing::warn!(%before, server = %leader, %why, "`meta.dir` is an older copy, and the later cluster map is not taken over yet");
                    Some(why)
                }
            };
            self.lock().behind = why;
        }
    }

    async fn later_map(&self, server: ServerId) -> Result<ClusterMap, String> {
        let request = Request { at: At::Server, op: Op::Peer(PeerOp::Followed) };
        let header: Bytes = codec::encode(&request).map_err(|e| e.to_string())?.into();
        let channel = self.channel(server).ok_or("the data server is not known any more")?;
        let deadline = Instant::now() + CALL_TIMEOUT;
        let answer = channel.call(header, Payload::default(), deadline).await;
        let answer = answer.map_err(|error| error.to_string())?;
        match codec::decode(&answer.header).map_err(|error| error.to_string())? {
            Reply::Followed(_) => {
                codec::decode(&answer.payload.into_bytes()).map_err(|error| error.to_string())
            }
            Reply::Failed(errno) => Err(format!("the data server does not know it: {errno}")),
            _ => Err("the data server answers what was not asked".into()),
        }
    }
}
