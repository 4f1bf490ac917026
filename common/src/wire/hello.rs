//! The first exchange on every connection.

use bincode::{Decode, Encode};

use crate::attr::Timestamp;
use crate::id::{ClusterId, InstanceId, LogIndex, SessionId};
use crate::map::ClusterMap;

/// Which kind of connection the caller wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Role {
    /// Metadata calls of a mounted client, in its session.
    Meta,
    /// Bulk data.
    Data,
    /// An administrator's question ([`crate::wire::meta::Request::Status`]): no session, no volume.
    Admin,
}

/// What a client knows of the session that it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Claim {
    /// It is begun if the server does not have it.
    Begin,
    /// It is there. If the server does not have it any more, the greeting is refused with [`SESSION_OVER`].
    Resume,
    /// As [`Claim::Begin`], in place of one that is over: the client may use what it saw in that.
    Succeed,
}

/// The code of a refusal that says that the session of the greeting is over: with another one the caller may begin anew.
pub const SESSION_OVER: u16 = 8;

/// What the caller says first.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    /// Lowest and highest protocol version that the caller speaks.
    pub protocol: (u32, u32),
    /// Feature bits; none are defined yet, unknown ones are ignored.
    pub features: u64,
    /// Kind of connection.
    pub role: Role,
    /// The volume to work on; empty for an administrator.
    pub volume: String,
    /// The caller's session, the same on all its connections.
    pub session: SessionId,
    /// What the caller knows of that session; looked at on metadata connections of clients.
    pub claim: Claim,
    /// This life of the caller.
    pub instance: InstanceId,
    /// Host and mount point, for people.
    pub client: String,
}

/// What the server answers.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct HelloReply {
    /// The protocol version to speak.
    pub protocol: u32,
    /// Feature bits of the server.
    pub features: u64,
    /// The cluster.
    pub cluster: ClusterId,
    /// This life of the server; the write verifier of a data server.
    pub instance: InstanceId,
    /// Facts about the volume; only on metadata connections of a session.
    pub volume: Option<VolumeInfo>,
}

/// What a client needs to know of its volume.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct VolumeInfo {
    /// A random number that never changes; also the `fsid`.
    pub id: u64,
    /// The largest file that is kept in its inode, in bytes.
    pub inline_limit: u32,
    /// Where the chunks are.
    pub map: ClusterMap,
    /// The session was known already: a reconnect, and not a new session in place of one that
    /// has ended.
    pub resumed: bool,
    /// Other clients have the volume mounted; see [`crate::wire::meta::Push::Company`].
    pub others: bool,
    /// The server's clock.
    pub time: Timestamp,
    /// For how long the session lives without a sign of life, in milliseconds.
    pub term_ms: u32,
    /// What the server has lost whenever its machine failed, as far as it remembers ([`MAX_LOST`] times), oldest first.
    pub lost: Vec<Lost>,
}

/// The most entries of [`VolumeInfo::lost`].
pub const MAX_LOST: usize = 64;

/// Changes that were answered with a version within a range, and are lost. Versions are never given out twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Lost {
    /// The last version that was kept.
    pub after: LogIndex,
    /// The first version of the life that came next.
    pub before: LogIndex,
}
