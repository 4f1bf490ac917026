//! `netfs-served config`

use std::io::Write;
use std::process::ExitCode;

use netfs_common::config::{ServedConfig, render};

use super::Failure;

pub(super) fn run() -> Result<ExitCode, Failure> {
    let text = render::<ServedConfig>()?;
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
