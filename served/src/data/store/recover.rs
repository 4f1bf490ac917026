//! Rebuilds the state from the snapshot and the log. Changes nothing on disk: what has to be mended is returned as a plan.
//!
//! What survives a power failure is decided here. Every record says up to which sequence number the log was on stable
//! storage when it was appended; the highest such claim found anywhere, D, is the *evidence*. Reading the log in
//! order, the first place where something is missing or broken decides by the number of the record expected there:
//!
//! - beyond D: the record may never have reached the disk. The log ends here, and what follows is cut off, even if
//!   it looks sound: what remains is a prefix of what was written.
//! - up to D: the record was on stable storage and the disk lost it. That is reported, and reading goes on behind it.
//!
//! Payloads are verified here only beyond D; others are verified whenever they are read.
//!
//! **Versions.** Where records of the log may be missing, nobody knows which chunks they spoke of, so no chunk keeps its
//! version: not after a gap in the sequence numbers, nor behind a part of a segment that cannot be understood, a damaged
//! header or a file that is too short, nor behind a note of `Lost` records, nor without a segment that should be there. Damage to what a snapshot covers
//! is none of these: the index knows what was there, and reading it fails. The end of the log that was never flushed
//! takes bytes and versions with it. One thing cannot be told: a segment file that has vanished as a whole, if
//! there is no snapshot to tell that it was not reclaimed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use super::chunk::Chunk;
use super::disk::{Disk, DiskFile, read_full};
use super::error::StoreError;
use super::format::{
    FIRST_RECORD, FORMAT_VERSION, Form, HEADER_BLOCK_LEN, HeaderBlock, Kind, LogPos, RecordHeader,
    SEGMENT_MAGIC, SegmentId, SegmentSeed, StoreId, parse_segment_name, segment_name,
};
use super::key::{ChunkKey, ChunkVersion};
use super::scan::{Item, Scanner, is_medium_error, verify_payload};
use super::slots::verify_slot;
use super::snapshot::{self, SNAPSHOT_FILE, Snapshot};
use super::state::{SegmentInfo, State, tally};

/// What opening a store found.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct RecoveryReport {
    /// The store was made by this opening.
    pub created: bool,
    /// There is nothing but the file that names the store: no segment and no snapshot. An opening makes both, so unless none has ever come to its end
    /// somebody has removed them.
    pub emptied: bool,
    /// The file that names the store was damaged, and is made anew from what the segments say.
    pub identity_restored: bool,
    /// The index snapshot was used.
    pub snapshot_used: bool,
    /// Why there was a snapshot that could not be used.
    pub snapshot_fault: Option<String>,
    /// Records read from the log.
    pub records_replayed: u64,
    /// What was cut off the end of the log: it was not flushed when the store went down. Normal after a crash.
    pub cut: Option<CutTail>,
    /// Damage to what had been flushed. Not normal: the disk lost it.
    pub damage: Vec<Damage>,
    /// Flushed records that could not be found; their data is lost, or older data may show in its place.
    pub records_lost: u64,
    /// Segments that should be there and are not; the first 1000. Reads of what they held fail.
    pub missing_segments: Vec<u32>,
    /// Chunks whose version is not known any more because records of the log may be missing: all that had one.
    pub versions_dropped: u64,
}

impl RecoveryReport {
    /// Whether nothing that had been flushed is lost.
    pub fn is_clean(&self) -> bool {
        self.damage.is_empty() && self.missing_segments.is_empty() && self.records_lost == 0
    }
}

/// The unflushed end of a log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CutTail {
    /// Segment in which the log now ends.
    pub segment: u32,
    /// Where in it.
    pub position: u64,
    /// Bytes that were behind it.
    pub bytes: u64,
}

/// A part of a segment that cannot be understood.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    /// The segment.
    pub segment: u32,
    /// First damaged byte of the file.
    pub from: u64,
    /// First sound byte behind it.
    pub to: u64,
    /// What was found.
    pub why: String,
}

