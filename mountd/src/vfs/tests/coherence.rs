//! Several clients on one volume: what a call has done is seen by every later call, wherever it is made.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use netfs_common::attr::{SetAttr, SetTime, Timestamp};
use netfs_common::id::Ino;
use netfs_common::wire::meta::NewInode;
use tokio::task::JoinSet;

use super::crowd::Client;
use super::world::{Random, Weather, World, name};
use crate::vfs::Caller;

const ROOT: Ino = Ino::ROOT;

async fn two(seed: u64) -> (Arc<World>, Client, Client) {
    let world = World::new(seed, 16);
    // What is buffered stays until somebody wants it.
    let late = |o: &mut crate::vfs::Options| o.writeback.age = Duration::from_secs(60);
    let (a, b) = (Client::mount(&world, late).await, Client::mount(&world, late).await);
    (world, a, b)
}

#[tokio::test]
async fn data_size_and_times_that_are_buffered_are_seen_by_the_other() {
    let (_world, mut a, mut b) = two(1).await;
    let f = a.create(ROOT, "f").await.unwrap();
    assert_eq!(b.lookup(ROOT, "f").await, Some(f));
    // Inline, in chunks, and in several of them.
    for len in [10, 3000, 5000, 200_000u32] {
        for round in 1..4u8 {
            let (writer, reader) = if round % 2 == 0 { (&mut b, &mut a) } else { (&mut a, &mut b) };
            let before = reader.stat(f).await;
            writer.write(f, 0, &vec![round; len as usize], 0).await.unwrap();
            let own = writer.stat(f).await;
            let seen = reader.stat(f).await;
            assert_eq!((seen.size, seen.mtime, seen.ctime), (own.size, own.mtime, own.ctime));
            assert!(seen.mtime > before.mtime);
            assert_eq!(reader.read(f, 0, len).await, vec![round; len as usize]);
            assert_eq!(writer.read(f, 0, len).await, vec![round; len as usize]);
        }
    }
    for size in [100_000, 150_000, 0, 100] {
        a.set(f, SetAttr { size: Some(size), ..SetAttr::default() }).await.unwrap();
        assert_eq!(b.stat(f).await.size, size);
        assert_eq!(b.read(f, 0, 200_000).await.len() as u64, size);
        b.write(f, size, b"end", 0).await.unwrap();
        assert_eq!(a.stat(f).await.size, size + 3);
        assert_eq!(a.read(f, size, 10).await, b"end");
    }
}

#[tokio::test]
async fn appends_of_both_are_all_there() {
    let (_world, mut a, mut b) = two(2).await;
    let f = a.create(ROOT, "f").await.unwrap();
    let mut expected = Vec::new();
    for i in 0..60u8 {
        let client = if i % 2 == 0 { &mut a } else { &mut b };
        // What the kernel takes for the end is where it was for this client.
        client.write(f, 3, &[i; 150], libc::O_APPEND).await.unwrap();
        expected.extend([i; 150]);
    }
    assert!(a.read(f, 0, 100_000).await == expected && b.read(f, 0, 100_000).await == expected);
}

#[tokio::test]
async fn attributes_that_are_set_are_seen_by_the_other() {
    let (_world, mut a, mut b) = two(3).await;
    let f = a.create(ROOT, "f").await.unwrap();
    a.write(f, 0, b"x", 0).await.unwrap();
    for round in 0..6u16 {
        let (one, other) = if round % 2 == 0 { (&mut a, &mut b) } else { (&mut b, &mut a) };
        other.stat(f).await;
        one.set(f, SetAttr { perm: Some(0o600 + round), ..SetAttr::default() }).await.unwrap();
        assert_eq!(other.stat(f).await.perm, 0o600 + round);
        let time = Timestamp { secs: 1000 + i64::from(round), nanos: 7 };
        one.set(f, SetAttr { mtime: Some(SetTime::To(time)), ..SetAttr::default() }).await.unwrap();
        assert_eq!(other.stat(f).await.mtime, time);
        let value = vec![round as u8; 20];
        one.set_xattr(f, &value).await;
        assert_eq!(other.xattr(f).await, Some(value));
        one.vfs.removexattr(f, b"user.x", Caller::default()).await.unwrap();
        assert_eq!(other.xattr(f).await, None);
        // A write that is buffered keeps its time behind one that was set by hand.
        one.write(f, 0, b"y", 0).await.unwrap();
        other
            .set(f, SetAttr { mtime: Some(SetTime::To(time)), ..SetAttr::default() })
            .await
            .unwrap();
        assert_eq!((one.stat(f).await.mtime, other.stat(f).await.mtime), (time, time));
    }
}

