//! What the kernel keeps, and how it is taken back when that takes time.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use netfs_common::attr::SetAttr;
use netfs_common::id::Ino;
use netfs_common::name::Name;
use netfs_common::wire::meta::{NewInode, Request};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::names::hold;
use super::world::{Kernel, World, done, file, name, read, write};
use crate::session::lock;
use crate::vfs::{Caller, KernelCache, Looked, Vfs};

const ROOT: Ino = Ino::ROOT;
const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(5);
const A_WHILE: Duration = Duration::from_millis(20);

/// What a kernel does with a notification.
#[derive(Clone, Copy, PartialEq)]
enum Does {
    AtOnce,
    /// After so long.
    Takes(Duration),
    /// It waits for a lock until the test lets go.
    Waits,
}

/// A kernel that takes its time.
struct SlowKernel {
    told: Mutex<Vec<String>>,
    waiting: Mutex<Vec<oneshot::Sender<()>>>,
    pages: Does,
    names: Does,
}

impl SlowKernel {
    fn of(vfs: &Vfs, pages: Does, names: Does) -> Arc<SlowKernel> {
        let kernel = Arc::new(SlowKernel {
            told: Mutex::default(),
            waiting: Mutex::default(),
            pages,
            names,
        });
        vfs.set_kernel(kernel.clone());
        kernel
    }

    fn note(&self, what: String, does: Does) -> oneshot::Receiver<()> {
        lock(&self.told).push(what);
        let (tell, wait) = oneshot::channel();
        match does {
            Does::AtOnce => return done(),
            Does::Waits => lock(&self.waiting).push(tell),
            Does::Takes(time) => {
                tokio::spawn(async move {
                    tokio::time::sleep(time).await;
                    let _ = tell.send(());
                });
            }
        }
        wait
    }

    fn let_go(&self) {
        for waiting in lock(&self.waiting).drain(..) {
            let _ = waiting.send(());
        }
    }

    fn was_told(&self, what: &str) -> bool {
        lock(&self.told).iter().any(|told| told == what)
    }
}

impl KernelCache for SlowKernel {
    fn inval_attr(&self, _: Ino) {}

    fn inval_data(&self, _: Ino, _: u64, _: u64) {}

    fn inval_entry(&self, _: Ino, _: &Name) {}

    fn barrier(&self) -> oneshot::Receiver<()> {
        done()
    }

    fn drop_attr(&self, _: Ino) -> oneshot::Receiver<()> {
        done()
    }

    fn drop_data(&self, ino: Ino, offset: u64, _: u64) -> oneshot::Receiver<()> {
        self.note(format!("pages {ino} from {offset}"), self.pages)
    }

    fn drop_inodes(&self, inodes: Vec<Ino>) -> oneshot::Receiver<()> {
        self.note(format!("pages of {}", inodes.len()), self.pages)
    }

    fn drop_names(&self, parent: Ino, names: Vec<Name>) -> oneshot::Receiver<()> {
        self.note(format!("names {parent} {names:?}"), self.names)
    }

    fn drop_unused(&self, _: Vec<Ino>) -> Option<oneshot::Receiver<()>> {
        Some(done())
    }

    fn remove_name(&self, _: Ino, _: Name) -> oneshot::Receiver<()> {
        done()
    }

    fn drop_all_names(&self) -> bool {
        lock(&self.told).push("all names".to_owned());
        true
    }
}

#[tokio::test]
async fn a_restarted_server_is_told_what_was_held_when_the_kernel_has_dropped_the_rest() {
    for (pages, names) in [(Does::Waits, Does::AtOnce), (Does::AtOnce, Does::Waits)] {
        let world = World::new(1, 16);
        let vfs = world.mount().await;
        let kernel = SlowKernel::of(&vfs, pages, names);
        file(&vfs, "f").await;
        let reclaim = hold(&world, |request| matches!(request, Request::Reclaim { .. }));
        world.kill_meta();
        while lock(&kernel.waiting).is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(timeout(A_WHILE, reclaim.caught.notified()).await.is_err());
        kernel.let_go();
        timeout(SOON, reclaim.caught.notified()).await.unwrap();
        reclaim.release.notify_one();
    }
}

