//! Comparing the metadata with what the data servers have, while everybody goes on working.
//!
//! ```text
//! every server's chunks, in order ---+--- of nobody?                      -> the queue of removals
//! every volume's inodes, in order ---+--- beyond the end of its file?     -> a cut
//!                                    +--- not the same on all replicas?   -> that replica learns anew
//!                                    +--- no place for it there?          -> removed there, if it may be forgotten
//!                                    +--- fewer than its data fills?      -> told
//! ```
//!
//! It takes one walk through all (`inventory.rs`, `files.rs`), page by page, and remembers only what looks wrong, at most [`MAX_SUSPECTS`] of each kind. While
//! it walks, files are made, written and removed. So what looks wrong is no more than suspected. After a pause, longer than anything
//! may take that is under way between the servers, each suspect is looked at once more, and what is wrong still is found.
//!
//! # Why nothing is removed that is, or may become, alive
//!
//! Nothing is removed because of what the walk has seen. Removals are a command of the volume's log (`namespace/sweep.rs`), which judges
//! by the inodes of its own place in the log and only by what can never change back: numbers of inodes are not given out again, and generations only rise.
//! From there it goes the way of all removals: flushed, done by every server that counts, flushed there, struck from the
//! queue. What a client has sent and not yet reported belongs to an inode that is there, in its present generation, and is no orphan.
//! It may lie beyond the known end, so that is cut only where nobody has the right to write ([`Volume::sweep`]).
//! An inode that was made a moment ago is there before its number is told to anybody. One without a name is there as long as anybody may
//! have it open. After a failure of the machine changes that were lost are made again, with their numbers: until that is over
//! nothing is judged ([`Volume::sweep`] refuses).
//!
//! What is not the same on all replicas is mended by the way of every repair: the replica leaves and learns (`replicas.rs` says which
//! one, `teach.rs` when). Copies on servers without a place in the group go as they do without an audit (`cluster/garbage.rs`).

mod confirm;
mod files;
mod inventory;
mod replicas;
mod teach;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use netfs_common::attr::{Attr, FileKind};
use netfs_common::id::{ChunkId, GroupId, Ino, ServerId};
use netfs_common::map::volume_of;
use netfs_common::wire::operator::{AuditKind, AuditReport};

use super::cluster::Cluster;
use super::data_link::DataLink;
use super::volume::Volume;
use files::Files;
use inventory::{Inventory, Seen};

/// So many of each kind are remembered; the next audit finds the others.
const MAX_SUSPECTS: usize = 16_384;
/// So many are named to people.
const MAX_NAMES: usize = 20;
/// The pause is at least as long.
const MIN_PAUSE: Duration = Duration::from_secs(2);

/// The audits of this server: one at a time.
#[derive(Default)]
pub(super) struct Audits(Mutex<Option<Shown>>);

/// What people are shown of an audit.
type Shown = Arc<Mutex<AuditReport>>;

/// What is compared.
pub(super) struct Parts {
    pub(super) cluster: Arc<Cluster>,
    pub(super) volumes: Vec<Arc<Volume>>,
    /// Volumes that cannot be opened.
    pub(super) broken: Vec<String>,
}

impl Audits {
    /// How the last one stands.
    pub(super) fn look(&self) -> AuditReport {
        let last = lock(&self.0).clone();
        last.map_or_else(AuditReport::default, |last| lock(&last).clone())
    }

    /// Begins another one, unless one is under way. Must be called within a runtime.
    pub(super) fn begin(&self, dry_run: bool, parts: Parts) -> AuditReport {
        let mut last = lock(&self.0);
        let before = last.as_ref().map(|last| lock(last).clone()).unwrap_or_default();
        if before.running {
            return before;
        }
        let number = before.number + 1;
        let report = AuditReport { number, running: true, dry_run, ..AuditReport::default() };
        let shown = Arc::new(Mutex::new(report.clone()));
        *last = Some(shown.clone());
        let link = Arc::new(DataLink::new(parts.cluster.clone()));
        let ending = Ending(shown.clone());
        let audit = Audit { parts, link, shown, dry_run, suspects: Suspects::default() };
        tokio::spawn(async move {
            let _ending = ending;
            audit.run().await;
        });
        report
    }
}

/// Whatever becomes of an audit, it is not said to run for ever.
struct Ending(Shown);

