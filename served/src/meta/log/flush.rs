//! One flush for all who wait.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use netfs_common::id::LogIndex;

use super::LogError;

/// How far the log is on stable storage, and who is bringing it further.
///
/// A flush takes along all that was written before it began; whoever comes while one is under
/// way waits for the next. A failed flush is for good: the kernel may have dropped the pages, so
/// another attempt would promise what nobody knows.
#[derive(Debug, Default)]
pub(super) struct Flusher {
    state: Mutex<State>,
    done: Condvar,
}

#[derive(Debug, Default)]
struct State {
    durable: LogIndex,
    running: bool,
    failed: Option<String>,
}

impl Flusher {
    pub(super) fn new(durable: LogIndex) -> Flusher {
        let state = State { durable, ..State::default() };
        Flusher { state: Mutex::new(state), done: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each field is set in one step, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn durable(&self) -> LogIndex {
        self.state().durable
    }

    pub(super) fn failure(&self) -> Option<String> {
        self.state().failed.clone()
    }

    /// From now on every flush and write fails.
    pub(super) fn fail(&self, why: &str) {
        self.state().failed.get_or_insert_with(|| why.to_owned());
        self.done.notify_all();
    }

    /// All up to `index` is on stable storage, as its writer knows.
    pub(super) fn advance(&self, index: LogIndex) {
        let mut state = self.state();
        state.durable = state.durable.max(index);
        self.done.notify_all();
    }

    /// Returns when all up to `upto` is on stable storage. `sync` brings everything written so
    /// far there and says how far that was.
    pub(super) fn flush(
        &self,
        upto: LogIndex,
        sync: impl Fn() -> Result<LogIndex, LogError>,
    ) -> Result<(), LogError> {
        let mut state = self.state();
        loop {
            if let Some(why) = &state.failed {
                return Err(LogError::Poisoned(why.clone()));
            }
            if state.durable >= upto {
                return Ok(());
            }
            if state.running {
                state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.running = true;
            drop(state);
            let result = sync();
            state = self.state();
            state.running = false;
            match result {
                Ok(index) => state.durable = state.durable.max(index),
                Err(error) => {
                    state.failed.get_or_insert_with(|| error.to_string());
                    self.done.notify_all();
                    return Err(error);
                }
            }
            self.done.notify_all();
        }
    }
}
