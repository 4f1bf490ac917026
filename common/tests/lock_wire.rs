//! The bytes of the messages about locks, pinned as in `wire_fixtures`.

#![allow(clippy::unwrap_used, reason = "a failure is a panic here")]

use netfs_common::codec;
use netfs_common::id::Ino;
use netfs_common::locks::{LockKind, LockMode, LockRange};
use netfs_common::wire::lock::{LockCall, LockConflict, LockHeld, LockOn, LockReply, WaitId};

fn pin<T>(value: &T, pinned: &str)
where
    T: bincode::Encode + bincode::Decode<()> + PartialEq + std::fmt::Debug,
{
    let bytes = codec::encode(value).unwrap();
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hex, pinned, "the wire form of {value:?} has changed");
    assert_eq!(&codec::decode::<T>(&bytes).unwrap(), value);
}

fn held() -> LockHeld {
    let on = LockOn { ino: Ino(7), kind: LockKind::Ofd, owner: 8 };
    LockHeld { on, range: LockRange { start: 1, end: 2 }, mode: LockMode::Write, pid: 9 }
}

#[test]
fn calls_are_pinned() {
    let (lock, on) = (held(), held().on);
    pin(&LockCall::Set { lock, wait: None }, "000701080102010900");
    pin(&LockCall::Set { lock, wait: Some(WaitId(3)) }, "00070108010201090103");
    pin(&LockCall::Clear { on, range: LockRange::ALL }, "0107010800fdffffffffffffffff");
    pin(&LockCall::Test { lock }, "0207010801020109");
    pin(&LockCall::Withdraw { wait: WaitId(4) }, "0304");
    pin(&LockCall::Await { received: vec![WaitId(5), WaitId(6)] }, "04020506");
    pin(&LockCall::Reclaim { batch: 1, locks: vec![lock], last: true }, "0501010701080102010901");
}

#[test]
fn answers_are_pinned() {
    pin(&LockReply::Granted, "00");
    let LockHeld { range, mode, pid, .. } = held();
    pin(
        &LockReply::Conflict(LockConflict { kind: LockKind::Flock, range, mode, pid }),
        "010201020109",
    );
    pin(&LockReply::Queued, "02");
    pin(&LockReply::Grace, "03");
    pin(&LockReply::Withdrawn { waiting: true }, "0401");
    pin(&LockReply::Grants(vec![WaitId(5)]), "050105");
    pin(&LockReply::Refused(vec![2, 3]), "06020203");
}
