//! Sessions, and the answers that make a retry harmless.

use netfs_common::errno::Errno;
use netfs_common::id::{OpSeq, SessionId};
use netfs_common::wire::meta::{Reply, Response};

use super::change::Change;
use super::{Fault, changed, valid_time};
use crate::meta::command::{Action, Command};
use crate::meta::keys;
use crate::meta::kv::{Read, StoreError, Txn};
use crate::meta::record::{self, Answer, Inode, Session, Window};

/// The most sessions of a volume, those that are being removed included.
pub const MAX_SESSIONS: usize = 4096;
/// How far a session's changes may run ahead of the answers that it has acknowledged.
pub const MAX_WINDOW: u64 = 65536;
/// The longest description of a session that is kept, in bytes.
const MAX_DESCRIPTION: usize = 1024;
/// The most old answers that one command removes. More than one, so that a backlog shrinks.
const DROP_BATCH: u64 = 64;
/// The most holds and answers of an ended session that one command removes.
const REAP_BATCH: usize = 1024;

/// The reply of a command that must not be applied: one that was applied before, or that comes
/// from nobody. Such a command need not be written to the log.
///
/// # Errors
/// When the store fails.
pub fn precheck(store: &dyn Read, command: &Command) -> Result<Option<Reply>, StoreError> {
    if let Err(errno) = valid_time(command.time) {
        return Ok(Some(Err(errno)));
    }
    let made = super::state(store)?.is_some();
    let (Action::Mutate { session, seq, .. } | Action::Replay { session, seq, .. }) =
        &command.action
    else {
        let makes = matches!(command.action, Action::CreateVolume { .. });
        return Ok(match (makes, made) {
            (true, true) => Some(Err(Errno::EEXIST)),
            (false, false) => Some(Err(Errno::ENODEV)),
            _ => None,
        });
    };
    if !made {
        return Ok(Some(Err(Errno::ENODEV)));
    }
    let known: Option<Session> = record::load(store, &keys::session(*session))?;
    if known.is_none_or(|s| s.ended) {
        return Ok(Some(Err(Errno::ESHUTDOWN)));
    }
    if let Action::Mutate { answered, .. } = &command.action
        && (answered >= seq || seq.0 - answered.0 > MAX_WINDOW)
    {
        return Ok(Some(Err(Errno::EPROTO)));
    }
    let window: Window = record::load(store, &keys::window(*session))?.unwrap_or_default();
    if *seq <= window.answered {
        // The client has had this answer: a late copy of the request.
        return Ok(Some(Err(Errno::ESTALE)));
    }
    if *seq > window.highest {
        return Ok(None);
    }
    let answer: Option<Answer> = record::load(store, &keys::reply(*session, *seq))?;
    answer.map(|answer| once_more(store, answer)).transpose()
}

/// Whether a change is in the log and was answered without an error.
///
/// # Errors
/// When the store fails.
pub fn was_made(store: &dyn Read, session: SessionId, seq: OpSeq) -> Result<bool, StoreError> {
    let window: Window = record::load(store, &keys::window(session))?.unwrap_or_default();
    let answer: Option<Answer> = record::load(store, &keys::reply(session, seq))?;
    Ok(seq <= window.answered || answer.is_some_and(|answer| answer.outcome.is_ok()))
}

/// The reply to a change that was made before.
fn once_more(store: &dyn Read, answer: Answer) -> Result<Reply, StoreError> {
    let (target, touched) = match answer.outcome {
        Ok(done) => done,
        Err(errno) => return Ok(Err(errno)),
    };
    let mut attrs = Vec::with_capacity(touched.len());
    for ino in touched {
        let inode: Option<Inode> = record::load(store, &keys::inode(ino))?;
        attrs.extend(inode.map(|i| i.attr));
    }
    Ok(Ok(Response::Changed { target, attrs }))
}

/// Keeps the answer to a change, and drops some that the client has.
pub(super) fn remember(
    txn: &mut Txn<'_>,
    session: SessionId,
    seq: OpSeq,
    answered: OpSeq,
    reply: &Reply,
) -> Result<(), StoreError> {
    // The session's own end leaves nobody to retry.
    let known: Option<Session> = record::load(txn, &keys::session(session))?;
    if known.is_none_or(|s| s.ended) {
        return Ok(());
    }
    let key = keys::window(session);
    let mut window: Window = record::load(txn, &key)?.unwrap_or_default();
    if window.dropped > window.answered {
        return Err(StoreError::damaged(&key, "answers were dropped before they had arrived"));
    }
    window.answered = window.answered.max(answered);
    window.highest = window.highest.max(seq);
    // Numbers are used one after the other: trying each is cheaper than a search, which would
    // also have to wade through what earlier removals left.
    let behind = window.answered.0 - window.dropped.0;
    if behind <= DROP_BATCH {
        for old in window.dropped.0 + 1..=window.answered.0 {
            txn.remove(keys::reply(session, OpSeq(old)));
        }
        window.dropped = window.answered;
    } else {
        let from = keys::reply(session, OpSeq(window.dropped.0 + 1));
        // `answered` is below `seq`, so there is a number after it.
        let to = keys::reply(session, OpSeq(window.answered.0 + 1));
        let old = txn.range(&from, &to, DROP_BATCH as usize)?;
        window.dropped = match old.last() {
            Some((key, _)) if old.len() as u64 == DROP_BATCH => {
                OpSeq(keys::field(key, 1).ok_or_else(|| StoreError::damaged(key, "bad key"))?)
            }
            _ => window.answered,
        };
        old.into_iter().for_each(|(key, _)| txn.remove(key.to_vec()));
    }
    let outcome = match reply {
        Ok(Response::Changed { target, attrs }) => {
            Ok((*target, attrs.iter().map(|a| a.ino).collect()))
        }
        Ok(_) => Ok((None, Vec::new())),
        Err(errno) => Err(*errno),
    };
    txn.put(keys::reply(session, seq), record::encode(&Answer { outcome })?);
    txn.put(key, record::encode(&window)?);
    Ok(())
}

