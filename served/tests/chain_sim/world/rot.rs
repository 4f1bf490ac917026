//! A disk that loses what had been flushed, and a server that an operator takes for lost.

use super::*;
use netfs_served::meta::cluster::Verdict;

impl World {
    /// The disk of a server that begins another life has lost something of that. Only where a replica is left that may have it, which no
    /// other trouble takes away: all of the chains in which the server still is have come to an end, so none of them gets shorter by counting on it.
    /// (As far as the metadata server has seen, which may be standing still.)
    pub(super) fn rot(&mut self, at: usize) {
        let id = self.servers[at].id;
        let dead = self.brain.verdict(id, self.now) == Some(Verdict::Dead);
        let asleep = self.seats.get(&MANAGER).is_none_or(|seat| seat.paused_until > self.now);
        let others_lack = self.servers.iter().any(|server| server.lacks && server.id != id);
        if !dead || asleep || others_lack || !self.rng.chance(700) {
            return;
        }
        let may_have_it = |r: &Replica| r.server != id && self.doomed != Some(*r);
        let mut chains = self.brain.state().groups().map(|(_, _, chain)| chain);
        let spare = chains.all(|chain| !chain.has(id) || chain.replicas.iter().any(may_have_it));
        if spare {
            let seed = self.rng.below(1 << 16);
            self.servers[at].store.rot(seed);
            self.servers[at].lacks = true;
        }
    }

    /// An operator gives up a server that is silent, after having heard that nothing is lost with it. It may come back nevertheless. No operator
    /// does so while he hears of a disk that has lost something.
    pub(super) fn give_up(&mut self) {
        if self.servers.iter().any(|server| server.lacks) {
            return;
        }
        self.with_brain(|brain, ctx| {
            let silent = brain.with(ctx, |manager, now| {
                let costs_nothing = |id: &ServerId| {
                    manager.loss(now, *id).is_ok_and(|loss| loss.spared > 0 && loss.lost.is_empty())
                };
                manager.state().servers.keys().copied().find(costs_nothing)
            });
            if let Some(Some(id)) = silent {
                brain.command(ctx, Command::GiveUp(id, BTreeMap::new()));
            }
        });
    }
}
