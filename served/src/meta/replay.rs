//! Making again what was lost with the end of the log.
//!
//! A change is answered when it is in the log, and not yet on stable storage. When the server's machine fails, those of the last
//! moment are lost; the clients still have them. They offer them to the next life of the server, which makes them again in their
//! old order before it does anything else that a client could notice. As applying a change is deterministic, and numbers that were
//! given out come with it, the outcome is the same, unless a client has died as well and its changes are missing.
//!
//! A plain state machine: who is waited for, and what has been offered. What goes wrong:
//!
//! - An offer is lost, or doubled: it is made again, and replaces itself.
//! - A client never comes: its session ends, and is not waited for. What depends on its changes cannot be made, and is told.
//! - The server fails once more in between: nothing is forgotten by the clients before all is on stable storage, and what was made
//!   is answered from the table of answers.

use std::collections::{BTreeMap, HashMap, HashSet};

use netfs_common::id::{LogIndex, OpSeq, SessionId};
use netfs_common::wire::meta::{Op, Replayed};

/// The most that one session may offer, and all together, in bytes: clients keep less.
const MAX_SESSION_BYTES: usize = 64 << 20;
const MAX_BYTES: usize = 1 << 30;

/// Its place in the old order.
type Place = (LogIndex, SessionId, OpSeq);

/// The offers of all sessions.
#[derive(Debug, Default)]
pub struct Replay {
    known: HashSet<SessionId>,
    awaited: HashSet<SessionId>,
    offers: BTreeMap<Place, Replayed>,
    /// What was too much.
    refused: Vec<(SessionId, LogIndex)>,
    bytes: usize,
    of_session: HashMap<SessionId, usize>,
}

/// What was gathered.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Gathered {
    /// In the old order.
    pub offers: Vec<(SessionId, Replayed)>,
    /// What could not be kept.
    pub refused: Vec<(SessionId, LogIndex)>,
}

impl Replay {
    /// Waits for these sessions.
    pub fn new(sessions: &[SessionId]) -> Replay {
        let known: HashSet<_> = sessions.iter().copied().collect();
        Replay { awaited: known.clone(), known, ..Replay::default() }
    }

    /// Some are still waited for.
    pub fn waits(&self) -> bool {
        !self.awaited.is_empty()
    }

    /// It was there before, and is or was waited for.
    pub fn knows(&self, session: SessionId) -> bool {
        self.known.contains(&session)
    }

    /// A session has these changes. One that has said that it has offered all offers nothing new.
    pub fn offer(&mut self, session: SessionId, changes: Vec<Replayed>) {
        if !self.awaited.contains(&session) {
            return;
        }
        for change in changes {
            let place = (change.at, session, change.seq);
            let bytes = size(&change.op);
            let mine = self.of_session.entry(session).or_default();
            if self.offers.contains_key(&place) {
                // It was offered over an earlier connection.
            } else if *mine + bytes > MAX_SESSION_BYTES || self.bytes + bytes > MAX_BYTES {
                self.refused.push((session, change.at));
            } else {
                *mine += bytes;
                self.bytes += bytes;
                self.offers.insert(place, change);
            }
        }
    }

    /// Who has not come yet.
    pub fn awaited(&self) -> impl Iterator<Item = SessionId> + '_ {
        self.awaited.iter().copied()
    }

    /// A session has offered all that it has, or will never come. True if it was the last.
    pub fn strike(&mut self, session: SessionId) -> bool {
        self.awaited.remove(&session) && self.awaited.is_empty()
    }

    /// All that was offered.
    pub fn take(&mut self) -> Gathered {
        self.bytes = 0;
        self.of_session.clear();
        let offers = std::mem::take(&mut self.offers).into_iter();
        let offers = offers.map(|((_, session, _), change)| (session, change)).collect();
        Gathered { offers, refused: std::mem::take(&mut self.refused) }
    }
}

/// About how much memory a change takes.
fn size(op: &Op) -> usize {
    // Names and all that has a fixed length.
    const FIXED: usize = 512;
    FIXED + op.bulk()
}

#[cfg(test)]
mod tests {
    use netfs_common::attr::Timestamp;
    use netfs_common::id::Ino;

    use super::*;

    const A: SessionId = SessionId(1);
    const B: SessionId = SessionId(2);

    fn change(at: u64) -> Replayed {
        let time = Timestamp { secs: 0, nanos: 0 };
        let op = Op::Forget { inos: vec![Ino(at)] };
        Replayed { at: LogIndex(at), seq: OpSeq(at), time, target: None, op }
    }

    #[test]
    fn offers_are_made_in_the_old_order_when_all_have_come() {
        let mut replay = Replay::new(&[A, B]);
        replay.offer(B, vec![change(2), change(5)]);
        assert!(!replay.strike(B));
        // It has come.
        replay.offer(B, vec![change(9)]);
        replay.offer(A, vec![change(3)]);
        // Once more over another connection.
        replay.offer(A, vec![change(3), change(4)]);
        assert!(replay.waits() && replay.strike(A) && !replay.waits());
        let order: Vec<_> = replay.take().offers.iter().map(|(id, c)| (*id, c.at.0)).collect();
        assert_eq!(order, [(B, 2), (A, 3), (A, 4), (B, 5)]);
        assert!(!replay.strike(A), "only once");
    }

    #[test]
    fn what_is_too_much_is_refused_and_keeps_nobody_else_out() {
        let mut replay = Replay::new(&[A, B]);
        let large = |at| {
            let target = vec![b'x'; MAX_SESSION_BYTES / 4];
            let op = Op::SetXattr {
                ino: Ino(1),
                name: Vec::new(),
                value: target,
                mode: netfs_common::wire::meta::XattrMode::Set,
            };
            Replayed { op, ..change(at) }
        };
        (1..6).for_each(|at| replay.offer(A, vec![large(at)]));
        replay.offer(B, vec![large(9)]);
        let gathered = replay.take();
        let kept: Vec<_> = gathered.offers.iter().map(|(_, c)| c.at.0).collect();
        assert_eq!(kept, [1, 2, 3, 9]);
        assert_eq!(gathered.refused, [(A, LogIndex(4)), (A, LogIndex(5))]);
    }

    #[test]
    fn who_was_not_there_before_is_not_listened_to() {
        let mut replay = Replay::new(&[A]);
        replay.offer(B, vec![change(1)]);
        assert!(
            replay.knows(A)
                && !replay.knows(B)
                && !replay.strike(B)
                && replay.strike(A)
                && replay.take() == Gathered::default()
        );
    }
}
