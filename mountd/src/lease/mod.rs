//! What the client may believe of its leases. A plain state machine that knows no time.
//!
//! A grant comes with an answer, and answers and recalls overtake each other. So every question
//! takes a [`Ticket`] before it is sent. Its answer's grant counts only if nothing of the inode was
//! recalled since, and if the leases of that time were not dropped altogether. What the answer
//! shows may be served only if the grant counts: an answer without one shows what may be changed at any
//! moment.

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};

use netfs_common::wire::lease::Lease;

/// The counters of a mount.
#[derive(Debug, Default)]
pub struct Clock {
    /// Raised when all leases are dropped.
    epoch: AtomicU64,
    /// Raised with every recall, and every change by this client.
    stamp: AtomicU64,
    /// The last recall, or change, of any inode that is not in the table any more.
    floor: AtomicU64,
}

/// When a question was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    epoch: u64,
    stamp: u64,
}

impl Clock {
    /// To be taken before a question is sent.
    pub fn ticket(&self) -> Ticket {
        let epoch = self.epoch.load(Ordering::SeqCst);
        Ticket { epoch, stamp: self.stamp.load(Ordering::SeqCst) }
    }

    /// A number never given before, for what happens now. Tickets of before are not trusted with what it is put on.
    pub fn stamp(&self) -> u64 {
        self.stamp.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// The present epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// All leases are about to be dropped: the server has restarted, or could not be reached for too long, or
    /// there is a new session. Answers to what was asked before no longer count.
    pub fn drop_all(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// An inode leaves the table. Its recalls are remembered for all that are not in it, and so
    /// are the client's own changes: the versions that tell older answers leave with the inode. The
    /// server goes on counting the lease, and a recall of it is answered at once.
    pub fn evicted(&self, held: &Held) {
        self.floor.fetch_max(held.recalled.max(held.changed), Ordering::SeqCst);
    }
}

/// The lease on one inode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    mode: Option<Lease>,
    /// The stamp of the last recall.
    recalled: u64,
    /// The stamp of the last change by this client.
    changed: u64,
}

impl Held {
    /// Of an inode that was not in the table.
    pub fn new(clock: &Clock) -> Held {
        Held { recalled: clock.floor.load(Ordering::SeqCst), ..Held::default() }
    }

    /// What the client may do without asking, if it may at all rely on its session.
    pub fn mode(&self) -> Option<Lease> {
        self.mode
    }

    /// It is held for writing.
    pub fn writes(&self) -> bool {
        self.mode == Some(Lease::Write)
    }

    /// The stamp of the last recall.
    pub fn last_recall(&self) -> u64 {
        self.recalled
    }

    /// Nothing of the inode was recalled since the question, and not all leases were dropped.
    pub fn in_time(&self, ticket: Ticket, clock: &Clock) -> bool {
        ticket.epoch == clock.epoch() && self.recalled <= ticket.stamp
    }

    /// The answer to a question has come, perhaps with a grant. Returns whether what it shows may be served from now on: if the
    /// grant counts, or if nobody else can change the inode anyway. While a write lease is being taken back the server grants
    /// nothing, and what is buffered must still be sent.
    pub fn answered(&mut self, ticket: Ticket, clock: &Clock, grant: Option<Lease>) -> bool {
        if !self.in_time(ticket, clock) {
            return false;
        }
        let alone = self.writes();
        self.mode = self.mode.max(grant);
        alone || grant.is_some()
    }

    /// Some of it is taken back. To be called when what was buffered has been sent and answered,
    /// and before the recall is.
    pub fn recalled(&mut self, stamp: u64, keep: Option<Lease>) {
        self.recalled = self.recalled.max(stamp);
        self.mode = self.mode.min(keep);
    }

    /// A change by this client was answered. Questions from before may be answered with what was.
    /// As long as the inode is in the table, versions tell.
    pub fn changed(&mut self, stamp: u64) {
        self.changed = self.changed.max(stamp);
    }

    /// All leases are dropped. With `unsent` data and no end of the session a write lease remains: under it the data is sent
    /// before it is given back in order, although nothing may be served.
    pub fn dropped(&mut self, unsent: bool) {
        self.mode = self.mode.filter(|mode| unsent && *mode == Lease::Write);
    }

    /// A restarted server has given it back.
    pub fn reclaimed(&mut self, lease: Lease) {
        self.mode = Some(lease);
    }
}
