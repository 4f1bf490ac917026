//! A bulk connection: a stream per call, payloads that no codec touches.
//!
//! On each stream, in both directions: `u32` header length, header, `u64` payload length, payload, end of stream.
//! Numbers are little-endian.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::Semaphore;

use super::frame::{Decoder, FrameKind};
use super::hello::{self, Greeted, Terms};
use super::life::Life;
use super::{CallError, CloseCode, Limits, NetMetrics, with_deadline};

/// The payload of a bulk message, in the pieces in which it came or was given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Payload {
    chunks: Vec<Bytes>,
    len: usize,
}

impl Payload {
    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its pieces, as for `pwritev`.
    pub fn chunks(&self) -> &[Bytes] {
        &self.chunks
    }

    /// Its pieces.
    pub fn into_chunks(self) -> Vec<Bytes> {
        self.chunks
    }

    /// All of it in one piece: copied once, or not at all if it is one piece already.
    pub fn into_bytes(mut self) -> Bytes {
        if self.chunks.len() <= 1 {
            return self.chunks.pop().unwrap_or_default();
        }
        let mut whole = BytesMut::with_capacity(self.len);
        for chunk in self.chunks {
            whole.put_slice(&chunk);
        }
        whole.freeze()
    }
}

impl From<Vec<Bytes>> for Payload {
    fn from(mut chunks: Vec<Bytes>) -> Self {
        chunks.retain(|chunk| !chunk.is_empty());
        let len = chunks.iter().map(Bytes::len).sum();
        Self { chunks, len }
    }
}

impl From<Bytes> for Payload {
    fn from(whole: Bytes) -> Self {
        vec![whole].into()
    }
}

/// A request or a reply on a bulk connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BulkMessage {
    /// What the application's codec made.
    pub header: Bytes,
    /// What goes with it.
    pub payload: Payload,
}

impl BulkMessage {
    /// A message of the two.
    pub fn new(header: Bytes, payload: impl Into<Payload>) -> Self {
        Self { header, payload: payload.into() }
    }
}

/// A bulk connection, seen from the side that calls. Clones are the same connection; it stays up until it
/// is closed or lost.
#[derive(Clone)]
pub struct Bulk {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Bulk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bulk").field("remote", &self.remote_address()).finish_non_exhaustive()
    }
}

struct Shared {
    conn: Connection,
    life: Life,
    theirs: Terms,
    bounds: Bounds,
    /// As many calls as both sides accept.
    calls: Semaphore,
    max_calls: u32,
    metrics: NetMetrics,
}

impl Bulk {
    pub(super) fn start(greeted: Greeted, limits: &Limits, metrics: NetMetrics) -> Self {
        let Greeted { conn, send, recv, decoder, theirs, .. } = greeted;
        let max_calls = theirs.max_calls.min(limits.max_bulk_calls);
        let shared = Arc::new(Shared {
            conn,
            life: Life::new(),
            theirs,
            bounds: Bounds::of(limits),
            calls: Semaphore::new(max_calls as usize),
            max_calls,
            metrics,
        });
        let bulk = Self { shared };
        let watched = bulk.clone();
        tokio::spawn(async move {
            // Held open: its end would tell the server that this side has gone.
            let _control = send;
            watched.watch(recv, decoder).await;
        });
        bulk
    }

    /// Notices when the server says goodbye, and the connection's end.
    async fn watch(&self, mut recv: RecvStream, mut decoder: Decoder) {
        let drained = await_goodbye(&mut recv, &mut decoder).await;
        let shared = &*self.shared;
        match drained {
            Ok(()) => {
                let leaving = CallError::lost("the peer is shutting down");
                shared.life.drain(leaving.clone());
                // The server waits for this side to close: only this side knows when it has read all
                // its answers, and what is unread when a connection closes is lost.
                let error = tokio::select! {
                    _ = shared.calls.acquire_many(shared.max_calls) => leaving,
                    error = shared.conn.closed() => error.into(),
                };
                shared.end(error);
            }
            Err(error) => shared.end(error),
        }
    }

    /// Calls the server. Dropping the future, or the deadline, withdraws the call: its stream is reset.
    pub async fn call(
        &self,
        header: Bytes,
        payload: impl Into<Payload>,
        deadline: impl Into<Option<Instant>>,
    ) -> Result<BulkMessage, CallError> {
        let request = BulkMessage::new(header, payload);
        with_deadline(deadline.into(), self.call_patiently(request)).await
    }

