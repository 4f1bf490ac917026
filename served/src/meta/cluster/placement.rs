//! Which servers are to have a group: consistent hashing with virtual nodes (Karger et al., STOC 1997), by weight, spread over
//! failure domains.
//!
//! Every server has points on a ring, as many as its weight. From the point of the group the ring is followed, and each server that is
//! met is taken if nothing of its failure domain has been taken; when the ring is through and that was not enough,
//! those that were left out. So a server that comes takes over what its points meet, from all the others alike, and nothing else moves.

use std::collections::BTreeSet;

use netfs_common::id::{GroupId, ServerId};
use netfs_common::map::mix;

/// The most points of one server.
pub(super) const MAX_WEIGHT: u32 = 4096;

/// A server that may get groups.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its number.
    pub id: ServerId,
    /// Its share, against the weights of the others; at most 4096 counts.
    pub weight: u32,
    /// What fails together with it.
    pub domain: &'a str,
}

/// The points of all servers, in order.
#[derive(Debug)]
pub(super) struct Ring<'a> {
    servers: &'a [Candidate<'a>],
    /// Point, and the server's place in `servers`.
    points: Vec<(u64, usize)>,
}

impl<'a> Ring<'a> {
    pub(super) fn new(servers: &'a [Candidate<'a>]) -> Ring<'a> {
        let mut points = Vec::new();
        for (index, server) in servers.iter().enumerate() {
            let own = mix(u64::from(server.id.0) ^ 0x7365_7276_6572);
            let weight = u64::from(server.weight.clamp(1, MAX_WEIGHT));
            points.extend((0..weight).map(|k| (mix(own ^ mix(k)), index)));
        }
        points.sort_unstable();
        Ring { servers, points }
    }

    /// Up to `count` servers, the head first.
    pub(super) fn place(&self, group: GroupId, count: usize) -> Vec<ServerId> {
        let start = mix(mix(u64::from(group.0)) ^ 0x67_726f_7570);
        let from = self.points.partition_point(|(point, _)| *point < start);
        let (before, after) = self.points.split_at(from);
        let (mut taken, mut left_out) = (Vec::new(), Vec::new());
        let mut seen = BTreeSet::new();
        let mut domains = BTreeSet::new();
        for (_, index) in after.iter().chain(before) {
            if taken.len() == count || seen.len() == self.servers.len() {
                break;
            }
            if !seen.insert(*index) {
                continue;
            }
            let server = &self.servers[*index];
            match domains.insert(server.domain) {
                true => taken.push(server.id),
                false => left_out.push(server.id),
            }
        }
        let missing = count.saturating_sub(taken.len());
        taken.extend(left_out.into_iter().take(missing));
        taken
    }
}

