//! Verifying what both servers have on disk while none of them runs.
//!
//! Each store is verified by itself first: whatever is found wrong there is a **fault**. Then the two are
//! compared. Differences are **notes**: a client that died between writing data and reporting it, or data that
//! nobody synced before a power failure, leave such traces, and neither is wrong.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use netfs_common::attr::{Attr, FileKind};
use netfs_common::errno::Errno;
use netfs_common::id::Ino;

use crate::data::store::{ChunkInfo, ChunkKey, SegmentStore, StoreConfig, StoreError};
use crate::meta::engine::{self, Engine, EngineConfig, EngineError};
use crate::meta::record::{Deletion, Trim};
use crate::meta::server::volumes::{self, VolumeError};

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
    /// A read of the metadata failed.
    #[error("the metadata cannot be read: {0}")]
    Read(#[from] Errno),
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
    let mut open = Vec::new();
    for name in &names {
        let dir = options.meta.as_deref().unwrap_or(Path::new("")).join(name);
        open.push(check_volume(&dir, name, &mut report)?);
    }
    if let Some(dir) = data {
        let failed = |source| CheckError::Data { dir: dir.into(), source };
        let found = SegmentStore::check(dir).map_err(failed)?;
        report.summary.push(format!(
            "data: {} chunks, {} bytes live; {} segments, {} records, {} bytes verified",
            found.chunks, found.live_bytes, found.segments, found.records, found.bytes
        ));
        report.faults("data", found.faults, found.fault_count);
        if !open.is_empty() {
            let (store, _) = SegmentStore::open(dir, options.store.clone()).map_err(failed)?;
            compare(&mut open, &store, &mut report)?;
        }
    }
    Ok(report)
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
        files: Vec::new(),
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
    /// The next files, the nearest last.
    files: Vec<Attr>,
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
        if self.files.last().is_none_or(|a| a.ino > ino)
            && self.files.first().is_none_or(|a| a.ino < ino)
        {
            self.files = self.engine.inodes_from(ino, STEP)?;
        }
        match self.files.binary_search_by_key(&ino, |a| a.ino) {
            Ok(at) => Ok(self.files.get(at).cloned()),
            Err(_) => {
                self.files = self.engine.inodes_from(ino, STEP)?;
                Ok(self.files.first().filter(|a| a.ino == ino).cloned())
            }
        }
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
    store: &SegmentStore,
    report: &mut Report,
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
                Place::Orphan(why) => {
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
    Orphan(&'static str),
}

fn place_of(volumes: &mut [Live], chunk: &ChunkInfo) -> Result<Place, Errno> {
    let (ino, generation) = (Ino(chunk.key.ino), chunk.key.generation);
    let volume = volumes.iter_mut().find(|v| (v.first_ino..v.next_ino).contains(&ino.0));
    let Some(volume) = volume else { return Ok(Place::Orphan("no volume has such an inode")) };
    if volume.deletions.contains(&(ino, generation)) || volume.trims.contains(&ino) {
        return Ok(Place::Pending);
    }
    let Some(attr) = volume.inode(ino)? else { return Ok(Place::Orphan("there is no such inode")) };
    Ok(if attr.kind != FileKind::File || attr.inline {
        Place::Orphan("the inode has no chunks")
    } else if attr.generation != generation {
        Place::Orphan("the file has other contents by now")
    } else if chunk.key.index.saturating_mul(attr.chunk_size()) >= attr.size {
        Place::Orphan("it is beyond the end of the file")
    } else {
        Place::Live(Box::new(attr))
    })
}
