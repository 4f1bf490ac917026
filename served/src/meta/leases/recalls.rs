//! Recalls that have not been answered yet.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use netfs_common::id::{Ino, SessionId};
use netfs_common::wire::lease::{Lease, Names, Recall, Scope};

use super::{RecallId, Ticket, Unanswered};

/// One message to a holder.
#[derive(Debug)]
pub(super) struct Outstanding {
    pub(super) session: SessionId,
    pub(super) recalls: Vec<Recall>,
    /// The tickets that need the answer.
    pub(super) waiters: Vec<Ticket>,
    send_at: Duration,
    sent: bool,
    /// It was made for a ticket: no use in sending it when there is none any more.
    for_ticket: bool,
}

/// Where a recall stands: the message and the place in it.
type Place = (RecallId, usize);

/// All recalls of a volume that wait for their time or their answer.
#[derive(Debug)]
pub(super) struct Recalls {
    next: u64,
    all: HashMap<RecallId, Outstanding>,
    by_session: HashMap<SessionId, BTreeSet<RecallId>>,
    by_lease: HashMap<(SessionId, Ino), Vec<Place>>,
    unsent: BTreeSet<(Duration, RecallId)>,
}

impl Recalls {
    pub(super) fn new() -> Recalls {
        Recalls {
            next: 1,
            all: HashMap::new(),
            by_session: HashMap::new(),
            by_lease: HashMap::new(),
            unsent: BTreeSet::new(),
        }
    }

    /// Enters a message that is to be sent at a time.
    pub(super) fn add(
        &mut self,
        session: SessionId,
        recalls: Vec<Recall>,
        waiter: Option<Ticket>,
        send_at: Duration,
    ) -> RecallId {
        let id = RecallId(self.next);
        self.next += 1;
        for (i, recall) in recalls.iter().enumerate() {
            self.by_lease.entry((session, recall.ino)).or_default().push((id, i));
        }
        self.by_session.entry(session).or_default().insert(id);
        self.unsent.insert((send_at, id));
        let (for_ticket, waiters) = (waiter.is_some(), waiter.into_iter().collect());
        let entry = Outstanding { session, recalls, waiters, send_at, sent: false, for_ticket };
        self.all.insert(id, entry);
        id
    }

    /// A message that makes its receiver give back this much at least. The ticket waits for it
    /// from now on.
    ///
    /// Whoever has dropped something for an unanswered recall has not been allowed to keep it
    /// again since ([`Recalls::limit`]), so the answer is as good for a request that came later.
    pub(super) fn join(
        &mut self,
        session: SessionId,
        ino: Ino,
        keep: Option<Lease>,
        stale: &Scope,
        ticket: Ticket,
    ) -> Option<RecallId> {
        let enough = |r: &Recall| r.keep <= keep && (r.keep.is_none() || covers(&r.stale, stale));
        let places = self.by_lease.get(&(session, ino))?;
        let (id, _) = *places.iter().find(|place| self.at(**place).is_some_and(enough))?;
        let waiters = &mut self.all.get_mut(&id)?.waiters;
        if !waiters.contains(&ticket) {
            waiters.push(ticket);
        }
        Some(id)
    }

    /// The most that a session may be told it has of an inode before it has answered.
    ///
    /// While it has something to drop it is told nothing: it might drop before it sees the answer,
    /// keep what the answer shows, and then let the request for which it was to drop go ahead.
    pub(super) fn limit(&self, session: SessionId, ino: Ino) -> Option<Lease> {
        let Some(places) = self.by_lease.get(&(session, ino)) else { return Some(Lease::Write) };
        let nothing = Scope::default();
        let limit = |place: &Place| match self.at(*place) {
            Some(r) if r.stale == nothing => r.keep,
            _ => None,
        };
        places.iter().map(limit).min().unwrap_or(Some(Lease::Write))
    }

    pub(super) fn get(&self, id: RecallId) -> Option<&Outstanding> {
        self.all.get(&id)
    }

    /// How many messages there are.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// What a session is to give back of an inode.
    pub(super) fn on(&self, session: SessionId, ino: Ino) -> Vec<Unanswered> {
        let places = self.by_lease.get(&(session, ino)).into_iter().flatten();
        let shown = |place: &Place| {
            let sent = self.all.get(&place.0).filter(|o| o.sent).map(|o| o.send_at);
            Some(Unanswered { session, keep: self.at(*place)?.keep, sent })
        };
        places.filter_map(shown).collect()
    }

