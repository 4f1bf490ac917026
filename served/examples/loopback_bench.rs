//! What the servers do over loopback, one client, run by hand:
//! `cargo run --release -p netfs-served --example loopback_bench -- EMPTY_DIRECTORY`

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use netfs_common::codec;
use netfs_common::id::{ChunkId, Ino, InstanceId, OpSeq, SessionId};
use netfs_common::map::ClusterMap;
use netfs_common::name::Name;
use netfs_common::net::{Bulk, Dialer, Handler, Limits, Link, NetMetrics, ReplyFuture};
use netfs_common::wire::data::{At, Op as DataOp, Reply as DataReply, Request as DataRequest};
use netfs_common::wire::meta::{Answer, Mutation, NewInode, Op, Request};
use netfs_common::wire::{Claim, Hello, HelloReply, PROTOCOL, Role};
use netfs_served::embedded::{self, EmbeddedOptions};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

struct Alone;

impl Handler for Alone {
    fn call(&self, _link: &Link, _request: Bytes) -> ReplyFuture {
        Box::pin(std::future::pending())
    }
}

fn main() -> Outcome<()> {
    let dir: PathBuf = std::env::args_os().nth(1).ok_or("name an empty directory")?.into();
    let servers = embedded::start(&dir, &EmbeddedOptions::default())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let identity = servers.client_identity();
        let tls = identity.client_config()?;
        let dialer = Dialer::new(tls, Limits::default(), NetMetrics::default())?;
        let hello = |role| {
            codec::encode(&Hello {
                protocol: (PROTOCOL, PROTOCOL),
                features: 0,
                role,
                volume: servers.volume().into(),
                session: SessionId(9),
                claim: Claim::Begin,
                instance: InstanceId(9),
                client: "bench".into(),
            })
        };
        let (bulk, _) = dialer.bulk(servers.data_addr(), &hello(Role::Data)?).await?;
        // Until the data server has been given the groups.
        let (link, map) = loop {
            let hello = hello(Role::Meta)?;
            let (link, welcome) = dialer.link(servers.meta_addr(), &hello, Arc::new(Alone)).await?;
            let welcome: HelloReply = codec::decode(&welcome)?;
            let map = welcome.volume.ok_or("the metadata server did not describe the volume")?.map;
            if map.groups().all(|(_, chain)| chain.head().is_some()) {
                break (link, Arc::new(map));
            }
            link.close();
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        data(&bulk, &map).await?;
        metadata(&link).await
    })?;
    servers.stop()?;
    Ok(())
}

async fn data(bulk: &Bulk, map: &Arc<ClusterMap>) -> Outcome<()> {
    let chunk = |n: u64| ChunkId { ino: Ino(2), generation: 0, index: n / 4 };
    let mib = Bytes::from(vec![7u8; 1 << 20]);
    for depth in [1, 8] {
        bytes_per_second("write 1 MiB", depth, 256, |n| {
            let op = DataOp::Write { chunk: chunk(n), offset: (n % 4) << 20 };
            call(bulk.clone(), map.clone(), chunk(n), op, mib.clone())
        })
        .await?;
        bytes_per_second("read 1 MiB", depth, 256, |n| {
            let op = DataOp::Read { chunk: chunk(n), offset: (n % 4) << 20, len: 1 << 20 };
            call(bulk.clone(), map.clone(), chunk(n), op, Bytes::new())
        })
        .await?;
    }
    let small = Bytes::from(vec![7u8; 4096]);
    for depth in [1, 16] {
        calls_per_second("write 4 KiB", depth, 5000, |n| {
            let chunk = ChunkId { ino: Ino(3), generation: 0, index: n / 1024 };
            let op = DataOp::Write { chunk, offset: n % 1024 * 4096 };
            call(bulk.clone(), map.clone(), chunk, op, small.clone())
        })
        .await?;
        calls_per_second("read 4 KiB", depth, 5000, |n| {
            let chunk = ChunkId { ino: Ino(3), generation: 0, index: n / 1024 };
            let op = DataOp::Read { chunk, offset: n % 1024 * 4096, len: 4096 };
            call(bulk.clone(), map.clone(), chunk, op, Bytes::new())
        })
        .await?;
        calls_per_second("write 4 KiB and flush", depth, 500, |n| {
            let (bulk, map, small) = (bulk.clone(), map.clone(), small.clone());
            async move {
                let chunk = ChunkId { ino: Ino(4), generation: 0, index: n };
                let op = DataOp::Write { chunk, offset: 0 };
                call(bulk.clone(), map.clone(), chunk, op, small).await?;
                call(bulk, map, chunk, DataOp::Flush { groups: Vec::new() }, Bytes::new()).await
            }
        })
        .await?;
    }
    Ok(())
}

