//! Giving up a data server that is lost for good.

use std::collections::BTreeMap;
use std::time::Duration;

use netfs_common::id::{GroupId, ServerId, Version};
use netfs_common::wire::audit::{AuditOp, AuditReply};
use netfs_common::wire::data::Reply;
use netfs_common::wire::operator::Outcome;

use super::Cluster;
use crate::meta::cluster::{Command, Loss};

/// Servers have this long to say what they have. One that does not is not chosen.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a server has of a group: chunks, and the version of the one that was changed last. The more the better.
type Holding = (u64, Version);

impl Cluster {
    /// Gives up a server, or says what that would mean.
    pub(super) async fn give_up(
        &self,
        server: ServerId,
        with: Option<ServerId>,
        lose_data: bool,
    ) -> Outcome {
        let loss = match self.with(|manager, now| manager.loss(now, server)) {
            Ok(loss) => loss,
            Err(error) => return Outcome::Refused(error.to_string()),
        };
        if let Some(with) = with
            && !self.present().contains_key(&with)
        {
            return Outcome::Refused(format!("data server {with} is not there"));
        }
        let held = match loss.lost.is_empty() {
            true => BTreeMap::new(),
            false => self.holdings(server).await,
        };
        let mut heirs = BTreeMap::new();
        let (mut older, mut empty) = (0, 0);
        for group in &loss.lost {
            let having = held.get(group).into_iter().flatten();
            let mut able = having.filter(|(id, _)| with.is_none_or(|with| with == **id));
            let first = able.next();
            let best = able.fold(first, |best, next| match best {
                Some((_, most)) if most >= next.1 => best,
                _ => Some(next),
            });
            match best {
                Some(_) => older += 1,
                None => empty += 1,
            }
            let heir = best.map(|(id, _)| *id).or(with);
            heirs.extend(heir.map(|heir| (*group, heir)));
        }
        let meaning = meaning(server, &loss, older, empty);
        if !lose_data && !loss.lost.is_empty() {
            return Outcome::Refused(format!("{meaning}; nothing is done without --yes-lose-data"));
        }
        if !loss.lost.is_empty() {
            tracing::error!(%server, lost = loss.lost.len(), older, empty, "an operator gives up a data server: what only it had is lost");
        }
        let done = format!(
            "{meaning}. It is not waited for any more, and `netfs data remove {server}` forgets it. Compare metadata and data now: `netfs check --data`"
        );
        self.carry_out(Command::GiveUp(server, heirs), done).await
    }

    /// What other servers have of each group, if they say so in time.
    async fn holdings(&self, but: ServerId) -> BTreeMap<GroupId, BTreeMap<ServerId, Holding>> {
        let until = tokio::time::Instant::now() + PATIENCE;
        let mut held: BTreeMap<GroupId, BTreeMap<ServerId, Holding>> = BTreeMap::new();
        for id in self.present().into_keys().filter(|id| *id != but) {
            let Ok(Some(groups)) = tokio::time::timeout_at(until, self.holdings_of(id)).await
            else {
                tracing::warn!(server = %id, "a data server does not say in time what it has, and is not chosen to go on");
                continue;
            };
            for (group, holding) in groups {
                held.entry(group).or_default().insert(id, holding);
            }
        }
        held
    }

    async fn holdings_of(&self, server: ServerId) -> Option<Vec<(GroupId, Holding)>> {
        let (mut all, mut next) = (Vec::new(), Some(GroupId(0)));
        while let Some(from) = next {
            match self.ask(server, AuditOp::Holdings { from }).await? {
                Reply::Audited(AuditReply::Holdings { groups, next: more })
                    if more.is_none_or(|more| more > from) =>
                {
                    all.extend(groups.into_iter().map(|h| (h.group, (h.chunks, h.newest))));
                    next = more;
                }
                _ => return None,
            }
        }
        Some(all)
    }
}

fn meaning(server: ServerId, loss: &Loss, older: usize, empty: usize) -> String {
    let Loss { spared, lost } = loss;
    if lost.is_empty() {
        return format!(
            "data server {server} is given up; nothing is lost, since others have all that it had ({spared} placement groups)"
        );
    }
    format!(
        "of {} placement groups only data server {server} had everything, and THAT DATA IS LOST: {older} go on with what another \
         server has of them, in which the latest changes may be missing, and {empty} go on empty; {spared} others lose nothing",
        lost.len()
    )
}
