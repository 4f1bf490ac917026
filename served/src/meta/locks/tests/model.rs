//! Random operations beside a model that has an entry for every byte and knows nothing of ranges.

use proptest::prelude::*;

use super::*;

const BYTES: u64 = 12;
const OWNERS: u64 = 4;

type Byte = Vec<(Owner, LockMode)>;

#[derive(Clone, Copy, Debug)]
struct Wanted {
    owner: Owner,
    lock: LockHeld,
    wait: WaitId,
}

#[derive(Default)]
struct Model {
    bytes: Vec<Byte>,
    queue: Vec<Wanted>,
}

impl Model {
    fn free(&self, owner: Owner, lock: &LockHeld) -> bool {
        let bytes = self.bytes.iter().enumerate().filter(|(n, _)| within(*n, lock.range));
        let mut others = bytes.flat_map(|(_, byte)| byte).filter(|(other, _)| *other != owner);
        others.all(|(_, mode)| !lock.mode.excludes(*mode))
    }

    fn put(&mut self, owner: Owner, range: LockRange, mode: Option<LockMode>) {
        for (n, byte) in self.bytes.iter_mut().enumerate().filter(|(n, _)| within(*n, range)) {
            let _ = n;
            byte.retain(|(other, _)| *other != owner);
            byte.extend(mode.map(|mode| (owner, mode)));
        }
    }

    fn settle(&mut self) -> Vec<(SessionId, WaitId)> {
        let mut granted = Vec::new();
        while let Some(n) = self.queue.iter().position(|w| self.free(w.owner, &w.lock)) {
            let Wanted { owner, lock, wait } = self.queue.remove(n);
            self.put(owner, lock.range, Some(lock.mode));
            granted.push((owner.session, wait));
        }
        granted
    }

    /// Whether somebody waits for `owner`, who waits for `lock`, over any number of others.
    fn circle(&self, owner: Owner, lock: &LockHeld) -> bool {
        let blockers = |owner: Owner, lock: &LockHeld| -> Vec<Owner> {
            let bytes = self.bytes.iter().enumerate().filter(|(n, _)| within(*n, lock.range));
            let locks = bytes.flat_map(|(_, byte)| byte);
            let others = locks.filter(|(o, mode)| *o != owner && lock.mode.excludes(*mode));
            others.map(|(o, _)| *o).filter(|o| o.kind == LockKind::Posix).collect()
        };
        let mut reached = blockers(owner, lock);
        for _ in 0..OWNERS * 4 {
            let waiting = self.queue.iter().filter(|w| reached.contains(&w.owner));
            let more: Vec<_> = waiting.flat_map(|w| blockers(w.owner, &w.lock)).collect();
            reached.extend(more);
            reached.sort();
            reached.dedup();
        }
        owner.kind == LockKind::Posix && reached.contains(&owner)
    }
}

fn within(byte: usize, range: LockRange) -> bool {
    (range.start..=range.end).contains(&(byte as u64))
}

#[derive(Clone, Debug)]
enum Step {
    Set { owner: Owner, range: (u64, u64), mode: LockMode, wait: bool },
    Clear { owner: Owner, range: (u64, u64) },
    Withdraw { nth: usize },
    End { session: u64 },
}

fn owners() -> impl Strategy<Value = Owner> {
    (0..OWNERS, any::<bool>()).prop_map(|(n, ofd)| Owner {
        session: SessionId(n % 2),
        kind: if ofd { LockKind::Ofd } else { LockKind::Posix },
        number: n,
    })
}

fn ranges() -> impl Strategy<Value = (u64, u64)> {
    (0..BYTES, 0..BYTES).prop_map(|(a, b)| (a.min(b), a.max(b)))
}

fn steps() -> impl Strategy<Value = Step> {
    let modes = prop_oneof![Just(LockMode::Read), Just(LockMode::Write)];
    prop_oneof![
        6 => (owners(), ranges(), modes, any::<bool>())
            .prop_map(|(owner, range, mode, wait)| Step::Set { owner, range, mode, wait }),
        4 => (owners(), ranges()).prop_map(|(owner, range)| Step::Clear { owner, range }),
        1 => any::<usize>().prop_map(|nth| Step::Withdraw { nth }),
        1 => (0..2u64).prop_map(|session| Step::End { session }),
    ]
}

proptest! {
    #[test]
    fn ranges_and_bytes_agree(steps in proptest::collection::vec(steps(), 1..60)) {
        let mut locks = Locks::new(MANY);
        let mut model = Model { bytes: vec![Vec::new(); BYTES as usize], queue: Vec::new() };
        let mut granted: Vec<(SessionId, WaitId)> = Vec::new();
        for (n, step) in steps.into_iter().enumerate() {
            match step {
                Step::Set { owner, range, mode, wait } => {
                    let wait = wait.then_some(WaitId(n as u64));
                    let mut held = lock(owner.kind, owner.number, range, mode);
                    held.on.owner = owner.number;
                    let outcome = locks.set(owner.session, &held, wait);
                    if model.free(owner, &held) {
                        prop_assert_eq!(outcome, Ok(Outcome::Granted));
                        model.put(owner, held.range, Some(mode));
                    } else if let Some(wait) = wait {
                        if model.circle(owner, &held) {
                            prop_assert_eq!(outcome, Err(Errno::EDEADLK));
                        } else {
                            prop_assert_eq!(outcome, Ok(Outcome::Queued));
                            model.queue.push(Wanted { owner, lock: held, wait });
                        }
                    } else {
                        prop_assert!(is_conflict(outcome));
                    }
                }
                Step::Clear { owner, range } => {
                    let held = lock(owner.kind, owner.number, range, LockMode::Read);
                    locks.clear(owner.session, &held.on, held.range).unwrap();
                    model.put(owner, held.range, None);
                }
                Step::Withdraw { nth } => {
                    if !model.queue.is_empty() {
                        let gone = model.queue.remove(nth % model.queue.len());
                        prop_assert!(locks.withdraw(gone.owner.session, gone.wait));
                    }
                }
                Step::End { session } => {
                    let session = SessionId(session);
                    locks.end_session(session);
                    model.queue.retain(|w| w.owner.session != session);
                    for byte in &mut model.bytes {
                        byte.retain(|(owner, _)| owner.session != session);
                    }
                    granted.retain(|(s, _)| *s != session);
                }
            }
            granted.extend(model.settle());
            compare(&locks, &model, &granted)?;
        }
    }
}

fn compare(
    locks: &Locks,
    model: &Model,
    granted: &[(SessionId, WaitId)],
) -> Result<(), TestCaseError> {
    let all = locks.held(Ino(7));
    for (n, byte) in model.bytes.iter().enumerate() {
        let mut expected = byte.clone();
        let here = all.iter().filter(|b| within(n, b.range));
        let mut found: Byte = here.map(|b| (b.owner, b.mode)).collect();
        expected.sort();
        found.sort();
        prop_assert_eq!(found, expected, "byte {}", n);
    }
    for session in [SessionId(0), SessionId(1)] {
        let mine = granted.iter().filter(|(s, _)| *s == session);
        let mut expected: Vec<_> = mine.map(|(_, wait)| *wait).collect();
        expected.sort();
        prop_assert_eq!(locks.granted(session, 1000), expected);
        let waits = model.queue.iter().any(|w| w.owner.session == session);
        prop_assert_eq!(locks.is_waiting(session), waits);
        let ranges = all.iter().filter(|b| b.owner.session == session).count();
        prop_assert_eq!(locks.sessions.get(&session).map_or(0, |a| a.ranges), ranges);
    }
    Ok(())
}
