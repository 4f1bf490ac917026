//! The machine of the metadata server fails: what clients were answered is made again.

use std::path::Path;
use std::time::{Duration, Instant};

use netfs_common::attr::SetAttr;
use netfs_common::codec;
use netfs_common::errno::Errno;
use netfs_common::id::{Ino, LogIndex, OpSeq};
use netfs_common::name::Name;
use netfs_common::wire::meta::{
    Answer, BURIAL, Mutation, NewInode, Op, Replayed, Reply, Request, Response,
};
use netfs_served::embedded::{self, Embedded, EmbeddedOptions};

use crate::common::{MetaClient, PATIENCE};

const ROOT: Ino = Ino::ROOT;

fn start(dir: &Path) -> Embedded {
    embedded::start(dir, &EmbeddedOptions::default()).unwrap()
}

/// As a failure of the machine looks to the next life of the server.
fn forget_machine(dir: &Path) {
    let volumes = dir.join("meta");
    let notes: Vec<_> = std::fs::read_dir(&volumes)
        .unwrap()
        .map(|entry| entry.unwrap().path().join("BOOT"))
        .filter(|path| path.exists())
        .collect();
    assert_eq!(notes.len(), 1, "{}", volumes.display());
    std::fs::remove_file(&notes[0]).unwrap();
}

async fn client(servers: &Embedded, session: u64) -> MetaClient {
    let (identity, addr) = (servers.client_identity(), servers.meta_addr());
    MetaClient::connect(&identity, addr, servers.volume(), session).await.unwrap()
}

async fn back(servers: &Embedded, session: u64) -> MetaClient {
    let (identity, addr) = (servers.client_identity(), servers.meta_addr());
    let connecting = MetaClient::connect_before_reclaim(&identity, addr, servers.volume(), session);
    connecting.await.unwrap()
}

fn create(parent: Ino, name: &str, new: NewInode) -> Op {
    let name = Name::new(name).unwrap();
    Op::Create { parent, name, new, perm: 0o755, umask: 0, uid: 0, gid: 0 }
}

fn replayed(at: u64, seq: u64, ino: Ino, op: Op) -> Replayed {
    let time = std::time::SystemTime::now().into();
    Replayed { at: LogIndex(at), seq: OpSeq(seq), time, target: Some((ino, 0)), op }
}

async fn offer(client: &MetaClient, changes: Vec<Replayed>, done: bool) -> Reply {
    client.call(&Request::Replay { changes, done }).await
}

fn lost(positions: &[u64]) -> Reply {
    Ok(Response::Replayed { lost: positions.iter().map(|at| LogIndex(*at)).collect() })
}

fn look(name: &str) -> Request {
    Request::Lookup { parent: ROOT, name: Name::new(name).unwrap() }
}

#[tokio::test]
async fn what_two_clients_have_is_made_again_before_anybody_sees_anything() {
    let dir = tempfile::tempdir().unwrap();
    let servers = start(dir.path());
    let (first, second) = (client(&servers, 1).await, client(&servers, 2).await);
    let kept = first.create(ROOT, "kept", NewInode::File).await.unwrap();
    first.sync().await;
    drop((first, second, servers));
    forget_machine(dir.path());
    let servers = start(dir.path());
    let (first, second) = (back(&servers, 1).await, back(&servers, 2).await);
    let stranger = back(&servers, 3).await;
    let ask = |client: &MetaClient, request: &Request| {
        let (link, bytes) = (client.link.clone(), codec::encode(request).unwrap());
        tokio::spawn(async move {
            let reply = link.call(bytes.into(), Instant::now() + PATIENCE).await.unwrap();
            codec::decode::<Answer>(&reply).unwrap().reply
        })
    };
    let looking = ask(&stranger, &look("dir"));
    let claiming = ask(&stranger, &Request::Reclaim { leases: Vec::new(), done: true });

    let (dir_ino, inner) = (Ino(kept.0 + 1), Ino(kept.0 + 2));
    let set = Op::SetAttr { ino: inner, set: SetAttr { perm: Some(0o700), ..SetAttr::default() } };
    // The second one's change was made between the first one's.
    let mine = vec![replayed(1005, 3, inner, set)];
    assert_eq!(offer(&first, mine, false).await, Ok(Response::Done));
    let mine = vec![replayed(1000, 2, dir_ino, create(ROOT, "dir", NewInode::Dir))];
    assert_eq!(offer(&first, mine, false).await, Ok(Response::Done));
    let done = ask(&first, &Request::Replay { changes: Vec::new(), done: true });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!looking.is_finished() && !claiming.is_finished() && !done.is_finished());
    assert_eq!(second.call(&Request::Renew).await, Ok(Response::Done));

    // One of them cannot be made: a name that is there, and a session that would end.
    let theirs = vec![
        replayed(1003, 1, inner, create(dir_ino, "in", NewInode::File)),
        replayed(1004, 2, Ino(kept.0 + 3), create(ROOT, "kept", NewInode::File)),
        replayed(1006, 3, ROOT, Op::EndSession),
    ];
    assert_eq!(offer(&second, theirs.clone(), true).await, lost(&[1004, 1006]));
    assert_eq!(done.await.unwrap(), lost(&[]));
    // Asked again over another connection.
    assert_eq!(offer(&second, theirs, true).await, lost(&[1004, 1006]));
    // Nobody has waited for this one.
    let foreign = vec![replayed(1001, 1, Ino(kept.0 + 4), create(ROOT, "x", NewInode::File))];
    assert_eq!(offer(&stranger, foreign, true).await, lost(&[1001]));

    claiming.await.unwrap().unwrap();
    first.reclaim(&[], true).await;
    second.reclaim(&[], true).await;
    match looking.await.unwrap().unwrap() {
        Response::Entry { attr, .. } => assert_eq!(attr.ino, dir_ino),
        other => panic!("{other:?}"),
    }
    let attr = second.get(inner).await.unwrap();
    assert_eq!((attr.ino, attr.perm), (inner, 0o700));
    assert_eq!(second.call(&look("x")).await, Err(Errno::ENOENT));
    // Numbers go on elsewhere, and the next start waits for nobody.
    first.resume_after(3);
    let next = first.create(ROOT, "next", NewInode::File).await.unwrap();
    assert!(next.0 > inner.0 + 1000, "{next}");
    drop((first, second, stranger, servers));
    let servers = start(dir.path());
    // Who has not heard of it asks again: what was made is not lost.
    let mine = vec![
        replayed(1000, 2, dir_ino, create(ROOT, "dir", NewInode::Dir)),
        replayed(1007, 9, dir_ino, create(ROOT, "never", NewInode::Dir)),
    ];
    assert_eq!(offer(&back(&servers, 1).await, mine, true).await, lost(&[1007]));
    let _others = (client(&servers, 2).await, client(&servers, 3).await);
    assert_eq!(client(&servers, 1).await.get(inner).await.map(|a| a.perm), Ok(0o700));
}

