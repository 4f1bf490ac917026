//! A cluster's certificates, a server and clients for a test.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use netfs_common::net::{
    BulkHandler, BulkMessage, ConnectionKind, Dialer, Handler, Limits, Link, NetMetrics, Server,
};
use netfs_common::tls::Identity;
use netfs_common::tls::pki::{self, IssueOptions, Leaf};

/// Long enough for a busy machine, short enough for a hanging test.
pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

pub(crate) fn in_ms(ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(ms)
}

pub(crate) struct Pki {
    dir: tempfile::TempDir,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        pki::init(&dir.path().join("ca"), "test").unwrap();
        Self { dir }
    }

    pub(crate) fn identity(&self, leaf: &Leaf) -> Identity {
        let out: PathBuf = self.dir.path().join(format!("{leaf:?}").replace('/', "_"));
        if !out.exists() {
            pki::issue(&self.dir.path().join("ca"), leaf, &out, &IssueOptions::default()).unwrap();
        }
        Identity::load_dir(&out).unwrap()
    }

    pub(crate) fn ca_der(&self) -> rustls::pki_types::CertificateDer<'static> {
        use rustls::pki_types::pem::PemObject;
        let path = self.dir.path().join("ca").join(pki::CA_FILE);
        rustls::pki_types::CertificateDer::from_pem_file(path).unwrap()
    }

    /// A certificate and its key, for configurations that the product would not make.
    pub(crate) fn pair(
        &self,
        leaf: &Leaf,
    ) -> (Vec<rustls::pki_types::CertificateDer<'static>>, rustls::pki_types::PrivateKeyDer<'static>)
    {
        use rustls::pki_types::pem::PemObject;
        let out = self.dir.path().join("pair");
        let options = IssueOptions { overwrite: true, ..IssueOptions::default() };
        let issued = pki::issue(&self.dir.path().join("ca"), leaf, &out, &options).unwrap();
        (
            vec![rustls::pki_types::CertificateDer::from_pem_file(issued.cert).unwrap()],
            rustls::pki_types::PrivateKeyDer::from_pem_file(issued.key).unwrap(),
        )
    }

    pub(crate) fn server(&self) -> Arc<rustls::ServerConfig> {
        let leaf = Leaf::Server { name: "s".into(), names: vec![] };
        self.identity(&leaf).server_config().unwrap()
    }

    pub(crate) fn client(&self, name: &str) -> Arc<rustls::ClientConfig> {
        self.identity(&Leaf::Client { name: name.into() }).client_config().unwrap()
    }
}

/// Limits under which failure is noticed quickly.
pub(crate) fn limits() -> Limits {
    Limits {
        keep_alive: Duration::from_millis(500),
        idle_timeout: Duration::from_secs(3),
        hello_timeout: Duration::from_secs(2),
        max_payload_bytes: 8 << 20,
        max_bulk_calls: 8,
        ..Limits::default()
    }
}

/// A server that welcomes everybody who does not say `refuse me`, echoes calls unless `handler` says
/// otherwise, and sends links to whoever asks.
pub(crate) struct TestServer {
    pub(crate) server: Arc<Server>,
    pub(crate) address: SocketAddr,
    pub(crate) metrics: NetMetrics,
    pub(crate) links: tokio::sync::mpsc::Receiver<Link>,
}

pub(crate) fn any_port() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

pub(crate) fn serve(
    pki: &Pki,
    limits: Limits,
    address: SocketAddr,
    handler: Arc<dyn Handler>,
    bulk: Arc<dyn BulkHandler>,
) -> TestServer {
    let metrics = NetMetrics::default();
    let server = Arc::new(Server::bind(address, pki.server(), limits, metrics.clone()).unwrap());
    let address = server.local_addr().unwrap();
    let (send, links) = tokio::sync::mpsc::channel(64);
    let accepting = server.clone();
    tokio::spawn(async move {
        while let Some(incoming) = accepting.accept().await {
            if incoming.hello().starts_with(b"refuse me") {
                incoming.refuse(7, "no room for you");
                continue;
            }
            let words = format!("welcome {}", incoming.peer().name);
            match incoming.kind() {
                ConnectionKind::Metadata => {
                    if let Ok(link) = incoming.welcome_link(words.as_bytes(), handler.clone()).await
                    {
                        let _ = send.try_send(link);
                    }
                }
                ConnectionKind::Bulk => {
                    let _ = incoming.welcome_bulk(words.as_bytes(), bulk.clone()).await;
                }
            }
        }
    });
    TestServer { server, address, metrics, links }
}

pub(crate) fn echo() -> Arc<dyn Handler> {
    Arc::new(|_: Link, request: Bytes| std::future::ready(request))
}

pub(crate) fn bulk_echo() -> Arc<dyn BulkHandler> {
    Arc::new(|request: BulkMessage| std::future::ready(request))
}

pub(crate) fn echo_server(pki: &Pki) -> TestServer {
    serve(pki, limits(), any_port(), echo(), bulk_echo())
}

pub(crate) fn dialer(pki: &Pki) -> Dialer {
    Dialer::new(pki.client("alice"), limits(), NetMetrics::default()).unwrap()
}

/// Waits until something holds that another task brings about.
pub(crate) async fn eventually(what: &str, mut test: impl FnMut() -> bool) {
    let end = soon();
    while !test() {
        assert!(Instant::now() < end, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
