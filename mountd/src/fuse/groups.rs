//! What a caller may do that its request does not say: keep a set-group-id bit, administer.
//!
//! When somebody sets an access control list on a file, the bit goes unless he is of the file's group or
//! has `CAP_FSETID`. The kernel would say which with an extension of `SETXATTR` that fuser cannot
//! decode; but the caller is blocked in its system call, and `/proc` shows what he is. And since
//! mounts can be id-mapped, the kernel names the caller's user only where something is created.

use std::fs;

use crate::vfs::Caller;

/// The user of requests that create nothing, on mounts that can be id-mapped.
const UNNAMED: u32 = u32::MAX;
/// The number of `CAP_FSETID`.
const CAP_FSETID: u32 = 4;
/// The number of `CAP_SYS_ADMIN`.
const CAP_SYS_ADMIN: u32 = 21;

/// A caller with its user, also where the request does not name it. Where that cannot be seen either, it is nobody's.
pub(super) fn with_user(caller: Caller) -> Caller {
    if caller.uid != UNNAMED {
        return caller;
    }
    let status = fs::read_to_string(format!("/proc/{}/status", caller.pid));
    let uid = status.ok().and_then(|status| user(&status)).unwrap_or(UNNAMED);
    Caller { uid, ..caller }
}

/// As whom a thread uses file systems.
fn user(status: &str) -> Option<u32> {
    let words = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    // Real, effective, saved, of the file system.
    words.split_whitespace().nth(3)?.parse().ok()
}

/// Whether the thread may administer the system. Where that cannot be seen, it may not.
pub(super) fn administers(tid: u32) -> bool {
    fs::read_to_string(format!("/proc/{tid}/status"))
        .is_ok_and(|s| s.lines().any(|line| has(line, CAP_SYS_ADMIN)))
}

/// Whether a line of `/proc/TID/status` says that the thread has a capability.
fn has(line: &str, capability: u32) -> bool {
    let mask = line.strip_prefix("CapEff:").map(|m| u64::from_str_radix(m.trim(), 16));
    matches!(mask, Some(Ok(m)) if m & (1 << capability) != 0)
}

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
            "CapEff" => has(line, CAP_FSETID),
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: &str = "Name:\tx\nUid:\t5\t5\t5\t8\nGid:\t1\t1\t1\t7\nGroups:\t20 30 \n\
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
    fn administrators_have_a_capability() {
        assert!(has("CapEff:\t000001fffeffffff", CAP_SYS_ADMIN));
        assert!(!has("CapEff:\t000001ffffdfffff", CAP_SYS_ADMIN));
        assert!(!has("CapPrm:\t000001ffffffffff", CAP_SYS_ADMIN));
    }

    #[test]
    fn a_thread_uses_file_systems_as_its_user_for_that() {
        assert_eq!(user(USER), Some(8));
        assert_eq!(user("Uid:\t5\t5\n"), None);
        assert_eq!(user("Gid:\t5\t5\t5\t5\n"), None);
        let caller = Caller { uid: 7, ..Caller::default() };
        assert_eq!(with_user(caller).uid, 7);
        let (uid, pid) = (UNNAMED, std::process::id());
        assert_ne!(with_user(Caller { uid, pid, ..caller }).uid, UNNAMED);
    }

    #[test]
    fn who_cannot_be_seen_may_not() {
        let caller = Caller { uid: UNNAMED, pid: u32::MAX, ..Caller::default() };
        assert_eq!(with_user(caller).uid, UNNAMED);
        assert!(!administers(u32::MAX));
        assert!(!keeps_set_gid(u32::MAX, 0));
    }
}
