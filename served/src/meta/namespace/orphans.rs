//! Inodes without a name, and what they leave behind.
//!
//! An orphan is held by every session that lived when it lost its last name: any of them may
//! have it open. A hold ends with [`netfs_common::wire::meta::Op::Forget`], with the session, or when the server knows that the
//! session has never seen the inode; the last one takes the inode along. There are at most as many holds as orphans times sessions.

use netfs_common::attr::FileKind;
use netfs_common::errno::Errno;
use netfs_common::id::{Ino, SessionId};
use netfs_common::wire::meta::{MAX_BATCH, Response};

use super::change::Change;
use super::{Fault, changed, data, session};
use crate::meta::keys;
use crate::meta::kv::{Read, StoreError};
use crate::meta::record::{self, Deletion, Trim};

/// The most trims that are asked for at once; they are completed as they are made.
const MAX_TRIMS: usize = 1 << 20;

impl Change<'_, '_> {
    /// An inode has lost its last name.
    pub(super) fn orphan(&mut self, ino: Ino) -> Result<(), Fault> {
        let holders = match self.state.sessions {
            // The common case needs no search.
            1 => vec![self.session],
            _ => session::live(self.txn)?,
        };
        self.state.orphans = self.state.orphans.saturating_add(1);
        for holder in &holders {
            self.txn.put(keys::hold(*holder, ino), Vec::new());
        }
        self.txn.put(keys::orphan(ino), record::encode(&(holders.len() as u64))?);
        if holders.is_empty() { self.purge(ino) } else { Ok(()) }
    }

    pub(super) fn forget(&mut self, inos: &[Ino]) -> Result<Response, Fault> {
        if inos.len() > MAX_BATCH {
            return Err(Errno::E2BIG.into());
        }
        for ino in inos {
            self.release(self.session, *ino)?;
        }
        Ok(changed(None))
    }

    /// Sessions let go of inodes that they have never seen.
    pub(super) fn release_all(&mut self, holds: &[(SessionId, Ino)]) -> Result<Response, Fault> {
        if holds.len() > MAX_BATCH {
            return Err(Errno::E2BIG.into());
        }
        for (session, ino) in holds {
            self.release(*session, *ino)?;
        }
        Ok(Response::Done)
    }

    /// A session no longer uses an inode; nothing happens unless it is an orphan that it holds.
    pub(super) fn release(&mut self, session: SessionId, ino: Ino) -> Result<(), Fault> {
        let hold = keys::hold(session, ino);
        if self.state.orphans == 0 || self.txn.get(&hold)?.is_none() {
            return Ok(());
        }
        self.txn.remove(hold);
        let key = keys::orphan(ino);
        let holders: u64 = super::required(self.txn, &key)?;
        match holders.saturating_sub(1) {
            0 => self.purge(ino),
            rest => {
                self.txn.put(key, record::encode(&rest)?);
                Ok(())
            }
        }
    }

    /// Removes an orphan that nobody holds.
    fn purge(&mut self, ino: Ino) -> Result<(), Fault> {
        let missing = || StoreError::damaged(&keys::inode(ino), "an orphan has no inode");
        let mut inode = self.find(ino)?.ok_or_else(missing)?;
        if inode.attr.kind == FileKind::File && !inode.attr.inline {
            self.queue_deletion(&inode)?;
        }
        self.set_allocated(&mut inode, 0);
        if inode.attr.has_xattrs {
            // Names and values together are bounded, so this is one bounded read.
            let prefix = keys::xattr(ino, b"");
            let all = self.txn.range(&prefix, &keys::after_prefix(&prefix), usize::MAX)?;
            all.into_iter().for_each(|(key, _)| self.txn.remove(key.to_vec()));
        }
        if inode.attr.inline || inode.attr.kind == FileKind::Symlink {
            self.txn.remove(keys::inline(ino));
        }
        self.txn.remove(keys::inode(ino));
        self.txn.remove(keys::orphan(ino));
        self.state.inodes = self.state.inodes.saturating_sub(1);
        self.state.orphans = self.state.orphans.saturating_sub(1);
        self.forget_inode(ino);
        Ok(())
    }
}

/// Cuts that the data servers have not completed, oldest first.
///
/// # Errors
/// When the store fails.
pub fn trims(store: &dyn Read) -> Result<Vec<(u64, Trim)>, StoreError> {
    data::tasks(store, keys::TRIM, MAX_TRIMS)
}

/// Those of one file.
///
/// # Errors
/// When the store fails.
pub fn trims_of(store: &dyn Read, ino: Ino) -> Result<Vec<(u64, Trim)>, StoreError> {
    let mut all = trims(store)?;
    all.retain(|(_, trim)| trim.ino == ino);
    Ok(all)
}

/// Chunks that are to be removed, oldest first.
///
/// # Errors
/// When the store fails.
pub fn deletions(store: &dyn Read, limit: usize) -> Result<Vec<(u64, Deletion)>, StoreError> {
    data::tasks(store, keys::DELETION, limit)
}

/// Orphans that a session holds, of those with higher numbers than `after`, at most `limit`, in order.
///
/// # Errors
/// When the store fails.
pub fn held(
    store: &dyn Read,
    session: SessionId,
    after: Ino,
    limit: usize,
) -> Result<Vec<Ino>, StoreError> {
    let end = keys::after_prefix(&keys::key(keys::HOLD, [session.0]));
    let Some(next) = after.0.checked_add(1) else { return Ok(Vec::new()) };
    let all = store.range(&keys::hold(session, Ino(next)), &end, limit)?;
    let ino = |key: &[u8]| keys::field(key, 1).ok_or_else(|| StoreError::damaged(key, "bad key"));
    all.iter().map(|(key, _)| Ok(Ino(ino(key)?))).collect()
}

/// Sessions that have ended and left something that is still to be removed.
///
/// # Errors
/// When the store fails.
pub fn ended_sessions(store: &dyn Read) -> Result<Vec<SessionId>, StoreError> {
    let all = session::sessions(store)?;
    Ok(all.into_iter().filter(|(_, s)| s.ended).map(|(id, _)| id).collect())
}
