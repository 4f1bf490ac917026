//! The shell around the [`Manager`](crate::meta::cluster::Manager): keeps what it decides, tells everybody, and listens to the data
//! servers.
//!
//! ```text
//! data servers -> beats -> manager -> file -> published map -> beats -> data servers
//!                             ^                             -> news  -> clients
//!         ticks, operators ---'                             -> data link (cuts, removals, fences)
//! ```
//!
//! Nobody hears of a change before it is on stable storage in the file `cluster`: otherwise a crash would take back what
//! others rely on already. That is true for decisions too ([`Cluster::everybody`]).

mod alarms;
mod beats;
mod classes;
mod file;
pub(in crate::meta::server) mod garbage;
mod giving_up;
mod journal;
mod news;
mod numbers;
mod operations;
mod outdated;
mod redundancy;
mod roster;
mod space;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use netfs_common::class::Class;
use netfs_common::codec::{self, CodecError};
use netfs_common::coding::Coding;
use netfs_common::id::{Epoch, GroupId, InstanceId, ServerId};
use netfs_common::map::{ClusterMap, Replica};
use netfs_common::net::{Bulk, Channel};
use netfs_common::warn_rarely;
use netfs_common::wire::cluster::{BeatReply, Counts, TierReport};
use netfs_common::wire::data::MAX_PAYLOAD;
use netfs_common::wire::operator::Outcome;
use tokio::sync::{Notify, watch};

use super::{DataServers, MetaError, PoolOptions};
use crate::meta::cluster::{Command, Config, Manager, Report, State, StoreId, Verdict};
use crate::meta::metrics::MetaMetrics;
pub use file::FileError;
use file::StateFile;
pub(crate) use file::kept_state;
use giving_up::GivingUp;
use journal::{Journal, News};
pub(super) use news::tell;
use numbers::Met;
pub(super) use roster::Caller;
use roster::Roster;

/// How often it is looked at the clock.
const TICK: Duration = Duration::from_millis(100);
/// How often the gauges are set.
const GAUGE: Duration = Duration::from_secs(1);
/// After this long a change that could not be stored is tried again.
const STORE_AGAIN: Duration = Duration::from_secs(1);
/// The same trouble is logged this often.
const WARN_INTERVAL: Duration = Duration::from_secs(10);

/// The cluster, as this server knows it.
pub(super) struct Cluster {
    start: Instant,
    /// The data server in this process, by its port.
    local: Option<u16>,
    core: Mutex<Core>,
    roster: Mutex<Roster>,
    published: watch::Sender<Arc<Published>>,
    /// Told when the state has changed and has to be stored.
    changed: Notify,
    /// Told whenever a server was heard, a map was published, or time has passed.
    events: watch::Sender<()>,
    /// Who has answered.
    met: watch::Sender<Met>,
    /// The data server that is being given up, if one is.
    giving_up: Mutex<Option<GivingUp>>,
}

struct Core {
    manager: Manager,
    /// When it was last looked at the clock.
    last: Duration,
    /// Leases that an earlier life of this server has given are over.
    patience: Duration,
    figures: BTreeMap<ServerId, Figures>,
    /// Servers that have data of other metadata, and whose it is.
    strangers: BTreeMap<ServerId, Option<[u8; 16]>>,
    /// Volumes with chunks of inodes that they do not know, and a server that has some.
    overtaken: BTreeMap<u64, ServerId>,
    /// Why a later map is not taken over, if there is one.
    behind: Option<String>,
    /// Why the last change is not stored.
    trouble: Option<String>,
}

/// What a data server says of itself for people.
#[derive(Clone, Debug, Default)]
struct Figures {
    live: u64,
    chunks: u64,
    lacking: BTreeMap<GroupId, Option<u64>>,
    counts: Counts,
    /// Volumes for which it has no key.
    locked: Vec<u64>,
    tier: Option<TierReport>,
    incomplete: bool,
}

/// What everybody may know: it is stored.
#[derive(Debug)]
pub(super) struct Published {
    /// All volumes' groups.
    pub(super) map: ClusterMap,
    /// The same, as it goes to data servers.
    bytes: Bytes,
}

impl Published {
    fn new(map: ClusterMap) -> Result<Published, CodecError> {
        let bytes = codec::encode(&map)?.into();
        Ok(Published { map, bytes })
    }
}

