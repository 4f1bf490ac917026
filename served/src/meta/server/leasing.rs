//! The lease table at work: calls holders, wakes those who wait.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use netfs_common::codec;
use netfs_common::errno::Errno;
use netfs_common::id::SessionId;
use netfs_common::net::{CallError, Link};
use netfs_common::warn_rarely;
use netfs_common::wire::lease::Recall;
use netfs_common::wire::meta::{Push, PushReply};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::volume::{Ends, Volume, WARN_INTERVAL};
use super::waits::Waits;
use crate::meta::leases::{Action, Asked, LeaseLimits, Leases, RecallId, Ticket, Want};

/// For how long a write lease is left to a client at least.
const MIN_HOLD: Duration = Duration::from_micros(300);
/// Shorter waits are too short for the runtime's timer.
const TIMER: Duration = Duration::from_millis(2);
/// Before a client whose connection was lost is called again.
const CALL_AGAIN: Duration = Duration::from_millis(20);
/// Before one is called again that has answered with nonsense, or not at all.
const CALL_LATER: Duration = Duration::from_secs(1);
/// The server's own time goes on at least so long before it is asked for again.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The table, and who waits.
pub(super) struct Leasing {
    start: Instant,
    table: Mutex<Leases>,
    /// `None`: the server ends, and nobody is kept waiting.
    waiting: Mutex<Option<HashMap<Ticket, oneshot::Sender<()>>>>,
    /// Told when something is due at another time than before.
    rescheduled: Notify,
    /// For people.
    pub(super) waits: Waits,
}

/// A place in the queue; given up when dropped.
pub(super) struct Place {
    volume: Arc<Volume>,
    ticket: Option<Ticket>,
}

impl Place {
    /// To be told when it is worth asking again.
    ///
    /// # Errors
    /// `ESHUTDOWN` when the server ends: the client asks its next life.
    pub(super) async fn ready(&self, ready: oneshot::Receiver<()>) -> Result<(), Errno> {
        ready.await.map_err(|_| Errno::ESHUTDOWN)
    }

    pub(super) fn ticket(&self) -> Option<Ticket> {
        self.ticket
    }

    /// The request runs: the place is used up.
    pub(super) fn used(mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.volume.has_waited(ticket, true);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            let leasing = &self.volume.leasing;
            if let Some(waiting) = lock(&leasing.waiting).as_mut() {
                waiting.remove(&ticket);
            }
            let now = leasing.now();
            leasing.table().cancel(now, ticket);
            self.volume.has_waited(ticket, false);
            self.volume.work_off_leases();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Leasing {
    /// An empty table. `before`: the sessions that had leases before the server was restarted.
    pub(super) fn new(before: &[SessionId]) -> Leasing {
        let limits = LeaseLimits { min_hold: MIN_HOLD, ..LeaseLimits::default() };
        let mut table = Leases::new(limits);
        if !before.is_empty() {
            table.begin_grace(before);
        }
        Leasing {
            start: Instant::now(),
            table: Mutex::new(table),
            waiting: Mutex::new(Some(HashMap::new())),
            rescheduled: Notify::new(),
            waits: Waits::default(),
        }
    }

    pub(super) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// The server is about to end: nobody is kept waiting for other clients.
    pub(super) fn close(&self) {
        *lock(&self.waiting) = None;
    }

    pub(super) fn table(&self) -> MutexGuard<'_, Leases> {
        lock(&self.table)
    }
}

impl Volume {
    /// Whether a request may run now. If so, it has to before anything is awaited. Otherwise it has a place, and is told
    /// when to ask again.
    pub(super) fn may_run(
        self: &Arc<Self>,
        session: SessionId,
        wants: &[Want],
        place: Option<Place>,
    ) -> Result<(), (Place, oneshot::Receiver<()>)> {
        let now = self.leasing.now();
        let ticket = place.as_ref().and_then(Place::ticket);
        let (asked, on) = {
            let mut table = self.leasing.table();
            match table.ask(now, session, wants, ticket) {
                Asked::Go => (Asked::Go, Vec::new()),
                Asked::Wait(ticket) => (Asked::Wait(ticket), table.blockers(ticket)),
            }
        };
        match asked {
            Asked::Go => {
                if let Some(place) = place {
                    place.used();
                    self.work_off_leases();
                }
                Ok(())
            }
            Asked::Wait(ticket) => {
                let had = place.as_ref().and_then(Place::ticket);
                self.leasing.waits.enter(now, had, ticket, session, wants, on);
                let place = match place {
                    Some(mut place) => {
                        place.ticket = Some(ticket);
                        place
                    }
                    None => Place { volume: self.clone(), ticket: Some(ticket) },
                };
                let (tell, ready) = oneshot::channel();
                if let Some(waiting) = lock(&self.leasing.waiting).as_mut() {
                    waiting.insert(ticket, tell);
                }
                self.work_off_leases();
                Err((place, ready))
            }
        }
    }