impl Drop for Ending {
    fn drop(&mut self) {
        let mut report = lock(&self.0);
        if report.running {
            report.running = false;
            report.unfinished.push("it has ended early; the server's log may say why".into());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What looks wrong.
#[derive(Default)]
struct Suspects {
    /// Contents that no inode has, by volume.
    gone: BTreeMap<u64, BTreeSet<(Ino, u32)>>,
    /// Files with chunks beyond their end, the first one, by volume.
    tails: BTreeMap<u64, BTreeMap<Ino, ChunkId>>,
    /// Contents that files do not have yet.
    ahead: BTreeSet<(Ino, u32)>,
    /// Chunks that are not the same on all replicas.
    differ: BTreeSet<ChunkId>,
    /// Chunks that servers have of groups in which they have no place.
    strangers: BTreeMap<(ServerId, GroupId), u64>,
    /// Files with fewer chunks than their data fills.
    lacking: BTreeSet<(Ino, u32)>,
    /// Chunks of volumes that are not served here, by their numbers.
    foreign: BTreeMap<u64, u64>,
    /// There were more than are remembered.
    more: bool,
    /// Not all chunks that are not the same are among the suspects.
    partial: bool,
}

/// What a chunk is to its inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Live,
    /// Nobody will ever ask for it.
    Gone,
    /// Nobody asks for it now.
    Tail,
    /// It is of contents that the file does not have yet.
    Ahead,
}

fn place(attr: Option<&Attr>, chunk: ChunkId) -> Place {
    match attr {
        None => Place::Gone,
        Some(attr) if attr.kind != FileKind::File || chunk.generation < attr.generation => {
            Place::Gone
        }
        Some(attr) if chunk.generation > attr.generation => Place::Ahead,
        Some(attr) if attr.inline => Place::Tail,
        Some(attr) if chunk.index.saturating_mul(attr.chunk_size()) >= attr.size => Place::Tail,
        Some(_) => Place::Live,
    }
}

/// One audit.
struct Audit {
    parts: Parts,
    link: Arc<DataLink>,
    shown: Shown,
    dry_run: bool,
    suspects: Suspects,
}

impl Audit {
    fn report(&self) -> MutexGuard<'_, AuditReport> {
        lock(&self.shown)
    }

    fn stage(&self, stage: &str) {
        self.report().stage = stage.into();
    }

    fn unfinished(&self, what: String) {
        let mut report = self.report();
        if report.unfinished.len() < MAX_NAMES {
            report.unfinished.push(what);
        }
    }

    fn note(&self, what: String) {
        let mut report = self.report();
        if report.notes.len() < MAX_NAMES {
            report.notes.push(what);
        }
    }

    /// Something of a kind was found, and mended or not.
    fn found(&self, what: &str, name: String, count: u64, mended: u64) {
        let mut report = self.report();
        let at = match report.kinds.iter().position(|kind| kind.what == what) {
            Some(at) => at,
            None => {
                report.kinds.push(AuditKind { what: what.into(), ..AuditKind::default() });
                report.kinds.len() - 1
            }
        };
        let kind = &mut report.kinds[at];
        (kind.found, kind.mended) = (kind.found + count, kind.mended + mended);
        if kind.names.len() < MAX_NAMES {
            kind.names.push(name);
        }
    }

    fn volume(&self, number: u64) -> Option<Arc<Volume>> {
        self.parts.volumes.iter().find(|volume| volume.number() == number).cloned()
    }

    async fn run(mut self) {
        tracing::info!(dry_run = self.dry_run, "an audit of the data servers begins");
        for name in &self.parts.broken {
            self.unfinished(format!(
                "volume {name} cannot be opened, and its chunks are not judged"
            ));
        }
        let late: Vec<_> = self.parts.volumes.extract_if(.., |v| !v.replaying.is_done()).collect();
        for volume in late {
            self.unfinished(format!(
                "volume {} waits for clients to bring back what a failure of the machine took, and is not compared",
                volume.name()
            ));
        }
        self.stage("comparing");
        self.walk().await;
        if self.suspects.more {
            self.unfinished(format!(
                "there is more than {MAX_SUSPECTS} of one kind: the rest is left to the next audit"
            ));
        }
        self.stage("looking again at what may be wrong");
        self.confirm().await;
        self.look_for_unavailable();
        for (server, why, bytes) in self.parts.cluster.without_store() {
            self.unfinished(format!(
                "data server {server} cannot use its object store, and has {bytes} bytes there only: {why}"
            ));
        }
        let (damaged, mended) = self.parts.cluster.damage();
        if damaged > 0 {
            self.note(format!(
                "since their starts data servers have found {damaged} damaged ranges, and replaced {mended} from other replicas"
            ));
        }
        let mut report = self.report();
        report.stage = "done".into();
        report.running = false;
        let (found, mended) =
            report.kinds.iter().fold((0, 0), |sum, kind| (sum.0 + kind.found, sum.1 + kind.mended));
        tracing::info!(
            chunks = report.chunks,
            found,
            mended,
            unfinished = report.unfinished.len(),
            "the audit has ended"
        );
    }

    /// Of groups whose replicas are all away, or lost, nothing can be compared, although all servers may answer.
    fn look_for_unavailable(&self) {
        for volume in &self.parts.volumes {
            let (name, all) = (volume.name(), self.parts.cluster.redundancy(volume.number()));
            let (away, groups) =
                all.values().fold((0, 0), |sum, of| (sum.0 + of.unavailable, sum.1 + of.groups));
            if away > 0 {
                self.unfinished(format!(
                    "volume {name}: {away} of {groups} placement groups are unavailable; what they had is not compared"
                ));
            }
        }
    }

    /// Goes through everything once.
    async fn walk(&mut self) {
        let present = self.parts.cluster.present();
        let mut absent = false;
        for server in self.parts.cluster.servers() {
            if !present.contains_key(&server) {
                absent = true;
                self.unfinished(format!(
                    "data server {server} does not answer: what it has is not compared"
                ));
            }
        }
        self.report().servers = u32::try_from(present.len()).unwrap_or(u32::MAX);
        let mut inventory = Inventory::new(self.link.clone(), present.into_keys());
        let mut files = Files::new(&self.parts.volumes);
        while let Some(seen) = inventory.next().await {
            self.report().chunks += 1;
            let number = volume_of(seen.chunk.ino);
            if self.volume(number).is_none() {
                *self.suspects.foreign.entry(number).or_default() += 1;
                continue;
            }
            match files.go_to(number, seen.chunk).await {
                Ok(attr) => self.judge(number, &seen, attr.as_ref(), &inventory),
                Err(errno) => {
                    self.unfinished(format!("metadata cannot be read: {errno}"));
                    self.suspects.partial = true;
                    return;
                }
            }
        }
        self.suspects.partial |= !inventory.lost().is_empty();
        for (server, why) in inventory.lost() {
            self.unfinished(format!("data server {server} did not say all that it has: {why}"));
        }
        match files.finish().await {
            // Those of a server that was not asked, or has gone meanwhile, would all be missing.
            Ok(_) if absent || !inventory.lost().is_empty() => {}
            Ok(lacking) => self.suspects.lacking = lacking,
            Err(errno) => self.unfinished(format!("metadata cannot be read: {errno}")),
        }
        self.suspects.more |= self.suspects.lacking.len() >= MAX_SUSPECTS;
        self.report().files = files.counted();
        for (number, chunks) in std::mem::take(&mut self.suspects.foreign) {
            self.unfinished(format!(
                "{chunks} chunks are of the volume of number {number}, which is not served or not compared here: they are left alone"
            ));
        }
    }

    /// Looks at a chunk and all its copies.
    fn judge(&mut self, number: u64, seen: &Seen, attr: Option<&Attr>, inventory: &Inventory) {
        let (chunk, suspects) = (seen.chunk, &mut self.suspects);
        let contents = (chunk.ino, chunk.generation);
        let room = |len: usize| len < MAX_SUSPECTS;
        match place(attr, chunk) {
            Place::Live => {}
            Place::Gone => {
                let gone = suspects.gone.entry(number).or_default();
                match room(gone.len()) {
                    true => drop(gone.insert(contents)),
                    false => suspects.more = true,
                }
                return;
            }
            Place::Tail => {
                let tails = suspects.tails.entry(number).or_default();
                match room(tails.len()) || tails.contains_key(&chunk.ino) {
                    true => drop(tails.entry(chunk.ino).or_insert(chunk)),
                    false => suspects.more = true,
                }
            }
            Place::Ahead => {
                match room(suspects.ahead.len()) {
                    true => drop(suspects.ahead.insert(contents)),
                    false => suspects.more = true,
                }
                return;
            }
        }
        let map = &self.parts.cluster.published().map;
        let Some((group, chain)) = map.chain_of(chunk) else { return };
        for (server, _) in &seen.at {
            if !chain.has(*server) {
                *suspects.strangers.entry((*server, group)).or_default() += 1;
            }
        }
        // Those that are not asked any more say nothing.
        let asked: Vec<_> = chain.replicas.iter().filter(|r| inventory.asks(r.server)).collect();
        let of = |server| seen.at.iter().find(|(id, _)| *id == server).map(|(_, version)| *version);
        let mut states = asked.iter().map(|replica| of(replica.server));
        let first = states.next();
        if states.any(|state| Some(state) != first) {
            match room(suspects.differ.len()) {
                true => drop(suspects.differ.insert(chunk)),
                false => (suspects.more, suspects.partial) = (true, true),
            }
        }
    }
}

/// Contents of a file, for people.
fn named((ino, generation): (Ino, u32)) -> String {
    format!("inode {}, generation {generation}", ino.0)
}

/// A chunk, for people.
fn chunk_named(chunk: ChunkId) -> String {
    format!("inode {}, generation {}, chunk {}", chunk.ino.0, chunk.generation, chunk.index)
}
