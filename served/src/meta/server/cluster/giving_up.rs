//! Giving up a data server that is lost for good.
//!
//! Groups that only it had go on with another server. Before they do, that server takes over what its object store has of them ([`AuditOp::Seed`]): once a
//! group goes on, what is not there is a hole, and objects that nobody needs are removed from the bucket. If the object store cannot be read,
//! nothing is given up.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use netfs_common::id::{Epoch, GroupId, ServerId, Version};
use netfs_common::map::Replica;
use netfs_common::wire::audit::{AuditOp, AuditReply, Seeded, Unseeded};
use netfs_common::wire::data::Reply;
use netfs_common::wire::operator::Outcome;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Cluster;
use crate::meta::cluster::{Command, Loss};

/// Servers have this long to say what they have.
const PATIENCE: Duration = Duration::from_secs(60);
/// An operator is told after this time how far it is.
const HOLD: Duration = Duration::from_secs(6);
/// Whoever has gone away meanwhile is told for so long that it is done.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Groups that are taken over from the object store at a time.
const GROUPS: usize = 8;
/// A server that cannot answer at the moment is asked so often, at the next news each.
const TRIES: usize = 100;

/// What a server has of a group: chunks, and the version of the one that was changed last. The more the better.
type Holding = (u64, Version);

/// What an operator wants to be given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wish {
    server: ServerId,
    with: Option<ServerId>,
    lose_data: bool,
}

/// A server that is being given up. It goes on to its end, whoever waits for that.
#[derive(Clone, Debug)]
pub(super) struct GivingUp {
    wish: Wish,
    /// Chunks found in the object store.
    found: Arc<AtomicU64>,
    outcome: watch::Receiver<Option<(Instant, Outcome)>>,
}

/// What came from object stores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct FromStore {
    seeded: Seeded,
    /// Groups whose new servers have one.
    groups: usize,
}

impl Cluster {
    /// Gives up a server, or says what that would mean.
    pub(super) async fn give_up(
        self: &Arc<Self>,
        server: ServerId,
        with: Option<ServerId>,
        lose_data: bool,
    ) -> Outcome {
        let wish = Wish { server, with, lose_data };
        let GivingUp { found, mut outcome, .. } = match self.begin_giving_up(wish) {
            Ok(begun) => begun,
            Err(outcome) => return outcome,
        };
        let over = tokio::time::timeout(HOLD, outcome.wait_for(Option::is_some)).await;
        let ended = match over {
            Ok(Ok(outcome)) => outcome.clone().map(|(_, outcome)| outcome),
            Ok(Err(_)) => None,
            Err(_) => {
                let found = found.load(Ordering::Relaxed);
                return Outcome::Underway(format!(
                    "data server {server} is being given up: {found} chunks were found in the object store so far"
                ));
            }
        };
        let mut going = self.giving_up.lock().unwrap_or_else(PoisonError::into_inner);
        going.take_if(|going| going.wish == wish);
        ended.unwrap_or_else(|| {
            Outcome::Refused("it has ended early; the server's log may say why".into())
        })
    }

    /// Begins, unless it has begun.
    fn begin_giving_up(self: &Arc<Self>, wish: Wish) -> Result<GivingUp, Outcome> {
        let mut going = self.giving_up.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*going {
            let (ended, done) = match &*known.outcome.borrow() {
                None => (known.outcome.has_changed().is_err(), false),
                Some((at, outcome)) => {
                    let lately = at.elapsed() < REMEMBERED;
                    (true, lately && matches!(outcome, Outcome::Done(_)))
                }
            };
            if known.wish == wish && (!ended || done) {
                return Ok(known.clone());
            }
            if !ended {
                let why = format!("data server {} is being given up", known.wish.server);
                return Err(Outcome::Refused(why));
            }
        }
        let (tell, outcome) = watch::channel(None);
        let found = Arc::new(AtomicU64::new(0));
        let (this, counted) = (self.clone(), found.clone());
        let task = tokio::spawn(async move {
            let outcome = this.try_give_up(wish, &counted).await;
            tell.send_replace(Some((Instant::now(), outcome)));
        });
        self.roster().add_task(task.abort_handle());
        let begun = GivingUp { wish, found, outcome };
        *going = Some(begun.clone());
        Ok(begun)
    }

