//! Looking for damage before somebody needs the data.

use super::error::StoreError;
use super::extent::Extent;
use super::format::{Form, Kind, LogPos, RecordHeader, SegmentId, segment_name};
use super::key::ChunkKey;
use super::recover::Damage;
use super::scan::{Item, Scanner, verify_payload};
use super::segment_store::SegmentStore;
use super::slots::verify_slot;
use super::sync::read;

/// Where a scrub goes on.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct ScrubCursor {
    segment: u32,
    at: u64,
}

/// A damaged range of a chunk, to be repaired by writing it anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadRange {
    /// The chunk.
    pub key: ChunkKey,
    /// First damaged byte, in the chunk.
    pub offset: u64,
    /// How many.
    pub len: u64,
}

/// What one step of a scrub found.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct ScrubStep {
    /// Where to go on; `None`: all has been seen.
    pub next: Option<ScrubCursor>,
    /// Bytes read.
    pub bytes: u64,
    /// Records verified.
    pub records: u64,
    /// Live data that is damaged, or was lost before.
    pub bad: Vec<BadRange>,
    /// Parts of the segment that cannot be understood.
    pub damage: Vec<Damage>,
}

impl SegmentStore {
    /// Verifies the next few records. Begin with a default cursor.
    pub fn scrub_step(&self, cursor: ScrubCursor) -> Result<ScrubStep, StoreError> {
        let mut out = ScrubStep::default();
        let found = {
            let state = read(&self.state);
            let next = state.segments.range(cursor.segment..).next();
            next.map(|(id, info)| (*id, info.len))
        };
        let Some((segment, end)) = found else { return Ok(out) };
        out.next = Some(ScrubCursor { segment: segment + 1, at: 0 });
        let name = segment_name(segment);
        let file = match self.segment_file(segment) {
            Ok(file) => file,
            // Reclaimed since.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(out),
            Err(e) => return Err(StoreError::io("open", name)(e)),
        };
        let start = if segment == cursor.segment {
            cursor.at.max(Self::EMPTY_SEGMENT)
        } else {
            Self::EMPTY_SEGMENT
        };
        let end = end.min(file.len().map_err(StoreError::io("examine", &name))?);
        let mut in_slots = 0;
        let mut scanner = Scanner::new(file.as_ref(), segment, self.seed(segment), start, end);
        while let Some(item) = scanner.next()? {
            match item {
                Item::Record { at, header } => {
                    let mut lost = verify_payload(file.as_ref(), at, &header)
                        .map_err(StoreError::io("read", &name))?;
                    let place = LogPos { segment, at: at as u32 };
                    let all = (header.offset, header.offset + header.len);
                    let lives = |e: &Extent| e.at == place;
                    if let Form::Slot { .. } = header.form
                        && read(&self.state).lookup(&header.key, all.0, all.1).iter().any(lives)
                    {
                        in_slots += u64::from(header.payload_len());
                        let found = verify_slot(&header, |slot| self.segment_file(slot));
                        lost = found.map_err(StoreError::io("read", &name))?;
                    }
                    // What was lost before may be found elsewhere by now.
                    if header.kind == Kind::Bad {
                        lost.push((header.offset, header.len));
                    }
                    out.records += 1;
                    for (offset, len) in lost {
                        self.live_parts(segment, at, &header, offset, len, &mut out.bad);
                    }
                }
                Item::Damage { from, to, .. } => {
                    let why = "no record can be understood".to_owned();
                    out.damage.push(Damage { segment, from, to, why });
                }
            }
            out.bytes = scanner.position() - start + in_slots;
            if out.bytes >= self.config.step_bytes {
                out.next = Some(ScrubCursor { segment, at: scanner.position() });
                break;
            }
        }
        Ok(out)
    }

    /// The parts of a damaged range that the index still points to.
    fn live_parts(
        &self,
        segment: SegmentId,
        at: u64,
        h: &RecordHeader,
        offset: u32,
        len: u32,
        bad: &mut Vec<BadRange>,
    ) {
        if !matches!(h.kind, Kind::Write | Kind::Bad) {
            return;
        }
        let place = LogPos { segment, at: h.data_at(at) as u32 };
        let live = read(&self.state).lookup(&h.key, offset, offset + len);
        bad.extend(live.iter().filter(|e| e.at == place).map(|e| BadRange {
            key: h.key,
            offset: u64::from(e.offset),
            len: u64::from(e.len),
        }));
    }
}
