//! Chains of replicas: one replica's part in one placement group, as a plain state machine.
//!
//! The protocol is chain replication (van Renesse, Schneider: Chain Replication for Supporting High Throughput and
//! Availability, OSDI 2004) with reads from every replica that has nothing pending (Terrace, Freedman: Object Storage on
//! CRAQ, USENIX 2009). Here a change is streamed: a replica passes it on when it comes, while it is being stored.
//!
//! ```text
//!              change                  change                  change (of chunks that the learner has)
//!   client ------------>  head  --------------->  tail  ---------------> learner
//!          <------------        <---------------        <---------------
//!             done              stored, here and below
//! ```
//!
//! # What holds
//!
//! 1. **Order.** The head gives every change a [`Version`](netfs_common::id::Version): epoch and number. All replicas
//!    store the changes of one chunk in that order, so a chunk's version names its contents: two replicas that
//!    show the same version of a chunk have the same bytes.
//! 2. **Superset.** A replica notes a change before it passes it on. So whatever a replica has, all before it in the chain
//!    have stored or noted, and when the head fails the next one has everything that any other has.
//! 3. **Answer.** A replica answers when it has stored the change and the next one has answered. So the client is answered when
//!    all have stored it, and whoever survives has it.
//! 4. **Reads.** A replica shows a chunk when all that was noted of it when the read came is stored here and below, and
//!    before it stores what came later: then everything that it shows is stored or noted by all after it, and by 2 by all. Whoever may be
//!    the head later shows nothing older. What another replica has shown before is noted or stored here when the read comes, again by 2 and 3;
//!    so of two reads, one after the other, the second shows nothing older. What comes later is passed on while it waits, so
//!    that neither reads nor writes starve: a change waits for the reads that came before it, and a read for the changes.
//! 5. **Epochs.** A message of another epoch than the receiver's is refused. When the chain changes, a replica
//!    passes on again what the next one has not answered. Identifiers stay, so what has arrived before is known by them.
//! 6. **Minimum.** While the chain has fewer replicas than the volume asks for, no client is told that a change or a flush is done. Whoever
//!    waits for a change when the chain becomes that short is refused, as where the head changes: the change may have been made, and goes to its end
//!    like any other, so reads may show it and do not wait for the chain to grow. What the client repeats comes after it.
//!
//! A replica that cannot store what others have stored is [broken](Action::Broken): it leaves the chain. One that restarts is
//! out of the chain, whatever it has: it comes back as a learner.
//!
//! # The learner
//!
//! A replica that lacks something comes after the tail. The tail compares the versions of all chunks (`sync.rs`), copies
//! those that differ, one at a time, and passes on the changes of those that do not, or not any more. A change of
//! a chunk that is being copied waits until it is. When nothing differs any more, the learner is asked to flush, and the metadata
//! server is told; it makes the learner the tail.
//!
//! # What the messages must obey
//!
//! A call that was made over a connection which has been replaced is never carried out after a call over the new one
//! (`server/turns.rs`). The order of calls over one connection is arbitrary. Answers may be lost, and then calls are repeated.
//!
//! # What the shell must do
//!
//! - What is shown is read when [`Action::Serve`] says so, and then [`Group::withdraw`] is called, soon: changes of the chunk wait for it.
//! - The learner's chunks are listed in its present epoch and after [`Group::settle`]: what it has forgotten may be being stored.
//! - A copy reads all of a chunk in one epoch, and ends when that is over or the chunk was removed: it is not held any more.
//! - A removal is told by [`Group::removed`], and waited for at [`Group::heirs`]. It begins anew if the map has changed meanwhile.
//! - Flushes reach all members, the learner too, and count if the epoch is still the same and the chain is not [short](Group::is_short).

mod action;
mod group;
mod sync;
#[cfg(test)]
mod tests;

pub use action::{Action, CallId, Change, Refusal, Step};
pub use group::Group;
