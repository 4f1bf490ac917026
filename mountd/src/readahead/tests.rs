//! The detector under orderly and disorderly reads.

use proptest::prelude::*;

use super::{Advice, Detector, Limits, Outcome, Seen};

const MIB: u64 = 1 << 20;

/// A detector, and what it has asked for that was not read yet.
struct Bench {
    detector: Detector,
    size: u64,
    outstanding: Vec<(u64, u64)>,
    asked: u64,
    bound: u64,
}

fn cut(ranges: &[(u64, u64)], from: u64, to: u64) -> Vec<(u64, u64)> {
    let parts = |&(s, e): &(u64, u64)| [(s, e.min(from)), (s.max(to), e)];
    ranges.iter().flat_map(parts).filter(|(s, e)| s < e).collect()
}

impl Bench {
    fn new(size: u64) -> Bench {
        let detector = Detector::new(Limits { window: 8 * MIB });
        Bench { detector, size, outstanding: Vec::new(), asked: 0, bound: u64::MAX }
    }

    fn sum(&self) -> u64 {
        self.outstanding.iter().map(|(s, e)| e - s).sum()
    }

    /// A read that waits for what is under way if there is any.
    fn read(&mut self, offset: u64, len: u64) -> Advice {
        let end = (offset + len).min(self.size);
        let before = self.sum();
        self.outstanding = cut(&self.outstanding, offset, end);
        let all = before - self.sum() == end.saturating_sub(offset);
        let outcome = if all { Outcome::Late } else { Outcome::Missed };
        self.told(offset, len, outcome)
    }

    fn told(&mut self, offset: u64, len: u64, outcome: Outcome) -> Advice {
        let seen = Seen { outcome, under_way: 0, bound: self.bound, size: self.size };
        let advice = self.detector.read(offset, len, seen);
        if advice.drop {
            self.detector.judge(self.sum(), 0);
            self.outstanding.clear();
        }
        for &(s, e) in &advice.fetch {
            assert!(s < e && e <= self.size, "{s}..{e} of {}", self.size);
            assert!(e - s <= MIB, "more than a message");
            assert_eq!(cut(&self.outstanding, s, e), self.outstanding, "asked for twice");
            self.outstanding.push((s, e));
            self.asked += e - s;
        }
        advice
    }
}

#[test]
fn a_sequential_read_is_fetched_once_and_by_the_mebibyte() {
    let mut b = Bench::new(64 * MIB + 5);
    let mut pieces = Vec::new();
    for at in (0..64 * MIB).step_by(128 << 10) {
        pieces.extend(b.read(at, 128 << 10).fetch);
        assert!(b.sum() <= 8 * MIB);
    }
    assert!(pieces.windows(2).all(|w| w[0].1 == w[1].0), "one after the other");
    assert!(pieces.len() < 70, "{}", pieces.len());
    assert_eq!(pieces.last().unwrap().1, b.size);
}

#[test]
fn the_window_grows_only_while_it_is_too_small() {
    let mut b = Bench::new(1 << 40);
    for i in 0..10 {
        b.told(i * MIB, MIB, Outcome::Late);
    }
    assert_eq!(b.asked, 10 * MIB - MIB + 8 * MIB, "full");
    let mut b = Bench::new(1 << 40);
    for i in 0..100 {
        b.told(i * MIB, MIB, Outcome::InTime);
    }
    assert_eq!(b.asked, 100 * MIB, "as it began");
    let mut b = Bench::new(1 << 40);
    b.bound = 3 * MIB;
    for i in 0..100 {
        b.told(i * MIB, MIB, Outcome::Late);
    }
    assert_eq!(b.asked, 102 * MIB, "no more than the link carries");
}

#[test]
fn what_the_kernel_has_under_way_is_not_added_to() {
    let mut b = Bench::new(1 << 40);
    for i in 0..20 {
        let (outcome, under_way) = (Outcome::Missed, if i == 0 { 0 } else { 12 * MIB });
        let seen = Seen { outcome, under_way, bound: u64::MAX, size: b.size };
        let advice = b.detector.read(i * MIB, MIB, seen);
        assert!(i == 0 || advice.fetch.is_empty());
    }
}

#[test]
fn reads_of_a_run_may_overtake_each_other() {
    let mut b = Bench::new(1 << 40);
    for i in 0..40u64 {
        let advice = b.read((if i > 2 { i ^ 1 } else { i }) * (MIB / 2), MIB / 2);
        assert!(!advice.drop);
    }
    assert!(b.asked > 20 * MIB);
}

#[test]
fn strides_are_fetched_forwards_and_backwards() {
    for (first, stride) in [(0i64, 512i64 << 10), (64 << 20, -(512 << 10)), (64 << 20, -4096)] {
        let mut b = Bench::new(1 << 30);
        let len = 4096;
        let mut unasked = 0;
        for i in 0..100 {
            let at = (first + i * stride) as u64;
            let had = cut(&b.outstanding, at, at + len) != b.outstanding;
            unasked += u64::from(!had);
            b.read(at, len);
        }
        assert!(unasked <= 5, "{unasked} at {stride}");
        assert!(b.sum() < 2 * MIB);
    }
}

#[test]
fn records_of_several_reads_are_a_stride_too() {
    let mut b = Bench::new(1 << 30);
    let (mut unasked, part) = (0, 128 << 10);
    for record in 0..40u64 {
        for i in 0..4 {
            let at = record * 4 * MIB + i * part;
            let had = cut(&b.outstanding, at, at + part) != b.outstanding;
            unasked += u64::from(!had && record > 8);
            b.read(at, part);
        }
    }
    assert_eq!(unasked, 0);
}

#[test]
fn random_access_drops_the_window_and_makes_careful() {
    let mut b = Bench::new(1 << 40);
    for i in 0..10 {
        b.read(i * MIB, MIB);
    }
    assert!(b.sum() > 0);
    let advice = b.read(1 << 35, 4096);
    assert!(advice.drop && advice.fetch.is_empty());
    // It takes more to begin than before.
    assert_eq!(b.read((1 << 35) + 4096, 4096).fetch, []);
    assert!((2..20).any(|i| !b.read((1 << 35) + i * 4096, 4096).fetch.is_empty()));
}

#[test]
fn random_reads_fetch_next_to_nothing() {
    let mut b = Bench::new(1 << 30);
    let mut x = 1u64;
    for _ in 0..1000 {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        b.read((x >> 20) % (1 << 18) * 4096, 4096);
    }
    assert!(b.asked <= MIB, "{}", b.asked);
}

proptest! {
    #[test]
    fn nothing_is_asked_for_twice_nor_too_much_nor_beyond_the_end(
        size in 1..200 * MIB,
        steps in prop::collection::vec((0..5u8, 0..200u64, 1..300u64, 1..20u64), 1..40),
    ) {
        let mut b = Bench::new(size);
        let mut at = 0u64;
        for (kind, place, len, times) in steps {
            let len = len * 4096;
            for i in 0..times {
                match kind {
                    0 | 1 => at += if i == 0 { 0 } else { len },
                    2 => at = place * MIB + i * (len + place * 4096),
                    3 => at = (place * MIB).saturating_sub(i * (len + place * 4096)),
                    _ => at = (place * 7919 + i * i * 104_729) * 4096 % (200 * MIB),
                }
                b.read(at, len);
                // The window, and what reads may pass over.
                prop_assert!(b.sum() <= 8 * MIB + 4 * MIB + MIB, "{} outstanding", b.sum());
            }
        }
    }
}
