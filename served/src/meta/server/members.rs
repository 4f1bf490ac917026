//! Who uses a volume: sessions, their connections, and their signs of life.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use netfs_common::id::SessionId;
use netfs_common::net::Link;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::meta::sessions::Sessions;

/// So many clients that have gone are remembered by their description.
const MAX_GONE: usize = 256;
/// So many sessions that were ended by their clients are remembered.
const MAX_ENDED: usize = 1024;

/// The members of one volume.
#[derive(Debug)]
pub(super) struct Members {
    start: Instant,
    inner: Mutex<Inner>,
    /// Told whenever a session has got a connection or has ended.
    changed: Notify,
}

#[derive(Debug)]
struct Inner {
    sessions: Sessions,
    members: HashMap<SessionId, Member>,
    /// Sessions that were ended by their clients, the latest first.
    ended: VecDeque<SessionId>,
    /// For people: who has gone, the latest first.
    gone: VecDeque<(SessionId, String)>,
    last_link: u64,
    last_entry: u64,
}

#[derive(Debug, Default)]
struct Member {
    description: String,
    /// The name in the certificate of whoever opened it.
    owner: String,
    entry: Entry,
    link: Option<(LinkId, Link)>,
    /// Its end is recorded, but what it had is not yet for others: see `fencing`.
    over: bool,
}

/// One connection of a session; a session's newer connection replaces its older one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkId(u64);

/// One greeting of a session. Calls that come with an older one than the last are of a connection that has been replaced,
/// and nothing of that may come after what the new one brings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry(u64);

/// Why a client may not go on in a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotAdmitted {
    /// It belongs to the holder of another certificate.
    Stranger,
    /// Its client has ended it: this is a late attempt to hear that it was done.
    Ended,
}

