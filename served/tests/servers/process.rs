//! `netfs-served` as a process: started with a configuration, ended by signals, killed, checked.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use netfs_common::errno::Errno;
use netfs_common::id::{ChunkId, Ino};
use netfs_common::wire::meta::{NewInode, Op, Request, Response};
use netfs_common::wire::operator::{Operation, Outcome};

use crate::common::{DataClient, MetaClient, PATIENCE, Pki, administer, make_pki, write_file};

const BINARY: &str = env!("CARGO_BIN_EXE_netfs-served");

struct Server {
    child: Child,
    meta: SocketAddr,
    data: SocketAddr,
    http: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn configure(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("served.toml");
    let d = dir.display();
    let text = format!(
        "[meta]\nlisten = \"127.0.0.1:0\"\ndir = \"{d}/meta\"\n\n\
         [data]\nlisten = \"127.0.0.1:0\"\ndir = \"{d}/data\"\nsegment_bytes = \"16MiB\"\nreserve_bytes = \"16MiB\"\n\n\
         [http]\nlisten = \"127.0.0.1:0\"\n\n\
         [tls]\nca = \"{d}/server/ca.pem\"\ncert = \"{d}/server/cert.pem\"\nkey = \"{d}/server/key.pem\"\n\n\
         [log]\nformat = \"json\"\n\n\
         [[volume]]\nname = \"main\"\n"
    );
    fs::write(&path, text).unwrap();
    path
}

/// The address in the log line that says that something is ready.
fn ready(lines: &mut impl Iterator<Item = std::io::Result<String>>, what: &str) -> SocketAddr {
    loop {
        let line = lines.next().expect("the server has ended").unwrap();
        if line.contains(what) {
            let after = line.split("\"address\":\"").nth(1).unwrap();
            return after.split('"').next().unwrap().parse().unwrap();
        }
    }
}

fn start(config: &Path) -> Server {
    let mut child = Command::new(BINARY)
        .args(["all", "--config"])
        .arg(config)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let data = ready(&mut lines, "data server ready");
    let meta = ready(&mut lines, "metadata server ready");
    let http = ready(&mut lines, "metrics and health ready");
    // The pipe must not fill up.
    std::thread::spawn(move || lines.for_each(drop));
    Server { child, meta, data, http }
}

fn run(args: &[&str]) -> Output {
    Command::new(BINARY).args(args).output().unwrap()
}

fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err))
}

async fn connect(pki: &Pki, server: &Server, session: u64) -> (MetaClient, DataClient) {
    let meta = MetaClient::connect(&pki.client, server.meta, "main", session).await.unwrap();
    assert_eq!(meta.info.map.servers[0].addrs, [server.data.to_string()]);
    (meta, DataClient::connect(&pki.client, server.data).await.unwrap())
}

