//! `netfs-served volume`

use std::io::Write;
use std::process::ExitCode;

use clap::Subcommand;
use netfs_common::coding::Encryption;
use netfs_common::config::VolumeConfig;

use super::{ConfigArgs, Failure};
use crate::meta::engine::EngineConfig;
use crate::meta::server::volumes;

#[derive(Debug, Subcommand)]
pub(super) enum VolumeCommand {
    /// Make a volume; a running server serves it after its next start
    Create {
        /// Its name, as in SERVER/NAME of a mount
        name: String,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// List the volumes on this machine
    List {
        #[command(flatten)]
        config: ConfigArgs,
    },
}

pub(super) fn run(command: &VolumeCommand) -> Result<ExitCode, Failure> {
    match command {
        VolumeCommand::Create { name, config } => {
            let config = config.load()?;
            let same = |volume: &&VolumeConfig| volume.name == *name;
            let volume = config.volume.iter().find(same);
            let encrypted = volume.is_some_and(|volume| volume.encryption != Encryption::None);
            let meta = config.meta;
            let reserve_bytes = meta.reserve_bytes.0;
            let dir = meta.dir;
            let engine = EngineConfig { reserve_bytes, ..EngineConfig::default() };
            volumes::create(&dir, name, encrypted, engine)?;
            println!("volume {name} made in {}", dir.display());
        }
        VolumeCommand::List { config } => {
            let mut out = std::io::stdout().lock();
            for name in volumes::list(&config.load()?.meta.dir)? {
                writeln!(out, "{name}")?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
