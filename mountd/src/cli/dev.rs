//! `netfs dev`: servers and mount in one process.

use std::path::Path;

use netfs_common::config::TlsConfig;
use netfs_common::telemetry::{self, Metrics};
use netfs_common::tls::pki::{CA_FILE, CERT_FILE, KEY_FILE};
use netfs_served::embedded::{self, Embedded, EmbeddedOptions};

use super::args::DevArgs;
use super::connect::Connection;
use super::error::CliError;
use super::options::MountOptions;
use super::source::Source;
use super::{daemon, dirs, mount, mountpoint, serve, settings};
use crate::fuse::MountSpec;

/// Runs until the mount is gone; then everything is on disk.
pub(super) fn run(args: DevArgs) -> Result<(), CliError> {
    let options = MountOptions::parse(&args.options)?;
    let mut config = settings::load(args.config, &options)?;
    let target = mountpoint::check(&args.target)?;
    let dir = daemon::absolute(args.dir.unwrap_or_else(dirs::dev_state))?;
    if lies_below(&dir, &target) {
        return Err(CliError::StateBelowMount { state: dir, target });
    }
    telemetry::init(&config.log)?;
    let servers = embedded::start(&dir, &EmbeddedOptions { metrics: Some(Metrics::global()) })?;
    config.tls = identity(&dir);
    let name = format!("{}/{}", servers.meta_addr(), servers.volume());
    let spec = mount::spec(name, target, &options, &config);
    let served = spec.source.parse::<Source>().map_err(CliError::from).and_then(|source| {
        let connection = Connection::open(&source, &config, &spec)?;
        serve::serve(&connection, &spec, || {
            welcome(&servers, &spec, &dir);
            Ok(())
        })
    });
    // Whatever happened to the mount: what reached the servers is kept.
    let stopped = servers.stop();
    served?;
    stopped?;
    say!("Stopped. Everything is kept in {}.", dir.display());
    Ok(())
}

/// Whether the mount would hide a directory, which need not exist yet.
fn lies_below(dir: &Path, target: &Path) -> bool {
    // What is there of the path, without symbolic links.
    let there = dir.ancestors().find_map(|a| a.canonicalize().ok().map(|real| (a, real)));
    there.is_some_and(|(shown, real)| {
        real.join(dir.strip_prefix(shown).unwrap_or(Path::new(""))).starts_with(target)
    })
}

/// The client's certificate in a state directory.
fn identity(state: &Path) -> TlsConfig {
    let dir = embedded::client_identity_dir(state);
    TlsConfig { ca: dir.join(CA_FILE), cert: dir.join(CERT_FILE), key: dir.join(KEY_FILE) }
}

/// Says where things are and how to go on.
fn welcome(servers: &Embedded, spec: &MountSpec, state: &Path) {
    let target = spec.target.display();
    let identity = embedded::client_identity_dir(state);
    say!("Ready: {target} is mounted; its files are kept in {}.", state.display());
    say!("Try it:        cp -r /etc/skel {target}/ && ls -la {target}");
    say!("How it does:   netfs status");
    say!(
        "Its server:    netfs status --server {} --identity {}",
        servers.meta_addr(),
        identity.display()
    );
    say!("Mount it too:  netfs mount {} DIRECTORY --identity {}", spec.source, identity.display());
    say!("Stop:          Ctrl-C here, or: netfs umount {target}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_the_mount_would_hide_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let target = root.join("mnt");
        std::fs::create_dir(&target).unwrap();
        std::os::unix::fs::symlink(&target, root.join("link")).unwrap();
        for hidden in ["mnt", "mnt/state", "mnt/a/b", "link", "link/state"] {
            assert!(lies_below(&root.join(hidden), &target), "{hidden}");
        }
        for fine in ["", "mntstate", "state/mnt"] {
            assert!(!lies_below(&root.join(fine), &target), "{fine}");
        }
    }
}
