//! What was found out, in words.

use std::fmt::Write as _;
use std::time::Duration;

use netfs_common::attr::{Attr, FileKind};
use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::locks::{LockKind, LockMode};
use netfs_common::wire::insight::{Client, FileLock, Inspection, VolumeLeases, Wish};
use netfs_common::wire::lease::Lease;

use super::{Operation, Wait};

/// A client that has not been heard of for so long, and does not give back what it is asked for, is not well.
const SILENT: Duration = Duration::from_secs(5);

/// Why something could not be found out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// No connection.
    #[error("there is no connection to the metadata server")]
    Disconnected,
    /// No answer.
    #[error("the metadata server has not answered within {}", time(*.0))]
    Late(Duration),
    /// An error as the answer.
    #[error("the metadata server answers {0}")]
    Refused(Errno),
    /// There is no such name.
    #[error("there is no {0:?}")]
    Absent(String),
    /// A name below a file.
    #[error("{0:?} is not a directory")]
    NotADirectory(String),
    /// A link that leads out of the volume.
    #[error("{0:?} is a symbolic link to {1:?}, which is not on this mount: ask about that")]
    Elsewhere(String, String),
    /// Links to links.
    #[error("too many symbolic links")]
    Links,
}

/// What this client knows of an inode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Here {
    /// The attributes as programs see them, as far as known.
    pub attr: Option<Attr>,
    /// The lease on it.
    pub lease: Option<Lease>,
    /// The attributes are served without asking.
    pub kept: bool,
    /// The write lease is being given back.
    pub giving: bool,
    /// Bytes that programs have written and that are not on their way.
    pub dirty: u64,
    /// Bytes on their way to data servers.
    pub flying: u64,
    /// Bytes that data servers have and that may not be durable there.
    pub unflushed: u64,
    /// The metadata server is to be told of something.
    pub unreported: bool,
    /// Writes in the background that have failed.
    pub failures: u64,
    /// The last of their errors.
    pub failed: Option<Errno>,
}

/// The way to the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    /// It is there.
    pub connected: bool,
    /// Since the server's last answer.
    pub silent: Duration,
    /// For how long leases may still be relied upon.
    pub left: Duration,
    /// How long a session lives without a sign of life.
    pub term: Duration,
    /// Bytes that no server has yet, with what they cost in memory.
    pub unsent_bytes: u64,
    /// In so many files.
    pub unsent_files: usize,
}

/// What was found out about an inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Findings {
    /// What was asked for.
    pub path: String,
    /// What it is.
    pub target: Result<Ino, Lost>,
    /// What is known here.
    pub here: Here,
    /// What the server says.
    pub server: Result<Inspection, Lost>,
    /// The way to it.
    pub connection: Connection,
    /// Operations under way, the oldest first: those on the inode, or all if it is not known.
    pub present: Vec<Operation>,
    /// Operations that have ended, the latest first.
    pub past: Vec<Operation>,
}

fn time(t: Duration) -> String {
    match t {
        t if t >= Duration::from_secs(1) => format!("{:.1} s", t.as_secs_f64()),
        t if t >= Duration::from_millis(1) => format!("{:.1} ms", t.as_secs_f64() * 1e3),
        t => format!("{} us", t.as_micros()),
    }
}

fn ms(n: u64) -> String {
    time(Duration::from_millis(n))
}

fn lease(lease: Lease) -> &'static str {
    match lease {
        Lease::Read => "read lease",
        Lease::Write => "write lease",
    }
}

fn wish(wish: Wish) -> &'static str {
    match wish {
        Wish::Look => "look at it",
        Wish::Change => "change its attributes or names",
        Wish::Take => "write to it",
    }
}

fn kind(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "a file",
        FileKind::Dir => "a directory",
        FileKind::Symlink => "a symbolic link",
        FileKind::Fifo => "a pipe",
        FileKind::Socket => "a socket",
        FileKind::Char | FileKind::Block => "a device",
    }
}

fn wait(wait: Wait) -> &'static str {
    match wait {
        Wait::Lease => "the write lease",
        Wait::Meta => "the metadata server",
        Wait::Connection => "a connection to the metadata server",
        Wait::Data => "data servers",
        Wait::Room => "room in the buffers",
        Wait::Kernel => "the kernel to drop pages",
        Wait::Turn => "other operations here",
    }
}

