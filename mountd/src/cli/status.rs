//! `netfs status`.

use super::admin;
use super::args::StatusArgs;
use super::control;
use super::dirs;
use super::error::CliError;
use super::insight::{self, PATIENCE};
use crate::fuse::mountinfo;

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
        let socket = dirs::socket_of(&target);
        return match control::ask_within(&socket, "status", PATIENCE) {
            Ok(text) => {
                say!("{text}");
                Ok(())
            }
            Err(silence) if mount.kind == "fuse.netfs" => Err(insight::explain(&target, silence)),
            Err(_) => Err(CliError::NotOurs(target, mount.kind.clone())),
        };
    }
    let mut shown = Vec::new();
    for socket in dirs::sockets() {
        if let Ok(text) = control::ask_within(&socket, "status", PATIENCE) {
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