/// Changes to make before the store is written to.
#[derive(Default, Debug)]
pub(super) struct Plan {
    /// The log ends here.
    pub(super) truncate: Option<(SegmentId, u64)>,
    /// Segments beyond the end of the log.
    pub(super) discard: Vec<SegmentId>,
    /// Segments whose content has moved, and whose removal was interrupted.
    pub(super) retired: Vec<SegmentId>,
    /// Segments whose end may not be durable.
    pub(super) unflushed: Vec<SegmentId>,
}

pub(super) struct Recovered {
    pub(super) state: State,
    pub(super) plan: Plan,
    pub(super) report: RecoveryReport,
    /// All records up to this one are known to have been on stable storage.
    pub(super) evidence: u64,
    pub(super) next_seq: u64,
    pub(super) next_segment: SegmentId,
    /// Chunks that have lost their version: it has to be written down that they have none.
    pub(super) doubted: Vec<ChunkKey>,
}

/// Missing segments that are listed. A file with a number far beyond the others must not make the list endless.
const MISSING_MAX: usize = 1000;

/// A segment file at hand.
struct SegmentFile {
    id: SegmentId,
    file: Arc<dyn DiskFile>,
    len: u64,
    seed: SegmentSeed,
    /// `None`: its header block is damaged.
    first_seq: Option<u64>,
    /// Version of the format; 0 if the header block is damaged.
    format: u32,
}

fn open_segment(disk: &dyn Disk, store: StoreId, id: SegmentId) -> Result<SegmentFile, StoreError> {
    let name = segment_name(id);
    let file = disk.open(&name).map_err(StoreError::io("open", &name))?;
    // Positions have 32 bits; no segment of ours is longer.
    let len = file.len().map_err(StoreError::io("examine", &name))?.min(u64::from(u32::MAX));
    let mut block = [0; HEADER_BLOCK_LEN];
    let got = match read_full(file.as_ref(), &mut block, 0) {
        Err(e) if is_medium_error(&e) => 0,
        other => other.map_err(StoreError::io("read", &name))?,
    };
    let header =
        if got == block.len() { HeaderBlock::decode(&block, SEGMENT_MAGIC, &name)? } else { None };
    if header.is_some_and(|h| h.store != store) {
        return Err(StoreError::BadFile { file: name, why: "it belongs to another store".into() });
    }
    let header = header.filter(|h| h.segment == id && h.first_seq > 0);
    let (first_seq, format) = (header.map(|h| h.first_seq), header.map_or(0, |h| h.format));
    Ok(SegmentFile { id, file, len, seed: SegmentSeed::new(store, id), first_seq, format })
}

/// Whether records of this program may be appended to a segment.
pub(super) fn is_of_this_format(
    disk: &dyn Disk,
    store: StoreId,
    id: SegmentId,
) -> Result<bool, StoreError> {
    open_segment(disk, store, id).map(|s| s.format == FORMAT_VERSION)
}

pub(super) fn segment_ids(disk: &dyn Disk) -> Result<BTreeSet<SegmentId>, StoreError> {
    let names = disk.list().map_err(StoreError::io("list", "the store"))?;
    Ok(names.iter().filter_map(|n| parse_segment_name(n)).collect())
}

fn load_snapshot(
    disk: &dyn Disk,
    store: StoreId,
    report: &mut RecoveryReport,
) -> Result<Option<Snapshot>, StoreError> {
    let file = match disk.open(SNAPSHOT_FILE) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(StoreError::io("open", SNAPSHOT_FILE)(e)),
    };
    match snapshot::read(file.as_ref(), store) {
        Ok(snapshot) => {
            report.snapshot_used = true;
            Ok(Some(snapshot))
        }
        Err(why) => {
            report.snapshot_fault = Some(why.into());
            Ok(None)
        }
    }
}

/// Rebuilds the state from the snapshot, if there is one, and from the log behind it.
pub(super) fn recover(disk: &dyn Disk, store: StoreId) -> Result<Recovered, StoreError> {
    let mut report = RecoveryReport::default();
    let snapshot = load_snapshot(disk, store, &mut report)?;
    run(disk, store, snapshot, report, 0)
}

