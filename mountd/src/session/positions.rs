//! Positions in the metadata server's log.
//!
//! They are versions of attributes too. The server gives none out twice, but with a power failure
//! it may lose the end of its log: what is known of positions holds for one life of the server.

use netfs_common::errno::Errno;

use super::lost::LostPositions;

/// What is known of the log of the server's present life.
#[derive(Debug)]
pub(super) struct Positions {
    /// The first connection to this life.
    since: u64,
    /// The latest position seen in an answer to a change.
    latest: u64,
    /// Up to where the log is known to be on stable storage.
    durable: u64,
    /// What earlier lives have answered with these positions is lost.
    lost: LostPositions,
}

/// A wait for stable storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    since: u64,
    upto: u64,
}

impl Positions {
    pub(super) fn new(serial: u64) -> Positions {
        Positions { since: serial, latest: 0, durable: 0, lost: LostPositions::default() }
    }

    /// The server, or the session, has begun anew with a connection. Returns up to where changes
    /// were answered if the end of that is lost.
    pub(super) fn begin_anew(&mut self, serial: u64, lost: LostPositions) -> Option<u64> {
        let before = std::mem::replace(self, Positions { lost, ..Positions::new(serial) });
        self.lost.has(before.latest).then_some(before.latest)
    }

    /// Whether an answer that came over a connection is of the present life.
    pub(super) fn is_current(&self, serial: u64) -> bool {
        serial >= self.since
    }

    /// A change was answered, durably if `sync`.
    ///
    /// # Errors
    /// `EIO` when it was answered by an earlier life and is lost.
    pub(super) fn answered(&mut self, serial: u64, at: u64, sync: bool) -> Result<(), Errno> {
        if !self.is_current(serial) {
            return if self.lost.has(at) { Err(Errno::EIO) } else { Ok(()) };
        }
        self.latest = self.latest.max(at);
        if sync {
            self.durable = self.durable.max(at);
        }
        Ok(())
    }

    /// What must be waited for until the log is durable up to a position: nothing if it is known
    /// to be. Position 0 stands for one that is not known.
    pub(super) fn want(&self, position: u64) -> Option<Wanted> {
        let known = position != 0 && self.durable >= position;
        let stated = if position == u64::MAX { 0 } else { position };
        (!known).then(|| Wanted { since: self.since, upto: self.latest.max(stated) })
    }

    /// The server has made everything durable since.
    pub(super) fn reached(&mut self, wanted: Wanted) {
        if wanted.since == self.since {
            self.durable = self.durable.max(wanted.upto);
        }
    }
}

#[cfg(test)]
mod tests {
    use netfs_common::id::LogIndex;
    use netfs_common::wire::hello::Lost;

    use super::*;

    fn lost(ranges: &[(u64, u64)]) -> LostPositions {
        let range = |(a, b): &(u64, u64)| Lost { after: LogIndex(*a), before: LogIndex(*b) };
        LostPositions::new(ranges.iter().map(range).collect())
    }

    #[test]
    fn what_is_durable_costs_no_message() {
        let mut p = Positions::new(1);
        p.answered(1, 5, false).unwrap();
        let wanted = p.want(4).unwrap();
        p.answered(1, 6, false).unwrap();
        p.reached(wanted);
        assert_eq!(p.want(5), None);
        assert!(p.want(6).is_some(), "it was answered after the question");
        p.answered(1, 7, true).unwrap();
        assert_eq!(p.want(7), None);
        assert!(p.want(u64::MAX).is_some() && p.want(0).is_some());
    }

    #[test]
    fn nothing_is_durable_because_an_earlier_life_said_so() {
        let mut p = Positions::new(1);
        p.answered(1, 353, true).unwrap();
        let asked_before = p.want(u64::MAX).unwrap();
        assert_eq!(p.begin_anew(2, lost(&[(400, 1000)])), None, "nothing is lost");
        assert!(p.want(10).is_some());
        p.reached(asked_before);
        assert!(p.want(10).is_some(), "another life answered");
    }

    #[test]
    fn a_loss_is_told_although_the_server_has_failed_once_more_since() {
        let mut p = Positions::new(1);
        p.answered(1, 353, false).unwrap();
        assert_eq!(p.begin_anew(2, lost(&[(10, 20), (300, 1000), (1010, 2000)])), Some(353));
        p.answered(2, 2001, false).unwrap();
        assert_eq!(p.begin_anew(3, lost(&[(300, 1000), (1010, 2000)])), None);
    }

    #[test]
    fn a_late_answer_of_an_earlier_life_counts_if_it_was_kept() {
        let mut p = Positions::new(1);
        p.answered(1, 353, false).unwrap();
        assert_eq!(p.begin_anew(3, lost(&[(300, 1000)])), Some(353));
        assert_eq!(p.answered(1, 300, false), Ok(()));
        assert_eq!(p.answered(1, 301, false), Err(Errno::EIO));
        assert!(!p.is_current(2) && p.is_current(3));
        assert_eq!(p.begin_anew(4, lost(&[(300, 1000)])), None, "it is told once");
    }
}
