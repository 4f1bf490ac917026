//! Telling clients which inodes have lost their last name, so that they let go of them.
//!
//! A client whose kernel keeps an inode in its caches, and has it open nowhere, would otherwise keep it for as long as it likes. What is
//! told is on stable storage: a client may give up what it has of the inode for good, also if this server loses the end of its
//! log. What is not heard, because a connection is lost or this server is restarted, is told again over the next connection: the store has all
//! that is held for a session.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use netfs_common::codec;
use netfs_common::id::{Ino, SessionId};
use netfs_common::net::{CallError, Link};
use netfs_common::warn_rarely;
use netfs_common::wire::meta::{MAX_BATCH, Op, Push, Response};

use super::volume::{Volume, WARN_INTERVAL, now};
use crate::meta::command::{Action, Command};

/// How long news waits for more: they go in one message, behind one flush of the log.
const GATHER: Duration = Duration::from_millis(100);
/// How long a client may take to hear of it.
const TELL: Duration = Duration::from_secs(5);
/// Before one is told again that has answered with nonsense, or not at all.
const TELL_LATER: Duration = Duration::from_secs(1);
/// The most that wait for one session, 8 bytes each. Beyond it the store is searched for what it holds.
const MAX_WAITING: usize = 1 << 16;

/// What is to be told, by session. One is in here as long as a task tells it.
#[derive(Debug, Default)]
pub(super) struct OrphanNews(Mutex<HashMap<SessionId, News>>);

#[derive(Debug, Default)]
struct News {
    waiting: Vec<Ino>,
    /// All that is held for it in the store above this number is to be told too.
    search: Option<Ino>,
}

impl News {
    fn add(&mut self, inos: &[Ino]) {
        if self.waiting.len() + inos.len() > MAX_WAITING {
            self.tell_all();
        } else {
            self.waiting.extend(inos);
        }
    }

    fn tell_all(&mut self) {
        *self = News { waiting: Vec::new(), search: Some(Ino(0)) };
    }

    /// What is told next; `Err`: whatever the store has above a number.
    fn next(&mut self) -> Option<Result<Vec<Ino>, Ino>> {
        if !self.waiting.is_empty() {
            let rest = self.waiting.split_off(self.waiting.len().min(MAX_BATCH));
            return Some(Ok(std::mem::replace(&mut self.waiting, rest)));
        }
        self.search.map(Err)
    }

    /// The store had these above `after`.
    fn found(&mut self, after: Ino, inos: &[Ino]) {
        // Unless it has begun anew meanwhile.
        if self.search == Some(after) {
            self.search = inos.last().copied();
        }
    }
}

impl OrphanNews {
    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, News>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds to what is told a session; `true` if a task is to be started for that.
    fn add(&self, session: SessionId, add: impl FnOnce(&mut News)) -> bool {
        let mut all = self.lock();
        let fresh = !all.contains_key(&session);
        add(all.entry(session).or_default());
        fresh
    }

    fn tell_all_again(&self, session: SessionId) {
        if let Some(news) = self.lock().get_mut(&session) {
            news.tell_all();
        }
    }
}

/// Whether a change may take an inode's last name. Others can also be answered with inodes that have none.
pub(super) fn may_remove(op: &Op) -> bool {
    matches!(op, Op::Unlink { .. } | Op::Rmdir { .. } | Op::Rename { .. })
}

impl Volume {
    /// Inodes that have lost their last name: sessions that cannot have them open let go of them, and the others are told.
    pub(super) async fn release(self: &Arc<Self>, by: SessionId, response: &Response) {
        let Response::Changed { attrs, .. } = response else { return };
        let orphans: Vec<Ino> = attrs.iter().filter(|a| a.nlink == 0).map(|a| a.ino).collect();
        if orphans.is_empty() || self.members.count() < 2 {
            return;
        }
        let others = self.members.others(by);
        let (mut holds, mut told) = (Vec::new(), HashMap::<SessionId, Vec<Ino>>::new());
        for ino in orphans {
            let strangers = self.lookups.strangers(&others, ino);
            // They are in the order of the others.
            let mut next = strangers.iter().peekable();
            for id in &others {
                if next.next_if_eq(&id).is_none() {
                    told.entry(*id).or_default().push(ino);
                }
            }
            holds.extend(strangers.into_iter().map(|id| (id, ino)));
        }
        for (session, inos) in told {
            self.tell_of_orphans(session, |news| news.add(&inos));
        }
        if holds.is_empty() {
            return;
        }
        let (_, reply) =
            self.execute(Command { time: now(), action: Action::Release { holds } }).await;
        if let Err(errno) = reply {
            // Their sessions' end gives the space back.
            warn_rarely!(WARN_INTERVAL, volume = %self.name(), %errno, "a removed file is kept for clients that never saw it");
        }
    }

