//! The greeting: the first exchange on every connection, before which nothing else is said.
//!
//! The client opens one stream and sends a `Hello` frame, the server answers with `Welcome` or closes the
//! connection with a reason. Both frames begin with the [`Terms`] of their sender; the rest belongs to the
//! application.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use quinn::{Connection, RecvStream, SendStream};

use super::frame::{self, Decoder, Frame, FrameKind};
use super::life::Life;
use super::{CallError, CloseCode, ConnectionKind, Limits, NetMetrics};

/// Version of the layout of [`Terms`].
const TERMS_VERSION: u8 = 1;
const TERMS_BYTES: usize = 4 + 4 * 4;

/// What a side accepts from the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Terms {
    pub(super) kind: ConnectionKind,
    pub(super) max_frame_bytes: u32,
    pub(super) max_calls: u32,
    pub(super) max_header_bytes: u32,
    pub(super) max_payload_bytes: u32,
}

impl Terms {
    pub(super) fn of(limits: &Limits, kind: ConnectionKind) -> Self {
        Self {
            kind,
            max_frame_bytes: limits.max_frame_bytes,
            max_calls: match kind {
                ConnectionKind::Metadata => limits.max_calls,
                ConnectionKind::Bulk => limits.max_bulk_calls,
            },
            max_header_bytes: limits.max_header_bytes,
            max_payload_bytes: limits.max_payload_bytes,
        }
    }

    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u8(TERMS_VERSION);
        out.put_u8(match self.kind {
            ConnectionKind::Metadata => 1,
            ConnectionKind::Bulk => 2,
        });
        out.put_u16_le(0);
        out.put_u32_le(self.max_frame_bytes);
        out.put_u32_le(self.max_calls);
        out.put_u32_le(self.max_header_bytes);
        out.put_u32_le(self.max_payload_bytes);
    }

    pub(super) fn take(bytes: &mut Bytes) -> Result<Self, CallError> {
        if bytes.len() < TERMS_BYTES {
            return Err(CallError::protocol(format!("a greeting of {} bytes", bytes.len())));
        }
        let version = bytes.get_u8();
        if version != TERMS_VERSION {
            return Err(CallError::protocol(format!(
                "greeting version {version}, this side speaks {TERMS_VERSION}"
            )));
        }
        let kind = match bytes.get_u8() {
            1 => ConnectionKind::Metadata,
            2 => ConnectionKind::Bulk,
            other => return Err(CallError::protocol(format!("connection kind {other}"))),
        };
        let _reserved = bytes.get_u16_le();
        Ok(Self {
            kind,
            max_frame_bytes: bytes.get_u32_le(),
            // A peer that accepts no calls could never be called; one is harmless.
            max_calls: bytes.get_u32_le().max(1),
            max_header_bytes: bytes.get_u32_le(),
            max_payload_bytes: bytes.get_u32_le(),
        })
    }
}

/// A connection whose other side has spoken.
pub(super) struct Greeted {
    pub(super) conn: Connection,
    pub(super) send: SendStream,
    pub(super) recv: RecvStream,
    pub(super) decoder: Decoder,
    /// What the peer accepts.
    pub(super) theirs: Terms,
    /// The application's part of what the peer said.
    pub(super) words: Bytes,
}

/// Says hello on a new connection and waits for the welcome.
pub(super) async fn greet(
    conn: Connection,
    kind: ConnectionKind,
    hello: &[u8],
    limits: &Limits,
) -> Result<Greeted, CallError> {
    let (mut send, mut recv) = conn.open_bi().await?;
    write_frame(&mut send, FrameKind::Hello, Terms::of(limits, kind), hello).await?;
    let mut decoder = Decoder::new(limits.max_hello_bytes);
    let frame = match read_frame(&mut recv, &mut decoder).await {
        Ok(frame) => frame,
        // The reason for which the connection is closed says more than the stream's end.
        Err(error) => return Err(conn.close_reason().map_or(error, CallError::from)),
    };
    let (theirs, words) = open(frame, FrameKind::Welcome).inspect_err(|e| violated(&conn, e))?;
    if theirs.kind != kind {
        let error = CallError::protocol("welcomed to another kind of connection");
        violated(&conn, &error);
        return Err(error);
    }
    decoder.set_max_body(limits.max_frame_bytes);
    Ok(Greeted { conn, send, recv, decoder, theirs, words })
}

