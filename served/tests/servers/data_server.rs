//! A data server over loopback, driven with raw calls.

use bytes::Bytes;
use netfs_common::codec;
use netfs_common::errno::Errno;
use netfs_common::id::{Epoch, GroupId, Ino, SessionId};
use netfs_common::net::{BulkMessage, CallError};
use netfs_common::wire::data::{At, Op, Reply, Request, Span};
use netfs_common::wire::hello::SESSION_OVER;
use netfs_common::wire::{Hello, PROTOCOL, Role};
use netfs_served::data::server::{DataOptions, DataServer};
use netfs_served::data::store::SegmentStore;
use netfs_served::thread::Ending;
use std::time::Instant;

use crate::common::{
    DataClient, PATIENCE, chunk, dialer, hello, localhost, make_pki, map_of_one, serve_alone,
};

#[tokio::test]
async fn what_is_written_is_read_back_after_a_restart_in_another_life() {
    let dir = tempfile::tempdir().unwrap();
    let pki = make_pki(dir.path());
    let options = || DataOptions::new(dir.path().join("data"), localhost(), pki.server.clone());
    let big: Vec<u8> = (0..4u32 << 20).map(|i| (i / 7) as u8).collect();

    let server = DataServer::start(options()).unwrap();
    serve_alone(&pki, &server).await;
    let client = DataClient::connect(&pki.client, server.addr()).await.unwrap();
    let first_life = client.welcome.instance;
    assert_eq!(client.write(chunk(2, 0), 0, &big).await, 4 << 20);
    assert_eq!(client.write(chunk(2, 1), 100, b"small").await, 5);
    assert_eq!(client.read(chunk(2, 0), 0, 4 << 20).await, big);
    assert_eq!(client.read(chunk(2, 1), 98, 9).await, &b"\0\0small\0\0"[..]);
    client.flush(&[chunk(2, 0), chunk(2, 1)]).await;
    tokio::task::spawn_blocking(move || server.stop(Ending::Drain)).await.unwrap().unwrap();

    let server = DataServer::start(options()).unwrap();
    serve_alone(&pki, &server).await;
    let client = DataClient::connect(&pki.client, server.addr()).await.unwrap();
    assert_ne!(client.welcome.instance, first_life);
    assert_eq!(client.read(chunk(2, 0), 0, 4 << 20).await, big);
    let punch = Op::Punch { chunk: chunk(2, 0), offset: 1 << 20, len: u64::MAX };
    let (reply, _) = client.call(chunk(2, 0), punch, Bytes::new()).await;
    assert!(
        matches!(reply, Reply::Written { allocated, .. } if allocated == -(3 << 20)),
        "{reply:?}"
    );
    let span = Span { ino: Ino(2), generation: 0, chunk_bits: 22, from: 0, to: 1 << 62 };
    let (reply, _) = client.call(chunk(2, 0), Op::Extents { span, limit: 9 }, Bytes::new()).await;
    let small = ((4 << 20) + 100, (4 << 20) + 105);
    assert_eq!(reply, Reply::Extents { extents: vec![(0, 1 << 20), small], upto: span.to });
    let first = Op::PunchSpan { span: Span { to: 5, ..span } };
    let (reply, _) = client.call(chunk(2, 0), first, Bytes::new()).await;
    assert_eq!(reply, Reply::Punched { allocated: -5, upto: 5 });
    let delete = || Op::Delete { first: chunk(2, 0) };
    let (reply, _) = client.call(chunk(2, 0), delete(), Bytes::new()).await;
    assert_eq!(reply, Reply::Failed(Errno::EPERM));
    let meta = DataClient::connect(&pki.server, server.addr()).await.unwrap();
    let (reply, _) = meta.call(chunk(2, 0), delete(), Bytes::new()).await;
    assert!(matches!(reply, Reply::Deleted { freed, .. } if freed == 1 << 20));
    let (Reply::Usage(usage), _) = client.call(chunk(0, 0), Op::Usage, Bytes::new()).await else {
        panic!("no figures");
    };
    assert_eq!((usage.live, usage.chunks), (0, 0));
    assert!(usage.capacity >= usage.free && usage.free > 0);
    drop(server);
    assert!(SegmentStore::check(&dir.path().join("data")).unwrap().is_clean());
}

