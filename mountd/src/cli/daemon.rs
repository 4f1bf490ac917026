//! Going into the background.
//!
//! The command starts itself again as the daemon. The daemon's standard output is a pipe on which it
//! says that the mount answers, or why there is none; its standard error is the log.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::error::CliError;

/// What the daemon says when the mount answers.
const READY: &str = "ready";

/// The longest text of a failure.
const LONGEST_TEXT: u64 = 64 << 10;

/// Starts the daemon with the arguments of this process and waits until its mount answers.
pub(super) fn start(log: &Path) -> Result<(), CliError> {
    let program = std::env::current_exe().map_err(CliError::system("finding this program"))?;
    let mut child = Command::new(program)
        .args(std::env::args_os().skip(1))
        .arg("--daemonised")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::from(open_log(log)?))
        .spawn()
        .map_err(CliError::system("starting the mount daemon"))?;
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        stdout
            .take(LONGEST_TEXT)
            .read_to_string(&mut said)
            .map_err(CliError::system("listening to the mount daemon"))?;
    }
    if said.trim() == READY {
        return Ok(());
    }
    let status = child.wait().map_err(CliError::system("waiting for the mount daemon"))?;
    match said.trim() {
        "" => Err(CliError::DaemonDied { status: status.to_string(), log: log.to_path_buf() }),
        text => Err(CliError::Daemon(text.to_string())),
    }
}

fn open_log(path: &Path) -> Result<File, CliError> {
    let failed = |error| CliError::Private { what: "log file", path: path.to_path_buf(), error };
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(failed)?;
    }
    OpenOptions::new().append(true).create(true).mode(0o640).open(path).map_err(failed)
}

/// The daemon's side.
#[derive(Debug)]
pub(super) struct Background(());

impl Background {
    /// Leaves the terminal and the directory of the command. Relative paths are of no use after it.
    pub(super) fn enter() -> Result<Background, CliError> {
        // SAFETY: the call has no arguments; it fails only for a leader of a process group, which a
        // process just started by the command is not.
        if unsafe { libc::setsid() } < 0 {
            return Err(CliError::System {
                what: "leaving the terminal",
                error: io::Error::last_os_error(),
            });
        }
        std::env::set_current_dir("/").map_err(CliError::system("leaving the directory"))?;
        Ok(Background(()))
    }

    /// Tells the command that the mount answers.
    pub(super) fn ready(&self) -> Result<(), CliError> {
        self.say(READY)
    }

    /// Tells the command why there is no mount.
    pub(super) fn failed(&self, why: &str) {
        if let Err(e) = self.say(why) {
            tracing::warn!(error = %e, "the command that started this is gone");
        }
    }

    /// Says it and closes the pipe: the command reads to the end.
    fn say(&self, text: &str) -> Result<(), CliError> {
        let said = CliError::system("reporting to the command");
        writeln!(io::stdout(), "{text}").and_then(|()| io::stdout().flush()).map_err(&said)?;
        let null = OpenOptions::new().write(true).open("/dev/null").map_err(&said)?;
        // SAFETY: both are open descriptors; standard output stays one.
        if unsafe { libc::dup2(null.as_raw_fd(), libc::STDOUT_FILENO) } < 0 {
            return Err(said(io::Error::last_os_error()));
        }
        Ok(())
    }
}

/// Ends output to a terminal that is gone: every further line would be an error.
pub(super) fn silence() {
    let Ok(null) = OpenOptions::new().write(true).open("/dev/null") else { return };
    for fd in [libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        // SAFETY: both are descriptors of this process; neither is owned by a value.
        unsafe { libc::dup2(null.as_raw_fd(), fd) };
    }
}

/// An absolute path, so that it keeps its meaning when the directory changes.
pub(super) fn absolute(path: PathBuf) -> Result<PathBuf, CliError> {
    std::path::absolute(path).map_err(CliError::system("finding the current directory"))
}
