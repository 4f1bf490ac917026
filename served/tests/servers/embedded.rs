//! Both servers in this process, driven with raw calls over loopback.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use netfs_common::attr::SetAttr;
use netfs_common::errno::Errno;
use netfs_common::id::{ChunkId, Ino, OpSeq};
use netfs_common::name::Name;
use netfs_common::net::CallError;
use netfs_common::wire::data::{Op as DataOp, Reply as DataReply, Span};
use netfs_common::wire::lease::{Grant, Lease, Recall, Scope};
use netfs_common::wire::meta::{NewInode, Op, Request, Response};
use netfs_served::embedded::{self, Embedded, EmbeddedOptions};

use crate::common::{DataClient, MetaClient, PATIENCE, write_file};

const ROOT: Ino = Ino::ROOT;

fn start(dir: &std::path::Path) -> Embedded {
    embedded::start(dir, &EmbeddedOptions::default()).unwrap()
}

async fn stop(servers: Embedded) {
    tokio::task::spawn_blocking(|| servers.stop()).await.unwrap().unwrap();
}

async fn clients(servers: &Embedded, session: u64) -> (MetaClient, DataClient) {
    let identity = servers.client_identity();
    let meta = MetaClient::connect(&identity, servers.meta_addr(), servers.volume(), session);
    let meta = meta.await.unwrap();
    assert_eq!(meta.info.map.servers[0].addrs, [servers.data_addr().to_string()]);
    (meta, DataClient::connect(&identity, servers.data_addr()).await.unwrap())
}

fn cut_to(ino: Ino, size: u64) -> Op {
    Op::SetAttr { ino, set: SetAttr { size: Some(size), ..SetAttr::default() } }
}

async fn chunk_data(data: &DataClient, chunk: ChunkId) -> Vec<(u64, u64)> {
    let from = chunk.index << 22;
    let (ino, generation, to) = (chunk.ino, chunk.generation, from + (1 << 22));
    let span = Span { ino, generation, chunk_bits: 22, from, to };
    match data.call(chunk, DataOp::Extents { span, limit: 100 }, Bytes::new()).await.0 {
        DataReply::Extents { extents, .. } => {
            extents.into_iter().map(|(start, end)| (start - from, end - start)).collect()
        }
        other => panic!("{other:?}"),
    }
}

async fn chunks_held(data: &DataClient) -> u64 {
    match data.call(crate::common::chunk(0, 0), DataOp::Usage, Bytes::new()).await.0 {
        DataReply::Usage(usage) => usage.chunks,
        other => panic!("{other:?}"),
    }
}

async fn first_chunk(meta: &MetaClient, ino: Ino) -> ChunkId {
    ChunkId { ino, generation: meta.get(ino).await.unwrap().generation, index: 0 }
}

async fn until_no_chunks(data: &DataClient) {
    let deadline = Instant::now() + PATIENCE;
    while chunks_held(data).await > 0 {
        assert!(Instant::now() < deadline, "chunks of removed files are still there");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn files_survive_restarts_and_their_chunks_go_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let servers = start(dir.path());
    let (meta, data) = clients(&servers, 7).await;
    assert!(!meta.info.resumed);
    let sub = meta.create(ROOT, "sub", NewInode::Dir).await.unwrap();
    let file = meta.create(sub, "file", NewInode::File).await.unwrap();
    let chunks = [vec![1u8; 4 << 20], vec![2u8; 1000]];
    write_file(&meta, &data, file, &chunks).await;
    data.flush(&[first_chunk(&meta, file).await]).await;
    meta.sync().await;
    let before = meta.lookup(sub, "file").await.unwrap();
    assert_eq!((before.size, before.allocated), ((4 << 20) + 1000, (4 << 20) + 1000));
    stop(servers).await;

    let servers = start(dir.path());
    let (meta, data) = clients(&servers, 7).await;
    assert!(meta.info.resumed);
    meta.resume_after(100);
    assert_eq!(meta.lookup(sub, "file").await.unwrap(), before);
    let second = ChunkId { ino: file, generation: before.generation, index: 1 };
    assert_eq!(data.read(second, 0, 1000).await, chunks[1]);
    match meta.call(&Request::StatFs).await {
        Ok(Response::StatFs(figures)) => {
            assert!(figures.bytes >= figures.bytes_free && figures.bytes_free > 0);
            assert!(figures.inodes - figures.inodes_free >= 3);
        }
        other => panic!("{other:?}"),
    }
    let name = Name::new("file").unwrap();
    meta.change(Op::Unlink { parent: sub, name }).await.unwrap();
    assert_eq!(meta.lookup(sub, "file").await, Err(Errno::ENOENT));
    assert_eq!(chunks_held(&data).await, 2, "the file is still open here");
    meta.change(Op::Forget { inos: vec![file] }).await.unwrap();
    until_no_chunks(&data).await;
    stop(servers).await;
}

#[tokio::test]
async fn a_cut_is_complete_on_the_data_server_when_it_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let servers = start(dir.path());
    let (meta, data) = clients(&servers, 7).await;
    let file = meta.create(ROOT, "file", NewInode::File).await.unwrap();
    write_file(&meta, &data, file, &[vec![1u8; 4 << 20], vec![2u8; 4 << 20], vec![3u8; 9]]).await;
    let generation = meta.get(file).await.unwrap().generation;
    let (_, attrs) = meta.change(cut_to(file, (4 << 20) + 10)).await.unwrap();
    let cut = attrs.iter().find(|a| a.ino == file).unwrap();
    assert_eq!((cut.size, cut.allocated), ((4 << 20) + 10, (4 << 20) + 10));
    let chunk = |index| ChunkId { ino: file, generation, index };
    assert_eq!(chunk_data(&data, chunk(0)).await, [(0, 4 << 20)]);
    assert_eq!(chunk_data(&data, chunk(1)).await, [(0, 10)]);
    assert_eq!(chunk_data(&data, chunk(2)).await, []);
    meta.change(cut_to(file, 0)).await.unwrap();
    until_no_chunks(&data).await;
}

