//! The command line of `netfs-served`.

mod check;
mod config;
mod key;
mod notify;
mod serve;
mod volume;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use netfs_common::config::{ConfigError, ServedConfig, Sources};

/// Where the configuration is looked for when none is named.
const DEFAULT_CONFIG: &str = "/etc/netfs/served.toml";
/// The exit status when a check has found faults.
const FAULTS: u8 = 1;
/// The exit status of whatever could not be done; clap uses it for the command line too.
const FAILED: u8 = 2;

/// The servers of netfs: metadata (names, attributes) and data (contents of files).
#[derive(Debug, Parser)]
#[command(name = "netfs-served", version, about, long_about = LONG)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const LONG: &str = "\
The servers of netfs: metadata (names, attributes) and data (contents of files).

A first server on this machine, as root:

  netfs pki init CLUSTER_DIR                        the cluster's certificate authority
  netfs pki issue CLUSTER_DIR /etc/netfs/tls --server NAME   a certificate for this server
  netfs-served config > /etc/netfs/served.toml      settings, all explained in the file
  netfs-served all                                  both servers, until SIGTERM or Ctrl-C

To try netfs without any of this: netfs dev MOUNTPOINT";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the metadata server
    Meta(serve::ServeArgs),
    /// Run the data server
    Data(serve::ServeArgs),
    /// Run both servers in one process
    All(serve::ServeArgs),
    /// Verify what is on disk, while no server runs: exit status 0 without, 1 with faults
    Check(check::CheckArgs),
    /// Print the default configuration, with every setting explained
    Config,
    /// Make the key file of a cluster with encrypted volumes
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Make and list volumes (namespaces that can be mounted)
    #[command(subcommand)]
    Volume(volume::VolumeCommand),
}

/// Where settings come from.
#[derive(Clone, Debug, Args)]
struct ConfigArgs {
    /// Configuration file [default: /etc/netfs/served.toml if it exists]
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A single setting, over file and environment; may be repeated
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
}

impl ConfigArgs {
    fn load(&self) -> Result<ServedConfig, ConfigError> {
        let default = PathBuf::from(DEFAULT_CONFIG);
        let file = self.config.clone().or_else(|| default.exists().then_some(default));
        let mut sources = Sources::new().process_env().overrides(self.set.iter().cloned());
        if let Some(file) = file {
            sources = sources.file(file);
        }
        sources.load()
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Meta(args) => serve::run(&args, serve::Parts::META),
        Command::Data(args) => serve::run(&args, serve::Parts::DATA),
        Command::All(args) => serve::run(&args, serve::Parts::ALL),
        Command::Check(args) => check::run(&args),
        Command::Config => config::run(),
        Command::Key(command) => key::run(&command),
        Command::Volume(command) => volume::run(&command),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("netfs-served: {}", chain(error.as_ref()));
            ExitCode::from(FAILED)
        }
    }
}

/// Whatever ends a command; it is shown as one line.
type Failure = Box<dyn std::error::Error>;

/// An error on one line, with its causes where they say more.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