    async fn try_give_up(self: &Arc<Self>, wish: Wish, found: &Arc<AtomicU64>) -> Outcome {
        let Wish { server, with, lose_data } = wish;
        let loss = match self.with(|manager, now| manager.loss(now, server)) {
            Ok(loss) => loss,
            Err(error) => return Outcome::Refused(error.to_string()),
        };
        if let Some(with) = with
            && !self.present().contains_key(&with)
        {
            return Outcome::Refused(format!("data server {with} is not there"));
        }
        let (held, mut unheard) = match loss.lost.is_empty() {
            true => Default::default(),
            false => self.holdings(server).await,
        };
        // Who has another store than it had takes no part in anything yet, and is not known to have anything.
        self.with(|manager, _| unheard.retain(|id| !manager.is_foreign(*id)));
        if with.is_none() && !unheard.is_empty() {
            return Outcome::Refused(format!(
                "data server {} does not say what it has, and may have a copy; nothing is given up. Say it again later, or name the one that goes on with --with",
                list(&unheard)
            ));
        }
        let mut heirs = BTreeMap::new();
        let (mut older, mut empty) = (0, 0);
        for group in &loss.lost {
            let having = held.get(group).into_iter().flatten();
            let best = best(having.filter(|(id, _)| with.is_none_or(|with| with == **id)));
            match best {
                Some(_) => older += 1,
                None => empty += 1,
            }
            let heir = best.or(with);
            heirs.extend(heir.map(|heir| (*group, heir)));
        }
        let meaning = meaning(server, &loss, older, empty);
        if !lose_data && !loss.lost.is_empty() {
            let first = match self.has_stores() {
                true => ". What their object store has of them is taken from there first",
                false => "",
            };
            return Outcome::Refused(format!(
                "{meaning}{first}; nothing is done without --yes-lose-data"
            ));
        }
        // Who it is must not change any more: they learn what they are to go on with.
        let named = match self.with(|manager, now| manager.heirs(now, server, &heirs)) {
            Ok(named) => named,
            Err(error) => return Outcome::Refused(error.to_string()),
        };
        let came = match self.seed_all(&named, found).await {
            Ok(came) => came,
            Err(why) => {
                return Outcome::Refused(format!(
                    "{why}; nothing is given up, since what is there and nowhere else would be lost"
                ));
            }
        };
        let heirs = named.iter().map(|(group, heir)| (*group, heir.server)).collect();
        let same = self.with(|manager, now| manager.heirs(now, server, &heirs)).ok();
        if same.as_ref() != Some(&named) {
            return Outcome::Refused("a data server has restarted meanwhile; say it again".into());
        }
        if !loss.lost.is_empty() {
            tracing::error!(%server, lost = loss.lost.len(), older, empty, ?came, "an operator gives up a data server: what only it had is lost");
        }
        let came = told(&came);
        let done = format!(
            "{meaning}{came}. It is not waited for any more, and `netfs data remove {server}` forgets it. Compare metadata and data now: `netfs check --data`"
        );
        self.carry_out(Command::GiveUp(server, heirs), done).await
    }

    /// Whether any server that is there has an object store.
    fn has_stores(&self) -> bool {
        let present = self.present();
        let core = self.lock();
        core.figures.iter().any(|(id, figures)| present.contains_key(id) && figures.tier.is_some())
    }

    /// Has servers take over what their object store has of the groups with which they are to go on.
    async fn seed_all(
        self: &Arc<Self>,
        heirs: &BTreeMap<GroupId, Replica>,
        found: &Arc<AtomicU64>,
    ) -> Result<FromStore, String> {
        let (mut came, mut running) = (FromStore::default(), JoinSet::new());
        let mut left = heirs.iter();
        loop {
            while running.len() < GROUPS
                && let Some((group, heir)) = left.next()
            {
                let (this, found) = (self.clone(), found.clone());
                let (group, server) = (*group, heir.server);
                running.spawn(async move { this.seed(group, server, &found).await });
            }
            let Some(done) = running.join_next().await else { return Ok(came) };
            // The others end with the set.
            let done = done.map_err(|_| "it has ended early".to_owned())??;
            if let Some(seeded) = done {
                came.groups += 1;
                came.seeded.chunks += seeded.chunks;
                came.seeded.bytes += seeded.bytes;
                came.seeded.kept += seeded.kept;
                came.seeded.bad += seeded.bad;
            }
        }
    }