#[tokio::test]
async fn names_that_come_go_and_move_are_seen_by_the_other() {
    let (_world, mut a, mut b) = two(4).await;
    let caller = Caller::default();
    let d = a.vfs.make(ROOT, &name("d"), NewInode::Dir, 0o755, 0, caller).await.unwrap().attr.ino;
    assert_eq!(b.lookup(ROOT, "d").await, Some(d));
    let listed = |names: &[&str]| -> BTreeSet<Vec<u8>> {
        names.iter().chain(&[".", ".."]).map(|n| n.as_bytes().to_vec()).collect()
    };
    for round in 0..6 {
        let (one, other) = if round % 2 == 0 { (&mut a, &mut b) } else { (&mut b, &mut a) };
        assert_eq!(other.lookup(d, "f").await, None);
        assert_eq!(other.list(d).await, listed(&[]));
        let before = other.stat(d).await;
        let f = one.create(d, "f").await.unwrap();
        assert_eq!(other.lookup(d, "f").await, Some(f));
        assert!(other.stat(d).await.mtime > before.mtime);
        assert_eq!(other.list(d).await, listed(&["f"]));
        assert_eq!(one.list(d).await, listed(&["f"]));
        one.link(f, d, "g").await.unwrap();
        assert_eq!(other.stat(f).await.nlink, 2);
        assert_eq!(other.list(d).await, listed(&["f", "g"]));
        assert_eq!(other.lookup(d, "h").await, None);
        one.rename((d, "g"), (d, "h"), &[f]).await.unwrap();
        assert_eq!((other.lookup(d, "g").await, other.lookup(d, "h").await), (None, Some(f)));
        let e = other.create(d, "e").await.unwrap();
        assert_eq!(one.lookup(d, "e").await, Some(e));
        one.rename((d, "f"), (d, "e"), &[f, e]).await.unwrap();
        assert_eq!((other.lookup(d, "f").await, other.lookup(d, "e").await), (None, Some(f)));
        assert_eq!(other.stat(e).await.nlink, 0);
        assert_eq!(other.list(d).await, listed(&["e", "h"]));
        other.unlink(d, "e", f).await.unwrap();
        assert_eq!(one.lookup(d, "e").await, None);
        assert_eq!(one.stat(f).await.nlink, 1);
        one.unlink(d, "h", f).await.unwrap();
        assert_eq!(other.lookup(d, "h").await, None);
        one.close(f);
        other.close(e);
    }
}

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

#[derive(Default)]
struct File {
    data: Vec<u8>,
    perm: u16,
    /// Unless it was written to since.
    mtime: Option<Timestamp>,
    xattr: Option<Vec<u8>>,
    links: u32,
}

struct History {
    world: Arc<World>,
    clients: Vec<Client>,
    dirs: Vec<Ino>,
    names: BTreeMap<(Ino, &'static str), Ino>,
    files: HashMap<Ino, File>,
    r: Random,
    seed: u64,
    /// What happened, for people.
    log: Vec<String>,
}

impl History {
    async fn new(seed: u64, clients: usize, weather: Weather) -> History {
        let world = World::new(seed, 16);
        let mut all = Vec::new();
        for i in 0..clients {
            let age = Duration::from_millis(if seed.is_multiple_of(3) {
                1 + 20 * i as u64
            } else {
                60_000
            });
            all.push(Client::mount(&world, |o| o.writeback.age = age).await);
        }
        let made =
            all[0].vfs.make(ROOT, &name("dir"), NewInode::Dir, 0o755, 0, Caller::default()).await;
        world.weather(weather);
        History {
            world,
            clients: all,
            dirs: vec![ROOT, made.unwrap().attr.ino],
            names: BTreeMap::new(),
            files: HashMap::new(),
            r: Random(seed ^ 0xfeed),
            seed,
            log: Vec::new(),
        }
    }

    fn place(&mut self) -> (Ino, &'static str) {
        let dir = self.dirs[self.r.below(2) as usize];
        (dir, NAMES[self.r.below(5) as usize])
    }

    /// A file that there is.
    fn file(&mut self) -> Option<Ino> {
        let n = self.names.len() as u64;
        if n == 0 {
            return None;
        }
        let at = self.r.below(n) as usize;
        self.names.values().nth(at).copied()
    }

    fn span(&mut self) -> (u64, u32) {
        let space = if self.r.below(4) == 0 { 150_000 } else { 6000 };
        let most = if self.r.below(6) == 0 { 70_000 } else { 3000 };
        (self.r.below(space), 1 + self.r.below(most) as u32)
    }

