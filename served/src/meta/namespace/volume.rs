//! The volume itself.

use netfs_common::attr::{Attr, FileKind, Timestamp};
use netfs_common::errno::Errno;
use netfs_common::id::{Ino, LogIndex};
use netfs_common::map::{INODE_BITS, volume_of};
use netfs_common::wire::hello::MAX_LOST;
use netfs_common::wire::meta::Response;

use super::Fault;
use super::change::Change;
use crate::meta::keys;
use crate::meta::kv::{Read, StoreError, Txn};
use crate::meta::record::{self, FIRST_COOKIE, Inode, LostPositions, State, Volume};

/// Chunks smaller than 64 KiB or larger than 64 MiB make no sense to anybody.
const CHUNK_BITS: std::ops::RangeInclusive<u8> = 16..=26;
/// Inline data must stay well below what one message and one value may have.
const MAX_INLINE_LIMIT: u32 = 1 << 20;

/// Identity and settings, if the volume has been made.
///
/// # Errors
/// When the store fails.
pub fn volume(store: &dyn Read) -> Result<Option<Volume>, StoreError> {
    record::load(store, &keys::volume())
}

/// Counters and position in the log, if the volume has been made.
///
/// # Errors
/// When the store fails.
pub fn state(store: &dyn Read) -> Result<Option<State>, StoreError> {
    record::load(store, &keys::state())
}

/// What was lost of the log.
///
/// # Errors
/// When the store fails.
pub fn lost(store: &dyn Read) -> Result<LostPositions, StoreError> {
    Ok(record::load(store, &keys::lost())?.unwrap_or_default())
}

pub(super) fn create(
    txn: &mut Txn<'_>,
    index: LogIndex,
    time: Timestamp,
    volume: Volume,
) -> Result<Response, Fault> {
    let settings = volume.settings;
    if state(txn)?.is_some() {
        return Err(Errno::EEXIST.into());
    }
    if !CHUNK_BITS.contains(&settings.chunk_bits)
        || settings.inline_limit > MAX_INLINE_LIMIT
        || settings.max_inodes == 0
        || settings.first_ino <= Ino::ROOT.0
    {
        return Err(Errno::EINVAL.into());
    }
    let attr = Attr {
        ino: Ino::ROOT,
        kind: FileKind::Dir,
        perm: 0o755,
        nlink: 2,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: dir_size(0),
        allocated: 0,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
        generation: 0,
        chunk_bits: settings.chunk_bits,
        inline: false,
        has_xattrs: false,
        parent: Ino::ROOT,
        version: index.0,
    };
    let root = Inode {
        attr,
        next_cookie: FIRST_COOKIE,
        entries: 0,
        xattr_names: 0,
        xattr_bytes: 0,
        crashes: 0,
    };
    let state = State { next_ino: settings.first_ino, inodes: 1, next_task: 1, ..State::default() };
    txn.put(keys::inode(Ino::ROOT), record::encode(&root)?);
    txn.put(keys::volume(), record::encode(&volume)?);
    txn.put(keys::state(), record::encode(&state)?);
    Ok(Response::Done)
}

impl Change<'_, '_> {
    /// Leaves out numbers of inodes, and from now on generations, and notes the positions that the log has left out.
    pub(super) fn skip_numbers(&mut self, inodes: u32) -> Result<Response, Fault> {
        let mut lost = lost(self.txn)?;
        lost.ranges.push((self.state.applied, self.index));
        let old = lost.ranges.len().saturating_sub(MAX_LOST);
        lost.ranges.drain(..old);
        self.txn.put(keys::lost(), record::encode(&lost)?);
        self.state.next_ino = self.state.next_ino.saturating_add(u64::from(inodes));
        self.state.crashes = self.state.crashes.saturating_add(1);
        Ok(Response::Done)
    }

    /// Leaves out the numbers of inodes below one, and from now on generations.
    pub(super) fn leave_out(&mut self, below: Ino) -> Result<Response, Fault> {
        if below.0 > self.state.next_ino {
            if volume_of(below) != self.settings.first_ino >> INODE_BITS {
                return Err(Errno::EINVAL.into());
            }
            self.state.next_ino = below.0;
        }
        self.state.crashes = self.state.crashes.saturating_add(1);
        Ok(Response::Done)
    }
}

/// The length of a directory of so many entries: what ext4 would need, roughly.
pub(super) fn dir_size(entries: u64) -> u64 {
    (entries.min(1 << 50) * 64).max(1).next_multiple_of(4096)
}
