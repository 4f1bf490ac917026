//! Winning back the space of what was overwritten and deleted: the emptiest segment's live data is appended to the
//! log again, and when that is durable, its file is removed.
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

use super::error::StoreError;
use super::extent::Extent;
use super::format::{BLOCK, Kind, LogPos, RecordHeader, SegmentId, SegmentSeed, segment_name};
use super::key::{ChunkKey, ChunkVersion};
use super::log::{Draft, Space};
use super::scan::{Item, Scanner};
use super::segment_store::SegmentStore;
use super::state::{SegmentInfo, State};
use super::sync::{lock, read, write};

/// What one step of reclamation did.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Reclaimed {
    /// Bytes of live data that were moved.
    pub moved_bytes: u64,
    /// Bytes of segment files that were removed.
    pub freed_bytes: u64,
    /// There is nothing worth reclaiming at the moment.
    pub idle: bool,
    /// There is, and writes are about to find no room, or do so already.
    pub urgent: bool,
}

/// The segment under reclamation.
#[derive(Clone, Copy, Debug)]
struct Job {
    victim: SegmentId,
    at: u64,
    /// Up to here there are records that cannot be understood; 0: there are none.
    lost_to: u64,
}

/// What the reclaimer remembers between steps.
#[derive(Default, Debug)]
pub(super) struct Reclaimer {
    job: Option<Job>,
}

/// How badly room is needed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Normal,
    Full,
}

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
        let need = if free < 4 * self.config.segment_bytes { Need::Full } else { Need::Normal };
        let done = self.step(&mut reclaimer, need)?;
        Ok(Reclaimed { urgent: need == Need::Full && !done.idle, ..done })
    }

    /// Reclaims a segment because a write found no room. `false`: there is nothing to reclaim.
    pub(super) fn make_room(&self, reclaimer: &mut Reclaimer) -> Result<bool, StoreError> {
        loop {
            let done = self.step(reclaimer, Need::Full)?;
            if done.freed_bytes > 0 || done.idle {
                return Ok(done.freed_bytes > 0);
            }
        }
    }

    fn step(&self, reclaimer: &mut Reclaimer, need: Need) -> Result<Reclaimed, StoreError> {
        let Some(mut job) =
            reclaimer.job.take().map_or_else(|| self.pick(need), |job| Ok(Some(job)))?
        else {
            return Ok(Reclaimed { idle: true, ..Reclaimed::default() });
        };
        let mut done = Reclaimed::default();
        match self.work(&mut job, &mut done) {
            Ok(true) => {}
            // Unfinished, or failed in a way that may pass: go on from here the next time.
            Ok(false) => reclaimer.job = Some(job),
            Err(e) => {
                reclaimer.job = Some(job);
                return Err(e);
            }
        }
        Ok(done)
    }

    /// Chooses the segment that gives most for the least copying.
    fn pick(&self, need: Need) -> Result<Option<Job>, StoreError> {
        let threshold = match need {
            Need::Normal => self.config.reclaim_dead_percent,
            Need::Full => self.config.reclaim_dead_percent_when_full,
        };
        let (current, _) = lock(&self.log.tail).position();
        let (best, roll) = {
            let state = read(&self.state);
            let mut best: Option<((u64, u64), SegmentId)> = None;
            let mut roll = false;
            let mut older_may_hide = state.unaccounted > 0;
            for (id, info) in &state.segments {
                let gain = info.reclaimable() + if older_may_hide { 0 } else { info.droppable() };
                older_may_hide |= info.dead() > 0 || info.damaged;
                let percent = gain * 100 / info.len.max(1);
                // Begun since we looked: it is appended to by now.
                if *id > current {
                    break;
                }
                if *id == current {
                    let large = info.len
                        >= self.config.segment_bytes / if need == Need::Full { 16 } else { 4 };
                    roll = large && percent >= 50 && info.data + info.tombs > 0;
                } else if percent >= u64::from(threshold)
                    && best.is_none_or(|(most, _)| (percent, gain) > most)
                {
                    best = Some(((percent, gain), *id));
                }
            }
            (best.map(|(_, id)| id), roll)
        };
        let victim = match best {
            Some(id) => id,
            None if roll => {
                let mut tail = lock(&self.log.tail);
                if tail.position().0 == current {
                    self.log.roll(&mut tail)?;
                }
                current
            }
            None => return Ok(None),
        };
        // `Retire` has to say that all of the victim was durable: otherwise recovery would take its absence for the
        // unflushed end of the log.
        let last_seq = read(&self.state).segments.get(&victim).map_or(0, |info| info.last_seq);
        self.flush_to(last_seq)?;
        Ok(Some(Job { victim, at: Self::EMPTY_SEGMENT, lost_to: 0 }))
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
                self.move_live(&h.key, h.offset, h.offset + h.len, |e| e.at == place, done)
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
        key: &ChunkKey,
        from: u32,
        to: u32,
        is_there: impl Fn(&Extent) -> bool,
        done: &mut Reclaimed,
    ) -> Result<(), StoreError> {
        loop {
            let mut pieces = read(&self.state).lookup(key, from, to);
            pieces.retain(&is_there);
            let mut changed = false;
            for piece in pieces {
                changed |= !self.move_piece(key, piece)?;
                done.moved_bytes += u64::from(piece.len);
            }
            if !changed {
                return Ok(());
            }
        }
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
        let left = read(&self.state)
            .segments
            .get(&victim)
            .map_or(0, |info| info.live + info.pinned + info.aways.live);
        if left > 0 || info.damaged {
            // Records that can no longer be understood may still hold readable blocks, and the versions of chunks.
            self.move_by_index(victim, done)?;
        }
        if job.lost_to > 0 {
            self.note_lost(LogPos { segment: victim, at: job.lost_to as u32 })?;
        }
        self.commit(&Draft::note(Kind::Retire, u64::from(victim)), &[], Space::UseReserve, None)?;
        self.flush()?;
        let name = segment_name(victim);
        self.disk.remove(&name).map_err(|e| self.log.poison(StoreError::io("remove", &name)(e)))?;
        self.disk
            .sync_dir()
            .map_err(|e| self.log.poison(StoreError::io("flush", "the store's directory")(e)))?;
        self.forget_file(victim);
        lock(&self.log.tail).forget_bytes(info.len);
        write(&self.state).segments.remove(&victim);
        done.freed_bytes += info.len;
        Ok(())
    }

    /// Records before this place of the log are lost: among them may be tombstones of what older segments still hold.
    fn note_lost(&self, end: LogPos) -> Result<(), StoreError> {
        let draft = Draft { as_of: Some(end), ..Draft::note(Kind::Lost, 0) };
        self.commit(&draft, &[], Space::UseReserve, None).map(drop)
    }

    fn move_by_index(&self, victim: SegmentId, done: &mut Reclaimed) -> Result<(), StoreError> {
        let found = extents_in(&read(&self.state), victim);
        for (key, e) in found {
            self.move_live(&key, e.offset, e.end(), |e| e.at.segment == victim, done)?;
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

fn extents_in(state: &State, segment: SegmentId) -> Vec<(ChunkKey, Extent)> {
    let all =
        state.index.iter().flat_map(|(key, chunk)| chunk.extents.0.iter().map(move |e| (key, *e)));
    all.filter(|(_, e)| e.at.segment == segment).collect()
}

fn carried_in(state: &State, segment: SegmentId) -> Vec<ChunkKey> {
    let all = state.index.iter().filter(|(_, chunk)| chunk.carrier.segment == segment);
    all.map(|(key, _)| key).collect()
}
