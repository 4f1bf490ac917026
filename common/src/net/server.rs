//! The accepting side: from a packet to a greeted, identified peer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::Connection;
use rustls::pki_types::CertificateDer;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, watch};

use crate::tls::{EndpointSecret, PeerIdentity};

use super::bulk_server::{BulkHandler, BulkPeer};
use super::hello::{self, Greeted};
use super::link::{Handler, Link};
use super::transport::{self, EndpointError};
use super::{CallError, CloseCode, ConnectionKind, Limits, NetMetrics, with_deadline};

/// Greeted peers that wait for [`Server::accept`].
const ACCEPT_QUEUE: usize = 64;

/// Time for the last packets of a shutdown to leave.
const FAREWELL: Duration = Duration::from_millis(500);

/// A listening endpoint. Dropping it ends all its connections at once; [`shutdown`](Self::shutdown) does so
/// in order.
#[derive(Debug)]
pub struct Server {
    inner: Arc<Inner>,
    greeted: Mutex<mpsc::Receiver<Incoming>>,
}

#[derive(Debug)]
struct Inner {
    endpoint: quinn::Endpoint,
    limits: Limits,
    metrics: NetMetrics,
    connections: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    /// Set once, to the deadline of the shutdown.
    shutdown: watch::Sender<Option<Instant>>,
}

impl Server {
    /// Listens on a UDP address. Must be called within a tokio runtime, which then drives the endpoint.
    pub fn bind(
        address: SocketAddr,
        tls: Arc<rustls::ServerConfig>,
        limits: Limits,
        metrics: NetMetrics,
    ) -> Result<Self, EndpointError> {
        Self::bind_as(address, tls, None, limits, metrics)
    }

    /// As [`bind`](Self::bind), with a secret that is the same at every start: peers then notice a restart at
    /// once, where they would wait for the idle timeout otherwise.
    pub fn bind_with_secret(
        address: SocketAddr,
        tls: Arc<rustls::ServerConfig>,
        secret: &EndpointSecret,
        limits: Limits,
        metrics: NetMetrics,
    ) -> Result<Self, EndpointError> {
        Self::bind_as(address, tls, Some(secret), limits, metrics)
    }

    fn bind_as(
        address: SocketAddr,
        tls: Arc<rustls::ServerConfig>,
        secret: Option<&EndpointSecret>,
        limits: Limits,
        metrics: NetMetrics,
    ) -> Result<Self, EndpointError> {
        let inner = Arc::new(Inner {
            endpoint: transport::server(address, tls, secret, &limits)?,
            connections: Arc::new(Semaphore::new(limits.max_connections as usize)),
            handshakes: Arc::new(Semaphore::new(limits.max_handshakes as usize)),
            shutdown: watch::Sender::new(None),
            limits,
            metrics,
        });
        let (peers, greeted) = mpsc::channel(ACCEPT_QUEUE);
        tokio::spawn(admit(inner.clone(), peers));
        Ok(Self { inner, greeted: Mutex::new(greeted) })
    }

    /// The address that it listens on, with the port that the system chose if that was left to it.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.inner.endpoint.local_addr()
    }

    /// The next peer that has shown its certificate and said hello; `None` when the server is shut down.
    pub async fn accept(&self) -> Option<Incoming> {
        let mut shutdown = self.inner.shutdown.subscribe();
        let mut greeted = self.greeted.lock().await;
        tokio::select! {
            // An error would mean that the sender is gone, which `self` holds.
            _ = shutdown.wait_for(Option::is_some) => None,
            incoming = greeted.recv() => incoming,
        }
    }

    /// Ends in order: takes nobody new, tells all peers, lets calls under way finish until `deadline` at
    /// the latest.
    pub async fn shutdown(&self, deadline: Instant) {
        self.inner.shutdown.send_replace(Some(deadline));
        let all = self.inner.limits.max_connections;
        let drained = async {
            let slots = self.inner.connections.acquire_many(all).await;
            slots.map(drop).map_err(|_| CallError::Closed)
        };
        // The connections keep to the deadline themselves; they get a moment for their last packets.
        if with_deadline(Some(deadline + FAREWELL), drained).await.is_err() {
            tracing::debug!("connections were still up at the end of the shutdown");
        }
        self.inner.endpoint.close(CloseCode::Done.to_var_int(), b"");
        let idle = tokio::time::timeout(FAREWELL, self.inner.endpoint.wait_idle());
        if idle.await.is_err() {
            tracing::debug!("some peers have not acknowledged the shutdown");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.inner.endpoint.close(CloseCode::Done.to_var_int(), b"");
    }
}

async fn admit(inner: Arc<Inner>, peers: mpsc::Sender<Incoming>) {
    let half = (inner.limits.max_handshakes / 2) as usize;
    while let Some(incoming) = inner.endpoint.accept().await {
        if inner.shutdown.borrow().is_some() {
            incoming.refuse();
            continue;
        }
        let Ok(handshake) = inner.handshakes.clone().try_acquire_owned() else {
            inner.metrics.overloaded.inc();
            incoming.refuse();
            continue;
        };
        if inner.handshakes.available_permits() < half && incoming.may_retry() {
            // Many at once: who did not forge its address comes back with a token.
            if let Err(error) = incoming.retry() {
                tracing::trace!(%error, "no retry");
            }
            continue;
        }
        tokio::spawn(greet(inner.clone(), incoming, peers.clone(), handshake));
    }
}

