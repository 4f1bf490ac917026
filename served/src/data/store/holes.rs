//! Giving dead bytes back to the file system where they are: as holes of their segment's file, without moving what lives.
//!
//! Random overwrites leave every segment half dead, and moving the living half costs more writing than the overwrites did. A hole
//! costs none. So segments are *swept* first: their records are walked over, and all whole pages of the file that lie in dead parts of
//! payloads become holes. What is left between holes, headers and parts of pages, are *slivers*, a sixteenth of a record of 64 KiB and all of
//! one of 4 KiB. For these, a segment is moved in the end (`reclaim.rs`), when little else is in it.
//!
//! Why nothing comes back or gets lost, whatever crashes in between:
//!
//! - *What hides a dead record is durable before the hole is made.* A sweep looks at the index, then asks for the last sequence number S of
//!   the log: all that it has seen was done by records up to S. The holes are made after S is *proven* ([`Log::prove`](super::log::Log::prove)).
//! - *Durable is not enough.* Recovery verifies the payloads of records that nothing in the log says were flushed, and takes a hole there for the
//!   log's unflushed end. So a record that says so must be durable as well, before the file system may make the hole durable:
//!   it can do so at any time, and before anything else. What the snapshot proves does not count, because a snapshot may be lost.
//! - *Only payloads become holes, never headers.* Recovery, reclamation and scrubs walk over a segment as before, and replaying the log gives the
//!   same index as before: a record without bytes is hidden by the same newer record, or is replayed by nobody. An older snapshot
//!   may still point to it; the log behind that snapshot hides it.
//!   A tombstone is kept for as long as an older segment has *dead records*, whether they are holes or not.
//! - *Readers* that have looked up a place just before find zeros there, which do not fit the checksum. They look again, and it is damage
//!   only if the index still names that place (`read.rs`). Whoever moves data does so only if the index still names it, under the lock that
//!   orders records.
//! - *Holes say nothing.* No part of the program asks where they are in order to know what the store holds. A copy of a store in which they are zeros
//!   is the same store, and so is one in which some of them have come back as what was there. An offline check takes zeros in dead records as they are.
//!
//! Accounts: [`SegmentInfo::holes`](super::state::SegmentInfo) is what the segment's file was seen to take less after holes were made, and never more than was made
//! into holes. It is never taken for granted that a hole wins what it is long: some file systems have something back only when all around it is dead too.
//! After opening it is a guess, from the blocks that the file has; compression saves blocks too. So before a store says that there is nothing to
//! win, segments whose holes are guessed are walked over and their holes counted.
//!
//! Bounds: a sweep walks over a few segments, then waits for one flush, then makes holes. Each step of it ends after [`STEP_RANGES`] or [`STEP_TIME`], and
//! what one file system takes for one hole. After each step `ways.rs` decides whether it goes on.
//!
//! The segment that is appended to is not swept.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::time::Duration;

use netfs_common::warn_rarely;

use super::disk::Disk;
use super::error::StoreError;
use super::format::{
    BLOCK, Form, Kind, LogPos, RECORD_HEADER_LEN, RecordHeader, SegmentId, block_in, segment_name,
};
use super::scan::{Item, Scanner};
use super::segment_store::SegmentStore;
use super::slots::{Free, LEAST_SLOT};
use super::state::{SegmentInfo, State};
use super::sync::{lock, read, write};
use super::ways::{Way, Ways};

/// Holes that a sweep is to have found before it makes them. Each flush serves so many.
const GATHER_RANGES: usize = 1024;
/// Nor in more segments than these, once there is something to do: somebody may be waiting for it.
pub(super) const GATHER_SEGMENTS: usize = 8;
/// Holes that are made in one step.
const STEP_RANGES: usize = 64;
/// How long one step walks or makes holes.
const STEP_TIME: Duration = Duration::from_millis(20);
/// A sweep should win at least such a part of what seemed dead; otherwise so much of its segment has to die before it is swept again.
const LEAST_SHARE: u64 = 8;
/// The same trouble is logged this often.
const WARN_INTERVAL: Duration = Duration::from_secs(10);

/// How large holes are, at least.
#[derive(Debug)]
pub(super) struct Holes {
    page: u64,
}

/// What the reclaimer remembers of sweeps: by segment, how much that seems dead it need not look for again.
pub(super) type Swept = BTreeMap<SegmentId, u64>;

/// A part of a segment that can become a hole.
#[derive(Clone, Copy, Debug)]
struct Range {
    from: u64,
    to: u64,
    /// Bytes of it that are no hole yet.
    data: u64,
}

