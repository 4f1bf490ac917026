//! What goes wrong, and what operators do.

use super::*;

impl World {
    pub(super) fn some_server(&mut self) -> Option<usize> {
        let known = &self.brain.state().servers;
        let up = |s: &&Server| self.is_up(s.node()) && known.contains_key(&s.id);
        let up: Vec<_> = self.servers.iter().filter(up).map(|s| s.id.0 as usize - 1).collect();
        (!up.is_empty()).then(|| up[self.rng.below(up.len())])
    }

    fn stop_server(&mut self, at: usize, power: bool) {
        let node = self.servers[at].node();
        if self.rng.chance(500) {
            self.with_server(at, |server, ctx| server.spill(ctx));
        }
        self.kill(node);
        if power {
            self.servers[at].store.lose_power();
        }
        let (shortest, longest) = match () {
            () if self.rng.chance(self.temper.absent) => (REPAIR_AFTER, REPAIR_AFTER * 4),
            () if self.rng.chance(300) => (MS, MS * 700),
            () => (MS, MS * 60),
        };
        let back = self.now + self.rng.time(shortest, longest);
        self.schedule(back, Event::Start(node));
    }

    /// Whether a chain counts on a server whose store was taken away.
    pub(super) fn is_doomed_needed(&self) -> bool {
        let mut chains = self.brain.state().groups().map(|(_, _, chain)| chain);
        self.doomed.is_some_and(|doomed| chains.any(|chain| chain.replicas.contains(&doomed)))
    }

    pub(super) fn trouble(&mut self) {
        if self.is_doomed_needed() {
            return;
        }
        let total: u64 = self.temper.weights.iter().sum();
        let mut left = self.rng.below(total as usize) as u64;
        let mut kind = 0;
        while kind + 1 < KINDS && left >= self.temper.weights[kind] {
            left -= self.temper.weights[kind];
            kind += 1;
        }
        let Some(at) = self.some_server() else { return };
        if let Some(history) = &mut self.history {
            history.push(format!(
                "{:>9.3} trouble {kind} at {}",
                self.now.as_secs_f64() * 1e3,
                at + 1
            ));
        }
        match kind {
            0 => self.stop_server(at, false),
            1 => self.stop_server(at, true),
            2 => {
                // Several at once.
                let power = self.rng.chance(500);
                for _ in 0..2 + self.rng.below(3) {
                    if let Some(at) = self.some_server() {
                        self.stop_server(at, power);
                    }
                }
            }
            3 => self.pause(Node(at as u32 + 1)),
            4 => {
                let node = match self.rng.below(3) {
                    0 => MANAGER,
                    _ => Node(CLIENTS + self.rng.below(self.clients.len()) as u32),
                };
                self.pause(node);
            }
            5 => {
                self.servers[at].slow = true;
                self.well(at, 1500);
            }
            6 => {
                self.servers[at].failing = [100, 500, 1000][self.rng.below(3)];
                self.well(at, 400);
            }
            7 | 8 => self.partition(at, kind == 8),
            9 => self.destroy(at),
            10 => {
                self.kill(MANAGER);
                self.brain.stop();
                let back = self.now + self.rng.time(MS, MS * 300);
                self.schedule(back, Event::Start(MANAGER));
            }
            11 => self.operate(at),
            12 => {
                let at = self.rng.below(self.clients.len());
                if let Some(index) = self.with_client(at, Client::close) {
                    self.brain.remove(chunk(index), self.groups[index]);
                }
            }
            13 => {
                let (from, count) = (self.rng.below(self.clients.len()), self.clients.len());
                let to = (from + 1 + self.rng.below(count - 1)) % count;
                if let Some((index, session)) = self.with_client(from, Client::lose) {
                    self.brain.hand(chunk(index), self.groups[index], session, to);
                }
            }
            _ => self.with_server(at, |server, ctx| server.spill(ctx)),
        }
    }

    fn pause(&mut self, node: Node) {
        let longest = if self.rng.chance(500) { MS * 700 } else { MS * 100 };
        let until = self.now + self.rng.time(MS * 5, longest);
        if let Some(seat) = self.seats.get_mut(&node) {
            seat.paused_until = until;
        }
    }

    fn well(&mut self, at: usize, longest: u32) {
        let when = self.now + self.rng.time(MS * 20, MS * longest);
        let id = self.servers[at].id;
        self.schedule(when, Event::Well(id));
    }

    /// Cuts a server off from some, one way or both.
    fn partition(&mut self, at: usize, manager: bool) {
        let node = self.servers[at].node();
        let until = self.now + self.rng.time(MS * 30, MS * 900);
        let (to, from) = [(true, true), (true, false), (false, true)][self.rng.below(3)];
        let spared = if manager { 1000 } else { 500 };
        for other in self.seats.keys().copied().collect::<Vec<_>>() {
            let cut = match other {
                MANAGER if manager => true,
                _ => !self.rng.chance(spared),
            };
            if other == node || !cut {
                continue;
            }
            if to {
                self.net.cut(node, other, until);
            }
            if from {
                self.net.cut(other, node, until);
            }
        }
    }

    /// Takes a server's store away, unless others need it.
    fn destroy(&mut self, at: usize) {
        let id = self.servers[at].id;
        let lives = |r: &Replica| {
            let other = &self.servers[r.server.0 as usize - 1];
            r.server != id && self.is_up(other.node()) && other.instance == r.instance
        };
        let asleep = self.seats.values().any(|seat| seat.paused_until > self.now);
        if asleep || self.net.is_cut_anywhere(self.now) || !self.brain.is_steady() {
            return;
        }
        let spare = self.brain.state().groups().all(|(_, _, chain)| {
            !chain.replicas.iter().any(|r| r.server == id) || chain.replicas.iter().any(lives)
        });
        if !spare || self.servers.iter().any(|server| server.is_in_doubt(self.now)) {
            return;
        }
        self.stop_server(at, true);
        let server = &mut self.servers[at];
        self.doomed = Some(Replica { server: id, instance: server.instance });
        (server.store, server.fenced) = Default::default();
        server.store_id = StoreId(std::array::from_fn(|i| server.store_id.0[i].wrapping_add(16)));
    }

    /// An operator does something.
    fn operate(&mut self, at: usize) {
        let id = self.servers[at].id;
        let servers = &self.brain.state().servers;
        let there = servers.values().filter(|server| server.duty == Duty::In).count();
        let drained = servers.iter().find(|(_, server)| server.duty == Duty::Draining);
        let drained = drained.map(|(id, server)| (*id, server.addrs.clone()));
        match self.rng.below(6) {
            5 => self.give_up(),
            0 if there > 2 => {
                self.with_brain(|brain, ctx| brain.command(ctx, Command::Drain(id)));
            }
            1 if self.servers.len() < MOST_SERVERS && self.brain.is_up() => self.add_server(),
            2 => {
                if let Some((_, addrs)) = drained {
                    self.with_brain(|brain, ctx| brain.command(ctx, Command::Add(addrs)));
                }
            }
            3 => {
                if let Some((id, _)) = drained
                    && self.with_brain(|brain, ctx| brain.command(ctx, Command::Remove(id)))
                {
                    self.kill(Node(id.0));
                }
            }
            _ => {
                let most = if self.servers.len() < 5 { 3 } else { 5 };
                let replicas = 1 + self.rng.below(most) as u8;
                let min = some_minimum(&mut self.rng, replicas);
                let command = Command::Replicas(0, replicas, min);
                self.with_brain(|brain, ctx| brain.command(ctx, command));
            }
        }
    }
}
