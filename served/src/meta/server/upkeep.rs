//! What a volume does by itself, as time goes by: it ends sessions, and keeps its log short.

use std::collections::BTreeSet;
use std::sync::Arc;

use netfs_common::id::SessionId;
use netfs_common::warn_rarely;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::terms;
use super::volume::{Ends, TICK, Volume, WARN_INTERVAL};
use crate::meta::metrics::Share;

impl Volume {
    /// What it adds to the gauges.
    fn share(&self) -> Share {
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let sessions = count(self.members.count());
        let table = self.leasing.table();
        Share { leases: count(table.len()), waiting: count(table.tickets()), sessions }
    }

    /// Ends silent sessions. Nothing is waited for between two ticks, so one that is late says that the server was stopped.
    pub(super) async fn keep_time(self: Arc<Self>) {
        let mut last = Instant::now();
        let mut share = Share::default();
        let mut ending: Option<JoinHandle<()>> = None;
        loop {
            tokio::time::sleep(TICK).await;
            self.metrics.replace(&mut share, self.share());
            if self.uptime.tick(last.elapsed()) {
                self.members.everybody_seen();
            }
            last = Instant::now();
            if ending.as_ref().is_none_or(JoinHandle::is_finished) {
                let silent = self.members.expired().into_iter().map(|id| (id, Ends::Silent));
                let absent = self.overdue().into_iter().map(|id| (id, Ends::Unresponsive));
                let over: Vec<_> = silent.chain(absent).collect();
                ending = (!over.is_empty()).then(|| tokio::spawn(self.clone().end_all(over)));
            }
        }
    }

    /// Sessions of before the start that renew themselves, and for very long have not said what they hold: everybody waits for
    /// them.
    fn overdue(&self) -> BTreeSet<SessionId> {
        // Nor may one be ended that is not here and counts on the term of before.
        let now = self.uptime.get();
        if now < self.patience().max(self.told) {
            return BTreeSet::new();
        }
        let mut absent: BTreeSet<_> = match self.replaying.done_at() {
            // Nobody else is asked for anything yet.
            None => self.replaying.awaited(),
            Some(at) if now.saturating_sub(at) < self.patience() => return BTreeSet::new(),
            Some(_) => self.leasing.table().absent().chain(self.locks.absent()).collect(),
        };
        absent.retain(|id| !self.members.is_closed(*id));
        absent
    }

    async fn end_all(self: Arc<Self>, over: Vec<(SessionId, Ends)>) {
        for (id, why) in over {
            self.expire(id, why).await;
        }
    }

    /// When nobody counts any more on a term that was longer than it is now, the next start need not wait for it.
    pub(super) async fn forget_longer_term(self: Arc<Self>) {
        terms::forget_longer(self.engine.dir().to_owned(), self.told, self.term()).await;
    }

    /// Cuts the log whenever it has become too long.
    pub(super) async fn keep_log_short(self: Arc<Self>) {
        loop {
            tokio::time::sleep(TICK).await;
            if self.engine.failure().is_none() && self.engine.checkpoint_due() {
                let engine = self.engine.clone();
                match tokio::task::spawn_blocking(move || engine.checkpoint()).await {
                    Ok(Ok(())) => *self.trouble() = None,
                    Ok(Err(error)) => {
                        warn_rarely!(WARN_INTERVAL, %error, "a checkpoint has failed");
                        *self.trouble() = Some(error.to_string());
                    }
                    Err(error) => tracing::error!(%error, "a checkpoint has panicked"),
                }
            }
        }
    }
}
