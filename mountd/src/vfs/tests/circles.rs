//! Clients that want each other's files, and kernels whose notifications wait for requests: nobody waits for ever.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use netfs_common::attr::SetAttr;
use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::name::Name;
use netfs_common::wire::meta::RenameMode;
use tokio::sync::{Notify, oneshot};

use super::world::{Random, Weather, World, done, file, name};
use crate::insight::Of;
use crate::session::lock;
use crate::vfs::{Caller, KernelCache, Options, Vfs};

const ROOT: Ino = Ino::ROOT;
const PAGE: u64 = 4096;

/// A kernel that holds locks while a request is under way: of the pages that are read or written, and of a directory in which
/// a name is looked up or changed. A notification about them waits.
#[derive(Default)]
struct BlockingKernel {
    locked: Mutex<Locked>,
    unlocked: Notify,
}

#[derive(Default)]
struct Locked {
    pages: Vec<(Ino, u64, u64)>,
    dirs: Vec<Ino>,
    blocked: u64,
}

/// A lock of the kernel.
struct Held<'a>(&'a BlockingKernel, Ino, Option<(u64, u64)>);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut locked = lock(&self.0.locked);
        match self.2 {
            Some((a, b)) => {
                let at = locked.pages.iter().position(|p| *p == (self.1, a, b)).unwrap();
                locked.pages.swap_remove(at);
            }
            None => {
                let at = locked.dirs.iter().position(|d| *d == self.1).unwrap();
                locked.dirs.swap_remove(at);
            }
        }
        drop(locked);
        self.0.unlocked.notify_waiters();
    }
}

impl BlockingKernel {
    fn pages(&self, ino: Ino, offset: u64, len: u64) -> Held<'_> {
        let range = (offset / PAGE * PAGE, (offset + len).next_multiple_of(PAGE));
        lock(&self.locked).pages.push((ino, range.0, range.1));
        Held(self, ino, Some(range))
    }

    fn dir(&self, ino: Ino) -> Held<'_> {
        lock(&self.locked).dirs.push(ino);
        Held(self, ino, None)
    }

    /// Resolves when nothing stands in the way any more.
    fn when(
        self: &Arc<Self>,
        free: impl Fn(&Locked) -> bool + Send + 'static,
    ) -> oneshot::Receiver<()> {
        let (tell, wait) = oneshot::channel();
        let this = Arc::clone(self);
        if free(&lock(&this.locked)) {
            return done();
        }
        lock(&this.locked).blocked += 1;
        tokio::spawn(async move {
            loop {
                let unlocked = this.unlocked.notified();
                tokio::pin!(unlocked);
                unlocked.as_mut().enable();
                if free(&lock(&this.locked)) {
                    break;
                }
                unlocked.await;
            }
            let _ = tell.send(());
        });
        wait
    }
}

struct Handle(Arc<BlockingKernel>);

impl KernelCache for Handle {
    fn inval_attr(&self, _: Ino) {}

    fn inval_data(&self, _: Ino, _: u64, _: u64) {}

    fn inval_entry(&self, _: Ino, _: &Name) {}

    fn barrier(&self) -> oneshot::Receiver<()> {
        done()
    }

    fn drop_attr(&self, _: Ino) -> oneshot::Receiver<()> {
        done()
    }

    fn drop_data(&self, ino: Ino, offset: u64, len: u64) -> oneshot::Receiver<()> {
        let end = if len == 0 { u64::MAX } else { offset.saturating_add(len) };
        self.0.when(move |l| !l.pages.iter().any(|(i, a, b)| *i == ino && *a < end && offset < *b))
    }

    fn drop_inodes(&self, inodes: Vec<Ino>) -> oneshot::Receiver<()> {
        self.0.when(move |l| !l.pages.iter().any(|(ino, ..)| inodes.contains(ino)))
    }

    fn drop_names(&self, parent: Ino, _: Vec<Name>) -> oneshot::Receiver<()> {
        self.0.when(move |l| !l.dirs.contains(&parent))
    }

    fn drop_unused(&self, _: Vec<Ino>) -> Option<oneshot::Receiver<()>> {
        Some(done())
    }

    fn remove_name(&self, _: Ino, _: Name) -> oneshot::Receiver<()> {
        done()
    }

    fn drop_all_names(&self) -> bool {
        true
    }
}

struct Client {
    vfs: Arc<Vfs>,
    kernel: Arc<BlockingKernel>,
    files: [(Ino, u64); 2],
}

