//! Whether a caller may keep a set-group-id bit.
//!
//! When somebody sets an access control list on a file, the bit goes unless he is of the file's group or
//! has `CAP_FSETID`. The kernel would say which with an extension of `SETXATTR` that fuser cannot
//! decode; but the caller is blocked in its system call, and `/proc` shows what he is.

use std::fs;

/// The number of `CAP_FSETID`.
const CAP_FSETID: u32 = 4;

/// Whether the thread may keep the bit on a file of the group. Where that cannot be seen, it may
/// not: the bit can be set again, what it opens cannot be closed again.
pub(super) fn keeps_set_gid(tid: u32, group: u32) -> bool {
    fs::read_to_string(format!("/proc/{tid}/status")).is_ok_and(|s| allows(&s, group))
}

fn allows(status: &str, group: u32) -> bool {
    status.lines().any(|line| {
        let Some((key, value)) = line.split_once(':') else { return false };
        let mut words = value.split_whitespace();
        let is_group = |w: &str| w.parse() == Ok(group);
        match key {
            // Real, effective, saved, of the file system.
            "Gid" => words.nth(3).is_some_and(is_group),
            "Groups" => words.any(is_group),
            "CapEff" => words
                .next()
                .and_then(|w| u64::from_str_radix(w, 16).ok())
                .is_some_and(|caps| caps & (1 << CAP_FSETID) != 0),
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: &str = "Name:\tx\nUid:\t5\t5\t5\t5\nGid:\t1\t1\t1\t7\nGroups:\t20 30 \n\
                        CapEff:\t0000000000000000\n";

    #[test]
    fn members_may() {
        assert!(allows(USER, 7));
        assert!(allows(USER, 30));
        assert!(!allows(USER, 1));
        assert!(!allows(USER, 2));
    }

    #[test]
    fn the_capable_may() {
        assert!(allows("CapEff:\t0000000000000010\n", 9));
        assert!(!allows("CapEff:\t000001ffffffffef\n", 9));
        assert!(!allows("CapEff:\tzz\nGroups\nGid:\t1", 9));
    }

    #[test]
    fn who_cannot_be_seen_may_not() {
        assert!(!keeps_set_gid(u32::MAX, 0));
    }
}