/// What was found in one segment.
#[derive(Debug)]
struct Found {
    segment: SegmentId,
    /// Up to here its records have been walked over.
    at: u64,
    /// What is to become holes. Without those that are.
    ranges: Vec<Range>,
    /// Bytes of dead payloads that were holes already.
    were: u64,
    /// Bytes won by those that were made.
    won: u64,
    /// What seemed to be there to win.
    seemed: u64,
}

/// A sweep under way.
#[derive(Debug)]
pub(super) struct Sweep {
    /// Segments to walk over, the next one last.
    victims: Vec<SegmentId>,
    walking: Option<Found>,
    found: VecDeque<Found>,
    /// How many ranges were found.
    ranges: usize,
    /// How long the walking took.
    walked: Duration,
    /// What hides all that was found is durable, and proven to be.
    proven: bool,
    aim: Aim,
}

/// What becomes of dead bytes that a sweep finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Aim {
    /// Holes.
    Holes,
    /// Room for new payloads.
    Slots,
    /// Nothing: holes that are there are counted.
    Count,
}

/// What a step of a sweep did.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct SweepStep {
    pub(super) won: u64,
    /// Bytes that new payloads can be written to.
    pub(super) slots: u64,
    /// There is nothing more to do.
    pub(super) over: bool,
}

impl Sweep {
    /// Sweeps these segments, or the first of them.
    pub(super) fn new(mut victims: Vec<SegmentId>, aim: Aim) -> Self {
        victims.reverse();
        Self {
            victims,
            walking: None,
            found: VecDeque::new(),
            ranges: 0,
            walked: Duration::ZERO,
            proven: false,
            aim,
        }
    }

    /// The segments that it deals with now.
    pub(super) fn under_way(&self) -> impl Iterator<Item = SegmentId> {
        self.walking.iter().chain(&self.found).map(|found| found.segment)
    }

    /// Whether it still looks for what can become holes, or does nothing else anyway.
    pub(super) fn only_walks(&self) -> bool {
        self.aim != Aim::Holes || !self.proven
    }
}

impl Holes {
    /// And whether they are of use, as far as the file system's name tells; and whether what is written over stays in its place.
    pub(super) fn new(disk: &dyn Disk) -> Result<(Self, bool, bool), StoreError> {
        let found = disk.hole_bytes().map_err(StoreError::io("examine", "the file system"))?;
        let discards =
            disk.discards().map_err(StoreError::io("examine", "how the file system is mounted"))?;
        // Those that have a use for whole files only write everything to a new place.
        let overwrites = found.is_some();
        Ok((Self { page: found.unwrap_or(4096) }, overwrites && !discards, overwrites))
    }

    /// Whether a way suits a segment. Where most records are short, they have no whole page to make a hole of; a slot needs as much as a record of a page.
    pub(super) fn suit(&self, info: &SegmentInfo, way: Way) -> bool {
        let records = (info.last_seq + 1).saturating_sub(info.first_seq).max(1);
        let least = if way == Way::Slots { self.page / 2 } else { self.page };
        info.data / records >= least
    }

    /// How much of a segment a sweep may win that was not there at the last one. 0: it is not worth looking.
    pub(super) fn promise(
        &self,
        (id, info): (SegmentId, &SegmentInfo),
        way: Way,
        swept: &Swept,
    ) -> u64 {
        if !self.suit(info, way) {
            return 0;
        }
        info.reclaimable().saturating_sub(swept.get(&id).copied().unwrap_or(0))
    }
}

/// Guesses how much of each segment is holes, when a store is opened.
pub(super) fn guess(disk: &dyn Disk, state: &mut State) -> Result<(), StoreError> {
    let page = disk.hole_bytes().map_err(StoreError::io("examine", "the file system"))?;
    // Where none are made, there are none.
    let Some(page) = page else { return Ok(()) };
    for (id, info) in &mut state.segments {
        let name = segment_name(*id);
        let file = disk.open(&name).map_err(StoreError::io("open", &name))?;
        let taken = file.allocated().map_err(StoreError::io("examine", &name))?;
        let missing = info.len.saturating_sub(taken);
        if missing >= page {
            // Nothing but what is dead is a hole.
            info.holes = missing.min(info.dead_stored());
            info.guessed = true;
        }
    }
    Ok(())
}

