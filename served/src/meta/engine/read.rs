//! Reads. Each sees one state of the volume, between two changes.

use std::sync::PoisonError;

use netfs_common::errno::Errno;
use netfs_common::id::{Ino, OpSeq, SessionId};
use netfs_common::name::Name;
use netfs_common::wire::hello::Lost;
use netfs_common::wire::meta::Reply;

use super::{Engine, read_failed};
use crate::meta::keys;
use crate::meta::kv::{Read, StoreError};
use crate::meta::namespace::{self, Fault};
use crate::meta::record::{self, Deletion, Session, State, Trim, Volume};

/// The condition of a volume.
#[derive(Clone, Debug)]
pub struct EngineStatus {
    /// Identity and settings.
    pub volume: Volume,
    /// Counters.
    pub state: State,
    /// The last change.
    pub last: netfs_common::id::LogIndex,
    /// The last change that is on stable storage.
    pub durable: netfs_common::id::LogIndex,
    /// Length of the log in bytes.
    pub log_bytes: u64,
    /// Size of the store on disk in bytes.
    pub store_bytes: u64,
    /// Why no changes are taken any more, if so.
    pub failure: Option<String>,
}

impl Engine {
    fn view<T>(&self, read: impl FnOnce(&dyn Read) -> Result<T, Fault>) -> Result<T, Errno> {
        let _view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        read(&*self.store).map_err(|fault| match fault {
            Fault::Refused(errno) => errno,
            Fault::Store(error) => read_failed(&error),
        })
    }

    pub(super) fn query<T>(
        &self,
        read: impl FnOnce(&dyn Read) -> Result<T, StoreError>,
    ) -> Result<T, Errno> {
        self.view(|store| Ok(read(store)?))
    }

    /// See [`netfs_common::wire::meta::Request::Lookup`].
    ///
    /// # Errors
    /// As the request says; `EIO` when the store fails.
    pub fn lookup(&self, parent: Ino, name: &Name) -> Reply {
        self.view(|store| namespace::lookup(store, parent, name))
    }

    /// The inode that a name leads to.
    ///
    /// # Errors
    /// `EIO` when the store fails.
    pub fn child(&self, parent: Ino, name: &Name) -> Result<Option<Ino>, Errno> {
        let entry = self.query(|store| {
            record::load::<record::Entry>(store, &keys::entry(parent, name.as_bytes()))
        })?;
        Ok(entry.map(|entry| entry.ino))
    }

    /// See [`netfs_common::wire::meta::Request::Get`].
    ///
    /// # Errors
    /// As the request says; `EIO` when the store fails.
    pub fn get(&self, ino: Ino) -> Reply {
        self.view(|store| namespace::get(store, ino))
    }

    /// See [`netfs_common::wire::meta::Request::ReadLink`].
    ///
    /// # Errors
    /// As the request says; `EIO` when the store fails.
    pub fn read_link(&self, ino: Ino) -> Reply {
        self.view(|store| namespace::read_link(store, ino))
    }

    /// See [`netfs_common::wire::meta::Request::ReadDir`].
    ///
    /// # Errors
    /// As the request says; `EIO` when the store fails.
    pub fn read_dir(&self, ino: Ino, after: u64, limit: u32, plus: bool) -> Reply {
        self.view(|store| namespace::read_dir(store, ino, after, limit, plus))
    }

    /// See [`netfs_common::wire::meta::Request::ListXattrs`].
    ///
    /// # Errors
    /// As the request says; `EIO` when the store fails.
    pub fn list_xattrs(&self, ino: Ino) -> Reply {
        self.view(|store| namespace::list_xattrs(store, ino))
    }

    /// See [`netfs_common::wire::meta::Request::GetXattr`].
    ///
    /// # Errors
    /// As the request says; `EIO` when the store fails.
    pub fn get_xattr(&self, ino: Ino, name: &[u8]) -> Reply {
        self.view(|store| namespace::get_xattr(store, ino, name))
    }

    /// Identity and settings.
    ///
    /// # Errors
    /// `EIO` when the store fails.
    pub fn volume(&self) -> Result<Volume, Errno> {
        self.query(namespace::volume)?.ok_or(Errno::EIO)
    }

    /// Counters of inodes, bytes, orphans and sessions.
    ///
    /// # Errors
    /// `EIO` when the store fails.
    pub fn counters(&self) -> Result<State, Errno> {
        self.query(namespace::state)?.ok_or(Errno::EIO)
    }