async fn call(
    bulk: Bulk,
    map: Arc<ClusterMap>,
    chunk: ChunkId,
    op: DataOp,
    payload: Bytes,
) -> Result<(), String> {
    let (group, chain) = map.chain_of(chunk).ok_or("the map does not have the chunk")?;
    let at = At::Group { group, epoch: chain.epoch };
    let request = match op {
        DataOp::Flush { .. } => {
            let groups = vec![(group, chain.epoch)];
            DataRequest { at: At::Server, op: DataOp::Flush { groups } }
        }
        op => DataRequest { at, op },
    };
    let header = codec::encode(&request).map_err(|e| e.to_string())?;
    let answer = bulk.call(header.into(), payload, None).await.map_err(|e| e.to_string())?;
    match codec::decode(&answer.header).map_err(|e| e.to_string())? {
        DataReply::Read | DataReply::Written { .. } | DataReply::Flushed { .. } => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

async fn metadata(link: &Link) -> Outcome<()> {
    for (round, depth) in [1u64, 64].into_iter().enumerate() {
        let first = round as u64 * 20_000;
        calls_per_second("create", depth, 10_000, |n| {
            mutate(link.clone(), first + n + 1, depth, false)
        })
        .await?;
        calls_per_second("lookup", depth, 10_000, |n| {
            let name = format!("file {}", first + n + 1);
            let link = link.clone();
            async move {
                let name = Name::new(name).map_err(|e| e.to_string())?;
                ask(link, Request::Lookup { parent: Ino::ROOT, name }).await
            }
        })
        .await?;
        calls_per_second("create, synced", depth, 500, |n| {
            mutate(link.clone(), first + 10_001 + n, depth, true)
        })
        .await?;
    }
    Ok(())
}

async fn mutate(link: Link, seq: u64, depth: u64, sync: bool) -> Result<(), String> {
    let name = Name::new(format!("file {seq}")).map_err(|e| e.to_string())?;
    let (parent, new) = (Ino::ROOT, NewInode::File);
    let op = Op::Create { parent, name, new, perm: 0o644, umask: 0, uid: 0, gid: 0 };
    let time = std::time::SystemTime::now().into();
    let answered = OpSeq(seq.saturating_sub(depth + 1));
    ask(link, Request::Mutate(Mutation { seq: OpSeq(seq), answered, time, sync, op })).await
}

async fn ask(link: Link, request: Request) -> Result<(), String> {
    let bytes = codec::encode(&request).map_err(|e| e.to_string())?;
    let answer = link.call(bytes.into(), None).await.map_err(|e| e.to_string())?;
    let answer: Answer = codec::decode(&answer).map_err(|e| e.to_string())?;
    answer.reply.map(drop).map_err(|e| e.to_string())
}

async fn bytes_per_second<F>(
    what: &str,
    depth: u64,
    count: u64,
    make: impl Fn(u64) -> F,
) -> Outcome<()>
where
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    let took = run(depth, count, make).await?;
    println!("{what}, depth {depth}: {:.2} GiB/s", count as f64 / 1024.0 / took.as_secs_f64());
    Ok(())
}

async fn calls_per_second<F>(
    what: &str,
    depth: u64,
    count: u64,
    make: impl Fn(u64) -> F,
) -> Outcome<()>
where
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    let took = run(depth, count, make).await?;
    let each = took.as_secs_f64() * 1e6 / count as f64;
    println!("{what}, depth {depth}: {:.0}/s, {each:.0} µs each", 1e6 / each);
    Ok(())
}

/// Makes calls, so many of them at a time, in the order of their numbers.
async fn run<F>(depth: u64, count: u64, make: impl Fn(u64) -> F) -> Outcome<Duration>
where
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    let start = Instant::now();
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..count {
        if calls.len() as u64 >= depth
            && let Some(done) = calls.join_next().await
        {
            done??;
        }
        calls.spawn(make(n));
    }
    while let Some(done) = calls.join_next().await {
        done??;
    }
    Ok(start.elapsed())
}
