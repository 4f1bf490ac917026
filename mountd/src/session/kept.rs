//! Changes that were answered and that the server may still lose.
//!
//! A change is answered before it is on stable storage. Until the server says that it is, it is kept here; and when the machine of the
//! server has failed, what was lost is offered to its next life, which makes it again
//! ([`netfs_common::wire::meta::Request::Replay`]).

use std::collections::{BTreeMap, BTreeSet};

use netfs_common::id::{Ino, LogIndex, OpSeq};
use netfs_common::wire::meta::{MAX_REPLAY, MAX_REPLAY_BYTES, Op, Replayed};

use super::lost::LostPositions;

/// Above this, nothing more is kept before the server has been asked to flush.
const MAX_CHANGES: usize = 16 << 10;
const MAX_BYTES: usize = 16 << 20;

#[derive(Debug)]
struct Change {
    replayed: Replayed,
    /// All inodes that it has changed.
    touched: Vec<Ino>,
}

impl Change {
    fn bulk(&self) -> usize {
        self.replayed.op.bulk()
    }
}

/// The changes of a session, in the order of the server's log.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// An answer that was given twice may have the position of a later change.
    changes: BTreeMap<(LogIndex, OpSeq), Change>,
    bytes: usize,
}

impl Kept {
    /// A change was answered.
    pub(super) fn add(&mut self, replayed: Replayed, touched: Vec<Ino>) {
        let place = (replayed.at, replayed.seq);
        let change = Change { replayed, touched };
        self.bytes += change.bulk();
        if let Some(old) = self.changes.insert(place, change) {
            self.bytes -= old.bulk();
        }
    }

    /// How many there are that somebody would miss.
    pub(super) fn missed(&self) -> usize {
        let trifle = |op: &Op| matches!(op, Op::Forget { .. } | Op::Accessed { .. });
        self.changes.values().filter(|change| !trifle(&change.replayed.op)).count()
    }

    /// What the changes were about that are not among those at these positions.
    pub(super) fn touched_beside(&self, positions: &BTreeSet<u64>) -> BTreeSet<Ino> {
        let others = self.changes.iter().filter(|((at, _), _)| !positions.contains(&at.0));
        others.flat_map(|(_, change)| change.touched.iter().copied()).collect()
    }

    /// The log is on stable storage up to a position.
    pub(super) fn durable(&mut self, upto: LogIndex) {
        while let Some(first) = self.changes.first_entry().filter(|first| first.key().0 <= upto) {
            self.bytes -= first.remove().bulk();
        }
    }

    /// There are none.
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// It is more than should be kept.
    pub(super) fn is_full(&self) -> bool {
        self.changes.len() > MAX_CHANGES || self.bytes > MAX_BYTES
    }

    /// The server has begun another life, or another session: what it has not lost it has on stable storage, since it flushes that before
    /// it answers anybody. Returns the rest, in messages' worth, and keeps it too.
    pub(super) fn lost(&mut self, lost: &LostPositions) -> Vec<Vec<Replayed>> {
        self.changes.retain(|(at, _), _| lost.has(at.0));
        self.bytes = self.changes.values().map(Change::bulk).sum();
        let mut messages: Vec<Vec<Replayed>> = Vec::new();
        let mut bytes = 0;
        for change in self.changes.values() {
            bytes += change.bulk();
            match messages.last_mut() {
                Some(last) if last.len() < MAX_REPLAY && bytes <= MAX_REPLAY_BYTES => {
                    last.push(change.replayed.clone());
                }
                _ => {
                    bytes = change.bulk();
                    messages.push(vec![change.replayed.clone()]);
                }
            }
        }
        messages
    }

    /// Nothing of it is needed any more.
    pub(super) fn clear(&mut self) {
        *self = Kept::default();
    }
}

#[cfg(test)]
mod tests {
    use netfs_common::attr::Timestamp;
    use netfs_common::wire::hello::Lost;
    use netfs_common::wire::meta::XattrMode;

    use super::*;

    fn change(at: u64, len: usize) -> Replayed {
        let op = Op::SetXattr {
            ino: Ino(1),
            name: b"user.a".to_vec(),
            value: vec![0; len],
            mode: XattrMode::Set,
        };
        let time = Timestamp { secs: 0, nanos: 0 };
        Replayed { at: LogIndex(at), seq: OpSeq(at), time, target: None, op }
    }

    fn positions(messages: &[Vec<Replayed>]) -> Vec<Vec<u64>> {
        messages.iter().map(|m| m.iter().map(|c| c.at.0).collect()).collect()
    }

    #[test]
    fn what_is_durable_or_was_not_lost_is_not_offered() {
        let mut kept = Kept::default();
        for at in [5, 3, 8, 12] {
            kept.add(change(at, 10), vec![Ino(at)]);
        }
        kept.durable(LogIndex(4));
        assert_eq!((kept.changes.len(), kept.bytes), (3, 30));
        let lost = LostPositions::new(vec![Lost { after: LogIndex(5), before: LogIndex(100) }]);
        assert_eq!(positions(&kept.lost(&lost)), [[8, 12]]);
        assert_eq!(positions(&kept.lost(&lost)), [[8, 12]], "until it is done");
        assert_eq!((kept.bytes, kept.missed()), (20, 2));
        assert_eq!(kept.touched_beside(&[12].into()), [Ino(8)].into());
        kept.durable(LogIndex(100));
        assert_eq!((kept.changes.len(), kept.bytes), (0, 0));
    }

    #[test]
    fn offers_fit_into_messages() {
        let mut kept = Kept::default();
        (1..=9).for_each(|at| kept.add(change(at, MAX_REPLAY_BYTES / 4), Vec::new()));
        kept.add(change(10, MAX_REPLAY_BYTES * 2), Vec::new());
        let lost = LostPositions::new(vec![Lost { after: LogIndex(0), before: LogIndex(100) }]);
        let offered = positions(&kept.lost(&lost));
        assert_eq!(offered, [vec![1, 2, 3, 4], vec![5, 6, 7, 8], vec![9], vec![10]]);
        assert!(!kept.is_full());
        (11..=11 + MAX_CHANGES as u64).for_each(|at| kept.add(change(at, 0), Vec::new()));
        assert!(kept.is_full());
        assert!(kept.lost(&lost).iter().all(|m| m.len() <= MAX_REPLAY));
        kept.clear();
        assert!(!kept.is_full() && kept.lost(&lost).is_empty());
    }
}