    async fn call_patiently(&self, request: BulkMessage) -> Result<BulkMessage, CallError> {
        let shared = &*self.shared;
        check_size(&request, &shared.theirs)?;
        shared.life.check_open()?;
        let _slot = shared.calls.acquire().await.map_err(|_| shared.life.end())?;
        shared.life.check_open()?;
        let (send, recv) = shared.conn.open_bi().await.map_err(|e| shared.lost(e.into()))?;
        let mut ends = Ends { send, recv, armed: true };
        let Ends { send, recv, .. } = &mut ends;
        // At once, because the server may answer before it has read everything; it then stops the
        // writing, and its answer is what counts.
        let (_written, answer) = tokio::join!(
            write_message(send, request),
            Puller::new(recv).message(&shared.bounds, None)
        );
        match answer {
            Ok((reply, _)) => {
                ends.armed = false;
                Ok(reply)
            }
            Err(error) => Err(shared.lost(error)),
        }
    }

    /// Ends the connection at once. Calls under way fail.
    pub fn close(&self) {
        self.shared.end(CallError::Closed);
    }

    /// Waits until the connection is of no use for new calls, and tells why.
    pub async fn unusable(&self) -> CallError {
        self.shared.life.unusable().await
    }

    /// Waits until the connection has ended, and tells why.
    pub async fn closed(&self) -> CallError {
        self.shared.life.closed().await
    }

    /// The server's address, as of now.
    pub fn remote_address(&self) -> std::net::SocketAddr {
        self.shared.conn.remote_address()
    }

    /// The largest packet that the path is known to carry, for the curious.
    pub fn path_mtu(&self) -> u16 {
        self.shared.conn.stats().path.current_mtu
    }
}

impl Shared {
    /// What a failed stream means for the caller and the connection.
    fn lost(&self, error: CallError) -> CallError {
        if let CallError::Protocol(_) = error {
            self.end(error.clone());
        }
        // If this side has closed the connection, the reason for that says more.
        if error == CallError::Closed { self.life.end() } else { error }
    }

    fn end(&self, error: CallError) {
        if hello::end(&self.conn, &self.life, &self.metrics, error) {
            self.calls.close();
        }
    }
}

/// Both directions of a call's stream; withdraws the call unless it was answered.
struct Ends {
    send: SendStream,
    recv: RecvStream,
    armed: bool,
}

impl Drop for Ends {
    fn drop(&mut self) {
        if self.armed {
            let code = CloseCode::Cancelled.to_var_int();
            // Either fails where that direction has ended already, and then there is nothing to withdraw.
            let _ = self.send.reset(code);
            let _ = self.recv.stop(code);
        }
    }
}

/// Waits for the goodbye on the control stream. Nothing else may come there.
pub(super) async fn await_goodbye(
    recv: &mut RecvStream,
    decoder: &mut Decoder,
) -> Result<(), CallError> {
    loop {
        match decoder.next().map_err(|e| CallError::protocol(e.to_string()))? {
            Some(frame) if frame.kind == FrameKind::Goodbye => return Ok(()),
            Some(frame) => {
                return Err(CallError::protocol(format!("{:?} on a bulk connection", frame.kind)));
            }
            None => {}
        }
        match recv.read_chunk(usize::MAX, true).await? {
            Some(chunk) => decoder.feed(chunk.bytes),
            None => return Err(CallError::lost("the peer said goodbye")),
        }
    }
}

/// What this side accepts on a stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) max_header_bytes: u32,
    pub(super) max_payload_bytes: u32,
}

impl Bounds {
    pub(super) fn of(limits: &Limits) -> Self {
        Self {
            max_header_bytes: limits.max_header_bytes,
            max_payload_bytes: limits.max_payload_bytes,
        }
    }
}

/// Refuses to send what the peer does not accept.
pub(super) fn check_size(message: &BulkMessage, theirs: &Terms) -> Result<(), CallError> {
    for (what, size, limit) in [
        ("header", message.header.len(), theirs.max_header_bytes),
        ("payload", message.payload.len(), theirs.max_payload_bytes),
    ] {
        if size > limit as usize {
            return Err(CallError::TooLarge { what, size: size as u64, limit: u64::from(limit) });
        }
    }
    Ok(())
}

/// Writes a message that has passed [`check_size`], and ends the stream.
pub(super) async fn write_message(
    send: &mut SendStream,
    message: BulkMessage,
) -> Result<(), CallError> {
    let BulkMessage { header, payload } = message;
    let mut head = BytesMut::with_capacity(4 + header.len() + 8);
    head.put_u32_le(header.len() as u32);
    head.put_slice(&header);
    head.put_u64_le(payload.len() as u64);
    let mut pieces = Vec::with_capacity(1 + payload.chunks.len());
    pieces.push(head.freeze());
    pieces.extend(payload.chunks);
    send.write_all_chunks(&mut pieces).await?;
    send.finish().map_err(|_| CallError::Closed)
}

