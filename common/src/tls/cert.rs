//! Reading certificates: who is named, and what can be said about them.

use std::fmt;
use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::TlsError;

/// The scheme of the URIs by which certificates name cluster members.
const SCHEME: &str = "netfs://";

/// What a certificate was issued for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The cluster's authority, which signs and does nothing else.
    Authority,
    /// A metadata or data server.
    Server,
    /// A client: somebody who mounts.
    Client,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Authority => "authority",
            Self::Server => "server",
            Self::Client => "client",
        })
    }
}

/// Whom a certificate names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PeerIdentity {
    /// The id of the cluster that the certificate was issued in.
    pub cluster: [u8; 16],
    /// What it was issued for.
    pub role: Role,
    /// Its holder's name, unique by convention only; empty for the authority.
    pub name: String,
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SCHEME)?;
        for byte in self.cluster {
            write!(f, "{byte:02x}")?;
        }
        match self.role {
            Role::Authority => Ok(()),
            Role::Server => write!(f, "/server/{}", self.name),
            Role::Client => write!(f, "/client/{}", self.name),
        }
    }
}

impl PeerIdentity {
    /// Reads the identity out of a certificate in DER form. The signature is not looked at: that is what
    /// the handshake is for.
    pub fn from_der(der: &[u8]) -> Result<Self, TlsError> {
        let (_, cert) =
            X509Certificate::from_der(der).map_err(|e| TlsError::NotOurs(e.to_string()))?;
        Self::from_certificate(&cert)
    }

    pub(super) fn from_certificate(cert: &X509Certificate<'_>) -> Result<Self, TlsError> {
        let names = cert
            .subject_alternative_name()
            .map_err(|e| TlsError::NotOurs(e.to_string()))?
            .ok_or_else(|| TlsError::NotOurs("it carries no alternative names".into()))?;
        let mut found = None;
        for name in &names.value.general_names {
            let GeneralName::URI(uri) = name else { continue };
            if !uri.starts_with(SCHEME) {
                continue;
            }
            // Anything that is not understood might be a restriction: refuse it instead of granting more
            // than was meant.
            let identity = Self::parse(uri)
                .ok_or_else(|| TlsError::NotOurs(format!("`{uri}` is not understood")))?;
            if found.replace(identity).is_some() {
                return Err(TlsError::NotOurs("it names two identities".into()));
            }
        }
        found.ok_or_else(|| TlsError::NotOurs(format!("it carries no {SCHEME} name")))
    }

    fn parse(uri: &str) -> Option<Self> {
        let rest = uri.strip_prefix(SCHEME)?;
        let (cluster, path) = match rest.split_once('/') {
            Some((cluster, path)) => (cluster, Some(path)),
            None => (rest, None),
        };
        let cluster = parse_cluster(cluster)?;
        let (role, name) = match path {
            None => (Role::Authority, ""),
            Some(path) => match path.split_once('/')? {
                ("server", name) => (Role::Server, name),
                ("client", name) => (Role::Client, name),
                _ => return None,
            },
        };
        if role != Role::Authority && check_name(name).is_err() {
            return None;
        }
        Some(Self { cluster, role, name: name.into() })
    }
}

fn parse_cluster(text: &str) -> Option<[u8; 16]> {
    if text.len() != 32 || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    u128::from_str_radix(text, 16).ok().map(u128::to_be_bytes)
}

/// The rule for names in certificates: they end up in URIs, file names, logs and metric labels.
pub(super) fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name.len() > 64 {
        return Err("it must have 1 to 64 characters");
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'@')) {
        return Err("only letters, digits and - _ . @ are allowed");
    }
    if name.starts_with(['.', '-']) {
        return Err("it must not begin with a dot or a dash");
    }
    Ok(())
}

/// All certificates of a PEM file; there is at least one.
pub(super) fn parse_pem(
    path: &Path,
    content: &[u8],
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let malformed =
        |why: String| TlsError::Malformed { path: path.into(), what: "certificate", why };
    let certs = CertificateDer::pem_slice_iter(content)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| malformed(e.to_string()))?;
    if certs.is_empty() {
        return Err(malformed("there is no BEGIN CERTIFICATE in it".into()));
    }
    Ok(certs)
}

pub(super) fn parse_der<'a>(path: &Path, der: &'a [u8]) -> Result<X509Certificate<'a>, TlsError> {
    X509Certificate::from_der(der).map(|(_, cert)| cert).map_err(|e| TlsError::Malformed {
        path: path.into(),
        what: "certificate",
        why: e.to_string(),
    })
}

/// What a person wants to know about a certificate, a line each.
pub(super) fn describe(cert: &X509Certificate<'_>) -> Vec<String> {
    let mut lines = Vec::new();
    match PeerIdentity::from_certificate(cert) {
        Ok(identity) => {
            let cluster = u128::from_be_bytes(identity.cluster);
            lines.push(format!("role:      {}", identity.role));
            lines.push(format!("cluster:   {cluster:032x}"));
            if !identity.name.is_empty() {
                lines.push(format!("name:      {}", identity.name));
            }
        }
        Err(e) => lines.push(format!("role:      none, {e}")),
    }
    lines.push(format!("subject:   {}", cert.subject()));
    lines.push(format!("issuer:    {}", cert.issuer()));
    lines.push(format!("serial:    {}", cert.raw_serial_as_string()));
    let validity = cert.validity();
    let state = if validity.is_valid() { "" } else { " (NOT VALID NOW)" };
    lines.push(format!("valid:     {} to {}{state}", validity.not_before, validity.not_after));
    if let Ok(Some(usage)) = cert.extended_key_usage() {
        let mut uses = Vec::new();
        if usage.value.server_auth {
            uses.push("server");
        }
        if usage.value.client_auth {
            uses.push("client");
        }
        lines.push(format!("usable as: {}", uses.join(", ")));
    }
    if let Ok(Some(names)) = cert.subject_alternative_name() {
        for name in &names.value.general_names {
            lines.push(match name {
                GeneralName::DNSName(dns) => format!("also:      {dns}"),
                GeneralName::URI(uri) => format!("also:      {uri}"),
                GeneralName::IPAddress(bytes) => format!("also:      {}", ip_text(bytes)),
                other => format!("also:      {other}"),
            });
        }
    }
    lines
}

fn ip_text(bytes: &[u8]) -> String {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return std::net::Ipv4Addr::from(v4).to_string();
    }
    if let Ok(v6) = <[u8; 16]>::try_from(bytes) {
        return std::net::Ipv6Addr::from(v6).to_string();
    }
    format!("an address of {} bytes", bytes.len())
}
