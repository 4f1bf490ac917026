//! The one ioctl that is understood: `XFS_IOC_GOINGDOWN`, by which file system tests pull the plug.

use std::fs;
use std::os::unix::fs::FileExt;

/// `XFS_IOC_GOINGDOWN`, `_IOR('X', 125, __u32)`.
pub(super) const GOINGDOWN: u32 = 0x8004_587d;

/// `XFS_FSOP_GOING_FLAGS_NOLOGFLUSH`: drop everything that is not synced.
const NO_LOG_FLUSH: u32 = 2;

/// Whether the caller wants what is buffered flushed first.
///
/// The command's number says that it only returns data, so the kernel does not pass the flags on.
/// But the caller is blocked in its system call: its arguments, and the word that the last of them
/// points to, can be read. Where they cannot, nothing is flushed, as in a crash.
pub(super) fn wants_flush(tid: u32) -> bool {
    flags_of(tid).is_some_and(|flags| flags != NO_LOG_FLUSH)
}

fn flags_of(tid: u32) -> Option<u32> {
    let call = fs::read_to_string(format!("/proc/{tid}/syscall")).ok()?;
    let address = argument_address(&call)?;
    let mut flags = [0; 4];
    fs::File::open(format!("/proc/{tid}/mem")).ok()?.read_exact_at(&mut flags, address).ok()?;
    Some(u32::from_ne_bytes(flags))
}

/// The third argument of an `ioctl` that is [`GOINGDOWN`], from a line of `/proc/TID/syscall`.
fn argument_address(call: &str) -> Option<u64> {
    let mut words = call.split_whitespace();
    let number: i64 = words.next()?.parse().ok()?;
    let mut arg = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
    let (_fd, command, address) = (arg()?, arg()?, arg()?);
    let same = number == libc::SYS_ioctl && command as u32 == GOINGDOWN;
    same.then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_the_flags_is_the_third_argument() {
        let line =
            format!("{} 0x3 0x8004587d 0x7ffd00001234 0x0 0x0 0x0 0x7ffd0 0x7f00", libc::SYS_ioctl);
        assert_eq!(argument_address(&line), Some(0x7ffd_0000_1234));
    }

    #[test]
    fn other_calls_are_not_taken_for_it() {
        assert_eq!(argument_address("running"), None);
        assert_eq!(argument_address("-1 0x0 0x0"), None);
        assert_eq!(argument_address("0 0x3 0x8004587d 0x1234 0x0 0x0 0x0 0x0 0x0"), None);
        let other = format!("{} 0x3 0x1 0x1234 0x0 0x0 0x0 0x0 0x0", libc::SYS_ioctl);
        assert_eq!(argument_address(&other), None);
    }
}
