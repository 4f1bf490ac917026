//! Writes that are not in the store yet, over the store.

use std::ops::Bound;

use bytes::Bytes;

use super::{Batch, Pair, Read, StoreError};

/// An overlay: it reads its own writes, and nobody else does until its batch is committed.
pub struct Txn<'s> {
    base: &'s dyn Read,
    writes: Batch,
}

impl<'s> Txn<'s> {
    /// An overlay without writes.
    pub fn new(base: &'s dyn Read) -> Txn<'s> {
        Txn { base, writes: Batch::new() }
    }

    /// Writes a value.
    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.writes.insert(key, Some(value));
    }

    /// Removes a key.
    pub fn remove(&mut self, key: Vec<u8>) {
        self.writes.insert(key, None);
    }

    /// Forgets all writes.
    pub fn clear(&mut self) {
        self.writes.clear();
    }

    /// The writes, to be committed.
    pub fn into_batch(self) -> Batch {
        self.writes
    }
}

impl Read for Txn<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        match self.writes.get(key) {
            Some(written) => Ok(written.as_deref().map(Bytes::copy_from_slice)),
            None => self.base.get(key),
        }
    }

    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError> {
        if from >= to {
            return Ok(Vec::new());
        }
        let bounds = (Bound::Included(from), Bound::Excluded(to));
        let mut written = self.writes.range::<[u8], _>(bounds).peekable();
        // Every removal here may hide one pair of the store, so that many more are read.
        let hidden = self.writes.range::<[u8], _>(bounds).filter(|(_, v)| v.is_none()).count();
        let stored = self.base.range(from, to, limit.saturating_add(hidden))?;
        let mut stored = stored.into_iter().peekable();
        let mut out = Vec::new();
        while out.len() < limit {
            let take_written = match (written.peek(), stored.peek()) {
                (None, None) => break,
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (Some((w, _)), Some((s, _))) => {
                    if w.as_slice() == &s[..] {
                        stored.next();
                        true
                    } else {
                        w.as_slice() < &s[..]
                    }
                }
            };
            if !take_written {
                out.extend(stored.next());
            } else if let Some((key, Some(value))) = written.next() {
                out.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::kv::{MemoryStore, Store};

    #[test]
    fn ranges_merge_writes_and_removals_with_the_store() {
        let store = MemoryStore::new();
        let batch = [b"a", b"c", b"e", b"g"].map(|k| (k.to_vec(), Some(b"old".to_vec())));
        store.commit(batch.into_iter().collect()).unwrap();
        let mut txn = Txn::new(&store);
        txn.put(b"b".to_vec(), b"new".to_vec());
        txn.put(b"c".to_vec(), b"new".to_vec());
        txn.remove(b"e".to_vec());
        txn.remove(b"f".to_vec());
        let keys = |from: &[u8], to: &[u8], limit| {
            let pairs = txn.range(from, to, limit).unwrap();
            pairs.iter().map(|(k, v)| format!("{}{}", k[0] as char, v.len())).collect::<String>()
        };
        assert_eq!(keys(b"a", b"z", 9), "a3b3c3g3");
        assert_eq!(keys(b"a", b"z", 3), "a3b3c3");
        assert_eq!(keys(b"d", b"z", 1), "g3");
        assert_eq!(keys(b"b", b"c", 9), "b3");
        assert_eq!(keys(b"z", b"a", 9), "");
        assert_eq!(txn.get(b"e").unwrap(), None);
        assert_eq!(txn.get(b"c").unwrap().unwrap(), "new");
        assert_eq!(store.get(b"c").unwrap().unwrap(), "old");
    }
}
