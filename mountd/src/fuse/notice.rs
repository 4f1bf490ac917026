//! Notifications to the kernel: what it must no longer use from its caches.
//!
//! The kernel takes locks for them that it also holds while it waits for an answer of ours
//! (measured: taking back a name deadlocks inside `LOOKUP`, pages inside `READ`). So they are only
//! queued here, and one thread delivers them, for which no handler ever waits. What must be gone before something else may happen has
//! threads of its own (`takeback`).
//!
//! A name is taken back by letting it expire: the next walk asks again, and what has gone or leads
//! elsewhere disappears then. To remove it from the kernel's tree at once would take the path from
//! under every program that works in it (`getcwd` fails) and detach what is mounted below.

use std::collections::HashMap;
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use fuser::{INodeNo, Notifier};
use netfs_common::id::Ino;
use netfs_common::name::Name;
use tokio::sync::oneshot;

use super::takeback::{IsKnown, Notice, TakeBack};
use crate::vfs::KernelCache;

/// The most notifications that wait, equal ones counted once: some 30 MiB.
const CAPACITY: usize = 1 << 18;

/// Where notifications go.
pub(super) trait Kernel: Send {
    fn attr(&self, ino: Ino) -> io::Result<()>;
    /// A `len` of 0 is up to the end.
    fn data(&self, ino: Ino, offset: i64, len: i64) -> io::Result<()>;
    fn entry(&self, parent: Ino, name: &Name) -> io::Result<()>;
    /// Has every name looked up again.
    fn all_entries(&self) -> io::Result<()>;
    /// Takes a name out of the tree, with all below it.
    fn remove(&self, parent: Ino, name: &Name) -> io::Result<()>;
    /// Drops inodes that are only cached.
    fn prune(&self, inodes: &[Ino]) -> io::Result<()>;
}

/// The code of a notification about a name, and the flag by which the name only expires (Linux
/// 6.2; before, the kernel ignores it and removes the name).
const NOTIFY_INVAL_ENTRY: i32 = 3;
const EXPIRE_ONLY: u32 = 1;

/// The code of the notification after which the kernel uses no name that it has (Linux 6.16). It takes no lock.
const NOTIFY_INC_EPOCH: i32 = 8;

/// The code of the notification after which the kernel keeps inodes only if they are in use (Linux 6.18). It takes no lock but those that it needs to
/// drop their pages.
const NOTIFY_PRUNE: i32 = 9;

/// The kernel's end of a mount.
#[derive(Clone)]
pub(super) struct Channel {
    pub(super) notifier: Notifier,
    /// The connection once more: fuser cannot let names expire.
    pub(super) device: Arc<File>,
}

impl Kernel for Channel {
    fn attr(&self, ino: Ino) -> io::Result<()> {
        // A negative offset spares the pages.
        self.notifier.inval_inode(INodeNo(ino.0), -1, 0)
    }

    fn data(&self, ino: Ino, offset: i64, len: i64) -> io::Result<()> {
        self.notifier.inval_inode(INodeNo(ino.0), offset, len)
    }

    fn entry(&self, parent: Ino, name: &Name) -> io::Result<()> {
        // A message is taken whole or not at all.
        (&*self.device).write_all(&entry(parent, name, EXPIRE_ONLY))
    }

    fn remove(&self, parent: Ino, name: &Name) -> io::Result<()> {
        (&*self.device).write_all(&entry(parent, name, 0))
    }

    fn prune(&self, inodes: &[Ino]) -> io::Result<()> {
        (&*self.device).write_all(&pruning(inodes))
    }

    fn all_entries(&self) -> io::Result<()> {
        let mut message = 16u32.to_ne_bytes().to_vec();
        message.extend(NOTIFY_INC_EPOCH.to_ne_bytes());
        message.extend(0u64.to_ne_bytes());
        (&*self.device).write_all(&message)
    }
}

