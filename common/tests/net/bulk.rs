//! Bulk connections: payloads both ways, limits, withdrawal.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use netfs_common::net::{BulkMessage, CallError, Limits};

use crate::world::*;

/// Bytes that are nowhere alike.
fn pattern(len: usize) -> Bytes {
    (0..len).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect::<Vec<_>>().into()
}

#[tokio::test]
async fn payloads_of_all_sizes_come_back_whole() {
    let pki = Pki::new();
    let server = echo_server(&pki);
    let (bulk, welcome) = dialer(&pki).bulk(server.address, b"").await.unwrap();
    assert_eq!(&welcome[..], b"welcome alice");
    for len in [0, 1, 1200, 65_536, 1 << 20, 5_000_001, 8 << 20] {
        let payload = pattern(len);
        let header = Bytes::from(format!("{len} bytes"));
        // In uneven pieces, as they come from a cache.
        let cut = len / 3;
        let pieces = vec![payload.slice(..cut), Bytes::new(), payload.slice(cut..)];
        let reply = bulk.call(header.clone(), pieces, soon()).await.unwrap();
        assert_eq!(reply.header, header);
        assert_eq!(reply.payload.len(), len);
        assert_eq!(reply.payload.into_bytes(), payload);
    }
}

#[tokio::test]
async fn many_calls_run_side_by_side_within_the_budget_of_memory() {
    let pki = Pki::new();
    let tight = Limits {
        max_payload_bytes: 200_000,
        max_bulk_bytes: 1 << 20,
        max_bulk_calls: 16,
        ..limits()
    };
    let server = serve(&pki, tight, any_port(), echo(), bulk_echo());
    let (bulk, _) = dialer(&pki).bulk(server.address, b"").await.unwrap();
    let calls: Vec<_> = (0..60usize)
        .map(|n| {
            let bulk = bulk.clone();
            tokio::spawn(async move {
                let payload = pattern(100_000 + n);
                let reply = bulk.call(Bytes::new(), payload.clone(), soon()).await.unwrap();
                assert_eq!(reply.payload.into_bytes(), payload);
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
}

#[tokio::test]
async fn what_the_server_does_not_accept_is_not_sent() {
    let pki = Pki::new();
    let small = Limits { max_payload_bytes: 1000, max_header_bytes: 10, ..limits() };
    let server = serve(&pki, small, any_port(), echo(), bulk_echo());
    let (bulk, _) = dialer(&pki).bulk(server.address, b"").await.unwrap();
    let error = bulk.call(Bytes::new(), pattern(1001), soon()).await.unwrap_err();
    assert_eq!(error, CallError::TooLarge { what: "payload", size: 1001, limit: 1000 });
    let error = bulk.call(pattern(11), Bytes::new(), soon()).await.unwrap_err();
    assert_eq!(error, CallError::TooLarge { what: "header", size: 11, limit: 10 });
    bulk.call(pattern(10), pattern(1000), soon()).await.unwrap();
}

struct CountDrop(Arc<AtomicUsize>);

impl Drop for CountDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_withdrawn_call_is_dropped_at_the_server_and_a_panic_is_the_calls_own() {
    let pki = Pki::new();
    let dropped = Arc::new(AtomicUsize::new(0));
    let count = dropped.clone();
    let server = serve(
        &pki,
        limits(),
        any_port(),
        echo(),
        Arc::new(move |request: BulkMessage| {
            let guard = CountDrop(count.clone());
            async move {
                let _guard = guard;
                match &request.header[..] {
                    b"stick" => std::future::pending().await,
                    b"panic" => panic!("a fault in a handler"),
                    _ => request,
                }
            }
        }),
    );
    let (bulk, _) = dialer(&pki).bulk(server.address, b"").await.unwrap();
    let stick = Bytes::from_static(b"stick");
    let error = bulk.call(stick, pattern(100_000), in_ms(100)).await.unwrap_err();
    assert_eq!(error, CallError::Deadline);
    eventually("work dropped", || dropped.load(Ordering::SeqCst) == 1).await;
    let error = bulk.call(Bytes::from_static(b"panic"), pattern(10), soon()).await.unwrap_err();
    assert_eq!(error, CallError::Cancelled);
    bulk.call(Bytes::new(), pattern(10), soon()).await.unwrap();
}

#[tokio::test]
async fn shutdown_lets_bulk_calls_finish() {
    let pki = Pki::new();
    let slow = Arc::new(|request: BulkMessage| async move {
        tokio::time::sleep(Duration::from_millis(200)).await;
        request
    });
    let server = serve(&pki, limits(), any_port(), echo(), slow);
    let (bulk, _) = dialer(&pki).bulk(server.address, b"").await.unwrap();
    let under_way = tokio::spawn({
        let bulk = bulk.clone();
        async move { bulk.call(Bytes::new(), pattern(4 << 20), soon()).await }
    });
    tokio::time::sleep(Duration::from_millis(150)).await;
    server.server.shutdown(in_ms(10_000)).await;
    let reply = under_way.await.unwrap().unwrap();
    assert_eq!(reply.payload.into_bytes(), pattern(4 << 20));
    let late = bulk.call(Bytes::new(), Bytes::new(), soon()).await;
    assert!(matches!(late, Err(CallError::Lost(_))), "{late:?}");
}

#[tokio::test]
async fn shutdown_does_not_wait_for_a_client_that_has_gone_without_a_word() {
    let pki = Pki::new();
    let server = echo_server(&pki);
    let address = server.address;
    let client = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let bulk = runtime.block_on(async {
            let (bulk, _) = dialer(&pki).bulk(address, b"").await.unwrap();
            bulk.call(Bytes::new(), pattern(10), soon()).await.unwrap();
            bulk
        });
        // Nobody is left to send anything, not even that the connection is closed.
        runtime.shutdown_background();
        bulk
    });
    let _bulk = tokio::task::spawn_blocking(|| client.join().unwrap()).await.unwrap();
    let begun = Instant::now();
    server.server.shutdown(in_ms(10_000)).await;
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn the_packet_size_grows_to_what_loopback_carries() {
    let pki = Pki::new();
    let server = echo_server(&pki);
    let (bulk, _) = dialer(&pki).bulk(server.address, b"").await.unwrap();
    let end = soon();
    while bulk.path_mtu() < 8000 {
        bulk.call(Bytes::new(), pattern(1 << 20), end).await.unwrap();
    }
}
