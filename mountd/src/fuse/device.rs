//! `/dev/fuse` and `mount(2)`.
//!
//! fuser can mount too, but it cannot set every mount flag, and it unmounts by path when a session
//! ends: that could hit the next mount at the same place. So the mount is made here, and fuser
//! gets the descriptor.

use std::ffi::{CString, NulError};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

const DEVICE: &str = "/dev/fuse";

/// The helper that mounts for users other than root.
const FUSERMOUNT: &str = "fusermount3";

/// Mount flags of the kernel (`mount(2)`) with the names of `mount(8)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountFlags(libc::c_ulong);

/// Name, flag, and whether the name sets the flag or clears it.
const FLAG_NAMES: &[(&str, libc::c_ulong, bool)] = &[
    ("ro", libc::MS_RDONLY, true),
    ("rw", libc::MS_RDONLY, false),
    ("nosuid", libc::MS_NOSUID, true),
    ("suid", libc::MS_NOSUID, false),
    ("nodev", libc::MS_NODEV, true),
    ("dev", libc::MS_NODEV, false),
    ("noexec", libc::MS_NOEXEC, true),
    ("exec", libc::MS_NOEXEC, false),
    ("noatime", libc::MS_NOATIME, true),
    ("atime", libc::MS_NOATIME, false),
    ("nodiratime", libc::MS_NODIRATIME, true),
    ("diratime", libc::MS_NODIRATIME, false),
    ("relatime", libc::MS_RELATIME, true),
    ("norelatime", libc::MS_RELATIME, false),
    ("strictatime", libc::MS_STRICTATIME, true),
    ("nostrictatime", libc::MS_STRICTATIME, false),
    ("lazytime", libc::MS_LAZYTIME, true),
    ("nolazytime", libc::MS_LAZYTIME, false),
    ("sync", libc::MS_SYNCHRONOUS, true),
    ("async", libc::MS_SYNCHRONOUS, false),
    ("dirsync", libc::MS_DIRSYNC, true),
];

impl MountFlags {
    /// Applies an option of `mount(8)`; `false` when it is not the name of a flag.
    pub fn apply(&mut self, option: &str) -> bool {
        if option == "defaults" {
            self.0 = 0;
            return true;
        }
        let Some((_, flag, set)) = FLAG_NAMES.iter().find(|(name, ..)| *name == option) else {
            return false;
        };
        if *set {
            self.0 |= flag
        } else {
            self.0 &= !flag
        }
        true
    }

    /// Whether nothing can be changed through the mount.
    pub fn read_only(self) -> bool {
        self.0 & libc::MS_RDONLY != 0
    }

    /// Whether reading never changes an access time.
    pub fn no_access_times(self) -> bool {
        self.0 & libc::MS_NOATIME != 0
    }

    /// Whether listing a directory never changes its access time.
    pub fn no_directory_access_times(self) -> bool {
        self.0 & libc::MS_NODIRATIME != 0
    }

    /// Whether every read changes an access time.
    pub fn all_access_times(self) -> bool {
        self.0 & libc::MS_STRICTATIME != 0
    }

    /// The bits for `mount(2)`.
    pub(super) fn bits(self) -> libc::c_ulong {
        self.0
    }

    /// The names of the flags that are set and that `fusermount3` knows.
    fn names(self) -> impl Iterator<Item = &'static str> {
        const UNKNOWN: libc::c_ulong =
            libc::MS_RELATIME | libc::MS_STRICTATIME | libc::MS_LAZYTIME | libc::MS_NODIRATIME;
        FLAG_NAMES
            .iter()
            .filter(move |(_, flag, set)| *set && self.0 & flag & !UNKNOWN != 0)
            .map(|(name, ..)| *name)
    }
}

