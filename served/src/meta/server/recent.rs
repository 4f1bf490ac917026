//! Where changes are in the log, as long as they may still be lost: an answer that is given a second time names the same position as the first.

use std::collections::{HashMap, VecDeque};

use netfs_common::id::{LogIndex, OpSeq, SessionId};

/// A change by its session and number.
type Number = (SessionId, OpSeq);

/// The changes after the last one that is on stable storage. Bounded by what is written between two flushes.
#[derive(Debug, Default)]
pub(super) struct Recent {
    order: VecDeque<(LogIndex, Number)>,
    places: HashMap<Number, LogIndex>,
}

impl Recent {
    /// A change has got its position, the last one so far.
    pub(super) fn add(&mut self, at: LogIndex, number: Number) {
        self.order.push_back((at, number));
        self.places.insert(number, at);
    }

    /// The position of a change, if it may still be lost.
    pub(super) fn at(&self, number: Number) -> Option<LogIndex> {
        self.places.get(&number).copied()
    }

    /// All up to a position is on stable storage.
    pub(super) fn durable(&mut self, upto: LogIndex) {
        while let Some((_, number)) = self.order.pop_front_if(|(at, _)| *at <= upto) {
            self.places.remove(&number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_has_its_position_until_it_cannot_be_lost() {
        let number = |n| (SessionId(1), OpSeq(n));
        let mut recent = Recent::default();
        (1..=5).for_each(|n| recent.add(LogIndex(n * 10), number(n)));
        assert_eq!(recent.at(number(2)), Some(LogIndex(20)));
        recent.durable(LogIndex(39));
        assert_eq!((recent.at(number(3)), recent.at(number(4))), (None, Some(LogIndex(40))));
        recent.durable(LogIndex(50));
        assert!(recent.order.is_empty() && recent.places.is_empty());
    }
}
