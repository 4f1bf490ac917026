//! Single rules.

use super::*;

#[test]
fn a_grant_counts_unless_something_was_recalled_since() {
    let mut clock = Clock::default();
    let mut held = Held::new(&clock);
    assert_eq!(held.mode(&clock), None);
    let early = clock.ticket();
    assert!(held.granted(early, &clock, Lease::Read));
    assert!(held.granted(early, &clock, Lease::Write));
    assert!(held.granted(early, &clock, Lease::Read));
    assert_eq!(held.mode(&clock), Some(Lease::Write), "a grant takes nothing away");
    held.recalled(clock.stamp(), Some(Lease::Read));
    assert_eq!(held.mode(&clock), Some(Lease::Read));
    assert!(!held.granted(early, &clock, Lease::Write));
    assert!(held.granted(clock.ticket(), &clock, Lease::Write));
    held.recalled(clock.stamp(), None);
    assert_eq!(held.mode(&clock), None);
}

#[test]
fn a_recall_of_another_inode_is_no_matter() {
    let mut clock = Clock::default();
    let (mut held, mut other) = (Held::new(&clock), Held::new(&clock));
    let early = clock.ticket();
    other.recalled(clock.stamp(), None);
    assert!(held.granted(early, &clock, Lease::Read));
    assert!(!other.granted(early, &clock, Lease::Read));
}

#[test]
fn all_are_dropped_at_once() {
    let mut clock = Clock::default();
    let mut held = Held::new(&clock);
    let early = clock.ticket();
    assert!(held.granted(early, &clock, Lease::Write));
    clock.drop_all();
    assert_eq!(held.mode(&clock), None);
    assert!(!held.granted(early, &clock, Lease::Write));
    assert!(held.granted(clock.ticket(), &clock, Lease::Read));
    assert_eq!(held.mode(&clock), Some(Lease::Read), "nothing of before is left");
}

#[test]
fn what_left_the_table_is_not_forgotten() {
    let mut clock = Clock::default();
    let mut held = Held::new(&clock);
    let early = clock.ticket();
    held.recalled(clock.stamp(), None);
    clock.evicted(&held);
    let mut anew = Held::new(&clock);
    assert!(!anew.granted(early, &clock, Lease::Read));
    assert!(anew.granted(clock.ticket(), &clock, Lease::Read));
}

#[test]
fn own_changes_count_when_their_inode_has_left_the_table() {
    let mut clock = Clock::default();
    let mut held = Held::new(&clock);
    let early = clock.ticket();
    held.changed(clock.stamp());
    assert!(held.granted(early, &clock, Lease::Read), "versions tell");
    clock.evicted(&held);
    assert!(!Held::new(&clock).granted(early, &clock, Lease::Read));
}

#[test]
fn nothing_counts_while_it_is_given_up() {
    let mut clock = Clock::default();
    let mut held = Held::new(&clock);
    assert!(held.granted(clock.ticket(), &clock, Lease::Read));
    held.release(clock.stamp());
    let meanwhile = clock.ticket();
    assert!(held.is_releasing() && !held.granted(meanwhile, &clock, Lease::Read));
    held.released(clock.stamp());
    assert!(!held.granted(meanwhile, &clock, Lease::Read), "it may have been given up since");
    assert!(held.granted(clock.ticket(), &clock, Lease::Read));
}
