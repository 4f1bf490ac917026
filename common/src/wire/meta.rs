//! Calls to a metadata server, and its calls to clients.

use bincode::{Decode, Encode};

use super::insight::{About, Inspection, VolumeLeases};
use super::lease::{Grant, Lease, Recall};
use super::operator::{Operation, Outcome, Redundancy};
use crate::attr::{Attr, FileKind, SetAttr, Timestamp};
use crate::class::Class;
use crate::errno::Errno;
use crate::id::{Ino, LogIndex, OpSeq, SessionId};
use crate::name::Name;
use crate::wire::lock::{LockCall, LockReply};

/// The most entries of one listing.
pub const MAX_LISTING: u32 = 4096;
/// The longest target of a symbolic link (`PATH_MAX` less the NUL).
pub const MAX_SYMLINK: usize = 4095;
/// The longest name of an extended attribute (`XATTR_NAME_MAX`).
pub const MAX_XATTR_NAME: usize = 255;
/// The largest extended attribute and the longest list of their names (`XATTR_SIZE_MAX`).
pub const MAX_XATTR_VALUE: usize = 65536;
/// The most inodes in one [`Op::Forget`] or [`Op::Accessed`].
pub const MAX_BATCH: usize = 4096;

/// The most changes in one [`Request::Replay`].
pub const MAX_REPLAY: usize = 1024;
/// The most bytes of inline data, values and targets in one [`Request::Replay`], unless it has one change only.
pub const MAX_REPLAY_BYTES: usize = 512 << 10;

/// The number of the [`Op::EndSession`] by which somebody else ends the session of a client that has died: no other change
/// of the session comes as late. What the client had sent to data servers is kept out first.
pub const BURIAL: OpSeq = OpSeq(u64::MAX);

/// A call to a metadata server.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Request {
    /// An entry of a directory: [`Response::Entry`], `ENOENT`, `ENOTDIR`.
    Lookup {
        /// The directory.
        parent: Ino,
        /// The entry.
        name: Name,
    },
    /// [`Response::Entry`] of an inode, `ESTALE` when there is none.
    Get {
        /// The inode.
        ino: Ino,
    },
    /// [`Response::Bytes`]: the target of a symbolic link.
    ReadLink {
        /// The link.
        ino: Ino,
    },
    /// [`Response::Listing`]: entries after a cookie.
    ReadDir {
        /// The directory.
        ino: Ino,
        /// The cookie of the last entry seen, 0 to begin.
        after: u64,
        /// The most entries to answer with, at most [`MAX_LISTING`].
        limit: u32,
        /// With attributes.
        plus: bool,
    },
    /// [`Response::Xattrs`]: all extended attributes' names.
    ListXattrs {
        /// The inode.
        ino: Ino,
    },
    /// [`Response::Bytes`]: an extended attribute, or `ENODATA`.
    GetXattr {
        /// The inode.
        ino: Ino,
        /// Its full name, with the namespace.
        name: Vec<u8>,
    },
    /// [`Response::StatFs`].
    StatFs,
    /// [`Response::Done`] when all that was answered before is on stable storage.
    Sync,
    /// A sign of life: [`Response::Done`].
    Renew,
    /// A change; see [`Mutation`].
    Mutate(Mutation),
    /// [`Response::Status`]; the only call of an administrator's connection.
    Status,
    /// [`Response::Entry`] of a file, with a [`Lease::Write`] on it.
    Acquire {
        /// The file.
        ino: Ino,
    },
    /// After a restart of the server: what the client held before it and still needs. [`Response::Done`], with the grants. Until all
    /// sessions have come to `done`, or have ended, nobody gets anything else.
    Reclaim {
        /// The leases, at most [`MAX_BATCH`].
        leases: Vec<(Ino, Lease)>,
        /// These were all.
        done: bool,
    },
    /// About file locks; answered by [`Response::Lock`].
    Lock(LockCall),
    /// Who holds what and who waits: [`Response::Inspected`], or [`Response::InspectedVolume`]. Needs no lease, and is answered
    /// at once.
    Inspect(About),
    /// After a restart of the server, before anything else: changes that were answered and are not in its log any more. With `done`
    /// it is answered by [`Response::Replayed`] when all sessions have come to it and the changes of all are made again, in
    /// their old order; by [`Response::Done`] when that takes longer, and then it is to be asked again, without changes.
    Replay {
        /// The changes, at most [`MAX_REPLAY`].
        changes: Vec<Replayed>,
        /// These were all.
        done: bool,
    },
    /// About data servers; answered by [`Response::Operated`]. Only of an administrator's connection.
    Operate(Operation),
}