/// Rebuilds the state from the log alone. `evidence`: what is known to have been on stable storage.
pub(super) fn rebuild(
    disk: &dyn Disk,
    store: StoreId,
    evidence: u64,
) -> Result<Recovered, StoreError> {
    run(disk, store, None, RecoveryReport::default(), evidence)
}

fn run(
    disk: &dyn Disk,
    store: StoreId,
    snapshot: Option<Snapshot>,
    report: RecoveryReport,
    evidence: u64,
) -> Result<Recovered, StoreError> {
    let present = segment_ids(disk)?;
    let mut r = Replay::new(disk, store, snapshot, report, &present);
    r.evidence = r.evidence.max(evidence);
    r.report.emptied = present.is_empty() && r.known.is_none() && r.report.snapshot_fault.is_none();
    r.find_evidence(&present)?;
    r.replay(&present)?;
    Ok(r.finish(&present))
}

struct Replay<'a> {
    disk: &'a dyn Disk,
    store: StoreId,
    state: State,
    report: RecoveryReport,
    plan: Plan,
    /// Where replaying begins; `None`: with the first record of all.
    start: Option<(SegmentId, u64)>,
    /// Segments that must be there, beside those from `next_segment` on, if that is known.
    known: Option<BTreeSet<SegmentId>>,
    retired: BTreeSet<SegmentId>,
    evidence: u64,
    /// Sequence number of the next record; `None` before the first.
    expected: Option<u64>,
    next_segment: SegmentId,
    last_scanned: Option<SegmentId>,
    /// Records may be missing from what was replayed.
    incomplete: bool,
    /// Segments with slots of records that may not be durable.
    unflushed_slots: BTreeSet<SegmentId>,
}

/// Whether the log goes on.
#[derive(PartialEq, Eq)]
enum Verdict {
    GoOn,
    End,
}

impl<'a> Replay<'a> {
    fn new(
        disk: &'a dyn Disk,
        store: StoreId,
        snapshot: Option<Snapshot>,
        report: RecoveryReport,
        present: &BTreeSet<SegmentId>,
    ) -> Self {
        let mut r = Self {
            disk,
            store,
            state: State::default(),
            report,
            plan: Plan::default(),
            start: None,
            known: None,
            retired: BTreeSet::new(),
            evidence: 0,
            expected: None,
            next_segment: 1,
            last_scanned: None,
            incomplete: false,
            unflushed_slots: BTreeSet::new(),
        };
        if let Some(Snapshot { point, state }) = snapshot {
            r.known = Some(state.segments.keys().copied().collect());
            r.start = Some((point.tail, point.tail_len));
            r.evidence = point.seq;
            r.expected = Some(point.seq + 1);
            r.next_segment = point.next_segment;
            r.state = state;
            r.state.segments.retain(|id, _| present.contains(id));
        }
        r
    }

    fn to_scan(&self, present: &BTreeSet<SegmentId>) -> Vec<SegmentId> {
        let first = self.start.map_or(0, |(segment, _)| segment);
        present.range(first..).copied().collect()
    }

    fn scan_from(&self, id: SegmentId) -> u64 {
        self.start.filter(|(segment, _)| *segment == id).map_or(FIRST_RECORD, |(_, at)| at)
    }

    fn find_evidence(&mut self, present: &BTreeSet<SegmentId>) -> Result<(), StoreError> {
        for id in self.to_scan(present) {
            let s = open_segment(self.disk, self.store, id)?;
            let mut scanner = Scanner::new(s.file.as_ref(), id, s.seed, self.scan_from(id), s.len);
            while let Some(item) = scanner.next()? {
                if let Item::Record { header, .. } = item {
                    self.evidence = self.evidence.max(header.durable);
                }
            }
        }
        Ok(())
    }

