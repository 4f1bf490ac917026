//! Verifying what both servers have on disk while none of them runs. Nothing there is changed: the metadata is looked
//! at in a copy, because opening it brings log and store together.
//!
//! Each store is verified by itself first: whatever is found wrong there is a **fault**. Then the two are
//! compared. Differences are **notes**: a client that died between writing data and reporting it, or data that
//! nobody synced before a power failure, leave such traces, and neither is wrong.
//!
//! What belongs to nobody for certain can be removed (`repair.rs`).

mod repair;
mod scratch;

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use netfs_common::attr::{Attr, FileKind};
use netfs_common::class;
use netfs_common::errno::Errno;
use netfs_common::id::{ClusterId, Ino};

use crate::data::server::owner_of;
use crate::data::store::{ChunkInfo, ChunkKey, SegmentStore, StoreConfig, StoreError, StoreView};
use crate::meta::engine::{self, Engine, EngineConfig, EngineError};
use crate::meta::record::{Deletion, Trim};
use crate::meta::server::volumes::{self, VolumeError};
use crate::meta::server::{FileError, kept_state};
use repair::Leftovers;
use scratch::Scratch;

/// Notes of one kind that are shown; more are only counted.
const MAX_NOTES: usize = 20;
/// Inodes or chunks looked at in one step.
const STEP: usize = 4096;

/// Where to look.
#[derive(Clone, Debug)]
pub struct CheckOptions {
    /// The directory of the volumes.
    pub meta: Option<PathBuf>,
    /// The directory of the chunks.
    pub data: Option<PathBuf>,
    /// Settings of the chunk store.
    pub store: StoreConfig,
    /// Where there is room for a copy of the metadata.
    pub scratch: PathBuf,
    /// Whether to remove chunks that belong to nobody for certain.
    pub repair: bool,
}

