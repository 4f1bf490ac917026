//! A mount from beginning to end.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use fuser::{Config, Session, SessionACL};
use tokio::sync::oneshot;

use super::adapter::Adapter;
use super::device::{self, DeviceError, MountFlags};
use super::inflight::Inflight;
use super::mountinfo;
use super::notice::{Channel, NoticeQueue};
use crate::vfs::Vfs;

/// For how long a new mount may take to answer its first request. A server that was restarted answers nobody until those who had
/// leases before have come back, or their term is over.
const FIRST_ANSWER: Duration = Duration::from_secs(120);

/// How often, and at what intervals, a busy mount is tried again.
const BUSY_ATTEMPTS: u32 = 5;
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// What to mount and how.
#[derive(Clone, Debug)]
pub struct MountSpec {
    /// What `/proc/mounts` shows as the source, verbatim.
    pub source: String,
    /// An existing directory.
    pub target: PathBuf,
    /// What the file system's type has behind `fuse.`; `None` for plain `fuse`.
    pub subtype: Option<String>,
    /// Flags of the kernel.
    pub flags: MountFlags,
    /// Users other than the one who mounts may use it.
    pub allow_other: bool,
    /// Threads that take requests from the kernel. A second one keeps a long copy of one request
    /// from delaying the next; more were measured to cost more than they bring.
    pub event_loops: usize,
    /// Requests that the kernel sends ahead, such as reads that nobody waits for yet.
    pub max_background: u16,
    /// How far the kernel reads ahead. More than 128 KiB takes root.
    pub readahead_bytes: u64,
}

/// Why a volume is not mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The kernel did not mount it.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The kernel and we did not agree.
    #[error("the FUSE session could not be started: {0}")]
    Session(io::Error),
    /// A thread could not be started.
    #[error("a thread could not be started: {0}")]
    Thread(io::Error),
    /// It is mounted, but does not answer.
    #[error("the mount was made but its root directory does not answer: {0}")]
    Silent(io::Error),
}

/// A volume that is mounted.
#[derive(Debug)]
pub struct Mounted {
    target: PathBuf,
    notices: Arc<NoticeQueue>,
    inflight: Arc<Inflight>,
    ended: oneshot::Receiver<io::Result<()>>,
}

impl Mounted {
    /// Mounts and begins to answer. Returns when the root directory has answered.
    ///
    /// # Errors
    /// See [`MountError`]; nothing stays mounted then.
    pub fn mount(vfs: Arc<Vfs>, spec: &MountSpec) -> Result<Mounted, MountError> {
        let inflight = Inflight::start().map_err(MountError::Thread)?;
        let notices = NoticeQueue::new();
        vfs.set_kernel(notices.clone());
        let fd = device::mount(&device::Mount {
            source: &spec.source,
            target: &spec.target,
            subtype: spec.subtype.as_deref(),
            flags: spec.flags,
            allow_other: spec.allow_other,
        })?;
        let target = spec.target.clone();
        let undo = |e| {
            // What matters is why; and the descriptor is closed, so the mount is dead anyway.
            let _ = unmount(&target, Unmount::Lazy);
            e
        };
        let device: std::fs::File =
            fd.try_clone().map_err(|e| undo(MountError::Session(e)))?.into();
        let device = Arc::new(device);
        let adapter = Adapter::new(vfs.clone(), inflight.clone(), spec.max_background);
        let mut config = Config::default();
        // fuser turns others away by this; the kernel has done so already.
        config.acl = SessionACL::All;
        config.n_threads = Some(spec.event_loops.max(1));
        config.clone_fd = true;
        let session = Session::from_fd(adapter, fd, SessionACL::All, config)
            .map_err(|e| undo(MountError::Session(e)))?;
        // What tells the kernel is held by the other side itself.
        let one = Arc::downgrade(&vfs);
        let is_known = Box::new(move |ino| one.upgrade().is_some_and(|vfs| vfs.is_known(ino)));
        let known = Box::new(move || vfs.known_inodes());
        let channel = Channel { notifier: session.notifier(), device };
        notices.start(channel, known, is_known).map_err(|e| undo(MountError::Thread(e)))?;
        let (tx, ended) = oneshot::channel();
        let closing = notices.clone();
        thread::Builder::new()
            .name("netfs-session".into())
            .spawn(move || {
                let result = session.run();
                closing.close();
                // Nobody waits for it when the program ends at the same time.
                let _ = tx.send(result);
            })
            .map_err(|e| undo(MountError::Thread(e)))?;
        first_answer(&spec.target).map_err(|e| undo(MountError::Silent(e)))?;
        set_readahead(&spec.target, spec.readahead_bytes);
        Ok(Mounted { target: spec.target.clone(), notices, inflight, ended })
    }

