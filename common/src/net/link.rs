//! A metadata connection: calls in both directions, multiplexed on one stream.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::task::AbortHandle;

use super::frame::{Decoder, Frame, FrameKind};
use super::hello::Greeted;
use super::life::Life;
use super::queue::SendQueue;
use super::{CallError, CloseCode, Limits, NetMetrics, with_deadline};

/// The answer to a call, in the making.
pub type ReplyFuture = Pin<Box<dyn Future<Output = Bytes> + Send>>;

/// What answers the calls of the peer.
///
/// [`call`](Self::call) and the first poll of its future run in the order in which calls arrive; after that,
/// calls run concurrently. Neither may block the thread.
///
/// The future is dropped where it stands when the caller cancels or the connection ends. What must be
/// finished once begun belongs into a task of its own.
pub trait Handler: Send + Sync + 'static {
    /// Answers a call. `link` is the connection that it came on, for calls in the other direction.
    fn call(&self, link: &Link, request: Bytes) -> ReplyFuture;

    /// Takes a message that has no answer, in the order of arrival.
    fn notice(&self, link: &Link, message: Bytes) {
        tracing::debug!(peer = %link.remote_address(), bytes = message.len(), "unexpected notice");
    }
}

impl<F, Fut> Handler for F
where
    F: Fn(Link, Bytes) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Bytes> + Send + 'static,
{
    fn call(&self, link: &Link, request: Bytes) -> ReplyFuture {
        Box::pin(self(link.clone(), request))
    }
}

/// One metadata connection. Clones are the same connection; it stays up, whether or not anybody holds
/// one, until it is closed or lost.
#[derive(Clone)]
pub struct Link {
    pub(super) shared: Arc<Shared>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("remote", &self.remote_address()).finish_non_exhaustive()
    }
}

type Waiter = oneshot::Sender<Result<Bytes, CallError>>;

/// Lock order: none of these mutexes is taken while another is held, and none across an await.
pub(super) struct Shared {
    conn: Connection,
    pub(super) handler: Arc<dyn Handler>,
    pub(super) queue: SendQueue,
    pub(super) metrics: NetMetrics,
    next_id: AtomicU64,
    /// Calls of this side that wait for an answer.
    pending: Mutex<HashMap<u64, Waiter>>,
    /// As many calls as the peer accepts.
    outgoing: Semaphore,
    max_frame_out: u32,
    /// Calls of the peer that are being answered.
    pub(super) inbound: Mutex<HashMap<u64, AbortHandle>>,
    pub(super) max_inbound: usize,
    /// Told whenever `inbound` or `pending` has become empty.
    pub(super) idle: Notify,
    /// Told when the writer has nothing left and the peer has received all.
    flushed: Notify,
    life: Life,
}

impl Link {
    /// Puts a greeted connection to work.
    pub(super) fn start(
        greeted: Greeted,
        handler: Arc<dyn Handler>,
        limits: &Limits,
        metrics: NetMetrics,
    ) -> Self {
        let Greeted { conn, send, recv, decoder, theirs, .. } = greeted;
        let shared = Arc::new(Shared {
            conn,
            handler,
            queue: SendQueue::new(limits.max_queued_bytes),
            metrics,
            next_id: AtomicU64::new(1),
            pending: Mutex::default(),
            outgoing: Semaphore::new(theirs.max_calls.min(limits.max_calls) as usize),
            max_frame_out: theirs.max_frame_bytes,
            inbound: Mutex::default(),
            max_inbound: limits.max_calls as usize,
            idle: Notify::new(),
            flushed: Notify::new(),
            life: Life::new(),
        });
        let link = Self { shared: shared.clone() };
        tokio::spawn(write_frames(EndOfLink(shared.clone()), send));
        tokio::spawn(read_frames(EndOfLink(shared), recv, decoder));
        link
    }

    /// Calls the peer. Dropping the future, or the deadline, withdraws the call: the peer is told.
    /// Without a deadline the call waits as long as the connection lives.
    pub async fn call(
        &self,
        request: Bytes,
        deadline: impl Into<Option<Instant>>,
    ) -> Result<Bytes, CallError> {
        with_deadline(deadline.into(), self.call_patiently(request)).await
    }

