//! The state directory of `netfs dev`.
//!
//! ```text
//! STATE/netfs-dev     what this directory is, and the version of its layout
//! STATE/lock          held by the running `netfs dev`
//! STATE/address       where its server listens, for `netfs mount` from elsewhere
//! STATE/data-address  where its data server listens
//! STATE/pki/          the authority of this one-machine cluster
//! STATE/identity/     the client's certificate
//! STATE/server/       the server's certificate
//! STATE/data/, STATE/meta/   the servers' own
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use netfs_common::tls::pki::{self, IssueOptions, Leaf};
use netfs_common::tls::{Identity, TlsError};

use super::dirs;

/// The version of the layout. One that this build does not know is never touched.
const VERSION: u32 = 1;

const MARKER: &str = "netfs-dev";

/// Why a state directory cannot be used. Nothing in it has been changed then.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Something else is in there.
    #[error("{path} is not a state directory of `netfs dev` and not empty: choose another with --dir", path = .0.display())]
    Foreign(PathBuf),
    /// It was written by a newer program.
    #[error("{path} has layout version {1}, and this program knows up to {VERSION}: use the newer netfs that wrote it, or another --dir", path = .0.display())]
    Newer(PathBuf, u32),
    /// The marker cannot be understood.
    #[error("{path} is damaged ({1}): restore it from a backup, or begin anew with another --dir", path = .0.display())]
    Corrupt(PathBuf, String),
    /// Another one runs.
    #[error("{path} is in use by another `netfs dev`{1}: stop that one, or choose another --dir", path = .0.display())]
    InUse(PathBuf, String),
    /// The directory cannot be made or read.
    #[error("state directory {path} cannot be used: {1}", path = .0.display())]
    Io(PathBuf, io::Error),
    /// Certificates could not be made or read.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

const ADDRESS: &str = "address";
const DATA_ADDRESS: &str = "data-address";

/// UDP ports, as far as they are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ports {
    pub(super) meta: Option<u16>,
    pub(super) data: Option<u16>,
}

/// A state directory that this process owns.
#[derive(Debug)]
pub(super) struct State {
    dir: PathBuf,
    /// Held as long as it is open.
    _lock: File,
}

impl State {
    /// Opens a state directory, or makes it at first use, with all certificates.
    pub(super) fn open(dir: &Path) -> Result<State, StateError> {
        let failed = |e| StateError::Io(dir.to_path_buf(), e);
        match fs::metadata(dir) {
            Ok(m) if !m.is_dir() => {
                return Err(failed(io::Error::from_raw_os_error(libc::ENOTDIR)));
            }
            Ok(_) => check_marker(dir)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                dirs::make_private(dir).map_err(failed)?
            }
            Err(e) => return Err(failed(e)),
        }
        let lock = lock(dir)?;
        let marker = dir.join(MARKER);
        if !marker.exists() {
            write_durably(&marker, &format!("netfs-dev {VERSION}\n")).map_err(failed)?;
        }
        let state = State { dir: dir.to_path_buf(), _lock: lock };
        state.certify()?;
        Ok(state)
    }

    /// Makes the certificates that are missing or no longer valid.
    fn certify(&self) -> Result<(), StateError> {
        let ca = self.path("pki");
        if !ca.join(pki::CA_FILE).exists() {
            if self.path("meta").exists() {
                // The servers' data names the cluster; a new authority would be another one.
                let text = "pki/ca.pem is missing".to_string();
                return Err(StateError::Corrupt(self.dir.clone(), text));
            }
            // Half made by a first start that was killed: nothing has been signed with it.
            let key = ca.join("ca-key.pem");
            if key.exists() {
                fs::remove_file(&key).map_err(|e| StateError::Io(key, e))?;
            }
            pki::init(&ca, "dev")?;
        }
        let server = Leaf::Server { name: "dev".into(), names: vec!["localhost".into()] };
        let client = Leaf::Client { name: "dev".into() };
        for (leaf, out) in [(server, self.server()), (client, self.identity())] {
            // Also after a new authority was made.
            let same = |a: &Path| fs::read(a).ok() == fs::read(ca.join(pki::CA_FILE)).ok();
            if Identity::load_dir(&out).is_err() || !same(&out.join(pki::CA_FILE)) {
                let options = IssueOptions { overwrite: true, ..IssueOptions::default() };
                pki::issue(&ca, &leaf, &out, &options)?;
            }
        }
        Ok(())
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The client's certificate.
    pub(super) fn identity(&self) -> PathBuf {
        self.path("identity")
    }

    /// The server's certificate.
    pub(super) fn server(&self) -> PathBuf {
        self.path("server")
    }

    /// The ports of last time.
    pub(super) fn addresses(&self) -> Ports {
        let port = |name| {
            let text = fs::read_to_string(self.path(name)).ok()?;
            text.trim().parse::<SocketAddr>().ok().map(|a| a.port())
        };
        Ports { meta: port(ADDRESS), data: port(DATA_ADDRESS) }
    }

    /// Records where the servers listen.
    pub(super) fn set_addresses(
        &self,
        meta: SocketAddr,
        data: SocketAddr,
    ) -> Result<(), StateError> {
        for (name, address) in [(ADDRESS, meta), (DATA_ADDRESS, data)] {
            let path = self.path(name);
            write_durably(&path, &format!("{address}\n")).map_err(|e| StateError::Io(path, e))?;
        }
        Ok(())
    }
}