#[tokio::test]
async fn a_change_sent_again_over_a_new_connection_is_made_once() {
    let dir = tempfile::tempdir().unwrap();
    let servers = start(dir.path());
    let (meta, _data) = clients(&servers, 7).await;
    let create = meta.mutation(Op::Create {
        parent: ROOT,
        name: Name::new("once").unwrap(),
        new: NewInode::Dir,
        perm: 0o755,
        umask: 0,
        uid: 0,
        gid: 0,
    });
    let first = meta.call(&Request::Mutate(create.clone())).await;
    assert!(first.is_ok(), "{first:?}");
    meta.link.close();
    let (again, _data) = clients(&servers, 7).await;
    assert!(again.info.resumed);
    assert_eq!(again.call(&Request::Mutate(create.clone())).await, first);
    // Also after a crash of the server.
    again.sync().await;
    drop(servers);
    let servers = start(dir.path());
    let (last, _data) = clients(&servers, 7).await;
    assert!(last.info.resumed);
    assert_eq!(last.call(&Request::Mutate(create.clone())).await, first);
    // It may have written since, so that is not known any more.
    last.resume_after(1);
    let file = last.create(ROOT, "file", NewInode::File).await.unwrap();
    let cut = last.mutation(Op::CutTail { ino: file });
    let cutting = last.ask(&Request::Mutate(cut.clone())).await;
    assert!(cutting.granted(file).is_some_and(|g| g.tail_known));
    last.sync().await;
    drop(servers);
    let servers = start(dir.path());
    let (last, _data) = clients(&servers, 7).await;
    let again = last.ask(&Request::Mutate(cut)).await;
    assert!(again.reply.is_ok(), "{again:?}");
    assert!(again.granted(file).is_some_and(|g| g.lease == Lease::Write && !g.tail_known));
    let twice = netfs_common::wire::meta::Mutation { seq: OpSeq(4), ..create };
    assert_eq!(last.call(&Request::Mutate(twice)).await, Err(Errno::EEXIST));
}

fn look(name: &str) -> Request {
    Request::Lookup { parent: ROOT, name: Name::new(name).unwrap() }
}

#[tokio::test]
async fn what_is_held_is_recalled_before_others_see_or_change_it() {
    let dir = tempfile::tempdir().unwrap();
    let servers = start(dir.path());
    let (first, _d1) = clients(&servers, 1).await;
    let (second, _d2) = clients(&servers, 2).await;
    let file = first.create(ROOT, "file", NewInode::File).await.unwrap();
    assert!(first.answers.take().is_empty());

    let seen = second.ask(&look("file")).await;
    let keep = |ino, keep, stale| Recall { ino, keep, stale };
    // Who makes a file may write to it, so others ask it first.
    let read = Some(Lease::Read);
    assert_eq!(first.answers.take(), [keep(file, read, Scope::default())]);
    assert_eq!(seen.granted(file).map(|g| g.lease), read);
    assert_eq!(seen.granted(ROOT).map(|g| g.lease), read);

    // To write, it must have the file alone.
    let written = first.ask(&Request::Acquire { ino: file }).await;
    let all = Grant { ino: file, lease: Lease::Write, tail_known: true };
    assert_eq!(written.granted(file), Some(all));
    assert_eq!(second.answers.take(), [keep(file, None, Scope::all())]);

    // A new name makes that name untrue, and nothing else.
    first.create(ROOT, "other", NewInode::File).await.unwrap();
    let other = Name::new("other").unwrap();
    assert_eq!(second.answers.take(), [keep(ROOT, read, Scope::name(other))]);
    assert!(first.answers.take().is_empty());

    // What was given back, or whose holder has left, is recalled from nobody.
    second.ask(&look("file")).await;
    assert_eq!(first.answers.take(), [keep(file, read, Scope::default())]);
    second.change(Op::EndSession).await.unwrap();
    assert_eq!(second.call(&Request::Renew).await, Err(Errno::ESHUTDOWN));
    let again = first.ask(&Request::Acquire { ino: file }).await;
    assert_eq!(again.granted(file), Some(all));
    assert!(first.answers.take().is_empty() && second.answers.take().is_empty());
}

