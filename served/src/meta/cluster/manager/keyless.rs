//! Servers that have no key for an encrypted volume: they can neither store its chunks nor show them, and get none of its groups.

use std::collections::BTreeSet;

use netfs_common::id::ServerId;

use super::Manager;
use crate::meta::cluster::placement::Candidate;

impl Manager {
    /// Volumes with the servers that have no key for them, as far as is known.
    pub(super) fn keyless(&self) -> BTreeSet<(u64, ServerId)> {
        let reports = self.seen.iter().filter_map(|(id, seen)| Some((*id, seen.report.as_ref()?)));
        reports.flat_map(|(id, report)| report.locked.iter().map(move |of| (*of, id))).collect()
    }

    /// Whether a server can have chunks of a volume.
    pub(super) fn has_key(&self, server: ServerId, volume: u64) -> bool {
        let report = self.seen.get(&server).and_then(|seen| seen.report.as_ref());
        report.is_none_or(|report| !report.locked.contains(&volume))
    }
}

/// The servers that can have groups of a volume.
pub(super) fn able<'a>(
    servers: &[Candidate<'a>],
    volume: u64,
    keyless: &BTreeSet<(u64, ServerId)>,
) -> Vec<Candidate<'a>> {
    servers.iter().filter(|server| !keyless.contains(&(volume, server.id))).copied().collect()
}