/// Accepts an empty directory and one of a version that is known.
fn check_marker(dir: &Path) -> Result<(), StateError> {
    let failed = |e| StateError::Io(dir.to_path_buf(), e);
    let text = match fs::read(dir.join(MARKER)) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            // A first start that was killed leaves its lock behind.
            let mut others = fs::read_dir(dir)
                .map_err(failed)?
                .filter_map(Result::ok)
                .filter(|e| e.file_name() != "lock");
            return match others.next() {
                None => Ok(()),
                Some(_) => Err(StateError::Foreign(dir.to_path_buf())),
            };
        }
        Err(e) => return Err(failed(e)),
    };
    let corrupt = || {
        StateError::Corrupt(dir.to_path_buf(), format!("its file {MARKER} cannot be understood"))
    };
    let text = std::str::from_utf8(&text).map_err(|_| corrupt())?;
    let version: u32 =
        text.strip_prefix("netfs-dev ").and_then(|v| v.trim().parse().ok()).ok_or_else(corrupt)?;
    match version {
        VERSION => Ok(()),
        v if v > VERSION => Err(StateError::Newer(dir.to_path_buf(), v)),
        _ => Err(corrupt()),
    }
}

fn lock(dir: &Path) -> Result<File, StateError> {
    let failed = |e| StateError::Io(dir.to_path_buf(), e);
    let path = dir.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // Only to say who it is.
            let _ = file.read_to_string(&mut pid);
            let pid = match pid.trim() {
                "" => String::new(),
                pid => format!(" (process {pid})"),
            };
            return Err(StateError::InUse(dir.to_path_buf(), pid));
        }
        Err(TryLockError::Error(e)) => return Err(failed(e)),
    }
    file.set_len(0).map_err(failed)?;
    write!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(file)
}

/// Replaces a small file so that a crash leaves the old or the new one.
fn write_durably(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    if let Some(dir) = path.parent() {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/state");
        (dir, path)
    }

    #[test]
    fn the_first_start_makes_certificates_and_the_next_one_keeps_them() {
        let (_dir, path) = place();
        let state = State::open(&path).unwrap();
        let cert = fs::read(state.identity().join("cert.pem")).unwrap();
        let cluster = Identity::load_dir(&state.server()).unwrap().peer().cluster;
        let address = |a: &str| a.parse().unwrap();
        state.set_addresses(address("127.0.0.1:1234"), address("127.0.0.1:1235")).unwrap();
        drop(state);
        let state = State::open(&path).unwrap();
        assert_eq!(fs::read(state.identity().join("cert.pem")).unwrap(), cert);
        assert_eq!(Identity::load_dir(&state.server()).unwrap().peer().cluster, cluster);
        assert_eq!(state.addresses(), Ports { meta: Some(1234), data: Some(1235) });
    }

    #[test]
    fn only_one_may_use_it() {
        let (_dir, path) = place();
        let _state = State::open(&path).unwrap();
        let e = State::open(&path).unwrap_err();
        assert!(matches!(e, StateError::InUse(..)));
        assert!(e.to_string().contains(&std::process::id().to_string()), "{e}");
    }

    #[test]
    fn foreign_newer_and_damaged_directories_are_left_alone() {
        let (_dir, path) = place();
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("thesis.tex"), "years of work").unwrap();
        assert!(matches!(State::open(&path), Err(StateError::Foreign(_))));
        assert!(!path.join("pki").exists());
        fs::write(path.join(MARKER), "netfs-dev 99\n").unwrap();
        assert!(matches!(State::open(&path), Err(StateError::Newer(_, 99))));
        for bad in ["", "netfs-dev x", "something else", "netfs-dev 0"] {
            fs::write(path.join(MARKER), bad).unwrap();
            assert!(matches!(State::open(&path), Err(StateError::Corrupt(..))), "{bad}");
        }
        fs::write(path.join(MARKER), b"\xff\xfe").unwrap();
        assert!(matches!(State::open(&path), Err(StateError::Corrupt(..))));
        assert!(!path.join("pki").exists());
    }

    #[test]
    fn a_lost_authority_is_not_replaced_when_there_is_data() {
        let (_dir, path) = place();
        drop(State::open(&path).unwrap());
        fs::create_dir(path.join("meta")).unwrap();
        fs::remove_file(path.join("pki/ca.pem")).unwrap();
        assert!(matches!(State::open(&path), Err(StateError::Corrupt(..))));
    }

    #[test]
    fn a_first_start_that_was_killed_is_taken_up() {
        let (_dir, path) = place();
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("lock"), "1").unwrap();
        let state = State::open(&path).unwrap();
        fs::remove_file(state.identity().join("key.pem")).unwrap();
        fs::remove_file(state.path("pki").join("ca.pem")).unwrap();
        drop(state);
        let state = State::open(&path).unwrap();
        let cluster = |dir: PathBuf| Identity::load_dir(&dir).unwrap().peer().cluster;
        assert_eq!(cluster(state.identity()), cluster(state.server()));
    }
}
