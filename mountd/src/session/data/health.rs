//! What is known of the servers from what they have answered: how fast they are, and which of them are better avoided.
//!
//! Plain state: it is told what happens and when.

use std::collections::HashMap;
use std::time::Duration;

use netfs_common::id::{ChunkId, InstanceId, ServerId};
use netfs_common::map::mix;
use tokio::time::Instant;

/// Another replica is asked when one has not answered after so long, at least and at most.
const DELAY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
/// The same before anything is known of the server.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// A server that has failed is not asked first for so long.
const AVOIDED_FOR: Duration = Duration::from_secs(5);

/// How long a server takes, as a sender of TCP estimates it (RFC 6298, section 2).
#[derive(Clone, Copy, Debug, Default)]
struct Latency {
    /// The smoothed time and its variation.
    known: Option<(Duration, Duration)>,
}

impl Latency {
    fn sample(&mut self, took: Duration) {
        self.known = Some(match self.known {
            None => (took, took / 2),
            Some((smoothed, variation)) => {
                let off = smoothed.abs_diff(took);
                ((smoothed * 7 + took) / 8, (variation * 3 + off) / 4)
            }
        });
    }

    fn delay(&self) -> Duration {
        self.known.map_or(FIRST_DELAY, |(s, v)| (s + v * 4).clamp(DELAY.0, DELAY.1))
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Known {
    latency: Latency,
    avoided: Option<Instant>,
}

/// All servers.
#[derive(Debug, Default)]
pub(super) struct Health {
    known: HashMap<ServerId, Known>,
}

impl Health {
    /// Forgets servers.
    pub(super) fn retain(&mut self, mut stays: impl FnMut(ServerId) -> bool) {
        self.known.retain(|id, _| stays(*id));
    }

    fn of(&mut self, server: ServerId) -> &mut Known {
        self.known.entry(server).or_default()
    }

    /// A server has answered a read, which took so long, if that says something of it.
    pub(super) fn answered(&mut self, server: ServerId, took: Option<Duration>) {
        let known = self.of(server);
        known.avoided = None;
        if let Some(took) = took {
            known.latency.sample(took);
        }
    }

    /// A server was not used, because another one was faster: it has taken so long at least.
    pub(super) fn was_late(&mut self, server: ServerId, at_least: Duration, now: Instant) {
        self.of(server).latency.sample(at_least);
        self.failed(server, now);
    }

    /// A server could not be asked, or could not tell.
    pub(super) fn failed(&mut self, server: ServerId, now: Instant) {
        self.of(server).avoided = Some(now + AVOIDED_FOR);
    }

    /// For how long a server is waited for before another one is asked too.
    pub(super) fn delay(&self, server: ServerId) -> Duration {
        self.known.get(&server).map_or(FIRST_DELAY, |known| known.latency.delay())
    }

    /// The order in which replicas are asked. Chunks and clients are spread over them, but the same client asks the same one
    /// for the same chunk, as long as it works: there it is in memory. One that was avoided is tried by one read at a time.
    pub(super) fn order(
        &mut self,
        client: InstanceId,
        chunk: ChunkId,
        replicas: impl IntoIterator<Item = ServerId>,
        now: Instant,
    ) -> Vec<ServerId> {
        let chunk = mix(mix(chunk.ino.0) ^ u64::from(chunk.generation)) ^ mix(chunk.index);
        // By the highest weight, so that a chain that changes leaves most of it as it was.
        let weight = |server: ServerId| mix(mix(client.0 ^ chunk) ^ u64::from(server.0));
        let mut order: Vec<ServerId> = replicas.into_iter().collect();
        let avoided = |health: &Health, server: &ServerId| {
            let known = health.known.get(server).and_then(|known| known.avoided);
            known.is_some_and(|until| now < until)
        };
        order.sort_by_key(|server| (avoided(self, server), std::cmp::Reverse(weight(*server))));
        if order.len() > 1
            && let Some(known) = order.first().and_then(|first| self.known.get_mut(first))
            && known.avoided.is_some_and(|until| until <= now)
        {
            known.avoided = Some(now + AVOIDED_FOR);
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use netfs_common::id::Ino;

    use super::*;

    const ONE: ServerId = ServerId(1);
    const TWO: ServerId = ServerId(2);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn chunk(index: u64) -> ChunkId {
        ChunkId { ino: Ino(77), generation: 1, index }
    }

    #[test]
    fn the_delay_follows_what_a_server_takes_within_bounds() {
        let mut health = Health::default();
        assert_eq!(health.delay(ONE), ms(100));
        health.answered(ONE, Some(ms(1)));
        assert_eq!(health.delay(ONE), ms(50));
        health.answered(TWO, Some(ms(60)));
        assert_eq!(health.delay(TWO), ms(180), "60 + 4 * 30");
        health.answered(TWO, Some(ms(68)));
        // (7 * 60 + 68) / 8 + 4 * (3 * 30 + 8) / 4
        assert_eq!(health.delay(TWO), ms(159));
        health.answered(TWO, None);
        assert_eq!(health.delay(TWO), ms(159));
        (0..50).for_each(|_| health.answered(TWO, Some(ms(9000))));
        assert_eq!(health.delay(TWO), ms(500));
        (0..200).for_each(|_| health.answered(TWO, Some(ms(2))));
        assert_eq!(health.delay(TWO), ms(50));
        health.retain(|id| id != TWO);
        assert_eq!(health.delay(TWO), ms(100));
    }

    #[test]
    fn chunks_and_clients_are_spread_but_each_comes_to_the_same_again() {
        let (mut health, now) = (Health::default(), Instant::now());
        let replicas = [ONE, TWO, ServerId(3)];
        let mut firsts = HashMap::new();
        for index in 0..300 {
            let order = health.order(InstanceId(5), chunk(index), replicas, now);
            assert_eq!(order, health.order(InstanceId(5), chunk(index), replicas, now));
            let fewer: Vec<_> = order[1..].to_vec();
            assert_eq!(fewer, health.order(InstanceId(5), chunk(index), fewer.clone(), now));
            *firsts.entry(order[0]).or_insert(0) += 1;
        }
        assert!(firsts.len() == 3 && firsts.values().all(|n| *n > 70), "{firsts:?}");
        let by_client: std::collections::HashSet<_> = (0..30)
            .map(|client| health.order(InstanceId(client), chunk(0), replicas, now)[0])
            .collect();
        assert_eq!(by_client.len(), 3);
    }

    #[test]
    fn one_that_failed_is_avoided_until_it_answers_or_a_read_tries_it() {
        let (mut health, now) = (Health::default(), Instant::now());
        let first =
            |health: &mut Health, now| health.order(InstanceId(1), chunk(1), [ONE, TWO], now)[0];
        let favourite = first(&mut health, now);
        let other = if favourite == ONE { TWO } else { ONE };
        health.failed(favourite, now);
        assert_eq!(first(&mut health, now), other);
        health.answered(favourite, None);
        assert_eq!(first(&mut health, now), favourite);
        health.was_late(favourite, ms(70), now);
        assert_eq!(first(&mut health, now + ms(4999)), other);
        assert_eq!(first(&mut health, now + ms(5000)), favourite, "a try");
        assert_eq!(first(&mut health, now + ms(5001)), other, "one at a time");
        health.failed(other, now + ms(5001));
        assert_eq!(first(&mut health, now + ms(5002)), favourite, "all are avoided");
    }
}