fn client(all: &[Client], at: u32) -> &str {
    match all.get(at as usize) {
        Some(c) if c.you => "this client",
        Some(c) if !c.description.is_empty() => &c.description,
        _ => "a client that has gone",
    }
}

fn names(all: &[Client], at: &[u32]) -> String {
    let names: Vec<_> = at.iter().map(|at| client(all, *at)).collect();
    if names.is_empty() { "nobody".into() } else { names.join(", ") }
}

/// How a client is, for others.
fn condition(c: &Client) -> String {
    let how = if c.connected { "connected" } else { "not connected" };
    format!("{how}, last heard of {} ago", ms(c.silent_ms))
}

/// A process, as long as it is there.
fn process(pid: u32) -> String {
    if pid == 0 {
        return String::new();
    }
    match std::fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!(" by process {pid} ({})", name.trim()),
        Err(_) => format!(" by process {pid}"),
    }
}

fn operation(o: &Operation) -> String {
    let name = o.what.name.as_ref().map_or(String::new(), |n| {
        format!(" \"{}\"", String::from_utf8_lossy(n.as_bytes()).escape_debug())
    });
    format!("{}{name} of inode {}{}", o.what.op, o.what.ino.0, process(o.what.pid))
}

/// Where its time went.
fn parts(o: &Operation) -> String {
    let mut parts: Vec<String> = Wait::ALL
        .iter()
        .zip(o.waited)
        // What is less than a hundredth explains nothing.
        .filter(|(_, t)| *t >= Duration::from_micros(1) && *t >= o.took / 100)
        .map(|(w, t)| format!("{} for {}", time(t), wait(*w)))
        .collect();
    let waited: Duration = o.waited.iter().sum();
    let rest = o.took.saturating_sub(waited + o.waits.map_or(Duration::ZERO, |(_, t)| t));
    if !parts.is_empty() {
        parts.push(format!("{} here", time(rest)));
    }
    parts.join(", ")
}

// Writing to a string cannot fail, here and below.

fn show_connection(text: &mut String, c: &Connection) {
    let how = if c.connected { "connected" } else { "not connected, trying again" };
    let _ = write!(text, "  server:     {how}; last answer {} ago", time(c.silent));
    let _ = match c.left {
        Duration::ZERO => {
            writeln!(text, "; leases cannot be relied upon, so that everything asks the server")
        }
        left => writeln!(text, "; leases are good for {} more", time(left)),
    };
    let _ = writeln!(
        text,
        "  unsent:     {} bytes in {} files of this mount",
        c.unsent_bytes, c.unsent_files
    );
}

fn show_leases(text: &mut String, i: &Inspection) {
    let all = &i.clients;
    if i.grace {
        let _ = writeln!(
            text,
            "  leases:     the server was restarted and waits for the clients of before"
        );
    }
    if i.holders.is_empty() {
        let _ = writeln!(text, "  holds:      nobody holds a lease");
    }
    for h in &i.holders {
        let _ = write!(text, "  holds:      {}: {}", client(all, h.client), lease(h.lease));
        let _ = match all.get(h.client as usize).filter(|c| !c.you) {
            Some(c) => writeln!(text, " ({})", condition(c)),
            None => writeln!(text),
        };
    }
    for r in &i.recalls {
        let what = match r.keep {
            None => "give back all of it".to_string(),
            Some(Lease::Read) => {
                "send what it has written, or drop what changes, and keep a read lease".into()
            }
            Some(Lease::Write) => "drop what changes".into(),
        };
        let since =
            r.age_ms.map_or("about to be asked".into(), |ms_| format!("asked {} ago", ms(ms_)));
        let _ = writeln!(
            text,
            "  recalled:   {} is {since} to {what}, and has not answered",
            client(all, r.client)
        );
    }
    for w in &i.waiting {
        let _ = writeln!(
            text,
            "  waits:      {} waits {} to {}, for {}",
            client(all, w.client),
            ms(w.waits_ms),
            wish(w.wish),
            names(all, &w.on)
        );
    }
    if i.waiting.is_empty() {
        let _ = writeln!(text, "  waits:      nobody waits");
    }
    for l in &i.locks {
        let _ = writeln!(text, "  locked:     {}", file_lock(all, l));
    }
    for l in &i.lock_queue {
        let _ = writeln!(text, "  wants lock: {}", file_lock(all, l));
    }
    if i.left_out > 0 {
        let _ = writeln!(text, "  (and {} more)", i.left_out);
    }
}

