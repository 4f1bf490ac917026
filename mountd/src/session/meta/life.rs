//! Keeps a session connected and alive, and begins another when it is over.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use netfs_common::id::{Ino, InstanceId, LogIndex, SessionId};
use netfs_common::wire::hello::VolumeInfo;
use netfs_common::wire::lease::{Grant, Lease};
use netfs_common::wire::meta::{self, MAX_BATCH, Push, PushReply, Request, Response};
use netfs_common::wire::{Claim, HelloReply, Role};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use super::super::link::{DialError, Dialled, MetaLink, PushCall};
use super::super::lost::LostPositions;
use super::super::term::{Look, since_boot};
use super::{
    BACKOFF, HUNG_AFTER, Reconnected, Restored, Session, State, check_map, hello, lock, usable,
};

/// How often it is asked whether changes that are kept are on stable storage, if no other answer has said so.
const TIDY: Duration = Duration::from_secs(1);

/// Keeps the session connected and alive until it is stopped or dropped.
pub(super) async fn drive(
    weak: Weak<Session>,
    mut instance: InstanceId,
    mut pushes: mpsc::Receiver<PushCall>,
) {
    let mut serial = 1;
    // What could not be reclaimed over an earlier connection.
    let mut unreclaimed: Option<Vec<(Ino, Lease)>> = None;
    loop {
        {
            let Some(session) = weak.upgrade() else { return };
            let State::Up { link, .. } = session.state.borrow().clone() else { return };
            drop(session);
            attend(&weak, link, &mut pushes).await;
        }
        let Some(session) = weak.upgrade() else { return };
        if !session.replace(State::Down) {
            return;
        }
        warn!("the connection to the metadata server is lost");
        serial += 1;
        let Some(connected) = session.reconnect(instance, serial).await else { return };
        let Connected { reply, link, pushes: new_pushes, volume, successor, restored } = connected;
        pushes = new_pushes;
        let earlier = unreclaimed.take();
        let restarted = reply.instance != instance || earlier.is_some();
        let what = Reconnected {
            restarted,
            lost: successor.is_some(),
            gone: LostPositions::new(volume.lost.clone()),
            restored,
        };
        info!(?what, "connected to the metadata server again");
        instance = reply.instance;
        let incarnation = {
            let mut ops = lock(&session.ops);
            if what.lost { ops.restart() } else { ops.incarnation() }
        };
        session.bulk.set_map(Arc::new(volume.map.clone()));
        *session.volume.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(volume);
        let reclaims = what.restarted && !what.lost;
        let events = session.events();
        // The caches have forgotten these since.
        let mut held = earlier.unwrap_or_default();
        if let Some(events) = &events {
            events.company(session.volume().others);
            held.extend(events.reconnected(what));
        }
        if let Some(id) = successor {
            // Now that all is given up which was to be sent in the session before.
            session.bulk.succeed(id);
            session.id.send_replace(id);
        }
        if let Some(events) = &events {
            Arc::clone(events).taken_back().await;
        }
        session.tell_alive();
        if reclaims {
            match reclaim(&*link, &held).await {
                Ok(grants) => {
                    if let Some(events) = &events {
                        events.reclaimed(&grants);
                    }
                }
                // The next connection tries again.
                Err(why) => {
                    warn!(%why, "leases could not be reclaimed");
                    unreclaimed = Some(held);
                    link.close();
                }
            }
        }
        let fenced = link.clone();
        if !session.replace(State::Up { serial, incarnation, link }) {
            return;
        }
        if session.bulk.is_fenced(*session.id.borrow()) {
            // Learned just now: this session will not do.
            fenced.close();
        }
    }
}

