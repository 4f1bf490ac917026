//! Having the kernel drop what it keeps: the pages of an inode, and everything when all leases are gone.
//!
//! Nothing here waits without end. The kernel locks pages and directories for requests that wait for the server, and these may wait for
//! the very answer that is held up here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use netfs_common::id::Ino;
use netfs_common::name::Name;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::KernelCache;
use crate::cache::{Cache, Node, Remnant};

/// A notification that takes longer waits for a lock of the kernel, or for its turn.
pub(super) const BLOCKED: Duration = Duration::from_millis(2);
/// For so long the kernel may get nothing done before it counts as stuck, and not as busy.
pub(super) const PATIENCE: Duration = Duration::from_millis(50);
/// What the kernel surely drops in a millisecond besides.
const PER_MILLISECOND: u64 = 4 << 20;
/// While it waits for a lock, there is a look at what has changed this often at least.
const LOOK: Duration = Duration::from_millis(16);

/// The first part of a file that is taken back at once.
const SLICE: u64 = 8 << 20;
/// The longest, unless the file then had too many.
const MAX_SLICE: u64 = 256 << 20;
const MAX_SLICES: u64 = 1024;
/// What was done so fast had few pages, and the next part may be longer.
const QUICK: Duration = Duration::from_millis(1);
const SLOW: Duration = Duration::from_millis(10);

/// For how long a single inode is waited for when everything is taken back: reads of it may wait for the server.
const ENOUGH: Duration = Duration::from_secs(1);
/// So many inodes are taken back at once, each for itself.
const MAX_AT_ONCE: usize = 64;
/// Inodes in one message, and names.
const MAX_INODES: usize = 4096;
const MAX_NAMES: usize = 1024;

/// The parts of a range, in the order in which they are taken back.
struct Slices {
    at: u64,
    to: u64,
    size: u64,
    len: u64,
    ended: bool,
}

impl Slices {
    fn new(from: u64, to: u64, size: u64) -> Slices {
        Slices { at: from, to, size, len: SLICE, ended: false }
    }

    /// The last one goes to the end: the kernel may have pages beyond the file's length as it is known here.
    fn next(&mut self) -> Option<(u64, u64)> {
        if self.ended {
            return None;
        }
        let (from, end) = (self.at, self.at.saturating_add(self.len));
        self.ended = end >= self.to || end >= self.size;
        self.at = if self.ended { self.to } else { end };
        Some((from, self.at))
    }

    fn took(&mut self, time: Duration) {
        if time < QUICK {
            self.len = (self.len * 4).min(MAX_SLICE.max(self.size / MAX_SLICES));
        } else if time > SLOW {
            self.len = (self.len / 2).max(SLICE);
        }
    }
}

/// Has the kernel drop pages of a range, and the attributes. Pages that it has locked for requests which wait here for a
/// lease may stay: there is nothing to be read in them, and they go as soon as the kernel lets go of them. The kernel is taken to be at
/// work as long as it gets one part after the other done, however many pages there are.
///
/// One case is left that would last for ever: pages that were stored to through a mapping and that the kernel holds back because the
/// file is being cut, while the cut waits for the lease. They go when the cut is done; until then they may show what was
/// stored in them.
pub(super) async fn take_pages(kernel: &dyn KernelCache, node: &Node, from: u64, to: u64) {
    let mut slices = Slices::new(from, to, node.state().size());
    let mut attributes = false;
    while let Some((from, to)) = slices.next() {
        let begun = Instant::now();
        take_slice(kernel, node, (from, to), &mut attributes).await;
        slices.took(begun.elapsed());
    }
}