/// A change that was answered before the server failed.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Replayed {
    /// Its position in the log as it was answered.
    pub at: LogIndex,
    /// Its number in the session.
    pub seq: OpSeq,
    /// The caller's clock then.
    pub time: Timestamp,
    /// The inode that it was about, with the generation it had afterwards.
    pub target: Option<(Ino, u32)>,
    /// The change.
    pub op: Op,
}

/// A change, applied exactly once however often it is sent.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Mutation {
    /// Its number, unique in the session.
    pub seq: OpSeq,
    /// The caller has the answers to all changes up to this one: the server may forget them.
    pub answered: OpSeq,
    /// The caller's clock.
    pub time: Timestamp,
    /// Answer only when it is on stable storage.
    pub sync: bool,
    /// The change.
    pub op: Op,
}

/// The rules of `rename(2)` and `renameat2(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum RenameMode {
    /// Replace what is there.
    Replace,
    /// `RENAME_NOREPLACE`.
    NoReplace,
    /// `RENAME_EXCHANGE`.
    Exchange,
    /// `RENAME_WHITEOUT`: replace, and leave a character device 0:0 at the old name, by which an
    /// overlay marks what is deleted.
    Whiteout {
        /// Whom the device belongs to.
        uid: u32,
        /// Its group.
        gid: u32,
    },
}

/// The rules of `setxattr(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum XattrMode {
    /// Create or replace.
    Set,
    /// `XATTR_CREATE`.
    Create,
    /// `XATTR_REPLACE`.
    Replace,
}

/// What a new inode is.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum NewInode {
    /// Regular file.
    File,
    /// Directory.
    Dir,
    /// Symbolic link with its target.
    Symlink(Vec<u8>),
    /// Pipe, socket, or device with its number.
    Special(FileKind, u32),
}

