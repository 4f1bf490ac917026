//! `netfs check`: comparing metadata and data of a cluster that runs.

use std::process::ExitCode;
use std::time::Duration;

use netfs_common::wire::meta::{Request, Response};
use netfs_common::wire::operator::{AuditReport, AuditStep, Operation, Outcome};

use super::admin;
use super::args::{CheckArgs, ClusterArgs};
use super::error::{self, CliError};
use super::source::ServerAddr;

/// How often it is asked how far it is.
const LOOK: Duration = Duration::from_millis(300);
/// What was found is mended.
const FOUND: u8 = 1;
/// Something is not.
const UNFINISHED: u8 = 2;

/// Has the metadata server compare, and shows what it has found.
pub(super) fn run(args: &CheckArgs) -> ExitCode {
    match audit(args) {
        Ok(report) => {
            print(&report);
            ExitCode::from(status(&report))
        }
        Err(error) => {
            complain!("netfs: {}", error::one_line(&error.to_string()));
            ExitCode::from(UNFINISHED)
        }
    }
}

fn audit(args: &CheckArgs) -> Result<AuditReport, CliError> {
    let ClusterArgs { server, identity } = &args.of;
    let server: ServerAddr = server.parse()?;
    let failed = |why: String| CliError::Ask { server: server.to_string(), why };
    let ask = |step| match admin::ask(&server, identity, &Request::Operate(Operation::Audit(step)))?
    {
        Response::Operated(Outcome::Audit(report)) => Ok(*report),
        Response::Operated(Outcome::Refused(why)) => Err(failed(why)),
        _ => Err(failed("it answered another question".into())),
    };
    let mut report = ask(AuditStep::Begin { dry_run: args.dry_run })?;
    if report.dry_run != args.dry_run {
        return Err(failed("an audit of another kind is under way: wait for its end".into()));
    }
    let number = report.number;
    while report.running {
        std::thread::sleep(LOOK);
        report = ask(AuditStep::Look)?;
        if report.number != number {
            return Err(failed("it was restarted before it had compared everything".into()));
        }
    }
    Ok(report)
}

fn status(report: &AuditReport) -> u8 {
    let unmended = report.kinds.iter().any(|kind| kind.mended < kind.found);
    let found = report.kinds.iter().any(|kind| kind.found > 0);
    match (report.unfinished.is_empty(), found) {
        (true, false) => 0,
        (true, true) if report.dry_run || !unmended => FOUND,
        _ => UNFINISHED,
    }
}

fn print(report: &AuditReport) {
    let AuditReport { servers, chunks, files, dry_run, .. } = report;
    say!("compared {chunks} chunks on {servers} data servers, and {files} files with data");
    for kind in &report.kinds {
        let done = match dry_run {
            true => "nothing is changed".into(),
            false => format!("{} mended", kind.mended),
        };
        say!("FOUND {} {}: {done}", kind.found, kind.what);
        for name in &kind.names {
            say!("      {name}");
        }
        let more = kind.found.saturating_sub(kind.names.len() as u64);
        if more > 0 && kind.names.len() > 1 {
            say!("      and {more} more");
        }
    }
    report.unfinished.iter().for_each(|why| say!("UNFINISHED {why}"));
    report.notes.iter().for_each(|note| say!("note  {note}"));
    if status(report) == 0 {
        say!("nothing is wrong");
    }
}

#[cfg(test)]
mod tests {
    use netfs_common::wire::operator::AuditKind;

    use super::*;

    #[test]
    fn the_exit_status_says_what_came_of_it() {
        let mut report = AuditReport::default();
        assert_eq!(status(&report), 0);
        let kind = AuditKind { what: "k".into(), found: 2, mended: 2, names: Vec::new() };
        report.kinds.push(kind);
        assert_eq!(status(&report), FOUND);
        report.kinds[0].mended = 1;
        assert_eq!(status(&report), UNFINISHED);
        report.dry_run = true;
        assert_eq!(status(&report), FOUND);
        report.unfinished.push("u".into());
        assert_eq!(status(&report), UNFINISHED);
    }
}
