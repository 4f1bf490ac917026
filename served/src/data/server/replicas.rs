//! The replicas of this server: drives the state machines of its groups.
//!
//! An event is given to a group under the group's lock; what it then wants done is begun after the lock is free. Stores run on the
//! pool of threads that may block, calls to other servers as tasks, which end with the epoch.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use netfs_common::errno::Errno;
use netfs_common::id::{ChunkId, Epoch, GroupId, InstanceId, ServerId, Verifier, Version};
use netfs_common::map::{ClusterMap, Replica};
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::chunks::Chunks;
use super::deleting::Removals;
use super::fault;
use super::forwarding::Hops;
use super::keys::Keys;
use super::lease::Lease;
use super::loss::Loss;
use super::mending::Damage;
use super::metrics::DataMetrics;
use super::noted::{Held, Noted};
use super::owner::Owner;
use super::peers::Peers;
use super::progress::Progress;
use super::room::Room;
use super::teaching::{Pace, Taught};
use super::tiering::Tier;
use crate::data::chain::{Action, CallId, Change, Group, Refusal};
use crate::data::store::Usage;
use crate::flusher::Flusher;

/// A change of a chunk.
#[derive(Clone, Debug)]
pub(super) struct Work {
    pub(super) what: What,
    /// The room that it takes, if it was ordered here.
    #[expect(dead_code, reason = "held")]
    held: Option<Arc<Held>>,
}

/// What is done to a chunk, with its bytes.
#[derive(Clone, Debug)]
pub(super) enum What {
    /// These bytes are stored at an offset.
    Write { offset: u64, data: Arc<Vec<Bytes>> },
    /// A range becomes a hole.
    Punch { offset: u64, len: u64 },
}

impl Work {
    /// One that a client wants.
    pub(super) fn own(what: What, held: Arc<Held>) -> Work {
        Work { what, held: Some(held) }
    }

    /// One that the replica before has passed on.
    pub(super) fn passed_on(what: What) -> Work {
        Work { what, held: None }
    }
}

/// How a call to a group ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is done, and the data grew by so much.
    Done(i64),
    /// It may go on.
    Go,
}

/// One group.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) group: Group<Work>,
    waiting: HashMap<CallId, oneshot::Sender<Result<Outcome, Refusal>>>,
    /// What has been passed on and is not answered, since when.
    pub(super) passed_on: BTreeMap<Version, Instant>,
    /// A learner that has everything, in this epoch.
    pub(super) synced: Option<(Epoch, Replica)>,
    /// It could not store something in this epoch.
    pub(super) broken: Option<Epoch>,
    /// Since when the learner takes nothing.
    pub(super) refused: Option<Instant>,
    /// The chunk that it refused last; `None` for anything else.
    refused_chunk: Option<ChunkId>,
    /// Held while a piece of a chunk takes its place here, as a learner. A piece that is being stored goes on when its caller has given it
    /// up; whatever comes after it waits for it, and looks again whether it may.
    pub(super) installing: Arc<tokio::sync::Mutex<()>>,
}

/// The replicas of this server.
#[derive(Debug)]
pub(super) struct Replicas {
    pub(super) instance: InstanceId,
    pub(super) chunks: Arc<Chunks>,
    /// How the chunks of volumes are stored.
    pub(super) keys: Keys,
    pub(super) flusher: Flusher,
    pub(super) peers: Peers,
    pub(super) lease: Lease,
    pub(super) metrics: DataMetrics,
    view: RwLock<Arc<View>>,
    /// The version of the map, for those who wait for another.
    pub(super) version: watch::Sender<Epoch>,
    slots: RwLock<HashMap<GroupId, Arc<Mutex<Slot>>>>,
    next_call: AtomicU64,
    /// Threads for the store.
    threads: Arc<Semaphore>,
    runtime: Handle,
    /// There is something to tell the metadata server.
    pub(super) news: Notify,
    pub(super) hops: Hops,
    pub(super) noted: Noted,
    pub(super) progress: Progress,
    pub(super) room: Room,
    /// How fast chunks are copied to learners.
    pub(super) pace: Pace,
    pub(super) taught: Taught,
    pub(super) damage: Damage,
    /// Held while a copy is removed of a group in which this server has no place, and by who asks what it has.
    pub(super) sweeping: tokio::sync::Mutex<()>,
    /// Chunks are being removed apart from the chains.
    pub(super) removals: Removals,
    /// Whose data it is.
    pub(super) owner: Owner,
    /// The disk has lost something.
    pub(super) loss: Loss,
    /// The store's figures, and when they were looked at.
    pub(super) usage: Mutex<Option<(Instant, Usage)>>,
    pub(super) domain: String,
    /// The bucket for what nobody uses, if there is one.
    pub(super) tier: Option<Tier>,
}