    async fn call_patiently(&self, request: Bytes) -> Result<Bytes, CallError> {
        let shared = &*self.shared;
        shared.check_size(&request)?;
        shared.life.check_open()?;
        let _slot = shared.outgoing.acquire().await.map_err(|_| shared.life.end())?;
        let space = shared.queue.reserve(request.len()).await.ok_or_else(|| shared.life.end())?;
        let id = shared.next_id.fetch_add(1, Ordering::Relaxed);
        let (waiter, answer) = oneshot::channel();
        // Declared after the slot, so dropped before it: the peer hears of the withdrawal before it can
        // hear of a call that takes the slot.
        let mut withdrawal = Withdrawal { shared, id, armed: true };
        lock(&shared.pending).insert(id, waiter);
        // A close that came before the insert has not seen the entry.
        if let Err(end) = shared.life.check_open() {
            withdrawal.armed = false;
            lock(&shared.pending).remove(&id);
            shared.note_idle();
            shared.queue.unused(space);
            return Err(end);
        }
        shared.queue.push(space, FrameKind::Request, id, request);
        let answer = answer.await;
        withdrawal.armed = false;
        answer.unwrap_or_else(|_| Err(shared.life.end()))
    }

    /// Sends a message that has no answer. It is waited for only until there is space to queue it.
    pub async fn notify(&self, message: Bytes) -> Result<(), CallError> {
        let shared = &*self.shared;
        shared.check_size(&message)?;
        shared.life.check_open()?;
        let space = shared.queue.reserve(message.len()).await.ok_or_else(|| shared.life.end())?;
        shared.queue.push(space, FrameKind::OneWay, 0, message);
        Ok(())
    }

    /// Ends the connection at once. Calls under way fail at both ends.
    pub fn close(&self) {
        self.shared.close(CallError::Closed, CloseCode::Done, "");
    }

    /// Ends the connection in order: the peer is told to send no new calls, those under way in both
    /// directions are finished, until `deadline` at the latest.
    pub async fn shutdown(&self, deadline: Instant) {
        let shared = &*self.shared;
        shared.life.drain(CallError::Closed);
        shared.queue.push_small(FrameKind::Goodbye, 0);
        let quiet = async {
            while !lock(&shared.inbound).is_empty() || !lock(&shared.pending).is_empty() {
                shared.idle.notified().await;
            }
            shared.queue.finish();
            shared.flushed.notified().await;
            Ok(())
        };
        let ended = async {
            self.closed().await;
            Ok(())
        };
        let result = with_deadline(Some(deadline), async {
            tokio::select! { r = quiet => r, r = ended => r }
        });
        if result.await.is_err() {
            tracing::debug!(peer = %self.remote_address(), "calls were still under way at shutdown");
        }
        self.close();
    }

    /// Waits until the connection is of no use for new calls, and tells why.
    pub async fn unusable(&self) -> CallError {
        self.shared.life.unusable().await
    }

    /// Waits until the connection has ended, and tells why.
    pub async fn closed(&self) -> CallError {
        self.shared.life.closed().await
    }

    /// The peer's address, as of now.
    pub fn remote_address(&self) -> std::net::SocketAddr {
        self.shared.conn.remote_address()
    }

    /// The present estimate of the round trip time.
    pub fn round_trip(&self) -> std::time::Duration {
        self.shared.conn.rtt()
    }

    /// Calls of this side that wait for an answer, for the curious.
    pub fn calls_under_way(&self) -> usize {
        lock(&self.shared.pending).len()
    }
}

impl Shared {
    pub(super) fn check_size(&self, message: &Bytes) -> Result<(), CallError> {
        if message.len() <= self.max_frame_out as usize {
            return Ok(());
        }
        Err(CallError::TooLarge {
            what: "message",
            size: message.len() as u64,
            limit: u64::from(self.max_frame_out),
        })
    }

    /// Ends everything. The first reason counts.
    pub(super) fn close(&self, error: CallError, code: CloseCode, text: &str) {
        if !self.life.close(error.clone()) {
            return;
        }
        if matches!(error, CallError::Protocol(_)) {
            self.metrics.protocol_errors.inc();
            tracing::warn!(peer = %self.conn.remote_address(), %error, "connection closed");
        }
        self.conn.close(code.to_var_int(), text.as_bytes());
        self.queue.close();
        self.outgoing.close();
        for (_, waiter) in lock(&self.pending).drain() {
            // Nobody may be waiting any more.
            let _ = waiter.send(Err(error.clone()));
        }
        for (_, task) in lock(&self.inbound).drain() {
            task.abort();
        }
        self.note_idle();
    }

    pub(super) fn note_idle(&self) {
        self.idle.notify_one();
    }