#[tokio::test]
async fn a_look_waits_for_a_holder_that_does_not_answer() {
    let dir = tempfile::tempdir().unwrap();
    let servers = start(dir.path());
    let (first, _d1) = clients(&servers, 1).await;
    let file = first.create(ROOT, "file", NewInode::File).await.unwrap();
    first.answers.silent.store(true, Ordering::Relaxed);
    let (second, _d2) = clients(&servers, 2).await;
    let bytes = netfs_common::codec::encode(&look("file")).unwrap();
    let link = second.link.clone();
    let mut looking =
        tokio::spawn(async move { link.call(bytes.into(), Instant::now() + PATIENCE).await });
    let early = tokio::time::timeout(Duration::from_millis(300), &mut looking).await;
    assert!(early.is_err(), "answered before the holder has sent what it has");
    assert_eq!(second.get(ROOT).await.map(|a| a.ino), Ok(ROOT), "others do not wait");
    // The holder loses its connection; it comes back and is asked again.
    first.link.close();
    let (first, _d1) = clients(&servers, 1).await;
    looking.await.unwrap().unwrap();
    assert!(first.answers.take().iter().any(|r| r.ino == file && r.keep == Some(Lease::Read)));
}

#[tokio::test]
async fn a_holder_that_answers_with_nonsense_loses_its_connection_and_not_its_session() {
    let dir = tempfile::tempdir().unwrap();
    let servers = start(dir.path());
    let (first, _d1) = clients(&servers, 1).await;
    let file = first.create(ROOT, "file", NewInode::File).await.unwrap();
    first.answers.nonsense.store(true, Ordering::Relaxed);
    let (second, _d2) = clients(&servers, 2).await;
    let bytes = netfs_common::codec::encode(&look("file")).unwrap();
    let link = second.link.clone();
    let looking =
        tokio::spawn(async move { link.call(bytes.into(), Instant::now() + PATIENCE).await });
    first.link.closed().await;
    assert!(!looking.is_finished());
    let (again, _d1) = clients(&servers, 1).await;
    assert!(again.info.resumed);
    looking.await.unwrap().unwrap();
    assert!(again.answers.take().iter().any(|r| r.ino == file));
}

