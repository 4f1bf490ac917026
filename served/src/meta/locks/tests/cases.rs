//! One case of Linux's behaviour each.

use LockMode::{Read, Write};

use super::*;

const GRANTED: Result<Outcome, Errno> = Ok(Outcome::Granted);
const QUEUED: Result<Outcome, Errno> = Ok(Outcome::Queued);

fn new() -> Locks {
    Locks::new(MANY)
}

/// The owner's locks, for comparison.
fn of(locks: &Locks, owner: u64) -> Vec<(u64, u64, LockMode)> {
    let mine = locks.held(Ino(7)).into_iter().filter(|b| b.owner.number == owner);
    mine.map(|b| (b.range.start, b.range.end, b.mode)).collect()
}

fn at(wait: u64) -> Option<WaitId> {
    Some(WaitId(wait))
}

#[test]
fn readers_share_and_a_writer_is_alone() {
    let mut locks = new();
    let (a, b) = (session(1), session(2));
    assert_eq!(locks.set(a, &posix(1, (0, 9), Read), None), GRANTED);
    assert_eq!(locks.set(b, &posix(1, (5, 20), Read), None), GRANTED);
    let outcome = locks.set(a, &posix(1, (0, 9), Write), None);
    let Ok(Outcome::Conflict(blocker)) = outcome else { panic!("{outcome:?}") };
    assert_eq!((blocker.owner.session, blocker.range.start, blocker.range.end), (b, 5, 20));
    assert_eq!(locks.set(a, &posix(1, (0, 4), Write), None), GRANTED);
    assert_eq!(of(&locks, 1), [(0, 4, Write), (5, 9, Read), (5, 20, Read)]);
}

#[test]
fn an_upgrade_waits_for_the_other_reader_and_keeps_the_read_lock() {
    let mut locks = new();
    let (a, b) = (session(1), session(2));
    assert_eq!(locks.set(a, &posix(1, (0, 9), Read), None), GRANTED);
    assert_eq!(locks.set(b, &posix(2, (0, 9), Read), None), GRANTED);
    assert_eq!(locks.set(a, &posix(1, (0, 9), Write), at(1)), QUEUED);
    assert_eq!(of(&locks, 1), [(0, 9, Read)]);
    assert!(locks.is_waiting(a) && locks.granted(a, 9).is_empty());
    assert_eq!(locks.set(b, &posix(2, (0, 9), Write), at(1)), Err(Errno::EDEADLK));
    locks.clear(b, &posix(2, (0, 0), Read).on, LockRange::ALL).unwrap();
    assert_eq!(locks.granted(a, 9), [WaitId(1)]);
    assert_eq!(locks.take_woken().into_iter().collect::<Vec<_>>(), [a]);
    assert_eq!(of(&locks, 1), [(0, 9, Write)]);
}

#[test]
fn a_downgrade_lets_readers_in() {
    let mut locks = new();
    let (a, b) = (session(1), session(2));
    assert_eq!(locks.set(a, &posix(1, (0, 9), Write), None), GRANTED);
    assert_eq!(locks.set(b, &posix(2, (3, 3), Read), at(5)), QUEUED);
    assert_eq!(locks.set(a, &posix(1, (0, 9), Read), None), GRANTED);
    assert_eq!(locks.granted(b, 9), [WaitId(5)]);
}

#[test]
fn an_unlock_in_the_middle_lets_in_who_needs_no_more() {
    let mut locks = new();
    let (a, b) = (session(1), session(2));
    assert_eq!(locks.set(a, &posix(1, (0, 99), Write), None), GRANTED);
    assert_eq!(locks.set(b, &posix(2, (50, 60), Write), at(1)), QUEUED);
    assert_eq!(locks.set(b, &posix(3, (50, 61), Write), at(2)), QUEUED);
    locks.clear(a, &posix(1, (0, 0), Read).on, LockRange { start: 50, end: 60 }).unwrap();
    assert_eq!(of(&locks, 1), [(0, 49, Write), (61, 99, Write)]);
    assert_eq!(locks.granted(b, 9), [WaitId(1)]);
    assert_eq!(locks.set(a, &posix(1, (0, 49), Read), None), GRANTED);
    assert_eq!(locks.set(a, &posix(1, (61, 99), Read), None), GRANTED);
    assert_eq!(locks.granted(b, 9), [WaitId(1)]);
}

