//! What clients may ask for, and what becomes of a store whose values are damaged.

use netfs_common::attr::{FileKind, SetAttr, SetTime, Timestamp};
use netfs_common::codec;
use netfs_common::id::{Ino, LogIndex, OpSeq, SessionId};
use netfs_common::name::Name;
use netfs_common::wire::meta::{NewInode, Op, RenameMode, XattrMode};

use super::{Fault, apply, get, get_xattr, list_xattrs, lookup, read_dir, read_link};
use crate::fuzzing::{Input, put};
use crate::meta::acl;
use crate::meta::command::{Action, Command, Settings};
use crate::meta::engine::check_store;
use crate::meta::keys;
use crate::meta::kv::{MemoryStore, Pair, Read, Store, StoreError, Txn};
use crate::meta::record::{self, Inode, State};

const COMMANDS_MAX: usize = 48;
const EDITS_MAX: usize = 12;
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// Commands, as clients ask for them and as a log may hold them, applied to a new volume.
///
/// # Panics
/// When applying panics, the store contradicts itself afterwards, or the same commands give another store.
pub fn commands(input: &[u8]) {
    let mut input = Input(input);
    let mut world = World::new(&mut input);
    let mut done = Vec::new();
    while !input.0.is_empty() && done.len() < COMMANDS_MAX {
        let command = command(&mut input, &world);
        world.run(command.clone()).expect("a store that is sound applies every command");
        done.push(command);
        world.read(&mut input).expect("a store that is sound can be read");
    }
    let report = check_store(&world.store).expect("memory can be read");
    assert!(report.fault_count == 0, "{:?} after {done:?}", report.faults);
    let mut second = World::with(world.settings);
    for command in done {
        second.run(command).expect("as before");
    }
    assert!(world.dump() == second.dump(), "the same commands made another store");
}

/// A volume whose stored values are then damaged, verified, read and changed.
///
/// # Panics
/// When any of that panics; errors are what damage is answered with.
pub fn damaged_store(input: &[u8]) {
    let mut input = Input(input);
    let mut world = World::new(&mut input);
    for _ in 0..input.byte() % 16 {
        let command = command(&mut input, &world);
        world.run(command).expect("a store that is sound applies every command");
    }
    for _ in 0..1 + usize::from(input.byte()) % EDITS_MAX {
        world.damage(&mut input);
    }
    drop(check_store(&world.store).expect("memory can be read"));
    while !input.0.is_empty() {
        drop(world.read(&mut input));
        let command = command(&mut input, &world);
        // An engine that meets damage stops; going on is harder.
        drop(world.run(command));
    }
    drop(check_store(&world.store).expect("memory can be read"));
}

struct World {
    store: MemoryStore,
    settings: Settings,
    index: u64,
    seq: u64,
}

impl World {
    fn new(input: &mut Input<'_>) -> World {
        let (limit, inodes) = (input.byte(), input.byte());
        World::with(Settings {
            inline_limit: u32::from(limit),
            max_inodes: 2 + u64::from(inodes),
            ..Settings::default()
        })
    }

    fn with(settings: Settings) -> World {
        let mut world = World { store: MemoryStore::new(), settings, index: 0, seq: 0 };
        let (time, description) = (Timestamp::default(), "fuzz".to_owned());
        for action in [
            Action::CreateVolume { id: 7, settings },
            Action::OpenSession { id: SessionId(1), description, owner: String::new() },
        ] {
            world.run(Command { time, action }).expect("an empty store takes a volume");
        }
        world
    }

    fn run(&mut self, command: Command) -> Result<(), StoreError> {
        self.index += 1;
        if let Action::Mutate { session: SessionId(1), seq, .. } = &command.action {
            self.seq = self.seq.max(seq.0);
        }
        let mut txn = Txn::new(&self.store);
        let reply = apply(&mut txn, LogIndex(self.index), command)?;
        codec::encode(&reply).expect("an answer can be sent");
        self.store.commit(txn.into_batch())
    }