    fn replay(&mut self, present: &BTreeSet<SegmentId>) -> Result<(), StoreError> {
        let ids = self.to_scan(present);
        for id in present.iter().filter(|id| !ids.contains(id)) {
            self.check_sealed(*id)?;
        }
        for (n, id) in ids.iter().enumerate() {
            let s = open_segment(self.disk, self.store, *id)?;
            if self.replay_segment(&s)? == Verdict::GoOn {
                continue;
            }
            for later in &ids[n + 1..] {
                let name = segment_name(*later);
                let file = self.disk.open(&name).map_err(StoreError::io("open", &name))?;
                let bytes = file.len().map_err(StoreError::io("examine", &name))?;
                if let Some(cut) = &mut self.report.cut {
                    cut.bytes += bytes;
                }
                self.plan.discard.push(*later);
            }
            break;
        }
        Ok(())
    }

    /// A segment that the snapshot covers: its records are not read, but it must be what the snapshot knows.
    fn check_sealed(&mut self, id: SegmentId) -> Result<(), StoreError> {
        let s = open_segment(self.disk, self.store, id)?;
        if s.first_seq.is_none() {
            self.damaged(id, 0, FIRST_RECORD, "the segment's header is damaged");
        }
        let expected = match self.state.segments.get(&id) {
            Some(info) => info.len,
            None => {
                // Nothing that is known lives in it. Reclamation will look at it, and remove it.
                let mut info = SegmentInfo::new(s.first_seq.unwrap_or(1));
                (info.len, info.data, info.damaged) = (s.len, s.len, true);
                self.state.segments.insert(id, info);
                self.damaged(id, 0, s.len, "the index snapshot does not know the segment");
                return Ok(());
            }
        };
        if s.len < expected {
            self.damaged(id, s.len, expected, "the file is too short");
        }
        Ok(())
    }

    fn replay_segment(&mut self, s: &SegmentFile) -> Result<Verdict, StoreError> {
        let from = self.scan_from(s.id);
        if from > s.len && from > FIRST_RECORD {
            // The snapshot was made durable after this part of the log, so the disk lost it.
            self.damaged(s.id, s.len, from, "the file is too short");
            self.incomplete = true;
            return Ok(Verdict::GoOn);
        }
        if from == FIRST_RECORD && self.begin_segment(s) == Verdict::End {
            return Ok(Verdict::End);
        }
        self.last_scanned = Some(s.id);
        if from > FIRST_RECORD && s.first_seq.is_none() {
            self.damaged(s.id, 0, FIRST_RECORD, "the segment's header is damaged");
        }
        let mut scanner = Scanner::new(s.file.as_ref(), s.id, s.seed, from, s.len);
        while let Some(item) = scanner.next()? {
            match item {
                Item::Record { at, header } => {
                    if self.replay_record(s, at, &header)? == Verdict::End {
                        return Ok(self.cut(s, at));
                    }
                }
                Item::Damage { from, to, unreadable } => {
                    if !self.is_evident() {
                        if unreadable {
                            let file = segment_name(s.id);
                            let why = format!(
                                "bytes {from}..{to} cannot be read, and may hold flushed data"
                            );
                            return Err(StoreError::BadFile { file, why });
                        }
                        return Ok(self.cut(s, from));
                    }
                    self.damaged(s.id, from, to, "no record can be understood");
                    self.incomplete = true;
                }
            }
        }
        if let Some(info) = self.state.segments.get_mut(&s.id) {
            info.len = info.len.max(s.len);
        }
        Ok(Verdict::GoOn)
    }

    /// Whether the next expected record is known to have been on stable storage.
    fn is_evident(&self) -> bool {
        self.expected.is_some_and(|seq| seq <= self.evidence)
    }