/// Why nothing can be said.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// No state.
    #[error("{} holds no metadata and {} no data: nothing to check", meta.display(), data.display())]
    Nothing {
        /// Where metadata was looked for.
        meta: PathBuf,
        /// Where data was looked for.
        data: PathBuf,
    },
    /// A volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The chunks.
    #[error("data store {}: {source}", dir.display())]
    Data {
        /// Their directory.
        dir: PathBuf,
        /// What is wrong.
        source: StoreError,
    },
    /// It is not the data of this metadata.
    #[error("{} has the data of another cluster ({owner}): name the directory that belongs to this metadata, or none", dir.display())]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// Whose data it is.
        owner: ClusterId,
    },
    /// It cannot be known whose data it is.
    #[error("{}: whose data it has cannot be seen: {source}", dir.display())]
    Owner {
        /// The directory.
        dir: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// What the cluster has where.
    #[error(transparent)]
    Cluster(#[from] FileError),
    /// The metadata cannot be copied.
    #[error("metadata is checked in a copy (--scratch says where): {}: {source}", path.display())]
    Copy {
        /// The file or directory.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// Nothing was removed.
    #[error("nothing was repaired: {0}")]
    NotRepaired(String),
    /// A read of the metadata failed.
    #[error("the metadata cannot be read: {0}")]
    Read(#[from] Errno),
}

impl CheckError {
    fn copy(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> CheckError {
        let path = path.into();
        move |source| CheckError::Copy { path, source }
    }
}

/// What a check has found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What there is, one line each.
    pub summary: Vec<String>,
    /// Faults, one line each; very many are only counted.
    pub faults: Vec<String>,
    /// How many there are.
    pub fault_count: u64,
    /// Differences without harm, one line each; very many are only counted.
    pub notes: Vec<String>,
    /// How many there are.
    pub note_count: u64,
}

impl Report {
    fn faults(&mut self, what: &str, faults: Vec<String>, count: u64) {
        self.faults.extend(faults.into_iter().map(|fault| format!("{what}: {fault}")));
        self.fault_count += count;
    }

    fn note(&mut self, text: String) {
        self.note_count += 1;
        if self.notes.len() < MAX_NOTES {
            self.notes.push(text);
        }
    }
}

/// Verifies what there is.
///
/// # Errors
/// When it cannot be opened or read: in use, damaged beyond reading, not ours.
pub fn check(options: &CheckOptions) -> Result<Report, CheckError> {
    let mut report = Report::default();
    let names = match &options.meta {
        Some(meta) => volumes::list(meta)?,
        None => Vec::new(),
    };
    let data = options.data.as_deref().filter(|dir| dir.exists());
    if names.is_empty() && data.is_none() {
        let shown = |dir: &Option<PathBuf>| dir.clone().unwrap_or_default();
        return Err(CheckError::Nothing { meta: shown(&options.meta), data: shown(&options.data) });
    }
    let scratch = Scratch::new(&options.scratch)?;
    let mut open = Vec::new();
    for name in &names {
        let dir = options.meta.as_deref().unwrap_or(Path::new("")).join(name);
        open.push(check_volume(&scratch.copy_volume(&dir, name)?, name, &mut report)?);
    }
    if let Some(dir) = data {
        let failed = |source| CheckError::Data { dir: dir.into(), source };
        let (found, store) = SegmentStore::examine(dir).map_err(failed)?;
        report.summary.push(format!(
            "data: {} chunks, {} bytes live; {} segments, {} records, {} bytes verified",
            found.chunks, found.live_bytes, found.segments, found.records, found.bytes
        ));
        report.faults("data", found.faults, found.fault_count);
        let mut leftovers = Leftovers::default();
        let identity = store.identity().map_err(failed)?;
        if !open.is_empty() && is_all(options.meta.as_deref(), dir, identity, &mut report)? {
            compare(&mut open, &store, &mut report, &mut leftovers)?;
        }
        drop(store);
        if options.repair {
            repair::remove(dir, &options.store, &leftovers, &mut report)?;
        }
    }
    Ok(report)
}

/// Whether a directory has all data of the metadata. What is in it cannot be compared otherwise, and nothing there can be said to belong to nobody.
fn is_all(
    meta: Option<&Path>,
    dir: &Path,
    identity: Option<[u8; 16]>,
    report: &mut Report,
) -> Result<bool, CheckError> {
    let state = meta.map(kept_state).transpose()?.flatten();
    // From before there were clusters.
    let Some(state) = state else { return Ok(true) };
    let owner = owner_of(dir).map_err(|source| CheckError::Owner { dir: dir.into(), source })?;
    if let Some(owner) = owner.filter(|owner| *owner != state.owner) {
        return Err(CheckError::Foreign { dir: dir.into(), owner: ClusterId(owner) });
    }
    let servers = state.servers.len();
    if servers > 1 {
        report.summary.push(format!(
            "the data is on {servers} data servers: `netfs check --data` compares the metadata with what they have, while all of them run"
        ));
    }
    let own = state.servers.values().next().and_then(|server| server.store);
    let is_it = own.is_none_or(|own| Some(own.0) == identity);
    if servers == 1 && !is_it {
        report.summary.push(format!(
            "{} is not the directory of the data server that is in use: they are not compared",
            dir.display()
        ));
    }
    Ok(servers <= 1 && is_it)
}

fn check_volume(dir: &Path, name: &str, report: &mut Report) -> Result<Live, CheckError> {
    let failed = |source: EngineError| VolumeError::Engine { name: name.into(), source };
    let config = EngineConfig::default();
    let found = engine::check(dir, config).map_err(failed)?;
    report.summary.push(format!(
        "volume {name}: {} inodes, {} names; {} commands replayed from the log",
        found.inodes, found.entries, found.recovery.replayed
    ));
    report.faults(&format!("volume {name}"), found.faults, found.fault_count);
    let (engine, _) = Engine::open(dir, config).map_err(failed)?;
    let mut live = Live {
        first_ino: engine.volume()?.settings.first_ino,
        next_ino: engine.counters()?.next_ino,
        trims: engine.pending_trims()?.into_iter().map(|(_, t): (_, Trim)| t.ino).collect(),
        deletions: HashSet::new(),
        files: Window::default(),
        engine,
    };
    let mut from = 0;
    loop {
        let part = live.engine.pending_deletions_from(from, STEP)?;
        let Some((last, _)) = part.last() else { break };
        from = last + 1;
        let gone = part.into_iter().map(|(_, d): (_, Deletion)| (d.ino, d.generation));
        live.deletions.extend(gone);
    }
    Ok(live)
}

/// A volume, gone through in the order of its inodes.
struct Live {
    engine: Engine,
    first_ino: u64,
    next_ino: u64,
    /// Files with cuts that will be made at the next start.
    trims: HashSet<Ino>,
    /// Contents that will be removed at the next start.
    deletions: HashSet<(Ino, u32)>,
    files: Window,
}

/// The inodes around the one that was asked for last.
#[derive(Default)]
struct Window {
    inodes: Vec<Attr>,
    /// Which numbers it knows all about.
    known: Option<(Ino, Ino)>,
}

impl Window {
    /// An inode; `fetch` gives the next [`STEP`] from a number on.
    fn get(
        &mut self,
        ino: Ino,
        fetch: impl FnOnce(Ino) -> Result<Vec<Attr>, Errno>,
    ) -> Result<Option<Attr>, Errno> {
        if self.known.is_none_or(|(first, last)| ino < first || ino > last) {
            self.inodes = fetch(ino)?;
            let more = self.inodes.last().filter(|_| self.inodes.len() >= STEP);
            self.known = Some((ino, more.map_or(Ino(u64::MAX), |a| a.ino)));
        }
        let at = self.inodes.binary_search_by_key(&ino, |a| a.ino);
        Ok(at.ok().and_then(|at| self.inodes.get(at).cloned()))
    }
}

impl Live {
    /// All files with chunks, in steps.
    fn each_file(&self, mut each: impl FnMut(&Attr)) -> Result<(), Errno> {
        let mut from = Ino(0);
        loop {
            let part = self.engine.inodes_from(from, STEP)?;
            let Some(last) = part.last() else { return Ok(()) };
            from = Ino(last.ino.0 + 1);
            part.iter().filter(|a| a.kind == FileKind::File && !a.inline).for_each(&mut each);
        }
    }

    /// The inode of a chunk; chunks are asked for in ascending order.
    fn inode(&mut self, ino: Ino) -> Result<Option<Attr>, Errno> {
        self.files.get(ino, |from| self.engine.inodes_from(from, STEP))
    }
}

/// Sums of a comparison.
#[derive(Default)]
struct Sums {
    orphans: u64,
    orphan_bytes: u64,
    pending: u64,
}

fn compare(
    volumes: &mut [Live],
    store: &StoreView,
    report: &mut Report,
    leftovers: &mut Leftovers,
) -> Result<(), CheckError> {
    let mut sums = Sums::default();
    let mut from = ChunkKey::MIN;
    // The file whose chunks are being summed up, and their sum.
    let mut present: Option<(Attr, u64)> = None;
    let mut with_chunks: HashSet<Ino> = HashSet::new();
    loop {
        let part = store.list(from, STEP);
        for chunk in &part {
            let ino = Ino(chunk.key.ino);
            if present.as_ref().is_some_and(|(attr, _)| attr.ino != ino) {
                settle(present.take(), report);
            }
            let place = place_of(volumes, chunk)?;
            match place {
                Place::Live(attr) => {
                    with_chunks.insert(ino);
                    present.get_or_insert((*attr, 0)).1 += chunk.allocated_bytes;
                }
                Place::Pending => sums.pending += 1,
                Place::Orphan(why, sure) => {
                    if sure {
                        leftovers.add(chunk);
                    }
                    sums.orphans += 1;
                    sums.orphan_bytes += chunk.allocated_bytes;
                    let bytes = chunk.allocated_bytes;
                    report.note(format!(
                        "chunk {} ({bytes} bytes) belongs to nobody: {why}",
                        chunk.key
                    ));
                }
            }
        }
        let Some(last) = part.last().filter(|_| part.len() == STEP) else { break };
        match last.key.index.checked_add(1) {
            Some(index) => from = ChunkKey { index, ..last.key },
            None => break,
        }
    }
    settle(present, report);
    let mut files = 0u64;
    let mut without = Vec::new();
    for volume in volumes.iter() {
        volume.each_file(|attr| {
            files += 1;
            if attr.allocated > 0 && !with_chunks.contains(&attr.ino) {
                without.push((attr.ino, attr.allocated));
            }
        })?;
    }
    for (ino, bytes) in without {
        report.note(format!(
            "inode {}: {bytes} bytes of data are counted, and there are none",
            ino.0
        ));
    }
    report.summary.push(format!(
        "compared: {files} files with chunks; {} chunks of nobody ({} bytes), {} waiting to be removed",
        sums.orphans, sums.orphan_bytes, sums.pending
    ));
    Ok(())
}

/// Whether a file's chunks hold as much as its inode says.
fn settle(file: Option<(Attr, u64)>, report: &mut Report) {
    if let Some((attr, held)) = file
        && attr.allocated != held
    {
        let ino = attr.ino.0;
        report.note(format!(
            "inode {ino}: {} bytes of data are counted, {held} are there",
            attr.allocated
        ));
    }
}

enum Place {
    Live(Box<Attr>),
    /// It goes at the next start.
    Pending,
    /// Nobody's, and why; whether nobody can come back for it.
    Orphan(&'static str, bool),
}

fn place_of(volumes: &mut [Live], chunk: &ChunkInfo) -> Result<Place, Errno> {
    let (ino, generation) = (Ino(chunk.key.ino), chunk.key.generation);
    let volume = volumes.iter_mut().find(|v| (v.first_ino..v.next_ino).contains(&ino.0));
    let Some(volume) = volume else {
        return Ok(Place::Orphan("no volume has such an inode", false));
    };
    if volume.deletions.contains(&(ino, generation)) || volume.trims.contains(&ino) {
        return Ok(Place::Pending);
    }
    // Numbers are never given out again.
    let Some(attr) = volume.inode(ino)? else {
        return Ok(Place::Orphan("there is no such inode", true));
    };
    Ok(if attr.kind != FileKind::File {
        Place::Orphan("the inode has no chunks", false)
    } else if attr.generation != generation {
        // Generations only rise, within the class that the file has. A higher one, or another class, tells that metadata was lost.
        let old = class::is_later(attr.generation, generation);
        Place::Orphan("the file has other contents by now", old)
    } else if attr.inline {
        // These may be what a client has sent, and will tell as soon as it can.
        Place::Orphan("the inode has no chunks", false)
    } else if chunk.key.index.saturating_mul(attr.chunk_size()) >= attr.size {
        Place::Orphan("it is beyond the end of the file", false)
    } else {
        Place::Live(Box::new(attr))
    })
}

#[cfg(test)]
mod tests {
    use netfs_common::attr::Timestamp;

    use super::*;
    use crate::data::server::own;
    use crate::meta::cluster::{State, StoreId};

    #[test]
    fn only_the_data_of_this_metadata_is_compared_and_only_if_it_is_all_there() {
        let (meta, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let look =
            |report: &mut Report| is_all(Some(meta.path()), data.path(), Some([1; 16]), report);
        let mut report = Report::default();
        assert!(look(&mut report).unwrap(), "from before there were clusters");
        let mut state = State { owner: [7; 16], ..State::default() };
        state.add_server(vec!["a:1".into()]);
        let write = |state: &State| {
            std::fs::write(meta.path().join("cluster"), state.encode().unwrap()).unwrap();
        };
        write(&state);
        assert!(look(&mut report).unwrap(), "nobody has claimed the directory");
        own(data.path(), [7; 16]).unwrap();
        assert!(look(&mut report).unwrap() && report.summary.is_empty());
        let mut other = state.clone();
        other.servers.values_mut().for_each(|server| server.store = Some(StoreId([1; 16])));
        write(&other);
        assert!(look(&mut report).unwrap() && report.summary.is_empty());
        other.servers.values_mut().for_each(|server| server.store = Some(StoreId([2; 16])));
        write(&other);
        assert!(!look(&mut report).unwrap() && report.summary.len() == 1);
        report.summary.clear();
        state.add_server(vec!["b:1".into()]);
        write(&state);
        assert!(!look(&mut report).unwrap());
        assert!(report.summary[0].contains("2 data servers"), "{:?}", report.summary);
        write(&State { owner: [8; 16], ..state });
        assert!(matches!(look(&mut report), Err(CheckError::Foreign { .. })));
    }

    fn attr(ino: u64) -> Attr {
        let time = Timestamp { secs: 0, nanos: 0 };
        Attr {
            ino: Ino(ino),
            kind: FileKind::File,
            perm: 0,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            allocated: 0,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
            generation: 0,
            chunk_bits: 22,
            inline: false,
            has_xattrs: false,
            parent: Ino(0),
            version: 0,
        }
    }

    #[test]
    fn looking_up_the_inodes_of_many_chunks_reads_each_inode_once() {
        // Every third number is an inode; all are asked for.
        let there = |ino: u64| ino.is_multiple_of(3);
        let count = 10 * STEP as u64;
        let mut window = Window::default();
        let mut fetched = 0;
        for ino in 1..3 * count {
            let found = window.get(Ino(ino), |from| {
                let all = (from.0..3 * count).filter(|n| there(*n)).map(attr);
                let part: Vec<Attr> = all.take(STEP).collect();
                fetched += part.len() as u64;
                Ok(part)
            });
            assert_eq!(found.unwrap().map(|a| a.ino.0), there(ino).then_some(ino));
        }
        assert!(fetched <= count + STEP as u64, "{fetched} inodes read");
    }
}
