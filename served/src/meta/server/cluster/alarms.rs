//! What an operator should know, in plain words. `docs/operations.md` says what to do about each.

use std::collections::BTreeMap;
use std::time::Duration;

use netfs_common::id::{ClusterId, ServerId};

use super::redundancy::{Condition, of_class};
use super::{Cluster, Core};
use crate::meta::cluster::{Astray, Duty, Verdict};

impl Cluster {
    /// A line for each. `names`: of the volumes, by number.
    pub(in crate::meta::server) fn alarms(&self, names: &BTreeMap<u64, String>) -> Vec<String> {
        let mut core = self.lock();
        let now = self.now(&mut core);
        let mut lines = Vec::new();
        if let Some(why) = &core.trouble {
            lines.push(format!(
                "changes of the cluster map cannot be stored, and nobody is told of them: {why}"
            ));
        }
        if core.manager.state().servers.is_empty() {
            lines.push("there is no data server; add one with `netfs data add`".into());
        }
        core.of_servers(now, &mut lines);
        core.of_keys(names, &mut lines);
        core.of_tiers(&mut lines);
        core.of_losses(&mut lines);
        core.of_overtaken(names, &mut lines);
        for ((volume, class), condition) in core.conditions(now) {
            let name = names.get(&volume).map_or_else(|| format!("number {volume}"), Clone::clone);
            core.of_volume(&of_class(&name, class), &condition, now, &mut lines);
        }
        lines
    }
}

impl Core {
    fn name_of(&self, id: ServerId) -> String {
        let known = self.manager.state().servers.get(&id);
        let addr = known.and_then(|server| server.addrs.first());
        addr.map_or_else(|| format!("{id}"), |addr| format!("{id} ({addr})"))
    }

    fn of_overtaken(&self, names: &BTreeMap<u64, String>, lines: &mut Vec<String>) {
        for (volume, server) in &self.overtaken {
            let name = names.get(volume).map_or_else(|| format!("number {volume}"), Clone::clone);
            lines.push(format!(
                "volume {name}: data server {} has data of files that this metadata server does not know: `meta.dir` is an older copy. Their \
                 numbers are not given out again",
                self.name_of(*server)
            ));
        }
    }

    fn of_servers(&self, now: Duration, lines: &mut Vec<String>) {
        let state = self.manager.state();
        let config = self.manager.config();
        let (takers, failing) = (self.takers(now), self.manager.failing());
        let most = state.pools.iter().map(|pool| usize::from(pool.replicas)).max().unwrap_or(1);
        for (id, owner) in &self.strangers {
            let whose = owner.map_or_else(String::new, |id| format!(" ({})", ClusterId(id)));
            lines.push(format!(
                "data server {} has the data of another cluster{whose}, or of this one before its metadata was made anew, and is \
                 left alone: start it with its own data directory, or with an empty one",
                self.name_of(*id)
            ));
        }
        let why = self.behind.as_ref().map_or_else(String::new, |why| format!(": {why}"));
        for (id, version) in self.manager.ahead() {
            lines.push(format!(
                "data server {} goes by version {version} of the cluster map, and this metadata server knows {} only: `meta.dir` is an \
                 older copy. Nothing is decided before the later map is taken over{why}",
                self.name_of(id),
                state.version
            ));
        }
        for (id, held) in self.manager.held(now) {
            let others: Vec<_> = held.awaited.iter().map(|id| self.name_of(*id)).collect();
            lines.push(format!(
                "data server {} has come back without some of the data that its disk had: {} placement groups wait for data \
                 server {}, which may have all of it; if that is lost for good, give it up with `netfs data give-up`",
                self.name_of(id),
                held.groups,
                others.join(", ")
            ));
        }
        for (id, server) in &state.servers {
            if self.strangers.contains_key(id) {
                continue;
            }
            let (name, health) = (self.name_of(*id), self.manager.health(*id, now));
            let has = state.groups().filter(|(_, _, chain)| chain.has(*id)).count();
            if !self.manager.ahead().is_empty() {
                break;
            }
            let astray = self.manager.is_astray(*id, now);
            if let Some(astray) = astray {
                lines.push(self.of_astray(*id, astray));
            } else if health.verdict == Verdict::Dead {
                let silent = match health.silent {
                    Some(silent) => format!("has not answered for {}", span(silent)),
                    None => "has not answered since the start of the metadata server".into(),
                };
                let silence = health.silent.unwrap_or(now);
                let next = match config.repair_after.checked_sub(silence) {
                    _ if has == 0 && self.manager.missed(*id) == 0 => {
                        format!(
                            "it has no part in any placement group: `netfs data remove {id}` forgets it"
                        )
                    }
                    _ if server.duty == Duty::Draining => "it was being drained".into(),
                    Some(left) if !left.is_zero() => {
                        format!("what it has gets other replicas in {}", span(left))
                    }
                    _ => "what it has gets other replicas, where there is one left".into(),
                };
                lines.push(format!("data server {name} {silent}; {next}"));
            }
            let Some(report) = health.report else { continue };
            if astray.is_none() && server.store.is_some_and(|store| store != report.store) {
                lines.push(format!(
                    "data server {name} answers with another store than before, without the data that it had; it gets \
                     none while groups count on the old one"
                ));
            }
            if let Some(groups) = failing.get(id) {
                lines.push(format!(
                    "data server {name} cannot store changes of {groups} placement groups of which it has the only \
                     replica; look at its disk"
                ));
            }
            if report.full && server.duty == Duty::In {
                lines.push(format!("data server {name} is full and takes no more data"));
            }
            if server.duty == Duty::Draining && has > 0 && takers < most {
                lines.push(format!(
                    "data server {name} cannot be drained: {most} replicas are wanted, and only {takers} other data \
                     servers take data"
                ));
            }
        }
    }