/// Waits for the hello on a new connection. Who calls it sets the deadline.
pub(super) async fn await_hello(conn: Connection, limits: &Limits) -> Result<Greeted, CallError> {
    let (send, mut recv) = conn.accept_bi().await?;
    let mut decoder = Decoder::new(limits.max_hello_bytes);
    let frame = read_frame(&mut recv, &mut decoder).await.inspect_err(|e| violated(&conn, e))?;
    let (theirs, words) = open(frame, FrameKind::Hello).inspect_err(|e| violated(&conn, e))?;
    decoder.set_max_body(limits.max_frame_bytes);
    Ok(Greeted { conn, send, recv, decoder, theirs, words })
}

/// Answers a hello.
pub(super) async fn welcome(
    greeted: &mut Greeted,
    words: &[u8],
    limits: &Limits,
) -> Result<(), CallError> {
    let terms = Terms::of(limits, greeted.theirs.kind);
    write_frame(&mut greeted.send, FrameKind::Welcome, terms, words).await
}

/// Closes a connection whose peer broke the protocol, and tells it how.
pub(super) fn violated(conn: &Connection, error: &CallError) {
    if let CallError::Protocol(text) = error {
        conn.close(CloseCode::Protocol.to_var_int(), text.as_bytes());
    }
}

/// Ends a connection, and its life with it; `false` if it had ended before. A peer that broke the protocol is told so, and
/// counted.
pub(super) fn end(conn: &Connection, life: &Life, metrics: &NetMetrics, error: CallError) -> bool {
    if !life.close(error.clone()) {
        return false;
    }
    if let CallError::Protocol(_) = error {
        metrics.protocol_errors.inc();
        tracing::warn!(peer = %conn.remote_address(), %error, "connection closed");
        violated(conn, &error);
    }
    conn.close(CloseCode::Done.to_var_int(), b"");
    true
}

fn open(frame: Frame, expected: FrameKind) -> Result<(Terms, Bytes), CallError> {
    if frame.kind != expected {
        return Err(CallError::protocol(format!("{:?} where {expected:?} is due", frame.kind)));
    }
    let mut words = frame.body;
    let terms = Terms::take(&mut words)?;
    Ok((terms, words))
}

async fn write_frame(
    send: &mut SendStream,
    kind: FrameKind,
    terms: Terms,
    words: &[u8],
) -> Result<(), CallError> {
    let size = (TERMS_BYTES + words.len()) as u64;
    let body_len = u32::try_from(size)
        .ok()
        .filter(|size| *size <= 1 << 20)
        .ok_or(CallError::TooLarge { what: "greeting", size, limit: 1 << 20 })?;
    let mut out = BytesMut::new();
    frame::put_header(&mut out, kind, 0, body_len);
    terms.put(&mut out);
    out.put_slice(words);
    Ok(send.write_chunk(out.freeze()).await?)
}

async fn read_frame(recv: &mut RecvStream, decoder: &mut Decoder) -> Result<Frame, CallError> {
    loop {
        if let Some(frame) = decoder.next().map_err(|e| CallError::protocol(e.to_string()))? {
            return Ok(frame);
        }
        match recv.read_chunk(usize::MAX, true).await? {
            Some(chunk) => decoder.feed(chunk.bytes),
            None => {
                return Err(CallError::Protocol(Arc::from("the stream ended before a greeting")));
            }
        }
    }
}
