//! `netfs status`.

use std::time::Duration;

use super::admin;
use super::args::StatusArgs;
use super::control;
use super::dirs;
use super::error::CliError;
use super::mountpoint;
use crate::fuse::mountinfo;

/// How long a daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Prints how mounts, or a server, do.
pub(super) fn run(args: &StatusArgs) -> Result<(), CliError> {
    if let Some(server) = &args.server {
        return admin::status(&server.parse()?, &args.identity);
    }
    let mounts = mountinfo::all().map_err(CliError::system("/proc/self/mountinfo"))?;
    if let Some(target) = &args.target {
        let target =
            mountinfo::resolve(target).map_err(|e| CliError::MountPoint(target.clone(), e))?;
        let Some(mount) = mounts.iter().rev().find(|m| m.target == target) else {
            return Err(CliError::NotMounted(target));
        };
        return match control::ask(&dirs::socket_of(&target), "status", Some(PATIENCE)) {
            Ok(text) => {
                say!("{text}");
                Ok(())
            }
            Err(_) if mount.kind == "fuse.netfs" => Err(match mountpoint::is_dead(&target) {
                true => CliError::Corpse(target),
                false => CliError::Silent(target),
            }),
            Err(_) => Err(CliError::NotOurs(target, mount.kind.clone())),
        };
    }
    let mut shown = Vec::new();
    for socket in dirs::sockets() {
        if let Ok(text) = control::ask(&socket, "status", Some(PATIENCE)) {
            say!("{text}");
            shown.push(socket);
        }
    }
    for m in mounts.iter().filter(|m| m.kind == "fuse.netfs") {
        if !shown.contains(&dirs::socket_of(&m.target)) {
            say!("{} on {}", m.source, m.target.display());
            say!("  its daemon does not answer, or belongs to another user");
            shown.push(dirs::socket_of(&m.target));
        }
    }
    if shown.is_empty() {
        say!("nothing is mounted");
    }
    Ok(())
}
