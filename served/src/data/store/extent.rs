//! Where the bytes of one chunk are.

use super::format::LogPos;

/// In place of the length of a record whose bytes are in an object.
pub(super) const AWAY: u32 = 1 << 30;

/// A range of a chunk that is in one record. 24 bytes, because there is one for each record that lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Extent {
    /// First byte, in the chunk.
    pub(super) offset: u32,
    pub(super) len: u32,
    /// Where the record's payload begins, or its blocks if they are in pages; for bytes that are lost or away, and for a payload in a slot, where the record is that says so.
    pub(super) at: LogPos,
    /// The range of the whole payload: blocks are cut by it. A length of 0 stands for lost bytes, [`PACKED`] in it for a packed
    /// payload, [`PAGES`] for one in pages, [`SLOT`] for one in a slot, and [`AWAY`] for bytes that are in the chunk's object.
    pub(super) record_offset: u32,
    pub(super) record_len: u32,
}

/// In the length of a record: its payload is packed. No chunk is so long, nor as [`AWAY`] says.
pub(super) const PACKED: u32 = 1 << 31;

/// In the length of a record: its payload is in pages.
pub(super) const PAGES: u32 = 1 << 29;

/// In the length of a record: its payload is in a slot.
pub(super) const SLOT: u32 = 1 << 28;

impl Extent {
    pub(super) fn end(&self) -> u32 {
        self.offset + self.len
    }

    pub(super) fn is_bad(&self) -> bool {
        self.record_len == 0
    }

    /// The range that is packed, if the payload is.
    pub(super) fn packed(&self) -> Option<(u32, u32)> {
        (self.record_len & PACKED != 0).then_some((self.record_offset, self.record_len & !PACKED))
    }

    /// The range of the payload, if it is in pages.
    pub(super) fn pages(&self) -> Option<(u32, u32)> {
        let plain = self.record_len & (PACKED | AWAY) == 0;
        (plain && self.record_len & PAGES != 0)
            .then_some((self.record_offset, self.record_len & !PAGES))
    }

    /// Whether the payload is in a slot: `at` is the record's place then, and [`Slots`](super::slots::Slots) knows the slot's.
    pub(super) fn is_in_slot(&self) -> bool {
        self.record_len & (PACKED | AWAY | PAGES) == 0 && self.record_len & SLOT != 0
    }

    /// The same of a payload that begins at a place, as the payload of a record does that has it with it.
    pub(super) fn placed(self, place: LogPos) -> Self {
        Self { at: place, record_len: self.record_len & !SLOT, ..self }
    }

    pub(super) fn is_away(&self) -> bool {
        self.record_len == AWAY
    }

    /// The part within `offset..end`, which must overlap.
    pub(super) fn clip(mut self, offset: u32, end: u32) -> Self {
        let (from, to) = (self.offset.max(offset), self.end().min(end));
        self.offset = from;
        self.len = to - from;
        self
    }
}

/// The extents of one chunk: sorted, not overlapping, never empty ones.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct Extents(pub(super) Vec<Extent>);

impl Extents {
    /// Those that overlap the range.
    pub(super) fn range(&self, offset: u32, end: u32) -> &[Extent] {
        let from = self.0.partition_point(|e| e.end() <= offset);
        let to = self.0.partition_point(|e| e.offset < end);
        &self.0[from..to.max(from)]
    }

    /// Puts `new` over what was there, and tells `freed` of every piece that it hides.
    pub(super) fn put(&mut self, new: Extent, freed: impl FnMut(Extent)) {
        self.replace(new.offset, new.end(), Some(new), None, freed);
    }

    /// Makes a hole. With `before`, only what was written before that place goes.
    pub(super) fn punch(
        &mut self,
        offset: u32,
        end: u32,
        before: Option<LogPos>,
        freed: impl FnMut(Extent),
    ) {
        self.replace(offset, end, None, before, freed);
    }

    fn replace(
        &mut self,
        offset: u32,
        end: u32,
        new: Option<Extent>,
        before: Option<LogPos>,
        mut freed: impl FnMut(Extent),
    ) {
        let from = self.0.partition_point(|e| e.end() <= offset);
        let to = self.0.partition_point(|e| e.offset < end).max(from);
        if from == to {
            if let Some(new) = new {
                if self.0.capacity() == 0 {
                    self.0.reserve_exact(1);
                }
                self.0.insert(from, new);
            }
            return;
        }
        let mut kept = Vec::with_capacity(to - from + 2);
        let mut new = new;
        for e in &self.0[from..to] {
            if before.is_some_and(|limit| e.at >= limit) {
                kept.push(*e);
                continue;
            }
            freed(e.clip(offset, end));
            if e.offset < offset {
                kept.push(e.clip(e.offset, offset));
            }
            kept.extend(new.take());
            if e.end() > end {
                kept.push(e.clip(end, e.end()));
            }
        }
        self.0.splice(from..to, kept);
    }

    /// The data ranges as offset and length, neighbours joined.
    pub(super) fn ranges(&self) -> Vec<(u32, u32)> {
        let mut out: Vec<(u32, u32)> = Vec::new();
        for e in &self.0 {
            match out.last_mut() {
                Some((offset, len)) if *offset + *len == e.offset => *len += e.len,
                _ => out.push((e.offset, e.len)),
            }
        }
        out
    }

    /// Joins neighbouring pieces of the same record, so that equal content compares equal.
    pub(super) fn normalise(&mut self) {
        self.0.dedup_by(|b, a| {
            let same = a.end() == b.offset
                && a.at == b.at
                && (a.record_offset, a.record_len) == (b.record_offset, b.record_len);
            if same {
                a.len += b.len;
            }
            same
        });
    }
}
