//! Passing changes on to the next replica, and taking those of the one before.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use netfs_common::id::{Epoch, GroupId, ServerId, Version};
use netfs_common::map::{Chain, Replica};
use netfs_common::net::Payload;
use netfs_common::wire::cluster::{Deed, Forward, PeerOp};
use netfs_common::wire::data::{At, Op, Reply, Request};

use super::replicas::{Replicas, What, Work, lock};
use crate::data::chain::{Action, CallId, Change, Group, Step};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// Pauses between attempts.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(300));

/// Changes on their way to one server at one place of the chain.
const AT_ONCE: usize = 12;

/// Room for the changes on their way.
///
/// A call that passes a change on is answered when all after it have stored the change. So calls wait for calls, and if those of
/// different groups, whose chains go through the same servers in different orders, shared one bound, they could wait for each other
/// in a circle. Calls to the second in a chain wait for those to the third only, and so on: each has room of its own.
///
/// A change that has arrived may also wait there for an earlier one. So room is given in the order of the changes, and whoever has it
/// keeps it until it is answered, refused or not: else the later ones could take all of it, and wait for ever for one that finds none.
#[derive(Debug, Default)]
pub(super) struct Hops(Mutex<HashMap<(ServerId, usize), Arc<Semaphore>>>);

/// Room, or a place in the queue for it.
pub(super) enum Place {
    Has(OwnedSemaphorePermit),
    Waits(Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>),
}

impl Hops {
    /// Takes a place, after all that were taken before. To be called while changes cannot overtake each other.
    pub(super) fn queue(&self, to: ServerId, hop: usize) -> Place {
        let room = lock(&self.0)
            .entry((to, hop))
            .or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE)))
            .clone();
        let mut waits = Box::pin(room.acquire_owned());
        // It is in the queue from the first time that it is asked.
        match waits.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(room)) => Place::Has(room),
            _ => Place::Waits(waits),
        }
    }
}

impl Place {
    /// Waits until there is room. `None`: the server ends.
    async fn room(self) -> Option<OwnedSemaphorePermit> {
        match self {
            Place::Has(room) => Some(room),
            Place::Waits(waits) => waits.await.ok(),
        }
    }
}

impl Replicas {
    /// Passes a change on until it is answered or the epoch is over.
    pub(super) async fn forward(
        self: Arc<Self>,
        id: GroupId,
        to: Replica,
        step: Step<Work>,
        place: Place,
    ) {
        let (epoch, version) = (step.epoch, step.change.id);
        // Its room is taken until it is answered.
        let work = step.change.deed;
        let (deed, payload) = match &work.what {
            What::Write { offset, data } => (Deed::Write { offset: *offset }, data.clone()),
            What::Punch { offset, len } => {
                (Deed::Punch { offset: *offset, len: *len }, Arc::default())
            }
        };
        let (floor, after, chunk) = (step.floor, step.after, step.change.chunk);
        let forward = Forward { floor, after, id: version, chunk, deed };
        let at = At::Replica { group: id, epoch, instance: to.instance };
        let request = Request { at, op: Op::Peer(PeerOp::Forward(forward)) };
        let answered = async {
            let mut pause = PAUSE.0;
            let _room = place.room().await;
            // Only now: it waited for its turn here and not for the other, who may have moved meanwhile.
            self.note_passed_on(id, epoch, version);
            loop {
                let payload: Payload = payload.as_ref().clone().into();
                let view = self.view();
                match self.peers.call(&view.map, to.server, &request, payload, None).await {
                    Ok((Reply::Stored { full }, _)) => return full,
                    Ok((reply, _)) => {
                        tracing::trace!(group = %id, ?reply, "a change was not passed on");
                    }
                    Err(error) => {
                        tracing::debug!(group = %id, %error, "a change was not passed on");
                    }
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            }
        };
        let full = tokio::select! {
            full = answered => full,
            () = self.epoch_over(id, epoch) => return,
        };
        drop(work);
        // A learner without room leaves; nobody is refused anything for it.
        let counts = |chain: &Chain| chain.replicas.contains(&to);
        if self.view().map.chain(id).is_some_and(counts) {
            self.room.note(id, full);
        }
        self.progress.note(to.server);
        self.run(id, |slot| {
            slot.passed_on.remove(&version);
            slot.group.acked(epoch, version)
        });
    }

    fn note_passed_on(&self, id: GroupId, epoch: Epoch, version: Version) {
        if let Some(slot) = self.slot(id) {
            let mut slot = lock(&slot);
            if slot.group.epoch() == epoch {
                slot.passed_on.entry(version).or_insert_with(Instant::now);
            }
        }
    }

    /// Takes a change of the replica before.
    pub(super) fn take(
        group: &mut Group<Work>,
        call: CallId,
        epoch: Epoch,
        forward: Forward,
        payload: Payload,
    ) -> Vec<Action<Work>> {
        let deed = Work::passed_on(match forward.deed {
            Deed::Write { offset } => What::Write { offset, data: Arc::new(payload.into_chunks()) },
            Deed::Punch { offset, len } => What::Punch { offset, len },
        });
        let change = Change { id: forward.id, chunk: forward.chunk, deed };
        group.forwarded(call, Step { epoch, floor: forward.floor, after: forward.after, change })
    }
}
