//! Winning back the space of what was overwritten and deleted, in one of three ways. The file system gets back dead bytes where they are
//! (`holes.rs`), or new payloads are written over them (`slots.rs`): that moves nothing. Or the emptiest segment's live data is appended to the log again, and when that is
//! durable, its file is removed. Emptiest is the one that gives most of what it takes on the disk, holes not counted. Which way is cheaper is measured
//! (`ways.rs`). Segments are moved in any case if nearly all that they take is dead, if holes have left next to nothing of them, and when there are more
//! than twice as many as would hold all that there is room for: files, and what a rebuild of the index has to walk over, are bounded by that.
//!
//! Less is worth reclaiming the less room there is ([`SegmentStore::threshold`]): a store that is full but finds room for what is
//! written moves no more than it must.
//!
//! Why nothing comes back or gets lost, whatever crashes in between:
//!
//! - Moved data is an ordinary, newer write. It is appended only if the index still points to the original, under
//!   the lock that orders all records; so a deletion is either before it, and nothing is moved, or after it, and hides it too.
//! - A tombstone in the segment is appended again while any older segment may hold what it hides. The copy
//!   carries its first position and hides only what was written before that.
//! - A version that is written in the segment, and not with data, is appended again as long as its chunk has it (why: `chunk.rs`).
//! - `Retire` tells recovery that the segment's file may be missing, and that what an older snapshot says about
//!   it is void. It is appended again until a newer snapshot is durable.
//!   It also proves, by its claim of what is durable, that the records missing with the segment had been flushed.
//! - The file is removed after a flush of all that, and the removal is durable before the next segment is looked at:
//!   otherwise an older segment could return whose tombstone was dropped because it was gone.

use std::time::Duration;

use super::disk::read_full;
use super::error::StoreError;
use super::extent::Extent;
use super::format::{
    BLOCK, Form, Kind, LogPos, RECORD_HEADER_LEN, RecordHeader, SegmentId, SegmentSeed, block_in,
    segment_name,
};
#[cfg(test)]
use super::holes::rules::{BROKEN, Broken};
use super::holes::{Aim, GATHER_SEGMENTS, Sweep, Swept};
use super::key::{ChunkKey, ChunkVersion};
use super::log::{Draft, Space};
use super::scan::{Item, Scanner, is_medium_error};
use super::segment_store::SegmentStore;
use super::state::{SegmentInfo, State};
use super::sync::{lock, read, write};
use super::ways::{Way, Ways, Won};

/// What one step of reclamation did.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Reclaimed {
    /// Bytes of live data that were moved.
    pub moved_bytes: u64,
    /// Bytes of segment files that were removed, or are holes now.
    pub freed_bytes: u64,
    /// Bytes that were found dead, and that new data can be written over.
    pub slot_bytes: u64,
    /// There is nothing worth reclaiming at the moment.
    pub idle: bool,
    /// There is, and writes are about to find no room, or do so already.
    pub urgent: bool,
}

/// What is needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Want {
    /// Room: where the file system makes no holes, by moving.
    Room,
    /// What is dead and can be written over, where that is done. Segments are moved only if that is hardly any work.
    Slots,
}

/// The segment that is moved.
#[derive(Clone, Copy, Debug)]
struct Job {
    victim: SegmentId,
    at: u64,
    /// Up to here there are records that cannot be understood; 0: there are none.
    lost_to: u64,
    /// It was chosen for what it wins.
    for_gain: bool,
    moved_bytes: u64,
    took: Duration,
}

/// What is under way.
#[derive(Debug)]
enum Work {
    Sweep(Sweep),
    Move(Job),
}

/// What the reclaimer remembers between steps.
#[derive(Debug)]
pub(super) struct Reclaimer {
    work: Option<Work>,
    swept: Swept,
    ways: Ways,
}

impl Reclaimer {
    /// `holes`: whether they may be of use; `overwrites`: whether the file system leaves in its place what is written over.
    pub(super) fn new(holes: bool, overwrites: bool) -> Self {
        Self { work: None, swept: Swept::default(), ways: Ways::new(holes, overwrites) }
    }

    /// For a sweep out of turn.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn for_sweep(&mut self) -> (&mut Swept, &mut Ways) {
        // It would find its holes made.
        self.work.take_if(|work| matches!(work, Work::Sweep(_)));
        (&mut self.swept, &mut self.ways)
    }
}