async fn get(address: SocketAddr, path: &str) -> String {
    let path = path.to_owned();
    let ask = move || {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    tokio::task::spawn_blocking(ask).await.unwrap()
}

fn terminate(server: &mut Server) -> Option<i32> {
    let pid = server.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let deadline = Instant::now() + PATIENCE;
    loop {
        match server.child.try_wait().unwrap() {
            Some(status) => return status.code(),
            None => assert!(Instant::now() < deadline, "the server does not end"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test]
async fn a_server_ends_in_order_at_sigterm_and_a_strict_check_finds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let pki = make_pki(dir.path());
    let config = configure(dir.path());
    let config_arg = config.to_str().unwrap();
    let mut server = start(&config);
    let (meta, data) = connect(&pki, &server, 5).await;
    let file = meta.create(Ino::ROOT, "file", NewInode::File).await.unwrap();
    write_file(&meta, &data, file, &[vec![1; 4 << 20], vec![2; 100]]).await;
    let metrics = get(server.http, "/metrics").await;
    for line in
        ["netfs_meta_calls_total{call=\"mutate\",outcome=\"ok\"} 2", "netfs_data_written_bytes"]
    {
        assert!(metrics.contains(line), "{line} in\n{metrics}");
    }
    assert!(get(server.http, "/health").await.ends_with("ok\n"));
    let busy = run(&["check", "--config", config_arg]);
    assert_eq!(busy.status.code(), Some(2), "{}", text(&busy));
    assert!(text(&busy).contains("in use"), "{}", text(&busy));
    let code = tokio::task::spawn_blocking(move || terminate(&mut server)).await.unwrap();
    assert_eq!(code, Some(0));
    let clean = run(&["check", "--strict", "--config", config_arg]);
    assert_eq!(clean.status.code(), Some(0), "{}", text(&clean));
    assert!(text(&clean).contains("0 faults, 0 notes"), "{}", text(&clean));

    // A chunk that vanishes is noted, a byte that changes is a fault.
    let segment = fs::read_dir(dir.path().join("data")).unwrap().map(|e| e.unwrap().path());
    let segment = segment.filter(|p| fs::metadata(p).unwrap().len() > 1 << 20).min().unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    bytes[100_000] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let faulty = run(&["check", "--config", config_arg]);
    assert_eq!(faulty.status.code(), Some(1), "{}", text(&faulty));
    assert!(text(&faulty).contains("FAULT data: "), "{}", text(&faulty));
}

#[tokio::test]
async fn the_domain_that_the_settings_name_is_what_the_metadata_server_hears() {
    let dir = tempfile::tempdir().unwrap();
    let pki = make_pki(dir.path());
    let config = configure(dir.path());
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("[data]\n", "[data]\ndomain = \"rack 7\"\n")).unwrap();
    let server = start(&config);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let list = Request::Operate(Operation::List);
        let servers = match administer(&pki.client, server.meta, list).await {
            Response::Operated(Outcome::Servers(servers)) => servers,
            other => panic!("{other:?}"),
        };
        // Before it has been heard for the first time there is none.
        let domains: Vec<_> = servers.iter().map(|server| server.domain.as_str()).collect();
        if domains != [""] {
            assert_eq!(domains, ["rack 7"]);
            return;
        }
        assert!(Instant::now() < deadline, "it is not heard");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_was_synced_is_there_after_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let pki = make_pki(dir.path());
    let config = configure(dir.path());
    let mut synced: Vec<(String, Vec<u8>)> = Vec::new();
    for round in 0..4u8 {
        let mut server = start(&config);
        let (meta, data) = connect(&pki, &server, 5).await;
        meta.resume_after(u64::from(round) * 10_000);
        for (name, content) in &synced {
            let attr = meta.lookup(Ino::ROOT, name).await.unwrap();
            assert_eq!(attr.size, content.len() as u64);
            let chunk = ChunkId { ino: attr.ino, generation: attr.generation, index: 0 };
            assert_eq!(data.read(chunk, 0, attr.size).await, content[..]);
        }
        let (name, content) = (format!("file {round}"), vec![round + 1; 70_000]);
        let file = meta.create(Ino::ROOT, &name, NewInode::File).await.unwrap();
        write_file(&meta, &data, file, std::slice::from_ref(&content)).await;
        let generation = meta.get(file).await.unwrap().generation;
        data.flush(&[ChunkId { ino: file, generation, index: 0 }]).await;
        meta.sync().await;
        synced.push((name, content));
        // Not synced, and killed while more of it is under way.
        let link = meta.link.clone();
        let more = tokio::spawn(async move {
            for n in 0..1000 {
                let name = format!("more {round} {n}");
                if meta.link.call(create(&meta, &name), Instant::now() + PATIENCE).await.is_err() {
                    return;
                }
            }
        });
        tokio::time::sleep(Duration::from_millis(20 * u64::from(round))).await;
        server.child.kill().unwrap();
        link.close();
        more.await.unwrap();
        drop(server);
        let before = contents(dir.path());
        let found = run(&["check", "--config", config.to_str().unwrap()]);
        assert_eq!(found.status.code(), Some(0), "{}", text(&found));
        assert!(contents(dir.path()) == before, "a check has written to the state");
    }
}

/// Every file below a directory with its bytes.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(contents(&path));
        } else {
            all.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    all
}

#[tokio::test]
async fn chunks_of_files_that_are_gone_are_noted_and_removed_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let pki = make_pki(dir.path());
    let config = configure(dir.path());
    let config_arg = config.to_str().unwrap();
    let mut server = start(&config);
    let (meta, data) = connect(&pki, &server, 5).await;
    let kept = meta.create(Ino::ROOT, "kept", NewInode::File).await.unwrap();
    write_file(&meta, &data, kept, &[vec![1; 1 << 20]]).await;
    let gone = meta.create(Ino::ROOT, "gone", NewInode::File).await.unwrap();
    let name = netfs_common::name::Name::new("gone").unwrap();
    meta.change(Op::Unlink { parent: Ino::ROOT, name }).await.unwrap();
    meta.change(Op::Forget { inos: vec![gone] }).await.unwrap();
    // As a client does that has not heard of it; and one that has not yet told of what it has sent.
    let chunk = |ino, index| ChunkId { ino, generation: 0, index };
    data.write(chunk(gone, 3), 0, &[2; 5000]).await;
    data.write(chunk(kept, 7), 0, &[3; 100]).await;
    data.flush(&[chunk(kept, 0), chunk(kept, 7), chunk(gone, 3)]).await;
    let code = tokio::task::spawn_blocking(move || terminate(&mut server)).await.unwrap();
    assert_eq!(code, Some(0));

    let check = |more: &[&str]| run(&[&["check", "--config", config_arg], more].concat());
    let found = check(&[]);
    assert!(text(&found).contains("0 faults, 2 notes"), "{}", text(&found));
    let scratch = check(&["--scratch", "/nowhere"]);
    assert!(scratch.status.code() == Some(2) && text(&scratch).contains("--scratch"));
    let repaired = check(&["--repair"]);
    assert!(text(&repaired).contains("removed 5000 bytes of 1 contents"), "{}", text(&repaired));
    let after = check(&["--repair"]);
    assert!(text(&after).contains("nothing to remove"), "{}", text(&after));
    assert!(text(&after).contains("0 faults, 1 notes"), "{}", text(&after));

    let server = start(&config);
    let data = DataClient::connect(&pki.client, server.data).await.unwrap();
    assert_eq!(data.read(chunk(kept, 0), 0, 1 << 20).await, vec![1; 1 << 20]);
    assert_eq!(data.read(chunk(kept, 7), 0, 100).await, vec![3; 100]);
    assert_eq!(data.read(chunk(gone, 3), 0, 10).await, vec![0; 10]);
}

