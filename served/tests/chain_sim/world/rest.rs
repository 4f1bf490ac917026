//! What has to come to rest when nothing goes wrong any more, and whether it is as it must be then.

use super::*;

impl World {
    /// Nothing goes wrong any more.
    pub(super) fn heal(&mut self) {
        self.net.heal();
        for seat in self.seats.values_mut() {
            seat.paused_until = Duration::ZERO;
        }
        for server in &mut self.servers {
            (server.slow, server.failing) = (false, 0);
        }
        if self.rng.chance(250) {
            self.leave();
        }
        let known = self.brain.state().servers.keys().filter(|id| !self.away.contains(id));
        for node in known.map(|id| Node(id.0)).chain([MANAGER]).collect::<Vec<_>>() {
            self.schedule(self.now, Event::Start(node));
        }
    }

    /// Some servers are gone for longer than a lost one is waited for. Not where a server is needed that has lost something.
    fn leave(&mut self) {
        if self.is_doomed_needed() || self.servers.iter().any(|server| server.lacks) {
            return;
        }
        let servers = &self.brain.state().servers;
        let mut there: Vec<_> =
            servers.iter().filter(|(_, s)| s.duty == Duty::In).map(|(id, _)| *id).collect();
        let most = if there.len() < 5 { 1 } else { 2 };
        for _ in 0..1 + self.rng.below(most) {
            let id = there.swap_remove(self.rng.below(there.len()));
            if self.is_up(Node(id.0)) {
                self.kill(Node(id.0));
            }
            self.away.insert(id);
        }
    }

    /// Whether everything has come to rest.
    pub(super) fn check(&mut self) -> Result<bool, String> {
        self.lower_minimum();
        if !self.away.is_empty() {
            match self.lacking() {
                None => {
                    for id in std::mem::take(&mut self.away) {
                        self.schedule(self.now, Event::Start(Node(id.0)));
                    }
                    self.since = self.now;
                }
                Some(what) if self.now > self.since + ABSENCE => {
                    return Err(format!("redundancy is not restored: {what}"));
                }
                Some(_) => {}
            }
            return Ok(false);
        }
        match self.unsettled() {
            None => Ok(true),
            Some(what) if self.now > self.since + REST => {
                Err(format!("does not come to rest: {what}"))
            }
            Some(_) => Ok(false),
        }
    }

    /// Where there are fewer servers than writes wait for, an operator has them wait for fewer.
    fn lower_minimum(&mut self) {
        let state = self.brain.state();
        let there = state.servers.values().filter(|s| s.duty == Duty::In).count() as u8;
        let lower = state.pools.iter().find(|of| of.pool.min_replicas > there);
        if let Some(command) = lower.map(|of| Command::Replicas(0, of.replicas, there)) {
            self.with_brain(|brain, ctx| brain.command(ctx, command));
        }
    }

    /// A group that has fewer replicas that live than there could be. If none of it lives, it waits for one that is away.
    fn lacking(&self) -> Option<String> {
        let servers = self.brain.state().servers.iter();
        let there = servers.filter(|(id, s)| s.duty == Duty::In && self.is_up(Node(id.0))).count();
        let lives = |r: &&Replica| {
            let server = &self.servers[r.server.0 as usize - 1];
            self.is_up(server.node()) && server.instance == r.instance
        };
        self.brain.state().groups().find_map(|(group, replicas, chain)| {
            let living = chain.replicas.iter().filter(lives).count();
            let lacks = living > 0 && living < replicas.min(there);
            lacks.then(|| format!("group {group}: {chain:?}, {there} servers are there"))
        })
    }

    /// What is not at rest; and once everything is, whether all is as it must be.
    fn unsettled(&mut self) -> Option<String> {
        if let Some(what) = self.brain.unsettled(self.now) {
            return Some(what);
        }
        if !self.brain.is_idle() {
            return Some("a chunk is still to be removed".to_owned());
        }
        let version = self.brain.state().version;
        for client in &self.clients {
            if !client.is_idle() || client.version() != version {
                return Some(client.describe());
            }
        }
        for server in &self.servers {
            if self.is_up(server.node()) && !server.is_idle() {
                return Some(format!("server {} has something noted", server.id));
            }
        }
        self.compare();
        None
    }

    /// All replicas have what was written last.
    fn compare(&mut self) {
        for index in 0..self.groups.len() {
            let expected = self.oracle.latest(index);
            let chain = self.brain.map().chain(self.groups[index]).cloned();
            let mut first = None;
            for replica in chain.into_iter().flat_map(|chain| chain.replicas) {
                let store = &self.servers[replica.server.0 as usize - 1].store;
                let (cells, entry) = (store.cells(chunk(index)), store.get(chunk(index)));
                if cells != expected {
                    self.oracle.fail(format!(
                        "server {}: chunk {index} has {cells:?} in the end, {expected:?} was written (deleted: {})",
                        replica.server,
                        self.oracle.is_deleted(index),
                    ));
                }
                if *first.get_or_insert(entry) != entry {
                    self.oracle.fail(format!("replicas of chunk {index}: {first:?}, {entry:?}"));
                }
            }
        }
    }
}
