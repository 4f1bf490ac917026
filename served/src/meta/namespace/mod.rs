//! The namespace: what a command does to the store, and what reads see in it.
//!
//! [`apply`] depends on nothing but the store, the command and its position. Either all of a
//! command's effects are in the overlay when it returns, or, when it was refused, nothing but
//! the answer that is kept for a retry.

mod attrs;
mod change;
mod create;
mod data;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod names;
mod orphans;
mod read;
mod rename;
mod session;
mod sweep;
mod volume;
mod xattrs;

#[cfg(test)]
pub(crate) mod tests;

use netfs_common::attr::{SetTime, Timestamp};
use netfs_common::errno::Errno;
use netfs_common::id::{LogIndex, OpSeq, SessionId};
use netfs_common::wire::meta::{Op, Reply, Response};

use crate::meta::command::{Action, Command};
use crate::meta::keys;
use crate::meta::kv::{Read, StoreError, Txn};
use crate::meta::record::{self, State, Volume};
use change::Change;

pub use orphans::{deletions, ended_sessions, held, trims, trims_of};
pub(crate) use read::{get, get_xattr, list_xattrs, lookup, read_dir, read_link};
pub use session::{MAX_SESSIONS, MAX_WINDOW, precheck, sessions, was_made};
pub use volume::{lost, state, volume};

/// Names of a file, as ext4 has it.
pub const MAX_LINKS: u32 = 65000;
/// The longest file, as far as `off_t` reaches.
pub const MAX_SIZE: u64 = i64::MAX as u64;

/// Why a command has no effect: it was refused, or the store has failed.
#[derive(Debug)]
pub(crate) enum Fault {
    Refused(Errno),
    Store(StoreError),
}

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Fault {
        Fault::Refused(errno)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Fault {
        Fault::Store(error)
    }
}

/// Applies a command.
///
/// # Errors
/// When the store fails: then nothing may be committed. What the command itself comes to, an
/// error number too, is in the reply.
pub fn apply(txn: &mut Txn<'_>, index: LogIndex, command: Command) -> Result<Reply, StoreError> {
    let reply = match precheck(txn, &command)? {
        Some(reply) => reply,
        None => attempt(txn, index, command)?,
    };
    // Refused or not, the command has its place in the log.
    if let Some(mut state) = record::load::<State>(txn, &keys::state())? {
        state.applied = index;
        txn.put(keys::state(), record::encode(&state)?);
    }
    Ok(reply)
}

fn attempt(txn: &mut Txn<'_>, index: LogIndex, command: Command) -> Result<Reply, StoreError> {
    let Command { time, action } = command;
    let call = match &action {
        Action::Mutate { session, seq, answered, .. } => Some((*session, *seq, *answered)),
        // Which answers the client has it says with its next change.
        Action::Replay { session, seq, .. } => Some((*session, *seq, OpSeq(0))),
        _ => None,
    };
    let outcome = match action {
        Action::CreateVolume { id, settings } => {
            volume::create(txn, index, time, Volume { id, settings })
        }
        other => run(txn, index, time, other),
    };
    let reply = match outcome {
        Ok(response) => Ok(response),
        Err(Fault::Refused(errno)) => {
            txn.clear();
            Err(errno)
        }
        Err(Fault::Store(error)) => return Err(error),
    };
    if let Some((session, seq, answered)) = call {
        session::remember(txn, session, seq, answered, &reply)?;
    }
    Ok(reply)
}

fn run(
    txn: &mut Txn<'_>,
    index: LogIndex,
    time: Timestamp,
    action: Action,
) -> Result<Response, Fault> {
    let mut change = Change::begin(txn, index, time)?;
    let response = match action {
        Action::Mutate { session, op, .. } => mutate(&mut change, session, op)?,
        Action::Replay { session, target, op, .. } => {
            change.replays = Some(target);
            mutate(&mut change, session, op)?
        }
        Action::OpenSession { id, description, owner } => {
            change.open_session(id, description, owner)?
        }
        Action::ExpireSession { id } => change.end_session(id)?,
        Action::CloseSession { id } => change.close_session(id)?,
        Action::Reap { id } => change.reap(id)?,
        Action::TrimDone { id, freed } => change.trim_done(id, freed)?,
        Action::ChunksDeleted { ids } => change.chunks_deleted(&ids)?,
        Action::SkipNumbers { inodes } => change.skip_numbers(inodes)?,
        Action::LeaveOut { below } => change.leave_out(below)?,
        Action::Release { holds } => change.release_all(&holds)?,
        Action::Sweep { gone, tails } => change.sweep(&gone, &tails)?,
        Action::CreateVolume { .. } => return Err(Errno::EEXIST.into()),
    };
    change.finish(response)
}

fn mutate(change: &mut Change<'_, '_>, session: SessionId, op: Op) -> Result<Response, Fault> {
    change.session = session;
    match op {
        Op::Create { parent, name, new, perm, umask, uid, gid } => {
            change.create(parent, &name, new, create::Wanted { perm, umask, uid, gid })
        }
        Op::Link { ino, parent, name } => change.link(ino, parent, &name),
        Op::Unlink { parent, name } => change.unlink(parent, &name),
        Op::Rmdir { parent, name } => change.rmdir(parent, &name),
        Op::Rename { parent, name, new_parent, new_name, mode } => {
            change.rename((parent, &name), (new_parent, &new_name), mode)
        }
        Op::SetAttr { ino, set } => change.set_attr(ino, &set),
        Op::SetXattr { ino, name, value, mode } => change.set_xattr(ino, &name, value, mode),
        Op::RemoveXattr { ino, name } => change.remove_xattr(ino, &name),
        Op::WriteInline { ino, generation, data, size, mtime } => {
            change.write_inline(ino, generation, data, size, mtime)
        }
        Op::WroteChunks { ino, generation, end, allocated, mtime } => {
            change.wrote_chunks(ino, generation, end, allocated, mtime)
        }
        Op::Accessed { times } => change.accessed(&times),
        Op::Forget { inos } => change.forget(&inos),
        Op::EndSession => change.end_session(session),
        Op::CutTail { ino } => change.cut_tail(ino),
    }
}

/// The answer to a change that touched inodes; [`Change::finish`] fills in their attributes.
pub(crate) fn changed(target: impl Into<Option<netfs_common::id::Ino>>) -> Response {
    Response::Changed { target: target.into(), attrs: Vec::new() }
}

/// Refuses what is not a point in time.
pub(crate) fn valid_time(time: Timestamp) -> Result<Timestamp, Errno> {
    if time.nanos < 1_000_000_000 { Ok(time) } else { Err(Errno::EINVAL) }
}

/// The time that is to be set.
pub(crate) fn resolve_time(set: SetTime, now: Timestamp) -> Result<Timestamp, Errno> {
    match set {
        SetTime::Now => Ok(now),
        SetTime::To(time) => valid_time(time),
    }
}

/// The value that must be there because another one says so.
pub(crate) fn required<T: bincode::Decode<()>>(
    store: &dyn Read,
    key: &[u8],
) -> Result<T, StoreError> {
    record::load(store, key)?.ok_or_else(|| StoreError::damaged(key, "missing value"))
}