/// Serves one connection until it is lost: signs of life go out, the server's calls are answered.
async fn attend(
    weak: &Weak<Session>,
    link: Arc<dyn MetaLink>,
    pushes: &mut mpsc::Receiver<PushCall>,
) {
    let Some(third) = weak
        .upgrade()
        .map(|s| Duration::from_millis(u64::from(s.volume().term_ms) / 3))
        .map(|t| t.max(Duration::from_millis(100)))
    else {
        return;
    };
    let mut renew = tokio::time::interval(third);
    renew.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    renew.tick().await;
    let mut tidy = tokio::time::interval(TIDY);
    tidy.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    tidy.tick().await;
    let mut renewal: Option<JoinHandle<()>> = None;
    let closed = link.closed();
    tokio::pin!(closed);
    // Of the latest news of others.
    let mut company = 0;
    loop {
        tokio::select! {
            () = &mut closed => return,
            _ = renew.tick() => {
                // Beside the server's calls, which may be what keeps it from answering.
                if renewal.as_ref().is_none_or(JoinHandle::is_finished) {
                    let Some(session) = weak.upgrade() else { return };
                    renewal = Some(tokio::spawn(renew_once(session, link.clone(), third * 2)));
                }
            }
            _ = tidy.tick() => {
                let Some(session) = weak.upgrade() else { return };
                // Nobody asks anything, and the server has flushed what it was asked last.
                if !lock(&session.kept).is_empty() && renewal.as_ref().is_none_or(JoinHandle::is_finished) {
                    renewal = Some(tokio::spawn(renew_once(session, link.clone(), third * 2)));
                }
            }
            Some(call) = pushes.recv() => {
                let Some(session) = weak.upgrade() else { return };
                let events = session.events();
                if let (Push::Company { generation, others }, Some(events)) = (&call.push, &events)
                    && *generation >= company
                {
                    company = *generation;
                    events.company(*others);
                }
                if let Push::Map(map) = &call.push {
                    match check_map(map) {
                        Ok(()) => session.bulk.set_map(Arc::new(map.clone())),
                        Err(e) => error!(error = %e, "a new cluster map cannot be used"),
                    }
                }
                if let (Push::Orphans(inos), Some(events)) = (&call.push, &events) {
                    Arc::clone(events).orphaned(inos);
                }
                session.counters.recalled();
                // In a task of its own: what is buffered is sent first, and renewals go on.
                tokio::spawn(async move {
                    match call.push {
                        // Seen to already.
                        Push::Company { .. } | Push::Map(_) | Push::Orphans(_) => {}
                        Push::Recall(recalls) => {
                            if let Some(events) = events { events.recall(recalls).await }
                        }
                    }
                    // A server that has gone meanwhile no longer waits for it.
                    let _ = call.answer.send(PushReply::Done);
                    session.counters.gave_back();
                });
            }
        }
    }
}

/// A sign of life. Anything but an answer within some time ends the connection.
async fn renew_once(session: Arc<Session>, link: Arc<dyn MetaLink>, patience: Duration) {
    let counted = session.counters.meta(&Request::Renew);
    let sent = since_boot();
    match tokio::time::timeout(patience, link.call(Request::Renew)).await {
        Ok(Ok(meta::Answer { reply: Ok(_), durable, .. })) => {
            session.counters.answered(counted);
            session.hear();
            lock(&session.term).answered(sent);
            lock(&session.kept).durable(durable);
            session.tell_alive();
        }
        Ok(Ok(meta::Answer { reply: Err(e), .. })) => {
            warn!(error = %e, "the session was not renewed");
            link.close();
        }
        Ok(Err(_)) | Err(_) => link.close(),
    }
}