    /// What was lost of the log when the machine failed.
    ///
    /// # Errors
    /// `EIO` when the store fails.
    pub fn lost(&self) -> Result<Vec<Lost>, Errno> {
        let lost = self.query(namespace::lost)?.ranges.into_iter();
        Ok(lost.map(|(after, before)| Lost { after, before }).collect())
    }

    /// A session; an ended one is there until all that it has left is removed.
    ///
    /// # Errors
    /// `EIO` when the store fails.
    pub fn session(&self, id: SessionId) -> Result<Option<Session>, Errno> {
        self.query(|store| record::load(store, &keys::session(id)))
    }

    /// All sessions that have not ended.
    ///
    /// # Errors
    /// `EIO` when the store fails.
    pub fn sessions(&self) -> Result<Vec<(SessionId, Session)>, Errno> {
        let mut all = self.query(namespace::sessions)?;
        all.retain(|(_, session)| !session.ended);
        Ok(all)
    }

    /// Sessions that have ended and have left something.
    ///
    /// # Errors
    /// `EIO` when the store fails.
    pub fn ended_sessions(&self) -> Result<Vec<(SessionId, Session)>, Errno> {
        let mut all = self.query(namespace::sessions)?;
        all.retain(|(_, session)| session.ended);
        Ok(all)
    }

    /// Cuts that the data servers have not completed, oldest first. Each must be completed before
    /// anybody is shown its inode, also when the change is answered once more.
    ///
    /// # Errors
    /// `EIO` when the store fails.
    pub fn pending_trims(&self) -> Result<Vec<(u64, Trim)>, Errno> {
        self.query(namespace::trims)
    }

    /// Those of one file.
    ///
    /// # Errors
    /// `EIO` when the store fails.
    pub fn pending_trims_of(&self, ino: Ino) -> Result<Vec<(u64, Trim)>, Errno> {
        self.query(|store| namespace::trims_of(store, ino))
    }

    /// Whether a change of a session is in the log, and was answered without an error.
    ///
    /// # Errors
    /// `EIO` when the store fails.
    pub fn was_made(&self, session: SessionId, seq: OpSeq) -> Result<bool, Errno> {
        self.query(|store| namespace::was_made(store, session, seq))
    }

    /// Chunks that are to be removed from the data servers, at most `limit` items, oldest first.
    ///
    /// # Errors
    /// `EIO` when the store fails.
    pub fn pending_deletions(&self, limit: usize) -> Result<Vec<(u64, Deletion)>, Errno> {
        self.query(|store| namespace::deletions(store, limit))
    }

    /// Inodes without a name that a session holds, of those with higher numbers than `after`, at most `limit`, in order.
    ///
    /// # Errors
    /// `EIO` when the store fails.
    pub fn held(&self, session: SessionId, after: Ino, limit: usize) -> Result<Vec<Ino>, Errno> {
        self.query(|store| namespace::held(store, session, after, limit))
    }

    /// The condition of the volume.
    ///
    /// # Errors
    /// `EIO` when the store fails.
    pub fn status(&self) -> Result<EngineStatus, Errno> {
        Ok(EngineStatus {
            volume: self.volume()?,
            state: self.counters()?,
            last: self.last(),
            durable: self.durable(),
            log_bytes: self.log.bytes(),
            store_bytes: self.store.disk_bytes(),
            failure: self.failure(),
        })
    }

    /// Answers any request that only reads; `None` for one that does not, or that needs more
    /// than the metadata.
    pub fn read(&self, request: &netfs_common::wire::meta::Request) -> Option<Reply> {
        use netfs_common::wire::meta::Request;
        Some(match request {
            Request::Lookup { parent, name } => self.lookup(*parent, name),
            Request::Get { ino } | Request::Acquire { ino } => self.get(*ino),
            Request::ReadLink { ino } => self.read_link(*ino),
            Request::ReadDir { ino, after, limit, plus } => {
                self.read_dir(*ino, *after, *limit, *plus)
            }
            Request::ListXattrs { ino } => self.list_xattrs(*ino),
            Request::GetXattr { ino, name } => self.get_xattr(*ino, name),

            Request::StatFs
            | Request::Renew
            | Request::Sync
            | Request::Mutate(_)
            | Request::Lock(_)
            | Request::Status
            | Request::Inspect(_)
            | Request::Operate(_)
            | Request::Reclaim { .. }
            | Request::Replay { .. } => return None,
        })
    }
}
