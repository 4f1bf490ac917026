//! What the index knows of one chunk.
//!
//! **Versions.** A chunk has the version of the last change that was applied to it. Replicas that were apart compare
//! their versions and copy only what differs; so the one thing that must never happen is that a chunk shows a version and
//! holds something else than what that version names. In particular a rebuild from the log must find the version that
//! the index has. Why it does:
//!
//! - *Which records say it.* Each `Write` and `Bad`, each `Punch` that was not moved, and each `Stamp` gives its chunk the
//!   version that it carries. All others (`Delete`, moved `Punch`, notes) leave it alone. Records that are no changes, because
//!   they move or join what is there, carry the version that the chunk has at that moment, which is read under the lock that
//!   orders appends. So the chunk's version is always what the last of these records says, in log order: call it the *carrier*.
//! - *The carrier is never lost*, as long as its chunk exists. If it is a `Write` or a `Bad`, all of its bytes live,
//!   because whatever hides some of them is a later change and is the carrier then; and what lives is moved before its
//!   segment goes, in newer records with the same version. That holds for the joining of pieces too. If it is a `Punch` or
//!   a `Stamp`, it holds no bytes, so nothing else would keep it: the index knows its place ([`Chunk::carrier`]), and
//!   reclamation appends a `Stamp` in its place before the segment goes, even if the record itself can no longer be read. It
//!   does so whether or not the `Punch` still hides something; otherwise the version before the punch would come back.
//! - *Replaying finds it last.* When the carrier is replayed, all that lives in its chunk has been replayed, because it was
//!   appended before; so the chunk exists and takes the version. What follows is no carrier, or not of this chunk.
//! - *Power failure.* A record is there whole or not at all, with its bytes and its version. A change of several records
//!   (`copy`) gives its version only with the last of them; until then the chunk has none.
//! - *Version 0 is no exception.* A change without a version is a carrier like any other.
//! - *Damage.* Bytes that can no longer be read change no version: reading them fails, and a scrub tells. But where recovery
//!   finds that records of the log may be missing, no chunk keeps its version (see `recover`): a `Stamp` of version 0 is
//!   appended for each of them, before anything else. And where reclamation cannot read all records of a segment, it leaves a
//!   note, `Lost`: a tombstone may have been among them, so a rebuild that depends on the log from there on must not
//!   show a version. The index in memory, and a snapshot of it, have seen the tombstone, and keep theirs.
//!
//! A chunk that ends without data is forgotten with its version, and one without data takes none. What comes back later begins with 0.
//!
//! **Away.** Ranges of a chunk may be in an *object* of a bucket, which is named by the chunk and by the version that it had when the
//! object was made, and has all of its bytes of then. An `Away` record says that a range is what the object has there. It is
//! written only where that is so already, so it is no change, moves like a `Write` and keeps the version like one. All ranges that are
//! away belong to one object ([`Chunk::object`]): others are sent away only when none is, or those that are belong to the same
//! object. Changes hide parts of it like parts of any record, and need not look into the object.

use super::extent::{Extent, Extents};
use super::format::LogPos;
use super::key::ChunkVersion;

/// One chunk: where its bytes are, and its version.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct Chunk {
    pub(super) extents: Extents,
    pub(super) version: ChunkVersion,
    /// Where the version is written, if that record holds no data; [`LogPos::NOWHERE`] otherwise.
    pub(super) carrier: LogPos,
    /// Names the object that has what is away; unknown if nothing is.
    pub(super) object: ChunkVersion,
}

impl Chunk {
    /// Whether it holds no data: such a chunk is not kept.
    pub(super) fn is_empty(&self) -> bool {
        self.extents.0.is_empty()
    }

    /// Forgets the object when nothing is in it any more.
    pub(super) fn forget_object(&mut self) {
        if self.object != ChunkVersion::UNKNOWN && !self.extents.0.iter().any(Extent::is_away) {
            self.object = ChunkVersion::UNKNOWN;
        }
    }

    /// Bytes that are not here.
    pub(super) fn away(&self) -> u64 {
        if self.object == ChunkVersion::UNKNOWN {
            return 0;
        }
        self.extents.0.iter().filter(|e| e.is_away()).map(|e| u64::from(e.len)).sum()
    }

    /// Takes the version of a record that holds data.
    pub(super) fn stamp_with_data(&mut self, version: ChunkVersion) {
        (self.version, self.carrier) = (version, LogPos::NOWHERE);
    }

    /// Takes the version of a record that holds none.
    pub(super) fn stamp_at(&mut self, at: LogPos, version: ChunkVersion) {
        (self.version, self.carrier) = (version, at);
    }

    /// Bytes that are not holes.
    pub(super) fn allocated(&self) -> u64 {
        self.extents.0.iter().map(|e| u64::from(e.len)).sum()
    }
}