/// The message that takes a name back: `fuse_out_header`, `fuse_notify_inval_entry_out` and the
/// name with a NUL behind it.
fn entry(parent: Ino, name: &Name, flags: u32) -> Vec<u8> {
    const FIXED: usize = 32;
    let name = name.as_bytes();
    // A name has at most 255 bytes.
    let total = (FIXED + name.len() + 1) as u32;
    let mut message = Vec::with_capacity(total as usize);
    message.extend(total.to_ne_bytes());
    message.extend(NOTIFY_INVAL_ENTRY.to_ne_bytes());
    message.extend(0u64.to_ne_bytes());
    message.extend(parent.0.to_ne_bytes());
    message.extend((name.len() as u32).to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(name);
    message.push(0);
    message
}

/// The message that has inodes dropped: `fuse_out_header`, `fuse_notify_prune_out` and their numbers.
fn pruning(inodes: &[Ino]) -> Vec<u8> {
    const FIXED: usize = 32;
    // They are at most a few hundred.
    let (total, count) = ((FIXED + 8 * inodes.len()) as u32, inodes.len() as u32);
    let mut message = Vec::with_capacity(total as usize);
    message.extend(total.to_ne_bytes());
    message.extend(NOTIFY_PRUNE.to_ne_bytes());
    message.extend(0u64.to_ne_bytes());
    message.extend(count.to_ne_bytes());
    message.extend([0; 12]);
    inodes.iter().for_each(|ino| message.extend(ino.0.to_ne_bytes()));
    message
}

/// Bytes of a file, `end` excluded; `u64::MAX` is the end of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    start: u64,
    end: u64,
}

impl Range {
    fn new(offset: u64, len: u64) -> Range {
        let end = if len == 0 { u64::MAX } else { offset.saturating_add(len) };
        Range { start: offset, end }
    }

    /// The smallest range that holds both. What lies between is only read again.
    fn hull(self, other: Range) -> Range {
        Range { start: self.start.min(other.start), end: self.end.max(other.end) }
    }

    /// Offset and length as the kernel takes them.
    fn signed(self) -> (i64, i64) {
        let offset = i64::try_from(self.start).unwrap_or(i64::MAX);
        (offset, i64::try_from(self.end - self.start).unwrap_or(0))
    }
}

/// Notifications that wait. They can be merged in any order: each takes something back.
#[derive(Default)]
struct Batch {
    entries: HashSet<(Ino, Name)>,
    data: HashMap<Ino, Range>,
    attrs: HashSet<Ino>,
    barriers: Vec<oneshot::Sender<()>>,
    /// So many found no place.
    lost: u64,
    closed: bool,
}

impl Batch {
    fn len(&self) -> usize {
        self.entries.len() + self.data.len() + self.attrs.len()
    }

    fn is_idle(&self) -> bool {
        self.len() == 0 && self.barriers.is_empty() && self.lost == 0
    }
}

/// The queue in front of the thread that notifies the kernel.
#[derive(Default)]
pub struct NoticeQueue {
    waiting: Mutex<Batch>,
    arrived: Condvar,
    awaited: Arc<TakeBack>,
}

impl std::fmt::Debug for NoticeQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NoticeQueue").field("waiting", &self.len()).finish()
    }
}

/// Names every inode that the kernel may know, for the case that the queue overflowed.
pub(super) type KnownInodes = Box<dyn Fn() -> Vec<Ino> + Send>;

impl NoticeQueue {
    /// An empty queue. What is put into it waits until `start`.
    pub fn new() -> Arc<NoticeQueue> {
        Arc::new(NoticeQueue::default())
    }

    /// Notifications that wait.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether no notification waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Starts to deliver.
    pub(super) fn start(
        self: &Arc<Self>,
        kernel: impl Kernel + Clone + Sync + 'static,
        known: KnownInodes,
        is_known: IsKnown,
    ) -> io::Result<thread::JoinHandle<()>> {
        self.awaited.start(Box::new(kernel.clone()), is_known);
        let queue = self.clone();
        thread::Builder::new()
            .name("netfs-notice".into())
            .spawn(move || while queue.deliver(&kernel, &known) {})
    }

    /// Ends the thread. There is no kernel any more to be told anything: barriers resolve.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_all();
        self.awaited.close();
    }

    fn lock(&self) -> MutexGuard<'_, Batch> {
        // No statement under the lock leaves the batch half-changed.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, add: impl FnOnce(&mut Batch)) {
        let mut batch = self.lock();
        if batch.closed {
            return;
        }
        if batch.len() >= CAPACITY {
            batch.lost += 1;
        } else {
            add(&mut batch);
        }
        drop(batch);
        self.arrived.notify_one();
    }

    /// Waits for notifications and delivers them; `false` when the queue is closed.
    fn deliver(&self, kernel: &impl Kernel, known: &KnownInodes) -> bool {
        let mut batch = self.lock();
        while batch.is_idle() && !batch.closed {
            batch = self.arrived.wait(batch).unwrap_or_else(PoisonError::into_inner);
        }
        let closed = batch.closed;
        let work = std::mem::replace(&mut *batch, Batch { closed, ..Batch::default() });
        drop(batch);
        if !closed {
            tell(kernel, &work, known);
        }
        for barrier in work.barriers {
            // Nobody waits for it any more: then nobody needs to be told.
            let _ = barrier.send(());
        }
        !closed
    }
}

