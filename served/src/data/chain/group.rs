//! A replica of one group. See the [module](super) for the protocol.

use std::collections::{BTreeMap, BTreeSet};

use netfs_common::errno::Errno;
use netfs_common::id::{ChunkId, Epoch, Version};
use netfs_common::map::{Chain, Replica};

use super::action::{Action, CallId, Change, Refusal, Step};
use super::sync::Sync;

/// Changes that a head has under way at a time; more wait.
const MAX_OPS: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waiting,
    Applying,
    Applied,
}

#[derive(Debug)]
struct Op<D> {
    change: Change<D>,
    after: Version,
    stage: Stage,
    grown: i64,
    /// It was passed on in this epoch, or need not be.
    sent: bool,
    /// All after this replica have stored it.
    acked: bool,
    /// Another replica has heard of it, in whichever epoch.
    shared: bool,
    /// It is from before this epoch, and may have been passed on before.
    repeated: bool,
    caller: Option<CallId>,
}

/// Somebody who wants to see a chunk.
#[derive(Clone, Copy, Debug)]
struct Read {
    call: CallId,
    chunk: ChunkId,
    /// The last change that was noted of the chunk when it came. Later ones are not stored here before it is over.
    upto: Version,
    /// It has been told to go on.
    goes: bool,
}

/// One replica of one group.
#[derive(Debug)]
pub struct Group<D> {
    me: Replica,
    /// The latest that is known, whether this replica is in it or not.
    chain: Option<Chain>,
    /// With fewer in the chain nothing is acknowledged.
    min_replicas: usize,
    /// Reads are refused up to this epoch.
    revoked: Option<Epoch>,
    /// As the head it orders nothing more up to this epoch: another one is to be the head.
    handing_over: Option<Epoch>,
    /// It was said in this epoch that nothing is under way any more.
    handed_over: bool,
    broken: bool,
    /// Number of the last change ordered in this epoch, by the head.
    last: u32,
    /// Noted, in their order: not stored here, or not answered by the next replica.
    ops: BTreeMap<Version, Op<D>>,
    /// Stored here and below; the replica before may ask for them again.
    done: BTreeMap<Version, ChunkId>,
    /// What the replica before has said.
    floor: Version,
    /// What is being stored, also from before a change of the chain.
    running: BTreeMap<Version, ChunkId>,
    /// Proposals for which there is no room.
    backlog: Vec<(CallId, ChunkId, D)>,
    reads: Vec<Read>,
    settles: Vec<(CallId, Version)>,
    installs: Vec<(CallId, ChunkId)>,
    sync: Option<Sync>,
    /// Replicas of the chain that were this one's learners.
    tutored: Vec<Replica>,
    /// In which epoch this replica had everything at last, and from whom.
    joined: Option<(Epoch, Replica)>,
    /// The learner was said to have everything, in this epoch.
    told: bool,
}

impl<D: Clone> Group<D> {
    /// A replica that knows no chain yet.
    pub fn new(me: Replica) -> Group<D> {
        Group {
            me,
            chain: None,
            min_replicas: 1,
            revoked: None,
            handing_over: None,
            handed_over: false,
            broken: false,
            last: 0,
            ops: BTreeMap::new(),
            done: BTreeMap::new(),
            floor: Version::NONE,
            running: BTreeMap::new(),
            backlog: Vec::new(),
            reads: Vec::new(),
            settles: Vec::new(),
            installs: Vec::new(),
            sync: None,
            tutored: Vec::new(),
            joined: None,
            told: false,
        }
    }

    /// The server has got another number. Under the one before it has no part in any chain any more.
    pub fn renumber(&mut self, me: Replica) {
        self.me = me;
    }

    /// The epoch that is known.
    pub fn epoch(&self) -> Epoch {
        self.chain.as_ref().map_or(Epoch(0), |chain| chain.epoch)
    }

    /// The chain that is known.
    pub fn chain(&self) -> Option<&Chain> {
        self.chain.as_ref()
    }

    fn replicas(&self) -> &[Replica] {
        self.chain.as_ref().map_or(&[], |chain| &chain.replicas)
    }

    fn learner(&self) -> Option<Replica> {
        self.chain.as_ref().and_then(|chain| chain.learner)
    }

