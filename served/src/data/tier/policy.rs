//! What goes to the bucket, and when. Plain state: events and a time come in, decisions go out.
//!
//! Times are seconds since the start of the server, coarse on purpose. What was used before the start counts as used at the start.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use netfs_common::id::ChunkId;

/// Chunks whose last use is remembered. Of others it is known that it was before that of all these.
const MAX_USES: usize = 1 << 20;
/// Ages are told apart by powers of two of a second.
const AGES: usize = 40;
/// So many percent below the level at which it begins, making room ends.
const SLACK_PERCENT: u64 = 5;
/// Changed chunks that are remembered; with more, writes have to wait.
const MAX_DIRTY: usize = 1 << 16;

/// Settings.
#[derive(Clone, Copy, Debug)]
pub struct PolicyConfig {
    /// What was not used for so long goes.
    pub after: Duration,
    /// At this level of the disk the coldest go before their time.
    pub fill_percent: u8,
}

/// When chunks were used, and which of them go.
#[derive(Debug)]
pub struct Policy {
    config: PolicyConfig,
    uses: HashMap<ChunkId, u32>,
    max_uses: usize,
    /// What is not in `uses` was used by then at the latest.
    floor: u32,
    /// In this look at all chunks, those that were not used for so long may go.
    limit: Duration,
    /// So many bytes go before their time, of all ages, and of the youngest that may go.
    excess: u64,
    of_youngest: u64,
    /// Bytes here by age, as of the last look, and of the present one.
    known: [u64; AGES],
    seen: [u64; AGES],
    looked: bool,
}

/// How much there is room for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fill {
    /// What the store can hold, in bytes.
    pub capacity: u64,
    /// What it can still take.
    pub free: u64,
}

impl Policy {
    /// Nothing has been used yet.
    pub fn new(config: PolicyConfig) -> Policy {
        Policy {
            config,
            uses: HashMap::new(),
            max_uses: MAX_USES,
            floor: 0,
            limit: config.after,
            excess: 0,
            of_youngest: 0,
            known: [0; AGES],
            seen: [0; AGES],
            looked: false,
        }
    }

    /// A chunk was read or written.
    pub fn used(&mut self, chunk: ChunkId, now: Duration) {
        let now = seconds(now);
        self.uses.insert(chunk, now);
        if self.uses.len() <= self.max_uses {
            return;
        }
        // The older half is forgotten, as if all of it had been used when the last of it was: nothing goes too early.
        let mut times: Vec<u32> = self.uses.values().copied().collect();
        let middle = times.len() / 2;
        let (_, median, _) = times.select_nth_unstable(middle);
        self.floor = self.floor.max(*median);
        let floor = self.floor;
        self.uses.retain(|_, at| *at > floor);
    }

    /// A look at all chunks begins.
    pub fn begin(&mut self, now: Duration, fill: Fill) {
        self.known = std::mem::replace(&mut self.seen, [0; AGES]);
        (self.limit, self.excess, self.of_youngest) = (self.config.after, 0, 0);
        let used = fill.capacity.saturating_sub(fill.free);
        let level = |percent: u64| fill.capacity / 100 * percent;
        let begin = u64::from(self.config.fill_percent);
        // Which are the coldest is known from the look before.
        if !std::mem::replace(&mut self.looked, true) || used <= level(begin) {
            return;
        }
        self.excess = used - level(begin.saturating_sub(SLACK_PERCENT));
        self.of_youngest = self.excess;
        for age in (0..AGES).rev() {
            // All that is older than the youngest of this age.
            let youngest = Duration::from_secs((1u64 << age) - 1);
            self.limit = self.limit.min(youngest);
            match self.of_youngest.checked_sub(self.known[age]) {
                Some(left) if left > 0 && age > 0 => self.of_youngest = left,
                _ => break,
            }
        }
        tracing::debug!(?now, limit = ?self.limit, excess = self.excess, "the disk is filling: colder chunks go");
    }

    /// Whether a chunk with so many bytes here goes, if nothing keeps it.
    pub fn goes(&mut self, chunk: ChunkId, bytes: u64, now: Duration) -> bool {
        let last = self.uses.get(&chunk).copied().unwrap_or(self.floor);
        let age = Duration::from_secs(u64::from(seconds(now).saturating_sub(last)));
        let power = power(age);
        self.seen[power] += bytes;
        if age < self.limit || bytes == 0 {
            return false;
        }
        let is_youngest = power == self::power(self.limit);
        if age < self.config.after {
            // Ages are coarse, and after a start all are the same: not all of an age has to go.
            if self.excess == 0 || (is_youngest && self.of_youngest == 0) {
                return false;
            }
            if is_youngest {
                self.of_youngest = self.of_youngest.saturating_sub(bytes);
            }
        }
        self.excess = self.excess.saturating_sub(bytes);
        true
    }