#[test]
fn waiters_get_it_in_the_order_of_arrival() {
    let mut locks = new();
    let (a, b) = (session(1), session(2));
    assert_eq!(locks.set(a, &posix(9, (0, 9), Write), None), GRANTED);
    for n in 1..=3 {
        let from = if n == 2 { b } else { a };
        assert_eq!(locks.set(from, &posix(n, (0, 9), Write), at(n)), QUEUED);
    }
    let turn = |locks: &mut Locks, who: SessionId, owner: u64| {
        locks.clear(who, &posix(owner, (0, 0), Read).on, LockRange::ALL).unwrap();
        (locks.granted(a, 9), locks.granted(b, 9))
    };
    assert_eq!(turn(&mut locks, a, 9), (vec![WaitId(1)], vec![]));
    assert_eq!(turn(&mut locks, a, 1), (vec![WaitId(1)], vec![WaitId(2)]));
    locks.received(a, &[WaitId(1)]);
    assert_eq!(turn(&mut locks, b, 2), (vec![WaitId(3)], vec![WaitId(2)]));
}

#[test]
fn a_reader_is_not_held_up_by_a_writer_that_waits_for_it() {
    let mut locks = new();
    let (a, b) = (session(1), session(2));
    assert_eq!(locks.set(a, &posix(1, (0, 9), Read), None), GRANTED);
    assert_eq!(locks.set(b, &posix(2, (0, 99), Write), at(1)), QUEUED);
    assert_eq!(locks.set(a, &posix(1, (5, 20), Read), None), GRANTED);
}

#[test]
fn a_circle_of_three_files_and_two_clients_is_found() {
    let mut locks = new();
    let (a, b) = (session(1), session(2));
    let on = |owner, ino| {
        let mut lock = posix(owner, (0, 0), Write);
        lock.on.ino = Ino(ino);
        lock
    };
    assert_eq!(locks.set(a, &on(1, 1), None), GRANTED);
    assert_eq!(locks.set(b, &on(2, 2), None), GRANTED);
    assert_eq!(locks.set(a, &on(3, 3), None), GRANTED);
    assert_eq!(locks.set(a, &on(1, 2), at(1)), QUEUED);
    assert_eq!(locks.set(b, &on(2, 3), at(1)), QUEUED);
    assert_eq!(locks.set(a, &on(3, 1), at(2)), Err(Errno::EDEADLK));
    assert!(is_conflict(locks.set(a, &on(3, 1), None)), "trying is no waiting");
    // Without the one in the middle there is no circle.
    assert!(locks.withdraw(b, WaitId(1)));
    assert_eq!(locks.set(a, &on(3, 1), at(3)), QUEUED);
}

#[test]
fn open_file_descriptions_may_wait_in_a_circle() {
    let mut locks = new();
    let ofd = |owner, byte, mode| lock(LockKind::Ofd, owner, (byte, byte), mode);
    assert_eq!(locks.set(session(1), &ofd(1, 0, Write), None), GRANTED);
    assert_eq!(locks.set(session(2), &ofd(2, 1, Write), None), GRANTED);
    assert_eq!(locks.set(session(1), &ofd(1, 1, Write), at(1)), QUEUED);
    assert_eq!(locks.set(session(2), &ofd(2, 0, Write), at(1)), QUEUED);
}

