//! `netfs config`

use std::io::Write;

use netfs_common::config::{ClientConfig, render};

use super::error::CliError;

pub(super) fn run() -> Result<(), CliError> {
    let failed = |e: &dyn std::fmt::Display| CliError::Print(e.to_string());
    let text = render::<ClientConfig>().map_err(|e| failed(&e))?;
    std::io::stdout().lock().write_all(text.as_bytes()).map_err(|e| failed(&e))
}