/// Sees to it that the session is not relied upon beyond its term.
pub(super) async fn watch_term(weak: Weak<Session>) {
    loop {
        let pause = {
            let Some(session) = weak.upgrade() else { return };
            if matches!(*session.state.borrow(), State::Stopped) {
                return;
            }
            let term = Duration::from_millis(u64::from(session.volume().term_ms));
            let look = lock(&session.term).look(since_boot(), term);
            match look {
                Look::Again(pause) => pause,
                Look::Lapsed => {
                    warn!(
                        "the metadata server does not answer: the caches are not used until it does"
                    );
                    if let Some(events) = session.events() {
                        events.lapsed();
                    }
                    // A connection that seems to be there does not work.
                    session.refresh();
                    Duration::from_millis(1)
                }
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Tells a server that was restarted what was held, before anything else is asked of it.
async fn reclaim(link: &dyn MetaLink, held: &[(Ino, Lease)]) -> Result<Vec<Grant>, DialError> {
    let mut grants = Vec::new();
    let mut batches: Vec<Vec<(Ino, Lease)>> = held.chunks(MAX_BATCH).map(<[_]>::to_vec).collect();
    if batches.is_empty() {
        batches.push(Vec::new());
    }
    let last = batches.len() - 1;
    for (i, leases) in batches.into_iter().enumerate() {
        grants.extend(settle(link, Request::Reclaim { leases, done: i == last }).await?.1);
    }
    Ok(grants)
}

/// A call over a connection that nobody uses yet. Without an answer it is no connection.
async fn settle(
    link: &dyn MetaLink,
    request: Request,
) -> Result<(Response, Vec<Grant>), DialError> {
    let answer = tokio::time::timeout(HUNG_AFTER, link.call(request)).await;
    let answer = answer
        .map_err(|_| DialError::Unreachable("no answer".into()))?
        .map_err(|e| DialError::Unreachable(e.to_string()))?;
    let response = answer.reply.map_err(|e| DialError::Refused(e.to_string()))?;
    Ok((response, answer.grants))
}

/// A connection that was made anew.
struct Connected {
    reply: HelloReply,
    link: Arc<dyn MetaLink>,
    pushes: mpsc::Receiver<PushCall>,
    volume: VolumeInfo,
    /// The session that was begun, because the one before is over.
    successor: Option<SessionId>,
    /// What has become of what the server had lost.
    restored: Restored,
}

fn draw() -> Result<SessionId, DialError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)
        .map_err(|e| DialError::Unreachable(format!("there are no random numbers: {e}")))?;
    Ok(SessionId(u64::from_le_bytes(bytes).max(1)))
}

impl Session {
    /// Says for how long what was learned may be used.
    pub(super) fn tell_alive(&self) {
        let term = Duration::from_millis(u64::from(self.volume().term_ms));
        let until = lock(&self.term).until(term);
        if let Some(events) = self.events() {
            events.alive(until);
        }
    }

    /// Sets the state unless the session is stopped.
    fn replace(&self, new: State) -> bool {
        self.state.send_if_modified(|s| match s {
            State::Stopped => false,
            _ => {
                *s = new;
                true
            }
        })
    }

    /// A greeting in the session, or in its successor if it is known to be over.
    async fn greet(
        &self,
        successor: &mut Option<SessionId>,
        pushes: mpsc::Sender<PushCall>,
    ) -> Dialled<dyn MetaLink> {
        let id = *self.id.borrow();
        if successor.is_none() && self.bulk.is_fenced(id) {
            *successor = Some(draw()?);
        }
        let (id, claim) = match *successor {
            Some(next) => (next, Claim::Succeed),
            None => (id, Claim::Resume),
        };
        self.dialer.meta(hello(&self.config, Role::Meta, id, claim), pushes).await
    }

    /// Has a server that was restarted make again what it has lost of this client's changes. Returns those that it could; of the others
    /// their inodes' logs will tell.
    async fn replay(
        &self,
        link: &dyn MetaLink,
        lost: &LostPositions,
        sent: &mut Duration,
    ) -> Result<Restored, DialError> {
        let messages = lock(&self.kept).lost(lost);
        let mut positions: BTreeSet<u64> = messages.iter().flatten().map(|c| c.at.0).collect();
        let offered = positions.len();
        let mut messages = messages.into_iter().peekable();
        loop {
            let changes = messages.next().unwrap_or_default();
            let done = messages.peek().is_none();
            let request = Request::Replay { changes, done };
            let counted = self.counters.meta(&request);
            *sent = since_boot();
            let (response, _) = settle(link, request).await?;
            self.counters.answered(counted);
            match response {
                // It waits for other clients.
                Response::Done => {}
                Response::Replayed { lost } => {
                    for LogIndex(at) in lost {
                        positions.remove(&at);
                    }
                    if done {
                        break;
                    }
                }
                _ => return Err(DialError::Refused("nonsense".into())),
            }
            if matches!(*self.state.borrow(), State::Stopped) {
                return Err(DialError::Unreachable("the session is stopped".into()));
            }
        }
        let mut kept = lock(&self.kept);
        let missing = kept.touched_beside(&positions);
        kept.clear();
        drop(kept);
        if offered > 0 {
            info!(offered, restored = positions.len(), "the metadata server had lost changes");
        }
        Ok(Restored { positions, missing })
    }

    /// Sees to what the server may have lost, before anything is asked of it over a new connection. `sent`: the last sign of life that was
    /// answered.
    async fn make_up(
        &self,
        connected: &mut Connected,
        instance: InstanceId,
        serial: u64,
        sent: &mut Duration,
    ) -> Result<(), DialError> {
        let over = connected.successor.is_some();
        if !over && connected.reply.instance == instance {
            return Ok(());
        }
        let lost = LostPositions::new(connected.volume.lost.clone());
        // From here on no answer of before counts that is lost.
        let latest = lock(&self.positions).begin_anew(serial, lost.clone());
        match over {
            // They were of a session that has ended.
            true => lock(&self.kept).clear(),
            false => connected.restored = self.replay(&*connected.link, &lost, sent).await?,
        }
        if let Some(latest) = latest.filter(|latest| !connected.restored.positions.contains(latest))
        {
            error!(
                latest,
                "the metadata server has lost changes that it had answered and nobody had synced"
            );
        }
        Ok(())
    }

    async fn reconnect(&self, instance: InstanceId, serial: u64) -> Option<Connected> {
        let mut pause = BACKOFF.0;
        let mut told = None;
        let (mut successor, mut drawn) = (None, None);
        loop {
            if matches!(*self.state.borrow(), State::Stopped) {
                return None;
            }
            let (push_to, pushes) = mpsc::channel(4);
            let (mut sent, sent_wall) = (since_boot(), SystemTime::now());
            let mut outcome =
                self.greet(&mut successor, push_to).await.and_then(|(reply, link)| {
                    let volume = usable(&reply)?;
                    // Its inodes have the same numbers, and are not those that are cached here, or open.
                    if volume.id != self.volume().id {
                        link.close();
                        let why = "another file system is served by this name now: the one that is mounted is waited for";
                        return Err(DialError::Refused(why.into()));
                    }
                    self.compare_clocks(sent_wall, volume.time);
                    let restored = Restored::default();
                    Ok(Connected { reply, link, pushes, volume, successor, restored })
                });
            if let Ok(connected) = &mut outcome
                && let Err(e) = self.make_up(connected, instance, serial, &mut sent).await
            {
                connected.link.close();
                outcome = Err(e);
            }
            if let Err(DialError::Refused(_)) = &outcome {
                // It may have been somebody else who said that the session is over. There is to be one session in its place, however often.
                drawn = successor.take().or(drawn);
            }
            match outcome {
                // A data server has said meanwhile that the session is over.
                Ok(connected) if successor.is_none() && self.bulk.is_fenced(*self.id.borrow()) => {
                    connected.link.close();
                    continue;
                }
                Ok(connected) => {
                    // Nothing is awaited until `reconnected` was told.
                    lock(&self.term).begin_anew(sent);
                    self.hear();
                    return Some(connected);
                }
                // At once in another one.
                Err(DialError::SessionOver(why)) if successor.is_none() => {
                    warn!(why, "the metadata server has ended the session");
                    successor = drawn.take().or_else(|| draw().ok());
                    continue;
                }
                Err(e) => {
                    if told.as_ref() != Some(&e) {
                        warn!(error = %e, "no connection to the metadata server; trying again");
                        told = Some(e);
                    }
                }
            }
            let mut state = self.state.subscribe();
            let stopped = state.wait_for(|s| matches!(s, State::Stopped));
            if tokio::time::timeout(pause, stopped).await.is_ok() {
                return None;
            }
            pause = (pause * 2).min(BACKOFF.1);
        }
    }
}
