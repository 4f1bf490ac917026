//! Verification: does all that is stored agree with itself?

use std::collections::HashMap;
use std::path::Path;

use bytes::Bytes;
use netfs_common::attr::FileKind;
use netfs_common::class;
use netfs_common::id::{Ino, OpSeq, SessionId};

use super::{Engine, EngineConfig, EngineError, RecoveryReport};
use crate::meta::acl::{self, Acl};
use crate::meta::keys;
use crate::meta::kv::{Read, StoreError};
use crate::meta::record::{
    self, Answer, Deletion, Entry, FIRST_COOKIE, Inode, Listed, LostPositions, Session, State,
    Trim, Volume, Window,
};

/// How many faults are listed; more are only counted.
const MAX_LISTED: usize = 1000;
/// Pairs that are read at once.
const PAGE: usize = 4096;

/// What a verification has found.
#[derive(Clone, Debug, Default)]
pub struct CheckReport {
    /// What opening has found and done.
    pub recovery: RecoveryReport,
    /// Inodes.
    pub inodes: u64,
    /// Names.
    pub entries: u64,
    /// Faults, one line each; not more than a thousand of them.
    pub faults: Vec<String>,
    /// How many faults there are.
    pub fault_count: u64,
}

/// Opens the volume in a folder, which brings store and log together, and verifies it. Memory
/// grows with the number of inodes, by about 100 bytes each.
///
/// # Errors
/// When it cannot be opened or read: in use, damaged log, failing disk.
pub fn check(path: &Path, config: EngineConfig) -> Result<CheckReport, EngineError> {
    let (engine, recovery) = Engine::open(path, EngineConfig { new_volume: None, ..config })?;
    Ok(CheckReport { recovery, ..check_store(&*engine.store)? })
}

/// Verifies a store that nobody changes meanwhile.
///
/// # Errors
/// When it cannot be read; values that make no sense are faults.
pub fn check_store(store: &dyn Read) -> Result<CheckReport, StoreError> {
    let mut check = Check { store, nodes: HashMap::new(), report: CheckReport::default() };
    let Some((volume, state)) = check.head()? else { return Ok(check.report) };
    check.inodes(&state)?;
    check.contents(&volume)?;
    check.xattrs()?;
    check.entries()?;
    check.links();
    check.tree();
    check.orphans(&state)?;
    check.sessions(&state)?;
    check.tasks(&state)?;
    check.unknown()?;
    Ok(check.report)
}

/// What is known of an inode, and what the rest of the store says of it.
struct Node {
    kind: FileKind,
    nlink: u32,
    parent: Ino,
    entries: u64,
    next_cookie: u64,
    inline: bool,
    size: u64,
    allocated: u64,
    xattrs: (bool, u32, u32),
    names_found: u32,
    subdirs_found: u32,
    entries_found: u64,
    xattrs_found: (u32, u32),
    inline_found: Option<u64>,
}

struct Check<'s> {
    store: &'s dyn Read,
    nodes: HashMap<Ino, Node>,
    report: CheckReport,
}

