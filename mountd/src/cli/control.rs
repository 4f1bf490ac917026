//! The control socket of a mount daemon: how other commands ask it, without touching the mount.
//!
//! A client sends one line and reads to the end:
//!
//! | line | answer |
//! | --- | --- |
//! | `status` | lines for a person |
//! | `pid` | the daemon's process number |
//! | `sync` | `ok` when everything written is stored, else why not, after a while at most |
//! | `waiting` | for whom and what a `sync` waits, for a person |
//! | `abandon` | `ok`; the daemon will end without storing what is buffered |
//! | `leases QUESTION` | who holds leases and who waits, for a person; see [`Question`] |
//! | `why QUESTION` | all that is known of a path, for a person |
//! | `wait` | when the daemon has finished: `ok`, or what was lost |
//!
//! The socket lies in a directory that only its owner can enter: who can connect may ask.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::dirs;
use super::error::CliError;
use super::question::Question;

/// The answer when all is well.
pub(super) const OK: &str = "ok";

/// A daemon that has not answered for so long is looked at: it may be stopped.
const LOOK: Duration = Duration::from_millis(500);

/// The answer to what is no question.
pub(super) const UNKNOWN: &str = "unknown request";

/// Connections served at once; one more is closed.
const MOST_CONNECTIONS: usize = 16;

/// The longest line of a request.
/// It may hold a path twice, with every character escaped.
const LONGEST_LINE: u64 = 32 << 10;

/// A client that sends nothing is closed after so long.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the daemon can be asked.
pub(super) trait Answers: Send + Sync + 'static {
    /// Lines for a person.
    fn status(&self) -> String;
    /// Stores everything that was written; an error in words.
    fn sync(&self) -> Result<(), String>;
    /// Who holds leases on something and who waits, for a person.
    fn leases(&self, question: &Question) -> String;
    /// All that is known of something, for a person.
    fn why(&self, question: &Question) -> String;
    /// For whom and what [`Answers::sync`] waits.
    fn waits_for(&self) -> String;
    /// From now on nothing needs to be stored.
    fn abandon(&self);
}

/// The socket; removed when dropped.
pub(super) struct Control {
    path: PathBuf,
    /// Which socket at the path is this one's.
    own: (u64, u64),
    shared: Arc<Shared>,
}

struct Shared {
    answers: Box<dyn Answers>,
    connections: AtomicUsize,
    /// Clients that wait for the end.
    waiting: Mutex<Vec<UnixStream>>,
}

impl Control {
    /// Listens for questions about the mount at `target`.
    pub(super) fn start(target: &Path, answers: impl Answers) -> Result<Control, CliError> {
        dirs::private(&dirs::runtime(), "runtime directory")?;
        Control::listen(dirs::socket_of(target), answers)
    }

