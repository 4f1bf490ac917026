//! The end of the log: appending records, closing segments, and making them durable.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use super::config::StoreConfig;
use super::disk::{Disk, DiskFile, write_all};
use super::error::StoreError;
use super::format::{
    BLOCK, FIRST_RECORD, FORMAT_VERSION, Form, HeaderBlock, Kind, LogPos, MAX_SEGMENT, MAX_SEQ,
    RECORD_ALIGN, RECORD_HEADER_LEN, RecordHeader, SEGMENT_MAGIC, SegmentId, SegmentSeed, StoreId,
    segment_name, stored_len,
};
#[cfg(test)]
use super::holes::rules::{BROKEN, Broken};
use super::key::{ChunkKey, ChunkVersion};
use super::round::Rounds;
use super::slots::{Free, Pool};
use super::sync::{lock, lock_soon};

/// How often the file system is asked for its free space, in bytes appended.
const SPACE_REFRESH_BYTES: u64 = 16 << 20;

/// Such a part of a segment's length is kept for the records of what is in slots.
const SPARED_PART: u64 = 4;

/// The disk begins with records when there are so many bytes of them.
const START_BYTES: u64 = 8 << 20;

/// What is left free before the pages of a payload.
static ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];

/// Who appends: only new data has to leave the reserve alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Space {
    /// New data that can be in slots: leaves room besides for the records of those that are, where there are any.
    Spare,
    /// New data.
    Keep,
    /// Deletions, and moves that make room.
    UseReserve,
}

/// A record before it has a place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draft {
    pub(super) kind: Kind,
    pub(super) key: ChunkKey,
    pub(super) offset: u32,
    pub(super) len: u32,
    /// The version that it gives its chunk; `None`: the one that the chunk has when it is appended.
    pub(super) version: Option<ChunkVersion>,
    pub(super) as_of: Option<LogPos>,
    /// What its payload is like.
    pub(super) form: Form,
}

impl Draft {
    pub(super) fn note(kind: Kind, ino: u64) -> Self {
        let key = ChunkKey { ino, generation: 0, index: 0 };
        Self { version: Some(ChunkVersion::UNKNOWN), ..Self::range(kind, key, 0, 0) }
    }

    /// What is no change: it keeps the version.
    pub(super) fn range(kind: Kind, key: ChunkKey, offset: u32, len: u32) -> Self {
        Self { kind, key, offset, len, version: None, as_of: None, form: Form::Blocks }
    }

    pub(super) fn with_key(self, key: ChunkKey) -> Self {
        Self { key, ..self }
    }

    pub(super) fn with_version(self, version: ChunkVersion) -> Self {
        Self { version: Some(version), ..self }
    }

    pub(super) fn with_form(self, form: Form) -> Self {
        Self { form, ..self }
    }

    fn header(&self, seq: u64, durable: u64) -> RecordHeader {
        RecordHeader {
            kind: self.kind,
            key: self.key,
            offset: self.offset,
            len: self.len,
            seq,
            durable,
            version: self.version.unwrap_or_default(),
            as_of: self.as_of,
            form: self.form,
        }
    }
}

/// A segment that was appended to.
#[derive(Clone)]
struct OpenSegment {
    id: SegmentId,
    file: Arc<dyn DiskFile>,
    seed: SegmentSeed,
    len: u64,
}

/// A part of a segment that is to be brought to the disk.
pub(super) struct Started {
    id: SegmentId,
    file: Arc<dyn DiskFile>,
    from: u64,
    len: u64,
}

