//! What operators do to the cluster.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use netfs_common::class::Class;
use netfs_common::id::{Epoch, ServerId};
use netfs_common::wire::operator::{Condition, Operation, Outcome, ServerLine};

use super::{Cluster, Core, check_size};
use crate::meta::cluster::{Command, CommandError, Duty, ServerState, Verdict};

/// An operator's change must be on stable storage within this time.
const PATIENCE: Duration = Duration::from_secs(8);
/// The most data servers.
const MAX_SERVERS: usize = 1024;
/// The most addresses of one, and bytes of each.
const MAX_ADDRS: (usize, usize) = (16, 256);

impl Cluster {
    /// Does what an operator wants. `number`: of the volume that is named, if there is one.
    pub(in crate::meta::server) async fn operate(
        self: &Arc<Self>,
        operation: Operation,
        number: Option<u64>,
    ) -> Outcome {
        if let Operation::GiveUp { server, with, lose_data } = operation {
            return self.give_up(server, with, lose_data).await;
        }
        match self.understood(operation, number) {
            Ok((command, done)) => {
                let outcome = self.carry_out(command, done).await;
                if let Outcome::Done(done) = &outcome {
                    tracing::info!(done, "an operator's command is carried out");
                }
                outcome
            }
            Err(outcome) => outcome,
        }
    }

    /// Carries a command out. It is stored when this returns, or refused.
    pub(super) async fn carry_out(&self, command: Command, done: String) -> Outcome {
        let rebalances = command == Command::Rebalance;
        let before = self.lock().manager.state().servers.clone();
        if let Err(error) = self.with(|manager, now| manager.command(now, command)) {
            return Outcome::Refused(error.to_string());
        }
        let after = self.lock().manager.state().clone();
        // Nobody is told that it is done before it is stored.
        if let Err(why) = self.stored(after.version).await {
            return Outcome::Refused(format!("it is not stored yet, and is tried again: {why}"));
        }
        if rebalances {
            return Outcome::Done(moved_shares(&before, &after.servers, done));
        }
        let new = after.servers.keys().find(|id| !before.contains_key(id));
        Outcome::Done(match new {
            Some(id) => format!("data server {id} is added; {done}"),
            None => done,
        })
    }

