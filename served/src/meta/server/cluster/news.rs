//! Telling clients of newer maps.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netfs_common::codec;
use netfs_common::net::{CallError, Link};
use netfs_common::wire::meta::Push;
use tokio::sync::watch;

use super::{Cluster, Published};

/// How long a client may take to answer; then it is told again, of what is the latest map by then.
const TELL: Duration = Duration::from_secs(5);

/// Tells one client of every map that comes after the one that `maps` has shown, until its connection ends. It has one message at a time:
/// while it does not answer, only the latest map is kept for it, and nobody waits.
pub(in crate::meta::server) async fn tell(
    cluster: Arc<Cluster>,
    mut maps: watch::Receiver<Arc<Published>>,
    volume: u64,
    here: Option<IpAddr>,
    link: Link,
) {
    while maps.changed().await.is_ok() {
        loop {
            let published = maps.borrow_and_update().clone();
            let map = cluster.map_for(&published, volume, here);
            let push = match codec::encode(&Push::Map(map)) {
                Ok(push) => push.into(),
                Err(error) => return tracing::error!(%error, "a cluster map cannot be encoded"),
            };
            match link.call(push, Instant::now() + TELL).await {
                Ok(_) => break,
                // It gets the map with its next connection.
                Err(CallError::Lost(_) | CallError::Closed) => return,
                Err(error) => {
                    let address = link.remote_address();
                    tracing::debug!(%address, %error, "a client was not told of a cluster map");
                    tokio::time::sleep(TELL / 10).await;
                }
            }
        }
    }
}
