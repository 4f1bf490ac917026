//! Files that another client removes: what a kernel keeps of them only by habit goes, what is in use stays.

use std::sync::Arc;
use std::time::Duration;

use netfs_common::id::Ino;
use netfs_common::wire::meta::{NewInode, Request};

use super::names::hold;
use super::world::{Kernel, World, file, name, read, write};
use crate::session::lock;
use crate::vfs::{Caller, Looked, Vfs};

const ROOT: Ino = Ino::ROOT;
/// Well above the second after which a kernel is told again.
const SOON: Duration = Duration::from_secs(10);

async fn until(done: impl Fn() -> bool) {
    let waited = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(SOON, waited).await.unwrap();
}

/// One that changes things, and one that looks, with its kernel.
async fn two() -> (Arc<World>, Arc<Vfs>, Arc<Vfs>, Arc<Kernel>) {
    let world = World::new(1, 16);
    let (a, b) = (world.mount().await, world.mount().await);
    let kernel = Arc::new(Kernel::default());
    b.set_kernel(kernel.clone());
    (world, a, b, kernel)
}

async fn found(vfs: &Arc<Vfs>, dir: Ino, n: &str) -> Option<Ino> {
    match vfs.lookup(dir, &name(n)).await.unwrap() {
        Looked::Found(entry) => Some(entry.attr.ino),
        Looked::Absent { .. } => None,
    }
}

fn told(kernel: &Kernel, what: &str) -> usize {
    lock(&kernel.told).iter().filter(|told| *told == what).count()
}

fn given_up(world: &World, ino: Ino) -> bool {
    lock(&world.meta).forgotten.contains(&ino)
}

#[tokio::test]
async fn what_another_client_removes_is_forgotten_by_the_kernel_and_given_up() {
    let (world, a, b, kernel) = two().await;
    let f = file(&a, "f").await;
    assert_eq!(found(&b, ROOT, "f").await, Some(f.0));
    a.unlink(ROOT, &name("f")).await.unwrap();
    world.push_orphans(&b, &[f.0]).await;
    until(|| told(&kernel, &format!("unused {:?}", [f.0])) > 0).await;
    assert!(!given_up(&world, f.0), "the kernel may have it open");
    b.forget(f.0, 1);
    until(|| given_up(&world, f.0)).await;
    assert_eq!(lock(&world.meta).forgotten.len(), 1, "the one that removed it has it open");
    a.release(f.0, f.1);
    a.forget(f.0, 1);
    until(|| !lock(&world.meta).inodes.contains_key(&f.0)).await;
}

#[tokio::test]
async fn what_the_kernel_does_not_know_is_given_up_at_once() {
    let (world, a, b, kernel) = two().await;
    let f = file(&a, "f").await.0;
    assert_eq!(found(&b, ROOT, "f").await, Some(f));
    b.forget(f, 1);
    a.unlink(ROOT, &name("f")).await.unwrap();
    // It may be told of what it has never seen, and twice.
    world.push_orphans(&b, &[f, Ino(4711)]).await;
    world.push_orphans(&b, &[f]).await;
    until(|| given_up(&world, f) && given_up(&world, Ino(4711))).await;
    assert_eq!(told(&kernel, &format!("unused {:?}", [f])), 0);
}

#[tokio::test]
async fn what_is_open_can_be_used_until_it_is_closed() {
    let (world, a, b, kernel) = two().await;
    let f = file(&a, "f").await.0;
    assert_eq!(found(&b, ROOT, "f").await, Some(f));
    let fh = b.open(f, libc::O_RDWR).await.unwrap().fh;
    write(&b, (f, fh), 0, &[1; 9000]).await.unwrap();
    a.unlink(ROOT, &name("f")).await.unwrap();
    world.push_orphans(&b, &[f]).await;
    assert_eq!(read(&b, (f, fh), 0, 10_000).await, [1; 9000]);
    write(&b, (f, fh), 9000, &[2; 50]).await.unwrap();
    assert_eq!(read(&b, (f, fh), 8999, 100).await, [&[1][..], &[2; 50]].concat());
    // The kernel is told again for as long as it keeps it, since it does not say what for.
    until(|| told(&kernel, &format!("unused {:?}", [f])) > 2).await;
    assert!(!given_up(&world, f));
    write(&b, (f, fh), 0, &[3; 9000]).await.unwrap();
    b.release(f, fh);
    b.forget(f, 1);
    until(|| given_up(&world, f)).await;
    // What was buffered is for nobody.
    assert_eq!(b.stats().dirty_bytes, 0);
    let tries = lock(&kernel.told).len();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(lock(&kernel.told).len(), tries);
}

#[tokio::test]
async fn an_answer_that_comes_after_the_end_leads_to_nothing_that_is_gone() {
    let (world, a, b, _) = two().await;
    let f = file(&a, "f").await.0;
    let held = hold(&world, |request| matches!(request, Request::Lookup { .. }));
    let looking = tokio::spawn({
        let b = Arc::clone(&b);
        async move { found(&b, ROOT, "f").await }
    });
    held.caught.notified().await;
    *lock(&world.held) = None;
    a.unlink(ROOT, &name("f")).await.unwrap();
    world.push_orphans(&b, &[f]).await;
    until(|| given_up(&world, f)).await;
    held.release.notify_one();
    assert_eq!(looking.await.unwrap(), None);
    assert!(b.known_inodes().is_empty());
}

#[tokio::test]
async fn a_directory_goes_with_the_names_that_the_kernel_keeps_in_it() {
    let (world, a, b, kernel) = two().await;
    let caller = Caller::default();
    let mut dirs = Vec::new();
    for n in ["d", "again"] {
        let made = a.make(ROOT, &name(n), NewInode::Dir, 0o755, 0, caller).await.unwrap();
        dirs.push(made.attr.ino);
        assert_eq!(found(&b, ROOT, n).await, Some(made.attr.ino));
        assert_eq!(found(&b, made.attr.ino, "absent").await, None);
        a.rmdir(ROOT, &name(n)).await.unwrap();
    }
    // Somebody asks: the kernel drops what it had by that name, which may lead elsewhere by now.
    a.make(ROOT, &name("again"), NewInode::Dir, 0o755, 0, caller).await.unwrap();
    assert!(found(&b, ROOT, "again").await.is_some());
    world.push_orphans(&b, &dirs).await;
    until(|| told(&kernel, &format!("gone {ROOT} \"d\"")) > 0).await;
    until(|| told(&kernel, &format!("unused {dirs:?}")) > 3).await;
    assert_eq!(told(&kernel, &format!("gone {ROOT} \"d\"")), 1);
    assert_eq!(told(&kernel, &format!("gone {ROOT} \"again\"")), 0);
}