    /// A server at whose address the store of another one answers.
    fn of_astray(&self, id: ServerId, astray: Astray) -> String {
        let (name, owner) = (self.name_of(id), self.name_of(astray.owner));
        let Astray { is_there, is_new, lacks, is_refused, .. } = astray;
        let again =
            "if it is to do so all the same, add its address again while the other one is off";
        match (is_new, is_there) {
            (true, _) if is_refused => format!(
                "data server {name} has the store of data server {owner}: it is a copy, both have answered, and it does not \
                 take its place by itself; {again}"
            ),
            (true, _) if lacks => format!(
                "data server {name} has the store of data server {owner}: it is an older copy, or its disk has lost data, and \
                 it does not take its place by itself; {again}"
            ),
            (true, _) => format!(
                "data server {name} has the store of data server {owner}: it is the same, or a copy; it takes its place when that \
                 has not answered for {}",
                span(self.manager.config().deadline)
            ),
            (false, true) => format!(
                "data server {name} answers with the store of data server {owner}, which answers too: it has a copy of its \
                 directory; start it with its own"
            ),
            (false, false) => format!(
                "data server {name} answers with the store of data server {owner}: were directories or addresses exchanged?"
            ),
        }
    }

    fn of_keys(&self, names: &BTreeMap<u64, String>, lines: &mut Vec<String>) {
        for (id, figures) in &self.figures {
            for volume in &figures.locked {
                let name =
                    names.get(volume).map_or_else(|| format!("number {volume}"), Clone::clone);
                lines.push(format!(
                    "data server {} has no key for volume {name}, which is encrypted, and takes none of its data: set \
                     data.key_file there",
                    self.name_of(*id)
                ));
            }
        }
    }

    fn of_losses(&self, lines: &mut Vec<String>) {
        for id in self.figures.iter().filter(|(_, f)| f.incomplete).map(|(id, _)| id) {
            lines.push(format!(
                "data server {} may lack data of which there is no other replica, and keeps what nobody seems to need; its file `incomplete` \
                 says why. Files may have holes: `netfs check --data` names those of which it can be told",
                self.name_of(*id)
            ));
        }
    }

    fn of_tiers(&self, lines: &mut Vec<String>) {
        for (id, figures) in &self.figures {
            let Some(tier) = &figures.tier else { continue };
            let name = self.name_of(*id);
            if let Some(why) = &tier.trouble {
                let bytes = tier.away_bytes;
                lines.push(format!(
                    "data server {name} cannot use its object store, and reads of what is only there fail ({bytes} bytes): {why}"
                ));
            }
            if tier.late {
                lines.push(format!(
                    "data server {name} does not keep up with its object store: writes to volumes with tier = \"primary\" wait for \
                     {} chunks",
                    tier.waiting
                ));
            }
            if tier.stuck > 0 {
                lines.push(format!(
                    "data server {name} cannot put {} changed chunks into its object store: they are damaged, or it has no key for their volume; \
                     its log names them",
                    tier.stuck
                ));
            }
        }
    }

    fn of_volume(&self, name: &str, condition: &Condition, now: Duration, lines: &mut Vec<String>) {
        let of = &condition.redundancy;
        if of.unavailable > 0 {
            let servers: Vec<String> =
                condition.missed.iter().map(|id| self.name_of(*id)).collect();
            let why = match servers.as_slice() {
                [] => "no data server was ever ready to take them".into(),
                [one] => format!("what they hold is on data server {one}, which is not there"),
                more => format!(
                    "what they hold is on data servers {}, none of which is there with it",
                    more.join(", ")
                ),
            };
            let (unavailable, groups) = (of.unavailable, of.groups);
            lines.push(format!(
                "volume {name}: {unavailable} of {groups} placement groups are unavailable: {why}"
            ));
        }
        if of.waiting > 0 {
            lines.push(format!(
                "volume {name}: writes to {} placement groups wait: fewer than {} replicas are there",
                of.waiting, of.min_replicas
            ));
        }
        if of.degraded > 0 {
            lines.push(format!(
                "volume {name}: {} of {} placement groups lack {} replicas; {} of them are being repaired",
                of.degraded, of.groups, of.missing, of.repairing.min(of.degraded)
            ));
        }
        let takers = self.takers(now);
        if usize::from(of.replicas) > takers {
            lines.push(format!(
                "volume {name} wants {} replicas, and only {takers} data servers take data",
                of.replicas
            ));
        }
    }
}

/// A time, for people.
pub(super) fn span(time: Duration) -> String {
    match time.as_secs() {
        secs @ 0..120 => format!("{secs} s"),
        secs @ 120..7200 => format!("{} min", secs / 60),
        secs @ 7200..172_800 => format!("{} h", secs / 3600),
        secs => format!("{} days", secs / 86_400),
    }
}
