//! An encrypted volume with servers as processes: what is on the disks, and what happens without the right key file.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use netfs_common::id::Ino;
use netfs_common::wire::meta::NewInode;

use crate::common::{DataClient, MetaClient, PATIENCE, chunk, make_pki, write_file};

const BINARY: &str = env!("CARGO_BIN_EXE_netfs-served");
const MARKER: &[u8] = b"words that stand in no other file";

struct Server {
    child: Child,
    meta: SocketAddr,
    data: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn configure(dir: &Path, volume: &str) -> PathBuf {
    let path = dir.join("served.toml");
    let d = dir.display();
    let text = format!(
        "[meta]\nlisten = \"127.0.0.1:0\"\ndir = \"{d}/meta\"\n\n\
         [data]\nlisten = \"127.0.0.1:0\"\ndir = \"{d}/data\"\nsegment_bytes = \"16MiB\"\nreserve_bytes = \"16MiB\"\n\n\
         [tls]\nca = \"{d}/server/ca.pem\"\ncert = \"{d}/server/cert.pem\"\nkey = \"{d}/server/key.pem\"\n\n\
         [log]\nformat = \"json\"\n\n\
         [[volume]]\nname = \"main\"\n{volume}\n"
    );
    fs::write(&path, text).unwrap();
    path
}

fn ready(lines: &mut impl Iterator<Item = std::io::Result<String>>, what: &str) -> SocketAddr {
    let mut last = String::new();
    loop {
        let Some(line) = lines.next() else { panic!("the server has ended: {last}") };
        let line = line.unwrap();
        last.clone_from(&line);
        if line.contains(what) {
            let after = line.split("\"address\":\"").nth(1).unwrap();
            return after.split('"').next().unwrap().parse().unwrap();
        }
    }
}

fn start(config: &Path, set: &[String]) -> Server {
    let mut command = Command::new(BINARY);
    command.args(["all", "--config"]).arg(config);
    for set in set {
        command.args(["--set", set]);
    }
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let data = ready(&mut lines, "data server ready");
    let meta = ready(&mut lines, "metadata server ready");
    // The pipe must not fill up.
    std::thread::spawn(move || lines.for_each(drop));
    Server { child, meta, data }
}

fn stop(mut server: Server) {
    let pid = server.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let deadline = Instant::now() + PATIENCE;
    while server.child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "the server does not end");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

fn run(args: &[&str]) -> Output {
    Command::new(BINARY).args(args).output().unwrap()
}

/// Why a server does not start.
fn refusal(part: &str, config: &Path, set: &[&str]) -> String {
    let mut args = vec![part, "--config", config.to_str().unwrap()];
    set.iter().for_each(|set| args.extend(["--set", set]));
    let output = run(&args);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn holds(dir: &Path, what: &[u8]) -> bool {
    fs::read_dir(dir).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => holds(&path, what),
            false => fs::read(&path).unwrap().windows(what.len()).any(|part| part == what),
        }
    })
}

