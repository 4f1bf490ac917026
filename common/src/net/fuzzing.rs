//! What peers send before and beside frames, for fuzz targets and for tests with random inputs. No part of a normal build.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};

use super::CallError;
use super::bulk::{Bounds, Pieces, Puller};
use super::hello::Terms;

const BOUNDS: Bounds = Bounds { max_header_bytes: 300, max_payload_bytes: 1000 };

/// The terms at the begin of a greeting.
///
/// # Panics
/// When that panics, or what was understood says something else when it is said again.
pub fn greeting(input: &[u8]) {
    let mut words = Bytes::copy_from_slice(input);
    let Ok(terms) = Terms::take(&mut words) else { return };
    let mut again = BytesMut::new();
    terms.put(&mut again);
    let mut again = again.freeze();
    assert_eq!(Terms::take(&mut again), Ok(terms));
    assert!(again.is_empty());
}

/// A bulk message, in pieces as the first byte of the input says.
///
/// # Panics
/// When that panics, a bound does not hold, or the pieces make a difference.
pub fn bulk_message(input: &[u8]) {
    let Some((size, bytes)) = input.split_first() else { return };
    let all = Bytes::copy_from_slice(bytes);
    let whole = read(Stream { pieces: vec![all.clone()] });
    let step = usize::from(*size).max(1);
    let cut = |n: usize| all.slice(n * step..all.len().min((n + 1) * step));
    let pieces = (0..all.len().div_ceil(step)).rev().map(cut).collect();
    let parts = read(Stream { pieces });
    match (&whole, &parts) {
        (Ok(whole), Ok(parts)) => {
            assert!(whole.0.len() <= BOUNDS.max_header_bytes as usize);
            assert!(whole.1.len() <= BOUNDS.max_payload_bytes as usize);
            assert_eq!(whole, parts);
            assert_eq!(4 + whole.0.len() + 8 + whole.1.len(), all.len());
        }
        (Err(whole), Err(parts)) => assert_eq!(whole, parts),
        _ => panic!("{whole:?} in one piece, {parts:?} in several"),
    }
}

/// Pieces, the last one first.
struct Stream {
    pieces: Vec<Bytes>,
}

impl Pieces for Stream {
    async fn more(&mut self, to: &mut Vec<Bytes>) -> Result<bool, CallError> {
        let next = self.pieces.pop();
        let some = next.is_some();
        to.extend(next.filter(|piece| !piece.is_empty()));
        Ok(some)
    }
}

fn read(mut stream: Stream) -> Result<(Bytes, Bytes), CallError> {
    let reading = pin!(Puller::new(&mut stream).message(&BOUNDS, None));
    match reading.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => {
            done.map(|(message, _)| (message.header, message.payload.into_bytes()))
        }
        Poll::Pending => panic!("everything is there, and it waits"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_greeting_is_understood_or_refused(bytes: Vec<u8>) {
            super::greeting(&bytes);
            let sound = [&[1, 2, 0, 0][..], &bytes].concat();
            super::greeting(&sound);
        }

        #[test]
        fn any_bulk_message_is_read_or_refused(
            step: u8, header in 0u8..40, payload in 0u8..40, cut in 0usize..90, flip: u8
        ) {
            super::bulk_message(&[step, header]);
            let mut bytes = vec![step, header, 0, 0, 0];
            bytes.extend(vec![1; usize::from(header)]);
            bytes.extend([payload, 0, 0, 0, 0, 0, 0, 0]);
            bytes.extend(vec![2; usize::from(payload)]);
            super::bulk_message(&bytes);
            if let Some(byte) = bytes.get_mut(cut) {
                *byte ^= flip;
            }
            super::bulk_message(&bytes);
            bytes.truncate(cut);
            super::bulk_message(&bytes);
        }
    }
}
