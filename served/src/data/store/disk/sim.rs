//! A disk in memory that loses power: of what was not synced an arbitrary part survives, by sectors.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex};

use super::{Disk, DiskFile, Space};
use crate::data::store::sync::lock;

const SECTOR: usize = 512;

/// A small deterministic source of randomness.
#[derive(Clone)]
pub(in crate::data::store) struct Dice(pub(in crate::data::store) u64);

impl Dice {
    pub(in crate::data::store) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(in crate::data::store) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

enum Change {
    SetLen(usize),
    Write(usize, Vec<u8>),
}

#[derive(Default)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

enum NameChange {
    Add(String, usize),
    Remove(String),
    Rename(String, String),
}

struct Inner {
    files: Vec<Content>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    pending_names: Vec<NameChange>,
    capacity: u64,
    /// Changes until the power fails.
    fuse: Option<u64>,
    fail_sync: bool,
    fail_writes: bool,
    /// Nothing is in memory.
    cold: bool,
    unreadable: Vec<(String, u64, u64)>,
    dice: Dice,
}

/// The disk. Clones are the same disk.
#[derive(Clone)]
pub(in crate::data::store) struct SimDisk(Arc<Mutex<Inner>>);

fn apply_name(names: &mut BTreeMap<String, usize>, change: &NameChange) {
    match change {
        NameChange::Add(name, file) => {
            names.insert(name.clone(), *file);
        }
        NameChange::Remove(name) => {
            names.remove(name);
        }
        NameChange::Rename(from, to) => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
    }
}

fn put(data: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if data.len() < at + bytes.len() {
        data.resize(at + bytes.len(), 0);
    }
    data[at..at + bytes.len()].copy_from_slice(bytes);
}

impl Inner {
    /// Burns the fuse; `false`: the power is out.
    fn powered(&mut self) -> bool {
        match &mut self.fuse {
            None => true,
            Some(0) => false,
            Some(n) => {
                *n -= 1;
                *n > 0
            }
        }
    }

    fn used(&self) -> u64 {
        self.names.values().map(|f| self.files[*f].now.len() as u64).sum()
    }
}

fn power_is_out() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

impl SimDisk {
    pub(in crate::data::store) fn new(seed: u64, capacity: u64) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            files: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            pending_names: Vec::new(),
            capacity,
            fuse: None,
            fail_sync: false,
            fail_writes: false,
            cold: false,
            unreadable: Vec::new(),
            dice: Dice(seed),
        })))
    }

    /// The power will fail at the n-th change from now: it may happen in part, and nothing happens after it.
    pub(in crate::data::store) fn set_fuse(&self, changes: Option<u64>) {
        lock(&self.0).fuse = changes;
    }

    pub(in crate::data::store) fn set_fail_sync(&self, fail: bool) {
        lock(&self.0).fail_sync = fail;
    }

    pub(in crate::data::store) fn set_fail_writes(&self, fail: bool) {
        lock(&self.0).fail_writes = fail;
    }

    pub(in crate::data::store) fn set_cold(&self, cold: bool) {
        lock(&self.0).cold = cold;
    }

    pub(in crate::data::store) fn set_unreadable(&self, name: &str, from: u64, to: u64) {
        lock(&self.0).unreadable.push((name.into(), from, to));
    }

    /// The power fails and comes back.
    pub(in crate::data::store) fn power_cycle(&self) {
        let inner = &mut *lock(&self.0);
        inner.fuse = None;
        let kept = inner.dice.below(inner.pending_names.len() as u64 + 1) as usize;
        for change in inner.pending_names.drain(..).take(kept) {
            apply_name(&mut inner.durable_names, &change);
        }
        inner.names = inner.durable_names.clone();
        // In tenths: how much of what was pending survives.
        let keep = [0, 10, 9, 5, 1][inner.dice.below(5) as usize];
        for content in &mut inner.files {
            for change in content.pending.drain(..) {
                match change {
                    Change::SetLen(len) if inner.dice.below(10) < keep => {
                        content.durable.resize(len, 0)
                    }
                    Change::SetLen(_) => {}
                    Change::Write(at, bytes) => {
                        let mut done = 0;
                        while done < bytes.len() {
                            let room = SECTOR - (at + done) % SECTOR;
                            let to = bytes.len().min(done + room);
                            if inner.dice.below(10) < keep {
                                put(&mut content.durable, at + done, &bytes[done..to]);
                            }
                            done = to;
                        }
                    }
                }
            }
            content.now = content.durable.clone();
        }
    }

    /// Another disk with the same content, all of it durable.
    pub(in crate::data::store) fn duplicate(&self) -> Self {
        let inner = lock(&self.0);
        let copy = Self::new(1, inner.capacity);
        {
            let out = &mut *lock(&copy.0);
            for (n, (name, file)) in inner.names.iter().enumerate() {
                let now = inner.files[*file].now.clone();
                out.files.push(Content { durable: now.clone(), now, pending: Vec::new() });
                out.names.insert(name.clone(), n);
                out.durable_names.insert(name.clone(), n);
            }
        }
        copy
    }

    /// Changes a file's bytes behind the store's back.
    pub(in crate::data::store) fn tamper<T>(
        &self,
        name: &str,
        change: impl FnOnce(&mut Vec<u8>) -> T,
    ) -> T {
        let inner = &mut *lock(&self.0);
        let content = &mut inner.files[inner.names[name]];
        let out = change(&mut content.now);
        content.durable = content.now.clone();
        out
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(lock(&self.0).names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = *lock(&self.0).names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimFile { disk: self.clone(), file, name: name.into() }))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let inner = &mut *lock(&self.0);
        if !inner.powered() {
            return Err(power_is_out());
        }
        inner.files.push(Content::default());
        let file = inner.files.len() - 1;
        inner.names.insert(name.into(), file);
        inner.pending_names.push(NameChange::Add(name.into(), file));
        Ok(Arc::new(SimFile { disk: self.clone(), file, name: name.into() }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let inner = &mut *lock(&self.0);
        if !inner.powered() {
            return Err(power_is_out());
        }
        inner.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        inner.pending_names.push(NameChange::Remove(name.into()));
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let inner = &mut *lock(&self.0);
        if !inner.powered() {
            return Err(power_is_out());
        }
        let change = NameChange::Rename(from.into(), to.into());
        apply_name(&mut inner.names, &change);
        inner.pending_names.push(change);
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let inner = &mut *lock(&self.0);
        if !inner.powered() || inner.fail_sync {
            return Err(power_is_out());
        }
        inner.pending_names.clear();
        inner.durable_names = inner.names.clone();
        Ok(())
    }

    fn space(&self) -> io::Result<Space> {
        let inner = lock(&self.0);
        Ok(Space {
            capacity_bytes: inner.capacity,
            free_bytes: inner.capacity.saturating_sub(inner.used()),
        })
    }
}