    /// This replica's place among those that have everything.
    fn place(&self) -> Option<usize> {
        self.replicas().iter().position(|replica| *replica == self.me)
    }

    /// Whether it has a part in the group.
    pub fn is_member(&self) -> bool {
        self.place().is_some() || self.is_learner()
    }

    fn is_learner(&self) -> bool {
        self.learner() == Some(self.me)
    }

    /// Whether this replica orders the changes.
    pub fn is_head(&self) -> bool {
        self.place() == Some(0)
    }

    fn is_tail(&self) -> bool {
        self.place().is_some_and(|place| place + 1 == self.replicas().len())
    }

    /// Whether no other replica has everything: then nobody can take over without this one's help. Once the learner is said to
    /// have everything, it can.
    pub fn is_sole(&self) -> bool {
        self.replicas() == [self.me] && !self.told
    }

    /// Whether fewer replicas have everything than the volume asks for. Then no change is acknowledged, and no flush may be.
    pub fn is_short(&self) -> bool {
        self.replicas().len() < self.min_replicas
    }

    /// The replica before this one.
    fn predecessor(&self) -> Option<Replica> {
        self.replicas().get(self.place()?.checked_sub(1)?).copied()
    }

    /// The next replica that has everything.
    fn successor(&self) -> Option<Replica> {
        self.replicas().get(self.place()? + 1).copied()
    }

    /// The replicas that have got from this one what they have, and may have got something that was removed here meanwhile.
    pub fn heirs(&self) -> impl Iterator<Item = Replica> {
        self.sync.iter().map(|sync| sync.learner).chain(self.tutored.iter().copied())
    }

    /// Whether anything is noted.
    pub fn is_quiet(&self) -> bool {
        self.ops.is_empty() && self.backlog.is_empty()
    }

    /// Whether a learner is getting from this replica what it lacks.
    pub fn is_teaching(&self) -> bool {
        self.sync.is_some()
    }

    /// Chunks that are still to be copied to the learner; `None` while the versions are being compared.
    pub fn left(&self) -> Option<usize> {
        self.sync.as_ref().filter(|sync| sync.is_compared()).map(Sync::left)
    }

    /// Another chain of the group, or another minimum. An older chain than is known changes nothing.
    pub fn set_chain(&mut self, chain: Chain, min_replicas: usize) -> Vec<Action<D>> {
        let mut out = Vec::new();
        self.min_replicas = min_replicas;
        if self.chain.as_ref().is_some_and(|known| known.epoch >= chain.epoch) {
            if self.is_head() && self.is_short() {
                self.refuse_changes(Refusal::Busy, &mut out);
            }
            return out;
        }
        let (was_head, was_learner) = (self.is_head(), self.is_learner());
        let (old_tail, old_place) = (self.replicas().last().copied(), self.place());
        let stale = Refusal::Stale(chain.epoch);
        self.chain = Some(chain);
        self.broken = false;
        (self.told, self.handed_over) = (false, false);
        self.last = 0;
        // What is being shown is of the epoch before, and counts for nothing.
        let reads = self.reads.drain(..).filter(|read| !read.goes).map(|read| read.call);
        let refused = reads.chain(self.installs.drain(..).map(|(call, _)| call));
        out.extend(refused.map(|call| Action::Refuse(call, stale)));
        if !(was_head && self.is_head()) || self.is_short() {
            self.refuse_changes(stale, &mut out);
        }
        // One that goes on as a learner, or begins to be one, is told again what it lacks. One that has it all now keeps
        // what is noted: it may have to pass it on.
        let promoted = was_learner && self.place().is_some();
        if self.place().is_none() || (old_place.is_none() && !promoted) {
            self.ops.clear();
        }
        if self.place().is_none() {
            self.joined = None;
        } else if promoted {
            self.joined = old_tail.map(|tutor| (self.epoch(), tutor));
        }
        if self.is_head() {
            self.drop_loose();
        }
        for op in self.ops.values_mut() {
            (op.sent, op.acked, op.repeated) = (false, false, true);
            // The replica before, whoever that was, has heard of it.
            op.shared |= !was_head;
        }
        let before = self.sync.take();
        let learner = self.learner();
        // Wherever they are in the chain now.
        let mut tutored = std::mem::take(&mut self.tutored);
        tutored.extend(before.as_ref().map(|sync| sync.learner));
        tutored.retain(|heir| self.place().is_some() && self.replicas().contains(heir));
        self.tutored = tutored;
        if self.is_tail()
            && let Some(learner) = learner
        {
            let kept = before.filter(|sync| sync.learner == learner && old_tail == Some(self.me));
            self.sync = Some(match kept {
                Some(mut sync) => {
                    sync.again();
                    sync
                }
                None => Sync::new(learner),
            });
            if self.sync.as_ref().is_some_and(|sync| !sync.is_compared()) {
                out.push(Action::Compare(learner));
            }
        }
        self.advance(&mut out);
        out
    }

