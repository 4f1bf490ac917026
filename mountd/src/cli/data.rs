//! `netfs data`: the data servers of a cluster.

use netfs_common::id::ServerId;
use netfs_common::wire::cluster::TierReport;
use netfs_common::wire::meta::{Request, Response};
use netfs_common::wire::operator::{Condition, Operation, Outcome, ServerLine};

use super::admin;
use super::args::{ClusterArgs, DataCommand};
use super::error::CliError;
use super::source::ServerAddr;

/// Asks for a change, or for the list.
pub(super) fn run(command: DataCommand) -> Result<(), CliError> {
    let (of, operation) = match command {
        DataCommand::List { of } => (of, Operation::List),
        DataCommand::Add { addresses, of } => {
            let addrs = addresses.split(',').map(|addr| addr.trim().to_owned()).collect();
            (of, Operation::Add(addrs))
        }
        DataCommand::Drain { id, of } => (of, Operation::Drain(id)),
        DataCommand::Remove { id, of } => (of, Operation::Remove(id)),
        DataCommand::GiveUp { id, with, yes_lose_data, of } => {
            (of, Operation::GiveUp { server: id, with, lose_data: yes_lose_data })
        }
        DataCommand::Rebalance { of } => (of, Operation::Rebalance),
        DataCommand::Replicas { volume, replicas, directories: Some(class), of, .. } => {
            (of, Operation::ClassReplicas { volume, class, replicas })
        }
        DataCommand::Replicas { volume, replicas, min, of, .. } => {
            (of, Operation::Replicas { volume, replicas, min })
        }
    };
    let ClusterArgs { server, identity } = of;
    let server: ServerAddr = server.parse()?;
    let refused = |why: String| CliError::Ask { server: server.to_string(), why };
    let request = Request::Operate(operation);
    let answer = loop {
        match admin::ask(&server, &identity, &request)? {
            // It holds the answer back until there is one, or a few seconds.
            Response::Operated(Outcome::Underway(text)) => complain!("{text}"),
            answer => break answer,
        }
    };
    match answer {
        Response::Operated(Outcome::Servers(servers)) => print(&servers),
        Response::Operated(Outcome::Done(text)) => say!("{text}"),
        Response::Operated(Outcome::Refused(why)) => return Err(refused(why)),
        _ => return Err(refused("it answered another question".into())),
    }
    Ok(())
}

/// A server's number, as the list shows it.
pub(super) fn parse_id(text: &str) -> Result<ServerId, String> {
    let number = u32::from_str_radix(text, 16);
    number.map(ServerId).map_err(|_| "it is no number as `netfs data list` shows it".into())
}

fn print(servers: &[ServerLine]) {
    let titles = [
        "ID", "ADDRESS", "STATE", "DOMAIN", "CAPACITY", "USED", "FREE", "GROUPS", "WEIGHT", "LOAD",
        "MAP",
    ];
    let mut rows = vec![titles.map(String::from)];
    rows.extend(servers.iter().map(row));
    let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 11] = std::array::from_fn(width);
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        say!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    for server in servers.iter().filter(|s| s.damaged > 0) {
        let ServerLine { id, damaged, mended, .. } = server;
        say!(
            "data server {id} has found {damaged} damaged ranges since its start; {mended} were replaced from another replica"
        );
    }
    for server in servers {
        let Some(tier) = &server.tier else { continue };
        let TierReport { away_chunks, uploads, fetches, removed, errors, waiting, .. } = tier;
        let (id, away) = (server.id, size(tier.away_bytes));
        say!(
            "data server {id} has {away_chunks} chunks ({away}) in its object store only; since its start {uploads} objects were put \
             there, {fetches} chunks came back, {removed} objects were removed, {errors} calls failed; {waiting} chunks wait"
        );
        if let Some(why) = &tier.trouble {
            say!("data server {id} cannot use its object store: {why}");
        }
    }
}

fn row(s: &ServerLine) -> [String; 11] {
    let silent = s.silent_ms.map_or_else(|| "never heard".into(), |ms| span(ms / 1000));
    let mut state = match s.condition {
        Condition::Alive => "alive".into(),
        Condition::Suspect => format!("suspect {silent}"),
        Condition::Dead => format!("dead {silent}"),
    };
    if s.draining {
        state.push_str(", draining");
    }
    if s.full {
        state.push_str(", full");
    }
    let domain = if s.domain.is_empty() { "-" } else { &s.domain };
    [
        s.id.to_string(),
        s.addrs.join(","),
        state,
        domain.into(),
        size(s.capacity),
        size(s.live),
        size(s.free),
        format!("{}/{}/{}", s.head, s.replica, s.learner),
        match s.share_percent {
            100 => s.weight.to_string(),
            percent => format!("{} ({percent}%)", s.weight),
        },
        load(s),
        s.version.0.to_string(),
    ]
}

/// Calls at work on the average, and what one takes.
fn load(s: &ServerLine) -> String {
    let (calls, millis) = (f64::from(s.load_milli) / 1e3, f64::from(s.call_us) / 1e3);
    if s.load_milli == 0 { "-".into() } else { format!("{calls:.2} x {millis:.1}ms") }
}

fn span(secs: u64) -> String {
    match secs {
        0..120 => format!("{secs}s"),
        120..7200 => format!("{}min", secs / 60),
        7200..172_800 => format!("{}h", secs / 3600),
        _ => format!("{}d", secs / 86_400),
    }
}

/// Bytes, for people.
pub(super) fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_named_as_they_are_listed() {
        assert_eq!(parse_id("a"), Ok(ServerId(10)));
        assert_eq!(parse_id(&ServerId(31).to_string()), Ok(ServerId(31)));
        assert!(parse_id("host:7401").is_err());
    }

    #[test]
    fn sizes_and_times_are_short() {
        assert_eq!(
            [size(0), size(1023), size(1536), size(5 << 40)],
            ["0 B", "1023 B", "1.5 KiB", "5.0 TiB"]
        );
        assert_eq!([span(3), span(150), span(7300), span(200_000)], ["3s", "2min", "2h", "2d"]);
    }
}
