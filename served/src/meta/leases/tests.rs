//! Single rules.

use netfs_common::name::Name;
use netfs_common::wire::lease::Names;

use super::*;

const A: SessionId = SessionId(1);
const B: SessionId = SessionId(2);
const C: SessionId = SessionId(3);
const I: Ino = Ino(10);
const J: Ino = Ino(11);
const T0: Duration = Duration::ZERO;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn table() -> Leases {
    Leases::new(LeaseLimits { per_session: 1000, min_hold: Duration::ZERO })
}

fn want(ino: Ino, access: Access, scope: Scope) -> Vec<Want> {
    vec![Want { ino, scope, access }]
}

fn look(ino: Ino) -> Vec<Want> {
    want(ino, Access::Look, Scope::attrs())
}

fn change(ino: Ino) -> Vec<Want> {
    want(ino, Access::Change, Scope::attrs())
}

fn take(ino: Ino) -> Vec<Want> {
    want(ino, Access::Take, Scope::all())
}

fn name(n: &str) -> Scope {
    Scope { names: Names::Some(vec![Name::new(n).unwrap()]), ..Scope::default() }
}

/// Asks, goes, and is granted.
fn give(t: &mut Leases, session: SessionId, ino: Ino, lease: Lease) {
    assert_eq!(t.ask(T0, session, &look(ino), None), Asked::Go);
    assert_eq!(t.grant(T0, session, ino, lease).unwrap().lease, lease);
}

fn wait(t: &mut Leases, session: SessionId, wants: &[Want]) -> Ticket {
    match t.ask(T0, session, wants, None) {
        Asked::Wait(ticket) => ticket,
        Asked::Go => panic!("it should wait"),
    }
}

/// A message to a holder.
type Call = (SessionId, RecallId, Vec<Recall>);

fn recalls(t: &mut Leases, now: Duration) -> Vec<Call> {
    let calls = t.poll(now).into_iter().filter_map(|action| match action {
        Action::Recall { session, id, recalls } => Some((session, id, recalls)),
        Action::Ready(_) => None,
    });
    calls.collect()
}

/// The recalls that are due, and the tickets that are ready.
fn poll(t: &mut Leases) -> (Vec<Call>, Vec<Ticket>) {
    t.check();
    let (mut recalls, mut ready) = (Vec::new(), Vec::new());
    for action in t.poll(T0) {
        match action {
            Action::Recall { session, id, recalls: r } => recalls.push((session, id, r)),
            Action::Ready(ticket) => ready.push(ticket),
        }
    }
    (recalls, ready)
}

#[test]
fn what_nobody_holds_is_free() {
    let mut t = table();
    for wants in [look(I), change(I), take(I)] {
        assert_eq!(t.ask(T0, A, &wants, None), Asked::Go);
    }
    give(&mut t, A, I, Lease::Write);
    for wants in [look(I), change(I), take(I)] {
        assert_eq!(t.ask(T0, A, &wants, None), Asked::Go, "it is its own");
    }
    assert_eq!(t.holders(I), [(A, Lease::Write)]);
    assert_eq!(poll(&mut t), (vec![], vec![]));
}

#[test]
fn a_look_takes_write_away_and_leaves_read() {
    let mut t = table();
    give(&mut t, A, I, Lease::Write);
    let ticket = wait(&mut t, B, &look(I));
    assert_eq!(t.waiting(I), [(ticket, B, vec![A])]);
    let (calls, ready) = poll(&mut t);
    let recall = Recall { ino: I, keep: Some(Lease::Read), stale: Scope::default() };
    assert_eq!((calls.len(), &calls[0].2, ready.len()), (1, &vec![recall], 0));
    assert_eq!(t.outstanding(A).len(), 1);
    assert_eq!(t.ask(T0, A, &change(I), None), Asked::Go, "it writes back");
    assert_eq!(t.grant(T0, A, I, Lease::Write).unwrap().lease, Lease::Read);
    t.answered(T0, B, calls[0].1);
    assert_eq!(poll(&mut t).1, [], "another's answer");
    t.answered(T0, A, calls[0].1);
    t.answered(T0, A, calls[0].1);
    assert_eq!(poll(&mut t).1, [ticket]);
    assert_eq!(t.ask(T0, B, &look(I), Some(ticket)), Asked::Go);
    assert!(t.grant(T0, B, I, Lease::Write).is_none());
    assert_eq!(t.grant(T0, B, I, Lease::Read).unwrap().lease, Lease::Read);
    assert_eq!(t.holders(I).len(), 2);
    assert!(t.waiting(I).is_empty() && t.outstanding(A).is_empty());
}

#[test]
fn a_change_leaves_read_without_what_it_changes() {
    let mut t = table();
    give(&mut t, A, I, Lease::Read);
    give(&mut t, B, I, Lease::Read);
    let ticket = wait(&mut t, C, &change(I));
    let (calls, _) = poll(&mut t);
    assert_eq!(calls.len(), 2);
    for (session, id, recalls) in calls {
        assert_eq!(recalls[0].stale, Scope::attrs());
        assert!(t.grant(T0, session, I, Lease::Read).is_none(), "it has something to drop");
        t.answered(T0, session, id);
    }
    assert_eq!(poll(&mut t).1, [ticket]);
    assert!(t.grant(T0, A, I, Lease::Read).is_none(), "another is about to change it");
    assert_eq!(t.ask(T0, C, &change(I), Some(ticket)), Asked::Go);
    assert_eq!(t.holders(I).len(), 2, "they keep Read");
    assert!(t.grant(T0, A, I, Lease::Read).is_some());
}

