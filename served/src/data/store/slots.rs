//! Payloads in the place of dead ones: *slots*.
//!
//! Where a file system takes long to have dead bytes back as holes (`holes.rs`), and moving what lives (`reclaim.rs`) costs more writing than
//! the overwrites did, new payloads are written over dead ones. The record itself is appended to the log as ever, without its payload: it says in which
//! slot that is ([`Form::Slot`]). So the log keeps its order, its numbers and its end.
//!
//! Slots come from the same walk over segments as holes do, are dead for the same reasons, and are given out only when that is *proven* by the log. Why
//! nothing comes back or gets lost:
//!
//! - *What was there before* is hidden by records that are durable, and known to be, whatever crashes later: as for holes.
//! - *What is there now* is as durable as its record: a flush covers the files of slots that were written before it covers the log. Where nothing says
//!   that a record was flushed, recovery verifies its payload, wherever that is, and takes a wrong one for the end of the log.
//!   So neither may a slot be given out again, nor its segment be removed, before it is proven that the records which had it were flushed. For the
//!   first, what hides them is later than they; for the second, reclamation proves the log before it removes a segment. A record that was moved and has kept
//!   its slot says so, and recovery does not look at the payload: it was durable before, and if it is wrong now that is damage and not the log's end.
//! - *Order.* The extent of such a record points to the record, not to the slot, and so does everything that compares places of the log.
//!   Where the slot is says [`Slots`], by the place of the record. A slot may have had many records; each of them is found dead in the log
//!   by what is behind it, as if it had its payload with it.
//! - *Readers* that looked up a place before it died may find newer bytes there. Those of another chunk do not fit the checksum. Those of
//!   the same place of the same chunk do; so a reader looks again whether its extents are still the same if slots were [given out](Pool::fill)
//!   meanwhile.
//! - *Neighbours.* The first and the last page of a slot hold bytes of others, which are written again as they are. A power failure leaves a sector as it was or as
//!   it was to be; the end of the log relies on that too. Where such a page cannot be read, nothing can be written to it: the segment gets no more slots.
//!
//! Accounts: a segment is *lent* what lives in slots in it. That is not dead, though the segment's own records
//! are: tombstones go by these. The segment of the record has it in an account as for what is away, because its payload is elsewhere.
//!
//! When a segment with slots is moved, what lies in them is found by the records that have them. When a record's segment is moved, the record is appended again, for what
//! lives of it, and keeps that part of its slot, but for parts of blocks.
//!
//! A record of which parts died leaves its slot to the next when all of it is dead, or it has been moved. What is packed, in pages, or shorter than a
//! block is never put into a slot: the first two because of what they look like, the last because the rest of the slot would be of no use.
//!
//! Memory: 50 to 70 bytes for each record that lives in a slot, besides its extent.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use super::disk::DiskFile;
use super::format::{BLOCK, CRC_LEN, Form, LogPos, RECORD_HEADER_LEN, RecordHeader, SegmentId};
use super::scan::{BadRange, verify_payload};

/// The shortest slot: a block and its checksum.
pub(super) const LEAST_SLOT: u64 = (BLOCK + CRC_LEN) as u64;

/// From so many segments at most slots are given out: each has an open file.
const MOST_FILES: usize = 64;

/// Where a record has its payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Slot {
    pub(super) place: LogPos,
    /// Bytes that the payload takes there.
    pub(super) stored: u32,
    /// Bytes of the chunk that the index points to.
    pub(super) live: u32,
}

/// The slots of all records that have one and live.
#[derive(Default, PartialEq, Eq, Debug)]
pub(super) struct Slots {
    /// By the places of their records.
    of: BTreeMap<LogPos, Slot>,
    /// The same the other way round. While a record is moved piece by piece, its copies lie in its slot beside it: the first at the same place.
    lent: BTreeSet<(LogPos, LogPos)>,
}

