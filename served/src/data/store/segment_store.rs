//! Opening, closing, and what all operations share.

use std::io;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use lru::LruCache;

use super::body::Codecs;
use super::chunk::Chunk;
use super::config::StoreConfig;
use super::disk::{Access, Disk, DiskFile, RealDisk, read_full, write_all};
use super::error::StoreError;
use super::extent::Extent;
use super::format::{
    FIRST_RECORD, FORMAT_VERSION, HEADER_BLOCK_LEN, HeaderBlock, Kind, LOCK_FILE, SEGMENT_MAGIC,
    STORE_FILE, STORE_MAGIC, STORE_TEMP, SegmentId, StoreId, segment_name,
};
use super::holes::{self, Holes};
use super::key::{ChunkKey, ChunkVersion};
use super::log::{self, Draft, Log, Resume, Space};
use super::pages::Tables;
use super::reclaim::Reclaimer;
use super::recover::{self, Recovered, RecoveryReport};
use super::scan::is_medium_error;
use super::snapshot::{self, SNAPSHOT_FILE, SNAPSHOT_TEMP, SnapshotPoint};
use super::state::{Freed, SegmentInfo, State, tally};
use super::sync::{lock, lock_soon, read, try_lock, write};

/// Chunks on a local disk. See the [module](super) for how.
///
/// Locks, in the order in which they are taken: `reclaimer`, the log's, `state`, `files`; that of `tables` alone.
pub struct SegmentStore {
    pub(super) disk: Arc<dyn Disk>,
    id: StoreId,
    pub(super) config: StoreConfig,
    pub(super) log: Log,
    pub(super) state: RwLock<State>,
    /// Segments open for reading. Opened under the lock, so that a removed one cannot come back.
    files: Mutex<LruCache<SegmentId, Arc<dyn DiskFile>>>,
    /// Checksums of what was read lately.
    pub(super) tables: Tables,
    pub(super) reclaimer: Mutex<Reclaimer>,
    pub(super) holes: Holes,
    /// How the chunks of volumes are written, by their numbers. All others are written as they are.
    pub(super) codecs: Codecs,
    /// The log up to this sequence number is in the snapshot on disk.
    pub(super) snapshot_seq: AtomicU64,
}

/// Figures for `statfs` and for metrics.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Usage {
    /// What the store could hold, the reserve not counted.
    pub capacity_bytes: u64,
    /// What can be appended now. What is reclaimable comes on top.
    pub free_bytes: u64,
    /// Bytes of chunks.
    pub live_bytes: u64,
    /// What they take in the segments: less if they are compressed. An estimate where segments hold dead data too.
    pub stored_bytes: u64,
    /// Bytes of segment files that nobody needs.
    pub dead_bytes: u64,
    /// Those of them that a full store wins back: segments of which almost all lives stay as they are.
    pub reclaimable_bytes: u64,
    /// Chunks that hold data.
    pub chunks: u64,
    /// Segment files.
    pub segments: u64,
    /// Bytes of chunks that are in objects of the bucket, and not here.
    pub away_bytes: u64,
}

/// One chunk in a listing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkInfo {
    /// Its name.
    pub key: ChunkKey,
    /// Bytes that are not holes.
    pub allocated_bytes: u64,
    /// End of its last data.
    pub end: u64,
    /// What it has seen.
    pub version: ChunkVersion,
    /// Those of the allocated bytes that are in its object, and not here.
    pub away_bytes: u64,
    /// The version that names the object; unknown if nothing is away.
    pub object: ChunkVersion,
}

impl ChunkInfo {
    fn of(key: ChunkKey, chunk: &Chunk) -> Self {
        Self {
            key,
            allocated_bytes: chunk.allocated(),
            end: chunk.extents.0.last().map_or(0, |e| u64::from(e.end())),
            version: chunk.version,
            away_bytes: chunk.away(),
            object: chunk.object,
        }
    }
}