    /// A session has a new connection: it may have missed what it was told over the last one, or what an earlier life of this server knew.
    pub(super) fn tell_all_orphans(self: &Arc<Self>, session: SessionId) {
        self.tell_of_orphans(session, News::tell_all);
    }

    fn tell_of_orphans(self: &Arc<Self>, session: SessionId, add: impl FnOnce(&mut News)) {
        if self.orphan_news.add(session, add) {
            tokio::spawn(self.clone().tell_orphans(session));
        }
    }

    /// Tells a session until there is no more, or it has no connection: with the next one it is told all anew.
    async fn tell_orphans(self: Arc<Self>, session: SessionId) {
        let mut pause = GATHER;
        loop {
            tokio::time::sleep(pause).await;
            pause = GATHER;
            let (link, next) = {
                let mut all = self.orphan_news.lock();
                let next = all.get_mut(&session).and_then(News::next);
                match (self.members.present_link(session), next) {
                    (Some(link), Some(next)) => (link, next),
                    // Whoever adds something from now on starts another task.
                    _ => return drop(all.remove(&session)),
                }
            };
            let inos = match next {
                Ok(inos) => inos,
                Err(after) => match self.engine.held(session, after, MAX_BATCH) {
                    Ok(inos) => {
                        if let Some(news) = self.orphan_news.lock().get_mut(&session) {
                            news.found(after, &inos);
                        }
                        inos
                    }
                    Err(errno) => {
                        warn_rarely!(WARN_INTERVAL, volume = %self.name(), %errno, "it is not known which removed files are kept for a client");
                        pause = TELL_LATER;
                        continue;
                    }
                },
            };
            if inos.is_empty() {
                continue;
            }
            let told = match self.flush_to(self.engine.last()).await {
                Ok(()) => tell(&link, inos).await,
                Err(errno) => {
                    warn_rarely!(WARN_INTERVAL, volume = %self.name(), %errno, "clients cannot be told of removed files");
                    Err(TELL_LATER)
                }
            };
            if let Err(later) = told {
                self.orphan_news.tell_all_again(session);
                pause = later;
            }
        }
    }
}

/// Tells a client; if it has not heard, when to try again.
async fn tell(link: &Link, inos: Vec<Ino>) -> Result<(), Duration> {
    let push = match codec::encode(&Push::Orphans(inos)) {
        Ok(push) => push.into(),
        Err(error) => {
            tracing::error!(%error, "a message cannot be encoded");
            return Err(TELL_LATER);
        }
    };
    match link.call(push, Instant::now() + TELL).await {
        Ok(_) => Ok(()),
        Err(CallError::Lost(_) | CallError::Closed) => Err(GATHER),
        Err(error) => {
            tracing::debug!(%error, "a client was not told of removed files");
            Err(TELL_LATER)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SessionId = SessionId(1);

    #[test]
    fn a_session_is_told_by_one_task_in_messages_of_bounded_size() {
        let news = OrphanNews::default();
        let all: Vec<Ino> = (1..=MAX_BATCH as u64 + 2).map(Ino).collect();
        assert!(news.add(A, |n| n.add(&all)));
        assert!(!news.add(A, |n| n.add(&[Ino(9)])));
        let mut inner = news.lock();
        let of_a = inner.get_mut(&A).unwrap();
        assert_eq!(of_a.next(), Some(Ok(all[..MAX_BATCH].to_vec())));
        assert_eq!(of_a.next(), Some(Ok(vec![all[MAX_BATCH], all[MAX_BATCH + 1], Ino(9)])));
        assert_eq!(of_a.next(), None);
    }

    #[test]
    fn what_is_too_much_to_remember_is_searched_for() {
        let mut news = News::default();
        news.add(&vec![Ino(1); MAX_WAITING]);
        assert_eq!(news.search, None);
        news.add(&[Ino(2)]);
        assert_eq!((news.waiting.len(), news.next()), (0, Some(Err(Ino(0)))));
        news.found(Ino(0), &[Ino(4), Ino(8)]);
        assert_eq!(news.next(), Some(Err(Ino(8))));
        // What is new goes first, and does not end the search.
        news.add(&[Ino(9)]);
        assert_eq!(news.next(), Some(Ok(vec![Ino(9)])));
        news.tell_all();
        news.found(Ino(8), &[]);
        assert_eq!(news.next(), Some(Err(Ino(0))), "it has begun anew");
        news.found(Ino(0), &[]);
        assert_eq!(news.next(), None);
    }
}
