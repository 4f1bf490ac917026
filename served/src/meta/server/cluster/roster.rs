//! The connections to the data servers, which come and go with the map.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use netfs_common::codec;
use netfs_common::id::{ClusterId, InstanceId, ServerId};
use netfs_common::net::{Backoff, Bulk, Channel, ChannelConfig, Dialer};
use tokio::task::AbortHandle;

use super::{Cluster, beats};
use crate::data::server::peers::Greeting;

/// The longest pause between two attempts to connect. Much less than the deadline of a server.
const CONNECT_AGAIN: Duration = Duration::from_millis(500);

/// How this server calls data servers.
#[derive(Clone)]
pub(in crate::meta::server) struct Caller {
    dialer: Dialer,
    /// What is said first; signs of life have another one, so that neither connection replaces the other.
    calls: Greeting,
    beats: Greeting,
}

impl Caller {
    /// `lives`: this life of the server, for calls and for signs of life.
    pub(in crate::meta::server) fn new(
        dialer: Dialer,
        cluster: ClusterId,
        lives: [InstanceId; 2],
    ) -> Result<Caller, codec::CodecError> {
        let greeting = |instance| Greeting::new(cluster, instance, "metadata server");
        Ok(Caller { dialer, calls: greeting(lives[0])?, beats: greeting(lives[1])? })
    }

    fn channel(&self, addrs: &[String], greeting: &Greeting) -> Channel<Bulk> {
        let backoff = Backoff { max: CONNECT_AGAIN, ..Backoff::default() };
        let config = ChannelConfig { addresses: addrs.to_vec(), backoff };
        Channel::bulk(self.dialer.clone(), config, greeting.clone())
    }
}

/// What there is for each server, and what else goes on in the background.
#[derive(Default)]
pub(super) struct Roster {
    caller: Option<Caller>,
    servers: BTreeMap<ServerId, Contact>,
    tasks: Vec<AbortHandle>,
}

struct Contact {
    addrs: Vec<String>,
    calls: Channel<Bulk>,
    beats: AbortHandle,
}

impl Drop for Contact {
    fn drop(&mut self) {
        self.beats.abort();
    }
}

impl Roster {
    pub(super) fn begin(&mut self, caller: Caller) {
        self.caller = Some(caller);
    }

    pub(super) fn add_task(&mut self, task: AbortHandle) {
        self.tasks.push(task);
    }

    pub(super) fn channel(&self, server: ServerId) -> Option<Channel<Bulk>> {
        Some(self.servers.get(&server)?.calls.clone())
    }

    pub(super) fn close(&mut self) {
        self.caller = None;
        self.servers.clear();
        self.tasks.drain(..).for_each(|task| task.abort());
    }
}

impl Cluster {
    /// Begins to talk to servers that are new in the published map, and leaves those that are not in it any more; from now on.
    pub(super) fn follow_roster(self: &Arc<Self>) {
        let mut maps = self.maps();
        let cluster = self.clone();
        let task = tokio::spawn(async move {
            loop {
                cluster.update_roster();
                if maps.changed().await.is_err() {
                    return;
                }
            }
        });
        self.roster().add_task(task.abort_handle());
    }

    fn update_roster(self: &Arc<Self>) {
        let published = self.published();
        let mut roster = self.roster();
        let Some(caller) = roster.caller.clone() else { return };
        roster.servers.retain(|id, contact| {
            let Some(server) = published.map.server(*id) else { return false };
            if server.addrs != contact.addrs {
                let (from, to) = (contact.addrs.join(","), server.addrs.join(","));
                tracing::info!(server = %id, from, to, "a data server is at another address");
            }
            server.addrs == contact.addrs
        });
        for server in &published.map.servers {
            if roster.servers.contains_key(&server.id) {
                continue;
            }
            let calls = caller.channel(&server.addrs, &caller.calls);
            let own = caller.channel(&server.addrs, &caller.beats);
            let beats = beats::beat(self.clone(), server.id, server.addrs.clone(), own);
            let beats = tokio::spawn(beats).abort_handle();
            let contact = Contact { addrs: server.addrs.clone(), calls, beats };
            roster.servers.insert(server.id, contact);
        }
    }
}
