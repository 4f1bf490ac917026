//! After the machine has failed: gathers from the clients what was lost of the log, and makes it again. See [`Replay`].
//!
//! Until that is done nobody is answered anything that could show what is missing. Cuts wait as well: of those in the log some were
//! complete, and data was written after them.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use netfs_common::attr::{Attr, FileKind};
use netfs_common::class;
use netfs_common::errno::Errno;
use netfs_common::id::{Ino, LogIndex, SessionId};
use netfs_common::warn_rarely;
use netfs_common::wire::meta::{MAX_REPLAY, Op, Replayed, Reply, Response};
use tokio::sync::watch;

use super::clock;
use super::orphans;
use super::volume::{Volume, WARN_INTERVAL, now};
use super::volumes;
use crate::meta::command::{Action, Command};
use crate::meta::replay::{Gathered, Replay};

/// Changes that could not be made again, of each session that was waited for.
type Missing = HashMap<SessionId, BTreeSet<LogIndex>>;

/// How far it is.
#[derive(Clone, Debug)]
enum Stage {
    /// Not done yet.
    Waiting,
    /// What could be made again is on stable storage.
    Done(Arc<Missing>),
    /// The server ends before it is done.
    Closing,
}

/// What is gathered, and what has come of it.
pub(super) struct Replaying {
    gathered: Mutex<Replay>,
    stage: watch::Sender<Stage>,
    /// When it was, in the server's own time.
    done_at: OnceLock<Duration>,
}

impl Replaying {
    /// Waits for these sessions; with none there is nothing to do.
    pub(super) fn new(sessions: &[SessionId]) -> Replaying {
        let done_at = OnceLock::new();
        let mut stage = Stage::Waiting;
        if sessions.is_empty() {
            stage = Stage::Done(Arc::default());
            // A new cell.
            let _ = done_at.set(Duration::ZERO);
        }
        let gathered = Mutex::new(Replay::new(sessions));
        Replaying { gathered, stage: watch::Sender::new(stage), done_at }
    }

    fn gathered(&self) -> MutexGuard<'_, Replay> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was lost is made again, or nothing was.
    pub(super) fn is_done(&self) -> bool {
        matches!(*self.stage.borrow(), Stage::Done(_))
    }

    /// When that was, in the server's own time.
    pub(super) fn done_at(&self) -> Option<Duration> {
        self.done_at.get().copied()
    }

    /// Who has not said yet what it has.
    pub(super) fn awaited(&self) -> BTreeSet<SessionId> {
        self.gathered().awaited().collect()
    }

    /// Returns when it is done; `false`: it never will be in this life of the server.
    pub(super) async fn wait(&self) -> bool {
        self.outcome().await.is_some()
    }

    async fn outcome(&self) -> Option<Arc<Missing>> {
        let mut stage = self.stage.subscribe();
        let known = stage.wait_for(|stage| !matches!(stage, Stage::Waiting)).await;
        match known.as_deref() {
            Ok(Stage::Done(missing)) => Some(missing.clone()),
            _ => None,
        }
    }