    /// Where it is.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Requests that wait for an answer.
    pub fn requests_waiting(&self) -> usize {
        self.inflight.len()
    }

    /// Notifications to the kernel that wait to be delivered.
    pub fn notices_waiting(&self) -> usize {
        self.notices.len()
    }

    /// Resolves when it is mounted nowhere any more and nobody uses it.
    ///
    /// # Errors
    /// When the connection to the kernel broke, for example by an abort.
    pub async fn ended(&mut self) -> io::Result<()> {
        match (&mut self.ended).await {
            Ok(result) => result,
            Err(_) => Err(io::Error::other("the session thread panicked")),
        }
    }
}

/// Waits until the root directory answers.
fn first_answer(target: &Path) -> io::Result<()> {
    let (tx, rx) = mpsc::channel();
    let path = target.to_path_buf();
    // A thread, because nothing else ends a wait for a mount.
    thread::Builder::new().name("netfs-first".into()).spawn(move || {
        // Nobody listens when it took too long.
        let _ = tx.send(fs::metadata(path).map(|_| ()));
    })?;
    match rx.recv_timeout(FIRST_ANSWER) {
        Ok(result) => result,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// The kernel caps what INIT asks for at 128 KiB; the rest goes through sysfs, for root only.
fn set_readahead(target: &Path, bytes: u64) {
    let device = match mountinfo::at(target) {
        Ok(Some(m)) => m.device,
        Ok(None) | Err(_) => return,
    };
    let path = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(e) = fs::write(&path, (bytes >> 10).to_string()) {
        tracing::info!(path, error = %e, "reading ahead stays at the kernel's 128 KiB");
    }
}

/// How to unmount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmount {
    /// Only when nobody uses it.
    Busy,
    /// Away now, gone when nobody uses it.
    Lazy,
    /// The connection is cut: whoever waits gets an error.
    Force,
}

/// Unmounts, directly or through `fusermount3`.
///
/// # Errors
/// `EBUSY` when somebody uses it; what the helper says as text.
pub fn unmount(target: &Path, how: Unmount) -> io::Result<()> {
    for _ in 0..BUSY_ATTEMPTS {
        match unmount_once(target, how) {
            // The kernel lets go of the files of a process a moment after the process is gone.
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => thread::sleep(BUSY_PAUSE),
            other => return other,
        }
    }
    unmount_once(target, how)
}

fn unmount_once(target: &Path, how: Unmount) -> io::Result<()> {
    let flags = match how {
        Unmount::Busy => 0,
        Unmount::Lazy => libc::MNT_DETACH,
        Unmount::Force => libc::MNT_FORCE | libc::MNT_DETACH,
    };
    let path = CString::new(target.as_os_str().as_bytes())?;
    // SAFETY: the pointer is a string that ends in NUL and outlives the call.
    if unsafe { libc::umount2(path.as_ptr(), flags | libc::UMOUNT_NOFOLLOW) } == 0 {
        return Ok(());
    }
    let e = io::Error::last_os_error();
    if e.raw_os_error() != Some(libc::EPERM) {
        return Err(e);
    }
    let mut command = Command::new("fusermount3");
    command.arg("-u");
    if how != Unmount::Busy {
        command.arg("-z");
    }
    let out = command.arg("--").arg(target).output()?;
    if out.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&out.stderr).trim().to_string();
    if said.contains("busy") {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    Err(io::Error::other(said))
}

/// Changes the flags of a mount (`mount -o remount`).
///
/// # Errors
/// When there is no mount, or the kernel refuses.
pub fn remount(target: &Path, options: &[String]) -> io::Result<()> {
    let mut flags = MountFlags::default();
    let Some(mount) = mountinfo::at(target)? else {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("nothing is mounted on {}", target.display()),
        ));
    };
    // What is not named stays.
    for option in mount.options.iter().chain(options) {
        flags.apply(option);
    }
    device::call_mount(None, target, None, flags.bits() | libc::MS_REMOUNT, None)
}