struct SimFile {
    disk: SimDisk,
    file: usize,
    name: String,
}

impl DiskFile for SimFile {
    fn write_at(&self, data: &[IoSlice<'_>], position: u64) -> io::Result<usize> {
        let inner = &mut *lock(&self.disk.0);
        let was_out = inner.fuse == Some(0);
        let powered = inner.powered();
        if was_out || inner.fail_writes {
            return Err(power_is_out());
        }
        let mut bytes: Vec<u8> = data.iter().flat_map(|s| s.iter().copied()).collect();
        let at = position as usize;
        let growth = (at + bytes.len()).saturating_sub(inner.files[self.file].now.len()) as u64;
        let free = inner.capacity.saturating_sub(inner.used());
        if growth > free {
            bytes.truncate(bytes.len() - ((growth - free) as usize).min(bytes.len()));
            if bytes.is_empty() {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
        } else if inner.dice.below(8) == 0 && bytes.len() > 1 {
            // A short write, as the system call allows.
            let len = 1 + inner.dice.below(bytes.len() as u64 - 1) as usize;
            bytes.truncate(len);
        }
        if !powered {
            let len = inner.dice.below(bytes.len() as u64 + 1) as usize;
            bytes.truncate(len);
        }
        let len = bytes.len();
        let content = &mut inner.files[self.file];
        put(&mut content.now, at, &bytes);
        content.pending.push(Change::Write(at, bytes));
        if powered { Ok(len) } else { Err(power_is_out()) }
    }

    fn read_now(&self, out: &mut [u8], position: u64) -> io::Result<usize> {
        if lock(&self.disk.0).cold {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.read_at(out, position)
    }

    fn read_at(&self, out: &mut [u8], position: u64) -> io::Result<usize> {
        let inner = lock(&self.disk.0);
        let end = position + out.len() as u64;
        if inner
            .unreadable
            .iter()
            .any(|(name, from, to)| *name == self.name && *from < end && position < *to)
        {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let data = &inner.files[self.file].now;
        let from = (position as usize).min(data.len());
        let len = out.len().min(data.len() - from);
        out[..len].copy_from_slice(&data[from..from + len]);
        Ok(len)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.disk.0).files[self.file].now.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let inner = &mut *lock(&self.disk.0);
        if !inner.powered() {
            return Err(power_is_out());
        }
        let content = &mut inner.files[self.file];
        content.now.resize(len as usize, 0);
        content.pending.push(Change::SetLen(len as usize));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let inner = &mut *lock(&self.disk.0);
        if !inner.powered() || inner.fail_sync {
            return Err(power_is_out());
        }
        let content = &mut inner.files[self.file];
        content.pending.clear();
        content.durable = content.now.clone();
        Ok(())
    }
}
