//! A disk in memory that loses power: of what was not synced an arbitrary part survives, by sectors.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Disk, DiskFile, Space};
use crate::data::store::sync::lock;

const SECTOR: usize = 512;
const PAGE: usize = 4096;

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
    Punch(usize, usize),
}

#[derive(Default)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
    /// Numbers of pages that are holes. What a crash brings back of them is not counted again.
    holes: BTreeSet<usize>,
}

impl Content {
    fn allocated(&self) -> u64 {
        let len = self.now.len();
        let size = |page: &usize| ((page + 1) * PAGE).min(len).saturating_sub(page * PAGE);
        (len - self.holes.iter().map(size).sum::<usize>()) as u64
    }
}

/// What holes of files are good for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::data::store) enum Holes {
    /// They take nothing.
    Free,
    /// They take as much as what was there.
    Vain,
    /// They take nothing, and what is no hole takes half of its length.
    Squeezed,
    /// There are none.
    None,
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
    holes: Holes,
    /// What making a hole takes, and writing a MiB.
    hole_takes: Duration,
    mib_takes: Duration,
    clock: Duration,
    /// What happens just before the next read of a file.
    before_read: Option<Box<dyn FnOnce() + Send>>,
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

fn zero(data: &mut [u8], from: usize, to: usize) {
    let len = data.len();
    data[from.min(len)..to.min(len)].fill(0);
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

    fn allocated(&self, file: usize) -> u64 {
        match self.holes {
            Holes::Vain => self.files[file].now.len() as u64,
            Holes::Squeezed => self.files[file].allocated() / 2,
            Holes::Free | Holes::None => self.files[file].allocated(),
        }
    }

    fn used(&self) -> u64 {
        self.names.values().map(|f| self.allocated(*f)).sum()
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
            holes: Holes::Free,
            hole_takes: Duration::ZERO,
            mib_takes: Duration::ZERO,
            clock: Duration::ZERO,
            before_read: None,
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

    pub(in crate::data::store) fn set_holes(&self, holes: Holes) {
        lock(&self.0).holes = holes;
    }

    /// What making a hole takes, and writing a MiB.
    pub(in crate::data::store) fn set_times(&self, hole: Duration, mib: Duration) {
        let inner = &mut *lock(&self.0);
        (inner.hole_takes, inner.mib_takes) = (hole, mib);
    }

    pub(in crate::data::store) fn set_before_read(&self, act: impl FnOnce() + Send + 'static) {
        lock(&self.0).before_read = Some(Box::new(act));
    }

    /// Bytes that all files take.
    pub(in crate::data::store) fn allocated(&self) -> u64 {
        lock(&self.0).used()
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
                    // Whatever becomes of what was written: page by page, at once or never.
                    Change::Punch(from, to) => {
                        let punched = inner.dice.below(3);
                        for page in (from..to).step_by(PAGE) {
                            if punched == 0 || (punched == 1 && inner.dice.below(2) == 0) {
                                zero(&mut content.durable, page, page + PAGE);
                            }
                        }
                    }
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
                let holes = inner.files[*file].holes.clone();
                out.files.push(Content { durable: now.clone(), now, pending: Vec::new(), holes });
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

    fn hole_bytes(&self) -> io::Result<Option<u64>> {
        Ok(Some(PAGE as u64))
    }

    fn now(&self) -> Duration {
        lock(&self.0).clock
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
        inner.clock += inner.mib_takes.mul_f64(len as f64 / (1 << 20) as f64);
        let content = &mut inner.files[self.file];
        put(&mut content.now, at, &bytes);
        (at / PAGE..(at + len).div_ceil(PAGE)).for_each(|page| {
            content.holes.remove(&page);
        });
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
        let act = lock(&self.disk.0).before_read.take();
        if let Some(act) = act {
            act();
        }
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

    fn punch(&self, from: u64, len: u64) -> io::Result<()> {
        let inner = &mut *lock(&self.disk.0);
        if inner.holes == Holes::None {
            return Err(io::ErrorKind::Unsupported.into());
        }
        inner.clock += inner.hole_takes;
        let was_out = inner.fuse == Some(0);
        let powered = inner.powered();
        if was_out {
            return Err(power_is_out());
        }
        let (from, to) = (from as usize, (from + len) as usize);
        let content = &mut inner.files[self.file];
        assert!(from % PAGE == 0 && to % PAGE == 0 && from < to && to <= content.now.len());
        zero(&mut content.now, from, to);
        content.holes.extend(from / PAGE..to / PAGE);
        content.pending.push(Change::Punch(from, to));
        if powered { Ok(()) } else { Err(power_is_out()) }
    }

    fn data_bytes(&self, from: u64, len: u64) -> io::Result<u64> {
        let (first, last) = (from as usize / PAGE, (from + len) as usize / PAGE);
        assert!((from | len).is_multiple_of(PAGE as u64));
        let inner = lock(&self.disk.0);
        Ok(len - (inner.files[self.file].holes.range(first..last).count() * PAGE) as u64)
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(lock(&self.disk.0).allocated(self.file))
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
