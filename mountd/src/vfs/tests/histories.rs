//! Seeded random histories of a file, compared byte for byte with a plain vector.

use std::sync::Arc;
use std::time::Duration;

use netfs_common::attr::SetAttr;
use netfs_common::id::{Ino, ServerId};

use super::data_server::Mood;
use super::world::{Random, Weather, World, file, name, read, write};
use crate::session::lock;
use crate::vfs::{Caller, Looked, Vfs};

const SIZE: u64 = 260_000;

fn span(random: &mut Random) -> (u64, u64) {
    // Mostly at the beginning, where inline data becomes chunks.
    let space = if random.below(3) == 0 { SIZE } else { 6000 };
    let start = random.below(space);
    let most = if random.below(4) == 0 { 90_000 } else { 3000 };
    let len = 1 + random.below(most);
    (start, len.min(SIZE - start))
}

async fn step(world: &World, vfs: &Arc<Vfs>, f: (Ino, u64), r: &mut Random, model: &mut Vec<u8>) {
    match r.below(20) {
        0..7 => {
            let (start, len) = span(r);
            let data = vec![r.below(255) as u8 + 1; len as usize];
            let end = (start + len) as usize;
            if model.len() < end {
                model.resize(end, 0);
            }
            model[start as usize..end].copy_from_slice(&data);
            assert_eq!(write(vfs, f, start, &data).await, Ok(len as u32));
        }
        7..12 => {
            let (start, len) = span(r);
            let end = (start + len).min(model.len() as u64);
            let expected = model.get(start as usize..end as usize).unwrap_or(&[]);
            let got = read(vfs, f, start, len as u32).await;
            assert!(got == expected, "read {start}+{len} differs");
        }
        12 => {
            let size = if r.below(4) == 0 { 0 } else { span(r).0 };
            model.resize(size as usize, 0);
            let set = SetAttr { size: Some(size), ..SetAttr::default() };
            let entry = vfs.setattr(f.0, set, None, Caller::default()).await.unwrap();
            assert_eq!(entry.attr.size, size);
        }
        13 | 14 => {
            let (start, len) = span(r);
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            vfs.fallocate(f.0, f.1, start, len, mode).await.unwrap();
            let end = ((start + len) as usize).min(model.len());
            if let Some(part) = model.get_mut(start as usize..end) {
                part.fill(0);
            }
        }
        15 => vfs.fsync(f.0, f.1, false).await.unwrap(),
        16 => {
            let ((from, len), (to, _)) = (span(r), span(r));
            let len = len.min(SIZE - to);
            if from < to + len && to < from + len {
                return;
            }
            let n = vfs.copy_file_range(f.0, f.1, from, f.0, f.1, to, len).await.unwrap();
            let expected = len.min((model.len() as u64).saturating_sub(from));
            assert_eq!(n, expected);
            if n > 0 {
                let part = model[from as usize..(from + n) as usize].to_vec();
                model.resize(model.len().max((to + n) as usize), 0);
                model[to as usize..(to + n) as usize].copy_from_slice(&part);
            }
        }
        17 => {
            let size = vfs.getattr(f.0, None).await.unwrap().attr.size;
            assert_eq!(size, model.len() as u64);
        }
        18 => tokio::time::sleep(Duration::from_millis(r.below(25))).await,
        _ => {
            if r.below(3) == 0 {
                world.restart_data();
            } else {
                world.cut();
            }
        }
    }
}

async fn history(world: Arc<World>, seed: u64, weather: Weather) {
    let vfs = world.mount().await;
    world.weather(weather);
    let f = file(&vfs, "f").await;
    let mut random = Random(seed ^ 0xabcdef);
    let mut model = Vec::new();
    for _ in 0..250 {
        step(&world, &vfs, f, &mut random, &mut model).await;
    }
    assert!(read(&vfs, f, 0, SIZE as u32).await == model, "the file differs at the end");
    vfs.shutdown().await;
    // What was unmounted is durable: it survives the crash of the data server.
    world.restart_data();
    world.weather(Weather::default());
    let vfs = world.mount().await;
    let Looked::Found(e) = vfs.lookup(Ino::ROOT, &name("f")).await.unwrap() else { panic!() };
    let fh = vfs.open(e.attr.ino, libc::O_RDONLY).await.unwrap().fh;
    assert!(read(&vfs, (f.0, fh), 0, SIZE as u32).await == model, "the servers differ");
}

async fn histories(seeds: std::ops::Range<u64>, weather: Weather) {
    histories_of(seeds, weather, (1, 1)).await;
}

/// One server after the other dies or hangs, leaves its chains some time later, and comes back.
async fn storms(world: &Arc<World>, seed: u64) {
    let mut random = Random(seed ^ 0x5702);
    let mut pause =
        async |most| tokio::time::sleep(Duration::from_millis(random.below(most))).await;
    for round in seed.. {
        let server = ServerId(1 + (round % 3) as u32);
        pause(60).await;
        let mood = if round % 2 == 0 { Mood::Dead } else { Mood::Hung };
        lock(&world.data).disk(server).mood = mood;
        pause(40).await;
        lock(&world.data).depose(server);
        world.push_map().await;
        pause(60).await;
        lock(&world.data).bring_back(server);
        world.push_map().await;
    }
}

/// With so many data servers, in chains of so many.
async fn histories_of(
    seeds: std::ops::Range<u64>,
    weather: Weather,
    (servers, replicas): (u32, u32),
) {
    for seed in seeds {
        let world = World::with_servers(seed, 16, servers, replicas);
        let stormy = async {
            tokio::select! {
                () = history(Arc::clone(&world), seed, weather) => {}
                () = storms(&world, seed), if replicas > 1 => {}
            }
        };
        let one = tokio::time::timeout(Duration::from_secs(60), stormy);
        // With the seed in what a failure prints.
        eprintln!("seed {seed}");
        one.await.unwrap_or_else(|_| panic!("seed {seed} is stuck"));
    }
}

#[tokio::test]
async fn histories_in_fair_weather() {
    histories(0..12, Weather::default()).await;
}

#[tokio::test]
async fn histories_over_a_bad_network() {
    histories(100..110, Weather { delay_ms: 2, loss: 60 }).await;
}

#[tokio::test]
async fn histories_over_chains_whose_servers_fail() {
    histories_of(200..204, Weather::default(), (3, 2)).await;
    histories_of(204..207, Weather { delay_ms: 2, loss: 60 }, (3, 2)).await;
}
