//! After the machine has failed: gathers from the clients what was lost of the log, and makes it again. See [`Replay`].
//!
//! Until that is done nobody is answered anything that could show what is missing. Cuts wait as well: of those in the log some were
//! complete, and data was written after them.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use netfs_common::attr::Timestamp;
use netfs_common::errno::Errno;
use netfs_common::id::{LogIndex, SessionId};
use netfs_common::warn_rarely;
use netfs_common::wire::meta::{MAX_REPLAY, Op, Replayed, Reply, Response};
use tokio::sync::watch;

use super::volume::{Volume, WARN_INTERVAL};
use super::volumes::{self, VolumeError};
use crate::meta::command::{Action, Command};
use crate::meta::replay::Replay;

/// Changes that could not be made again, of each session that was waited for.
type Missing = HashMap<SessionId, BTreeSet<LogIndex>>;

/// What is gathered, and what has come of it.
pub(super) struct Replaying {
    gathered: Mutex<Replay>,
    /// `None`: it is not done yet.
    outcome: watch::Sender<Option<Arc<Missing>>>,
}

impl Replaying {
    /// Waits for these sessions; with none there is nothing to do.
    pub(super) fn new(sessions: &[SessionId]) -> Replaying {
        let done = sessions.is_empty().then(Arc::<Missing>::default);
        Replaying { gathered: Mutex::new(Replay::new(sessions)), outcome: watch::Sender::new(done) }
    }

    fn gathered(&self) -> MutexGuard<'_, Replay> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was lost is made again, or nothing was.
    pub(super) fn is_done(&self) -> bool {
        self.outcome.borrow().is_some()
    }

    /// Returns when it is done.
    pub(super) async fn wait(&self) {
        // The sender is here: there is no error.
        let _ = self.outcome.subscribe().wait_for(Option::is_some).await;
    }
}

impl Volume {
    /// Answers [`netfs_common::wire::meta::Request::Replay`].
    pub(super) async fn replay(
        self: &Arc<Self>,
        session: SessionId,
        changes: Vec<Replayed>,
        done: bool,
    ) -> Reply {
        if changes.len() > MAX_REPLAY {
            return Err(Errno::E2BIG);
        }
        let positions: Vec<LogIndex> = changes.iter().map(|change| change.at).collect();
        let last = {
            let mut gathered = self.replaying.gathered();
            if !gathered.knows(session) {
                // Nobody has waited for it, so nothing can be made again in order.
                return Ok(Response::Replayed { lost: positions });
            }
            gathered.offer(session, changes)?;
            done && gathered.strike(session)
        };
        if last {
            tokio::spawn(self.clone().make_again());
        }
        if !done {
            return Ok(Response::Done);
        }
        let mut outcome = self.replaying.outcome.subscribe();
        // Well within its term, so that its next question is a sign of life.
        let known = outcome.wait_for(Option::is_some);
        match tokio::time::timeout(self.term() / 4, known).await {
            Ok(Ok(missing)) => {
                let lost = missing.as_ref().and_then(|missing| missing.get(&session));
                Ok(Response::Replayed { lost: lost.into_iter().flatten().copied().collect() })
            }
            Ok(Err(_)) => Err(Errno::ESHUTDOWN),
            Err(_) => Ok(Response::Done),
        }
    }

    /// A session will never say what it has.
    pub(super) fn replay_ends(self: &Arc<Self>, session: SessionId) {
        if self.replaying.gathered().strike(session) {
            tokio::spawn(self.clone().make_again());
        }
    }

    /// There is nothing that clients could have.
    pub(super) fn nothing_to_replay(self: &Arc<Self>) -> Result<(), VolumeError> {
        let failed = |errno| VolumeError::Unreadable { name: self.name().into(), errno };
        self.begin_trims().map_err(failed)?;
        volumes::note_machine(self.engine.dir())
    }

    /// Makes all that was offered again, in the old order.
    async fn make_again(self: Arc<Self>) {
        let offers = self.replaying.gathered().take();
        let (offered, mut made) = (offers.len(), 0_usize);
        let mut missing = Missing::new();
        for (session, change) in offers {
            let at = change.at;
            match self.make_one_again(session, change).await {
                Ok(()) => made += 1,
                Err(errno) => {
                    warn_rarely!(WARN_INTERVAL, volume = %self.name(), %session, %at, %errno, "a change that was lost cannot be made again");
                    missing.entry(session).or_default().insert(at);
                }
            }
        }
        while let Err(errno) = self.flush_to(self.engine.last()).await {
            // The clients keep what they have until it is.
            warn_rarely!(WARN_INTERVAL, volume = %self.name(), %errno, "what was made again is not on stable storage");
            tokio::time::sleep(WARN_INTERVAL).await;
        }
        while let Err(error) = self.nothing_to_replay() {
            warn_rarely!(WARN_INTERVAL, volume = %self.name(), %error, "the volume cannot go on after a failure of the machine");
            tokio::time::sleep(WARN_INTERVAL).await;
        }
        tracing::warn!(volume = %self.name(), offered, made, "what the machine's failure took is made again");
        self.replaying.outcome.send_replace(Some(Arc::new(missing)));
    }

    async fn make_one_again(&self, session: SessionId, change: Replayed) -> Result<(), Errno> {
        let Replayed { at: _, seq, time, target, op } = change;
        if matches!(op, Op::EndSession) {
            // More goes with it than a change of the store, and nobody needs it again.
            return Err(Errno::EINVAL);
        }
        let action = Action::Replay { session, seq, target, op };
        let (_, reply) = self.execute(Command { time: not_ahead(time), action }).await;
        let Response::Changed { target: now, attrs } = reply? else { return Err(Errno::EPROTO) };
        let Some((ino, generation)) = target else { return Ok(()) };
        let same = now == Some(ino)
            && attrs.iter().find(|a| a.ino == ino).is_none_or(|a| a.generation == generation);
        if same { Ok(()) } else { Err(Errno::ESTALE) }
    }
}

/// The time of a change that was dated before; not one that is still to come.
fn not_ahead(time: Timestamp) -> Timestamp {
    const SKEW: Duration = Duration::from_secs(5);
    let latest = Timestamp::from(SystemTime::now() + SKEW);
    time.min(latest)
}
