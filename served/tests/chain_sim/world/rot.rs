//! A disk that loses what had been flushed.

use super::*;
use netfs_served::meta::cluster::Verdict;

impl World {
    /// The disk of a server that begins another life has lost something of that. Only where a replica is left that may have it, which no
    /// other trouble takes away: all of the chains in which the server still is have come to an end, so none of them gets shorter by counting on it.
    /// (After the metadata server has stood still it would, for a deadline: nobody is blamed for silence then. So it does not until the server has
    /// learnt what it lacks, nor just now.)
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
}
