//! What is agreed with the kernel at the start.

use std::io;

use fuser::{InitFlags, KernelConfig};

/// Largest read or write of one request: 256 pages, the kernel's default bound.
const MAX_WRITE_BYTES: u32 = 1 << 20;

/// Flags to ask for. fuser asks only for reads in parallel, large writes and large requests.
///
/// Deliberately absent:
/// - `WRITEBACK_CACHE`: the daemon must have a write before anybody else may read, and with it the
///   kernel ignores what others did to size and times (measured).
/// - `ATOMIC_O_TRUNC`: the kernel would leave it to us to clear set-id bits when a file is emptied
///   by `open`; without it a `SETATTR` follows that says so.
/// - `HANDLE_KILLPRIV` and its second version: the kernel clears set-id bits and capabilities on
///   write, truncation and change of owner itself, by the rules for the caller's capabilities, which
///   we cannot see. It asks for `security.capability` before a write; that is answered from memory.
/// - `AUTO_INVAL_DATA`: our own writes change the time too; pages go when we say so.
/// - `NO_OPEN_SUPPORT`, `NO_OPENDIR_SUPPORT`: handles carry what was opened for writing.
/// - `PASSTHROUGH`, splicing, `SUBMOUNTS`, `SECURITY_CTX`, `SETXATTR_EXT`: of no use here, or fuser
///   cannot decode what follows from them.
const WANTED: &[InitFlags] = &[
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_BIG_WRITES,
    InitFlags::FUSE_MAX_PAGES,
    // Lookups and listings in one directory at the same time.
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    // `.` and `..` can be looked up: file handles (`open_by_handle_at`, NFS export) work.
    InitFlags::FUSE_EXPORT_SUPPORT,
    // Needs the mask with each creation, because a default list takes its place.
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_DONT_MASK,
    // The target of a link never changes, and inode numbers are never used again.
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_EXPLICIT_INVAL_DATA,
    InitFlags::FUSE_ASYNC_DIO,
    // Locks hold among all clients.
    InitFlags::FUSE_POSIX_LOCKS,
    InitFlags::FUSE_FLOCK_LOCKS,
    InitFlags::FUSE_HAS_IOCTL_DIR,
    // Files that the kernel shall not cache (shared ones) can still be mapped.
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
    // Mounts can be id-mapped (containers); then requests that create nothing name no user.
    InitFlags::FUSE_ALLOW_IDMAP,
];

/// Without these the promises cannot be kept.
const NEEDED: InitFlags = InitFlags::FUSE_ASYNC_READ
    .union(InitFlags::FUSE_BIG_WRITES)
    .union(InitFlags::FUSE_MAX_PAGES)
    .union(InitFlags::FUSE_POSIX_ACL)
    .union(InitFlags::FUSE_DONT_MASK)
    .union(InitFlags::FUSE_EXPLICIT_INVAL_DATA)
    .union(InitFlags::FUSE_POSIX_LOCKS)
    .union(InitFlags::FUSE_FLOCK_LOCKS);

/// Settles flags and sizes.
pub(super) fn negotiate(config: &mut KernelConfig, max_background: u16) -> io::Result<()> {
    let missing = NEEDED.difference(config.capabilities());
    if !missing.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("the kernel's FUSE lacks {missing:?}; Linux 5.2 or later is needed"),
        ));
    }
    for flag in WANTED {
        // One by one: what a kernel lacks must not take the others with it.
        if config.add_capabilities(*flag).is_err() {
            tracing::info!(?flag, "the kernel lacks a FUSE feature");
        }
    }
    let refused = |what: &str| io::Error::other(format!("{what} was refused by fuser"));
    config.set_max_write(MAX_WRITE_BYTES).map_err(|_| refused("max_write"))?;
    config.set_max_background(max_background).map_err(|_| refused("max_background"))?;
    config
        .set_congestion_threshold((max_background / 4 * 3).max(1))
        .map_err(|_| refused("congestion_threshold"))?;
    config
        .set_time_granularity(std::time::Duration::from_nanos(1))
        .map_err(|_| refused("time granularity"))?;
    // Readahead stays at what the kernel offers, its upper bound here: more is set through sysfs.
    Ok(())
}