async fn greet(
    inner: Arc<Inner>,
    incoming: quinn::Incoming,
    peers: mpsc::Sender<Incoming>,
    handshake: OwnedSemaphorePermit,
) {
    let address = incoming.remote_address();
    let deadline = Instant::now() + inner.limits.hello_timeout;
    let mut conn = None;
    let greeting = async {
        let established = incoming.await?;
        conn = Some(established.clone());
        let peer = identify(&established)?;
        let slot = inner.connections.clone().try_acquire_owned().map_err(|_| {
            inner.metrics.overloaded.inc();
            established.close(CloseCode::Overloaded.to_var_int(), b"the server is full");
            CallError::lost("the server is full")
        })?;
        let greeted = hello::await_hello(established, &inner.limits).await?;
        Ok(Incoming { greeted, peer, slot, inner: inner.clone() })
    };
    match with_deadline(Some(deadline), greeting).await {
        Ok(incoming) => {
            drop(handshake);
            // Fails when the server is gone; then the connection is too.
            let _ = peers.send(incoming).await;
        }
        Err(error) => {
            inner.metrics.handshakes_failed.inc();
            if let CallError::Protocol(_) = error {
                inner.metrics.protocol_errors.inc();
            }
            if let (Some(conn), CallError::Deadline) = (conn, &error) {
                conn.close(CloseCode::HelloTimeout.to_var_int(), b"no greeting in time");
            }
            tracing::info!(%address, %error, "connection not accepted");
        }
    }
}

/// Whom the certificate names that the handshake has verified.
fn identify(conn: &Connection) -> Result<PeerIdentity, CallError> {
    let refuse = |text: String| {
        conn.close(CloseCode::Protocol.to_var_int(), text.as_bytes());
        CallError::Untrusted(text.into())
    };
    let chain = conn.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'_>>>().ok());
    let Some(leaf) = chain.as_ref().and_then(|chain| chain.first()) else {
        return Err(refuse("no certificate".into()));
    };
    PeerIdentity::from_der(leaf).map_err(|e| refuse(e.to_string()))
}

/// A peer that has shown its certificate and said hello, and waits for the answer. Dropping it closes the
/// connection.
pub struct Incoming {
    greeted: Greeted,
    peer: PeerIdentity,
    slot: OwnedSemaphorePermit,
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming")
            .field("peer", &self.peer)
            .field("kind", &self.kind())
            .finish_non_exhaustive()
    }
}

impl Incoming {
    /// Whom its certificate names.
    pub fn peer(&self) -> &PeerIdentity {
        &self.peer
    }

    /// What it wants to use the connection for.
    pub fn kind(&self) -> ConnectionKind {
        self.greeted.theirs.kind
    }

    /// What it said.
    pub fn hello(&self) -> &Bytes {
        &self.greeted.words
    }

    /// Where it is.
    pub fn remote_address(&self) -> SocketAddr {
        self.greeted.conn.remote_address()
    }

    /// The address of this machine at which it came in, if the system tells.
    pub fn local_ip(&self) -> Option<std::net::IpAddr> {
        self.greeted.conn.local_ip()
    }

    /// Sends it away, with a code and a text that it will see as [`CallError::Refused`].
    pub fn refuse(self, code: u16, text: &str) {
        self.inner.metrics.refused.inc();
        self.greeted.conn.close(CloseCode::Refused(code).to_var_int(), text.as_bytes());
    }

    /// Welcomes it to a metadata connection.
    pub async fn welcome_link(
        mut self,
        words: &[u8],
        handler: Arc<dyn Handler>,
    ) -> Result<Link, CallError> {
        self.welcome(ConnectionKind::Metadata, words).await?;
        let Self { greeted, slot, inner, .. } = self;
        let conn = greeted.conn.clone();
        let link = Link::start(greeted, handler, &inner.limits, inner.metrics.clone());
        let leaving = link.clone();
        tokio::spawn(accompany(inner, conn, slot, async move |deadline| {
            leaving.shutdown(deadline).await;
        }));
        Ok(link)
    }

    /// Welcomes it to a bulk connection.
    pub async fn welcome_bulk(
        mut self,
        words: &[u8],
        handler: Arc<dyn BulkHandler>,
    ) -> Result<BulkPeer, CallError> {
        self.welcome(ConnectionKind::Bulk, words).await?;
        let Self { greeted, slot, inner, .. } = self;
        let conn = greeted.conn.clone();
        let bulk = BulkPeer::start(greeted, handler, &inner.limits, inner.metrics.clone());
        let leaving = bulk.clone();
        tokio::spawn(accompany(inner, conn, slot, async move |deadline| {
            leaving.shutdown(deadline).await;
        }));
        Ok(bulk)
    }

    async fn welcome(&mut self, kind: ConnectionKind, words: &[u8]) -> Result<(), CallError> {
        if self.kind() != kind {
            let error = CallError::protocol(format!("{:?} where {kind:?} is due", self.kind()));
            hello::violated(&self.greeted.conn, &error);
            return Err(error);
        }
        let deadline = Instant::now() + self.inner.limits.hello_timeout;
        let limits = &self.inner.limits;
        with_deadline(Some(deadline), hello::welcome(&mut self.greeted, words, limits)).await
    }
}

/// Holds a connection's slot until its end, and sees to its part in a shutdown.
async fn accompany(
    inner: Arc<Inner>,
    conn: Connection,
    slot: OwnedSemaphorePermit,
    leave: impl AsyncFnOnce(Instant),
) {
    inner.metrics.accepted.inc();
    inner.metrics.connections.inc();
    let mut shutdown = inner.shutdown.subscribe();
    let deadline = tokio::select! {
        _ = conn.closed() => None,
        deadline = shutdown.wait_for(Option::is_some) => deadline.ok().and_then(|d| *d),
    };
    if let Some(deadline) = deadline {
        leave(deadline).await;
        conn.closed().await;
    }
    inner.metrics.connections.dec();
    drop(slot);
}
