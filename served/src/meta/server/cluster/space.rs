//! How much room there is.

use std::time::{Duration, Instant};

use netfs_common::class::Class;
use netfs_common::errno::Errno;
use netfs_common::wire::data::Usage;

use super::{Cluster, Core};
use crate::meta::cluster::{Duty, Verdict};

/// After a start, figures are waited for at most this long.
const PATIENCE: Duration = Duration::from_secs(2);

impl Cluster {
    /// Space for a volume's data: what the servers have, divided by the number of copies that data has unless its directory says otherwise. The figures come with the signs of life.
    pub(in crate::meta::server) async fn usage(&self, volume: u64) -> Result<Usage, Errno> {
        let mut events = self.events();
        let limit = Instant::now() + PATIENCE;
        loop {
            events.borrow_and_update();
            if let Some(usage) = self.usage_now() {
                let copies = self.replicas(volume, Class::DEFAULT);
                return Ok(Usage {
                    capacity: usage.capacity / copies,
                    free: usage.free / copies,
                    live: usage.live / copies,
                    chunks: usage.chunks / copies,
                });
            }
            // There is an event at every tick.
            if Instant::now() >= limit || events.changed().await.is_err() {
                return Err(Errno::ETIMEDOUT);
            }
        }
    }

    /// Of all servers that answer; if none does, of all as they were last. `None`: none ever has.
    fn usage_now(&self) -> Option<Usage> {
        let mut core = self.lock();
        let now = self.now(&mut core);
        let Core { manager, figures, .. } = &*core;
        let (mut alive, mut known) = (None, None);
        for (id, server) in &manager.state().servers {
            let health = manager.health(*id, now);
            let (Some(report), Some(figures)) = (health.report, figures.get(id)) else { continue };
            let own = Usage {
                capacity: report.capacity,
                // Nothing new goes to one that is drained.
                free: if server.duty == Duty::In { report.free } else { 0 },
                live: figures.live,
                chunks: figures.chunks,
            };
            add(&mut known, own);
            if health.verdict != Verdict::Dead {
                add(&mut alive, own);
            }
        }
        alive.or(known)
    }
}

fn add(sum: &mut Option<Usage>, own: Usage) {
    let sum = sum.get_or_insert_default();
    sum.capacity = sum.capacity.saturating_add(own.capacity);
    sum.free = sum.free.saturating_add(own.free);
    sum.live = sum.live.saturating_add(own.live);
    sum.chunks = sum.chunks.saturating_add(own.chunks);
}
