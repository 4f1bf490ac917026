//! The session of a daemon that died.
//!
//! A server keeps the session of a client that vanished for its whole term, because it may come back;
//! until then others who want what it had wait. But who mounts where a daemon died knows that it
//! will not. So each daemon notes its session in a file that it holds locked: if the lock can be
//! had, its owner is dead, and its session can be ended.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use netfs_common::id::{InstanceId, OpSeq, SessionId};
use netfs_common::wire::meta::{BURIAL, Mutation, Op, Push, PushReply, Request};
use netfs_common::wire::{Claim, Hello, PROTOCOL, Role};
use tokio::sync::mpsc;

use super::dirs;
use super::error::CliError;
use crate::session::Dialer;

/// How long the daemon that was here before may take to end: `umount` returns before it has.
const LAST_BREATH: Duration = Duration::from_secs(3);
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// The note of this daemon's session.
#[derive(Debug)]
pub(super) struct Note {
    path: PathBuf,
    file: Mutex<File>,
    volume: String,
    /// The session of the daemon that was here before and died.
    dead: Option<SessionId>,
}

impl Note {
    /// Takes the note of a mount point; waits a little for a daemon that is ending. `None` while a daemon that was detached from it still lives:
    /// then there is no note, and nothing is taken for dead.
    pub(super) fn take(target: &Path, volume: &str) -> Result<Option<Note>, CliError> {
        dirs::private(&dirs::runtime(), "runtime directory")?;
        let path = dirs::socket_of(target).with_extension("session");
        Note::open(&path, volume, LAST_BREATH).map_err(|error| CliError::Private {
            what: "session note",
            path,
            error,
        })
    }

    fn open(path: &Path, volume: &str, patience: Duration) -> io::Result<Option<Note>> {
        let until = Instant::now() + patience;
        let mut file = loop {
            let mut options = OpenOptions::new();
            let file = options
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) if Instant::now() < until => {
                    thread::sleep(LOCK_PAUSE);
                    continue;
                }
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(e)) => return Err(e),
            }
            // Its last owner may have removed it between opening and locking.
            if fs::metadata(path).is_ok_and(|m| file.metadata().is_ok_and(|f| f.ino() == m.ino())) {
                break file;
            }
        };
        let mut text = String::new();
        // What cannot be understood names no session.
        let dead = match file.read_to_string(&mut text) {
            Ok(_) => parse(&text, volume),
            Err(_) => None,
        };
        let (path, volume) = (path.to_path_buf(), volume.to_string());
        Ok(Some(Note { path, file: Mutex::new(file), volume, dead }))
    }

    /// Ends the session of the daemon that died here. Without success others wait for its term.
    pub(super) async fn bury(&self, dialer: &dyn Dialer) {
        let Some(session) = self.dead else { return };
        match end(dialer, &self.volume, session).await {
            Ok(()) => tracing::info!(%session, "ended the session of the daemon that died here"),
            Err(why) => tracing::info!(%session, why, "the session of a dead daemon stays"),
        }
    }

    /// Notes the session of this daemon.
    pub(super) fn write(&self, session: SessionId) -> io::Result<()> {
        let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{:x} {}", session.0, self.volume)
    }

    /// The session has ended in order.
    pub(super) fn clear(&self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}

/// The session in a note, if it is one of the volume.
fn parse(text: &str, volume: &str) -> Option<SessionId> {
    let (id, of) = text.strip_suffix('\n')?.split_once(' ')?;
    let id = u64::from_str_radix(id, 16).ok()?;
    (of == volume).then_some(SessionId(id))
}

async fn end(dialer: &dyn Dialer, volume: &str, session: SessionId) -> Result<(), String> {
    let hello = Hello {
        protocol: (PROTOCOL, PROTOCOL),
        features: 0,
        role: Role::Meta,
        volume: volume.to_string(),
        session,
        claim: Claim::Resume,
        instance: InstanceId(0),
        client: "the end of a dead daemon's session".into(),
    };
    let (pushes, mut told) = mpsc::channel(1);
    let (_, link) = dialer.meta(hello, pushes).await.map_err(|e| e.to_string())?;
    let mutation = Mutation {
        seq: BURIAL,
        answered: OpSeq(BURIAL.0 - 1),
        time: SystemTime::now().into(),
        sync: false,
        op: Op::EndSession,
    };
    // What the server says meanwhile concerns nobody; what it wants back is given up with the session.
    let hear = async {
        let mut unanswered = Vec::new();
        while let Some(call) = told.recv().await {
            match call.push {
                Push::Company { .. } | Push::Map(_) | Push::Orphans(_) => {
                    // A server that has gone meanwhile no longer waits for it.
                    let _ = call.answer.send(PushReply::Done);
                }
                Push::Recall(_) => unanswered.push(call),
            }
        }
        std::future::pending().await
    };
    let call = link.call(Request::Mutate(mutation));
    let reply = tokio::select! { reply = call => reply, reply = hear => reply };
    link.close();
    match reply {
        Ok(answer) => answer.reply.map(drop).map_err(|e| e.to_string()),
        Err(e) => Err(e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_session_of_a_dead_owner_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("note");
        let note = Note::open(&path, "vol", Duration::ZERO).unwrap().unwrap();
        assert_eq!(note.dead, None);
        note.write(SessionId(0xabc)).unwrap();
        assert!(Note::open(&path, "vol", Duration::ZERO).unwrap().is_none(), "its owner lives");
        drop(note);
        assert_eq!(Note::open(&path, "other", Duration::ZERO).unwrap().unwrap().dead, None);
        assert_eq!(
            Note::open(&path, "vol", Duration::ZERO).unwrap().unwrap().dead,
            Some(SessionId(0xabc))
        );
    }

    #[test]
    fn an_owner_that_is_ending_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("note");
        let note = Note::open(&path, "vol", Duration::ZERO).unwrap().unwrap();
        note.write(SessionId(6)).unwrap();
        let ending = thread::spawn(move || {
            thread::sleep(5 * LOCK_PAUSE);
            drop(note);
        });
        let next = Note::open(&path, "vol", Duration::from_secs(60)).unwrap().unwrap();
        assert_eq!(next.dead, Some(SessionId(6)));
        ending.join().unwrap();
    }

    #[test]
    fn an_orderly_end_leaves_nothing_to_bury() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("note");
        let note = Note::open(&path, "vol", Duration::ZERO).unwrap().unwrap();
        note.write(SessionId(5)).unwrap();
        note.clear().unwrap();
        drop(note);
        assert_eq!(Note::open(&path, "vol", Duration::ZERO).unwrap().unwrap().dead, None);
    }

    #[test]
    fn garbage_names_no_session() {
        for text in ["", "\n", "5", "5 vol", "x vol\n", "5  vol\n"] {
            assert_eq!(parse(text, "vol"), None, "{text:?}");
        }
        assert_eq!(parse("5 vol\n", "vol"), Some(SessionId(5)));
    }
}