    fn read(&self, input: &mut Input<'_>) -> Result<(), StoreError> {
        let store: &dyn Read = &self.store;
        let ino = ino(input);
        let answer = match input.byte() % 6 {
            0 => lookup(store, ino, &name(input)),
            1 => get(store, ino),
            2 => read_link(store, ino),
            3 => read_dir(store, ino, input.telling(), input.telling() as u32, true),
            4 => list_xattrs(store, ino),
            _ => get_xattr(store, ino, &xattr_name(input)),
        };
        match answer {
            Err(Fault::Store(error)) => Err(error),
            _ => Ok(()),
        }
    }

    fn dump(&self) -> Vec<Pair> {
        self.store.range(&[0], &[0xff], usize::MAX).expect("memory can be read")
    }

    fn damage(&self, input: &mut Input<'_>) {
        let pairs = self.dump();
        let pick = usize::from(input.byte());
        let Some((key, value)) = pairs.get(pick % pairs.len().max(1)) else { return };
        let (mut key, mut value) = (key.to_vec(), value.to_vec());
        match input.byte() % 8 {
            0 => {
                self.write(key, None);
                return;
            }
            1 => {
                let at = usize::from(input.byte()) % value.len().max(1);
                value.truncate(at);
            }
            2 => {
                let (at, with) = (usize::from(input.byte()), input.byte());
                put(&mut value, at, u64::from(with), 1);
            }
            3 => {
                let at = usize::from(input.byte()) % key.len();
                put(&mut key, at, input.telling(), 8);
            }
            4 => {
                let len = usize::from(input.byte());
                value = input.take(len);
            }
            5 => {
                let old = record::load::<State>(&self.store, &keys::state()).ok().flatten();
                let mut state = old.unwrap_or_default();
                let field = [
                    &mut state.applied.0,
                    &mut state.next_ino,
                    &mut state.next_task,
                    &mut state.inodes,
                    &mut state.bytes,
                    &mut state.orphans,
                    &mut state.sessions,
                ];
                let n = usize::from(input.byte()) % field.len();
                *field.into_iter().nth(n).expect("within") = input.telling();
                (key, value) = (keys::state(), record::encode(&state).expect("small"));
            }
            _ => {
                let ino = ino(input);
                key = keys::inode(ino);
                let Ok(Some(mut inode)) = record::load::<Inode>(&self.store, &key) else { return };
                damage_inode(&mut inode, input);
                value = record::encode(&inode).expect("small");
            }
        }
        self.write(key, Some(value));
    }

    fn write(&self, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.store.commit([(key, value)].into_iter().collect()).expect("memory takes it");
    }
}

fn damage_inode(inode: &mut Inode, input: &mut Input<'_>) {
    let kinds = [FileKind::File, FileKind::Dir, FileKind::Symlink, FileKind::Fifo];
    let (field, value) = (input.byte() % 16, input.telling());
    match field {
        0 => inode.attr.ino = Ino(value),
        1 => inode.attr.kind = kinds[value as usize % kinds.len()],
        2 => inode.attr.perm = value as u16,
        3 => inode.attr.nlink = value as u32,
        4 => inode.attr.size = value,
        5 => inode.attr.allocated = value,
        6 => inode.attr.generation = value as u32,
        7 => inode.attr.chunk_bits = value as u8,
        8 => inode.attr.inline = !inode.attr.inline,
        9 => inode.attr.has_xattrs = !inode.attr.has_xattrs,
        10 => inode.attr.parent = Ino(value),
        11 => inode.attr.mtime.nanos = value as u32,
        12 => inode.next_cookie = value,
        13 => inode.entries = value,
        14 => inode.xattr_names = value as u32,
        _ => inode.xattr_bytes = value as u32,
    }
}

fn ino(input: &mut Input<'_>) -> Ino {
    let small = input.byte();
    if small == u8::MAX { Ino(input.telling()) } else { Ino(1 + u64::from(small % 12)) }
}

