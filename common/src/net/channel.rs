//! A connection that is kept up: found again after it was lost, greeted anew, with calls waiting meanwhile.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::backoff::Backoff;
use super::bulk::{Bulk, BulkMessage, Payload};
use super::dialer::Dialer;
use super::link::{Handler, Link};
use super::{CallError, with_deadline};

/// The outcome of [`Greeter::established`], in the making.
pub type EstablishedFuture = Pin<Box<dyn Future<Output = Result<(), CallError>> + Send>>;

/// What the application does at each new connection.
pub trait Greeter<P>: Send + Sync + 'static {
    /// What to say in hello.
    fn hello(&self) -> Bytes;

    /// Prepares a new connection before anybody else may use it: looks at what the server said, takes up the
    /// session again, reclaims. An error closes the connection, and another is tried later.
    fn established(&self, _peer: P, _welcome: Bytes) -> EstablishedFuture {
        Box::pin(std::future::ready(Ok(())))
    }
}

impl<P, F: Fn() -> Bytes + Send + Sync + 'static> Greeter<P> for F {
    fn hello(&self) -> Bytes {
        self()
    }
}

/// Whether a channel has a connection.
#[derive(Debug, Clone)]
pub enum ChannelState<P> {
    /// It has.
    Up {
        /// Counts the connections of this channel, from 1.
        generation: u64,
        /// What the server said in welcome.
        welcome: Bytes,
        /// The connection.
        peer: P,
    },
    /// It has none, and is trying.
    Down {
        /// Since when.
        since: Instant,
        /// What ended the last connection, or the last attempt.
        last_error: Option<CallError>,
    },
    /// It was closed by this side, for good.
    Closed,
}

impl<P> ChannelState<P> {
    /// Whether there is a connection.
    pub fn is_up(&self) -> bool {
        matches!(self, Self::Up { .. })
    }
}

/// Where and how patiently to connect.
#[derive(Debug, Clone)]
pub struct ChannelConfig {
    /// Addresses of one server, `host:port`. They are tried in turn; names are resolved at each try.
    pub addresses: Vec<String>,
    /// The pauses between rounds.
    pub backoff: Backoff,
}

impl ChannelConfig {
    /// One address, with default patience.
    pub fn to(address: impl Into<String>) -> Self {
        Self { addresses: vec![address.into()], backoff: Backoff::default() }
    }
}

/// A kind of connection that a channel can keep up: [`Link`] or [`Bulk`].
pub trait Peer: Clone + Send + Sync + 'static + sealed::Sealed {
    /// Waits until no new calls can be made on it.
    fn unusable(&self) -> impl Future<Output = CallError> + Send;
    /// Ends it.
    fn close(&self);
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Link {}
    impl Sealed for super::Bulk {}
}

impl Peer for Link {
    async fn unusable(&self) -> CallError {
        Self::unusable(self).await
    }

    fn close(&self) {
        Self::close(self);
    }
}

impl Peer for Bulk {
    async fn unusable(&self) -> CallError {
        Self::unusable(self).await
    }

    fn close(&self) {
        Self::close(self);
    }
}

/// A connection to one server that is kept up. Clones are the same channel; it is closed with the last.
#[derive(Debug)]
pub struct Channel<P: Peer> {
    inner: Arc<Inner<P>>,
}

impl<P: Peer> Clone for Channel<P> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

#[derive(Debug)]
struct Inner<P: Peer> {
    state: Arc<watch::Sender<ChannelState<P>>>,
    keeper: AbortHandle,
}

impl<P: Peer> Inner<P> {
    fn close(&self) {
        self.keeper.abort();
        if let ChannelState::Up { peer, .. } = self.state.send_replace(ChannelState::Closed) {
            peer.close();
        }
    }
}

impl<P: Peer> Drop for Inner<P> {
    fn drop(&mut self) {
        self.close();
    }
}

impl Channel<Link> {
    /// Keeps up a metadata connection, whose peer's calls `handler` answers. Must be called within a
    /// tokio runtime.
    pub fn link(
        dialer: Dialer,
        config: ChannelConfig,
        greeter: impl Greeter<Link>,
        handler: Arc<dyn Handler>,
    ) -> Self {
        Self::start(config, greeter, move |address, hello: Bytes| {
            let (dialer, handler) = (dialer.clone(), handler.clone());
            async move { dialer.link(address, &hello, handler).await }
        })
    }

    /// Calls the server, when there is a connection. Without a deadline it waits for ever.
    ///
    /// A call that was under way when the connection was lost fails with [`CallError::Lost`]: whether it may be
    /// repeated, only the caller knows.
    pub async fn call(
        &self,
        request: Bytes,
        deadline: impl Into<Option<Instant>>,
    ) -> Result<Bytes, CallError> {
        let deadline = deadline.into();
        let (_, link) = self.peer(deadline).await?;
        link.call(request, deadline).await
    }
}

impl Channel<Bulk> {
    /// Keeps up a bulk connection. Must be called within a tokio runtime.
    pub fn bulk(dialer: Dialer, config: ChannelConfig, greeter: impl Greeter<Bulk>) -> Self {
        Self::start(config, greeter, move |address, hello: Bytes| {
            let dialer = dialer.clone();
            async move { dialer.bulk(address, &hello).await }
        })
    }

