//! The keys of the store: one byte that says what it is, then fixed fields, big endian so that
//! their order is the order of the numbers, then at most one field of variable length.
//!
//! To change the layout, raise [`crate::meta::engine::FORMAT`]; the tests pin it.

use netfs_common::id::{Ino, OpSeq, SessionId};

/// Counters and the position in the log.
pub const STATE: u8 = 0x01;
/// The volume's identity and settings.
pub const VOLUME: u8 = 0x02;
/// What was lost of the log; missing while nothing was.
pub const LOST: u8 = 0x03;
/// Inode by number.
pub const INODE: u8 = 0x10;
/// Inline data of a file, or the target of a symbolic link, by inode.
pub const INLINE: u8 = 0x11;
/// Extended attribute by inode and name.
pub const XATTR: u8 = 0x12;
/// Entry by directory and name.
pub const ENTRY: u8 = 0x13;
/// Entry by directory and cookie.
pub const LISTING: u8 = 0x14;
/// Inode without a name, by number.
pub const ORPHAN: u8 = 0x20;
/// Orphan that a session may still use, by session and inode.
pub const HOLD: u8 = 0x21;
/// Session by identifier.
pub const SESSION: u8 = 0x30;
/// Which answers of a session are kept.
pub const WINDOW: u8 = 0x31;
/// Answer by session and number.
pub const REPLY: u8 = 0x32;
/// Cut that the data servers have not completed, by number.
pub const TRIM: u8 = 0x40;
/// Chunks that are to be removed, by number.
pub const DELETION: u8 = 0x41;

/// A key of kind and fixed fields.
pub fn key<const N: usize>(kind: u8, fields: [u64; N]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + 8 * N);
    key.push(kind);
    fields.iter().for_each(|f| key.extend(f.to_be_bytes()));
    key
}

fn named(kind: u8, ino: Ino, name: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(9 + name.len());
    key.push(kind);
    key.extend(ino.0.to_be_bytes());
    key.extend(name);
    key
}

/// See [`STATE`].
pub fn state() -> Vec<u8> {
    vec![STATE]
}

/// See [`VOLUME`].
pub fn volume() -> Vec<u8> {
    vec![VOLUME]
}

/// See [`LOST`].
pub fn lost() -> Vec<u8> {
    vec![LOST]
}

/// See [`INODE`].
pub fn inode(ino: Ino) -> Vec<u8> {
    key(INODE, [ino.0])
}

/// See [`INLINE`].
pub fn inline(ino: Ino) -> Vec<u8> {
    key(INLINE, [ino.0])
}

/// See [`XATTR`].
pub fn xattr(ino: Ino, name: &[u8]) -> Vec<u8> {
    named(XATTR, ino, name)
}

/// See [`ENTRY`].
pub fn entry(parent: Ino, name: &[u8]) -> Vec<u8> {
    named(ENTRY, parent, name)
}

/// See [`LISTING`].
pub fn listing(parent: Ino, cookie: u64) -> Vec<u8> {
    key(LISTING, [parent.0, cookie])
}

/// See [`ORPHAN`].
pub fn orphan(ino: Ino) -> Vec<u8> {
    key(ORPHAN, [ino.0])
}

/// See [`HOLD`].
pub fn hold(session: SessionId, ino: Ino) -> Vec<u8> {
    key(HOLD, [session.0, ino.0])
}

/// See [`SESSION`].
pub fn session(id: SessionId) -> Vec<u8> {
    key(SESSION, [id.0])
}

/// See [`WINDOW`].
pub fn window(id: SessionId) -> Vec<u8> {
    key(WINDOW, [id.0])
}

/// See [`REPLY`].
pub fn reply(session: SessionId, seq: OpSeq) -> Vec<u8> {
    key(REPLY, [session.0, seq.0])
}

/// See [`TRIM`].
pub fn trim(id: u64) -> Vec<u8> {
    key(TRIM, [id])
}

/// See [`DELETION`].
pub fn deletion(id: u64) -> Vec<u8> {
    key(DELETION, [id])
}

/// The end of all keys that begin with this one: the least key above them all.
pub fn after_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // Only a prefix of nothing but 0xff comes here, and no kind of key has that number.
    vec![u8::MAX; prefix.len() + 1]
}

/// The fixed field number `n` of a key.
pub fn field(key: &[u8], n: usize) -> Option<u64> {
    let bytes = key.get(1 + 8 * n..9 + 8 * n)?;
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

/// What follows the first fixed field.
pub fn name_of(key: &[u8]) -> Option<&[u8]> {
    key.get(9..)
}

/// Whether values of this kind are small and asked for again and again.
pub fn is_hot(key: &[u8]) -> bool {
    matches!(key.first(), Some(&(STATE | VOLUME | INODE | ENTRY | SESSION | WINDOW)))
}
