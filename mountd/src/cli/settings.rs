//! The client's settings: defaults, file, environment, `-o`.

use std::path::PathBuf;

use netfs_common::config::{ClientConfig, Sources};

use super::dirs;
use super::error::CliError;
use super::options::MountOptions;

/// Loads the settings. A file that is named must exist; the usual one need not.
pub(super) fn load(
    file: Option<PathBuf>,
    options: &MountOptions,
) -> Result<ClientConfig, CliError> {
    let usual = Some(dirs::config()).filter(|p| p.exists());
    let mut sources = Sources::new().process_env();
    if let Some(file) = file.or_else(|| options.config.clone()).or(usual) {
        sources = sources.file(file);
    }
    Ok(sources.overrides(options.settings.iter().cloned()).load()?)
}

#[cfg(test)]
mod tests {
    use netfs_common::config::OutagePolicy;

    use super::*;

    fn load_with(options: &str) -> Result<ClientConfig, CliError> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("client.toml");
        std::fs::write(&file, "").unwrap();
        load(Some(file), &MountOptions::parse(&[options.into()]).unwrap())
    }

    #[test]
    fn every_option_is_a_setting_that_exists() {
        let c =
            load_with("soft,timeo=5s,leave=10s,readahead=1M,dirty=16M,net.max_mtu=1452").unwrap();
        assert_eq!(c.mount.on_outage, OutagePolicy::Error);
        assert_eq!(c.mount.outage_timeout_ms, 5000);
        assert_eq!(c.mount.read_ahead_kb, 1024);
        assert_eq!(c.cache.dirty_bytes.0, 16 << 20);
        assert_eq!(c.net.max_mtu, 1452);
    }

    #[test]
    fn a_setting_that_nobody_knows_is_refused() {
        assert!(load_with("net.nonsense=1").is_err());
        assert!(load_with("nonsense.key=1").is_err());
        assert!(load(Some("/no/such/file".into()), &MountOptions::default()).is_err());
    }
}