impl Members {
    /// `known`: the sessions found in the store. Each has a full term to come back, as long as it was told at most.
    pub(super) fn new(
        term: Duration,
        told: Duration,
        known: Vec<(SessionId, String, String)>,
    ) -> Members {
        let mut sessions = Sessions::new(term);
        let mut members = HashMap::new();
        for (id, description, owner) in known {
            sessions.seen(id, told.saturating_sub(term));
            members.insert(id, Member { description, owner, ..Member::default() });
        }
        Members {
            start: Instant::now(),
            inner: Mutex::new(Inner {
                sessions,
                members,
                ended: VecDeque::new(),
                gone: VecDeque::new(),
                last_link: 0,
                last_entry: 0,
            }),
            changed: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    pub(super) fn term(&self) -> Duration {
        self.lock().sessions.term()
    }

    /// A session begins or comes back. Its present connection, if there is one, is closed: nothing of it
    /// may come after what the new one brings.
    pub(super) fn enter(
        &self,
        id: SessionId,
        owner: &str,
        description: &str,
    ) -> Result<Entry, NotAdmitted> {
        let now = self.now();
        let mut inner = self.lock();
        if inner.members.get(&id).is_some_and(|member| member.owner != owner) {
            return Err(NotAdmitted::Stranger);
        }
        if inner.ended.contains(&id) {
            return Err(NotAdmitted::Ended);
        }
        inner.sessions.seen(id, now);
        inner.last_entry += 1;
        let entry = Entry(inner.last_entry);
        let member = inner.members.entry(id).or_default();
        member.description = description.to_owned();
        member.owner = owner.to_owned();
        member.entry = entry;
        let old = member.link.take();
        drop(inner);
        if let Some((_, old)) = old {
            old.close();
        }
        Ok(entry)
    }

    /// How many there are, those that are about to join included.
    pub(super) fn count(&self) -> usize {
        self.lock().members.len()
    }

    /// A session was found ended: until [`Members::left`] others wait for it as before.
    pub(super) fn found_closed(&self, id: SessionId, description: String, owner: String) {
        let mut inner = self.lock();
        inner.sessions.seen(id, Duration::ZERO);
        let member = Member { description, owner, over: true, ..Member::default() };
        inner.members.insert(id, member);
    }

    /// The end of a session is recorded: its client is heard no more, but others still wait for it, until
    /// [`Members::left`]. Its connection is to be closed.
    pub(super) fn close(&self, id: SessionId) -> Option<Link> {
        let mut inner = self.lock();
        let member = inner.members.get_mut(&id)?;
        member.over = true;
        member.link.take().map(|(_, link)| link)
    }

    /// A sign of life; `false` if there is no such session, or a newer connection of it.
    pub(super) fn seen(&self, id: SessionId, entry: Entry) -> bool {
        let now = self.now();
        let mut inner = self.lock();
        let heard = |member: &Member| member.entry == entry && !member.over;
        let known = inner.members.get(&id).is_some_and(heard);
        if known {
            inner.sessions.seen(id, now);
        }
        known
    }

    /// Whether a session goes on, and no newer connection of it has come. Other than [`Members::seen`] it is no sign of life.
    pub(super) fn goes_on(&self, id: SessionId, entry: Entry) -> bool {
        let inner = self.lock();
        inner.members.get(&id).is_some_and(|member| member.entry == entry && !member.over)
    }

    /// Whether a session's end is recorded, and what it had is not yet for others.
    pub(super) fn is_closed(&self, id: SessionId) -> bool {
        self.lock().members.get(&id).is_some_and(|member| member.over)
    }

    /// The server itself has been stopped for a while: nobody could be heard.
    pub(super) fn everybody_seen(&self) {
        let now = self.now();
        let mut inner = self.lock();
        let ids: Vec<_> = inner.members.keys().copied().collect();
        ids.into_iter().for_each(|id| inner.sessions.seen(id, now));
    }

    /// The session's connection. `None`, and it is closed, if the session has ended meanwhile or has a newer one.
    pub(super) fn connected(&self, id: SessionId, entry: Entry, link: Link) -> Option<LinkId> {
        let mut inner = self.lock();
        inner.last_link += 1;
        let link_id = LinkId(inner.last_link);
        let present = inner.members.get_mut(&id);
        let old = match present.filter(|member| member.entry == entry && !member.over) {
            Some(member) => member.link.replace((link_id, link)).map(|(_, old)| old),
            None => {
                drop(inner);
                link.close();
                return None;
            }
        };
        drop(inner);
        if let Some(old) = old {
            old.close();
        }
        self.changed.notify_waiters();
        Some(link_id)
    }

    /// A connection has ended. The session goes on until its term is over.
    pub(super) fn disconnected(&self, id: SessionId, link_id: LinkId) {
        if let Some(member) = self.lock().members.get_mut(&id)
            && member.link.as_ref().is_some_and(|(present, _)| *present == link_id)
        {
            member.link = None;
        }
    }

    /// A session has ended; its connection is closed by the caller, who may have to answer first.
    pub(super) fn left(&self, id: SessionId) -> Option<Link> {
        let mut inner = self.lock();
        inner.sessions.remove(id);
        let member = inner.members.remove(&id);
        if let Some(member) = &member {
            inner.gone.truncate(MAX_GONE - 1);
            inner.gone.push_front((id, member.description.clone()));
        }
        drop(inner);
        self.changed.notify_waiters();
        member.and_then(|m| m.link).map(|(_, link)| link)
    }

    /// Whether a session was ended by its client, as far as that is remembered.
    pub(super) fn was_ended(&self, id: SessionId) -> bool {
        self.lock().ended.contains(&id)
    }

    /// A session was ended by its client, which nobody takes up again.
    pub(super) fn ended(&self, id: SessionId) {
        {
            let mut inner = self.lock();
            inner.ended.truncate(MAX_ENDED - 1);
            inner.ended.push_front(id);
        }
        self.left(id);
    }

    /// All but one.
    pub(super) fn others(&self, id: SessionId) -> Vec<SessionId> {
        self.lock().members.keys().filter(|other| **other != id).copied().collect()
    }

    /// Lets go of all connections, at the server's end.
    pub(super) fn forget_links(&self) {
        self.lock().members.values_mut().for_each(|member| member.link = None);
    }

    /// Sessions whose term is over.
    pub(super) fn expired(&self) -> Vec<SessionId> {
        let now = self.now();
        let inner = self.lock();
        let mut silent = inner.sessions.expired(now);
        silent.retain(|id| inner.members.get(id).is_none_or(|member| !member.over));
        silent
    }

    /// Everybody.
    pub(super) fn all(&self) -> Vec<SessionId> {
        self.lock().members.keys().copied().collect()
    }

    /// For people: description, connected now, for how long it has not been heard of.
    pub(super) fn look(&self, id: SessionId) -> Option<(String, bool, Duration)> {
        let now = self.now();
        let inner = self.lock();
        let member = inner.members.get(&id)?;
        let seen = inner.sessions.last_seen(id).unwrap_or(now);
        Some((member.description.clone(), member.link.is_some(), now.saturating_sub(seen)))
    }

    /// For people: how a client that has gone described itself.
    pub(super) fn gone(&self, id: SessionId) -> Option<String> {
        self.lock().gone.iter().find(|(gone, _)| *gone == id).map(|(_, d)| d.clone())
    }

    /// For people: identifier, description, connected now.
    pub(super) fn list(&self) -> Vec<(SessionId, String, bool)> {
        let inner = self.lock();
        let mut all: Vec<_> = inner
            .members
            .iter()
            .map(|(id, m)| (*id, m.description.clone(), m.link.is_some()))
            .collect();
        all.sort_unstable();
        all
    }

    /// All connections.
    pub(super) fn links(&self) -> Vec<Link> {
        let inner = self.lock();
        inner.members.values().filter_map(|m| Some(m.link.as_ref()?.1.clone())).collect()
    }

    /// The connection of a session, if it has one now.
    pub(super) fn present_link(&self, id: SessionId) -> Option<Link> {
        let inner = self.lock();
        inner.members.get(&id)?.link.as_ref().map(|(_, link)| link.clone())
    }

    /// The connection of a session, as soon as it has one; `None` when there is no such session any more.
    pub(super) async fn link_of(&self, id: SessionId) -> Option<Link> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.lock().members.get(&id) {
                None => return None,
                Some(Member { link: Some((_, link)), .. }) => return Some(link.clone()),
                Some(_) => {}
            }
            changed.await;
        }
    }
}