fn name(input: &mut Input<'_>) -> Name {
    let pick = input.byte();
    let odd = (pick == u8::MAX).then(|| input.byte()).and_then(|len| {
        let bytes = input.take(usize::from(len));
        Name::new(bytes).ok()
    });
    let plain = || Name::new(NAMES[usize::from(pick) % NAMES.len()]).expect("a name");
    odd.unwrap_or_else(plain)
}

fn xattr_name(input: &mut Input<'_>) -> Vec<u8> {
    match input.byte() % 6 {
        0 => acl::ACCESS.to_vec(),
        1 => acl::DEFAULT.to_vec(),
        2 => b"user.a".to_vec(),
        3 => b"trusted.b".to_vec(),
        4 => b"user.".iter().copied().chain(input.take(5)).collect(),
        _ => input.take(9),
    }
}

/// A list of access rights, often a valid one.
fn list(input: &mut Input<'_>) -> Vec<u8> {
    let mut out = 2u32.to_le_bytes().to_vec();
    for tag in [1u16, 2, 4, 8, 16, 32] {
        if matches!(tag, 1 | 4 | 32) || input.byte() & 1 != 0 {
            out.extend(tag.to_le_bytes());
            out.extend(u16::from(input.byte() % 9).to_le_bytes());
            out.extend(u32::from(input.byte()).to_le_bytes());
        }
    }
    out
}

fn time(input: &mut Input<'_>) -> Timestamp {
    Timestamp { secs: input.telling() as i64, nanos: u32::from(input.byte()) << 22 }
}

fn command(input: &mut Input<'_>, world: &World) -> Command {
    let kind = input.byte();
    if kind == u8::MAX {
        let len = usize::from(input.byte());
        if let Ok(command) = codec::decode::<Command>(&input.take(len)) {
            return command;
        }
    }
    let time = time(input);
    let id = SessionId(1 + u64::from(kind >> 5 & 3));
    let action = match kind % 32 {
        0 => Action::OpenSession { id, description: "another".into(), owner: "b".into() },
        1 => Action::ExpireSession { id },
        2 => Action::Reap { id },
        3 => Action::TrimDone { id: input.telling(), freed: input.telling() },
        4 => Action::ChunksDeleted { ids: vec![input.telling(), input.telling()] },
        5 => Action::SkipNumbers { inodes: u32::from(input.byte()) },
        8 => Action::LeaveOut { below: ino(input) },
        7 => {
            let (gone, tail) = (ino(input), ino(input));
            Action::Sweep { gone: vec![(gone, u32::from(input.byte()))], tails: vec![tail] }
        }
        6 => Action::Mutate {
            session: id,
            seq: OpSeq(input.telling()),
            answered: OpSeq(input.telling()),
            op: op(input),
        },
        _ => {
            let answered = world.seq.saturating_sub(u64::from(input.byte() % 4));
            Action::Mutate {
                session: SessionId(1),
                seq: OpSeq(world.seq.saturating_add(1)),
                answered: OpSeq(answered),
                op: op(input),
            }
        }
    };
    Command { time, action }
}

