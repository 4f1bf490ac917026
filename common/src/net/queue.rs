//! What waits to be sent on a metadata connection: many small frames, few writes, bounded in bytes.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::{Notify, Semaphore};

use super::frame::{self, FrameKind, HEADER_BYTES};

/// Bodies up to this size are copied together into one piece; larger ones are passed on as they are.
const COPY_BELOW_BYTES: usize = 4096;

/// The frames that wait for the writer of one connection.
///
/// Whoever adds a frame first waits for space ([`reserve`](Self::reserve)), in order of arrival. Exempt
/// are frames of a few bytes that answer for one that had waited: cancel, abandon, goodbye.
#[derive(Debug)]
pub(super) struct SendQueue {
    waiting: Mutex<Waiting>,
    space: Semaphore,
    capacity: u32,
    ready: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    pieces: Vec<Bytes>,
    tail: BytesMut,
    reserved: u32,
    /// No more frames will come: the writer ends when it has written these.
    finished: bool,
}

/// Space in the queue, of so many bytes.
#[derive(Debug)]
#[must_use]
pub(super) struct Reserved(u32);

/// All that was waiting.
pub(super) struct Batch {
    pub(super) pieces: Vec<Bytes>,
    reserved: u32,
}

impl SendQueue {
    pub(super) fn new(capacity: u32) -> Self {
        Self {
            waiting: Mutex::default(),
            space: Semaphore::new(capacity as usize),
            capacity,
            ready: Notify::new(),
        }
    }

    /// Waits for space. `None` if the queue was closed.
    pub(super) async fn reserve(&self, body_len: usize) -> Option<Reserved> {
        let cost = self.cost(body_len);
        let permit = self.space.acquire_many(cost).await.ok()?;
        permit.forget();
        Some(Reserved(cost))
    }

    /// Takes space if there is some now.
    pub(super) fn try_reserve(&self, body_len: usize) -> Option<Reserved> {
        let cost = self.cost(body_len);
        let permit = self.space.try_acquire_many(cost).ok()?;
        permit.forget();
        Some(Reserved(cost))
    }

    /// A frame larger than the queue may go when it is alone there.
    fn cost(&self, body_len: usize) -> u32 {
        u32::try_from(body_len + HEADER_BYTES).unwrap_or(u32::MAX).min(self.capacity)
    }

    pub(super) fn push(&self, space: Reserved, kind: FrameKind, id: u64, body: Bytes) {
        self.add(space.0, kind, id, body);
    }

    /// Adds a frame without a body, for which no space is reserved.
    pub(super) fn push_small(&self, kind: FrameKind, id: u64) {
        self.add(0, kind, id, Bytes::new());
    }

    fn add(&self, reserved: u32, kind: FrameKind, id: u64, body: Bytes) {
        let mut waiting = self.lock();
        // Nothing is expected to be sent any more; the writer gives no space back either.
        if waiting.finished {
            return;
        }
        waiting.reserved += reserved;
        // Checked against the limit on frames, which is a u32, before space was reserved.
        frame::put_header(&mut waiting.tail, kind, id, body.len() as u32);
        if body.len() <= COPY_BELOW_BYTES {
            waiting.tail.put_slice(&body);
        } else {
            let head = waiting.tail.split().freeze();
            waiting.pieces.push(head);
            waiting.pieces.push(body);
        }
        drop(waiting);
        self.ready.notify_one();
    }

    /// All that waits, as soon as there is something; `None` when there will be nothing any more.
    pub(super) async fn take(&self) -> Option<Batch> {
        loop {
            {
                let mut waiting = self.lock();
                if !waiting.tail.is_empty() {
                    let tail = waiting.tail.split().freeze();
                    waiting.pieces.push(tail);
                }
                if !waiting.pieces.is_empty() {
                    return Some(Batch {
                        pieces: std::mem::take(&mut waiting.pieces),
                        reserved: std::mem::take(&mut waiting.reserved),
                    });
                }
                if waiting.finished {
                    return None;
                }
            }
            self.ready.notified().await;
        }
    }

    /// Gives the space of what has been written back.
    pub(super) fn written(&self, batch: &Batch) {
        self.space.add_permits(batch.reserved as usize);
    }

    /// Gives space back that was reserved for nothing.
    pub(super) fn unused(&self, space: Reserved) {
        self.space.add_permits(space.0 as usize);
    }

    /// Lets the writer end after what waits now.
    pub(super) fn finish(&self) {
        self.lock().finished = true;
        self.ready.notify_one();
    }

    /// Drops what waits, and ends the writer and all who wait for space.
    pub(super) fn close(&self) {
        let mut waiting = self.lock();
        *waiting = Waiting { finished: true, ..Waiting::default() };
        drop(waiting);
        self.space.close();
        self.ready.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
