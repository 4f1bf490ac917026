//! `netfs umount`.

use std::io;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::args::UmountArgs;
use super::control::{self, Ending, OK};
use super::dirs;
use super::error::CliError;
use super::users;
use crate::fuse::mountinfo::{self, MountEntry};
use crate::fuse::{Unmount, unmount};

/// How long a question that the daemon answers from memory may take.
const ANSWER: Duration = Duration::from_secs(5);

/// A wait for the servers is announced when it has lasted so long.
const QUIET: Duration = Duration::from_secs(1);

/// How long a daemon may take to end after it was told to give everything up.
const FORCED_END: Duration = Duration::from_secs(10);

/// Unmounts and waits until everything is stored and the daemon is gone.
pub(super) fn run(args: &UmountArgs) -> Result<(), CliError> {
    let target = mountinfo::resolve(&args.target)
        .map_err(|e| CliError::MountPoint(args.target.clone(), e))?;
    let mount = mountinfo::at(&target)
        .map_err(CliError::system("/proc/self/mountinfo"))?
        .ok_or_else(|| CliError::NotMounted(target.clone()))?;
    let socket = dirs::socket_of(&target);
    let pid = control::ask(&socket, "pid", Some(ANSWER)).ok().and_then(|p| p.parse::<u32>().ok());
    if pid.is_none() && !is_ours(&mount) {
        return Err(CliError::NotOurs(target, mount.kind));
    }
    let ending = Ending::of(&socket).ok().filter(|_| pid.is_some());
    if args.force {
        return force(&target, &socket, ending);
    }
    if ending.is_some() && !args.lazy {
        // While programs can still be told, and nothing is given up.
        let stored = sync(&target, &socket)?;
        if stored != OK {
            return Err(CliError::Unflushed(target, stored));
        }
    }
    let how = if args.lazy { Unmount::Lazy } else { Unmount::Busy };
    unmount(&target, how).map_err(|e| explain(&target, e))?;
    let Some(ending) = ending else { return Ok(()) };
    // A mount that is only detached ends when its last user does: not to be waited for.
    let patience = args.lazy.then_some(Duration::from_millis(500));
    match ending.outcome(patience) {
        Ok(outcome) if outcome == OK => wait_for_exit(pid),
        Ok(outcome) if outcome.is_empty() => {
            let text = "its daemon died, so that something may be lost: see its log";
            return Err(CliError::LostData(target, text.into()));
        }
        Ok(lost) => return Err(CliError::LostData(target, lost)),
        Err(e) if args.lazy && would_block(&e) => {}
        Err(e) => return Err(CliError::Umount(target, e)),
    }
    Ok(())
}

/// Has the daemon store everything, and says for what that waits if it takes long.
fn sync(target: &Path, socket: &Path) -> Result<String, CliError> {
    let (tx, answered) = mpsc::channel();
    let asked = socket.to_path_buf();
    let ask = move || {
        let stored = control::ask(&asked, "sync", None).unwrap_or_else(|e| e.to_string());
        // Whoever waited for it is there until it has come.
        let _ = tx.send(stored);
    };
    thread::Builder::new()
        .name("netfs-sync".into())
        .spawn(ask)
        .map_err(CliError::system("starting a thread"))?;
    if let Ok(stored) = answered.recv_timeout(QUIET) {
        return Ok(stored);
    }
    if let Ok(what) = control::ask(socket, "waiting", Some(ANSWER)) {
        let target = target.display();
        complain!("netfs: waiting for {what}; `netfs umount -f {target}` gives it up");
    }
    Ok(answered.recv().unwrap_or_else(|e| e.to_string()))
}

fn is_ours(mount: &MountEntry) -> bool {
    mount.kind == "fuse.netfs" || mount.kind == "fuse"
}

fn explain(target: &Path, error: io::Error) -> CliError {
    match error.raw_os_error() {
        Some(libc::EBUSY) => {
            CliError::Busy { target: target.to_path_buf(), users: users::of(target) }
        }
        // Gone while we looked.
        Some(libc::EINVAL) => CliError::NotMounted(target.to_path_buf()),
        _ => CliError::Umount(target.to_path_buf(), error),
    }
}

/// Gives up what is buffered. The order matters: first the daemon must know that nothing is to be
/// waited for, then the connection is cut.
fn force(target: &Path, socket: &Path, ending: Option<Ending>) -> Result<(), CliError> {
    if ending.is_some() {
        // A daemon that does not even answer this is cut off by the next call.
        let _ = control::ask(socket, "abandon", Some(ANSWER));
    }
    unmount(target, Unmount::Force).map_err(|e| explain(target, e))?;
    if let Some(ending) = ending {
        match ending.outcome(Some(FORCED_END)) {
            Ok(outcome) if outcome == OK || outcome.is_empty() => {}
            Ok(lost) => complain!("netfs: {} is unmounted, but {lost}", target.display()),
            Err(e) => {
                complain!("netfs: {} is unmounted, its daemon still ends: {e}", target.display())
            }
        }
    }
    Ok(())
}

fn would_block(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// The daemon has said its last word; a moment later it is gone.
fn wait_for_exit(pid: Option<u32>) {
    let Some(pid) = pid else { return };
    for _ in 0..200 {
        // A zombie counts as gone: its parent has only not looked yet.
        let gone = std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .map_or(true, |s| s.rsplit(')').next().is_some_and(|s| s.trim().starts_with('Z')));
        if gone {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
