//! Flushing in groups: whoever asks while a flush is under way shares the next one.

use std::time::Duration;

use netfs_common::errno::Errno;
use tokio::sync::{mpsc, oneshot};

/// Callers that may wait at once; more wait for their turn to ask.
const QUEUE: usize = 1024;

type Answer = oneshot::Sender<Result<(), Errno>>;

/// Brings a store to stable storage when asked, and at intervals.
#[derive(Clone, Debug)]
pub(crate) struct Flusher {
    ask: mpsc::Sender<Answer>,
}

impl Flusher {
    /// Must be called within a runtime. `flush` is run on a thread that may block. It ends with the last
    /// handle.
    pub(crate) fn start<F>(interval: Duration, flush: F) -> Flusher
    where
        F: Fn() -> Result<(), Errno> + Clone + Send + 'static,
    {
        let (ask, asked) = mpsc::channel(QUEUE);
        tokio::spawn(run(interval, asked, flush));
        Flusher { ask }
    }

    /// Returns when all that was acknowledged before is on stable storage.
    pub(crate) async fn flush(&self) -> Result<(), Errno> {
        let (answer, answered) = oneshot::channel();
        self.ask.send(answer).await.map_err(|_| Errno::ESHUTDOWN)?;
        answered.await.map_err(|_| Errno::ESHUTDOWN)?
    }
}

async fn run<F>(interval: Duration, mut asked: mpsc::Receiver<Answer>, flush: F)
where
    F: Fn() -> Result<(), Errno> + Clone + Send + 'static,
{
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
        let result = match tokio::task::spawn_blocking(flush.clone()).await {
            Ok(result) => result,
            Err(error) => {
                tracing::error!(%error, "a flush has panicked");
                Err(Errno::EIO)
            }
        };
        for answer in waiting {
            // Whoever has given up does not want to know.
            let _ = answer.send(result);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn many_who_ask_at_once_share_few_flushes() {
        let count = Arc::new(AtomicU32::new(0));
        let counted = count.clone();
        let flusher = Flusher::start(Duration::from_secs(60), move || {
            counted.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(20));
            Ok(())
        });
        let tasks: Vec<_> = (0..50)
            .map(|_| {
                let flusher = flusher.clone();
                tokio::spawn(async move { flusher.flush().await })
            })
            .collect();
        for task in tasks {
            assert_eq!(task.await.unwrap(), Ok(()));
        }
        assert!(count.load(Ordering::Relaxed) <= 4);
    }
}
