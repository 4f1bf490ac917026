//! Which certificate the client shows.

use netfs_common::config::TlsConfig;
use netfs_common::tls::Identity;
use netfs_common::tls::pki::{CA_FILE, CERT_FILE, KEY_FILE};

use super::args::IdentityArgs;
use super::dirs;
use super::error::CliError;
use super::options::MountOptions;

impl IdentityArgs {
    /// These, or what the mount options say instead.
    pub(super) fn or(self, options: &MountOptions) -> IdentityArgs {
        if !self.is_empty() {
            return self;
        }
        IdentityArgs {
            identity: options.identity.clone(),
            ca: options.ca.clone(),
            cert: options.cert.clone(),
            key: options.key.clone(),
        }
    }

    fn is_empty(&self) -> bool {
        [&self.identity, &self.ca, &self.cert, &self.key].iter().all(|p| p.is_none())
    }

    /// Where the certificate is, by these, else by the configuration, else in the usual place.
    pub(super) fn locate(&self, configured: &TlsConfig) -> Result<TlsConfig, CliError> {
        if !self.is_empty() && self.identity.is_none() {
            for (path, name) in [(&self.ca, "--ca"), (&self.cert, "--cert"), (&self.key, "--key")] {
                if path.is_none() {
                    return Err(CliError::PartialIdentity(name));
                }
            }
        }
        if let (Some(ca), Some(cert), Some(key)) = (&self.ca, &self.cert, &self.key) {
            return Ok(TlsConfig { ca: ca.clone(), cert: cert.clone(), key: key.clone() });
        }
        let by_default = TlsConfig::default();
        let usual = dirs::identity();
        let dir = match &self.identity {
            Some(dir) => dir,
            None if configured.cert != by_default.cert || configured.key != by_default.key => {
                return Ok(configured.clone());
            }
            None if !usual.join(CERT_FILE).exists() => return Err(CliError::NoIdentity(usual)),
            None => &usual,
        };
        Ok(TlsConfig { ca: dir.join(CA_FILE), cert: dir.join(CERT_FILE), key: dir.join(KEY_FILE) })
    }

    /// Loads and checks the certificate.
    pub(super) fn load(&self) -> Result<Identity, CliError> {
        Ok(self.locate(&TlsConfig::default())?.load()?)
    }
}

#[cfg(test)]
mod tests {
    use netfs_common::tls::pki::{self, IssueOptions, Leaf};

    use super::*;

    #[test]
    fn a_directory_or_three_files() {
        let dir = tempfile::tempdir().unwrap();
        let (ca, me) = (dir.path().join("ca"), dir.path().join("me"));
        pki::init(&ca, "test").unwrap();
        let leaf = Leaf::Client { name: "me".into() };
        pki::issue(&ca, &leaf, &me, &IssueOptions::default()).unwrap();
        let whole = IdentityArgs { identity: Some(me.clone()), ..Default::default() };
        assert_eq!(whole.load().unwrap().peer().name, "me");
        let parts = IdentityArgs {
            identity: None,
            ca: Some(me.join("ca.pem")),
            cert: Some(me.join("cert.pem")),
            key: None,
        };
        assert!(matches!(parts.load(), Err(CliError::PartialIdentity("--key"))));
        let parts = IdentityArgs { key: Some(me.join("key.pem")), ..parts };
        assert_eq!(parts.load().unwrap().peer().name, "me");
    }

    #[test]
    fn flags_come_before_mount_options_and_those_before_the_configuration() {
        let options = MountOptions { identity: Some("/from/o".into()), ..Default::default() };
        let by_options = IdentityArgs::default().or(&options);
        assert_eq!(by_options.identity, Some("/from/o".into()));
        let flag = IdentityArgs { identity: Some("/flag".into()), ..Default::default() };
        let configured = TlsConfig { cert: "/configured".into(), ..Default::default() };
        let located = flag.or(&options).locate(&configured).unwrap();
        assert_eq!(located.cert, std::path::Path::new("/flag/cert.pem"));
        let located = IdentityArgs::default().locate(&configured).unwrap();
        assert_eq!(located.cert, configured.cert);
    }
}