    /// Calls the server, when there is a connection; as [`Channel::<Link>::call`].
    pub async fn call(
        &self,
        header: Bytes,
        payload: impl Into<Payload>,
        deadline: impl Into<Option<Instant>>,
    ) -> Result<BulkMessage, CallError> {
        let deadline = deadline.into();
        let payload = payload.into();
        let (_, bulk) = self.peer(deadline).await?;
        bulk.call(header, payload, deadline).await
    }
}

impl<P: Peer> Channel<P> {
    fn start<D, Fut>(config: ChannelConfig, greeter: impl Greeter<P>, dial: D) -> Self
    where
        D: Fn(SocketAddr, Bytes) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(P, Bytes), CallError>> + Send + 'static,
    {
        let down = ChannelState::Down { since: Instant::now(), last_error: None };
        let state = Arc::new(watch::Sender::new(down));
        let keeper = tokio::spawn(keep_up(config, greeter, dial, state.clone())).abort_handle();
        Self { inner: Arc::new(Inner { state, keeper }) }
    }

    /// The state as of now.
    pub fn state(&self) -> ChannelState<P> {
        self.inner.state.borrow().clone()
    }

    /// Tells of every change of state.
    pub fn subscribe(&self) -> watch::Receiver<ChannelState<P>> {
        self.inner.state.subscribe()
    }

    /// The connection and its generation, as soon as there is one.
    pub async fn peer(&self, deadline: impl Into<Option<Instant>>) -> Result<(u64, P), CallError> {
        let mut states = self.inner.state.subscribe();
        with_deadline(deadline.into(), async {
            loop {
                match &*states.borrow_and_update() {
                    ChannelState::Up { generation, peer, .. } => {
                        return Ok((*generation, peer.clone()));
                    }
                    ChannelState::Down { .. } => {}
                    ChannelState::Closed => return Err(CallError::Closed),
                }
                if states.changed().await.is_err() {
                    return Err(CallError::Closed);
                }
            }
        })
        .await
    }

    /// Closes the channel for good. Calls that wait, and those under way, fail.
    pub fn close(&self) {
        self.inner.close();
    }
}

/// Connects, waits for the connection's end, and begins again. It ends by being aborted.
async fn keep_up<P, D, Fut>(
    config: ChannelConfig,
    greeter: impl Greeter<P>,
    dial: D,
    state: Arc<watch::Sender<ChannelState<P>>>,
) where
    P: Peer,
    D: Fn(SocketAddr, Bytes) -> Fut + Send + Sync,
    Fut: Future<Output = Result<(P, Bytes), CallError>> + Send,
{
    let mut generation = 0;
    let mut failures = 0;
    let mut since = Instant::now();
    loop {
        let error = match connect(&config, &greeter, &dial).await {
            Ok((peer, welcome)) => {
                generation += 1;
                let began = Instant::now();
                let up = ChannelState::Up { generation, welcome, peer: peer.clone() };
                if !change(&state, up) {
                    peer.close();
                    return;
                }
                let error = peer.unusable().await;
                since = Instant::now();
                // A server that greets and then drops its clients is no better than one that is down.
                if began.elapsed() >= config.backoff.max {
                    failures = 0;
                }
                error
            }
            Err(error) => error,
        };
        tracing::debug!(addresses = ?config.addresses, %error, failures, "no connection");
        if !change(&state, ChannelState::Down { since, last_error: Some(error) }) {
            return;
        }
        failures += 1;
        tokio::time::sleep(config.backoff.delay(failures, random())).await;
    }
}

/// Changes the state unless the channel was closed in the meantime.
fn change<P>(state: &watch::Sender<ChannelState<P>>, new: ChannelState<P>) -> bool {
    state.send_if_modified(|present| {
        let open = !matches!(present, ChannelState::Closed);
        if open {
            *present = new;
        }
        open
    })
}

/// Tries all addresses once.
async fn connect<P, D, Fut>(
    config: &ChannelConfig,
    greeter: &impl Greeter<P>,
    dial: &D,
) -> Result<(P, Bytes), CallError>
where
    P: Peer,
    D: Fn(SocketAddr, Bytes) -> Fut + Send + Sync,
    Fut: Future<Output = Result<(P, Bytes), CallError>> + Send,
{
    let unreachable =
        |name: &str, text: &str| CallError::Unreachable { address: name.into(), text: text.into() };
    let mut last = unreachable("", "no address is configured");
    for name in &config.addresses {
        let resolved = match tokio::net::lookup_host(name).await {
            Ok(resolved) => resolved,
            Err(error) => {
                last = unreachable(name, &error.to_string());
                continue;
            }
        };
        last = unreachable(name, "the name has no addresses");
        for address in resolved {
            match dial(address, greeter.hello()).await {
                Ok((peer, welcome)) => {
                    match greeter.established(peer.clone(), welcome.clone()).await {
                        Ok(()) => return Ok((peer, welcome)),
                        Err(error) => {
                            peer.close();
                            last = error;
                        }
                    }
                }
                Err(error) => last = error,
            }
        }
    }
    Err(last)
}

fn random() -> u32 {
    // Without random numbers all clients wait alike, which is worse for the server and wrong for nobody.
    getrandom::u32().unwrap_or(u32::MAX / 2)
}