/// `attributes`: the kernel has been told of those.
async fn take_slice(
    kernel: &dyn KernelCache,
    node: &Node,
    (from, to): (u64, u64),
    attributes: &mut bool,
) {
    let mut whole = kernel.drop_data(node.ino, from, to.saturating_sub(from));
    if timeout(BLOCKED, &mut whole).await.is_ok() {
        return;
    }
    // By then it has been begun with as well, and whoever asks for attributes from now on is answered by the daemon: this takes no lock of
    // the kernel, and waits for a processor at most.
    if !std::mem::replace(attributes, true) {
        // Not for ever: all who could tell it may wait for pages.
        let _ = timeout(ENOUGH, kernel.drop_attr(node.ino)).await;
    }
    let begun = Instant::now();
    let within = to.min(node.state().size()).saturating_sub(from);
    let patience = PATIENCE + Duration::from_millis(within / PER_MILLISECOND);
    let mut attempts = JoinSet::new();
    attempts.spawn(async move {
        // An error means that there is no kernel any more.
        let _ = whole.await;
    });
    let (mut pause, mut left_out) = (BLOCKED, Vec::new());
    loop {
        let (pinned, filling) = {
            let state = node.state();
            (state.pinned.clone(), state.filling)
        };
        if begun.elapsed() > patience && filling == 0 {
            debug!(ino = %node.ino, from, "the kernel holds pages of a file that must go");
            break;
        }
        if pinned != left_out {
            let parts = around(&pinned, from, to);
            let parts: Vec<_> =
                parts.iter().map(|(a, b)| kernel.drop_data(node.ino, *a, b - a)).collect();
            attempts.spawn(async move {
                for part in parts {
                    let _ = part.await;
                }
            });
            left_out = pinned;
        }
        pause = (pause * 2).min(LOOK);
        if timeout(pause, attempts.join_next()).await.is_ok() {
            break;
        }
    }
    attempts.detach_all();
}

/// A range without parts of it.
fn around(pinned: &[(u64, u64)], from: u64, to: u64) -> Vec<(u64, u64)> {
    let mut pinned = pinned.to_vec();
    pinned.sort_unstable();
    let (mut at, mut parts) = (from, Vec::new());
    for (start, end) in pinned {
        if start >= to {
            break;
        }
        if start > at {
            parts.push((at, start));
        }
        at = at.max(end);
    }
    if at < to {
        parts.push((at, to));
    }
    parts
}

/// Waits for answers that let the kernel keep names of a directory: each is but a write to the device. There are no more of them
/// while others change names there, or when all names are forgotten here.
pub(super) async fn all_told(dir: &Node) -> bool {
    let begun = Instant::now();
    while dir.state().telling > 0 {
        if begun.elapsed() > PATIENCE {
            return false;
        }
        tokio::time::sleep(BLOCKED / 2).await;
    }
    true
}

/// All leases are gone: has the kernel drop all that it was given under them. Pages come first, since names expire by themselves.
///
/// With `at_once`, names in a directory that the kernel has locked for a call go together with all others, although that takes the path
/// from working directories for a moment and detaches what is mounted below. Otherwise they go when the call is done, or by expiring.
pub(super) async fn take_all(
    kernel: Arc<dyn KernelCache>,
    cache: Arc<Cache>,
    remnant: Remnant,
    at_once: bool,
) {
    let Remnant { inodes, names } = remnant;
    take_inodes(&kernel, &cache, inodes).await;
    take_names(&kernel, &cache, names, at_once).await;
}

async fn take_inodes(kernel: &Arc<dyn KernelCache>, cache: &Arc<Cache>, inodes: Vec<Ino>) {
    // Those first for which nothing is known to stand in the way.
    let (mut easy, mut large, mut held) = (Vec::new(), Vec::new(), Vec::new());
    for ino in inodes {
        let Some(node) = cache.table.peek(ino) else {
            easy.push(ino);
            continue;
        };
        let state = node.state();
        if state.filling > 0 || !state.pinned.is_empty() {
            held.push(ino);
        } else if state.size() > SLICE {
            large.push(ino);
        } else {
            easy.push(ino);
        }
    }
    let mut work = JoinSet::new();
    let mut again = Vec::new();
    for part in easy.chunks((easy.len() / MAX_AT_ONCE).clamp(16, MAX_INODES)) {
        let (told, part) = (kernel.drop_inodes(part.to_vec()), part.to_vec());
        let patience = PATIENCE + Duration::from_micros(10) * easy.len() as u32;
        work.spawn(async move {
            let stuck = timeout(patience, told).await.is_err();
            if stuck { part } else { Vec::new() }
        });
    }
    while let Some(part) = work.join_next().await {
        again.extend(part.unwrap_or_default());
    }
    // One of each part waits for a lock of the kernel, or has very many pages.
    again.extend(large);
    again.extend(held);
    let mut work = JoinSet::new();
    for ino in again {
        if work.len() >= MAX_AT_ONCE {
            work.join_next().await;
        }
        let (kernel, node) = (Arc::clone(kernel), cache.table.peek(ino));
        work.spawn(async move {
            let taken = async {
                match &node {
                    Some(node) => take_pages(&*kernel, node, 0, u64::MAX).await,
                    None => drop(timeout(PATIENCE, kernel.drop_data(ino, 0, 0)).await),
                }
            };
            if timeout(ENOUGH, taken).await.is_err() {
                // When the kernel lets go of it.
                drop(kernel.drop_data(ino, 0, 0));
            }
        });
    }
    while work.join_next().await.is_some() {}
}