#[tokio::test]
async fn calls_out_of_bounds_are_refused_and_nonsense_ends_only_its_own_connection() {
    let dir = tempfile::tempdir().unwrap();
    let pki = make_pki(dir.path());
    let options = DataOptions::new(dir.path().join("data"), localhost(), pki.server.clone());
    let server = DataServer::start(options).unwrap();
    serve_alone(&pki, &server).await;
    let client = DataClient::connect(&pki.client, server.addr()).await.unwrap();
    let c = chunk(2, 0);
    let beyond = Op::Write { chunk: c, offset: (4 << 20) - 1 };
    let backwards = Span { ino: Ino(2), generation: 0, chunk_bits: 22, from: 9, to: 8 };
    let refused = [
        (beyond, Bytes::from_static(b"xy")),
        (Op::Write { chunk: c, offset: u64::MAX }, Bytes::from_static(b"x")),
        (Op::Write { chunk: c, offset: 0 }, Bytes::new()),
        (Op::Read { chunk: c, offset: 0, len: u64::MAX }, Bytes::new()),
        (Op::Read { chunk: c, offset: u64::MAX, len: 1 }, Bytes::new()),
        (Op::Read { chunk: c, offset: 0, len: 1 }, Bytes::from_static(b"x")),
        (Op::Punch { chunk: c, offset: u64::MAX, len: u64::MAX }, Bytes::new()),
        (Op::Flush { groups: Vec::new() }, Bytes::from_static(b"x")),
        (Op::PunchSpan { span: backwards }, Bytes::new()),
        (Op::Extents { span: backwards, limit: 1 }, Bytes::new()),
    ];
    for (op, payload) in refused {
        let (reply, _) = client.call(c, op.clone(), payload).await;
        assert_eq!(reply, Reply::Failed(Errno::EINVAL), "{op:?}");
    }
    let read = Op::Read { chunk: c, offset: 0, len: 1 };
    let group = map_of_one(server.instance(), server.addr()).group_of(c).unwrap();
    let stale = Request { at: At::Group { group, epoch: Epoch(9) }, op: read.clone() };
    assert_eq!(client.raw(&stale, Bytes::new()).await.unwrap().0, Reply::StaleEpoch(Epoch(1)));
    let others = At::Group { group: GroupId(1 << 20), epoch: Epoch(1) };
    for at in [others, At::Server, At::Map { version: Epoch(1) }] {
        let elsewhere = Request { at, op: read.clone() };
        let (reply, _) = client.raw(&elsewhere, Bytes::new()).await.unwrap();
        assert_eq!(reply, Reply::Failed(Errno::EINVAL), "{at:?}");
    }

    let other = DataClient::connect(&pki.client, server.addr()).await.unwrap();
    let nonsense = Bytes::from_static(&[0xff; 40]);
    let answer = other.bulk.call(nonsense, Bytes::new(), Instant::now() + PATIENCE).await;
    if let Ok(BulkMessage { header, .. }) = answer {
        assert_eq!(codec::decode::<Reply>(&header).unwrap(), Reply::Failed(Errno::EPROTO));
    }
    other.bulk.closed().await;
    client.flush(&[c]).await;
}

#[tokio::test]
async fn strangers_are_told_why_they_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let pki = make_pki(dir.path());
    let options = DataOptions::new(dir.path().join("data"), localhost(), pki.server.clone());
    let server = DataServer::start(options).unwrap();
    serve_alone(&pki, &server).await;
    let try_hello = async |hello: &Hello| {
        let words = codec::encode(hello).unwrap();
        dialer(&pki.client).bulk(server.addr(), &words).await.map(drop)
    };
    let supported = format!("{}..={}", PROTOCOL + 1, PROTOCOL + 2);
    let later = Hello { protocol: (PROTOCOL + 1, PROTOCOL + 2), ..hello(Role::Data, "", 1) };
    match try_hello(&later).await {
        Err(CallError::Refused { text, .. }) => assert!(text.contains(&supported), "{text}"),
        other => panic!("{other:?}"),
    }
    match try_hello(&hello(Role::Meta, "v", 1)).await {
        Err(CallError::Refused { text, .. }) => assert!(text.contains("data server"), "{text}"),
        other => panic!("{other:?}"),
    }
    let other = tempfile::tempdir().unwrap();
    let stranger = make_pki(other.path());
    let error = DataClient::connect(&stranger.client, server.addr()).await.err();
    assert!(matches!(error, Some(CallError::Untrusted(_))), "{error:?}");

    let second = DataOptions::new(dir.path().join("data"), localhost(), pki.server.clone());
    let error = DataServer::start(second).unwrap_err().to_string();
    assert!(error.contains("in use"), "{error}");
}

