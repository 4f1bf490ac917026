//! Questions to a server that need no mount.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use netfs_common::codec;
use netfs_common::id::{InstanceId, SessionId};
use netfs_common::net::{Dialer, Limits, Link, NetMetrics};
use netfs_common::wire::meta::{Answer, Request, Response, Status};
use netfs_common::wire::operator::{Operation, Outcome, Redundancy, ServerLine};
use netfs_common::wire::{Claim, Hello, PROTOCOL, Role};

use super::args::IdentityArgs;
use super::error::CliError;
use super::source::ServerAddr;
use crate::dial::explain;

/// How long the server may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Prints how a server does.
pub(super) fn status(server: &ServerAddr, identity: &IdentityArgs) -> Result<(), CliError> {
    match ask(server, identity, &Request::Status)? {
        Response::Status(status) => {
            print(server, &status);
            match ask(server, identity, &Request::Operate(Operation::List))? {
                Response::Operated(Outcome::Servers(servers)) => servers.iter().for_each(damage),
                _ => complain!("netfs: {server} does not list its data servers"),
            }
            for alarm in &status.alarms {
                say!("  ALARM: {alarm}");
            }
            Ok(())
        }
        _ => Err(CliError::Ask {
            server: server.to_string(),
            why: "it answered another question".into(),
        }),
    }
}

/// Asks a server something.
pub(super) fn ask(
    server: &ServerAddr,
    identity: &IdentityArgs,
    request: &Request,
) -> Result<Response, CliError> {
    let tls = identity.load()?.client_config()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::system("starting the runtime"))?;
    let failed = |why: String| CliError::Ask { server: server.to_string(), why };
    runtime.block_on(async {
        let dialer = Dialer::new(tls, Limits::default(), NetMetrics::default())
            .map_err(|e| failed(e.to_string()))?;
        let response = connect(&dialer, server, request).await.map_err(failed)?;
        dialer.wait_idle().await;
        Ok(response)
    })
}

async fn connect(
    dialer: &Dialer,
    server: &ServerAddr,
    request: &Request,
) -> Result<Response, String> {
    let hello = Hello {
        protocol: (PROTOCOL, PROTOCOL),
        features: 0,
        role: Role::Admin,
        volume: String::new(),
        session: SessionId(0),
        claim: Claim::Begin,
        instance: InstanceId(0),
        client: format!("netfs, process {}", std::process::id()),
    };
    let hello = codec::encode(&hello).map_err(|e| e.to_string())?;
    let addresses = tokio::net::lookup_host(server.to_string())
        .await
        .map_err(|e| format!("its name cannot be resolved ({e})"))?;
    // A server has no questions to an administrator.
    let handler = Arc::new(|_: Link, _: Bytes| async { Bytes::new() });
    let mut last = "its name has no address".to_string();
    for address in addresses {
        match dialer.link(address, &hello, handler.clone()).await {
            Ok((link, _)) => {
                let answer = question(&link, &address.to_string(), request).await;
                link.close();
                return answer;
            }
            Err(e) => last = explain(&address.to_string(), &e),
        }
    }
    Err(last)
}

async fn question(link: &Link, address: &str, request: &Request) -> Result<Response, String> {
    let request = codec::encode(request).map_err(|e| e.to_string())?;
    let answer = link
        .call(request.into(), Instant::now() + PATIENCE)
        .await
        .map_err(|e| explain(address, &e))?;
    let answer = codec::decode::<Answer>(&answer).map_err(|e| e.to_string())?;
    answer.reply.map_err(|e| format!("it refused to answer ({e})"))
}

fn print(server: &ServerAddr, s: &Status) {
    say!("{server}");
    say!("  version:    {}", s.version);
    say!("  up:         {} s", s.uptime_secs);
    for v in &s.volumes {
        say!("  volume {}", v.name);
        say!("    inodes:   {} ({} without a name)", v.inodes, v.orphans);
        say!("    bytes:    {} of {}", v.bytes, v.capacity);
        say!("    log:      {} ({} on stable storage)", v.log_index, v.log_durable);
        redundancy(&v.redundancy, "").iter().for_each(|line| say!("    {line}"));
        for (class, of) in &v.classes {
            let place = format!(" in directories set to {class}");
            redundancy(of, &place).iter().for_each(|line| say!("    {line}"));
        }
        for (id, client, connected) in &v.sessions {
            let how = if *connected { "connected" } else { "away" };
            say!("    session:  {id} {how}: {client}");
        }
    }
}

/// What a data server has found damaged, and replaced from others, since its start.
fn damage(s: &ServerLine) {
    say!("  data server {} ({})", s.id, s.addrs.join(","));
    say!("    damaged:  {}", s.damaged);
    say!("    mended:   {}", s.mended);
}

/// How a volume's data is replicated, line by line.
fn redundancy(r: &Redundancy, place: &str) -> Vec<String> {
    let min = match r.min_replicas {
        0 | 1 => String::new(),
        min => format!(", at least {min} to write"),
    };
    let mut groups = format!("{} full", r.full);
    if r.degraded > 0 {
        groups.push_str(&format!(", {} degraded ({} replicas missing)", r.degraded, r.missing));
    }
    if r.unavailable > 0 {
        groups.push_str(&format!(", {} unavailable", r.unavailable));
    }
    let mut lines = vec![
        format!("replicas: {} wanted{place}{min}", r.replicas),
        format!("groups:   {groups}, of {}", r.groups),
    ];
    if r.repairing > 0 {
        let (groups, chunks) = (r.repairing, r.lacking);
        lines.push(format!("repair:   {groups} groups, {chunks} chunks left as far as known"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_replicas_still_lack_is_a_line_of_its_own() {
        let well =
            Redundancy { replicas: 2, min_replicas: 1, groups: 16, full: 16, ..Default::default() };
        assert_eq!(redundancy(&well, ""), ["replicas: 2 wanted", "groups:   16 full, of 16"]);
        let ill = Redundancy {
            replicas: 3,
            min_replicas: 2,
            groups: 16,
            full: 9,
            degraded: 5,
            missing: 6,
            waiting: 1,
            unavailable: 2,
            repairing: 4,
            lacking: 31,
        };
        assert_eq!(
            redundancy(&ill, " here"),
            [
                "replicas: 3 wanted here, at least 2 to write",
                "groups:   9 full, 5 degraded (6 replicas missing), 2 unavailable, of 16",
                "repair:   4 groups, 31 chunks left as far as known",
            ]
        );
    }
}
