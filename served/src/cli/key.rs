//! `netfs-served key`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;

use super::Failure;
use crate::data::codec::KeyFile;

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Make a key file, for meta.key_file and data.key_file of all servers; keep a copy where the servers are not
    Make {
        /// Where; it must not be there yet
        file: PathBuf,
    },
}

pub(super) fn run(command: &KeyCommand) -> Result<ExitCode, Failure> {
    let KeyCommand::Make { file } = command;
    KeyFile::make(file)?;
    println!("key file {} made: copy it to all servers, and keep a copy elsewhere", file.display());
    Ok(ExitCode::SUCCESS)
}
