//! `netfs mount`.

use std::path::PathBuf;

use netfs_common::config::ClientConfig;
use netfs_common::telemetry;

use super::args::MountArgs;
use super::connect::Connection;
use super::daemon::{self, Background};
use super::error::{CliError, one_line};
use super::options::MountOptions;
use super::source::Source;
use super::{dirs, mountpoint, serve, settings};
use crate::fuse::{MountSpec, mountinfo, remount};

/// Mounts, in the background unless asked otherwise.
pub(super) fn run(args: MountArgs) -> Result<(), CliError> {
    let options = MountOptions::parse(&args.options)?;
    if options.remount {
        let target = mountinfo::resolve(&args.target)
            .map_err(|e| CliError::MountPoint(args.target.clone(), e))?;
        return remount(&target, &options.words).map_err(|e| CliError::MountPoint(target, e));
    }
    if args.daemonised {
        return in_background(args, options);
    }
    // Here too, so that what is plainly wrong is told before a log is written.
    let mount = Mount::new(args.clone(), options)?;
    if args.foreground {
        telemetry::init(&mount.config.log)?;
        return mount.serve(|| Ok(()));
    }
    let log = args.log.or(mount.log).unwrap_or_else(|| dirs::log_of(&mount.spec.target));
    daemon::start(&daemon::absolute(log)?)
}

/// The daemon's half: whatever goes wrong before the mount answers is told to the command.
fn in_background(args: MountArgs, options: MountOptions) -> Result<(), CliError> {
    let mount = Mount::new(args, options);
    let background = Background::enter()?;
    let served = mount.and_then(|mount| {
        telemetry::init(&mount.config.log)?;
        mount.serve(|| background.ready())
    });
    if let Err(e) = &served {
        background.failed(&one_line(&e.to_string()));
    }
    served
}

/// Everything that is known before anything is done.
struct Mount {
    source: Source,
    config: ClientConfig,
    spec: MountSpec,
    log: Option<PathBuf>,
}

impl Mount {
    fn new(args: MountArgs, options: MountOptions) -> Result<Mount, CliError> {
        let source: Source = args.source.parse()?;
        let mut config = settings::load(args.config, &options)?;
        config.tls = args.identity.or(&options).locate(&config.tls)?;
        for path in [&mut config.tls.ca, &mut config.tls.cert, &mut config.tls.key] {
            *path = daemon::absolute(std::mem::take(path))?;
        }
        // Checked now; used later, by the connection.
        config.tls.load()?;
        let target = mountpoint::check(&args.target)?;
        let log = options.log.clone().or_else(|| config.log.file.clone());
        let spec = spec(args.source, target, &options, &config);
        Ok(Mount { source, config, spec, log })
    }

    fn serve(self, ready: impl FnOnce() -> Result<(), CliError>) -> Result<(), CliError> {
        let connection = Connection::open(&self.source, &self.config, &self.spec)?;
        serve::serve(&connection, &self.spec, ready)
    }
}

/// What to mount and how, from options and settings.
pub(super) fn spec(
    source: String,
    target: PathBuf,
    options: &MountOptions,
    config: &ClientConfig,
) -> MountSpec {
    MountSpec {
        source,
        target,
        subtype: options.subtype.clone(),
        flags: options.flags,
        allow_other: options.allow_other.unwrap_or_else(dirs::is_root),
        event_loops: config.mount.threads as usize,
        max_background: config.mount.max_background,
        readahead_bytes: u64::from(config.mount.read_ahead_kb) << 10,
    }
}
