//! The server binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    netfs_served::cli::main()
}
