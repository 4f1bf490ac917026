//! Names that were taken back from the kernel, and where they led.
//!
//! A name is taken back by letting it expire. The kernel keeps it nevertheless until somebody looks it up again, and with it the inode. Should
//! that be gone for good, this says which name still leads to it there.

use std::collections::HashMap;

use lru::LruCache;
use netfs_common::id::Ino;
use netfs_common::name::Name;

/// The most that are remembered, the latest ones. About 150 bytes each.
const MAX_EXPIRED: usize = 1 << 14;

/// The names that have expired last.
#[derive(Debug)]
pub(super) struct Expired {
    /// The last name of each inode.
    names: LruCache<Ino, (Ino, Name)>,
    inodes: HashMap<(Ino, Name), Ino>,
}

impl Expired {
    pub(super) fn new() -> Expired {
        Expired { names: LruCache::unbounded(), inodes: HashMap::new() }
    }

    /// A name that led to an inode has expired.
    pub(super) fn add(&mut self, dir: Ino, name: Name, ino: Ino) {
        let name = (dir, name);
        self.asked(&name);
        if let Some(before) = self.names.put(ino, name.clone()) {
            self.inodes.remove(&before);
        }
        self.inodes.insert(name, ino);
        if self.names.len() > MAX_EXPIRED
            && let Some((_, oldest)) = self.names.pop_lru()
        {
            self.inodes.remove(&oldest);
        }
    }

    /// The kernel asks for a name: whatever it had of it, it will have the answer in its place.
    pub(super) fn asked(&mut self, name: &(Ino, Name)) {
        if let Some(ino) = self.inodes.remove(name) {
            self.names.pop(&ino);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.inodes.is_empty()
    }

    /// The name by which the kernel may still keep an inode.
    pub(super) fn take(&mut self, ino: Ino) -> Option<(Ino, Name)> {
        let name = self.names.pop(&ino)?;
        self.inodes.remove(&name);
        Some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIR: Ino = Ino(1);

    fn name(s: &str) -> Name {
        Name::new(s).unwrap()
    }

    #[test]
    fn the_last_name_of_an_inode_is_known_until_it_is_asked_for() {
        let mut expired = Expired::new();
        expired.add(DIR, name("a"), Ino(7));
        expired.add(DIR, name("b"), Ino(7));
        expired.add(DIR, name("c"), Ino(8));
        expired.asked(&(DIR, name("a")));
        assert_eq!(expired.take(Ino(7)), Some((DIR, name("b"))));
        assert_eq!(expired.take(Ino(7)), None);
        expired.asked(&(DIR, name("c")));
        assert_eq!(expired.take(Ino(8)), None);
        // It has led to two inodes, one after the other.
        expired.add(DIR, name("d"), Ino(9));
        expired.add(DIR, name("d"), Ino(10));
        assert_eq!((expired.take(Ino(9)), expired.take(Ino(10))), (None, Some((DIR, name("d")))));
        assert!(expired.is_empty());
    }

    #[test]
    fn only_the_latest_are_remembered() {
        let mut expired = Expired::new();
        for ino in 0..MAX_EXPIRED as u64 + 5 {
            expired.add(DIR, name(&ino.to_string()), Ino(ino));
        }
        assert_eq!((expired.names.len(), expired.inodes.len()), (MAX_EXPIRED, MAX_EXPIRED));
        assert_eq!(expired.take(Ino(4)), None);
        assert_eq!(expired.take(Ino(5)), Some((DIR, name("5"))));
    }
}