fn file_lock(all: &[Client], l: &FileLock) -> String {
    let mode = match l.mode {
        LockMode::Read => "read",
        LockMode::Write => "write",
    };
    let kind = match l.kind {
        LockKind::Posix => "fcntl",
        LockKind::Ofd => "open-file-description",
        LockKind::Flock => "flock",
    };
    let bytes = match (l.range.start, l.range.end) {
        _ if l.kind == LockKind::Flock => String::new(),
        // The kernel's "to the end" is the largest offset.
        (0, end) if end >= i64::MAX as u64 => String::new(),
        (start, end) if end >= i64::MAX as u64 => format!(" on bytes from {start} on"),
        (start, end) => format!(" on bytes {start} to {end}"),
    };
    let name = client(all, l.client);
    format!("{name}: {kind} {mode} lock{bytes}, process {} there", l.pid)
}

/// Who has a file lock that a request of this client waits for.
fn show_lock_in_the_way(text: &mut String, i: &Inspection) {
    let you = |l: &FileLock| i.clients.get(l.client as usize).is_some_and(|c| c.you);
    for wanted in i.lock_queue.iter().filter(|l| you(l)) {
        let flock = |l: &FileLock| l.kind == LockKind::Flock;
        let meets = |l: &&FileLock| {
            flock(l) == flock(wanted) && l.range.meets(wanted.range) && wanted.mode.excludes(l.mode)
        };
        // Not the process itself, which may have a lock that it wants to change.
        let own = |l: &FileLock| l.client == wanted.client && l.pid == wanted.pid;
        if let Some(held) = i.locks.iter().filter(meets).find(|l| !own(l)) {
            let by = client(&i.clients, held.client);
            let _ = writeln!(
                text,
                "  why:        process {} waits for a lock that process {} of {by} has",
                wanted.pid, held.pid
            );
        }
    }
}

/// What is wrong, if that can be told.
fn show_verdict(text: &mut String, f: &Findings) {
    if !f.connection.connected {
        let _ = writeln!(
            text,
            "  why:        the metadata server cannot be reached; everything that needs it waits"
        );
        return;
    }
    let Ok(i) = &f.server else { return };
    show_lock_in_the_way(text, i);
    for r in &i.recalls {
        let Some(c) = i.clients.get(r.client as usize) else { continue };
        let (silent, age) =
            (Duration::from_millis(c.silent_ms), Duration::from_millis(r.age_ms.unwrap_or(0)));
        let name = client(&i.clients, r.client);
        if silent >= SILENT && age >= SILENT {
            let left = time(f.connection.term.saturating_sub(silent));
            let _ = writeln!(
                text,
                "  why:        {name} does not answer: it is stopped, or cut off; if it stays silent, it loses its leases in about {left}"
            );
        } else if age >= SILENT {
            let _ = writeln!(
                text,
                "  why:        {name} is alive and takes long to give back: ask there with `netfs why`"
            );
        } else if !i.waiting.is_empty() {
            let _ = writeln!(text, "  why:        {name} has been asked to give back, and does");
        }
    }
}

fn show_here(text: &mut String, h: &Here) {
    let held = match (h.lease, h.giving) {
        (Some(l), true) => format!("{}, which is being given back", lease(l)),
        (Some(l), false) => lease(l).into(),
        (None, _) => "no lease".to_string(),
    };
    let kept = if h.kept { "attributes are kept" } else { "attributes are asked for each time" };
    let _ = writeln!(text, "  here:       {held}; {kept}");
    if h.dirty + h.flying + h.unflushed > 0 || h.unreported {
        let _ = write!(
            text,
            "  buffered:   {} bytes not sent, {} on their way, {} not known to be on disk",
            h.dirty, h.flying, h.unflushed
        );
        let _ = match h.unreported {
            true => writeln!(text, "; length and times not reported"),
            false => writeln!(text),
        };
    }
    if let Some(errno) = h.failed {
        let _ = writeln!(
            text,
            "  failed:     {} writes in the background, the last with {errno}",
            h.failures
        );
    }
}