/// What this server knows of the cluster.
#[derive(Debug)]
pub(super) struct View {
    pub(super) map: ClusterMap,
    /// This server's number; it learns it with the first map.
    pub(super) me: Option<ServerId>,
    since: HashMap<GroupId, Since>,
}

/// From which version of the map on a group is as it is now. Versions that this server has not seen count as different.
#[derive(Clone, Copy, Debug)]
struct Since {
    chain: Epoch,
    head: Epoch,
}

impl View {
    /// By another map.
    fn next(&self, map: ClusterMap, me: ServerId) -> View {
        let mut since = HashMap::new();
        for (group, chain) in map.groups() {
            let mut is = Since { chain: map.version, head: map.version };
            if let Some((known, before)) = self.map.chain(group).zip(self.since.get(&group)) {
                if known.head() == chain.head() {
                    is.head = before.head;
                }
                if known.epoch == chain.epoch {
                    is.chain = before.chain;
                }
            }
            since.insert(group, is);
        }
        View { map, me: Some(me), since }
    }

    /// Whether the groups of a volume have the heads that they had in this version.
    pub(super) fn has_heads_of(&self, volume: u64, version: Epoch) -> bool {
        let pools = self.map.pools.iter().filter(|pool| pool.volume == volume);
        let mut groups =
            pools.flat_map(|pool| (pool.first.0..).map(GroupId).take(pool.chains.len()));
        groups.all(|group| self.since.get(&group).is_some_and(|since| since.head <= version))
    }

    /// From which version on a group has been in its epoch.
    pub(super) fn chain_since(&self, group: GroupId) -> Epoch {
        self.since.get(&group).map_or(self.map.version, |since| since.chain)
    }

    /// The group of a chunk.
    pub(super) fn group_of(&self, chunk: ChunkId) -> Option<GroupId> {
        self.map.group_of(chunk)
    }
}

/// What the replicas need.
pub(super) struct Parts {
    pub(super) instance: InstanceId,
    pub(super) chunks: Arc<Chunks>,
    pub(super) keys: Keys,
    pub(super) flusher: Flusher,
    pub(super) peers: Peers,
    pub(super) metrics: DataMetrics,
    pub(super) threads: Arc<Semaphore>,
    /// What fails together with this server.
    pub(super) domain: String,
    /// Bytes per second.
    pub(super) repair_rate: u64,
    /// What nobody could mend for so long is lost.
    pub(super) loss_after: Duration,
    /// The bucket for what nobody uses.
    pub(super) tier: Option<Tier>,
    /// Whether the disk has lost something.
    pub(super) loss: Loss,
    /// Whose data it is.
    pub(super) owner: Owner,
}

