//! The program `netfs`.

use std::process::ExitCode;

fn main() -> ExitCode {
    netfs_mountd::cli::run()
}
