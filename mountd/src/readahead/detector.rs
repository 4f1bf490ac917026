//! The detector of one open file.
//!
//! Reads that follow one another are a *run*. A run that goes on is sequential: a window beyond its end is kept fetched or under
//! way. Runs of one length at a constant distance are *strided*: the next of them are fetched whole. A read backwards is a stride
//! of minus its length. All else is random.
//!
//! The window begins small. It doubles while what it has fetched is still under way when it is wanted, or was not there: then
//! the link could carry more. When all is there in time, it is as large as bandwidth times delay, and stays. Random access drops
//! it, and what nobody has read of it makes the next attempt later: a run must first be longer, a stride seen more often.

/// Pieces end where a multiple of this is reached: as much as one message carries.
const PIECE: u64 = 1 << 20;
/// The window of a run that begins.
const FIRST_WINDOW: (u64, u64) = (128 << 10, 1 << 20);
/// How much larger than a read the disorder is in which reads of a run may come.
const DISORDER: u64 = 4;
/// The most disorder, in bytes.
const MAX_DISORDER: u64 = 4 << 20;
/// How often a distance must be seen.
const SEEN: u32 = 2;
/// The most strides that are fetched ahead.
const MAX_STRIDES: u64 = 64;
/// Records with less than so much between them are fetched in one piece, unless that is many times what is wanted.
const NEAR: u64 = 32 << 10;
/// The most that waste counts.
const MAX_CARE: u32 = 6;

/// The bounds of one detector.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest window, in bytes; 0: nothing is read ahead.
    pub window: u64,
}

/// How a read found what had been fetched for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All was there.
    InTime,
    /// Some was still under way.
    Late,
    /// Some had not been asked for.
    Missed,
}

/// What is known when a read comes.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// How it finds its bytes.
    pub outcome: Outcome,
    /// How much reads of the file wait for at this moment. If the kernel has many under way, they fill the link as well.
    pub under_way: u64,
    /// Beyond this a window does not grow: the link carries no more.
    pub bound: u64,
    /// The end of the file.
    pub size: u64,
}

/// What to do now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advice {
    /// What was fetched for this handle and not read is not wanted any more.
    pub drop: bool,
    /// To be fetched, in the order in which it will be wanted: not overlapping, none before asked for and not dropped since.
    pub fetch: Vec<(u64, u64)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Run {
    start: u64,
    end: u64,
}

/// Watches the reads of one open file.
#[derive(Debug)]
pub struct Detector {
    limits: Limits,
    /// The present run; empty before the first read.
    run: Run,
    /// How many reads it has.
    reads: u32,
    /// How much reads have passed over, for others to come.
    passed: u64,
    /// The length of the run before it.
    record: u64,
    /// From one run to the next.
    stride: i64,
    /// How often that was so.
    seen: u32,
    window: u64,
    /// Of a run: up to where it was asked for.
    ahead: u64,
    /// Something was asked for as the rest of a run, and not dropped.
    asked: bool,
    /// Of strides: how many beyond the present run were asked for, and how many are to be.
    strides: (u64, u64),
    /// By how much the next attempt is put off.
    care: u32,
}

impl Detector {
    /// One that has seen nothing.
    pub fn new(limits: Limits) -> Detector {
        Detector {
            limits,
            run: Run::default(),
            reads: 0,
            passed: 0,
            record: 0,
            stride: 0,
            seen: 0,
            window: 0,
            ahead: 0,
            asked: false,
            strides: (0, 0),
            care: 0,
        }
    }

    /// A read has come.
    pub fn read(&mut self, offset: u64, len: u64, seen: Seen) -> Advice {
        let Seen { size, .. } = seen;
        let end = offset.saturating_add(len).min(size);
        if self.limits.window == 0 || offset >= end {
            return Advice::default();
        }
        if self.reads > 0 && self.continues(offset, end) {
            self.go_on(offset, end, seen)
        } else {
            self.jump(offset, end, seen)
        }
    }

    /// What was fetched and dropped unread, and what was read of what was fetched, since the last time.
    pub fn judge(&mut self, wasted: u64, used: u64) {
        if wasted > used {
            self.care = (self.care + 1).min(MAX_CARE);
        } else if used > 0 {
            self.care = self.care.saturating_sub(1);
        }
    }

    fn continues(&self, offset: u64, end: u64) -> bool {
        let slack = ((end - offset) * DISORDER).min(MAX_DISORDER);
        // Strides may be shorter than the disorder of reads as long.
        let going = self.reads > 1 || self.window > 0;
        let slack = if going && self.seen == 0 { slack } else { 0 };
        offset >= self.run.start.saturating_sub(slack)
            && offset.saturating_sub(self.run.end).saturating_add(self.passed)
                <= slack.max(self.passed)
            && end.saturating_add(slack) >= self.run.end
    }

    fn strided(&self) -> bool {
        // Longer records are runs of their own.
        self.seen >= SEEN + self.care && self.record <= self.limits.window / 2
    }

    fn go_on(&mut self, offset: u64, end: u64, seen: Seen) -> Advice {
        self.reads = self.reads.saturating_add(1);
        if end <= self.run.end {
            self.passed = self.passed.saturating_sub(end - offset);
        } else {
            self.passed += offset.saturating_sub(self.run.end);
        }
        self.run.end = self.run.end.max(end);
        let mut advice = Advice::default();
        let within = self.run.end - self.run.start <= self.record;
        if within && self.strided() {
            // A record that comes in several reads.
            return advice;
        }
        if self.seen > 0 && !within {
            // Longer than what came before it: a run after all.
            if self.strides.0 > 0 {
                advice.drop = true;
                (self.window, self.ahead, self.asked) = (0, self.run.end, false);
            }
            (self.seen, self.strides) = (0, (0, 0));
        }
        self.advance(end - offset, seen, &mut advice);
        advice
    }