/// The end of the log. Guarded by [`Log::tail`]; appending is the one thing that happens under that lock.
pub(super) struct Tail {
    current: OpenSegment,
    next_segment: SegmentId,
    next_seq: u64,
    /// Up to which one the log was durable, as the last record says.
    last_claim: u64,
    /// Closed segments that no flush has covered yet.
    unflushed: Vec<OpenSegment>,
    /// Up to here the current segment is on its way to the disk.
    started: u64,
    /// What is to be sent on its way next, by whoever has let go of the lock.
    to_start: Vec<Started>,
    /// A segment file was created since the directory was flushed.
    dir_dirty: bool,
    /// Bytes that all segment files take on the disk.
    total_bytes: u64,
    /// Bytes that may be appended before the reserve is touched, as of the last look.
    budget: u64,
    appended_since_look: u64,
    appended_since_checkpoint: u64,
    /// Places that payloads may be written to instead.
    pool: Pool,
    /// Segments with slots that were written to since a flush.
    unflushed_slots: BTreeMap<SegmentId, Arc<dyn DiskFile>>,
    /// Slots that are not on their way to the disk: where they lie in which segments, and how many bytes they are.
    slots_to_start: BTreeMap<SegmentId, (u64, u64)>,
    unstarted: u64,
    /// Bytes written lately that a slot can take, and that none can.
    short: u64,
    long: u64,
}

impl Tail {
    pub(super) fn position(&self) -> (SegmentId, u64) {
        (self.current.id, self.current.len)
    }

    pub(super) fn last_seq(&self) -> u64 {
        self.next_seq - 1
    }

    pub(super) fn next_segment(&self) -> SegmentId {
        self.next_segment
    }

    pub(super) fn pool(&mut self) -> &mut Pool {
        &mut self.pool
    }

    /// What should be brought to the disk already, see [`Log::start_sync`].
    pub(super) fn take_started(&mut self) -> Vec<Started> {
        std::mem::take(&mut self.to_start)
    }

    fn start_up_to(&mut self, len: u64) {
        let from = std::mem::replace(&mut self.started, len);
        if from < len {
            let (id, file) = (self.current.id, self.current.file.clone());
            self.to_start.push(Started { id, file, from, len: len - from });
        }
    }

    /// Whether most of what is written could be in slots.
    pub(super) fn suits_slots(&self) -> bool {
        self.short >= self.long
    }

    fn note_written(&mut self, h: &RecordHeader, half_life: u64) {
        match (h.kind, h.form) {
            (Kind::Write, Form::Blocks | Form::Slot { .. }) => {
                self.short += u64::from(h.payload_len());
            }
            (Kind::Write, Form::Packed { .. } | Form::Pages { .. }) => self.long += h.footprint(),
            _ => {}
        }
        if self.short + self.long > half_life {
            (self.short, self.long) = (self.short / 2, self.long / 2);
        }
    }

    /// Something was written to a slot: sends the slots of a while on their way.
    fn start_slot(&mut self, place: LogPos, len: u64) {
        let (from, to) = (u64::from(place.at), u64::from(place.at) + len);
        let range = self.slots_to_start.entry(place.segment).or_insert((from, to));
        *range = (range.0.min(from), range.1.max(to));
        self.unstarted += len;
        if self.unstarted < START_BYTES {
            return;
        }
        self.unstarted = 0;
        for (id, (from, to)) in std::mem::take(&mut self.slots_to_start) {
            // What is flushed already needs it no more.
            if let Some(file) = self.unflushed_slots.get(&id) {
                self.to_start.push(Started { id, file: file.clone(), from, len: to - from });
            }
        }
    }

    pub(super) fn appended_since_checkpoint(&mut self) -> &mut u64 {
        &mut self.appended_since_checkpoint
    }

    /// Bytes of segment files are there after all.
    pub(super) fn remember_bytes(&mut self, bytes: u64) {
        self.total_bytes += bytes;
    }

    /// Bytes of segment files went back to the file system.
    pub(super) fn forget_bytes(&mut self, bytes: u64) {
        self.total_bytes = self.total_bytes.saturating_sub(bytes);
        self.appended_since_look = SPACE_REFRESH_BYTES;
    }
}

/// The log. Its lock is `tail`; the state's lock comes after it.
pub(super) struct Log {
    disk: Arc<dyn Disk>,
    store: StoreId,
    config: StoreConfig,
    pub(super) tail: Mutex<Tail>,
    rounds: Rounds,
    /// Sequence number of the last record that a flush has to cover. Changed under the lock of the tail, like the next one.
    last_wanted: AtomicU64,
    /// How many segments of `Tail::unflushed` there are.
    unflushed: AtomicUsize,
    /// How often the pool of slots was filled.
    fillings: AtomicU64,
    /// That all records up to this one are durable is said by a record that is on stable storage too.
    proven: AtomicU64,
    /// The first storage failure. After a failed `fsync` nobody knows what the disk holds, so nothing is written again.
    poison: OnceLock<String>,
}