/// What could be done next.
#[derive(Default)]
struct Choices {
    /// The segment that gives most of what it takes: percent of that, bytes, and which.
    best: Option<((u64, u64), SegmentId)>,
    /// Segments worth sweeping, with what that promises.
    sweeps: Vec<(u64, SegmentId)>,
    /// Segments whose holes are guessed, and that would be worth something if there were none.
    guessed: Vec<SegmentId>,
    /// The segment of which holes have left the least part, with that part in thousandths.
    thinnest: Option<(u64, SegmentId)>,
    /// It is thin enough to be moved at leisure.
    thin: bool,
    /// The segment that is appended to is worth moving.
    roll: bool,
    segments: u64,
}

/// A segment of which so many percent are dead is moved at once: there is next to nothing to move.
const NEARLY_EMPTY: u64 = 90;
/// What it takes to append a record without its payload.
const CARRIER: u32 = RECORD_HEADER_LEN as u32;
/// In segments: with less room than this, less is worth reclaiming too.
const ROOMY: u64 = 4;
/// Segments, beyond twice what the capacity holds, that there may be.
const SPARE_SEGMENTS: u64 = 8;

impl SegmentStore {
    /// Does one bounded piece of reclamation, or of a checkpoint that is due. To be called in a loop, with pauses as the
    /// load allows, and for longer when it was [`idle`](Reclaimed::idle).
    pub fn reclaim_step(&self) -> Result<Reclaimed, StoreError> {
        let mut reclaimer = lock(&self.reclaimer);
        self.log.check_poison()?;
        if self.checkpoint_due() {
            match self.checkpoint_while_locked() {
                Ok(()) | Err(StoreError::NoSpace { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        let (_, free) = self.log.space()?;
        let short = lock(&self.log.tail).suits_slots();
        let want = if short { Want::Slots } else { Want::Room };
        let done = self.step(&mut reclaimer, free, want)?;
        let urgent = free < ROOMY * self.config.segment_bytes && !done.idle;
        Ok(Reclaimed { urgent, ..done })
    }

    /// The least percentage of a segment that is worth reclaiming with so much room. It falls as the room does: whoever reclaims all that a
    /// full store would, long before it is full, moves the same bytes again and again for hardly any gain.
    fn threshold(&self, free: u64) -> u64 {
        let normal = u64::from(self.config.reclaim_dead_percent);
        let full = u64::from(self.config.reclaim_dead_percent_when_full);
        let roomy = ROOMY * self.config.segment_bytes;
        full + (normal - full) * free.min(roomy) / roomy
    }

    /// Wins so many bytes because a write found no room, or what there is to win; or some slots. `false`: there is nothing to reclaim.
    pub(super) fn make_room(
        &self,
        reclaimer: &mut Reclaimer,
        short: u64,
        want: Want,
    ) -> Result<bool, StoreError> {
        let (mut freed, mut moved) = (0, 0);
        loop {
            let done = self.step(reclaimer, 0, want)?;
            freed += done.freed_bytes;
            moved += done.moved_bytes;
            if want == Want::Slots && (done.idle || done.slot_bytes > 0) {
                return Ok(done.slot_bytes > 0);
            }
            // What was moved has taken room itself. Where nearly all lives that takes long, and others wait.
            let enough = freed >= moved + short || moved >= ROOMY * self.config.segment_bytes;
            if done.idle || (freed > 0 && enough) {
                return Ok(freed > 0);
            }
        }
    }

    fn step(
        &self,
        reclaimer: &mut Reclaimer,
        free: u64,
        want: Want,
    ) -> Result<Reclaimed, StoreError> {
        let work = match reclaimer.work.take() {
            Some(work) => Some(work),
            None => self.pick(self.threshold(free), want, reclaimer)?,
        };
        let Reclaimer { swept, ways, work: next } = reclaimer;
        match work {
            None => Ok(Reclaimed { idle: true, ..Reclaimed::default() }),
            Some(Work::Sweep(mut sweep)) => {
                let step = self.sweep(&mut sweep, swept, ways).inspect_err(|_| {
                    // Others have their turn before these are tried again.
                    let state = read(&self.state);
                    for segment in sweep.under_way() {
                        let info = state.segments.get(&segment);
                        swept.insert(segment, info.map_or(0, SegmentInfo::reclaimable));
                    }
                })?;
                // What is left of it is found again when its turn comes.
                let goes_on = sweep.only_walks() || ways.choose() == Way::Holes;
                *next = (!step.over && goes_on).then_some(Work::Sweep(sweep));
                let (freed_bytes, slot_bytes) = (step.won, step.slots);
                Ok(Reclaimed { freed_bytes, slot_bytes, ..Reclaimed::default() })
            }
            Some(Work::Move(mut job)) => {
                let (mut done, begun) = (Reclaimed::default(), self.disk.now());
                let result = self.work(&mut job, &mut done);
                job.moved_bytes += done.moved_bytes;
                job.took += self.disk.now().saturating_sub(begun);
                match result {
                    Ok(true) => {
                        swept.remove(&job.victim);
                        let won = done.freed_bytes.saturating_sub(job.moved_bytes);
                        ways.moved(won, job.took, job.for_gain);
                        Ok(done)
                    }
                    // There is no room even for what has to be moved. Holes take next to none.
                    Err(StoreError::NoSpace { needed, free }) => {
                        let victims = self.hole_victims(reclaimer)?;
                        if victims.is_empty() {
                            return Err(StoreError::NoSpace { needed, free });
                        }
                        reclaimer.work = Some(Work::Sweep(Sweep::new(victims, Aim::Holes)));
                        Ok(done)
                    }
                    // Unfinished, or failed in a way that may pass: go on from here the next time.
                    result => {
                        *next = Some(Work::Move(job));
                        result.map(|_| done)
                    }
                }
            }
        }
    }

    /// Bytes that were won back since the store was opened, by each way.
    pub fn won(&self) -> Won {
        let won = lock(&self.reclaimer).ways.won();
        Won { by_slots: lock(&self.log.tail).pool().written, ..won }
    }

    /// Chooses what gives most for the least work.
    fn pick(
        &self,
        threshold: u64,
        want: Want,
        reclaimer: &Reclaimer,
    ) -> Result<Option<Work>, StoreError> {
        let (current, _) = lock(&self.log.tail).position();
        let (capacity, _) = self.log.space()?;
        let way = reclaimer.ways.choose();
        let mut found = self.choices(current, threshold, (way, want), &reclaimer.swept);
        found.sweeps.sort_unstable_by(|a, b| b.cmp(a));
        let sweep = |aim| {
            let victims = found.sweeps.iter().map(|(_, id)| *id).collect();
            Ok(Some(Work::Sweep(Sweep::new(victims, aim))))
        };
        let most = 2 * capacity.div_ceil(self.config.segment_bytes) + SPARE_SEGMENTS;
        let (nearly_empty, others) = match found.best {
            Some(((percent, _), id)) if percent >= NEARLY_EMPTY => (Some(id), None),
            best => (None, best.map(|(_, id)| id)),
        };
        let thinnest = found.thinnest.map(|(_, id)| id);
        let (victim, for_gain) = match nearly_empty.or(thinnest.filter(|_| found.segments > most)) {
            Some(victim) => (victim, false),
            None if way == Way::Holes && !found.sweeps.is_empty() => return sweep(Aim::Holes),
            None if way == Way::Slots
                && want == Want::Slots
                && !found.sweeps.is_empty()
                && lock(&self.log.tail).pool().is_low(self.config.segment_bytes / 2) =>
            {
                return sweep(Aim::Slots);
            }
            None => match (others, thinnest.filter(|_| found.thin)) {
                (Some(victim), _) => (victim, true),
                (None, Some(victim)) => (victim, false),
                (None, None) if !found.guessed.is_empty() => {
                    found.guessed.truncate(GATHER_SEGMENTS);
                    return Ok(Some(Work::Sweep(Sweep::new(found.guessed, Aim::Count))));
                }
                (None, None) if found.roll => {
                    let mut tail = lock(&self.log.tail);
                    if tail.position().0 == current {
                        self.log.roll(&mut tail)?;
                    }
                    (current, true)
                }
                (None, None) => return Ok(None),
            },
        };
        // Before it is walked over, so that it is not written to again.
        lock(&self.log.tail).pool().forget(victim);
        // `Retire` has to say that all of the victim was durable: otherwise recovery would take its absence for the
        // unflushed end of the log.
        let last_seq = read(&self.state).segments.get(&victim).map_or(0, |info| info.last_seq);
        self.flush_to(last_seq)?;
        Ok(Some(Work::Move(Job {
            victim,
            at: Self::EMPTY_SEGMENT,
            lost_to: 0,
            for_gain,
            moved_bytes: 0,
            took: Duration::ZERO,
        })))
    }

    /// Where holes could be made, if they are of use at all.
    fn hole_victims(&self, reclaimer: &Reclaimer) -> Result<Vec<SegmentId>, StoreError> {
        if !reclaimer.ways.may_make_holes() {
            return Ok(Vec::new());
        }
        let (current, _) = lock(&self.log.tail).position();
        let swept = &reclaimer.swept;
        let how = (Way::Holes, Want::Room);
        let mut found = self.choices(current, self.threshold(0), how, swept).sweeps;
        found.sort_unstable_by(|a, b| b.cmp(a));
        Ok(found.into_iter().map(|(_, id)| id).collect())
    }

    /// Looks at all segments.
    fn choices(
        &self,
        current: SegmentId,
        threshold: u64,
        (way, want): (Way, Want),
        swept: &Swept,
    ) -> Choices {
        let normal = u64::from(self.config.reclaim_dead_percent);
        let full = threshold <= self.config.reclaim_dead_percent_when_full.into();
        // A sweep moves nothing, so it may be for little.
        let least_promise = if full { 1 } else { threshold };
        let pooled = lock(&self.log.tail).pool().left();
        let state = read(&self.state);
        let mut out = Choices { segments: state.segments.len() as u64, ..Choices::default() };
        let mut older_may_hide = state.unaccounted > 0;
        for (id, info) in &state.segments {
            let droppable = if older_may_hide { 0 } else { info.droppable() };
            let gain = info.reclaimable() + droppable;
            older_may_hide |= info.has_dead() || info.damaged;
            let percent = gain * 100 / info.taken().max(1);
            // Begun since we looked: it is appended to by now.
            if *id > current {
                break;
            }
            if *id == current {
                let least = if threshold < normal { 16 } else { 4 };
                let large = info.len >= self.config.segment_bytes / least;
                out.roll = large && percent >= 50 && info.data + info.tombs > 0;
                continue;
            }
            // Unless somebody waits for room, there will soon be more to sweep, which is cheaper.
            let least = match way {
                _ if !self.holes.suit(info, way) => threshold,
                Way::Holes if !full => normal,
                Way::Slots if want == Want::Slots => NEARLY_EMPTY,
                _ => threshold,
            };
            if percent >= least && out.best.is_none_or(|(most, _)| (percent, gain) > most) {
                out.best = Some(((percent, gain), *id));
            }
            let promise = self.holes.promise((*id, info), way, swept);
            let promise = promise.saturating_sub(pooled.get(id).copied().unwrap_or(0));
            // What is a hole is free already, and would take room again.
            let fits = way != Way::Slots || (info.holes == 0 && !info.guessed);
            if fits && promise > 0 && promise * 100 / info.len.max(1) >= least_promise {
                out.sweeps.push((promise, *id));
            }
            if info.guessed && info.dead_stored() * 100 / info.len.max(1) >= threshold {
                out.guessed.push(*id);
            }
            let part = info.kept() * 1000 / info.len.max(1);
            let fewer = info.holes > 0 && part < 750;
            if fewer && out.thinnest.is_none_or(|(least, _)| part < least) {
                out.thinnest = Some((part, *id));
                out.thin = info.is_thin();
            }
        }
        out
    }

    /// Goes on with a job; whether it is finished.
    fn work(&self, job: &mut Job, done: &mut Reclaimed) -> Result<bool, StoreError> {
        let victim = job.victim;
        let Some(info) = read(&self.state).segments.get(&victim).copied() else { return Ok(true) };
        let name = segment_name(victim);
        let file = self.segment_file(victim).map_err(StoreError::io("open", &name))?;
        let end = info.len.min(file.len().map_err(StoreError::io("examine", &name))?);
        let mut scanner = Scanner::new(file.as_ref(), victim, self.seed(victim), job.at, end);
        let from = job.at;
        while let Some(item) = scanner.next()? {
            match item {
                Item::Record { at, header } => {
                    self.move_record(LogPos { segment: victim, at: at as u32 }, &header, done)?;
                }
                Item::Damage { to, .. } => job.lost_to = to,
            }
            job.at = scanner.position();
            if done.moved_bytes >= self.config.step_bytes
                || job.at - from >= 8 * self.config.step_bytes
            {
                return Ok(false);
            }
        }
        if end < info.len {
            job.lost_to = info.len;
        }
        self.finish(job, &info, done)?;
        Ok(true)
    }

    fn move_record(
        &self,
        at: LogPos,
        h: &RecordHeader,
        done: &mut Reclaimed,
    ) -> Result<(), StoreError> {
        match h.kind {
            Kind::Write | Kind::Bad | Kind::Away => {
                let place = LogPos { segment: at.segment, at: h.data_at(at.at.into()) as u32 };
                let range = (h.offset, h.offset + h.len);
                self.move_live(at.segment, &h.key, range, |e| e.at == place, done)
            }
            Kind::Punch => {
                self.move_tombstone(at, h)?;
                self.move_carrier(h.key, |carrier| carrier == at)
            }
            Kind::Delete => self.move_tombstone(at, h),
            Kind::Stamp => self.move_carrier(h.key, |carrier| carrier == at),
            Kind::Retire
                if self.snapshot_seq.load(std::sync::atomic::Ordering::Acquire) < h.seq =>
            {
                self.commit(&Draft::note(Kind::Retire, h.key.ino), &[], Space::UseReserve, None)
                    .map(drop)
            }
            Kind::Lost => self.note_lost(h.as_of.unwrap_or(at)),
            Kind::Retire | Kind::Mark => Ok(()),
        }
    }

    /// Writes a chunk's version anew if it is in the segment to be emptied.
    fn move_carrier(
        &self,
        key: ChunkKey,
        is_there: impl Fn(LogPos) -> bool,
    ) -> Result<(), StoreError> {
        let is_carried =
            || read(&self.state).index.get(&key).is_some_and(|chunk| is_there(chunk.carrier));
        // Most are not: no need to hold up writers then. Once it is not, it never is again.
        if !is_carried() {
            return Ok(());
        }
        let mut tail = lock(&self.log.tail);
        if !is_carried() {
            return Ok(());
        }
        let version = read(&self.state).version(&key);
        let draft = Draft::range(Kind::Stamp, key, 0, 0).with_version(version);
        let (at, header) = self.log.append(&mut tail, &draft, &[], Space::UseReserve)?;
        write(&self.state).apply(at, &header);
        Ok(())
    }

    fn move_tombstone(&self, at: LogPos, h: &RecordHeader) -> Result<(), StoreError> {
        let first = h.as_of.unwrap_or(at);
        let mut tail = lock(&self.log.tail);
        let needed = {
            let state = read(&self.state);
            let older =
                |id: SegmentId| id < first.segment || (h.as_of.is_some() && id == first.segment);
            let mut others =
                state.segments.iter().filter(|(id, _)| **id != at.segment && older(**id));
            state.unaccounted > 0 || others.any(|(_, info)| info.may_hide(h.key.ino))
        };
        if needed {
            let again = Draft::range(h.kind, h.key, h.offset, h.len);
            let draft = Draft { as_of: Some(first), ..again.with_version(ChunkVersion::UNKNOWN) };
            let (at, header) = self.log.append(&mut tail, &draft, &[], Space::UseReserve)?;
            write(&self.state).apply_moved_tombstone(at, &header);
        }
        Ok(())
    }

    /// Moves what lives in a range of a chunk and is in the segment to be emptied.
    fn move_live(
        &self,
        victim: SegmentId,
        key: &ChunkKey,
        (from, to): (u32, u32),
        is_there: impl Fn(&Extent) -> bool,
        done: &mut Reclaimed,
    ) -> Result<(), StoreError> {
        loop {
            let mut pieces = read(&self.state).lookup(key, from, to);
            pieces.retain(&is_there);
            let mut changed = false;
            for piece in pieces {
                let place = read(&self.state).slots.place(piece.at);
                let (same, moved) = match place.filter(|_| piece.is_in_slot()) {
                    Some(place) => self.move_slot(key, piece, place, victim)?,
                    None => (self.move_piece(key, piece)?, piece.len),
                };
                changed |= !same;
                done.moved_bytes += u64::from(moved);
            }
            if !changed {
                return Ok(());
            }
        }
    }

    /// Moves a piece of what is in a slot: if only its record goes, its payload stays, but for parts of blocks. Whether it was as it was, and how many bytes that
    /// took.
    fn move_slot(
        &self,
        key: &ChunkKey,
        piece: Extent,
        place: LogPos,
        victim: SegmentId,
    ) -> Result<(bool, u32), StoreError> {
        if let Err(e) = self.segment_file(place.segment) {
            if e.kind() != std::io::ErrorKind::NotFound {
                return Err(StoreError::io("open", segment_name(place.segment))(e));
            }
            // Nobody removes segments meanwhile: it is lost.
            return Ok((self.note_bad(key, piece)?, CARRIER));
        }
        let all = piece.placed(place);
        let record = (all.record_offset, all.record_len);
        let (record_end, mut from, mut to) = (record.0 + record.1, piece.offset, piece.end());
        if from != record.0 {
            from = from.next_multiple_of(BLOCK);
        }
        if to != record_end {
            to = to / BLOCK * BLOCK;
        }
        if place.segment == victim || from >= to {
            return Ok((self.move_piece(key, piece)?, piece.len));
        }
        // `pick` has seen to it that all of the victim is durable, and so is this.
        let at = place.at + block_in(false, record, from).at;
        let form = Form::Slot { place: LogPos { at, ..place }, kept: true };
        let draft = Draft::range(Kind::Write, *key, from, to - from).with_form(form);
        let kept = [piece.clip(from, to)];
        if self.commit(&draft, &[], Space::UseReserve, Some(&kept))?.is_none() {
            return Ok((false, 0));
        }
        let mut moved = CARRIER;
        for (from, to) in [(piece.offset, from), (to, piece.end())] {
            if from < to {
                moved += to - from;
                if !self.move_piece(key, piece.clip(from, to))? {
                    return Ok((false, moved));
                }
            }
        }
        Ok((true, moved))
    }

    /// Moves what is in slots of a segment, as far as the records can be found that say so.
    fn move_lent(&self, victim: SegmentId, done: &mut Reclaimed) -> Result<(), StoreError> {
        let records = read(&self.state).slots.records_in(victim);
        for record in records {
            let name = segment_name(record.segment);
            let file = match self.segment_file(record.segment) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                other => other.map_err(StoreError::io("open", &name))?,
            };
            let mut bytes = [0; RECORD_HEADER_LEN];
            match read_full(file.as_ref(), &mut bytes, record.at.into()) {
                Err(e) if is_medium_error(&e) => continue,
                other => other.map_err(StoreError::io("read", &name))?,
            };
            let header = RecordHeader::decode(&bytes, self.seed(record.segment), record.at.into());
            if let Some(h) = header {
                let range = (h.offset, h.offset + h.len);
                self.move_live(victim, &h.key, range, |e| e.at == record, done)?;
            }
        }
        Ok(())
    }

    /// `false`: it has changed meanwhile.
    fn move_piece(&self, key: &ChunkKey, piece: Extent) -> Result<bool, StoreError> {
        if piece.packed().is_some() {
            return self.move_packed(key, piece);
        }
        if piece.is_away() {
            let draft = Draft::range(Kind::Away, *key, piece.offset, piece.len);
            let object = read(&self.state).object(key);
            // Unknown: nothing is away any more, so this piece is not there either.
            let draft = Draft { as_of: LogPos::from_u64(object.0), ..draft };
            if draft.as_of.is_none() {
                return Ok(false);
            }
            let piece = [piece];
            return Ok(self.commit(&draft, &[], Space::UseReserve, Some(&piece))?.is_some());
        }
        if !piece.is_bad() {
            match self.rewrite(*key, piece.offset, piece.end(), &[piece], Space::UseReserve) {
                Err(StoreError::Corrupt { .. }) => {}
                other => return Ok(other?.is_some()),
            }
        }
        // Block by block, because some of it is lost.
        let mut from = piece.offset;
        while from < piece.end() {
            let to = if piece.is_bad() {
                piece.end()
            } else {
                (from / BLOCK * BLOCK + BLOCK).min(piece.end())
            };
            if !self.move_block(key, piece.clip(from, to))? {
                return Ok(false);
            }
            from = to;
        }
        Ok(true)
    }

    /// Moves what can be read; leaves a note in place of what is lost, so that it never reads as something else.
    fn move_block(&self, key: &ChunkKey, part: Extent) -> Result<bool, StoreError> {
        if !part.is_bad() {
            match self.rewrite(*key, part.offset, part.end(), &[part], Space::UseReserve) {
                Err(StoreError::Corrupt { .. }) => {}
                other => return Ok(other?.is_some()),
            }
        }
        let draft = Draft::range(Kind::Bad, *key, part.offset, part.len);
        Ok(self.commit(&draft, &[], Space::UseReserve, Some(&[part]))?.is_some())
    }

    /// All has moved: removes the segment.
    fn finish(
        &self,
        job: &Job,
        info: &SegmentInfo,
        done: &mut Reclaimed,
    ) -> Result<(), StoreError> {
        let victim = job.victim;
        lock(&self.log.tail).pool().forget(victim);
        self.move_lent(victim, done)?;
        let is_used = read(&self.state).segments.get(&victim).is_some_and(SegmentInfo::is_used);
        if is_used || info.damaged {
            // Records that can no longer be understood may still hold readable blocks, and the versions of chunks.
            self.move_by_index(victim, done)?;
        }
        if job.lost_to > 0 {
            self.note_lost(LogPos { segment: victim, at: job.lost_to as u32 })?;
        }
        // Also of a record whose payload is in a slot here, and which died meanwhile, recovery must not ask whether it was flushed.
        let seen = lock(&self.log.tail).last_seq();
        #[cfg(test)]
        let seen = if BROKEN.get() == Broken::NotProvenAtRemoval { 0 } else { seen };
        self.prove(seen)?;
        self.commit(&Draft::note(Kind::Retire, u64::from(victim)), &[], Space::UseReserve, None)?;
        self.flush()?;
        let name = segment_name(victim);
        self.disk.remove(&name).map_err(|e| self.log.poison(StoreError::io("remove", &name)(e)))?;
        self.disk
            .sync_dir()
            .map_err(|e| self.log.poison(StoreError::io("flush", "the store's directory")(e)))?;
        self.forget_file(victim);
        lock(&self.log.tail).forget_bytes(info.taken());
        write(&self.state).segments.remove(&victim);
        done.freed_bytes += info.taken();
        Ok(())
    }

    /// Records before this place of the log are lost: among them may be tombstones of what older segments still hold.
    fn note_lost(&self, end: LogPos) -> Result<(), StoreError> {
        let draft = Draft { as_of: Some(end), ..Draft::note(Kind::Lost, 0) };
        self.commit(&draft, &[], Space::UseReserve, None).map(drop)
    }

    fn move_by_index(&self, victim: SegmentId, done: &mut Reclaimed) -> Result<(), StoreError> {
        let lent = read(&self.state).slots.records_in(victim);
        let is_there = |e: &Extent| e.at.segment == victim || lent.contains(&e.at);
        let found = extents_in(&read(&self.state), is_there);
        for (key, e) in found {
            self.move_live(victim, &key, (e.offset, e.end()), is_there, done)?;
        }
        let carried = carried_in(&read(&self.state), victim);
        for key in carried {
            self.move_carrier(key, |carrier| carrier.segment == victim)?;
        }
        Ok(())
    }

    pub(super) fn seed(&self, segment: SegmentId) -> SegmentSeed {
        SegmentSeed::new(self.id(), segment)
    }
}

fn extents_in(state: &State, is_there: impl Fn(&Extent) -> bool) -> Vec<(ChunkKey, Extent)> {
    let all =
        state.index.iter().flat_map(|(key, chunk)| chunk.extents.0.iter().map(move |e| (key, *e)));
    all.filter(|(_, e)| is_there(e)).collect()
}

fn carried_in(state: &State, segment: SegmentId) -> Vec<ChunkKey> {
    let all = state.index.iter().filter(|(_, chunk)| chunk.carrier.segment == segment);
    all.map(|(key, _)| key).collect()
}
