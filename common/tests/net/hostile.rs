//! Peers that are not what they should be: sent away, counted, and nobody else notices.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use netfs_common::net::frame::{FrameKind, put_header};
use netfs_common::net::{CallError, Dialer, Limits, Link, NetMetrics};
use quinn::crypto::rustls::QuicClientConfig;

use crate::world::*;

/// A client of plain quinn, which can say anything.
async fn raw(tls: rustls::ClientConfig, server: &TestServer) -> Result<quinn::Connection, String> {
    let mut endpoint = quinn::Endpoint::client(any_port()).unwrap();
    let crypto = QuicClientConfig::try_from(tls).unwrap();
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
    let connecting = endpoint.connect(server.address, "netfs-server").unwrap();
    connecting.await.map_err(|e| e.to_string())
}

async fn close_reason(conn: &quinn::Connection) -> String {
    tokio::time::timeout(Duration::from_secs(10), conn.closed()).await.unwrap().to_string()
}

fn hello(kind: u8) -> BytesMut {
    let mut out = BytesMut::new();
    put_header(&mut out, FrameKind::Hello, 0, 20);
    out.put_slice(&[1, kind, 0, 0]);
    for limit in [1u32 << 20, 100, 1 << 16, 1 << 20] {
        out.put_u32_le(limit);
    }
    out
}

/// A raw connection whose greeting was answered.
async fn greeted(
    pki: &Pki,
    server: &TestServer,
    kind: u8,
) -> (quinn::Connection, quinn::SendStream, quinn::RecvStream) {
    let conn = raw((*pki.client("mallory")).clone(), server).await.unwrap();
    let (mut send, mut recv) = conn.open_bi().await.unwrap();
    send.write_all(&hello(kind)).await.unwrap();
    let mut answer = [0; 13];
    recv.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer[4], FrameKind::Welcome as u8);
    (conn, send, recv)
}

#[tokio::test]
async fn a_client_of_another_cluster_and_one_without_certificate_are_not_answered() {
    let (pki, other) = (Pki::new(), Pki::new());
    let server = echo_server(&pki);
    let (good, _) = dialer(&pki).link(server.address, b"", echo()).await.unwrap();

    // It does not trust the server.
    let error = dialer(&other).link(server.address, b"", echo()).await.unwrap_err();
    assert!(matches!(error, CallError::Untrusted(_)), "{error}");

    // It trusts the server, which does not trust it.
    let mut roots = rustls::RootCertStore::empty();
    let leaf = netfs_common::tls::pki::Leaf::Client { name: "x".into() };
    roots.add(pki.ca_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = || {
        rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots.clone())
    };
    let (chain, key) = other.pair(&leaf);
    for mut tls in
        [builder().with_no_client_auth(), builder().with_client_auth_cert(chain, key).unwrap()]
    {
        tls.alpn_protocols = vec![b"netfs/1".to_vec()];
        let dialer = Dialer::new(Arc::new(tls), limits(), NetMetrics::default()).unwrap();
        let error = dialer.link(server.address, b"", echo()).await.unwrap_err();
        assert!(matches!(error, CallError::Untrusted(_)), "{error}");
    }
    assert_eq!(server.metrics.handshakes_failed.get(), 3);
    good.call(Bytes::from_static(b"unharmed"), soon()).await.unwrap();
}

#[tokio::test]
async fn a_client_is_no_server() {
    let pki = Pki::new();
    // Somebody with a client's certificate who pretends to be a server.
    let leaf = netfs_common::tls::pki::Leaf::Client { name: "thief".into() };
    let (chain, key) = pki.pair(&leaf);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    tls.alpn_protocols = vec![b"netfs/1".to_vec()];
    let thief =
        netfs_common::net::Server::bind(any_port(), Arc::new(tls), limits(), NetMetrics::default())
            .unwrap();
    let address = thief.local_addr().unwrap();
    let error = dialer(&pki).link(address, b"", echo()).await.unwrap_err();
    assert!(matches!(error, CallError::Untrusted(_)), "{error}");
}

#[tokio::test]
async fn another_application_protocol_is_refused() {
    let pki = Pki::new();
    let server = echo_server(&pki);
    for protocols in [vec![], vec![b"h3".to_vec()]] {
        let mut tls = (*pki.client("mallory")).clone();
        tls.alpn_protocols = protocols;
        let error = raw(tls, &server).await.unwrap_err();
        assert!(error.contains("120") || error.contains("protocol"), "{error}");
    }
    eventually("counted", || server.metrics.handshakes_failed.get() == 2).await;
}

