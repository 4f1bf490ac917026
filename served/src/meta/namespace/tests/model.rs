//! Random histories against a model that does everything the slow and obvious way.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// SplitMix64: a history is its seed.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    fn ino(&mut self, inos: u64) -> Ino {
        // Mostly the root and young inodes, and sometimes one that never was.
        match self.below(4) {
            0 => ROOT,
            1 => Ino(1 + self.below(inos + 2)),
            _ => Ino(inos.saturating_sub(self.below(12)).max(1)),
        }
    }

    fn name(&mut self) -> Name {
        name(["a", "b", "c", "d", "e"][self.below(5) as usize])
    }

    /// A change that often makes sense; inodes up to `inos` have been made.
    pub(crate) fn op(&mut self, inos: u64) -> Op {
        let ino = self.ino(inos);
        let (parent, name) = (self.ino(inos), self.name());
        let class = [0, 0, 2, 3][self.below(4) as usize] << 29;
        let (generation, mtime) = (class | self.below(2) as u32, at(self.below(2000) as i64));
        match self.below(16) {
            0..4 => {
                let new = match self.below(5) {
                    0 => NewInode::Symlink(b"target".to_vec()),
                    1 | 2 => NewInode::File,
                    _ => NewInode::Dir,
                };
                Op::Create { parent, name, new, perm: 0o755, umask: 0, uid: 0, gid: 0 }
            }
            4 => Op::Link { ino, parent, name },
            5 | 6 => Op::Unlink { parent, name },
            7 => Op::Rmdir { parent, name },
            8..11 => {
                let modes = [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange];
                let mode = modes[self.below(3) as usize];
                Op::Rename { parent, name, new_parent: ino, new_name: self.name(), mode }
            }
            11 => {
                let size = Some(self.below(200));
                Op::SetAttr { ino, set: SetAttr { size, ..SetAttr::default() } }
            }
            12 => {
                let allocated = self.below(500) as i64 - 100;
                Op::WroteChunks { ino, generation, end: self.below(200), allocated, mtime }
            }
            13 => {
                let data = vec![7; self.below(100) as usize];
                let size = data.len() as u64 + self.below(3);
                Op::WriteInline { ino, generation, data, size, mtime }
            }
            14 if self.below(3) == 0 => {
                let value = [&b"default"[..], b"2", b"3", b"6"][self.below(4) as usize].to_vec();
                let name = netfs_common::class::XATTR.to_vec();
                Op::SetXattr { ino, name, value, mode: XattrMode::Set }
            }
            14 => {
                let value = vec![1; self.below(9) as usize];
                let name = [b"user.".as_slice(), name.as_bytes()].concat();
                Op::SetXattr { ino, name, value, mode: XattrMode::Set }
            }
            _ => Op::Forget { inos: vec![ino, parent] },
        }
    }
}

#[derive(Clone)]
struct Node {
    kind: FileKind,
    entries: BTreeMap<Vec<u8>, u64>,
}

/// A tree in memory. Link counts are found by looking at everything.
struct Model {
    nodes: BTreeMap<u64, Node>,
    next: u64,
}

impl Model {
    fn new() -> Model {
        let root = Node { kind: FileKind::Dir, entries: BTreeMap::new() };
        Model { nodes: BTreeMap::from([(1, root)]), next: 2 }
    }

    fn names_of(&self, ino: u64) -> u32 {
        self.nodes.values().flat_map(|n| n.entries.values()).filter(|e| **e == ino).count() as u32
    }

    fn is_dir(&self, ino: u64) -> bool {
        self.nodes[&ino].kind == FileKind::Dir
    }

    fn nlink(&self, ino: u64) -> u32 {
        let names = self.names_of(ino);
        if !self.is_dir(ino) {
            return names;
        }
        let subdirs = self.nodes[&ino].entries.values().filter(|e| self.is_dir(**e)).count();
        if ino == 1 || names > 0 { 2 + subdirs as u32 } else { 0 }
    }

    fn live_dir(&self, ino: Ino) -> Result<u64, Errno> {
        match self.nodes.get(&ino.0) {
            None => Err(Errno::ESTALE),
            Some(node) if node.kind != FileKind::Dir => Err(Errno::ENOTDIR),
            Some(_) if self.nlink(ino.0) == 0 => Err(Errno::ENOENT),
            Some(_) => Ok(ino.0),
        }
    }

    fn entry(&self, dir: u64, name: &Name) -> Option<u64> {
        self.nodes[&dir].entries.get(name.as_bytes()).copied()
    }

    fn set(&mut self, dir: u64, name: &Name, to: Option<u64>) {
        let entries = &mut self.nodes.get_mut(&dir).unwrap().entries;
        match to {
            Some(ino) => entries.insert(name.as_bytes().to_vec(), ino),
            None => entries.remove(name.as_bytes()),
        };
    }

    fn below(&self, top: u64) -> BTreeSet<u64> {
        let mut found = BTreeSet::from([top]);
        for ino in self.nodes[&top].entries.values() {
            found.extend(self.below(*ino));
        }
        found
    }