    fn begin_segment(&mut self, s: &SegmentFile) -> Verdict {
        let expected = *self.expected.get_or_insert(s.first_seq.unwrap_or(1));
        let first = s.first_seq.unwrap_or(expected);
        let broken = s.first_seq.is_none() || first < expected;
        if (broken || first > expected) && expected > self.evidence {
            return self.cut(s, 0);
        }
        self.state.segments.insert(s.id, SegmentInfo::new(first));
        if broken {
            self.damaged(s.id, 0, FIRST_RECORD, "the segment's header is damaged");
            self.incomplete = true;
        } else {
            // What is missing in between was in segments that are reclaimed, or missing: `finish` tells which.
            if self.last_scanned.is_some_and(|last| last + 1 == s.id) {
                self.report.records_lost += first - expected;
            }
            self.expected = Some(first);
        }
        Verdict::GoOn
    }

    fn replay_record(
        &mut self,
        s: &SegmentFile,
        at: u64,
        h: &RecordHeader,
    ) -> Result<Verdict, StoreError> {
        let expected = self.expected.unwrap_or(h.seq);
        if h.seq < expected {
            self.damaged(s.id, at, at + h.footprint(), "a record is out of order");
            self.incomplete = true;
            return Ok(Verdict::GoOn);
        }
        if h.seq > expected {
            if expected > self.evidence {
                return Ok(Verdict::End);
            }
            self.report.records_lost += h.seq - expected;
        }
        if h.seq > self.evidence {
            let bad = verify_payload(s.file.as_ref(), at, h)
                .map_err(StoreError::io("read", segment_name(s.id)))?;
            // What was there before, and is damaged now, is no sign of the log's end.
            let kept = matches!(h.form, Form::Slot { kept: true, .. });
            let in_slot = if kept {
                Ok(Vec::new())
            } else {
                verify_slot(h, |segment| self.disk.open(&segment_name(segment)))
            }
            .map_err(StoreError::io("read", segment_name(s.id)))?;
            if !bad.is_empty() || !in_slot.is_empty() {
                return Ok(Verdict::End);
            }
            if let Form::Slot { place, .. } = h.form {
                self.unflushed_slots.insert(place.segment);
            }
        }
        let place = LogPos { segment: s.id, at: at as u32 };
        if let Some(gone) = self.state.apply(place, h).gone {
            self.state.account(&tally(&gone));
        }
        // With a snapshot that is younger than what was lost nothing is missing.
        let covered = |end: LogPos| {
            self.start.is_some_and(|(tail, at)| (end.segment, u64::from(end.at)) <= (tail, at))
        };
        if h.kind == Kind::Lost && !h.as_of.is_some_and(covered) {
            self.report.records_lost += 1;
        }
        if h.kind == Kind::Retire
            && let Ok(id) = SegmentId::try_from(h.key.ino)
        {
            self.retired.insert(id);
        }
        self.expected = Some(h.seq + 1);
        self.report.records_replayed += 1;
        Ok(Verdict::GoOn)
    }

    /// The log ends at a position of this segment.
    fn cut(&mut self, s: &SegmentFile, at: u64) -> Verdict {
        let has_records = at >= FIRST_RECORD && s.first_seq.is_some();
        if has_records {
            self.plan.truncate = Some((s.id, at));
        } else {
            self.plan.discard.push(s.id);
            self.state.segments.remove(&s.id);
        }
        let bytes = s.len - at.min(s.len);
        self.report.cut = Some(CutTail { segment: s.id, position: at, bytes });
        Verdict::End
    }

    fn damaged(&mut self, segment: SegmentId, from: u64, to: u64, why: &str) {
        if let Some(info) = self.state.segments.get_mut(&segment) {
            info.damaged = true;
        }
        self.report.damage.push(Damage { segment, from, to, why: why.into() });
    }

