//! Who holds what and who waits for whom, for people. Answered at once, whatever the leases are: it is asked when something waits.

use std::sync::Arc;
use std::time::Duration;

use netfs_common::errno::Errno;
use netfs_common::id::{Ino, SessionId};
use netfs_common::wire::insight::{
    About, Client, FileLock, Holder, Inspection, MAX_SHOWN, PastWait, Unanswered, VolumeLeases,
    Waiter, Wish,
};
use netfs_common::wire::meta::{Reply, Response};

use super::volume::Volume;
use crate::meta::leases::MAX_BLOCKERS;
use crate::meta::locks::Blocker;

/// Everybody who is mentioned in an answer, without their sessions' numbers.
struct Mentioned {
    asker: SessionId,
    sessions: Vec<SessionId>,
}

impl Mentioned {
    fn place(&mut self, session: SessionId) -> u32 {
        let known = self.sessions.iter().position(|s| *s == session);
        let at = known.unwrap_or_else(|| {
            self.sessions.push(session);
            self.sessions.len() - 1
        });
        // Bounded by the lists' bounds.
        u32::try_from(at).unwrap_or(u32::MAX)
    }

    fn places(&mut self, sessions: &[SessionId]) -> Vec<u32> {
        sessions.iter().take(MAX_BLOCKERS).map(|s| self.place(*s)).collect()
    }
}

/// Cuts a list; returns how much was left out.
fn cut<T>(list: &mut Vec<T>) -> u64 {
    let out = list.len().saturating_sub(MAX_SHOWN);
    list.truncate(MAX_SHOWN);
    out as u64
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Volume {
    /// Answers a client's question.
    pub(super) fn inspect(self: &Arc<Self>, asker: SessionId, about: &About) -> Reply {
        let ino = match about {
            About::Inode(ino) => *ino,
            About::Name { parent, name } => {
                self.engine.child(*parent, name)?.ok_or(Errno::ENOENT)?
            }
            About::Volume => return Ok(Response::InspectedVolume(self.inspect_volume(asker))),
        };
        let Response::Entry { attr, .. } = self.engine.get(ino)? else {
            return Err(Errno::EIO);
        };
        let mut all = Mentioned { asker, sessions: Vec::new() };
        let mut shown = Inspection {
            attr,
            clients: Vec::new(),
            holders: Vec::new(),
            waiting: Vec::new(),
            recalls: Vec::new(),
            past: Vec::new(),
            locks: Vec::new(),
            lock_queue: Vec::new(),
            grace: false,
            left_out: 0,
        };
        self.show_leases(ino, &mut all, &mut shown);
        self.show_locks(ino, &mut all, &mut shown);
        shown.clients = all.sessions.iter().map(|s| self.client(asker, *s)).collect();
        Ok(Response::Inspected(Box::new(shown)))
    }

    /// Leases and whoever waits for one.
    fn show_leases(&self, ino: Ino, all: &mut Mentioned, shown: &mut Inspection) {
        let now = self.leasing.now();
        let table = self.leasing.table();
        let (mut holders, waiting, mut recalls) =
            (table.holders(ino), table.waiting(ino), table.unanswered(ino));
        shown.left_out += table.waiting_count(ino).saturating_sub(waiting.len()) as u64;
        shown.grace = table.in_grace();
        drop(table);
        // The asker first, so that it is among what is shown.
        holders.sort_by_key(|(session, _)| *session != all.asker);
        shown.left_out += cut(&mut holders) + cut(&mut recalls);
        for (session, lease) in holders {
            shown.holders.push(Holder { client: all.place(session), lease });
        }
        for (ticket, session, on) in waiting {
            // Between the two looks it may have been let through.
            let Some(request) = self.leasing.waits.of(ticket) else { continue };
            shown.waiting.push(Waiter {
                client: all.place(session),
                wish: request.wish(ino).unwrap_or(Wish::Look),
                waits_ms: millis(now.saturating_sub(request.since)),
                on: all.places(&on),
            });
        }
        for recall in recalls {
            let age_ms = recall.sent.map(|at| millis(now.saturating_sub(at)));
            let client = all.place(recall.session);
            shown.recalls.push(Unanswered { client, keep: recall.keep, age_ms });
        }
        for past in self.leasing.waits.past(ino, MAX_SHOWN / 4) {
            let waited = past.until.saturating_sub(past.request.since);
            shown.past.push(PastWait {
                client: all.place(past.request.session),
                wish: past.request.wish(ino).unwrap_or(Wish::Look),
                waited_us: u64::try_from(waited.as_micros()).unwrap_or(u64::MAX),
                ago_ms: millis(now.saturating_sub(past.until)),
                on: all.places(&past.request.on),
                served: past.served,
            });
        }
    }

    /// File locks and whoever waits for one.
    fn show_locks(&self, ino: Ino, all: &mut Mentioned, shown: &mut Inspection) {
        let (mut held, mut queued) = self.locks.look(ino);
        shown.left_out += cut(&mut held) + cut(&mut queued);
        let mut show = |lock: Blocker| FileLock {
            client: all.place(lock.owner.session),
            kind: lock.owner.kind,
            mode: lock.mode,
            range: lock.range,
            pid: lock.pid,
        };
        shown.locks = held.into_iter().map(&mut show).collect();
        shown.lock_queue = queued.into_iter().map(&mut show).collect();
    }

    fn inspect_volume(&self, asker: SessionId) -> VolumeLeases {
        let mut clients: Vec<_> =
            self.members.all().into_iter().map(|session| self.client(asker, session)).collect();
        clients.sort_by_key(|c| (!c.you, u64::MAX - c.leases));
        let left_out = cut(&mut clients);
        let table = self.leasing.table();
        VolumeLeases {
            leases: table.len() as u64,
            per_client: table.per_session() as u64,
            waiting: table.tickets() as u64,
            unanswered: table.recalls() as u64,
            grace: table.in_grace(),
            clients,
            left_out,
        }
    }

    fn client(&self, asker: SessionId, session: SessionId) -> Client {
        let leases = self.leasing.table().count(session) as u64;
        let you = session == asker;
        match self.members.look(session) {
            Some((description, connected, silent)) => {
                Client { description, you, connected, silent_ms: millis(silent), leases }
            }
            None => {
                let gone = self.members.gone(session);
                let description = gone.map_or(String::new(), |d| format!("{d} (gone)"));
                Client { description, you, connected: false, silent_ms: 0, leases }
            }
        }
    }
}
