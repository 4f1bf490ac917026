//! Having files cut by the data servers.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use netfs_common::errno::Errno;
use netfs_common::id::ChunkId;
use netfs_common::net::Backoff;
use netfs_common::warn_rarely;

use super::data_link::DataCallError;
use super::volume::{Volume, now};
use crate::meta::command::{Action, Command};
use crate::meta::record::Trim;

/// The same trouble is logged this often.
const WARN_INTERVAL: Duration = Duration::from_secs(10);

impl Volume {
    /// Begins all cuts that are not known yet.
    pub(super) fn begin_trims(self: &Arc<Self>) -> Result<(), Errno> {
        loop {
            let found = self.engine.pending_trims_from(self.next_trim.load(Ordering::Relaxed))?;
            if found.is_empty() {
                return Ok(());
            }
            for (id, trim) in found {
                self.next_trim.fetch_max(id + 1, Ordering::Relaxed);
                if self.trims.begin(trim.ino, id) {
                    tokio::spawn(self.clone().trim(id, trim));
                }
            }
        }
    }

    /// Has a file cut by the data servers, however long that takes.
    ///
    /// First the log is flushed: if the cut were lost in a crash after the data is gone, the file would have
    /// its old length and zeros where the data was. Last the log is told, and only then the client: what
    /// is written after that comes after the end of the cut in the log, so a restart does not cut again.
    async fn trim(self: Arc<Self>, id: u64, trim: Trim) {
        let backoff = Backoff::default();
        let file = ChunkId { ino: trim.ino, generation: trim.generation, index: 0 };
        // What an earlier attempt has freed the later ones do not find any more.
        let (mut failures, mut freed) = (0, 0);
        loop {
            match self.try_trim(id, &trim, file, &mut freed).await {
                Ok(()) => break,
                Err(TrimError::Data(
                    error @ (DataCallError::Restarted { .. } | DataCallError::Lost { .. }),
                )) => {
                    // It may have what it freed before once more.
                    freed = 0;
                    tracing::info!(ino = %trim.ino, %error, "a file is cut once more");
                }
                Err(TrimError::Data(error)) => {
                    warn_rarely!(WARN_INTERVAL, ino = %trim.ino, %error, "a file cannot be cut yet");
                }
                // A full disk, for one: the cut can be completed later.
                Err(TrimError::Engine(errno)) if self.engine.failure().is_none() => {
                    warn_rarely!(WARN_INTERVAL, ino = %trim.ino, %errno, "a file cannot be cut yet");
                }
                // The engine takes no more changes; the cut is in the log for after the restart.
                Err(TrimError::Engine(errno)) => {
                    tracing::error!(ino = %trim.ino, %errno, "a file cannot be cut until a restart");
                    self.trims.fail();
                    return;
                }
            }
            failures += 1;
            // The pause needs no jitter: there is one metadata server.
            tokio::time::sleep(backoff.delay(failures, u32::MAX)).await;
        }
        self.trims.done(trim.ino, id);
    }

    async fn try_trim(
        &self,
        id: u64,
        trim: &Trim,
        file: ChunkId,
        freed: &mut u64,
    ) -> Result<(), TrimError> {
        self.flush_to(self.engine.last()).await.map_err(TrimError::Engine)?;
        let attempt = self.data.begin().await?;
        let cut = self.data.cut(&attempt, file, trim.chunk_bits, trim.from).await;
        *freed = freed.saturating_add(self.data.freed(&attempt));
        cut?;
        let action = Action::TrimDone { id, freed: *freed };
        let (_, reply) = self.execute(Command { time: now(), action }).await;
        reply.map(drop).map_err(TrimError::Engine)
    }
}

#[derive(Debug)]
enum TrimError {
    Data(DataCallError),
    Engine(Errno),
}

impl From<DataCallError> for TrimError {
    fn from(error: DataCallError) -> Self {
        TrimError::Data(error)
    }
}