fn tell(kernel: &impl Kernel, work: &Batch, known: &KnownInodes) {
    for (ino, range) in &work.data {
        let (offset, len) = range.signed();
        report("pages", *ino, kernel.data(*ino, offset, len));
    }
    // Pages take the attributes with them.
    for ino in work.attrs.iter().filter(|ino| !work.data.contains_key(ino)) {
        report("attributes", *ino, kernel.attr(*ino));
    }
    // Last, for they wait longest: for every call in their directory.
    for (parent, name) in &work.entries {
        report("name", *parent, kernel.entry(*parent, name));
    }
    if work.lost > 0 {
        tracing::warn!(lost = work.lost, "too much to take back at once: taking back everything");
        for ino in known() {
            report("pages", ino, kernel.data(ino, 0, 0));
        }
    }
}

pub(super) fn report(what: &str, ino: Ino, result: io::Result<()>) {
    let Err(e) = result else { return };
    match e.raw_os_error() {
        // The kernel has forgotten it already, or there is no mount any more.
        Some(libc::ENOENT | libc::ENOTDIR | libc::ENODEV | libc::ENOTCONN | libc::ECONNABORTED) => {
        }
        _ => tracing::error!(%ino, error = %e, "the kernel did not take back {what}"),
    }
}

impl KernelCache for NoticeQueue {
    fn inval_attr(&self, ino: Ino) {
        self.put(|b| {
            b.attrs.insert(ino);
        });
    }

    fn inval_data(&self, ino: Ino, offset: u64, len: u64) {
        let range = Range::new(offset, len);
        self.put(|b| {
            b.data.entry(ino).and_modify(|r| *r = r.hull(range)).or_insert(range);
        });
    }

    fn inval_entry(&self, parent: Ino, name: &Name) {
        self.put(|b| {
            b.entries.insert((parent, name.clone()));
        });
    }

    fn drop_attr(&self, ino: Ino) -> oneshot::Receiver<()> {
        self.awaited.tell(Notice::Attr(ino))
    }

    fn drop_data(&self, ino: Ino, offset: u64, len: u64) -> oneshot::Receiver<()> {
        let (offset, len) = Range::new(offset, len).signed();
        self.awaited.tell(Notice::Data(ino, offset, len))
    }

    fn drop_inodes(&self, inodes: Vec<Ino>) -> oneshot::Receiver<()> {
        self.awaited.tell(Notice::Inodes(inodes))
    }

    fn drop_names(&self, parent: Ino, names: Vec<Name>) -> oneshot::Receiver<()> {
        self.awaited.tell(Notice::Names(parent, names))
    }

    fn drop_unused(&self, inodes: Vec<Ino>) -> Option<oneshot::Receiver<()>> {
        self.awaited.prunes().then(|| self.awaited.tell(Notice::Unused(inodes)))
    }

    fn remove_name(&self, parent: Ino, name: Name) -> oneshot::Receiver<()> {
        self.awaited.tell(Notice::Gone(parent, name))
    }

    fn drop_all_names(&self) -> bool {
        self.awaited.all_names()
    }