    fn unname(&mut self, place: (Ino, &'static str)) {
        let Some(ino) = self.names.remove(&place) else { return };
        let file = self.files.get_mut(&ino).unwrap();
        file.links -= 1;
        if file.links == 0 {
            self.files.remove(&ino);
            self.clients.iter_mut().for_each(|c| c.close(ino));
        }
    }

    async fn step(&mut self) {
        let who = self.r.below(self.clients.len() as u64) as usize;
        let what = self.r.below(24);
        let (offset, len) = self.span();
        let place = self.place();
        let other = self.place();
        let file = self.file();
        self.log.push(format!("{who}: {what} {file:?} {offset}+{len} {place:?} {other:?}"));
        if let Some(ino) = file.filter(|ino| !self.clients[who].vfs.known_inodes().contains(ino)) {
            // As the kernel does, which comes to an inode by a name.
            let (dir, n) = *self.names.iter().find(|(_, i)| **i == ino).unwrap().0;
            assert_eq!(self.clients[who].lookup(dir, n).await, Some(ino));
        }
        match (what, file) {
            (0..5, Some(ino)) => {
                let byte = self.r.below(255) as u8 + 1;
                let append = self.r.below(4) == 0;
                let model = self.files.get_mut(&ino).unwrap();
                let at = if append { model.data.len() } else { offset as usize };
                let end = at + len as usize;
                model.data.resize(model.data.len().max(end), 0);
                model.data[at..end].fill(byte);
                model.mtime = None;
                self.log.push(format!("  {byte} at {at}"));
                let flags = if append { libc::O_APPEND } else { 0 };
                let data = vec![byte; len as usize];
                let written = self.clients[who].write(ino, offset, &data, flags).await;
                assert_eq!(written, Ok(len));
            }
            (5..9, Some(ino)) => {
                let model = &self.files[&ino].data;
                let from = (offset as usize).min(model.len());
                let to = (offset as usize + len as usize).min(model.len());
                let got = self.clients[who].read(ino, offset, len).await;
                same(&got, &model[from..to], &format!("{ino} read by {who} at {offset}+{len}"));
            }
            (9, Some(ino)) => {
                let size = if self.r.below(3) == 0 { 0 } else { offset };
                self.files.get_mut(&ino).unwrap().data.resize(size as usize, 0);
                self.files.get_mut(&ino).unwrap().mtime = None;
                let set = SetAttr { size: Some(size), ..SetAttr::default() };
                assert_eq!(self.clients[who].set(ino, set).await.unwrap().size, size);
            }
            (10 | 11, Some(ino)) => {
                let attr = self.clients[who].stat(ino).await;
                let model = &self.files[&ino];
                assert_eq!(attr.size, model.data.len() as u64);
                assert_eq!((attr.perm, attr.nlink), (model.perm, model.links));
                if let Some(mtime) = model.mtime {
                    assert_eq!(attr.mtime, mtime);
                }
            }
            (12, Some(ino)) => {
                let perm = 0o600 + self.r.below(64) as u16;
                self.files.get_mut(&ino).unwrap().perm = perm;
                let set = SetAttr { perm: Some(perm), ..SetAttr::default() };
                self.clients[who].set(ino, set).await.unwrap();
            }
            (13, Some(ino)) => {
                let value = vec![self.r.below(256) as u8; 9];
                self.clients[who].set_xattr(ino, &value).await;
                self.files.get_mut(&ino).unwrap().xattr = Some(value);
            }
            (14, Some(ino)) => {
                assert_eq!(self.clients[who].xattr(ino).await, self.files[&ino].xattr);
            }
            (15, Some(ino)) => {
                let time = Timestamp { secs: 1 + self.r.below(1 << 20) as i64, nanos: 0 };
                self.files.get_mut(&ino).unwrap().mtime = Some(time);
                let set = SetAttr { mtime: Some(SetTime::To(time)), ..SetAttr::default() };
                self.clients[who].set(ino, set).await.unwrap();
            }
            (16, Some(ino)) => {
                let (ino, fh) = self.clients[who].handle(ino).await;
                self.clients[who].vfs.fsync(ino, fh, false).await.unwrap();
            }
            (17, Some(ino)) if !self.names.contains_key(&place) => {
                self.clients[who].link(ino, place.0, place.1).await.unwrap();
                self.names.insert(place, ino);
                self.files.get_mut(&ino).unwrap().links += 1;
            }
            (18, _) if self.names.contains_key(&place) => {
                let ino = self.names[&place];
                self.clients[who].unlink(place.0, place.1, ino).await.unwrap();
                self.unname(place);
            }
            (19, _) if self.names.contains_key(&place) => {
                let inos: Vec<Ino> =
                    [place, other].iter().filter_map(|p| self.names.get(p)).copied().collect();
                self.clients[who].rename(place, other, &inos).await.unwrap();
                let same = self.names.get(&other) == Some(&inos[0]);
                if !same {
                    self.unname(other);
                    let ino = self.names.remove(&place).unwrap();
                    self.names.insert(other, ino);
                }
            }
            (20, _) => {
                let expected: BTreeSet<Vec<u8>> = (self.names.keys())
                    .filter(|(dir, _)| *dir == place.0)
                    .map(|(_, n)| n.as_bytes().to_vec())
                    .chain([b".".to_vec(), b"..".to_vec()])
                    .chain((place.0 == ROOT).then(|| b"dir".to_vec()))
                    .collect();
                assert_eq!(self.clients[who].list(place.0).await, expected);
            }
            (21, _) => {
                let trouble = self.r.below(8);
                self.log.push(format!("  trouble {trouble}"));
                match trouble {
                    0 => self.world.restart_data(),
                    1 => self.world.kill_meta(),
                    2 | 3 => self.world.cut(),
                    _ => tokio::time::sleep(Duration::from_millis(self.r.below(25))).await,
                }
            }
            _ => {
                let found = self.clients[who].lookup(place.0, place.1).await;
                assert_eq!(found, self.names.get(&place).copied(), "{place:?} seen by {who}");
                if found.is_none() {
                    let ino = self.clients[who].create(place.0, place.1).await.unwrap();
                    self.names.insert(place, ino);
                    let perm = 0o644;
                    self.files.insert(ino, File { perm, links: 1, ..File::default() });
                }
            }
        }
    }

    /// Everything, by everybody.
    async fn compare(&mut self) {
        for who in 0..self.clients.len() {
            for (dir, n) in self.dirs.iter().flat_map(|d| NAMES.iter().map(move |n| (*d, *n))) {
                let found = self.clients[who].lookup(dir, n).await;
                assert_eq!(found, self.names.get(&(dir, n)).copied(), "{n} seen by {who}");
            }
            for (ino, model) in &self.files {
                let got = self.clients[who].read(*ino, 0, 1 << 20).await;
                same(&got, &model.data, &format!("{ino} read by {who}"));
            }
        }
    }
}

/// Panics with the first difference.
fn same(got: &[u8], expected: &[u8], what: &str) {
    if got != expected {
        let at = got.iter().zip(expected).position(|(a, b)| a != b);
        let bytes = at.map(|at| (at, got[at], expected[at]));
        panic!(
            "{what}: {} bytes for {}, the first that differs: {bytes:?}",
            got.len(),
            expected.len()
        );
    }
}

impl Drop for History {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}:\n{}", self.seed, self.log.join("\n"));
            if let Ok(store) = self.world.meta.try_lock() {
                let table = &store.leasing.table;
                for client in &self.clients {
                    for ino in self.files.keys() {
                        eprintln!("{:?}", client.vfs.cache.table.peek(*ino));
                    }
                }
                for ino in self.files.keys().chain(&self.dirs) {
                    eprintln!("{ino}: {:?} {:?}", table.holders(*ino), table.waiting(*ino));
                }
                for client in &self.clients {
                    let session = super::world::session(&client.vfs);
                    eprintln!("{session:?}: {:?}", table.outstanding(session));
                }
            }
        }
    }
}

