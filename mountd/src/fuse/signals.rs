//! Whether a thread is about to die of a signal, as `/proc/TID/status` shows it.

use std::fs;
use std::io;

/// What is known of a thread that waits for a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It lives, or nothing is known.
    Alive,
    /// A signal waits that it neither blocks nor ignores, and which does not end it.
    Signalled,
    /// A signal that it neither handles nor ignores waits to end it.
    Dying,
    /// It is no longer there.
    Gone,
}

/// The fate of a thread, by its number.
pub(super) fn fate(tid: u32) -> Fate {
    match fs::read_to_string(format!("/proc/{tid}/status")) {
        Ok(status) => signalled(&status),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ESRCH | libc::ENOENT)) => Fate::Gone,
        Err(e) if e.kind() == io::ErrorKind::NotFound => Fate::Gone,
        Err(_) => Fate::Alive,
    }
}

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Signals whose default action does not end the process.
const HARMLESS: u64 = bit(libc::SIGCHLD)
    | bit(libc::SIGURG)
    | bit(libc::SIGWINCH)
    | bit(libc::SIGCONT)
    | bit(libc::SIGSTOP)
    | bit(libc::SIGTSTP)
    | bit(libc::SIGTTIN)
    | bit(libc::SIGTTOU);

/// What the signals that wait for a thread do to it. Most calls on a local disk are interrupted only by one that kills, and
/// programs do not expect `EINTR` from `stat` or `rename`; waiting for a lock is interrupted by any.
fn signalled(status: &str) -> Fate {
    let (mut pending, mut unheard, mut survived) = (0, 0, HARMLESS);
    for line in status.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let mask = || u64::from_str_radix(value.trim(), 16).unwrap_or(0);
        match key {
            "SigPnd" | "ShdPnd" => pending |= mask(),
            "SigBlk" | "SigIgn" => unheard |= mask(),
            "SigCgt" => survived |= mask(),
            _ => {}
        }
    }
    // Nothing holds off SIGKILL, whatever the masks say.
    if pending & bit(libc::SIGKILL) != 0 || pending & !(unheard | survived) != 0 {
        Fate::Dying
    } else if pending & !unheard != 0 {
        Fate::Signalled
    } else {
        Fate::Alive
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pnd: u64, shd: u64, blk: u64, ign: u64, cgt: u64) -> String {
        format!(
            "Name:\tcat\nSigQ:\t0/7\nSigPnd:\t{pnd:016x}\nShdPnd:\t{shd:016x}\n\
             SigBlk:\t{blk:016x}\nSigIgn:\t{ign:016x}\nSigCgt:\t{cgt:016x}\nCapInh:\t0\n"
        )
    }

    fn is_dying(status: &str) -> bool {
        signalled(status) == Fate::Dying
    }

    #[test]
    fn a_signal_that_is_heard_and_survived_is_noticed() {
        let alarm = bit(libc::SIGALRM);
        assert_eq!(signalled(&status(0, alarm, 0, 0, alarm)), Fate::Signalled);
        assert_eq!(signalled(&status(0, alarm, alarm, 0, alarm)), Fate::Alive);
        assert_eq!(signalled(&status(0, alarm, 0, alarm, 0)), Fate::Alive);
        assert_eq!(signalled(&status(bit(libc::SIGTSTP), 0, 0, 0, 0)), Fate::Signalled);
    }

    #[test]
    fn nothing_pending_is_alive() {
        assert!(!is_dying(&status(0, 0, 0, 0, 0)));
    }

    #[test]
    fn a_kill_is_fatal_to_a_thread_and_to_a_process() {
        assert!(is_dying(&status(bit(libc::SIGKILL), 0, 0, 0, 0)));
        assert!(is_dying(&status(0, bit(libc::SIGKILL), u64::MAX, 0, 0)));
        assert!(is_dying(&status(0, bit(libc::SIGTERM), 0, 0, 0)));
    }

    #[test]
    fn blocked_ignored_and_handled_signals_are_not_fatal() {
        let term = bit(libc::SIGTERM);
        assert!(!is_dying(&status(0, term, term, 0, 0)));
        assert!(!is_dying(&status(0, term, 0, term, 0)));
        assert!(!is_dying(&status(0, term, 0, 0, term)));
    }

    #[test]
    fn signals_that_end_nothing_are_not_fatal() {
        assert!(!is_dying(&status(bit(libc::SIGCHLD), bit(libc::SIGTSTP), 0, 0, 0)));
    }

    #[test]
    fn garbage_is_no_reason_to_interrupt() {
        assert!(!is_dying("SigPnd:\tzz\nwhat"));
    }

    #[test]
    fn this_thread_lives_and_a_number_that_is_no_thread_is_gone() {
        assert_eq!(fate(std::process::id()), Fate::Alive);
        assert_eq!(fate(u32::MAX), Fate::Gone);
    }
}
