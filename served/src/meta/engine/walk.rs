//! Going through many values in steps, each of which is short.

use netfs_common::attr::Attr;
use netfs_common::errno::Errno;
use netfs_common::id::Ino;

use super::Engine;
use crate::meta::keys;
use crate::meta::kv::{Read, StoreError};
use crate::meta::record::{self, Deletion, Inode, Trim};

/// Cuts that are looked at in one step.
const TRIM_STEP: usize = 4096;

impl Engine {
    /// [`Engine::pending_trims`] from a number on: what was completed before need not be waded through.
    ///
    /// # Errors
    /// `EIO` when the store fails.
    pub fn pending_trims_from(&self, from: u64) -> Result<Vec<(u64, Trim)>, Errno> {
        self.query(|store| tasks(store, keys::trim(from), keys::TRIM, TRIM_STEP))
    }

    /// [`Engine::pending_deletions`] from a number on.
    ///
    /// # Errors
    /// `EIO` when the store fails.
    pub fn pending_deletions_from(
        &self,
        from: u64,
        limit: usize,
    ) -> Result<Vec<(u64, Deletion)>, Errno> {
        self.query(|store| tasks(store, keys::deletion(from), keys::DELETION, limit))
    }

    /// The attributes of inodes from a number on, those without a name too.
    ///
    /// # Errors
    /// `EIO` when the store fails.
    pub fn inodes_from(&self, from: Ino, limit: usize) -> Result<Vec<Attr>, Errno> {
        self.query(|store| {
            let pairs = store.range(&keys::inode(from), &[keys::INODE + 1], limit)?;
            let attr = |(key, value): (_, _)| {
                let (key, value): (bytes::Bytes, bytes::Bytes) = (key, value);
                record::decode::<Inode>(&key, &value).map(|inode| inode.attr)
            };
            pairs.into_iter().map(attr).collect()
        })
    }
}

fn tasks<T: bincode::Decode<()>>(
    store: &dyn Read,
    from: Vec<u8>,
    kind: u8,
    limit: usize,
) -> Result<Vec<(u64, T)>, StoreError> {
    let pairs = store.range(&from, &[kind + 1], limit)?;
    pairs
        .into_iter()
        .map(|(key, value)| {
            let id = keys::field(&key, 0).ok_or_else(|| StoreError::damaged(&key, "bad key"))?;
            Ok((id, record::decode(&key, &value)?))
        })
        .collect()
}