    /// Whoever waits for a change is refused. What is noted goes to its end all the same: others may have it. If a client wants it still, it
    /// wants it again, and that comes after it.
    fn refuse_changes(&mut self, refusal: Refusal, out: &mut Vec<Action<D>>) {
        let waiting = self.backlog.drain(..).map(|(call, ..)| call);
        let callers = self.ops.values_mut().filter_map(|op| op.caller.take());
        out.extend(waiting.chain(callers).map(|call| Action::Refuse(call, refusal)));
    }

    /// What comes after a change that has not come will not be stored: whoever could have passed that one on is gone. It has not
    /// been passed on either. Were it stored, its version would name other contents than where the other change was noted.
    fn drop_loose(&mut self) {
        let mut loose = BTreeSet::new();
        for (id, op) in &self.ops {
            if !self.is_known(op.after) {
                loose.insert((op.change.chunk, *id));
            }
        }
        for (chunk, first) in loose {
            self.ops.retain(|id, op| op.change.chunk != chunk || *id < first);
        }
    }

    /// Reads are refused in this epoch and before: the replica is about to leave the chain.
    pub fn revoke(&mut self, epoch: Epoch) -> Vec<Action<D>> {
        self.revoked = self.revoked.max(Some(epoch));
        if !self.is_revoked() {
            return Vec::new();
        }
        self.refuse_reads().collect()
    }

    /// Those that have not been told to go on.
    fn refuse_reads(&mut self) -> impl Iterator<Item = Action<D>> + use<D> {
        let waiting = self.reads.extract_if(.., |read| !read.goes).collect::<Vec<_>>();
        waiting.into_iter().map(|read| Action::Refuse(read.call, Refusal::Busy))
    }

    /// Another replica is to be the head: in this epoch and before nothing more is ordered here. What clients want waits for the next epoch.
    /// When all that was ordered is stored by all, all replicas have the same, and whichever is the next head lacks nothing.
    pub fn hand_over(&mut self, epoch: Epoch) -> Vec<Action<D>> {
        self.handing_over = self.handing_over.max(Some(epoch));
        let mut out = Vec::new();
        self.advance(&mut out);
        out
    }

    fn is_handing_over(&self) -> bool {
        self.is_head() && self.handing_over.is_some_and(|epoch| self.epoch() <= epoch)
    }

    /// Whether this replica is the head, has stopped ordering changes in this epoch, and everybody has all that it has ordered.
    pub fn has_handed_over(&self) -> bool {
        self.is_handing_over() && self.ops.is_empty() && self.running.is_empty() && !self.broken
    }

    fn is_revoked(&self) -> bool {
        self.revoked.is_some_and(|epoch| self.epoch() <= epoch)
    }

    /// A client wants a change, of a group in this epoch.
    pub fn propose(
        &mut self,
        call: CallId,
        epoch: Epoch,
        chunk: ChunkId,
        deed: D,
    ) -> Vec<Action<D>> {
        let refusal = match () {
            () if epoch != self.epoch() || !self.is_head() => Some(Refusal::Stale(self.epoch())),
            () if self.broken || self.is_short() => Some(Refusal::Busy),
            () => None,
        };
        if let Some(refusal) = refusal {
            return vec![Action::Refuse(call, refusal)];
        }
        self.backlog.push((call, chunk, deed));
        let mut out = Vec::new();
        self.advance(&mut out);
        out
    }

    /// Takes proposals for which there is room.
    fn admit(&mut self, out: &mut Vec<Action<D>>) {
        let room = MAX_OPS.saturating_sub(self.ops.len()).min(self.backlog.len());
        for (call, chunk, deed) in self.backlog.drain(..room).collect::<Vec<_>>() {
            let Some(id) = self.next_version() else {
                out.push(Action::Refuse(call, Refusal::Failed(Errno::EOVERFLOW)));
                continue;
            };
            let change = Change { id, chunk, deed };
            self.note(change, Version::NONE, Some(call));
        }
    }

