//! Metadata links: calls both ways, their deadlines, withdrawal and end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use netfs_common::net::{CallError, Handler, Limits, Link, ReplyFuture};

use crate::world::*;

#[tokio::test]
async fn greeting_carries_words_both_ways_and_the_client_is_known_by_its_certificate() {
    let pki = Pki::new();
    let server = echo_server(&pki);
    let (link, welcome) = dialer(&pki).link(server.address, b"hello", echo()).await.unwrap();
    assert_eq!(&welcome[..], b"welcome alice");
    let answer = link.call(Bytes::from_static(b"ping"), soon()).await.unwrap();
    assert_eq!(&answer[..], b"ping");
    assert_eq!(server.metrics.accepted.get(), 1);
}

#[tokio::test]
async fn a_refusal_reaches_the_client_with_its_code_and_text() {
    let pki = Pki::new();
    let server = echo_server(&pki);
    let error = dialer(&pki).link(server.address, b"refuse me", echo()).await.unwrap_err();
    assert_eq!(error, CallError::Refused { code: 7, text: "no room for you".into() });
    let error = dialer(&pki).bulk(server.address, b"refuse me").await.unwrap_err();
    assert_eq!(error, CallError::Refused { code: 7, text: "no room for you".into() });
    assert_eq!(server.metrics.refused.get(), 2);
}

