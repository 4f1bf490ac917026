//! What the log says so far: the index, and the account of each segment. One function applies a record, when it is
//! appended and when it is replayed, so that both give the same.

use std::collections::BTreeMap;

use super::chunk::Chunk;
use super::extent::{AWAY, Extent, PACKED, PAGES, SLOT};
use super::format::{FIRST_RECORD, Form, Kind, LogPos, RECORD_HEADER_LEN, RecordHeader, SegmentId};
use super::index::{Detached, Index};
use super::key::{ChunkKey, ChunkVersion};
use super::slots::{Slot, Slots};

/// What a record without data takes.
const CARRIER_LEN: u64 = RECORD_HEADER_LEN as u64;

/// The account of those records of one segment whose bytes are elsewhere: `Away`, or in slots.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Elsewhere {
    /// Bytes that they take in the segment.
    pub(super) taken: u64,
    /// Bytes of chunks that they speak of.
    pub(super) data: u64,
    /// Those of them that the index points to. May be too high for a moment, never too low.
    pub(super) live: u64,
}

impl Elsewhere {
    fn dead(&self) -> u64 {
        self.data.saturating_sub(self.live)
    }

    /// Those of the bytes taken that nobody needs.
    fn reclaimable(&self) -> u64 {
        let part = u128::from(self.taken) * u128::from(self.dead());
        part.checked_div(u128::from(self.data)).unwrap_or(0) as u64
    }
}

/// The account of one segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SegmentInfo {
    /// Length of the file up to the end of its last record.
    pub(super) len: u64,
    /// Bytes of chunks in its records.
    pub(super) data: u64,
    /// Those of them that the index points to. May be too high for a moment, never too low.
    pub(super) live: u64,
    /// Bytes taken by tombstones and stamps.
    pub(super) tombs: u64,
    /// Those of them that carry the version of a chunk. May be too high for a moment, never too low.
    pub(super) pinned: u64,
    pub(super) aways: Elsewhere,
    /// Of records that have their payload in a slot.
    pub(super) slots: Elsewhere,
    /// Bytes of chunks, of other segments' records, that live in the place of dead payloads.
    pub(super) lent: u64,
    /// Bytes of the file that the file system has back, because they are holes.
    pub(super) holes: u64,
    /// `holes` is a guess, and may be too high.
    pub(super) guessed: bool,
    pub(super) first_seq: u64,
    pub(super) last_seq: u64,
    /// Inodes with data in it are within this range.
    pub(super) min_ino: u64,
    pub(super) max_ino: u64,
    /// Some of it cannot be read as records.
    pub(super) damaged: bool,
}

impl SegmentInfo {
    pub(super) fn new(first_seq: u64) -> Self {
        Self {
            len: FIRST_RECORD,
            data: 0,
            live: 0,
            tombs: 0,
            pinned: 0,
            aways: Elsewhere::default(),
            slots: Elsewhere::default(),
            lent: 0,
            holes: 0,
            guessed: false,
            first_seq,
            last_seq: first_seq - 1,
            min_ino: u64::MAX,
            max_ino: 0,
            damaged: false,
        }
    }

    pub(super) fn dead(&self) -> u64 {
        self.data.saturating_sub(self.live)
    }

    /// Where bytes of an extent of it are counted while they live.
    fn live_of(&mut self, e: &Extent) -> &mut u64 {
        match e {
            e if e.is_away() => &mut self.aways.live,
            e if e.is_in_slot() => &mut self.slots.live,
            _ => &mut self.live,
        }
    }

    /// Bytes that the file takes on the disk.
    pub(super) fn taken(&self) -> u64 {
        self.len.saturating_sub(self.holes)
    }

    /// Bytes of the disk that moving its live data out would win, tombstones aside.
    pub(super) fn reclaimable(&self) -> u64 {
        self.dead_stored().saturating_sub(self.holes + self.lent)
    }

    /// Bytes of its records, tombstones aside, that nobody needs. Some of them may be holes already.
    pub(super) fn dead_stored(&self) -> u64 {
        let elsewhere = self.aways.taken + self.slots.taken;
        let records = self.len.saturating_sub(FIRST_RECORD + self.tombs + elsewhere);
        let dead = self.aways.reclaimable() + self.slots.reclaimable();
        if self.data == 0 {
            return records + dead;
        }
        (u128::from(records) * u128::from(self.dead()) / u128::from(self.data)) as u64 + dead
    }