fn show_what(text: &mut String, f: &Findings) {
    let Ok(ino) = &f.target else { return };
    let _ = write!(text, "  is:         inode {}", ino.0);
    let told = f.server.as_ref().ok().map(|i| &i.attr);
    if let Some(attr) = f.here.attr.as_ref().or(told) {
        let _ = write!(text, ", {}, {} bytes", kind(attr.kind), attr.size);
        if attr.nlink == 0 {
            let _ = write!(text, ", removed but in use");
        }
    }
    if let (Some(here), Some(told)) = (&f.here.attr, told)
        && here.size != told.size
    {
        let _ = write!(text, " ({} at the server)", told.size);
    }
    let _ = writeln!(text);
}

/// For whom the client waits at the server.
fn on_whom(server: &Result<Inspection, Lost>) -> Option<String> {
    let i = server.as_ref().ok()?;
    let you = |at: u32| i.clients.get(at as usize).is_some_and(|c| c.you);
    let w = i.waiting.iter().find(|w| you(w.client))?;
    let on = w.on.iter().map(|at| match i.recalls.iter().find(|r| r.client == *at) {
        Some(r) => {
            let held =
                i.holders.iter().find(|h| h.client == *at).map_or("lease", |h| lease(h.lease));
            let since = r.age_ms.map_or(String::new(), |n| format!(", recalled {} ago", ms(n)));
            format!("the {held} held by {}{since}", client(&i.clients, *at))
        }
        None => format!("an earlier request of {}", client(&i.clients, *at)),
    });
    let on: Vec<String> = on.collect();
    (!on.is_empty()).then(|| on.join(" and "))
}

fn show_operations(text: &mut String, f: &Findings) {
    for o in &f.present {
        let _ = write!(text, "  under way:  {}, for {}", operation(o), time(o.took));
        match o.waits {
            Some((w, t)) => {
                let _ = write!(text, ": waits {} for {}", time(t), wait(w));
                let on = on_whom(&f.server).filter(|_| matches!(w, Wait::Lease | Wait::Meta));
                if let Some(on) = on {
                    let _ = write!(text, ": {on}");
                }
            }
            None => {
                let _ = write!(text, ": at work here");
            }
        }
        let before = parts(o);
        let _ = if before.is_empty() {
            writeln!(text)
        } else {
            writeln!(text, "; before that {before}")
        };
    }
    for o in &f.past {
        let Some((ago, outcome)) = &o.ended else { continue };
        let _ = write!(
            text,
            "  done:       {} ago: {}, took {}",
            time(*ago),
            operation(o),
            time(o.took)
        );
        if let Some(errno) = outcome {
            let _ = write!(text, ", failed with {errno}");
        }
        let parts = parts(o);
        let _ = if parts.is_empty() { writeln!(text) } else { writeln!(text, ": {parts}") };
    }
    if f.present.is_empty() && f.past.is_empty() {
        let _ = writeln!(text, "  done:       nothing lately that could not be answered at once");
    }
}

fn show_past_waits(text: &mut String, server: &Result<Inspection, Lost>) {
    let Ok(i) = server else { return };
    for p in &i.past {
        let end = if p.served { "waited" } else { "gave up after it waited" };
        let _ = writeln!(
            text,
            "  waited:     {} ago: {} {end} {} to {}, for {}",
            ms(p.ago_ms),
            client(&i.clients, p.client),
            time(Duration::from_micros(p.waited_us)),
            wish(p.wish),
            names(&i.clients, &p.on)
        );
    }
}

fn show_lost(text: &mut String, f: &Findings) {
    if let Err(lost) = &f.target {
        let _ = writeln!(text, "  unknown:    {lost}");
    } else if let Err(lost) = &f.server {
        let _ = writeln!(text, "  unknown:    who else holds or waits: {lost}");
    }
}

/// Everything about an inode.
pub fn why(f: &Findings) -> String {
    let mut text = format!("{}\n", f.path);
    show_what(&mut text, f);
    show_lost(&mut text, f);
    show_verdict(&mut text, f);
    if f.target.is_ok() {
        show_here(&mut text, &f.here);
    }
    if let Ok(i) = &f.server {
        show_leases(&mut text, i);
    }
    show_connection(&mut text, &f.connection);
    show_operations(&mut text, f);
    show_past_waits(&mut text, &f.server);
    text
}

/// Whether such an answer says that there is no such thing; not whether that could not be found out.
pub fn is_of_nothing(answer: &str) -> bool {
    let lost = answer.lines().filter_map(|line| line.trim_start().strip_prefix("unknown:"));
    lost.map(str::trim_start)
        .any(|why| why.starts_with("there is no \"") || why.ends_with("\" is not a directory"))
}

