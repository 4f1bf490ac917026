//! The connecting side: one attempt to reach and greet one server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::bulk::Bulk;
use super::hello::{self, Greeted};
use super::link::{Handler, Link};
use super::transport::{self, EndpointError};
use super::{CallError, CloseCode, ConnectionKind, Limits, NetMetrics, with_deadline};
use crate::tls::SERVER_NAME;

/// How often a handshake is begun anew while nobody answers. QUIC sends its first packet again after pauses that double
/// (RFC 9002, section 6.2), so a server that comes back while one is under way would be found after seconds.
const AFRESH: Duration = Duration::from_secs(1);

/// A socket to connect from. Clones share it; all connections end when the last clone and the last
/// connection are gone.
#[derive(Debug, Clone)]
pub struct Dialer {
    endpoint: quinn::Endpoint,
    limits: Limits,
    metrics: NetMetrics,
    server_name: Arc<str>,
}

impl Dialer {
    /// Must be called within a tokio runtime, which then drives the endpoint.
    pub fn new(
        tls: Arc<rustls::ClientConfig>,
        limits: Limits,
        metrics: NetMetrics,
    ) -> Result<Self, EndpointError> {
        let endpoint = transport::client(tls, &limits)?;
        Ok(Self { endpoint, limits, metrics, server_name: SERVER_NAME.into() })
    }

    /// Verifies that servers are called `name`, instead of [`SERVER_NAME`].
    #[must_use]
    pub fn with_server_name(mut self, name: &str) -> Self {
        self.server_name = name.into();
        self
    }

    /// Opens a metadata connection; returns it with what the server said in welcome.
    pub async fn link(
        &self,
        address: SocketAddr,
        hello: &[u8],
        handler: Arc<dyn Handler>,
    ) -> Result<(Link, Bytes), CallError> {
        let greeted = self.greet(address, ConnectionKind::Metadata, hello).await?;
        let words = greeted.words.clone();
        Ok((Link::start(greeted, handler, &self.limits, self.metrics.clone()), words))
    }

    /// Opens a bulk connection; returns it with what the server said in welcome.
    pub async fn bulk(
        &self,
        address: SocketAddr,
        hello: &[u8],
    ) -> Result<(Bulk, Bytes), CallError> {
        let greeted = self.greet(address, ConnectionKind::Bulk, hello).await?;
        let words = greeted.words.clone();
        Ok((Bulk::start(greeted, &self.limits, self.metrics.clone()), words))
    }

    /// Ends all connections at once.
    pub fn close(&self) {
        self.endpoint.close(CloseCode::Done.to_var_int(), b"");
    }

    /// Waits until the ends of all connections have been announced, for at most the farewell of a
    /// process that is about to exit.
    pub async fn wait_idle(&self) {
        self.endpoint.wait_idle().await;
    }

    /// Goes on with the first attempt, which a slow server may still answer, and begins a second one beside it again and
    /// again: the first packet of that reaches a server that was not there before.
    async fn handshake(&self, address: SocketAddr) -> Result<quinn::Connection, CallError> {
        let connect = || {
            self.endpoint.connect(address, &self.server_name).map_err(|e| CallError::Unreachable {
                address: address.to_string().into(),
                text: e.to_string().into(),
            })
        };
        let first = connect()?;
        tokio::pin!(first);
        let Ok(answered) = tokio::time::timeout(AFRESH, &mut first).await else {
            loop {
                let fresh = connect()?;
                let either = async {
                    tokio::select! {
                        first = &mut first => first,
                        // One that is refused does not end what may still come.
                        fresh = fresh => match fresh {
                            Ok(established) => Ok(established),
                            Err(_) => (&mut first).await,
                        },
                    }
                };
                if let Ok(answered) = tokio::time::timeout(AFRESH, either).await {
                    return Ok(answered?);
                }
            }
        };
        Ok(answered?)
    }

    async fn greet(
        &self,
        address: SocketAddr,
        kind: ConnectionKind,
        hello: &[u8],
    ) -> Result<Greeted, CallError> {
        let unreachable = |text: &str| CallError::Unreachable {
            address: address.to_string().into(),
            text: text.into(),
        };
        let deadline = Instant::now() + self.limits.hello_timeout;
        let mut conn = None;
        let greeting = async {
            let established = self.handshake(address).await?;
            conn = Some(established.clone());
            hello::greet(established, kind, hello, &self.limits).await
        };
        let result = match with_deadline(Some(deadline), greeting).await {
            Err(CallError::Deadline) => {
                if let Some(conn) = conn {
                    conn.close(CloseCode::HelloTimeout.to_var_int(), b"no welcome in time");
                    Err(unreachable("it accepted the connection and then said nothing"))
                } else {
                    Err(unreachable("no answer"))
                }
            }
            other => other,
        };
        result.inspect_err(|_| {
            self.metrics.dials_failed.inc();
        })
    }
}
