//! The bucket: objects by name, over whatever speaks S3.
//!
//! Every call ends after a while, whatever the bucket does. When it cannot be reached, calls of the next moment fail at once: otherwise
//! everybody who reads something that is away would wait for the same timeout, and hold up others.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use netfs_common::id::{ClusterId, GroupId};
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{
    Certificate, ClientOptions, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode,
    PutPayload, RetryConfig,
};

use super::marker::{Marker, Seen};
use super::name::{self, ClusterIdBytes, ObjectId};
use super::object::{self, HEADER, MAX_OBJECT_BYTES, Object, ObjectError, Ranges, check_header};
use crate::data::codec::Codec;

/// A connection must come about in this time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// One request, of which one is repeated once.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(6);
/// A call as a whole.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// So much of an object is fetched to learn which ranges it has; for more than that it is asked again.
const OUTLINE: u64 = 16 << 10;
/// More than a marker has.
const MAX_MARKER: u64 = 4096;
/// What is said of a bucket that is not there.
const NO_BUCKET: &str = "there is no such bucket";
/// After a failure nothing is tried for so long.
const REST: Duration = Duration::from_millis(500);
/// That nothing could be put there is told for so long after the last attempt, unless another one succeeds.
const UNWRITTEN: Duration = Duration::from_secs(120);

/// Where the bucket is.
#[derive(Clone, Debug)]
pub enum Place {
    /// At a server that speaks S3.
    S3 {
        /// Its URL; `None`: that of AWS for the region.
        endpoint: Option<String>,
        /// The region, which is part of signatures.
        region: String,
        /// The bucket.
        bucket: String,
        /// A file with the access key in its first line and the secret in its second, readable by its owner alone. `None`: the
        /// variables `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`.
        credentials: Option<PathBuf>,
        /// A file with certificates: the server's must be from one of these authorities. `None`: those that the system trusts.
        ca: Option<PathBuf>,
    },
    /// Anything that behaves like a bucket.
    Store(Arc<dyn ObjectStore>),
}

impl Place {
    /// The bucket. Reaches for nothing yet.
    ///
    /// # Errors
    /// The settings make no sense, or the file of the credentials cannot be used.
    pub fn open(&self) -> Result<Arc<dyn ObjectStore>, BucketError> {
        match self {
            Place::Store(store) => Ok(store.clone()),
            Place::S3 { .. } => s3(self),
        }
    }
}

/// The bucket, and what is ours in it.
#[derive(Clone, Debug)]
pub struct BucketOptions {
    /// Where it is.
    pub place: Place,
    /// All names begin with this.
    pub prefix: String,
}

/// Why a bucket gave nothing, or took nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BucketError {
    /// The settings make no sense.
    #[error("{0}")]
    Settings(String),
    /// It does not answer, or refuses.
    #[error("{0}")]
    Unreachable(String),
    /// It is not this file system's.
    #[error("{0}")]
    Unusable(String),
    /// It has no such object.
    #[error("there is no such object")]
    Missing,
    /// The object is not what it should be.
    #[error("the object is not what was put there: {0}")]
    Damaged(#[from] ObjectError),
}

/// What became of a marker that was to be put there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// It is there, and there was none.
    Alone,
    /// There was one.
    Found,
    /// One is there. The store would put another in its place, or cannot tell.
    Perhaps,
}

/// A bucket, as one cluster uses it.
#[derive(Debug)]
pub struct Bucket {
    store: Arc<dyn ObjectStore>,
    prefix: String,
    cluster: ClusterIdBytes,
    trouble: Mutex<Option<Trouble>>,
}

#[derive(Clone, Debug)]
struct Trouble {
    last: Instant,
    why: String,
    /// Nothing could be put there.
    writing: bool,
}

impl Bucket {
    /// Reaches for nothing yet.
    ///
    /// # Errors
    /// The settings make no sense, or the file of the credentials cannot be used.
    pub fn new(options: &BucketOptions, cluster: ClusterIdBytes) -> Result<Bucket, BucketError> {
        let store = options.place.open()?;
        // As it is in names: what the library has to escape is escaped.
        let prefix = Path::from(options.prefix.as_str()).as_ref().to_owned();
        Ok(Bucket { store, prefix, cluster, trouble: Mutex::default() })
    }

