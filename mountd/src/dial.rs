//! The session's connections, over QUIC.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use netfs_common::codec;
use netfs_common::config::NetConfig;
use netfs_common::map::DataServer;
use netfs_common::net::{Bulk, CallError, Dialer as Endpoint, Limits, Link, NetMetrics};
use netfs_common::tls::Identity;
use netfs_common::wire::hello::SESSION_OVER;
use netfs_common::wire::meta::{self, PushReply, Request};
use netfs_common::wire::{Hello, HelloReply, data};
use tokio::sync::{mpsc, oneshot};

use crate::session::{Answer, DataLink, DialError, Dialer, LinkError, MetaLink, PushCall};

/// The code with which a server refuses for now (`Refusal::Unavailable` of the servers): another
/// client has to make room first, which takes a session's term at worst.
const UNAVAILABLE: u16 = 7;

/// How long to wait to be let in: longer than the term of a session.
const JOIN_PATIENCE: Duration = Duration::from_secs(60);
const JOIN_PAUSE: Duration = Duration::from_millis(200);

/// Connects to the servers of one cluster with one certificate.
pub struct QuicDialer {
    identity: Identity,
    limits: Limits,
    metrics: NetMetrics,
    /// The metadata server's addresses, `host:port`, tried in turn.
    meta: Vec<String>,
    /// Made at the first connection, in the runtime that will drive it.
    endpoint: OnceLock<Endpoint>,
    bytes: Arc<Bytewise>,
}

/// Bytes of messages, both ways.
#[derive(Debug, Default)]
struct Bytewise {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Bytewise {
    fn sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for QuicDialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QuicDialer").field("meta", &self.meta).finish_non_exhaustive()
    }
}

impl QuicDialer {
    /// Prepares to connect.
    pub fn new(
        identity: Identity,
        net: &NetConfig,
        meta: Vec<String>,
        metrics: NetMetrics,
    ) -> QuicDialer {
        QuicDialer {
            identity,
            limits: net.limits(),
            metrics,
            meta,
            endpoint: OnceLock::new(),
            bytes: Arc::default(),
        }
    }

    /// Ends all connections, and waits until the servers know.
    pub async fn close(&self) {
        if let Some(endpoint) = self.endpoint.get() {
            endpoint.close();
            endpoint.wait_idle().await;
        }
    }

    fn endpoint(&self) -> Result<&Endpoint, DialError> {
        if let Some(endpoint) = self.endpoint.get() {
            return Ok(endpoint);
        }
        let tls = self.identity.client_config().map_err(|e| DialError::Refused(e.to_string()))?;
        let made = Endpoint::new(tls, self.limits.clone(), self.metrics.clone())
            .map_err(|e| DialError::Unreachable(format!("no socket to connect from: {e}")))?;
        // Of two that are made at the same time one is used.
        Ok(self.endpoint.get_or_init(|| made))
    }
}

/// Tries the addresses of all names until one answers; the last failure counts.
async fn try_all<T, F: Future<Output = Result<T, CallError>>>(
    names: &[String],
    connect: impl Fn(SocketAddr) -> F,
) -> Result<T, Failure> {
    let mut failure = Failure::Final(DialError::Unreachable("the server has no address".into()));
    for name in names {
        let addresses = match tokio::net::lookup_host(name).await {
            Ok(addresses) => addresses,
            Err(e) => {
                let text = format!("{name} cannot be resolved: {e}");
                failure = Failure::Final(DialError::Unreachable(text));
                continue;
            }
        };
        for address in addresses {
            match connect(address).await {
                Ok(connected) => return Ok(connected),
                Err(e) => failure = Failure::of(name, &e),
            }
        }
    }
    Err(failure)
}

/// Why a connection was not made.
enum Failure {
    /// The server will let us in later.
    NotYet(String),
    Final(DialError),
}

impl Failure {
    fn of(name: &str, error: &CallError) -> Failure {
        let text = explain(name, error);
        match error {
            CallError::Refused { code: UNAVAILABLE, .. } => Failure::NotYet(text),
            CallError::Refused { code: SESSION_OVER, .. } => {
                Failure::Final(DialError::SessionOver(text))
            }
            CallError::Refused { .. } | CallError::Untrusted(_) => {
                Failure::Final(DialError::Refused(text))
            }
            _ => Failure::Final(DialError::Unreachable(text)),
        }
    }
}

impl From<Failure> for DialError {
    fn from(failure: Failure) -> DialError {
        match failure {
            Failure::NotYet(text) => DialError::Unreachable(text),
            Failure::Final(error) => error,
        }
    }
}

/// What a failure to connect means to a person.
pub fn explain(name: &str, error: &CallError) -> String {
    match error {
        CallError::Unreachable { .. } | CallError::Deadline => {
            format!("nothing answers at {name}: is the server running, and UDP open to that port?")
        }
        CallError::Untrusted(why) => format!(
            "{name} and this client do not accept each other's certificates ({why}): both must be \
             issued by the same cluster"
        ),
        CallError::Refused { text, .. } => format!("{name} refuses: {text}"),
        other => format!("{name}: {other}"),
    }
}

fn unsendable(e: impl std::fmt::Display) -> LinkError {
    LinkError::Unsendable(e.to_string())
}