    /// Bytes of it that hold what lives.
    pub(super) fn live_stored(&self) -> u64 {
        let records = self.len.saturating_sub(FIRST_RECORD + self.tombs + self.slots.taken);
        let live = u128::from(self.live.min(self.data));
        (u128::from(records) * live / u128::from(self.data.max(1))) as u64 + self.lent
    }

    /// Bytes of tombstones that go with it if they hide nothing any more.
    pub(super) fn droppable(&self) -> u64 {
        self.tombs.saturating_sub(self.pinned)
    }

    /// Whether so much of it is dead that moving the rest pays.
    pub(super) fn is_worth(&self, dead_percent: u8) -> bool {
        self.reclaimable() * 100 / self.taken().max(1) >= u64::from(dead_percent)
    }

    /// Bytes of its records that would have to be moved.
    pub(super) fn kept(&self) -> u64 {
        self.live_stored() + self.tombs + self.aways.taken + self.slots.taken
    }

    /// Whether it has holes and so little else that moving that spares a file for hardly any writing.
    pub(super) fn is_thin(&self) -> bool {
        self.holes > 0 && self.kept() < self.len / 4
    }

    /// Whether some of its records are dead, whatever is in the place of their payloads.
    pub(super) fn has_dead(&self) -> bool {
        self.dead() > 0 || self.aways.dead() > 0 || self.slots.dead() > 0
    }

    /// Whether something of it is needed, tombstones aside.
    pub(super) fn is_used(&self) -> bool {
        self.live + self.pinned + self.aways.live + self.slots.live + self.lent > 0
    }

    /// Whether it may hold something of this inode that a tombstone hides.
    pub(super) fn may_hide(&self, ino: u64) -> bool {
        self.damaged || (self.has_dead() && self.min_ino <= ino && ino <= self.max_ino)
    }
}

/// What became of a record.
#[derive(Default, Debug)]
pub(super) struct Applied {
    /// By how many bytes the data of its chunk grew. What is `gone` is not counted.
    pub(super) grown: i64,
    /// Chunks that were taken out, not yet accounted for.
    pub(super) gone: Option<Detached>,
}

/// The index and the segments.
#[derive(Default, Debug)]
pub(super) struct State {
    pub(super) index: Index,
    pub(super) segments: BTreeMap<SegmentId, SegmentInfo>,
    pub(super) slots: Slots,
    /// Deletions that have left the index and are still counted as live in their segments.
    pub(super) unaccounted: u64,
}

impl State {
    /// Applies the record at `at`. Chunks that a `Delete` took out are returned: to be given to [`Self::account`].
    pub(super) fn apply(&mut self, at: LogPos, h: &RecordHeader) -> Applied {
        let info = self.segments.entry(at.segment).or_insert_with(|| SegmentInfo::new(h.seq));
        info.len = u64::from(at.at) + h.footprint();
        info.last_seq = h.seq;
        let end = h.offset + h.len;
        match h.kind {
            Kind::Write | Kind::Bad | Kind::Away => {
                let bytes = u64::from(h.len);
                let elsewhere = match (h.kind, h.form) {
                    (Kind::Away, _) => Some(&mut info.aways),
                    (_, Form::Slot { .. }) => Some(&mut info.slots),
                    _ => None,
                };
                let (data, live) = match elsewhere {
                    Some(account) => {
                        account.taken += h.footprint();
                        (&mut account.data, &mut account.live)
                    }
                    None => (&mut info.data, &mut info.live),
                };
                *data += bytes;
                *live += bytes;
                info.min_ino = info.min_ino.min(h.key.ino);
                info.max_ino = info.max_ino.max(h.key.ino);
                // Before what it hides dies: that may be a record with the same slot.
                if let Form::Slot { place, .. } = h.form {
                    self.lend(at, Slot { place, stored: h.payload_len(), live: h.len });
                }
                let extent = new_extent(at, h);
                let hidden = self.change(&h.key, |chunk, freed| {
                    chunk.extents.put(extent, freed);
                    chunk.stamp_with_data(h.version);
                    if h.kind == Kind::Away {
                        chunk.object = h.object();
                    }
                });
                Applied { grown: i64::from(h.len) - hidden, gone: None }
            }
            Kind::Punch => {
                info.tombs += h.footprint();
                let freed = self.change(&h.key, |chunk, freed| {
                    chunk.extents.punch(h.offset, end, h.as_of, freed);
                    // A moved one is no change. If its version was still needed, a stamp follows it.
                    if h.as_of.is_none() {
                        chunk.stamp_at(at, h.version);
                    }
                });
                Applied { grown: -freed, gone: None }
            }
            Kind::Stamp => {
                info.tombs += h.footprint();
                self.change(&h.key, |chunk, _| chunk.stamp_at(at, h.version));
                Applied::default()
            }
            Kind::Delete => {
                info.tombs += h.footprint();
                Applied { grown: 0, gone: self.apply_delete(h) }
            }
            Kind::Mark | Kind::Retire | Kind::Lost => Applied::default(),
        }
    }