impl Cluster {
    /// Reads what is kept in a directory, or begins a new cluster.
    pub(super) fn open(
        dir: &Path,
        data: &DataServers,
        config: Config,
        told: Duration,
    ) -> Result<Arc<Cluster>, MetaError> {
        let file = StateFile::of(dir);
        let state = file.read()?;
        let found = state.is_some();
        let mut state = state.unwrap_or_default();
        let nameless = state.owner == [0; 16];
        if nameless {
            getrandom::fill(&mut state.owner).map_err(|e| MetaError::System(e.into()))?;
        }
        // A lease that was given with a longer deadline may still run.
        let patience = told.saturating_sub(config.deadline);
        let mut manager = Manager::new(state.clone(), config, patience);
        let local = match data {
            DataServers::Local(port) => {
                if state.servers.len() > 1 {
                    return Err(MetaError::SeveralServers(state.servers.len()));
                }
                manager.meet_only(Duration::ZERO, local_addrs(*port));
                Some(*port)
            }
            DataServers::At(addrs) => {
                manager.meet(Duration::ZERO, addrs.clone());
                None
            }
            DataServers::Cluster(servers) => {
                for addrs in servers {
                    manager.meet(Duration::ZERO, addrs.clone());
                }
                None
            }
        };
        if manager.state() != &state || !found || nameless {
            state = manager.state().clone();
            file.write(&state)?;
        }
        let published = Arc::new(Published::new(state.map())?);
        let core = Core {
            manager,
            last: Duration::ZERO,
            patience,
            figures: BTreeMap::new(),
            strangers: BTreeMap::new(),
            overtaken: BTreeMap::new(),
            behind: None,
            trouble: None,
        };
        Ok(Arc::new(Cluster {
            start: Instant::now(),
            local,
            core: Mutex::new(core),
            roster: Mutex::default(),
            published: watch::Sender::new(published),
            changed: Notify::new(),
            events: watch::Sender::new(()),
            met: watch::Sender::default(),
            giving_up: Mutex::default(),
        }))
    }

    /// Makes sure that a volume has its groups; stored when it returns.
    pub(super) fn ensure_pool(
        &self,
        dir: &Path,
        volume: u64,
        options: PoolOptions,
        coding: Coding,
    ) -> Result<(), MetaError> {
        let PoolOptions { replicas, groups, tier, .. } = options;
        let before = self.lock().manager.state().clone();
        if before.pools.iter().any(|pool| pool.pool.volume == volume && pool.pool.tier == tier) {
            return Ok(());
        }
        let is_new = !before.pools.iter().any(|pool| pool.pool.volume == volume);
        let mut with = before;
        if is_new {
            with.add_pool(volume, groups, replicas, 1);
        }
        check_size(&with)?;
        self.with(|manager, now| {
            manager.ensure_pool(now, volume, (groups, replicas), tier);
            if is_new {
                manager.set_coding(volume, coding);
            }
        });
        self.store_now(dir)
    }

    /// How the chunks of a volume are stored.
    pub(super) fn coding(&self, volume: u64) -> Option<Coding> {
        let published = self.published.borrow();
        let mut pools = published.map.pools.iter();
        pools.find(|pool| pool.volume == volume).map(|pool| pool.coding.clone())
    }

    /// Has the chunks of a volume stored in another way from now on; stored when it returns.
    pub(super) fn set_coding(
        &self,
        dir: &Path,
        volume: u64,
        coding: Coding,
    ) -> Result<(), MetaError> {
        self.with(|manager, _| manager.set_coding(volume, coding));
        self.store_now(dir)
    }

    /// Stores and publishes the state, before [`Cluster::run`].
    fn store_now(&self, dir: &Path) -> Result<(), MetaError> {
        let state = self.lock().manager.state().clone();
        StateFile::of(dir).write(&state)?;
        self.publish(&state)?;
        Ok(())
    }

    /// Puts it to work: beats, ticks, storing. Must be called within a runtime.
    pub(super) fn run(self: &Arc<Self>, dir: &Path, caller: Caller, metrics: MetaMetrics) {
        self.roster().begin(caller);
        self.follow_roster();
        let tasks = [
            tokio::spawn(self.clone().keep(StateFile::of(dir))),
            tokio::spawn(self.clone().tick(metrics)),
            tokio::spawn(self.clone().collect_garbage()),
            tokio::spawn(self.clone().catch_up()),
        ];
        tasks.into_iter().for_each(|task| self.roster().add_task(task.abort_handle()));
    }

