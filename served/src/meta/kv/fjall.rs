//! The store on disk: one keyspace of fjall.

use std::path::Path;

use bytes::Bytes;
use fjall::config::{BlockSizePolicy, HashRatioPolicy};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::{Batch, Pair, Read, Store, StoreError};

/// How much memory the store may use.
#[derive(Clone, Copy, Debug)]
pub struct FjallConfig {
    /// Cache of blocks in bytes.
    pub cache_bytes: u64,
    /// Writes in memory before they go to a table, in bytes; about two such may exist.
    pub memtable_bytes: u64,
}

impl Default for FjallConfig {
    fn default() -> Self {
        FjallConfig { cache_bytes: 32 << 20, memtable_bytes: 8 << 20 }
    }
}

/// A store on disk.
///
/// What was committed may be lost in a crash until [`Store::persist`], but only from the end, a
/// whole batch at a time: the log has it and it is replayed. So fjall's own journal is left
/// buffered.
pub struct FjallStore {
    db: Database,
    pairs: Keyspace,
}

impl FjallStore {
    /// Opens a store, or makes it.
    ///
    /// # Errors
    /// When fjall cannot.
    pub fn open(dir: &Path, config: FjallConfig) -> Result<FjallStore, StoreError> {
        // A damaged store can make fjall panic while it opens; that is an answer too.
        let open = || FjallStore::open_unguarded(dir, config);
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(open)).unwrap_or_else(|_| {
            Err(StoreError::Failed(format!("{} cannot be opened: it is damaged", dir.display())))
        })
    }

    fn open_unguarded(dir: &Path, config: FjallConfig) -> Result<FjallStore, StoreError> {
        let db = Database::builder(dir)
            .cache_size(config.cache_bytes)
            .max_journaling_size(64 << 20)
            .max_cached_files(Some(128))
            .manual_journal_persist(true)
            .worker_threads(2)
            .open()
            .map_err(failed)?;
        let pairs = db
            .keyspace("meta", || {
                KeyspaceCreateOptions::default()
                    .max_memtable_size(config.memtable_bytes)
                    .manual_journal_persist(true)
                    .data_block_hash_ratio_policy(HashRatioPolicy::all(0.75))
                    .data_block_size_policy(BlockSizePolicy::all(4096))
            })
            .map_err(failed)?;
        Ok(FjallStore { db, pairs })
    }
}

fn failed(error: fjall::Error) -> StoreError {
    StoreError::Failed(error.to_string())
}

impl Read for FjallStore {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.pairs.get(key).map_err(failed)?.map(|v| Bytes::copy_from_slice(&v)))
    }

    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError> {
        if from >= to || limit == 0 {
            return Ok(Vec::new());
        }
        let mut out = Vec::new();
        for pair in self.pairs.range(from..to).take(limit) {
            let (key, value) = pair.into_inner().map_err(failed)?;
            out.push((Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value)));
        }
        Ok(out)
    }
}

impl Store for FjallStore {
    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        let mut writes = self.db.batch();
        for (key, value) in batch {
            match value {
                Some(value) => writes.insert(&self.pairs, key, value),
                None => writes.remove(&self.pairs, key),
            }
        }
        writes.commit().map_err(failed)
    }

    fn persist(&self) -> Result<(), StoreError> {
        self.db.persist(PersistMode::SyncAll).map_err(failed)
    }

    fn disk_bytes(&self) -> u64 {
        // A figure for people: where the journal cannot be measured, the tables are still said.
        self.db.disk_space().unwrap_or_else(|_| self.pairs.disk_space())
    }
}