#[tokio::test]
async fn what_was_flushed_survives_an_abrupt_end() {
    let dir = tempfile::tempdir().unwrap();
    let pki = make_pki(dir.path());
    let options = || DataOptions::new(dir.path().join("data"), localhost(), pki.server.clone());
    for round in 0..5u8 {
        let server = DataServer::start(options()).unwrap();
        serve_alone(&pki, &server).await;
        let client = DataClient::connect(&pki.client, server.addr()).await.unwrap();
        for before in 0..round {
            assert_eq!(client.read(chunk(9, before.into()), 0, 3).await, [before; 3][..]);
        }
        client.write(chunk(9, round.into()), 0, &[round; 3]).await;
        client.flush(&[chunk(9, round.into())]).await;
        drop(server);
    }
}

#[tokio::test]
async fn a_client_that_connects_anew_loses_its_old_connection() {
    let dir = tempfile::tempdir().unwrap();
    let pki = make_pki(dir.path());
    let options = DataOptions::new(dir.path().join("data"), localhost(), pki.server.clone());
    let server = DataServer::start(options).unwrap();
    serve_alone(&pki, &server).await;
    let old = DataClient::connect_as(&pki.client, server.addr(), 7).await.unwrap();
    let other = DataClient::connect_as(&pki.client, server.addr(), 8).await.unwrap();
    old.write(chunk(2, 0), 0, b"old").await;
    let new = DataClient::connect_as(&pki.client, server.addr(), 7).await.unwrap();
    old.bulk.closed().await;
    assert_eq!(new.read(chunk(2, 0), 0, 3).await, &b"old"[..]);
    other.flush(&[chunk(2, 0)]).await;
}

#[tokio::test]
async fn a_connection_of_a_client_is_for_one_volume() {
    let dir = tempfile::tempdir().unwrap();
    let pki = make_pki(dir.path());
    let options = DataOptions::new(dir.path().join("data"), localhost(), pki.server.clone());
    let server = DataServer::start(options).unwrap();
    serve_alone(&pki, &server).await;
    let (first, second) = (chunk(2, 0), chunk((1 << 48) + 2, 0));
    let client = DataClient::connect(&pki.client, server.addr()).await.unwrap();
    client.write(first, 0, b"first").await;
    let other = DataClient::connect(&pki.client, server.addr()).await.unwrap();
    other.write(second, 0, b"second").await;
    let span = Span { ino: second.ino, generation: 0, chunk_bits: 22, from: 0, to: 9 };
    let (c, offset, len) = (second, 0, 5);
    let (source, target, source_offset, target_offset) = (second, first, 0, 0);
    let refused = [
        (Op::Write { chunk: c, offset }, Bytes::from_static(b"x")),
        (Op::Read { chunk: c, offset, len }, Bytes::new()),
        (Op::Punch { chunk: c, offset, len }, Bytes::new()),
        (Op::Copy { source, source_offset, target, target_offset, len }, Bytes::new()),
        (Op::Extents { span, limit: 1 }, Bytes::new()),
        (Op::PunchSpan { span }, Bytes::new()),
    ];
    for (op, payload) in refused {
        let (reply, _) = client.call(first, op.clone(), payload).await;
        assert_eq!(reply, Reply::Failed(Errno::EPERM), "{op:?}");
    }
    assert_eq!(client.read(first, 0, 5).await, &b"first"[..]);
    assert_eq!(other.read(second, 0, 6).await, &b"second"[..]);
}

