//! Removing the chunks of files that are gone, in the background.

use std::sync::Arc;
use std::time::Duration;

use netfs_common::errno::Errno;
use netfs_common::id::ChunkId;
use netfs_common::net::Backoff;
use netfs_common::warn_rarely;
use tokio::task::JoinSet;

use super::data_link::{Attempt, DataCallError};
use super::volume::{Volume, now};
use crate::meta::command::{Action, Command};
use crate::meta::record::Deletion;

/// How often the queue is looked at when it was empty.
const LOOK: Duration = Duration::from_millis(500);
/// Files removed with one flush of the data servers.
const BATCH: usize = 512;
/// Calls to the data servers under way at once.
const AT_ONCE: usize = 8;

#[derive(Debug, thiserror::Error)]
enum DeletionError {
    #[error(transparent)]
    Data(#[from] DataCallError),
    #[error("{0}")]
    Engine(#[from] Errno),
    #[error("a call has panicked")]
    Panicked,
}

/// Works the queue off, for ever.
pub(super) async fn work_off(volume: Arc<Volume>) {
    let backoff = Backoff { first: Duration::from_millis(200), max: Duration::from_secs(10) };
    let (mut next, mut failures) = (0, 0);
    loop {
        let pause = match batch(&volume, &mut next).await {
            Ok(0) => LOOK,
            Ok(_) => {
                failures = 0;
                continue;
            }
            Err(error) => {
                warn_rarely!(Duration::from_secs(60), volume = %volume.name(), %error, "removed files still take up space");
                failures += 1;
                backoff.delay(failures, u32::MAX)
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Removes the chunks of some files; of how many. Those with lower numbers than `next` are done.
///
/// A removal may reach the data servers only when it is durable here: otherwise a crash could bring
/// back the name of a file whose data is gone. And it is taken off the queue only when it is
/// durable there.
async fn batch(volume: &Arc<Volume>, next: &mut u64) -> Result<usize, DeletionError> {
    let queue = volume.engine.pending_deletions_from(*next, BATCH)?;
    let (Some((last, _)), count) = (queue.last().cloned(), queue.len()) else { return Ok(0) };
    volume.flush_to(volume.engine.last()).await?;
    let ids = queue.iter().map(|(id, _)| *id).collect();
    let attempt = Arc::new(volume.data.begin().await?);
    let mut calls = JoinSet::new();
    for (_, deletion) in queue {
        if calls.len() >= AT_ONCE {
            joined(&mut calls).await?;
        }
        calls.spawn(delete(volume.clone(), attempt.clone(), deletion));
    }
    while !calls.is_empty() {
        joined(&mut calls).await?;
    }
    volume.data.flush(&attempt).await?;
    let action = Action::ChunksDeleted { ids };
    let (_, reply) = volume.execute(Command { time: now(), action }).await;
    reply?;
    *next = last + 1;
    Ok(count)
}

async fn joined(calls: &mut JoinSet<Result<(), DataCallError>>) -> Result<(), DeletionError> {
    match calls.join_next().await {
        None | Some(Ok(Ok(()))) => Ok(()),
        Some(Ok(Err(error))) => Err(error.into()),
        Some(Err(_)) => Err(DeletionError::Panicked),
    }
}

async fn delete(
    volume: Arc<Volume>,
    attempt: Arc<Attempt>,
    deletion: Deletion,
) -> Result<(), DataCallError> {
    let first = ChunkId { ino: deletion.ino, generation: deletion.generation, index: 0 };
    volume.data.delete_from(&attempt, first).await
}
