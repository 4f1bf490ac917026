//! Answering the calls on a bulk connection.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::Semaphore;

use super::bulk::{Bounds, Budget, Puller, await_goodbye, check_size, write_message};
use super::frame::{self, FrameKind};
use super::hello::{self, Greeted, Terms};
use super::life::Life;
use super::{BulkMessage, CallError, CloseCode, Limits, NetMetrics, with_deadline};

/// How long a client may be silent while a shutdown waits for it to read its answers and close. One that is there
/// acknowledges what it gets within milliseconds, and closes when it has all; one whose process or runtime has gone
/// without a word never does.
const SILENCE: Duration = Duration::from_millis(500);

/// The answer to a bulk call, in the making.
pub type BulkReplyFuture = Pin<Box<dyn Future<Output = BulkMessage> + Send>>;

/// What answers bulk calls. They run concurrently, in no order.
///
/// The future is dropped where it stands when the caller withdraws or the connection ends. What must be
/// finished once begun belongs into a task of its own.
pub trait BulkHandler: Send + Sync + 'static {
    /// Answers a call.
    fn call(&self, request: BulkMessage) -> BulkReplyFuture;
}

impl<F, Fut> BulkHandler for F
where
    F: Fn(BulkMessage) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = BulkMessage> + Send + 'static,
{
    fn call(&self, request: BulkMessage) -> BulkReplyFuture {
        Box::pin(self(request))
    }
}

/// A bulk connection, seen from the side that answers. Clones are the same connection; it is served until it
/// is closed or lost.
#[derive(Clone)]
pub struct BulkPeer {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for BulkPeer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let remote = self.shared.conn.remote_address();
        f.debug_struct("BulkPeer").field("remote", &remote).finish_non_exhaustive()
    }
}

struct Shared {
    conn: Connection,
    life: Life,
    theirs: Terms,
    bounds: Bounds,
    budget: Budget,
    handler: Arc<dyn BulkHandler>,
    metrics: NetMetrics,
    /// One permit for each stream being served; all are free when every answer is written.
    active: Semaphore,
    max_active: u32,
    /// The stream of the greeting, on which goodbye is said.
    control: tokio::sync::Mutex<SendStream>,
}

impl BulkPeer {
    pub(super) fn start(
        greeted: Greeted,
        handler: Arc<dyn BulkHandler>,
        limits: &Limits,
        metrics: NetMetrics,
    ) -> Self {
        let Greeted { conn, send, mut recv, mut decoder, theirs, .. } = greeted;
        let shared = Arc::new(Shared {
            conn,
            life: Life::new(),
            theirs,
            bounds: Bounds::of(limits),
            budget: Budget::new(limits.max_bulk_bytes),
            handler,
            metrics,
            active: Semaphore::new(limits.max_bulk_calls as usize + 1),
            max_active: limits.max_bulk_calls + 1,
            control: tokio::sync::Mutex::new(send),
        });
        tokio::spawn(accept_streams(shared.clone()));
        let watched = shared.clone();
        tokio::spawn(async move {
            match await_goodbye(&mut recv, &mut decoder).await {
                // The client makes no new calls; it closes when it has its answers.
                Ok(()) => watched.life.drain(CallError::lost("the peer is shutting down")),
                Err(error) => watched.end(error),
            }
        });
        Self { shared }
    }

    /// Ends the connection at once. Calls under way fail.
    pub fn close(&self) {
        self.shared.end(CallError::Closed);
    }

    /// Ends the connection in order: the client is told to make no new calls, those under way are
    /// finished, until `deadline` at the latest.
    pub async fn shutdown(&self, deadline: Instant) {
        let shared = &*self.shared;
        shared.life.drain(CallError::Closed);
        let quiet = async {
            let mut goodbye = BytesMut::new();
            frame::put_header(&mut goodbye, FrameKind::Goodbye, 0, 0);
            shared.control.lock().await.write_chunk(goodbye.freeze()).await?;
            let all = shared.active.acquire_many(shared.max_active).await;
            all.map(drop).map_err(|_| CallError::Closed)?;
            shared.until_read().await;
            Ok(())
        };
        if let Err(error) = with_deadline(Some(deadline), quiet).await {
            tracing::debug!(%error, "bulk calls were still under way at shutdown");
        }
        self.close();
    }

    /// Waits until the connection has ended, and tells why.
    pub async fn closed(&self) -> CallError {
        self.shared.life.closed().await
    }
}

impl Shared {
    /// All answers are written: waits until the client has read them and closes, because what is unread when this side
    /// closes is lost. Not for a client from which nothing more is heard.
    async fn until_read(&self) {
        let mut heard = self.conn.stats().udp_rx.datagrams;
        while tokio::time::timeout(SILENCE, self.conn.closed()).await.is_err() {
            let now = self.conn.stats().udp_rx.datagrams;
            // A call that crossed the goodbye may still be under way; its client has nothing to say meanwhile.
            let idle = self.active.available_permits() == self.max_active as usize;
            if now == heard && idle {
                tracing::debug!("a client went without closing its bulk connection");
                return;
            }
            heard = now;
        }
    }

    fn end(&self, error: CallError) {
        if hello::end(&self.conn, &self.life, &self.metrics, error) {
            self.active.close();
        }
    }
}

async fn accept_streams(shared: Arc<Shared>) {
    loop {
        match shared.conn.accept_bi().await {
            Ok((send, recv)) => {
                let served = shared.clone();
                tokio::spawn(async move {
                    // QUIC bounds the streams; this only counts them.
                    if let Ok(_active) = served.active.acquire().await {
                        serve(&served, Answer { send, given: false }, recv).await;
                    }
                });
            }
            Err(error) => {
                shared.end(error.into());
                return;
            }
        }
    }
}

/// Resets the stream when its call ends without an answer, in whatever way.
struct Answer {
    send: SendStream,
    given: bool,
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.given {
            // Fails if the connection has ended, and then nobody waits for an answer.
            let _ = self.send.reset(CloseCode::Failed.to_var_int());
        }
    }
}

async fn serve(shared: &Shared, mut answer: Answer, mut recv: RecvStream) {
    let withdrawn = answer.send.stopped();
    let work = async {
        let (request, _space) =
            Puller::new(&mut recv).message(&shared.bounds, Some(&shared.budget)).await?;
        Ok::<_, CallError>(shared.handler.call(request).await)
    };
    let reply = tokio::select! {
        reply = work => reply,
        _ = withdrawn => Err(CallError::Cancelled),
    };
    let result = match reply {
        Ok(reply) => match check_size(&reply, &shared.theirs) {
            Ok(()) => write_message(&mut answer.send, reply).await,
            Err(error) => {
                tracing::error!(%error, "a bulk reply was not sent");
                shared.metrics.calls_failed.inc();
                return;
            }
        },
        Err(error) => Err(error),
    };
    match result {
        Ok(()) => answer.given = true,
        Err(CallError::Cancelled) => {
            shared.metrics.calls_cancelled.inc();
        }
        Err(error @ CallError::Protocol(_)) => shared.end(error),
        // The connection is gone, and others have noticed.
        Err(error) => tracing::trace!(%error, "bulk call ended"),
    }
}