/// A change of the namespace. Every one is answered by [`Response::Changed`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Op {
    /// A new inode with its first name; `EEXIST` when the name is taken. The set-group-id rule
    /// of the directory and its default access control list are applied here.
    Create {
        /// The directory.
        parent: Ino,
        /// The name.
        name: Name,
        /// What to make.
        new: NewInode,
        /// Permission bits asked for.
        perm: u16,
        /// The caller's file mode creation mask; not used where a default list says otherwise.
        umask: u16,
        /// Owner.
        uid: u32,
        /// Group, unless the directory gives its own.
        gid: u32,
    },
    /// Another name.
    Link {
        /// The inode, not a directory.
        ino: Ino,
        /// The directory.
        parent: Ino,
        /// The name.
        name: Name,
    },
    /// Removes a name that is not a directory's. The inode of the last name stays as an orphan of
    /// the session until [`Op::Forget`] or the session's end.
    Unlink {
        /// The directory.
        parent: Ino,
        /// The name.
        name: Name,
    },
    /// Removes an empty directory; it stays as an orphan like a file.
    Rmdir {
        /// The directory above.
        parent: Ino,
        /// The name.
        name: Name,
    },
    /// Moves a name.
    Rename {
        /// From this directory.
        parent: Ino,
        /// This name.
        name: Name,
        /// To this directory.
        new_parent: Ino,
        /// Under this name.
        new_name: Name,
        /// What happens to an entry that is there.
        mode: RenameMode,
    },
    /// Changes attributes. A cut is complete, on the data servers too, when it is answered.
    SetAttr {
        /// The inode.
        ino: Ino,
        /// The change.
        set: SetAttr,
    },
    /// Sets an extended attribute; an access control list also sets the permission bits.
    SetXattr {
        /// The inode.
        ino: Ino,
        /// Full name.
        name: Vec<u8>,
        /// Value.
        value: Vec<u8>,
        /// Whether it must or must not exist.
        mode: XattrMode,
    },
    /// Removes an extended attribute.
    RemoveXattr {
        /// The inode.
        ino: Ino,
        /// Full name.
        name: Vec<u8>,
    },
    /// Replaces the inline data of a file whose data is inline; `ESTALE` when it no longer is, or
    /// the generation is another.
    WriteInline {
        /// The file.
        ino: Ino,
        /// The generation that the data belongs to.
        generation: u32,
        /// All inline data, at most the volume's inline limit.
        data: Vec<u8>,
        /// The new length; never below `data`.
        size: u64,
        /// When it was written.
        mtime: Timestamp,
    },
    /// Chunks of a file have been written or punched. Inline data is dropped: the caller has
    /// written it to the first chunk.
    WroteChunks {
        /// The file.
        ino: Ino,
        /// The generation that was written; `ESTALE` when the file has another by now.
        generation: u32,
        /// The file is at least this long now.
        end: u64,
        /// By how many bytes the allocated data grew.
        allocated: i64,
        /// When it was written.
        mtime: Timestamp,
    },
    /// Reads have moved access times on; an older time than the recorded one is ignored.
    Accessed {
        /// Inodes and times.
        times: Vec<(Ino, Timestamp)>,
    },
    /// The client no longer uses these inodes; those without a name may go.
    Forget {
        /// The inodes.
        inos: Vec<Ino>,
    },
    /// The client leaves; its orphans go.
    EndSession,
    /// Whatever data servers have beyond what this server was told of goes: a client that died may
    /// have left it there, and it must not show once the file grows over it. Chunks of a file
    /// whose data is inline get another generation; those of another file are cut at its length.
    /// Nobody may be writing to the file.
    CutTail {
        /// The file.
        ino: Ino,
    },
}

impl Op {
    /// The bytes of what may be long.
    pub fn bulk(&self) -> usize {
        match self {
            Op::Create { new: NewInode::Symlink(target), .. } => target.len(),
            Op::SetXattr { value, .. } => value.len(),
            Op::WriteInline { data, .. } => data.len(),
            Op::Accessed { times } => std::mem::size_of_val(times.as_slice()),
            Op::Forget { inos } => std::mem::size_of_val(inos.as_slice()),
            Op::Create { .. }
            | Op::Link { .. }
            | Op::Unlink { .. }
            | Op::Rmdir { .. }
            | Op::Rename { .. }
            | Op::SetAttr { .. }
            | Op::RemoveXattr { .. }
            | Op::WroteChunks { .. }
            | Op::EndSession
            | Op::CutTail { .. } => 0,
        }
    }
}

/// The grant for an inode, if it is among these.
pub fn granted(grants: &[Grant], ino: Ino) -> Option<Grant> {
    grants.iter().find(|g| g.ino == ino).copied()
}

/// What a [`Request`] came to.
pub type Reply = Result<Response, Errno>;

/// The answer to a [`Request`], as it is sent.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Answer {
    /// What it came to.
    pub reply: Reply,
    /// What of that the client may keep.
    pub grants: Vec<Grant>,
    /// The position in the log of the change that was asked for; 0 for everything else.
    pub at: LogIndex,
    /// Up to where the log is on stable storage.
    pub durable: LogIndex,
}

impl Answer {
    /// An answer of which nothing may be kept.
    pub fn bare(reply: Reply) -> Answer {
        Answer { reply, grants: Vec::new(), at: LogIndex(0), durable: LogIndex(0) }
    }

    /// What was granted of an inode.
    pub fn granted(&self, ino: Ino) -> Option<Grant> {
        granted(&self.grants, ino)
    }
}

