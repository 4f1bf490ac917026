//! What a lock is: its kind, its mode, and the ranges that one owner has in one file.

use bincode::{Decode, Encode};

/// The kinds of locks that Linux has. `Posix` and `Ofd` locks meet each other, `Flock` locks only
/// each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub enum LockKind {
    /// `F_SETLK`: owned by a process, gone when that closes the file.
    Posix,
    /// `F_OFD_SETLK`: owned by an open file description.
    Ofd,
    /// `flock(2)`: of the whole file, owned by an open file description.
    Flock,
}

/// Shared or exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub enum LockMode {
    /// Many may have it.
    Read,
    /// One owner alone has it.
    Write,
}

impl LockMode {
    /// Whether two owners cannot have locks of these modes on one byte.
    pub fn excludes(self, other: LockMode) -> bool {
        self == LockMode::Write || other == LockMode::Write
    }
}

/// Bytes from the first to the last, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct LockRange {
    /// The first byte.
    pub start: u64,
    /// The last byte; not before the first in a valid range.
    pub end: u64,
}

impl LockRange {
    /// Every byte that a file can have, and more.
    pub const ALL: LockRange = LockRange { start: 0, end: u64::MAX };

    /// Whether it has a byte at all.
    pub fn is_valid(self) -> bool {
        self.start <= self.end
    }

    /// Whether two ranges have a byte in common.
    pub fn meets(self, other: LockRange) -> bool {
        self.start <= other.end && other.start <= self.end
    }
}

/// The locked ranges of one owner in one file: in order, apart from each other, neighbours of one
/// mode merged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockedRanges(Vec<(LockRange, LockMode)>);

impl LockedRanges {
    /// Nothing is locked.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many ranges there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// All ranges in order.
    pub fn iter(&self) -> impl Iterator<Item = (LockRange, LockMode)> + '_ {
        self.0.iter().copied()
    }

    /// The ranges that have a byte in common with one, as they are.
    pub fn meeting(&self, range: LockRange) -> impl Iterator<Item = (LockRange, LockMode)> + '_ {
        let from = self.0.partition_point(|(r, _)| r.end < range.start);
        self.0[from..].iter().copied().take_while(move |(r, _)| r.start <= range.end)
    }

    /// The parts of a range that are locked, and how.
    pub fn within(&self, range: LockRange) -> Vec<(LockRange, LockMode)> {
        let part = |(r, mode): (LockRange, LockMode)| {
            let (start, end) = (r.start.max(range.start), r.end.min(range.end));
            (LockRange { start, end }, mode)
        };
        self.meeting(range).map(part).collect()
    }

    /// The parts of a range that are not locked.
    pub fn gaps(&self, range: LockRange) -> Vec<LockRange> {
        let mut gaps = Vec::new();
        let mut next = Some(range.start);
        for (r, _) in self.within(range) {
            if let Some(start) = next
                && start < r.start
            {
                gaps.push(LockRange { start, end: r.start - 1 });
            }
            next = r.end.checked_add(1);
        }
        if let Some(start) = next
            && start <= range.end
        {
            gaps.push(LockRange { start, end: range.end });
        }
        gaps
    }

    /// Whether all of a range is locked in a mode.
    pub fn covers(&self, range: LockRange, mode: LockMode) -> bool {
        self.gaps(range).is_empty() && self.meeting(range).all(|(_, m)| m == mode)
    }

    /// By how many ranges [`LockedRanges::set`] would make it longer.
    pub fn growth(&self, range: LockRange, mode: Option<LockMode>) -> isize {
        let (from, to, new) = self.plan(range, mode);
        new.len() as isize - (to - from) as isize
    }

    /// Gives a range another mode, or none. A range that is not valid changes nothing.
    pub fn set(&mut self, range: LockRange, mode: Option<LockMode>) {
        let (from, to, new) = self.plan(range, mode);
        self.0.splice(from..to, new);
    }

    /// Which ranges give way to which.
    fn plan(
        &self,
        range: LockRange,
        mode: Option<LockMode>,
    ) -> (usize, usize, Vec<(LockRange, LockMode)>) {
        if !range.is_valid() {
            return (0, 0, Vec::new());
        }
        let LockRange { start, end } = range;
        // Neighbours too: they may have to be merged.
        let from = self.0.partition_point(|(r, _)| r.end < start.saturating_sub(1));
        let to = self.0.partition_point(|(r, _)| r.start <= end.saturating_add(1)).max(from);
        let old = &self.0[from..to];
        let mut new: Vec<(LockRange, LockMode)> = Vec::with_capacity(old.len() + 2);
        let mut add = |range: LockRange, mode: LockMode| match new.last_mut() {
            Some((last, m)) if *m == mode && last.end.checked_add(1) == Some(range.start) => {
                last.end = range.end;
            }
            _ => new.push((range, mode)),
        };
        for (r, m) in old.iter().filter(|(r, _)| r.start < start) {
            add(LockRange { start: r.start, end: r.end.min(start - 1) }, *m);
        }
        if let Some(mode) = mode {
            add(range, mode);
        }
        for (r, m) in old.iter().filter(|(r, _)| r.end > end) {
            add(LockRange { start: r.start.max(end + 1), end: r.end }, *m);
        }
        (from, to, new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> LockRange {
        LockRange { start, end }
    }

    fn of(parts: &[(u64, u64, LockMode)]) -> LockedRanges {
        LockedRanges(parts.iter().map(|(a, b, m)| (range(*a, *b), *m)).collect())
    }

    #[test]
    fn a_hole_in_the_middle_splits_a_range() {
        let mut ranges = of(&[(0, 99, LockMode::Write)]);
        assert_eq!(ranges.growth(range(40, 59), None), 1);
        ranges.set(range(40, 59), None);
        assert_eq!(ranges, of(&[(0, 39, LockMode::Write), (60, 99, LockMode::Write)]));
        assert_eq!(ranges.gaps(range(0, 200)), [range(40, 59), range(100, 200)]);
        ranges.set(range(30, 70), Some(LockMode::Read));
        let all = [(0, 29, LockMode::Write), (30, 70, LockMode::Read), (71, 99, LockMode::Write)];
        assert_eq!(ranges, of(&all));
    }

    #[test]
    fn neighbours_of_one_mode_become_one_range() {
        let mut ranges = of(&[(0, 9, LockMode::Read), (20, 29, LockMode::Read)]);
        assert_eq!(ranges.growth(range(10, 19), Some(LockMode::Read)), -1);
        ranges.set(range(10, 19), Some(LockMode::Read));
        assert_eq!(ranges, of(&[(0, 29, LockMode::Read)]));
        ranges.set(range(30, 30), Some(LockMode::Write));
        assert_eq!(ranges.len(), 2);
        ranges.set(LockRange::ALL, Some(LockMode::Write));
        assert!(ranges.covers(LockRange::ALL, LockMode::Write) && ranges.len() == 1);
        ranges.set(range(u64::MAX, u64::MAX), None);
        assert_eq!(ranges.gaps(LockRange::ALL), [range(u64::MAX, u64::MAX)]);
        ranges.set(LockRange::ALL, None);
        assert!(ranges.is_empty());
    }

    #[test]
    fn a_range_without_a_byte_changes_nothing() {
        let mut ranges = of(&[(5, 9, LockMode::Read)]);
        ranges.set(range(8, 7), Some(LockMode::Write));
        assert_eq!(ranges, of(&[(5, 9, LockMode::Read)]));
    }
}