    fn finish(mut self, present: &BTreeSet<SegmentId>) -> Recovered {
        // All that lived in a retired segment was moved before; what a snapshot still says about it is old.
        let gone: BTreeSet<SegmentId> =
            self.retired.iter().filter(|id| !present.contains(id)).copied().collect();
        if !gone.is_empty() {
            self.state.index.retain(|chunk| {
                chunk.extents.0.retain(|e| !gone.contains(&e.at.segment));
                chunk.forget_object();
            });
        }
        let newest =
            present.iter().rfind(|id| !self.plan.discard.contains(id)).copied().unwrap_or(0);
        if let Some(known) = &self.known {
            let gone = |id: &SegmentId| !present.contains(id) && !self.retired.contains(id);
            // Beyond the end of the log an interrupted recovery may have removed some already.
            let was_kept = |id: &SegmentId| *id < self.next_segment || *id < newest;
            let missing = known.iter().copied().chain(self.next_segment..newest);
            let missing = missing.filter(gone).filter(was_kept);
            self.report.missing_segments = missing.take(MISSING_MAX).collect();
        }
        if let Some(expected) = self.expected {
            self.report.records_lost += (self.evidence + 1).saturating_sub(expected);
        }
        let doubted = self.doubt_versions();
        self.state.recount();
        let unused =
            |id: &SegmentId| self.state.segments.get(id).is_none_or(|info| !info.is_used());
        self.plan
            .retired
            .extend(self.retired.iter().filter(|id| present.contains(id) && unused(id)));
        self.plan.retired.retain(|id| !self.plan.discard.contains(id));
        self.plan.unflushed = self
            .state
            .segments
            .iter()
            .filter(|(id, info)| {
                info.last_seq > self.evidence
                    || self.start.is_some_and(|(tail, _)| tail == **id)
                    || self.unflushed_slots.contains(id)
            })
            .map(|(id, _)| *id)
            .collect();
        Recovered {
            next_seq: self.expected.unwrap_or(1).max(self.evidence + 1),
            evidence: self.evidence,
            next_segment: self.next_segment.max(newest + 1),
            state: self.state,
            plan: self.plan,
            report: self.report,
            doubted,
        }
    }

    /// Takes their versions from all chunks if records may be missing; which had one.
    fn doubt_versions(&mut self) -> Vec<ChunkKey> {
        let report = &mut self.report;
        self.incomplete |= report.records_lost > 0 || !report.missing_segments.is_empty();
        if !self.incomplete {
            return Vec::new();
        }
        let versioned = |chunk: &Chunk| chunk.version != ChunkVersion::UNKNOWN;
        let index = &mut self.state.index;
        let doubted: Vec<ChunkKey> =
            index.iter().filter(|(_, chunk)| versioned(chunk)).map(|(key, _)| key).collect();
        index.retain(|chunk| {
            if versioned(chunk) {
                chunk.stamp_with_data(ChunkVersion::UNKNOWN);
            }
        });
        report.versions_dropped = doubted.len() as u64;
        doubted
    }
}

/// Makes the changes that recovery planned, and makes them durable, before anything new is written.
pub(super) fn carry_out(disk: &dyn Disk, state: &mut State, plan: &Plan) -> Result<(), StoreError> {
    let sync = |id: SegmentId, len: Option<u64>| {
        let name = segment_name(id);
        let file = disk.open(&name).map_err(StoreError::io("open", &name))?;
        if let Some(len) = len {
            file.set_len(len).map_err(StoreError::io("truncate", &name))?;
        }
        file.sync().map_err(StoreError::io("flush", &name))
    };
    let remove = |id: SegmentId| {
        let name = segment_name(id);
        disk.remove(&name).map_err(StoreError::io("remove", &name))
    };
    let sync_dir = || disk.sync_dir().map_err(StoreError::io("flush", "the store's directory"));
    let mut lens: BTreeMap<SegmentId, Option<u64>> =
        plan.unflushed.iter().map(|id| (*id, None)).collect();
    lens.extend(plan.truncate.map(|(id, len)| (id, Some(len))));
    for (id, len) in lens {
        sync(id, len)?;
        if let (Some(len), Some(info)) = (len, state.segments.get_mut(&id)) {
            info.len = len;
        }
    }
    // From the end, so that an interruption leaves a log without gaps.
    plan.discard.iter().rev().copied().try_for_each(remove)?;
    // Only now are the moved copies durable, and the originals may go.
    sync_dir()?;
    for id in &plan.retired {
        remove(*id)?;
        state.segments.remove(id);
    }
    if plan.retired.is_empty() { Ok(()) } else { sync_dir() }
}
