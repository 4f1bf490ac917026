//! QUIC endpoints, configured as measured.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::udp::UdpSocketState;
use quinn::{
    EndpointConfig, IdleTimeout, MtuDiscoveryConfig, Runtime, TokioRuntime, TransportConfig,
    VarInt, congestion,
};

use super::socket::CappedSocket;
use super::{Limits, restart};
use crate::tls::EndpointSecret;

/// Every path carries this much.
const MIN_MTU: u16 = 1200;

/// Assumed until measured. It times the first retransmissions: a server that comes back is found this much
/// sooner than with the 333 ms that suit the open Internet.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// Streams beside those for bulk calls: the one that the greeting travels on.
const CONTROL_STREAMS: u32 = 1;

/// Why an endpoint could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// The address cannot be bound.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The socket cannot be used.
    #[error("cannot set up a UDP socket: {0}")]
    Socket(#[from] io::Error),
    /// A limit or TLS setting cannot be expressed in QUIC.
    #[error("unusable transport setting: {0}")]
    Setting(String),
}

/// The endpoint of a server.
pub(super) fn server(
    address: SocketAddr,
    tls: Arc<rustls::ServerConfig>,
    secret: Option<&EndpointSecret>,
    limits: &Limits,
) -> Result<quinn::Endpoint, EndpointError> {
    limits.check().map_err(EndpointError::Setting)?;
    let crypto =
        QuicServerConfig::try_from(tls).map_err(|e| EndpointError::Setting(e.to_string()))?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let mut transport = transport(limits)?;
    transport
        .max_concurrent_bidi_streams(limits.max_bulk_calls.saturating_add(CONTROL_STREAMS).into());
    config.transport_config(Arc::new(transport));
    config.max_incoming(limits.max_handshakes as usize);
    let socket = bind(address).map_err(|source| EndpointError::Bind { address, source })?;
    let endpoint_config = match secret {
        Some(secret) => restart::endpoint_config(secret, socket.local_addr()?.port()),
        None => EndpointConfig::default(),
    };
    endpoint(socket, endpoint_config, Some(config), limits)
}

/// Binds an address. "Any, of both families" is any of IPv4 where there is no IPv6.
fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    match UdpSocket::bind(address) {
        Err(error)
            if address.ip() == Ipv6Addr::UNSPECIFIED
                && error.kind() != io::ErrorKind::AddrInUse =>
        {
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, address.port())).map_err(|_| error)
        }
        other => other,
    }
}

/// The endpoint of a client, and the configuration for connecting with it.
pub(super) fn client(
    tls: Arc<rustls::ClientConfig>,
    limits: &Limits,
) -> Result<quinn::Endpoint, EndpointError> {
    let crypto =
        QuicClientConfig::try_from(tls).map_err(|e| EndpointError::Setting(e.to_string()))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    let mut transport = transport(limits)?;
    // Servers open no streams: they call on the one that the client opened.
    transport.max_concurrent_bidi_streams(0u32.into());
    config.transport_config(Arc::new(transport));
    // One socket for both families where there is IPv6, which cannot be taken for granted.
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))
        .or_else(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
    let mut endpoint = endpoint(socket, EndpointConfig::default(), None, limits)?;
    endpoint.set_default_client_config(config);
    Ok(endpoint)
}

fn endpoint(
    socket: UdpSocket,
    mut config: EndpointConfig,
    server: Option<quinn::ServerConfig>,
    limits: &Limits,
) -> Result<quinn::Endpoint, EndpointError> {
    let runtime = Arc::new(TokioRuntime);
    // Best effort: the system's own limit may be lower, and a smaller buffer costs speed, nothing else.
    let state = UdpSocketState::new((&socket).into())?;
    for result in [
        state.set_recv_buffer_size((&socket).into(), limits.socket_buffer_bytes),
        state.set_send_buffer_size((&socket).into(), limits.socket_buffer_bytes),
    ] {
        if let Err(error) = result {
            tracing::debug!(%error, "socket buffer size not granted");
        }
    }
    config
        .max_udp_payload_size(limits.max_mtu)
        .map_err(|e| EndpointError::Setting(format!("max_mtu {}: {e}", limits.max_mtu)))?;
    let socket = CappedSocket::new(runtime.wrap_udp_socket(socket)?);
    Ok(quinn::Endpoint::new_with_abstract_socket(config, server, Arc::new(socket), runtime)?)
}

fn transport(limits: &Limits) -> Result<TransportConfig, EndpointError> {
    let idle = IdleTimeout::try_from(limits.idle_timeout)
        .map_err(|_| EndpointError::Setting(format!("idle_timeout {:?}", limits.idle_timeout)))?;
    if limits.keep_alive >= limits.idle_timeout {
        return Err(EndpointError::Setting(format!(
            "keep_alive {:?} must be shorter than idle_timeout {:?}",
            limits.keep_alive, limits.idle_timeout
        )));
    }
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(limits.max_mtu);
    let mut config = TransportConfig::default();
    config
        // Discovery raises it. Beginning higher hangs on paths that do not carry it.
        .initial_mtu(MIN_MTU)
        .initial_rtt(INITIAL_RTT)
        .mtu_discovery_config(Some(discovery))
        .congestion_controller_factory(Arc::new(congestion::CubicConfig::default()))
        .stream_receive_window(VarInt::from_u32(limits.stream_window))
        .receive_window(VarInt::from_u32(limits.connection_window))
        .send_window(u64::from(limits.connection_window))
        .keep_alive_interval(Some(limits.keep_alive))
        .max_idle_timeout(Some(idle))
        .max_concurrent_uni_streams(0u32.into())
        .datagram_receive_buffer_size(None);
    Ok(config)
}