#[tokio::test]
async fn who_only_claims_leases_has_nothing_to_offer() {
    let dir = tempfile::tempdir().unwrap();
    let servers = start(dir.path());
    let (first, second) = (client(&servers, 1).await, client(&servers, 2).await);
    drop((first, second, servers));
    forget_machine(dir.path());
    let servers = start(dir.path());
    let (first, second) = (back(&servers, 1).await, back(&servers, 2).await);
    let (one, two) = tokio::join!(offer(&first, Vec::new(), true), second.reclaim(&[], true));
    assert_eq!((one, two.len()), (lost(&[]), 0));
    first.reclaim(&[], true).await;
    assert_eq!(first.call(&look("none")).await, Err(Errno::ENOENT));
}

#[tokio::test]
async fn an_orderly_stop_before_all_are_back_forgets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let servers = start(dir.path());
    let (first, second) = (client(&servers, 1).await, client(&servers, 2).await);
    first.sync().await;
    drop((first, second, servers));
    forget_machine(dir.path());
    let mut servers = start(dir.path());
    let change = vec![replayed(1000, 5, Ino(50), create(ROOT, "a", NewInode::Dir))];
    for _ in 0..2 {
        // Once more it is offered, and once more the other one does not come.
        let first = back(&servers, 1).await;
        assert_eq!(offer(&first, change.clone(), false).await, Ok(Response::Done));
        drop(first);
        tokio::task::spawn_blocking(|| servers.stop()).await.unwrap().unwrap();
        servers = start(dir.path());
    }
    let (first, second) = (back(&servers, 1).await, back(&servers, 2).await);
    let (one, two) = tokio::join!(offer(&first, change, true), offer(&second, Vec::new(), true));
    assert_eq!((one, two), (lost(&[]), lost(&[])));
    first.reclaim(&[], true).await;
    second.reclaim(&[], true).await;
    assert!(second.call(&look("a")).await.is_ok());
}

#[tokio::test]
async fn a_client_that_died_is_not_waited_for_when_that_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let servers = start(dir.path());
    let (first, second) = (client(&servers, 1).await, client(&servers, 2).await);
    drop((first, second, servers));
    forget_machine(dir.path());
    let mut servers = start(dir.path());
    let first = back(&servers, 1).await;
    let change = vec![replayed(1000, 5, Ino(50), create(ROOT, "a", NewInode::Dir))];
    let offered = offer(&first, change, true);
    let end = async {
        let dead = back(&servers, 2).await;
        let mutation = Mutation {
            seq: BURIAL,
            answered: OpSeq(BURIAL.0 - 1),
            time: std::time::SystemTime::now().into(),
            sync: false,
            op: Op::EndSession,
        };
        dead.call(&Request::Mutate(mutation)).await
    };
    let (offered, ended) = tokio::join!(offered, end);
    assert!(ended.is_ok(), "{ended:?}");
    assert_eq!(offered, lost(&[]));
    first.reclaim(&[], true).await;
    assert!(first.call(&look("a")).await.is_ok());
    drop(first);
    // Nor is anybody when the server ends.
    let second = client(&servers, 3).await;
    drop((second, servers));
    forget_machine(dir.path());
    servers = start(dir.path());
    let third = back(&servers, 3).await;
    let (link, bytes) = (third.link.clone(), codec::encode(&look("a")).unwrap());
    let waiting =
        tokio::spawn(async move { link.call(bytes.into(), Instant::now() + PATIENCE).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!waiting.is_finished());
    let begun = Instant::now();
    tokio::task::spawn_blocking(|| servers.stop()).await.unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    // The answer may be lost with the connection; if it comes, it is this one.
    if let Ok(answer) = waiting.await.unwrap() {
        assert_eq!(codec::decode::<Answer>(&answer).unwrap().reply, Err(Errno::ESHUTDOWN));
    }
}