    /// It is not here any more: its last use need not be known.
    pub fn went(&mut self, chunk: ChunkId) {
        self.uses.remove(&chunk);
    }
}

/// In which power of two of a second an age is.
fn power(age: Duration) -> usize {
    (64 - (age.as_secs() + 1).leading_zeros() as usize - 1).min(AGES - 1)
}

fn seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX)
}

/// Changed chunks of volumes whose primary copy is in the bucket.
#[derive(Debug)]
pub struct Dirty {
    delay: Duration,
    since: HashMap<ChunkId, Duration>,
    order: BTreeSet<(Duration, ChunkId)>,
    /// Those that cannot be put there, though the bucket could take them, and when that was tried last. Nobody waits for them.
    stuck: HashMap<ChunkId, Duration>,
}

impl Dirty {
    /// Nothing has changed. What changes is to be in the bucket after `delay`.
    pub fn new(delay: Duration) -> Dirty {
        let (since, order) = (HashMap::new(), BTreeSet::new());
        Dirty { delay, since, order, stuck: HashMap::new() }
    }

    /// A chunk was changed, so perhaps it can be put there now.
    pub fn changed(&mut self, chunk: ChunkId, now: Duration) {
        if let Entry::Vacant(entry) = self.since.entry(chunk) {
            entry.insert(now);
            self.order.insert((now, chunk));
            self.stuck.remove(&chunk);
        }
    }

    /// A chunk was found not to be there.
    pub fn missing(&mut self, chunk: ChunkId, now: Duration) {
        if !self.stuck.contains_key(&chunk) {
            self.changed(chunk, now);
        }
    }

    /// A chunk cannot be put there, whatever the bucket does: it is damaged, or its volume's key is not at hand. Whether it is the first time.
    pub fn stuck(&mut self, chunk: ChunkId, now: Duration) -> bool {
        self.forget(chunk);
        self.stuck.insert(chunk, now).is_none()
    }

    /// How many cannot be put there.
    pub fn stuck_len(&self) -> usize {
        self.stuck.len()
    }

    /// The chunks whose upload should begin now: the oldest first, and then some that could not be put there a while ago.
    pub fn due(&self, now: Duration, limit: usize) -> Vec<ChunkId> {
        let begun = |(since, _): &&(Duration, ChunkId)| *since + self.delay / 2 <= now;
        let due = self.order.iter().take_while(begun).take(limit).map(|(_, chunk)| *chunk);
        let again = self.stuck.iter().filter(|(_, tried)| **tried + self.delay * 4 <= now);
        due.chain(again.take(limit / 8).map(|(chunk, _)| *chunk)).collect()
    }

    /// What a chunk was when its upload began is in the bucket; `changed`: it is something else by now.
    pub fn uploaded(&mut self, chunk: ChunkId, begun: Duration, changed: bool) {
        self.forget(chunk);
        self.stuck.remove(&chunk);
        if changed {
            self.changed(chunk, begun);
        }
    }

    fn forget(&mut self, chunk: ChunkId) {
        if let Some(since) = self.since.remove(&chunk) {
            self.order.remove(&(since, chunk));
        }
    }

    /// Whether changes have to wait: the bucket has fallen behind by twice the delay.
    pub fn is_late(&self, now: Duration) -> bool {
        let oldest = self.order.first().map(|(since, _)| *since);
        oldest.is_some_and(|since| since + self.delay * 2 < now) || self.since.len() >= MAX_DIRTY
    }

    /// How many are not in the bucket as they are now.
    pub fn len(&self) -> usize {
        self.since.len() + self.stuck.len()
    }

    /// Whether all is in the bucket.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use netfs_common::id::Ino;

    use super::*;

    const ROOM: Fill = Fill { capacity: 1000, free: 900 };