async fn take_names(
    kernel: &Arc<dyn KernelCache>,
    cache: &Cache,
    names: Vec<(Ino, Vec<Name>)>,
    at_once: bool,
) {
    let done = Arc::new(AtomicU64::new(0));
    let mut work = JoinSet::new();
    for (dir, names) in names {
        let (kernel, done) = (Arc::clone(kernel), Arc::clone(&done));
        let node = cache.table.peek(dir);
        work.spawn(async move {
            if let Some(node) = node {
                all_told(&node).await;
            }
            for part in names.chunks(MAX_NAMES) {
                // An error means that there is no kernel any more.
                let _ = kernel.drop_names(dir, part.to_vec()).await;
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    loop {
        let before = done.load(Ordering::Relaxed);
        match timeout(PATIENCE, work.join_next()).await {
            Ok(None) => return,
            Ok(Some(_)) => {}
            Err(_) if done.load(Ordering::Relaxed) != before => {}
            Err(_) => break,
        }
    }
    if at_once && !kernel.drop_all_names() {
        debug!(
            "names in a directory that the kernel has locked may be shown until its call is done"
        );
    }
    work.detach_all();
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_range_is_left_without_what_is_pinned() {
        assert_eq!(around(&[], 0, 100), [(0, 100)]);
        assert_eq!(around(&[(50, 60), (10, 20), (15, 30)], 0, 100), [(0, 10), (30, 50), (60, 100)]);
        assert_eq!(around(&[(0, 4096)], 100, 200), []);
        assert_eq!(around(&[(90, 300)], 0, 100), [(0, 90)]);
        assert_eq!(around(&[(200, 300)], 0, 100), [(0, 100)]);
    }

    fn all(mut slices: Slices, time: Duration) -> Vec<(u64, u64)> {
        let mut all = Vec::new();
        while let Some(slice) = slices.next() {
            all.push(slice);
            slices.took(time);
        }
        all
    }

    #[test]
    fn parts_of_a_file_cover_all_of_it_and_what_lies_beyond() {
        let end = u64::MAX;
        assert_eq!(all(Slices::new(0, end, 0), QUICK), [(0, end)]);
        assert_eq!(all(Slices::new(0, end, 8 * MIB), QUICK), [(0, end)]);
        let parts = [(0, 8 * MIB), (8 * MIB, 16 * MIB), (16 * MIB, end)];
        assert_eq!(all(Slices::new(0, end, 17 * MIB), QUICK), parts);
        assert_eq!(all(Slices::new(MIB, 2 * MIB, 90 * MIB), QUICK), [(MIB, 2 * MIB)]);
        assert_eq!(all(Slices::new(90 * MIB, end, 17 * MIB), QUICK), [(90 * MIB, end)]);
    }

    #[test]
    fn a_long_file_with_few_pages_has_few_parts() {
        assert!(all(Slices::new(0, u64::MAX, 1 << 30), Duration::ZERO).len() < 8);
        assert!(all(Slices::new(0, u64::MAX, i64::MAX as u64), Duration::ZERO).len() < 1100);
        // The kernel has work to do.
        assert_eq!(all(Slices::new(0, u64::MAX, 1 << 30), SLOW * 2).len(), 128);
    }
}