#[tokio::test]
async fn clients_are_told_of_each_other_when_that_changes() {
    let dir = tempfile::tempdir().unwrap();
    let servers = start(dir.path());
    let told = async |client: &MetaClient, news: &[(u64, bool)]| {
        let deadline = Instant::now() + PATIENCE;
        while client.answers.company.lock().unwrap().as_slice() != news {
            let company = client.answers.company.lock().unwrap().clone();
            assert!(Instant::now() < deadline, "{company:?} instead of {news:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (first, _d1) = clients(&servers, 1).await;
    told(&first, &[(0, false)]).await;
    let (second, _d2) = clients(&servers, 2).await;
    told(&first, &[(0, false), (1, true)]).await;
    told(&second, &[(1, true)]).await;
    let (third, _d3) = clients(&servers, 3).await;
    told(&third, &[(1, true)]).await;
    third.change(Op::EndSession).await.unwrap();
    second.change(Op::EndSession).await.unwrap();
    told(&first, &[(0, false), (1, true), (2, false)]).await;
    told(&second, &[(1, true)]).await;
}

#[tokio::test]
async fn after_a_crash_nobody_overtakes_those_who_held_something() {
    let dir = tempfile::tempdir().unwrap();
    let servers = start(dir.path());
    let (first, _d1) = clients(&servers, 1).await;
    let (second, _d2) = clients(&servers, 2).await;
    let file = first.create(ROOT, "file", NewInode::File).await.unwrap();
    first.sync().await;
    drop(servers);
    let servers = start(dir.path());
    let identity = servers.client_identity();
    let addr = servers.meta_addr();
    let back = async |session| {
        MetaClient::connect_before_reclaim(&identity, addr, servers.volume(), session)
            .await
            .unwrap()
    };
    drop((first, second));
    let (first, second) = (back(1).await, back(2).await);
    assert!(first.info.resumed && second.info.resumed);
    second.reclaim(&[], true).await;
    let bytes = netfs_common::codec::encode(&look("file")).unwrap();
    let link = second.link.clone();
    let mut looking =
        tokio::spawn(async move { link.call(bytes.into(), Instant::now() + PATIENCE).await });
    let early = tokio::time::timeout(Duration::from_millis(300), &mut looking).await;
    assert!(early.is_err(), "the first may have something that nobody knows of");
    let grants = first.reclaim(&[(file, Lease::Write)], false).await;
    assert_eq!(grants.len(), 1);
    assert_eq!((grants[0].ino, grants[0].lease), (file, Lease::Write));
    let early = tokio::time::timeout(Duration::from_millis(100), &mut looking).await;
    assert!(early.is_err(), "it has not claimed everything");
    first.reclaim(&[], true).await;
    looking.await.unwrap().unwrap();
    assert_eq!(first.answers.take().len(), 1, "what it has claimed is recalled");
}

#[tokio::test]
async fn strangers_and_nonsense_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let servers = start(dir.path());
    let (meta, _data) = clients(&servers, 1).await;
    let identity = servers.client_identity();
    let unknown = MetaClient::connect(&identity, servers.meta_addr(), "nowhere", 2).await.err();
    assert!(matches!(&unknown, Some(CallError::Refused { text, .. }) if text.contains("nowhere")));
    let error = embedded::start(dir.path(), &EmbeddedOptions::default()).unwrap_err();
    assert!(error.to_string().contains("in use"), "{error}");

    let (other, _data) = clients(&servers, 2).await;
    let nonsense = Bytes::from_static(&[0xff; 100]);
    let _ = other.link.call(nonsense, Instant::now() + PATIENCE).await;
    other.link.closed().await;
    assert_eq!(meta.call(&Request::Renew).await, Ok(Response::Done));
    let huge = Request::ReadDir { ino: ROOT, after: u64::MAX, limit: u32::MAX, plus: true };
    assert!(meta.call(&huge).await.is_ok());
    assert_eq!(meta.get(Ino(u64::MAX)).await, Err(Errno::ESTALE));
    // A directory that is somebody else's is left alone.
    let foreign = tempfile::tempdir().unwrap();
    std::fs::write(foreign.path().join("letter.txt"), "dear").unwrap();
    let error = embedded::start(foreign.path(), &EmbeddedOptions::default()).unwrap_err();
    assert!(error.to_string().contains("letter.txt"), "{error}");
    assert_eq!(std::fs::read_dir(foreign.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn cuts_and_removals_that_a_crash_interrupted_are_completed() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..4u64 {
        let servers = start(dir.path());
        let (meta, data) = clients(&servers, 7).await;
        meta.resume_after(round * 100);
        if round > 0 {
            let attr = meta.lookup(ROOT, "cut").await.unwrap();
            let chunk = ChunkId { ino: attr.ino, generation: attr.generation, index: 0 };
            assert_eq!(attr.size, 10);
            assert_eq!(chunk_data(&data, chunk).await, [(0, 10)]);
        }
        until_at_most_one_chunk(&data).await;
        let cut = match meta.lookup(ROOT, "cut").await {
            Ok(attr) => attr.ino,
            Err(_) => meta.create(ROOT, "cut", NewInode::File).await.unwrap(),
        };
        let gone = meta.create(ROOT, "gone", NewInode::File).await.unwrap();
        for file in [cut, gone] {
            write_file(&meta, &data, file, &[vec![7u8; 50_000], vec![8u8; 10]]).await;
        }
        data.flush(&[first_chunk(&meta, cut).await, first_chunk(&meta, gone).await]).await;
        // Sent together, and the servers die while the data server is at work on them.
        let name = Name::new("gone").unwrap();
        let changes = [
            meta.mutation(cut_to(cut, 10)),
            meta.mutation(Op::Unlink { parent: ROOT, name }),
            meta.mutation(Op::Forget { inos: vec![gone] }),
        ];
        let link = meta.link.clone();
        let sent: Vec<_> = changes
            .into_iter()
            .map(|change| {
                let bytes = netfs_common::codec::encode(&Request::Mutate(change)).unwrap();
                let link = link.clone();
                tokio::spawn(
                    async move { link.call(bytes.into(), Instant::now() + PATIENCE).await },
                )
            })
            .collect();
        tokio::time::sleep(Duration::from_micros(300 * round)).await;
        // Until the changes are in the log; their completion may be anywhere.
        while meta_lacks(&sent) {
            tokio::time::sleep(Duration::from_micros(100)).await;
        }
        drop(servers);
    }
    async fn until_at_most_one_chunk(data: &DataClient) {
        let deadline = Instant::now() + PATIENCE;
        while chunks_held(data).await > 1 {
            assert!(Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    /// The last of the changes, which waits for nothing, has not been answered.
    fn meta_lacks<T>(sent: &[tokio::task::JoinHandle<T>]) -> bool {
        !sent.last().unwrap().is_finished()
    }
}
