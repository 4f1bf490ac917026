//! What the client may believe of its leases. A plain state machine without a clock.
//!
//! A grant comes with an answer, and answers and recalls overtake each other. So every question
//! takes a [`Ticket`] before it is sent. Its answer's grant counts only if nothing of the inode was
//! recalled since, and if the leases of that time were not dropped altogether. What the answer
//! shows is kept only if the grant counts: an answer without one shows what may be changed at any
//! moment, even if there still is a lease from before.

#[cfg(test)]
mod tests;

use netfs_common::wire::lease::Lease;

/// The counters of a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    /// Raised when all leases are dropped.
    epoch: u64,
    /// Raised with every recall.
    stamp: u64,
    /// The last recall, or change, of any inode that is not in the table any more.
    floor: u64,
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
        Ticket { epoch: self.epoch, stamp: self.stamp }
    }

    /// A stamp for what happens now: a recall, or the answer to a release. Tickets of before are
    /// not trusted with what it is put on.
    pub fn stamp(&mut self) -> u64 {
        self.stamp += 1;
        self.stamp
    }

    /// All leases are gone: the server has restarted, or could not be reached for too long, or
    /// there is a new session.
    pub fn drop_all(&mut self) {
        self.epoch += 1;
    }

    /// An inode leaves the table. Its recalls are remembered for all that are not in it, and so
    /// are the client's own changes: the versions that tell older answers leave with the inode.
    pub fn evicted(&mut self, held: &Held) {
        self.floor = self.floor.max(held.recalled).max(held.changed);
    }
}

/// The lease on one inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    mode: Option<Lease>,
    /// The epoch that `mode` is of.
    epoch: u64,
    /// The stamp of the last recall.
    recalled: u64,
    /// The stamp of the last change by this client.
    changed: u64,
    /// The server has been told that it is given up, and has not answered.
    releasing: bool,
}

impl Held {
    /// Of an inode that was not in the table.
    pub fn new(clock: &Clock) -> Held {
        Held { mode: None, epoch: clock.epoch, recalled: clock.floor, changed: 0, releasing: false }
    }

    /// What the client may do without asking, if it may at all rely on its session.
    pub fn mode(&self, clock: &Clock) -> Option<Lease> {
        self.mode.filter(|_| self.epoch == clock.epoch)
    }

    /// The answer to a question came with a grant. False if it came too late: then what it shows
    /// must not be kept.
    pub fn granted(&mut self, ticket: Ticket, clock: &Clock, lease: Lease) -> bool {
        if ticket.epoch != clock.epoch || ticket.stamp < self.recalled || self.releasing {
            return false;
        }
        self.mode = self.mode(clock).max(Some(lease));
        self.epoch = clock.epoch;
        true
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

    /// It is given up by itself: the server is being told. It may answer questions that were sent
    /// later first, so that no grant counts until it has answered this.
    pub fn release(&mut self, stamp: u64) {
        self.recalled(stamp, None);
        self.releasing = true;
    }

    /// The server knows that it was given up, or has forgotten.
    pub fn released(&mut self, stamp: u64) {
        self.recalled(stamp, None);
        self.releasing = false;
    }

    /// Whether the server is being told.
    pub fn is_releasing(&self) -> bool {
        self.releasing
    }
}
