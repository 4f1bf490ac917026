//! Flushing in groups: whoever asks while a flush is under way shares the next one.

use std::sync::Arc;
use std::time::Duration;

use netfs_common::errno::Errno;
use tokio::sync::{mpsc, oneshot};

use super::fault;
use super::metrics::DataMetrics;
use crate::data::store::SegmentStore;

/// Callers that may wait at once; more wait for their turn to ask.
const QUEUE: usize = 1024;

type Answer = oneshot::Sender<Result<(), Errno>>;

/// Brings the store to stable storage when asked, and at intervals.
#[derive(Clone, Debug)]
pub(super) struct Flusher {
    ask: mpsc::Sender<Answer>,
}

impl Flusher {
    /// Must be called within a runtime. It ends with the last handle.
    pub(super) fn start(
        store: Arc<SegmentStore>,
        interval: Duration,
        metrics: DataMetrics,
    ) -> Flusher {
        let (ask, asked) = mpsc::channel(QUEUE);
        tokio::spawn(run(store, interval, asked, metrics));
        Flusher { ask }
    }

    /// Returns when all that was acknowledged before is on stable storage.
    pub(super) async fn flush(&self) -> Result<(), Errno> {
        let (answer, answered) = oneshot::channel();
        self.ask.send(answer).await.map_err(|_| Errno::ESHUTDOWN)?;
        answered.await.map_err(|_| Errno::ESHUTDOWN)?
    }
}

async fn run(
    store: Arc<SegmentStore>,
    interval: Duration,
    mut asked: mpsc::Receiver<Answer>,
    metrics: DataMetrics,
) {
    loop {
        let mut waiting = Vec::new();
        match tokio::time::timeout(interval, asked.recv()).await {
            Ok(None) => return,
            Ok(Some(first)) => waiting.push(first),
            Err(_) => {}
        }
        while let Ok(more) = asked.try_recv() {
            waiting.push(more);
        }
        let flushed = store.clone();
        let result = match tokio::task::spawn_blocking(move || flushed.flush()).await {
            Ok(result) => result.map_err(|error| {
                metrics.store_failed(&error);
                fault::errno(&error)
            }),
            Err(error) => {
                tracing::error!(%error, "a flush has panicked");
                Err(Errno::EIO)
            }
        };
        metrics.flushes.inc();
        for answer in waiting {
            // Whoever has given up does not want to know.
            let _ = answer.send(result);
        }
    }
}
