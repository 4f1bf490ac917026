//! Knows what was promised.

use std::collections::HashSet;

use netfs_common::id::Ino;

use super::model::{ATOMS, INOS, Values};

/// All calls see the versions of each thing grow, in the order in which calls return.
#[derive(Default)]
pub(crate) struct Oracle {
    version: u64,
    /// The latest that a call has returned: no later call may see less.
    returned: Values,
    /// What is on stable storage, as somebody was told.
    durable: Values,
    /// Versions above the first and up to the second went with the power.
    lost: Vec<(Ino, usize, u64, u64)>,
    /// Versions in which a name is there.
    present: HashSet<u64>,
    made: HashSet<u64>,
    pub(crate) in_grace: bool,
    pub(crate) violation: Option<String>,
}

impl Oracle {
    pub(crate) fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    pub(crate) fn fail(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    pub(crate) fn set_present(&mut self, version: u64) {
        self.present.insert(version);
    }

    pub(crate) fn is_present(&self, version: u64) -> bool {
        self.present.contains(&version)
    }

    /// What a call that begins now must see.
    pub(crate) fn must(&self, ino: Ino) -> [u64; ATOMS] {
        self.returned[ino.0 as usize]
    }

    /// A call returns what it has seen.
    pub(crate) fn read(&mut self, ino: Ino, atom: usize, version: u64, must: u64, cached: bool) {
        if version < must {
            self.fail(format!("{ino:?}.{atom}: read {version} after {must} was returned"));
        }
        if self.is_lost(ino, atom, version) {
            if cached && !self.in_grace {
                self.fail(format!("{ino:?}.{atom}: read {version}, which was lost"));
            }
            return;
        }
        self.wrote(ino, atom, version);
    }

    /// A call returns that has written.
    pub(crate) fn wrote(&mut self, ino: Ino, atom: usize, version: u64) {
        if !self.is_lost(ino, atom, version) {
            let returned = &mut self.returned[ino.0 as usize][atom];
            *returned = version.max(*returned);
        }
    }

    /// Somebody is told that a version is on stable storage.
    pub(crate) fn synced(&mut self, ino: Ino, atom: usize, version: u64) {
        let durable = &mut self.durable[ino.0 as usize][atom];
        *durable = version.max(*durable);
    }

    /// A change takes effect.
    pub(crate) fn made(&mut self, id: u64) {
        if !self.made.insert(id) {
            self.fail(format!("change {id} was made twice"));
        }
    }

    pub(crate) fn all_made(&self) -> HashSet<u64> {
        self.made.clone()
    }

    /// A client has given up what it had written last: `now` is there instead.
    pub(crate) fn given_up(&mut self, ino: Ino, atom: usize, written: u64, now: u64) {
        let returned = &mut self.returned[ino.0 as usize][atom];
        if *returned <= written {
            *returned = now.min(*returned);
        }
    }

    /// With the power went everything that is not in here.
    pub(crate) fn power_failed(&mut self, left: &Values, made: HashSet<u64>) {
        self.made = made;
        for ino in 0..INOS {
            for atom in 0..ATOMS {
                let (left, id) = (left[ino][atom], Ino(ino as u64));
                if left < self.durable[ino][atom] {
                    let durable = self.durable[ino][atom];
                    self.fail(format!("{id:?}.{atom}: {left} is left, {durable} was durable"));
                }
                self.returned[ino][atom] = self.returned[ino][atom].min(left);
                if left < self.version {
                    self.lost.push((id, atom, left, self.version));
                }
            }
        }
    }

    fn is_lost(&self, ino: Ino, atom: usize, version: u64) -> bool {
        let within = |l: &&(Ino, usize, u64, u64)| l.2 < version && version <= l.3;
        self.lost.iter().filter(|l| l.0 == ino && l.1 == atom).any(|l| within(&l))
    }
}
