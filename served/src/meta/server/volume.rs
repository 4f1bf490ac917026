//! One volume: its engine, and what makes its answers true: flushes, cuts, sessions.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use netfs_common::attr::{Attr, FileKind, Timestamp};
use netfs_common::class::{self, Class};
use netfs_common::errno::Errno;
use netfs_common::id::{Ino, LogIndex, SessionId};
use netfs_common::map::INODE_BITS;
use netfs_common::net::Link;
use netfs_common::wire::hello::Lost;
use netfs_common::wire::lease::{Grant, Lease};
use netfs_common::wire::meta::{
    Answer, BURIAL, MAX_BATCH, Mutation, Op, Reply, Request, Response, StatFs, VolumeStatus,
};
use netfs_common::wire::{Claim, Hello};
use tokio::sync::{Mutex, MutexGuard, Notify};

use super::MetaOptions;
use super::client::Client;
use super::company::Company;
use super::data_link::DataLink;
use super::deletions;
use super::fencing::Harmless;
use super::leasing::Leasing;
use super::locks::LockTable;
use super::lookups::Lookups;
use super::members::{Entry, LinkId, Members, NotAdmitted};
use super::numbers::{self, Numbers};
use super::orphans::{self, OrphanNews};
use super::recent::Recent;
use super::replaying::Replaying;
use super::terms;
use super::trims::Trims;
use super::uptime::Uptime;
use super::volumes::{self, VolumeError};
use super::wants::{self, Leaves};
use crate::flusher::Flusher;
use crate::greeting::Refusal;
use crate::meta::command::{Action, Command, Settings};
use crate::meta::engine::Engine;
use crate::meta::metrics::MetaMetrics;
use crate::meta::namespace::MAX_SESSIONS;

/// How often it is looked whether the store has caught up.
const CATCH_UP: Duration = Duration::from_millis(5);
/// How often sessions are looked at, and the log's length.
pub(super) const TICK: Duration = Duration::from_millis(500);
/// The same trouble is logged this often.
pub(super) const WARN_INTERVAL: Duration = Duration::from_secs(10);

/// One volume.
pub(super) struct Volume {
    name: String,
    pub(super) engine: Arc<Engine>,
    pub(super) data: Arc<DataLink>,
    pub(super) members: Members,
    /// The longest term that sessions of before may have been told, or that of now if it is longer.
    pub(super) told: Duration,
    pub(super) uptime: Uptime,
    /// See [`MetaOptions::answer`].
    pub(super) answer: Duration,
    pub(super) leasing: Leasing,
    pub(super) trims: Trims,
    pub(super) lookups: Lookups,
    pub(super) orphan_news: OrphanNews,
    pub(super) locks: LockTable,
    pub(super) replaying: Replaying,
    pub(super) numbers: Numbers,
    /// Where the changes are in the log that are not on stable storage yet.
    recent: std::sync::Mutex<Recent>,
    /// Held by whoever makes a change, in the order of arrival.
    turn: Mutex<()>,
    pub(super) company: std::sync::Mutex<Company>,
    /// Why the log is not cut short, if so.
    trouble: std::sync::Mutex<Option<String>>,
    /// Cuts with a lower number are known to `trims`, or complete.
    pub(super) next_trim: AtomicU64,
    flusher: Flusher,
    sync_always: bool,
    id: u64,
    settings: Settings,
    /// What was lost whenever the machine failed.
    lost: Vec<Lost>,
    /// Told when `harmless` gets one more.
    pub(super) ended: Notify,
    pub(super) harmless: Harmless,
    pub(super) metrics: MetaMetrics,
}

/// Why the server ends a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ends {
    /// It has not been heard of for its term.
    Silent,
    /// It renews itself, and does not give back what it is asked for, or does not say after a restart what it has.
    Unresponsive,
}

/// What a greeting has come to.
pub(super) struct Joined {
    /// The session was there before.
    pub(super) resumed: bool,
    /// What its calls come with.
    pub(super) entry: Entry,
}