    /// Takes one frame of the peer.
    fn accept(self: &Arc<Self>, frame: Frame) -> Result<(), CallError> {
        let Frame { kind, id, body } = frame;
        match kind {
            FrameKind::Request => self.answer(id, body)?,
            FrameKind::Reply => self.settle(id, Ok(body))?,
            FrameKind::Abandon => self.settle(id, Err(CallError::Cancelled))?,
            FrameKind::Cancel => self.cancelled(id),
            FrameKind::OneWay => {
                let link = Link { shared: self.clone() };
                self.guarded(|| self.handler.notice(&link, body));
            }
            FrameKind::Goodbye => self.life.drain(CallError::lost("the peer is shutting down")),
            FrameKind::Hello | FrameKind::Welcome => {
                return Err(CallError::protocol("a greeting where none is due"));
            }
        }
        Ok(())
    }

    fn settle(&self, id: u64, answer: Result<Bytes, CallError>) -> Result<(), CallError> {
        if let Some(waiter) = self.forget(id) {
            // The caller may have given up in this very moment.
            let _ = waiter.send(answer);
            return Ok(());
        }
        // An answer that crossed its withdrawal is fine, one to a call never made is not.
        if (1..self.next_id.load(Ordering::Relaxed)).contains(&id) {
            Ok(())
        } else {
            Err(CallError::protocol(format!("an answer to call {id}, which was never made")))
        }
    }

    fn forget(&self, id: u64) -> Option<Waiter> {
        let mut pending = lock(&self.pending);
        let waiter = pending.remove(&id);
        if pending.is_empty() {
            self.note_idle();
        }
        waiter
    }
}

/// Tells the peer when a call is no longer wanted.
struct Withdrawal<'a> {
    shared: &'a Shared,
    id: u64,
    armed: bool,
}

impl Drop for Withdrawal<'_> {
    fn drop(&mut self) {
        if self.armed && self.shared.forget(self.id).is_some() {
            self.shared.queue.push_small(FrameKind::Cancel, self.id);
        }
    }
}

/// Closes the link when the task that holds it ends in any way, also by a panic.
struct EndOfLink(Arc<Shared>);

impl Drop for EndOfLink {
    fn drop(&mut self) {
        self.0.close(CallError::lost("the connection's task has ended"), CloseCode::Done, "");
    }
}

impl EndOfLink {
    fn fail(&self, error: CallError) {
        match &error {
            CallError::Protocol(text) => {
                let text = text.clone();
                self.0.close(error, CloseCode::Protocol, &text);
            }
            _ => self.0.close(error, CloseCode::Done, ""),
        }
    }
}

async fn write_frames(end: EndOfLink, mut send: SendStream) {
    let shared = &*end.0;
    while let Some(mut batch) = shared.queue.take().await {
        if let Err(error) = send.write_all_chunks(&mut batch.pieces).await {
            end.fail(error.into());
            return;
        }
        shared.queue.written(&batch);
    }
    // Either closed, when this changes nothing, or shut down: then the peer is to receive all of it.
    if send.finish().is_ok() {
        match send.stopped().await {
            Ok(_) => shared.flushed.notify_one(),
            Err(error) => tracing::trace!(%error, "connection ended before it was flushed"),
        }
    }
}

/// Frames handled before other tasks get their turn.
const FRAMES_PER_TURN: u32 = 128;
/// Pieces taken from the stream at once.
const PIECES_PER_READ: usize = 32;

async fn read_frames(end: EndOfLink, mut recv: RecvStream, mut decoder: Decoder) {
    let error = match read_until_end(&end.0, &mut recv, &mut decoder).await {
        Err(error) => error,
        Ok(()) if decoder.is_mid_frame() => CallError::protocol("the stream ended in a frame"),
        Ok(()) => CallError::lost("the peer said goodbye"),
    };
    end.fail(error);
}

async fn read_until_end(
    shared: &Arc<Shared>,
    recv: &mut RecvStream,
    decoder: &mut Decoder,
) -> Result<(), CallError> {
    let mut pieces: [Bytes; PIECES_PER_READ] = std::array::from_fn(|_| Bytes::new());
    let mut handled = 0;
    loop {
        // The first round takes what came together with the greeting.
        handled += accept_whole(shared, decoder)?;
        let Some(count) = recv.read_chunks(&mut pieces).await? else { return Ok(()) };
        for piece in &mut pieces[..count] {
            decoder.feed(std::mem::take(piece));
            handled += accept_whole(shared, decoder)?;
        }
        if handled >= FRAMES_PER_TURN {
            handled = 0;
            tokio::task::yield_now().await;
        }
    }
}

/// Takes all frames that have come whole, and tells how many.
fn accept_whole(shared: &Arc<Shared>, decoder: &mut Decoder) -> Result<u32, CallError> {
    let mut count = 0;
    while let Some(frame) = decoder.next().map_err(|e| CallError::protocol(e.to_string()))? {
        shared.accept(frame)?;
        count += 1;
    }
    Ok(count)
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
