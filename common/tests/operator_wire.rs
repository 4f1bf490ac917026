//! The bytes of operators' messages, pinned: a change of any of them is a change of protocol.

#![allow(clippy::unwrap_used, reason = "a failure is a panic here")]

use netfs_common::class::Class;
use netfs_common::codec;
use netfs_common::id::{Epoch, ServerId};
use netfs_common::wire::meta::{Request, Response};
use netfs_common::wire::operator::{
    AuditKind, AuditReport, AuditStep, Condition, Operation, Outcome, Redundancy, ServerLine,
};

fn pin<T>(value: &T, pinned: &str)
where
    T: bincode::Encode + bincode::Decode<()> + PartialEq + std::fmt::Debug,
{
    let bytes = codec::encode(value).unwrap();
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hex, pinned, "the wire form of {value:?} has changed");
    assert_eq!(&codec::decode::<T>(&bytes).unwrap(), value);
}

#[test]
fn operators() {
    pin(&Request::Operate(Operation::List), "1000");
    pin(&Request::Operate(Operation::Add(vec!["h:1".into()])), "10010103683a31");
    pin(&Request::Operate(Operation::Drain(ServerId(2))), "100202");
    pin(&Request::Operate(Operation::Remove(ServerId(2))), "100302");
    pin(&Request::Operate(Operation::Rebalance), "1004");
    let replicas = Operation::Replicas { volume: "v".into(), replicas: 3, min: Some(2) };
    pin(&Request::Operate(replicas), "10050176030102");
    let give_up =
        Operation::GiveUp { server: ServerId(2), with: Some(ServerId(3)), lose_data: true };
    pin(&Request::Operate(give_up), "100602010301");
    pin(&Request::Operate(Operation::Audit(AuditStep::Begin { dry_run: true })), "10070001");
    pin(&Request::Operate(Operation::Audit(AuditStep::Look)), "100701");
    let class = Class::with_replicas(5).unwrap();
    let of_class = Operation::ClassReplicas { volume: "v".into(), class, replicas: 3 };
    pin(&Request::Operate(of_class), "100801760503");
    let kind = AuditKind { what: "k".into(), found: 5, mended: 6, names: vec!["n".into()] };
    let report = AuditReport {
        number: 1,
        running: true,
        dry_run: false,
        stage: "s".into(),
        servers: 2,
        chunks: 3,
        files: 4,
        kinds: vec![kind],
        unfinished: vec!["u".into()],
        notes: vec!["o".into()],
    };
    let pinned = "0c03010100017302030401016b050601016e01017501016f";
    pin(&Response::Operated(Outcome::Audit(Box::new(report))), pinned);
    pin(&Response::Operated(Outcome::Done("ok".into())), "0c01026f6b");
    pin(&Response::Operated(Outcome::Refused("no".into())), "0c02026e6f");
    pin(&Response::Operated(Outcome::Underway("so".into())), "0c0402736f");
    let line = ServerLine {
        id: ServerId(1),
        addrs: vec!["h:1".into()],
        condition: Condition::Suspect,
        silent_ms: Some(5),
        draining: true,
        full: false,
        domain: "d".into(),
        capacity: 6,
        live: 7,
        free: 8,
        head: 9,
        replica: 10,
        learner: 11,
        version: Epoch(12),
        damaged: 13,
        mended: 14,
        weight: 15,
        share_percent: 16,
        load_milli: 17,
        call_us: 18,
        tier: None,
    };
    let pinned = "0c0001010103683a3101010501000164060708090a0b0c0d0e0f10111200";
    pin(&Response::Operated(Outcome::Servers(vec![line])), pinned);
    let redundancy = Redundancy {
        replicas: 1,
        min_replicas: 2,
        groups: 3,
        full: 4,
        degraded: 5,
        missing: 6,
        waiting: 7,
        unavailable: 8,
        repairing: 9,
        lacking: 10,
    };
    pin(&redundancy, "0102030405060708090a");
}
