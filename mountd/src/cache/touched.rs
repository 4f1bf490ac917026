//! What a change has touched, as far as the kernel may have it in its caches.
//!
//! The kernel brings its caches up to date by the answer to a request. A change that nobody waits
//! for any more has no answer, and then all of this must be taken back.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::Future;

use netfs_common::id::Ino;
use netfs_common::name::Name;

tokio::task_local! {
    static TOUCHED: RefCell<Touched>;
}

/// Names, and inodes with their attributes, pages and listings.
#[derive(Debug, Default)]
pub struct Touched {
    /// Names with their directories.
    pub names: BTreeSet<(Ino, Name)>,
    /// Inodes.
    pub inodes: BTreeSet<Ino>,
}

/// Runs a change and notes what it touches.
pub async fn noting<T>(change: impl Future<Output = T>) -> (T, Touched) {
    let noted = async {
        let outcome = change.await;
        (outcome, TOUCHED.with(RefCell::take))
    };
    TOUCHED.scope(RefCell::default(), noted).await
}

/// What a part of the change under way has touched.
pub fn touch_all(part: Touched) {
    note(|all| {
        all.names.extend(part.names);
        all.inodes.extend(part.inodes);
    });
}

/// The change under way, if there is one, is about an inode.
pub fn touch_inode(ino: Ino) {
    note(|all| {
        all.inodes.insert(ino);
    });
}

/// The change under way, if there is one, is about a name.
pub(super) fn touch_name(parent: Ino, name: &Name) {
    note(|all| {
        all.names.insert((parent, name.clone()));
        all.inodes.insert(parent);
    });
}

fn note(add: impl FnOnce(&mut Touched)) {
    // Outside of a change there is nothing to note.
    let _ = TOUCHED.try_with(|all| add(&mut all.borrow_mut()));
}
