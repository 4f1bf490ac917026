//! Whether a directory may get a class of data, as far as that can be said before the change has its place in the log.

use netfs_common::attr::FileKind;
use netfs_common::class::Class;
use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::wire::meta::Response;

use super::volume::Volume;

impl Volume {
    /// Whether groups are to be made for what an inode is to get. Not for what never becomes a directory: the change will be refused, and
    /// groups stay for ever. Nor for a directory that has the class: it may have got it by this very change, whose answer was lost.
    pub(super) fn takes_class(&self, ino: Ino, class: Class) -> Result<bool, Errno> {
        match self.engine.get(ino) {
            Ok(Response::Entry { attr, .. }) => {
                Ok(attr.kind == FileKind::Dir && Class::of(attr.generation) != class)
            }
            Err(Errno::ESTALE) => match self.engine.counters()?.next_ino {
                next if ino.0 < next => Ok(false),
                // It may be made at any moment, and nobody can know of it.
                _ => Err(Errno::ESTALE),
            },
            Ok(_) => Err(Errno::EIO),
            Err(errno) => Err(errno),
        }
    }
}
