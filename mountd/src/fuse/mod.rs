//! FUSE: the only place that knows it.
//!
//! ```text
//! /dev/fuse -> fuser's event loops (plain threads) -> Adapter -> Vfs
//!                                                       |          \-> try_*: answered on the spot
//!                                                       \-> Inflight: spawned on the Vfs's runtime
//! Vfs -> KernelCache (NoticeQueue) -> notice thread -> /dev/fuse
//! ```
//!
//! - The [`Adapter`] turns each request into a call of the [`Vfs`](crate::vfs::Vfs). What the
//!   caches can answer is answered on the FUSE thread; anything else becomes a task that takes the
//!   reply with it, so that no operation waits for another.
//! - Notifications to the kernel wait for locks that request handlers may hold. They have a thread
//!   of their own, which nobody waits for while the kernel waits for him.
//! - A request whose caller is being killed is answered `EINTR` by a watcher, see [`Inflight`].

mod adapter;
mod convert;
mod device;
mod groups;
mod inflight;
mod init;
mod ioctl;
mod listing;
mod locks;
mod mount;
pub mod mountinfo;
mod notice;
mod operations;
mod renamed;
mod reply;
mod signals;
mod takeback;

pub use adapter::Adapter;
pub use device::{DeviceError, MountFlags};
pub use inflight::Inflight;
pub use mount::{MountError, MountSpec, Mounted, Unmount, remount, unmount};
pub use notice::NoticeQueue;