    /// `None` for what the model does not judge.
    fn apply(&mut self, op: &Op) -> Option<Result<(), Errno>> {
        match op {
            Op::Create { parent, name, new, .. } => Some(self.create(*parent, name, new)),
            Op::Link { ino, parent, name } => Some(self.link(*ino, *parent, name)),
            Op::Unlink { parent, name } => Some(self.remove(*parent, name, false)),
            Op::Rmdir { parent, name } => Some(self.remove(*parent, name, true)),
            Op::Rename { parent, name, new_parent, new_name, mode } => {
                Some(self.rename((*parent, name), (*new_parent, new_name), *mode))
            }
            Op::Forget { inos } => {
                for ino in inos {
                    if self.nodes.contains_key(&ino.0) && self.nlink(ino.0) == 0 {
                        self.nodes.remove(&ino.0);
                    }
                }
                Some(Ok(()))
            }
            _ => None,
        }
    }

    fn create(&mut self, parent: Ino, name: &Name, new: &NewInode) -> Result<(), Errno> {
        let dir = self.live_dir(parent)?;
        if self.entry(dir, name).is_some() {
            return Err(Errno::EEXIST);
        }
        let kind = match new {
            NewInode::File => FileKind::File,
            NewInode::Dir => FileKind::Dir,
            _ => FileKind::Symlink,
        };
        self.nodes.insert(self.next, Node { kind, entries: BTreeMap::new() });
        self.set(dir, name, Some(self.next));
        self.next += 1;
        Ok(())
    }

    fn link(&mut self, ino: Ino, parent: Ino, name: &Name) -> Result<(), Errno> {
        let dir = self.live_dir(parent)?;
        if !self.nodes.contains_key(&ino.0) {
            return Err(Errno::ESTALE);
        }
        match self.entry(dir, name) {
            Some(_) => Err(Errno::EEXIST),
            None if self.is_dir(ino.0) => Err(Errno::EPERM),
            None if self.nlink(ino.0) == 0 => Err(Errno::ENOENT),
            None => {
                self.set(dir, name, Some(ino.0));
                Ok(())
            }
        }
    }

    fn remove(&mut self, parent: Ino, name: &Name, as_dir: bool) -> Result<(), Errno> {
        let dir = self.live_dir(parent)?;
        let ino = self.entry(dir, name).ok_or(Errno::ENOENT)?;
        match (as_dir, self.is_dir(ino)) {
            (true, false) => Err(Errno::ENOTDIR),
            (false, true) => Err(Errno::EISDIR),
            _ if !self.nodes[&ino].entries.is_empty() => Err(Errno::ENOTEMPTY),
            _ => {
                self.set(dir, name, None);
                Ok(())
            }
        }
    }

    fn rename(
        &mut self,
        from: (Ino, &Name),
        to: (Ino, &Name),
        mode: RenameMode,
    ) -> Result<(), Errno> {
        let (old_dir, new_dir) = (self.live_dir(from.0)?, self.live_dir(to.0)?);
        let moved = self.entry(old_dir, from.1).ok_or(Errno::ENOENT)?;
        let there = self.entry(new_dir, to.1);
        match (mode, there) {
            (RenameMode::NoReplace, Some(_)) => return Err(Errno::EEXIST),
            (RenameMode::Exchange, None) => return Err(Errno::ENOENT),
            (_, Some(there)) if there == moved => return Ok(()),
            _ => {}
        }
        if self.below(moved).contains(&new_dir) {
            return Err(Errno::EINVAL);
        }
        if mode == RenameMode::Exchange {
            if there.is_some_and(|there| self.below(there).contains(&old_dir)) {
                return Err(Errno::EINVAL);
            }
            self.set(old_dir, from.1, there);
            self.set(new_dir, to.1, Some(moved));
            return Ok(());
        }
        if let Some(there) = there {
            match (self.is_dir(moved), self.is_dir(there)) {
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                _ if !self.nodes[&there].entries.is_empty() => return Err(Errno::ENOTEMPTY),
                _ => {}
            }
        }
        self.set(old_dir, from.1, None);
        self.set(new_dir, to.1, Some(moved));
        Ok(())
    }

    fn compare(&self, world: &World, what: &str) {
        for ino in 1..self.next + 2 {
            let found = world.entry(Ino(ino)).ok().map(|(attr, _)| (attr.kind, attr.nlink));
            let expected = self.nodes.get(&ino).map(|node| (node.kind, self.nlink(ino)));
            assert_eq!(found, expected, "{what}: inode {ino:x}");
        }
        for (ino, node) in self.nodes.iter().filter(|(_, n)| n.kind == FileKind::Dir) {
            let listed = world.list(Ino(*ino), 0, 4096).0;
            let listed: BTreeMap<_, _> =
                listed.into_iter().map(|e| (e.name.as_bytes().to_vec(), e.ino.0)).collect();
            assert_eq!(listed, node.entries, "{what}: directory {ino:x}");
        }
    }
}