#[test]
fn a_take_leaves_nothing_and_is_one_message_to_each() {
    let mut t = table();
    for n in 0..MAX_RECALLS as u64 + 1 {
        t.limits.per_session = 10_000;
        give(&mut t, A, Ino(n), Lease::Read);
    }
    let wants: Vec<_> = (0..MAX_RECALLS as u64 + 1).flat_map(|n| take(Ino(n))).collect();
    let ticket = wait(&mut t, B, &wants);
    let (calls, _) = poll(&mut t);
    assert_eq!(calls.iter().map(|c| c.2.len()).collect::<Vec<_>>(), [MAX_RECALLS, 1]);
    t.answered(T0, A, calls[0].1);
    assert_eq!((poll(&mut t).1, t.len()), (vec![], 1));
    t.answered(T0, A, calls[1].1);
    assert_eq!((poll(&mut t).1, t.is_empty()), (vec![ticket], true));
}

#[test]
fn who_is_called_already_is_not_called_again() {
    let mut t = table();
    give(&mut t, A, I, Lease::Read);
    let first = wait(&mut t, B, &take(I));
    let second = wait(&mut t, C, &change(I));
    let (calls, _) = poll(&mut t);
    assert_eq!(calls.len(), 1);
    t.answered(T0, A, calls[0].1);
    assert_eq!(poll(&mut t).1, [first]);
    assert_eq!(t.waiting(I)[1], (second, C, vec![B]));
    assert_eq!(t.ask(T0, B, &take(I), Some(first)), Asked::Go);
    assert_eq!(poll(&mut t).1, [second]);
}

#[test]
fn who_has_waited_has_it_for_a_moment_however_many_wait_behind() {
    let mut t = table();
    t.limits.min_hold = ms(1);
    give(&mut t, A, I, Lease::Write);
    let first = wait(&mut t, B, &look(I));
    let second = wait(&mut t, C, &take(I));
    let calls = recalls(&mut t, ms(5));
    calls.iter().for_each(|(s, id, _)| t.answered(ms(5), *s, *id));
    assert_eq!(t.ask(ms(5), B, &look(I), Some(first)), Asked::Go);
    assert_eq!(t.grant(ms(5), B, I, Lease::Read).unwrap().lease, Lease::Read);
    t.check();
    assert_eq!(
        t.ask(ms(5), C, &take(I), Some(second)),
        Asked::Wait(second),
        "not before it is given back"
    );
    assert_eq!(recalls(&mut t, ms(5)), [], "it is left for a moment");
    let calls = recalls(&mut t, ms(6));
    assert_eq!((calls.len(), calls[0].0, calls[0].2[0].keep), (1, B, None));
    t.answered(ms(6), B, calls[0].1);
    assert_eq!(t.ask(ms(6), C, &take(I), Some(second)), Asked::Go);
}

#[test]
fn requests_run_in_order_unless_they_have_nothing_in_common() {
    let mut t = table();
    give(&mut t, A, I, Lease::Read);
    let of = |n, access| want(I, access, name(n));
    let first = wait(&mut t, B, &of("a", Access::Change));
    let second = wait(&mut t, C, &of("a", Access::Look));
    assert_eq!(t.ask(T0, C, &of("b", Access::Look), None), Asked::Go);
    assert!(t.grant(T0, C, I, Lease::Read).is_none(), "the first would not hear of it");
    let (calls, _) = poll(&mut t);
    t.answered(T0, A, calls[0].1);
    assert_eq!(poll(&mut t).1, [first]);
    assert_eq!(t.ask(T0, C, &of("a", Access::Look), Some(second)), Asked::Wait(second));
    t.cancel(T0, first);
    t.cancel(T0, first);
    assert_eq!(poll(&mut t).1, [second]);
    assert_eq!(t.ask(T0, C, &of("a", Access::Look), Some(second)), Asked::Go);
}

#[test]
fn what_is_wanted_may_change() {
    let mut t = table();
    give(&mut t, A, I, Lease::Read);
    give(&mut t, A, J, Lease::Read);
    let ticket = wait(&mut t, B, &change(I));
    let (calls, _) = poll(&mut t);
    t.answered(T0, A, calls[0].1);
    assert_eq!(poll(&mut t).1, [ticket]);
    let more = [change(I), change(J)].concat();
    assert_eq!(t.ask(T0, B, &more, Some(ticket)), Asked::Wait(ticket));
    let (calls, _) = poll(&mut t);
    assert_eq!((calls.len(), calls[0].2[0].ino), (1, J));
    t.answered(T0, A, calls[0].1);
    assert_eq!(poll(&mut t).1, [ticket]);
    assert_eq!(t.ask(T0, B, &change(J), Some(ticket)), Asked::Go);
    assert_eq!(t.ask(T0, B, &change(J), Some(ticket)), {
        let next = Ticket(ticket.0 + 1);
        Asked::Wait(next)
    });
}