fn create(meta: &MetaClient, name: &str) -> bytes::Bytes {
    let name = netfs_common::name::Name::new(name).unwrap();
    let (parent, new) = (Ino::ROOT, NewInode::File);
    let op = Op::Create { parent, name, new, perm: 0o644, umask: 0, uid: 0, gid: 0 };
    let request = netfs_common::wire::meta::Request::Mutate(meta.mutation(op));
    netfs_common::codec::encode(&request).unwrap().into()
}

#[tokio::test]
async fn volumes_are_apart_from_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let pki = make_pki(dir.path());
    let config = configure(dir.path());
    let config_arg = config.to_str().unwrap();
    let made = run(&["volume", "create", "second", "--config", config_arg]);
    assert!(made.status.success(), "{}", text(&made));
    let again = run(&["volume", "create", "second", "--config", config_arg]);
    assert!(text(&again).contains("already"), "{}", text(&again));
    let mut server = start(&config);
    let (main, data) = connect(&pki, &server, 5).await;
    let second = MetaClient::connect(&pki.client, server.meta, "second", 5).await.unwrap();
    assert_ne!(main.info.id, second.info.id);
    let a = main.create(Ino::ROOT, "f", NewInode::File).await.unwrap();
    let b = second.create(Ino::ROOT, "f", NewInode::File).await.unwrap();
    assert_ne!(a, b, "chunks are named by inode alone");
    write_file(&main, &data, a, &[vec![1; 100]]).await;
    // A connection to the data server is for one volume.
    let other = DataClient::connect(&pki.client, server.data).await.unwrap();
    write_file(&second, &other, b, &[vec![2; 100]]).await;
    let generation = main.get(a).await.unwrap().generation;
    let chunk = ChunkId { ino: a, generation, index: 0 };
    assert_eq!(data.read(chunk, 0, 100).await, [1; 100][..]);
    assert_eq!(main.get(b).await, Err(Errno::ESTALE));
    let listed = run(&["volume", "list", "--config", config_arg]);
    assert_eq!(text(&listed), "main\nsecond\n");
    assert_eq!(tokio::task::spawn_blocking(move || terminate(&mut server)).await.unwrap(), Some(0));
    let clean = run(&["check", "--strict", "--config", config_arg]);
    assert_eq!(clean.status.code(), Some(0), "{}", text(&clean));
}

#[test]
fn mistakes_get_one_line_that_names_them() {
    let dir = tempfile::tempdir().unwrap();
    let _pki = make_pki(dir.path());
    let config = configure(dir.path());
    let config_arg = config.to_str().unwrap();
    let fails = |args: &[&str], expected: &str| {
        let output = run(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        let last = said.lines().last().unwrap_or_default();
        assert!(
            last.starts_with("netfs-served: ") && last.contains(expected),
            "{expected}: {said}"
        );
    };
    fails(&["all", "--config", "/nowhere/served.toml"], "/nowhere/served.toml");
    fails(
        &["all", "--config", config_arg, "--set", "tls.cert=/nowhere/cert.pem"],
        "/nowhere/cert.pem",
    );
    fails(&["meta", "--config", config_arg], "meta.data_servers");
    let busy = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = busy.local_addr().unwrap().to_string();
    let listen = format!("data.listen={port}");
    fails(&["data", "--config", config_arg, "--set", &listen], &port);
    fails(&["check", "--dir", "/nowhere"], "nothing to check");

    let foreign = dir.path().join("letters");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("dear.txt"), "dear").unwrap();
    let data_dir = format!("data.dir={}", foreign.display());
    fails(&["data", "--config", config_arg, "--set", &data_dir], "not a chunk store");
    fs::create_dir_all(dir.path().join("meta/main")).unwrap();
    fs::write(dir.path().join("meta/main/dear.txt"), "dear").unwrap();
    fails(&["all", "--config", config_arg], "holds files of others");
    fs::write(dir.path().join("meta/NEXT_VOLUME"), "2\n").unwrap();
    fails(&["all", "--config", config_arg], "not a metadata folder");

    let mut unknown = fs::read_to_string(&config).unwrap();
    unknown.push_str("flavour = \"mint\"\n");
    fs::write(&config, &unknown).unwrap();
    let line = unknown.lines().count().to_string();
    fails(&["all", "--config", config_arg], &format!(":{line}: "));
    let printed = run(&["config"]);
    assert!(printed.status.success() && text(&printed).contains("flush_interval_ms"));
}
