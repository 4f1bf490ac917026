//! The longest term that a client of a volume was told and may still count on, in milliseconds, in the file TERM of the volume.
//!
//! A server that is started with a shorter term finds sessions that were told the longer one. They get that to come back.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::volumes::VolumeError;
use crate::private;

const TERM: &str = "TERM";

/// The term that sessions of before may have been told, or that which is told from now on, if that is longer. From here
/// on this one is recorded at least.
pub(super) fn raise(dir: &Path, term: Duration) -> Result<Duration, VolumeError> {
    let path = dir.join(TERM);
    let failed = |source| VolumeError::Io { path: path.clone(), source };
    let told = match fs::read_to_string(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Duration::ZERO,
        Err(e) => return Err(failed(e)),
        Ok(text) => match text.trim().parse() {
            Ok(millis) => Duration::from_millis(millis),
            Err(_) => {
                return Err(failed(io::Error::new(io::ErrorKind::InvalidData, "no number")));
            }
        },
    };
    if told < term {
        record(dir, term)?;
    }
    Ok(told.max(term))
}

/// No client has been told a longer term, or counts on it.
pub(super) fn record(dir: &Path, term: Duration) -> Result<(), VolumeError> {
    let (path, new) = (dir.join(TERM), dir.join(format!("{TERM}.new")));
    let write = || {
        let mut options = private::file_options();
        let mut file = options.create(true).truncate(true).write(true).open(&new)?;
        writeln!(file, "{}", term.as_millis())?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|source| VolumeError::Io { path: path.clone(), source })
}

/// When nobody can count any more on what is longer than it is now, the next start need not wait for it.
pub(super) async fn forget_longer(dir: PathBuf, told: Duration, now: Duration) {
    tokio::time::sleep(told).await;
    match tokio::task::spawn_blocking(move || record(&dir, now)).await {
        Ok(Ok(())) => {}
        // The next start waits longer than it need.
        Ok(Err(error)) => tracing::warn!(%error, "a longer term of before is not forgotten"),
        Err(error) => tracing::error!(%error, "a write has panicked"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_term_is_remembered_until_it_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let secs = Duration::from_secs;
        let raise = |term| raise(dir.path(), secs(term)).unwrap().as_secs();
        assert_eq!([raise(10), raise(30), raise(5), raise(20)], [10, 30, 30, 30]);
        record(dir.path(), secs(5)).unwrap();
        assert_eq!([raise(4), raise(6)], [5, 6]);
        fs::write(dir.path().join(TERM), "soon").unwrap();
        assert!(super::raise(dir.path(), secs(1)).is_err());
    }
}
