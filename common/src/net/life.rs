//! How far a connection's life has come, and waiting for it to go on.

use tokio::sync::watch;

use super::CallError;

#[derive(Debug, Clone)]
enum Stage {
    Open,
    /// One side said goodbye: no new calls, those under way are finished. New ones fail with this.
    Draining(CallError),
    Closed(CallError),
}

/// The life of one connection. It only ever goes forward, and the first reason for its end counts.
#[derive(Debug)]
pub(super) struct Life {
    stage: watch::Sender<Stage>,
}

impl Life {
    pub(super) fn new() -> Self {
        Self { stage: watch::Sender::new(Stage::Open) }
    }

    /// Whether new calls are taken; if not, why.
    pub(super) fn check_open(&self) -> Result<(), CallError> {
        match &*self.stage.borrow() {
            Stage::Open => Ok(()),
            Stage::Draining(error) | Stage::Closed(error) => Err(error.clone()),
        }
    }

    /// Why new calls are not taken.
    pub(super) fn end(&self) -> CallError {
        self.check_open().err().unwrap_or(CallError::Closed)
    }

    pub(super) fn drain(&self, error: CallError) {
        self.stage.send_if_modified(|stage| {
            let open = matches!(stage, Stage::Open);
            if open {
                *stage = Stage::Draining(error);
            }
            open
        });
    }

    /// Ends it; `true` if it had not ended before.
    pub(super) fn close(&self, error: CallError) -> bool {
        self.stage.send_if_modified(|stage| {
            let first = !matches!(stage, Stage::Closed(_));
            if first {
                *stage = Stage::Closed(error);
            }
            first
        })
    }

    /// Waits until no new calls are taken.
    pub(super) async fn unusable(&self) -> CallError {
        self.wait_for(|stage| match stage {
            Stage::Open => None,
            Stage::Draining(error) | Stage::Closed(error) => Some(error.clone()),
        })
        .await
    }

    /// Waits for the end.
    pub(super) async fn closed(&self) -> CallError {
        self.wait_for(|stage| match stage {
            Stage::Open | Stage::Draining(_) => None,
            Stage::Closed(error) => Some(error.clone()),
        })
        .await
    }

    async fn wait_for(&self, mut test: impl FnMut(&Stage) -> Option<CallError>) -> CallError {
        let mut stages = self.stage.subscribe();
        loop {
            if let Some(error) = test(&stages.borrow_and_update()) {
                return error;
            }
            // The sender is borrowed by this function: it cannot go away.
            if stages.changed().await.is_err() {
                return CallError::Closed;
            }
        }
    }
}