impl Slots {
    /// Where the payload of the record at a place is.
    pub(super) fn place(&self, record: LogPos) -> Option<LogPos> {
        self.of.get(&record).map(|slot| slot.place)
    }

    pub(super) fn insert(&mut self, record: LogPos, slot: Slot) {
        self.lent.insert((slot.place, record));
        self.of.insert(record, slot);
    }

    /// Bytes of a record died.
    pub(super) fn release(&mut self, record: LogPos, bytes: u32) {
        let Some(slot) = self.of.get_mut(&record) else { return };
        slot.live = slot.live.saturating_sub(bytes);
        if slot.live > 0 {
            return;
        }
        let place = slot.place;
        self.of.remove(&record);
        self.lent.remove(&(place, record));
    }

    /// Calls `free` with the parts of a range of a segment that no slot takes.
    pub(super) fn without_lent(
        &self,
        segment: SegmentId,
        (from, to): (u64, u64),
        mut free: impl FnMut(u64, u64),
    ) {
        // No record is at its begin.
        let place = |at: u64| {
            let at = at.min(u32::MAX.into()) as u32;
            (LogPos { segment, at }, LogPos { segment: 0, at: 0 })
        };
        let mut at = from;
        // One before the range may reach into it only if the disk is not as this program wrote it.
        let before = self.lent.range(place(0)..place(from)).next_back();
        for (slot, record) in before.into_iter().chain(self.lent.range(place(from)..place(to))) {
            let begin = u64::from(slot.at);
            let stored = self.of.get(record).map_or(0, |slot| slot.stored);
            if at < begin {
                free(at, begin);
            }
            at = at.max(begin + u64::from(stored));
        }
        if at < to {
            free(at, to);
        }
    }

    /// Records whose payloads are in a segment.
    pub(super) fn records_in(&self, segment: SegmentId) -> BTreeSet<LogPos> {
        let pos = |segment, at| LogPos { segment, at };
        let first = (pos(segment, 0), pos(0, 0));
        let last = (pos(segment, u32::MAX), pos(SegmentId::MAX, u32::MAX));
        self.lent.range(first..=last).map(|(_, record)| *record).collect()
    }

    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = (LogPos, &Slot)> {
        self.of.iter().map(|(record, slot)| (*record, slot))
    }

    /// Begins to count anew what lives.
    pub(super) fn begin_count(&mut self) {
        self.of.values_mut().for_each(|slot| slot.live = 0);
    }

    pub(super) fn count(&mut self, record: LogPos, bytes: u32) {
        if let Some(slot) = self.of.get_mut(&record) {
            slot.live = slot.live.saturating_add(bytes);
        }
    }

    /// Forgets those of which nothing was counted. While records are replayed, what is dead in the end may seem to have a slot that was given to another.
    pub(super) fn end_count(&mut self) {
        self.of.retain(|_, slot| slot.live > 0);
        self.lent = self.of.iter().map(|(record, slot)| (slot.place, *record)).collect();
    }
}

/// A part of a segment that can take a payload.
#[derive(Clone, Debug)]
pub(super) struct Free {
    pub(super) place: LogPos,
    pub(super) len: u32,
}

/// Slots that can be given out. Guarded by the lock of the log's tail: nothing is appended between the moment a segment has none of them any more and
/// its removal.
#[derive(Default)]
pub(super) struct Pool {
    /// By length.
    free: BTreeMap<u32, Vec<Free>>,
    /// Their segments' files, and how many bytes are free in each.
    files: BTreeMap<SegmentId, (Arc<dyn DiskFile>, u64)>,
    bytes: u64,
    /// Some payload found no slot since the last filling.
    missed: bool,
    /// There have been any.
    used: bool,
    /// Segments that could not be written to.
    refused: BTreeSet<SegmentId>,
    /// Bytes that were written into slots.
    pub(super) written: u64,
}

