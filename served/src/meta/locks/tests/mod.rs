//! The classic cases one by one, and a comparison with the plainest model there is.

mod cases;
mod model;
mod restart;

use super::*;

const MANY: LockLimits = LockLimits { ranges: 1000, waiting: 1000 };

fn session(n: u64) -> SessionId {
    SessionId(n)
}

fn lock(kind: LockKind, owner: u64, (start, end): (u64, u64), mode: LockMode) -> LockHeld {
    let on = LockOn { ino: Ino(7), kind, owner };
    LockHeld { on, range: LockRange { start, end }, mode, pid: owner as u32 }
}

/// A process's lock.
fn posix(owner: u64, range: (u64, u64), mode: LockMode) -> LockHeld {
    lock(LockKind::Posix, owner, range, mode)
}

fn flock(owner: u64, mode: LockMode) -> LockHeld {
    lock(LockKind::Flock, owner, (0, 0), mode)
}

fn is_conflict(outcome: Result<Outcome, Errno>) -> bool {
    matches!(outcome, Ok(Outcome::Conflict(_)))
}
