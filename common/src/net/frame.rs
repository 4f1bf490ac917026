//! Frames: how messages lie on the stream of a metadata connection. Pure functions, no I/O.
//!
//! ```text
//! u32  length of all that follows, little-endian as every number here
//! u8   kind
//! u64  call id, chosen by the caller, counting up; 0 where there is none
//! ...  body
//! ```
//!
//! The layout is fixed by the protocol name `netfs/1`. Kinds can be added when the greeting has established that
//! the peer knows them; anything else needs a new protocol name.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes in front of a frame's body.
pub const HEADER_BYTES: usize = 4 + AFTER_LENGTH_BYTES;
const AFTER_LENGTH_BYTES: usize = 1 + 8;

/// What a frame means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// A call; the peer answers with [`Reply`](Self::Reply) or [`Abandon`](Self::Abandon).
    Request = 1,
    /// The answer to a call of the receiver.
    Reply = 2,
    /// The sender no longer wants the answer to its call.
    Cancel = 3,
    /// A message without an answer.
    OneWay = 4,
    /// The sender takes no new calls and will close the connection when those under way are done.
    Goodbye = 5,
    /// The first frame of a connection, from who opened it.
    Hello = 6,
    /// The answer to it.
    Welcome = 7,
    /// The sender will not answer the receiver's call.
    Abandon = 8,
}

impl FrameKind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Request,
            2 => Self::Reply,
            3 => Self::Cancel,
            4 => Self::OneWay,
            5 => Self::Goodbye,
            6 => Self::Hello,
            7 => Self::Welcome,
            8 => Self::Abandon,
            _ => return None,
        })
    }

    /// Frames of these kinds say all with their header.
    fn has_body(self) -> bool {
        !matches!(self, Self::Cancel | Self::Goodbye | Self::Abandon)
    }
}

/// One message on a metadata connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it means.
    pub kind: FrameKind,
    /// Which call it belongs to.
    pub id: u64,
    /// The message itself. It may share memory with its neighbours: who keeps it for long should copy it.
    pub body: Bytes,
}

/// Input that is no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length does not even cover the frame's own header.
    #[error("a frame claims a length of {0} bytes")]
    TooShort(u32),
    /// The body is longer than is accepted.
    #[error("a frame claims a body of {size} bytes, and {limit} are accepted")]
    TooLong {
        /// What the frame claims.
        size: u32,
        /// What is accepted.
        limit: u32,
    },
    /// A kind that nobody has defined.
    #[error("a frame is of the unknown kind {0}")]
    UnknownKind(u8),
    /// A body where there is none.
    #[error("a frame of kind {0} has a body")]
    UnexpectedBody(u8),
}

/// Appends a frame's header. The body, of `body_len` bytes, is to follow.
pub fn put_header(out: &mut BytesMut, kind: FrameKind, id: u64, body_len: u32) {
    out.put_u32_le(body_len + AFTER_LENGTH_BYTES as u32);
    out.put_u8(kind as u8);
    out.put_u64_le(id);
}

/// Appends a whole frame.
///
/// # Panics
///
/// If the body is longer than any limit on frames can be.
pub fn put(out: &mut BytesMut, frame: &Frame) {
    assert!(frame.body.len() < (u32::MAX - 64) as usize, "frame bodies are bounded by a u32");
    put_header(out, frame.kind, frame.id, frame.body.len() as u32);
    out.put_slice(&frame.body);
}

/// Cuts a stream of bytes into frames, however it is split.
///
/// Frames that lie whole in one piece of input are not copied; others once. What is buffered is less
/// than one frame.
#[derive(Debug)]
pub struct Decoder {
    max_body: u32,
    /// Input not yet looked at.
    input: Bytes,
    /// The beginning of a frame whose rest has not come yet.
    partial: BytesMut,
    failed: Option<FrameError>,
}

impl Decoder {
    /// A decoder that accepts bodies up to `max_body` bytes.
    pub fn new(max_body: u32) -> Self {
        Self { max_body, input: Bytes::new(), partial: BytesMut::new(), failed: None }
    }

    /// Changes the limit for frames whose header has not been read yet.
    pub fn set_max_body(&mut self, max_body: u32) {
        self.max_body = max_body;
    }

    /// Adds input. Cheap if all frames of the input before have been taken out with [`next`](Self::next).
    pub fn feed(&mut self, chunk: Bytes) {
        if self.input.is_empty() {
            self.input = chunk;
        } else {
            let mut joined = BytesMut::with_capacity(self.input.len() + chunk.len());
            joined.put_slice(&self.input);
            joined.put_slice(&chunk);
            self.input = joined.freeze();
        }
    }