    fn next_version(&mut self) -> Option<Version> {
        let seq = self.last.checked_add(1)?;
        let id = Version::new(self.epoch(), seq)?;
        self.last = seq;
        Some(id)
    }

    fn note(&mut self, change: Change<D>, after: Version, caller: Option<CallId>) {
        let op = Op {
            after,
            stage: Stage::Waiting,
            grown: 0,
            sent: false,
            acked: false,
            shared: false,
            repeated: false,
            caller,
            change,
        };
        self.ops.insert(op.change.id, op);
    }

    /// The replica before passes a change on.
    pub fn forwarded(&mut self, call: CallId, step: Step<D>) -> Vec<Action<D>> {
        let mut out = Vec::new();
        let is_member = self.place().is_some_and(|place| place > 0) || self.is_learner();
        if step.epoch > self.epoch() || self.broken {
            return vec![Action::Refuse(call, Refusal::Busy)];
        }
        if step.epoch < self.epoch() || !is_member {
            return vec![Action::Refuse(call, Refusal::Stale(self.epoch()))];
        }
        if step.floor > self.floor {
            self.floor = step.floor;
            self.done = self.done.split_off(&step.floor);
        }
        let id = step.change.id;
        if self.done.contains_key(&id) || id < self.floor {
            out.push(Action::Done(call, 0));
        } else if let Some(op) = self.ops.get_mut(&id) {
            // It was repeated over another connection; nobody reads the answer to the first.
            if let Some(first) = op.caller.replace(call) {
                out.push(Action::Refuse(first, Refusal::Busy));
            }
            // In another epoch the replica before may know better.
            op.after = step.after;
        } else if self.may_have(id) {
            out.push(Action::Refuse(call, Refusal::Busy));
            self.fail(Errno::ESTALE, &mut out);
        } else {
            self.note(step.change, step.after, Some(call));
        }
        self.advance(&mut out);
        out
    }

    /// Whether it cannot be known if this replica has stored a change: it may have been in what was copied to it, and were it stored
    /// again, what came after it would be undone. The tutor would know, but is gone. Then the replica has to learn anew.
    fn may_have(&self, id: Version) -> bool {
        self.joined.is_some_and(|(joined, tutor)| {
            id.0 >> 32 < joined.0 && self.predecessor().is_some_and(|before| before != tutor)
        })
    }

    /// A change has been stored, or not.
    pub fn applied(&mut self, id: Version, result: Result<i64, Errno>) -> Vec<Action<D>> {
        let mut out = Vec::new();
        self.running.remove(&id);
        if let Some(op) = self.ops.get_mut(&id).filter(|op| op.stage == Stage::Applying) {
            match result {
                Ok(grown) => (op.stage, op.grown) = (Stage::Applied, grown),
                Err(errno) => self.not_applied(id, errno, &mut out),
            }
        }
        self.advance(&mut out);
        out
    }

    fn not_applied(&mut self, id: Version, errno: Errno, out: &mut Vec<Action<D>>) {
        let is_head = self.is_head();
        let Some(op) = self.ops.get_mut(&id) else { return };
        op.stage = Stage::Waiting;
        let told = op.shared || !is_head;
        if !told && let Some(op) = self.ops.remove(&id) {
            // Nobody else has heard of it.
            out.extend(op.caller.map(|call| Action::Refuse(call, Refusal::Failed(errno))));
            return;
        }
        self.fail(errno, out);
    }

    /// This replica must leave the chain.
    fn fail(&mut self, errno: Errno, out: &mut Vec<Action<D>>) {
        if std::mem::replace(&mut self.broken, true) {
            return;
        }
        out.extend(self.refuse_reads());
        let waiting = self.backlog.drain(..).map(|(call, ..)| call);
        out.extend(waiting.map(|call| Action::Refuse(call, Refusal::Busy)));
        out.push(Action::Broken(errno));
    }

