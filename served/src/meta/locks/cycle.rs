//! Whether somebody who begins to wait would wait for himself.
//!
//! Only processes are looked at (`fcntl` locks), as in Linux: an open file description belongs to nobody in
//! particular. A process counts as waiting although another of its threads might go on and unlock, as in Linux too.

use std::collections::HashSet;

use netfs_common::locks::LockKind;
use netfs_common::wire::lock::LockHeld;

use super::{Locks, Owner, Place};

impl Locks {
    pub(super) fn would_wait_for_itself(&self, at: Place, owner: Owner, lock: &LockHeld) -> bool {
        let Some(file) = self.files.get(&at) else { return false };
        let process = |owner: &Owner| owner.kind == LockKind::Posix;
        let first = file.blockers(owner, lock.range, lock.mode).map(|blocker| blocker.owner);
        let mut next: Vec<Owner> = first.filter(process).collect();
        let mut seen: HashSet<Owner> = next.iter().copied().collect();
        while let Some(other) = next.pop() {
            for (at, wait) in self.blocked.get(&other).into_iter().flatten() {
                let Some(file) = self.files.get(at) else { continue };
                let Some(waiter) = file.waiter(other.session, *wait) else { continue };
                for blocker in file.blockers(other, waiter.range, waiter.mode) {
                    if blocker.owner == owner {
                        return true;
                    }
                    if process(&blocker.owner) && seen.insert(blocker.owner) {
                        next.push(blocker.owner);
                    }
                }
            }
        }
        false
    }
}
