//! For how long a session may be relied upon without hearing of the server.
//!
//! A session that sends no sign of life for its term is ended by the server, which then lets
//! others in. The client counts from the moment at which it *sent* the last sign that was answered,
//! which is earlier than any moment at which the server can have begun to count, and stops well
//! before the end: the clocks need not run at the same speed.

use std::time::Duration;

/// The longest time between two looks at the clock: a machine that was asleep notices within it.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// The time since the machine was started, while it was asleep included.
pub(crate) fn since_boot() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer leads to a `timespec` of ours; this clock exists on every Linux that runs
    // this program, so that the call cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    let secs = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(secs, u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// What a look at the clock says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Look again after so long.
    Again(Duration),
    /// The session has just lapsed.
    Lapsed,
}

/// The signs of life of a session.
#[derive(Debug)]
pub struct Term {
    answered: Duration,
    lapsed: bool,
}

impl Term {
    /// A session whose greeting was sent at a time.
    pub fn new(sent: Duration) -> Term {
        Term { answered: sent, lapsed: false }
    }

    /// A sign of life that was sent at a time has been answered.
    pub fn answered(&mut self, sent: Duration) {
        self.answered = self.answered.max(sent);
    }

    /// There is a new connection, whose greeting was sent at a time.
    pub fn begin_anew(&mut self, sent: Duration) {
        *self = Term::new(sent);
    }

    /// Until when the session may be relied upon.
    pub fn until(&self, term: Duration) -> Duration {
        if self.lapsed { Duration::ZERO } else { self.answered + term / 3 * 2 }
    }

    /// Looks at the clock. A session lapses after two thirds of its term, once.
    pub fn look(&mut self, now: Duration, term: Duration) -> Look {
        let left = (self.answered + term / 3 * 2).saturating_sub(now);
        if self.lapsed || !left.is_zero() {
            let pause = if self.lapsed { MAX_PAUSE } else { left };
            return Look::Again(pause.clamp(Duration::from_millis(1), MAX_PAUSE));
        }
        self.lapsed = true;
        Look::Lapsed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_lapses_once_and_before_its_term() {
        let s = Duration::from_secs;
        let mut term = Term::new(s(100));
        assert_eq!(term.look(s(100), s(30)), Look::Again(s(1)));
        term.answered(s(110));
        term.answered(s(105));
        assert_eq!(term.look(s(129), s(30)), Look::Again(s(1)));
        assert_eq!(term.look(s(130), s(30)), Look::Lapsed);
        assert_eq!(term.look(s(131), s(30)), Look::Again(s(1)));
        term.begin_anew(s(140));
        assert_eq!(term.look(s(141), s(30)), Look::Again(s(1)));
        assert_eq!(term.look(s(160), s(30)), Look::Lapsed);
    }

    #[test]
    fn the_clock_runs() {
        let before = since_boot();
        assert!(before > Duration::ZERO && since_boot() >= before);
    }
}