impl Replicas {
    /// Must be called within a runtime.
    pub(super) fn new(parts: Parts) -> Replicas {
        let map = ClusterMap { version: Epoch(0), servers: Vec::new(), pools: Vec::new() };
        Replicas {
            instance: parts.instance,
            chunks: parts.chunks,
            keys: parts.keys,
            flusher: parts.flusher,
            peers: parts.peers,
            lease: Lease::default(),
            metrics: parts.metrics.clone(),
            view: RwLock::new(Arc::new(View { map, me: None, since: HashMap::new() })),
            version: watch::Sender::new(Epoch(0)),
            slots: RwLock::default(),
            next_call: AtomicU64::new(1),
            threads: parts.threads,
            runtime: Handle::current(),
            news: Notify::new(),
            hops: Hops::default(),
            noted: Noted::default(),
            progress: Progress::default(),
            room: Room::default(),
            pace: Pace::new(parts.repair_rate),
            taught: Taught::default(),
            damage: Damage::new(parts.metrics.clone(), parts.loss_after),
            sweeping: tokio::sync::Mutex::default(),
            removals: Removals::default(),
            owner: parts.owner,
            loss: parts.loss,
            usage: Mutex::default(),
            domain: parts.domain,
            tier: parts.tier,
        }
    }

    pub(super) fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// All groups in which this server has, or had, a part.
    pub(super) fn slots(&self) -> Vec<(GroupId, Arc<Mutex<Slot>>)> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        slots.iter().map(|(id, slot)| (*id, slot.clone())).collect()
    }

    pub(super) fn slot(&self, id: GroupId) -> Option<Arc<Mutex<Slot>>> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// A newer map. One that is not newer changes nothing, nor does one that is older than what was followed in an earlier life.
    pub(super) fn set_map(self: &Arc<Self>, me: ServerId, map: ClusterMap) {
        if self.loss.refuses(&map) {
            return;
        }
        let view = {
            let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
            if map.version <= view.map.version {
                return;
            }
            // Before anybody can store by it.
            self.keys.follow(&map, self.chunks.store());
            *view = Arc::new(view.next(map, me));
            view.clone()
        };
        self.peers.follow(&view.map);
        self.loss.follow(&view.map, me, self.instance);
        self.progress.retain(|server| view.map.server(server).is_some());
        let myself = Replica { server: me, instance: self.instance };
        for pool in &view.map.pools {
            for (index, chain) in pool.chains.iter().enumerate() {
                let id = GroupId(pool.first.0 + index as u32);
                let has = chain.members().any(|member| member == myself);
                if has && self.slot(id).is_none() {
                    let slot = Arc::new(Mutex::new(Slot::new(myself)));
                    let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
                    slots.entry(id).or_insert(slot);
                }
                let (chain, fewest) = (chain.clone(), usize::from(pool.min_replicas));
                self.run(id, |slot| {
                    if chain.epoch > slot.group.epoch() {
                        slot.passed_on.clear();
                        (slot.synced, slot.broken, slot.refused) = (None, None, None);
                        slot.group.renumber(myself);
                    }
                    slot.group.set_chain(chain, fewest)
                });
            }
        }
        self.version.send_replace(view.map.version);
        self.news.notify_waiters();
    }

    /// Gives an event to a group, and does what follows. Nothing happens if this server has no part in it.
    pub(super) fn run(
        self: &Arc<Self>,
        id: GroupId,
        event: impl FnOnce(&mut Slot) -> Vec<Action<Work>>,
    ) {
        if let Some(slot) = self.slot(id) {
            self.run_in(id, &slot, event);
        }
    }

    fn run_in(
        self: &Arc<Self>,
        id: GroupId,
        slot: &Mutex<Slot>,
        event: impl FnOnce(&mut Slot) -> Vec<Action<Work>>,
    ) {
        let (actions, epoch) = {
            let mut slot = lock(slot);
            let mut actions = event(&mut slot);
            actions.retain(|action| !slot.settle(action));
            // Here, where nothing overtakes anything.
            let place = |action: &Action<Work>| match action {
                Action::Forward { to, .. } => {
                    let chain = slot.group.chain();
                    let hop = chain.and_then(|chain| chain.members().position(|m| m == *to));
                    Some(self.hops.queue(to.server, hop.unwrap_or_default()))
                }
                _ => None,
            };
            let placed = actions.into_iter().map(|action| (place(&action), action));
            (placed.collect::<Vec<_>>(), slot.group.epoch())
        };
        for action in actions {
            match action {
                (Some(place), Action::Forward { to, step }) => {
                    self.runtime.spawn(self.clone().forward(id, to, step, place));
                }
                (_, action) => self.act(id, epoch, action),
            }
        }
    }

    /// Makes a call to a group and waits for its end.
    pub(super) async fn call(
        self: &Arc<Self>,
        id: GroupId,
        event: impl FnOnce(&mut Group<Work>, CallId) -> Vec<Action<Work>>,
    ) -> Result<Outcome, Refusal> {
        let Some(slot) = self.slot(id) else {
            return Err(Refusal::Stale(self.view().map.version));
        };
        let call = CallId(self.next_call.fetch_add(1, Ordering::Relaxed));
        let (answer, answered) = oneshot::channel();
        self.run_in(id, &slot, |slot| {
            slot.waiting.insert(call, answer);
            event(&mut slot.group, call)
        });
        let mut withdrawn = Withdrawn { replicas: self, id, slot: &slot, call, armed: true };
        let outcome = answered.await;
        withdrawn.armed = false;
        outcome.unwrap_or(Err(Refusal::Busy))
    }

    /// A call waits no longer, or what it was for is over.
    fn take_back(self: &Arc<Self>, id: GroupId, slot: &Mutex<Slot>, call: CallId) {
        self.run_in(id, slot, |slot| {
            slot.waiting.remove(&call);
            slot.group.withdraw(call)
        });
    }

    /// Waits until no piece of a chunk of a group is taking its place here, and keeps others from it.
    pub(super) async fn no_install(&self, id: GroupId) -> Option<tokio::sync::OwnedMutexGuard<()>> {
        let installing = lock(&*self.slot(id)?).installing.clone();
        Some(installing.lock_owned().await)
    }

    /// A change that a client wants, at the head.
    pub(super) async fn propose(
        self: &Arc<Self>,
        id: GroupId,
        epoch: Epoch,
        chunk: ChunkId,
        work: Work,
    ) -> Result<(i64, Verifier), Refusal> {
        let outcome = self.call(id, |group, call| group.propose(call, epoch, chunk, work)).await?;
        let Outcome::Done(grown) = outcome else { return Err(Refusal::Busy) };
        Ok((grown, self.verifier(id)))
    }

    /// The verifier of a group's present chain.
    pub(super) fn verifier(&self, id: GroupId) -> Verifier {
        self.view().map.chain(id).map_or(Verifier(0), |chain| chain.verifier)
    }

    /// The epoch in which this server has a part in the group.
    pub(super) fn epoch(&self, id: GroupId) -> Option<Epoch> {
        Some(lock(&*self.slot(id)?).group.epoch())
    }

    /// Waits until a group is in another epoch.
    pub(super) async fn epoch_over(&self, id: GroupId, epoch: Epoch) {
        let mut version = self.version.subscribe();
        while self.epoch(id) == Some(epoch) {
            if version.changed().await.is_err() {
                return;
            }
        }
    }

    /// Whether this server may answer reads of a group now.
    fn may_show(&self, slot: &Mutex<Slot>) -> bool {
        lock(slot).group.is_sole() || self.lease.runs()
    }

    /// Waits until a chunk may be shown. What is then read is shown only if [`Replicas::still`] agrees. While what this returns
    /// is there, no change of the chunk is stored here, and others wait for it: it is not to be kept for long.
    pub(super) async fn show(
        self: &Arc<Self>,
        id: GroupId,
        epoch: Epoch,
        chunk: ChunkId,
    ) -> Result<Shown, Refusal> {
        let Some(slot) = self.slot(id) else {
            return Err(Refusal::Stale(self.view().map.version));
        };
        if !self.may_show(&slot) {
            return Err(Refusal::Busy);
        }
        let call = CallId(self.next_call.fetch_add(1, Ordering::Relaxed));
        let (answer, answered) = oneshot::channel();
        self.run_in(id, &slot, |slot| {
            slot.waiting.insert(call, answer);
            slot.group.read(call, epoch, chunk)
        });
        let shown = Shown { replicas: self.clone(), id, slot, call };
        answered.await.unwrap_or(Err(Refusal::Busy)).map(|_| shown)
    }

    /// Whether a chunk may be shown as it is, without waiting for anything.
    pub(super) fn shows(&self, id: GroupId, epoch: Epoch, chunk: ChunkId) -> Result<bool, Refusal> {
        let Some(slot) = self.slot(id) else {
            return Err(Refusal::Stale(self.view().map.version));
        };
        if !self.may_show(&slot) {
            return Err(Refusal::Busy);
        }
        lock(&slot).group.readable(epoch, chunk)
    }

    /// Whether what was read may be shown: others had no right to change it meanwhile.
    pub(super) fn still(&self, id: GroupId, epoch: Epoch) -> Result<(), Refusal> {
        let Some(slot) = self.slot(id) else { return Err(Refusal::Busy) };
        if self.epoch(id) != Some(epoch) {
            return Err(Refusal::Stale(self.epoch(id).unwrap_or_default()));
        }
        if self.may_show(&slot) { Ok(()) } else { Err(Refusal::Busy) }
    }

    /// Waits until all that is noted now, in all groups, is stored by all, or forgotten.
    pub(super) async fn settle(self: &Arc<Self>) {
        for (id, slot) in self.slots() {
            if lock(&slot).group.is_quiet() {
                continue;
            }
            // It ends with the group's part in the chain at the latest.
            if let Err(refusal) = self.call(id, |group, call| group.settle(call)).await {
                tracing::debug!(group = %id, ?refusal, "a group did not settle");
            }
        }
    }

    fn act(self: &Arc<Self>, id: GroupId, epoch: Epoch, action: Action<Work>) {
        match action {
            Action::Apply(change) => self.apply(id, change),
            Action::Compare(learner) => {
                let this = self.clone();
                self.runtime.spawn(async move { this.compare(id, epoch, learner).await });
            }
            Action::Push(learner, chunk) => {
                let this = self.clone();
                self.runtime.spawn(async move { this.push(id, epoch, learner, chunk).await });
            }
            Action::Seal(learner) => {
                let this = self.clone();
                self.runtime.spawn(async move { this.seal(id, epoch, learner).await });
            }
            Action::Synced(learner) => {
                if let Some(slot) = self.slot(id) {
                    lock(&slot).synced = Some((epoch, learner));
                }
                self.news.notify_waiters();
            }
            Action::HandedOver => self.news.notify_waiters(),
            Action::Broken(errno) => {
                tracing::error!(group = %id, %errno, "a change that others have could not be stored: this replica leaves the chain");
                if let Some(slot) = self.slot(id) {
                    lock(&slot).broken = Some(epoch);
                }
                self.news.notify_waiters();
            }
            // Answered, or given a place, under the lock.
            Action::Done(..) | Action::Refuse(..) | Action::Serve(_) | Action::Forward { .. } => {}
        }
    }

    fn is_head_of(&self, id: GroupId) -> bool {
        self.slot(id).is_some_and(|slot| lock(&slot).group.is_head())
    }

    /// Stores a change on a thread that may block.
    fn apply(self: &Arc<Self>, id: GroupId, change: Change<Work>) {
        let this = self.clone();
        match self.threads.clone().try_acquire_owned() {
            Ok(slot) => drop(self.runtime.spawn_blocking(move || this.store(id, &change, slot))),
            Err(_) => {
                self.runtime.spawn(async move {
                    let Ok(slot) = this.threads.clone().acquire_owned().await else { return };
                    let runtime = this.runtime.clone();
                    runtime.spawn_blocking(move || this.store(id, &change, slot));
                });
            }
        }
    }

    fn store(self: &Arc<Self>, id: GroupId, change: &Change<Work>, thread: OwnedSemaphorePermit) {
        let Change { id: version, chunk, deed } = change;
        let work = || match &deed.what {
            What::Write { offset, data } => self.chunks.write(*chunk, *version, *offset, data),
            What::Punch { offset, len } => self.chunks.punch(*chunk, *version, *offset, *len),
        };
        let work = || self.metrics.during(work);
        let result = match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
            Ok(result) => result.map_err(|error| {
                self.metrics.store_failed(&error);
                fault::errno(&error)
            }),
            Err(_) => {
                tracing::error!(group = %id, "storing a change has panicked");
                Err(Errno::EIO)
            }
        };
        drop(thread);
        if let Some(tier) = &self.tier {
            tier.used(*chunk);
            if result.is_ok() && self.is_primary(id) && self.is_head_of(id) {
                tier.changed(*chunk);
            }
        }
        self.run(id, |slot| slot.group.applied(*version, result));
    }

    /// Runs a call of the store on a thread that may block. `None`: it has panicked, or the server ends.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let thread = self.threads.clone().acquire_owned().await.ok()?;
        let done = tokio::task::spawn_blocking(move || {
            let _held = thread;
            work()
        });
        match done.await {
            Ok(value) => Some(value),
            Err(error) => {
                tracing::error!(%error, "a call of the data store has panicked");
                None
            }
        }
    }

    /// Servers that learn from this one, or did in this epoch, in the groups of these chunks; the groups are told that the
    /// chunks are gone. Whoever begins to learn later does not find them here.
    pub(super) fn removed(
        self: &Arc<Self>,
        chunks: impl IntoIterator<Item = ChunkId>,
    ) -> BTreeSet<ServerId> {
        let view = self.view();
        let mut of_groups: BTreeMap<GroupId, Vec<ChunkId>> = BTreeMap::new();
        for chunk in chunks {
            if let Some(id) = view.group_of(chunk) {
                of_groups.entry(id).or_default().push(chunk);
            }
        }
        let mut heirs = BTreeSet::new();
        for (id, chunks) in of_groups {
            self.run(id, |slot| {
                heirs.extend(slot.group.heirs().map(|heir| heir.server));
                slot.group.removed(chunks)
            });
        }
        heirs
    }
}

