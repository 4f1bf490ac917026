//! Answering the calls of a peer on a metadata connection.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::CallError;
use super::frame::FrameKind;
use super::link::{Link, ReplyFuture, Shared, lock};

/// How a handler's beginning went.
enum Begun {
    Answered(Bytes),
    Working(ReplyFuture),
    Panicked,
}

impl Shared {
    /// Begins to answer a call. Answers that are there at once need no task.
    pub(super) fn answer(self: &Arc<Self>, id: u64, request: Bytes) -> Result<(), CallError> {
        {
            let inbound = lock(&self.inbound);
            if inbound.len() >= self.max_inbound {
                let text = format!("more than {} calls under way", self.max_inbound);
                return Err(CallError::protocol(text));
            }
            if inbound.contains_key(&id) {
                return Err(CallError::protocol(format!("call {id} was made twice")));
            }
        }
        let link = Link { shared: self.clone() };
        let begun = self.guarded(|| {
            let mut reply = self.handler.call(&link, request);
            // The task polls again and leaves its own waker; this poll only begins, in order of arrival.
            match reply.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(reply) => Begun::Answered(reply),
                Poll::Pending => Begun::Working(reply),
            }
        });
        match begun.unwrap_or(Begun::Panicked) {
            Begun::Panicked => self.queue.push_small(FrameKind::Abandon, id),
            Begun::Working(reply) => self.work(id, reply),
            Begun::Answered(reply) => match self.fitting(reply) {
                None => self.queue.push_small(FrameKind::Abandon, id),
                Some(reply) => match self.queue.try_reserve(reply.len()) {
                    Some(space) => self.queue.push(space, FrameKind::Reply, id, reply),
                    None => self.work(id, Box::pin(std::future::ready(reply))),
                },
            },
        }
        Ok(())
    }

    /// Goes on with a call in a task of its own.
    fn work(self: &Arc<Self>, id: u64, reply: ReplyFuture) {
        let shared = self.clone();
        // Held until the entry is there, so that the task cannot end before.
        let mut inbound = lock(&self.inbound);
        let task = tokio::spawn(async move {
            let abandonment = Abandonment { shared: &shared, id };
            let Some(reply) = shared.fitting(reply.await) else { return };
            // The entry stays until there is space: a peer that does not read cannot make more work.
            let Some(space) = shared.queue.reserve(reply.len()).await else { return };
            if shared.finished(id) {
                shared.queue.push(space, FrameKind::Reply, id, reply);
            } else {
                shared.queue.unused(space);
            }
            drop(abandonment);
        });
        inbound.insert(id, task.abort_handle());
    }

    /// A reply, unless it is more than the peer accepts.
    fn fitting(&self, reply: Bytes) -> Option<Bytes> {
        if let Err(error) = self.check_size(&reply) {
            tracing::error!(%error, "a reply was not sent");
            return None;
        }
        Some(reply)
    }

    /// Removes a call from those under way; `false` if it was withdrawn before.
    fn finished(&self, id: u64) -> bool {
        let mut inbound = lock(&self.inbound);
        let present = inbound.remove(&id).is_some();
        if inbound.is_empty() {
            self.note_idle();
        }
        present
    }

    /// The peer no longer wants an answer. The answer may be on its way already.
    pub(super) fn cancelled(&self, id: u64) {
        let mut inbound = lock(&self.inbound);
        if let Some(task) = inbound.remove(&id) {
            task.abort();
            self.metrics.calls_cancelled.inc();
        }
        if inbound.is_empty() {
            self.note_idle();
        }
    }

    /// Runs application code; a panic in it is that call's failure and nobody else's.
    pub(super) fn guarded<T>(&self, run: impl FnOnce() -> T) -> Option<T> {
        catch_unwind(AssertUnwindSafe(run))
            .inspect_err(|_| {
                self.metrics.calls_failed.inc();
            })
            .ok()
    }
}

/// Tells the caller when a handler ends without an answer.
struct Abandonment<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Abandonment<'_> {
    fn drop(&mut self) {
        if self.shared.finished(self.id) {
            self.shared.metrics.calls_failed.inc();
            self.shared.queue.push_small(FrameKind::Abandon, self.id);
        }
    }
}