    fn chunk(index: u64) -> ChunkId {
        ChunkId { ino: Ino(1), generation: 0, index }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn policy() -> Policy {
        Policy::new(PolicyConfig { after: at(100), fill_percent: 80 })
    }

    #[test]
    fn a_chunk_goes_when_it_was_not_used_for_long_enough() {
        let mut policy = policy();
        policy.used(chunk(1), at(50));
        policy.begin(at(100), ROOM);
        assert!(policy.goes(chunk(0), 10, at(100)), "not used since the start");
        assert!(!policy.goes(chunk(1), 10, at(149)));
        assert!(policy.goes(chunk(1), 10, at(150)));
        assert!(!policy.goes(chunk(2), 0, at(150)), "nothing of it is here");
        policy.used(chunk(0), at(151));
        assert!(!policy.goes(chunk(0), 10, at(152)));
    }

    #[test]
    fn a_disk_that_fills_sends_the_coldest_away_before_their_time() {
        let mut policy = policy();
        for index in 0..8 {
            policy.used(chunk(index), at(index * 8));
        }
        let look = |policy: &mut Policy, fill| {
            policy.begin(at(64), fill);
            (0..8).filter(|index| policy.goes(chunk(*index), 110, at(64))).collect::<Vec<_>>()
        };
        let full = Fill { capacity: 1000, free: 100 };
        assert_eq!(look(&mut policy, ROOM), [0u64; 0]);
        // 900 of 1000 are used: it has to get down to 750, which the chunk of the highest age and one of the next give.
        assert_eq!(look(&mut policy, full), [0, 1]);
        assert_eq!(look(&mut policy, ROOM), [0u64; 0]);
        let fuller = Fill { capacity: 2000, free: 100 };
        // 400 are too much: all of the highest age, and as many of the next as it takes.
        assert_eq!(look(&mut policy, fuller), [0, 1, 2, 3]);
    }

    #[test]
    fn no_more_goes_before_its_time_than_the_disk_has_too_much() {
        let full = Fill { capacity: 1000, free: 100 };
        let look = |policy: &mut Policy, now| {
            policy.begin(at(now), full);
            (0..8).filter(|index| policy.goes(chunk(*index), 110, at(now))).count()
        };
        // After a start all are of the same age, which is another one at each look. In the first it is not known which are the coldest.
        let mut policy = policy();
        assert_eq!([0, 30, 60, 90].map(|now| look(&mut policy, now)), [0, 2, 2, 2]);
        // All of them were used just now. When that is known some of those go.
        (0..8).for_each(|index| policy.used(chunk(index), at(95)));
        assert_eq!([95, 96].map(|now| look(&mut policy, now)), [0, 2]);
        assert_eq!(look(&mut policy, 200), 8, "their time has come");
    }

    #[test]
    fn what_is_forgotten_counts_as_used_later_and_never_earlier() {
        let mut policy = policy();
        policy.max_uses = 100;
        for index in 0..101 {
            policy.used(chunk(index), at(index));
        }
        assert!(policy.uses.len() < 60, "{}", policy.uses.len());
        policy.begin(at(120), ROOM);
        assert!(!policy.goes(chunk(0), 1, at(120)), "it may have been used at 50");
        assert!(policy.goes(chunk(0), 1, at(151)) && !policy.goes(chunk(99), 1, at(151)));
    }

    #[test]
    fn changes_are_due_in_their_order_and_writes_wait_when_they_are_late() {
        let mut dirty = Dirty::new(at(10));
        for index in 0..5 {
            dirty.changed(chunk(index), at(index));
            dirty.changed(chunk(0), at(index));
        }
        assert_eq!(dirty.due(at(4), 9), []);
        assert_eq!(dirty.due(at(6), 9), [chunk(0), chunk(1)]);
        assert_eq!(dirty.due(at(60), 3), [chunk(0), chunk(1), chunk(2)]);
        assert!(!dirty.is_late(at(20)) && dirty.is_late(at(21)));
        dirty.uploaded(chunk(0), at(6), false);
        dirty.uploaded(chunk(1), at(6), true);
        assert!(!dirty.is_late(at(22)) && dirty.len() == 4);
        assert_eq!(dirty.due(at(11), 9), [chunk(2), chunk(3), chunk(4), chunk(1)]);
        for index in 0..5 {
            dirty.uploaded(chunk(index), at(11), false);
        }
        assert!(dirty.is_empty() && !dirty.is_late(at(1000)));
    }
    #[test]
    fn nobody_waits_for_what_cannot_be_put_there_and_it_is_tried_again_now_and_then() {
        let mut dirty = Dirty::new(at(10));
        dirty.changed(chunk(0), at(0));
        dirty.changed(chunk(1), at(1));
        assert!(dirty.stuck(chunk(0), at(5)));
        assert_eq!((dirty.len(), dirty.stuck_len()), (2, 1));
        assert!(!dirty.is_late(at(21)) && dirty.is_late(at(22)));
        assert_eq!(dirty.due(at(44), 9), [chunk(1)]);
        assert_eq!(dirty.due(at(45), 9), [chunk(1), chunk(0)]);
        assert!(!dirty.stuck(chunk(0), at(45)), "that is known");
        dirty.missing(chunk(0), at(46));
        dirty.uploaded(chunk(1), at(46), false);
        assert_eq!(dirty.due(at(84), 9), []);
        // What makes it whole may have been written.
        dirty.changed(chunk(0), at(50));
        assert_eq!((dirty.due(at(55), 9), dirty.stuck_len()), (vec![chunk(0)], 0));
        assert!(dirty.stuck(chunk(0), at(55)));
        dirty.uploaded(chunk(0), at(95), false);
        assert!(dirty.is_empty());
    }
}
