//! The command line.

/// Prints a line. If nobody reads it any more, as in `netfs status | head -1`, that is no reason to
/// end, least of all for a daemon.
macro_rules! say {
    ($($line:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($line)*);
    }};
}

/// As `say`, to standard error.
macro_rules! complain {
    ($($line:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($line)*);
    }};
}

mod admin;
mod args;
mod burial;
mod check;
mod config;
mod connect;
mod control;
mod daemon;
mod data;
mod dev;
mod dirs;
mod error;
mod identity;
mod insight;
mod mount;
mod mountpoint;
mod options;
mod pki;
mod question;
mod serve;
mod set;
mod settings;
mod source;
mod spot;
mod status;
mod umount;
mod users;

use std::process::ExitCode;

use clap::Parser;

pub use error::CliError;

use args::{Args, Command};

/// Runs the program: reads its arguments, does what they say, and turns a failure into one line
/// on standard error and exit code 1.
pub fn run() -> ExitCode {
    let args = Args::parse();
    if let Command::Check(args) = args.command {
        return check::run(&args);
    }
    let result = match args.command {
        Command::Mount(m) => mount::run(m),
        Command::Dev(d) => dev::run(d),
        Command::Umount(u) => umount::run(&u),
        Command::Status(s) => status::run(&s),
        Command::Leases(i) => insight::leases(&i),
        Command::Why(i) => insight::why(&i),
        Command::Config => config::run(),
        Command::Data(d) => data::run(d),
        // Above: it has exit codes of its own.
        Command::Check(_) => Ok(()),
        Command::Set(s) => set::run(&s),
        Command::Pki(p) => pki::run(&p),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            complain!("netfs: {}", error::one_line(&e.to_string()));
            ExitCode::FAILURE
        }
    }
}
