//! What an object is called.

use netfs_common::id::{ChunkId, ClusterId, GroupId, Ino, Version};

/// Names one version of one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// The cluster.
    pub cluster: ClusterIdBytes,
    /// The number of the volume.
    pub volume: u64,
    /// The placement group of the chunk, which never changes.
    pub group: GroupId,
    /// The chunk.
    pub chunk: ChunkId,
    /// The version that it has, never [`Version::NONE`].
    pub version: Version,
}

/// The bytes of a [`ClusterId`].
pub type ClusterIdBytes = [u8; 16];

/// Where the objects of a group are. The order of names is the order of chunks, and of their versions.
pub(super) fn folder(cluster: ClusterIdBytes, volume: u64, group: GroupId) -> String {
    format!("{}/{volume:04x}/{:08x}", ClusterId(cluster), group.0)
}

/// What says whose the objects of a cluster are ([`super::Marker`]). No object is called so.
pub(super) fn marker(cluster: ClusterIdBytes) -> String {
    format!("{}/owner", ClusterId(cluster))
}

impl ObjectId {
    /// The name below the prefix of the bucket.
    pub fn name(&self) -> String {
        let Self { cluster, volume, group, chunk, version } = *self;
        let ChunkId { ino, generation, index } = chunk;
        let folder = folder(cluster, volume, group);
        format!("{folder}/{:016x}.{generation:08x}/{index:016x}/{:016x}", ino.0, version.0)
    }

    /// The object that has this name, which must be one of ours in every digit.
    pub fn parse(name: &str) -> Option<ObjectId> {
        let mut parts = name.split('/');
        let mut next = || parts.next();
        let (cluster, volume, group) = (next()?, next()?, next()?);
        let (ino, generation) = next()?.split_once('.')?;
        let (index, version) = (next()?, next()?);
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        let narrow = |text: &str| u32::from_str_radix(text, 16).ok();
        let chunk =
            ChunkId { ino: Ino(hex(ino)?), generation: narrow(generation)?, index: hex(index)? };
        let found = ObjectId {
            cluster: u128::from_str_radix(cluster, 16).ok()?.to_be_bytes(),
            volume: hex(volume)?,
            group: GroupId(narrow(group)?),
            chunk,
            version: Version(hex(version)?),
        };
        (found.version != Version::NONE && found.name() == name).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(in crate::data::tier) fn some() -> ObjectId {
        ObjectId {
            cluster: *b"cluster of tests",
            volume: 3,
            group: GroupId(0x2a),
            chunk: ChunkId { ino: Ino(3 << 48 | 77), generation: 2, index: 5 },
            version: Version(9 << 32 | 1),
        }
    }

    #[test]
    fn a_name_is_understood_again_and_nothing_else_is() {
        let name = some().name();
        assert_eq!(
            name,
            "636c7573746572206f66207465737473/0003/0000002a/000300000000004d.00000002/\
             0000000000000005/0000000900000001"
        );
        assert_eq!(ObjectId::parse(&name), Some(some()));
        for other in ["", "x", "README", &name[1..], &format!("{name}/"), &name.to_uppercase()] {
            assert_eq!(ObjectId::parse(other), None, "{other}");
        }
        let none = ObjectId { version: Version::NONE, ..some() };
        assert_eq!(ObjectId::parse(&none.name()), None);
    }

    #[test]
    fn names_are_in_the_order_of_chunks() {
        let mut all: Vec<_> = (0..300)
            .map(|i| {
                let chunk = ChunkId { index: i % 20, ino: Ino(i * 7919 % 1000), generation: 0 };
                ObjectId { chunk, version: Version(1 + i), ..some() }
            })
            .collect();
        all.sort();
        assert!(all.windows(2).all(|pair| pair[0].name() < pair[1].name()));
    }
}
