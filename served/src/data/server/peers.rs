//! Connections to the other data servers.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use netfs_common::codec;
use netfs_common::id::{ClusterId, InstanceId, ServerId, SessionId};
use netfs_common::map::ClusterMap;
use netfs_common::net::{
    Backoff, Bulk, CallError, Channel, ChannelConfig, Dialer, EstablishedFuture, Greeter, Payload,
};
use netfs_common::wire::data::{Reply, Request};
use netfs_common::wire::{Claim, Hello, HelloReply, PROTOCOL, Role};

/// Why a data server has not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PeerError {
    #[error("data server {server}: {source}")]
    Call { server: ServerId, source: CallError },
    #[error("data server {server} gave an answer that makes no sense")]
    Nonsense { server: ServerId },
    #[error("data server {server} is not in the cluster map")]
    Unknown { server: ServerId },
}

/// Connections to the servers of the map, which follow it.
#[derive(Debug)]
pub(crate) struct Peers {
    dialer: Dialer,
    greeting: Greeting,
    channels: Mutex<HashMap<ServerId, At>>,
}

/// A server's addresses, and the connection to it.
type At = (Vec<String>, Channel<Bulk>);

/// What one server says to a data server, and whom it takes for one.
#[derive(Clone, Debug)]
pub(crate) struct Greeting {
    hello: Bytes,
    cluster: ClusterId,
}

impl Greeting {
    /// `what` says who calls, for people.
    pub(crate) fn new(
        cluster: ClusterId,
        instance: InstanceId,
        what: &str,
    ) -> Result<Greeting, codec::CodecError> {
        let hello = Hello {
            protocol: (PROTOCOL, PROTOCOL),
            features: 0,
            role: Role::Data,
            volume: String::new(),
            session: SessionId(0),
            claim: Claim::Begin,
            instance,
            client: what.into(),
        };
        Ok(Greeting { hello: codec::encode(&hello)?.into(), cluster })
    }
}

impl Greeter<Bulk> for Greeting {
    fn hello(&self) -> Bytes {
        self.hello.clone()
    }

    fn established(&self, _peer: Bulk, welcome: Bytes) -> EstablishedFuture {
        let checked = match codec::decode::<HelloReply>(&welcome) {
            Ok(reply) if reply.cluster == self.cluster => Ok(()),
            Ok(_) => Err(CallError::Untrusted("a data server of another cluster".into())),
            Err(error) => Err(CallError::Protocol(error.to_string().into())),
        };
        Box::pin(std::future::ready(checked))
    }
}

impl Peers {
    /// Nobody yet.
    pub(crate) fn new(dialer: Dialer, greeting: Greeting) -> Peers {
        Peers { dialer, greeting, channels: Mutex::default() }
    }

    /// Lets go of servers that are not in the map any more, or elsewhere.
    pub(crate) fn follow(&self, map: &ClusterMap) {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.retain(|id, (addrs, channel)| {
            let stays = map.server(*id).is_some_and(|server| server.addrs == *addrs);
            if !stays {
                channel.close();
            }
            stays
        });
    }

    /// The connection to a server, which is made in the background. Must be called within a runtime.
    fn channel(&self, map: &ClusterMap, id: ServerId) -> Option<Channel<Bulk>> {
        let server = map.server(id)?;
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, channel) = channels.entry(id).or_insert_with(|| {
            let backoff =
                Backoff { first: Duration::from_millis(20), max: Duration::from_millis(500) };
            let config = ChannelConfig { addresses: server.addrs.clone(), backoff };
            let channel = Channel::bulk(self.dialer.clone(), config, self.greeting.clone());
            (server.addrs.clone(), channel)
        });
        Some(channel.clone())
    }

    /// One call.
    pub(crate) async fn call(
        &self,
        map: &ClusterMap,
        server: ServerId,
        request: &Request,
        payload: impl Into<Payload>,
        deadline: Option<Instant>,
    ) -> Result<(Reply, Payload), PeerError> {
        let header = codec::encode(request).map_err(|_| PeerError::Nonsense { server })?;
        let channel = self.channel(map, server).ok_or(PeerError::Unknown { server })?;
        let answer = channel
            .call(header.into(), payload, deadline)
            .await
            .map_err(|source| PeerError::Call { server, source })?;
        let reply = codec::decode(&answer.header).map_err(|_| PeerError::Nonsense { server })?;
        Ok((reply, answer.payload))
    }

    /// Ends all connections, and waits a moment until that is said.
    pub(crate) async fn farewell(&self, patience: Duration) {
        self.dialer.close();
        if tokio::time::timeout(patience, self.dialer.wait_idle()).await.is_err() {
            tracing::debug!("a data server has not acknowledged the goodbye");
        }
    }
}
