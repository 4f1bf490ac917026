//! Batches on their way to data servers.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use netfs_common::errno::Errno;
use netfs_common::id::{ChunkId, SessionId};
use netfs_common::wire::data::Span;
use tokio::sync::OwnedSemaphorePermit;
use tracing::error;

use super::{Batch, Content, Writeback, take};
use crate::cache::{Mark, Node};
use crate::session::{Written, lock};

/// A batch and what it was taken under.
struct Flight {
    batch: Batch,
    /// The chunk of its first byte.
    chunk: ChunkId,
    offset: u64,
    chunk_bits: u8,
    era: u64,
    session: SessionId,
}

impl Flight {
    fn span(&self) -> Span {
        let ChunkId { ino, generation, .. } = self.chunk;
        let (from, to) = (self.batch.start, self.batch.end());
        Span { ino, generation, chunk_bits: self.chunk_bits, from, to }
    }
}

/// How a batch has arrived.
enum Landed {
    Acknowledged(Written),
    /// By how many bytes the allocated data grew.
    Durable(i64),
}

/// What a pump does next.
enum Next {
    Fly(Flight),
    /// The lease is to be had first, or what lies beyond the end of the file to be known.
    Settle,
    End,
}

impl Writeback {
    /// Starts the task that takes batches; the caller has set `pumping`.
    pub(super) fn spawn_pump(self: &Arc<Self>, node: Arc<Node>) {
        let this = Arc::clone(self);
        tokio::spawn(async move { this.pump(node).await });
    }

    /// Takes batches and sends them, several at once, until none is due.
    async fn pump(self: Arc<Self>, node: Arc<Node>) {
        loop {
            let ready = async {
                self.own(&node).await?;
                self.settle_tail(&node).await
            };
            if let Err(e) = ready.await {
                self.tail_failed(&node, e);
                break;
            }
            // The place first: until there is one, writes go on being merged in the buffer.
            let Ok(place) = Arc::clone(&self.flights).acquire_owned().await else { return };
            match self.take_flight(&node) {
                Next::Fly(flight) => {
                    let (this, node) = (Arc::clone(&self), Arc::clone(&node));
                    tokio::spawn(async move { this.fly(node, flight, place).await });
                }
                Next::Settle => {}
                Next::End => break,
            }
        }
        node.gates().progress.notify_waiters();
    }

    /// The next batch, or that there is none now, decided together with `pumping` so that nobody
    /// relies on a pump that is about to end.
    fn take_flight(&self, node: &Node) -> Next {
        self.edit(node, |state| {
            let (inline, era) = (state.is_inline(), state.era);
            let attr = state.attr.as_ref().map(|a| (a.ino, a.generation, a.chunk_bits));
            // The lease may have gone while there was no place.
            let owned = state.owned() && self.cache.live();
            let empty = state.file.as_ref().is_none_or(|f| f.dirty.is_empty());
            if !empty && (!owned || self.tail_in_doubt(state)) {
                return Next::Settle;
            }
            let session = self.session.bulk().session();
            let Some(file) = state.file.as_mut() else { return Next::End };
            let batch = match attr {
                Some((_, _, bits)) if !inline => {
                    take(&mut file.dirty, &mut file.flying, 1 << bits, file.force == 0, 0)
                }
                _ => None,
            };
            let (Some(batch), Some((ino, generation, chunk_bits))) = (batch, attr) else {
                file.pumping = false;
                if file.dirty.is_empty() {
                    file.force = 0;
                }
                return Next::End;
            };
            file.force = file.force.saturating_sub(weight(&batch.content));
            let chunk = ChunkId { ino, generation, index: batch.start >> chunk_bits };
            let offset = batch.start - (chunk.index << chunk_bits);
            Next::Fly(Flight { batch, chunk, offset, chunk_bits, era, session })
        })
    }

    async fn fly(self: Arc<Self>, node: Arc<Node>, flight: Flight, place: OwnedSemaphorePermit) {
        if node.state().era != flight.era {
            // Given up, perhaps with the session: what is sent now may go out in the next one.
            return node.gates().progress.notify_waiters();
        }
        let (bulk, within) = (self.session.bulk(), flight.session);
        let outcome = match &flight.batch.content {
            Content::Data(bytes) => {
                let written = bulk.write(within, flight.chunk, flight.offset, bytes.clone());
                written.await.map(Landed::Acknowledged)
            }
            // Within one chunk one chain has it all.
            Content::Hole(len) if flight.offset + len <= 1 << flight.chunk_bits => {
                let punched = bulk.punch(within, flight.chunk, flight.offset, *len);
                punched.await.map(Landed::Acknowledged)
            }
            Content::Hole(_) => bulk.punch_span(within, flight.span()).await.map(Landed::Durable),
        };
        let Flight { batch, era, .. } = flight;
        drop(place);
        let failed = outcome.as_ref().err().copied();
        let (start, end) = (batch.start, batch.end());
        let (pump, given_up) = self.edit(&node, |state| {
            if state.era != era {
                return (false, true);
            }
            if let Some(error) = failed {
                state.failed.add(error);
                // Some of it may be there all the same.
                state.tail_known = false;
            }
            let file = state.file();
            file.flying.remove(start, end);
            if let Ok(landed) = outcome {
                self.landed(file, batch, landed);
                file.keep_to_limit();
            }
            // What was held back behind this batch can go now.
            let more = file.force > 0 && !file.dirty.is_empty();
            (more && !std::mem::replace(&mut file.pumping, true), false)
        });
        match failed {
            // It was told when it was given up.
            Some(_) if given_up => {}
            Some(e) => self.refused(&node, start, end, e),
            None => {
                lock(&self.keepers).insert(node.ino, Arc::clone(&node));
            }
        }
        if self.kept.load(Ordering::SeqCst) > self.limits.kept / 4 {
            self.flush_wanted.notify_one();
        }
        node.gates().progress.notify_waiters();
        if pump {
            self.spawn_pump(node);
        }
    }

    fn landed(&self, file: &mut crate::cache::File, batch: Batch, landed: Landed) {
        file.unreported = true;
        file.end = file.end.max(batch.end());
        let Written { group, verifier, allocated } = match landed {
            Landed::Acknowledged(written) => written,
            Landed::Durable(allocated) => {
                file.allocated += allocated;
                // What was kept there must not be sent again over it.
                file.kept.remove(batch.start, batch.end());
                return;
            }
        };
        file.allocated += allocated;
        if self.session.bulk().verifier(group).is_some_and(|now| verifier < now) {
            // It may be lost already.
            super::durable::requeue(file, batch.start, &batch.content);
            return;
        }
        let at = self.acks.fetch_add(1, Ordering::SeqCst) + 1;
        file.kept.insert(batch.start, batch.content, Mark { group, verifier, at });
    }

    fn refused(&self, node: &Node, start: u64, end: u64, error: Errno) {
        if self.halted() {
            return;
        }
        error!(ino = %node.ino, start, end, %error, "a write that was accepted has failed");
        if let Some(kernel) = self.kernel() {
            kernel.inval_data(node.ino, start, end - start);
        }
    }
}

/// What content counts for in `force`.
pub(super) fn weight(content: &Content) -> u64 {
    match content {
        Content::Data(b) => b.len() as u64,
        Content::Hole(_) => 1,
    }
}
