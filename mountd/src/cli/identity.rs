//! Which certificate the client shows.

use std::path::PathBuf;

use netfs_common::tls::Identity;

use super::args::IdentityArgs;
use super::dirs;
use super::error::CliError;
use super::options::MountOptions;

impl IdentityArgs {
    /// These, or what the mount options say instead.
    pub(super) fn or(self, options: &MountOptions) -> IdentityArgs {
        let given = [&self.identity, &self.ca, &self.cert, &self.key].iter().any(|p| p.is_some());
        if given {
            return self;
        }
        IdentityArgs {
            identity: options.identity.clone(),
            ca: options.ca.clone(),
            cert: options.cert.clone(),
            key: options.key.clone(),
        }
    }

    /// Whether nothing is named.
    pub(super) fn is_empty(&self) -> bool {
        [&self.identity, &self.ca, &self.cert, &self.key].iter().all(|p| p.is_none())
    }

    /// Loads and checks the certificate.
    pub(super) fn load(&self) -> Result<Identity, CliError> {
        if let Some(dir) = &self.identity {
            return Ok(Identity::load_dir(dir)?);
        }
        if self.is_empty() {
            let usual = dirs::identity();
            if !usual.exists() {
                return Err(CliError::NoIdentity(usual));
            }
            return Ok(Identity::load_dir(&usual)?);
        }
        let need = |path: &Option<PathBuf>, name| {
            path.clone().ok_or(CliError::PartialIdentity(name))
        };
        let (ca, cert, key) =
            (need(&self.ca, "--ca")?, need(&self.cert, "--cert")?, need(&self.key, "--key")?);
        Ok(Identity::load(&ca, &cert, &key)?)
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
    fn flags_come_before_mount_options() {
        let options = MountOptions { identity: Some("/from/o".into()), ..Default::default() };
        let args = IdentityArgs::default().or(&options);
        assert_eq!(args.identity, Some("/from/o".into()));
        let flag = IdentityArgs { identity: Some("/flag".into()), ..Default::default() };
        assert_eq!(flag.or(&options).identity, Some("/flag".into()));
    }
}
