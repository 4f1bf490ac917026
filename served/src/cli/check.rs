//! `netfs-served check`

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::{ConfigArgs, FAULTS, Failure, serve};
use crate::check::{self, CheckOptions};
use crate::data::store::StoreConfig;

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// State directory with meta/ and data/ in it, as `netfs dev --dir` has; instead of a configuration
    #[arg(long, value_name = "STATE", conflicts_with_all = ["config", "set"])]
    dir: Option<PathBuf>,
    /// Take differences between metadata and data as faults; right after all clients have unmounted there are none
    #[arg(long)]
    strict: bool,
    /// Remove chunks of files that are gone for certain; as the user of the server, which must not run
    #[arg(long)]
    repair: bool,
    /// Where to put a copy of the metadata while it is checked; the state itself is not written to
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    scratch: PathBuf,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn run(args: &CheckArgs) -> Result<ExitCode, Failure> {
    let (meta, data, store) = match &args.dir {
        Some(dir) => (dir.join("meta"), dir.join("data"), StoreConfig::default()),
        None => {
            let config = args.config.load()?;
            let store = serve::store_config(&config.data);
            (config.meta.dir, config.data.dir, store)
        }
    };
    let (meta, data) = (Some(meta), Some(data));
    let (scratch, repair) = (args.scratch.clone(), args.repair);
    let options = CheckOptions { meta, data, store, scratch, repair };
    let report = check::check(&options)?;
    let mut out = std::io::stdout().lock();
    for line in &report.summary {
        writeln!(out, "{line}")?;
    }
    for line in &report.faults {
        writeln!(out, "FAULT {line}")?;
    }
    for line in &report.notes {
        writeln!(out, "note  {line}")?;
    }
    writeln!(out, "{} faults, {} notes", report.fault_count, report.note_count)?;
    let faulty = report.fault_count > 0 || (args.strict && report.note_count > 0);
    Ok(if faulty { ExitCode::from(FAULTS) } else { ExitCode::SUCCESS })
}