/// Why there is no mount. Each text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The device file does not exist.
    #[error(
        "{DEVICE} does not exist: load FUSE with `modprobe fuse`, or give the container the device (`--device {DEVICE} --cap-add SYS_ADMIN`)"
    )]
    NoDevice,
    /// The device may not be opened.
    #[error("{DEVICE} may not be opened ({0}): run as root, or let your user read and write it")]
    DeviceDenied(io::Error),
    /// The device cannot be opened for another reason.
    #[error("{DEVICE} cannot be opened: {0}")]
    Device(io::Error),
    /// Root, but without the right to mount.
    #[error(
        "mounting is not permitted here: the process lacks CAP_SYS_ADMIN (in a container: `--cap-add SYS_ADMIN --security-opt apparmor=unconfined`)"
    )]
    MountDenied,
    /// The call failed.
    #[error("mount on {0} failed: {1}")]
    Mount(String, io::Error),
    /// The helper is not installed.
    #[error(
        "{FUSERMOUNT} is not installed, which users other than root need: install the package fuse3, or mount as root"
    )]
    NoHelper,
    /// The helper refused; its own words.
    #[error("{FUSERMOUNT}: {0}")]
    Helper(String),
    /// A name with a NUL in it.
    #[error("a name contains a NUL byte")]
    Nul(#[from] NulError),
}

/// What is to be mounted.
pub(super) struct Mount<'a> {
    pub(super) source: &'a str,
    pub(super) target: &'a Path,
    pub(super) subtype: Option<&'a str>,
    pub(super) flags: MountFlags,
    pub(super) allow_other: bool,
}

/// Mounts, directly where that is permitted, else through `fusermount3`. The descriptor is the
/// connection: nobody has read from it yet.
pub(super) fn mount(m: &Mount<'_>) -> Result<OwnedFd, DeviceError> {
    // SAFETY: the call has no arguments and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    if root { mount_directly(m) } else { mount_by_helper(m) }
}

fn open_device() -> Result<File, DeviceError> {
    OpenOptions::new().read(true).write(true).open(DEVICE).map_err(|e| match e.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => DeviceError::NoDevice,
        Some(libc::EACCES | libc::EPERM) => DeviceError::DeviceDenied(e),
        _ => DeviceError::Device(e),
    })
}

fn mount_directly(m: &Mount<'_>) -> Result<OwnedFd, DeviceError> {
    let device = open_device()?;
    let kind = m.subtype.map_or("fuse".to_string(), |s| format!("fuse.{s}"));
    // SAFETY: the calls have no arguments and cannot fail.
    let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
    let fd = device.as_raw_fd();
    let mut data =
        format!("fd={fd},rootmode=40000,user_id={uid},group_id={gid},default_permissions");
    if m.allow_other {
        data.push_str(",allow_other");
    }
    call_mount(Some(m.source), m.target, Some(&kind), m.flags.bits(), Some(&data)).map_err(
        |e| match e.raw_os_error() {
            Some(libc::EPERM) => DeviceError::MountDenied,
            Some(libc::ENODEV) => DeviceError::NoDevice,
            _ => DeviceError::Mount(m.target.display().to_string(), e),
        },
    )?;
    Ok(device.into())
}

