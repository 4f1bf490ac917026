//! `netfs dev`.

use super::args::DevArgs;
use super::error::CliError;
use super::options::MountOptions;
use super::state::State;
use super::{daemon, dirs, mountpoint, settings};

pub(super) fn run(args: DevArgs) -> Result<(), CliError> {
    let options = MountOptions::parse(&args.options)?;
    let mut config = settings::load(args.config, &options)?;
    let target = mountpoint::check(&args.target)?;
    let dir = daemon::absolute(args.dir.unwrap_or_else(dirs::dev_state))?;
    let state = State::open(&dir)?;
    Ok(())
}
