//! Verifying a store that nobody has open, without changing anything.

use std::path::Path;

use super::disk::{Access, Disk, RealDisk};
use super::error::StoreError;
use super::format::{FIRST_RECORD, LogPos, SegmentId, SegmentSeed, StoreId, segment_name};
use super::index::Index;
use super::key::ChunkKey;
use super::recover::{self, Recovered, RecoveryReport};
use super::scan::{Item, Scanner, verify_payload};
use super::segment_store::{ChunkInfo, SegmentStore, list, read_store_id};
use super::slots::verify_slot;
use super::state::State;

/// Faults listed in a report; more are counted only.
const FAULTS_MAX: usize = 1000;

/// What an offline check found.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct CheckReport {
    /// Segment files.
    pub segments: u64,
    /// Records verified.
    pub records: u64,
    /// Chunks that hold data.
    pub chunks: u64,
    /// Bytes of chunks.
    pub live_bytes: u64,
    /// Bytes read.
    pub bytes: u64,
    /// What opening the store would find.
    pub recovery: RecoveryReport,
    /// Whether the index from the snapshot equals the one from the log alone; `None`: there is no snapshot.
    pub snapshot_agrees: Option<bool>,
    /// Faults, one line each; the first 1000.
    pub faults: Vec<String>,
    /// How many there are.
    pub fault_count: u64,
}

impl CheckReport {
    /// Whether nothing is wrong. An unflushed end of the log is not wrong.
    pub fn is_clean(&self) -> bool {
        self.fault_count == 0
    }

    fn fault(&mut self, text: String) {
        self.fault_count += 1;
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(text);
        }
    }
}

/// What a store holds, as of when it was looked at. Nobody can open it for writing meanwhile.
pub struct StoreView {
    state: State,
    disk: RealDisk,
}

impl StoreView {
    /// Chunks that hold data, from a key on, in order.
    pub fn list(&self, from: ChunkKey, limit: usize) -> Vec<ChunkInfo> {
        list(&self.state, from, limit)
    }

    /// What tells the store from others.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn identity(&self) -> Result<Option<[u8; 16]>, StoreError> {
        Ok(read_store_id(&self.disk)?.map(|id| id.0))
    }
}

impl std::fmt::Debug for StoreView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoreView").finish_non_exhaustive()
    }
}

impl SegmentStore {
    /// Verifies every record of the store in `dir`, and that the index can be rebuilt from them. Changes nothing.
    pub fn check(dir: &Path) -> Result<CheckReport, StoreError> {
        let disk = RealDisk::open(dir, Access::Read)?;
        check_disk(&disk, dir)
    }

    /// As [`Self::check`], with what opening the store would find. Changes nothing.
    pub fn examine(dir: &Path) -> Result<(CheckReport, StoreView), StoreError> {
        let disk = RealDisk::open(dir, Access::Read)?;
        let (report, state) = examine(&disk, dir)?;
        Ok((report, StoreView { state, disk }))
    }
}

pub(super) fn check_disk(disk: &dyn Disk, shown_dir: &Path) -> Result<CheckReport, StoreError> {
    examine(disk, shown_dir).map(|(report, _)| report)
}

fn examine(disk: &dyn Disk, shown_dir: &Path) -> Result<(CheckReport, State), StoreError> {
    let Some(id) = read_store_id(disk)? else {
        let names = disk.list().map_err(StoreError::io("list", shown_dir.display().to_string()))?;
        let found = names.into_iter().next().unwrap_or_else(|| "nothing".into());
        return Err(StoreError::NotAStore { dir: shown_dir.to_owned(), found });
    };
    let opened = recover::recover(disk, id)?;
    let mut report = CheckReport { recovery: opened.report.clone(), ..CheckReport::default() };
    describe(&mut report, &opened.report);
    if opened.report.snapshot_used {
        let rebuilt = recover::rebuild(disk, id, opened.evidence)?;
        // Where the log has lost records, only the snapshot knows the versions.
        let dropped = opened.report.versions_dropped + rebuilt.report.versions_dropped;
        let mut agrees =
            compare(&mut report, &opened.state.index, &rebuilt.state.index, dropped == 0);
        if agrees && opened.state.slots != rebuilt.state.slots {
            agrees = false;
            report.fault("the index snapshot and the log differ in where payloads are".into());
        }
        report.snapshot_agrees = Some(agrees);
    }
    for segment in recover::segment_ids(disk)? {
        verify_segment(disk, id, segment, &opened, &mut report)?;
    }
    report.chunks = opened.state.index.chunks();
    report.live_bytes = opened.state.segments.values().map(|s| s.live + s.slots.live).sum();
    for (key, chunk) in opened.state.index.iter() {
        for e in chunk.extents.0.iter().filter(|e| e.is_bad()) {
            report.fault(format!(
                "chunk {key} has lost bytes {}..{} to an earlier disk fault",
                e.offset,
                e.end()
            ));
        }
    }
    Ok((report, opened.state))
}

