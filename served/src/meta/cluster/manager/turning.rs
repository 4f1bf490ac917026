//! Heads are given back.
//!
//! A server that was away comes back as the last replica of its groups, so after some failures one server would be the head of all, order
//! all changes and send each of them to the others. When the replicas of a group are those that it is to have and nothing has happened to it for a
//! while, the one becomes the head that placement names first. Nobody leaves the chain for it, and nobody needs to learn.
//!
//! # Why nothing is lost
//!
//! The head may have stored or passed on changes that others do not have, so the chain cannot just be turned: its old head would have something that is
//! in no other replica, under a version of its own. Therefore it is first asked to order nothing more in this epoch
//! ([`Manager::hand_overs`]), and says when all that it has ordered is stored by all. From then on, and as long as this epoch lasts, all replicas
//! have the same, so each may be before each other one in the next. Nothing of what was said holds in another epoch: if anything else
//! changes the chain meanwhile, the head of the new one orders changes as ever.
//!
//! A head that has stopped stays so for the epoch. So whenever one says that it has, there is another epoch, turned or not, also if this manager
//! has forgotten that it had asked for it. What clients want meanwhile waits at the old head until it is refused by the new epoch, and comes again.

use std::collections::BTreeMap;
use std::time::Duration;

use netfs_common::id::{Epoch, GroupId, ServerId};
use netfs_common::map::{Chain, Replica};

use super::Manager;

/// Groups of which the head changes at a time. Writes to them pause for a moment.
const AT_ONCE: usize = 8;

/// Groups with another head than they are to have.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Those that are at rest: since when, in which epoch.
    misled: BTreeMap<GroupId, (Epoch, Duration)>,
    /// Those whose head is asked to stop: in which epoch, and which it is.
    asked: BTreeMap<GroupId, (Epoch, ServerId)>,
}

impl Turns {
    pub(super) fn forget(&mut self) {
        *self = Turns::default();
    }
}

impl Manager {
    /// Which groups have another head than they are to have, and whose head is to stop.
    pub(super) fn plan_turns(&mut self, now: Duration) {
        let mut turns = std::mem::take(&mut self.turns);
        let mut misled = BTreeMap::new();
        for (group, _, chain) in self.state.groups() {
            if self.order(group, chain).is_none()
                || self.revoking.contains_key(&group)
                || !chain.replicas.iter().all(|replica| self.is_there(*replica, now))
            {
                continue;
            }
            let known = turns.misled.get(&group).filter(|(epoch, _)| *epoch == chain.epoch);
            misled.insert(group, known.copied().unwrap_or((chain.epoch, now)));
        }
        turns.misled = misled;
        let due = |group: &GroupId, epoch: Epoch| {
            turns.misled.get(group).is_some_and(|(of, since)| {
                *of == epoch && now.saturating_sub(*since) >= self.config.calm
            })
        };
        turns.asked.retain(|group, (epoch, _)| due(group, *epoch));
        for (group, _, chain) in self.state.groups() {
            if turns.asked.len() >= AT_ONCE {
                break;
            }
            if let Some(head) = chain.head()
                && due(&group, chain.epoch)
            {
                turns.asked.insert(group, (chain.epoch, head.server));
            }
        }
        self.turns = turns;
    }

    /// The replicas of a chain in the order of placement, if those are all that it is to have and another one is to be the head.
    fn order(&self, group: GroupId, chain: &Chain) -> Option<Vec<Replica>> {
        let wanted = self.wanted.groups.get(&group)?;
        let (head, first) = (chain.head()?, wanted.first()?);
        if head.server == *first || chain.learner.is_some() || chain.replicas.len() != wanted.len()
        {
            return None;
        }
        let of = |id: &ServerId| chain.replicas.iter().find(|r| r.server == *id).copied();
        wanted.iter().map(of).collect()
    }

    /// Groups in which a server is to order nothing more, because another one is to be the head.
    pub fn hand_overs(&self, server: ServerId) -> Vec<(GroupId, Epoch)> {
        let of_it = self.turns.asked.iter().filter(|(_, (_, head))| *head == server);
        of_it.map(|(group, (epoch, _))| (*group, *epoch)).collect()
    }

    /// How many groups are at rest with another head than they are to have.
    pub fn misled(&self) -> usize {
        self.turns.misled.len()
    }

    /// A head has stopped, and all replicas have the same.
    pub(super) fn turn(&mut self, group: GroupId, epoch: Epoch, stopped: Replica) {
        let asked = self.turns.asked.remove(&group).is_some_and(|(of, _)| of == epoch);
        let known = self.state.groups().find(|(of, ..)| *of == group);
        let order = known.filter(|_| asked).and_then(|(_, _, chain)| self.order(group, chain));
        let Some(chain) = self.chain(group) else { return };
        if chain.epoch != epoch || chain.head() != Some(stopped) {
            return;
        }
        if let Some(order) = order {
            chain.replicas = order;
        }
        chain.epoch.0 += 1;
    }
}