    fn advance(&mut self, len: u64, seen: Seen, advice: &mut Advice) {
        let Seen { outcome, under_way, bound, size } = seen;
        if self.reads < 1 + (1 << self.care) {
            return;
        }
        if self.window == 0 {
            self.window = (2 * len).clamp(FIRST_WINDOW.0, FIRST_WINDOW.1);
        } else if outcome != Outcome::InTime {
            self.window = (self.window * 2).min(bound.max(self.window));
        }
        self.window = self.window.min(self.limits.window);
        self.ahead = self.ahead.max(self.run.end);
        // What the kernel has under way fills the link as well.
        let target = self.run.end.saturating_add(self.window.saturating_sub(under_way)).min(size);
        while self.ahead < target {
            let whole = (self.ahead / PIECE + 1).saturating_mul(PIECE).min(size);
            let stop = if whole <= target {
                whole
            } else if self.window < PIECE && (target - self.ahead) * 2 >= self.window {
                target
            } else {
                break;
            };
            advice.fetch.push((self.ahead, stop));
            self.asked = true;
            self.ahead = stop;
        }
    }

    fn jump(&mut self, offset: u64, end: u64, seen: Seen) -> Advice {
        let mut advice = Advice::default();
        let distance = i64::try_from(i128::from(offset) - i128::from(self.run.start)).unwrap_or(0);
        let (before, first) = (self.run.end - self.run.start, self.reads == 0);
        let strided = self.strided();
        // Of a run that ends here nothing more is wanted, nor what was passed over.
        advice.drop = std::mem::take(&mut self.asked);
        // Records that overlap are no stride.
        let apart = !first && distance.unsigned_abs() >= before;
        if apart && self.seen > 0 && distance == self.stride && before == self.record {
            self.seen = self.seen.saturating_add(1);
        } else {
            advice.drop |= self.strides.0 > 0;
            self.seen = u32::from(apart);
            self.strides = (0, 0);
        }
        (self.stride, self.record) = (distance, before);
        self.run = Run { start: offset, end };
        (self.reads, self.passed) = (1, 0);
        (self.window, self.ahead) = (0, end);
        if first && offset == 0 && self.care == 0 {
            // Who begins at the beginning mostly goes on.
            self.reads = 2;
            self.advance(end - offset, seen, &mut advice);
            self.reads = 1;
            return advice;
        }
        if self.strided() {
            self.stride_on(strided, seen, &mut advice);
        }
        advice
    }

    /// Fetches the next records; the present run is the one before them.
    fn stride_on(&mut self, before: bool, seen: Seen, advice: &mut Advice) {
        let (mut asked, mut wanted) = self.strides;
        if before {
            asked = asked.saturating_sub(1);
            if seen.outcome != Outcome::InTime {
                wanted *= 2;
            }
        } else {
            // Together at least a few pages: records that touch are fetched in one piece.
            (asked, wanted) = (0, 4);
        }
        wanted = wanted.min(self.most_strides());
        self.strides = (asked, wanted);
        // In a batch, so that near ones come in one piece.
        if (wanted - asked.min(wanted)) * 2 < wanted {
            return;
        }
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        while self.strides.0 < wanted {
            let k = i128::from(self.strides.0) + 1;
            let at = i128::from(self.run.start) + k * i128::from(self.stride);
            self.strides.0 += 1;
            let Ok(start) = u64::try_from(at) else { continue };
            let stop = start.saturating_add(self.record).min(seen.size);
            if start < stop {
                ranges.push((start, stop));
            }
        }
        for (start, stop) in ranges {
            match advice.fetch.last_mut() {
                Some(last) if near(*last, (start, stop), self.record) => {
                    *last = (last.0.min(start), last.1.max(stop));
                }
                _ => advice.fetch.extend(pieces(start, stop)),
            }
        }
    }

    /// Records that are fetched in one piece may be many.
    fn most_strides(&self) -> u64 {
        let distance = self.stride.unsigned_abs().max(1);
        let (cost, most) = match distance - self.record.min(distance) <= gap(self.record) {
            true => (distance, (PIECE / distance).max(MAX_STRIDES)),
            false => (self.record.max(1), MAX_STRIDES),
        };
        (self.limits.window / cost).clamp(1, most)
    }
}

/// A range in parts of a message each.
fn pieces(start: u64, stop: u64) -> impl Iterator<Item = (u64, u64)> {
    let count = (stop - start).div_ceil(PIECE);
    (0..count).map(move |i| (start + i * PIECE, stop.min(start + (i + 1) * PIECE)))
}

/// The largest gap within a piece.
fn gap(record: u64) -> u64 {
    NEAR.min(3 * record)
}

/// Two ranges are fetched in one piece.
fn near(a: (u64, u64), b: (u64, u64), record: u64) -> bool {
    let between = a.0.max(b.0).saturating_sub(a.1.min(b.1));
    let whole = a.1.max(b.1) - a.0.min(b.0);
    between <= gap(record) && whole <= PIECE
}
