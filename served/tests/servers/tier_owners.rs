//! Whose the objects of a bucket are: data servers of several file systems, or with the wrong bucket.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use netfs_common::errno::Errno;
use netfs_common::wire::data::{At, Op, Reply, Request};
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::common::chunk;
use crate::tier_chains::{Cluster, NEVER, SOON, bytes, live, read, until, until_read, write};

/// Longer than it takes to be cold, and for a sweep.
const A_WHILE: Duration = Duration::from_secs(3);

/// A server with a chunk that is in the bucket only.
async fn with_one_away(dir: &std::path::Path) -> (Cluster<'_>, Vec<u8>) {
    let mut cluster = Cluster::start(dir, &[Some(SOON)]);
    cluster.set(&[0], None).await;
    let data = bytes(1, 100_000);
    write(&cluster, 0, chunk(2, 0), 0, &data).await;
    let client = cluster.client(0).await;
    until("it does not go", async || live(&client).await == 0).await;
    (cluster, data)
}

#[tokio::test]
async fn a_second_file_system_with_the_same_certificates_leaves_the_objects_of_the_first_alone() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (first, data) = with_one_away(dir.path()).await;
    let (objects, marker) = (first.objects().await, first.marker().await);
    assert_eq!(objects.len(), 1);
    let (pki, bucket) = (first.pki.clone(), first.bucket.clone());
    let mut second = Cluster::start_with(other.path(), &[Some(SOON)], pki, bucket, 2);
    second.set(&[0], None).await;
    write(&second, 0, chunk(2, 1), 0, &data).await;
    until("nothing is said", async || second.trouble(0).await.contains("another file system"))
        .await;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(second.objects().await, objects, "nothing was put there or removed");
    assert_eq!(second.marker().await, marker);
    assert!(live(&second.client(0).await).await > 0);
    until_read(&second, 0, chunk(2, 1), &data).await;
    until_read(&first, 0, chunk(2, 0), &data).await;
    assert_eq!(first.trouble(0).await, "");
}

#[tokio::test]
async fn two_file_systems_that_begin_at_once_do_not_both_get_the_bucket() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = Cluster::start(dir.path(), &[Some(SOON), Some(SOON)]);
    let (pki, bucket) = (first.pki.clone(), first.bucket.clone());
    let second = Cluster::start_with(other.path(), &[Some(SOON)], pki, bucket, 2);
    let mut both = [first, second];
    let [first, second] = &mut both;
    tokio::join!(first.set(&[0, 1], None), second.set(&[0], None));
    let said = async || {
        let [first, second] = &both;
        [first.trouble(0).await, first.trouble(1).await, second.trouble(0).await]
            .map(|why| why.contains("another file system"))
    };
    let one = [[false, false, true], [true, true, false]];
    until("nobody is refused", async || one.contains(&said().await)).await;
    tokio::time::sleep(A_WHILE).await;
    assert!(one.contains(&said().await));
}

#[tokio::test]
async fn a_bucket_that_lacks_its_marker_or_has_another_is_not_used_until_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, data) = with_one_away(dir.path()).await;
    let (objects, marker) = (cluster.objects().await, cluster.marker().await);
    let text = fs::read(dir.path().join("data0/bucket")).unwrap();
    assert_eq!(cluster.bucket.get(&marker).await.unwrap().bytes().await.unwrap(), text);
    let object = cluster.bucket.get(&objects[0]).await.unwrap().bytes().await.unwrap();
    let mut exchanged = text.clone();
    let digit = exchanged.len() - 2;
    exchanged[digit] = if exchanged[digit] == b'0' { b'1' } else { b'0' };
    let cases = [
        (None, "has no marker"),
        (Some(exchanged), "another bucket"),
        (Some(b"something else".to_vec()), "damaged"),
    ];
    for (put, why) in cases {
        // All of the bucket is gone, and perhaps something else has come in its place.
        cluster.bucket.delete(&marker).await.unwrap();
        cluster.bucket.delete(&objects[0]).await.unwrap();
        if let Some(put) = put {
            cluster.bucket.put(&marker, put.into()).await.unwrap();
        }
        until("nothing is said", async || {
            let answer = read(&cluster, 0, chunk(2, 0), 10).await.0;
            assert_eq!(answer, Reply::Failed(Errno::EIO));
            cluster.trouble(0).await.contains(why)
        })
        .await;
        write(&cluster, 0, chunk(2, 1), 0, b"other chunks go on").await;
        tokio::time::sleep(A_WHILE).await;
        assert_eq!(cluster.objects().await, [], "nothing is put there");
        cluster.bucket.put(&marker, text.clone().into()).await.unwrap();
        cluster.bucket.put(&objects[0], object.clone().into()).await.unwrap();
        until_read(&cluster, 0, chunk(2, 0), &data).await;
        until("it is still said", async || cluster.trouble(0).await.is_empty()).await;
        let client = cluster.client(0).await;
        until("it does not go again", async || live(&client).await == 0).await;
        // The other chunk's object goes with the chunk.
        write(&cluster, 0, chunk(2, 1), 0, b"and are changed").await;
        let request = Request { at: At::Server, op: Op::Delete { first: chunk(2, 1) } };
        cluster.server(0).await.raw(&request, Bytes::new()).await.unwrap();
        until("it stays", async || cluster.objects().await == objects).await;
    }
}