#[test]
fn write_is_left_for_a_while() {
    let ms = Duration::from_millis;
    let mut t = Leases::new(LeaseLimits { per_session: 10, min_hold: ms(5) });
    assert_eq!(t.ask(ms(1), A, &look(I), None), Asked::Go);
    t.grant(ms(1), A, I, Lease::Write).unwrap();
    let Asked::Wait(ticket) = t.ask(ms(2), B, &look(I), None) else { panic!() };
    t.grant(ms(3), A, I, Lease::Write).unwrap();
    assert_eq!((t.poll(ms(5)), t.wake_at()), (vec![], Some(ms(6))));
    assert!(t.outstanding(A).is_empty());
    assert_eq!((t.poll(ms(6)).len(), t.wake_at()), (1, None));
    t.cancel(ms(6), ticket);
    let Asked::Wait(ticket) = t.ask(ms(2), C, &take(I), None) else { panic!() };
    t.cancel(ms(3), ticket);
    assert_eq!((t.poll(ms(10)), t.wake_at()), (vec![], None), "nobody needs it any more");
    t.check();
}

#[test]
fn a_session_that_ends_stands_in_nobodys_way() {
    let mut t = table();
    give(&mut t, A, I, Lease::Write);
    let first = wait(&mut t, B, &change(I));
    let second = wait(&mut t, C, &look(I));
    poll(&mut t);
    t.end(T0, A);
    assert_eq!(poll(&mut t).1, [first]);
    t.end(T0, B);
    assert_eq!(poll(&mut t).1, [second]);
    t.end(T0, SessionId(99));
    assert_eq!(t.ask(T0, C, &look(I), Some(second)), Asked::Go);
    assert!(t.outstanding(A).is_empty() && t.is_empty());
}

#[test]
fn the_longest_held_go_first_when_there_are_too_many() {
    let mut t = Leases::new(LeaseLimits { per_session: 2, min_hold: T0 });
    for n in [1, 2, 1, 3] {
        give(&mut t, A, Ino(n), Lease::Read);
    }
    let (calls, _) = poll(&mut t);
    assert_eq!((calls.len(), calls[0].2[0].ino, calls[0].2[0].keep), (1, Ino(2), None));
    for n in 4..7 {
        give(&mut t, A, Ino(n), Lease::Read);
    }
    assert!(t.grant(T0, A, Ino(7), Lease::Read).is_none(), "it does not answer");
    assert!(t.grant(T0, A, Ino(2), Lease::Read).is_none(), "it is on its way out");
    t.answered(T0, A, calls[0].1);
    assert_eq!(t.len(), 5);
    give(&mut t, A, Ino(7), Lease::Read);
    t.check();
}

#[test]
fn a_tail_is_known_by_who_wrote_it_last() {
    let mut t = table();
    let tail = |t: &mut Leases, s| t.grant(T0, s, I, Lease::Write).unwrap().tail_known;
    assert!(!tail(&mut t, A), "fresh");
    wait(&mut t, B, &take(I));
    let (calls, _) = poll(&mut t);
    t.answered(T0, A, calls[0].1);
    t.end(T0, B);
    assert!(tail(&mut t, C));
    t.end(T0, C);
    assert!(!tail(&mut t, A), "it was lost");
    t.wrote_in_order(I);
    assert!(tail(&mut t, A), "just made");
}

#[test]
fn after_a_restart_only_what_was_held_is_given() {
    let mut t = table();
    t.begin_grace(&[A, B]);
    assert!(t.in_grace());
    let ticket = wait(&mut t, C, &change(I));
    let own = wait(&mut t, A, &change(J));
    assert!(t.grant(T0, C, I, Lease::Read).is_none());
    assert!(t.reclaim(T0, C, &[(I, Lease::Read)]).is_empty(), "it had nothing");
    let got = t.reclaim(T0, A, &[(I, Lease::Read), (J, Lease::Write)]);
    assert_eq!(got.iter().map(|g| g.lease).collect::<Vec<_>>(), [Lease::Read, Lease::Write]);
    assert_eq!(poll(&mut t), (vec![], vec![own]));
    assert_eq!(t.ask(T0, A, &change(J), Some(own)), Asked::Go, "it writes back");
    let got = t.reclaim(T0, B, &[(I, Lease::Write), (J, Lease::Read), (I, Lease::Read)]);
    assert_eq!(got.len(), 1, "{got:?}");
    t.reclaimed(T0, A);
    assert!(t.in_grace());
    assert!(t.reclaim(T0, A, &[(Ino(99), Lease::Read)]).is_empty(), "it has come to the end");
    t.end(T0, B);
    assert!(!t.in_grace());
    let (calls, ready) = poll(&mut t);
    assert_eq!((calls.len(), calls[0].0, ready.len()), (1, A, 0));
    t.answered(T0, A, calls[0].1);
    assert_eq!(poll(&mut t).1, [ticket]);
}