    /// The cluster whose objects these are.
    pub fn cluster(&self) -> ClusterIdBytes {
        self.cluster
    }

    /// When and why the last call failed, if the bucket could not be reached.
    pub fn trouble(&self) -> Option<(Instant, String)> {
        self.troubled().as_ref().map(|trouble| (trouble.last, trouble.why.clone()))
    }

    fn troubled(&self) -> MutexGuard<'_, Option<Trouble>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, name: &str) -> Path {
        match self.prefix.as_str() {
            "" => Path::from(name),
            prefix => Path::from(format!("{prefix}/{name}")),
        }
    }

    /// The bucket has answered. That it may be read says nothing about writing.
    fn answered(&self, writing: bool) {
        let mut trouble = self.troubled();
        let stays = |t: &Trouble| t.writing && !writing && t.last.elapsed() < UNWRITTEN;
        *trouble = trouble.take().filter(stays);
    }

    /// Makes a call that puts nothing there.
    async fn call<T>(
        &self,
        work: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, BucketError> {
        self.make_call(false, work).await
    }

    /// Makes a call, unless the bucket has just failed; notes how it ended.
    async fn make_call<T>(
        &self,
        writing: bool,
        work: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, BucketError> {
        if let Some(trouble) = &*self.troubled()
            && trouble.last.elapsed() < REST
        {
            return Err(BucketError::Unreachable(trouble.why.clone()));
        }
        let failure = match tokio::time::timeout(CALL_TIMEOUT, work).await {
            Ok(Ok(value)) => {
                self.answered(writing);
                return Ok(value);
            }
            // It has answered.
            Ok(Err(error @ object_store::Error::NotFound { .. })) if !is_no_bucket(&error) => {
                self.answered(writing);
                return Err(BucketError::Missing);
            }
            Ok(Err(object_store::Error::NotFound { .. })) => NO_BUCKET.into(),
            Ok(Err(error)) => one_line(&error),
            Err(_) => format!("no answer within {} s", CALL_TIMEOUT.as_secs()),
        };
        *self.troubled() = Some(Trouble { last: Instant::now(), why: failure.clone(), writing });
        Err(BucketError::Unreachable(failure))
    }

    /// The name of the marker, with the prefix.
    pub fn marker_name(&self) -> String {
        self.path(&name::marker(self.cluster)).to_string()
    }

    /// Whose the objects are.
    ///
    /// # Errors
    /// See [`BucketError`]; a marker that is not there, or cannot be understood, is none.
    pub async fn marker(&self) -> Result<Seen, BucketError> {
        let path = self.path(&name::marker(self.cluster));
        let get = async {
            let found = self.store.get(&path).await?;
            match found.meta.size <= MAX_MARKER {
                true => found.bytes().await.map(Some),
                false => Ok(None),
            }
        };
        match self.call(get).await {
            Ok(text) => {
                Ok(text.and_then(|text| Marker::parse(&text)).map_or(Seen::Strange, Seen::Marked))
            }
            Err(BucketError::Missing) => {
                let folder = self.path(&ClusterId(self.cluster).to_string());
                let mut objects = self.store.list(Some(&folder));
                // Another server may have put the marker there meanwhile.
                let first = async {
                    while let Some(found) = objects.next().await.transpose()? {
                        if found.location != path {
                            return Ok(Some(found));
                        }
                    }
                    Ok(None)
                };
                match self.call(first).await {
                    Ok(first) => Ok(Seen::Bare { has_objects: first.is_some() }),
                    Err(BucketError::Missing) => Err(BucketError::Unreachable(NO_BUCKET.into())),
                    Err(error) => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Puts a marker there, if there is none. What is there then is to be read. One that is already there may be put once more, to find out whether the
    /// store would put another in its place.
    ///
    /// # Errors
    /// See [`BucketError`].
    pub async fn mark(&self, marker: &Marker) -> Result<Made, BucketError> {
        let path = self.path(&name::marker(self.cluster));
        let text = || PutPayload::from(marker.text());
        // `None`: the store cannot do that.
        let create = async || match self.store.put_opts(&path, text(), PutMode::Create.into()).await
        {
            Ok(_) => Ok(Some(true)),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(Some(false)),
            Err(error) if is_not_offered(&error) => Ok(None),
            Err(error) => Err(error),
        };
        let put = async {
            match create().await? {
                Some(false) => return Ok(Made::Found),
                // Some take the condition for nothing, and put it there again.
                Some(true) if create().await? == Some(false) => return Ok(Made::Alone),
                Some(true) => {}
                // Unless it did know it, and had another reason.
                None => match self.store.head(&path).await {
                    Ok(_) => {}
                    Err(object_store::Error::NotFound { .. }) => {
                        self.store.put(&path, text()).await?;
                    }
                    Err(error) => return Err(error),
                },
            }
            Ok(Made::Perhaps)
        };
        match self.make_call(true, put).await {
            Err(BucketError::Missing) => Err(BucketError::Unreachable(NO_BUCKET.into())),
            made => made,
        }
    }

    /// Puts an object there. It is there when this returns.
    ///
    /// # Errors
    /// See [`BucketError`].
    pub async fn put(&self, id: &ObjectId, bytes: Bytes) -> Result<(), BucketError> {
        let path = self.path(&id.name());
        let put = self.make_call(true, self.store.put(&path, PutPayload::from_bytes(bytes))).await;
        match put {
            Ok(_) => Ok(()),
            // Nothing is looked for, but the bucket itself.
            Err(BucketError::Missing) => Err(BucketError::Unreachable(NO_BUCKET.into())),
            Err(error) => Err(error),
        }
    }

    /// An object, verified, as `codec` has made it.
    ///
    /// # Errors
    /// See [`BucketError`].
    pub async fn get(&self, id: &ObjectId, codec: Arc<Codec>) -> Result<Object, BucketError> {
        let path = self.path(&id.name());
        let get = async {
            let found = self.store.get(&path).await?;
            // Memory is taken only for what can be.
            let size = found.meta.size;
            match size <= MAX_OBJECT_BYTES {
                true => found.bytes().await.map(Some),
                false => Ok(None),
            }
        };
        let bytes = self.call(get).await?;
        let bytes = bytes.ok_or(ObjectError::Damaged("it is larger than any chunk"))?;
        // Checksums of megabytes: not on the thread that answers everybody.
        let id = *id;
        let decoded = tokio::task::spawn_blocking(move || Object::decode(&id, bytes, &codec)).await;
        decoded.map_err(|_| BucketError::Unreachable("the server ends".into()))?.map_err(Into::into)
    }

    /// The begin of an object, and how long all of it is.
    async fn begin(&self, id: &ObjectId, bytes: u64) -> Result<(Bytes, u64), BucketError> {
        let path = self.path(&id.name());
        let range = Some(GetRange::Bounded(0..bytes));
        let options = GetOptions { range, ..GetOptions::default() };
        let probe = async {
            let found = self.store.get_opts(&path, options).await?;
            let size = found.meta.size;
            // Memory is taken for what was asked for only.
            match found.range.end - found.range.start <= bytes {
                true => Ok(Some((found.bytes().await?, size))),
                false => Ok(None),
            }
        };
        let found = self.call(probe).await?;
        Ok(found.ok_or(ObjectError::Damaged("more of it came than was asked for"))?)
    }

    /// Whether an object is there, as long as it should be, with the right header, and packed if it has to be encrypted. Its bytes are verified
    /// when they are fetched.
    ///
    /// # Errors
    /// See [`BucketError`]; an object that is not there is none, and one that is damaged counts as not there.
    pub async fn has(&self, id: &ObjectId, codec: &Codec) -> Result<bool, BucketError> {
        let why = match self.begin(id, HEADER as u64).await {
            Ok((begin, size)) => match check_header(id, &begin, size) {
                Ok(head) if codec.cipher().is_none() || head.is_packed() => return Ok(true),
                Ok(_) => ObjectError::Forged,
                Err(error) => error,
            },
            Err(BucketError::Damaged(error)) => error,
            Err(BucketError::Missing) => return Ok(false),
            Err(error) => return Err(error),
        };
        let object = id.name();
        tracing::warn!(object, error = %why, "an object of the bucket is damaged, and made anew");
        Ok(false)
    }

    /// Which ranges of its chunk an object has. That is verified, and what is in the ranges only when it is fetched.
    ///
    /// # Errors
    /// See [`BucketError`].
    pub async fn outline(&self, id: &ObjectId, codec: Arc<Codec>) -> Result<Ranges, BucketError> {
        let (mut begin, size) = self.begin(id, OUTLINE).await?;
        let head = check_header(id, &begin, size)?;
        let Some(enough) = head.outline_bytes() else {
            return Ok(self.get(id, codec).await?.ranges().to_vec());
        };
        if begin.len() < enough {
            begin = self.begin(id, enough as u64).await?.0;
        }
        Ok(object::outline(id, &head, &begin, &codec)?)
    }

    /// Objects of a group, in order, after one; fewer than `limit`: there are no more. Names that are not of ours are left out.
    ///
    /// # Errors
    /// See [`BucketError`].
    pub async fn list(
        &self,
        (volume, group): (u64, GroupId),
        after: Option<&ObjectId>,
        limit: usize,
    ) -> Result<(Vec<ObjectId>, bool), BucketError> {
        let folder = self.path(&name::folder(self.cluster, volume, group));
        let stream = match after {
            Some(after) => self.store.list_with_offset(Some(&folder), &self.path(&after.name())),
            None => self.store.list(Some(&folder)),
        };
        let page = async {
            let mut stream = stream.take(limit);
            let mut page = Vec::new();
            while let Some(meta) = stream.next().await {
                page.push(meta?.location);
            }
            Ok(page)
        };
        let page = match self.call(page).await {
            Err(BucketError::Missing) => {
                return Err(BucketError::Unreachable(NO_BUCKET.into()));
            }
            page => page?,
        };
        let more = page.len() == limit;
        let ours = |path: &Path| {
            let name = path.as_ref().strip_prefix(self.prefix.as_str())?;
            let id = ObjectId::parse(name.trim_start_matches('/'))?;
            let here = (id.cluster, id.volume, id.group) == (self.cluster, volume, group);
            here.then_some(id)
        };
        let found: Vec<_> = page.iter().filter_map(ours).collect();
        // A page of nothing but foreign names cannot be gone on from.
        let more = more && !found.is_empty();
        Ok((found, more))
    }

    /// Removes an object; that there is none is as good.
    ///
    /// # Errors
    /// See [`BucketError`].
    pub async fn delete(&self, id: &ObjectId) -> Result<(), BucketError> {
        let path = self.path(&id.name());
        match self.call(self.store.delete(&path)).await {
            Ok(()) | Err(BucketError::Missing) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Whether what was not found is the bucket itself. Answers to some calls do not say; whoever misses anything looks for the marker.
fn is_no_bucket(error: &object_store::Error) -> bool {
    said(error).contains("<Code>NoSuchBucket</Code>")
}

/// Whether the store has refused a condition that it does not know.
fn is_not_offered(error: &object_store::Error) -> bool {
    let said = said(error);
    let codes = ["NotImplemented", "status code: 501", "status code: 400"];
    matches!(error, object_store::Error::NotImplemented { .. })
        || codes.iter().any(|code| said.contains(code))
}

/// What the store has answered.
fn said(error: &object_store::Error) -> String {
    std::error::Error::source(error).map(ToString::to_string).unwrap_or_default()
}

fn one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    let words = answer_of_s3(&text);
    text.truncate(text.char_indices().nth(300).map_or(text.len(), |(at, _)| at));
    // What the store says may stand far behind, after URLs.
    match words {
        Some(words) if !text.contains(&words) => format!("{words} ({text})"),
        _ => text,
    }
}

/// Code and message of an answer in XML, if there is one in a text.
fn answer_of_s3(text: &str) -> Option<String> {
    let within = |tag: &str| {
        let (_, rest) = text.split_once(&format!("<{tag}>"))?;
        let (found, _) = rest.split_once(&format!("</{tag}>"))?;
        Some(found.chars().take(200).collect::<String>())
    };
    let code = within("Code")?;
    Some(within("Message").map_or(code.clone(), |message| format!("{code}: {message}")))
}

fn s3(place: &Place) -> Result<Arc<dyn ObjectStore>, BucketError> {
    let Place::S3 { endpoint, region, bucket, credentials, ca } = place else {
        return Err(BucketError::Settings("no place".into()));
    };
    let (key, secret) = match credentials {
        Some(path) => read_credentials(path)?,
        None => {
            let variable = |name: &str| {
                std::env::var(name).map_err(|_| {
                    BucketError::Settings(format!(
                        "tier.credentials is not set, and neither is the variable {name}"
                    ))
                })
            };
            (variable("AWS_ACCESS_KEY_ID")?, variable("AWS_SECRET_ACCESS_KEY")?)
        }
    };
    if let Some(url) = endpoint
        && !is_endpoint(url)
    {
        return Err(BucketError::Settings(format!(
            "tier.endpoint is {url:?}, and not a URL of the form https://HOST:PORT"
        )));
    }
    // The library behind the bucket takes the process's provider; a second call finds the first one's.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let plain = endpoint.as_ref().is_some_and(|url| url.starts_with("http://"));
    let mut client = ClientOptions::new()
        .with_allow_http(plain)
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_timeout(REQUEST_TIMEOUT);
    if let Some(path) = ca {
        for certificate in read_authorities(path)? {
            client = client.with_root_certificate(certificate);
        }
        client = client.with_no_system_certificates(true);
    }
    let retry =
        RetryConfig { max_retries: 1, retry_timeout: CALL_TIMEOUT, ..RetryConfig::default() };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(region)
        .with_access_key_id(key)
        .with_secret_access_key(secret)
        .with_client_options(client)
        .with_retry(retry);
    if let Some(endpoint) = endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    let store = builder.build().map_err(|error| BucketError::Settings(one_line(&error)))?;
    Ok(Arc::new(store))
}

/// Whether something is the URL of a server. The library finds out with the first call only.
fn is_endpoint(url: &str) -> bool {
    let host = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    host.is_some_and(|host| {
        let odd = |c: char| c.is_whitespace() || c.is_control();
        !host.is_empty() && !host.starts_with(['/', ':', '?', '#']) && !host.contains(odd)
    })
}

/// Certificates of authorities.
fn read_authorities(path: &std::path::Path) -> Result<Vec<Certificate>, BucketError> {
    let fail = |what: String| BucketError::Settings(format!("{}: {what}", path.display()));
    let pem = std::fs::read(path).map_err(|error| fail(error.to_string()))?;
    match Certificate::from_pem_bundle(&pem) {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(fail("it has no certificate in PEM".into())),
        Err(error) => Err(fail(one_line(&error))),
    }
}

/// The access key and the secret.
fn read_credentials(path: &std::path::Path) -> Result<(String, String), BucketError> {
    use std::os::unix::fs::PermissionsExt;
    let fail = |what: String| BucketError::Settings(format!("{}: {what}", path.display()));
    let meta = std::fs::metadata(path).map_err(|error| fail(error.to_string()))?;
    let mode = meta.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(fail(format!(
            "others may read it (mode {:04o}); chmod 600 it, and change the key if they were not meant to",
            mode & 0o7777
        )));
    }
    if meta.len() > 4096 {
        return Err(fail("it is too long for an access key and a secret".into()));
    }
    let text = std::fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    match (lines.next(), lines.next(), lines.next()) {
        (Some(key), Some(secret), None) => Ok((key.into(), secret.into())),
        _ => Err(fail("it must have two lines: the access key, and the secret".into())),
    }
}

#[cfg(test)]
mod tests;
