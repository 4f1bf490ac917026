//! The session's connections over QUIC, against a server that answers by rote.

// A step that fails is a failed test.
#![allow(clippy::unwrap_used)]

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use netfs_common::codec;
use netfs_common::config::NetConfig;
use netfs_common::errno::Errno;
use netfs_common::id::{ClusterId, Ino, InstanceId, ServerId, SessionId};
use netfs_common::map::DataServer;
use netfs_common::net::{BulkMessage, ConnectionKind, Incoming, Limits, Link, NetMetrics, Server};
use netfs_common::tls::Identity;
use netfs_common::tls::pki::{self, IssueOptions, Leaf};
use netfs_common::wire::lease::{Lease, Recall, Scope};
use netfs_common::wire::meta::{Answer, Push, PushReply, Request, Response};
use netfs_common::wire::{Claim, Hello, HelloReply, PROTOCOL, Role, data};
use netfs_mountd::dial::QuicDialer;
use netfs_mountd::session::{DialError, Dialer, LinkError, PushCall};
use tokio::sync::mpsc;

fn identity(dir: &std::path::Path, leaf: &Leaf) -> Identity {
    let ca = dir.join("ca");
    if !ca.exists() {
        pki::init(&ca, "test").unwrap();
    }
    let out = dir.join(if matches!(leaf, Leaf::Server { .. }) { "server" } else { "client" });
    pki::issue(&ca, leaf, &out, &IssueOptions::default()).unwrap();
    Identity::load_dir(&out).unwrap()
}

fn hello(role: Role) -> Hello {
    Hello {
        protocol: (PROTOCOL, PROTOCOL),
        features: 0,
        role,
        volume: "vol".into(),
        session: SessionId(1),
        claim: Claim::Begin,
        instance: InstanceId(2),
        client: "test".into(),
    }
}

fn welcome() -> Vec<u8> {
    codec::encode(&HelloReply {
        protocol: PROTOCOL,
        features: 0,
        cluster: ClusterId([7; 16]),
        instance: InstanceId(3),
        volume: None,
    })
    .unwrap()
}

fn recall() -> Push {
    Push::Recall(vec![Recall { ino: Ino(5), keep: Some(Lease::Read), stale: Scope::attrs() }])
}

/// Answers `Renew` with `Done` after a recall that the client has answered, anything else with nonsense.
async fn answer_meta(link: Link, request: Bytes) -> Bytes {
    match codec::decode::<Request>(&request).unwrap() {
        Request::Renew => {
            let push = codec::encode(&recall()).unwrap();
            let reply = link.call(push.into(), None).await.unwrap();
            assert_eq!(codec::decode::<PushReply>(&reply).unwrap(), PushReply::Done);
            codec::encode(&Answer::bare(Ok(Response::Done))).unwrap().into()
        }
        Request::StatFs => codec::encode(&Answer::bare(Err(Errno::EIO))).unwrap().into(),
        _ => Bytes::from_static(b"\xff\xff\xff"),
    }
}

async fn answer_data(request: BulkMessage) -> BulkMessage {
    let _: data::Request = codec::decode(&request.header).unwrap();
    let reply = codec::encode(&data::Reply::Read).unwrap();
    BulkMessage::new(reply.into(), request.payload)
}

async fn serve(incoming: Incoming) {
    let greeting: Hello = codec::decode(incoming.hello()).unwrap();
    if greeting.volume != "vol" {
        return incoming.refuse(5, "there is no such volume");
    }
    match incoming.kind() {
        ConnectionKind::Metadata => {
            incoming.welcome_link(&welcome(), Arc::new(answer_meta)).await.unwrap();
        }
        ConnectionKind::Bulk => {
            incoming.welcome_bulk(&welcome(), Arc::new(answer_data)).await.unwrap();
        }
    }
}

/// A server, and a client that knows its address.
fn world(dir: &std::path::Path) -> (String, QuicDialer) {
    let server = identity(dir, &Leaf::Server { name: "s".into(), names: vec![] });
    let client = identity(dir, &Leaf::Client { name: "c".into() });
    let server = Server::bind(
        (Ipv4Addr::LOCALHOST, 0).into(),
        server.server_config().unwrap(),
        Limits::default(),
        NetMetrics::default(),
    )
    .unwrap();
    let address = server.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Some(incoming) = server.accept().await {
            tokio::spawn(serve(incoming));
        }
    });
    let metrics = NetMetrics::default();
    let dialer = QuicDialer::new(client, &NetConfig::default(), vec![address.clone()], metrics);
    (address, dialer)
}

#[tokio::test]
async fn calls_pushes_and_payloads_pass() {
    let dir = tempfile::tempdir().unwrap();
    let (address, dialer) = world(dir.path());
    let (tx, mut pushes) = mpsc::channel::<PushCall>(1);
    let (reply, meta) = dialer.meta(hello(Role::Meta), tx).await.unwrap();
    assert_eq!(reply.instance, InstanceId(3));
    let giving_back = async {
        let call = pushes.recv().await.unwrap();
        assert_eq!(call.push, recall());
        call.answer.send(PushReply::Done).unwrap();
    };
    let (answer, ()) = tokio::join!(meta.call(Request::Renew), giving_back);
    assert_eq!(answer, Ok(Answer::bare(Ok(Response::Done))));
    assert_eq!(meta.call(Request::StatFs).await, Ok(Answer::bare(Err(Errno::EIO))));

    let server = DataServer { id: ServerId(1), addrs: vec![address] };
    let (_, data) = dialer.data(server, hello(Role::Data)).await.unwrap();
    let request = data::Request { at: data::At::Server, op: data::Op::Usage };
    let payload = Bytes::from(vec![9; 1 << 20]);
    let (reply, back) = data.call(request, payload.clone()).await.unwrap();
    assert_eq!(reply, data::Reply::Read);
    assert!(back == payload);
    tokio::time::timeout(Duration::from_secs(5), dialer.close()).await.unwrap();
}

#[tokio::test]
async fn nonsense_ends_the_connection_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (_, dialer) = world(dir.path());
    let (tx, _pushes) = mpsc::channel(1);
    let (_, meta) = dialer.meta(hello(Role::Meta), tx).await.unwrap();
    assert_eq!(meta.call(Request::Status).await, Err(LinkError::Lost));
    meta.closed().await;
    let (tx, _pushes) = mpsc::channel(1);
    assert!(dialer.meta(hello(Role::Meta), tx).await.is_ok());
}

#[tokio::test]
async fn a_refusal_is_told_from_silence() {
    let dir = tempfile::tempdir().unwrap();
    let (_, dialer) = world(dir.path());
    let (tx, _pushes) = mpsc::channel(1);
    let other = Hello { volume: "other".into(), ..hello(Role::Meta) };
    match dialer.meta(other, tx).await.err().unwrap() {
        DialError::Refused(text) => assert!(text.contains("there is no such volume"), "{text}"),
        e => panic!("{e:?}"),
    }
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let server = DataServer { id: ServerId(1), addrs: vec![address.clone()] };
    match dialer.data(server, hello(Role::Data)).await.err().unwrap() {
        DialError::Unreachable(text) => assert!(text.contains(&address), "{text}"),
        e => panic!("{e:?}"),
    }
}