    /// Waits until a version of the map is on stable storage.
    ///
    /// # Errors
    /// Why it is not, if that takes too long.
    pub(super) async fn stored(&self, version: Epoch) -> Result<(), String> {
        let mut maps = self.maps();
        let stored = maps.wait_for(|published| published.map.version >= version);
        match tokio::time::timeout(PATIENCE, stored).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(self.lock().trouble.clone().unwrap_or_else(|| "it takes too long".into())),
        }
    }

    /// The command, and what to say when it is done.
    fn understood(
        &self,
        operation: Operation,
        number: Option<u64>,
    ) -> Result<(Command, String), Outcome> {
        let refused = |text: String| Err(Outcome::Refused(text));
        match operation {
            Operation::List => Err(Outcome::Servers(self.list())),
            Operation::Add(addrs) => {
                if addrs.len() > MAX_ADDRS.0 || addrs.iter().any(|a| a.len() > MAX_ADDRS.1) {
                    return refused("these are too many addresses, or too long ones".into());
                }
                let mut with = self.lock().manager.state().clone();
                let known = |addr: &String| with.servers.values().any(|s| s.addrs.contains(addr));
                if let Some(odd) = addrs.iter().find(|addr| !is_address(addr) && !known(addr)) {
                    return refused(format!("{odd:?} is not an address of the form HOST:PORT"));
                }
                if self.local.is_some()
                    && !with.servers.values().any(|s| s.addrs.iter().any(|a| addrs.contains(a)))
                {
                    return refused(
                        "other servers cannot reach the data server in the metadata server's process: set \
                         meta.data_servers to an address that all can reach, restart it, and add the others then"
                            .into(),
                    );
                }
                if with.servers.len() >= MAX_SERVERS {
                    return refused(format!("there are {MAX_SERVERS} data servers already"));
                }
                let drained = with.servers.iter().find(|(_, server)| {
                    server.duty == Duty::Draining && server.addrs.iter().any(|a| addrs.contains(a))
                });
                let done = match drained {
                    Some((_, server)) if server.store.is_none() => {
                        "what answers there takes the place of the data server whose store it has"
                            .into()
                    }
                    Some((id, _)) => {
                        format!("data server {id} is not drained any more, and keeps its share")
                    }
                    None => "it gets its share of the data when it answers".into(),
                };
                with.add_server(addrs.clone());
                check_size(&with).map_err(|error| Outcome::Refused(error.to_string()))?;
                Ok((Command::Add(addrs), done))
            }
            Operation::Drain(id) => {
                let mut done = format!(
                    "data server {id} is being drained; `netfs data list` shows what is left, and `netfs data remove {id}` ends it"
                );
                let core = self.lock();
                let state = core.manager.state();
                let others = state.servers.iter().filter(|(o, s)| **o != id && s.duty == Duty::In);
                let others = others.count();
                let wanted = state.pools.iter().map(|pool| pool.replicas).max().unwrap_or(0);
                if others < usize::from(wanted) {
                    done += &format!(
                        ". {wanted} replicas are wanted, and {others} other servers are too few for them: it keeps what it has until \
                         another one is added, or fewer replicas are wanted (`netfs status` shows where, `netfs data replicas` changes it)"
                    );
                }
                Ok((Command::Drain(id), done))
            }
            Operation::Remove(id) => {
                let (draining, missed) = {
                    let core = self.lock();
                    let Some(server) = core.manager.state().servers.get(&id) else {
                        return refused(CommandError::NoServer(id).to_string());
                    };
                    (server.duty == Duty::Draining, core.manager.missed(id))
                };
                let done = match (missed, draining) {
                    (0, true) => format!("data server {id} is forgotten"),
                    (0, false) => format!("data server {id}, which had nothing, is forgotten"),
                    (groups, _) => format!(
                        "data server {id} is forgotten; {groups} placement groups lack a replica that was there, and get others where there is a server \
                         for them"
                    ),
                };
                let done = format!(
                    "{done}; if meta.data_servers names it, it would come back at the next start"
                );
                Ok((Command::Remove(id), done))
            }
            // They are no commands, and answered elsewhere.
            Operation::GiveUp { .. } | Operation::Audit(_) => {
                refused("this server does not do that".into())
            }
            Operation::Rebalance => {
                Ok((Command::Rebalance, "shares are those of capacities and loads".into()))
            }
            Operation::Replicas { volume, replicas, min } => {
                let Some(number) = number else {
                    return refused(format!("there is no volume {volume:?}"));
                };
                let mut with = self.lock().manager.state().clone();
                let of = (number, Class::DEFAULT);
                let mut pools = with.pools.iter_mut();
                let Some(pool) = pools.find(|p| (p.pool.volume, p.pool.class) == of) else {
                    return refused(CommandError::NoVolume.to_string());
                };
                let min = min.unwrap_or(pool.pool.min_replicas.min(replicas.max(1)));
                pool.replicas = replicas;
                check_size(&with).map_err(|error| Outcome::Refused(error.to_string()))?;
                let done = format!(
                    "volume {volume} gets {replicas} replicas; writes wait while there are fewer than {min}"
                );
                Ok((Command::Replicas(number, replicas, min), done))
            }
            Operation::ClassReplicas { volume, class, replicas } => {
                let Some(number) = number else {
                    return refused(format!("there is no volume {volume:?}"));
                };
                let mut with = self.lock().manager.state().clone();
                for pool in &mut with.pools {
                    if (pool.pool.volume, pool.pool.class) == (number, class) {
                        pool.replicas = replicas;
                    }
                }
                check_size(&with).map_err(|error| Outcome::Refused(error.to_string()))?;
                let done = format!(
                    "what is made in directories of volume {volume} that are set to {class} replicas, and what was, gets {replicas}"
                );
                Ok((Command::ClassReplicas(number, class, replicas), done))
            }
        }
    }

    fn list(&self) -> Vec<ServerLine> {
        let mut core = self.lock();
        let now = self.now(&mut core);
        let ids: Vec<_> = core.manager.state().servers.keys().copied().collect();
        ids.into_iter().filter_map(|id| core.line(id, now)).collect()
    }
}