    /// Has a server take over what its object store has of a group; `None`: it has none, and neither has any other.
    async fn seed(
        &self,
        group: GroupId,
        server: ServerId,
        found: &AtomicU64,
    ) -> Result<Option<Seeded>, String> {
        let (mut sum, mut after, mut tries) = (Seeded::default(), None, 0);
        let mut events = self.events();
        loop {
            let epoch = self.published().map.chain(group).map_or(Epoch(0), |chain| chain.epoch);
            match self.ask(server, AuditOp::Seed { group, epoch, after }).await {
                Some(Reply::Audited(AuditReply::Seeded { seeded, next }))
                    if next.is_none() || next > after =>
                {
                    sum.chunks += seeded.chunks;
                    sum.bytes += seeded.bytes;
                    sum.kept += seeded.kept;
                    sum.bad += seeded.bad;
                    found.fetch_add(seeded.chunks, Ordering::Relaxed);
                    if next.is_none() {
                        return Ok(Some(sum));
                    }
                    after = next;
                }
                Some(Reply::Audited(AuditReply::NotSeeded(Unseeded::NoStore))) => {
                    return match self.has_stores() {
                        true => Err(format!(
                            "data server {server} has no section [tier], and others have: it cannot take over what their object store has. Name another server with --with"
                        )),
                        false => Ok(None),
                    };
                }
                Some(Reply::Audited(AuditReply::NotSeeded(Unseeded::Trouble(why)))) => {
                    return Err(format!(
                        "the object store of data server {server} cannot be read: {why}"
                    ));
                }
                // It may not have heard of the latest map.
                Some(Reply::StaleEpoch(_) | Reply::Busy) if tries < TRIES => {
                    tries += 1;
                    if events.changed().await.is_err() {
                        return Err("the metadata server ends".into());
                    }
                }
                answer => {
                    tracing::warn!(%server, %group, ?answer, "a data server does not take over what its object store has");
                    return Err(format!(
                        "data server {server} does not say what its object store has; its log may say why"
                    ));
                }
            }
        }
    }

    /// What other servers have of each group, and who does not say so.
    async fn holdings(
        self: &Arc<Self>,
        but: ServerId,
    ) -> (BTreeMap<GroupId, BTreeMap<ServerId, Holding>>, BTreeSet<ServerId>) {
        let mut asked = JoinSet::new();
        for id in self.present().into_keys().filter(|id| *id != but) {
            let this = self.clone();
            asked.spawn(async move {
                let answer = tokio::time::timeout(PATIENCE, this.holdings_of(id)).await;
                (id, answer.ok().flatten())
            });
        }
        let mut held: BTreeMap<GroupId, BTreeMap<ServerId, Holding>> = BTreeMap::new();
        let mut unheard = BTreeSet::new();
        for (id, groups) in asked.join_all().await {
            if groups.is_none() {
                unheard.insert(id);
            }
            for (group, holding) in groups.into_iter().flatten() {
                held.entry(group).or_default().insert(id, holding);
            }
        }
        (held, unheard)
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

/// Who goes on with a group: of those that have a good part of what anybody has, the one that was written last. An old copy may have more than
/// one that was written until now, and a copy that was just begun less.
fn best<'a>(having: impl Iterator<Item = (&'a ServerId, &'a Holding)>) -> Option<ServerId> {
    let all: Vec<_> = having.collect();
    let most = all.iter().map(|(_, (chunks, _))| *chunks).max()?;
    let able = all.into_iter().filter(|(_, (chunks, _))| chunks.saturating_mul(2) >= most);
    able.max_by_key(|(id, (chunks, newest))| (*newest, *chunks, Reverse(**id))).map(|(id, _)| *id)
}

fn list(servers: &BTreeSet<ServerId>) -> String {
    servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn meaning(server: ServerId, loss: &Loss, older: usize, empty: usize) -> String {
    let Loss { spared, lost, awaited } = loss;
    let waits = match awaited.is_empty() {
        true => String::new(),
        false => format!(
            "; some of them wait for data server {}, which is away too and alone has what they need",
            list(awaited)
        ),
    };
    if lost.is_empty() {
        return format!(
            "data server {server} is given up; nothing is lost, since others have all that it had ({spared} placement groups){waits}"
        );
    }
    format!(
        "of {} placement groups only data server {server} had everything, and THAT DATA IS LOST: {older} go on with what another \
         server has of them, in which the latest changes may be missing, and {empty} go on empty; {spared} others lose nothing{waits}",
        lost.len()
    )
}

/// What came from object stores, for people.
fn told(came: &FromStore) -> String {
    let FromStore { seeded: Seeded { chunks, bytes, kept, bad }, groups } = *came;
    if groups == 0 {
        return String::new();
    }
    let damaged = match bad {
        0 => String::new(),
        bad => {
            format!("; {bad} objects there are damaged, which the logs of the data servers name")
        }
    };
    format!(
        ". From the object store come {chunks} chunks with {bytes} bytes of these groups; of {kept} more the servers have what is as new{damaged}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_written_last_goes_on_unless_it_has_but_little() {
        let best = |all: &[(u32, u64, u64)]| {
            let all: BTreeMap<ServerId, Holding> = all
                .iter()
                .map(|(id, chunks, newest)| (ServerId(*id), (*chunks, Version(*newest))))
                .collect();
            super::best(all.iter()).map(|id| id.0)
        };
        assert_eq!(best(&[]), None);
        assert_eq!(best(&[(1, 1000, 5), (2, 990, 9)]), Some(2), "months old, and almost as much");
        assert_eq!(best(&[(1, 1000, 5), (2, 10, 9)]), Some(1), "it had just begun to learn");
        assert_eq!(best(&[(1, 10, 5), (2, 10, 5)]), Some(1));
    }
}
