//! Making durable what was acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use netfs_common::errno::Errno;
use netfs_common::id::{Epoch, GroupId, ServerId, Verifier};
use netfs_common::wire::data::{MAX_FLUSHED, Op, Reply};

use super::calls::{Basis, Call, Outcome};
use super::together::Together;
use super::{Bulk, PAUSE};
use crate::insight::{Wait, waiting};

/// What became of some groups.
enum Part {
    Flushed(Vec<(GroupId, Verifier)>),
    /// To be asked again, after such a pause at most.
    Again(Vec<GroupId>, Duration),
    Failed(Errno),
}

impl Bulk {
    /// Makes everything durable that was acknowledged in these groups. `flushed` is told the verifiers under which it
    /// was, as they come: one chain that is without a server does not hold up the others.
    ///
    /// # Errors
    /// The first of the servers', when all have answered; `EIO` once stopped.
    pub async fn flush(
        &self,
        groups: BTreeSet<GroupId>,
        flushed: impl FnMut(&[(GroupId, Verifier)]),
    ) -> Result<(), Errno> {
        waiting(Wait::Data, self.flush_until_done(groups, flushed)).await
    }

    async fn flush_until_done(
        &self,
        groups: BTreeSet<GroupId>,
        mut flushed: impl FnMut(&[(GroupId, Verifier)]),
    ) -> Result<(), Errno> {
        let mut parts = Together::new();
        let mut outcome = Ok(());
        self.add_parts(groups, PAUSE.0, &mut parts)?;
        while let Some(part) = parts.next().await {
            match part? {
                Part::Flushed(verifiers) => flushed(&verifiers),
                Part::Again(groups, pause) => self.add_parts(groups, pause, &mut parts)?,
                Part::Failed(e) => outcome = outcome.and(Err(e)),
            }
        }
        outcome
    }

    /// Asks about groups by the present map: with one call to each head, and one for each group that has too few replicas: it waits until there
    /// are more, and the others do not.
    fn add_parts<'a>(
        &'a self,
        groups: impl IntoIterator<Item = GroupId>,
        pause: Duration,
        parts: &mut Together<'a, Result<Part, Errno>>,
    ) -> Result<(), Errno> {
        let map = self.map();
        let mut by_head: BTreeMap<Option<ServerId>, Vec<(GroupId, Epoch)>> = BTreeMap::new();
        for group in groups {
            let chain = map.chain(group).ok_or(Errno::EIO)?;
            let least = map.pool_of(group).map_or(0, |pool| usize::from(pool.min_replicas));
            let head = chain.head().map(|head| head.server);
            match chain.replicas.len() < least {
                true => {
                    parts.add(self.flush_part(head, vec![(group, chain.epoch)], map.version, pause))
                }
                false => by_head.entry(head).or_default().push((group, chain.epoch)),
            }
        }
        for (head, groups) in by_head {
            for groups in groups.chunks(MAX_FLUSHED) {
                parts.add(self.flush_part(head, groups.to_vec(), map.version, pause));
            }
        }
        Ok(())
    }

    async fn flush_part(
        &self,
        head: Option<ServerId>,
        groups: Vec<(GroupId, Epoch)>,
        version: Epoch,
        mut pause: Duration,
    ) -> Result<Part, Errno> {
        let names = groups.iter().map(|(group, _)| *group);
        if let Some(head) = head {
            let op = Op::Flush { groups: groups.clone() };
            let basis = Basis::Groups(groups.clone());
            let call = Call { within: None, basis, op, payload: Bytes::new() };
            match self.call(head, &call).await? {
                Outcome::Moved => return Ok(Part::Again(names.collect(), PAUSE.0)),
                Outcome::Answered(reply) => match reply {
                    Reply::Flushed { verifiers } if verifiers.len() == groups.len() => {
                        return Ok(Part::Flushed(names.zip(verifiers).collect()));
                    }
                    Reply::StaleEpoch(_) | Reply::Busy => {}
                    Reply::Failed(e) => return Ok(Part::Failed(e)),
                    _ => return Ok(Part::Failed(Errno::EPROTO)),
                },
            }
        }
        self.pause(None, version, &mut pause).await?;
        Ok(Part::Again(names.collect(), pause))
    }
}
