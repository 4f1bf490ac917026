//! Making certificates: the cluster's authority, and what it signs.
//!
//! The authority is a directory with `ca.pem` and `ca-key.pem`. What is issued is a directory too, with
//! `ca.pem`, `cert.pem` and `key.pem`: all that [`Identity::load_dir`](super::Identity::load_dir) needs.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber,
};

use super::cert::{self, PeerIdentity, Role, check_name};
use super::file::{self, Access};
use super::identity::check_dates;
use super::{SERVER_NAME, TlsError};

/// File of the authority's certificate, in the authority's directory and beside what it issued.
pub const CA_FILE: &str = "ca.pem";
/// File of the authority's private key.
pub const CA_KEY_FILE: &str = "ca-key.pem";
/// File of an issued certificate.
pub const CERT_FILE: &str = "cert.pem";
/// File of the private key that belongs to an issued certificate.
pub const KEY_FILE: &str = "key.pem";

/// How long the authority is valid.
pub const CA_VALIDITY_DAYS: u32 = 3653;
/// How long an issued certificate is valid unless asked otherwise.
pub const LEAF_VALIDITY_DAYS: u32 = 825;

/// Clocks of machines differ: a new certificate is valid from this long ago.
const BACKDATED: Duration = Duration::from_secs(24 * 3600);

/// What to issue a certificate for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leaf {
    /// A server, with the DNS names and addresses that clients may verify instead of [`SERVER_NAME`].
    Server {
        /// The server's name in logs.
        name: String,
        /// DNS names and IP addresses; may be empty.
        names: Vec<String>,
    },
    /// A client.
    Client {
        /// The client's name, by which servers know it.
        name: String,
    },
}

/// Choices in issuing a certificate.
#[derive(Debug, Clone)]
pub struct IssueOptions {
    /// Days until it expires.
    pub validity_days: u32,
    /// Whether files in the way are replaced.
    pub overwrite: bool,
}

impl Default for IssueOptions {
    fn default() -> Self {
        Self { validity_days: LEAF_VALIDITY_DAYS, overwrite: false }
    }
}

/// Where an issued certificate is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// Whom it names.
    pub identity: PeerIdentity,
    /// The authority's certificate.
    pub ca: PathBuf,
    /// The certificate.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// Makes a cluster's authority in `dir`, with a random cluster id, and returns that id.
///
/// An authority that is there already is never replaced: everything it signed would be worthless. To
/// begin anew, remove the directory.
pub fn init(dir: &Path, cluster_name: &str) -> Result<[u8; 16], TlsError> {
    check_name(cluster_name).map_err(|why| TlsError::BadName {
        name: cluster_name.into(),
        what: "a cluster's name",
        why,
    })?;
    let (cert_path, key_path) = (dir.join(CA_FILE), dir.join(CA_KEY_FILE));
    file::make_dir(dir)?;
    file::refuse_existing(&[&cert_path, &key_path])?;

    let mut cluster = [0; 16];
    getrandom::fill(&mut cluster).map_err(TlsError::Random)?;
    let identity = PeerIdentity { cluster, role: Role::Authority, name: String::new() };

    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = base_params(&identity, cluster_name, CA_VALIDITY_DAYS)?;
    // No certificate below the authority may sign others.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::OrganizationalUnitName, hex(cluster));
    let cert = params.self_signed(&key)?;

    file::write(&key_path, &key.serialize_pem(), Access::Owner, false)?;
    file::write(&cert_path, &cert.pem(), Access::Everybody, false)?;
    Ok(cluster)
}

/// Issues a certificate with the authority in `dir` and puts it, its key and the authority's certificate
/// into the directory `out`.
pub fn issue(
    dir: &Path,
    leaf: &Leaf,
    out: &Path,
    options: &IssueOptions,
) -> Result<Issued, TlsError> {
    let (ca_path, ca_key_path) = (dir.join(CA_FILE), dir.join(CA_KEY_FILE));
    let ca_pem = file::read(&ca_path)?;
    let ca_certs = cert::parse_pem(&ca_path, &ca_pem)?;
    let ca_der = ca_certs.first().ok_or_else(|| TlsError::NotOurs("no certificate".into()))?;
    let authority = PeerIdentity::from_certificate(&cert::parse_der(&ca_path, ca_der)?)?;
    if authority.role != Role::Authority {
        return Err(TlsError::WrongRole {
            path: ca_path,
            is: authority.role,
            wanted: Role::Authority,
        });
    }
    let malformed_key =
        |why: String| TlsError::Malformed { path: ca_key_path.clone(), what: "private key", why };
    let ca_key_pem = String::from_utf8(file::read_key(&ca_key_path)?)
        .map_err(|e| malformed_key(e.to_string()))?;
    let ca_key = KeyPair::from_pem(&ca_key_pem).map_err(|e| malformed_key(e.to_string()))?;
    let ca_cert = cert::parse_der(&ca_path, ca_der)?;
    if ca_cert.public_key().subject_public_key.data.as_ref() != ca_key.public_key_raw() {
        return Err(TlsError::ForeignKey { key: ca_key_path, cert: ca_path });
    }
    // Nobody would believe what it signs.
    check_dates(&ca_path, &ca_cert)?;
    let issuer = Issuer::from_ca_cert_der(ca_der, ca_key)?;

    let (identity, params) = leaf_params(&authority, leaf, options.validity_days)?;
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let signed = params.signed_by(&key, &issuer)?;

    let issued = Issued {
        identity,
        ca: out.join(CA_FILE),
        cert: out.join(CERT_FILE),
        key: out.join(KEY_FILE),
    };
    file::make_dir(out)?;
    if !options.overwrite {
        file::refuse_existing(&[&issued.key, &issued.cert])?;
    }
    // Several certificates may share a directory's `ca.pem`, as long as it is the same authority.
    let same_ca = file::read(&issued.ca).is_ok_and(|present| present == ca_pem);
    if !same_ca {
        if !options.overwrite {
            file::refuse_existing(&[&issued.ca])?;
        }
        file::write(&issued.ca, &String::from_utf8_lossy(&ca_pem), Access::Everybody, true)?;
    }
    file::write(&issued.key, &key.serialize_pem(), Access::Owner, options.overwrite)?;
    file::write(&issued.cert, &signed.pem(), Access::Everybody, options.overwrite)?;
    Ok(issued)
}