/// Where the log goes on after recovery.
pub(super) struct Resume {
    /// The newest segment, if it can be appended to.
    pub(super) segment: Option<(SegmentId, u64)>,
    pub(super) next_segment: SegmentId,
    pub(super) next_seq: u64,
    pub(super) total_bytes: u64,
}

impl Log {
    /// Continues a log of which everything is durable.
    pub(super) fn resume(
        disk: Arc<dyn Disk>,
        store: StoreId,
        config: StoreConfig,
        resume: Resume,
    ) -> Result<Self, StoreError> {
        let Resume { segment, mut next_segment, next_seq, mut total_bytes } = resume;
        let current = match segment {
            Some((id, len)) => {
                let name = segment_name(id);
                let file = disk.open(&name).map_err(StoreError::io("open", &name))?;
                OpenSegment { id, file, seed: SegmentSeed::new(store, id), len }
            }
            None => {
                let fresh = create_segment(disk.as_ref(), store, next_segment, next_seq)?;
                next_segment += 1;
                total_bytes += FIRST_RECORD;
                fresh
            }
        };
        let tail = Tail {
            next_segment,
            next_seq,
            last_claim: 0,
            started: current.len,
            to_start: Vec::new(),
            current,
            unflushed: Vec::new(),
            dir_dirty: true,
            total_bytes,
            budget: 0,
            appended_since_look: SPACE_REFRESH_BYTES,
            appended_since_checkpoint: 0,
            pool: Pool::default(),
            unflushed_slots: BTreeMap::new(),
            slots_to_start: BTreeMap::new(),
            unstarted: 0,
            short: 0,
            long: 0,
        };
        Ok(Self {
            disk,
            store,
            config,
            tail: Mutex::new(tail),
            rounds: Rounds::new(next_seq - 1),
            last_wanted: AtomicU64::new(next_seq - 1),
            unflushed: AtomicUsize::new(0),
            fillings: AtomicU64::new(0),
            // What the log says of itself, and not the snapshot, which may be lost.
            proven: AtomicU64::new(0),
            poison: OnceLock::new(),
        })
    }

    pub(super) fn durable(&self) -> u64 {
        self.rounds.durable()
    }

    pub(super) fn check_poison(&self) -> Result<(), StoreError> {
        self.poison.get().map_or(Ok(()), |why| Err(StoreError::Poisoned(why.clone())))
    }

    /// Closes the store for writing, and returns the reason.
    pub(super) fn poison(&self, error: StoreError) -> StoreError {
        // Only the first failure is the cause; what follows are its consequences.
        self.poison.get_or_init(|| error.to_string());
        error
    }

