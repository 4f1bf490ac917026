//! What goes between a replica's state and the shell.

use netfs_common::errno::Errno;
use netfs_common::id::{ChunkId, Epoch, Version};
use netfs_common::map::Replica;

/// A call that waits for an answer. The shell numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// A change of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change<D> {
    /// Which. It becomes the chunk's version.
    pub id: Version,
    /// The chunk.
    pub chunk: ChunkId,
    /// What to do with it.
    pub deed: D,
}

/// A change on its way to the next replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step<D> {
    /// In which epoch it is passed on.
    pub epoch: Epoch,
    /// Nothing below this is passed on again: it need not be remembered.
    pub floor: Version,
    /// It comes after this one, which the receiver may not have answered; [`Version::NONE`]: after nothing.
    pub after: Version,
    /// The change.
    pub change: Change<D>,
}

/// Why a call is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The group is in another epoch, or this server has no such part in it.
    Stale(Epoch),
    /// Not now.
    Busy,
    /// It cannot be stored.
    Failed(Errno),
}

/// What the shell is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<D> {
    /// Store a change; then [`super::Group::applied`].
    Apply(Change<D>),
    /// Pass a change on, again and again until it is answered, which is [`super::Group::acked`], or the epoch is over.
    Forward {
        /// To whom.
        to: Replica,
        /// What.
        step: Step<D>,
    },
    /// Answer a call of [`super::Group::propose`] or [`super::Group::forwarded`]: done, with the bytes by which the data grew.
    Done(CallId, i64),
    /// Answer a call: not done.
    Refuse(CallId, Refusal),
    /// Let a call of [`super::Group::read`] or [`super::Group::install`] go on.
    Serve(CallId),
    /// Compare all versions with the learner's; then [`super::Group::compared`].
    Compare(Replica),
    /// Copy a chunk to the learner, or have it removed there if it is not here; then [`super::Group::pushed`].
    Push(Replica, ChunkId),
    /// Have the learner flush; then [`super::Group::sealed`].
    Seal(Replica),
    /// The learner has everything: tell whoever makes the map.
    Synced(Replica),
    /// Nothing is under way any more in this epoch, and nothing more will be ordered: tell whoever makes the map.
    HandedOver,
    /// Something could not be stored here that others have stored. The replica must leave the chain.
    Broken(Errno),
}
