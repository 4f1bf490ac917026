//! Giving up what was accepted, with the session.

use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use tracing::error;

use super::{Writeback, give_up};
use crate::cache::State;

/// So many files are named in the log, one line each; the rest is counted.
const MAX_NAMED: usize = 256;

impl Writeback {
    /// Notes the paths of files with anything at stake, while the cache of names knows them.
    pub fn note_paths(&self) {
        let all = self.cache.table.all();
        let unnamed =
            |s: &State| s.has_unsent() && s.file.as_ref().is_some_and(|f| f.path.is_none());
        let inos: Vec<Ino> = all.iter().filter(|n| unnamed(&n.state())).map(|n| n.ino).collect();
        let mut paths = self.cache.paths(&inos);
        for node in all {
            if let Some(path) = paths.remove(&node.ino)
                && let Some(file) = &mut node.state().file
            {
                file.path = Some(path.into());
            }
        }
    }

    /// The session has ended: everything that the metadata server was not told of is lost, and what data servers may
    /// not have stored must not be sent again. Every open file is told so once.
    pub fn lose(&self) {
        let mut lost = 0;
        for node in self.cache.table.all() {
            let path = self.edit(&node, |state| {
                if !state.has_unsent() {
                    return None;
                }
                let path = state.file.as_mut().and_then(|f| f.path.take());
                give_up(state);
                state.failed.add(Errno::EIO);
                Some(path)
            });
            let Some(path) = path else { continue };
            node.gates().progress.notify_waiters();
            lost += 1;
            if lost <= MAX_NAMED {
                let path = path.as_deref().unwrap_or("(its name is not known)");
                error!(ino = %node.ino, path, "data that was accepted is lost with the session");
            }
        }
        if lost > MAX_NAMED {
            error!(
                files = lost,
                "that many files have lost data with the session; the others are not named"
            );
        }
    }
}