    /// The next replica has answered a change that was passed on in this epoch.
    pub fn acked(&mut self, epoch: Epoch, id: Version) -> Vec<Action<D>> {
        let mut out = Vec::new();
        if epoch != self.epoch() {
            return out;
        }
        let Some(chunk) = self.ops.get(&id).map(|op| op.change.chunk) else { return out };
        // Changes of one chunk are stored in order: those before it are stored too. Were one of them passed on again, it
        // would come after this one.
        for op in self.ops.range_mut(..=id).map(|(_, op)| op) {
            op.acked |= op.sent && op.change.chunk == chunk;
        }
        self.advance(&mut out);
        out
    }

    /// Somebody wants to see a chunk, of a group in this epoch. It is told to go on when all that is noted of the chunk now is
    /// stored, here and below. What comes later is passed on meanwhile, and not stored here before [`Group::withdraw`]: so the chunk
    /// is as all replicas have it or are about to, however often it is changed.
    pub fn read(&mut self, call: CallId, epoch: Epoch, chunk: ChunkId) -> Vec<Action<D>> {
        if let Err(refusal) = self.readable(epoch, chunk) {
            return vec![Action::Refuse(call, refusal)];
        }
        let noted = self.ops.values().rev().find(|op| op.change.chunk == chunk);
        let upto = noted.map_or(Version::NONE, |op| op.change.id);
        self.reads.push(Read { call, chunk, upto, goes: false });
        let mut out = Vec::new();
        self.answer_reads(&mut out);
        out
    }

    /// Whether a chunk can be shown at once; `false`: only by [`Group::read`].
    ///
    /// # Errors
    /// It cannot.
    pub fn readable(&self, epoch: Epoch, chunk: ChunkId) -> Result<bool, Refusal> {
        if epoch != self.epoch() || self.place().is_none() {
            return Err(Refusal::Stale(self.epoch()));
        }
        if !self.may_show() {
            return Err(Refusal::Busy);
        }
        Ok(!self.ops.values().any(|op| op.change.chunk == chunk))
    }

    /// Whether anything may be shown in this epoch.
    pub fn may_show(&self) -> bool {
        !self.broken && !self.is_revoked()
    }

    /// Somebody waits until all that is noted now is stored, here and below, or forgotten.
    pub fn settle(&mut self, call: CallId) -> Vec<Action<D>> {
        let noted = self.ops.last_key_value().map(|(id, _)| *id);
        // What is being stored may be forgotten already, and be stored none the less.
        let running = self.running.last_key_value().map(|(id, _)| *id);
        let upto = noted.max(running).unwrap_or(Version::NONE);
        self.settles.push((call, upto));
        let mut out = Vec::new();
        self.answer_settles(&mut out);
        out
    }

    fn answer_settles(&mut self, out: &mut Vec<Action<D>>) {
        let lowest = self.ops.first_key_value().map(|(id, _)| *id);
        let running = self.running.first_key_value().map(|(id, _)| *id);
        let over = |upto: Version| lowest.into_iter().chain(running).all(|id| id > upto);
        let (go, wait): (Vec<_>, Vec<_>) =
            self.settles.drain(..).partition(|(_, upto)| over(*upto));
        self.settles = wait;
        out.extend(go.into_iter().map(|(call, _)| Action::Serve(call)));
    }

    /// Nobody waits any more for the answer to a call of [`Group::read`], [`Group::install`] or [`Group::settle`], or what was to
    /// be read has been.
    pub fn withdraw(&mut self, call: CallId) -> Vec<Action<D>> {
        self.installs.retain(|(waiting, _)| *waiting != call);
        self.settles.retain(|(waiting, _)| *waiting != call);
        let before = self.reads.len();
        self.reads.retain(|read| read.call != call);
        let mut out = Vec::new();
        // A change may have waited for it.
        if self.reads.len() < before {
            self.advance(&mut out);
        }
        out
    }

    /// The tail wants to put a chunk in place of this learner's.
    pub fn install(&mut self, call: CallId, epoch: Epoch, chunk: ChunkId) -> Vec<Action<D>> {
        if epoch > self.epoch() {
            return vec![Action::Refuse(call, Refusal::Busy)];
        }
        if epoch < self.epoch() || !self.is_learner() {
            return vec![Action::Refuse(call, Refusal::Stale(self.epoch()))];
        }
        self.installs.push((call, chunk));
        let mut out = Vec::new();
        self.answer_installs(&mut out);
        out
    }