#[tokio::test]
async fn nothing_of_an_encrypted_volume_is_readable_and_servers_without_its_key_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let pki = make_pki(dir.path());
    let d = dir.path().display();
    for name in ["key", "key2"] {
        let made = run(&["key", "make", &format!("{d}/{name}")]);
        assert!(made.status.success(), "{made:?}");
        let mode = fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    assert!(!run(&["key", "make", &format!("{d}/key")]).status.success(), "it is never replaced");
    let (meta_key, data_key) = (format!("meta.key_file={d}/key"), format!("data.key_file={d}/key"));
    let config = configure(dir.path(), "compression = \"zstd\"\nencryption = \"aes-256-gcm\"");
    let why = refusal("all", &config, &[&data_key]);
    assert!(why.contains("meta.key_file is not set") && why.contains("\"main\""), "{why}");

    let right = [meta_key.clone(), data_key.clone()];
    let server = start(&config, &right);
    let meta = MetaClient::connect(&pki.client, server.meta, "main", 1).await.unwrap();
    assert_eq!(meta.info.inline_limit, 0, "nothing is kept in inodes");
    assert!(meta.info.map.pools.iter().all(|pool| pool.coding.key.is_none()), "clients need none");
    let data = DataClient::connect(&pki.client, server.data).await.unwrap();
    let ino = meta.create(Ino::ROOT, "file", NewInode::File).await.unwrap();
    let contents = [MARKER, &vec![b'x'; 100_000], MARKER].concat();
    write_file(&meta, &data, ino, std::slice::from_ref(&contents)).await;
    let read = data.read(chunk(ino.0, 0), 0, contents.len() as u64).await;
    assert_eq!(read, contents);
    drop((meta, data));
    stop(server);
    assert!(holds(&dir.path().join("meta"), b"file"), "names are not encrypted");
    assert!(!holds(&dir.path().join("meta"), MARKER) && !holds(&dir.path().join("data"), MARKER));
    assert!(!holds(&dir.path().join("data"), &[b'x'; 32]));

    // Each server says what it lacks.
    let why = refusal("data", &config, &[]);
    assert!(why.contains("data.key_file is not set"), "{why}");
    let why = refusal("all", &config, &[&data_key]);
    assert!(why.contains("meta.key_file is not set"), "{why}");
    let why = refusal("data", &config, &[&format!("data.key_file={d}/key2")]);
    assert!(why.contains("is not the one"), "{why}");
    let why = refusal("all", &config, &[&data_key, &format!("meta.key_file={d}/key2")]);
    assert!(why.contains("is not the one"), "{why}");
    let why = refusal("data", &config, &[&format!("data.key_file={d}/nowhere")]);
    assert!(why.contains("nowhere"), "{why}");
    let plain = configure(dir.path(), "");
    let why = refusal("all", &plain, &[&data_key, &meta_key]);
    assert!(why.contains("aes-256-gcm") && why.contains("cannot be changed"), "{why}");

    // The check needs no key; compression may change.
    let config = configure(dir.path(), "compression = \"lz4\"\nencryption = \"aes-256-gcm\"");
    let checked = run(&["check", "--config", config.to_str().unwrap()]);
    assert!(checked.status.success(), "{checked:?}");
    let server = start(&config, &right);
    let data = DataClient::connect(&pki.client, server.data).await.unwrap();
    assert_eq!(data.read(chunk(ino.0, 0), 0, contents.len() as u64).await, contents);
    drop(data);
    stop(server);
}

#[tokio::test]
async fn a_data_server_without_the_key_stores_nothing_of_the_volume() {
    let dir = tempfile::tempdir().unwrap();
    let pki = make_pki(dir.path());
    let d = dir.path().display();
    assert!(run(&["key", "make", &format!("{d}/key")]).status.success());
    let config = configure(dir.path(), "encryption = \"chacha20-poly1305\"");
    let server = start(&config, &[format!("meta.key_file={d}/key")]);
    let meta = MetaClient::connect(&pki.client, server.meta, "main", 1).await.unwrap();
    let data = DataClient::connect(&pki.client, server.data).await.unwrap();
    let ino = meta.create(Ino::ROOT, "file", NewInode::File).await.unwrap();
    let write = netfs_common::wire::data::Op::Write { chunk: chunk(ino.0, 0), offset: 0 };
    let (reply, _) = data.call(chunk(ino.0, 0), write, MARKER.to_vec()).await;
    assert!(!matches!(reply, netfs_common::wire::data::Reply::Written { .. }), "{reply:?}");
    drop((meta, data));
    stop(server);
    assert!(!holds(&dir.path().join("data"), MARKER));
    // Nothing of it is there, so it may start without, and with the key takes everything.
    let server =
        start(&config, &[format!("meta.key_file={d}/key"), format!("data.key_file={d}/key")]);
    let data = DataClient::connect(&pki.client, server.data).await.unwrap();
    data.write(chunk(ino.0, 0), 0, MARKER).await;
    assert_eq!(data.read(chunk(ino.0, 0), 0, MARKER.len() as u64).await, MARKER);
    drop(data);
    stop(server);
    assert!(!holds(&dir.path().join("data"), MARKER));
}
