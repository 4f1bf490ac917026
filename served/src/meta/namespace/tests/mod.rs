//! The rules of the namespace, each as a program would meet it.

mod attrs;
mod classes;
mod data;
mod formats;
pub(crate) mod model;
mod names;
mod orphans;
mod rename;
mod replays;
mod retries;
mod sweep;
mod xattrs;

use netfs_common::attr::{Attr, FileKind, SetAttr, Timestamp};
use netfs_common::errno::Errno;
use netfs_common::id::{Ino, LogIndex, OpSeq, SessionId};
use netfs_common::name::Name;
use netfs_common::wire::meta::{DirEntry, NewInode, Op, RenameMode, Reply, Response, XattrMode};

use super::Fault;
use crate::meta::command::{Action, Command, Settings};
use crate::meta::engine::check_store;
use crate::meta::kv::{MemoryStore, Pair, Read, Store, StoreError, Txn};
use crate::meta::record::State;

pub(crate) const ROOT: Ino = Ino::ROOT;

/// A volume in memory with one session, and a clock that moves by a second per command.
pub(crate) struct World {
    pub(crate) store: MemoryStore,
    pub(crate) index: u64,
    pub(crate) session: SessionId,
    pub(crate) seq: u64,
}

pub(crate) fn at(secs: i64) -> Timestamp {
    Timestamp { secs, nanos: 5 }
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

impl World {
    pub(crate) fn new() -> World {
        World::with(Settings { inline_limit: 100, ..Settings::default() })
    }

    pub(crate) fn with(settings: Settings) -> World {
        let store = MemoryStore::new();
        let mut world = World { store, index: 0, session: SessionId(1), seq: 0 };
        world.run(Action::CreateVolume { id: 7, settings }).unwrap();
        world.open(1);
        world
    }

    pub(crate) fn open(&mut self, id: u64) {
        let action = Action::OpenSession {
            id: SessionId(id),
            description: "test".into(),
            owner: String::new(),
        };
        self.run(action).unwrap();
    }

    pub(crate) fn run(&mut self, action: Action) -> Reply {
        self.index += 1;
        let command = Command { time: at(1000 + self.index as i64), action };
        let mut txn = Txn::new(&self.store);
        let reply = super::apply(&mut txn, LogIndex(self.index), command).unwrap();
        self.store.commit(txn.into_batch()).unwrap();
        reply
    }

    /// The time of the last command.
    pub(crate) fn now(&self) -> Timestamp {
        at(1000 + self.index as i64)
    }

    pub(crate) fn op(&mut self, op: Op) -> Reply {
        self.seq += 1;
        let (seq, answered) = (OpSeq(self.seq), OpSeq(self.seq - 1));
        self.run(Action::Mutate { session: self.session, seq, answered, op })
    }

    /// As another session.
    pub(crate) fn op_as(&mut self, session: u64, seq: u64, op: Op) -> Reply {
        let (seq, answered) = (OpSeq(seq), OpSeq(seq - 1));
        self.run(Action::Mutate { session: SessionId(session), seq, answered, op })
    }

    pub(crate) fn create(&mut self, parent: Ino, text: &str, new: NewInode) -> Result<Ino, Errno> {
        let (perm, umask) = if new == NewInode::Dir { (0o777, 0o022) } else { (0o666, 0o022) };
        let name = name(text);
        self.op(Op::Create { parent, name, new, perm, umask, uid: 10, gid: 20 }).map(target)
    }

    pub(crate) fn file(&mut self, parent: Ino, text: &str) -> Ino {
        self.create(parent, text, NewInode::File).unwrap()
    }

    pub(crate) fn dir(&mut self, parent: Ino, text: &str) -> Ino {
        self.create(parent, text, NewInode::Dir).unwrap()
    }

    pub(crate) fn unlink(&mut self, parent: Ino, text: &str) -> Reply {
        self.op(Op::Unlink { parent, name: name(text) })
    }

    pub(crate) fn rmdir(&mut self, parent: Ino, text: &str) -> Reply {
        self.op(Op::Rmdir { parent, name: name(text) })
    }

    pub(crate) fn link(&mut self, ino: Ino, parent: Ino, text: &str) -> Reply {
        self.op(Op::Link { ino, parent, name: name(text) })
    }

    pub(crate) fn rename(&mut self, from: (Ino, &str), to: (Ino, &str), mode: RenameMode) -> Reply {
        self.op(Op::Rename {
            parent: from.0,
            name: name(from.1),
            new_parent: to.0,
            new_name: name(to.1),
            mode,
        })
    }

    pub(crate) fn set(&mut self, ino: Ino, set: SetAttr) -> Reply {
        self.op(Op::SetAttr { ino, set })
    }

    pub(crate) fn cut(&mut self, ino: Ino, size: u64) -> Reply {
        self.set(ino, SetAttr { size: Some(size), ..SetAttr::default() })
    }

    pub(crate) fn set_xattr(&mut self, ino: Ino, name: &[u8], value: &[u8]) -> Reply {
        let (name, value) = (name.to_vec(), value.to_vec());
        self.op(Op::SetXattr { ino, name, value, mode: XattrMode::Set })
    }

    pub(crate) fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, Errno> {
        match read(super::get_xattr(&self.store, ino, name))? {
            Response::Bytes(bytes) => Ok(bytes),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn attr(&self, ino: Ino) -> Attr {
        self.entry(ino).unwrap().0
    }

    pub(crate) fn entry(&self, ino: Ino) -> Result<(Attr, Option<Vec<u8>>), Errno> {
        match read(super::get(&self.store, ino))? {
            Response::Entry { attr, inline } => Ok((attr, inline)),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn lookup(&self, parent: Ino, text: &str) -> Result<Ino, Errno> {
        match read(super::lookup(&self.store, parent, &name(text)))? {
            Response::Entry { attr, .. } => Ok(attr.ino),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn list(&self, ino: Ino, after: u64, limit: u32) -> (Vec<DirEntry>, bool) {
        match read(super::read_dir(&self.store, ino, after, limit, false)).unwrap() {
            Response::Listing { entries, end, .. } => (entries, end),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn names(&self, ino: Ino) -> Vec<String> {
        let entries = self.list(ino, 0, 4096).0;
        entries.iter().map(|e| String::from_utf8_lossy(e.name.as_bytes()).into()).collect()
    }

    pub(crate) fn state(&self) -> State {
        super::state(&self.store).unwrap().unwrap()
    }

    pub(crate) fn dump(&self) -> Vec<Pair> {
        self.store.range(&[0], &[0xff], usize::MAX).unwrap()
    }

    pub(crate) fn check(&self) {
        let report = check_store(&self.store).unwrap();
        assert_eq!(report.faults, Vec::<String>::new());
    }
}

pub(crate) fn read(outcome: Result<Response, Fault>) -> Reply {
    outcome.map_err(|fault| match fault {
        Fault::Refused(errno) => errno,
        Fault::Store(error) => panic!("{error}"),
    })
}

pub(crate) fn target(response: Response) -> Ino {
    match response {
        Response::Changed { target: Some(ino), .. } => ino,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn attrs(reply: Reply) -> Vec<Attr> {
    match reply.unwrap() {
        Response::Changed { attrs, .. } => attrs,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn errno(reply: Reply) -> Errno {
    reply.unwrap_err()
}