impl SegmentStore {
    /// Goes on with a sweep for one bounded step.
    pub(super) fn sweep(
        &self,
        sweep: &mut Sweep,
        swept: &mut Swept,
        ways: &mut Ways,
    ) -> Result<SweepStep, StoreError> {
        let until = self.disk.now() + STEP_TIME;
        if !sweep.proven {
            let begun = self.disk.now();
            let walked = self.walk(sweep, until)?;
            sweep.walked += self.disk.now().saturating_sub(begun);
            if !walked {
                return Ok(SweepStep::default());
            }
            // All that was seen in the index was done by records up to the last one.
            let seen = lock(&self.log.tail).last_seq();
            #[cfg(test)]
            let seen = rules::broken_target(self, seen)?;
            // The time that this takes is not counted: others wait for the same flush.
            if sweep.aim != Aim::Count {
                self.prove(seen)?;
            }
            sweep.proven = true;
            return Ok(SweepStep { over: sweep.found.is_empty(), ..SweepStep::default() });
        }
        match sweep.aim {
            Aim::Holes => {}
            Aim::Slots => return self.fill_slots(sweep, swept),
            Aim::Count => {
                for found in sweep.found.drain(..) {
                    self.settle(&found);
                }
                return Ok(SweepStep { over: true, ..SweepStep::default() });
            }
        }
        let begun = self.disk.now();
        let (mut step, mut expected, mut count) = (SweepStep::default(), 0, 0);
        let mut stopped = false;
        while !stopped
            && count < STEP_RANGES
            && (count == 0 || self.disk.now() < until)
            && let Some(found) = sweep.found.front_mut()
        {
            let mut made = Made { left: STEP_RANGES - count, ..Made::default() };
            self.make_holes(found, until, &mut made)?;
            count += made.count;
            expected += made.bytes;
            step.won += made.won;
            match made.end {
                End::Bound => {}
                End::Ranges => {
                    if let Some(stays) = self.settle(found) {
                        swept.insert(found.segment, stays);
                    }
                    sweep.found.pop_front();
                }
                End::Never if ways.refuse() => {
                    tracing::warn!(
                        "the file system makes no holes in files: space of what is overwritten is won back by moving what is not"
                    );
                    stopped = true;
                }
                End::Never => stopped = true,
                // It has no room to note them: moving has to make some.
                End::NoRoom => {
                    if let Some(info) = read(&self.state).segments.get(&found.segment) {
                        swept.insert(found.segment, info.reclaimable());
                    }
                    stopped = true;
                }
            }
        }
        let walked = sweep.walked.mul_f64(count as f64 / sweep.ranges.max(1) as f64);
        let took = self.disk.now().saturating_sub(begun) + walked;
        if count > 0 && !ways.made_holes(expected, step.won, took) {
            tracing::warn!(
                "the file system gets back too little by holes in files: space of what is overwritten is won back by moving what is not"
            );
            stopped = true;
        }
        if !ways.may_make_holes() {
            // That nothing was won says nothing about slots.
            swept.clear();
        }
        step.over = stopped || sweep.found.is_empty();
        Ok(step)
    }

    /// Has payloads written to what was found.
    fn fill_slots(&self, sweep: &mut Sweep, swept: &mut Swept) -> Result<SweepStep, StoreError> {
        let mut step = SweepStep { over: true, ..SweepStep::default() };
        for found in sweep.found.drain(..) {
            let Some(info) = read(&self.state).segments.get(&found.segment).copied() else {
                continue;
            };
            let name = segment_name(found.segment);
            let file = self.segment_file(found.segment).map_err(StoreError::io("open", &name))?;
            let place = |at: u64| LogPos { segment: found.segment, at: at as u32 };
            let free = |range: &Range| Free {
                place: place(range.from),
                len: (range.to - range.from) as u32,
            };
            let slots: u64 = found.ranges.iter().map(|range| range.to - range.from).sum();
            self.log.fill_pool(file, found.ranges.iter().map(free).collect());
            step.slots += slots;
            let vain = if slots < found.seemed / LEAST_SHARE { info.len / LEAST_SHARE } else { 0 };
            swept.insert(found.segment, info.reclaimable().saturating_sub(slots) + vain);
        }
        Ok(step)
    }

