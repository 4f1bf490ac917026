//! Calls of a bucket in memory, and of a server that answers as it likes.

use netfs_common::id::{ChunkId, Ino, Version};
use object_store::memory::InMemory;

use super::*;
use crate::data::tier::encode;

const CLUSTER: ClusterIdBytes = *b"cluster of tests";

fn id(index: u64, version: u64) -> ObjectId {
    let chunk = ChunkId { ino: Ino(1), generation: 0, index };
    ObjectId { cluster: CLUSTER, volume: 0, group: GroupId(1), chunk, version: Version(version) }
}

fn bucket(store: &Arc<InMemory>, prefix: &str) -> Bucket {
    let place = Place::Store(store.clone());
    Bucket::new(&BucketOptions { place, prefix: prefix.into() }, CLUSTER).unwrap()
}

#[tokio::test]
async fn objects_are_listed_in_pages_and_foreign_names_are_left_alone() {
    let store = Arc::new(InMemory::new());
    for prefix in ["", "some/where/"] {
        let bucket = bucket(&store, prefix);
        for index in 0..7 {
            let bytes = encode(&id(index, 1), &[(0, vec![1; 9])], &Codec::default()).unwrap();
            bucket.put(&id(index, 1), bytes.into()).await.unwrap();
        }
        let other = ObjectId { group: GroupId(2), ..id(0, 1) };
        let bytes = encode(&other, &[], &Codec::default()).unwrap();
        bucket.put(&other, bytes.into()).await.unwrap();
        let foreign = bucket.path(&format!("{}/README", name::folder(CLUSTER, 0, GroupId(1))));
        store.put(&foreign, "hello".into()).await.unwrap();
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let (page, more) = bucket.list((0, GroupId(1)), after.as_ref(), 3).await.unwrap();
            all.extend(page.iter().copied());
            after = page.last().copied();
            if !more {
                break;
            }
        }
        assert_eq!(all, (0..7).map(|index| id(index, 1)).collect::<Vec<_>>());
        bucket.delete(&id(3, 1)).await.unwrap();
        bucket.delete(&id(3, 1)).await.unwrap();
        assert!(
            !bucket.has(&id(3, 1), &Codec::default()).await.unwrap()
                && bucket.has(&id(4, 1), &Codec::default()).await.unwrap()
        );
        assert_eq!(bucket.get(&id(3, 1), Arc::default()).await, Err(BucketError::Missing));
    }
}

#[tokio::test]
async fn what_is_not_as_it_was_put_there_is_neither_there_nor_given_out() {
    let store = Arc::new(InMemory::new());
    let bucket = bucket(&store, "");
    let bytes = encode(&id(0, 1), &[(0, vec![1; 900])], &Codec::default()).unwrap();
    bucket.put(&id(0, 1), bytes[..500].to_vec().into()).await.unwrap();
    assert!(!bucket.has(&id(0, 1), &Codec::default()).await.unwrap());
    assert!(matches!(bucket.get(&id(0, 1), Arc::default()).await, Err(BucketError::Damaged(_))));
    let mut flipped = bytes.clone();
    flipped[600] ^= 1;
    bucket.put(&id(0, 1), flipped.into()).await.unwrap();
    assert!(matches!(bucket.get(&id(0, 1), Arc::default()).await, Err(BucketError::Damaged(_))));
    bucket.put(&id(0, 2), bytes.clone().into()).await.unwrap();
    assert!(!bucket.has(&id(0, 2), &Codec::default()).await.unwrap(), "it is another version");
    bucket.put(&id(0, 1), bytes.into()).await.unwrap();
    assert_eq!(bucket.get(&id(0, 1), Arc::default()).await.unwrap().len(), 900);
}

