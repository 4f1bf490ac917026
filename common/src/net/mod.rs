//! Calls over QUIC.
//!
//! This layer moves opaque messages; what they mean is the business of `wire` and of the applications. Two
//! kinds of connection, so that bulk never delays a lookup:
//!
//! - a **metadata** connection ([`Link`]): small messages in both directions, multiplexed by call id on one
//!   long-lived stream;
//! - a **bulk** connection ([`Bulk`], [`BulkPeer`]): a stream per call, with a payload that no codec touches.
//!
//! Both begin with a greeting, in which each side says what it accepts; a well-behaved peer keeps to that by
//! waiting, so that a broken limit is always a fault. [`Server`] accepts, [`Dialer`] makes one attempt to
//! connect, [`Channel`] keeps a connection up. Everything runs on a current-thread runtime, which measured best.
//!
//! # When things fail
//!
//! | event | what happens |
//! | --- | --- |
//! | a packet is lost, doubled, reordered, forged | QUIC mends or drops it; nothing of it is seen here |
//! | a frame is lost | cannot be: a stream is whole up to where it ends, and its end fails all calls |
//! | a call takes too long | its deadline fails it and withdraws it: the peer drops the work |
//! | the answer crosses a withdrawal | it is ignored |
//! | the peer stops for a few seconds | calls wait; keep-alive goes unanswered and nothing else happens |
//! | the peer stops for a minute, dies with its machine, or the cable is cut | after `idle_timeout` of silence the connection is lost: calls under way fail with [`CallError::Lost`] and may or may not have been done. A peer that wakes up after that finds out with its next packet |
//! | the peer's process dies | its system says nothing (UDP); as above, but a restarted server resets the connection at the next packet |
//! | half-open: packets pass in one direction only | as above: what is not acknowledged counts as silence |
//! | a server comes back while it is being called | the handshake is begun anew every second, because the pauses within one double |
//! | the peer shuts down | it says goodbye: no new calls, those under way finish, then it closes; a [`Channel`] connects anew at once |
//! | the peer reads too slowly | flow control stops this side's writer, the queue fills to its bound in bytes, calls wait for space until their deadline |
//! | the peer answers too slowly | as many calls wait at the peer as it accepts, the others here |
//! | the peer talks nonsense | the connection is closed with a code and a text, and counted; no other connection notices |
//! | a handler panics or answers too much | that call fails with [`CallError::Cancelled`] at the caller |
//! | no certificate, or a foreign one | the handshake fails; both sides log why |
//! | too many connections or handshakes | the next is refused |
//!
//! What a retry may repeat is not decided here: requests carry the sequence numbers that make them apply once.
//!
//! A bulk connection's budget of payload bytes is its own. Servers that pass requests on to each other in a
//! circle must use a connection per hop, or each might wait for the other's budget.

mod backoff;
mod bulk;
mod bulk_server;
mod channel;
mod dialer;
mod error;
pub mod frame;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod hello;
mod inbound;
mod life;
mod limits;
mod link;
mod metrics;
mod queue;
mod restart;
mod server;
mod socket;
mod transport;

use std::future::Future;
use std::time::Instant;

pub use backoff::Backoff;
pub use bulk::{Bulk, BulkMessage, Payload};
pub use bulk_server::{BulkHandler, BulkPeer, BulkReplyFuture};
pub use channel::{Channel, ChannelConfig, ChannelState, EstablishedFuture, Greeter, Peer};
pub use dialer::Dialer;
pub use error::{CallError, CloseCode};
pub use limits::Limits;
pub use link::{Handler, Link, ReplyFuture};
pub use metrics::NetMetrics;
pub use server::{Incoming, Server};
pub use transport::EndpointError;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConnectionKind {
    /// Small messages in both directions.
    Metadata,
    /// Calls with payloads, made by the client.
    Bulk,
}

/// Runs a future until a deadline, if there is one.
async fn with_deadline<T>(
    deadline: Option<Instant>,
    work: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    match deadline {
        None => work.await,
        Some(at) => {
            tokio::time::timeout_at(at.into(), work).await.unwrap_or(Err(CallError::Deadline))
        }
    }
}