    /// Sweeps all segments but the one that is appended to.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn sweep_all(&self, aim: Aim) -> Result<u64, StoreError> {
        let mut reclaimer = lock(&self.reclaimer);
        let (current, _) = lock(&self.log.tail).position();
        let all: Vec<_> = read(&self.state).segments.keys().copied().collect();
        let mut sweep = Sweep::new(all.into_iter().filter(|id| *id != current).collect(), aim);
        let (swept, ways) = reclaimer.for_sweep();
        let mut won = 0;
        loop {
            let step = self.sweep(&mut sweep, swept, ways)?;
            won += step.won + step.slots;
            if step.over && sweep.victims.is_empty() {
                return Ok(won);
            }
            if step.over {
                sweep = Sweep::new(sweep.victims.into_iter().rev().collect(), aim);
            }
        }
    }

    /// Looks for what can become holes; `false`: not all has been seen yet.
    fn walk(&self, sweep: &mut Sweep, until: Duration) -> Result<bool, StoreError> {
        loop {
            if let Some(mut found) = sweep.walking.take() {
                if !self.walk_segment(&mut found, sweep.aim, until)? {
                    sweep.walking = Some(found);
                    return Ok(false);
                }
                sweep.ranges += found.ranges.len();
                sweep.found.push_back(found);
            }
            let some = sweep.ranges > 0 && sweep.found.len() >= GATHER_SEGMENTS;
            if sweep.ranges >= GATHER_RANGES || some {
                return Ok(true);
            }
            let Some(segment) = sweep.victims.pop() else { return Ok(true) };
            // Nothing of it is written to while what is dead in it is looked for.
            lock(&self.log.tail).pool().forget(segment);
            if let Some(info) = read(&self.state).segments.get(&segment) {
                sweep.walking = Some(Found {
                    segment,
                    at: Self::EMPTY_SEGMENT,
                    ranges: Vec::new(),
                    were: 0,
                    won: 0,
                    seemed: info.reclaimable(),
                });
            }
        }
    }

    /// Finds dead parts of a segment's payloads, of which holes need whole pages; whether it has been to the end.
    fn walk_segment(
        &self,
        found: &mut Found,
        aim: Aim,
        until: Duration,
    ) -> Result<bool, StoreError> {
        let segment = found.segment;
        let Some(info) = read(&self.state).segments.get(&segment).copied() else {
            return Ok(true);
        };
        let name = segment_name(segment);
        let examine = || StoreError::io("examine", segment_name(segment));
        let file = self.segment_file(segment).map_err(StoreError::io("open", &name))?;
        let end = info.len.min(file.len().map_err(examine())?);
        let seed = self.seed(segment);
        let mut scanner = Scanner::new(file.as_ref(), segment, seed, found.at, end);
        let mut dead: Vec<(u64, u64)> = Vec::new();
        while let Some(item) = scanner.next()? {
            if let Item::Record { at, header } = item
                && u64::from(header.stored()) >= self.holes.page
            {
                let place = LogPos { segment, at: at as u32 };
                let state = read(&self.state);
                dead_parts(&state, place, &header, |from, to| {
                    state.slots.without_lent(segment, (from, to), |from, to| dead.push((from, to)));
                });
            }
            for (from, to) in dead.drain(..) {
                if aim == Aim::Slots {
                    if to - from >= LEAST_SLOT {
                        found.ranges.push(Range { from, to, data: to - from });
                    }
                    continue;
                }
                let page = self.holes.page;
                let (from, to) = (from.next_multiple_of(page), to / page * page);
                if from >= to {
                    continue;
                }
                let data = file.data_bytes(from, to - from).map_err(examine())?;
                found.were += (to - from).saturating_sub(data);
                if data > 0 {
                    found.ranges.push(Range { from, to, data });
                }
            }
            found.at = scanner.position();
            if self.disk.now() >= until {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Makes some holes in a segment, and accounts for what that wins.
    fn make_holes(
        &self,
        found: &mut Found,
        until: Duration,
        made: &mut Made,
    ) -> Result<(), StoreError> {
        if found.ranges.is_empty() {
            made.end = End::Ranges;
            return Ok(());
        }
        let name = segment_name(found.segment);
        let file = self.segment_file(found.segment).map_err(StoreError::io("open", &name))?;
        let before = file.allocated().map_err(StoreError::io("examine", &name))?;
        made.end = loop {
            let Some(range) = found.ranges.last().copied() else { break End::Ranges };
            if made.count >= made.left || (made.count > 0 && self.disk.now() >= until) {
                break End::Bound;
            }
            match file.punch(range.from, range.to - range.from) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::Unsupported => break End::Never,
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) => {
                    break End::NoRoom;
                }
                // Nothing is in doubt: what the range held is dead, and proven to be.
                Err(e) => {
                    warn_rarely!(WARN_INTERVAL, segment = %name, error = %e, "no holes can be made in a segment now");
                    break End::NoRoom;
                }
            }
            found.ranges.pop();
            made.count += 1;
            made.bytes += range.data;
        };
        let after = file.allocated().map_err(StoreError::io("examine", &name))?;
        // Other blocks may have gone besides: those that were kept for a file that grows.
        made.won = before.saturating_sub(after).min(made.bytes);
        found.won += made.won;
        let mut tail = lock(&self.log.tail);
        if let Some(info) = write(&self.state).segments.get_mut(&found.segment) {
            let taken = info.taken();
            info.holes += made.won;
            tail.forget_bytes(taken - info.taken());
        }
        Ok(())
    }

    /// All of a segment has been seen, and its holes are made: what they are is known now. How much the next sweep need not look for.
    fn settle(&self, found: &Found) -> Option<u64> {
        let mut tail = lock(&self.log.tail);
        let mut state = write(&self.state);
        let info = state.segments.get_mut(&found.segment)?;
        let before = info.taken();
        info.holes = found.were + found.won;
        info.guessed = false;
        tail.forget_bytes(before.saturating_sub(info.taken()));
        tail.remember_bytes(info.taken().saturating_sub(before));
        let vain = found.won < found.seemed / LEAST_SHARE;
        let more = if vain { info.len / LEAST_SHARE } else { 0 };
        Some(info.reclaimable() + more)
    }
}