    /// Appends one record; `payload` is its stored form. The caller has chosen the draft's version under this lock. Nothing has happened if it fails.
    pub(super) fn append(
        &self,
        tail: &mut Tail,
        draft: &Draft,
        payload: &[IoSlice<'_>],
        space: Space,
    ) -> Result<(LogPos, RecordHeader), StoreError> {
        let plain = draft.kind == Kind::Write && draft.form == Form::Blocks;
        let len = stored_len(draft.offset, draft.len);
        while plain && let Some((place, file)) = tail.pool.take(len) {
            self.check_poison()?;
            // Otherwise what is written now may be in vain.
            let space = if space == Space::Spare { Space::Keep } else { space };
            self.admit(tail, RECORD_HEADER_LEN as u64, space)?;
            if let Err(error) = write_all(file.as_ref(), &mut payload.to_vec(), place.at.into()) {
                // The disk cannot read what else is in its first or last page, or blocks that another file has too have no room to be written to. What was
                // there is dead, and nothing speaks of what is there now.
                tracing::warn!(segment = place.segment, %error, "dead bytes of a segment cannot be written over");
                tail.pool.refuse(place.segment);
                continue;
            }
            tail.unflushed_slots.insert(place.segment, file);
            tail.start_slot(place, len.into());
            let draft = draft.with_form(Form::Slot { place, kept: false });
            let done = self.append_whole(tail, &draft, &[], space)?;
            tail.pool.written += u64::from(len);
            return Ok(done);
        }
        self.append_whole(tail, draft, payload, space)
    }

    fn append_whole(
        &self,
        tail: &mut Tail,
        draft: &Draft,
        payload: &[IoSlice<'_>],
        space: Space,
    ) -> Result<(LogPos, RecordHeader), StoreError> {
        self.check_poison()?;
        check_numbers(tail.current.id, tail.next_seq)?;
        let header = draft.header(tail.next_seq, self.durable());
        let mut header = header.placed_at(tail.current.len);
        let mut footprint = header.footprint();
        self.admit(tail, footprint, space)?;
        if tail.current.len > FIRST_RECORD
            && tail.current.len + footprint > self.config.segment_bytes
        {
            self.roll(tail)?;
            header = header.placed_at(tail.current.len);
            footprint = header.footprint();
        }
        let at = tail.current.len;
        let encoded = header.encode(tail.current.seed, at);
        let padding = [0; RECORD_ALIGN as usize];
        let unpadded = encoded.len() as u64 + u64::from(header.stored());
        let mut slices = Vec::with_capacity(payload.len() + 3);
        slices.push(IoSlice::new(&encoded));
        if let Form::Pages { gap } = header.form {
            slices.push(IoSlice::new(&ZEROS[..gap as usize]));
        }
        slices.extend_from_slice(payload);
        slices.push(IoSlice::new(&padding[..(footprint - unpadded) as usize]));
        if let Err(e) = write_all(tail.current.file.as_ref(), &mut slices, at) {
            return Err(self.failed_append(tail, e, footprint));
        }
        tail.current.len += footprint;
        if tail.current.len - tail.started >= START_BYTES {
            tail.start_up_to(tail.current.len);
        }
        tail.total_bytes += footprint;
        tail.budget = tail.budget.saturating_sub(footprint);
        tail.appended_since_look += footprint;
        tail.appended_since_checkpoint += footprint;
        tail.next_seq += 1;
        tail.last_claim = header.durable;
        tail.note_written(&header, self.config.segment_bytes);
        if header.kind != Kind::Mark {
            self.last_wanted.store(header.seq, Ordering::Release);
        }
        Ok((LogPos { segment: tail.current.id, at: at as u32 }, header))
    }

    /// Takes back a partial record, so that the next one finds its place clean.
    fn failed_append(&self, tail: &mut Tail, e: std::io::Error, footprint: u64) -> StoreError {
        let name = segment_name(tail.current.id);
        let full = matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT));
        let undone = tail.current.file.set_len(tail.current.len);
        tail.appended_since_look = SPACE_REFRESH_BYTES;
        match undone {
            Ok(()) if full => StoreError::NoSpace { needed: footprint, free: 0 },
            Ok(()) => self.poison(StoreError::io("write", name)(e)),
            Err(e) => self.poison(StoreError::io("truncate", name)(e)),
        }
    }

    /// Refuses what would touch the reserve.
    fn admit(&self, tail: &mut Tail, needed: u64, space: Space) -> Result<(), StoreError> {
        if space == Space::UseReserve {
            return Ok(());
        }
        let spared = space == Space::Spare && tail.pool.is_used();
        let needed = needed + if spared { self.config.segment_bytes / SPARED_PART } else { 0 };
        if tail.budget < needed || tail.appended_since_look >= SPACE_REFRESH_BYTES {
            let found = self.disk.space().map_err(StoreError::io("examine", "the file system"))?;
            tail.budget = self.beyond_reserve(found.free_bytes, tail.total_bytes);
            tail.appended_since_look = 0;
        }
        if tail.budget < needed {
            return Err(StoreError::NoSpace { needed, free: tail.budget });
        }
        Ok(())
    }

    fn beyond_reserve(&self, free_bytes: u64, total_bytes: u64) -> u64 {
        let limit = self.config.capacity_limit_bytes.unwrap_or(u64::MAX);
        free_bytes.min(limit.saturating_sub(total_bytes)).saturating_sub(self.config.reserve_bytes)
    }

