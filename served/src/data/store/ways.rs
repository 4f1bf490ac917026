//! Which way of winning space back is used: making holes where the dead bytes are, moving what lives out of a segment, or writing over dead bytes.
//!
//! Nobody knows beforehand. A hole takes one file system some hundredths of a millisecond and the next one, which has the disk discard it at
//! once, several milliseconds; some win nothing by it. So both are timed while they are used, the one that took less time for each byte won goes on, and
//! the other one has a turn again once in a while. A turn of holes is one bounded step, a turn of moving one segment.
//!
//! Where holes are of no use, or cost more than moving, dead bytes are written over, and what lives is moved only where that does not suffice. That needs no trial: it is what holes are
//! without asking the file system for anything.
//!
//! Plain state: what happened and how long it took goes in, the choice comes out.

use std::time::Duration;

/// Bytes won after which what was measured before counts half.
const HALF_LIFE_BYTES: u64 = 128 << 20;
/// Bytes won one way before the other way is tried again.
const RETRY_BYTES: u64 = 4 << 30;
/// Holes of so many bytes show whether the file system really has them back.
const JUDGED_BYTES: u64 = 1 << 20;

/// How space is won back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    Holes,
    Slots,
    Moving,
}

/// Bytes that were won back since the store was opened.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Won {
    /// As holes of segment files, by what the files took less then.
    pub by_holes: u64,
    /// By removing segment files, less what had to be moved for it.
    pub by_moving: u64,
    /// By writing over what is dead.
    pub by_slots: u64,
}

/// What one way has cost lately.
#[derive(Clone, Copy, Default, Debug)]
struct Cost {
    seconds: f64,
    bytes: f64,
}

impl Cost {
    fn add(&mut self, won: u64, took: Duration) {
        let keep = 0.5f64.powf(won as f64 / HALF_LIFE_BYTES as f64);
        self.seconds = self.seconds * keep + took.as_secs_f64();
        self.bytes = self.bytes * keep + won as f64;
    }

    /// Seconds for each byte.
    fn of_byte(&self) -> f64 {
        if self.bytes > 0.0 { self.seconds / self.bytes } else { f64::INFINITY }
    }
}

/// What was seen of both ways.
#[derive(Debug)]
pub(super) struct Ways {
    /// Holes are of use here, for all that is known.
    useful: bool,
    /// What is written over stays where it is.
    overwrites: bool,
    holes: Option<Cost>,
    moving: Option<Cost>,
    /// Won in one way since the other was last used.
    since_holes: u64,
    since_moving: u64,
    /// Expected and won of holes that are not judged yet.
    expected: u64,
    found: u64,
    won: Won,
}

impl Ways {
    /// `useful`: whether the file system may have a use for holes; `overwrites`: whether it leaves in its place what is written over.
    pub(super) fn new(useful: bool, overwrites: bool) -> Self {
        Self {
            useful,
            overwrites,
            holes: None,
            moving: None,
            since_holes: 0,
            since_moving: 0,
            expected: 0,
            found: 0,
            won: Won::default(),
        }
    }

    /// The way to go now: first holes, then moving, once each; then what is cheaper.
    pub(super) fn choose(&self) -> Way {
        match (self.holes, self.moving) {
            _ if !self.useful && self.overwrites => Way::Slots,
            _ if !self.useful => Way::Moving,
            (None, _) => Way::Holes,
            (Some(_), None) => Way::Moving,
            (Some(holes), Some(moving)) if holes.of_byte() <= moving.of_byte() => {
                if self.since_moving < RETRY_BYTES { Way::Holes } else { Way::Moving }
            }
            // Better than both.
            _ if self.overwrites => Way::Slots,
            _ if self.since_holes < RETRY_BYTES => Way::Moving,
            _ => Way::Holes,
        }
    }

    /// Whether holes are of use, as far as is known.
    pub(super) fn may_make_holes(&self) -> bool {
        self.useful
    }

    pub(super) fn won(&self) -> Won {
        self.won
    }

    /// Holes were made. Of the bytes `expected`, which took blocks before, files took so many less afterwards. `false`: this has just shown
    /// that the file system gets too little by them, and they are of no use for good.
    pub(super) fn made_holes(&mut self, expected: u64, won: u64, took: Duration) -> bool {
        // What was found out long ago is not what is true now.
        if self.since_holes >= RETRY_BYTES {
            self.holes = None;
        }
        self.holes.get_or_insert_default().add(won, took);
        self.since_holes = 0;
        self.since_moving += won;
        self.won.by_holes += won;
        self.expected += expected;
        self.found += won;
        if self.expected < JUDGED_BYTES {
            return true;
        }
        let enough = self.found >= self.expected / 2;
        (self.expected, self.found) = (0, 0);
        self.useful &= enough;
        enough
    }

    /// The file system makes none; `true`: that is news.
    pub(super) fn refuse(&mut self) -> bool {
        std::mem::replace(&mut self.useful, false)
    }

