//! What both servers check in a peer's first words, and how they refuse.

use netfs_common::codec;
use netfs_common::id::{ClusterId, InstanceId, SessionId};
use netfs_common::net::{ConnectionKind, Incoming};
use netfs_common::tls;
use netfs_common::wire::hello::SESSION_OVER;
use netfs_common::wire::{Hello, HelloReply, PROTOCOL, Role};

/// The longest description of a client, in bytes.
const MAX_CLIENT_BYTES: usize = 1024;
/// The longest name of a volume, in bytes.
pub const MAX_VOLUME_BYTES: usize = 64;

/// Why a peer is sent away. The text is for the person on the other side.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The words are no greeting.
    #[error("the greeting cannot be understood: {0}")]
    Malformed(String),
    /// No protocol version in common.
    #[error("no protocol version in common: the client speaks {}..={}, this server {PROTOCOL}; use programs of the same release", .0.0, .0.1)]
    Protocol((u32, u32)),
    /// The server does not do that.
    #[error("this is a {server} server; it was asked for {asked:?} calls")]
    WrongServer {
        /// What this server is.
        server: &'static str,
        /// What was asked for.
        asked: Role,
    },
    /// The certificate is of another cluster, or for something else.
    #[error("the certificate does not entitle to this: {0}")]
    NotEntitled(String),
    /// There is no such volume.
    #[error("there is no volume \"{0}\"; `netfs-served volume list` shows what there is")]
    UnknownVolume(String),
    /// A limit is reached.
    #[error("{0}")]
    Limit(String),
    /// The server cannot do it now.
    #[error("{0}; try again later")]
    Unavailable(String),
    /// The session of the greeting is over for good.
    #[error("the session is over: {0}")]
    SessionOver(String),
}

impl Refusal {
    /// The code that travels with the text. Part of the wire format: numbers are never given a new meaning.
    pub fn code(&self) -> u16 {
        match self {
            Refusal::Malformed(_) => 1,
            Refusal::Protocol(_) => 2,
            Refusal::WrongServer { .. } => 3,
            Refusal::NotEntitled(_) => 4,
            Refusal::UnknownVolume(_) => 5,
            Refusal::Limit(_) => 6,
            Refusal::Unavailable(_) => 7,
            Refusal::SessionOver(_) => SESSION_OVER,
        }
    }
}

/// Sends a peer away and logs why.
pub fn refuse(incoming: Incoming, refusal: &Refusal) {
    let (address, name) = (incoming.remote_address(), incoming.peer().name.clone());
    tracing::warn!(%address, certificate = %name, reason = %refusal, "client refused");
    incoming.refuse(refusal.code(), &refusal.to_string());
}

/// Understands a peer's greeting and checks all that does not depend on the server's state.
///
/// # Errors
/// Why it has to be refused.
pub fn open(
    incoming: &Incoming,
    cluster: ClusterId,
    server: &'static str,
) -> Result<Hello, Refusal> {
    let hello: Hello =
        codec::decode(incoming.hello()).map_err(|e| Refusal::Malformed(e.to_string()))?;
    check(&hello, incoming.kind(), server)?;
    let peer = incoming.peer();
    if ClusterId(peer.cluster) != cluster {
        return Err(Refusal::NotEntitled("it is of another cluster".into()));
    }
    // Metadata servers call data servers, and operators servers, with servers' certificates.
    let entitled = match hello.role {
        Role::Meta => peer.role == tls::Role::Client,
        Role::Admin | Role::Data => matches!(peer.role, tls::Role::Client | tls::Role::Server),
    };
    if !entitled {
        let text = format!("{:?} calls with a certificate for: {}", hello.role, peer.role);
        return Err(Refusal::NotEntitled(text));
    }
    Ok(hello)
}

fn check(hello: &Hello, kind: ConnectionKind, server: &'static str) -> Result<(), Refusal> {
    if !(hello.protocol.0..=hello.protocol.1).contains(&PROTOCOL) {
        return Err(Refusal::Protocol(hello.protocol));
    }
    let serves = match hello.role {
        Role::Meta | Role::Admin => server == META && kind == ConnectionKind::Metadata,
        Role::Data => server == DATA && kind == ConnectionKind::Bulk,
    };
    if !serves {
        return Err(Refusal::WrongServer { server, asked: hello.role });
    }
    if hello.client.len() > MAX_CLIENT_BYTES {
        return Err(Refusal::Malformed("the description of the client is too long".into()));
    }
    if hello.role == Role::Meta && hello.session == SessionId(0) {
        return Err(Refusal::Malformed("a client needs a session other than 0".into()));
    }
    Ok(())
}

/// What a metadata server calls itself.
pub const META: &str = "metadata";
/// What a data server calls itself.
pub const DATA: &str = "data";

/// The answer, as far as it is the same for all.
pub fn reply(cluster: ClusterId, instance: InstanceId) -> HelloReply {
    HelloReply { protocol: PROTOCOL, features: 0, cluster, instance, volume: None }
}

/// A number that no other life of any server has.
///
/// # Errors
/// When the system has no random numbers.
pub fn draw_instance() -> Result<InstanceId, getrandom::Error> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)?;
    Ok(InstanceId(u64::from_le_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use netfs_common::wire::Claim;

    use super::*;

    fn hello(role: Role) -> Hello {
        Hello {
            protocol: (PROTOCOL, PROTOCOL + 3),
            features: u64::MAX,
            role,
            volume: "v".into(),
            session: SessionId(7),
            claim: Claim::Begin,
            instance: InstanceId(1),
            client: "test".into(),
        }
    }

    #[test]
    fn a_client_of_a_later_protocol_is_told_both_versions() {
        let later = Hello { protocol: (PROTOCOL + 1, PROTOCOL + 2), ..hello(Role::Meta) };
        let refusal = check(&later, ConnectionKind::Metadata, META).unwrap_err();
        assert!(
            refusal.to_string().contains(&format!("{}..={}", PROTOCOL + 1, PROTOCOL + 2)),
            "{refusal}"
        );
        assert_eq!(check(&hello(Role::Meta), ConnectionKind::Metadata, META), Ok(()));
    }

    #[test]
    fn a_client_at_the_wrong_port_learns_which_server_it_has_reached() {
        let refusal = check(&hello(Role::Data), ConnectionKind::Bulk, META).unwrap_err();
        assert!(refusal.to_string().contains("metadata server"), "{refusal}");
    }

    #[test]
    fn a_session_of_zero_is_refused() {
        let none = Hello { session: SessionId(0), ..hello(Role::Meta) };
        assert!(matches!(check(&none, ConnectionKind::Metadata, META), Err(Refusal::Malformed(_))));
    }
}
