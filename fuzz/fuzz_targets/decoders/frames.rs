//! Frames of a metadata connection, in any pieces: no input may panic, and how it is cut into pieces
//! makes no difference.

use bytes::Bytes;
use netfs_common::net::frame::{Decoder, Frame};

const MAX_BODY: u32 = 4096;

fn decode(pieces: &[&[u8]]) -> (Vec<Frame>, bool) {
    let mut decoder = Decoder::new(MAX_BODY);
    let mut frames = Vec::new();
    for piece in pieces {
        decoder.feed(Bytes::copy_from_slice(piece));
        loop {
            match decoder.next() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, true),
            }
        }
    }
    (frames, false)
}

pub(crate) fn run(input: &[u8]) {
    let Some((at, bytes)) = input.split_first() else { return };
    let cut = usize::from(*at).min(bytes.len());
    let (first, second) = bytes.split_at(cut);
    let whole = decode(&[bytes]);
    let parts = decode(&[first, second]);
    assert_eq!(format!("{:?}", whole), format!("{:?}", parts));
}