/// Where one chunk of a file has data.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChunkRanges {
    /// Which chunk of the file.
    pub index: u64,
    /// Offset and length, sorted, neighbours joined.
    pub ranges: Vec<(u64, u64)>,
}

pub(super) fn list(state: &State, from: ChunkKey, limit: usize) -> Vec<ChunkInfo> {
    state.index.iter_from(from).take(limit).map(|(key, chunk)| ChunkInfo::of(key, chunk)).collect()
}

/// The store's identity, as `store` says it. `Ok(None)`: there is no such file.
pub(super) fn read_store_id(disk: &dyn Disk) -> Result<Option<StoreId>, StoreError> {
    let file = match disk.open(STORE_FILE) {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::IsADirectory) => {
            return Ok(None);
        }
        Err(e) => return Err(StoreError::io("open", STORE_FILE)(e)),
    };
    let mut block = [0; HEADER_BLOCK_LEN];
    let got =
        read_full(file.as_ref(), &mut block, 0).map_err(StoreError::io("read", STORE_FILE))?;
    let header = if got == block.len() {
        HeaderBlock::decode(&block, STORE_MAGIC, STORE_FILE)?
    } else {
        None
    };
    let why = || {
        "it is damaged; restore it from a backup, or its first 64 bytes from any other copy"
            .to_owned()
    };
    let header =
        header.ok_or_else(|| StoreError::BadFile { file: STORE_FILE.into(), why: why() })?;
    Ok(Some(header.store))
}

/// What `store` said before it was damaged. Every segment names its store, in a header with a checksum of its own. One that all readable
/// headers name is the right one. Where two disagree somebody has mixed files of several stores; then nothing is known, as without
/// any segment.
fn store_id_of_segments(disk: &dyn Disk) -> Result<Option<StoreId>, StoreError> {
    let mut found = None;
    for segment in recover::segment_ids(disk)? {
        let name = segment_name(segment);
        let file = disk.open(&name).map_err(StoreError::io("open", &name))?;
        let mut block = [0; HEADER_BLOCK_LEN];
        match read_full(file.as_ref(), &mut block, 0) {
            Ok(got) if got == block.len() => {}
            // It is as good as damaged.
            Ok(_) => continue,
            Err(e) if is_medium_error(&e) => continue,
            Err(e) => return Err(StoreError::io("read", &name)(e)),
        }
        let header = HeaderBlock::decode(&block, SEGMENT_MAGIC, &name)?;
        match (header.filter(|header| header.segment == segment), found) {
            (None, _) => {}
            (Some(header), None) => found = Some(header.store),
            (Some(header), Some(known)) if header.store == known => {}
            (Some(_), Some(_)) => return Ok(None),
        }
    }
    Ok(found)
}

fn create_store(disk: &dyn Disk, shown_dir: &Path, id: StoreId) -> Result<(), StoreError> {
    let names = disk.list().map_err(StoreError::io("list", shown_dir.display().to_string()))?;
    if let Some(found) =
        names.into_iter().find(|n| n != LOCK_FILE && n != STORE_TEMP && n != "lost+found")
    {
        return Err(StoreError::NotAStore { dir: shown_dir.to_owned(), found });
    }
    write_store_id(disk, shown_dir, id)
}

/// Makes `store`, in place of one that is there.
fn write_store_id(disk: &dyn Disk, shown_dir: &Path, id: StoreId) -> Result<(), StoreError> {
    let file = disk.create(STORE_TEMP).map_err(StoreError::io("create", STORE_TEMP))?;
    let (magic, format) = (STORE_MAGIC, FORMAT_VERSION);
    let block = HeaderBlock { magic, format, store: id, segment: 0, first_seq: 0 }.encode();
    write_all(file.as_ref(), &mut [io::IoSlice::new(&block)], 0)
        .map_err(StoreError::io("write", STORE_TEMP))?;
    file.sync().map_err(StoreError::io("flush", STORE_TEMP))?;
    disk.rename(STORE_TEMP, STORE_FILE).map_err(StoreError::io("rename", STORE_TEMP))?;
    disk.sync_dir().map_err(StoreError::io("flush", shown_dir.display().to_string()))
}