    /// Accounts for a moved tombstone, which changes nothing in an index that has seen it before.
    pub(super) fn apply_moved_tombstone(&mut self, at: LogPos, h: &RecordHeader) {
        let info = self.segments.entry(at.segment).or_insert_with(|| SegmentInfo::new(h.seq));
        info.len = u64::from(at.at) + h.footprint();
        info.last_seq = h.seq;
        info.tombs += h.footprint();
    }

    fn apply_delete(&mut self, h: &RecordHeader) -> Option<Detached> {
        let Some(limit) = h.as_of else {
            let out = self.index.detach(h.key.file(), h.key.index);
            self.unaccounted += 1;
            return Some(out);
        };
        for key in self.index.keys_of(h.key.file(), h.key.index) {
            self.change(&key, |chunk, freed| {
                chunk.extents.punch(0, u32::MAX, Some(limit), freed);
            });
        }
        None
    }

    fn lend(&mut self, record: LogPos, slot: Slot) {
        if let Some(info) = self.segments.get_mut(&slot.place.segment) {
            info.lent += u64::from(slot.live);
        }
        self.slots.insert(record, slot);
    }

    /// Changes a chunk; how many bytes that freed.
    fn change(
        &mut self,
        key: &ChunkKey,
        change: impl FnOnce(&mut Chunk, &mut dyn FnMut(Extent)),
    ) -> i64 {
        let Self { index, segments, slots, .. } = self;
        let mut bytes = 0;
        let mut freed = |e: Extent| {
            bytes += i64::from(e.len);
            if let Some(info) = segments.get_mut(&e.at.segment) {
                let live = info.live_of(&e);
                *live = live.saturating_sub(u64::from(e.len));
            }
            if e.is_in_slot() {
                release(segments, slots, e.at, e.len);
            }
        };
        let (mut was, mut is) = (LogPos::NOWHERE, LogPos::NOWHERE);
        index.update(key, |chunk| {
            was = chunk.carrier;
            change(chunk, &mut freed);
            chunk.forget_object();
            is = if chunk.is_empty() { LogPos::NOWHERE } else { chunk.carrier };
        });
        if was != is {
            if let Some(info) = self.segments.get_mut(&was.segment) {
                info.pinned = info.pinned.saturating_sub(CARRIER_LEN);
            }
            if let Some(info) = self.segments.get_mut(&is.segment) {
                info.pinned += CARRIER_LEN;
            }
        }
        bytes
    }

    /// Takes the sum of [`tally`] off the segments: the second half of a deletion.
    pub(super) fn account(&mut self, freed: &BTreeMap<SegmentId, Freed>) {
        for (segment, freed) in freed {
            if let Some(info) = self.segments.get_mut(segment) {
                info.live = info.live.saturating_sub(freed.bytes);
                info.aways.live = info.aways.live.saturating_sub(freed.away);
                info.pinned = info.pinned.saturating_sub(freed.pinned);
                let in_slots = freed.slots.iter().map(|(_, len)| u64::from(*len)).sum();
                info.slots.live = info.slots.live.saturating_sub(in_slots);
            }
            for (at, len) in &freed.slots {
                let record = LogPos { segment: *segment, at: *at };
                release(&mut self.segments, &mut self.slots, record, *len);
            }
        }
        self.unaccounted -= 1;
    }

    /// The extents that overlap a range, cut to it.
    pub(super) fn lookup(&self, key: &ChunkKey, offset: u32, end: u32) -> Vec<Extent> {
        let Some(chunk) = self.index.get(key) else { return Vec::new() };
        chunk.extents.range(offset, end).iter().map(|e| e.clip(offset, end)).collect()
    }

    /// As [`Self::lookup`], without memory of its own for what is most often asked: a part of one extent.
    pub(super) fn pieces(&self, key: &ChunkKey, offset: u32, end: u32) -> Pieces {
        let found = self.index.get(key).map_or(&[][..], |chunk| chunk.extents.range(offset, end));
        match found {
            [one] => Pieces::One([one.clip(offset, end)]),
            many => Pieces::Many(many.iter().map(|e| e.clip(offset, end)).collect()),
        }
    }