impl Pool {
    /// Takes over what is dead in a segment, and proven to be.
    pub(super) fn fill(&mut self, file: Arc<dyn DiskFile>, found: Vec<Free>) {
        self.missed = false;
        self.used = true;
        let Some(segment) = found.first().map(|free| free.place.segment) else { return };
        if self.refused.contains(&segment) {
            return;
        }
        if self.files.len() >= MOST_FILES {
            // What is in them suits nobody. It is found again.
            self.free.clear();
            self.files.clear();
            self.bytes = 0;
        }
        self.files.insert(segment, (file, 0));
        found.into_iter().for_each(|free| self.put(free));
    }

    fn put(&mut self, free: Free) {
        if u64::from(free.len) >= LEAST_SLOT
            && let Some((_, bytes)) = self.files.get_mut(&free.place.segment)
        {
            *bytes += u64::from(free.len);
            self.bytes += u64::from(free.len);
            self.free.entry(free.len).or_default().push(free);
        }
    }

    /// A slot for so many bytes: of those that are long enough, the shortest.
    pub(super) fn take(&mut self, len: u32) -> Option<(LogPos, Arc<dyn DiskFile>)> {
        // Something short would cost the rest of a slot for as long as it lives.
        if u64::from(len) < LEAST_SLOT {
            return None;
        }
        let Some(found) = self.free.range_mut(len..).next() else {
            self.missed = true;
            return None;
        };
        let (size, free) = (*found.0, found.1.pop());
        if found.1.is_empty() {
            self.free.remove(&size);
        }
        let free = free?;
        let (file, bytes) = self.files.get_mut(&free.place.segment)?;
        let file = file.clone();
        *bytes -= u64::from(size);
        self.bytes -= u64::from(size);
        let rest = LogPos { at: free.place.at + len, ..free.place };
        self.put(Free { place: rest, len: size - len });
        self.files.retain(|_, (_, bytes)| *bytes > 0);
        Some((free.place, file))
    }

    /// A segment could not be written to. What is there stays dead.
    pub(super) fn refuse(&mut self, segment: SegmentId) {
        self.forget(segment);
        self.refused.insert(segment);
    }

    /// Whether something of a form and length could be in a slot.
    pub(super) fn suits(form: Form, len: u32) -> bool {
        form == Form::Blocks && u64::from(len) >= LEAST_SLOT
    }

    /// Gives out nothing of a segment any more.
    pub(super) fn forget(&mut self, segment: SegmentId) {
        let Some((_, bytes)) = self.files.remove(&segment) else { return };
        self.bytes -= bytes;
        if bytes > 0 {
            self.free.retain(|_, all| {
                all.retain(|free| free.place.segment != segment);
                !all.is_empty()
            });
        }
    }

    /// Bytes of segments that are not given out yet.
    pub(super) fn left(&self) -> BTreeMap<SegmentId, u64> {
        self.files.iter().map(|(segment, (_, bytes))| (*segment, *bytes)).collect()
    }

    /// Whether there have been slots since the store was opened.
    pub(super) fn is_used(&self) -> bool {
        self.used
    }

    /// Whether less than so many bytes are left, or some payload found none that was long enough.
    pub(super) fn is_low(&self, least: u64) -> bool {
        self.missed || self.bytes < least
    }
}

/// The parts of a record's range that are not what was stored, if it has its payload in a slot.
pub(super) fn verify_slot(
    h: &RecordHeader,
    open: impl FnOnce(SegmentId) -> io::Result<Arc<dyn DiskFile>>,
) -> io::Result<Vec<BadRange>> {
    let Form::Slot { place, .. } = h.form else { return Ok(Vec::new()) };
    match open(place.segment) {
        Ok(file) => {
            let at = u64::from(place.at).saturating_sub(RECORD_HEADER_LEN as u64);
            verify_payload(file.as_ref(), at, &RecordHeader { form: Form::Blocks, ..*h })
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(vec![(h.offset, h.len)]),
        Err(e) => Err(e),
    }
}