#[tokio::test]
async fn garbage_is_answered_with_a_reason_and_counted_and_others_are_unharmed() {
    let pki = Pki::new();
    let server = echo_server(&pki);
    let (good, _) = dialer(&pki).link(server.address, b"", echo()).await.unwrap();
    let mut faults = 0;

    // Instead of a greeting.
    let mut not_hello = BytesMut::new();
    put_header(&mut not_hello, FrameKind::Request, 1, 0);
    let mut strange_kind = hello(1);
    strange_kind[14] = 9;
    let mut strange_version = hello(1);
    strange_version[13] = 77;
    for (bytes, reason) in [
        (&b"GET / HTTP/1.1\r\nHost: example\r\n\r\n"[..], "frame"),
        (&[0; 64], "length"),
        (&not_hello, "Hello is due"),
        (&strange_kind, "connection kind 9"),
        (&strange_version, "greeting version 77"),
    ] {
        let conn = raw((*pki.client("mallory")).clone(), &server).await.unwrap();
        let (mut send, _recv) = conn.open_bi().await.unwrap();
        send.write_all(bytes).await.unwrap();
        let text = close_reason(&conn).await;
        assert!(text.contains(reason), "{reason}: {text}");
        faults += 1;
    }

    // After the greeting, on a metadata connection.
    let frame = |kind, id, len| {
        let mut out = BytesMut::new();
        put_header(&mut out, kind, id, len);
        out
    };
    for (bytes, reason) in [
        (BytesMut::from(&b"\xff\xff\xff\xff\x01garbage here"[..]), "claims a body"),
        (frame(FrameKind::Request, 1, 2_000_000), "2000000 bytes"),
        (frame(FrameKind::Reply, 5, 0), "never made"),
        (hello(1), "greeting where none is due"),
        (frame(FrameKind::Cancel, 1, 3), "has a body"),
    ] {
        let (conn, mut send, _recv) = greeted(&pki, &server, 1).await;
        send.write_all(&bytes).await.unwrap();
        let text = close_reason(&conn).await;
        assert!(text.contains(reason), "{reason}: {text}");
        faults += 1;
    }

    // After the greeting, on a bulk connection.
    let mut huge_payload = vec![0; 4];
    huge_payload.extend_from_slice(&u64::MAX.to_le_bytes());
    let mut trailing = vec![0; 12];
    trailing.push(1);
    for (bytes, reason) in [
        (&b"\xff\xff\xff\xff"[..], "a header of"),
        (&huge_payload, "a payload of"),
        (&b"\x02\0\0\0x"[..], "ended in its message"),
        (&trailing, "went on after"),
    ] {
        let (conn, _control, _recv) = greeted(&pki, &server, 2).await;
        let (mut send, _answer) = conn.open_bi().await.unwrap();
        send.write_all(bytes).await.unwrap();
        send.finish().unwrap();
        let text = close_reason(&conn).await;
        assert!(text.contains(reason), "{reason}: {text}");
        faults += 1;
    }

    assert_eq!(server.metrics.protocol_errors.get(), faults);
    good.call(Bytes::from_static(b"unharmed"), soon()).await.unwrap();
}

#[tokio::test]
async fn silence_instead_of_a_greeting_is_given_up() {
    let pki = Pki::new();
    let server = echo_server(&pki);
    let conn = raw((*pki.client("mallory")).clone(), &server).await.unwrap();
    assert!(close_reason(&conn).await.contains("no greeting in time"));
}

#[tokio::test]
async fn more_calls_than_agreed_end_the_connection() {
    let pki = Pki::new();
    let stuck = Arc::new(|_: Link, _: Bytes| std::future::pending());
    let few = Limits { max_calls: 3, ..limits() };
    let server = serve(&pki, few, any_port(), stuck, bulk_echo());
    let (conn, mut send, _recv) = greeted(&pki, &server, 1).await;
    for id in 1..=4 {
        let mut request = BytesMut::new();
        put_header(&mut request, FrameKind::Request, id, 0);
        send.write_all(&request).await.unwrap();
    }
    assert!(close_reason(&conn).await.contains("more than 3 calls"));
}

#[tokio::test]
async fn a_full_server_refuses_and_takes_the_next_when_one_has_left() {
    let pki = Pki::new();
    let server =
        serve(&pki, Limits { max_connections: 2, ..limits() }, any_port(), echo(), bulk_echo());
    let dialer = dialer(&pki);
    let (first, _) = dialer.link(server.address, b"", echo()).await.unwrap();
    let (_second, _) = dialer.link(server.address, b"", echo()).await.unwrap();
    let error = dialer.link(server.address, b"", echo()).await.unwrap_err();
    assert_eq!(error, CallError::Lost("the server is full".into()));
    first.close();
    eventually("a slot is free", || server.metrics.connections.get() == 1).await;
    dialer.link(server.address, b"", echo()).await.unwrap();
}

#[tokio::test]
async fn a_peer_that_does_not_read_costs_bounded_memory_and_its_own_calls_only() {
    let pki = Pki::new();
    let blob = Bytes::from(vec![0; 1 << 20]);
    let large = Arc::new(move |_: Link, _: Bytes| std::future::ready(blob.clone()));
    let server = serve(&pki, Limits { max_calls: 64, ..limits() }, any_port(), large, bulk_echo());
    // 64 answers of 1 MiB are due and never read: more than the stream's window and the queue.
    let (conn, mut send, recv) = greeted(&pki, &server, 1).await;
    for id in 1..=64 {
        let mut request = BytesMut::new();
        put_header(&mut request, FrameKind::Request, id, 0);
        send.write_all(&request).await.unwrap();
    }
    let (good, _) = dialer(&pki).link(server.address, b"", echo()).await.unwrap();
    good.call(Bytes::new(), soon()).await.unwrap();
    assert!(conn.close_reason().is_none());
    drop((send, recv));
}
