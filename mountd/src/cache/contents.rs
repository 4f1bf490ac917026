//! The data of inline files.

use bytes::Bytes;
use lru::LruCache;
use netfs_common::id::Ino;

/// What an entry costs besides its bytes.
const ENTRY_COST: usize = 128;

/// Inline data by inode, bounded in bytes.
#[derive(Debug)]
pub(super) struct Contents {
    lru: LruCache<Ino, (u64, Bytes)>,
    bytes: usize,
    limit: usize,
}

impl Contents {
    pub(super) fn new(limit: usize) -> Contents {
        Contents { lru: LruCache::unbounded(), bytes: 0, limit }
    }

    /// Keeps data unless there is some of a later version.
    pub(super) fn put(&mut self, ino: Ino, version: u64, data: Bytes) {
        if self.lru.peek(&ino).is_some_and(|(v, _)| *v > version) {
            return;
        }
        self.remove(ino);
        self.bytes += data.len() + ENTRY_COST;
        self.lru.put(ino, (version, data));
        while self.bytes > self.limit
            && let Some((_, (_, old))) = self.lru.pop_lru()
        {
            self.bytes -= old.len() + ENTRY_COST;
        }
    }

    pub(super) fn get(&mut self, ino: Ino) -> Option<Bytes> {
        self.lru.get(&ino).map(|(_, d)| d.clone())
    }

    pub(super) fn remove(&mut self, ino: Ino) {
        if let Some((_, old)) = self.lru.pop(&ino) {
            self.bytes -= old.len() + ENTRY_COST;
        }
    }

    pub(super) fn clear(&mut self) {
        self.lru.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_bounded_and_older_versions_lose() {
        let mut c = Contents::new(1000);
        c.put(Ino(1), 5, Bytes::from_static(b"new"));
        c.put(Ino(1), 4, Bytes::from_static(b"old"));
        assert_eq!(c.get(Ino(1)).as_deref(), Some(&b"new"[..]));
        for i in 2..50 {
            c.put(Ino(i), 1, Bytes::from(vec![0; 100]));
            assert!(c.bytes <= 1000);
        }
        assert!(c.get(Ino(1)).is_none());
        c.clear();
        assert_eq!(c.bytes, 0);
    }
}
