//! The lease table of the server in memory: the real one, put to work by the real server's rules.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use netfs_common::attr::FileKind;
use netfs_common::errno::Errno;
use netfs_common::id::{Ino, LogIndex, SessionId};
use netfs_common::wire::lease::{Grant, Lease, Recall};
use netfs_common::wire::meta::{Answer, Push, PushReply, Reply, Request, Response};
use netfs_served::meta::leases::{Action, Asked, LeaseLimits, Leases, RecallId, Ticket, Want};
use netfs_served::meta::server::wants::{self, Leaves};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::data_server::DataStore;
use super::meta_server::MetaStore;
use super::world::World;
use crate::session::{PushCall, lock};

/// Before a client whose connection was lost is called again.
const CALL_AGAIN: Duration = Duration::from_millis(2);

#[derive(Debug)]
pub(super) struct Leasing {
    start: Instant,
    pub(super) table: Leases,
    waiting: HashMap<Ticket, oneshot::Sender<()>>,
    /// When it will be looked what is due.
    woken_at: Option<Duration>,
    /// When each session was heard of last.
    pub(super) heard: HashMap<SessionId, Instant>,
    /// How often the server was restarted.
    pub(super) life: u64,
    /// Messages that have recalled something.
    pub(super) recalls: u64,
}

impl Leasing {
    /// `before`: the sessions that had leases before the server was restarted.
    pub(super) fn new(before: &[SessionId], life: u64) -> Leasing {
        let mut table = Leases::new(LeaseLimits::default());
        table.begin_grace(before);
        Leasing {
            start: Instant::now(),
            table,
            waiting: HashMap::new(),
            woken_at: None,
            heard: before.iter().map(|s| (*s, Instant::now())).collect(),
            life,
            recalls: 0,
        }
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    pub(super) fn end(&mut self, session: SessionId) {
        self.heard.remove(&session);
        let now = self.now();
        self.table.end(now, session);
    }

    /// Whether a request may run now; otherwise with which ticket it waits.
    fn ask(
        &mut self,
        session: SessionId,
        wants: &[Want],
        ticket: &mut Option<Ticket>,
    ) -> Result<(), Ticket> {
        let now = self.now();
        match self.table.ask(now, session, wants, *ticket) {
            Asked::Go => {
                *ticket = None;
                Ok(())
            }
            Asked::Wait(waits) => {
                *ticket = Some(waits);
                Err(waits)
            }
        }
    }
}

impl MetaStore {
    /// Answers a request, or says with which ticket it has to wait.
    fn answer(
        &mut self,
        session: SessionId,
        request: &Request,
        ticket: &mut Option<Ticket>,
        data: &mut DataStore,
    ) -> Result<Answer, Ticket> {
        if !self.sessions.contains_key(&session) {
            return Ok(Answer::bare(Err(Errno::ESHUTDOWN)));
        }
        self.leasing.heard.insert(session, Instant::now());
        let now = self.leasing.now();
        let mut grants = Vec::new();
        let reply = match request {
            Request::Sync => {
                self.sync();
                Ok(Response::Done)
            }
            Request::Reclaim { leases, done } => {
                grants = self.leasing.table.reclaim(now, session, leases);
                if *done {
                    self.leasing.table.reclaimed(now, session);
                }
                Ok(Response::Done)
            }
            Request::Replay { changes, done: _ } => {
                Ok(Response::Replayed { lost: self.replay(session, changes, data) })
            }
            Request::Mutate(m) => {
                let (wants, leaves) =
                    match wants::of_change(|parent, name| self.child(parent, name), &m.op) {
                        Ok(wants) => wants,
                        Err(e) => return Ok(Answer::bare(Err(e))),
                    };
                self.leasing.ask(session, &wants, ticket)?;
                let reply = self.mutate(session, m.clone(), data);
                if let Ok(Response::Changed { target, attrs }) = &reply {
                    for attr in attrs {
                        let own = Some(attr.ino) == *target && attr.kind == FileKind::File;
                        if own && leaves == Leaves::Clean {
                            self.leasing.table.wrote_in_order(attr.ino);
                        }
                        let writes = own && leaves != Leaves::AsItWas;
                        let lease = if writes { Lease::Write } else { Lease::Read };
                        grants.extend(self.leasing.table.grant(now, session, attr.ino, lease));
                    }
                }
                reply
            }
            Request::Lock(call) => self.locks.answer(session, call).map(Response::Lock),
            question => {
                let mut reply = self.read(question);
                self.leasing.ask(session, &wants::of_question(question, &reply), ticket)?;
                grants = self.grant(session, question, &mut reply);
                reply
            }
        };
        let changed = matches!((request, &reply), (Request::Mutate(_), Ok(_)));
        let at = LogIndex(if changed { self.version } else { 0 });
        Ok(Answer { reply, grants, at, durable: LogIndex(self.durable.0) })
    }

    fn grant(&mut self, session: SessionId, request: &Request, reply: &mut Reply) -> Vec<Grant> {
        let now = self.leasing.now();
        let table = &mut self.leasing.table;
        if let Ok(Response::Listing { entries, .. }) = reply {
            for entry in entries.iter_mut().filter(|e| e.attr.is_some()) {
                if !table.is_free(session, &[wants::of_entry(entry.ino)]) {
                    entry.attr = None;
                }
            }
        }
        let wanted = wants::granted_with(request, reply).into_iter();
        wanted.filter_map(|(ino, lease)| table.grant(now, session, ino, lease)).collect()
    }