#[tokio::test]
async fn what_waits_in_the_kernel_does_not_keep_a_session_from_its_server() {
    let world = World::new(2, 16);
    let vfs = world.mount().await;
    let kernel = SlowKernel::of(&vfs, Does::Waits, Does::Waits);
    let f = file(&vfs, "f").await;
    let begun = Instant::now();
    world.kill_meta();
    // No lock keeps it from that.
    let told = async {
        while !kernel.was_told("all names") {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(SOON, told).await.unwrap();
    timeout(SOON, vfs.getattr(f.0, None)).await.unwrap().unwrap();
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn pages_go_after_the_term_although_a_call_waits_in_a_directory() {
    let world = World::new(3, 16);
    world.term_ms.store(300, Ordering::SeqCst);
    let vfs = world.mount().await;
    let kernel = SlowKernel::of(&vfs, Does::AtOnce, Does::Waits);
    let f = file(&vfs, "f").await;
    write(&vfs, f, 0, b"content").await.unwrap();
    vfs.fsync(f.0, f.1, false).await.unwrap();
    world.silent.store(true, Ordering::SeqCst);
    let taken = async {
        while !kernel.was_told("pages of 2") || lock(&kernel.waiting).is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, taken).await.unwrap();
    let told = lock(&kernel.told).clone();
    let (pages, names) = (
        told.iter().position(|t| t == "pages of 2"),
        told.iter().position(|t| t.starts_with("names")),
    );
    assert!(pages < names, "{told:?}");
}

#[tokio::test]
async fn a_busy_kernel_is_waited_for_and_one_that_is_stuck_is_not() {
    let world = World::new(4, 16);
    let vfs = world.mount().await;
    let f = file(&vfs, "f").await;
    let set = SetAttr { size: Some(40 * MIB), ..SetAttr::default() };
    vfs.setattr(f.0, set, None, Caller::default()).await.unwrap();
    let node = vfs.cache.table.obtain(f.0);
    let busy = SlowKernel::of(&vfs, Does::Takes(Duration::from_millis(30)), Does::AtOnce);
    vfs.take_pages(&node, 0, u64::MAX).await;
    let parts: Vec<String> =
        (0..5).map(|i| format!("pages {} from {}", f.0, i * 8 * MIB)).collect();
    assert_eq!(*lock(&busy.told), parts, "each once, and to the end");

    let vfs = world.mount().await;
    let node = vfs.cache.table.obtain(f.0);
    vfs.getattr(f.0, None).await.unwrap();
    let stuck = SlowKernel::of(&vfs, Does::Waits, Does::AtOnce);
    timeout(SOON, vfs.take_pages(&node, 0, u64::MAX)).await.unwrap();
    assert_eq!(*lock(&stuck.told), parts, "those behind it are not forgotten");
}

#[tokio::test]
async fn a_name_is_taken_back_behind_the_answer_that_lets_the_kernel_keep_it() {
    let world = World::new(5, 16);
    let (a, b) = (world.mount().await, world.mount().await);
    let kernel = Arc::new(Kernel::default());
    b.set_kernel(kernel.clone());
    let f = file(&a, "f").await;
    let looked = b.lookup(ROOT, &name("f")).await.unwrap();
    let (looked, telling) = b.confirm(ROOT, &name("f"), looked);
    let Looked::Found(entry) = &looked else { panic!() };
    assert!(entry.ttl > Duration::ZERO && telling.is_some());
    let removed = {
        let a = Arc::clone(&a);
        tokio::spawn(async move { a.unlink(ROOT, &name("f")).await })
    };
    tokio::time::sleep(A_WHILE).await;
    assert!(!removed.is_finished());
    assert!(!lock(&kernel.told).contains(&"entry 1 \"f\"".to_owned()));
    drop(telling);
    timeout(SOON, removed).await.unwrap().unwrap().unwrap();
    assert!(lock(&kernel.told).contains(&"entry 1 \"f\"".to_owned()));
    // Whoever comes later with what was true before is not believed.
    let (Looked::Found(entry), None) = b.confirm(ROOT, &name("f"), looked) else { panic!() };
    assert_eq!((entry.attr.ino, entry.ttl), (f.0, Duration::ZERO));
}

#[tokio::test]
async fn an_answer_that_does_not_get_out_holds_nobody_up() {
    let world = World::new(6, 16);
    let (a, b) = (world.mount().await, world.mount().await);
    let kernel = Arc::new(Kernel::default());
    b.set_kernel(kernel.clone());
    file(&a, "f").await;
    let looked = b.lookup(ROOT, &name("f")).await.unwrap();
    let (_, _telling) = b.confirm(ROOT, &name("f"), looked);
    timeout(SOON, a.unlink(ROOT, &name("f"))).await.unwrap().unwrap();
    assert!(lock(&kernel.told).contains(&"all names".to_owned()));
}

#[tokio::test]
async fn pages_that_a_mapping_reads_past_the_cache_count() {
    let world = World::new(7, 16);
    let a = world.mount_with(|o| o.writeback.age = 10 * SOON).await;
    let kernel = Arc::new(Kernel::default());
    a.set_kernel(kernel.clone());
    let (ino, _) = file(&a, "f").await;
    // With company, writers go past the pages.
    a.company.store(true, Ordering::SeqCst);
    let opened = a.open(ino, libc::O_RDWR).await.unwrap();
    assert!(opened.direct_io);
    let f = (ino, opened.fh);
    write(&a, f, 0, &[1; 8192]).await.unwrap();
    let taken = |kernel: &Kernel| {
        let told = std::mem::take(&mut *lock(&kernel.told));
        told.iter().any(|t| t.starts_with(&format!("data {ino} ")))
    };
    write(&a, f, 0, &[2; 8192]).await.unwrap();
    taken(&kernel);
    write(&a, f, 0, &[3; 8192]).await.unwrap();
    assert!(!taken(&kernel), "nobody has read");
    assert!(a.try_read(ino, f.1, 100, 300).is_some());
    write(&a, f, 0, &[4; 8192]).await.unwrap();
    assert!(!taken(&kernel), "not a page");
    assert!(a.try_read(ino, f.1, 4096, 4096).is_some());
    write(&a, f, 0, &[5; 8192]).await.unwrap();
    assert!(taken(&kernel));
    assert_eq!(read(&a, f, 0, 1).await, [5]);
}

#[tokio::test]
async fn an_inode_that_was_forgotten_here_may_have_pages_in_the_kernel() {
    let world = World::new(8, 16);
    let vfs = world.mount().await;
    let (ino, _) = file(&vfs, "f").await;
    vfs.cache.table.remove(ino);
    assert!(vfs.cache.table.obtain(ino).state().told);
}

#[tokio::test]
async fn entries_of_an_old_page_do_not_stay_in_the_kernel_s_listing() {
    let world = World::new(9, 16);
    let (a, b) = (world.mount().await, world.mount().await);
    let kernel = Arc::new(Kernel::default());
    a.set_kernel(kernel.clone());
    for i in 0..20 {
        let n = name(&format!("f{i}"));
        a.make(ROOT, &n, NewInode::File, 0o644, 0, Caller::default()).await.unwrap();
    }
    let fh = a.opendir(ROOT, 0).unwrap().fh;
    let first = a.readdir(ROOT, fh, 0, 10).await.unwrap();
    b.unlink(ROOT, &name("f19")).await.unwrap();
    lock(&kernel.told).clear();
    let after = first.last().unwrap().cookie;
    let rest = a.readdir(ROOT, fh, after, 100).await.unwrap();
    assert_eq!(first.len() + rest.len(), 22, "those of the page that was there");
    assert!(lock(&kernel.told).contains(&format!("data {ROOT} 0 0")));
    lock(&kernel.told).clear();
    assert_eq!(a.readdir(ROOT, fh, 0, 100).await.unwrap().len(), 21);
    assert!(lock(&kernel.told).is_empty());
}