impl Volume {
    /// Puts a volume to work. Must be called within a runtime.
    pub(super) fn start(
        name: String,
        engine: Engine,
        data: Arc<DataLink>,
        options: &MetaOptions,
    ) -> Result<Arc<Volume>, VolumeError> {
        let failed = |errno| VolumeError::Unreadable { name: name.clone(), errno };
        // Before anything else is done that gets a position in the log.
        let clean = skip_lost_numbers(&name, &engine)?;
        let replays = !clean && volumes::machine_failed(engine.dir())?;
        let lost = engine.lost().map_err(failed)?;
        let told = terms::raise(engine.dir(), options.term)?;
        let engine = Arc::new(engine);
        let record = engine.volume().map_err(failed)?;
        let sessions = engine.sessions().map_err(failed)?;
        let known: Vec<_> =
            sessions.into_iter().map(|(id, s)| (id, s.description, s.owner)).collect();
        let next = engine.counters().map_err(failed)?.next_ino;
        let lookups = Lookups::new();
        known.iter().for_each(|(id, ..)| lookups.found(*id, next));
        let flushed = engine.clone();
        let flusher = Flusher::start(options.flush_interval, move || flushed.flush(flushed.last()))
            .map_err(|source| VolumeError::Io { path: engine.dir().to_owned(), source })?;
        // Those that have ended too: what they have sent may still arrive.
        let over = engine.ended_sessions().map_err(failed)?;
        let before: Vec<_> =
            known.iter().map(|(id, ..)| *id).chain(over.iter().map(|(id, _)| *id)).collect();
        let locks = LockTable::new(before.iter().copied());
        let volume = Arc::new(Volume {
            leasing: Leasing::new(&before),
            members: Members::new(options.term, told, known),
            told,
            uptime: Uptime::new(TICK, options.term),
            answer: options.answer,
            trims: Trims::default(),
            lookups,
            orphan_news: OrphanNews::default(),
            locks,
            replaying: Replaying::new(if replays { &before } else { &[] }),
            numbers: Numbers::default(),
            recent: std::sync::Mutex::default(),
            turn: Mutex::new(()),
            company: std::sync::Mutex::default(),
            trouble: std::sync::Mutex::default(),
            next_trim: AtomicU64::new(0),
            flusher,
            sync_always: options.sync_always,
            id: record.id,
            settings: record.settings,
            lost,
            ended: Notify::new(),
            harmless: Harmless::default(),
            metrics: options.metrics.clone(),
            name: name.clone(),
            engine,
            data,
        });
        if volume.replaying.is_done() {
            volume.nothing_to_replay().map_err(failed)?;
        } else {
            let sessions = before.len();
            tracing::warn!(volume = %volume.name, sessions, "the machine has failed: clients are waited for, which may have what was lost");
        }
        tokio::spawn(volume.clone().ask_for_numbers(volume.data.cluster()));
        tokio::spawn(volume.clone().keep_time());
        tokio::spawn(volume.clone().keep_log_short());
        if told > options.term {
            tokio::spawn(volume.clone().forget_longer_term());
        }
        tokio::spawn(volume.clone().keep_lease_time());
        tokio::spawn(deletions::work_off(volume.clone()));
        tokio::spawn(volume.clone().reap());
        for (id, session) in over {
            volume.members.found_closed(id, session.description, session.owner);
            tokio::spawn(volume.clone().give_away(id));
        }
        Ok(volume)
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Its number: that of its inodes and placement groups.
    pub(super) fn number(&self) -> u64 {
        number_of(&self.settings)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn lost(&self) -> Vec<Lost> {
        self.lost.clone()
    }

    pub(super) fn inline_limit(&self) -> u32 {
        self.settings.inline_limit
    }

    pub(super) fn term(&self) -> Duration {
        self.members.term()
    }

    pub(super) fn trouble(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is wrong with the volume, if anything.
    pub(super) fn failure(&self) -> Option<String> {
        let stopped = self.engine.failure().map(|why| format!("takes no changes: {why}"));
        stopped.or_else(|| {
            self.trouble().as_ref().map(|why| format!("has a log that only grows: {why}"))
        })
    }

    /// Makes a change when its turn has come.
    pub(super) async fn execute(&self, command: Command) -> (LogIndex, Reply) {
        let _turn = self.my_turn().await;
        self.engine.execute(command)
    }

    /// Waits until a change can be made. While the store has to catch up, changes wait in the order in which they
    /// came, and everything else goes on.
    pub(super) async fn my_turn(&self) -> MutexGuard<'_, ()> {
        let turn = self.turn.lock().await;
        // Otherwise the engine itself would wait, and everybody with it. It also says what is wrong.
        while self.engine.is_ready() == Ok(false) {
            tokio::time::sleep(CATCH_UP).await;
        }
        turn
    }

    /// A client begins its session or takes it up again. `owner`: the name in its certificate.
    pub(super) async fn join(
        self: &Arc<Self>,
        hello: &Hello,
        owner: &str,
    ) -> Result<Joined, Refusal> {
        let failed = |errno| Refusal::Unavailable(format!("the volume cannot be used: {errno}"));
        let id = hello.session;
        let known = self.engine.session(id).map_err(failed)?;
        let over = known.as_ref().is_none_or(|session| session.ended);
        if over && hello.claim == Claim::Resume && !self.members.was_ended(id) {
            let text = "it was silent for too long, and others may have what it had";
            return Err(Refusal::SessionOver(text.into()));
        }
        if over && known.is_some() {
            let text = "what the session has left is still being removed";
            return Err(Refusal::Unavailable(text.into()));
        }
        if known.as_ref().is_some_and(|session| session.owner != owner) {
            return Err(not_yours());
        }
        let resumed = known.is_some();
        if !resumed && self.members.count() >= MAX_SESSIONS {
            return Err(too_many());
        }
        let enter = || {
            self.members.enter(id, owner, &hello.client).map_err(|why| match why {
                NotAdmitted::Stranger => not_yours(),
                NotAdmitted::Ended => Refusal::Limit("the session has ended".into()),
            })
        };
        let entry = enter()?;
        if !resumed {
            let next = self.engine.counters().map_err(failed)?.next_ino;
            let (description, owner) = (hello.client.clone(), owner.to_owned());
            let open = Action::OpenSession { id, description, owner };
            let (index, reply) = self.execute(Command { time: now(), action: open }).await;
            match reply {
                Ok(_) if hello.claim == Claim::Begin => self.lookups.begin(id, 0),
                Ok(_) => self.lookups.begin(id, next),
                Err(Errno::ENFILE) => {
                    self.members.left(id);
                    return Err(too_many());
                }
                Err(errno) => {
                    self.members.left(id);
                    return Err(failed(errno));
                }
            }
            // What the client is told to be done is done in this session, so it must last as long.
            self.flush_to(index).await.map_err(failed)?;
        }
        Ok(Joined { resumed, entry })
    }

    /// The client has its welcome.
    pub(super) fn connected(
        self: &Arc<Self>,
        id: SessionId,
        entry: Entry,
        link: Link,
    ) -> Option<LinkId> {
        let link_id = self.members.connected(id, entry, link.clone())?;
        self.tell_company(Some(link));
        self.tell_all_orphans(id);
        Some(link_id)
    }

    pub(super) fn disconnected(&self, id: SessionId, link_id: LinkId) {
        self.members.disconnected(id, link_id);
    }

    /// The server is about to end: no call is kept waiting for other clients.
    pub(super) fn let_go(&self) {
        self.replaying.close();
        self.numbers.close();
        self.locks.close();
        self.leasing.close();
    }

    /// Lets go of all connections.
    pub(super) fn forget_links(&self) {
        self.members.forget_links();
    }

    /// Brings all to stable storage, at the end.
    pub(super) async fn finish(&self) -> Result<(), VolumeError> {
        let failed = |errno| VolumeError::Unflushed { name: self.name.clone(), errno };
        self.flush_to(self.engine.last()).await.map_err(failed)?;
        let engine = self.engine.clone();
        match tokio::task::spawn_blocking(move || engine.checkpoint()).await {
            // Else what the machine's failure took is still to be made again.
            Ok(Ok(())) if !self.replaying.is_done() => Ok(()),
            Ok(Ok(())) => volumes::mark_clean(self.engine.dir()),
            Ok(Err(source)) => Err(VolumeError::Engine { name: self.name.clone(), source }),
            Err(error) => {
                tracing::error!(%error, "the last checkpoint has panicked");
                Err(failed(Errno::EIO))
            }
        }
    }

    /// Returns when all up to a change is on stable storage.
    pub(super) async fn flush_to(&self, index: LogIndex) -> Result<(), Errno> {
        if self.engine.durable() >= index { Ok(()) } else { self.flusher.flush().await }
    }

    /// Answers a client's call. Up to the first wait it does so in the order of arrival.
    pub(super) async fn answer(self: &Arc<Self>, client: &Client, request: Request) -> Answer {
        if !self.members.seen(client.session, client.entry) {
            return Answer::bare(Err(Errno::ESHUTDOWN));
        }
        if !self.replaying.is_done() {
            match &request {
                Request::Replay { .. } | Request::Renew | Request::Inspect(_) => {}
                // It is what is waited for.
                Request::Mutate(Mutation { seq: BURIAL, op: Op::EndSession, .. }) => {
                    return Answer::bare(self.bury(client.session).await);
                }
                request => {
                    if matches!(request, Request::Reclaim { .. }) {
                        // It has nothing to offer, or does not know that it should.
                        self.replay_ends(client.session);
                    }
                    let done = self.replaying.wait().await;
                    if !done || !self.members.goes_on(client.session, client.entry) {
                        return Answer::bare(Err(Errno::ESHUTDOWN));
                    }
                }
            }
        }
        let (mut grants, mut at) = (Vec::new(), LogIndex(0));
        let reply = match request {
            Request::Renew => Ok(Response::Done),
            Request::Sync => self.flush_to(self.engine.last()).await.map(|()| Response::Done),
            Request::StatFs => self.statfs().await,
            Request::Mutate(mutation) => self.mutate(client, mutation, &mut grants, &mut at).await,
            Request::Reclaim { leases, done } => {
                self.reclaim_leases(client.session, &leases, done, &mut grants)
            }
            Request::Replay { changes, done } => self.replay(client.session, changes, done).await,
            Request::Lock(call) => {
                let goes_on = || self.members.goes_on(client.session, client.entry);
                self.locks.answer(client.session, call, goes_on).await
            }
            Request::Inspect(about) => self.inspect(client.session, &about),
            // Answered by whoever knows all volumes.
            Request::Status | Request::Operate(_) => Err(Errno::EINVAL),
            read => self.read(client, &read, &mut grants).await,
        };
        Answer { reply, grants, at, durable: self.engine.durable() }
    }

    async fn read(
        self: &Arc<Self>,
        client: &Client,
        request: &Request,
        grants: &mut Vec<Grant>,
    ) -> Reply {
        let session = client.session;
        let mut place = None;
        loop {
            let mut reply = self.engine.read(request).unwrap_or(Err(Errno::EINVAL));
            if let Ok(response) = &reply {
                let cutting = self.trims.shown_in(response);
                if !cutting.is_empty() {
                    self.trims.wait(&cutting).await?;
                    continue;
                }
            }
            // It may have ended while this was waiting, and nobody would take back what it were given.
            if !self.members.goes_on(session, client.entry) {
                return Err(Errno::ESHUTDOWN);
            }
            match self.may_run(session, &wants::of_question(request, &reply), place.take()) {
                Ok(()) => {
                    self.grant(session, request, &mut reply, grants);
                    if let Ok(response) = &reply {
                        self.lookups.note(session, response);
                    }
                    return reply;
                }
                Err((waits, ready)) => {
                    waits.ready(ready).await?;
                    place = Some(waits);
                }
            }
        }
    }

    /// Gives what may be kept of an answer.
    fn grant(
        &self,
        session: SessionId,
        request: &Request,
        reply: &mut Reply,
        grants: &mut Vec<Grant>,
    ) {
        let now = self.leasing.now();
        let mut table = self.leasing.table();
        if let Ok(Response::Listing { entries, .. }) = reply {
            // What somebody else may be changing is shown without attributes.
            for entry in entries.iter_mut().filter(|e| e.attr.is_some()) {
                if !table.is_free(session, &[wants::of_entry(entry.ino)]) {
                    entry.attr = None;
                }
            }
        }
        for (ino, lease) in wants::granted_with(request, reply) {
            grants.extend(table.grant(now, session, ino, lease));
        }
    }

    fn reclaim_leases(
        self: &Arc<Self>,
        session: SessionId,
        leases: &[(Ino, Lease)],
        done: bool,
        grants: &mut Vec<Grant>,
    ) -> Reply {
        if leases.len() > MAX_BATCH {
            return Err(Errno::E2BIG);
        }
        let now = self.leasing.now();
        let mut table = self.leasing.table();
        grants.extend(table.reclaim(now, session, leases));
        if done {
            table.reclaimed(now, session);
        }
        drop(table);
        self.work_off_leases();
        Ok(Response::Done)
    }

    /// A session is over: others get what it held.
    pub(super) fn end_leases(self: &Arc<Self>, session: SessionId) {
        self.leasing.table().end(self.leasing.now(), session);
        self.locks.end(session);
        self.replay_ends(session);
        self.work_off_leases();
        self.tell_company(None);
    }

    /// Makes a change when nobody else's leases stand against it and its turn has come; gives what may be kept of the answer.
    async fn change(
        self: &Arc<Self>,
        client: &Client,
        command: Command,
        grants: &mut Vec<Grant>,
    ) -> (LogIndex, Reply) {
        let session = client.session;
        let mut place = None;
        loop {
            let turn = self.my_turn().await;
            // As with a question.
            if !self.members.goes_on(session, client.entry) {
                return (LogIndex(0), Err(Errno::ESHUTDOWN));
            }
            let wants = match &command.action {
                Action::Mutate { op, .. } => {
                    wants::of_change(|parent, name| self.engine.child(parent, name), op)
                }
                _ => Ok((Vec::new(), Leaves::AsItWas)),
            };
            let (wants, leaves) = match wants {
                Ok(wants) => wants,
                Err(errno) => return (LogIndex(0), Err(errno)),
            };
            match self.may_run(session, &wants, place.take()) {
                Ok(()) => {
                    let last = self.engine.last();
                    let number = match &command.action {
                        Action::Mutate { seq, .. } => Some((session, *seq)),
                        _ => None,
                    };
                    let (mut index, reply) = self.engine.execute(command);
                    if let Some(number) = number {
                        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
                        recent.durable(self.engine.durable());
                        match index > last {
                            true => recent.add(index, number),
                            // When it is not among them, it is on stable storage.
                            false => index = recent.at(number).unwrap_or(LogIndex(0)),
                        }
                    }
                    if let Ok(Response::Changed { target, attrs }) = &reply {
                        // When it was made before, much may have been written since.
                        let again = index <= last && leaves == Leaves::Clean;
                        let leaves = if again { Leaves::Written } else { leaves };
                        self.grant_changed(session, leaves, *target, attrs, grants);
                    }
                    return (index, reply);
                }
                Err((waits, ready)) => {
                    drop(turn);
                    if let Err(errno) = waits.ready(ready).await {
                        return (LogIndex(0), Err(errno));
                    }
                    place = Some(waits);
                }
            }
        }
    }

    fn grant_changed(
        &self,
        session: SessionId,
        leaves: Leaves,
        target: Option<Ino>,
        attrs: &[Attr],
        grants: &mut Vec<Grant>,
    ) {
        let now = self.leasing.now();
        let mut table = self.leasing.table();
        for attr in attrs {
            let own = Some(attr.ino) == target && attr.kind == FileKind::File;
            if own && leaves == Leaves::Clean {
                table.wrote_in_order(attr.ino);
            }
            let writes = own && leaves != Leaves::AsItWas;
            let lease = if writes { Lease::Write } else { Lease::Read };
            grants.extend(table.grant(now, session, attr.ino, lease));
        }
    }

    async fn mutate(
        self: &Arc<Self>,
        client: &Client,
        mutation: Mutation,
        grants: &mut Vec<Grant>,
        at: &mut LogIndex,
    ) -> Reply {
        let Mutation { seq, answered, time, sync, op } = mutation;
        let time = client.clock.date(time, &client.description);
        let ends = matches!(op, Op::EndSession);
        let died = ends && seq == BURIAL;
        let may_cut = match &op {
            Op::SetAttr { set, .. } => set.size.is_some(),
            Op::CutTail { .. } => true,
            _ => false,
        };
        if numbers::names_chunks(&op) && !self.numbers.wait().await {
            return Err(Errno::ESHUTDOWN);
        }
        let forgotten = match &op {
            Op::Forget { inos } => inos.clone(),
            _ => Vec::new(),
        };
        if let Op::SetXattr { ino, name, value, .. } = &op
            && name == class::XATTR
            && let Some(class) = Class::parse(value)
            && self.takes_class(*ino, class)?
        {
            // Whoever makes a file of this class finds a place for its data.
            self.data.ensure_class(self.number(), class).await?;
        }
        self.metrics.changed(&op);
        let may_remove = orphans::may_remove(&op);
        let action = Action::Mutate { session: client.session, seq, answered, op };
        let command = Command { time, action };
        let (index, reply) = self.change(client, command, grants).await;
        *at = index;
        // Before anything is waited for: others may remove what the client is about to be shown.
        if let Ok(response) = &reply {
            self.lookups.forget(client.session, &forgotten);
            self.lookups.note(client.session, response);
        }
        // Nor may anybody be shown a file that is yet to be cut.
        if may_cut {
            self.begin_trims()?;
        }
        if may_remove && let Ok(response) = &reply {
            self.release(client.session, response).await;
        }
        if ends && reply.is_ok() {
            // The connection is left to the client, which closes it when it has the answer.
            self.lookups.end(client.session);
            if died {
                drop(self.members.close(client.session));
                tokio::spawn(self.clone().give_away(client.session));
            } else {
                self.members.ended(client.session);
                self.end_leases(client.session);
                self.harmless.add(client.session);
                self.ended.notify_waiters();
            }
        }
        let mut reply = reply?;
        let cutting = self.trims.shown_in(&reply);
        if !cutting.is_empty() {
            self.trims.wait(&cutting).await?;
            self.refresh(&mut reply, &cutting);
        }
        if sync || self.sync_always {
            // The client takes all that the answer shows to be on stable storage.
            self.flush_to(index.max(newest(&reply))).await?;
        }
        Ok(reply)
    }

    /// Brings what an answer says of inodes up to date that have been cut since.
    fn refresh(&self, reply: &mut Response, cut: &[Ino]) {
        let Response::Changed { attrs, .. } = reply else { return };
        for attr in attrs.iter_mut().filter(|attr| cut.contains(&attr.ino)) {
            // One that is gone by now is shown as it was when the change was made.
            if let Ok(Response::Entry { attr: present, .. }) = self.engine.get(attr.ino) {
                *attr = present;
            }
        }
    }

    async fn statfs(&self) -> Reply {
        let usage = self.data.usage(self.number()).await?;
        let state = self.engine.counters()?;
        Ok(Response::StatFs(StatFs {
            // What others keep on the same disks is neither used nor free here.
            bytes: usage.live.saturating_add(usage.free),
            bytes_free: usage.free,
            inodes: self.settings.max_inodes,
            inodes_free: self.settings.max_inodes.saturating_sub(state.inodes),
        }))
    }

    /// Has the data servers remove chunks that belong to nobody, and what there is beyond the end of files that nobody writes to. Of the
    /// latter, which ones that was.
    ///
    /// Nothing is awaited from the look at the leases until the cuts are known, so nobody gets the right to write in between:
    /// whoever asks for it afterwards is shown the file, and for that waits until it is cut. Who has that right may have sent what it has not
    /// reported, and so may a session that has ended and is not fenced yet: it keeps its leases until then.
    pub(super) async fn sweep(
        self: &Arc<Self>,
        gone: Vec<(Ino, u32)>,
        mut tails: Vec<Ino>,
    ) -> Result<Vec<Ino>, Errno> {
        // Changes that were lost may be made again until then, with the numbers that they had.
        if !self.replaying.is_done() {
            return Err(Errno::EBUSY);
        }
        let turn = self.my_turn().await;
        tails.retain(|ino| self.nobody_writes(*ino));
        let action = Action::Sweep { gone, tails: tails.clone() };
        let (_, reply) = self.engine.execute(Command { time: now(), action });
        let begun = self.begin_trims();
        drop(turn);
        reply?;
        begun?;
        Ok(tails)
    }

    /// Whether nobody has the right to write to a file. A file in its inode gets another generation when its tail is cut, so
    /// nobody may be relying on its attributes either.
    pub(super) fn nobody_writes(&self, ino: Ino) -> bool {
        let inline = match self.engine.get(ino) {
            Ok(Response::Entry { attr, .. }) => attr.inline,
            _ => return false,
        };
        let table = self.leasing.table();
        let holders = table.holders(ino);
        let none = !holders.iter().any(|(_, lease)| inline || *lease == Lease::Write);
        none && !table.in_grace() && !self.trims.is_pending(ino)
    }

    pub(super) async fn status(&self) -> Result<VolumeStatus, Errno> {
        let status = self.engine.status()?;
        let mut classes = self.data.redundancy(self.number());
        Ok(VolumeStatus {
            name: self.name.clone(),
            inodes: status.state.inodes,
            bytes: status.state.bytes,
            // Unknown while the data server does not answer; the rest is worth knowing all the more.
            capacity: self.data.usage(self.number()).await.map_or(0, |usage| usage.capacity),
            orphans: status.state.orphans,
            log_index: status.last.0,
            log_durable: status.durable.0,
            sessions: self.members.list(),
            redundancy: classes.remove(&Class::DEFAULT).unwrap_or_default(),
            classes: classes.into_iter().collect(),
        })
    }
}

/// The number of a volume with these settings.
pub(super) fn number_of(settings: &Settings) -> u64 {
    settings.first_ino >> INODE_BITS
}

/// The latest change that an answer shows.
fn newest(response: &Response) -> LogIndex {
    match response {
        Response::Changed { attrs, .. } => {
            LogIndex(attrs.iter().map(|attr| attr.version).max().unwrap_or(0))
        }
        _ => LogIndex(0),
    }
}

fn not_yours() -> Refusal {
    Refusal::NotEntitled("the session was opened with another certificate".into())
}

fn too_many() -> Refusal {
    Refusal::Limit("too many clients have the volume mounted".into())
}

/// Inode numbers that are left out when the end of the log may have been lost: far more than can be
/// given out between two flushes.
const LOST_INODES: u32 = 1 << 22;

/// After anything but an orderly end, numbers that lost commands may have given out are not given out again: clients
/// may know the versions, and the data server may hold chunks under the inodes.
///
/// Says whether the end was in order.
fn skip_lost_numbers(name: &str, engine: &Engine) -> Result<bool, VolumeError> {
    if volumes::take_clean(engine.dir())? {
        return Ok(true);
    }
    let failed = |errno| VolumeError::Unreadable { name: name.into(), errno };
    engine.skip_lost(LOST_INODES, now()).map_err(failed)?;
    Ok(false)
}

/// The server's clock.
pub(super) fn now() -> Timestamp {
    Timestamp::from(SystemTime::now())
}