    /// A segment was moved and removed: `won` is what its file took, less what had to be moved. With `told`, it was chosen for what it would win, and
    /// says what moving costs. One that was nearly empty, or was moved for another reason, does not.
    pub(super) fn moved(&mut self, won: u64, took: Duration, told: bool) {
        self.won.by_moving += won;
        self.since_holes += won;
        if !told {
            return;
        }
        if self.since_moving >= RETRY_BYTES {
            self.moving = None;
        }
        self.moving.get_or_insert_default().add(won, took);
        self.since_moving = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// After one turn of each.
    fn tried(holes: Duration, moving: Duration) -> Ways {
        let mut ways = Ways::new(true, false);
        assert_eq!(ways.choose(), Way::Holes);
        assert!(ways.made_holes(4 * MIB, 4 * MIB, holes));
        assert_eq!(ways.choose(), Way::Moving, "it is not known what that costs");
        ways.moved(32 * MIB, moving, true);
        ways
    }

    #[test]
    fn both_are_tried_and_the_cheaper_one_goes_on() {
        assert_eq!(tried(ms(4), ms(100)).choose(), Way::Holes);
        assert_eq!(tried(ms(40), ms(100)).choose(), Way::Moving);
    }

    #[test]
    fn holes_that_were_slow_have_a_turn_again_after_a_while_and_only_one() {
        let mut ways = tried(ms(400), ms(100));
        for _ in 0..RETRY_BYTES / (32 * MIB) - 1 {
            assert_eq!(ways.choose(), Way::Moving);
            ways.moved(32 * MIB, ms(100), true);
        }
        assert_eq!(ways.choose(), Way::Holes);
        ways.made_holes(4 * MIB, 4 * MIB, ms(400));
        assert_eq!(ways.choose(), Way::Moving, "still slow");
        for _ in 0..RETRY_BYTES / (32 * MIB) {
            ways.moved(32 * MIB, ms(100), true);
        }
        assert_eq!(ways.choose(), Way::Holes);
        ways.made_holes(4 * MIB, 4 * MIB, ms(1));
        assert_eq!(
            ways.choose(),
            Way::Holes,
            "one good turn counts more than all that is long ago"
        );
    }

    #[test]
    fn moving_that_was_slow_has_a_turn_again_too() {
        let mut ways = tried(ms(4), ms(100));
        for _ in 0..RETRY_BYTES / (4 * MIB) {
            assert_eq!(ways.choose(), Way::Holes);
            ways.made_holes(4 * MIB, 4 * MIB, ms(4));
        }
        assert_eq!(ways.choose(), Way::Moving);
        ways.moved(32 * MIB, ms(1), true);
        assert_eq!(ways.choose(), Way::Moving);
    }

    #[test]
    fn it_is_noticed_when_holes_become_slow() {
        let mut ways = tried(ms(4), ms(100));
        let mut steps = 0;
        while ways.choose() == Way::Holes {
            ways.made_holes(4 * MIB, 4 * MIB, ms(100));
            steps += 1;
        }
        assert!(steps < 10, "{steps}");
    }

    #[test]
    fn who_gets_less_than_half_of_what_was_expected_makes_no_holes_any_more() {
        let mut ways = Ways::new(true, false);
        assert!(ways.made_holes(MIB / 2, 0, ms(1)), "too little to judge by");
        assert!(!ways.made_holes(MIB / 2, MIB / 4, ms(1)));
        for _ in 0..10 {
            ways.moved(RETRY_BYTES, ms(1), true);
            assert_eq!(ways.choose(), Way::Moving);
        }
        let mut ways = Ways::new(true, false);
        assert!(ways.made_holes(MIB, MIB / 2, ms(1)), "half is enough");
        assert!(ways.useful);
    }

    #[test]
    fn what_wins_nothing_costs_more_than_anything() {
        let mut ways = Ways::new(true, false);
        assert!(ways.made_holes(0, 0, ms(1)));
        ways.moved(1, ms(1000), true);
        assert_eq!(ways.choose(), Way::Moving);
    }

    #[test]
    fn segments_moved_for_other_reasons_say_nothing() {
        let mut ways = tried(ms(4), ms(100));
        ways.moved(64 * MIB, ms(0), false);
        assert_eq!(ways.choose(), Way::Holes);
        assert_eq!(ways.won(), Won { by_holes: 4 * MIB, by_moving: 96 * MIB, by_slots: 0 });
    }

    #[test]
    fn where_there_are_none_there_is_no_trial() {
        assert_eq!(Ways::new(false, false).choose(), Way::Moving);
        let mut ways = Ways::new(true, false);
        assert!(ways.refuse());
        assert!(!ways.refuse());
        assert_eq!(ways.choose(), Way::Moving);
    }

    #[test]
    fn without_holes_what_is_dead_is_written_over_where_that_is_possible() {
        assert_eq!(Ways::new(false, true).choose(), Way::Slots);
        let mut ways = Ways::new(true, true);
        assert_eq!(ways.choose(), Way::Holes);
        assert!(!ways.made_holes(MIB, MIB / 4, ms(1)));
        assert_eq!(ways.choose(), Way::Slots);
        let mut ways = Ways::new(true, true);
        assert!(ways.made_holes(MIB, MIB, ms(100)));
        assert_eq!(ways.choose(), Way::Moving, "it is not known what that costs");
        ways.moved(32 * MIB, ms(100), true);
        assert_eq!(ways.choose(), Way::Slots);
    }
}