/// Pieces taken from a stream at once.
const PIECES_PER_READ: usize = 32;

/// Reads a message from a stream.
pub(super) struct Puller<'a, S = RecvStream> {
    from: &'a mut S,
    /// What was read beyond what was asked for.
    ahead: Vec<Bytes>,
}

/// Where pieces come from.
pub(super) trait Pieces {
    /// Waits for some, and appends them to `to`; `false` at the end.
    fn more(&mut self, to: &mut Vec<Bytes>)
    -> impl Future<Output = Result<bool, CallError>> + Send;
}

impl Pieces for RecvStream {
    async fn more(&mut self, to: &mut Vec<Bytes>) -> Result<bool, CallError> {
        let mut pieces: [Bytes; PIECES_PER_READ] = std::array::from_fn(|_| Bytes::new());
        let Some(count) = self.read_chunks(&mut pieces).await? else { return Ok(false) };
        to.extend(pieces.into_iter().take(count).filter(|piece| !piece.is_empty()));
        Ok(true)
    }
}

impl<'a, S: Pieces> Puller<'a, S> {
    pub(super) fn new(from: &'a mut S) -> Self {
        Self { from, ahead: Vec::new() }
    }

    /// Reads one message and the end of the stream. Its lengths are checked as soon as they are known; space for
    /// the payload is taken from `budget` before it is read, and freed when the returned permit is dropped.
    pub(super) async fn message<'b>(
        mut self,
        bounds: &Bounds,
        budget: Option<&'b Budget>,
    ) -> Result<(BulkMessage, Option<tokio::sync::SemaphorePermit<'b>>), CallError> {
        let header_len = self.joined(4).await?.get_u32_le();
        if header_len > bounds.max_header_bytes {
            return Err(CallError::protocol(format!(
                "a header of {header_len} bytes, and {} are accepted",
                bounds.max_header_bytes
            )));
        }
        let header = self.joined(header_len as usize).await?;
        let payload_len = self.joined(8).await?.get_u64_le();
        let len = u32::try_from(payload_len)
            .ok()
            .filter(|len| *len <= bounds.max_payload_bytes)
            .ok_or_else(|| {
                CallError::protocol(format!(
                    "a payload of {payload_len} bytes, and {} are accepted",
                    bounds.max_payload_bytes
                ))
            })?;
        let permit = match budget {
            Some(budget) => Some(budget.take(len).await?),
            None => None,
        };
        let payload = Payload { chunks: self.gather(len as usize).await?, len: len as usize };
        if !self.ahead.is_empty() || self.from.more(&mut self.ahead).await? {
            return Err(CallError::protocol("a stream went on after its message"));
        }
        Ok((BulkMessage { header, payload }, permit))
    }

    /// Exactly `len` bytes in one piece.
    async fn joined(&mut self, len: usize) -> Result<Bytes, CallError> {
        Ok(Payload { chunks: self.gather(len).await?, len }.into_bytes())
    }

    /// Exactly `len` bytes in the pieces in which they come.
    async fn gather(&mut self, len: usize) -> Result<Vec<Bytes>, CallError> {
        let mut gathered = Vec::new();
        let mut missing = len;
        while missing > 0 {
            if self.ahead.is_empty() && !self.from.more(&mut self.ahead).await? {
                return Err(CallError::protocol("a stream ended in its message"));
            }
            let whole = self
                .ahead
                .iter()
                .take_while(|piece| {
                    let fits = piece.len() <= missing;
                    if fits {
                        missing -= piece.len();
                    }
                    fits
                })
                .count();
            gathered.extend(self.ahead.drain(..whole));
            if missing > 0
                && let Some(piece) = self.ahead.first_mut()
            {
                gathered.push(piece.split_to(missing));
                missing = 0;
            }
        }
        Ok(gathered)
    }
}

/// A bound on bytes of payload in memory.
#[derive(Debug)]
pub(super) struct Budget {
    space: Semaphore,
    capacity: u32,
}

impl Budget {
    pub(super) fn new(capacity: u32) -> Self {
        Self { space: Semaphore::new(capacity as usize), capacity }
    }

    /// Waits for space. A payload that is larger than all of it may come alone.
    async fn take(&self, bytes: u32) -> Result<tokio::sync::SemaphorePermit<'_>, CallError> {
        self.space.acquire_many(bytes.min(self.capacity)).await.map_err(|_| CallError::Closed)
    }
}
