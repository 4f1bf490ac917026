//! Channels: kept up across the death of servers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use netfs_common::net::{
    CallError, Channel, ChannelConfig, ChannelState, Dialer, EstablishedFuture, Greeter, Limits,
    Link, NetMetrics,
};

use crate::world::*;

#[tokio::test]
async fn a_channel_comes_back_when_its_server_does() {
    let pki = Pki::new();
    let first = echo_server(&pki);
    let address = first.address;
    let channel = Channel::link(
        dialer(&pki),
        ChannelConfig::to(address.to_string()),
        || Bytes::from_static(b"hello"),
        echo(),
    );
    let mut states = channel.subscribe();
    channel.call(Bytes::from_static(b"1"), soon()).await.unwrap();
    let ChannelState::Up { generation: 1, welcome, .. } = channel.state() else {
        panic!("up for the first time")
    };
    assert_eq!(&welcome[..], b"welcome alice");

    // A call under way when the server dies is lost; what to do about it is the caller's business.
    first.server.shutdown(in_ms(0)).await;
    drop(first);
    states.wait_for(|state| !state.is_up()).await.unwrap();

    // One made while it is down waits, at most until its deadline.
    let error = channel.call(Bytes::from_static(b"2"), in_ms(50)).await.unwrap_err();
    assert_eq!(error, CallError::Deadline);
    let waiting = tokio::spawn({
        let channel = channel.clone();
        async move { channel.call(Bytes::from_static(b"3"), None).await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let _second = serve(&pki, limits(), address, echo(), bulk_echo());
    assert_eq!(&waiting.await.unwrap().unwrap()[..], b"3");
    let ChannelState::Up { generation: 2, .. } = channel.state() else { panic!("up again") };

    channel.close();
    assert_eq!(channel.call(Bytes::new(), None).await, Err(CallError::Closed));
}

#[tokio::test]
async fn calls_under_way_are_lost_with_a_server_that_falls_silent() {
    let pki = Pki::new();
    // A server on a runtime of its own, which is then stopped dead: no packet says so.
    let (tell, told) = std::sync::mpsc::channel();
    let server_tls = pki.server();
    let runtime = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let server = runtime.block_on(async move {
            let server = netfs_common::net::Server::bind(
                any_port(),
                server_tls,
                limits(),
                Default::default(),
            )
            .unwrap();
            tell.send(server.local_addr().unwrap()).unwrap();
            let stuck = Arc::new(|_: Link, _: Bytes| std::future::pending());
            let link = server.accept().await.unwrap().welcome_link(b"", stuck).await.unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
            (server, link)
        });
        // Not driven any more, and not closed either.
        std::thread::sleep(Duration::from_secs(6));
        drop(server);
        drop(runtime);
    });
    let address = told.recv().unwrap();
    let (link, _) = dialer(&pki).link(address, b"", echo()).await.unwrap();
    let error = link.call(Bytes::from_static(b"x"), soon()).await.unwrap_err();
    assert_eq!(error, CallError::Lost("the peer has fallen silent".into()));
    runtime.join().unwrap();
}

#[tokio::test]
async fn a_channel_reports_why_it_is_down_and_tries_all_addresses() {
    let pki = Pki::new();
    let server = echo_server(&pki);
    let config = ChannelConfig {
        addresses: vec!["no.such.host.invalid:1".into(), server.address.to_string()],
        ..ChannelConfig::to("")
    };
    let channel = Channel::link(dialer(&pki), config, || Bytes::from_static(b"refuse me"), echo());
    let mut states = channel.subscribe();
    let down = |state: &ChannelState<Link>| {
        matches!(state, ChannelState::Down { last_error: Some(CallError::Refused { .. }), .. })
    };
    states.wait_for(down).await.unwrap();
    drop(channel);

    let config = ChannelConfig::to("no.such.host.invalid:1");
    let channel = Channel::bulk(dialer(&pki), config, Bytes::new);
    let mut states = channel.subscribe();
    let state = states.wait_for(|s| matches!(s, ChannelState::Down { last_error: Some(_), .. }));
    let ChannelState::Down { last_error: Some(error), .. } = state.await.unwrap().clone() else {
        unreachable!()
    };
    assert!(error.to_string().contains("cannot reach no.such.host.invalid:1"), "{error}");
}

/// Calls the server before anybody else may, and fails the first time.
struct Reclaim(Arc<AtomicUsize>);

impl Greeter<Link> for Reclaim {
    fn hello(&self) -> Bytes {
        Bytes::from_static(b"hello")
    }

    fn established(&self, link: Link, _welcome: Bytes) -> EstablishedFuture {
        let attempt = self.0.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            link.call(Bytes::from_static(b"reclaim"), soon()).await?;
            if attempt == 0 { Err(CallError::Cancelled) } else { Ok(()) }
        })
    }
}

#[tokio::test]
async fn a_connection_is_used_only_after_the_application_has_prepared_it() {
    let pki = Pki::new();
    let server = echo_server(&pki);
    let attempts = Arc::new(AtomicUsize::new(0));
    let channel = Channel::link(
        dialer(&pki),
        ChannelConfig::to(server.address.to_string()),
        Reclaim(attempts.clone()),
        echo(),
    );
    channel.call(Bytes::from_static(b"x"), soon()).await.unwrap();
    assert_eq!(attempts.load(Ordering::SeqCst), 2);
    let ChannelState::Up { generation: 1, .. } = channel.state() else {
        panic!("the first attempt was never up")
    };
}

#[tokio::test]
async fn a_dropped_channel_closes_its_connection() {
    let pki = Pki::new();
    let server = echo_server(&pki);
    let config = ChannelConfig::to(server.address.to_string());
    let channel = Channel::bulk(dialer(&pki), config, Bytes::new);
    channel.call(Bytes::new(), Bytes::from_static(b"x"), soon()).await.unwrap();
    assert_eq!(server.metrics.connections.get(), 1);
    drop(channel);
    eventually("gone at the server", || server.metrics.connections.get() == 0).await;
}

#[tokio::test]
async fn a_server_that_comes_up_while_it_is_called_is_found_soon() {
    let pki = Pki::new();
    // Somebody who takes packets and says nothing, until the pauses between those of one handshake are long.
    let silent = tokio::net::UdpSocket::bind(any_port()).await.unwrap();
    let address = silent.local_addr().unwrap();
    let long = Duration::from_secs(30);
    let patient = Limits { hello_timeout: long, idle_timeout: long, ..limits() };
    let dialer = Dialer::new(pki.client("alice"), patient, NetMetrics::default()).unwrap();
    let dialled = tokio::spawn(async move { dialer.link(address, b"", echo()).await });
    let mut packet = [0; 2048];
    let ignore = async {
        loop {
            silent.recv_from(&mut packet).await.unwrap();
        }
    };
    // The fifth packet of one handshake goes out after 4.5 seconds, the sixth after 9.3.
    tokio::time::timeout(Duration::from_millis(4700), ignore).await.unwrap_err();
    drop(silent);
    let up = Instant::now();
    let _server = serve(&pki, limits(), address, echo(), bulk_echo());
    dialled.await.unwrap().unwrap();
    assert!(up.elapsed() < Duration::from_secs(3), "{:?}", up.elapsed());
}