async fn clients(world: &Arc<World>, n: usize) -> Vec<Arc<Client>> {
    let set = |o: &mut Options| o.writeback.age = Duration::from_millis(5);
    let first = world.mount_with(set).await;
    let inos = [file(&first, "a").await.0, file(&first, "b").await.0];
    let mut all = Vec::new();
    for i in 0..n {
        let vfs = if i == 0 { Arc::clone(&first) } else { world.mount_with(set).await };
        let kernel = Arc::new(BlockingKernel::default());
        vfs.set_kernel(Arc::new(Handle(Arc::clone(&kernel))));
        let mut files = [(Ino(0), 0); 2];
        for (file, ino) in files.iter_mut().zip(inos) {
            *file = (ino, vfs.open(ino, libc::O_RDWR).await.unwrap().fh);
        }
        all.push(Arc::new(Client { vfs, kernel, files }));
    }
    all
}

impl Client {
    async fn step(&self, r: u64, first: usize) {
        let (f, g) = (self.files[first], self.files[1 - first]);
        let (at, len) = ((r >> 8) % 60_000, 1 + (r >> 24) % 9000);
        match r % 9 {
            0 | 1 => {
                let _pages = self.kernel.pages(f.0, at, len);
                let data = Bytes::from(vec![r as u8; len as usize]);
                self.vfs.write(f.0, f.1, at, data, libc::O_RDWR, 0).await.unwrap();
            }
            2 | 3 => {
                let _pages = self.kernel.pages(g.0, at, len);
                self.vfs.read(g.0, g.1, at, len as u32).await.unwrap();
            }
            4 => {
                let copied = self.vfs.copy_file_range(f.0, f.1, 0, g.0, g.1, 0, 50_000).await;
                copied.unwrap();
            }
            5 => {
                let set = SetAttr { size: Some(at), ..SetAttr::default() };
                self.vfs.setattr(g.0, set, None, Caller::default()).await.unwrap();
            }
            6 => self.vfs.fsync(f.0, f.1, false).await.unwrap(),
            7 => {
                let _dir = self.kernel.dir(ROOT);
                let names = [name("a"), name("b")];
                let (from, to) = (&names[first], &names[1 - first]);
                let exchange = RenameMode::Exchange;
                self.vfs.rename(ROOT, from, ROOT, to, exchange).await.unwrap();
            }
            _ => loop {
                let dir = self.kernel.dir(ROOT);
                let name = name(if first == 0 { "a" } else { "b" });
                match self.vfs.lookup(ROOT, &name).await {
                    // The kernel lets go of the directory and begins again.
                    Err(Errno::ESTALE) => drop(dir),
                    looked => {
                        looked.unwrap();
                        return;
                    }
                }
                tokio::task::yield_now().await;
            },
        }
    }
}

/// Several programs on each client, all at once.
async fn at_once(seed: u64, n: usize, weather: Weather) -> u64 {
    let world = World::new(seed, 16);
    let clients = clients(&world, n).await;
    world.weather(weather);
    let mut programs = tokio::task::JoinSet::new();
    for (i, client) in clients.iter().enumerate() {
        for program in 0..3u64 {
            let (client, all) = (Arc::clone(client), clients.clone());
            let mut random = Random(seed * 100 + i as u64 * 10 + program);
            programs.spawn(async move {
                for step in 0..25 {
                    let r = random.next();
                    let it = client.step(r, (i + step) % 2);
                    let it = tokio::time::timeout(Duration::from_secs(20), it).await;
                    if it.is_err() {
                        for client in &all {
                            for op in client.vfs.insight().operations(&Of::All, 20).0 {
                                eprintln!("{:?}: {op:?}", *client.vfs.session_id().borrow());
                            }
                        }
                        panic!("seed {seed}: {i}.{program}: {} is stuck", r % 9);
                    }
                }
            });
        }
    }
    while let Some(program) = programs.join_next().await {
        program.unwrap();
    }
    world.weather(Weather::default());
    // All see the same in the end.
    for which in 0..2 {
        let mut seen = HashSet::new();
        for client in &clients {
            let (ino, fh) = client.files[which];
            seen.insert(client.vfs.read(ino, fh, 0, 1 << 20).await.unwrap().to_vec());
        }
        assert_eq!(seen.len(), 1, "seed {seed}");
    }
    clients.iter().map(|c| lock(&c.kernel.locked).blocked).sum()
}

#[tokio::test]
async fn two_clients_at_the_same_two_files_in_opposite_orders() {
    let mut blocked = 0;
    for seed in 0..12 {
        blocked += at_once(seed, 2, Weather::default()).await;
    }
    assert!(blocked > 50, "only {blocked} notifications had to wait");
}

#[tokio::test]
async fn three_clients_over_a_bad_network() {
    for seed in 100..106 {
        at_once(seed, 3, Weather { delay_ms: 1, loss: 150 }).await;
    }
}
