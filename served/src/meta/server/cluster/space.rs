//! How much room there is.

use std::time::{Duration, Instant};

use netfs_common::class::Class;
use netfs_common::errno::Errno;
use netfs_common::wire::data::Usage;

use super::{Cluster, Core};
use crate::meta::cluster::{Duty, Verdict};

/// After a start, figures are waited for at most this long.
const PATIENCE: Duration = Duration::from_secs(2);

impl Cluster {
    /// Space for a volume's data, with as many copies as it has unless its directory says otherwise, each on another server: where one server has much
    /// more than the others, part of that is of no use. The figures come with the signs of life.
    pub(in crate::meta::server) async fn usage(&self, volume: u64) -> Result<Usage, Errno> {
        let mut events = self.events();
        let limit = Instant::now() + PATIENCE;
        loop {
            events.borrow_and_update();
            if let Some(servers) = self.usage_now() {
                let copies = self.replicas(volume, Class::DEFAULT);
                let of = |what: fn(&Usage) -> u64| {
                    servers.iter().map(|(_, u)| what(u)).collect::<Vec<_>>()
                };
                let sum = |what| of(what).into_iter().fold(0, u64::saturating_add) / copies;
                let rooms: Vec<_> = servers.iter().map(|(room, _)| *room).collect();
                return Ok(Usage {
                    capacity: fits(of(|usage| usage.capacity), copies),
                    free: free(&rooms, copies),
                    live: sum(|usage| usage.live),
                    chunks: sum(|usage| usage.chunks),
                });
            }
            // There is an event at every tick.
            if Instant::now() >= limit || events.changed().await.is_err() {
                return Err(Errno::ETIMEDOUT);
            }
        }
    }

    /// Of all servers that answer; if none does, of all as they were last. `None`: none ever has.
    fn usage_now(&self) -> Option<Vec<(Room, Usage)>> {
        let mut core = self.lock();
        let now = self.now(&mut core);
        let Core { manager, figures, .. } = &*core;
        let (mut alive, mut known) = (Vec::new(), Vec::new());
        for (id, server) in &manager.state().servers {
            let health = manager.health(*id, now);
            let (Some(report), Some(figures)) = (health.report, figures.get(id)) else { continue };
            let own = Usage {
                capacity: report.capacity,
                free: report.free,
                live: figures.live,
                chunks: figures.chunks,
            };
            let room = Room { duty: server.duty, full: report.full, bytes: own.free };
            known.push((room, own));
            if health.verdict != Verdict::Dead {
                alive.push((room, own));
            }
        }
        let some = |servers: Vec<(Room, Usage)>| (!servers.is_empty()).then_some(servers);
        some(alive).or(some(known))
    }
}

/// What one server says of its room.
#[derive(Clone, Copy, Debug)]
struct Room {
    duty: Duty,
    full: bool,
    bytes: u64,
}

/// How much more fits. One that is full is given nothing, nor is one that is drained, unless there are too few others: then one of these has
/// the copies that are missing, beside all the others.
fn free(rooms: &[Room], copies: u64) -> u64 {
    let of = |wanted: fn(&Room) -> bool| {
        rooms.iter().filter(|room| wanted(room)).map(|room| room.bytes).collect::<Vec<_>>()
    };
    let takes = of(|room| room.duty == Duty::In && !room.full);
    let missing = copies.saturating_sub(takes.len() as u64);
    if missing == 0 {
        return fits(takes, copies);
    }
    let leaves = of(|room| room.duty != Duty::In && !room.full);
    if leaves.is_empty() {
        // Whoever is full is in all chains, and refuses.
        return fits(of(|room| room.duty == Duty::In), copies);
    }
    takes.into_iter().min().unwrap_or(u64::MAX).min(fits(leaves, missing))
}

/// How much fits on servers with so much space each, if all of it is to be on so many of them, or on all if there are fewer.
fn fits(mut spaces: Vec<u64>, copies: u64) -> u64 {
    spaces.sort_unstable();
    let mut copies = copies.clamp(1, spaces.len().max(1) as u64);
    // A server that has more than the share of each copy takes one copy of everything.
    while let Some(largest) = spaces.pop() {
        let rest = spaces.iter().copied().fold(0, u64::saturating_add);
        let share = rest.saturating_add(largest) / copies;
        if largest <= share || copies == 1 {
            return share;
        }
        copies -= 1;
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(duty: Duty, bytes: u64) -> Room {
        Room { duty, full: false, bytes }
    }

    #[test]
    fn a_server_that_is_drained_takes_nothing_unless_the_others_are_too_few() {
        let [a, b, c] = [room(Duty::In, 50), room(Duty::Draining, 40), room(Duty::In, 60)];
        assert_eq!(free(&[a, b, c], 2), 50);
        assert_eq!(free(&[a, b, c], 3), 40);
        assert_eq!(free(&[a, b], 2), 40, "the other is away");
        assert_eq!(free(&[room(Duty::Draining, 7)], 1), 7);
        let drained = [room(Duty::Draining, 100); 3];
        assert_eq!(free(&[&[room(Duty::In, 100)][..], &drained].concat(), 2), 100, "it is in all");
        assert_eq!(free(&[&[room(Duty::In, 500)][..], &drained].concat(), 2), 300);
        assert_eq!(free(&drained, 2), 150);
    }

    #[test]
    fn a_full_server_takes_nothing_unless_it_is_in_all_chains() {
        let (a, c) = (room(Duty::In, 100), room(Duty::Draining, 80));
        let full = Room { duty: Duty::In, full: true, bytes: 1 };
        assert_eq!(free(&[a, full, c], 2), 80);
        assert_eq!(free(&[a, full, a], 2), 100);
        assert_eq!(free(&[a, full], 2), 1);
        assert_eq!(free(&[full], 1), 1);
        assert_eq!(free(&[], 1), 0);
    }

    #[test]
    fn each_copy_is_on_another_server() {
        assert_eq!(fits(vec![], 2), 0);
        assert_eq!(fits(vec![10, 20, 30], 1), 60);
        assert_eq!(fits(vec![10, 10, 10], 3), 10);
        assert_eq!(fits(vec![1000, 1000, 10], 3), 10, "the smallest is full first");
        assert_eq!(fits(vec![1000, 10, 10], 2), 20);
        assert_eq!(fits(vec![30, 20, 10], 2), 30);
        assert_eq!(fits(vec![40, 20, 10], 2), 30);
        assert_eq!(fits(vec![0, 50, 50], 2), 50);
        assert_eq!(fits(vec![0, 50, 50], 3), 0);
        assert_eq!(fits(vec![7], 3), 7, "fewer servers than copies");
        assert_eq!(fits(vec![u64::MAX, u64::MAX], 2), u64::MAX);
    }
}