/// Who holds and who waits.
pub fn leases(f: &Findings) -> String {
    let mut text = format!("{}\n", f.path);
    show_lost(&mut text, f);
    if f.target.is_ok() {
        show_here(&mut text, &f.here);
    }
    if let Ok(i) = &f.server {
        show_leases(&mut text, i);
    } else {
        show_connection(&mut text, &f.connection);
    }
    text
}

/// The leases of a mount.
pub fn overview(
    path: &str,
    held: (u64, u64),
    server: &Result<VolumeLeases, Lost>,
    connection: &Connection,
    recalled: &[(Ino, u64)],
) -> String {
    let mut text = format!("{path}\n");
    let _ = writeln!(text, "  here:       {} to read, {} to write", held.0, held.1);
    match server {
        Ok(v) => {
            let _ = writeln!(
                text,
                "  volume:     {} leases, at most {} for each client; {} requests wait, {} recalls have no answer",
                v.leases, v.per_client, v.waiting, v.unanswered
            );
            if v.grace {
                let _ = writeln!(
                    text,
                    "  volume:     the server was restarted and waits for the clients of before"
                );
            }
            for (at, c) in v.clients.iter().enumerate() {
                let name = client(&v.clients, u32::try_from(at).unwrap_or(u32::MAX));
                let _ =
                    writeln!(text, "  client:     {name}: {} leases ({})", c.leases, condition(c));
            }
            if v.left_out > 0 {
                let _ = writeln!(text, "  (and {} more)", v.left_out);
            }
        }
        Err(lost) => {
            let _ = writeln!(text, "  unknown:    what the server says of it: {lost}");
        }
    }
    show_connection(&mut text, connection);
    for (ino, times) in recalled {
        let _ = writeln!(text, "  recalled:   inode {}, {times} times at least", ino.0);
    }
    text
}

#[cfg(test)]
mod tests {
    use netfs_common::attr::Timestamp;
    use netfs_common::locks::LockRange;
    use netfs_common::name::Name;
    use netfs_common::wire::insight::{Holder, PastWait, Unanswered, Waiter};

    use super::*;
    use crate::insight::What;

    fn attr(size: u64) -> Attr {
        let t = Timestamp { secs: 1, nanos: 0 };
        Attr {
            ino: Ino(7),
            kind: FileKind::File,
            perm: 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size,
            allocated: 0,
            atime: t,
            mtime: t,
            ctime: t,
            btime: t,
            generation: 1,
            chunk_bits: 22,
            inline: true,
            has_xattrs: false,
            parent: Ino(0),
            version: 1,
        }
    }

    fn somebody(description: &str, you: bool, silent_ms: u64) -> Client {
        Client { description: description.into(), you, connected: true, silent_ms, leases: 3 }
    }

    fn lookup(
        waits: Option<(Wait, Duration)>,
        ended: Option<(Duration, Option<Errno>)>,
    ) -> Operation {
        let name = Some(Name::new("file").unwrap());
        let mut waited = [Duration::ZERO; Wait::ALL.len()];
        if ended.is_some() {
            waited[Wait::Meta as usize] = Duration::from_millis(1900);
        }
        let took = Duration::from_millis(if ended.is_some() { 2000 } else { 12_300 });
        Operation {
            what: What { op: "lookup", ino: Ino(1), name, pid: 0 },
            took,
            ended,
            waits,
            waited,
        }
    }

    fn file_lock(client: u32, kind: LockKind, (start, end): (u64, u64)) -> FileLock {
        let range = LockRange { start, end };
        FileLock { client, kind, mode: LockMode::Write, range, pid: 70 + client }
    }

