//! Of which files nothing lies on data servers that was not reported.

use std::collections::HashSet;

use netfs_common::id::Ino;

/// How many inodes are remembered for certain; up to twice as many are.
const REMEMBERED: usize = 1 << 16;

/// Inodes whose last writer has reported all it sent. To forget one costs a cut of its tail.
#[derive(Debug, Default)]
pub(super) struct Tails {
    recent: HashSet<Ino>,
    former: HashSet<Ino>,
}

impl Tails {
    pub(super) fn insert(&mut self, ino: Ino) {
        self.recent.insert(ino);
        if self.recent.len() >= REMEMBERED {
            self.former = std::mem::take(&mut self.recent);
        }
    }

    pub(super) fn remove(&mut self, ino: Ino) {
        self.recent.remove(&ino);
        self.former.remove(&ino);
    }

    pub(super) fn contains(&self, ino: Ino) -> bool {
        self.recent.contains(&ino) || self.former.contains(&ino)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_ones_are_forgotten() {
        let mut tails = Tails::default();
        for n in 0..3 * REMEMBERED as u64 {
            tails.insert(Ino(n));
            assert!(tails.contains(Ino(n)));
        }
        assert!(!tails.contains(Ino(0)));
        assert!(tails.recent.len() + tails.former.len() <= 2 * REMEMBERED);
        let last = Ino(3 * REMEMBERED as u64 - 1);
        tails.remove(last);
        assert!(!tails.contains(last));
    }
}
