//! What the tests of the servers share: a cluster's certificates, and raw calls.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use netfs_common::codec;
use netfs_common::id::{ChunkId, Ino, InstanceId, SessionId};
use netfs_common::map::ClusterMap;
use netfs_common::net::{Bulk, CallError, Dialer, Limits, NetMetrics};
use netfs_common::tls::{Identity, pki};
use netfs_common::wire::data::{Op, Reply, Request};
use netfs_common::wire::{Hello, HelloReply, PROTOCOL, Role};

/// No call of a test takes longer.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn localhost() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// A cluster's authority with a server's and a client's certificate.
pub struct Pki {
    pub server: Arc<Identity>,
    pub client: Arc<Identity>,
}

pub fn make_pki(dir: &Path) -> Pki {
    let (ca, server, client) = (dir.join("ca"), dir.join("server"), dir.join("client"));
    pki::init(&ca, "test").unwrap();
    let options = pki::IssueOptions::default();
    let leaf = pki::Leaf::Server { name: "server".into(), names: Vec::new() };
    pki::issue(&ca, &leaf, &server, &options).unwrap();
    pki::issue(&ca, &pki::Leaf::Client { name: "client".into() }, &client, &options).unwrap();
    Pki {
        server: Arc::new(Identity::load_dir(&server).unwrap()),
        client: Arc::new(Identity::load_dir(&client).unwrap()),
    }
}

pub fn dialer(identity: &Identity) -> Dialer {
    Dialer::new(identity.client_config().unwrap(), Limits::default(), NetMetrics::default())
        .unwrap()
}

pub fn hello(role: Role, volume: &str, session: u64) -> Hello {
    Hello {
        protocol: (PROTOCOL, PROTOCOL),
        features: 0,
        role,
        volume: volume.into(),
        session: SessionId(session),
        instance: InstanceId(1),
        client: format!("test {session}"),
    }
}

/// A client of a data server.
pub struct DataClient {
    pub bulk: Bulk,
    pub welcome: HelloReply,
    map: ClusterMap,
}

impl DataClient {
    pub async fn connect(identity: &Identity, addr: SocketAddr) -> Result<DataClient, CallError> {
        let words = codec::encode(&hello(Role::Data, "", 1)).unwrap();
        let (bulk, welcome) = dialer(identity).bulk(addr, &words).await?;
        let map = netfs_served::cluster::single_server_map(vec![addr.to_string()]);
        Ok(DataClient { bulk, welcome: codec::decode(&welcome).unwrap(), map })
    }

    pub async fn raw(
        &self,
        request: &Request,
        payload: Bytes,
    ) -> Result<(Reply, Bytes), CallError> {
        let header = codec::encode(request).unwrap();
        let answer = self.bulk.call(header.into(), payload, Instant::now() + PATIENCE).await?;
        Ok((codec::decode(&answer.header).unwrap(), answer.payload.into_bytes()))
    }

    pub async fn call(&self, about: ChunkId, op: Op, payload: impl Into<Bytes>) -> (Reply, Bytes) {
        let (group, chain) = self.map.chain_of(about);
        let request = Request { group, epoch: chain.epoch, op };
        self.raw(&request, payload.into()).await.unwrap()
    }

    pub async fn write(&self, chunk: ChunkId, offset: u64, data: &[u8]) -> i64 {
        let data = Bytes::copy_from_slice(data);
        match self.call(chunk, Op::Write { chunk, offset }, data).await.0 {
            Reply::Written { verifier, allocated } => {
                assert_eq!(verifier, self.welcome.instance);
                allocated
            }
            other => panic!("{other:?}"),
        }
    }

    pub async fn read(&self, chunk: ChunkId, offset: u64, len: u64) -> Bytes {
        let (reply, data) = self.call(chunk, Op::Read { chunk, offset, len }, Bytes::new()).await;
        assert_eq!(reply, Reply::Read);
        assert_eq!(data.len() as u64, len);
        data
    }

    pub async fn flush(&self) {
        let (reply, _) = self.call(chunk(0, 0), Op::Flush, Bytes::new()).await;
        assert_eq!(reply, Reply::Flushed { verifier: self.welcome.instance });
    }
}

pub fn chunk(ino: u64, index: u64) -> ChunkId {
    ChunkId { ino: Ino(ino), generation: 0, index }
}