    fn stuck() -> Findings {
        let inspection = Inspection {
            attr: attr(10),
            clients: vec![somebody("b:/mnt", true, 0), somebody("a:/mnt", false, 12_000)],
            holders: vec![Holder { client: 1, lease: Lease::Write }],
            waiting: vec![Waiter { client: 0, wish: Wish::Look, waits_ms: 12_300, on: vec![1] }],
            recalls: vec![Unanswered { client: 1, keep: Some(Lease::Read), age_ms: Some(12_200) }],
            past: vec![PastWait {
                client: 0,
                wish: Wish::Take,
                waited_us: 1500,
                ago_ms: 60_000,
                on: vec![9],
                served: true,
            }],
            locks: vec![
                file_lock(1, LockKind::Posix, (10, 19)),
                file_lock(1, LockKind::Flock, (0, u64::MAX)),
            ],
            lock_queue: vec![file_lock(0, LockKind::Ofd, (15, i64::MAX as u64))],
            grace: false,
            left_out: 0,
        };
        Findings {
            path: "/mnt/file".into(),
            target: Ok(Ino(7)),
            here: Here {
                attr: Some(attr(20)),
                failed: Some(Errno::ENOSPC),
                failures: 2,
                ..Here::default()
            },
            server: Ok(inspection),
            connection: Connection {
                connected: true,
                left: Duration::from_secs(15),
                term: Duration::from_secs(30),
                ..Connection::default()
            },
            present: vec![lookup(Some((Wait::Meta, Duration::from_millis(12_300))), None)],
            past: vec![lookup(None, Some((Duration::from_secs(40), Some(Errno::ENOENT))))],
        }
    }

    #[test]
    fn who_is_waited_for_is_named_with_since_when() {
        let text = why(&stuck());
        for part in [
            "is:         inode 7, a file, 20 bytes (10 at the server)",
            "why:        a:/mnt does not answer: it is stopped, or cut off; if it stays silent, it loses its leases in about 18.0 s",
            "holds:      a:/mnt: write lease (connected, last heard of 12.0 s ago)",
            "waits:      this client waits 12.3 s to look at it, for a:/mnt",
            "under way:  lookup \"file\" of inode 1, for 12.3 s: waits 12.3 s for the metadata server: the write lease held by a:/mnt, recalled 12.2 s ago",
            "done:       40.0 s ago: lookup \"file\" of inode 1, took 2.0 s, failed with ENOENT: 1.9 s for the metadata server, 100.0 ms here",
            "waited:     60.0 s ago: this client waited 1.5 ms to write to it, for a client that has gone",
            "failed:     2 writes in the background, the last with ENOSPC",
            "locked:     a:/mnt: fcntl write lock on bytes 10 to 19, process 71 there",
            "locked:     a:/mnt: flock write lock, process 71 there",
            "wants lock: this client: open-file-description write lock on bytes from 15 on, process 70 there",
            "why:        process 70 waits for a lock that process 71 of a:/mnt has",
        ] {
            assert!(text.contains(part), "{part}\nin\n{text}");
        }
        let short = leases(&stuck());
        assert!(short.contains("a:/mnt: write lease") && !short.contains("done:"), "{short}");
    }

    #[test]
    fn without_a_server_it_says_so_and_shows_what_is_known() {
        let mut findings = stuck();
        findings.server = Err(Lost::Disconnected);
        findings.connection = Connection::default();
        let text = why(&findings);
        for part in [
            "who else holds or waits: there is no connection to the metadata server",
            "why:        the metadata server cannot be reached",
            "not connected",
            "inode 7, a file, 20 bytes",
        ] {
            assert!(text.contains(part), "{part}\nin\n{text}");
        }
        assert!(!is_of_nothing(&why(&findings)) && !is_of_nothing(&leases(&findings)));
        findings.target = Err(Lost::Disconnected);
        assert!(!is_of_nothing(&why(&findings)) && !is_of_nothing(&leases(&findings)));
        findings.target = Err(Lost::Absent("x".into()));
        assert!(why(&findings).contains("unknown:    there is no \"x\""));
        assert!(is_of_nothing(&why(&findings)) && is_of_nothing(&leases(&findings)));
        findings.target = Err(Lost::NotADirectory("x".into()));
        assert!(is_of_nothing(&why(&findings)) && is_of_nothing(&leases(&findings)));
    }

    #[test]
    fn a_mount_is_shown_with_its_limit_and_what_is_recalled_most() {
        let volume = VolumeLeases {
            leases: 9,
            per_client: 100,
            clients: vec![somebody("b:/mnt", true, 0)],
            ..VolumeLeases::default()
        };
        let text = overview("/mnt", (4, 1), &Ok(volume), &Connection::default(), &[(Ino(5), 77)]);
        for part in
            ["4 to read, 1 to write", "at most 100", "this client: 3 leases", "inode 5, 77 times"]
        {
            assert!(text.contains(part), "{part}\nin\n{text}");
        }
    }
}