impl Check<'_> {
    fn fault(&mut self, what: String) {
        self.report.fault_count += 1;
        if self.report.faults.len() < MAX_LISTED {
            self.report.faults.push(what);
        }
    }

    /// Gives every pair of a kind to `each`.
    fn each(
        &mut self,
        kind: u8,
        mut each: impl FnMut(&mut Self, Bytes, Bytes) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut from = vec![kind];
        loop {
            let pairs = self.store.range(&from, &[kind + 1], PAGE)?;
            let more = pairs.len() == PAGE;
            if let Some((last, _)) = pairs.last() {
                from = last.to_vec();
                from.push(0);
            }
            for (key, value) in pairs {
                each(self, key, value)?;
            }
            if !more {
                return Ok(());
            }
        }
    }

    /// Decodes a value; one that makes no sense is a fault.
    fn decode<T: bincode::Decode<()>>(&mut self, key: &[u8], value: &[u8]) -> Option<T> {
        match record::decode(key, value) {
            Ok(value) => Some(value),
            Err(error) => {
                self.fault(error.to_string());
                None
            }
        }
    }

    fn ino_of(&mut self, key: &[u8], len: usize) -> Option<Ino> {
        let ino = keys::field(key, 0).filter(|_| len == 0 || key.len() == len).map(Ino);
        if ino.is_none() {
            self.fault(StoreError::damaged(key, "a key of the wrong length").to_string());
        }
        ino
    }

    fn load<T: bincode::Decode<()>>(&mut self, key: &[u8]) -> Result<Option<T>, StoreError> {
        Ok(self.store.get(key)?.and_then(|value| self.decode(key, &value)))
    }

    fn head(&mut self) -> Result<Option<(Volume, State)>, StoreError> {
        let volume: Option<Volume> = self.load(&keys::volume())?;
        let state: Option<State> = self.load(&keys::state())?;
        let _lost: Option<LostPositions> = self.load(&keys::lost())?;
        let both = volume.zip(state);
        if both.is_none() {
            self.fault("the volume's settings or counters are missing".into());
        }
        Ok(both)
    }

    fn inodes(&mut self, state: &State) -> Result<(), StoreError> {
        let mut bytes = 0u64;
        self.each(keys::INODE, |check, key, value| {
            let Some(ino) = check.ino_of(&key, 9) else { return Ok(()) };
            let Some(inode) = check.decode::<Inode>(&key, &value) else { return Ok(()) };
            let attr = &inode.attr;
            let times = [attr.atime, attr.mtime, attr.ctime, attr.btime];
            if attr.ino != ino || ino.0 >= state.next_ino || attr.version > state.applied.0 {
                check.fault(format!("inode {ino}: number or version is impossible"));
            }
            if attr.perm > 0o7777 || times.iter().any(|t| t.nanos >= 1_000_000_000) {
                check.fault(format!("inode {ino}: permission bits or a time are impossible"));
            }
            bytes = bytes.saturating_add(attr.allocated);
            check.report.inodes += 1;
            let node = Node {
                kind: attr.kind,
                nlink: attr.nlink,
                parent: attr.parent,
                entries: inode.entries,
                next_cookie: inode.next_cookie,
                inline: attr.inline,
                size: attr.size,
                allocated: attr.allocated,
                xattrs: (attr.has_xattrs, inode.xattr_names, inode.xattr_bytes),
                names_found: 0,
                subdirs_found: 0,
                entries_found: 0,
                xattrs_found: (0, 0),
                inline_found: None,
            };
            check.nodes.insert(ino, node);
            Ok(())
        })?;
        if self.report.inodes != state.inodes || bytes != state.bytes {
            self.fault(format!(
                "{} inodes with {bytes} bytes, but the counters say {} and {}",
                self.report.inodes, state.inodes, state.bytes
            ));
        }
        Ok(())
    }

    fn contents(&mut self, volume: &Volume) -> Result<(), StoreError> {
        let limit = u64::from(volume.settings.inline_limit);
        self.each(keys::INLINE, |check, key, value| {
            let Some(ino) = check.ino_of(&key, 9) else { return Ok(()) };
            match check.nodes.get_mut(&ino) {
                Some(node) if node.inline || node.kind == FileKind::Symlink => {
                    node.inline_found = Some(value.len() as u64);
                }
                _ => check.fault(format!("inode {ino}: has no inline data, but some is stored")),
            }
            Ok(())
        })?;
        let mut wrong = Vec::new();
        for (ino, node) in &self.nodes {
            let len = node.inline_found.unwrap_or(0);
            let right = match node.kind {
                FileKind::Symlink => !node.inline && len == node.size && len > 0,
                FileKind::File if node.inline => {
                    len <= limit && len <= node.size && node.allocated == len.next_multiple_of(512)
                }
                FileKind::File => true,
                _ => !node.inline && node.allocated == 0,
            };
            if !right {
                wrong.push(*ino);
            }
        }
        self.each_sorted(wrong, "inline data, length and allocated bytes do not agree");
        Ok(())
    }

    fn each_sorted(&mut self, mut inos: Vec<Ino>, what: &str) {
        inos.sort_unstable();
        inos.into_iter().for_each(|ino| self.fault(format!("inode {ino}: {what}")));
    }

    fn xattrs(&mut self) -> Result<(), StoreError> {
        self.each(keys::XATTR, |check, key, value| {
            let Some(ino) = check.ino_of(&key, 0) else { return Ok(()) };
            let name = keys::name_of(&key).unwrap_or_default();
            let is_list = name == acl::ACCESS || name == acl::DEFAULT;
            if is_list && !Acl::parse(&value).is_ok_and(|list| list.is_some()) {
                check.fault(format!("inode {ino}: an access control list makes no sense"));
            }
            match check.nodes.get_mut(&ino) {
                Some(node) => {
                    node.xattrs_found.0 += name.len() as u32 + 1;
                    node.xattrs_found.1 += (name.len() + value.len()) as u32;
                }
                None => {
                    check.fault(format!("inode {ino}: only an extended attribute of it exists"))
                }
            }
            Ok(())
        })?;
        let wrong = self.nodes.iter().filter(|(_, node)| {
            let (names, bytes) = node.xattrs_found;
            node.xattrs != (names > 0, names, bytes)
        });
        let wrong = wrong.map(|(ino, _)| *ino).collect();
        self.each_sorted(wrong, "extended attributes are not as counted");
        Ok(())
    }

    fn entries(&mut self) -> Result<(), StoreError> {
        self.each(keys::ENTRY, |check, key, value| {
            let Some(dir) = check.ino_of(&key, 0) else { return Ok(()) };
            let name = keys::name_of(&key).unwrap_or_default().to_vec();
            let Some(entry) = check.decode::<Entry>(&key, &value) else { return Ok(()) };
            check.report.entries += 1;
            check.entry(dir, &name, entry)
        })?;
        self.each(keys::LISTING, |check, key, value| {
            let Some(dir) = check.ino_of(&key, 17) else { return Ok(()) };
            let Some(listed) = check.decode::<Listed>(&key, &value) else { return Ok(()) };
            let name = listed.name.as_bytes();
            let entry: Option<Entry> = check.load(&keys::entry(dir, name))?;
            if entry.map(|e| e.cookie) != keys::field(&key, 1) {
                let name = name.escape_ascii();
                check.fault(format!("directory {dir}: lists \"{name}\", which is not an entry"));
            }
            Ok(())
        })
    }

    fn entry(&mut self, dir: Ino, name: &[u8], entry: Entry) -> Result<(), StoreError> {
        let at = format!("directory {dir}, entry \"{}\"", name.escape_ascii());
        let listed: Option<Listed> = self.load(&keys::listing(dir, entry.cookie))?;
        let as_listed =
            |l: Listed| l.name.as_bytes() == name && l.ino == entry.ino && l.kind == entry.kind;
        if !listed.is_some_and(as_listed) {
            self.fault(format!("{at}: not listed as it is"));
        }
        let is_dir = entry.kind == FileKind::Dir;
        match self.nodes.get_mut(&dir) {
            Some(node) if node.kind == FileKind::Dir && node.nlink > 0 => {
                node.entries_found += 1;
                node.subdirs_found += u32::from(is_dir);
                if !(FIRST_COOKIE..node.next_cookie).contains(&entry.cookie) {
                    self.fault(format!("{at}: its place was never given out"));
                }
            }
            _ => self.fault(format!("{at}: there is no such directory")),
        }
        match self.nodes.get_mut(&entry.ino) {
            None => self.fault(format!("{at}: leads to inode {}, which is missing", entry.ino)),
            Some(node) => {
                node.names_found += 1;
                let fits = node.kind == entry.kind && (!is_dir || node.parent == dir);
                if !fits {
                    self.fault(format!("{at}: does not fit inode {}", entry.ino));
                }
            }
        }
        Ok(())
    }

    fn links(&mut self) {
        let mut faults = Vec::new();
        for (ino, node) in &self.nodes {
            let right = match (node.kind, node.nlink) {
                (FileKind::Dir, 0) => node.names_found == 0 && node.entries_found == 0,
                (FileKind::Dir, links) => {
                    let names = u32::from(*ino != Ino::ROOT);
                    node.names_found == names && links == 2 + node.subdirs_found
                }
                (_, links) => links == node.names_found && node.parent == Ino(0),
            };
            if !right || node.entries != node.entries_found {
                faults.push(*ino);
            }
        }
        self.each_sorted(faults, "links or entries are not as counted");
    }

    /// Every directory with a name leads up to the root.
    fn tree(&mut self) {
        if self.nodes.get(&Ino::ROOT).is_none_or(|n| n.kind != FileKind::Dir || n.nlink == 0) {
            return self.fault("there is no root directory".into());
        }
        let mut good = HashMap::from([(Ino::ROOT, true)]);
        let mut lost = Vec::new();
        for (start, node) in &self.nodes {
            if node.kind != FileKind::Dir || node.nlink == 0 {
                continue;
            }
            let (mut at, mut path) = (*start, Vec::new());
            // A directory that is met again before its own way is known is in a circle.
            let up = loop {
                if let Some(known) = good.get(&at) {
                    break *known;
                }
                good.insert(at, false);
                path.push(at);
                match self.nodes.get(&at) {
                    Some(node) if node.kind == FileKind::Dir && node.nlink > 0 => at = node.parent,
                    _ => break false,
                }
            };
            good.extend(path.into_iter().map(|ino| (ino, up)));
            if !up {
                lost.push(*start);
            }
        }
        self.each_sorted(lost, "a directory that cannot be reached");
    }

    fn orphans(&mut self, state: &State) -> Result<(), StoreError> {
        let mut holders: HashMap<Ino, u64> = HashMap::new();
        self.each(keys::HOLD, |check, key, _| {
            let Some(session) = check.ino_of(&key, 17) else { return Ok(()) };
            let ino = Ino(keys::field(&key, 1).unwrap_or(0));
            *holders.entry(ino).or_default() += 1;
            let session = SessionId(session.0);
            if check.store.get(&keys::session(session))?.is_none() {
                check.fault(format!("inode {ino}: held by session {session}, which is gone"));
            }
            Ok(())
        })?;
        let mut count = 0;
        self.each(keys::ORPHAN, |check, key, value| {
            let Some(ino) = check.ino_of(&key, 9) else { return Ok(()) };
            let Some(held) = check.decode::<u64>(&key, &value) else { return Ok(()) };
            count += 1;
            if holders.remove(&ino) != Some(held) || held == 0 {
                check.fault(format!("inode {ino}: an orphan whose holders are miscounted"));
            }
            if check.nodes.get(&ino).is_none_or(|n| n.nlink != 0) {
                check.fault(format!("inode {ino}: said to be an orphan, and is not"));
            }
            Ok(())
        })?;
        let nameless = self.nodes.values().filter(|n| n.nlink == 0).count() as u64;
        if count != state.orphans || nameless != count {
            let counted = state.orphans;
            self.fault(format!("{count} orphans, {nameless} without a name, {counted} counted"));
        }
        if !holders.is_empty() {
            self.fault(format!("{} inodes are held that are no orphans", holders.len()));
        }
        Ok(())
    }

    fn sessions(&mut self, state: &State) -> Result<(), StoreError> {
        let mut live = 0;
        self.each(keys::SESSION, |check, key, value| {
            let session = check.decode::<Session>(&key, &value);
            live += u64::from(session.is_some_and(|s| !s.ended));
            Ok(())
        })?;
        if live != state.sessions {
            self.fault(format!("{live} sessions, but {} counted", state.sessions));
        }
        let mut windows: HashMap<SessionId, Window> = HashMap::new();
        self.each(keys::WINDOW, |check, key, value| {
            let Some(id) = check.ino_of(&key, 9).map(|i| SessionId(i.0)) else { return Ok(()) };
            let Some(window) = check.decode::<Window>(&key, &value) else { return Ok(()) };
            if check.store.get(&keys::session(id))?.is_none() {
                check.fault(format!("session {id}: gone, but its answers are counted"));
            }
            if window.dropped > window.answered {
                check.fault(format!("session {id}: answers removed that are still needed"));
            }
            windows.insert(id, window);
            Ok(())
        })?;
        self.each(keys::REPLY, |check, key, value| {
            let Some(id) = check.ino_of(&key, 17).map(|i| SessionId(i.0)) else { return Ok(()) };
            check.decode::<Answer>(&key, &value);
            let seq = OpSeq(keys::field(&key, 1).unwrap_or(0));
            if !windows.get(&id).is_some_and(|w| seq > w.dropped && seq <= w.highest) {
                check.fault(format!("session {id}: an answer to {seq} that should not be there"));
            }
            Ok(())
        })
    }

    fn tasks(&mut self, state: &State) -> Result<(), StoreError> {
        let ids = |check: &mut Self, key: &[u8]| {
            let id = check.ino_of(key, 9).map_or(0, |i| i.0);
            if id == 0 || id >= state.next_task {
                check.fault(format!("task {id}: was never given out"));
            }
        };
        self.each(keys::TRIM, |check, key, value| {
            ids(check, &key);
            check.decode::<Trim>(&key, &value);
            Ok(())
        })?;
        self.each(keys::DELETION, |check, key, value| {
            ids(check, &key);
            let Some(deletion) = check.decode::<Deletion>(&key, &value) else { return Ok(()) };
            let Some(inode) = check.load::<Inode>(&keys::inode(deletion.ino))? else {
                return Ok(());
            };
            // What an audit has found of others never had an owner.
            let file = inode.attr.kind == FileKind::File;
            if file && !class::is_later(inode.attr.generation, deletion.generation) {
                let ino = deletion.ino;
                check.fault(format!("inode {ino}: its present contents are to be removed"));
            }
            Ok(())
        })
    }

    /// Keys of kinds that there are not.
    fn unknown(&mut self) -> Result<(), StoreError> {
        let known = [
            keys::STATE,
            keys::VOLUME,
            keys::LOST,
            keys::INODE,
            keys::INLINE,
            keys::XATTR,
            keys::ENTRY,
            keys::LISTING,
            keys::ORPHAN,
            keys::HOLD,
            keys::SESSION,
            keys::WINDOW,
            keys::REPLY,
            keys::TRIM,
            keys::DELETION,
        ];
        for kind in (0..=0xfe).filter(|kind| !known.contains(kind)) {
            if !self.store.range(&[kind], &[kind + 1], 1)?.is_empty() {
                self.fault(format!("there are keys of the unknown kind {kind:02x}"));
            }
        }
        Ok(())
    }
}
