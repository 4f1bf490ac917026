//! Which inodes are recalled most.

use netfs_common::id::Ino;

/// So many are counted at a time.
const PLACES: usize = 1024;

/// Counts in bounded memory. Each inode has one place, which it shares with others: whoever is recalled more often than all of
/// them together has it, with a count that is never too high.
#[derive(Debug)]
pub(super) struct Hot(Vec<(Ino, u64)>);

impl Default for Hot {
    fn default() -> Self {
        Hot(vec![(Ino(0), 0); PLACES])
    }
}

impl Hot {
    pub(super) fn add(&mut self, ino: Ino) {
        // Fibonacci hashing: neighbours get places far from each other.
        let place = (ino.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54) as usize % PLACES;
        let (held, count) = &mut self.0[place];
        if *held == ino {
            *count += 1;
        } else if *count == 0 {
            (*held, *count) = (ino, 1);
        } else {
            *count -= 1;
        }
    }

    /// Those with the highest counts.
    pub(super) fn top(&self, n: usize) -> Vec<(Ino, u64)> {
        let mut all: Vec<_> = self.0.iter().filter(|(_, count)| *count > 0).copied().collect();
        all.sort_by_key(|(ino, count)| (u64::MAX - count, *ino));
        all.truncate(n);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_recalled_often_is_found_among_many_who_are_not() {
        let mut hot = Hot::default();
        for i in 0..100_000u64 {
            hot.add(Ino(1_000_000 + i));
            if i % 10 == 0 {
                hot.add(Ino(7));
            }
            if i % 20 == 0 {
                hot.add(Ino(8));
            }
        }
        let top = hot.top(2);
        assert_eq!([top[0].0, top[1].0], [Ino(7), Ino(8)]);
        assert!(top[0].1 <= 10_000 && top[0].1 > 9_000, "{top:?}");
        assert_eq!(hot.0.len(), PLACES);
    }
}
