//! Changes and those who wait for them.

use std::sync::Arc;

use netfs_common::errno::Errno;

use super::{Entry, Opened, Vfs};
use crate::cache::{self, Touched};

/// What a change ends in.
pub(super) trait Outcome: Send + Sized + 'static {
    /// Gives back what only the one who waited could have used.
    fn give_back(self, _vfs: &Arc<Vfs>) {}
}

impl Outcome for () {}
impl Outcome for u32 {}
impl Outcome for u64 {}
impl Outcome for Entry {}

/// An entry that counts as one reference of the kernel's.
pub(super) struct Referred(pub(super) Entry);

impl Outcome for Referred {
    fn give_back(self, vfs: &Arc<Vfs>) {
        vfs.forget(self.0.attr.ino, 1);
    }
}

impl Outcome for Opened {
    fn give_back(self, vfs: &Arc<Vfs>) {
        // It was never used.
        let _ = vfs.handles.remove(self.fh);
    }
}

impl Outcome for (Referred, Opened) {
    fn give_back(self, vfs: &Arc<Vfs>) {
        self.1.give_back(vfs);
        self.0.give_back(vfs);
    }
}

/// The outcome of a change on its way to the one who waits for it. If that one was killed or has
/// lost patience, it is dropped: then the kernel, which hears of no outcome, must ask anew about
/// all that was touched.
pub(super) struct Delivery<T: Outcome> {
    vfs: Arc<Vfs>,
    touched: Touched,
    outcome: Option<Result<T, Errno>>,
}

impl<T: Outcome> Delivery<T> {
    pub(super) fn new(
        vfs: Arc<Vfs>,
        (outcome, touched): (Result<T, Errno>, Touched),
    ) -> Delivery<T> {
        Delivery { vfs, touched, outcome: Some(outcome) }
    }

    /// It has arrived. The one who waits may itself be a change.
    pub(super) fn arrive(mut self) -> Result<T, Errno> {
        cache::touch_all(std::mem::take(&mut self.touched));
        self.outcome.take().unwrap_or(Err(Errno::EIO))
    }
}

impl<T: Outcome> Drop for Delivery<T> {
    fn drop(&mut self) {
        let Some(outcome) = self.outcome.take() else { return };
        if let Some(kernel) = self.vfs.kernel.get() {
            for (parent, name) in &self.touched.names {
                kernel.inval_entry(*parent, name);
            }
            for ino in &self.touched.inodes {
                kernel.inval_data(*ino, 0, 0);
            }
        }
        if let Ok(outcome) = outcome {
            outcome.give_back(&self.vfs);
        }
    }
}
