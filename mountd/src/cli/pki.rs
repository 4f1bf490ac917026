//! `netfs pki`: certificates.

use std::path::Path;

use netfs_common::tls::pki::{self, CA_FILE, CERT_FILE, IssueOptions, Leaf};

use super::args::PkiCommand;
use super::error::CliError;

/// Runs a subcommand.
pub(super) fn run(command: &PkiCommand) -> Result<(), CliError> {
    match command {
        PkiCommand::Init { dir, name } => {
            pki::init(dir, name)?;
            say!("The authority of the new cluster is in {}.", dir.display());
            say!("Keep that directory safe: whoever has it can join the cluster.");
            say!("Next: netfs pki issue {} OUT --server NAME", dir.display());
        }
        PkiCommand::Issue { dir, out, server, client, names, days, overwrite } => {
            let leaf = match (server, client) {
                (Some(name), _) => Leaf::Server { name: name.clone(), names: names.clone() },
                (None, name) => Leaf::Client { name: name.clone().unwrap_or_default() },
            };
            let options = IssueOptions { validity_days: *days, overwrite: *overwrite };
            let issued = pki::issue(dir, &leaf, out, &options)?;
            say!("{} may use:", issued.identity);
            for path in [&issued.ca, &issued.cert, &issued.key] {
                say!("  {}", path.display());
            }
        }
        PkiCommand::Show { path } => {
            for path in files(path) {
                say!("{}:", path.display());
                for line in pki::show(&path)? {
                    say!("  {line}");
                }
            }
        }
    }
    Ok(())
}

/// The certificates in a directory, or the file itself.
fn files(path: &Path) -> Vec<std::path::PathBuf> {
    let inside: Vec<_> =
        [CA_FILE, CERT_FILE].iter().map(|f| path.join(f)).filter(|p| p.exists()).collect();
    if inside.is_empty() { vec![path.to_path_buf()] } else { inside }
}