fn describe(report: &mut CheckReport, recovery: &RecoveryReport) {
    if let Some(why) = &recovery.snapshot_fault {
        report.fault(format!("the index snapshot cannot be used: {why}"));
    }
    for d in &recovery.damage {
        report.fault(format!(
            "{} is damaged at {}..{}: {}",
            segment_name(d.segment),
            d.from,
            d.to,
            d.why
        ));
    }
    for id in &recovery.missing_segments {
        report.fault(format!("{} is missing", segment_name(*id)));
    }
    if recovery.records_lost > 0 {
        report.fault(format!("{} flushed records are lost", recovery.records_lost));
    }
}

/// Whether two indexes say the same; the same versions, too, if they have to be `exact`.
fn compare(report: &mut CheckReport, snapshot: &Index, rebuilt: &Index, exact: bool) -> bool {
    let mut agrees = true;
    let mut left = snapshot.iter().peekable();
    let mut right = rebuilt.iter().peekable();
    loop {
        let (key, same) = match (left.peek(), right.peek()) {
            (None, None) => return agrees,
            (Some((l, a)), Some((r, b))) if l == r => {
                let (mut left, mut right) = (a.extents.clone(), b.extents.clone());
                left.normalise();
                right.normalise();
                (*l, left == right && (!exact || a.version == b.version))
            }
            (Some((l, _)), right) if right.is_none_or(|(r, _)| l < r) => (*l, false),
            (_, Some((r, _))) => (*r, false),
            (Some((l, _)), None) => (*l, false),
        };
        if !same {
            agrees = false;
            report.fault(format!("chunk {key} differs between the index snapshot and the log"));
        }
        left.next_if(|(l, _)| *l == key);
        right.next_if(|(r, _)| *r == key);
    }
}

fn verify_segment(
    disk: &dyn Disk,
    store: StoreId,
    segment: SegmentId,
    opened: &Recovered,
    report: &mut CheckReport,
) -> Result<(), StoreError> {
    report.segments += 1;
    // What lies behind the log's end is no part of it.
    let Some(info) = opened.state.segments.get(&segment) else { return Ok(()) };
    let name = segment_name(segment);
    let file = disk.open(&name).map_err(StoreError::io("open", &name))?;
    let end = info.len.min(file.len().map_err(StoreError::io("examine", &name))?);
    let mut scanner =
        Scanner::new(file.as_ref(), segment, SegmentSeed::new(store, segment), FIRST_RECORD, end);
    while let Some(item) = scanner.next()? {
        match item {
            Item::Record { at, header } => {
                report.records += 1;
                let mut lost = verify_payload(file.as_ref(), at, &header)
                    .map_err(StoreError::io("read", &name))?;
                let all = LogPos { segment, at: at as u32 };
                if is_live(&opened.state, &header.key, all, header.offset, header.len) {
                    let open = |slot| disk.open(&segment_name(slot));
                    let found = verify_slot(&header, open);
                    lost.extend(found.map_err(StoreError::io("read", &name))?);
                }
                for (offset, len) in lost {
                    let place = LogPos { segment, at: header.data_at(at) as u32 };
                    // What is dead may be a hole, or in use for something else.
                    if !is_live(&opened.state, &header.key, place, offset, len) {
                        continue;
                    }
                    let (key, to) = (header.key, offset + len);
                    report.fault(format!(
                        "{name} at {at}: live bytes {offset}..{to} of chunk {key} are damaged"
                    ));
                }
            }
            Item::Damage { from, to, .. } => {
                let known = opened
                    .report
                    .damage
                    .iter()
                    .any(|d| d.segment == segment && d.from <= from && d.to >= to);
                if !known {
                    report.fault(format!(
                        "{name} is damaged at {from}..{to}: no record can be understood"
                    ));
                }
            }
        }
    }
    report.bytes += end;
    Ok(())
}

fn is_live(
    state: &State,
    key: &super::key::ChunkKey,
    place: LogPos,
    offset: u32,
    len: u32,
) -> bool {
    state.lookup(key, offset, offset.saturating_add(len)).iter().any(|e| e.at == place)
}
