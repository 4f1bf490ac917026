//! Chunks that belong to nobody: what an audit of the data servers has found, judged at a place in the log.
//!
//! Whoever has found them has looked at the inodes some time ago. So each is looked at here once more, and only what can never be asked for again is
//! put in the queue of removals:
//!
//! - An inode that is not there, of a number that has been given out or that is left out from now on. Numbers are never given out
//!   again.
//! - A generation below that of its file: generations only rise.
//! - Anything of an inode that is no file: it never becomes one.
//!
//! A generation above that of its file is left alone: the file may get it. The only exception to both rules are changes that were lost
//! with the end of the log and are made again at the start; the caller waits until that is over.
//!
//! What is beyond the end of a file is cut as by [`netfs_common::wire::meta::Op::CutTail`]; the caller has made sure that nobody has the right to write there.

use netfs_common::attr::FileKind;
use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::map::{INODE_BITS, volume_of};
use netfs_common::wire::meta::{MAX_BATCH, Response};

use super::Fault;
use super::change::Change;
use crate::meta::keys;
use crate::meta::record::{self, Deletion};

/// A command leaves out so many numbers at the most, however many of them have chunks: anybody may have sent chunks of any number, and there must
/// be enough left. It is more than a failure of the machine takes away.
const MAX_LEFT_OUT: u64 = 1 << 20;

impl Change<'_, '_> {
    pub(super) fn sweep(&mut self, gone: &[(Ino, u32)], tails: &[Ino]) -> Result<Response, Fault> {
        if gone.len() > MAX_BATCH || tails.len() > MAX_BATCH {
            return Err(Errno::E2BIG.into());
        }
        let next = self.state.next_ino;
        for (ino, generation) in gone {
            if volume_of(*ino) != self.settings.first_ino >> INODE_BITS {
                return Err(Errno::EINVAL.into());
            }
            let never_again = match self.find(*ino)? {
                None => self.is_over(*ino, next),
                Some(inode) if inode.attr.kind != FileKind::File => true,
                Some(inode) => *generation < inode.attr.generation,
            };
            if never_again {
                let chunk_bits = self.settings.chunk_bits;
                let deletion = Deletion { ino: *ino, generation: *generation, chunk_bits, end: 0 };
                let id = self.next_task();
                self.txn.put(keys::deletion(id), record::encode(&deletion)?);
            }
        }
        for ino in tails {
            if self.find(*ino)?.is_some_and(|inode| inode.attr.kind == FileKind::File) {
                self.cut_tail(*ino)?;
            }
        }
        Ok(Response::Done)
    }

    /// Whether an inode that is not there will never be; sees to it, if need be. `next`: the first number that had not been given out when
    /// the command began.
    fn is_over(&mut self, ino: Ino, next: u64) -> bool {
        if ino.0 >= self.state.next_ino && ino.0 - next < MAX_LEFT_OUT {
            // Nobody can have been told of it.
            self.state.next_ino = ino.0 + 1;
        }
        ino.0 < self.state.next_ino
    }
}