#[tokio::test]
async fn which_ranges_an_object_has_is_known_without_all_of_it() {
    use netfs_common::coding::{Cipher, Compression};

    use crate::data::codec::VolumeKey;

    let bucket = bucket(&Arc::new(InMemory::new()), "");
    let key = VolumeKey::fixed(Cipher::Aes256Gcm, [1; 32]);
    for codec in [Codec::default(), Codec::new(Compression::None, Some(key))] {
        let codec = Arc::new(codec);
        // With so many the table is longer than what is fetched at first.
        for count in [0, 1, 9, 5000] {
            let pieces: Vec<_> = (0..count).map(|n| (n * 10, vec![n as u8; 5])).collect();
            let bytes = encode(&id(0, 1), &pieces, &codec).unwrap();
            bucket.put(&id(0, 1), bytes.into()).await.unwrap();
            let ranges = bucket.outline(&id(0, 1), codec.clone()).await.unwrap();
            assert_eq!(ranges, (0..count).map(|n| (n * 10, 5)).collect::<Vec<_>>());
            assert!(bucket.has(&id(0, 1), &codec).await.unwrap());
        }
        let open = encode(&id(0, 1), &[(0, vec![1; 9])], &Codec::default()).unwrap();
        bucket.put(&id(0, 1), open.into()).await.unwrap();
        let is_plain = codec.is_plain();
        assert_eq!(bucket.has(&id(0, 1), &codec).await.unwrap(), is_plain);
        assert_eq!(bucket.outline(&id(0, 1), codec.clone()).await.is_ok(), is_plain);
    }
}

