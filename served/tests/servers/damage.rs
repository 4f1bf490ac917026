//! Replicas with bytes that nobody can read any more.

use std::time::{Duration, Instant};

use bytes::Bytes;
use netfs_common::errno::Errno;
use netfs_common::id::ChunkId;
use netfs_common::wire::cluster::{Install, PeerOp};
use netfs_common::wire::data::{At, Op, Reply, Request};
use netfs_served::data::store::SegmentStore;

use crate::chains::{Cluster, bytes};
use crate::common::{DataClient, GROUPS, PATIENCE, chunk, damage};

/// Is put into what is to be damaged.
const MARK: &[u8] = b"here it will be damaged";

/// A chunk of one record, in whose second block the mark is.
fn marked() -> Vec<u8> {
    [&bytes(1, 6000)[..], MARK, &bytes(2, 14_000)].concat()
}

#[tokio::test]
async fn what_the_teacher_cannot_read_the_learner_has_not_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), 2);
    cluster.set(&[0], None).await;
    let head = cluster.client(0).await;
    for index in 0..30 {
        head.write(chunk(2, index), 0, &bytes(index, 3000)).await;
    }
    let of = chunk(2, 40);
    head.write(of, 0, &marked()).await;
    head.flush(&[of]).await;
    assert_eq!(damage(&dir.path().join("data0"), MARK), 1);
    cluster.set(&[0], Some(1)).await;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let reply = cluster.beat(0, false).await;
        if reply.synced.len() == 2 * GROUPS as usize - 1 {
            assert_eq!(reply.lacking.iter().filter(|(_, left)| *left == Some(1)).count(), 1);
            break;
        }
        assert!(Instant::now() < deadline, "only {} groups are synced", reply.synced.len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Longer than a learner may take nothing.
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        let reply = cluster.beat(0, false).await;
        assert_eq!(reply.stalled, [], "the learner is blamed");
        assert_eq!(reply.counts.damaged, 1);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // What is written in its place can be taught.
    let anew = bytes(7, marked().len());
    head.write(of, 0, &anew).await;
    cluster.until_synced(0).await;
    cluster.set(&[0, 1], None).await;
    for index in 0..2 {
        let client = cluster.client(index).await;
        assert_eq!(client.read(of, 0, anew.len() as u64).await, anew);
        assert_eq!(client.read(chunk(2, 7), 0, 3000).await, bytes(7, 3000));
    }
}

const BLOCK: u64 = 4096;

/// With the mark in some places.
fn with_marks(len: usize, places: &[usize]) -> Vec<u8> {
    let mut out = bytes(5, len);
    places.iter().for_each(|at| out[*at..at + MARK.len()].copy_from_slice(MARK));
    out
}

/// Whether a chunk reads as this, but for some blocks that cannot be read.
async fn look(client: &DataClient, of: ChunkId, data: &[u8], bad: &[u64]) {
    let mut at = 0;
    for block in bad {
        assert_eq!(client.read(of, at, block - at).await, data[at as usize..*block as usize]);
        let len = BLOCK.min(data.len() as u64 - block);
        for (offset, len) in [(*block, len), (*block, 1), (block + len - 1, 1)] {
            let read = Op::Read { chunk: of, offset, len };
            let (reply, _) = client.call(of, read, Bytes::new()).await;
            assert_eq!(reply, Reply::Failed(Errno::EIO), "at {offset}");
        }
        at = block + len;
    }
    assert_eq!(client.read(of, at, data.len() as u64 - at).await, data[at as usize..]);
}

