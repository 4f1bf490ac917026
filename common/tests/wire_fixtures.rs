//! The bytes of the wire messages, pinned: a change of any of them is a change of protocol.
//!
//! To change a message, raise `wire::PROTOCOL`, keep decoding the old form for as long as the
//! range in `Hello` promises it, and add new fixtures beside these.

#![allow(clippy::unwrap_used, reason = "a failure is a panic here")]

use netfs_common::attr::{Attr, FileKind, SetAttr, SetTime, Timestamp};
use netfs_common::class::Class;
use netfs_common::codec;
use netfs_common::errno::Errno;
use netfs_common::id::*;
use netfs_common::map::{Chain, ClusterMap, DataServer, Pool, Replica, TierMode};
use netfs_common::name::Name;
use netfs_common::wire::lease::{Grant, Lease, Names, Recall, Scope};
use netfs_common::wire::{
    Claim, Hello, HelloReply, Role, audit, cluster, data,
    hello::{Lost, VolumeInfo},
    meta,
};

fn name(s: &str) -> Name {
    Name::new(s).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn attr() -> Attr {
    let t = Timestamp { secs: 1_700_000_000, nanos: 5 };
    Attr {
        ino: Ino(42),
        kind: FileKind::File,
        perm: 0o644,
        nlink: 1,
        uid: 1000,
        gid: 100,
        rdev: 0,
        size: 300,
        allocated: 512,
        atime: t,
        mtime: t,
        ctime: t,
        btime: t,
        generation: 2,
        chunk_bits: 22,
        inline: true,
        has_xattrs: false,
        parent: Ino(0),
        version: 99,
    }
}

/// Encodes, compares with the pinned bytes, decodes, compares with the value.
fn pin<T>(value: &T, pinned: &str)
where
    T: bincode::Encode + bincode::Decode<()> + PartialEq + std::fmt::Debug,
{
    let bytes = codec::encode(value).unwrap();
    assert_eq!(hex(&bytes), pinned, "the wire form of {value:?} has changed");
    assert_eq!(&codec::decode::<T>(&bytes).unwrap(), value);
}

#[test]
fn hello_is_pinned() {
    let hello = Hello {
        protocol: (2, 2),
        features: 0,
        role: Role::Data,
        volume: "v".into(),
        session: SessionId(7),
        claim: Claim::Resume,
        instance: InstanceId(8),
        client: "h:/mnt".into(),
    };
    pin(&hello, "020200010176070108 06683a2f6d6e74".replace(' ', "").as_str());
    let reply = HelloReply {
        protocol: 2,
        features: 0,
        cluster: ClusterId([1; 16]),
        instance: InstanceId(9),
        volume: Some(VolumeInfo {
            id: 5,
            inline_limit: 16384,
            map: ClusterMap {
                version: Epoch(1),
                servers: vec![DataServer { id: ServerId(1), addrs: vec!["a:1".into()] }],
                pools: vec![Pool {
                    coding: Default::default(),
                    volume: 0,
                    class: Class::DEFAULT,
                    first: GroupId(0),
                    min_replicas: 1,
                    chains: vec![Chain {
                        epoch: Epoch(2),
                        verifier: Verifier(3),
                        replicas: vec![Replica { server: ServerId(1), instance: InstanceId(9) }],
                        learner: None,
                    }],
                    tier: TierMode::Cold,
                }],
            },
            resumed: false,
            others: true,
            time: Timestamp { secs: 3, nanos: 4 },
            term_ms: 30000,
            lost: vec![Lost { after: LogIndex(4), before: LogIndex(9) }],
        }),
    };
    let ones = "01".repeat(16);
    pin(
        &reply,
        &format!(
            "0200{ones}090105fb0040010101 0103613a31 01000000010000010203010109000100010604fb3075010409"
        )
        .replace(' ', ""),
    );
}

#[test]
fn metadata_requests_are_pinned() {
    pin(
        &meta::Request::Lookup { parent: Ino(1), name: name("a") },
        "0001 0161".replace(' ', "").as_str(),
    );
    pin(&meta::Request::Get { ino: Ino(300) }, "01fb2c01");
    pin(&meta::Request::ReadDir { ino: Ino(1), after: 2, limit: 3, plus: true }, "0301020301");
    pin(&meta::Request::Sync, "07");
    let create = meta::Request::Mutate(meta::Mutation {
        seq: OpSeq(3),
        answered: OpSeq(2),
        time: Timestamp { secs: 1, nanos: 2 },
        sync: false,
        op: meta::Op::Create {
            parent: Ino(1),
            name: name("f"),
            new: meta::NewInode::File,
            perm: 0o644,
            umask: 0o22,
            uid: 0,
            gid: 0,
        },
    });
    pin(&create, "0903020202000001016600fba401120000");
    let set = meta::Op::SetAttr {
        ino: Ino(2),
        set: SetAttr { size: Some(5), mtime: Some(SetTime::Now), ..SetAttr::default() },
    };
    pin(&set, "0502000000010500 0100".replace(' ', "").as_str());
}

#[test]
fn metadata_replies_are_pinned() {
    let reply: meta::Reply = Ok(meta::Response::Entry { attr: attr(), inline: Some(vec![1, 2]) });
    pin(
        &reply,
        "00002a00fba40101fbe8036400fb2c01fb0002fc00e2a7ca05fc00e2a7ca05fc00e2a7ca05fc00e2a7ca0502160100006301020102",
    );
    pin::<meta::Reply>(&Err(Errno::ENOENT), "0104");
    let grants = vec![
        Grant { ino: Ino(1), lease: Lease::Read, tail_known: false },
        Grant { ino: Ino(42), lease: Lease::Write, tail_known: true },
    ];
    let (at, durable) = (LogIndex(7), LogIndex(5));
    pin(&meta::Answer { reply: Err(Errno::ENOENT), grants, at, durable }, "0104020100002a01010705");
    pin(&meta::Response::Replayed { lost: vec![LogIndex(7)] }, "0b0107");
}

#[test]
fn messages_about_leases_are_pinned() {
    pin(&meta::Request::Acquire { ino: Ino(42) }, "0b2a");
    let replayed = meta::Replayed {
        at: LogIndex(7),
        seq: OpSeq(3),
        time: Timestamp { secs: 1, nanos: 2 },
        target: Some((Ino(42), 5)),
        op: meta::Op::Forget { inos: vec![Ino(1)] },
    };
    pin(
        &meta::Request::Replay { changes: vec![replayed], done: true },
        "0f010703020201 2a05 0b01 0101".replace(' ', "").as_str(),
    );
    let leases = vec![(Ino(1), Lease::Read), (Ino(42), Lease::Write)];
    pin(&meta::Request::Reclaim { leases, done: true }, "0c0201002a0101");
    let recalls = vec![
        Recall { ino: Ino(1), keep: Some(Lease::Read), stale: Scope::name(name("a")) },
        Recall { ino: Ino(42), keep: None, stale: Scope::all() },
        Recall {
            ino: Ino(7),
            keep: Some(Lease::Write),
            stale: Scope { xattrs: true, names: Names::None, ..Scope::default() },
        },
    ];
    pin(
        &meta::Push::Recall(recalls),
        "0103010100010000010101612a0001010100fdffffffffffffffff0207010100010000",
    );
    pin(&meta::Push::Company { generation: 3, others: true }, "000301");
    pin(&meta::Push::Orphans(vec![Ino(7), Ino(300)]), "030207fb2c01");
    pin(&meta::PushReply::Done, "00");
}

#[test]
fn what_is_told_of_leases_is_pinned() {
    use netfs_common::wire::insight::*;
    use netfs_common::wire::lease::Lease;
    pin(&About::Inode(Ino(300)), "00fb2c01");
    pin(&About::Name { parent: Ino(1), name: name("f") }, "01010166");
    pin(&About::Volume, "02");
    let client =
        Client { description: "h:/m".into(), you: true, connected: false, silent_ms: 5, leases: 3 };
    pin(&client, "04683a2f6d01000503");
    pin(&Holder { client: 1, lease: Lease::Write }, "0101");
    pin(&Waiter { client: 1, wish: Wish::Look, waits_ms: 300, on: vec![] }, "0100fb2c0100");
    pin(&Unanswered { client: 1, keep: Some(Lease::Read), age_ms: Some(7) }, "0101000107");
    let past = PastWait {
        client: 1,
        wish: Wish::Take,
        waited_us: 1500,
        ago_ms: 5,
        on: vec![9],
        served: true,
    };
    pin(&past, "0102fbdc0505010901");
    pin(&VolumeLeases::default(), "00000000000000");
}

#[test]
fn data_messages_are_pinned() {
    let chunk = ChunkId { ino: Ino(42), generation: 1, index: 3 };
    let write = data::Request {
        at: data::At::Group { group: GroupId(0), epoch: Epoch(1) },
        op: data::Op::Write { chunk, offset: 4096 },
    };
    pin(&write, "010001002a0103fb0010");
    pin(&data::Reply::Written { verifier: Verifier(9), allocated: -1 }, "000901");
    pin(&data::Reply::Failed(Errno::ENOSPC), "0838");
    let span = data::Span { ino: Ino(42), generation: 1, chunk_bits: 22, from: 5, to: 1 << 44 };
    pin(&data::Op::Extents { span, limit: 16 }, "052a011605fd000000000010000010");
    pin(&data::Op::PunchSpan { span }, "082a011605fd0000000000100000");
    let extents = data::Reply::Extents { extents: vec![(0, 1), (300, 302)], upto: 1 << 44 };
    pin(&extents, "02020001fb2c01fb2e01fd0000000000100000");
    pin(&data::Op::Fence { session: SessionId(7) }, "0907");
    pin(&data::Reply::Fenced, "0a");
    pin(&data::Reply::SessionOver, "0b");
    pin(&data::Reply::Punched { allocated: -1, upto: 6 }, "090106");
    pin(&data::Op::Flush { groups: vec![(GroupId(7), Epoch(2))] }, "06010702");
    pin(&data::Reply::Flushed { verifiers: vec![Verifier(9)] }, "030109");
    pin(&data::Reply::Busy, "06");
    pin(&data::Op::Delete { first: chunk }, "032a0103");
    pin(&data::Reply::Deleted { instance: InstanceId(9), freed: 5 }, "0c0905");
    pin(&data::Reply::FlushedHere { instance: InstanceId(9) }, "0d09");
}

#[test]
fn messages_of_chains_are_pinned() {
    let chunk = ChunkId { ino: Ino(42), generation: 1, index: 3 };
    let forward = cluster::Forward {
        floor: Version(1),
        after: Version(2),
        id: Version(3),
        chunk,
        deed: cluster::Deed::Write { offset: 5 },
    };
    pin(&cluster::PeerOp::Forward(forward), "010102032a01030005");
    let install = cluster::Install { chunk, first: true, version: Version(4), offset: 9 };
    pin(&cluster::PeerOp::Install(install), "022a0103010409");
    pin(&cluster::PeerOp::List { from: chunk }, "032a0103");
    pin(&cluster::PeerOp::Fetch { chunk, offset: 1, len: 2 }, "042a01030102");
    pin(&cluster::PeerOp::FlushGroups(vec![(GroupId(7), Epoch(2))]), "05010702");
    let inventory = audit::AuditOp::Inventory { from: chunk, limit: 5 };
    pin(&cluster::PeerOp::Audit(inventory), "06002a010305");
    let holdings = audit::AuditOp::Holdings { from: GroupId(7) };
    pin(&cluster::PeerOp::Audit(holdings), "060107");
    let sweep = audit::AuditOp::Sweep { groups: vec![(GroupId(7), Epoch(2))], from: chunk };
    pin(&cluster::PeerOp::Audit(sweep), "0602010702 2a0103".replace(' ', "").as_str());
    let after = Some((chunk, Version(5)));
    let seed = audit::AuditOp::Seed { group: GroupId(7), epoch: Epoch(2), after };
    pin(&cluster::PeerOp::Audit(seed), "0603070201 2a010305".replace(' ', "").as_str());
    let seeded = audit::Seeded { chunks: 1, bytes: 2, kept: 3, bad: 4 };
    let seeded = audit::AuditReply::Seeded { seeded, next: None };
    pin(&data::Reply::Audited(seeded), "12020102030400");
    let trouble = audit::Unseeded::Trouble("x".into());
    pin(&data::Reply::Audited(audit::AuditReply::NotSeeded(trouble)), "1203010178");
    let holding = audit::Holding { group: GroupId(7), chunks: 3, newest: Version(4) };
    let held = audit::AuditReply::Holdings { groups: vec![holding], next: None };
    pin(&data::Reply::Audited(held), "12000107030400");
    let swept = audit::AuditReply::Swept { chunks: 1, bytes: 2, next: Some(chunk) };
    pin(&data::Reply::Audited(swept), "12010102012a0103");
    pin(&data::Reply::Stored { full: true }, "0f01");
    let listed = data::Reply::Listed { chunks: vec![(chunk, Version(3))], next: None };
    pin(&listed, "11012a01030300");
    let beat = cluster::Beat {
        server: ServerId(1),
        echo: Some(2),
        lease_ms: 3,
        version: Epoch(4),
        revoke: vec![(GroupId(5), Epoch(6))],
        hand_over: vec![(GroupId(9), Epoch(10))],
        hold_ms: 7,
        stall_ms: 8,
        owner: [9; 16],
    };
    let pinned = format!("00010102030401050601090a0708{}", "09".repeat(16));
    pin(&cluster::PeerOp::Beat(beat), &pinned);
}

#[test]
fn names_from_the_network_obey_the_rules() {
    for bad in ["", ".", "..", "a/b", "a\0b", &"x".repeat(256)] {
        let mut bytes = vec![0, 1];
        bytes.extend(codec::encode(&bad.as_bytes().to_vec()).unwrap());
        assert!(codec::decode::<meta::Request>(&bytes).is_err(), "{bad:?} was taken as a name");
    }
}

#[test]
fn a_length_that_lies_allocates_nothing() {
    // A byte vector that claims 2^60 bytes.
    let mut bytes = vec![2, 0xfd];
    bytes.extend((1u64 << 60).to_le_bytes());
    assert!(codec::decode::<meta::Response>(&bytes).is_err());
    assert!(codec::decode::<Vec<u8>>(&bytes[1..]).is_err());
}