/// Is told what an opening has found.
type Note<'a> = &'a dyn Fn(&RecoveryReport) -> std::io::Result<()>;

impl SegmentStore {
    /// Whether it takes no more changes since a failure of the disk, which ends only with the store's being opened anew.
    pub fn is_poisoned(&self) -> bool {
        self.log.check_poison().is_err()
    }

    /// Opens the store in `dir`, or makes one where there is nothing yet.
    ///
    /// When it returns, everything that was found is durable, and damage to what had been flushed is in the report.
    pub fn open(dir: &Path, config: StoreConfig) -> Result<(Self, RecoveryReport), StoreError> {
        Self::open_noting(dir, config, &|_| Ok(()))
    }

    /// As [`SegmentStore::open`]; `note` is called with the report before anything is mended. Once it is, nothing in the store tells any more that something
    /// was lost.
    ///
    /// # Errors
    /// Those of `note` too; the store is then as it was.
    pub fn open_noting(
        dir: &Path,
        config: StoreConfig,
        note: Note<'_>,
    ) -> Result<(Self, RecoveryReport), StoreError> {
        config.validate()?;
        let disk = RealDisk::open(dir, Access::Write)?;
        let mut fresh = [0; 16];
        getrandom::fill(&mut fresh).map_err(|e| StoreError::io("make", "a store id")(e.into()))?;
        Self::open_on(Arc::new(disk), dir, config, StoreId(fresh), note)
    }

    /// Opens the store on a disk; `fresh` becomes its id if it has to be made.
    pub(super) fn open_on(
        disk: Arc<dyn Disk>,
        shown_dir: &Path,
        config: StoreConfig,
        fresh: StoreId,
        note: Note<'_>,
    ) -> Result<(Self, RecoveryReport), StoreError> {
        config.validate()?;
        let (found, restored) = match read_store_id(disk.as_ref()) {
            Ok(found) => (found, false),
            Err(damaged @ StoreError::BadFile { .. }) => {
                let id = store_id_of_segments(disk.as_ref())?.ok_or(damaged)?;
                write_store_id(disk.as_ref(), shown_dir, id)?;
                (Some(id), true)
            }
            Err(error) => return Err(error),
        };
        let id = match found {
            Some(id) => id,
            None => {
                create_store(disk.as_ref(), shown_dir, fresh)?;
                fresh
            }
        };
        let Recovered { mut state, plan, mut report, next_seq, next_segment, doubted, .. } =
            recover::recover(disk.as_ref(), id)?;
        log::check_numbers(next_segment, next_seq)?;
        report.created = found.is_none();
        report.identity_restored = restored;
        note(&report).map_err(StoreError::io("note", "what the disk has lost"))?;
        recover::carry_out(disk.as_ref(), &mut state, &plan)?;
        holes::guess(disk.as_ref(), &mut state)?;
        let (holes, useful, overwrites) = Holes::new(disk.as_ref())?;
        let newest = state.segments.last_key_value();
        let usable = newest.filter(|(_, s)| !s.damaged && s.len < config.segment_bytes);
        let mut usable = usable.map(|(id, s)| (*id, s.len));
        if let Some((segment, _)) = usable
            && !recover::is_of_this_format(disk.as_ref(), id, segment)?
        {
            usable = None;
        }
        let resume = Resume {
            segment: usable,
            next_segment,
            next_seq,
            total_bytes: state.segments.values().map(SegmentInfo::taken).sum(),
        };
        let log = Log::resume(disk.clone(), id, config.clone(), resume)?;
        let open_files = NonZeroUsize::new(config.max_open_segments).unwrap_or(NonZeroUsize::MIN);
        let tables = Tables::new(config.checksum_cache_bytes);
        let store = Self {
            disk,
            id,
            config,
            log,
            state: RwLock::new(state),
            files: Mutex::new(LruCache::new(open_files)),
            tables,
            reclaimer: Mutex::new(Reclaimer::new(useful, overwrites)),
            holes,
            codecs: Codecs::default(),
            snapshot_seq: AtomicU64::new(0),
        };
        // Before anything else: once the damage is gone from the log, nothing else tells.
        for key in doubted {
            let draft = Draft::range(Kind::Stamp, key, 0, 0).with_version(ChunkVersion::UNKNOWN);
            store.commit(&draft, &[], Space::UseReserve, None)?;
        }
        // Without room for a snapshot the old one, or the log, has to do: a full store must open to be emptied.
        match store.checkpoint() {
            Ok(()) | Err(StoreError::NoSpace { .. }) => Ok((store, report)),
            Err(e) => Err(e),
        }
    }

