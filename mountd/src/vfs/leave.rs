//! Unmounting, and giving up where no server answers.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use netfs_common::errno::Errno;
use netfs_common::wire::meta::Op;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::Vfs;

/// With nothing to send, a server that cannot be reached is waited for no longer.
const IDLE_PATIENCE: Duration = Duration::from_secs(1);
/// How often the connection is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// A wait is announced when it has lasted so long.
const QUIET: Duration = Duration::from_millis(500);

/// What no server has yet, or the metadata server was not told of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unsent {
    /// Bytes, with what they cost in memory.
    pub bytes: u64,
    /// Files.
    pub files: usize,
    /// Changes of names and attributes that the server has, and may lose if its machine fails.
    pub changes: usize,
}

impl fmt::Display for Unsent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes in {} files", self.bytes, self.files)?;
        match self.changes {
            0 => Ok(()),
            n => write!(f, ", and {n} changes that may not be on stable storage"),
        }
    }
}

/// How a mount has ended.
#[derive(Debug)]
pub struct Farewell {
    /// Everything that was written is stored.
    pub stored: Result<(), NotStored>,
    /// The server knows that the session has ended.
    pub ended: bool,
}

/// Why not everything that was written is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotStored {
    /// A server, or the wait for it, failed.
    #[error("not everything that was written could be stored ({0})")]
    Failed(Errno),
    /// The servers did not answer in time.
    #[error("the servers do not answer: not stored are {0}")]
    Unsent(Unsent),
}

impl Vfs {
    /// What is still to be sent.
    pub fn unsent(&self) -> Unsent {
        Unsent {
            bytes: self.writeback.pending(),
            files: self.writeback.busy().len(),
            changes: self.session.kept(),
        }
    }

    /// How long unmounting may take to send what is buffered.
    pub fn leave_limit(&self) -> Duration {
        self.options.leave
    }

    /// Stores everything, as long as that is not hopeless.
    ///
    /// # Errors
    /// See [`NotStored`]. Nothing is given up.
    pub async fn store(self: &Arc<Self>) -> Result<(), NotStored> {
        tokio::select! {
            biased;
            stored = self.syncfs() => stored.map_err(NotStored::Failed),
            unsent = self.patience(Instant::now()) => not_stored(unsent),
        }
    }

    /// Unmounts: sends everything, ends the session and the connections. What is not sent when
    /// that is hopeless is lost.
    pub async fn shutdown(self: &Arc<Self>) -> Farewell {
        self.shutdown_since(Instant::now()).await
    }

    /// As [`Vfs::shutdown`], of a wait that has begun earlier.
    pub async fn shutdown_since(self: &Arc<Self>, since: Instant) -> Farewell {
        if self.is_down() {
            return Farewell { stored: Ok(()), ended: false };
        }
        let mut stored = None;
        let leave = async {
            let outcome = self.syncfs().await;
            if let Err(e) = &outcome {
                error!(error = %e, "not everything could be written before unmounting");
            }
            stored = Some(outcome.map_err(NotStored::Failed));
            self.send_forgotten().await;
            let ended = self.session.mutate(Op::EndSession, false).await;
            if let Err(e) = &ended {
                warn!(error = %e, "the session was not ended; it expires");
            }
            ended.is_ok()
        };
        let left = tokio::select! {
            biased;
            ended = leave => Ok(ended),
            unsent = self.patience(since) => Err(unsent),
        };
        let farewell = match (left, stored) {
            (Ok(ended), stored) => Farewell { stored: stored.unwrap_or(Ok(())), ended },
            (Err(_), Some(stored)) => Farewell { stored, ended: false },
            (Err(unsent), None) => Farewell { stored: not_stored(unsent), ended: false },
        };
        self.end();
        farewell
    }

    /// Resolves, with what is unsent, when it is hopeless to wait for the servers any longer: at
    /// once if they cannot be reached and there is nothing to send, and in any case when the limit
    /// for leaving has passed since a time.
    pub async fn patience(&self, since: Instant) -> Unsent {
        let mut unreachable = None;
        let mut announced = false;
        loop {
            let unsent = self.unsent();
            let waited = since.elapsed();
            if waited >= self.options.leave {
                return unsent;
            }
            let down = (!self.session.connected()).then(Instant::now);
            unreachable = down.map(|now| unreachable.unwrap_or(now));
            let idle = unsent == Unsent::default();
            if idle && unreachable.is_some_and(|u| u.elapsed() >= IDLE_PATIENCE) {
                info!("the metadata server cannot be reached, and there is nothing to send");
                return unsent;
            }
            if !announced && !idle && waited >= QUIET {
                announced = true;
                let limit_s = self.options.leave.as_secs();
                warn!(%unsent, limit_s, "waiting for the servers to store what was written");
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

fn not_stored(unsent: Unsent) -> Result<(), NotStored> {
    if unsent == Unsent::default() { Ok(()) } else { Err(NotStored::Unsent(unsent)) }
}