    /// Capacity for this store, and what of it is free beyond the reserve.
    pub(super) fn space(&self) -> Result<(u64, u64), StoreError> {
        let total = lock(&self.tail).total_bytes;
        let found = self.disk.space().map_err(StoreError::io("examine", "the file system"))?;
        let limit = self.config.capacity_limit_bytes.unwrap_or(u64::MAX);
        let capacity = found.capacity_bytes.min(limit).saturating_sub(self.config.reserve_bytes);
        Ok((capacity, self.beyond_reserve(found.free_bytes, total)))
    }

    /// Closes the current segment and begins the next. Nothing has happened if it fails for want of space.
    pub(super) fn roll(&self, tail: &mut Tail) -> Result<(), StoreError> {
        self.check_poison()?;
        let id = tail.next_segment;
        let fresh = match create_segment(self.disk.as_ref(), self.store, id, tail.next_seq) {
            Ok(fresh) => fresh,
            Err(StoreError::Io { op, file, source }) => {
                // A half-made segment must not be taken for a part of the log.
                let removed = self.disk.remove(&segment_name(id));
                let gone = match removed {
                    Ok(()) => true,
                    Err(e) => e.kind() == std::io::ErrorKind::NotFound,
                };
                if gone && matches!(source.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) {
                    return Err(StoreError::NoSpace { needed: FIRST_RECORD, free: 0 });
                }
                return Err(self.poison(StoreError::Io { op, file, source }));
            }
            Err(e) => return Err(self.poison(e)),
        };
        tail.next_segment += 1;
        tail.dir_dirty = true;
        tail.total_bytes += FIRST_RECORD;
        tail.start_up_to(tail.current.len);
        let closed = std::mem::replace(&mut tail.current, fresh);
        tail.started = FIRST_RECORD;
        tail.unflushed.push(closed);
        self.unflushed.store(tail.unflushed.len(), Ordering::Release);
        Ok(())
    }

    /// Sends records on their way to the disk, so that it is busy while more are written, and a flush has less to wait for.
    pub(super) fn start_sync(&self, started: &[Started]) -> Result<(), StoreError> {
        for s in started {
            let failed = |e| self.poison(StoreError::io("flush", segment_name(s.id))(e));
            s.file.start_sync(s.from, s.len).map_err(failed)?;
        }
        Ok(())
    }

    /// Returns when all that was appended before the call is on stable storage. Callers at the same time share the work.
    /// `applied` is told of a record that the flush itself appends.
    pub(super) fn flush(&self, applied: &dyn Fn(LogPos, &RecordHeader)) -> Result<(), StoreError> {
        self.flush_to(self.last_wanted.load(Ordering::Acquire), applied)
    }

    /// Returns when the log up to a sequence number is on stable storage.
    pub(super) fn flush_to(
        &self,
        target: u64,
        applied: &dyn Fn(LogPos, &RecordHeader),
    ) -> Result<(), StoreError> {
        loop {
            self.check_poison()?;
            if self.durable() >= target {
                return Ok(());
            }
            let flushed = self.rounds.take_part(target, || self.flush_round())?;
            if let Some(seq) = flushed {
                debug_assert!(seq >= target, "{target} was never appended");
                self.mark(seq, applied)?;
            }
        }
    }

    /// Has payloads written to what is dead in a segment, and proven to be.
    pub(super) fn fill_pool(&self, file: Arc<dyn DiskFile>, found: Vec<Free>) {
        let mut tail = lock(&self.tail);
        self.fillings.fetch_add(1, Ordering::SeqCst);
        tail.pool.fill(file, found);
    }

    /// Changes before a place that somebody may have found in the index and that has died since can have been written to.
    pub(super) fn fillings(&self) -> u64 {
        self.fillings.load(Ordering::SeqCst)
    }

    /// How many closed segments no flush has covered yet.
    pub(super) fn unflushed_segments(&self) -> usize {
        self.unflushed.load(Ordering::Acquire)
    }