/// All sessions, ended ones too.
///
/// # Errors
/// When the store fails.
pub fn sessions(store: &dyn Read) -> Result<Vec<(SessionId, Session)>, StoreError> {
    let pairs = store.range(&[keys::SESSION], &[keys::SESSION + 1], MAX_SESSIONS)?;
    pairs
        .into_iter()
        .map(|(key, value)| {
            let id = keys::field(&key, 0).ok_or_else(|| StoreError::damaged(&key, "bad key"))?;
            Ok((SessionId(id), record::decode(&key, &value)?))
        })
        .collect()
}

/// Sessions that have not ended.
pub(super) fn live(store: &dyn Read) -> Result<Vec<SessionId>, StoreError> {
    let all = sessions(store)?;
    Ok(all.into_iter().filter(|(_, s)| !s.ended).map(|(id, _)| id).collect())
}

impl Change<'_, '_> {
    pub(super) fn open_session(
        &mut self,
        id: SessionId,
        mut description: String,
        owner: String,
    ) -> Result<Response, Fault> {
        let key = keys::session(id);
        match record::load::<Session>(self.txn, &key)? {
            Some(known) if known.ended => return Err(Errno::ESHUTDOWN.into()),
            Some(known) if known.owner != owner => return Err(Errno::EPERM.into()),
            Some(_) => return Ok(Response::Done),
            None if owner.len() > MAX_DESCRIPTION => return Err(Errno::E2BIG.into()),
            None => {}
        }
        if sessions(self.txn)?.len() >= MAX_SESSIONS {
            return Err(Errno::ENFILE.into());
        }
        description.truncate(description.floor_char_boundary(MAX_DESCRIPTION));
        let session = Session { description, owner, opened: self.time, ended: false };
        self.txn.put(key, record::encode(&session)?);
        self.state.sessions = self.state.sessions.saturating_add(1);
        Ok(Response::Done)
    }

    /// Ends a session. What it leaves is removed here and by as many [`Action::Reap`] as it
    /// takes; until then the session is there, but does nothing any more.
    pub(super) fn end_session(&mut self, id: SessionId) -> Result<Response, Fault> {
        self.close_session(id)?;
        self.reap(id)?;
        Ok(changed(None))
    }

    /// Ends a session, and leaves there what it has.
    pub(super) fn close_session(&mut self, id: SessionId) -> Result<Response, Fault> {
        let key = keys::session(id);
        let mut session: Session =
            record::load(self.txn, &key)?.ok_or(Fault::Refused(Errno::ESHUTDOWN))?;
        if !session.ended {
            session.ended = true;
            self.txn.put(key, record::encode(&session)?);
            self.state.sessions = self.state.sessions.saturating_sub(1);
        }
        Ok(changed(None))
    }

    pub(super) fn reap(&mut self, id: SessionId) -> Result<Response, Fault> {
        let key = keys::session(id);
        match record::load::<Session>(self.txn, &key)? {
            Some(session) if session.ended => {}
            Some(_) => return Err(Errno::EBUSY.into()),
            None => return Ok(Response::Done),
        }
        let holds = self.of_session(keys::HOLD, id)?;
        for (hold, _) in &holds {
            let ino = keys::field(hold, 1).ok_or_else(|| StoreError::damaged(hold, "bad key"))?;
            self.release(id, netfs_common::id::Ino(ino))?;
        }
        let replies = self.of_session(keys::REPLY, id)?;
        let done = holds.len() < REAP_BATCH && replies.len() < REAP_BATCH;
        replies.into_iter().for_each(|(reply, _)| self.txn.remove(reply.to_vec()));
        if done {
            self.txn.remove(key);
            self.txn.remove(keys::window(id));
        }
        Ok(Response::Done)
    }

    fn of_session(&self, kind: u8, id: SessionId) -> Result<Vec<super::read::Pair>, StoreError> {
        let prefix = keys::key(kind, [id.0]);
        self.txn.range(&prefix, &keys::after_prefix(&prefix), REAP_BATCH)
    }
}
