//! Measures the network layer over loopback: small calls one by one and in parallel, and bulk both ways.
//!
//! `cargo run --release -p netfs-common --example net_bench [MTU]`

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use netfs_common::net::{
    Bulk, BulkMessage, CallError, ConnectionKind, Dialer, Limits, Link, NetMetrics, Server,
};
use netfs_common::tls::Identity;
use netfs_common::tls::pki::{self, IssueOptions, Leaf};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const REQUEST_BYTES: usize = 200;
const CHUNK_BYTES: usize = 1 << 20;
const BULK_BYTES: usize = 1 << 30;

fn main() -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    let (ca, server, client) =
        (dir.path().join("ca"), dir.path().join("server"), dir.path().join("client"));
    let options = IssueOptions::default();
    pki::init(&ca, "bench")?;
    pki::issue(&ca, &Leaf::Server { name: "s".into(), names: vec![] }, &server, &options)?;
    pki::issue(&ca, &Leaf::Client { name: "c".into() }, &client, &options)?;

    // A runtime and a thread for each endpoint, as in the daemons.
    let mut addresses = Vec::new();
    for _ in 0..2 {
        let (tell, told) = mpsc::channel();
        let server = server.clone();
        std::thread::spawn(move || {
            if let Err(error) = serve(&server, &tell) {
                eprintln!("server: {error}");
            }
        });
        addresses.push(told.recv()?);
    }
    runtime()?.block_on(measure(&client, addresses[0], addresses[1]))
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn serve(identity: &Path, tell: &mpsc::Sender<SocketAddr>) -> Result<(), Failure> {
    let tls = Identity::load_dir(identity)?.server_config()?;
    runtime()?.block_on(async {
        let any_port = (Ipv4Addr::LOCALHOST, 0).into();
        let server = Server::bind(any_port, tls, limits(), NetMetrics::default())?;
        tell.send(server.local_addr()?)?;
        let chunk = Bytes::from(vec![7; CHUNK_BYTES]);
        while let Some(incoming) = server.accept().await {
            match incoming.kind() {
                ConnectionKind::Metadata => {
                    let echo = |_: Link, request: Bytes| std::future::ready(request);
                    incoming.welcome_link(b"", Arc::new(echo)).await?;
                }
                ConnectionKind::Bulk => {
                    let chunk = chunk.clone();
                    let answer = move |request: BulkMessage| {
                        let payload = match &request.header[..] {
                            b"read" => chunk.clone(),
                            _ => Bytes::new(),
                        };
                        std::future::ready(BulkMessage::new(Bytes::new(), payload))
                    };
                    incoming.welcome_bulk(b"", Arc::new(answer)).await?;
                }
            }
        }
        Ok(())
    })
}

