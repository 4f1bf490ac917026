//! What a failure of the store means to a caller.

use netfs_common::errno::Errno;
use netfs_common::wire::data::Reply;

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

/// What a call is answered with that has failed so.
pub(super) fn reply(errno: Errno) -> Reply {
    match errno {
        Errno::EAGAIN => Reply::Busy,
        errno => Reply::Failed(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_key_a_server_is_busy() {
        assert_eq!(reply(errno(&StoreError::NoKey { volume: 4 })), Reply::Busy);
        let full = StoreError::NoSpace { needed: 1, free: 0 };
        assert_eq!(reply(errno(&full)), Reply::Failed(Errno::ENOSPC));
    }
}