    fn barrier(&self) -> oneshot::Receiver<()> {
        let (tx, rx) = oneshot::channel();
        let mut batch = self.lock();
        if batch.closed {
            let _ = tx.send(());
        } else {
            batch.barriers.push(tx);
        }
        drop(batch);
        self.arrived.notify_one();
        rx
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Told(Arc<Mutex<Vec<String>>>);

    impl Told {
        fn all(&self) -> Vec<String> {
            let mut all = self.0.lock().unwrap().clone();
            all.sort();
            all
        }

        fn note(&self, what: String) -> io::Result<()> {
            self.0.lock().unwrap().push(what);
            Ok(())
        }
    }

    impl Kernel for Told {
        fn attr(&self, ino: Ino) -> io::Result<()> {
            self.note(format!("attr {ino}"))
        }

        fn data(&self, ino: Ino, offset: i64, len: i64) -> io::Result<()> {
            self.note(format!("data {ino} {offset}+{len}"))
        }

        fn entry(&self, parent: Ino, name: &Name) -> io::Result<()> {
            self.note(format!("entry {parent} {name:?}"))
        }

        fn all_entries(&self) -> io::Result<()> {
            self.note("all".into())
        }

        fn remove(&self, parent: Ino, name: &Name) -> io::Result<()> {
            self.note(format!("gone {parent} {name:?}"))
        }

        fn prune(&self, inodes: &[Ino]) -> io::Result<()> {
            self.note(format!("unused {inodes:?}"))
        }
    }

    #[test]
    fn a_name_that_expires_is_a_message_of_the_kernel_s_layout() {
        let name = Name::new("ab").unwrap();
        let message = entry(Ino(0x0102), &name, EXPIRE_ONLY);
        assert_eq!(message.len(), 35);
        assert_eq!(message[..4], 35u32.to_ne_bytes());
        assert_eq!(message[4..8], 3i32.to_ne_bytes());
        assert_eq!(message[8..16], [0; 8]);
        assert_eq!(message[16..24], 0x0102u64.to_ne_bytes());
        assert_eq!(message[24..28], 2u32.to_ne_bytes());
        assert_eq!(message[28..32], 1u32.to_ne_bytes());
        assert_eq!(message[32..], *b"ab\0");
        assert_eq!(entry(Ino(0x0102), &name, 0)[28..32], [0; 4]);
    }

    #[test]
    fn inodes_that_are_dropped_are_a_message_of_the_kernel_s_layout() {
        let message = pruning(&[Ino(0x0102), Ino(7)]);
        assert_eq!(message.len(), 48);
        assert_eq!(message[..4], 48u32.to_ne_bytes());
        assert_eq!(message[4..8], 9i32.to_ne_bytes());
        assert_eq!(message[8..16], [0; 8]);
        assert_eq!(message[16..20], 2u32.to_ne_bytes());
        assert_eq!(message[20..32], [0; 12]);
        assert_eq!(message[32..40], 0x0102u64.to_ne_bytes());
        assert_eq!(message[40..], 7u64.to_ne_bytes());
    }

    fn none() -> KnownInodes {
        Box::new(Vec::new)
    }

    #[test]
    fn equal_notices_are_delivered_once() {
        let queue = NoticeQueue::new();
        let name = Name::new("x").unwrap();
        for _ in 0..3 {
            queue.inval_attr(Ino(1));
            queue.inval_entry(Ino(2), &name);
        }
        assert_eq!(queue.len(), 2);
        let told = Told::default();
        assert!(queue.deliver(&told, &none()));
        assert_eq!(told.all(), ["attr 1", "entry 2 \"x\""]);
    }

    #[test]
    fn ranges_of_a_file_merge_and_take_the_attributes_along() {
        let queue = NoticeQueue::new();
        queue.inval_attr(Ino(1));
        queue.inval_data(Ino(1), 4096, 4096);
        queue.inval_data(Ino(1), 0, 10);
        queue.inval_data(Ino(3), 100, 0);
        let told = Told::default();
        queue.deliver(&told, &none());
        assert_eq!(told.all(), ["data 1 0+8192", "data 3 100+0"]);
    }

    #[test]
    fn the_end_of_the_file_swallows_every_end() {
        let all = Range::new(4096, 0).hull(Range::new(0, 1));
        assert_eq!(all.signed(), (0, 0));
        assert_eq!(Range::new(u64::MAX, 5).signed(), (i64::MAX, 0));
    }

    #[test]
    fn a_barrier_resolves_after_what_was_queued_before() {
        let queue = NoticeQueue::new();
        queue.inval_attr(Ino(1));
        let mut barrier = queue.barrier();
        assert!(barrier.try_recv().is_err());
        let told = Told::default();
        queue.deliver(&told, &none());
        assert_eq!(told.all(), ["attr 1"]);
        assert_eq!(barrier.try_recv(), Ok(()));
    }

    #[test]
    fn an_overflow_takes_back_everything() {
        let queue = NoticeQueue::new();
        for ino in 0..CAPACITY as u64 + 5 {
            queue.inval_attr(Ino(ino));
        }
        assert_eq!(queue.len(), CAPACITY);
        let told = Told::default();
        queue.deliver(&told, &(Box::new(|| vec![Ino(0xfff_ffff)]) as KnownInodes));
        assert!(told.all().contains(&"data fffffff 0+0".to_string()));
    }

    #[test]
    fn a_closed_queue_ends_its_thread_and_resolves_barriers() {
        let queue = NoticeQueue::new();
        let mut before = queue.barrier();
        let thread = queue.start(Told::default(), none(), Box::new(|_| false)).unwrap();
        queue.close();
        thread.join().unwrap();
        assert_eq!(before.try_recv(), Ok(()));
        assert_eq!(queue.barrier().try_recv(), Ok(()));
    }
}