    fn listen(path: PathBuf, answers: impl Answers) -> Result<Control, CliError> {
        let failed =
            |error| CliError::Private { what: "control socket", path: path.clone(), error };
        match fs::remove_file(&path) {
            // The mount point is free, so whoever owned the socket is gone.
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed(e)),
        }
        let listener = UnixListener::bind(&path).map_err(failed)?;
        let own = identity(&path).map_err(failed)?;
        let shared = Arc::new(Shared {
            answers: Box::new(answers),
            connections: AtomicUsize::new(0),
            waiting: Mutex::default(),
        });
        let serving = shared.clone();
        thread::Builder::new()
            .name("netfs-control".into())
            .spawn(move || accept(&listener, &serving))
            .map_err(failed)?;
        Ok(Control { path, own, shared })
    }

    /// Tells everybody who waits how it ended, and takes no more questions.
    pub(super) fn finish(self, outcome: &str) {
        let waiting = std::mem::take(
            &mut *self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner),
        );
        for mut stream in waiting {
            // One who no longer waits need not be told.
            let _ = writeln!(stream, "{outcome}");
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // After a lazy unmount another daemon may listen here by now.
        if identity(&self.path).is_ok_and(|found| found == self.own) {
            // Left behind it is only replaced by the next one.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Tells a socket from another one in its place.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|m| (m.dev(), m.ino()))
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else {
            // Out of descriptors, most likely: others will be closed.
            thread::sleep(Duration::from_millis(100));
            continue;
        };
        if shared.connections.fetch_add(1, Ordering::Relaxed) >= MOST_CONNECTIONS {
            shared.connections.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let serving = shared.clone();
        let spawned = thread::Builder::new().name("netfs-ask".into()).spawn(move || {
            if let Err(e) = serve(stream, &serving) {
                tracing::debug!(error = %e, "a client of the control socket went away");
            }
            serving.connections.fetch_sub(1, Ordering::Relaxed);
        });
        if spawned.is_err() {
            shared.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn serve(mut stream: UnixStream, shared: &Shared) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new((&stream).take(LONGEST_LINE)).read_line(&mut line)?;
    if let Some((verb @ ("leases" | "why"), question)) = line.trim_end().split_once(' ') {
        let Some(question) = Question::parse(question) else {
            return writeln!(stream, "{UNKNOWN}");
        };
        let answer = match verb {
            "leases" => shared.answers.leases(&question),
            _ => shared.answers.why(&question),
        };
        return stream.write_all(answer.as_bytes());
    }
    match line.trim_end() {
        "status" => stream.write_all(shared.answers.status().as_bytes()),
        "pid" => writeln!(stream, "{}", std::process::id()),
        "sync" => match shared.answers.sync() {
            Ok(()) => writeln!(stream, "{OK}"),
            Err(why) => writeln!(stream, "{why}"),
        },
        "waiting" => writeln!(stream, "{}", shared.answers.waits_for()),
        "abandon" => {
            shared.answers.abandon();
            writeln!(stream, "{OK}")
        }
        "wait" => {
            let mut waiting = shared.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.len() < MOST_CONNECTIONS {
                waiting.push(stream);
            }
            Ok(())
        }
        _ => writeln!(stream, "{UNKNOWN}"),
    }
}

/// Asks the daemon behind a socket. `patience` bounds each wait for its answer.
pub(super) fn ask(socket: &Path, line: &str, patience: Option<Duration>) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(patience)?;
    writeln!(stream, "{line}")?;
    read_answer(stream)
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Silence {
    /// The daemon has not answered in time; this is its process, if it is known.
    Late(Option<i32>),
    /// There is no daemon that can be asked.
    Failed(io::Error),
}

/// As [`ask`], for a time in all that cannot be exceeded: if the daemon is stopped, nobody may even take the connection.
pub(super) fn ask_within(socket: &Path, line: &str, limit: Duration) -> Result<String, Silence> {
    enum News {
        Connected(Option<i32>),
        Ended(io::Result<String>),
    }
    let (tx, news) = mpsc::channel();
    let (path, line) = (socket.to_path_buf(), line.to_owned());
    let asking = move || {
        let asked = (|| {
            let mut stream = UnixStream::connect(path)?;
            // Nobody listens when it has taken too long; the same below.
            let _ = tx.send(News::Connected(listener_of(&stream)));
            stream.set_read_timeout(Some(limit))?;
            stream.set_write_timeout(Some(limit))?;
            writeln!(stream, "{line}")?;
            read_answer(stream)
        })();
        let _ = tx.send(News::Ended(asked));
    };
    thread::Builder::new().name("netfs-ask".into()).spawn(asking).map_err(Silence::Failed)?;
    let (begun, mut pid) = (Instant::now(), None);
    loop {
        let left = limit.saturating_sub(begun.elapsed());
        match news.recv_timeout(left.min(LOOK)) {
            Ok(News::Connected(found)) => pid = found,
            Ok(News::Ended(Ok(answer))) => return Ok(answer),
            Ok(News::Ended(Err(e)))
                if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
            {
                return Err(Silence::Late(pid));
            }
            Ok(News::Ended(Err(e))) => return Err(Silence::Failed(e)),
            // Not worth waiting for.
            Err(_) if pid.is_some_and(is_stopped) => return Err(Silence::Late(pid)),
            Err(RecvTimeoutError::Timeout) if left > LOOK => {}
            Err(_) => return Err(Silence::Late(pid)),
        }
    }
}

/// Whether a process was stopped by a signal or a debugger.
pub(super) fn is_stopped(pid: i32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The name, in brackets, may have any character.
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
    state.is_some_and(|rest| rest.starts_with(['T', 't']))
}

/// The process that listens at the other end.
fn listener_of(stream: &UnixStream) -> Option<i32> {
    let mut cred = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = libc::socklen_t::try_from(size_of::<libc::ucred>()).ok()?;
    // SAFETY: the descriptor is open, and both pointers lead to values of ours, of which `len` tells the size.
    let got = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut cred).cast(),
            &raw mut len,
        )
    };
    (got == 0 && cred.pid > 0).then_some(cred.pid)
}

