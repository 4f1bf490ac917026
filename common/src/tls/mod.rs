//! The TLS identity of a cluster: its authority, and the certificates of servers and clients.
//!
//! A cluster trusts one authority of its own and nothing else: no public authority, no system store.
//! The authority's certificate carries the cluster's 128-bit id, every other certificate repeats it
//! together with what its holder is:
//!
//! | certificate | name (URI) | may be used as |
//! | --- | --- | --- |
//! | authority | `netfs://CLUSTER` | signer |
//! | server | `netfs://CLUSTER/server/NAME` | server, and client towards other servers |
//! | client | `netfs://CLUSTER/client/NAME` | client |
//!
//! Restrictions of a client (volume, directory, users) will be further URIs below
//! `netfs://CLUSTER/restrict/`; a reader that meets one it does not know must refuse the certificate, and
//! [`PeerIdentity`] already does.
//!
//! Every server certificate also carries the DNS name [`SERVER_NAME`], which clients verify by default:
//! an address needs no certificate of its own, and a stolen client certificate is still no server.

mod cert;
mod file;
mod identity;
pub mod pki;
mod secret;

pub use cert::{PeerIdentity, Role};
pub use identity::Identity;
pub use secret::{EndpointKey, EndpointSecret};

use std::path::PathBuf;

/// The application protocol that both ends of a connection must agree on.
pub const ALPN: &[u8] = b"netfs/1";

/// The DNS name in every server certificate, which a client verifies unless told otherwise.
pub const SERVER_NAME: &str = "netfs-server";

/// What can be wrong with certificates and keys. Each message is one line that names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file or directory could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file would have been overwritten.
    #[error("{} exists already and is not overwritten unless that is asked for", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A private key can be read by others than its owner.
    #[error(
        "key file {} is accessible to others (mode {mode:04o}); run: chmod 600 {}",
        path.display(), path.display()
    )]
    OpenKey {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file holds no certificate or key where one is expected, or one that cannot be parsed.
    #[error("{} holds no usable {what}: {why}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What was expected in it.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// A certificate was signed by somebody else.
    #[error("certificate {} is not signed by the authority in {}", cert.display(), ca.display())]
    ForeignCertificate {
        /// The certificate's file.
        cert: PathBuf,
        /// The authority's file.
        ca: PathBuf,
    },
    /// A key belongs to another certificate.
    #[error("key {} does not belong to certificate {}", key.display(), cert.display())]
    ForeignKey {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        cert: PathBuf,
    },
    /// A certificate is expired or not yet valid.
    #[error("certificate {} is valid from {from} to {to}, and it is now {now}", path.display())]
    OutOfDate {
        /// The certificate's file.
        path: PathBuf,
        /// Start of validity.
        from: String,
        /// End of validity.
        to: String,
        /// The present time of this machine.
        now: String,
    },
    /// A certificate was issued for another purpose.
    #[error("certificate {} is one of role {is}, and one of role {wanted} is needed", path.display())]
    WrongRole {
        /// The certificate's file.
        path: PathBuf,
        /// What it was issued for.
        is: Role,
        /// What is needed.
        wanted: Role,
    },
    /// A certificate does not name a member of a netfs cluster, or names it in a way unknown here.
    #[error("not a certificate of a netfs cluster: {0}")]
    NotOurs(String),
    /// A name that cannot be put into a certificate.
    #[error("`{name}` cannot be used as {what}: {why}")]
    BadName {
        /// The name.
        name: String,
        /// What it was meant for.
        what: &'static str,
        /// The rule that it breaks.
        why: &'static str,
    },
    /// A validity that is no sensible number of days.
    #[error("a validity of {days} days is not between 1 and {max}")]
    BadValidity {
        /// What was asked for.
        days: u32,
        /// The most that is possible.
        max: u32,
    },
    /// A certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Generate(#[from] rcgen::Error),
    /// No random numbers.
    #[error("cannot get random numbers from the system: {0}")]
    Random(getrandom::Error),
    /// The TLS library refused a configuration.
    #[error("TLS configuration refused: {0}")]
    Config(String),
}
