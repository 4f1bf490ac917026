//! What goes wrong in a command. Each text is one line that says what to do.

use std::io;
use std::path::PathBuf;

use netfs_common::tls::TlsError;

use super::options::OptionError;
use super::source::SourceError;
use crate::fuse::MountError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The source is not `SERVER[:PORT]/VOLUME`.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A mount option.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// The mount point does not exist.
    #[error("mount point {path} does not exist: create it with `mkdir -p {path}`", path = .0.display())]
    NoMountPoint(PathBuf),
    /// The mount would hide the state.
    #[error("the state directory {state} must not be at or below the mount point {target}: choose another --dir", state = state.display(), target = target.display())]
    StateBelowMount {
        /// Where the state should be.
        state: PathBuf,
        /// Where the mount should be.
        target: PathBuf,
    },
    /// The mount point is a file.
    #[error("mount point {path} is not a directory", path = .0.display())]
    NotADirectory(PathBuf),
    /// The mount point has something in it.
    #[error("mount point {path} is not empty, and the mount would hide what is in it: choose an empty directory", path = .0.display())]
    NotEmpty(PathBuf),
    /// Something is mounted there.
    #[error("{source_} is mounted on {path} already: `netfs umount {path}` first, or choose another directory", path = target.display())]
    AlreadyMounted {
        /// The mount point.
        target: PathBuf,
        /// What is mounted there.
        source_: String,
    },
    /// A mount whose daemon is gone.
    #[error("the mount on {path} is dead, its daemon is gone (\"Transport endpoint is not connected\"): clean it up with `netfs umount -l {path}`", path = .0.display())]
    Corpse(PathBuf),
    /// A mount whose daemon is there, but not for us.
    #[error("the daemon of the mount on {} does not answer, or belongs to another user", .0.display())]
    Silent(PathBuf),
    /// Its daemon was stopped.
    #[error("the daemon of the mount on {path} (process {1}) is stopped by a signal: `kill -CONT {1}` lets it go on", path = .0.display())]
    Stopped(PathBuf, i32),
    /// Its daemon is there and says nothing.
    #[error("the daemon of the mount on {path} (process {1}) does not answer", path = .0.display())]
    Hangs(PathBuf, i32),
    /// A path that is somewhere else.
    #[error("{} is not on a mount of netfs", .0.display())]
    NotOnMount(PathBuf),
    /// A path that goes in circles.
    #[error("{} has too many symbolic links", .0.display())]
    Links(PathBuf),
    /// What was asked about is not there.
    #[error("{0} does not exist")]
    Absent(String),
    /// The daemon does not know the question.
    #[error("the daemon of the mount on {} is of another version", .0.display())]
    OtherVersion(PathBuf),
    /// The mount point cannot be looked at.
    #[error("mount point {path} cannot be used: {1}", path = .0.display())]
    MountPoint(PathBuf, io::Error),
    /// Nothing is mounted there.
    #[error("nothing is mounted on {path}", path = .0.display())]
    NotMounted(PathBuf),
    /// Another file system is mounted there.
    #[error("{path} is a mount of type {1}, not one of netfs: use `umount`", path = .0.display())]
    NotOurs(PathBuf, String),
    /// Somebody uses the mount.
    #[error("{path} is busy{users}: end these programs, or `netfs umount -l {path}` to detach it now and let them finish", path = target.display())]
    Busy {
        /// The mount point.
        target: PathBuf,
        /// Who, with a leading space, or nothing.
        users: String,
    },
    /// Unmounting failed.
    #[error("{path} cannot be unmounted: {1}", path = .0.display())]
    Umount(PathBuf, io::Error),
    /// What was buffered could not be written.
    #[error("{path} is not unmounted, because what programs wrote could not be stored: {1}; `netfs umount -f {path}` unmounts and gives it up", path = .0.display())]
    Unflushed(PathBuf, String),
    /// It was unmounted, but not everything was stored.
    #[error("{path} is unmounted, but {1}", path = .0.display())]
    LostData(PathBuf, String),
    /// The daemon still runs.
    #[error("{path} is unmounted, but its daemon (process {1}) is still busy storing what was written", path = .0.display())]
    StillRunning(PathBuf, u32),
    /// Mounting failed.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The server, or the way to it.
    #[error("cannot mount {volume} of {server}: {why}")]
    Connect {
        /// The server as given.
        server: String,
        /// The volume.
        volume: String,
        /// What happened and what to do.
        why: String,
    },
    /// An administrator's question to a server failed, or was refused.
    #[error("{server}: {why}")]
    Ask {
        /// The server as given.
        server: String,
        /// What happened.
        why: String,
    },
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No certificate was named and none is in a usual place.
    #[error("no client certificate: name its directory with --identity DIR (it holds ca.pem, cert.pem, key.pem; `netfs pki issue` makes one), or put it into {path}", path = .0.display())]
    NoIdentity(PathBuf),
    /// A certificate is named in part.
    #[error("--ca, --cert and --key go together: {0} is missing")]
    PartialIdentity(&'static str),
    /// The configuration file.
    #[error(transparent)]
    Config(#[from] netfs_common::config::ConfigError),
    /// The settings cannot be shown.
    #[error("the settings cannot be printed: {0}")]
    Print(String),
    /// Logging.
    #[error(transparent)]
    Telemetry(#[from] netfs_common::telemetry::TelemetryError),
    /// The servers of `netfs dev`, or their state directory.
    #[error("netfs dev: {0}")]
    Embedded(#[from] netfs_served::embedded::EmbeddedError),
    /// The daemon died without a word.
    #[error("the mount daemon died before the mount was ready ({status}); its log is {}", log.display())]
    DaemonDied {
        /// How it ended.
        status: String,
        /// Its log.
        log: PathBuf,
    },
    /// What the daemon said about its failure, complete.
    #[error("{0}")]
    Daemon(String),
    /// A directory or file that the program needs for itself.
    #[error("{what} {} cannot be used: {error}", path.display())]
    Private {
        /// What it is for.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A directory's setting.
    #[error("{}: {why}", path.display())]
    Set {
        /// The directory.
        path: PathBuf,
        /// Why it is as it was.
        why: String,
    },
    /// The operating system refused something basic.
    #[error("{what}: {error}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        error: io::Error,
    },
}

impl CliError {
    /// For errors of the operating system, as the argument of `map_err`.
    pub(super) fn system(what: &'static str) -> impl Fn(io::Error) -> CliError {
        move |error| CliError::System { what, error }
    }
}

/// A text without line breaks, so that a failure is one line whatever it contains.
pub(super) fn one_line(text: &str) -> String {
    text.split(['\n', '\r']).map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line() {
        assert_eq!(one_line("a\n b\r\n\nc"), "a; b; c");
    }

    #[test]
    fn texts_name_the_way_out() {
        let text = CliError::Corpse("/mnt/x".into()).to_string();
        assert!(text.contains("netfs umount -l /mnt/x"), "{text}");
        let text = CliError::NoMountPoint("/mnt/x".into()).to_string();
        assert!(text.contains("mkdir -p"), "{text}");
    }
}