/// A server that answers the requests that come, of which it knows method and headers.
async fn s3_server(
    answer: impl Fn(usize, &str) -> (u16, &'static str) + Send + 'static,
) -> (Bucket, tempfile::TempDir) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Some(format!("http://{}", listener.local_addr().unwrap()));
    tokio::spawn(async move {
        for count in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (mut head, mut more) = (Vec::new(), [0; 4096]);
            while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                let len = stream.read(&mut more).await.unwrap();
                head.extend_from_slice(&more[..len]);
            }
            let head = String::from_utf8_lossy(&head).to_lowercase();
            let (status, body) = answer(count, &head);
            let text = format!(
                "HTTP/1.1 {status} x\r\nETag: \"1\"\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(text.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    std::fs::write(&key, "key\nsecret\n").unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&key, private).unwrap();
    let place = Place::S3 {
        endpoint,
        region: "r".into(),
        bucket: "b".into(),
        credentials: Some(key),
        ca: None,
    };
    (Bucket::new(&BucketOptions { place, prefix: String::new() }, CLUSTER).unwrap(), dir)
}

#[tokio::test]
async fn a_bucket_that_was_removed_is_not_one_that_has_no_such_object() {
    let (bucket, _dir) = s3_server(|_, _| (404, "<Error><Code>NoSuchKey</Code></Error>")).await;
    let got = bucket.get(&id(0, 1), Arc::default()).await;
    assert_eq!(got, Err(BucketError::Missing));
    assert_eq!(bucket.trouble(), None);
    let (bucket, _dir) = s3_server(|_, _| (404, "<Error><Code>NoSuchBucket</Code></Error>")).await;
    let gone = Err(BucketError::Unreachable(NO_BUCKET.into()));
    assert_eq!(bucket.get(&id(0, 1), Arc::default()).await.map(|_| ()), gone);
    assert!(bucket.trouble().is_some_and(|(_, why)| why == NO_BUCKET));
    tokio::time::sleep(REST).await;
    assert_eq!(bucket.marker().await.map(|_| ()), gone);
    tokio::time::sleep(REST).await;
    assert_eq!(bucket.has(&id(0, 1), &Codec::default()).await.map(|_| ()), gone);
}

#[test]
fn what_the_store_says_is_told_however_long_the_rest_is() {
    let said = "<Error><Code>AccessDenied</Code><Message>no key</Message></Error>";
    let long = std::io::Error::other(format!("{} {said}", "http://a/".repeat(80)));
    assert!(one_line(&long).starts_with("AccessDenied: no key (http://a/"));
    assert_eq!(one_line(&std::io::Error::other("<Code> of\n a kind")), "<Code> of a kind");
    assert_eq!(answer_of_s3("<Code>Slow</Code>").as_deref(), Some("Slow"));
}

#[tokio::test]
async fn whether_a_marker_was_the_first_is_believed_only_where_the_store_can_tell() {
    const KNOWN: &str = "<Error><Code>PreconditionFailed</Code></Error>";
    const UNKNOWN: &str = "<Error><Code>NotImplemented</Code></Error>";
    let marker = Marker { owner: [1; 16], number: [2; 16] };
    let put = async |answer: fn(usize, &str) -> (u16, &'static str)| {
        s3_server(answer).await.0.mark(&marker).await.unwrap()
    };
    let first = |count, _: &str| if count == 0 { (200, "") } else { (412, KNOWN) };
    assert_eq!(put(first).await, Made::Alone);
    assert_eq!(put(|_, _| (412, KNOWN)).await, Made::Found);
    // This one does not look at the condition, and that one refuses it.
    assert_eq!(put(|_, _| (200, "")).await, Made::Perhaps);
    let plain = |_, head: &str| match head {
        head if head.contains("if-none-match") => (501, UNKNOWN),
        head if head.starts_with("head") => (404, ""),
        _ => (200, ""),
    };
    assert_eq!(put(plain).await, Made::Perhaps);
}

#[tokio::test]
async fn a_marker_is_put_once_and_read_by_all() {
    let store = Arc::new(InMemory::new());
    let bucket = bucket(&store, "some/where");
    assert_eq!(bucket.marker().await.unwrap(), Seen::Bare { has_objects: false });
    let bytes = encode(&id(0, 1), &[], &Codec::default()).unwrap();
    bucket.put(&id(0, 1), bytes.into()).await.unwrap();
    assert_eq!(bucket.marker().await.unwrap(), Seen::Bare { has_objects: true });
    let marker = Marker { owner: [1; 16], number: [2; 16] };
    assert_eq!(bucket.mark(&marker).await.unwrap(), Made::Alone);
    let later = Marker { owner: [3; 16], ..marker };
    assert_eq!(bucket.mark(&later).await.unwrap(), Made::Found);
    assert_eq!(bucket.marker().await.unwrap(), Seen::Marked(marker));
    store.put(&bucket.marker_name().into(), "other".into()).await.unwrap();
    assert_eq!(bucket.marker().await.unwrap(), Seen::Strange);
}

#[tokio::test]
async fn a_bucket_that_is_not_there_is_said_to_be_and_not_waited_for_by_everybody() {
    let dir = tempfile::tempdir().unwrap();
    let credentials = dir.path().join("key");
    std::fs::write(&credentials, "key\nsecret\n").unwrap();
    let place = Place::S3 {
        endpoint: Some("http://127.0.0.1:9".into()),
        region: "r".into(),
        bucket: "b".into(),
        credentials: Some(credentials.clone()),
        ca: None,
    };
    let options = BucketOptions { place, prefix: String::new() };
    let open = || Bucket::new(&options, CLUSTER);
    assert!(open().unwrap_err().to_string().contains("others may read it"));
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&credentials, private).unwrap();
    let bucket = open().unwrap();
    let began = Instant::now();
    assert!(matches!(
        bucket.get(&id(0, 1), Arc::default()).await,
        Err(BucketError::Unreachable(_))
    ));
    assert!(bucket.trouble().is_some() && began.elapsed() < CALL_TIMEOUT);
    let began = Instant::now();
    assert!(matches!(
        bucket.get(&id(0, 1), Arc::default()).await,
        Err(BucketError::Unreachable(_))
    ));
    assert!(began.elapsed() < Duration::from_millis(50));
    // Authorities that cannot be read are not left out.
    let no_ca = Place::S3 {
        endpoint: Some("https://127.0.0.1:9".into()),
        region: "r".into(),
        bucket: "b".into(),
        credentials: Some(credentials.clone()),
        ca: Some(credentials.clone()),
    };
    assert!(no_ca.open().unwrap_err().to_string().contains("no certificate"));
    std::fs::write(&credentials, "key\n").unwrap();
    assert!(open().unwrap_err().to_string().contains("two lines"));
}
