//! Recently used values in memory: the gets of a log-structured store are slow.

use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use lru::LruCache;

use super::{Batch, Pair, Read, Store, StoreError};
use crate::meta::keys;

/// The largest value that is kept. Larger ones are rare among the kinds that are cached.
const MAX_VALUE_BYTES: usize = 512;

/// A store with a bounded cache of small hot values (inodes, entries, counters), absent ones too.
///
/// It stays coherent because whoever uses it keeps reads and commits apart: no read may run while
/// [`Store::commit`] does, see [`crate::meta::engine`].
pub struct Cached<S> {
    store: S,
    values: Mutex<LruCache<Box<[u8]>, Option<Bytes>>>,
}

impl<S: Store> Cached<S> {
    /// A cache of at most `values` values over a store.
    pub fn new(store: S, values: NonZeroUsize) -> Cached<S> {
        Cached { store, values: Mutex::new(LruCache::new(values)) }
    }

    fn values(&self) -> MutexGuard<'_, LruCache<Box<[u8]>, Option<Bytes>>> {
        // A panic while the lock was held cannot leave a wrong value: each is put in one step.
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Store> Read for Cached<S> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        if !keys::is_hot(key) {
            return self.store.get(key);
        }
        if let Some(value) = self.values().get(key) {
            return Ok(value.clone());
        }
        let value = self.store.get(key)?;
        if value.as_ref().is_none_or(|v| v.len() <= MAX_VALUE_BYTES) {
            self.values().put(key.into(), value.clone());
        }
        Ok(value)
    }

    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError> {
        self.store.range(from, to, limit)
    }
}

impl<S: Store> Store for Cached<S> {
    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        let hot: Vec<(Box<[u8]>, Option<Bytes>)> = batch
            .iter()
            .filter(|(key, _)| keys::is_hot(key))
            .map(|(key, value)| {
                (key.as_slice().into(), value.as_deref().map(Bytes::copy_from_slice))
            })
            .collect();
        self.store.commit(batch)?;
        let mut values = self.values();
        for (key, value) in hot {
            if value.as_ref().is_none_or(|v| v.len() <= MAX_VALUE_BYTES) {
                values.put(key, value);
            } else {
                values.pop(&key);
            }
        }
        Ok(())
    }

    fn is_ready(&self) -> Result<bool, StoreError> {
        self.store.is_ready()
    }

    fn persist(&self) -> Result<(), StoreError> {
        self.store.persist()
    }

    fn disk_bytes(&self) -> u64 {
        self.store.disk_bytes()
    }
}
