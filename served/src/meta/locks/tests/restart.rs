//! Locks that are reclaimed after a restart.

use LockMode::{Read, Write};

use super::*;

#[test]
fn nothing_is_granted_until_everybody_has_reclaimed() {
    let mut locks = Locks::new(MANY);
    let (a, b, c) = (session(1), session(2), session(3));
    locks.begin_grace([a, b]);
    let wanted = posix(9, (50, 59), Write);
    assert_eq!(locks.set(c, &wanted, None), Ok(Outcome::Grace));
    assert_eq!(locks.reclaim(a, 0, &[posix(1, (0, 9), Write)], false), Ok(vec![]));
    assert_eq!(locks.reclaim(a, 0, &[posix(1, (0, 9), Write)], false), Ok(vec![]), "once more");
    assert!(is_conflict(locks.test(c, &posix(9, (5, 5), Read))));
    assert_eq!(locks.test(c, &wanted), Ok(Outcome::Grace));
    assert_eq!(locks.reclaim(a, 1, &[posix(1, (20, 29), Read)], true), Ok(vec![]));
    assert_eq!(locks.reclaim(a, 1, &[posix(1, (20, 29), Read)], true), Ok(vec![]), "once more");
    assert_eq!(locks.set(a, &wanted, Some(WaitId(1))), Ok(Outcome::Grace));
    // The other never comes back.
    locks.end_session(b);
    assert!(!locks.in_grace());
    assert_eq!(locks.set(c, &wanted, None), Ok(Outcome::Granted));
    assert!(is_conflict(locks.set(c, &posix(9, (25, 25), Write), None)));
}

#[test]
fn what_comes_too_late_or_is_taken_is_refused() {
    let mut locks = Locks::new(MANY);
    let (a, b) = (session(1), session(2));
    locks.begin_grace([a, b]);
    assert_eq!(locks.reclaim(a, 0, &[posix(1, (0, 9), Write)], true), Ok(vec![]));
    let both = [posix(2, (5, 6), Read), posix(2, (10, 11), Read)];
    assert_eq!(locks.reclaim(b, 0, &both, true), Ok(vec![0]));
    assert_eq!(locks.reclaim(b, 1, &[posix(2, (90, 91), Read)], true), Ok(vec![0]));
    assert_eq!(locks.held(Ino(7)).len(), 2);
}

#[test]
fn batches_that_another_life_of_the_server_took_are_brought_again() {
    let mut locks = Locks::new(MANY);
    let a = session(1);
    locks.begin_grace([a]);
    assert_eq!(locks.reclaim(a, 2, &[], true), Err(Errno::ESTALE));
    assert!(locks.in_grace());
    assert_eq!(locks.reclaim(a, 0, &[], false), Ok(vec![]));
    assert_eq!(locks.reclaim(a, 1, &[], true), Ok(vec![]));
    assert!(!locks.in_grace());
}