    /// The versions have been compared with the learner's, since [`Action::Compare`]; these chunks differ.
    pub fn compared(&mut self, learner: Replica, differ: BTreeSet<ChunkId>) -> Vec<Action<D>> {
        let mut out = Vec::new();
        if let Some(sync) = self.sync.as_mut().filter(|s| s.learner == learner && !s.is_compared())
        {
            sync.compared(differ);
        }
        self.advance(&mut out);
        out
    }

    /// A copy has ended that was begun in this epoch.
    pub fn pushed(
        &mut self,
        learner: Replica,
        epoch: Epoch,
        chunk: ChunkId,
        done: bool,
    ) -> Vec<Action<D>> {
        let mut out = Vec::new();
        let current = epoch == self.epoch();
        if let Some(sync) = self.sync.as_mut().filter(|s| current && s.learner == learner) {
            sync.pushed(chunk, done);
        }
        self.advance(&mut out);
        out
    }

    /// The learner has flushed, or not.
    pub fn sealed(&mut self, learner: Replica, epoch: Epoch, done: bool) -> Vec<Action<D>> {
        let mut out = Vec::new();
        let current = epoch == self.epoch();
        if let Some(sync) = self.sync.as_mut().filter(|s| current && s.learner == learner) {
            sync.flushed(done);
        }
        self.advance(&mut out);
        out
    }

    /// Chunks have been removed here, apart from the chain. The learner may have got them since they were removed there.
    pub fn removed(&mut self, chunks: impl IntoIterator<Item = ChunkId>) -> Vec<Action<D>> {
        let mut out = Vec::new();
        if let Some(sync) = &mut self.sync {
            chunks.into_iter().for_each(|chunk| sync.lacks(chunk));
        }
        self.advance(&mut out);
        out
    }

    /// Begins what can begin, and ends what can end.
    fn advance(&mut self, out: &mut Vec<Action<D>>) {
        if self.broken {
            return;
        }
        loop {
            if self.is_head() && !self.is_handing_over() {
                self.admit(out);
            }
            self.begin(out);
            if !self.end(out) || self.backlog.is_empty() {
                break;
            }
        }
        if self.has_handed_over() && !std::mem::replace(&mut self.handed_over, true) {
            out.push(Action::HandedOver);
        }
        self.answer_reads(out);
        self.answer_installs(out);
        self.answer_settles(out);
        self.attend_learner(out);
    }

    fn begin(&mut self, out: &mut Vec<Action<D>>) {
        let (epoch, successor) = (self.epoch(), self.successor());
        let lowest = self.ops.values().find(|op| !op.acked).map(|op| op.change.id);
        // A replica before this one may ask for more than this one still has to pass on.
        let floor = match lowest {
            _ if !self.is_head() => self.floor.min(lowest.unwrap_or(Version(u64::MAX))),
            Some(lowest) => lowest,
            None => Version::NONE,
        };
        let mut unstored = BTreeSet::new();
        // What comes after something that has not come yet is not passed on before.
        let mut loose = BTreeSet::new();
        let mut unacked: BTreeMap<ChunkId, Version> = BTreeMap::new();
        // What is being shown, or about to be, stays as it is.
        let mut shown: BTreeMap<ChunkId, Version> = BTreeMap::new();
        for read in &self.reads {
            let first = shown.entry(read.chunk).or_insert(read.upto);
            *first = read.upto.min(*first);
        }
        let ids: Vec<_> = self.ops.keys().copied().collect();
        for id in ids {
            let follows = self.follows(id);
            let known = self.ops.get(&id).is_some_and(|op| self.is_known(op.after));
            let Some(op) = self.ops.get_mut(&id) else { continue };
            let chunk = op.change.chunk;
            if !op.sent && (!known || loose.contains(&chunk)) {
                loose.insert(chunk);
                continue;
            }
            // What has been begun goes on: the copy waits for it.
            let held = !op.sent && self.sync.as_ref().is_some_and(|sync| sync.holds(chunk));
            if !held && !op.sent {
                op.sent = true;
                let to = match (&mut self.sync, successor) {
                    (_, Some(successor)) => Some(successor),
                    (Some(sync), None) if sync.has(chunk) => Some(sync.learner),
                    (Some(sync), None) => {
                        sync.lacks(chunk);
                        None
                    }
                    (None, None) => None,
                };
                match to {
                    Some(to) => {
                        op.shared = true;
                        let after = unacked.get(&chunk).copied().unwrap_or(Version::NONE);
                        let step = Step { epoch, floor, after, change: op.change.clone() };
                        out.push(Action::Forward { to, step });
                    }
                    None => op.acked = true,
                }
            }
            if !op.acked {
                unacked.insert(chunk, id);
            }
            let later = shown.get(&chunk).is_some_and(|upto| *upto < id);
            let free = !held && !later && follows && !unstored.contains(&chunk);
            let idle = !self.running.values().any(|running| *running == chunk);
            if op.stage == Stage::Waiting && free && idle {
                op.stage = Stage::Applying;
                self.running.insert(id, chunk);
                out.push(Action::Apply(op.change.clone()));
            }
            if op.stage != Stage::Applied {
                unstored.insert(chunk);
            }
        }
    }

