//! What becomes of data servers, for the log.

use std::collections::BTreeMap;
use std::time::Duration;

use netfs_common::id::ServerId;

use crate::meta::cluster::{Manager, Verdict};

/// What was said last of each server. Suspicions come and go, and are not told.
#[derive(Debug, Default)]
pub(super) struct Journal(BTreeMap<ServerId, bool>);

impl Journal {
    /// Says what has changed.
    pub(super) fn follow(&mut self, manager: &Manager, now: Duration) {
        let servers = &manager.state().servers;
        for (id, known) in servers {
            let answers = match manager.verdict(*id, now) {
                Verdict::Alive => true,
                Verdict::Dead => false,
                Verdict::Suspect => continue,
            };
            let address = known.addrs.join(",");
            match (self.0.insert(*id, answers), answers) {
                (Some(before), now) if before == now => {}
                (_, true) => tracing::info!(server = %id, address, "a data server answers"),
                (_, false) => tracing::warn!(
                    server = %id,
                    address,
                    "a data server does not answer; others go on in its place where there are any"
                ),
            }
        }
        self.0.retain(|id, _| {
            let stays = servers.contains_key(id);
            if !stays {
                tracing::info!(server = %id, "a data server is forgotten");
            }
            stays
        });
    }
}