#[tokio::test]
async fn ten_thousand_calls_share_a_stream_and_each_gets_its_own_answer() {
    let pki = Pki::new();
    let server = echo_server(&pki);
    let (link, _) = dialer(&pki).link(server.address, b"", echo()).await.unwrap();
    let calls: Vec<_> = (0..10_000u64)
        .map(|n| {
            let link = link.clone();
            tokio::spawn(async move {
                let request = Bytes::from(n.to_le_bytes().repeat(1 + n as usize % 20));
                assert_eq!(link.call(request.clone(), soon()).await.unwrap(), request);
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
    assert_eq!(link.calls_under_way(), 0);
}

#[tokio::test]
async fn the_server_calls_the_client_also_while_it_answers() {
    let pki = Pki::new();
    // Asks back before it answers, as a recall does.
    let asking = Arc::new(|link: Link, request: Bytes| async move {
        let mut answer = link.call(Bytes::from_static(b"really?"), soon()).await.unwrap().to_vec();
        answer.extend_from_slice(&request);
        Bytes::from(answer)
    });
    let mut server = serve(&pki, limits(), any_port(), asking, bulk_echo());
    let client = Arc::new(|_: Link, request: Bytes| async move {
        assert_eq!(&request[..], b"really?");
        Bytes::from_static(b"yes: ")
    });
    let (link, _) = dialer(&pki).link(server.address, b"", client).await.unwrap();
    let answer = link.call(Bytes::from_static(b"x"), soon()).await.unwrap();
    assert_eq!(&answer[..], b"yes: x");
    let from_server = server.links.recv().await.unwrap();
    let answer = from_server.call(Bytes::from_static(b"really?"), soon()).await.unwrap();
    assert_eq!(&answer[..], b"yes: ");
}

/// Counts handlers that began and that were dropped before they ended; they never end by themselves.
#[derive(Default)]
struct Stuck {
    begun: AtomicUsize,
    dropped: Arc<AtomicUsize>,
    notices: AtomicU64,
}

struct CountDrop(Arc<AtomicUsize>);

impl Drop for CountDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Handler for Stuck {
    fn call(&self, _: &Link, request: Bytes) -> ReplyFuture {
        if &request[..] == b"quick" {
            return Box::pin(std::future::ready(request));
        }
        self.begun.fetch_add(1, Ordering::SeqCst);
        let guard = CountDrop(self.dropped.clone());
        Box::pin(async move {
            let _guard = guard;
            std::future::pending().await
        })
    }

    fn notice(&self, _: &Link, message: Bytes) {
        self.notices.fetch_add(message.len() as u64, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn deadline_and_drop_withdraw_a_call_and_the_server_drops_the_work() {
    let pki = Pki::new();
    let stuck = Arc::new(Stuck::default());
    let server = serve(&pki, limits(), any_port(), stuck.clone(), bulk_echo());
    let (link, _) = dialer(&pki).link(server.address, b"", echo()).await.unwrap();

    let error = link.call(Bytes::from_static(b"slow"), in_ms(100)).await.unwrap_err();
    assert_eq!(error, CallError::Deadline);
    eventually("work dropped", || stuck.dropped.load(Ordering::SeqCst) == 1).await;

    let call = tokio::spawn({
        let link = link.clone();
        async move { link.call(Bytes::from_static(b"slow"), None).await }
    });
    eventually("begun", || stuck.begun.load(Ordering::SeqCst) == 2).await;
    call.abort();
    eventually("work dropped", || stuck.dropped.load(Ordering::SeqCst) == 2).await;
    assert_eq!(server.metrics.calls_cancelled.get(), 2);
    assert_eq!(link.calls_under_way(), 0);
    assert_eq!(&link.call(Bytes::from_static(b"quick"), soon()).await.unwrap()[..], b"quick");
}

#[tokio::test]
async fn more_calls_than_the_peer_accepts_wait_and_withdrawn_ones_make_room() {
    let pki = Pki::new();
    let stuck = Arc::new(Stuck::default());
    let few = Limits { max_calls: 4, ..limits() };
    let server = serve(&pki, few, any_port(), stuck.clone(), bulk_echo());
    let (link, _) = dialer(&pki).link(server.address, b"", echo()).await.unwrap();
    for _ in 0..10 {
        let waiting: Vec<_> = (0..4)
            .map(|_| {
                let link = link.clone();
                tokio::spawn(async move { link.call(Bytes::from_static(b"slow"), None).await })
            })
            .collect();
        eventually("four under way", || link.calls_under_way() == 4).await;
        let fifth = link.call(Bytes::from_static(b"quick"), in_ms(20)).await;
        assert_eq!(fifth, Err(CallError::Deadline), "the fifth waits");
        for call in waiting {
            call.abort();
        }
        link.call(Bytes::from_static(b"quick"), soon()).await.unwrap();
    }
    assert_eq!(server.metrics.protocol_errors.get(), 0);
}

#[tokio::test]
async fn notices_arrive_and_need_no_answer() {
    let pki = Pki::new();
    let stuck = Arc::new(Stuck::default());
    let server = serve(&pki, limits(), any_port(), stuck.clone(), bulk_echo());
    let (link, _) = dialer(&pki).link(server.address, b"", echo()).await.unwrap();
    for _ in 0..100 {
        link.notify(Bytes::from_static(b"12345")).await.unwrap();
    }
    eventually("all notices", || stuck.notices.load(Ordering::SeqCst) == 500).await;
}

#[tokio::test]
async fn large_messages_pass_and_too_large_ones_are_refused_before_they_are_sent() {
    let pki = Pki::new();
    let server = echo_server(&pki);
    let (link, _) = dialer(&pki).link(server.address, b"", echo()).await.unwrap();
    let large = Bytes::from(vec![7; limits().max_frame_bytes as usize]);
    assert_eq!(link.call(large.clone(), soon()).await.unwrap(), large);
    let larger = Bytes::from(vec![7; limits().max_frame_bytes as usize + 1]);
    let error = link.call(larger, soon()).await.unwrap_err();
    assert!(matches!(error, CallError::TooLarge { limit: 1_310_720, .. }), "{error}");
    link.call(Bytes::from_static(b"still up"), soon()).await.unwrap();
}

#[tokio::test]
async fn a_handler_that_panics_or_answers_too_much_fails_its_own_call_only() {
    let pki = Pki::new();
    let unsound = Arc::new(|_: Link, request: Bytes| async move {
        if &request[..] == b"later" {
            tokio::task::yield_now().await;
        }
        match &request[..] {
            b"now" | b"later" => panic!("a fault in a handler"),
            b"much" => Bytes::from(vec![0; 2 << 20]),
            _ => request,
        }
    });
    let server = serve(&pki, limits(), any_port(), unsound, bulk_echo());
    let (link, _) = dialer(&pki).link(server.address, b"", echo()).await.unwrap();
    for fault in [&b"now"[..], b"later", b"much"] {
        let answer = link.call(Bytes::from_static(fault), soon()).await;
        assert_eq!(answer, Err(CallError::Cancelled));
    }
    link.call(Bytes::from_static(b"still up"), soon()).await.unwrap();
}

#[tokio::test]
async fn shutdown_lets_calls_finish_and_takes_no_new_ones() {
    let pki = Pki::new();
    let slow = Arc::new(|_: Link, request: Bytes| async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        request
    });
    let server = serve(&pki, limits(), any_port(), slow, bulk_echo());
    let (link, _) = dialer(&pki).link(server.address, b"", echo()).await.unwrap();
    let under_way = tokio::spawn({
        let link = link.clone();
        async move { link.call(Bytes::from_static(b"finish me"), soon()).await }
    });
    eventually("under way", || link.calls_under_way() == 1).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let stopping = tokio::spawn({
        let server = server.server.clone();
        async move { server.shutdown(in_ms(5000)).await }
    });
    let reason = link.unusable().await;
    assert_eq!(reason, CallError::Lost("the peer is shutting down".into()));
    let refused = link.call(Bytes::from_static(b"late"), soon()).await;
    assert!(matches!(refused, Err(CallError::Lost(_))), "{refused:?}");
    assert_eq!(&under_way.await.unwrap().unwrap()[..], b"finish me");
    stopping.await.unwrap();
    assert!(matches!(link.closed().await, CallError::Lost(_)));
}

#[tokio::test]
async fn closing_fails_calls_at_both_ends() {
    let pki = Pki::new();
    let stuck = Arc::new(Stuck::default());
    let mut server = serve(&pki, limits(), any_port(), stuck.clone(), bulk_echo());
    let client = Arc::new(Stuck::default());
    let (link, _) = dialer(&pki).link(server.address, b"", client.clone()).await.unwrap();
    let far = server.links.recv().await.unwrap();
    let here = tokio::spawn({
        let link = link.clone();
        async move { link.call(Bytes::from_static(b"x"), None).await }
    });
    let there = tokio::spawn(async move { far.call(Bytes::from_static(b"y"), None).await });
    eventually("both under way", || {
        stuck.begun.load(Ordering::SeqCst) == 1 && client.begun.load(Ordering::SeqCst) == 1
    })
    .await;
    link.close();
    assert_eq!(here.await.unwrap(), Err(CallError::Closed));
    assert!(matches!(there.await.unwrap(), Err(CallError::Lost(_))));
    eventually("work dropped", || stuck.dropped.load(Ordering::SeqCst) == 1).await;
    eventually("gauge", || server.metrics.connections.get() == 0).await;
}