fn op(input: &mut Input<'_>) -> Op {
    let kind = input.byte();
    let (ino, parent) = (ino(input), ino(input));
    match kind % 20 {
        0..6 => {
            let (name, perm) = (name(input), u16::from(input.byte()) << 6);
            let new = match kind / 20 % 6 {
                0 => NewInode::Symlink(input.take(3)),
                1 => NewInode::Special(FileKind::Char, 1),
                2 | 3 => NewInode::File,
                _ => NewInode::Dir,
            };
            Op::Create { parent, name, new, perm, umask: 0o022, uid: 0, gid: 0 }
        }
        6 => Op::Link { ino, parent, name: name(input) },
        7 | 8 => Op::Unlink { parent, name: name(input) },
        9 => Op::Rmdir { parent, name: name(input) },
        10..13 => {
            let modes = [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange];
            let mode = modes[usize::from(kind / 20) % 3];
            let (name, new_name) = (name(input), name(input));
            Op::Rename { parent, name, new_parent: ino, new_name, mode }
        }
        13 => {
            let which = input.byte();
            let some = |bit: u8| which & bit != 0;
            let set = SetAttr {
                perm: some(1).then(|| input.number::<2>() as u16),
                uid: some(2).then(|| input.number::<1>() as u32),
                gid: some(4).then(|| input.number::<1>() as u32),
                size: some(8).then(|| input.telling()),
                atime: some(16).then_some(SetTime::Now),
                mtime: some(32).then(|| SetTime::To(time(input))),
            };
            Op::SetAttr { ino, set }
        }
        14 => {
            let modes = [XattrMode::Set, XattrMode::Create, XattrMode::Replace];
            let mode = modes[usize::from(kind / 20) % 3];
            let name = xattr_name(input);
            let value = if name.starts_with(b"system.") && kind < 200 {
                list(input)
            } else {
                input.take(20)
            };
            Op::SetXattr { ino, name, value, mode }
        }
        15 => Op::RemoveXattr { ino, name: xattr_name(input) },
        16 => {
            let (len, generation) = (usize::from(input.byte()), u32::from(input.byte() % 3));
            let (data, size) = (vec![kind; len], input.telling());
            Op::WriteInline { ino, generation, data, size, mtime: time(input) }
        }
        17 => {
            let (generation, end) = (u32::from(input.byte() % 3), input.telling());
            let allocated = input.telling() as i64;
            Op::WroteChunks { ino, generation, end, allocated, mtime: time(input) }
        }
        18 => Op::Accessed { times: vec![(ino, time(input)), (parent, time(input))] },
        _ if kind == 239 => Op::EndSession,
        _ if kind & 64 != 0 => Op::CutTail { ino },
        _ => Op::Forget { inos: vec![ino, parent] },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzzing::try_inputs;
    use crate::meta::record::Window;

    #[test]
    fn whatever_clients_ask_for_leaves_a_store_that_agrees_with_itself() {
        try_inputs(2000, 700, super::commands);
    }

    #[test]
    fn damaged_values_are_answered_with_errors() {
        try_inputs(2000, 500, super::damaged_store);
    }

    /// Both made the server count beyond what a number holds.
    #[test]
    fn counters_that_are_full_count_no_further() {
        let settings = Settings { max_inodes: u64::MAX, ..Settings::default() };
        let mut world = World::with(settings);
        let full = State {
            inodes: u64::MAX - 1,
            sessions: u64::MAX,
            orphans: u64::MAX,
            ..record::load(&world.store, &keys::state()).unwrap().unwrap()
        };
        world.write(keys::state(), Some(record::encode(&full).unwrap()));
        let key = keys::inode(Ino::ROOT);
        let mut root: Inode = record::load(&world.store, &key).unwrap().unwrap();
        root.entries = u64::MAX;
        world.write(key, Some(record::encode(&root).unwrap()));
        let name = || Name::new("a").unwrap();
        let new = NewInode::File;
        let create =
            Op::Create { parent: Ino::ROOT, name: name(), new, perm: 0, umask: 0, uid: 0, gid: 0 };
        let unlink = Op::Unlink { parent: Ino::ROOT, name: name() };
        let (description, owner) = (String::new(), String::new());
        let open = Action::OpenSession { id: SessionId(2), description, owner };
        let change = |seq, op| Action::Mutate {
            session: SessionId(1),
            seq: OpSeq(seq),
            answered: OpSeq(0),
            op,
        };
        for action in [open, change(1, create), change(2, unlink)] {
            world.run(Command { time: Timestamp::default(), action }).unwrap();
        }
    }

    #[test]
    fn answers_dropped_before_they_arrived_are_damage() {
        let mut world = World::with(Settings::default());
        let window = Window { dropped: OpSeq(9), ..Window::default() };
        world.write(keys::window(SessionId(1)), Some(record::encode(&window).unwrap()));
        let (session, seq, answered) = (SessionId(1), OpSeq(10), OpSeq(0));
        let action = Action::Mutate { session, seq, answered, op: Op::Forget { inos: vec![] } };
        let outcome = world.run(Command { time: Timestamp::default(), action });
        assert!(matches!(outcome, Err(StoreError::Damaged { .. })), "{outcome:?}");
    }
}