/// `mount(2)`.
pub(super) fn call_mount(
    source: Option<&str>,
    target: &Path,
    kind: Option<&str>,
    flags: libc::c_ulong,
    data: Option<&str>,
) -> io::Result<()> {
    let text = |s: Option<&str>| s.map(CString::new).transpose();
    let (source, kind, data) = (text(source)?, text(kind)?, text(data)?);
    let target = CString::new(target.as_os_str().as_bytes())?;
    let pointer = |s: &Option<CString>| s.as_ref().map_or(std::ptr::null(), |s| s.as_ptr());
    // SAFETY: every pointer is null or a string that ends in NUL and outlives the call.
    let result = unsafe {
        libc::mount(
            pointer(&source),
            target.as_ptr(),
            pointer(&kind),
            flags,
            pointer(&data).cast::<libc::c_void>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets `fusermount3` mount; it hands over the descriptor through a socket.
fn mount_by_helper(m: &Mount<'_>) -> Result<OwnedFd, DeviceError> {
    // A missing device has a clearer text than the helper's.
    drop(open_device()?);
    let mut options = vec![format!("fsname={}", escape(m.source)), "default_permissions".into()];
    options.extend(m.subtype.map(|s| format!("subtype={s}")));
    options.extend(m.flags.names().map(str::to_string));
    if m.allow_other {
        options.push("allow_other".into());
    }
    let (ours, theirs) = UnixStream::pair().map_err(DeviceError::Device)?;
    let inherited = theirs.as_raw_fd();
    let mut command = Command::new(FUSERMOUNT);
    command
        .arg("-o")
        .arg(options.join(","))
        .arg("--")
        .arg(m.target)
        .env("_FUSE_COMMFD", inherited.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    // SAFETY: between fork and exec only `fcntl` is called, which is async-signal-safe, on a
    // descriptor that `theirs` keeps open.
    unsafe {
        command.pre_exec(move || match libc::fcntl(inherited, libc::F_SETFD, 0) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    let mut child = command.spawn().map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => DeviceError::NoHelper,
        _ => DeviceError::Helper(e.to_string()),
    })?;
    drop(theirs);
    let received = receive_descriptor(&ours);
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        // Its words only explain a failure that is known without them.
        let _ = stderr.read_to_string(&mut said);
    }
    let status = child.wait().map_err(|e| DeviceError::Helper(e.to_string()))?;
    match received {
        Ok(fd) if status.success() => Ok(fd),
        Ok(_) | Err(_) if !said.trim().is_empty() => {
            let said = said.trim().trim_start_matches("fusermount3: ");
            Err(DeviceError::Helper(said.lines().last().unwrap_or_default().to_string()))
        }
        Ok(_) => Err(DeviceError::Helper(status.to_string())),
        Err(e) => Err(DeviceError::Helper(e.to_string())),
    }
}

/// The helper takes options apart at commas.
fn escape(source: &str) -> String {
    source.replace('\\', "\\\\").replace(',', "\\,")
}

/// Room for one control message with one descriptor, aligned as the kernel wants it.
#[repr(C)]
union ControlBuffer {
    header: libc::cmsghdr,
    bytes: [u8; 64],
}

fn receive_descriptor(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0u8; 1];
    let mut iov =
        libc::iovec { iov_base: byte.as_mut_ptr().cast::<libc::c_void>(), iov_len: byte.len() };
    let mut control = ControlBuffer { bytes: [0; 64] };
    // SAFETY: all-zero bytes are a valid `msghdr`: null pointers and zero lengths.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast::<libc::c_void>();
    message.msg_controllen = size_of::<ControlBuffer>();
    let got = loop {
        // SAFETY: the message points to the two buffers above, which outlive the call, with their
        // true lengths.
        let got =
            unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        if got >= 0 {
            break got;
        }
        let e = io::Error::last_os_error();
        if e.kind() != io::ErrorKind::Interrupted {
            return Err(e);
        }
    };
    if got == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // SAFETY: the kernel has filled the message in, and the buffers are still there.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message).as_ref() };
    let fits = |h: &&libc::cmsghdr| {
        // SAFETY: computes a size, touches no memory.
        let least = unsafe { libc::CMSG_LEN(size_of::<RawFd>() as u32) } as usize;
        h.cmsg_level == libc::SOL_SOCKET && h.cmsg_type == libc::SCM_RIGHTS && h.cmsg_len >= least
    };
    let header = header.filter(fits).ok_or(io::ErrorKind::InvalidData)?;
    // SAFETY: the header was checked to carry a descriptor; it was received just now, so that
    // nobody else owns it.
    unsafe {
        let fd = libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned();
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(options: &[&str]) -> MountFlags {
        let mut f = MountFlags::default();
        for o in options {
            assert!(f.apply(o), "{o}");
        }
        f
    }

    #[test]
    fn the_last_option_wins() {
        assert!(flags(&["ro"]).read_only());
        assert!(!flags(&["ro", "rw"]).read_only());
        assert_eq!(flags(&["nosuid", "noexec", "defaults"]).bits(), 0);
        assert_eq!(flags(&["nosuid", "nodev", "dev"]).bits(), libc::MS_NOSUID);
        assert!(flags(&["noatime"]).no_access_times());
    }

    #[test]
    fn other_options_are_not_flags() {
        assert!(!MountFlags::default().apply("allow_other"));
        assert!(!MountFlags::default().apply(""));
    }

    #[test]
    fn the_helper_gets_names() {
        let names: Vec<_> = flags(&["ro", "nosuid", "relatime"]).names().collect();
        assert_eq!(names, ["ro", "nosuid"]);
    }

    #[test]
    fn commas_in_a_source_do_not_end_it() {
        assert_eq!(escape("a,b\\c"), "a\\,b\\\\c");
    }

    #[test]
    fn nothing_received_is_an_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert_eq!(receive_descriptor(&ours).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