/// An answer without an error.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Response {
    /// An inode.
    Entry {
        /// Its attributes.
        attr: Attr,
        /// Its data, if inline.
        inline: Option<Vec<u8>>,
    },
    /// Raw bytes.
    Bytes(Vec<u8>),
    /// Names of extended attributes.
    Xattrs(Vec<Vec<u8>>),
    /// A part of a directory.
    Listing {
        /// In ascending order of cookies.
        entries: Vec<DirEntry>,
        /// There are no more.
        end: bool,
        /// The directory above.
        parent: Ino,
    },
    /// Space and inodes of the volume.
    StatFs(StatFs),
    /// Done; there is nothing to say.
    Done,
    /// A change was applied.
    Changed {
        /// The inode that was made, linked, moved or changed, if it still exists.
        target: Option<Ino>,
        /// The attributes that every inode touched has now: the target, directories, an inode
        /// that lost a name (with `nlink` 0 when that was the last one).
        attrs: Vec<Attr>,
    },
    /// The server's condition.
    Status(Status),
    /// About file locks.
    Lock(LockReply),
    /// An inode with its leases.
    Inspected(Box<Inspection>),
    /// The leases of the volume.
    InspectedVolume(VolumeLeases),
    /// What was lost of the log has been made again, as far as possible.
    Replayed {
        /// The positions of the caller's changes that could not be.
        lost: Vec<LogIndex>,
    },
    /// What came of an operator's wish.
    Operated(Outcome),
}

/// An entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct DirEntry {
    /// Its place: stable while the entry exists, never used again in this directory.
    pub cookie: u64,
    /// Its name.
    pub name: Name,
    /// Its inode.
    pub ino: Ino,
    /// The inode's type.
    pub kind: FileKind,
    /// The inode's attributes, when asked for.
    pub attr: Option<Attr>,
}

/// Figures of `statfs(2)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct StatFs {
    /// Capacity in bytes.
    pub bytes: u64,
    /// Bytes that can still be written.
    pub bytes_free: u64,
    /// Inodes that the volume can have.
    pub inodes: u64,
    /// Inodes that can still be made.
    pub inodes_free: u64,
}

/// The condition of a metadata server, for `netfs status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Status {
    /// Version of the program.
    pub version: String,
    /// Seconds since its start.
    pub uptime_secs: u64,
    /// Every volume.
    pub volumes: Vec<VolumeStatus>,
    /// What an operator should know, a line each.
    pub alarms: Vec<String>,
}

/// The condition of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct VolumeStatus {
    /// Its name.
    pub name: String,
    /// Inodes in use.
    pub inodes: u64,
    /// Bytes of data in use.
    pub bytes: u64,
    /// Capacity in bytes.
    pub capacity: u64,
    /// Inodes without a name that are still in use.
    pub orphans: u64,
    /// Commands in the log.
    pub log_index: u64,
    /// Commands known to be on stable storage.
    pub log_durable: u64,
    /// Sessions: identifier, the client's description, connected now.
    pub sessions: Vec<(SessionId, String, bool)>,
    /// How its data is replicated where nothing else is said.
    pub redundancy: Redundancy,
    /// How that of other classes in use is, by class.
    pub classes: Vec<(Class, Redundancy)>,
}

/// A call of the server to a client.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Push {
    /// Whether other clients have the volume mounted. It grants nothing: it only says how programs' writes are best taken.
    Company {
        /// One that comes after another over the same connection and has a lower number is older.
        generation: u64,
        /// There are others.
        others: bool,
    },
    /// What the client must give back, at most [`super::lease::MAX_RECALLS`]. It answers when it has.
    Recall(Vec<Recall>),
    /// The cluster map has changed. One with a lower version than the client knows is ignored.
    Map(crate::map::ClusterMap),
    /// These inodes have lost their last name for good, which is on stable storage, and are kept for this client, at most
    /// [`MAX_BATCH`]: it says [`Op::Forget`] as soon as nobody there uses them. It may be told again, and of what it has never seen.
    Orphans(Vec<Ino>),
}

/// A client's answer to a [`Push`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum PushReply {
    /// It is done.
    Done,
}