/// What a new division of the data has changed.
fn moved_shares(
    before: &BTreeMap<ServerId, ServerState>,
    after: &BTreeMap<ServerId, ServerState>,
    done: String,
) -> String {
    let changes = after.iter().filter_map(|(id, now)| {
        let was = before.get(id).filter(|was| was.weight != now.weight)?;
        let (was, weight, percent) = (was.weight, now.weight, now.share.percent());
        Some(format!("\n  data server {id}: {was} -> {weight} ({percent} % for its load)"))
    });
    let changes: String = changes.collect();
    match changes.is_empty() {
        true => format!("{done}: as they were"),
        false => format!("{done}:{changes}"),
    }
}

impl Core {
    fn line(&self, id: ServerId, now: Duration) -> Option<ServerLine> {
        let server = self.manager.state().servers.get(&id)?;
        let health = self.manager.health(id, now);
        let figures = self.figures.get(&id).cloned().unwrap_or_default();
        let (mut head, mut replica, mut learner) = (0, 0, 0);
        for (_, _, chain) in self.manager.state().groups() {
            if chain.head().is_some_and(|r| r.server == id) {
                head += 1;
            } else if chain.replicas.iter().any(|r| r.server == id) {
                replica += 1;
            } else if chain.learner.is_some_and(|r| r.server == id) {
                learner += 1;
            }
        }
        let report = health.report.as_ref();
        let (load_milli, call_us) = self.manager.busy(id);
        Some(ServerLine {
            id,
            addrs: server.addrs.clone(),
            condition: match health.verdict {
                Verdict::Alive => Condition::Alive,
                Verdict::Suspect => Condition::Suspect,
                Verdict::Dead => Condition::Dead,
            },
            silent_ms: health.silent.map(|t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX)),
            draining: server.duty == Duty::Draining,
            full: report.is_some_and(|report| report.full),
            domain: server.domain.clone(),
            capacity: report.map_or(0, |report| report.capacity),
            live: figures.live,
            free: report.map_or(0, |report| report.free),
            head,
            replica,
            learner,
            version: report.map_or_else(Default::default, |report| report.version),
            damaged: figures.counts.damaged,
            mended: figures.counts.mended,
            weight: server.weight,
            share_percent: server.share.percent(),
            load_milli,
            call_us,
            tier: figures.tier.clone(),
        })
    }
}

/// Whether a server can be at such an address: a name or an address, and a port. Whether there is one is seen when it is called.
fn is_address(text: &str) -> bool {
    let is_port = |port: u16| port > 0;
    // A server listens at these, or they are of many.
    let is_one = |ip: IpAddr| {
        !ip.is_unspecified() && !ip.is_multicast() && ip != IpAddr::V4(Ipv4Addr::BROADCAST)
    };
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return is_port(addr.port()) && is_one(addr.ip());
    }
    text.rsplit_once(':').is_some_and(|(host, port)| {
        let is_host = match host.parse::<Ipv6Addr>() {
            Ok(ip) => is_one(ip.into()),
            Err(_) => is_name(host),
        };
        is_host && port.parse().is_ok_and(is_port)
    })
}

/// Whether something is the name of a machine, and not a misspelt address.
fn is_name(host: &str) -> bool {
    let mut labels = host.strip_suffix('.').unwrap_or(host).split('.');
    let is_label = |label: &str| {
        let is_known = |c: char| c.is_alphanumeric() || "-_".contains(c);
        (1..=63).contains(&label.len())
            && label.chars().all(is_known)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_number = |label: &str| label.bytes().all(|b| b.is_ascii_digit());
    host.len() <= 254 && labels.clone().all(is_label) && !labels.next_back().is_some_and(is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_host_and_a_port() {
        for good in ["a:1", "a.example.:65535", "10.0.0.1:7401", "[fe80::1]:7401", "::1:7401"] {
            assert!(is_address(good), "{good}");
        }
        for bad in [
            "0.0.0.0:7401",
            "[::]:7401",
            ":::7401",
            "255.255.255.255:7401",
            "224.0.0.1:7401",
            "[ff02::1]:7401",
            "999.1.1.1:7401",
            "10.0.0:7401",
            "7401:7401",
            "..:1",
            ".a:1",
            "a..b:1",
            "-:1",
            "a.-b:1",
            "-a:1",
            "a-:1",
            "",
            "a",
            "a:",
            ":1",
            "a:0",
            "a:70000",
            "a:7x",
            "10.0.0.1",
            "a b:1",
            "[]:1",
            "fe80::1",
            "a:b:1",
        ] {
            assert!(!is_address(bad), "{bad}");
        }
    }
}
