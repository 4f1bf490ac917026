//! The cluster map of a cluster with one data server.
//!
//! Chunks are placed by group and chain already, so that clients need not change when there are
//! more servers; the map is only not negotiated yet: both servers derive it from these constants.

use netfs_common::id::{Epoch, GroupId, Ino, ServerId};
use netfs_common::map::{Chain, ClusterMap, DataServer};

/// Placement groups. It never changes, because it decides where chunks are.
pub const GROUPS: u32 = 64;
/// The epoch of every chain that has never changed.
pub const FIRST_EPOCH: Epoch = Epoch(1);
/// The number of the only data server.
pub const FIRST_SERVER: ServerId = ServerId(1);

/// Each volume has so many inode numbers. Chunks are named by inode alone, so no two volumes of a
/// cluster may have a number in common; the first volume has the small ones, which 32-bit programs
/// can bear.
pub const INODE_BITS: u32 = 48;

/// The number of the volume to which an inode belongs.
pub fn volume_of(ino: Ino) -> u64 {
    ino.0 >> INODE_BITS
}

/// The map in which one data server, reached at `addrs`, holds everything.
pub fn single_server_map(addrs: Vec<String>) -> ClusterMap {
    let chain = Chain { epoch: FIRST_EPOCH, replicas: vec![FIRST_SERVER] };
    ClusterMap {
        version: FIRST_EPOCH,
        servers: vec![DataServer { id: FIRST_SERVER, addrs }],
        chains: vec![chain; GROUPS as usize],
    }
}

/// Whether a data server answers a call for this group and epoch; if not, the epoch that it knows.
///
/// # Errors
/// The server's epoch.
pub fn check_epoch(group: GroupId, epoch: Epoch) -> Result<(), Epoch> {
    if group.0 < GROUPS && epoch == FIRST_EPOCH { Ok(()) } else { Err(FIRST_EPOCH) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_is_valid_and_its_chains_are_what_the_data_server_accepts() {
        let map = single_server_map(vec!["localhost:1".into()]);
        assert_eq!(map.validate(), Ok(()));
        for (group, chain) in map.chains.iter().enumerate() {
            assert_eq!(check_epoch(GroupId(group as u32), chain.epoch), Ok(()));
        }
        assert_eq!(check_epoch(GroupId(GROUPS), FIRST_EPOCH), Err(FIRST_EPOCH));
        assert_eq!(check_epoch(GroupId(0), Epoch(2)), Err(FIRST_EPOCH));
    }
}