#[test]
fn fcntl_and_open_file_description_meet_and_flock_meets_neither() {
    let mut locks = new();
    let a = session(1);
    assert_eq!(locks.set(a, &posix(1, (0, 9), Write), None), GRANTED);
    assert!(is_conflict(locks.set(a, &lock(LockKind::Ofd, 1, (0, 0), Read), None)));
    assert_eq!(locks.set(a, &flock(1, Write), None), GRANTED);
    assert!(is_conflict(locks.set(a, &flock(2, Read), None)));
    assert_eq!(locks.held(Ino(7)).len(), 2);
    locks.clear(a, &flock(1, Read).on, LockRange::ALL).unwrap();
    assert_eq!(of(&locks, 1), [(0, 9, Write)]);
}

#[test]
fn a_flock_of_another_mode_is_given_up_before() {
    let mut locks = new();
    let (a, b) = (session(1), session(2));
    assert_eq!(locks.set(a, &flock(1, Read), None), GRANTED);
    assert_eq!(locks.set(b, &flock(2, Read), None), GRANTED);
    // Tried in vain, and lost all the same.
    assert!(is_conflict(locks.set(a, &flock(1, Write), None)));
    assert_eq!(of(&locks, 1), []);
    assert_eq!(locks.set(a, &flock(1, Write), at(1)), QUEUED);
    // Both readers that become writers: the one that comes second finds the way free.
    assert_eq!(locks.set(b, &flock(2, Write), at(1)), QUEUED);
    assert_eq!(locks.granted(a, 9), [WaitId(1)]);
    locks.clear(a, &flock(1, Read).on, LockRange::ALL).unwrap();
    assert_eq!(locks.granted(b, 9), [WaitId(1)]);
    assert_eq!(locks.set(b, &flock(2, Write), None), GRANTED, "the same again");
}

#[test]
fn a_request_that_is_made_again_keeps_its_place_and_its_grant() {
    let mut locks = new();
    let a = session(1);
    assert_eq!(locks.set(a, &posix(9, (0, 9), Write), None), GRANTED);
    assert_eq!(locks.set(a, &posix(1, (0, 9), Write), at(1)), QUEUED);
    assert_eq!(locks.set(a, &posix(2, (0, 9), Write), at(2)), QUEUED);
    assert_eq!(locks.set(a, &posix(1, (0, 9), Write), at(1)), QUEUED);
    locks.clear(a, &posix(9, (0, 0), Read).on, LockRange::ALL).unwrap();
    assert_eq!(locks.granted(a, 9), [WaitId(1)]);
    assert_eq!(locks.set(a, &posix(1, (0, 9), Write), at(1)), GRANTED);
    assert_eq!(locks.held(Ino(7)).len(), 1);
}

#[test]
fn a_grant_that_its_owner_has_undone_is_asked_for_anew() {
    let mut locks = new();
    let (a, b) = (session(1), session(2));
    let (mine, theirs) = (posix(1, (0, 9), Write), posix(2, (0, 9), Write));
    assert_eq!(locks.set(b, &theirs, None), GRANTED);
    assert_eq!(locks.set(a, &mine, at(1)), QUEUED);
    locks.clear(b, &theirs.on, LockRange::ALL).unwrap();
    assert_eq!(locks.granted(a, 9), [WaitId(1)]);
    // Another thread of the same process.
    locks.clear(a, &mine.on, LockRange { start: 3, end: 3 }).unwrap();
    assert_eq!(locks.set(b, &posix(2, (3, 3), Read), None), GRANTED);
    assert_eq!(locks.set(a, &mine, at(1)), QUEUED);
    assert!(locks.granted(a, 9).is_empty());
    locks.clear(b, &theirs.on, LockRange::ALL).unwrap();
    assert_eq!(locks.granted(a, 9), [WaitId(1)]);
    // Or it has another mode by now.
    assert_eq!(locks.set(a, &posix(1, (0, 9), Read), None), GRANTED);
    assert_eq!(locks.set(a, &mine, at(1)), GRANTED);
    assert_eq!(of(&locks, 1), [(0, 9, Write)]);
    locks.clear(a, &mine.on, LockRange::ALL).unwrap();
    assert!(!locks.withdraw(a, WaitId(1)));
    assert!(locks.files.is_empty() && locks.sessions.is_empty() && locks.blocked.is_empty());
}