/// Runs a history with retries mixed in; the log that it made.
fn history(seed: u64, steps: u64) -> (World, Vec<Action>) {
    let (mut rng, mut model, mut world) = (Rng(seed), Model::new(), World::new());
    let (mut sent, mut answered): (Vec<(OpSeq, OpSeq, Op, Reply)>, u64) = (Vec::new(), 0);
    let mut log = Vec::new();
    for seq in 1..=steps {
        let what = format!("seed {seed}, step {seq}");
        let op = rng.op(model.next - 1);
        let call = |seq, answered, op| Action::Mutate { session: SessionId(1), seq, answered, op };
        let action = call(OpSeq(seq), OpSeq(answered), op.clone());
        log.push(action.clone());
        let reply = world.run(action);
        if let Some(expected) = model.apply(&op) {
            let got = reply.as_ref().map(|_| ()).map_err(|e| *e);
            assert_eq!(got, expected, "{what}: {op:?}");
        }
        sent.push((OpSeq(seq), OpSeq(answered), op, reply));
        // Something from the window comes once more.
        if rng.below(3) == 0 {
            let at = answered + rng.below(seq - answered);
            let (seq, answered, op, reply) = sent[at as usize].clone();
            let action = call(seq, answered, op);
            log.push(action.clone());
            let outcome = |reply: Reply| match reply {
                Ok(Response::Changed { target, .. }) => Ok(target),
                Ok(other) => panic!("{other:?}"),
                Err(errno) => Err(errno),
            };
            let again = outcome(world.run(action));
            assert_eq!(again, outcome(reply), "{what}: retry of {seq}");
        }
        if rng.below(4) == 0 {
            answered += rng.below(seq - answered);
        }
        if seq % 100 == 0 {
            model.compare(&world, &what);
            let faults = check_store(&world.store).unwrap().faults;
            assert!(faults.is_empty(), "{what}: {faults:?}");
        }
    }
    model.compare(&world, "the end");
    (world, log)
}

#[test]
fn random_histories_agree_with_the_model_and_replay_to_the_same_store() {
    for seed in 0..30 {
        let (world, log) = history(seed, 600);
        let mut replayed = World::new();
        for action in log {
            let _ = replayed.run(action);
        }
        assert_eq!(world.dump(), replayed.dump(), "seed {seed}");
    }
}

#[test]
fn a_missing_value_is_found() {
    use crate::meta::keys::*;
    let (mut world, _) = history(99, 400);
    world.op(Op::EndSession).unwrap_err();
    let pairs = world.dump();
    let mut tried = BTreeSet::new();
    for (key, value) in &pairs {
        // What is missing among these does not contradict anything else.
        if matches!(key[0], REPLY | TRIM | DELETION | SESSION | WINDOW) && *key != pairs[0].0 {
            continue;
        }
        tried.insert(key[0]);
        let write = |value: Option<Vec<u8>>| {
            world.store.commit([(key.to_vec(), value)].into_iter().collect()).unwrap();
        };
        write(None);
        assert!(check_store(&world.store).unwrap().fault_count > 0, "{key:?}");
        if !matches!(key[0], INLINE | XATTR | HOLD) {
            write(Some(value[..value.len() - 1].to_vec()));
            assert!(check_store(&world.store).unwrap().fault_count > 0, "{key:?}");
        }
        write(Some(value.to_vec()));
    }
    assert!(tried.len() >= 8, "{tried:?}");
    world.check();
}

#[test]
fn values_that_contradict_each_other_are_found() {
    use crate::meta::keys;
    use crate::meta::record::{self, Inode};
    let mut world = World::new();
    let a = world.dir(ROOT, "a");
    let b = world.dir(a, "b");
    let file = world.file(b, "f");
    world.set_xattr(file, b"user.a", b"v").unwrap();
    type Damage = fn(&mut Inode);
    let damages: [(Ino, Damage); 10] = [
        (ROOT, |root| root.attr.nlink += 1),
        (a, |dir| dir.attr.parent = Ino(3)),
        (b, |dir| dir.entries += 1),
        (b, |dir| dir.next_cookie = 3),
        (file, |file| file.attr.nlink = 0),
        (file, |file| file.attr.allocated = 512),
        (file, |file| file.attr.has_xattrs = false),
        (file, |file| file.attr.kind = FileKind::Dir),
        (file, |file| file.attr.version = 1 << 40),
        (file, |file| file.attr.mtime.nanos = u32::MAX),
    ];
    for (n, (ino, damage)) in damages.into_iter().enumerate() {
        world.check();
        let key = keys::inode(ino);
        let good: Inode = record::load(&world.store, &key).unwrap().unwrap();
        let mut bad = good.clone();
        damage(&mut bad);
        for inode in [bad, good] {
            let write = [(key.clone(), Some(record::encode(&inode).unwrap()))];
            let faults_before = check_store(&world.store).unwrap().fault_count;
            world.store.commit(write.into_iter().collect()).unwrap();
            let faults = check_store(&world.store).unwrap().fault_count;
            assert_ne!(faults == 0, faults_before == 0, "damage {n}");
        }
    }
}