    /// The version of a chunk; unknown if there is none.
    pub(super) fn version(&self, key: &ChunkKey) -> ChunkVersion {
        self.index.get(key).map_or(ChunkVersion::UNKNOWN, |chunk| chunk.version)
    }

    /// The version that names the object of a chunk; unknown if nothing of it is away.
    pub(super) fn object(&self, key: &ChunkKey) -> ChunkVersion {
        self.index.get(key).map_or(ChunkVersion::UNKNOWN, |chunk| chunk.object)
    }

    /// Counts what lives in each segment anew.
    pub(super) fn recount(&mut self) {
        for info in self.segments.values_mut() {
            (info.live, info.pinned, info.lent) = (0, 0, 0);
            (info.aways.live, info.slots.live) = (0, 0);
        }
        self.slots.begin_count();
        for (_, chunk) in self.index.iter() {
            for e in &chunk.extents.0 {
                if let Some(info) = self.segments.get_mut(&e.at.segment) {
                    *info.live_of(e) += u64::from(e.len);
                }
                if e.is_in_slot() {
                    self.slots.count(e.at, e.len);
                }
            }
            if let Some(info) = self.segments.get_mut(&chunk.carrier.segment) {
                info.pinned += CARRIER_LEN;
            }
        }
        self.slots.end_count();
        for (_, slot) in self.slots.iter() {
            if let Some(info) = self.segments.get_mut(&slot.place.segment) {
                info.lent += u64::from(slot.live);
            }
        }
    }
}

/// Bytes of a record died that has its payload in a slot.
fn release(
    segments: &mut BTreeMap<SegmentId, SegmentInfo>,
    slots: &mut Slots,
    record: LogPos,
    bytes: u32,
) {
    let Some(place) = slots.place(record) else { return };
    slots.release(record, bytes);
    if let Some(info) = segments.get_mut(&place.segment) {
        info.lent = info.lent.saturating_sub(u64::from(bytes));
    }
}

/// Extents that overlap a range, cut to it.
#[derive(PartialEq)]
pub(super) enum Pieces {
    One([Extent; 1]),
    Many(Vec<Extent>),
}

impl std::ops::Deref for Pieces {
    type Target = [Extent];

    fn deref(&self) -> &[Extent] {
        match self {
            Self::One(one) => one,
            Self::Many(many) => many,
        }
    }
}

/// What a segment is relieved of by a deletion.
#[derive(Clone, Default, Debug)]
pub(super) struct Freed {
    pub(super) bytes: u64,
    /// Of bytes that are in objects.
    pub(super) away: u64,
    /// Records with their payload in a slot, by position, and how many bytes of each.
    slots: Vec<(u32, u32)>,
    pinned: u64,
}

impl Freed {
    /// Bytes of chunks.
    pub(super) fn total(&self) -> u64 {
        let in_slots: u64 = self.slots.iter().map(|(_, len)| u64::from(*len)).sum();
        self.bytes + self.away + in_slots
    }
}

/// What these chunks held, by segment.
pub(super) fn tally(gone: &Detached) -> BTreeMap<SegmentId, Freed> {
    let mut out: BTreeMap<SegmentId, Freed> = BTreeMap::new();
    for chunk in gone.chunks() {
        for e in &chunk.extents.0 {
            let freed = out.entry(e.at.segment).or_default();
            if e.is_in_slot() {
                freed.slots.push((e.at.at, e.len));
                continue;
            }
            let bytes = if e.is_away() { &mut freed.away } else { &mut freed.bytes };
            *bytes += u64::from(e.len);
        }
        if chunk.carrier != LogPos::NOWHERE {
            out.entry(chunk.carrier.segment).or_default().pinned += CARRIER_LEN;
        }
    }
    out
}

fn new_extent(at: LogPos, h: &RecordHeader) -> Extent {
    let (record_offset, record_len) = match (h.kind, h.form) {
        (Kind::Bad, _) => (h.offset, 0),
        (Kind::Away, _) => (h.offset, AWAY),
        (_, Form::Blocks) => (h.offset, h.len),
        (_, Form::Pages { .. }) => (h.offset, h.len | PAGES),
        (_, Form::Packed { offset, len, .. }) => (offset, len | PACKED),
        (_, Form::Slot { .. }) => (h.offset, h.len | SLOT),
    };
    Extent {
        offset: h.offset,
        len: h.len,
        at: LogPos { segment: at.segment, at: h.data_at(at.at.into()) as u32 },
        record_offset,
        record_len,
    }
}