/// The end of a daemon, as long as it has not come.
pub(super) struct Ending(UnixStream);

impl Ending {
    /// Begins to wait for the end of the daemon behind a socket.
    pub(super) fn of(socket: &Path) -> io::Result<Ending> {
        let mut stream = UnixStream::connect(socket)?;
        writeln!(stream, "wait")?;
        Ok(Ending(stream))
    }

    /// What the daemon said at its end: nothing, if it died.
    pub(super) fn outcome(self, patience: Option<Duration>) -> io::Result<String> {
        self.0.set_read_timeout(patience)?;
        read_answer(self.0)
    }
}

fn read_answer(stream: UnixStream) -> io::Result<String> {
    let mut answer = String::new();
    stream.take(1 << 20).read_to_string(&mut answer)?;
    Ok(answer.trim_end().to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[derive(Clone, Default)]
    struct Daemon(Arc<AtomicBool>);

    impl Answers for Daemon {
        fn status(&self) -> String {
            "all is well\n".into()
        }

        fn sync(&self) -> Result<(), String> {
            Err("the disk is full".into())
        }

        fn leases(&self, question: &Question) -> String {
            format!("leases of {question}")
        }

        fn why(&self, question: &Question) -> String {
            format!("why {question}")
        }

        fn waits_for(&self) -> String {
            "the disk to store 5 bytes".into()
        }

        fn abandon(&self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    fn up() -> (tempfile::TempDir, PathBuf, Daemon, Control) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let daemon = Daemon::default();
        let control = Control::listen(path.clone(), daemon.clone()).unwrap();
        (dir, path, daemon, control)
    }

    #[test]
    fn questions_are_answered() {
        let (_dir, path, daemon, _control) = up();
        assert_eq!(ask(&path, "status", None).unwrap(), "all is well");
        assert_eq!(ask(&path, "pid", None).unwrap(), std::process::id().to_string());
        assert_eq!(ask(&path, "sync", None).unwrap(), "the disk is full");
        assert_eq!(ask(&path, "waiting", None).unwrap(), "the disk to store 5 bytes");
        assert_eq!(ask(&path, "what", None).unwrap(), "unknown request");
        assert_eq!(ask(&path, "why /a path:a%20b", None).unwrap(), "why /a path:a%20b");
        assert_eq!(ask(&path, "leases /a inode:5", None).unwrap(), "leases of /a inode:5");
        assert_eq!(ask(&path, "leases nonsense", None).unwrap(), UNKNOWN);
        assert_eq!(ask(&path, "abandon", None).unwrap(), OK);
        assert!(daemon.0.load(Ordering::Relaxed));
    }

    #[test]
    fn who_waits_is_told_the_outcome() {
        let (_dir, path, _daemon, control) = up();
        let ending = Ending::of(&path).unwrap();
        // Once this is answered, the line before it has been read too, or will be by its thread.
        while control.shared.waiting.lock().unwrap().is_empty() {
            thread::sleep(Duration::from_millis(5));
        }
        control.finish(OK);
        assert_eq!(ending.outcome(Some(Duration::from_secs(5))).unwrap(), OK);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_left_behind_is_replaced() {
        let (_dir, path, _daemon, control) = up();
        std::mem::forget(control);
        let _again = Control::listen(path.clone(), Daemon::default()).unwrap();
        assert_eq!(ask(&path, "status", None).unwrap(), "all is well");
    }

    #[test]
    fn a_successor_keeps_its_socket() {
        let (_dir, path, _daemon, control) = up();
        let _again = Control::listen(path.clone(), Daemon::default()).unwrap();
        drop(control);
        assert_eq!(ask(&path, "status", None).unwrap(), "all is well");
    }

    #[test]
    fn a_daemon_that_never_answers_is_waited_for_so_long_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let begun = Instant::now();
        let late = ask_within(&path, "status", Duration::from_millis(100));
        assert!(matches!(late, Err(Silence::Late(Some(pid))) if pid == own), "{late:?}");
        assert!(begun.elapsed() < Duration::from_secs(5));
        drop(listener);
        let gone = ask_within(&path, "status", Duration::from_secs(5));
        let refused = |e: &io::Error| e.kind() == io::ErrorKind::ConnectionRefused;
        assert!(matches!(&gone, Err(Silence::Failed(e)) if refused(e)), "{gone:?}");
    }

    #[test]
    fn nobody_there_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(ask(&dir.path().join("none"), "status", None).is_err());
    }
}