    /// Whether a message went out to this session.
    pub(super) fn was_sent(&self, session: SessionId, id: RecallId) -> bool {
        self.all.get(&id).is_some_and(|o| o.sent && o.session == session)
    }

    /// A ticket does not need the answer any more. A message that nobody needs stays unsent.
    pub(super) fn leave(&mut self, id: RecallId, ticket: Ticket) {
        let Some(entry) = self.all.get_mut(&id) else { return };
        entry.waiters.retain(|t| *t != ticket);
        if entry.for_ticket && !entry.sent && entry.waiters.is_empty() {
            self.remove(id);
        }
    }

    /// Strikes a message.
    pub(super) fn remove(&mut self, id: RecallId) -> Option<Outstanding> {
        let entry = self.all.remove(&id)?;
        for recall in &entry.recalls {
            let key = (entry.session, recall.ino);
            if let Some(places) = self.by_lease.get_mut(&key) {
                places.retain(|(of, _)| *of != id);
                if places.is_empty() {
                    self.by_lease.remove(&key);
                }
            }
        }
        if let Some(ids) = self.by_session.get_mut(&entry.session) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_session.remove(&entry.session);
            }
        }
        self.unsent.remove(&(entry.send_at, id));
        Some(entry)
    }

    /// All messages to a session, sent or not.
    pub(super) fn of(&self, session: SessionId) -> Vec<RecallId> {
        self.by_session.get(&session).into_iter().flatten().copied().collect()
    }

    /// Messages that a session was sent and has not answered.
    pub(super) fn sent_to(&self, session: SessionId) -> Vec<(RecallId, Vec<Recall>)> {
        let entry = |id| self.all.get(&id).filter(|o| o.sent).map(|o| (id, o.recalls.clone()));
        self.of(session).into_iter().filter_map(entry).collect()
    }

    /// Messages whose time has come. They count as sent.
    pub(super) fn due(&mut self, now: Duration) -> Vec<(SessionId, RecallId, Vec<Recall>)> {
        let mut due = Vec::new();
        while let Some((at, id)) = self.unsent.first().copied()
            && at <= now
        {
            self.unsent.remove(&(at, id));
            if let Some(entry) = self.all.get_mut(&id) {
                entry.sent = true;
                due.push((entry.session, id, entry.recalls.clone()));
            }
        }
        due
    }

    /// When the next message has to be sent.
    pub(super) fn next_due(&self) -> Option<Duration> {
        self.unsent.first().map(|(at, _)| *at)
    }

    fn at(&self, (id, i): Place) -> Option<&Recall> {
        self.all.get(&id)?.recalls.get(i)
    }
}

/// Whether the first contains the second.
pub(super) fn covers(all: &Scope, part: &Scope) -> bool {
    let data = match (all.data, part.data) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some((a, b)), Some((c, d))) => c >= d || (a <= c && d <= b),
    };
    let names = match (&all.names, &part.names) {
        (_, Names::None) | (Names::All, _) => true,
        (Names::None, Names::Some(part)) => part.is_empty(),
        (Names::Some(all), Names::Some(part)) => part.iter().all(|n| all.contains(n)),
        (_, Names::All) => false,
    };
    data && names && (all.attrs || !part.attrs) && (all.xattrs || !part.xattrs)
}

#[cfg(test)]
impl Recalls {
    pub(super) fn ids(&self) -> Vec<RecallId> {
        self.all.keys().copied().collect()
    }

    /// Panics unless the indexes agree with the messages.
    pub(super) fn check(&self) {
        let places: usize = self.by_lease.values().map(Vec::len).sum();
        assert_eq!(places, self.all.values().map(|o| o.recalls.len()).sum::<usize>());
        assert_eq!(self.by_session.values().map(BTreeSet::len).sum::<usize>(), self.all.len());
        assert_eq!(self.unsent.len(), self.all.values().filter(|o| !o.sent).count());
        for ((session, ino), places) in &self.by_lease {
            for place in places {
                assert_eq!(self.at(*place).unwrap().ino, *ino);
                assert_eq!(self.all[&place.0].session, *session);
            }
        }
        for o in self.all.values().filter(|o| o.for_ticket && !o.sent) {
            assert!(!o.waiters.is_empty(), "nobody needs it");
        }
    }
}
