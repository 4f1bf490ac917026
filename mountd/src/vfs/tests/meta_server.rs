//! A metadata server in memory: one volume, changes applied exactly once.

use std::collections::{BTreeMap, HashMap, HashSet};

use netfs_common::attr::{Attr, FileKind, SetTime, Timestamp};
use netfs_common::class::{self, Class};
use netfs_common::errno::Errno;
use netfs_common::id::{Ino, LogIndex, OpSeq, SessionId};
use netfs_common::name::Name;
use netfs_common::wire::hello::Lost;
use netfs_common::wire::meta::{
    DirEntry, Mutation, NewInode, Op, RenameMode, Replayed, Reply, Request, Response, StatFs,
};
use netfs_served::meta::locks::{LockLimits, Locks};

use super::data_server::DataStore;
use super::leasing::Leasing;

#[derive(Clone, Debug)]
pub(super) struct Inode {
    pub(super) attr: Attr,
    pub(super) inline: Vec<u8>,
    target: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    entries: BTreeMap<u64, (Name, Ino)>,
}

type Sessions = HashMap<SessionId, HashMap<OpSeq, Reply>>;

#[derive(Debug)]
pub(super) struct MetaStore {
    pub(super) inodes: HashMap<Ino, Inode>,
    pub(super) sessions: Sessions,
    pub(super) leasing: Leasing,
    /// Inodes without a name, and the sessions that may have them open.
    held: HashMap<Ino, HashSet<SessionId>>,
    pub(super) forgotten: Vec<Ino>,
    pub(super) free: u64,
    /// What did not survive a restart.
    pub(super) lost: Vec<Lost>,
    pub(super) locks: Locks,
    /// Makes again what clients say was lost.
    pub(super) replays: bool,
    pub(super) durable: (u64, HashMap<Ino, Inode>, Sessions),
    next: u64,
    pub(super) version: u64,
    cookie: u64,
    chunk_bits: u8,
}

impl MetaStore {
    pub(super) fn new(chunk_bits: u8) -> MetaStore {
        let mut store = MetaStore {
            inodes: HashMap::new(),
            sessions: HashMap::new(),
            leasing: Leasing::new(&[], 0),
            held: HashMap::new(),
            forgotten: Vec::new(),
            free: 1 << 40,
            lost: Vec::new(),
            locks: Locks::new(LockLimits::default()),
            replays: false,
            durable: (0, HashMap::new(), HashMap::new()),
            next: 1,
            version: 1,
            cookie: 2,
            chunk_bits,
        };
        store.make(FileKind::Dir, 0o755, Timestamp { secs: 1, nanos: 0 });
        store.sync();
        store
    }

    /// The power fails: what was not synced is lost, and its versions are not given out again.
    pub(super) fn crash(&mut self) {
        self.inodes = self.durable.1.clone();
        self.sessions = self.durable.2.clone();
        // As after every start, the first change is made durable at once.
        let (after, before) = (LogIndex(self.durable.0), LogIndex(self.version + 1000));
        self.lost.push(Lost { after, before });
        self.begin_again();
        self.sync();
    }

    /// The process is killed: nothing is lost but what was only in its memory.
    pub(super) fn kill(&mut self) {
        self.begin_again();
    }

    fn begin_again(&mut self) {
        self.version += 1000;
        self.locks = Locks::new(LockLimits::default());
        self.locks.begin_grace(self.sessions.keys().copied());
        let known: Vec<_> = self.sessions.keys().copied().collect();
        self.leasing = Leasing::new(&known, self.leasing.life + 1);
    }

    pub(super) fn greet(&mut self, session: SessionId) -> bool {
        let known = self.sessions.contains_key(&session);
        self.sessions.entry(session).or_default();
        if !known {
            self.sync();
        }
        known
    }

    /// A session is over, with everything it held.
    pub(super) fn end(&mut self, session: SessionId) {
        self.sessions.remove(&session);
        self.leave_all(session);
    }

    fn leave_all(&mut self, session: SessionId) {
        self.leasing.end(session);
        for ino in self.held.keys().copied().collect::<Vec<_>>() {
            self.let_go(session, ino);
        }
    }

    /// A session does not have an inode open.
    fn let_go(&mut self, session: SessionId, ino: Ino) {
        let Some(holders) = self.held.get_mut(&ino) else { return };
        holders.remove(&session);
        if holders.is_empty() {
            self.held.remove(&ino);
            self.inodes.remove(&ino);
        }
    }

