//! `netfs leases` and `netfs why`, which ask the daemon of a mount and never the mount.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use netfs_common::id::Ino;

use super::args::InsightArgs;
use super::control::{self, Silence, UNKNOWN};
use super::dirs;
use super::error::CliError;
use super::question::Question;
use super::spot;
use crate::vfs::Place;

/// How long a daemon may take to answer: it asks its server for three seconds at most.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Who holds and who waits.
pub(super) fn leases(args: &InsightArgs) -> Result<(), CliError> {
    ask("leases", args)
}

/// All that can be told of a path.
pub(super) fn why(args: &InsightArgs) -> Result<(), CliError> {
    ask("why", args)
}

fn ask(verb: &str, args: &InsightArgs) -> Result<(), CliError> {
    let spot = spot::find(&args.path)?;
    let question = match args.inode {
        Some(number) => Question {
            shown: format!("inode {number} on {}", spot.target.display()).into_bytes(),
            place: Place::Inode(Ino(number)),
        },
        None => Question {
            shown: spot.path.as_os_str().as_bytes().to_vec(),
            place: Place::Path(spot.names),
        },
    };
    let line = format!("{verb} {question}");
    let text = control::ask_within(&dirs::socket_of(&spot.target), &line, PATIENCE)
        .map_err(|silence| explain(&spot.target, silence))?;
    if text == UNKNOWN {
        return Err(CliError::OtherVersion(spot.target));
    }
    say!("{text}");
    match crate::insight::is_of_nothing(&text) {
        true => Err(CliError::Absent(String::from_utf8_lossy(&question.shown).into_owned())),
        false => Ok(()),
    }
}

/// What it means that the daemon of a mount of ours does not answer. The mount itself is not asked.
pub(super) fn explain(target: &Path, silence: Silence) -> CliError {
    let target = target.to_path_buf();
    match silence {
        Silence::Late(Some(pid)) if control::is_stopped(pid) => CliError::Stopped(target, pid),
        Silence::Late(Some(pid)) => CliError::Hangs(target, pid),
        // Its socket is there, and nobody listens.
        Silence::Failed(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            CliError::Corpse(target)
        }
        Silence::Late(None) | Silence::Failed(_) => CliError::Silent(target),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_is_gone_is_told_from_one_that_is_not_ours() {
        let of = |kind: io::ErrorKind| explain(Path::new("/m"), Silence::Failed(kind.into()));
        assert!(matches!(of(io::ErrorKind::ConnectionRefused), CliError::Corpse(_)));
        assert!(matches!(of(io::ErrorKind::NotFound), CliError::Silent(_)));
        assert!(matches!(of(io::ErrorKind::PermissionDenied), CliError::Silent(_)));
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(matches!(explain(Path::new("/m"), Silence::Late(Some(own))), CliError::Hangs(..)));
    }
}