async fn measure(
    identity: &Path,
    address: SocketAddr,
    bulk_address: SocketAddr,
) -> Result<(), Failure> {
    let tls = Identity::load_dir(identity)?.client_config()?;
    let dialer = Dialer::new(tls, limits(), NetMetrics::default())?;
    let refuse = |_: Link, _: Bytes| std::future::pending();
    let (link, _) = dialer.link(address, b"", Arc::new(refuse)).await?;
    let request = Bytes::from(vec![1; REQUEST_BYTES]);

    one_by_one(&link, &request, 2_000).await?;
    let mut times = one_by_one(&link, &request, 20_000).await?;
    times.sort_unstable();
    let at = |percent: usize| times[times.len() * percent / 100];
    println!("calls of {REQUEST_BYTES} B, one by one: p50 {:?}, p99 {:?}", at(50), at(99));
    for depth in [16, 64, 512] {
        let rate = in_parallel(&link, &request, depth).await?;
        println!("calls of {REQUEST_BYTES} B, {depth} at once: {rate:.0}/s");
    }

    let (bulk, _) = dialer.bulk(address, b"").await?;
    let chunk = Bytes::from(vec![7; CHUNK_BYTES]);
    for depth in [1, 4, 16] {
        for (what, payload) in [(&b"read"[..], Bytes::new()), (b"write", chunk.clone())] {
            let began = (Instant::now(), cpu_time()?);
            let rounds = BULK_BYTES / CHUNK_BYTES / depth;
            let tasks: Vec<_> = (0..depth)
                .map(|_| {
                    let (bulk, payload) = (bulk.clone(), payload.clone());
                    tokio::spawn(async move {
                        for _ in 0..rounds {
                            let header = Bytes::from_static(what);
                            bulk.call(header, payload.clone(), None).await?.payload.into_bytes();
                        }
                        Ok::<_, CallError>(())
                    })
                })
                .collect();
            for task in tasks {
                task.await??;
            }
            let (wall, cpu) = (began.0.elapsed().as_secs_f64(), cpu_time()? - began.1);
            println!(
                "bulk {}, {depth} at once: {:.2} GiB/s, {:.2} CPU s/GiB (both ends), packets of {}",
                String::from_utf8_lossy(what),
                1.0 / wall,
                cpu.as_secs_f64(),
                bulk.path_mtu()
            );
        }
    }
    // Beside bulk, as a lookup during a large copy: over one socket and thread at each end, then over
    // sockets and threads of their own, as the daemons do it.
    let busy: Vec<_> = (0..4).map(|_| tokio::spawn(read_for_ever(bulk.clone()))).collect();
    beside("beside 4 bulk reads, same endpoint", &link, &request).await?;
    for reader in busy {
        reader.abort();
    }
    beside("alone again", &link, &request).await?;
    let path = identity.to_owned();
    std::thread::spawn(move || {
        if let Err(error) = runtime().map_err(Failure::from).and_then(|rt| {
            rt.block_on(async {
                let tls = Identity::load_dir(&path)?.client_config()?;
                let dialer = Dialer::new(tls, limits(), NetMetrics::default())?;
                let (bulk, _) = dialer.bulk(bulk_address, b"").await?;
                let busy: Vec<_> =
                    (0..4).map(|_| tokio::spawn(read_for_ever(bulk.clone()))).collect();
                for reader in busy {
                    reader.await??;
                }
                Ok::<_, Failure>(())
            })
        }) {
            eprintln!("bulk client: {error}");
        }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    beside("beside 4 bulk reads, own endpoints", &link, &request).await
}

/// Mebibytes that [`read_for_ever`] has read, to show that there was bulk beside the calls.
static READ_MIB: AtomicU64 = AtomicU64::new(0);

async fn read_for_ever(bulk: Bulk) -> Result<(), CallError> {
    loop {
        let reply = bulk.call(Bytes::from_static(b"read"), Bytes::new(), None).await?;
        READ_MIB.fetch_add(reply.payload.len() as u64 >> 20, Ordering::Relaxed);
    }
}

/// Calls one by one for two seconds, with what bulk moved in that time and what processor time it took.
async fn beside(what: &str, link: &Link, request: &Bytes) -> Result<(), Failure> {
    let (began, read, cpu) = (Instant::now(), READ_MIB.load(Ordering::Relaxed), cpu_time()?);
    let mut times = Vec::new();
    while began.elapsed() < Duration::from_secs(2) {
        times.extend(one_by_one(link, request, 100).await?);
    }
    let wall = began.elapsed().as_secs_f64();
    let read = READ_MIB.load(Ordering::Relaxed) - read;
    times.sort_unstable();
    println!(
        "calls one by one {what}: p50 {:?}, p99 {:?}, {} calls; bulk {:.2} GiB/s, {:.2} CPUs",
        times[times.len() / 2],
        times[times.len() * 99 / 100],
        times.len(),
        read as f64 / 1024.0 / wall,
        (cpu_time()? - cpu).as_secs_f64() / wall,
    );
    Ok(())
}

/// Limits, with the packet size from the command line if there is one.
fn limits() -> Limits {
    let mut limits = Limits::default();
    if let Some(mtu) = std::env::args().nth(1).and_then(|arg| arg.parse().ok()) {
        limits.max_mtu = mtu;
    }
    limits
}

async fn one_by_one(link: &Link, request: &Bytes, count: u32) -> Result<Vec<Duration>, CallError> {
    let mut times = Vec::new();
    for _ in 0..count {
        let began = Instant::now();
        link.call(request.clone(), began + Duration::from_secs(5)).await?;
        times.push(began.elapsed());
    }
    Ok(times)
}

async fn in_parallel(link: &Link, request: &Bytes, depth: u32) -> Result<f64, Failure> {
    const CALLS: u32 = 200_000;
    let began = Instant::now();
    let tasks: Vec<_> = (0..depth)
        .map(|_| {
            let (link, request) = (link.clone(), request.clone());
            tokio::spawn(async move { one_by_one(&link, &request, CALLS / depth).await.map(drop) })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(f64::from(CALLS) / began.elapsed().as_secs_f64())
}

/// Processor time of this process, both ends.
fn cpu_time() -> Result<Duration, Failure> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // After the name, which may contain anything: user and system time are fields 14 and 15, in ticks of 10 ms.
    let rest = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = rest
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Ok(Duration::from_millis(ticks * 10))
}
