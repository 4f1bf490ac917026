//! The cluster map of a cluster with one data server.
//!
//! Chunks are placed by group and chain already, so that clients need not change when there are
//! more servers; the map is only not negotiated yet: both servers derive it from these constants.

use netfs_common::id::{Epoch, GroupId, InstanceId, ServerId, Verifier};
use netfs_common::map::{Chain, ClusterMap, DataServer, Pool, Replica};
pub use netfs_common::map::{INODE_BITS, volume_of};

/// Placement groups. It never changes, because it decides where chunks are.
pub const GROUPS: u32 = 64;
/// The epoch of every chain that has never changed.
pub const FIRST_EPOCH: Epoch = Epoch(1);
/// The number of the only data server.
pub const FIRST_SERVER: ServerId = ServerId(1);

/// The map in which one data server, reached at `addrs`, holds everything.
pub fn single_server_map(addrs: Vec<String>) -> ClusterMap {
    let replica = Replica { server: FIRST_SERVER, instance: InstanceId(0) };
    let chain =
        Chain { epoch: FIRST_EPOCH, verifier: Verifier(1), replicas: vec![replica], learner: None };
    let pool = Pool {
        volume: 0,
        first: GroupId(0),
        min_replicas: 1,
        chains: vec![chain; GROUPS as usize],
    };
    ClusterMap {
        version: FIRST_EPOCH,
        servers: vec![DataServer { id: FIRST_SERVER, addrs }],
        pools: vec![pool],
    }
}

/// Whether a data server answers a call for this group and epoch; if not, the epoch that it knows.
///
/// # Errors
/// The server's epoch.
pub fn check_epoch(group: GroupId, epoch: Epoch) -> Result<(), Epoch> {
    if group.0 < GROUPS && epoch == FIRST_EPOCH { Ok(()) } else { Err(FIRST_EPOCH) }
}