/// The servers of every one of `groups` groups from `first` on.
pub fn place(
    servers: &[Candidate<'_>],
    first: GroupId,
    groups: u32,
    count: usize,
) -> Vec<Vec<ServerId>> {
    let ring = Ring::new(servers);
    (0..groups).map(|index| ring.place(GroupId(first.0 + index), count)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const GROUPS: u32 = 1024;

    fn servers(count: u32) -> Vec<Candidate<'static>> {
        (1..=count).map(|id| Candidate { id: ServerId(id), weight: 128, domain: "" }).collect()
    }

    fn own_domains(servers: &mut [Candidate<'static>]) {
        for server in servers {
            server.domain = Box::leak(format!("d{}", server.id).into_boxed_str());
        }
    }

    fn moved(before: &[Vec<ServerId>], after: &[Vec<ServerId>]) -> usize {
        let new = |(b, a): (&Vec<ServerId>, &Vec<ServerId>)| {
            a.iter().filter(|server| !b.contains(server)).count()
        };
        before.iter().zip(after).map(new).sum()
    }

    #[test]
    fn adding_one_of_n_moves_one_nth_and_removing_it_the_same() {
        for (count, replicas) in [(3, 1), (3, 3), (4, 3), (5, 2), (9, 3), (20, 3)] {
            let mut fewer = servers(count);
            let mut more = servers(count + 1);
            own_domains(&mut fewer);
            own_domains(&mut more);
            let before = place(&fewer, GroupId(0), GROUPS, replicas);
            let after = place(&more, GroupId(0), GROUPS, replicas);
            let slots = GROUPS as usize * replicas;
            let share = slots as f64 / f64::from(count + 1);
            let (there, back) = (moved(&before, &after), moved(&after, &before));
            println!(
                "{count} + 1 servers, {replicas} replicas: {there} of {slots} moved, share {share:.0}"
            );
            assert!((there as f64) < share * 1.35, "{there} moved, {share} is the share");
            assert!((there as f64) > share * 0.65, "{there} moved, {share} is the share");
            assert_eq!(there, back);
        }
    }

    #[test]
    fn a_change_of_weight_moves_what_the_weight_changed_by_and_nothing_else() {
        for (count, replicas) in [(3, 1), (4, 2), (5, 3), (9, 3)] {
            for (from, to) in [(128, 115), (128, 102), (128, 64), (64, 128)] {
                let mut servers = servers(count);
                own_domains(&mut servers);
                servers[1].weight = from;
                let before = place(&servers, GroupId(0), GROUPS, replicas);
                servers[1].weight = to;
                let after = place(&servers, GroupId(0), GROUPS, replicas);
                let moved = moved(&before, &after);
                let has = |chains: &[Vec<ServerId>]| {
                    chains.iter().filter(|chain| chain.contains(&ServerId(2))).count()
                };
                let changed = has(&before).abs_diff(has(&after));
                // What one of so many of this weight has, if a chain's servers were drawn one by one.
                let share = |weight: u32| {
                    let (mut left, mut none) = (f64::from(128 * (count - 1) + weight), 1.0);
                    for _ in 0..replicas {
                        none *= 1.0 - f64::from(weight) / left;
                        left -= 128.0;
                    }
                    (1.0 - none) * f64::from(GROUPS)
                };
                let wanted = (share(from) - share(to)).abs();
                println!(
                    "{count} servers, {replicas} replicas, weight {from} -> {to}: {moved} of {} moved, share {wanted:.0}",
                    GROUPS as usize * replicas
                );
                assert_eq!(moved, changed, "only what it has more or less");
                assert!(
                    moved as f64 <= wanted * 1.35 + 12.0,
                    "{moved} moved, {wanted} is the share"
                );
                assert!(
                    moved as f64 >= wanted * 0.5 - 12.0,
                    "{moved} moved, {wanted} is the share"
                );
            }
        }
    }

    #[test]
    fn servers_get_groups_by_their_weight() {
        let mut all = servers(4);
        own_domains(&mut all);
        all[0].weight = 512;
        let mut share: BTreeMap<ServerId, usize> = BTreeMap::new();
        for chain in place(&all, GroupId(0), 4 * GROUPS, 1) {
            *share.entry(chain[0]).or_default() += 1;
        }
        let rest: usize = (2..=4).map(|id| share[&ServerId(id)]).sum();
        let ratio = share[&ServerId(1)] as f64 / (rest as f64 / 3.0);
        assert!((3.0..5.2).contains(&ratio), "{ratio}");
    }

    #[test]
    fn replicas_are_in_different_failure_domains_while_there_are_enough() {
        let mut all = servers(6);
        for server in &mut all {
            server.domain = ["a", "b", "c"][server.id.0 as usize % 3];
        }
        for chain in place(&all, GroupId(0), GROUPS, 3) {
            let domains: BTreeSet<u32> = chain.iter().map(|id| id.0 % 3).collect();
            assert_eq!(domains.len(), 3, "{chain:?}");
        }
        for chain in place(&all, GroupId(0), GROUPS, 5) {
            assert_eq!(chain.iter().collect::<BTreeSet<_>>().len(), 5, "{chain:?}");
        }
        assert_eq!(place(&all[..2], GroupId(0), 1, 3)[0].len(), 2);
        assert!(place(&[], GroupId(0), 1, 3)[0].is_empty());
    }
}