    /// Whether what a change comes after has been stored here.
    fn follows(&self, id: Version) -> bool {
        let Some(after) = self.ops.get(&id).map(|op| op.after) else { return false };
        after < self.floor
            || after == Version::NONE
            || self.done.contains_key(&after)
            || self.ops.get(&after).is_some_and(|op| op.stage == Stage::Applied)
    }

    /// Whether a change is noted here, or stored here and below.
    fn is_known(&self, id: Version) -> bool {
        id < self.floor
            || id == Version::NONE
            || self.done.contains_key(&id)
            || self.ops.contains_key(&id)
    }

    /// Answers what is stored here and below; whether there was any.
    fn end(&mut self, out: &mut Vec<Action<D>>) -> bool {
        let ready = |op: &Op<D>| op.stage == Stage::Applied && op.acked;
        let ids: Vec<_> = self.ops.values().filter(|op| ready(op)).map(|op| op.change.id).collect();
        for id in &ids {
            if let Some(op) = self.ops.remove(id) {
                if !self.is_head() {
                    self.done.insert(*id, op.change.chunk);
                }
                out.extend(op.caller.map(|call| Action::Done(call, op.grown)));
            }
        }
        !ids.is_empty()
    }

    fn answer_reads(&mut self, out: &mut Vec<Action<D>>) {
        if self.reads.is_empty() {
            return;
        }
        let mut first: BTreeMap<ChunkId, Version> = BTreeMap::new();
        for (id, op) in &self.ops {
            first.entry(op.change.chunk).or_insert(*id);
        }
        let running: BTreeSet<ChunkId> = self.running.values().copied().collect();
        for read in self.reads.iter_mut().filter(|read| !read.goes) {
            let noted = first.get(&read.chunk).is_some_and(|id| *id <= read.upto);
            if !noted && !running.contains(&read.chunk) {
                read.goes = true;
                out.push(Action::Serve(read.call));
            }
        }
    }

    fn answer_installs(&mut self, out: &mut Vec<Action<D>>) {
        let running: BTreeSet<ChunkId> = self.running.values().copied().collect();
        let (wait, go): (Vec<_>, Vec<_>) =
            self.installs.drain(..).partition(|(_, chunk)| running.contains(chunk));
        self.installs = wait;
        for (call, chunk) in go {
            // What comes in place of the chunk has all of them, or they were never made.
            self.ops.retain(|_, op| op.change.chunk != chunk);
            self.done.retain(|_, of| *of != chunk);
            out.push(Action::Serve(call));
        }
    }

    fn attend_learner(&mut self, out: &mut Vec<Action<D>>) {
        let Some(sync) = &mut self.sync else { return };
        // What is held has not been begun.
        let begun = self.ops.values().filter(|op| op.sent).map(|op| op.change.chunk);
        let busy: BTreeSet<ChunkId> = begun.chain(self.running.values().copied()).collect();
        let learner = sync.learner;
        let next = sync.next(|chunk| !busy.contains(&chunk));
        out.extend(next.into_iter().map(|chunk| Action::Push(learner, chunk)));
        if sync.seal() {
            out.push(Action::Seal(learner));
        }
        // What is passed on once more may be undone at the learner meanwhile: not all of it has arrived.
        let repeating = self.ops.values().any(|op| op.repeated && !op.acked);
        if sync.sealed && !repeating && !std::mem::replace(&mut self.told, true) {
            out.push(Action::Synced(learner));
        }
    }
}