    fn make(&mut self, kind: FileKind, perm: u16, time: Timestamp) -> Ino {
        let ino = Ino(self.next);
        self.next += 1;
        let attr = Attr {
            ino,
            kind,
            perm,
            nlink: if kind == FileKind::Dir { 2 } else { 1 },
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            allocated: 0,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
            generation: 1,
            chunk_bits: self.chunk_bits,
            inline: kind == FileKind::File,
            has_xattrs: false,
            parent: if kind == FileKind::Dir { Ino::ROOT } else { Ino(0) },
            version: self.version,
        };
        let inode = Inode {
            attr,
            inline: Vec::new(),
            target: Vec::new(),
            xattrs: BTreeMap::new(),
            entries: BTreeMap::new(),
        };
        self.inodes.insert(ino, inode);
        ino
    }

    fn get(&self, ino: Ino) -> Result<&Inode, Errno> {
        self.inodes.get(&ino).ok_or(Errno::ESTALE)
    }

    fn edit(&mut self, ino: Ino, time: Timestamp) -> Result<&mut Inode, Errno> {
        let version = self.version;
        let inode = self.inodes.get_mut(&ino).ok_or(Errno::ESTALE)?;
        inode.attr.version = version;
        inode.attr.ctime = inode.attr.ctime.max(time);
        Ok(inode)
    }

    fn find(&self, parent: Ino, name: &Name) -> Result<(u64, Ino), Errno> {
        let dir = self.get(parent)?;
        if dir.attr.kind != FileKind::Dir {
            return Err(Errno::ENOTDIR);
        }
        let found = dir.entries.iter().find(|(_, (n, _))| n == name);
        found.map(|(c, (_, i))| (*c, *i)).ok_or(Errno::ENOENT)
    }

    fn enter(&mut self, parent: Ino, name: &Name, ino: Ino, time: Timestamp) -> Result<(), Errno> {
        self.cookie += 1;
        let cookie = self.cookie;
        let dir = self.edit(parent, time)?;
        dir.attr.mtime = time;
        dir.entries.insert(cookie, (name.clone(), ino));
        Ok(())
    }

    fn leave(&mut self, parent: Ino, cookie: u64, time: Timestamp) -> Result<(), Errno> {
        let dir = self.edit(parent, time)?;
        dir.attr.mtime = time;
        dir.entries.remove(&cookie);
        Ok(())
    }

    fn unname(&mut self, ino: Ino, time: Timestamp) -> Result<(), Errno> {
        let inode = self.edit(ino, time)?;
        let last = inode.attr.kind == FileKind::Dir;
        inode.attr.nlink = if last { 0 } else { inode.attr.nlink - 1 };
        if inode.attr.nlink == 0 {
            self.held.insert(ino, self.sessions.keys().copied().collect());
        }
        Ok(())
    }