    /// Does what the table wants done.
    pub(super) fn work_off(&mut self, world: &Arc<World>) {
        let leasing = &mut self.leasing;
        let (now, life) = (leasing.now(), leasing.life);
        for action in leasing.table.poll(now) {
            match action {
                Action::Ready(ticket) => {
                    if let Some(tell) = leasing.waiting.remove(&ticket) {
                        // Nobody: the request has gone.
                        let _ = tell.send(());
                    }
                }
                Action::Recall { session, id, recalls } => {
                    leasing.recalls += 1;
                    tokio::spawn(Arc::clone(world).call_back(life, session, id, recalls));
                }
            }
        }
        let due = leasing.table.wake_at();
        if let Some(due) = due.filter(|due| leasing.woken_at.is_none_or(|at| *due < at)) {
            leasing.woken_at = Some(due);
            let (world, at) = (Arc::clone(world), leasing.start + due);
            tokio::spawn(async move {
                tokio::time::sleep_until(at).await;
                let mut store = lock(&world.meta);
                if store.leasing.life == life {
                    store.leasing.woken_at = None;
                    store.work_off(&world);
                }
            });
        }
    }

    /// Who holds an inode.
    pub(super) fn holders(&self, ino: Ino) -> Vec<(SessionId, Lease)> {
        self.leasing.table.holders(ino)
    }
}

/// A place in the queue, given up when dropped.
struct Place {
    world: Arc<World>,
    life: u64,
    ticket: Option<Ticket>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        let mut store = lock(&self.world.meta);
        if store.leasing.life == self.life {
            store.leasing.waiting.remove(&ticket);
            let now = store.leasing.now();
            store.leasing.table.cancel(now, ticket);
            store.work_off(&self.world);
        }
    }
}

impl World {
    /// Answers a call when its turn has come. Dropped when its connection is lost.
    pub(super) async fn serve(self: &Arc<Self>, session: SessionId, request: Request) -> Answer {
        let mut place = Place { world: Arc::clone(self), life: 0, ticket: None };
        loop {
            let ready = {
                let mut data = lock(&self.data);
                let mut store = lock(&self.meta);
                place.life = store.leasing.life;
                let outcome = store.answer(session, &request, &mut place.ticket, &mut data);
                let ready = match outcome {
                    Ok(answer) => Err(answer),
                    Err(ticket) => {
                        let (tell, ready) = oneshot::channel();
                        store.leasing.waiting.insert(ticket, tell);
                        Ok(ready)
                    }
                };
                store.work_off(self);
                ready
            };
            match ready {
                Err(answer) => return answer,
                Ok(ready) => {
                    if ready.await.is_err() {
                        // The server is another one by now, or the session has ended.
                        return std::future::pending().await;
                    }
                }
            }
        }
    }

    /// Has a session give back what a recall says, however often its connection is lost.
    async fn call_back(
        self: Arc<Self>,
        life: u64,
        session: SessionId,
        id: RecallId,
        recalls: Vec<Recall>,
    ) {
        loop {
            let there = {
                let store = lock(&self.meta);
                store.leasing.life == life && store.sessions.contains_key(&session)
            };
            if !there {
                return;
            }
            if let Some(peer) = self.peer_of(session)
                && let Some(connection) = peer.connection()
            {
                let push = Push::Recall(recalls.clone());
                let answered = connection.through(&self, &peer, async || {
                    let (answer, wait) = oneshot::channel();
                    if connection.pushes.send(PushCall { push, answer }).await.is_err() {
                        return None;
                    }
                    wait.await.ok()
                });
                match answered.await {
                    Ok(Some(PushReply::Done)) => {
                        let mut store = lock(&self.meta);
                        if store.leasing.life == life {
                            let now = store.leasing.now();
                            store.leasing.table.answered(now, session, id);
                            store.work_off(&self);
                        }
                        return;
                    }
                    // Nobody listens although the connection is there: the client has died.
                    Ok(None) => return self.end_session(session),
                    Err(_) => {}
                }
            }
            tokio::time::sleep(CALL_AGAIN).await;
        }
    }

    /// The server ends a session.
    pub(super) fn end_session(self: &Arc<Self>, session: SessionId) {
        let mut store = lock(&self.meta);
        store.end(session);
        store.work_off(self);
        drop(store);
        if let Some(peer) = self.peer_of(session) {
            peer.cut();
        }
    }

    /// The server ends all sessions.
    pub(super) fn end_sessions(self: &Arc<Self>) {
        let all: Vec<_> = lock(&self.meta).sessions.keys().copied().collect();
        all.into_iter().for_each(|session| self.end_session(session));
    }

    /// Ends sessions that have not been heard of for their term, from now on.
    pub(super) fn expire_sessions(self: &Arc<Self>) {
        let weak = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(5)).await;
                let Some(world) = weak.upgrade() else { return };
                let term = world.term();
                let silent: Vec<_> = {
                    let store = lock(&world.meta);
                    let heard = store.leasing.heard.iter();
                    heard.filter(|(_, at)| at.elapsed() >= term).map(|(s, _)| *s).collect()
                };
                silent.into_iter().for_each(|session| world.end_session(session));
            }
        });
    }
}