    /// A request no longer waits.
    fn has_waited(&self, ticket: Ticket, served: bool) {
        if let Some(waited) = self.leasing.waits.leave(self.leasing.now(), ticket, served) {
            self.metrics.wait_seconds.observe(waited.as_secs_f64());
        }
    }

    /// Does what the table wants done.
    pub(super) fn work_off_leases(self: &Arc<Self>) {
        let actions = {
            let now = self.leasing.now();
            let mut table = self.leasing.table();
            let actions = table.poll(now);
            if table.wake_at().is_some() {
                self.leasing.rescheduled.notify_one();
            }
            actions
        };
        for action in actions {
            match action {
                Action::Ready(ticket) => {
                    let tell = lock(&self.leasing.waiting).as_mut().and_then(|w| w.remove(&ticket));
                    if let Some(tell) = tell {
                        // Nobody: the request has gone, and its place with it.
                        let _ = tell.send(());
                    }
                }
                Action::Recall { session, id, recalls } => {
                    tokio::spawn(self.clone().call_back(session, id, recalls));
                }
            }
        }
    }

    /// Works the table off when something is due though nothing happens.
    pub(super) async fn keep_lease_time(self: Arc<Self>) {
        loop {
            let due = self.leasing.table().wake_at();
            let rescheduled = self.leasing.rescheduled.notified();
            match due.map(|due| due.saturating_sub(self.leasing.now())) {
                None => rescheduled.await,
                Some(Duration::ZERO) => {
                    self.work_off_leases();
                    tokio::task::yield_now().await;
                }
                Some(short) if short < TIMER => {
                    // An error means that the runtime is going away.
                    let _ = tokio::task::spawn_blocking(move || std::thread::sleep(short)).await;
                    self.work_off_leases();
                }
                Some(long) => {
                    tokio::select! {
                        () = tokio::time::sleep(long) => {}
                        () = rescheduled => {}
                    }
                    self.work_off_leases();
                }
            }
        }
    }

    /// Has a session give back what a recall says, however often its connection is lost. A session that renews itself and does not
    /// answer for very long is ended.
    async fn call_back(self: Arc<Self>, session: SessionId, id: RecallId, recalls: Vec<Recall>) {
        let begun = Instant::now();
        let limit = self.uptime.get() + self.patience();
        self.metrics.recalls.inc();
        loop {
            // A server that was stopped in the meantime asks for longer.
            let left = limit.saturating_sub(self.uptime.get());
            if left.is_zero() {
                self.metrics.recalls_failed.inc();
                if !self.members.is_closed(session) {
                    warn_rarely!(WARN_INTERVAL, %session, "a client has not given back what it was asked for");
                    self.expire(session, Ends::Unresponsive).await;
                }
                return;
            }
            let until = Instant::now() + left.max(LOOK_AGAIN);
            let link = tokio::select! {
                link = self.members.link_of(session) => link,
                () = tokio::time::sleep_until(until) => continue,
            };
            let Some(link) = link else {
                // Its end has answered for it. As a net only: nobody may wait for one who is gone.
                self.metrics.recalls_failed.inc();
                return self.end_leases(session);
            };
            match call(&link, recalls.clone(), until).await {
                Ok(PushReply::Done) => {
                    self.metrics.recalls_answered.inc();
                    self.metrics.recall_seconds.observe(begun.elapsed().as_secs_f64());
                    let now = self.leasing.now();
                    self.leasing.table().answered(now, session, id);
                    self.work_off_leases();
                    return;
                }
                Err(CallError::Lost(_) | CallError::Closed) => {
                    // It may have come back already, when this was still under way.
                    tokio::time::sleep(CALL_AGAIN).await;
                }
                Err(CallError::Deadline) => {}
                Err(error) => {
                    warn_rarely!(WARN_INTERVAL, %session, %error, "a client does not answer as it should; its connection is closed");
                    link.close();
                    tokio::time::sleep(CALL_LATER).await;
                }
            }
        }
    }

    /// For how long a client that renews its session may take to send what it has buffered, or to say after a restart what it
    /// holds; of the time in which the server ran.
    pub(super) fn patience(&self) -> Duration {
        self.answer.max(self.term() * 10)
    }
}

async fn call(link: &Link, recalls: Vec<Recall>, limit: Instant) -> Result<PushReply, CallError> {
    let nonsense = |e: codec::CodecError| CallError::Protocol(e.to_string().into());
    let push = codec::encode(&Push::Recall(recalls)).map_err(nonsense)?;
    let reply = link.call(push.into(), limit.into_std()).await?;
    codec::decode(&reply).map_err(nonsense)
}