#[tokio::test]
async fn a_fenced_session_is_kept_out_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let pki = make_pki(dir.path());
    let options = || DataOptions::new(dir.path().join("data"), localhost(), pki.server.clone());
    let server = DataServer::start(options()).unwrap();
    serve_alone(&pki, &server).await;
    let asleep = DataClient::connect_as(&pki.client, server.addr(), 7).await.unwrap();
    let other = DataClient::connect_as(&pki.client, server.addr(), 8).await.unwrap();
    asleep.write(chunk(2, 0), 0, b"before").await;
    let fence = || Op::Fence { session: SessionId(7) };
    let (reply, _) = other.call(chunk(2, 0), fence(), Bytes::new()).await;
    assert_eq!(reply, Reply::Failed(Errno::EPERM), "clients do not fence each other");
    asleep.write(chunk(2, 0), 0, b"again!").await;

    let meta = DataClient::connect_as(&pki.server, server.addr(), 0).await.unwrap();
    let nobody = Op::Fence { session: SessionId(0) };
    let (reply, _) = meta.call(chunk(2, 0), nobody, Bytes::new()).await;
    assert_eq!(reply, Reply::Failed(Errno::EINVAL));
    for _ in 0..2 {
        assert_eq!(meta.call(chunk(2, 0), fence(), Bytes::new()).await.0, Reply::Fenced);
    }
    // Over the connection that it has, if that is still there.
    let late = Op::Write { chunk: chunk(2, 0), offset: 0 };
    let group = map_of_one(server.instance(), server.addr()).group_of(chunk(2, 0)).unwrap();
    let late = Request { at: At::Group { group, epoch: Epoch(1) }, op: late };
    let answer = asleep.raw(&late, Bytes::from_static(b"later!")).await;
    assert!(!matches!(answer, Ok((Reply::Written { .. }, _))), "{answer:?}");
    asleep.bulk.closed().await;
    let refused = async |addr| match DataClient::connect_as(&pki.client, addr, 7).await {
        Err(CallError::Refused { code, .. }) => code,
        other => panic!("{:?}", other.err()),
    };
    assert_eq!(refused(server.addr()).await, SESSION_OVER);
    assert_eq!(other.read(chunk(2, 0), 0, 6).await, &b"again!"[..]);
    other.flush(&[chunk(2, 0)]).await;

    drop(server);
    let server = DataServer::start(options()).unwrap();
    serve_alone(&pki, &server).await;
    assert_eq!(refused(server.addr()).await, SESSION_OVER);
    let other = DataClient::connect_as(&pki.client, server.addr(), 8).await.unwrap();
    assert_eq!(other.read(chunk(2, 0), 0, 6).await, &b"again!"[..]);
    drop(server);
    assert!(SegmentStore::check(&dir.path().join("data")).unwrap().is_clean());
}

#[tokio::test]
async fn a_damaged_list_of_fenced_sessions_is_set_aside_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let pki = make_pki(dir.path());
    let options = || DataOptions::new(dir.path().join("data"), localhost(), pki.server.clone());
    drop(DataServer::start(options()).unwrap());
    std::fs::write(dir.path().join("data/fenced"), b"NFSFENCE").unwrap();
    let server = DataServer::start(options()).unwrap();
    let kept = std::fs::read(dir.path().join("data/fenced.damaged")).unwrap();
    assert_eq!(kept, b"NFSFENCE");
    // What a session sends that was ended before is refused none the less, since it goes by an earlier map.
    let asleep = DataClient::connect_as(&pki.client, server.addr(), 7).await.unwrap();
    let late = Op::Write { chunk: chunk(2, 0), offset: 0 };
    let group = map_of_one(server.instance(), server.addr()).group_of(chunk(2, 0)).unwrap();
    let late = Request { at: At::Group { group, epoch: Epoch(0) }, op: late };
    serve_alone(&pki, &server).await;
    let (reply, _) = asleep.raw(&late, Bytes::from_static(b"later!")).await.unwrap();
    assert_eq!(reply, Reply::StaleEpoch(Epoch(1)));
}