#[tokio::test]
async fn what_was_put_into_a_bucket_that_was_exchanged_a_moment_ago_stays_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, _) = with_one_away(dir.path()).await;
    let marker = cluster.marker().await;
    let text = fs::read(dir.path().join("data0/bucket")).unwrap();
    // A store may make the bucket anew for whoever puts something there.
    cluster.bucket.delete(&marker).await.unwrap();
    let data = bytes(2, 100_000);
    write(&cluster, 0, chunk(2, 1), 0, &data).await;
    until("nothing is said", async || cluster.trouble(0).await.contains("has no marker")).await;
    tokio::time::sleep(A_WHILE).await;
    let client = cluster.client(0).await;
    assert!(live(&client).await >= data.len() as u64);
    cluster.bucket.put(&marker, text.into()).await.unwrap();
    until("it does not go", async || live(&client).await == 0).await;
    until_read(&cluster, 0, chunk(2, 1), &data).await;
}

#[tokio::test]
async fn objects_of_before_there_were_markers_are_used_by_those_who_have_used_them() {
    let dir = tempfile::tempdir().unwrap();
    let (mut cluster, data) = with_one_away(dir.path()).await;
    let (objects, marker) = (cluster.objects().await, cluster.marker().await);
    cluster.bucket.delete(&marker).await.unwrap();
    cluster.restart(0, SOON, |dir| fs::remove_file(dir.join("bucket")).unwrap()).await;
    until_read(&cluster, 0, chunk(2, 0), &data).await;
    assert_eq!((cluster.marker().await, cluster.objects().await), (marker.clone(), objects));
    // Somebody who is new does not take them.
    cluster.bucket.delete(&marker).await.unwrap();
    let other = tempfile::tempdir().unwrap();
    let (pki, bucket) = (cluster.pki.clone(), cluster.bucket.clone());
    drop(cluster.servers.drain(..));
    let mut second = Cluster::start_with(other.path(), &[Some(SOON)], pki, bucket, 2);
    second.set(&[0], None).await;
    write(&second, 0, chunk(2, 1), 0, &data).await;
    until("nothing is said", async || second.trouble(0).await.contains("nobody knows whose")).await;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(second.objects().await.len(), 1);
    // Unless an operator says so.
    second.restart(0, SOON, |dir| fs::remove_file(dir.join("bucket")).unwrap()).await;
    until("it is not used", async || {
        second.trouble(0).await.is_empty() && live(&second.client(0).await).await == 0
    })
    .await;
}

#[tokio::test]
async fn an_emptied_bucket_of_before_there_were_markers_is_not_taken_for_a_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let (mut cluster, _) = with_one_away(dir.path()).await;
    cluster.bucket = Arc::new(InMemory::new());
    cluster.restart(0, NEVER, |dir| fs::remove_file(dir.join("bucket")).unwrap()).await;
    until("nothing is said", async || cluster.trouble(0).await.contains("has no marker")).await;
    let all = futures_util::TryStreamExt::try_collect::<Vec<_>>(cluster.bucket.list(None)).await;
    assert_eq!(all.unwrap().len(), 0);
}
