//! Where the program keeps things of its own.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::error::CliError;
use crate::fuse::mountinfo::file_name_of;

/// Whether this is root.
pub(super) fn is_root() -> bool {
    user() == 0
}

/// The user whose rights count.
pub(super) fn user() -> u32 {
    // SAFETY: the call has no arguments and cannot fail.
    unsafe { libc::geteuid() }
}

fn from_env(name: &str) -> Option<PathBuf> {
    // A relative path would mean another place in another directory.
    std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute())
}

fn home() -> PathBuf {
    from_env("HOME").unwrap_or_else(|| PathBuf::from("/"))
}

/// The usual place of the client's certificate.
pub(super) fn identity() -> PathBuf {
    if is_root() {
        return "/etc/netfs/tls".into();
    }
    from_env("XDG_CONFIG_HOME").unwrap_or_else(|| home().join(".config")).join("netfs/tls")
}

/// The usual place of the client's settings.
pub(super) fn config() -> PathBuf {
    if is_root() {
        return "/etc/netfs/client.toml".into();
    }
    from_env("XDG_CONFIG_HOME").unwrap_or_else(|| home().join(".config")).join("netfs/client.toml")
}

/// The usual place of the state of `netfs dev`.
pub(super) fn dev_state() -> PathBuf {
    if is_root() {
        return "/var/lib/netfs/dev".into();
    }
    from_env("XDG_DATA_HOME").unwrap_or_else(|| home().join(".local/share")).join("netfs/dev")
}

/// The log of a daemon in the background.
pub(super) fn log_of(target: &Path) -> PathBuf {
    let dir = if is_root() {
        PathBuf::from("/var/log/netfs")
    } else {
        from_env("XDG_STATE_HOME").unwrap_or_else(|| home().join(".local/state")).join("netfs/log")
    };
    let mut name = file_name_of(target);
    name.push(".log");
    dir.join(name)
}

/// Where the control sockets are.
pub(super) fn runtime() -> PathBuf {
    if is_root() {
        return "/run/netfs".into();
    }
    from_env("XDG_RUNTIME_DIR")
        .map(|d| d.join("netfs"))
        .unwrap_or_else(|| std::env::temp_dir().join(format!("netfs-{}", user())))
}

/// The control socket of a mount.
pub(super) fn socket_of(target: &Path) -> PathBuf {
    let mut name = file_name_of(target);
    // The path of a socket has 107 bytes at most. A long name is cut; its hash keeps it apart.
    const LONGEST: usize = 48;
    if name.len() > LONGEST {
        let hash = fnv(name.as_encoded_bytes());
        let text = name.to_string_lossy();
        let cut: String = text.chars().filter(char::is_ascii).take(24).collect();
        name = format!("{cut}-{hash:016x}").into();
    }
    name.push(".sock");
    runtime().join(name)
}

/// FNV-1a: the same on every build, which the hashes of the standard library do not promise.
fn fnv(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3))
}

/// Makes a directory, and those above it that are missing, for its owner only.
pub(super) fn make_private(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Makes a directory that only its owner can enter, or checks that an existing one is such.
pub(super) fn private(path: &Path, what: &'static str) -> Result<(), CliError> {
    let failed = |error| CliError::Private { what, path: path.to_path_buf(), error };
    make_private(path).map_err(failed)?;
    let meta = fs::symlink_metadata(path).map_err(failed)?;
    if !meta.is_dir() || meta.uid() != user() {
        let text = "it is not a directory of this user";
        return Err(failed(io::Error::new(io::ErrorKind::PermissionDenied, text)));
    }
    if meta.permissions().mode() & 0o022 != 0 {
        let text = "others may write to it; run: chmod go-w";
        return Err(failed(io::Error::new(io::ErrorKind::PermissionDenied, text)));
    }
    Ok(())
}

/// All control sockets of this user.
pub(super) fn sockets() -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(runtime()) else { return Vec::new() };
    let mut all: Vec<PathBuf> = entries
        .filter_map(|e| e.ok().map(|e| e.path()))
        .filter(|p| p.extension() == Some(OsStr::new("sock")))
        .collect();
    all.sort();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_fit_into_an_address_and_stay_apart() {
        let long = |c: &str| PathBuf::from(format!("/{}", c.repeat(300)));
        let (a, b) = (socket_of(&long("a")), socket_of(&long("b")));
        assert!(a.as_os_str().len() < 100, "{a:?}");
        assert_ne!(a, b);
        let twins = (format!("/{}x", "m".repeat(90)), format!("/{}y", "m".repeat(90)));
        assert_ne!(socket_of(Path::new(&twins.0)), socket_of(Path::new(&twins.1)));
    }

    #[test]
    fn a_directory_that_others_can_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        private(&path, "runtime directory").unwrap();
        private(&path, "runtime directory").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(private(&path, "runtime directory").is_err());
    }

    #[test]
    fn a_file_in_the_way_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        fs::write(&path, "").unwrap();
        assert!(private(&path, "runtime directory").is_err());
    }
}