    /// Takes a snapshot and closes the store. Dropping it instead loses nothing that was flushed.
    pub fn close(self) -> Result<(), StoreError> {
        match self.checkpoint() {
            Err(StoreError::NoSpace { .. }) => self.flush(),
            other => other,
        }
    }

    /// Returns when everything written before the call is on stable storage. Callers at the same time share the work.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.log.flush(&|at, header| {
            write(&self.state).apply(at, header);
        })
    }

    /// Returns when the log up to a sequence number is on stable storage.
    pub(super) fn flush_to(&self, seq: u64) -> Result<(), StoreError> {
        self.log.flush_to(seq, &|at, header| {
            write(&self.state).apply(at, header);
        })
    }

    /// Returns when the log up to a sequence number is on stable storage, and says so itself.
    pub(super) fn prove(&self, seq: u64) -> Result<(), StoreError> {
        self.log.prove(seq, &|at, header| {
            write(&self.state).apply(at, header);
        })
    }

    /// Writes an index snapshot, so that the next opening reads only what is appended from now on.
    pub fn checkpoint(&self) -> Result<(), StoreError> {
        // A segment that goes away between the snapshot and its becoming durable would be missed later.
        let _no_reclamation = lock(&self.reclaimer);
        self.checkpoint_while_locked()
    }

    /// The caller holds `reclaimer`.
    pub(super) fn checkpoint_while_locked(&self) -> Result<(), StoreError> {
        self.flush()?;
        let (file, point) = self.write_snapshot().map_err(|e| self.snapshot_failed(e))?;
        // The snapshot must not become durable before the log that it speaks of.
        self.flush_to(point.seq)?;
        file.sync().map_err(|e| self.snapshot_failed(StoreError::io("flush", SNAPSHOT_TEMP)(e)))?;
        self.disk
            .rename(SNAPSHOT_TEMP, SNAPSHOT_FILE)
            .map_err(|e| self.log.poison(StoreError::io("rename", SNAPSHOT_TEMP)(e)))?;
        self.disk
            .sync_dir()
            .map_err(|e| self.log.poison(StoreError::io("flush", "the store's directory")(e)))?;
        self.snapshot_seq.store(point.seq, Ordering::Release);
        Ok(())
    }

    /// Writes all but its durability. Appending stops meanwhile, which takes as long as the index is large. Reading does
    /// not, unless a deletion is just being accounted for: its wait for the index holds up new readers too.
    fn write_snapshot(&self) -> Result<(Arc<dyn DiskFile>, SnapshotPoint), StoreError> {
        let file =
            self.disk.create(SNAPSHOT_TEMP).map_err(StoreError::io("create", SNAPSHOT_TEMP))?;
        let mut tail = lock(&self.log.tail);
        let (segment, tail_len) = tail.position();
        let point = SnapshotPoint {
            seq: tail.last_seq(),
            tail: segment,
            tail_len,
            next_segment: tail.next_segment(),
        };
        snapshot::write(file.as_ref(), self.id, &point, &read(&self.state))?;
        *tail.appended_since_checkpoint() = 0;
        Ok((file, point))
    }

    /// A snapshot is dispensable, so a full disk is no reason to stop; any other failure is.
    fn snapshot_failed(&self, error: StoreError) -> StoreError {
        match error {
            StoreError::Io { ref source, .. }
                if matches!(source.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) =>
            {
                match self.disk.remove(SNAPSHOT_TEMP) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => {
                        self.log.poison(StoreError::io("remove", SNAPSHOT_TEMP)(e))
                    }
                    _ => StoreError::NoSpace { needed: 0, free: 0 },
                }
            }
            error => self.log.poison(error),
        }
    }

    /// Whether enough was appended that a checkpoint is worth its cost. Reclamation takes one by itself then.
    pub fn checkpoint_due(&self) -> bool {
        *lock(&self.log.tail).appended_since_checkpoint() >= self.config.checkpoint_bytes
    }

    /// Figures for `statfs` and for metrics.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let (capacity_bytes, free_bytes) = self.log.space()?;
        let state = read(&self.state);
        Ok(Usage {
            capacity_bytes,
            free_bytes,
            live_bytes: state.segments.values().map(|s| s.live + s.slots.live).sum(),
            stored_bytes: state.segments.values().map(|s| s.live_stored()).sum(),
            dead_bytes: state.segments.values().map(|s| s.reclaimable()).sum(),
            reclaimable_bytes: state
                .segments
                .values()
                .filter(|s| s.is_worth(self.config.reclaim_dead_percent_when_full))
                .map(|s| s.reclaimable())
                .sum(),
            chunks: state.index.chunks(),
            segments: state.segments.len() as u64,
            away_bytes: state.segments.values().map(|s| s.aways.live).sum(),
        })
    }

    /// Chunks that hold data, from a key on, in order.
    pub fn list(&self, from: ChunkKey, limit: usize) -> Vec<ChunkInfo> {
        list(&read(&self.state), from, limit)
    }

    /// Chunks that hold data and that `keep` wants, from a key on, in order. Looks at no more than `limit_visited` chunks
    /// and returns where to go on; `None`: it has seen the last one. `keep` is called while the index is held.
    pub fn list_where(
        &self,
        from: ChunkKey,
        limit_visited: usize,
        keep: impl Fn(&ChunkKey) -> bool,
    ) -> (Vec<ChunkInfo>, Option<ChunkKey>) {
        let state = read(&self.state);
        let mut chunks = state.index.iter_from(from);
        let visited = chunks.by_ref().take(limit_visited);
        let wanted = visited.filter(|(key, _)| keep(key));
        let found = wanted.map(|(key, chunk)| ChunkInfo::of(key, chunk)).collect();
        (found, chunks.next().map(|(key, _)| key))
    }

    /// The version of a chunk; unknown if it holds no data.
    pub fn version(&self, key: ChunkKey) -> ChunkVersion {
        read(&self.state).version(&key)
    }

    /// The version of a chunk and where it has data, as offset and length, sorted, neighbours joined: both of the same
    /// moment. Who reads the data afterwards has a copy of that version if the version is still the same then.
    pub fn outline(&self, key: ChunkKey) -> (ChunkVersion, Vec<(u32, u32)>) {
        let state = read(&self.state);
        let Some(chunk) = state.index.get(&key) else { return Default::default() };
        (chunk.version, chunk.extents.ranges())
    }

    /// The data ranges, as offset and length, of a file's chunks from one on to another, in order. Fewer than `limit`
    /// chunks: there are no more.
    pub fn extents_of(&self, from: ChunkKey, last_index: u64, limit: usize) -> Vec<ChunkRanges> {
        let state = read(&self.state);
        let chunks = state.index.chunks_of(from.file(), from.index, last_index).take(limit);
        let ranges = |chunk: &Chunk| {
            chunk.extents.ranges().into_iter().map(|(at, len)| (at.into(), len.into())).collect()
        };
        chunks.map(|(index, chunk)| ChunkRanges { index, ranges: ranges(chunk) }).collect()
    }

    /// The data ranges of a chunk as offset and length, sorted, neighbours joined.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn extents(&self, key: ChunkKey) -> Vec<(u64, u64)> {
        let (_, ranges) = self.outline(key);
        ranges.into_iter().map(|(at, len)| (at.into(), len.into())).collect()
    }

    /// Bytes of a chunk that are not holes.
    #[cfg(test)]
    pub(super) fn allocated_bytes(&self, key: ChunkKey) -> u64 {
        read(&self.state).index.get(&key).map_or(0, Chunk::allocated)
    }

    pub(super) fn check_range(&self, offset: u64, len: u64) -> Result<(u32, u32), StoreError> {
        let max = self.config.max_chunk_bytes;
        let inside = offset.checked_add(len).is_some_and(|end| end <= max);
        match (u32::try_from(offset), u32::try_from(len)) {
            (Ok(offset), Ok(len)) if inside => Ok((offset, len)),
            _ => Err(StoreError::OutOfRange { offset, len, max }),
        }
    }

    /// Appends a record and applies it; by how many bytes the data grew. With `only_if`, only while the range is exactly
    /// that; `None` if it is not.
    pub(super) fn commit(
        &self,
        draft: &Draft,
        payload: &[io::IoSlice<'_>],
        space: Space,
        only_if: Option<&[Extent]>,
    ) -> Result<Option<i64>, StoreError> {
        let mut tail = lock_soon(&self.log.tail);
        if let Some(expected) = only_if
            && read(&self.state).lookup(&draft.key, draft.offset, draft.offset + draft.len)
                != expected
        {
            return Ok(None);
        }
        // What is no change carries the version of now: with any other, replaying it would undo a change.
        let version = draft.version.unwrap_or_else(|| read(&self.state).version(&draft.key));
        let draft = draft.with_version(version);
        let (at, header) = self.log.append(&mut tail, &draft, payload, space)?;
        let applied = write(&self.state).apply(at, &header);
        let started = tail.take_started();
        drop(tail);
        self.log.start_sync(&started)?;
        let Some(gone) = applied.gone else { return Ok(Some(applied.grown)) };
        let freed = tally(&gone);
        write(&self.state).account(&freed);
        let bytes = freed.values().map(Freed::total).sum::<u64>();
        Ok(Some(applied.grown.saturating_sub_unsigned(bytes)))
    }

    /// The segment's file; `NotFound` if it is gone.
    pub(super) fn segment_file(&self, id: SegmentId) -> io::Result<Arc<dyn DiskFile>> {
        let mut files = lock(&self.files);
        if let Some(file) = files.get(&id) {
            return Ok(file.clone());
        }
        let file = self.disk.open(&segment_name(id))?;
        files.put(id, file.clone());
        Ok(file)
    }

    /// The segment's file if it is open, and nobody is just opening one.
    pub(super) fn open_segment(&self, id: SegmentId) -> Option<Arc<dyn DiskFile>> {
        let mut files = try_lock(&self.files)?;
        files.get(&id).cloned()
    }

    pub(super) fn forget_file(&self, id: SegmentId) {
        lock(&self.files).pop(&id);
    }

    pub(super) fn id(&self) -> StoreId {
        self.id
    }

    /// What tells this store from all others, for as long as it lives.
    pub fn identity(&self) -> [u8; 16] {
        self.id.0
    }

    /// The length of a segment without records.
    pub(super) const EMPTY_SEGMENT: u64 = FIRST_RECORD;
}

impl std::fmt::Debug for SegmentStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SegmentStore").field("id", &self.id).finish_non_exhaustive()
    }
}