    /// The inode that a name leads to.
    pub(super) fn child(&self, parent: Ino, name: &Name) -> Result<Option<Ino>, Errno> {
        match self.find(parent, name) {
            Ok((_, ino)) => Ok(Some(ino)),
            Err(Errno::ENOENT | Errno::ESTALE | Errno::ENOTDIR) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Answers a question.
    pub(super) fn read(&self, request: &Request) -> Reply {
        match request {
            Request::Lookup { parent, name } => {
                let (_, ino) = self.find(*parent, name)?;
                self.read(&Request::Get { ino })
            }
            Request::Get { ino } | Request::Acquire { ino } => {
                let inode = self.get(*ino)?;
                let inline = inode.attr.inline.then(|| inode.inline.clone());
                Ok(Response::Entry { attr: inode.attr.clone(), inline })
            }
            Request::ReadLink { ino } => Ok(Response::Bytes(self.get(*ino)?.target.clone())),
            Request::ReadDir { ino, after, limit, plus } => {
                let dir = self.get(*ino)?;
                let mut all = dir.entries.range(after + 1..);
                let entries: Vec<DirEntry> = all
                    .by_ref()
                    .take(*limit as usize)
                    .map(|(cookie, (name, ino))| {
                        let attr = self.inodes[ino].attr.clone();
                        DirEntry {
                            cookie: *cookie,
                            name: name.clone(),
                            ino: *ino,
                            kind: attr.kind,
                            attr: plus.then_some(attr),
                        }
                    })
                    .collect();
                let end = all.next().is_none();
                Ok(Response::Listing { entries, end, parent: dir.attr.parent })
            }
            Request::ListXattrs { ino } => {
                Ok(Response::Xattrs(self.get(*ino)?.xattrs.keys().cloned().collect()))
            }
            Request::GetXattr { ino, name } => {
                let value = self.get(*ino)?.xattrs.get(name).cloned();
                value.map(Response::Bytes).ok_or(Errno::ENODATA)
            }
            Request::StatFs => Ok(Response::StatFs(StatFs {
                bytes: 1 << 41,
                bytes_free: self.free,
                inodes: 1 << 20,
                inodes_free: 1 << 19,
            })),
            Request::Renew => Ok(Response::Done),
            _ => Err(Errno::EPERM),
        }
    }

    pub(super) fn sync(&mut self) {
        self.durable = (self.version, self.inodes.clone(), self.sessions.clone());
    }

    /// Applies a change, once however often it comes.
    pub(super) fn mutate(
        &mut self,
        session: SessionId,
        m: Mutation,
        data: &mut DataStore,
    ) -> Reply {
        let (answered, seq, sync) = (m.answered, m.seq, m.sync);
        let ends = matches!(m.op, Op::EndSession);
        let done = self.sessions.get_mut(&session).unwrap();
        done.retain(|s, _| *s > answered);
        assert!(seq > answered, "an answered change was sent again");
        if let Some(reply) = done.get(&seq) {
            return reply.clone();
        }
        self.version += 1;
        let reply = self.apply(session, m, data);
        if ends {
            self.leave_all(session);
        }
        if let Some(done) = self.sessions.get_mut(&session) {
            done.insert(seq, reply.clone());
        }
        if sync {
            self.sync();
        }
        reply
    }

    /// Returns what cannot be made again.
    pub(super) fn replay(
        &mut self,
        session: SessionId,
        changes: &[Replayed],
        data: &mut DataStore,
    ) -> Vec<LogIndex> {
        if !self.replays {
            return changes.iter().map(|change| change.at).collect();
        }
        let next = self.next;
        for Replayed { seq, time, target, op, .. } in changes.iter().cloned() {
            if let (Op::Create { .. }, Some((ino, _))) = (&op, target) {
                self.next = ino.0;
            }
            self.version += 1;
            let m = Mutation { seq, answered: OpSeq(0), time, sync: false, op };
            let reply = self.apply(session, m, data);
            self.sessions.get_mut(&session).unwrap().insert(seq, reply.clone());
            reply.unwrap();
        }
        self.next = self.next.max(next);
        self.sync();
        Vec::new()
    }

    fn apply(&mut self, session: SessionId, m: Mutation, data: &mut DataStore) -> Reply {
        let time = m.time;
        let mut touched = Vec::new();
        let mut target = None;
        match m.op {
            Op::Create { parent, name, new, perm, umask, .. } => {
                match self.find(parent, &name) {
                    Ok(_) => return Err(Errno::EEXIST),
                    Err(Errno::ENOENT) => {}
                    Err(e) => return Err(e),
                }
                let kind = match &new {
                    NewInode::File => FileKind::File,
                    NewInode::Dir => FileKind::Dir,
                    NewInode::Symlink(_) => FileKind::Symlink,
                    NewInode::Special(kind, _) => *kind,
                };
                let class = Class::of(self.get(parent)?.attr.generation).first_generation();
                let ino = self.make(kind, perm & !umask, time);
                self.edit(ino, time)?.attr.generation |= class;
                if let NewInode::Symlink(to) = new {
                    self.edit(ino, time)?.target = to;
                }
                if kind == FileKind::Dir {
                    self.edit(ino, time)?.attr.parent = parent;
                }
                self.enter(parent, &name, ino, time)?;
                target = Some(ino);
                touched.extend([ino, parent]);
            }
            Op::Link { ino, parent, name } => {
                if self.find(parent, &name).is_ok() {
                    return Err(Errno::EEXIST);
                }
                self.edit(ino, time)?.attr.nlink += 1;
                self.held.remove(&ino);
                self.enter(parent, &name, ino, time)?;
                target = Some(ino);
                touched.extend([ino, parent]);
            }
            Op::Unlink { parent, name } | Op::Rmdir { parent, name } => {
                let (cookie, ino) = self.find(parent, &name)?;
                if !self.get(ino)?.entries.is_empty() {
                    return Err(Errno::ENOTEMPTY);
                }
                self.leave(parent, cookie, time)?;
                self.unname(ino, time)?;
                target = Some(ino);
                touched.extend([ino, parent]);
            }
            Op::Rename { parent, name, new_parent, new_name, mode } => {
                let (cookie, ino) = self.find(parent, &name)?;
                target = Some(ino);
                touched.extend([ino, parent, new_parent]);
                let there = self.find(new_parent, &new_name).ok();
                match (mode, there) {
                    (RenameMode::Whiteout { .. }, _) => return Err(Errno::EINVAL),
                    (RenameMode::NoReplace, Some(_)) => return Err(Errno::EEXIST),
                    (RenameMode::Exchange, None) => return Err(Errno::ENOENT),
                    (RenameMode::Exchange, Some((other_cookie, other))) => {
                        self.leave(parent, cookie, time)?;
                        self.leave(new_parent, other_cookie, time)?;
                        self.enter(parent, &name, other, time)?;
                        touched.push(other);
                    }
                    (_, Some((_, other))) if other == ino => {
                        let attrs = touched.iter().map(|i| self.inodes[i].attr.clone());
                        return Ok(Response::Changed { target, attrs: attrs.collect() });
                    }
                    (_, there) => {
                        self.leave(parent, cookie, time)?;
                        if let Some((other_cookie, other)) = there {
                            self.leave(new_parent, other_cookie, time)?;
                            self.unname(other, time)?;
                            touched.push(other);
                        }
                    }
                }
                self.enter(new_parent, &new_name, ino, time)?;
                self.edit(ino, time)?;
            }
            Op::SetAttr { ino, set } => {
                let inode = self.edit(ino, time)?;
                let at = |t: SetTime| match t {
                    SetTime::Now => time,
                    SetTime::To(t) => t,
                };
                if let Some(size) = set.size {
                    inode.inline.truncate(size as usize);
                    // Of an inline file no chunk is looked at.
                    let chunks = !inode.attr.inline;
                    if size == 0 && chunks {
                        (inode.attr.inline, inode.attr.allocated) = (true, 0);
                        inode.attr.generation += 1;
                    }
                    if size > 0 && chunks {
                        let freed = data.cut(ino, size, inode.attr.chunk_size());
                        // A repeated write says that it added nothing: the sum may be too low.
                        inode.attr.allocated = inode.attr.allocated.saturating_sub(freed as u64);
                    }
                    inode.attr.size = size;
                    inode.attr.mtime = time;
                }
                inode.attr.perm = set.perm.unwrap_or(inode.attr.perm);
                inode.attr.uid = set.uid.unwrap_or(inode.attr.uid);
                inode.attr.mtime = set.mtime.map_or(inode.attr.mtime, at);
                inode.attr.atime = set.atime.map_or(inode.attr.atime, at);
                target = Some(ino);
                touched.push(ino);
            }
            Op::SetXattr { ino, name, value, .. } if name == class::XATTR => {
                let class = Class::parse(&value).ok_or(Errno::EINVAL)?;
                self.edit(ino, time)?.attr.generation = class.first_generation();
                touched.push(ino);
            }
            Op::RemoveXattr { ino, name } if name == class::XATTR => {
                self.edit(ino, time)?.attr.generation = 0;
                touched.push(ino);
            }
            Op::SetXattr { ino, name, value, .. } => {
                let inode = self.edit(ino, time)?;
                inode.xattrs.insert(name, value);
                inode.attr.has_xattrs = true;
                touched.push(ino);
            }
            Op::RemoveXattr { ino, name } => {
                let inode = self.edit(ino, time)?;
                inode.xattrs.remove(&name).ok_or(Errno::ENODATA)?;
                inode.attr.has_xattrs = !inode.xattrs.is_empty();
                touched.push(ino);
            }
            Op::WriteInline { ino, generation, data, size, mtime } => {
                let inode = self.edit(ino, time)?;
                if !inode.attr.inline || inode.attr.generation != generation {
                    return Err(Errno::ESTALE);
                }
                assert!(size >= data.len() as u64 && data.len() <= 4096);
                (inode.inline, inode.attr.size, inode.attr.mtime) = (data, size, mtime);
                touched.push(ino);
            }
            Op::WroteChunks { ino, generation, end, allocated, mtime } => {
                let inode = self.edit(ino, time)?;
                if inode.attr.generation != generation {
                    return Err(Errno::ESTALE);
                }
                (inode.attr.inline, inode.inline) = (false, Vec::new());
                inode.attr.size = inode.attr.size.max(end);
                inode.attr.allocated = inode.attr.allocated.saturating_add_signed(allocated);
                inode.attr.mtime = mtime;
                touched.push(ino);
            }
            Op::Accessed { times } => {
                for (ino, t) in times {
                    let version = self.version;
                    if let Some(inode) = self.inodes.get_mut(&ino) {
                        inode.attr.atime = inode.attr.atime.max(t);
                        inode.attr.version = version;
                        touched.push(ino);
                    }
                }
            }
            Op::Forget { inos } => {
                inos.iter().for_each(|ino| self.let_go(session, *ino));
                self.forgotten.extend(inos);
            }
            Op::EndSession => {}
            Op::CutTail { ino } => {
                let inode = self.edit(ino, time)?;
                if inode.attr.inline {
                    inode.attr.generation += 1;
                } else {
                    data.cut(ino, inode.attr.size, inode.attr.chunk_size());
                }
                touched.push(ino);
            }
        }
        let attrs = touched.iter().map(|i| self.inodes[i].attr.clone()).collect();
        Ok(Response::Changed { target, attrs })
    }
}