    /// The server is about to end: nobody is kept waiting.
    pub(super) fn close(&self) {
        self.stage.send_if_modified(|stage| {
            let waits = matches!(stage, Stage::Waiting);
            if waits {
                *stage = Stage::Closing;
            }
            waits
        });
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
        if !self.replaying.gathered().knows(session) {
            // Nobody has waited for it, so nothing can be made again in order. But it may have been, in an earlier life.
            let mut lost = Vec::new();
            for change in changes {
                if !self.engine.was_made(session, change.seq)? {
                    lost.push(change.at);
                }
            }
            return Ok(Response::Replayed { lost });
        }
        let last = {
            let mut gathered = self.replaying.gathered();
            gathered.offer(session, changes);
            done && gathered.strike(session)
        };
        if last {
            tokio::spawn(self.clone().make_again());
        }
        if !done {
            return Ok(Response::Done);
        }
        // Well within its term, so that its next question is a sign of life.
        match tokio::time::timeout(self.term() / 4, self.replaying.outcome()).await {
            Ok(Some(missing)) => {
                let lost = missing.get(&session);
                Ok(Response::Replayed { lost: lost.into_iter().flatten().copied().collect() })
            }
            Ok(None) => Err(Errno::ESHUTDOWN),
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
    pub(super) fn nothing_to_replay(self: &Arc<Self>) -> Result<(), Errno> {
        self.begin_trims()?;
        if let Err(error) = volumes::note_machine(self.engine.dir()) {
            // The next start waits for clients that it need not wait for.
            tracing::warn!(volume = %self.name(), %error, "it cannot be noted that nothing is missing");
        }
        Ok(())
    }

    /// Makes all that was offered again, in the old order.
    async fn make_again(self: Arc<Self>) {
        let Gathered { offers, refused } = self.replaying.gathered().take();
        let (offered, mut made) = (offers.len() + refused.len(), 0_usize);
        let mut missing = Missing::new();
        for (session, at) in refused {
            missing.entry(session).or_default().insert(at);
        }
        let deleted = match self.engine.pending_deletions(usize::MAX) {
            Ok(all) => all.into_iter().map(|(_, deletion)| deletion.ino).collect(),
            Err(errno) => {
                // It takes no changes either.
                tracing::error!(volume = %self.name(), %errno, "the volume cannot be read");
                HashSet::new()
            }
        };
        for (session, change) in offers {
            let at = change.at;
            match self.make_one_again(session, change, &deleted).await {
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
        while let Err(errno) = self.nothing_to_replay() {
            warn_rarely!(WARN_INTERVAL, volume = %self.name(), %errno, "the volume cannot go on after a failure of the machine");
            tokio::time::sleep(WARN_INTERVAL).await;
        }
        // Set here only.
        let _ = self.replaying.done_at.set(self.uptime.get());
        tracing::warn!(volume = %self.name(), offered, made, "what the machine's failure took is made again");
        self.replaying.stage.send_replace(Stage::Done(Arc::new(missing)));
    }

    async fn make_one_again(
        self: &Arc<Self>,
        session: SessionId,
        change: Replayed,
        deleted: &HashSet<Ino>,
    ) -> Result<(), Errno> {
        let Replayed { at, seq, time, target, op } = change;
        let was_lost = self.lost().iter().any(|lost| lost.after < at && at < lost.before);
        // With the end of a session goes more than a change of the store, and nobody needs it again.
        if !was_lost || matches!(op, Op::EndSession) {
            return Err(Errno::EINVAL);
        }
        // The number of a new inode was not in use in what has been kept.
        let created = matches!(op, Op::Create { .. }).then_some(target).flatten();
        if created.is_some_and(|(ino, _)| deleted.contains(&ino))
            && !self.engine.was_made(session, seq)?
        {
            return Err(Errno::EINVAL);
        }
        // Who has these answers knows that all cuts before were complete, though the end of a cut may be lost.
        let cut = match &op {
            Op::SetAttr { ino, set } if set.size.is_some() => Some(*ino),
            Op::CutTail { ino } | Op::WroteChunks { ino, .. } => Some(*ino),
            _ => None,
        };
        self.cuts_are_complete(cut).await?;
        let last = self.engine.last();
        let may_remove = orphans::may_remove(&op);
        let action = Action::Replay { session, seq, target, op };
        let (index, reply) = self.execute(Command { time: clock::not_ahead(time), action }).await;
        let response = reply?;
        // Clients that came after the failure have never seen what is removed here.
        if may_remove {
            self.release(session, &response).await;
        }
        let Response::Changed { target: came_to, attrs } = response else {
            return Err(Errno::EPROTO);
        };
        self.cuts_are_complete(cut).await?;
        let Some((ino, generation)) = target else { return Ok(()) };
        // When it was not lost, or has been made again before, the file may have got others since.
        let again = index <= last;
        // That of a directory says nothing of its contents.
        let same = |is: &Attr| {
            is.generation == generation
                || again && class::is_later(is.generation, generation)
                || is.kind == FileKind::Dir
        };
        let found = attrs.iter().find(|a| a.ino == ino);
        match came_to == Some(ino) && found.is_none_or(same) {
            true => Ok(()),
            false => Err(Errno::ESTALE),
        }
    }

    async fn cuts_are_complete(&self, of: Option<Ino>) -> Result<(), Errno> {
        let Some(ino) = of else { return Ok(()) };
        for (id, _) in self.engine.pending_trims_of(ino)? {
            let action = Action::TrimDone { id, freed: 0 };
            self.execute(Command { time: now(), action }).await.1?;
        }
        Ok(())
    }
}