async fn history(seed: u64, clients: usize, weather: Weather) {
    let mut history = History::new(seed, clients, weather).await;
    for _ in 0..200 {
        let step = tokio::time::timeout(Duration::from_secs(20), history.step()).await;
        step.expect("stuck");
    }
    history.compare().await;
}

/// Many at once: they mostly wait.
async fn histories(seeds: std::ops::Range<u64>, clients: usize, weather: Weather) {
    // More of them, for a longer search.
    let more: u64 =
        std::env::var("NETFS_TEST_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    // One of them, many times, for a closer look.
    let only: Option<u64> = std::env::var("NETFS_TEST_SEED").ok().and_then(|n| n.parse().ok());
    let seeds = seeds.start * more..seeds.start * more + (seeds.end - seeds.start) * more;
    let all = async {
        let mut running = JoinSet::new();
        for seed in seeds.clone() {
            if running.len() >= 16 {
                running.join_next().await.unwrap().unwrap();
            }
            if only.is_none() || seeds.contains(&only.unwrap_or(seed)) {
                running.spawn_local(history(only.unwrap_or(seed), clients, weather));
            }
        }
        while let Some(done) = running.join_next().await {
            done.unwrap();
        }
    };
    tokio::task::LocalSet::new().run_until(all).await;
}

#[tokio::test]
async fn histories_of_two_clients_in_fair_weather() {
    histories(0..60, 2, Weather::default()).await;
}

#[tokio::test]
async fn histories_of_two_clients_over_a_bad_network() {
    histories(1000..1060, 2, Weather { delay_ms: 2, loss: 60 }).await;
}

#[tokio::test]
async fn histories_of_three_clients_over_a_bad_network() {
    histories(2000..2060, 3, Weather { delay_ms: 1, loss: 100 }).await;
}