#[test]
fn a_withdrawn_request_leaves_nothing_behind() {
    let mut locks = new();
    let a = session(1);
    assert_eq!(locks.set(a, &posix(9, (0, 9), Write), None), GRANTED);
    assert_eq!(locks.set(a, &posix(1, (0, 9), Write), at(1)), QUEUED);
    assert!(locks.withdraw(a, WaitId(1)));
    assert!(!locks.withdraw(a, WaitId(1)));
    assert_eq!(locks.set(a, &posix(2, (0, 9), Write), at(2)), QUEUED);
    locks.clear(a, &posix(9, (0, 0), Read).on, LockRange::ALL).unwrap();
    assert!(!locks.withdraw(a, WaitId(2)), "it was granted, and stays so");
    assert_eq!(of(&locks, 2), [(0, 9, Write)]);
    locks.clear(a, &posix(2, (0, 0), Read).on, LockRange::ALL).unwrap();
    assert!(locks.files.is_empty() && locks.sessions.is_empty() && locks.blocked.is_empty());
}

#[test]
fn a_session_takes_all_of_its_locks_along() {
    let mut locks = new();
    let (a, b) = (session(1), session(2));
    assert_eq!(locks.set(a, &posix(1, (0, 9), Write), None), GRANTED);
    assert_eq!(locks.set(a, &flock(1, Write), None), GRANTED);
    assert_eq!(locks.set(b, &posix(2, (0, 9), Write), at(1)), QUEUED);
    assert_eq!(locks.set(a, &posix(3, (0, 9), Write), at(1)), QUEUED);
    assert_eq!(locks.set(b, &flock(2, Read), at(2)), QUEUED);
    locks.end_session(a);
    assert_eq!(locks.granted(b, 9), [WaitId(1), WaitId(2)]);
    locks.end_session(b);
    assert!(locks.files.is_empty() && locks.sessions.is_empty() && locks.blocked.is_empty());
}

#[test]
fn a_test_names_the_first_lock_in_the_way() {
    let mut locks = new();
    let (a, b) = (session(1), session(2));
    assert_eq!(locks.set(a, &posix(1, (30, 39), Read), None), GRANTED);
    assert_eq!(locks.set(a, &posix(2, (10, 19), Write), None), GRANTED);
    let Ok(Outcome::Conflict(first)) = locks.test(b, &posix(1, (0, 99), Write)) else { panic!() };
    assert_eq!((first.range.start, first.pid), (10, 2));
    assert_eq!(locks.test(b, &posix(1, (30, 99), Read)), GRANTED);
    assert_eq!(locks.test(a, &posix(1, (30, 39), Write)), GRANTED, "nobody is in his own way");
}

#[test]
fn limits_are_kept() {
    let mut locks = Locks::new(LockLimits { ranges: 3, waiting: 1 });
    let (a, b) = (session(1), session(2));
    for n in 0..3 {
        assert_eq!(locks.set(a, &posix(1, (10 * n, 10 * n + 4), Write), None), GRANTED);
    }
    assert_eq!(locks.set(a, &posix(1, (90, 99), Write), None), Err(Errno::ENOLCK));
    let on = posix(1, (0, 0), Read).on;
    let hole = LockRange { start: 2, end: 2 };
    assert_eq!(locks.clear(a, &on, hole), Err(Errno::ENOLCK), "it would be one more");
    assert_eq!(locks.set(a, &posix(1, (5, 9), Write), None), GRANTED, "it is one less");
    assert_eq!(locks.clear(a, &on, hole), Ok(()));
    assert_eq!(locks.set(b, &posix(2, (0, 0), Write), at(1)), QUEUED);
    assert_eq!(locks.set(b, &posix(3, (0, 0), Write), at(2)), Err(Errno::ENOLCK));
    let backwards = posix(1, (9, 8), Read);
    assert_eq!(locks.set(a, &backwards, None), Err(Errno::EINVAL));
    assert_eq!(locks.clear(a, &backwards.on, backwards.range), Err(Errno::EINVAL));
}
