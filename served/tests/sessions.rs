//! Sessions that fall silent, with a term short enough to wait for.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::{DataClient, MetaClient, PATIENCE, Pki, localhost, make_pki, write_file};
use netfs_common::attr::{SetAttr, Timestamp};
use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::name::Name;
use netfs_common::wire::meta::{Mutation, NewInode, Op, Push, Request, Response};
use netfs_served::data::server::{DataOptions, DataServer};
use netfs_served::meta::server::{DataServers, MetaOptions, MetaServer};

const TERM: Duration = Duration::from_secs(2);

struct Servers {
    pki: Pki,
    meta: MetaServer,
    data: Option<DataServer>,
}

fn start(dir: &Path, term: Duration) -> Servers {
    let pki = make_pki(dir);
    let data = DataServer::start(data_options(dir, &pki)).unwrap();
    let at = DataServers::At(vec![data.addr().to_string()]);
    let mut options = MetaOptions::new(dir.join("meta"), localhost(), at, pki.server.clone());
    options.volumes = vec!["v".into()];
    options.term = term;
    Servers { meta: MetaServer::start(options).unwrap(), data: Some(data), pki }
}

fn data_options(dir: &Path, pki: &Pki) -> DataOptions {
    DataOptions::new(dir.join("data"), localhost(), pki.server.clone())
}

impl Servers {
    async fn meta(&self, session: u64) -> MetaClient {
        MetaClient::connect(&self.pki.client, self.meta.addr(), "v", session).await.unwrap()
    }

    async fn data(&self) -> DataClient {
        let addr = self.data.as_ref().unwrap().addr();
        DataClient::connect(&self.pki.client, addr).await.unwrap()
    }
}

#[tokio::test]
async fn a_silent_session_ends_and_its_open_files_without_a_name_go() {
    let dir = tempfile::tempdir().unwrap();
    let servers = start(dir.path(), TERM);
    let (meta, data) = (servers.meta(1).await, servers.data().await);
    assert_eq!(u128::from(meta.info.term_ms), TERM.as_millis());
    let file = meta.create(Ino::ROOT, "f", NewInode::File).await.unwrap();
    write_file(&meta, &data, file, &[vec![1; 50_000]]).await;
    meta.change(Op::Unlink { parent: Ino::ROOT, name: Name::new("f").unwrap() }).await.unwrap();
    let other = servers.meta(2).await;
    meta.link.close();
    assert_eq!(other.get(file).await.map(|a| a.nlink), Ok(0), "it may come back");
    let deadline = Instant::now() + PATIENCE;
    while other.get(file).await != Err(Errno::ESTALE) {
        assert!(Instant::now() < deadline, "the orphan is still there");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // What it had is gone, so it begins anew.
    let again = servers.meta(1).await;
    assert!(!again.info.resumed);
    assert_eq!(again.create(Ino::ROOT, "g", NewInode::File).await.map(drop), Ok(()));
}

#[tokio::test]
async fn a_session_that_renews_but_makes_no_room_is_ended_for_the_newcomer() {
    let dir = tempfile::tempdir().unwrap();
    let servers = start(dir.path(), TERM);
    let first = servers.meta(1).await;
    first.answers.silent.store(true, Ordering::Relaxed);
    let link = first.link.clone();
    let renewing = tokio::spawn(async move {
        let renew = netfs_common::codec::encode(&Request::Renew).unwrap();
        while link.call(renew.clone().into(), Instant::now() + PATIENCE).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    let begun = Instant::now();
    let second = servers.meta(2).await;
    assert!(begun.elapsed() >= TERM, "let in after {:?}", begun.elapsed());
    assert!(second.info.exclusive, "the first is gone");
    assert_eq!(*first.answers.pushed.lock().unwrap(), [Push::Share]);
    renewing.await.unwrap();
}

#[tokio::test]
async fn a_wrong_clock_is_corrected() {
    let dir = tempfile::tempdir().unwrap();
    let servers = start(dir.path(), PATIENCE);
    let meta = servers.meta(1).await;
    let create = meta.mutation(Op::Create {
        parent: Ino::ROOT,
        name: Name::new("f").unwrap(),
        new: NewInode::File,
        perm: 0o644,
        umask: 0,
        uid: 0,
        gid: 0,
    });
    let wrong = Timestamp { secs: 1, nanos: u32::MAX };
    assert!(meta.call(&Request::Mutate(Mutation { time: wrong, ..create })).await.is_ok());
    let birth = meta.lookup(Ino::ROOT, "f").await.unwrap().btime;
    let now = Timestamp::from(std::time::SystemTime::now());
    assert!((now.secs - birth.secs).abs() < 10 && birth.nanos < 1_000_000_000, "{birth:?}");
}

#[tokio::test]
async fn a_cut_waits_for_the_data_server_and_holds_up_only_those_who_see_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut servers = start(dir.path(), PATIENCE);
    let (meta, data) = (servers.meta(1).await, servers.data().await);
    let file = meta.create(Ino::ROOT, "f", NewInode::File).await.unwrap();
    write_file(&meta, &data, file, &[vec![1; 50_000]]).await;
    let addr = servers.data.as_ref().unwrap().addr();
    drop(servers.data.take());
    let set = SetAttr { size: Some(40_000), ..SetAttr::default() };
    let cut = Request::Mutate(meta.mutation(Op::SetAttr { ino: file, set }));
    let cut = netfs_common::codec::encode(&cut).unwrap();
    let link = meta.link.clone();
    let mut cutting =
        tokio::spawn(async move { link.call(cut.into(), Instant::now() + PATIENCE).await });
    let early = tokio::time::timeout(Duration::from_millis(500), &mut cutting).await;
    assert!(early.is_err(), "answered before the data server can have done it");
    let get = netfs_common::codec::encode(&Request::Get { ino: file }).unwrap();
    let soon = Instant::now() + Duration::from_millis(300);
    assert!(meta.link.call(get.into(), soon).await.is_err(), "its length may be relied on");
    assert_eq!(meta.call(&Request::Renew).await, Ok(Response::Done));
    assert!(meta.create(Ino::ROOT, "other", NewInode::File).await.is_ok());

    let options = DataOptions { listen: addr, ..data_options(dir.path(), &servers.pki) };
    servers.data = Some(DataServer::start(options).unwrap());
    let back = Instant::now();
    cutting.await.unwrap().unwrap();
    // Far below the idle timeout: the server that is back resets the connections of its earlier life.
    assert!(back.elapsed() < Duration::from_secs(8), "noticed only after {:?}", back.elapsed());
    let attr = meta.get(file).await.unwrap();
    assert_eq!((attr.size, attr.allocated), (40_000, 40_000));
}
