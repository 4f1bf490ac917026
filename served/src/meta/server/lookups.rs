//! Which inodes a session may have open.
//!
//! An inode that loses its last name is held for every session, since any of them may have it open. A session that
//! never saw the inode cannot, so it is let go at once on its behalf: otherwise nothing that one client deletes
//! would give its space back while another has the volume mounted.
//!
//! A client knows an inode only from an answer, so the answers are noted. Where that is not possible (answers of an
//! earlier life of the server, a table that is full) the session counts as one that has seen everything.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use netfs_common::id::{Ino, SessionId};
use netfs_common::wire::meta::Response;

/// The most inodes that are noted for all sessions of a volume together, at about 16 bytes each.
const MAX_NOTED: usize = 1 << 21;

/// What the sessions of one volume have seen.
#[derive(Debug, Default)]
pub(super) struct Lookups(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    sessions: HashMap<SessionId, Seen>,
    noted: usize,
    max: usize,
}

#[derive(Debug)]
enum Seen {
    /// Perhaps every inode.
    All,
    /// These, and perhaps every inode below a number.
    Noted { below: u64, inos: HashSet<Ino> },
}

impl Lookups {
    pub(super) fn new() -> Lookups {
        Lookups(Mutex::new(Inner { max: MAX_NOTED, ..Inner::default() }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session that was there before this life of the server; inodes from `next` on are new.
    pub(super) fn found(&self, id: SessionId, next: u64) {
        self.lock().sessions.insert(id, Seen::Noted { below: next, inos: HashSet::new() });
    }

    /// A session begins. Its client may use inodes below `below` that it saw in an earlier one, which is over.
    pub(super) fn begin(&self, id: SessionId, below: u64) {
        let mut inner = self.lock();
        inner.sessions.entry(id).or_insert_with(|| Seen::Noted { below, inos: HashSet::new() });
    }

    /// A session has ended.
    pub(super) fn end(&self, id: SessionId) {
        let mut inner = self.lock();
        if let Some(Seen::Noted { inos, .. }) = inner.sessions.remove(&id) {
            inner.noted -= inos.len();
        }
    }

    /// Notes what an answer shows a session.
    pub(super) fn note(&self, id: SessionId, response: &Response) {
        let mut inner = self.lock();
        match response {
            Response::Entry { attr, .. } => inner.add(id, attr.ino),
            Response::Changed { attrs, .. } => attrs.iter().for_each(|a| inner.add(id, a.ino)),
            Response::Listing { entries, .. } => {
                entries.iter().filter(|e| e.attr.is_some()).for_each(|e| inner.add(id, e.ino));
            }
            Response::Bytes(_)
            | Response::Xattrs(_)
            | Response::StatFs(_)
            | Response::Done
            | Response::Lock(_)
            | Response::Status(_)
            // Shown to people: the client learns nothing from it.
            | Response::Inspected(_)
            | Response::InspectedVolume(_)
            | Response::Operated(_)
            | Response::Replayed { .. } => {}
        }
    }

    /// A session has let go of inodes.
    pub(super) fn forget(&self, id: SessionId, inos: &[Ino]) {
        let mut inner = self.lock();
        if let Some(Seen::Noted { inos: noted, .. }) = inner.sessions.get_mut(&id) {
            let before = noted.len();
            for ino in inos {
                noted.remove(ino);
            }
            let gone = before - noted.len();
            inner.noted -= gone;
        }
    }

    /// Those of the sessions that cannot have an inode open.
    pub(super) fn strangers(&self, sessions: &[SessionId], ino: Ino) -> Vec<SessionId> {
        let inner = self.lock();
        let never_saw = |id: &&SessionId| match inner.sessions.get(id) {
            Some(Seen::Noted { below, inos }) => ino.0 >= *below && !inos.contains(&ino),
            Some(Seen::All) | None => false,
        };
        sessions.iter().filter(never_saw).copied().collect()
    }
}

impl Inner {
    fn add(&mut self, id: SessionId, ino: Ino) {
        let full = self.noted >= self.max;
        let Some(seen) = self.sessions.get_mut(&id) else { return };
        let Seen::Noted { inos, .. } = seen else { return };
        if full && !inos.contains(&ino) {
            self.noted -= inos.len();
            *seen = Seen::All;
        } else if inos.insert(ino) {
            self.noted += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SessionId = SessionId(1);
    const B: SessionId = SessionId(2);

    fn saw(lookups: &Lookups, id: SessionId, ino: u64) {
        let mut inner = lookups.lock();
        inner.add(id, Ino(ino));
    }

    #[test]
    fn only_who_cannot_have_seen_an_inode_is_a_stranger_to_it() {
        let lookups = Lookups::new();
        lookups.found(A, 100);
        lookups.begin(B, 0);
        let strangers = |ino| lookups.strangers(&[A, B, SessionId(3)], Ino(ino));
        assert_eq!(strangers(99), [B], "A may have seen it before");
        assert_eq!(strangers(100), [A, B]);
        saw(&lookups, A, 100);
        saw(&lookups, B, 99);
        assert_eq!((strangers(99), strangers(100)), (vec![], vec![B]));
        lookups.forget(A, &[Ino(100), Ino(7)]);
        assert_eq!(strangers(100), [A, B]);
        lookups.end(B);
        assert_eq!(strangers(100), [A]);
        lookups.begin(B, 200);
        assert_eq!((strangers(150), strangers(200)), (vec![A], vec![A, B]));
        assert_eq!(lookups.lock().noted, 0);
    }

    #[test]
    fn the_table_is_bounded() {
        let lookups = Lookups::new();
        lookups.lock().max = 10;
        lookups.begin(A, 0);
        lookups.begin(B, 0);
        (0..8).for_each(|ino| saw(&lookups, A, ino));
        (0..8).for_each(|ino| saw(&lookups, B, ino));
        assert_eq!(lookups.strangers(&[A, B], Ino(50)), [A], "B may have seen anything");
        assert_eq!(lookups.lock().noted, 8);
    }
}