/// A message that is too large will be so on every connection; anything else is the connection's.
fn link_error(e: &CallError) -> LinkError {
    match e {
        CallError::TooLarge { .. } => unsendable(e),
        _ => LinkError::Lost,
    }
}

fn refused(e: impl std::fmt::Display) -> DialError {
    DialError::Refused(format!("the greeting cannot be understood: {e}"))
}

impl Dialer for QuicDialer {
    fn meta(
        &self,
        hello: Hello,
        pushes: mpsc::Sender<PushCall>,
    ) -> Answer<'_, Result<(HelloReply, Arc<dyn MetaLink>), DialError>> {
        Box::pin(async move {
            let endpoint = self.endpoint()?;
            let hello = codec::encode(&hello).map_err(refused)?;
            let bytes = self.bytes.clone();
            let handler = Arc::new(move |link: Link, push: Bytes| {
                answer(link, push, pushes.clone(), bytes.clone())
            });
            let begun = Instant::now();
            let (link, words) = loop {
                let greeted = try_all(&self.meta, |a| endpoint.link(a, &hello, handler.clone()));
                match greeted.await {
                    Err(Failure::NotYet(why)) if begun.elapsed() < JOIN_PATIENCE => {
                        tracing::info!(why, "waiting to be let in");
                        tokio::time::sleep(JOIN_PAUSE).await;
                    }
                    other => break other?,
                }
            };
            let reply: HelloReply = codec::decode(&words).map_err(refused)?;
            Ok((reply, Arc::new(Meta(link, self.bytes.clone())) as Arc<dyn MetaLink>))
        })
    }

    fn bytes(&self) -> (u64, u64) {
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
        (load(&self.bytes.sent), load(&self.bytes.received))
    }

    fn data(
        &self,
        server: DataServer,
        hello: Hello,
    ) -> Answer<'_, Result<(HelloReply, Arc<dyn DataLink>), DialError>> {
        Box::pin(async move {
            let endpoint = self.endpoint()?;
            let hello = codec::encode(&hello).map_err(refused)?;
            let (bulk, words) = try_all(&server.addrs, |a| endpoint.bulk(a, &hello)).await?;
            let reply: HelloReply = codec::decode(&words).map_err(refused)?;
            Ok((reply, Arc::new(Data(bulk, self.bytes.clone())) as Arc<dyn DataLink>))
        })
    }
}

/// Answers a call of the server.
async fn answer(
    link: Link,
    push: Bytes,
    pushes: mpsc::Sender<PushCall>,
    traffic: Arc<Bytewise>,
) -> Bytes {
    traffic.received(push.len());
    let reply = async {
        let push = codec::decode(&push).ok()?;
        let (answer, answered) = oneshot::channel();
        pushes.send(PushCall { push, answer }).await.ok()?;
        answered.await.ok()
    };
    let reply: Option<PushReply> = reply.await;
    match reply.and_then(|r| codec::encode(&r).ok()) {
        Some(bytes) => {
            traffic.sent(bytes.len());
            bytes.into()
        }
        None => {
            // Not understood, or nobody is there to do it: an answer would be a lie.
            tracing::warn!("a call of the server could not be answered: ending the connection");
            link.close();
            Bytes::new()
        }
    }
}

struct Meta(Link, Arc<Bytewise>);

impl MetaLink for Meta {
    fn call(&self, request: Request) -> Answer<'_, Result<meta::Answer, LinkError>> {
        Box::pin(async move {
            let request = codec::encode(&request).map_err(unsendable)?;
            self.1.sent(request.len());
            let answer = self.0.call(request.into(), None).await.map_err(|e| link_error(&e))?;
            self.1.received(answer.len());
            codec::decode(&answer).map_err(|e| {
                tracing::error!(error = %e, "the metadata server's answer cannot be understood");
                self.0.close();
                LinkError::Lost
            })
        })
    }

    fn closed(&self) -> Answer<'_, ()> {
        Box::pin(async move {
            let why = self.0.closed().await;
            tracing::info!(%why, "the connection to the metadata server is gone");
        })
    }

    fn close(&self) {
        self.0.close();
    }
}

struct Data(Bulk, Arc<Bytewise>);

impl DataLink for Data {
    fn call(
        &self,
        request: data::Request,
        payload: Bytes,
    ) -> Answer<'_, Result<(data::Reply, Bytes), LinkError>> {
        Box::pin(async move {
            let header = codec::encode(&request).map_err(unsendable)?;
            self.1.sent(header.len() + payload.len());
            let answer =
                self.0.call(header.into(), payload, None).await.map_err(|e| link_error(&e))?;
            let payload = answer.payload.into_bytes();
            self.1.received(answer.header.len() + payload.len());
            let reply = codec::decode(&answer.header).map_err(|e| {
                tracing::error!(error = %e, "a data server's answer cannot be understood");
                self.0.close();
                LinkError::Lost
            })?;
            Ok((reply, payload))
        })
    }

    fn close(&self) {
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    use netfs_served::greeting::Refusal;

    use super::*;

    #[test]
    fn a_refusal_for_now_is_known_by_its_code() {
        assert_eq!(Refusal::Unavailable("busy".into()).code(), UNAVAILABLE);
    }
}
