//! The file with the state of the cluster.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use netfs_common::codec::CodecError;

use crate::meta::cluster::{State, StateError};
use crate::private;

/// Its name in the directory of the volumes.
const CLUSTER: &str = "cluster";

/// Why there is no state, or it cannot be stored.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// What is in the file.
    #[error("{}: {source}; it says which data server has what, and must be brought back from a copy", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: StateError,
    },
    /// What is to be in it.
    #[error("the cluster map cannot be encoded: {0}")]
    Codec(#[from] CodecError),
}

/// What a directory of volumes keeps of its cluster; `None`: nothing.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn kept_state(dir: &Path) -> Result<Option<State>, FileError> {
    StateFile::of(dir).read()
}

/// The file. It is replaced as a whole.
#[derive(Debug)]
pub(super) struct StateFile {
    dir: PathBuf,
}

impl StateFile {
    pub(super) fn of(dir: &Path) -> StateFile {
        StateFile { dir: dir.to_owned() }
    }

    fn io(&self) -> impl Fn(io::Error) -> FileError + '_ {
        |source| FileError::Io { path: self.dir.join(CLUSTER), source }
    }

    /// What is kept; `None`: nothing has been yet.
    pub(super) fn read(&self) -> Result<Option<State>, FileError> {
        let path = self.dir.join(CLUSTER);
        match fs::read(&path) {
            Ok(bytes) => match State::decode(&bytes) {
                Ok(state) => Ok(Some(state)),
                Err(source) => Err(FileError::Unreadable { path, source }),
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.io()(e)),
        }
    }

    /// Keeps a state in place of the one before. On stable storage when it returns.
    pub(super) fn write(&self, state: &State) -> Result<(), FileError> {
        let bytes = state.encode()?;
        let (path, new) = (self.dir.join(CLUSTER), self.dir.join(format!("{CLUSTER}.new")));
        let write = || {
            let mut options = private::file_options();
            let mut file = options.create(true).truncate(true).write(true).open(&new)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(self.io())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_survives_a_restart_and_damage_is_never_taken_for_a_new_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::of(dir.path());
        assert_eq!(file.read().unwrap(), None);
        let mut state = State::default();
        state.add_server(vec!["h:1".into()]);
        state.add_pool(0, 8, 3, 1);
        file.write(&state).unwrap();
        assert_eq!(file.read().unwrap(), Some(state.clone()));
        state.add_server(vec!["h:2".into()]);
        file.write(&state).unwrap();
        assert_eq!(StateFile::of(dir.path()).read().unwrap(), Some(state));
        let path = dir.path().join(CLUSTER);
        let good = fs::read(&path).unwrap();
        for bad in [&good[..good.len() - 1], &good[..0], b"something else"] {
            fs::write(&path, bad).unwrap();
            let error = file.read().unwrap_err().to_string();
            assert!(error.contains("brought back from a copy"), "{error}");
        }
        // One that could not be written leaves the one before.
        fs::write(&path, &good).unwrap();
        let nowhere = StateFile::of(&dir.path().join("missing"));
        assert!(nowhere.write(&State::default()).is_err());
        assert!(file.read().unwrap().is_some());
    }
}
