//! `netfs dev`: servers and mount in one process.

use std::path::Path;

use netfs_common::telemetry;
use netfs_common::tls::pki::{CA_FILE, CERT_FILE, KEY_FILE};

use super::args::DevArgs;
use super::connect::Connection;
use super::embedded::{Embedded, VOLUME};
use super::error::CliError;
use super::options::MountOptions;
use super::source::Source;
use super::state::State;
use super::{daemon, dirs, mount, mountpoint, serve, settings};

/// Runs until the mount is gone; then everything is on disk.
pub(super) fn run(args: DevArgs) -> Result<(), CliError> {
    let options = MountOptions::parse(&args.options)?;
    let mut config = settings::load(args.config, &options)?;
    let target = mountpoint::check(&args.target)?;
    let dir = daemon::absolute(args.dir.unwrap_or_else(dirs::dev_state))?;
    let state = State::open(&dir)?;
    telemetry::init(&config.log)?;
    let servers = Embedded::start(&state, args.port)?;
    let name = format!("{}/{VOLUME}", servers.address());
    let source: Source = name.parse()?;
    let identity = state.identity();
    config.tls.ca = identity.join(CA_FILE);
    config.tls.cert = identity.join(CERT_FILE);
    config.tls.key = identity.join(KEY_FILE);
    let spec = mount::spec(name, target, &options, &config);
    let served = Connection::open(&source, &config, &spec)
        .and_then(|c| serve::serve(&c, &spec, || welcome(&spec.source, &spec.target, &dir)));
    // Whatever happened to the mount: what reached the servers is kept.
    let stopped = servers.stop();
    served?;
    stopped?;
    say!("Stopped. Everything is kept in {}.", dir.display());
    Ok(())
}

/// Says where things are and how to go on.
fn welcome(source: &str, target: &Path, state: &Path) -> Result<(), CliError> {
    let (target, state) = (target.display(), state.display());
    say!("Ready: {target} is mounted; its files are kept in {state}.");
    say!("Try it:          cp -r /etc/skel {target}/ && ls -la {target}");
    say!("How it does:     netfs status");
    say!("A second mount:  netfs mount {source} DIRECTORY --identity {state}/identity");
    say!("Stop:            Ctrl-C here, or: netfs umount {target}");
    Ok(())
}