/// As [`Cluster::until_synced`]; nobody is blamed meanwhile.
async fn until_taught(cluster: &Cluster<'_>, tail: usize) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let reply = cluster.beat(tail, false).await;
        assert_eq!(reply.stalled, [], "the learner is blamed");
        if reply.synced.len() == 2 * GROUPS as usize {
            return;
        }
        assert!(Instant::now() < deadline, "{} groups are synced", reply.synced.len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn replicas_damaged_in_different_places_mend_each_other_and_what_both_lack_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), 2);
    cluster.set(&[0, 1], None).await;
    let (of, head) = (chunk(2, 0), cluster.client(0).await);
    let mut data = bytes(5, 1_500_000);
    let marks: [&[u8]; 2] = [b"the first loses this", b"the second loses this"];
    // By twos and alone, at the begin and at the end, and blocks that both lose, one of them beside one that only one of them does.
    let lost: [&[u64]; 2] = [&[0, 10, 11, 40, 200, 366], &[1, 11, 40, 199, 201]];
    for (index, mark) in marks.iter().enumerate() {
        for block in lost[index] {
            let at = (block * BLOCK) as usize + 100 + index * 100;
            data[at..at + mark.len()].copy_from_slice(mark);
        }
    }
    head.write(of, 0, &data).await;
    head.flush(&[of]).await;
    for index in 0..2 {
        let found = damage(&dir.path().join(format!("data{index}")), marks[index]);
        assert_eq!(found, lost[index].len());
    }
    for (index, lost) in lost.iter().enumerate() {
        let client = cluster.client(index).await;
        for block in *lost {
            // Damaged, or mended since the one before was read.
            client
                .call(of, Op::Read { chunk: of, offset: block * BLOCK, len: 9 }, Bytes::new())
                .await;
        }
    }
    let deadline = Instant::now() + PATIENCE;
    for (index, lost) in lost.iter().enumerate() {
        let wanted = (lost.len() as u64, lost.len() as u64 - 2);
        loop {
            let counts = cluster.beat(index, false).await.counts;
            if (counts.damaged, counts.mended) == wanted {
                break;
            }
            assert!(Instant::now() < deadline, "server {index}: {counts:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    for index in 0..2 {
        look(&cluster.client(index).await, of, &data, &[11 * BLOCK, 40 * BLOCK]).await;
    }
}

#[tokio::test]
async fn what_nobody_has_any_more_is_taught_as_lost_and_the_rest_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    const AFTER: Duration = Duration::from_secs(2);
    let mut cluster = Cluster::start_with(dir.path(), 3, |options| options.loss_after = AFTER);
    cluster.set(&[0], None).await;
    let head = cluster.client(0).await;
    for index in 0..30 {
        head.write(chunk(2, index), 0, &bytes(index, 3000)).await;
    }
    let small = (chunk(2, 40), marked());
    let large = (chunk(5, 0), with_marks(2_500_001, &[5, 700_000, 704_200, 1_500_000, 2_499_900]));
    for (of, data) in [&small, &large] {
        head.write(*of, 0, data).await;
        head.flush(&[*of]).await;
    }
    assert_eq!(damage(&dir.path().join("data0"), MARK), 6);
    let bad_small = [BLOCK];
    let bad_large = [0, 170 * BLOCK, 171 * BLOCK, 366 * BLOCK, 610 * BLOCK];
    let begun = Instant::now();
    cluster.set(&[0], Some(1)).await;
    until_taught(&cluster, 0).await;
    assert!(begun.elapsed() >= AFTER, "somebody may still mend it");
    cluster.set(&[0, 1], None).await;
    for index in 0..2 {
        let counts = cluster.beat(index, false).await.counts;
        assert_eq!((counts.damaged, counts.mended), (6, 0), "server {index}");
        let client = cluster.client(index).await;
        look(&client, small.0, &small.1, &bad_small).await;
        look(&client, large.0, &large.1, &bad_large).await;
        for n in 0..30 {
            assert_eq!(client.read(chunk(2, n), 0, 3000).await, bytes(n, 3000));
        }
    }
    // From who has learned it another one learns it, also in a later life.
    cluster.restart(1);
    cluster.set(&[0], Some(1)).await;
    let before = cluster.beat(0, false).await.counts.pushed_chunks;
    until_taught(&cluster, 0).await;
    assert_eq!(cluster.beat(0, false).await.counts.pushed_chunks, before, "it was there");
    drop(cluster.servers[0].take());
    cluster.set(&[1], Some(2)).await;
    until_taught(&cluster, 1).await;
    cluster.set(&[1, 2], None).await;
    for index in 1..3 {
        let client = cluster.client(index).await;
        look(&client, small.0, &small.1, &bad_small).await;
        look(&client, large.0, &large.1, &bad_large).await;
    }
    // What is written in its place counts everywhere, and no more than that.
    let (head, mut anew) = (cluster.client(1).await, small.1.clone());
    anew[5000..6000].fill(9);
    head.write(small.0, 5000, &anew[5000..6000]).await;
    for index in 1..3 {
        let client = cluster.client(index).await;
        assert_eq!(client.read(small.0, 5000, 1000).await, anew[5000..6000]);
        let read = Op::Read { chunk: small.0, offset: 4999, len: 2 };
        let (reply, _) = client.call(small.0, read, Bytes::new()).await;
        assert_eq!(reply, Reply::Failed(Errno::EIO));
    }
    head.write(small.0, BLOCK, &anew[4096..8192]).await;
    for at in bad_large {
        let end = (at as usize + 4096).min(large.1.len());
        head.write(large.0, at, &large.1[at as usize..end]).await;
    }
    for index in 1..3 {
        let client = cluster.client(index).await;
        look(&client, small.0, &anew, &[]).await;
        look(&client, large.0, &large.1, &[]).await;
    }
    head.flush(&[small.0, large.0]).await;
    drop(head);
    for index in 1..3 {
        drop(cluster.servers[index].take());
        let report = SegmentStore::check(&dir.path().join(format!("data{index}"))).unwrap();
        assert!(report.is_clean(), "{report:?}");
    }
}

#[tokio::test]
async fn a_loss_that_cannot_be_is_not_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), 2);
    cluster.set(&[0], None).await;
    let head = cluster.client(0).await;
    head.write(chunk(2, 0), 0, &bytes(1, 9000)).await;
    cluster.set(&[0], Some(1)).await;
    cluster.until_synced(0).await;
    cluster.set(&[0, 1], None).await;
    let addr = cluster.servers[1].as_ref().unwrap().addr();
    let peer = cluster.peer(addr).await;
    let (group, other) = (cluster.group(chunk(2, 0)), cluster.group(chunk(2, 1)));
    assert_ne!(group, other);
    let instance = cluster.servers[1].as_ref().unwrap().instance();
    let tell = async |group, offset, len, payload: &'static [u8]| {
        let version = netfs_common::id::Version(77);
        let install = Install { chunk: chunk(2, 0), first: true, version, offset };
        let at = At::Replica { group, epoch: cluster.epoch(), instance };
        let op = Op::Peer(PeerOp::InstallBad { install, len });
        peer.raw(&Request { at, op }, Bytes::from_static(payload)).await.unwrap().0
    };
    let refused = [
        tell(group, 0, 0, b"").await,
        tell(group, 0, (4 << 20) + 1, b"").await,
        tell(group, u64::MAX, 2, b"").await,
        tell(group, 0, 4096, b"what is lost has no bytes").await,
        tell(other, 0, 4096, b"").await,
    ];
    for reply in refused {
        assert!(matches!(reply, Reply::Failed(_)), "{reply:?}");
    }
    // It is no learner.
    let reply = tell(group, 0, 4096, b"").await;
    assert!(matches!(reply, Reply::StaleEpoch(_)), "{reply:?}");
    assert_eq!(cluster.client(1).await.read(chunk(2, 0), 0, 9000).await, bytes(1, 9000));
}