/// What became of some ranges of a segment.
#[derive(Default)]
struct Made {
    /// No more than so many.
    left: usize,
    count: usize,
    /// Bytes that were no holes before.
    bytes: u64,
    /// What the file takes less.
    won: u64,
    end: End,
}

/// Why no more holes were made.
#[derive(Default)]
enum End {
    /// All are made.
    Ranges,
    /// The step is over.
    #[default]
    Bound,
    /// The file system has no room for them now.
    NoRoom,
    /// Nor ever.
    Never,
}

/// The parts of a record's bytes that nobody needs, as from and to in the file.
fn dead_parts(state: &State, at: LogPos, h: &RecordHeader, mut dead: impl FnMut(u64, u64)) {
    if h.kind != Kind::Write {
        return;
    }
    let (begin, data_at) = (u64::from(at.at), h.data_at(at.at.into()));
    let place = LogPos { segment: at.segment, at: data_at as u32 };
    let (record, last) = ((h.offset, h.len), h.offset + h.len);
    let in_pages = matches!(h.form, Form::Pages { .. });
    let all = state.index.get(&h.key).map_or(&[][..], |c| c.extents.range(h.offset, last));
    let live: Vec<(u32, u32)> =
        all.iter().filter(|e| e.at == place).map(|e| (e.offset, e.end())).collect();
    if live.is_empty() {
        return dead(begin + RECORD_HEADER_LEN as u64, begin + h.footprint());
    }
    // Its frames are not looked into.
    if matches!(h.form, Form::Packed { .. }) {
        return;
    }
    let position = |x: u32| data_at + u64::from(block_in(in_pages, record, x).at);
    let mut from = h.offset;
    for (start, end) in live.into_iter().chain([(last, last)]) {
        // Blocks of which some lives stay as a whole: the checksum is theirs.
        let first = if from == h.offset { from } else { from.next_multiple_of(BLOCK) };
        if start == last && first < last {
            dead(position(first), begin + h.footprint());
        } else if first < start / BLOCK * BLOCK {
            dead(position(first), position(start / BLOCK * BLOCK));
        }
        from = end;
    }
}

/// Rules that tests break, to see that it is noticed.
#[cfg(test)]
pub(super) mod rules {
    use std::cell::Cell;

    use super::super::error::StoreError;
    use super::super::segment_store::SegmentStore;

    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(in crate::data::store) enum Broken {
        None,
        /// Holes are made before what hides the dead bytes is durable.
        NotFlushed,
        /// Holes are made before the log says that it is.
        NotProven,
        /// A flush leaves out what was written to slots.
        SlotsNotFlushed,
        /// A segment is removed before the log says that what had slots in it was flushed.
        NotProvenAtRemoval,
    }

    thread_local! {
        pub(in crate::data::store) static BROKEN: Cell<Broken> = const { Cell::new(Broken::None) };
    }

    /// What a sweep waits for: nothing, if the rule is broken.
    pub(super) fn broken_target(store: &SegmentStore, seen: u64) -> Result<u64, StoreError> {
        match BROKEN.get() {
            Broken::None | Broken::SlotsNotFlushed | Broken::NotProvenAtRemoval => Ok(seen),
            Broken::NotFlushed => Ok(0),
            Broken::NotProven => store.flush_to(seen).map(|()| 0),
        }
    }
}
