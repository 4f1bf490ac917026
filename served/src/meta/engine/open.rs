//! Opening a volume, and bringing log and store together again.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex, RwLock};

use netfs_common::codec;
use netfs_common::id::LogIndex;

use super::{Engine, EngineConfig, EngineError, dir};
use crate::meta::command::{Action, Command};
use crate::meta::kv::{Cached, FjallStore, Store, StoreError, Txn};
use crate::meta::log::{self, Cut, Disk, Log, LogError, RealDisk};
use crate::meta::namespace;

/// What opening has found and done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// The volume was made just now.
    pub created: bool,
    /// The last command that the store had.
    pub applied: LogIndex,
    /// How many commands of the log it lacked, and got.
    pub replayed: u64,
    /// The store had commands that the log had lost: the machine has failed, and these had not
    /// been flushed.
    pub store_ahead: bool,
    /// What was cut off the end of the log because it had not been written completely.
    pub cut: Option<Cut>,
    /// The last command that there is now.
    pub last: LogIndex,
}

impl Engine {
    /// Opens the volume in a folder.
    ///
    /// # Errors
    /// See [`EngineError`]; nothing was changed then that a later attempt would miss.
    pub fn open(
        path: &Path,
        config: EngineConfig,
    ) -> Result<(Engine, RecoveryReport), EngineError> {
        Engine::open_on(path, config, Arc::new(RealDisk), |store_dir| {
            let store = FjallStore::open(store_dir, config.store)?;
            Ok(Box::new(Cached::new(store, config.cache_values)))
        })
    }

    /// Opens the volume in a folder, with the log on another disk and another store.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open_on(
        path: &Path,
        config: EngineConfig,
        disk: Arc<dyn Disk>,
        store: impl Fn(&Path) -> Result<Box<dyn Store>, EngineError>,
    ) -> Result<(Engine, RecoveryReport), EngineError> {
        let (lock, known) = dir::enter(path, config.new_volume.is_some())?;
        let volume = match (known, config.new_volume) {
            (Some(id), _) => id,
            (None, Some(new)) => {
                dir::begin(path, new.id)?;
                new.id
            }
            (None, None) => return Err(EngineError::Missing(path.to_owned())),
        };
        let log_dir = dir::log_dir(path);
        let store = match store(&dir::store_dir(path)) {
            // The log is the truth, and it still has all of it.
            Err(EngineError::Store(StoreError::Broken(what)))
                if log::is_whole(&*disk, &log_dir)? =>
            {
                let aside = dir::set_aside(path)?;
                tracing::error!(%what, aside = %aside.display(), "the store is made anew from the log");
                store(&dir::store_dir(path))?
            }
            other => other?,
        };
        let applied = namespace::state(&*store)?.map(|s| s.applied).unwrap_or_default();
        let mut replayed = 0;
        let found = log::recover(&*disk, &log_dir, volume, applied, |index, payload| {
            replayed += 1;
            replay(&*store, index, payload)
        })?;
        let mut report = RecoveryReport {
            created: false,
            applied,
            replayed,
            store_ahead: applied > found.last && !found.segments.is_empty(),
            cut: found.cut.clone(),
            last: applied.max(found.last),
        };
        if namespace::volume(&*store)?.is_some_and(|v| v.id != volume) {
            return Err(EngineError::WrongVolume(path.to_owned()));
        }
        let found = if applied > found.last { retire(&*disk, &*store, found)? } else { found };
        let log = Log::new(disk.clone(), &log_dir, volume, config.log, found, report.last);
        let engine = Engine {
            dir: path.to_owned(),
            disk,
            store,
            log,
            config,
            writer: Mutex::new(()),
            view: RwLock::new(()),
            since_space_check: AtomicU32::new(0),
            out_of_space: AtomicBool::new(false),
            _lock: lock,
        };
        engine.complete(volume, &mut report)?;
        Ok((engine, report))
    }

    /// Makes the volume if it is not there.
    fn complete(&self, volume: u64, report: &mut RecoveryReport) -> Result<(), EngineError> {
        if namespace::volume(&*self.store)?.is_none() {
            let new = self.config.new_volume.ok_or(EngineError::Missing(self.dir.clone()))?;
            let action = Action::CreateVolume { id: volume, settings: new.settings };
            let (index, reply) = self.execute(Command { time: new.time, action });
            reply.map_err(EngineError::NotMade)?;
            self.log.flush(index)?;
            dir::finish(&self.dir)?;
            report.created = true;
        }
        report.last = self.log.last();
        Ok(())
    }
}

fn replay(store: &dyn Store, index: LogIndex, payload: &[u8]) -> Result<(), EngineError> {
    let command: Command = codec::decode(payload)
        .map_err(|e| EngineError::BadCommand { index, what: e.to_string() })?;
    let mut txn = Txn::new(store);
    // What the command came to was answered when it was new.
    let _reply = namespace::apply(&mut txn, index, command)?;
    store.commit(txn.into_batch())?;
    Ok(())
}

/// The store has all that the log has, and more: it is made durable, and the log goes, so that
/// the next one can begin after the gap.
fn retire(
    disk: &dyn Disk,
    store: &dyn Store,
    found: log::Recovered,
) -> Result<log::Recovered, EngineError> {
    store.persist()?;
    for (_, path, _) in &found.segments {
        disk.remove(path).map_err(|source| LogError::Io { path: path.clone(), source })?;
    }
    Ok(log::Recovered { segments: Vec::new(), ..found })
}
