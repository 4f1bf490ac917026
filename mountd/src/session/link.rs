//! What the session needs of the network, as traits: the network layer implements them, and the
//! tests do in memory.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use netfs_common::map::DataServer;
use netfs_common::wire::meta::{self, Push, PushReply, Request};
use netfs_common::wire::{Hello, HelloReply, data};
use tokio::sync::{mpsc, oneshot};

/// A future of a trait object's method.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The connection is gone; whether the call was executed is unknown.
    #[error("the connection was lost")]
    Lost,
    /// The message cannot be sent on any connection.
    #[error("the message cannot be sent: {0}")]
    Unsendable(String),
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// Nobody answers; it may work later.
    #[error("{0}")]
    Unreachable(String),
    /// The server answers and says no: wrong certificate, volume or version.
    #[error("{0}")]
    Refused(String),
    /// The session of the greeting is over; another one can be begun.
    #[error("{0}")]
    SessionOver(String),
}

/// A call of the server to this client.
#[derive(Debug)]
pub struct PushCall {
    /// What it wants.
    pub push: Push,
    /// Where the answer goes.
    pub answer: oneshot::Sender<PushReply>,
}

/// A connection to the metadata server.
pub trait MetaLink: Send + Sync {
    /// One call. Calls may be answered in any order.
    fn call(&self, request: Request) -> Answer<'_, Result<meta::Answer, LinkError>>;
    /// Resolves when the connection is gone.
    fn closed(&self) -> Answer<'_, ()>;
    /// Ends the connection.
    fn close(&self);
}

/// A connection to a data server.
pub trait DataLink: Send + Sync {
    /// One call with its payload, answered with a payload.
    fn call(
        &self,
        request: data::Request,
        payload: Bytes,
    ) -> Answer<'_, Result<(data::Reply, Bytes), LinkError>>;
    /// Ends the connection.
    fn close(&self);
}

/// A new connection with the server's first words.
pub type Dialled<L> = Result<(HelloReply, Arc<L>), DialError>;

/// Makes connections.
pub trait Dialer: Send + Sync {
    /// A connection to the metadata server. What the server calls goes to `pushes`, which is
    /// bounded: a server that does not wait for answers is made to.
    fn meta(
        &self,
        hello: Hello,
        pushes: mpsc::Sender<PushCall>,
    ) -> Answer<'_, Dialled<dyn MetaLink>>;
    /// Bytes of messages sent and received over all its connections, if it counts them.
    fn bytes(&self) -> (u64, u64) {
        (0, 0)
    }
    /// A connection to a data server.
    fn data(&self, server: DataServer, hello: Hello) -> Answer<'_, Dialled<dyn DataLink>>;
}
