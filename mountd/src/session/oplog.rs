//! The numbering of a session's changes.

use std::collections::BTreeSet;

use netfs_common::id::OpSeq;

/// Which changes have been numbered, and up to which all have been answered.
///
/// It is a plain state machine. `incarnation` tells sessions apart that follow each other under
/// one identifier: numbers begin again at 1, and those of an earlier one mean nothing any more.
#[derive(Debug, Default)]
pub struct OpLog {
    incarnation: u64,
    last: u64,
    answered: u64,
    /// Answered above the low-water mark. Bounded by the calls that may be under way at once.
    ahead: BTreeSet<u64>,
}

impl OpLog {
    /// The number of the next change.
    pub fn begin(&mut self) -> (u64, OpSeq) {
        self.last += 1;
        (self.incarnation, OpSeq(self.last))
    }

    /// All changes up to this one have been answered.
    pub fn answered(&self) -> OpSeq {
        OpSeq(self.answered)
    }

    /// A change has been answered or will never be sent again.
    pub fn finish(&mut self, incarnation: u64, seq: OpSeq) {
        if incarnation != self.incarnation || seq.0 <= self.answered || seq.0 > self.last {
            return;
        }
        self.ahead.insert(seq.0);
        while self.ahead.remove(&(self.answered + 1)) {
            self.answered += 1;
        }
    }

    /// The server has begun a new session; returns its incarnation.
    pub fn restart(&mut self) -> u64 {
        *self = OpLog { incarnation: self.incarnation + 1, ..OpLog::default() };
        self.incarnation
    }

    /// The incarnation in being.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_low_water_mark_waits_for_the_oldest() {
        let mut log = OpLog::default();
        let seqs: Vec<_> = (0..3).map(|_| log.begin()).collect();
        log.finish(0, seqs[2].1);
        log.finish(0, seqs[1].1);
        assert_eq!(log.answered(), OpSeq(0));
        log.finish(0, seqs[0].1);
        assert_eq!(log.answered(), OpSeq(3));
    }

    #[test]
    fn answers_of_an_earlier_session_are_ignored() {
        let mut log = OpLog::default();
        let (old, seq) = log.begin();
        assert_eq!(log.restart(), 1);
        let (new, first) = log.begin();
        assert_eq!(first, OpSeq(1));
        log.finish(old, seq);
        assert_eq!(log.answered(), OpSeq(0));
        log.finish(new, first);
        assert_eq!(log.answered(), OpSeq(1));
    }

    #[test]
    fn finishing_twice_or_the_unknown_changes_nothing() {
        let mut log = OpLog::default();
        let (i, seq) = log.begin();
        log.finish(i, OpSeq(9));
        log.finish(i, seq);
        log.finish(i, seq);
        assert_eq!(log.answered(), OpSeq(1));
    }
}
