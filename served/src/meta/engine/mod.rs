//! Log and store as one: the state of a volume, durable and exactly in order.
//!
//! A change is tried on an overlay, written to the log, and committed to the store together with
//! its position in the log. Nobody is told of it before it is in the log; the log is flushed when
//! somebody asks, at once for all who do. The store may lag behind the log after a crash (what
//! it lacks is replayed) or be ahead of it (the log goes on after it): each holds a prefix of
//! what happened.
//!
//! Locks, in this order: `writer` (one change at a time), `view` (reads share it, a commit has
//! it alone, so that a read sees one state and the cache stays coherent), then those of the log.

mod check;
mod config;
mod dir;
mod error;
mod open;
mod read;
mod walk;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use netfs_common::attr::Timestamp;
use netfs_common::codec;
use netfs_common::errno::Errno;
use netfs_common::id::LogIndex;
use netfs_common::wire::meta::{Op, Reply};

use crate::meta::command::{Action, Command};
use crate::meta::kv::{Store, StoreError, Txn};
use crate::meta::log::{Disk, Log};
use crate::meta::namespace;

pub use check::{CheckReport, check, check_store};
pub use config::{EngineConfig, NewVolume};
pub use dir::{DirLock, FORMAT, NUMBER};
pub use error::EngineError;
pub use open::RecoveryReport;
pub use read::EngineStatus;

/// After so many changes that need room the free space is looked at again.
const SPACE_CHECK_EVERY: u32 = 64;

/// Nothing that needs room is taken when the log is so many times longer than it should be.
const LOG_LIMIT: u64 = 32;
/// Far more than can be given out between two flushes of the log.
const LOST_INDICES: u64 = 1 << 32;

/// One volume's metadata.
pub struct Engine {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    store: Box<dyn Store>,
    log: Log,
    config: EngineConfig,
    /// Held while a change is made; see the lock order above.
    writer: Mutex<()>,
    /// Held shared by reads, alone by a commit; see the lock order above.
    view: RwLock<()>,
    since_space_check: AtomicU32,
    out_of_space: AtomicBool,
    /// Keeps other processes out; released by the kernel when this one dies.
    _lock: DirLock,
}

impl Engine {
    /// Makes a change: its position in the log, and its answer. With that position
    /// [`Engine::flush`] makes it durable. A change that was made before is answered as then.
    ///
    /// What the end of a session leaves is removed by [`Action::Reap`].
    pub fn execute(&self, command: Command) -> (LogIndex, Reply) {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        match self.change(command) {
            Ok(done) => done,
            Err(errno) => (self.log.last(), Err(errno)),
        }
    }

    /// Whether a change is made at once. If not, [`Engine::execute`] waits until the store has caught up.
    ///
    /// # Errors
    /// `EIO` when it never will; no more changes are taken then.
    pub fn is_ready(&self) -> Result<bool, Errno> {
        self.store.is_ready().map_err(|e| self.broken(&e))
    }

    /// Called under the `writer` lock.
    fn change(&self, command: Command) -> Result<(LogIndex, Reply), Errno> {
        if self.log.failure().is_some() {
            return Err(Errno::EIO);
        }
        let known = namespace::precheck(&*self.store, &command).map_err(|e| self.broken(&e))?;
        if let Some(reply) = known {
            return Ok((self.log.last(), reply));
        }
        self.is_ready()?;
        if needs_room(&command) {
            self.require_room()?;
        }
        let payload = codec::encode(&command).map_err(|_| Errno::E2BIG)?;
        let index = self.log.next();
        let mut txn = Txn::new(&*self.store);
        // An attempt that fails has changed nothing, so there is nothing to stop for.
        let reply = namespace::apply(&mut txn, index, command).map_err(|e| read_failed(&e))?;
        let batch = txn.into_batch();
        let written = self.log.append(&payload).map_err(|error| {
            tracing::error!(%error, "a change could not be written to the log");
            error.errno()
        })?;
        debug_assert_eq!(written, index);
        let _view = self.view.write().unwrap_or_else(PoisonError::into_inner);
        self.store.commit(batch).map_err(|e| self.broken(&e))?;
        Ok((index, reply))
    }

