//! Changes that were lost with the end of the log, and are made again.

use super::model::Rng;
use super::*;
use crate::meta::keys;
use crate::meta::record::{self, Inode};
use crate::meta::replay::Replay;
use netfs_common::wire::meta::Replayed;

const SESSIONS: [SessionId; 3] = [SessionId(1), SessionId(2), SessionId(3)];

/// A change that was answered without an error.
struct Made {
    session: SessionId,
    change: Replayed,
}

/// A world with three sessions, and the same changes as every other one of the seed.
struct History {
    world: World,
    seqs: [u64; 3],
    rng: Rng,
    made: Vec<Made>,
}

impl History {
    fn new(seed: u64) -> History {
        let mut world = World::new();
        world.open(2);
        world.open(3);
        History { world, seqs: [0; 3], rng: Rng(seed), made: Vec::new() }
    }

    fn step(&mut self) {
        let who = self.rng.below(3) as usize;
        let op = self.rng.op(self.world.state().next_ino - 1);
        self.seqs[who] += 1;
        let seq = OpSeq(self.seqs[who]);
        let reply = self.world.op_as(SESSIONS[who].0, seq.0, op.clone());
        let Ok(Response::Changed { target, attrs }) = reply else { return };
        // As the client does.
        let time = attrs.iter().map(|a| a.ctime).max().unwrap_or(self.world.now());
        let target =
            target.and_then(|ino| attrs.iter().find(|a| a.ino == ino).map(|a| (ino, a.generation)));
        let at = LogIndex(self.world.index);
        self.made
            .push(Made { session: SESSIONS[who], change: Replayed { at, seq, time, target, op } });
    }

    fn replay(&mut self, session: SessionId, change: Replayed) -> Reply {
        self.world.index += 1;
        let Replayed { seq, time, target, op, .. } = change;
        let command = Command { time, action: Action::Replay { session, seq, target, op } };
        let mut txn = Txn::new(&self.world.store);
        let reply = super::super::apply(&mut txn, LogIndex(self.world.index), command).unwrap();
        self.world.store.commit(txn.into_batch()).unwrap();
        reply
    }

    /// What programs could tell apart.
    fn visible(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let shown = [keys::INODE, keys::ENTRY, keys::LISTING, keys::INLINE, keys::XATTR];
        let shown = shown.into_iter().chain([keys::ORPHAN, keys::HOLD]);
        let of_kind = |kind| self.world.store.range(&[kind], &[kind + 1], usize::MAX).unwrap();
        let plain = |(key, value): Pair| {
            if key[0] != keys::INODE {
                return (key.to_vec(), value.to_vec());
            }
            let mut inode: Inode = record::decode(&key, &value).unwrap();
            (inode.attr.version, inode.crashes) = (0, 0);
            (key.to_vec(), record::encode(&inode).unwrap())
        };
        shown.flat_map(of_kind).map(plain).collect()
    }
}

/// Makes a history, loses its end, and has it offered again by those that `come`.
fn lose_and_replay(seed: u64, come: impl Fn(SessionId) -> bool) -> (History, History, Vec<Reply>) {
    let mut rng = Rng(seed ^ 0x5ca1_ab1e);
    let (kept, lost) = (rng.below(120), 1 + rng.below(60));
    let mut whole = History::new(seed);
    let mut cut = History::new(seed);
    (0..kept).for_each(|_| cut.step());
    (0..kept + lost).for_each(|_| whole.step());
    let end = LogIndex(cut.world.index);
    cut.world.index += 1_000_000;
    cut.world.run(Action::SkipNumbers { inodes: 1 << 22 }).unwrap();
    let mut gathered = Replay::new(&SESSIONS);
    for made in whole.made.iter().filter(|made| made.change.at > end && come(made.session)) {
        gathered.offer(made.session, vec![made.change.clone()]);
    }
    let last = SESSIONS.into_iter().filter(|id| gathered.strike(*id)).count();
    assert_eq!(last, 1);
    let offers = gathered.take().offers;
    let replies = offers.into_iter().map(|(id, change)| cut.replay(id, change)).collect();
    (whole, cut, replies)
}

#[test]
fn what_all_clients_have_is_made_again_as_it_was() {
    let mut replayed = 0;
    for seed in 0..1500 {
        let (whole, cut, replies) = lose_and_replay(seed, |_| true);
        replayed += replies.len();
        for reply in replies {
            assert!(reply.is_ok(), "seed {seed}: {reply:?}");
        }
        assert_eq!(whole.visible(), cut.visible(), "seed {seed}");
        cut.world.check();
    }
    assert!(replayed > 10_000, "{replayed}");
}

#[test]
fn what_a_client_takes_with_it_does_not_break_the_rest() {
    let mut refused = 0;
    for seed in 0..1500 {
        let (_, mut cut, replies) = lose_and_replay(seed, |id| id != SESSIONS[1]);
        refused += replies.iter().filter(|reply| reply.is_err()).count();
        cut.world.check();
        // The volume goes on, and gives out no number twice.
        for _ in 0..20 {
            cut.step();
        }
        cut.world.check();
    }
    assert!(refused > 0, "nothing depended on what was missing");
}

#[test]
fn a_change_is_made_again_once() {
    let mut history = History::new(1);
    history.world.run(Action::SkipNumbers { inodes: 100 }).unwrap();
    let op = Op::Create {
        parent: ROOT,
        name: name("f"),
        new: NewInode::File,
        perm: 0o644,
        umask: 0,
        uid: 0,
        gid: 0,
    };
    let change = |seq, ino| Replayed {
        at: LogIndex(1),
        seq: OpSeq(seq),
        time: at(5),
        target: Some((Ino(ino), 0)),
        op: op.clone(),
    };
    let first = history.replay(SESSIONS[0], change(1, 50)).unwrap();
    assert_eq!(target(first.clone()), Ino(50));
    assert_eq!(history.replay(SESSIONS[0], change(1, 50)), Ok(first));
    // Numbers that were not left out are not given out.
    history.world.unlink(ROOT, "f").unwrap();
    for ino in [50, 102 + 100, 1, 0, u64::MAX] {
        let reply = history.replay(SESSIONS[1], change(ino.wrapping_add(7) % 1000 + 2, ino));
        assert_eq!(reply, Err(Errno::EEXIST), "{ino}");
    }
    // Whose answers have come, and who is unknown.
    assert_eq!(history.replay(SessionId(9), change(1, 60)), Err(Errno::ESHUTDOWN));
}
