//! Sessions that fall silent, with a term short enough to wait for.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use netfs_common::attr::{SetAttr, Timestamp};
use netfs_common::errno::Errno;
use netfs_common::id::{Ino, OpSeq};
use netfs_common::name::Name;
use netfs_common::net::CallError;
use netfs_common::wire::hello::SESSION_OVER;
use netfs_common::wire::lock::LockCall;
use netfs_common::wire::meta::{BURIAL, Mutation, NewInode, Op, RenameMode, Request, Response};
use netfs_common::wire::{Claim, Hello, Role};
use netfs_served::data::server::{DataOptions, DataServer};
use netfs_served::meta::server::{DataServers, MetaOptions, MetaServer};

use crate::common::{DataClient, MetaClient, PATIENCE, Pki, localhost, make_pki, write_file};

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

/// Ends a server while its clients go on, so that it need not wait for them.
async fn stop(meta: MetaServer) {
    let stop = || meta.stop(netfs_served::thread::Ending::Drain);
    tokio::task::spawn_blocking(stop).await.unwrap().unwrap();
}

/// Signs of life, until it is aborted.
fn renewing(client: &MetaClient) -> tokio::task::JoinHandle<()> {
    let link = client.link.clone();
    tokio::spawn(async move {
        let renew = netfs_common::codec::encode(&Request::Renew).unwrap();
        while link.call(renew.clone().into(), Instant::now() + PATIENCE).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
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
    assert_eq!(other.get(file).await.map(|a| a.nlink), Ok(0), "it may come back");
    meta.link.close();
    let alive = renewing(&other);
    let deadline = Instant::now() + PATIENCE;
    while other.get(file).await != Err(Errno::ESTALE) {
        assert!(Instant::now() < deadline, "the orphan is still there");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    alive.abort();
    // What it had is gone, so it begins anew, in another session.
    let hello = |claim, session| Hello { claim, ..crate::common::hello(Role::Meta, "v", session) };
    let greet = async |hello: Hello| {
        MetaClient::greet(&servers.pki.client, servers.meta.addr(), &hello).await
    };
    match greet(hello(Claim::Resume, 1)).await.err() {
        Some(CallError::Refused { code, .. }) => assert_eq!(code, SESSION_OVER),
        other => panic!("{other:?}"),
    }
    let again = greet(hello(Claim::Succeed, 3)).await.unwrap();
    assert!(!again.info.resumed);
    assert_eq!(again.create(Ino::ROOT, "g", NewInode::File).await.map(drop), Ok(()));
}

#[tokio::test]
async fn what_a_holder_does_not_give_back_is_waited_for_while_it_renews_and_not_longer() {
    let dir = tempfile::tempdir().unwrap();
    let servers = start(dir.path(), TERM);
    let (first, second) = (servers.meta(1).await, servers.meta(2).await);
    let file = first.create(Ino::ROOT, "f", NewInode::File).await.unwrap();
    first.answers.silent.store(true, Ordering::Relaxed);
    let (holder, waiter) = (renewing(&first), renewing(&second));
    let asked = Instant::now();
    let look = async { second.get(file).await };
    tokio::pin!(look);
    // Twice its term: it may have much to write back.
    assert!(tokio::time::timeout(TERM * 2, &mut look).await.is_err(), "{:?}", asked.elapsed());
    assert_eq!(first.call(&Request::Renew).await, Ok(Response::Done), "it has its session");
    assert_eq!(first.answers.take().len(), 1);
    holder.abort();
    let silent = Instant::now();
    assert_eq!(look.await.map(|attr| attr.ino), Ok(file));
    assert!(silent.elapsed() >= TERM - Duration::from_millis(300), "{:?}", silent.elapsed());
    first.link.closed().await;
    waiter.abort();
}

#[tokio::test]
async fn nobody_goes_on_in_a_session_with_another_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let servers = start(dir.path(), PATIENCE);
    let first = servers.meta(1).await;
    let addr = servers.meta.addr();
    let refused = MetaClient::connect(&servers.pki.other, addr, "v", 1).await;
    match refused.err() {
        Some(CallError::Refused { text, .. }) => assert!(text.contains("certificate"), "{text}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(first.call(&Request::Renew).await, Ok(Response::Done), "it is left alone");
    match first.call(&Request::Status).await {
        Ok(Response::Status(status)) => {
            assert_eq!(status.volumes[0].sessions[0].0.0, 0, "no numbers for everybody");
        }
        other => panic!("{other:?}"),
    }
    // Not after a restart either.
    let Servers { pki, meta, data } = servers;
    first.sync().await;
    meta.stop(netfs_served::thread::Ending::Drain).unwrap();
    let at = DataServers::At(vec![data.as_ref().unwrap().addr().to_string()]);
    let meta = MetaServer::start(MetaOptions::new(
        dir.path().join("meta"),
        localhost(),
        at,
        pki.server.clone(),
    ))
    .unwrap();
    assert!(MetaClient::connect(&pki.other, meta.addr(), "v", 1).await.is_err());
    assert!(MetaClient::connect(&pki.client, meta.addr(), "v", 1).await.unwrap().info.resumed);
}

#[tokio::test]
async fn what_one_client_deletes_gives_its_space_back_while_another_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let servers = start(dir.path(), PATIENCE);
    let (first, second) = (servers.meta(1).await, servers.meta(2).await);
    let name = |text| Name::new(text).unwrap();
    let unseen = first.create(Ino::ROOT, "unseen", NewInode::File).await.unwrap();
    let seen = first.create(Ino::ROOT, "seen", NewInode::File).await.unwrap();
    assert_eq!(second.lookup(Ino::ROOT, "seen").await.unwrap().ino, seen);
    for text in ["unseen", "seen"] {
        first.change(Op::Unlink { parent: Ino::ROOT, name: name(text) }).await.unwrap();
    }
    first.change(Op::Forget { inos: vec![unseen, seen] }).await.unwrap();
    assert_eq!(first.get(unseen).await, Err(Errno::ESTALE));
    assert_eq!(first.get(seen).await.map(|a| a.nlink), Ok(0), "the other may have it open");
    second.change(Op::Forget { inos: vec![seen] }).await.unwrap();
    assert_eq!(first.get(seen).await, Err(Errno::ESTALE));
}

/// Waits until a client was told of inodes without a name.
async fn told(client: &MetaClient, inos: &[Ino]) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let told = client.answers.orphans.lock().unwrap().clone();
        if inos.iter().all(|ino| told.contains(ino)) {
            return;
        }
        assert!(Instant::now() < deadline, "{told:?} instead of {inos:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn clients_are_told_of_what_another_removes_and_again_after_a_loss_or_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let servers = start(dir.path(), PATIENCE);
    let (first, second) = (servers.meta(1).await, servers.meta(2).await);
    let stranger = servers.meta(3).await;
    let name = |text| Name::new(text).unwrap();
    let mut made = Vec::new();
    for text in ["removed", "replaced", "linked", "unseen"] {
        made.push(first.create(Ino::ROOT, text, NewInode::File).await.unwrap());
        if text != "unseen" {
            second.lookup(Ino::ROOT, text).await.unwrap();
        }
    }
    let [removed, replaced, linked, unseen] = made[..] else { panic!() };
    let directory = first.create(Ino::ROOT, "directory", NewInode::Dir).await.unwrap();
    second.lookup(Ino::ROOT, "directory").await.unwrap();
    let parent = Ino::ROOT;
    first.change(Op::Link { ino: linked, parent, name: name("second") }).await.unwrap();
    first.change(Op::Unlink { parent, name: name("linked") }).await.unwrap();
    first.change(Op::Unlink { parent, name: name("removed") }).await.unwrap();
    first.change(Op::Rmdir { parent, name: name("directory") }).await.unwrap();
    let (new_parent, new_name) = (parent, name("replaced"));
    let mode = RenameMode::Replace;
    let over = Op::Rename { parent, name: name("unseen"), new_parent, new_name, mode };
    first.change(over).await.unwrap();
    let gone = [removed, replaced, directory];
    told(&second, &gone).await;
    assert!(!second.answers.orphans.lock().unwrap().contains(&linked), "it has a name yet");
    first.change(Op::Unlink { parent, name: name("second") }).await.unwrap();
    told(&second, &[linked]).await;
    assert!(!second.answers.orphans.lock().unwrap().contains(&unseen));
    assert_eq!(*stranger.answers.orphans.lock().unwrap(), []);
    // Another connection, and another life of the server.
    second.link.close();
    let second = servers.meta(2).await;
    second.resume_after(100);
    told(&second, &gone).await;
    let Servers { pki, meta, data } = servers;
    stop(meta).await;
    let at = DataServers::At(vec![data.as_ref().unwrap().addr().to_string()]);
    let mut options =
        MetaOptions::new(dir.path().join("meta"), localhost(), at, pki.server.clone());
    options.volumes = vec!["v".into()];
    let servers = Servers { meta: MetaServer::start(options).unwrap(), pki, data };
    let (first, second, _stranger) =
        tokio::join!(servers.meta(1), servers.meta(2), servers.meta(3));
    second.resume_after(200);
    first.resume_after(200);
    told(&second, &[gone[0], gone[1], gone[2], linked]).await;
    let inos = vec![removed, replaced, directory, linked];
    for client in [&first, &second] {
        client.change(Op::Forget { inos: inos.clone() }).await.unwrap();
    }
    assert_eq!(first.get(removed).await, Err(Errno::ESTALE));
    let third = servers.meta(2).await;
    third.sync().await;
    assert_eq!(*third.answers.orphans.lock().unwrap(), []);
}

#[tokio::test]
async fn a_session_that_its_client_has_ended_is_not_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let servers = start(dir.path(), PATIENCE);
    let first = servers.meta(1).await;
    first.change(Op::EndSession).await.unwrap();
    let late = MetaClient::connect(&servers.pki.client, servers.meta.addr(), "v", 1).await;
    assert!(matches!(late.err(), Some(CallError::Refused { .. })));
    assert!(!servers.meta(2).await.info.resumed);
}

#[tokio::test]
async fn what_a_killed_client_has_sent_is_kept_out_when_its_session_is_ended_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let servers = start(dir.path(), PATIENCE);
    let killed = servers.meta(1).await;
    let data_addr = servers.data.as_ref().unwrap().addr();
    let late = DataClient::connect_as(&servers.pki.client, data_addr, 1).await.unwrap();
    killed.create(Ino::ROOT, "f", NewInode::File).await.unwrap();
    let hello = Hello { claim: Claim::Resume, ..crate::common::hello(Role::Meta, "v", 1) };
    let heir = MetaClient::greet(&servers.pki.client, servers.meta.addr(), &hello).await.unwrap();
    let (seq, answered) = (BURIAL, OpSeq(BURIAL.0 - 1));
    let end = Mutation { seq, answered, ..heir.mutation(Op::EndSession) };
    heir.call(&Request::Mutate(end)).await.unwrap();
    // Nobody waits for the term.
    assert!(!servers.meta(2).await.info.resumed);
    late.bulk.closed().await;
    match DataClient::connect_as(&servers.pki.client, data_addr, 1).await.err() {
        Some(CallError::Refused { code, .. }) => assert_eq!(code, SESSION_OVER),
        other => panic!("{other:?}"),
    }
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

#[tokio::test]
async fn a_session_that_has_ended_is_granted_nothing_by_what_it_still_waits_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut servers = start(dir.path(), PATIENCE);
    let (first, data) = (servers.meta(1).await, servers.data().await);
    let file = first.create(Ino::ROOT, "f", NewInode::File).await.unwrap();
    write_file(&first, &data, file, &[vec![1; 50_000]]).await;
    let second = servers.meta(2).await;
    let addr = servers.data.as_ref().unwrap().addr();
    drop(servers.data.take());
    let send = |link: &netfs_common::net::Link, request: &Request| {
        let (link, bytes) = (link.clone(), netfs_common::codec::encode(request).unwrap());
        tokio::spawn(async move { link.call(bytes.into(), Instant::now() + PATIENCE).await })
    };
    let set = SetAttr { size: Some(40_000), ..SetAttr::default() };
    let cut = send(&first.link, &Request::Mutate(first.mutation(Op::SetAttr { ino: file, set })));
    let asked = send(&second.link, &Request::Get { ino: file });
    // It is sent first, and waits for the cut.
    tokio::time::sleep(Duration::from_millis(300)).await;
    second.change(Op::EndSession).await.unwrap();
    assert!(!cut.is_finished() && !asked.is_finished());

    let options = DataOptions { listen: addr, ..data_options(dir.path(), &servers.pki) };
    servers.data = Some(DataServer::start(options).unwrap());
    cut.await.unwrap().unwrap();
    let late: netfs_common::wire::meta::Answer =
        netfs_common::codec::decode(&asked.await.unwrap().unwrap()).unwrap();
    assert_eq!((late.reply, late.grants), (Err(Errno::ESHUTDOWN), vec![]));
    let alone = first.ask(&Request::Acquire { ino: file }).await;
    assert!(alone.granted(file).is_some(), "nobody has anything of it");
}

#[tokio::test]
async fn a_session_that_never_says_what_it_holds_is_not_waited_for_without_end() {
    let dir = tempfile::tempdir().unwrap();
    let servers = start(dir.path(), Duration::from_secs(5));
    let (first, second) = (servers.meta(1).await, servers.meta(2).await);
    let file = first.create(Ino::ROOT, "f", NewInode::File).await.unwrap();
    first.sync().await;
    drop((first, second));
    let Servers { pki, meta, data } = servers;
    stop(meta).await;
    let at = DataServers::At(vec![data.as_ref().unwrap().addr().to_string()]);
    let mut options =
        MetaOptions::new(dir.path().join("meta"), localhost(), at, pki.server.clone());
    // Ten of them, or `answer`.
    (options.term, options.answer) = (Duration::from_secs(1), Duration::from_secs(3));
    let meta = MetaServer::start(options).unwrap();
    let started = Instant::now();
    let back = async |session| {
        MetaClient::connect_before_reclaim(&pki.client, meta.addr(), "v", session).await.unwrap()
    };
    let (first, second) = (back(1).await, back(2).await);
    let renewals = (renewing(&first), renewing(&second));
    second.reclaim(&[], true).await;
    let none = LockCall::Reclaim { batch: 0, locks: Vec::new(), last: true };
    assert!(second.call(&Request::Lock(none)).await.is_ok());
    assert_eq!(second.get(file).await.map(|attr| attr.ino), Ok(file));
    assert!(started.elapsed() >= Duration::from_secs(10), "{:?}", started.elapsed());
    first.link.closed().await;
    assert_eq!(second.call(&Request::Renew).await, Ok(Response::Done), "it has its session");
    renewals.0.abort();
    renewals.1.abort();
}

#[tokio::test]
async fn a_session_has_the_term_that_it_was_told_also_when_the_server_has_a_shorter_one() {
    let dir = tempfile::tempdir().unwrap();
    let servers = start(dir.path(), Duration::from_secs(8));
    servers.meta(1).await.sync().await;
    let Servers { pki, meta, data } = servers;
    stop(meta).await;
    let at = DataServers::At(vec![data.as_ref().unwrap().addr().to_string()]);
    let options = MetaOptions::new(dir.path().join("meta"), localhost(), at, pki.server.clone());
    let meta = MetaServer::start(MetaOptions { term: Duration::from_secs(1), ..options }).unwrap();
    tokio::time::sleep(Duration::from_secs(4)).await;
    let hello = Hello { claim: Claim::Resume, ..crate::common::hello(Role::Meta, "v", 1) };
    let back = MetaClient::greet(&pki.client, meta.addr(), &hello).await.unwrap();
    assert!(back.info.resumed && back.info.term_ms == 1000);
}

#[tokio::test]
async fn what_a_silent_session_had_is_withheld_until_its_writes_are_kept_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut servers = start(dir.path(), TERM);
    let (meta, data_addr) = (servers.meta(1).await, servers.data.as_ref().unwrap().addr());
    let asleep = DataClient::connect_as(&servers.pki.client, data_addr, 1).await.unwrap();
    let file = meta.create(Ino::ROOT, "f", NewInode::File).await.unwrap();
    write_file(&meta, &asleep, file, &[vec![1; 50_000]]).await;
    meta.change(Op::Unlink { parent: Ino::ROOT, name: Name::new("f").unwrap() }).await.unwrap();
    meta.sync().await;
    // Nobody can fence it, and the client is not heard of any more.
    drop(servers.data.take());
    meta.link.close();
    tokio::time::sleep(TERM + Duration::from_secs(2)).await;
    let join = async |meta: &MetaServer, session| {
        MetaClient::connect(&servers.pki.client, meta.addr(), "v", session).await.unwrap()
    };
    let soon = Duration::from_secs(1);
    let other = join(&servers.meta, 2).await;
    assert!(tokio::time::timeout(soon, other.get(file)).await.is_err(), "its writes may come");
    drop(other);

    // Its end is in the log: a server that is started anew goes on from there.
    servers.meta.stop(netfs_served::thread::Ending::Drain).unwrap();
    let at = DataServers::At(vec![data_addr.to_string()]);
    let options =
        MetaOptions::new(dir.path().join("meta"), localhost(), at, servers.pki.server.clone());
    let restarted = MetaServer::start(MetaOptions { term: TERM, ..options }).unwrap();
    let other = join(&restarted, 3).await;
    assert!(tokio::time::timeout(soon, other.get(file)).await.is_err(), "they still may");
    let options = DataOptions { listen: data_addr, ..data_options(dir.path(), &servers.pki) };
    let data = DataServer::start(options).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while other.get(file).await != Err(Errno::ESTALE) {
        assert!(Instant::now() < deadline, "the orphan is still there");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    match DataClient::connect_as(&servers.pki.client, data.addr(), 1).await.err() {
        Some(CallError::Refused { code, .. }) => assert_eq!(code, SESSION_OVER),
        other => panic!("{other:?}"),
    }
}