    /// The next whole frame, or `None` until more input is fed. After an error there is nothing but that
    /// error: where the next frame would begin is not known.
    #[allow(clippy::should_implement_trait, reason = "None is not the end here")]
    pub fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.step().inspect_err(|error| {
            self.failed = Some(*error);
            self.input.clear();
            self.partial = BytesMut::new();
        })
    }

    /// Whether input has ended in the middle of a frame.
    pub fn is_mid_frame(&self) -> bool {
        !self.partial.is_empty() || !self.input.is_empty()
    }

    fn step(&mut self) -> Result<Option<Frame>, FrameError> {
        if self.partial.is_empty() {
            if self.input.len() >= HEADER_BYTES {
                let header = Header::parse(&self.input, self.max_body)?;
                if self.input.len() >= header.total() {
                    self.input.advance(HEADER_BYTES);
                    let body = self.input.split_to(header.body_len);
                    return Ok(Some(header.frame(body)));
                }
            }
            if self.input.is_empty() {
                return Ok(None);
            }
        }
        if !self.fill_to(HEADER_BYTES) {
            return Ok(None);
        }
        // Checked before the space for it is reserved.
        let header = Header::parse(&self.partial, self.max_body)?;
        if !self.fill_to(header.total()) {
            return Ok(None);
        }
        let mut whole = std::mem::take(&mut self.partial).freeze();
        whole.advance(HEADER_BYTES);
        Ok(Some(header.frame(whole)))
    }

    /// Moves input to `partial` until that has `wanted` bytes, and tells whether it does.
    fn fill_to(&mut self, wanted: usize) -> bool {
        let missing = wanted.saturating_sub(self.partial.len());
        self.partial.reserve(missing);
        let piece = self.input.split_to(missing.min(self.input.len()));
        self.partial.put_slice(&piece);
        self.partial.len() >= wanted
    }
}

struct Header {
    kind: FrameKind,
    id: u64,
    body_len: usize,
}

impl Header {
    /// Reads the first [`HEADER_BYTES`] of `bytes`, of which there are at least as many.
    fn parse(mut bytes: &[u8], max_body: u32) -> Result<Self, FrameError> {
        let length = bytes.get_u32_le();
        let kind_byte = bytes.get_u8();
        let id = bytes.get_u64_le();
        let body_len =
            length.checked_sub(AFTER_LENGTH_BYTES as u32).ok_or(FrameError::TooShort(length))?;
        let kind = FrameKind::from_byte(kind_byte).ok_or(FrameError::UnknownKind(kind_byte))?;
        if body_len > 0 && !kind.has_body() {
            return Err(FrameError::UnexpectedBody(kind_byte));
        }
        if body_len > max_body {
            return Err(FrameError::TooLong { size: body_len, limit: max_body });
        }
        Ok(Self { kind, id, body_len: body_len as usize })
    }

    fn total(&self) -> usize {
        HEADER_BYTES + self.body_len
    }

    fn frame(&self, body: Bytes) -> Frame {
        Frame { kind: self.kind, id: self.id, body }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn layout_is_pinned() {
        let mut out = BytesMut::new();
        put(
            &mut out,
            &Frame { kind: FrameKind::Request, id: 0x0102, body: Bytes::from_static(b"hi") },
        );
        assert_eq!(&out[..], [11, 0, 0, 0, 1, 2, 1, 0, 0, 0, 0, 0, 0, b'h', b'i']);
    }

    #[test]
    fn a_lying_length_is_refused_before_anything_is_reserved() {
        let mut decoder = Decoder::new(100);
        decoder.feed(Bytes::from_static(&[0xff, 0xff, 0xff, 0x7f, 1, 0, 0, 0, 0, 0, 0, 0, 0]));
        let error = decoder.next().unwrap_err();
        assert_eq!(error, FrameError::TooLong { size: 0x7fff_fff6, limit: 100 });
        decoder.feed(Bytes::from_static(&[9, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0]));
        assert_eq!(decoder.next().unwrap_err(), error, "a failed decoder stays failed");
    }

    fn any_frame() -> impl Strategy<Value = Frame> {
        (1u8..=8, any::<u64>(), proptest::collection::vec(any::<u8>(), 0..200)).prop_map(
            |(kind, id, body)| {
                let kind = FrameKind::from_byte(kind).unwrap();
                let body = if kind.has_body() { body.into() } else { Bytes::new() };
                Frame { kind, id, body }
            },
        )
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..64), 0..32)
        ) {
            let mut decoder = Decoder::new(1000);
            for chunk in chunks {
                decoder.feed(chunk.into());
                while let Ok(Some(frame)) = decoder.next() {
                    prop_assert!(frame.body.len() <= 1000);
                }
            }
        }

        #[test]
        fn frames_come_out_as_they_went_in_however_the_stream_is_split(
            frames in proptest::collection::vec(any_frame(), 0..12),
            mut cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..20),
            eager in any::<bool>(),
        ) {
            let mut stream = BytesMut::new();
            for frame in &frames {
                put(&mut stream, frame);
            }
            let stream = stream.freeze();
            let mut points: Vec<usize> =
                cuts.drain(..).map(|cut| cut.index(stream.len() + 1)).collect();
            points.extend([0, stream.len()]);
            points.sort_unstable();
            let mut decoder = Decoder::new(200);
            let mut seen = Vec::new();
            for pair in points.windows(2) {
                decoder.feed(stream.slice(pair[0]..pair[1]));
                while eager && let Some(frame) = decoder.next().unwrap() {
                    seen.push(frame);
                }
            }
            while let Some(frame) = decoder.next().unwrap() {
                seen.push(frame);
            }
            prop_assert_eq!(seen, frames);
            prop_assert!(!decoder.is_mid_frame());
        }
    }
}