    /// Ends all that goes on in the background.
    pub(super) fn close(&self) {
        self.roster().close();
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn roster(&self) -> MutexGuard<'_, Roster> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the manager something, or asks it, at the present time.
    fn with<T>(&self, act: impl FnOnce(&mut Manager, Duration) -> T) -> T {
        let mut core = self.lock();
        let now = self.now(&mut core);
        let before = core.manager.state().version;
        let out = act(&mut core.manager, now);
        if core.manager.state().version != before {
            self.changed.notify_one();
        }
        out
    }

    /// The time. If nobody has looked at the clock for too long this process was stopped, and nobody could be heard.
    fn now(&self, core: &mut Core) -> Duration {
        let now = self.start.elapsed();
        let late = TICK + core.manager.config().deadline / 4;
        if now.saturating_sub(core.last) > late && now >= core.patience {
            let gap = now.saturating_sub(core.last);
            tracing::warn!(
                ?gap,
                "this server stood still; no data server is blamed for its silence"
            );
            core.manager.everybody_heard(core.last, now);
        }
        core.last = now;
        now
    }

    async fn tick(self: Arc<Self>, metrics: MetaMetrics) {
        let (mut gauged, mut journal) = (Instant::now(), Journal::default());
        loop {
            tokio::time::sleep(TICK).await;
            let news = self.with(|manager, now| {
                manager.tick(now);
                journal.follow(manager, now)
            });
            // Not under the lock that everybody needs.
            news.iter().for_each(News::tell);
            self.events.send_replace(());
            if gauged.elapsed() >= GAUGE {
                gauged = Instant::now();
                metrics.cluster(&self.share());
            }
        }
    }

    /// Stores every change and publishes it then. One write may hold several changes.
    async fn keep(self: Arc<Self>, file: StateFile) {
        let file = Arc::new(file);
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let Some(state) = self.unpublished() else {
                changed.await;
                continue;
            };
            let (writer, written) = (file.clone(), state.clone());
            let stored = match tokio::task::spawn_blocking(move || writer.write(&written)).await {
                Ok(Ok(())) => self.publish(&state).map_err(|e| e.to_string()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(error) => Err(format!("writing it has panicked: {error}")),
            };
            let trouble = stored.err();
            let failed = trouble.is_some();
            if let Some(error) = &trouble {
                warn_rarely!(WARN_INTERVAL, %error, "a change of the cluster map cannot be stored, and is told to nobody");
            }
            self.lock().trouble = trouble;
            if failed {
                tokio::time::sleep(STORE_AGAIN).await;
            }
        }
    }

    /// The state, if it is not published yet.
    fn unpublished(&self) -> Option<State> {
        let published = self.published.borrow().map.version;
        let core = self.lock();
        let state = core.manager.state();
        (state.version != published).then(|| state.clone())
    }

    /// Whether everybody may know all that has been decided about a server's places. Before, its right to answer reads is not
    /// prolonged: it may have just been taken out of a chain.
    fn is_settled(&self, server: ServerId) -> bool {
        let published = self.published();
        let core = self.lock();
        let state = core.manager.state();
        if state.version == published.map.version {
            return true;
        }
        let of_it = |replica: &&Replica| replica.server == server;
        let mut groups = state.groups();
        groups.all(|(group, _, chain)| {
            let told = published.map.chain(group);
            let told = told.and_then(|chain| chain.replicas.iter().find(of_it));
            told.is_none_or(|told| chain.replicas.contains(told))
        })
    }

    fn publish(self: &Cluster, state: &State) -> Result<(), CodecError> {
        let published = Arc::new(Published::new(state.map())?);
        tracing::debug!(version = %state.version, changes = %changes(&self.published().map, &published.map), "cluster map");
        self.published.send_replace(published);
        self.events.send_replace(());
        Ok(())
    }

    /// What everybody may know.
    pub(super) fn published(&self) -> Arc<Published> {
        self.published.borrow().clone()
    }

    /// Tells of every newer map.
    pub(super) fn maps(&self) -> watch::Receiver<Arc<Published>> {
        self.published.subscribe()
    }

    /// Tells when it is worth looking again at what was not so a moment ago; at every tick at the latest.
    pub(super) fn events(&self) -> watch::Receiver<()> {
        self.events.subscribe()
    }

    /// The map of a volume, as it looks to a client that has reached this server at `here`.
    pub(super) fn map_for(
        &self,
        published: &Published,
        volume: u64,
        here: Option<IpAddr>,
    ) -> ClusterMap {
        let mut map = published.map.of_volume(volume);
        if let (Some(port), Some(ip)) = (self.local, here) {
            let own = local_addrs(port);
            let found = std::net::SocketAddr::new(ip.to_canonical(), port).to_string();
            let local = map.servers.iter_mut().filter(|server| server.addrs == own);
            local.for_each(|server| server.addrs = vec![found.clone()]);
        }
        map
    }

    /// The way to a server.
    pub(super) fn channel(&self, server: ServerId) -> Option<Channel<Bulk>> {
        self.roster().channel(server)
    }

    /// The servers at which something must be done that must not be missed by anybody who may count, and a version of the
    /// map by which the others have left. That is on stable storage: who has a place in the stored map counts, whatever has been decided since, and
    /// so do those that the decisions name. See [`Manager::must_fence`].
    pub(super) fn everybody(&self) -> (BTreeSet<ServerId>, Epoch) {
        let mut servers = self.with(|manager, now| {
            // Who is dead by now leaves first.
            manager.tick(now);
            manager.must_fence(now)
        });
        let published = self.published.borrow();
        let members = published.map.groups().flat_map(|(_, chain)| chain.members());
        servers.extend(members.map(|replica| replica.server));
        (servers, published.map.version)
    }

    /// Whether a server has said that it goes by this version of the map, or a later one.
    pub(super) fn goes_by(&self, server: ServerId, version: Epoch) -> bool {
        self.lock().manager.version_at(server).is_some_and(|has| has >= version)
    }

    /// Servers that answer, in which life.
    pub(super) fn present(&self) -> BTreeMap<ServerId, InstanceId> {
        self.with(|manager, now| {
            let ids: Vec<_> = manager.state().servers.keys().copied().collect();
            let known = ids.into_iter().map(|id| (id, manager.health(id, now)));
            let there = known.filter(|(_, health)| health.verdict != Verdict::Dead);
            there.filter_map(|(id, health)| Some((id, health.report?.instance))).collect()
        })
    }

    /// Whether another server's store answers at the address of a server.
    pub(super) fn is_astray(&self, server: ServerId) -> bool {
        self.with(|manager, now| manager.is_astray(server, now)).is_some()
    }

    /// The number of what answers at the address of a server in this life, and whether it is that server. To be asked after the map was looked at that it is told
    /// with: what it is told again is newer then.
    fn number(&self, server: ServerId, instance: InstanceId) -> Option<(ServerId, bool)> {
        self.lock().manager.number(server, instance)
    }

    /// Every data server that is known.
    pub(super) fn servers(&self) -> BTreeSet<ServerId> {
        self.lock().manager.state().servers.keys().copied().collect()
    }

    /// A server that is silent for so long is replaced.
    pub(super) fn deadline(&self) -> Duration {
        self.lock().manager.config().deadline
    }

    /// A replica that has something else than the others is to learn anew. Whether it will.
    pub(super) async fn relearn(&self, group: GroupId, epoch: Epoch, server: ServerId) -> bool {
        let command = Command::Relearn(group, epoch, server);
        matches!(self.carry_out(command, String::new()).await, Outcome::Done(_))
    }

    /// How many damaged ranges the servers have found since their start, and how many of them they have replaced.
    pub(super) fn damage(&self) -> (u64, u64) {
        let core = self.lock();
        let sum = |of: fn(&Counts) -> u64| core.figures.values().map(|f| of(&f.counts)).sum();
        (sum(|counts| counts.damaged), sum(|counts| counts.mended))
    }

    /// Servers that cannot use their object store, and why; with the bytes that are only there.
    pub(super) fn without_store(&self) -> Vec<(ServerId, String, u64)> {
        let core = self.lock();
        let tiers = core.figures.iter().filter_map(|(id, f)| Some((*id, f.tier.as_ref()?)));
        tiers.filter_map(|(id, t)| Some((id, t.trouble.clone()?, t.away_bytes))).collect()
    }

    /// How many replicas a volume's groups of a class are to have.
    pub(super) fn replicas(&self, volume: u64, class: Class) -> u64 {
        let core = self.lock();
        let pool = core.manager.state().pool(volume, class);
        pool.map_or(1, |pool| u64::from(pool.replicas.max(1)))
    }

    /// The identity of this metadata.
    fn owner(&self) -> [u8; 16] {
        self.lock().manager.state().owner
    }

    /// Whether a server has data of this metadata, and not of any other. What others say is not heard.
    fn is_own(&self, server: ServerId, reply: &BeatReply) -> bool {
        let mut core = self.lock();
        if reply.owner == Some(core.manager.state().owner) {
            core.strangers.remove(&server);
            return true;
        }
        warn_rarely!(WARN_INTERVAL, %server, "a data server has the data of another cluster, and is left alone");
        core.strangers.insert(server, reply.owner);
        let Core { manager, strangers, .. } = &mut *core;
        strangers.retain(|id, _| manager.state().servers.contains_key(id));
        false
    }

    /// A server has answered at these addresses.
    fn heard(&self, server: ServerId, addrs: &[String], reply: BeatReply) {
        if !self.is_own(server, &reply) {
            return;
        }
        self.note_met(server, reply.instance, reply.followed.max(reply.version));
        let BeatReply { live, chunks, lacking, counts, locked, tier, incomplete, .. } = reply;
        let report = Report {
            instance: reply.instance,
            store: StoreId(reply.store),
            domain: reply.domain,
            capacity: reply.capacity,
            free: reply.free,
            full: reply.full,
            lacks: reply.lacks,
            locked: locked.clone(),
            work: reply.work,
            version: reply.version,
            revoked: reply.revoked,
            synced: reply.synced,
            broken: reply.broken,
            stalled: reply.stalled,
            handed_over: reply.handed_over,
            followed: reply.followed,
        };
        let lacking = lacking.into_iter().collect();
        self.with(|manager, now| {
            // Where it was looked for before, somebody else may be.
            let known = manager.state().servers.get(&server);
            if known.is_none_or(|known| known.addrs != addrs) {
                return false;
            }
            if report.version == Epoch(0) {
                manager.note_followed(server, report.followed, now);
                manager.greeted(server, report.instance, report.store);
                return false;
            }
            manager.heard(now, server, report)
        });
        let mut core = self.lock();
        // They are of whoever has answered.
        if core.manager.number(server, reply.instance) == Some((server, true)) {
            core.figures.insert(
                server,
                Figures { live, chunks, lacking, counts, locked, tier, incomplete },
            );
        }
        let Core { manager, figures, .. } = &mut *core;
        figures.retain(|id, _| manager.state().servers.contains_key(id));
        drop(core);
        self.events.send_replace(());
    }

    /// In which groups a server has to refuse reads, and in which to order nothing more, as far as it has been told of the chains.
    fn requests(&self, server: ServerId) -> (Named, Named) {
        let (mut revoke, mut hand_over) = {
            let core = self.lock();
            (core.manager.revocations(server), core.manager.hand_overs(server))
        };
        let published = self.published.borrow();
        let is_known = |(group, epoch): &(GroupId, Epoch)| {
            published.map.chain(*group).is_some_and(|chain| chain.epoch == *epoch)
        };
        revoke.retain(is_known);
        hand_over.retain(is_known);
        if self.lock().manager.state().version != published.map.version {
            // While nothing can be stored no other head is stopped: it would have to wait for its new epoch.
            hand_over.clear();
        }
        (revoke, hand_over)
    }
}

/// The chains of a map that are otherwise in an earlier one, for the log.
fn changes(before: &ClusterMap, map: &ClusterMap) -> String {
    let mut text = String::new();
    for (group, chain) in map.groups().filter(|(group, chain)| before.chain(*group) != Some(chain))
    {
        let servers: Vec<_> = chain.replicas.iter().map(|r| r.server.to_string()).collect();
        let learner = chain.learner.map_or(String::new(), |l| format!("+{}", l.server));
        let _ = write!(text, "{group}@{}:{}{learner} ", chain.epoch, servers.join(","));
    }
    text
}

/// Groups, as a chain of theirs has them.
type Named = Vec<(GroupId, Epoch)>;

/// Where the data server in this process is, for this server.
fn local_addrs(port: u16) -> Vec<String> {
    vec![format!("127.0.0.1:{port}"), format!("[::1]:{port}")]
}

/// Whether the map of a state fits into a message whatever happens to the chains.
fn check_size(state: &State) -> Result<(), MetaError> {
    /// At most, of a replica and of a chain, as they are encoded.
    const REPLICA: u64 = 3 + 9;
    const CHAIN: u64 = 9 + 9 + 3;
    /// The key of a volume.
    const CODING: u64 = 3 + 12 + 48;
    let of_pool = |replicas: u8, groups: usize| {
        // The learner, and one more while a replica is replaced.
        (CHAIN + REPLICA * (u64::from(replicas) + 2)) * groups as u64 + CODING + 32
    };
    let pools = state.pools.iter().map(|pool| of_pool(pool.replicas, pool.pool.chains.len()));
    let servers = state
        .servers
        .values()
        .map(|s| 16 + s.addrs.iter().map(|a| a.len() as u64 + 4).sum::<u64>());
    let bytes = pools.sum::<u64>() + servers.sum::<u64>();
    if bytes > MAX_PAYLOAD {
        return Err(MetaError::MapTooLarge { bytes, limit: MAX_PAYLOAD });
    }
    Ok(())
}