    /// Leaves out numbers that were given out by commands which may have been lost with the end of
    /// the log: positions in it (which are versions of inodes), inodes, generations. Durable when it
    /// returns.
    ///
    /// # Errors
    /// `EIO` when the disk fails.
    pub fn skip_lost(&self, inodes: u32, time: Timestamp) -> Result<(), Errno> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.log.skip(LOST_INDICES).map_err(|error| {
            tracing::error!(%error, "the log cannot go on");
            error.errno()
        })?;
        drop(writer);
        let action = Action::SkipNumbers { inodes };
        let (index, reply) = self.execute(Command { time, action });
        reply?;
        self.flush(index)
    }

    /// The store is not to be trusted until it has been opened anew; reads may go on.
    fn broken(&self, error: &StoreError) -> Errno {
        tracing::error!(%error, "the metadata store takes no more changes");
        self.log.fail(&error.to_string());
        Errno::EIO
    }

    /// `ENOSPC` while the disk has little more than what removals will need.
    fn require_room(&self) -> Result<(), Errno> {
        if self.since_space_check.fetch_add(1, Ordering::Relaxed).is_multiple_of(SPACE_CHECK_EVERY)
            || self.out_of_space.load(Ordering::Relaxed)
        {
            let free = self.disk.free_bytes(&self.dir).map_err(|error| {
                tracing::error!(%error, "free space is not known");
                Errno::from_io(&error)
            })?;
            // A log that only grows, because no checkpoint succeeds, must end before the disk does.
            let endless = self.log.bytes() / LOG_LIMIT > self.config.checkpoint_log_bytes;
            let full = free < self.config.reserve_bytes || endless;
            self.out_of_space.store(full, Ordering::Relaxed);
        }
        match self.out_of_space.load(Ordering::Relaxed) {
            true => Err(Errno::ENOSPC),
            false => Ok(()),
        }
    }

    /// Returns when every change up to this position is on stable storage.
    ///
    /// # Errors
    /// `EIO` when the disk fails; no more changes are taken then.
    pub fn flush(&self, upto: LogIndex) -> Result<(), Errno> {
        self.log.flush(upto).map_err(|error| {
            tracing::error!(%error, "the log could not be flushed");
            Errno::EIO
        })
    }

    /// Every change up to this position is on stable storage.
    pub fn durable(&self) -> LogIndex {
        self.log.durable()
    }

    /// The position of the last change.
    pub fn last(&self) -> LogIndex {
        self.log.last()
    }

    /// Why no changes are taken any more, if so.
    pub fn failure(&self) -> Option<String> {
        self.log.failure()
    }

    /// Whether the log has become long enough for a [`Engine::checkpoint`].
    pub fn checkpoint_due(&self) -> bool {
        self.log.bytes() >= self.config.checkpoint_log_bytes
    }

    /// Makes the store durable and removes what of the log it has. Changes wait only while the
    /// log's present segment is flushed.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn checkpoint(&self) -> Result<(), EngineError> {
        if let Some(why) = self.log.failure() {
            return Err(EngineError::Failed(why));
        }
        let upto = {
            let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
            self.log.seal_current()?;
            self.log.last()
        };
        self.store.persist()?;
        self.log.drop_before(upto)?;
        Ok(())
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

fn read_failed(error: &StoreError) -> Errno {
    tracing::error!(%error, "the metadata store could not be read");
    Errno::EIO
}

/// Whether a change makes the store larger. All others are let through on a full disk, for they
/// are how it gets room again, or report what has happened already. So is a new session: their number is
/// bounded, and without one nobody could remove anything.
fn needs_room(command: &Command) -> bool {
    match &command.action {
        Action::CreateVolume { .. } => true,
        Action::Mutate { op, .. } => matches!(
            op,
            Op::Create { .. } | Op::Link { .. } | Op::SetXattr { .. } | Op::WriteInline { .. }
        ),
        _ => false,
    }
}
