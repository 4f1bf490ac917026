//! The cluster map: which server holds which chunk. Small, versioned, known to every client.

use bincode::{Decode, Encode};

use crate::id::{ChunkId, Epoch, GroupId, ServerId};

/// A data server as clients reach it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct DataServer {
    /// Its number in chains.
    pub id: ServerId,
    /// `host:port`, tried in order.
    pub addrs: Vec<String>,
}

/// The replicas of one placement group, the head of the chain first.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Chain {
    /// Raised by every change of the chain.
    pub epoch: Epoch,
    /// Head to tail; never empty.
    pub replicas: Vec<ServerId>,
}

/// Which server holds which chunk.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ClusterMap {
    /// Raised by every change.
    pub version: Epoch,
    /// All data servers.
    pub servers: Vec<DataServer>,
    /// The chain of each group, by its number; the count of groups never changes.
    pub chains: Vec<Chain>,
}

/// Why a map cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// There is no group, or a group without a replica.
    #[error("the cluster map has no placement group or one without replicas")]
    Empty,
    /// A chain names a server that the map does not have.
    #[error("the cluster map names data server {0}, which it does not describe")]
    UnknownServer(ServerId),
}

impl ClusterMap {
    /// Checks what every user of a map relies on.
    ///
    /// # Errors
    /// See [`MapError`].
    pub fn validate(&self) -> Result<(), MapError> {
        if self.chains.is_empty() || self.chains.iter().any(|c| c.replicas.is_empty()) {
            return Err(MapError::Empty);
        }
        for id in self.chains.iter().flat_map(|c| &c.replicas) {
            if !self.servers.iter().any(|s| s.id == *id) {
                return Err(MapError::UnknownServer(*id));
            }
        }
        Ok(())
    }

    /// The group of a chunk. All chunks of a file are spread independently of each other.
    ///
    /// # Panics
    /// Never on a map that [`ClusterMap::validate`] accepted.
    pub fn group_of(&self, chunk: ChunkId) -> GroupId {
        let mut h = mix(chunk.ino.0);
        h = mix(h ^ u64::from(chunk.generation));
        h = mix(h ^ chunk.index);
        GroupId((h % self.chains.len() as u64) as u32)
    }

    /// The chain that holds a chunk.
    pub fn chain_of(&self, chunk: ChunkId) -> (GroupId, &Chain) {
        let group = self.group_of(chunk);
        (group, &self.chains[group.0 as usize])
    }
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
/// Generators, 2014): it spreads neighbouring numbers over the whole range.
fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
