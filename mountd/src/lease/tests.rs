//! Single rules.

use super::*;

#[test]
fn a_grant_counts_unless_something_was_recalled_since() {
    let clock = Clock::default();
    let mut held = Held::new(&clock);
    assert_eq!(held.mode(), None);
    let early = clock.ticket();
    assert!(held.answered(early, &clock, Some(Lease::Read)));
    assert!(held.answered(early, &clock, Some(Lease::Write)));
    assert!(held.answered(early, &clock, Some(Lease::Read)));
    assert_eq!(held.mode(), Some(Lease::Write), "a grant takes nothing away");
    held.recalled(clock.stamp(), Some(Lease::Read));
    assert_eq!(held.mode(), Some(Lease::Read));
    assert!(!held.answered(early, &clock, Some(Lease::Write)));
    assert!(held.answered(clock.ticket(), &clock, Some(Lease::Write)));
    held.recalled(clock.stamp(), None);
    assert_eq!(held.mode(), None);
}

#[test]
fn an_answer_without_a_grant_is_served_only_by_who_may_write() {
    let clock = Clock::default();
    let mut held = Held::new(&clock);
    assert!(!held.answered(clock.ticket(), &clock, None));
    assert!(held.answered(clock.ticket(), &clock, Some(Lease::Read)));
    assert!(!held.answered(clock.ticket(), &clock, None));
    assert!(held.answered(clock.ticket(), &clock, Some(Lease::Write)));
    assert!(held.answered(clock.ticket(), &clock, None));
}

#[test]
fn a_recall_of_another_inode_is_no_matter() {
    let clock = Clock::default();
    let (mut held, mut other) = (Held::new(&clock), Held::new(&clock));
    let early = clock.ticket();
    other.recalled(clock.stamp(), None);
    assert!(held.answered(early, &clock, Some(Lease::Read)));
    assert!(!other.answered(early, &clock, Some(Lease::Read)));
}

#[test]
fn all_are_dropped_at_once() {
    let clock = Clock::default();
    let mut held = Held::new(&clock);
    let early = clock.ticket();
    assert!(held.answered(early, &clock, Some(Lease::Write)));
    clock.drop_all();
    held.dropped(false);
    assert_eq!(held.mode(), None);
    assert!(!held.answered(early, &clock, Some(Lease::Write)));
    assert!(held.answered(clock.ticket(), &clock, Some(Lease::Read)));
    assert_eq!(held.mode(), Some(Lease::Read), "nothing of before is left");
}

#[test]
fn who_has_unsent_data_keeps_the_right_to_send_it() {
    let clock = Clock::default();
    let mut held = Held::new(&clock);
    assert!(held.answered(clock.ticket(), &clock, Some(Lease::Write)));
    clock.drop_all();
    held.dropped(true);
    assert!(held.writes());
    held.recalled(clock.stamp(), Some(Lease::Read));
    clock.drop_all();
    held.dropped(true);
    assert_eq!(held.mode(), None, "under a lease for reading nothing is unsent");
}

#[test]
fn what_left_the_table_is_not_forgotten() {
    let clock = Clock::default();
    let mut held = Held::new(&clock);
    let early = clock.ticket();
    held.recalled(clock.stamp(), None);
    clock.evicted(&held);
    let mut anew = Held::new(&clock);
    assert!(!anew.answered(early, &clock, Some(Lease::Read)));
    assert!(anew.answered(clock.ticket(), &clock, Some(Lease::Read)));
}

#[test]
fn own_changes_count_when_their_inode_has_left_the_table() {
    let clock = Clock::default();
    let mut held = Held::new(&clock);
    let early = clock.ticket();
    held.changed(clock.stamp());
    assert!(held.answered(early, &clock, Some(Lease::Read)), "versions tell");
    clock.evicted(&held);
    assert!(!Held::new(&clock).answered(early, &clock, Some(Lease::Read)));
}
