//! What a connection may ask for.
//!
//! A client's connection is for one volume: that of the first inode that it names. No fault of a client can thus mix
//! the chunks of two volumes. It is no protection of one volume against those who may mount another: the certificates
//! of a cluster make no difference between its volumes, neither here nor at the metadata server.

use std::sync::OnceLock;

use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::map::volume_of;
use netfs_common::wire::data::Op;

/// The rights of one connection.
#[derive(Debug)]
pub(super) enum Rights {
    /// Another server: it removes what no client needs any more, of all volumes.
    Server,
    /// A client, and the number of its volume as soon as it is known.
    Client(OnceLock<u64>),
}

impl Rights {
    pub(super) fn client() -> Rights {
        Rights::Client(OnceLock::new())
    }

    /// Whether it may do this.
    pub(super) fn check(&self, op: &Op) -> Result<(), Errno> {
        let Rights::Client(volume) = self else { return Ok(()) };
        if let Op::Delete { first } = op {
            tracing::warn!(ino = %first.ino, "a client wanted to delete, which only servers may");
            return Err(Errno::EPERM);
        }
        if let Op::FlushHere | Op::Peer(_) = op {
            return Err(Errno::EPERM);
        }
        if let Op::Fence { session } = op {
            tracing::warn!(%session, "a client wanted to fence a session, which only servers may");
            return Err(Errno::EPERM);
        }
        for ino in inodes(op).into_iter().flatten() {
            let (asked, own) = (volume_of(ino), volume.get_or_init(|| volume_of(ino)));
            if asked != *own {
                tracing::warn!(%ino, asked, own, "a client named an inode of another volume than its own");
                return Err(Errno::EPERM);
            }
        }
        Ok(())
    }
}

/// The inodes that a call names.
fn inodes(op: &Op) -> [Option<Ino>; 2] {
    match op {
        Op::Write { chunk, .. } | Op::Read { chunk, .. } | Op::Punch { chunk, .. } => {
            [Some(chunk.ino), None]
        }
        Op::Delete { first } => [Some(first.ino), None],
        Op::Copy { source, target, .. } => [Some(source.ino), Some(target.ino)],
        Op::Extents { span, .. } | Op::PunchSpan { span } => [Some(span.ino), None],
        Op::Flush { .. } | Op::FlushHere | Op::Usage | Op::Fence { .. } | Op::Peer(_) => {
            [None, None]
        }
    }
}
