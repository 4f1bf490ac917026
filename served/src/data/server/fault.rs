//! What a failure of the store means to a caller.

use netfs_common::errno::Errno;

use crate::data::store::StoreError;

/// The error number that a program gets to see; `EAGAIN`: none, its client comes again.
pub(super) fn errno(error: &StoreError) -> Errno {
    match error {
        StoreError::NoSpace { .. } => Errno::ENOSPC,
        StoreError::Io { source, .. } => match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => Errno::ENOSPC,
            _ => Errno::EIO,
        },
        StoreError::OutOfRange { .. } => Errno::EINVAL,
        // It comes, or the chunk goes to a server that has it.
        StoreError::NoKey { .. } => Errno::EAGAIN,
        StoreError::Corrupt { .. }
        | StoreError::NotEncrypted(_)
        | StoreError::Away { .. }
        | StoreError::Poisoned(_)
        | StoreError::InUse(_)
        | StoreError::NotAStore { .. }
        | StoreError::NewerVersion { .. }
        | StoreError::BadFile { .. }
        | StoreError::Config(_) => Errno::EIO,
    }
}