impl Slot {
    fn new(me: Replica) -> Slot {
        Slot {
            group: Group::new(me),
            waiting: HashMap::new(),
            passed_on: BTreeMap::new(),
            synced: None,
            broken: None,
            refused: None,
            refused_chunk: None,
            installing: Arc::default(),
        }
    }

    /// Whether the learner takes what it is taught, which is this chunk if it is one.
    pub(super) fn note_lesson(&mut self, chunk: Option<ChunkId>, taken: bool) {
        match taken {
            true => self.refused = None,
            false => drop(self.refused.get_or_insert_with(Instant::now)),
        }
        self.refused_chunk = chunk.filter(|_| !taken);
    }

    /// A chunk for the learner cannot be read here. If that is what it refused last, there may be nothing left that it could
    /// show its good will with.
    pub(super) fn note_unread(&mut self, chunk: ChunkId) {
        if self.refused_chunk == Some(chunk) {
            (self.refused, self.refused_chunk) = (None, None);
        }
    }

    /// Answers a call, if the action is that.
    fn settle(&mut self, action: &Action<Work>) -> bool {
        let (call, outcome) = match action {
            Action::Done(call, grown) => (call, Ok(Outcome::Done(*grown))),
            Action::Serve(call) => (call, Ok(Outcome::Go)),
            Action::Refuse(call, refusal) => (call, Err(*refusal)),
            _ => return false,
        };
        if let Some(answer) = self.waiting.remove(call) {
            // Whoever has given up does not want to know.
            let _ = answer.send(outcome);
        }
        true
    }
}

/// Takes a call back whose caller has gone.
struct Withdrawn<'a> {
    replicas: &'a Arc<Replicas>,
    id: GroupId,
    slot: &'a Mutex<Slot>,
    call: CallId,
    armed: bool,
}

impl Drop for Withdrawn<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.replicas.take_back(self.id, self.slot, self.call);
        }
    }
}

/// A chunk is shown, or about to be: it stays as it is until this is dropped.
#[derive(Debug)]
pub(super) struct Shown {
    replicas: Arc<Replicas>,
    id: GroupId,
    slot: Arc<Mutex<Slot>>,
    call: CallId,
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.replicas.take_back(self.id, &self.slot, self.call);
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