    /// Returns when the log up to a sequence number is on stable storage, and a record that says so is too. Whatever happens then,
    /// recovery knows it, and does not look at payloads up to there to find out.
    pub(super) fn prove(
        &self,
        target: u64,
        applied: &dyn Fn(LogPos, &RecordHeader),
    ) -> Result<(), StoreError> {
        self.flush_to(target, applied)?;
        if self.proven.load(Ordering::Acquire) >= target {
            return Ok(());
        }
        let claim = {
            let mut tail = lock(&self.tail);
            if tail.last_claim < target {
                let note = Draft::note(Kind::Mark, 0);
                let (at, header) = self.append(&mut tail, &note, &[], Space::UseReserve)?;
                applied(at, &header);
            }
            tail.last_seq()
        };
        self.flush_to(claim, applied)
    }

    /// Flushes all that has been appended; up to which record that is.
    fn flush_round(&self) -> Result<u64, StoreError> {
        // A later flush may succeed and prove nothing.
        self.check_poison()?;
        let (segments, slots, dir_dirty, seq, claim) = {
            let mut tail = lock_soon(&self.tail);
            let mut segments = tail.unflushed.clone();
            segments.push(tail.current.clone());
            let slots = std::mem::take(&mut tail.unflushed_slots);
            #[cfg(test)]
            let slots =
                if BROKEN.get() == Broken::SlotsNotFlushed { BTreeMap::new() } else { slots };
            let dir_dirty = std::mem::take(&mut tail.dir_dirty);
            (segments, slots, dir_dirty, tail.last_seq(), tail.last_claim)
        };
        // Their records count only when these are durable.
        for (id, file) in &slots {
            file.sync().map_err(|e| self.poison(StoreError::io("flush", segment_name(*id))(e)))?;
        }
        for s in &segments {
            s.file
                .sync()
                .map_err(|e| self.poison(StoreError::io("flush", segment_name(s.id))(e)))?;
        }
        if dir_dirty {
            self.disk
                .sync_dir()
                .map_err(|e| self.poison(StoreError::io("flush", "the store's directory")(e)))?;
        }
        if segments.len() > 1 {
            let mut tail = lock_soon(&self.tail);
            tail.unflushed.retain(|u| !segments.iter().any(|s| s.id == u.id && s.len == u.len));
            self.unflushed.store(tail.unflushed.len(), Ordering::Release);
        }
        self.proven.fetch_max(claim, Ordering::AcqRel);
        Ok(seq)
    }

    /// Says in the log that it is durable up to a record, if nobody has appended since: recovery can tell damage from an unflushed end only
    /// if a record says so, and there may be none for long. Others need not wait for it, and what they append says it as well.
    fn mark(&self, seq: u64, applied: &dyn Fn(LogPos, &RecordHeader)) -> Result<(), StoreError> {
        let mut tail = lock_soon(&self.tail);
        if tail.last_seq() != seq {
            return Ok(());
        }
        match self.append(&mut tail, &Draft::note(Kind::Mark, 0), &[], Space::UseReserve) {
            Ok((at, header)) => {
                applied(at, &header);
                Ok(())
            }
            Err(StoreError::NoSpace { .. }) => Ok(()),
            Err(e) => Err(e),
        }
    }
}

/// Refuses numbers beyond those that can be read again.
pub(super) fn check_numbers(segment: SegmentId, seq: u64) -> Result<(), StoreError> {
    if segment <= MAX_SEGMENT && seq <= MAX_SEQ {
        return Ok(());
    }
    let why = "the store has used up its segment or record numbers".into();
    Err(StoreError::BadFile { file: segment_name(segment), why })
}

fn create_segment(
    disk: &dyn Disk,
    store: StoreId,
    id: SegmentId,
    first_seq: u64,
) -> Result<OpenSegment, StoreError> {
    check_numbers(id, first_seq)?;
    let name = segment_name(id);
    let file = disk.create(&name).map_err(StoreError::io("create", &name))?;
    let format = FORMAT_VERSION;
    let block =
        HeaderBlock { magic: SEGMENT_MAGIC, format, store, segment: id, first_seq }.encode();
    write_all(file.as_ref(), &mut [IoSlice::new(&block)], 0)
        .map_err(StoreError::io("write", &name))?;
    Ok(OpenSegment { id, file, seed: SegmentSeed::new(store, id), len: FIRST_RECORD })
}
