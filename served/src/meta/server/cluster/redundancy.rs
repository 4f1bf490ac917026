//! How many copies there are of everything, at the moment.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use netfs_common::class::Class;
use netfs_common::id::{InstanceId, ServerId};
use netfs_common::map::Replica;
use netfs_common::wire::operator::Redundancy;

use super::{Cluster, Core};
use crate::meta::cluster::{Duty, Verdict};
use crate::meta::metrics::ClusterShare;

/// What is known of the groups of one class of a volume's data.
#[derive(Debug, Default)]
pub(super) struct Condition {
    pub(super) redundancy: Redundancy,
    /// Servers that have all that there is of groups that are unavailable.
    pub(super) missed: BTreeSet<ServerId>,
    /// Groups that no server was ever given.
    pub(super) homeless: u32,
}

impl Core {
    /// Of every volume, by number and class.
    pub(super) fn conditions(&self, now: Duration) -> BTreeMap<(u64, Class), Condition> {
        let servers = &self.manager.state().servers;
        // Before a server was heard it may well be there in the life that the chains know.
        let there: BTreeMap<ServerId, Option<InstanceId>> = servers
            .keys()
            .map(|id| (*id, self.manager.health(*id, now)))
            .filter(|(_, health)| health.verdict != Verdict::Dead)
            .map(|(id, health)| (id, health.report.map(|report| report.instance)))
            .collect();
        let lives = |replica: &Replica| {
            there
                .get(&replica.server)
                .is_some_and(|known| known.is_none_or(|instance| instance == replica.instance))
        };
        let begun = now >= self.patience + self.manager.config().deadline;
        let mut all = BTreeMap::new();
        for pool in &self.manager.state().pools {
            let mut condition = Condition::default();
            let of = &mut condition.redundancy;
            (of.replicas, of.min_replicas) = (pool.replicas, pool.pool.min_replicas);
            for (group, chain) in (pool.pool.first.0..).zip(&pool.pool.chains) {
                of.groups += 1;
                let live = chain.replicas.iter().filter(|replica| lives(replica)).count();
                let missing = usize::from(pool.replicas).saturating_sub(live);
                match live {
                    // After a start the servers have time to answer.
                    0 if chain.replicas.is_empty() && !begun => {}
                    0 => {
                        of.unavailable += 1;
                        condition.missed.extend(chain.replicas.iter().map(|r| r.server));
                        condition.homeless += u32::from(chain.replicas.is_empty());
                    }
                    _ if missing == 0 => of.full += 1,
                    _ => {
                        of.degraded += 1;
                        of.missing += u32::try_from(missing).unwrap_or(u32::MAX);
                        of.waiting += u32::from(live < usize::from(pool.pool.min_replicas));
                    }
                }
                if chain.learner.is_some() {
                    of.repairing += 1;
                    let tail =
                        chain.replicas.last().and_then(|tail| self.figures.get(&tail.server));
                    let lacking =
                        tail.and_then(|f| f.lacking.get(&netfs_common::id::GroupId(group)));
                    of.lacking += lacking.copied().flatten().unwrap_or(0);
                }
            }
            all.insert((pool.pool.volume, pool.pool.class), condition);
        }
        all
    }

    /// How many servers can get data of others.
    pub(super) fn takers(&self, now: Duration) -> usize {
        let servers = self.manager.state().servers.iter();
        servers
            .filter(|(id, server)| {
                let health = self.manager.health(**id, now);
                server.duty == Duty::In
                    && health.verdict != Verdict::Dead
                    && health.report.is_none_or(|report| !report.full)
            })
            .count()
    }
}

impl Cluster {
    /// How a volume's data is replicated, by class.
    pub(in crate::meta::server) fn redundancy(&self, volume: u64) -> BTreeMap<Class, Redundancy> {
        let mut core = self.lock();
        let now = self.now(&mut core);
        let all = core.conditions(now).into_iter().filter(|((of, _), _)| *of == volume);
        all.map(|((_, class), condition)| (class, condition.redundancy)).collect()
    }

    /// What makes the whole server unwell, if anything. `names`: of the volumes, by number.
    pub(in crate::meta::server) fn failure(&self, names: &BTreeMap<u64, String>) -> Option<String> {
        let mut core = self.lock();
        let now = self.now(&mut core);
        if let Some(why) = &core.trouble {
            return Some(format!("changes of the cluster map cannot be stored: {why}"));
        }
        let conditions = core.conditions(now);
        let mut lines = conditions.iter().filter_map(|((volume, class), condition)| {
            let Redundancy { unavailable, groups, .. } = condition.redundancy;
            let name = names.get(volume)?;
            let name = of_class(name, *class);
            (unavailable > 0).then(|| {
                format!("volume {name}: {unavailable} of {groups} placement groups are unavailable")
            })
        });
        lines.next()
    }

    /// For the gauges.
    pub(super) fn share(&self) -> ClusterShare {
        let mut core = self.lock();
        let now = self.now(&mut core);
        let servers = core.manager.state().servers.keys();
        let dead =
            servers.filter(|id| core.manager.health(**id, now).verdict == Verdict::Dead).count();
        let mut share = ClusterShare {
            dead: i64::try_from(dead).unwrap_or(i64::MAX),
            ..ClusterShare::default()
        };
        for condition in core.conditions(now).values() {
            share.degraded += i64::from(condition.redundancy.degraded);
            share.unavailable += i64::from(condition.redundancy.unavailable);
            share.learners += i64::from(condition.redundancy.repairing);
        }
        share
    }
}

/// A volume's data of a class, for people.
pub(super) fn of_class(volume: &str, class: Class) -> String {
    match class.replicas() {
        None => volume.into(),
        Some(replicas) => format!("{volume}, directories with {replicas} replicas"),
    }
}
