//! The store on disk: one keyspace of fjall.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use fjall::config::{BlockSizePolicy, HashRatioPolicy};
use fjall::{AbstractTree, Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::{Batch, Pair, Read, Store, StoreError};

/// From four on fjall holds a writer up, and does not look whether the threads that would go on are still there.
const MAX_SEALED: usize = 2;
/// The same from thirty on. Fewer than the difference can come about while one batch is written.
const MAX_RUNS: usize = 24;
/// How often it is looked whether the store has caught up.
const LOOK: Duration = Duration::from_millis(5);

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
/// It is tables, and a journal of what is not in them yet. Only the tables are relied on:
/// [`Store::persist`] brings all to them. The journal is left unsynced, and saves the time of a
/// replay when just the process has died; after a power failure there may be holes in it, and then
/// it is thrown away. Without it the store is as it was at some moment since it was persisted,
/// and the log has everything after that.
pub struct FjallStore {
    db: Database,
    pairs: Keyspace,
}

/// Why fjall does not open a store.
enum Failure {
    /// Nothing is wrong with what is on disk, as far as is known.
    Now(fjall::Error),
    /// It cannot be read.
    Damage(String),
}

impl FjallStore {
    /// Opens a store, or makes it.
    ///
    /// # Errors
    /// When fjall cannot.
    pub fn open(dir: &Path, config: FjallConfig) -> Result<FjallStore, StoreError> {
        let what = match FjallStore::attempt(dir, config) {
            Ok(store) => return Ok(store),
            Err(Failure::Now(error)) => return Err(failed(error)),
            Err(Failure::Damage(what)) => what,
        };
        tracing::warn!(dir = %dir.display(), %what, "the store's journal is thrown away");
        drop_journals(dir).map_err(|e| StoreError::Failed(format!("{}: {e}", dir.display())))?;
        FjallStore::attempt(dir, config).map_err(|failure| match failure {
            Failure::Now(error) => failed(error),
            Failure::Damage(what) => StoreError::Broken(format!("{}: {what}", dir.display())),
        })
    }

    fn attempt(dir: &Path, config: FjallConfig) -> Result<FjallStore, Failure> {
        // A damaged store can make fjall panic while it opens; that is an answer too.
        let open = || FjallStore::open_unguarded(dir, config);
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(open)) {
            Ok(Ok(store)) => Ok(store),
            Ok(Err(error @ (fjall::Error::Locked | fjall::Error::Io(_)))) => {
                Err(Failure::Now(error))
            }
            Ok(Err(error)) => Err(Failure::Damage(error.to_string())),
            Err(_) => Err(Failure::Damage("it makes no sense".into())),
        }
    }

    fn open_unguarded(dir: &Path, config: FjallConfig) -> Result<FjallStore, fjall::Error> {
        let db = Database::builder(dir)
            .cache_size(config.cache_bytes)
            .max_journaling_size(64 << 20)
            .max_cached_files(Some(128))
            .manual_journal_persist(true)
            .worker_threads(2)
            .open()?;
        let pairs = db.keyspace("meta", || {
            KeyspaceCreateOptions::default()
                .max_memtable_size(config.memtable_bytes)
                .manual_journal_persist(true)
                .data_block_hash_ratio_policy(HashRatioPolicy::all(0.75))
                .data_block_size_policy(BlockSizePolicy::all(4096))
        })?;
        Ok(FjallStore { db, pairs })
    }
}

/// Empties the journals, the newest first: what is left of a store is a state that it had, however far this
/// comes. The newest stays as an empty file: without any, fjall begins to count its writes anew, and those that
/// are in tables would hide later ones.
fn drop_journals(dir: &Path) -> io::Result<()> {
    let mut journals: Vec<(u64, PathBuf)> = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".jnl"));
        if let Some(number) = name.and_then(|n| n.parse().ok()) {
            journals.push((number, path));
        }
    }
    journals.sort_unstable();
    if let Some((_, newest)) = journals.pop() {
        let file = OpenOptions::new().write(true).open(newest)?;
        file.set_len(0)?;
        file.sync_all()?;
    }
    for (_, path) in journals.iter().rev() {
        fs::remove_file(path)?;
        File::open(dir)?.sync_all()?;
    }
    Ok(())
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
    fn is_ready(&self) -> Result<bool, StoreError> {
        let tree = &self.pairs.tree;
        if tree.sealed_memtable_count() <= MAX_SEALED && tree.l0_run_count() <= MAX_RUNS {
            return Ok(true);
        }
        // Fails when the threads have died that would bring them down.
        self.db.persist(PersistMode::Buffer).map_err(failed)?;
        Ok(false)
    }

    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        while !self.is_ready()? {
            std::thread::sleep(LOOK);
        }
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
        // Nobody would take the message that a memtable is to be written.
        self.db.persist(PersistMode::Buffer).map_err(failed)?;
        let tree = &self.pairs.tree;
        let upto = tree.get_highest_seqno();
        self.pairs.rotate_memtable().map_err(failed)?;
        while tree.get_highest_persisted_seqno() < upto {
            self.db.persist(PersistMode::Buffer).map_err(failed)?;
            std::thread::sleep(LOOK);
        }
        self.db.persist(PersistMode::Buffer).map_err(failed)
    }

    fn disk_bytes(&self) -> u64 {
        // A figure for people: where the journal cannot be measured, the tables are still said.
        self.db.disk_space().unwrap_or_else(|_| self.pairs.disk_space())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(n: u8) -> Batch {
        [(vec![0x10, n], Some(vec![n; 100]))].into_iter().collect()
    }

    #[test]
    fn a_store_whose_threads_have_died_says_so_instead_of_waiting_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let store = FjallStore::open(dir.path(), FjallConfig::default()).unwrap();
        store.commit(value(0)).unwrap();
        store.persist().unwrap();
        store.commit(value(1)).unwrap();
        // Nowhere to put a table: the threads end at the first one.
        fs::rename(dir.path().join("keyspaces"), dir.path().join("gone")).unwrap();
        let begun = std::time::Instant::now();
        let mut taken = 1;
        while taken < u8::MAX && store.commit(value(taken + 1)).is_ok() {
            taken += 1;
            // As if much more had been written.
            store.pairs.rotate_memtable().ok();
        }
        assert!(taken < u8::MAX && begun.elapsed() < Duration::from_secs(20), "{taken} taken");
        assert!(store.persist().is_err());
        assert!(store.get(&[0x10, 1]).unwrap().is_some(), "reads go on");
    }

    #[test]
    fn without_its_journal_a_store_has_what_was_persisted_and_takes_more() {
        let dir = tempfile::tempdir().unwrap();
        let open = || FjallStore::open(dir.path(), FjallConfig::default()).unwrap();
        let store = open();
        store.commit(value(1)).unwrap();
        store.persist().unwrap();
        store.commit(value(2)).unwrap();
        drop(store);
        drop_journals(dir.path()).unwrap();
        let store = open();
        assert!(store.get(&[0x10, 1]).unwrap().is_some());
        assert!(store.get(&[0x10, 2]).unwrap().is_none());
        store.commit([(vec![0x10, 1], None)].into_iter().collect()).unwrap();
        assert!(store.get(&[0x10, 1]).unwrap().is_none(), "hidden by what is in a table");
    }
}