/// Describes the certificates in a PEM file, in lines for a person.
pub fn show(path: &Path) -> Result<Vec<String>, TlsError> {
    let content = file::read(path)?;
    let mut lines = Vec::new();
    for der in cert::parse_pem(path, &content)? {
        lines.extend(cert::describe(&cert::parse_der(path, &der)?));
    }
    Ok(lines)
}

fn leaf_params(
    authority: &PeerIdentity,
    leaf: &Leaf,
    validity_days: u32,
) -> Result<(PeerIdentity, CertificateParams), TlsError> {
    let (role, name, what) = match leaf {
        Leaf::Server { name, .. } => (Role::Server, name, "a server's name"),
        Leaf::Client { name } => (Role::Client, name, "a client's name"),
    };
    check_name(name).map_err(|why| TlsError::BadName { name: name.clone(), what, why })?;
    let identity = PeerIdentity { cluster: authority.cluster, role, name: name.clone() };
    let mut params = base_params(&identity, name, validity_days)?;
    params.use_authority_key_identifier_extension = true;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match leaf {
        // Servers call each other, so theirs serves at both ends.
        Leaf::Server { .. } => {
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
        }
        Leaf::Client { .. } => vec![ExtendedKeyUsagePurpose::ClientAuth],
    };
    if let Leaf::Server { names, .. } = leaf {
        params.subject_alt_names.push(dns_name(SERVER_NAME)?);
        for name in names.iter().filter(|name| *name != SERVER_NAME) {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => dns_name(name)?,
            });
        }
    }
    Ok((identity, params))
}

fn base_params(
    identity: &PeerIdentity,
    common_name: &str,
    validity_days: u32,
) -> Result<CertificateParams, TlsError> {
    if !(1..=CA_VALIDITY_DAYS).contains(&validity_days) {
        return Err(TlsError::BadValidity { days: validity_days, max: CA_VALIDITY_DAYS });
    }
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).map_err(TlsError::Random)?;
    // A serial number is a positive integer.
    serial[0] &= 0x7f;

    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "netfs");
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.subject_alt_names.push(SanType::URI(identity.to_string().try_into()?));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(BACKDATED);
    params.not_after = epoch + now + Duration::from_secs(u64::from(validity_days) * 24 * 3600);
    Ok(params)
}

fn dns_name(name: &str) -> Result<SanType, TlsError> {
    let bad = |why| TlsError::BadName { name: name.into(), what: "a server's DNS name", why };
    rustls::pki_types::DnsName::try_from(name).map_err(|_| bad("it is no DNS name or address"))?;
    Ok(SanType::DnsName(name.try_into()?))
}

fn hex(id: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_that_is_not_valid_now_signs_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (ca, out) = (dir.path().join("ca"), dir.path().join("out"));
        let identity =
            PeerIdentity { cluster: [1; 16], role: Role::Authority, name: String::new() };
        let client = Leaf::Client { name: "c".into() };
        file::make_dir(&ca).unwrap();
        for (from, to, is_valid) in [(2020, 2021, false), (3020, 3021, false), (2020, 3020, true)] {
            let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
            let mut params = base_params(&identity, "x", 1).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.not_before = rcgen::date_time_ymd(from, 1, 1);
            params.not_after = rcgen::date_time_ymd(to, 1, 1);
            let cert = params.self_signed(&key).unwrap();
            file::write(&ca.join(CA_KEY_FILE), &key.serialize_pem(), Access::Owner, true).unwrap();
            file::write(&ca.join(CA_FILE), &cert.pem(), Access::Everybody, true).unwrap();
            match issue(&ca, &client, &out, &IssueOptions::default()) {
                Ok(_) => assert!(is_valid),
                Err(TlsError::OutOfDate { path, .. }) => {
                    assert!(!is_valid && path == ca.join(CA_FILE) && !out.exists());
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
}
